"""What runs by the clock: what nobody uses, or makes, any more comes to its end.

Whatever there is to delete goes in small steps, with a rest after each that is four times as long
as the step took: turns have the store for themselves most of the time, and the busier it is the
longer the keeper rests. What is deleted does not come back, so a clock that was put forward is not
believed at once: somebody may be about to put it right.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable

from turnkeeper.clock import Leaps
from turnkeeper.contracts import Store
from turnkeeper.counts import Counts
from turnkeeper.errors import StoreUnavailable
from turnkeeper.gate import Gate
from turnkeeper.observer import NOBODY, Observer

log = logging.getLogger(__name__)

SESSIONS = 20  # looked at in one step
KEYS = 500  # forgotten in one step
REST = 4.0  # times as long as a step took
LEAST_REST = 0.01  # seconds
ROUND_SECONDS = 5.0  # from one look at everything to the next, and until what is new is looked at
BOOK_SECONDS = 0.5  # from one time that what was used of limits is kept to the next
KEY_MILLISECONDS = 24 * 60 * 60 * 1000  # that an idempotency key is kept
LEAP_SECONDS = 60.0  # that a clock may run ahead of the time that has passed
DISTRUST_SECONDS = 3600.0  # for which nothing expires when it has run ahead further


async def keep_books(
    gate: Gate, *, sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
) -> None:
    """Keep what was used of limits, and forget who is not seen any more, until cancelled.

    So often that a crash loses less than a second of counting.
    """
    while True:
        await sleep(BOOK_SECONDS)
        try:
            await gate.keep()
            gate.forget()
        except Exception:
            log.exception("What was used of limits was not kept through a fault of our own")


async def _nothing() -> None:
    pass


class Keeper:
    """Deletes sessions when their deployment says so, settles strays, forgets keys.

    And it keeps what was learned of how models count.
    """

    def __init__(
        self,
        store: Store,
        counts: Counts,
        settle_strays: Callable[[], Awaitable[int]],
        keep_usage: Callable[[], Awaitable[None]] = _nothing,
        *,
        observer: Observer = NOBODY,
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
        self._observer = observer
        self._now = now
        self._tick = tick
        self._sleep = sleep
        self._leaps = Leaps(tolerance=LEAP_SECONDS, distrust=DISTRUST_SECONDS)
        self._leaps.is_new(now() / 1000, tick())

    async def run(self) -> None:
        """Look after everything until cancelled."""
        rest, round_at = ROUND_SECONDS, self._tick()
        while True:
            await self._sleep(rest)
            rest = ROUND_SECONDS
            try:
                if self._tick() >= round_at:  # also while there is more and more to delete
                    await self.tidy()
                    round_at = self._tick() + ROUND_SECONDS
                begun = self._tick()
                if await self.step():
                    rest = max(LEAST_REST, REST * (self._tick() - begun))
            except StoreUnavailable:
                pass  # the store has said so, and in a while this is tried again
            except Exception:
                log.exception("Nothing was tidied up through a fault of our own")

    async def tidy(self) -> None:
        """What is looked at every few seconds: strays, what was learned of how models count, and
        what was used."""
        settled = await self._settle_strays()
        if settled:
            log.warning("%d turns that nobody made were settled as interrupted", settled)
            self._observer.strays_settled(settled)
        await self.keep_counts()
        await self._keep_usage()

    async def keep_counts(self) -> None:
        """Keep what was learned of how models count since the last time, if it can be kept."""
        news = self._counts.take_news()
        if not news:
            return
        try:
            await self._store.keep_counts(news)
        except StoreUnavailable:
            self._counts.changed = True  # the next time, then

    async def step(self) -> bool:
        """Delete some of what has outlived its time, or else give some of its space back.

        Returns:
            Whether there may be more to do now.
        """
        if not self._believes_clock():
            return False
        expired = await self._store.expire(SESSIONS, self._now())
        if expired.sessions:
            log.info("%d sessions expired", expired.sessions)
            self._observer.sessions_expired(expired.sessions)
        dropped = await self._store.drop_keys(self._now() - KEY_MILLISECONDS, KEYS)
        forgotten = await self._store.drop_spent(self._now(), KEYS)
        more = expired.more or KEYS in (dropped, forgotten)
        return more or await self._store.give_back_space()

    def _believes_clock(self) -> bool:
        tick = self._tick()
        if self._leaps.is_new(self._now() / 1000, tick):
            log.warning("The clock was put forward: nothing expires within the next hour")
        return self._leaps.is_believed(tick)
