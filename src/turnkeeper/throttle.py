"""Pure: how long those must wait who have failed too often. The clock is an argument."""

from collections import OrderedDict

_FREE = 5  # failures before the first wait, which is a second
_SIZE = 10_000  # of those who failed, how many are remembered; the latest
_MEMORY = 3600.0  # seconds after which a failure is forgotten, the wait not counted


class Throttle:
    """Counts failures and makes the wait after each twice the last one, up to a longest.

    An attempt counts as a failure from its beginning, so that many at once are no way around.
    Times are seconds, of a clock that never goes back.
    """

    def __init__(self, longest: float, free: int = _FREE, size: int = _SIZE) -> None:
        self._longest = longest
        self._free = free
        self._size = size
        self._failures: OrderedDict[str, tuple[int, float]] = OrderedDict()  # count, wait's end

    def wait(self, who: str, now: float) -> float:
        """Seconds until the next attempt is allowed; 0 if it is now."""
        _, until = self._failures.get(who, (0, 0.0))
        return max(0.0, until - now)

    def attempt(self, who: str, now: float) -> None:
        """Note that an attempt begins, as one that fails."""
        count, until = self._failures.pop(who, (0, now))
        count = 1 if now - until > _MEMORY else count + 1
        self._failures[who] = (count, now + self._wait_after(count))
        if len(self._failures) > self._size:
            self._failures.popitem(last=False)

    def fail(self, who: str, now: float) -> None:
        """An attempt has failed: the wait counts from now, however long it took."""
        count, _ = self._failures.get(who, (0, now))
        if count:
            self._failures[who] = (count, now + self._wait_after(count))

    def take_back(self, who: str, now: float) -> None:
        """One attempt did not fail; those before it still did."""
        count, _ = self._failures.pop(who, (1, now))
        if count > 1:
            self._failures[who] = (count - 1, now)

    def forget(self, who: str) -> None:
        """No failure counts any more."""
        self._failures.pop(who, None)

    def _wait_after(self, count: int) -> float:
        wait = 2.0 ** min(count - self._free, 30) if count >= self._free else 0.0
        return min(wait, self._longest)

    def __len__(self) -> int:
        return len(self._failures)
