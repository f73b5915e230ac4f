"""What runs by the clock: unused sessions are deleted, and what was learned of models is kept.

The keeper walks round all sessions, some at a time, so that what it does costs the same each
second however many there are, and no turn waits for it.
"""

import asyncio
import logging
from collections.abc import Callable

from turnkeeper.contracts import Store
from turnkeeper.counts import Counts
from turnkeeper.errors import StoreUnavailable

log = logging.getLogger(__name__)

STEP = 500  # sessions looked at together
STEP_SECONDS = 0.5  # between two steps
ROUND_SECONDS = 5.0  # between two rounds


class Keeper:
    """Deletes sessions after their deployment's idle time-out, and keeps counts."""

    def __init__(self, store: Store, counts: Counts, *, now: Callable[[], int]) -> None:
        self._store = store
        self._counts = counts
        self._now = now

    async def run(self) -> None:
        """Walk round until cancelled."""
        after = ""
        while True:
            await asyncio.sleep(STEP_SECONDS if after else ROUND_SECONDS)
            await self.keep_counts()
            try:
                after = await self.step(after)
            except StoreUnavailable:
                log.warning("Expired sessions were not looked for: the database is not available")
            except Exception:
                log.exception("Expired sessions were not looked for through a fault of our own")

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
        page = await self._store.find_idle(after, STEP, self._now())
        deleted = [await self._store.delete_idle(*idle) for idle in page.sessions]
        if any(deleted):
            log.info("%d sessions expired", sum(deleted))
        return page.next or ""
