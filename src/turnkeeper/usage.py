"""What was used, by whom and when: kept when requests come and turns end, and told on request.

Turns are counted by the store in the transaction that ends them. Requests, of which none is
owed to anybody, are counted here and kept every few seconds. Knows no HTTP and no SQL.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from datetime import UTC, date, datetime, timedelta

import msgspec

from turnkeeper.contracts import UsageBy, UsageStore
from turnkeeper.domain import Sums
from turnkeeper.errors import InvalidRequest, StoreUnavailable

USUAL_DAYS = 30  # that are told of where nobody says how many
MOST_DAYS = 3_660
_BATCH = 1000  # turns added to the sums in one transaction


class UsageWish(msgspec.Struct, frozen=True):
    """Which usage is asked for: of an owner, or everybody, from a day up to and with another."""

    owner: str | None
    by: UsageBy
    first: date
    last: date


class UsageLine(msgspec.Struct, frozen=True):
    """What was used by one of what is told apart: a day, a model, a user, a deployment."""

    name: str
    sums: Sums


class UsageBook:
    """Counts requests, has turns added up, and tells of both."""

    def __init__(self, store: UsageStore, *, now: Callable[[], int]) -> None:
        """`now` is the time in ms since 1970."""
        self._store = store
        self._now = now
        self._requests: Counter[str] = Counter()  # by owner, since they were last kept

    def count_request(self, owner: str) -> None:
        self._requests[owner] += 1

    async def keep(self) -> None:
        """Add what has come since the last time to what is kept, if it can be kept just now."""
        requests, self._requests = self._requests, Counter()
        day = self.today().isoformat()
        kept = {(owner, day): count for owner, count in requests.items()}
        try:
            while await self._store.fold(kept, _BATCH) == _BATCH:
                kept = {}
        except StoreUnavailable:
            # What was kept is not counted again: the first batch holds all requests.
            self._requests.update({owner: count for (owner, _), count in kept.items()})

    def today(self) -> date:
        return datetime.fromtimestamp(self._now() / 1000, UTC).date()

    def wish(
        self, owner: str | None, by: UsageBy, first: date | None, last: date | None
    ) -> UsageWish:
        """What is asked for; without a last day up to today, without a first `USUAL_DAYS`.

        Raises:
            InvalidRequest: the days are in no order, or more than `MOST_DAYS`.
        """
        last = last or self.today()
        first = first or last - timedelta(days=min(USUAL_DAYS, last.toordinal()) - 1)
        if first > last:
            raise InvalidRequest("from must not be later than to")
        if (last - first).days >= MOST_DAYS:
            raise InvalidRequest(f"from and to must not be more than {MOST_DAYS} days apart")
        return UsageWish(owner, by, first, last)

    async def tell(self, wish: UsageWish) -> Sequence[UsageLine]:
        """A line for each of what is told apart, in order; nothing of what was not used.

        Raises:
            StoreUnavailable.
        """
        found = await self._store.list_usage(
            wish.owner, wish.by, wish.first.isoformat(), wish.last.isoformat()
        )
        return [UsageLine(name, found[name]) for name in sorted(found)]
