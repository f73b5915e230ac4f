"""What runs by the clock: what nobody uses, or makes, any more comes to its end.

The keeper walks round all sessions, some at a time, so that what it does costs the same each
second however many there are, and no turn waits for it.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable

from turnkeeper.contracts import Store
from turnkeeper.errors import StoreUnavailable

log = logging.getLogger(__name__)

STEP = 500  # sessions or keys looked at together
STEP_SECONDS = 0.5  # between two steps
ROUND_SECONDS = 5.0  # between two rounds
TIDY_STEPS = 10  # after which strays and keys are looked at again: a round may be long
KEY_MILLISECONDS = 24 * 60 * 60 * 1000  # that an idempotency key is kept


class Keeper:
    """Deletes sessions after their deployment's idle time-out, settles strays, forgets keys."""

    def __init__(
        self,
        store: Store,
        settle_strays: Callable[[], Awaitable[int]],
        *,
        now: Callable[[], int],
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """`settle_strays` ends turns that nobody makes, and says how many they were."""
        self._store = store
        self._settle_strays = settle_strays
        self._now = now
        self._sleep = sleep

    async def run(self) -> None:
        """Walk round until cancelled."""
        after, steps = "", 0
        while True:
            await self._sleep(STEP_SECONDS if after else ROUND_SECONDS)
            try:
                if steps % TIDY_STEPS == 0:
                    await self.tidy()
                after = await self.step(after)
                steps = steps + 1 if after else 0
            except StoreUnavailable:
                log.warning("Nothing was tidied up: the database is not available")
            except Exception:
                log.exception("Nothing was tidied up through a fault of our own")

    async def tidy(self) -> None:
        """Settle strays and forget old keys, which does not wait for a walk round all sessions."""
        settled = await self._settle_strays()
        if settled:
            log.warning("%d turns that nobody made were settled as interrupted", settled)
        dropped = STEP
        while dropped == STEP:
            dropped = await self._store.drop_keys(self._now() - KEY_MILLISECONDS, STEP)

    async def step(self, after: str) -> str:
        """Look at the next sessions and delete those that have expired; where to go on."""
        page = await self._store.find_idle(after, STEP, self._now())
        deleted = [await self._store.delete_idle(*idle) for idle in page.sessions]
        if any(deleted):
            log.info("%d sessions expired", sum(deleted))
        return page.next or ""
