"""What runs by the clock: what nobody uses, or makes, any more comes to its end.

The keeper walks round all sessions, some at a time, so that what it does costs the same each
second however many there are, and no turn waits for it. What is deleted does not come back, so a
clock that was put forward is not believed at once: somebody may be about to put it right.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable

from turnkeeper.clock import Leaps
from turnkeeper.contracts import Store
from turnkeeper.counts import Counts
from turnkeeper.errors import StoreUnavailable

log = logging.getLogger(__name__)

STEP = 500  # sessions or keys looked at together
STEP_SECONDS = 0.5  # between two steps
ROUND_SECONDS = 5.0  # between two rounds
TIDY_STEPS = 10  # after which strays and keys are looked at again: a round may be long
KEY_MILLISECONDS = 24 * 60 * 60 * 1000  # that an idempotency key is kept
LEAP_SECONDS = 60.0  # that a clock may run ahead of the time that has passed
DISTRUST_SECONDS = 3600.0  # for which nothing expires when it has run ahead further


async def _nothing() -> None:
    pass


class Keeper:
    """Deletes sessions after their deployment's idle time-out, settles strays, forgets keys.

    And it keeps what was learned of how models count.
    """

    def __init__(
        self,
        store: Store,
        counts: Counts,
        settle_strays: Callable[[], Awaitable[int]],
        keep_usage: Callable[[], Awaitable[None]] = _nothing,
        *,
        now: Callable[[], int],
        tick: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """`settle_strays` ends turns that nobody makes, and says how many they were.
        `keep_usage` adds up what was used.

        `now` is the time in ms since 1970; `tick` are seconds that nobody can set.
        """
        self._store = store
        self._counts = counts
        self._settle_strays = settle_strays
        self._keep_usage = keep_usage
        self._now = now
        self._tick = tick
        self._sleep = sleep
        self._leaps = Leaps(tolerance=LEAP_SECONDS, distrust=DISTRUST_SECONDS)
        self._leaps.is_new(now() / 1000, tick())

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
                pass  # the store has said so, and in a while this is tried again
            except Exception:
                log.exception("Nothing was tidied up through a fault of our own")

    async def tidy(self) -> None:
        """What does not wait for a walk round all sessions: strays, counts, old keys."""
        settled = await self._settle_strays()
        if settled:
            log.warning("%d turns that nobody made were settled as interrupted", settled)
        await self.keep_counts()
        await self._keep_usage()
        dropped = STEP if self._believes_clock() else 0
        while dropped == STEP:
            dropped = await self._store.drop_keys(self._now() - KEY_MILLISECONDS, STEP)

    async def keep_counts(self) -> None:
        """Keep what was learned of how models count since the last time, if it can be kept."""
        news = self._counts.take_news()
        if not news:
            return
        try:
            await self._store.keep_counts(news)
        except StoreUnavailable:
            self._counts.changed = True  # the next time, then

    async def step(self, after: str) -> str:
        """Look at the next sessions and delete those that have expired; where to go on."""
        if not self._believes_clock():
            return ""
        page = await self._store.find_idle(after, STEP, self._now())
        deleted = [await self._store.delete_idle(*idle) for idle in page.sessions]
        if any(deleted):
            log.info("%d sessions expired", sum(deleted))
        return page.next or ""

    def _believes_clock(self) -> bool:
        tick = self._tick()
        if self._leaps.is_new(self._now() / 1000, tick):
            log.warning("The clock was put forward: nothing expires within the next hour")
        return self._leaps.is_believed(tick)
