"""What runs by the clock: sessions that nobody uses any more are deleted.

The keeper walks round all sessions, some at a time, so that what it does costs the same each
second however many there are, and no turn waits for it. What is deleted does not come back, so a
clock that was put forward is not believed at once: somebody may be about to put it right.
"""

import asyncio
import logging
import time
from collections.abc import Callable

from turnkeeper.clock import Leaps
from turnkeeper.contracts import Store
from turnkeeper.errors import StoreUnavailable

log = logging.getLogger(__name__)

STEP = 500  # sessions looked at together
STEP_SECONDS = 0.5  # between two steps
ROUND_SECONDS = 5.0  # between two rounds
LEAP_SECONDS = 60.0  # that a clock may run ahead of the time that has passed
DISTRUST_SECONDS = 3600.0  # for which nothing expires when it has run ahead further


class Keeper:
    """Deletes sessions after their deployment's idle time-out."""

    def __init__(
        self,
        store: Store,
        *,
        now: Callable[[], int],
        tick: Callable[[], float] = time.monotonic,
    ) -> None:
        """`now` is the time in ms since 1970; `tick` are seconds that nobody can set."""
        self._store = store
        self._now = now
        self._tick = tick
        self._leaps = Leaps(tolerance=LEAP_SECONDS, distrust=DISTRUST_SECONDS)
        self._leaps.is_new(now() / 1000, tick())

    async def run(self) -> None:
        """Walk round until cancelled."""
        after = ""
        while True:
            await asyncio.sleep(STEP_SECONDS if after else ROUND_SECONDS)
            try:
                after = await self.step(after)
            except StoreUnavailable:
                pass  # the store has said so, and in a while this is tried again
            except Exception:
                log.exception("Expired sessions were not looked for through a fault of our own")

    async def step(self, after: str) -> str:
        """Look at the next sessions and delete those that have expired; where to go on."""
        now, tick = self._now(), self._tick()
        if self._leaps.is_new(now / 1000, tick):
            log.warning("The clock was put forward: no session expires within the next hour")
        if not self._leaps.is_believed(tick):
            return ""
        page = await self._store.find_idle(after, STEP, now)
        deleted = [await self._store.delete_idle(*idle) for idle in page.sessions]
        if any(deleted):
            log.info("%d sessions expired", sum(deleted))
        return page.next or ""
