"""Pure: what is made of a clock that may be set, back or forward, while the program runs."""

from collections.abc import Callable


class Rising:
    """Numbers from a clock, of which none is like another or less than one before."""

    def __init__(self, read: Callable[[], int]) -> None:
        self._read = read
        self._last = 0

    def __call__(self) -> int:
        self._last = max(self._last + 1, self._read())
        return self._last


class Leaps:
    """Tells a clock that was put forward from time that has passed."""

    def __init__(self, *, tolerance: float, distrust: float) -> None:
        """Seconds: how far the clock may run ahead, and for how long it is not believed then."""
        self._tolerance = tolerance
        self._distrust = distrust
        self._last: tuple[float, float] | None = None
        self._until = 0.0

    def is_new(self, clock: float, steady: float) -> bool:
        """Whether the clock has leapt forward since the last time that it was shown here.

        `steady` are seconds that nobody can set.
        """
        last, self._last = self._last, (clock, steady)
        if last is None or (clock - last[0]) - (steady - last[1]) <= self._tolerance:
            return False
        self._until = steady + self._distrust
        return True

    def is_believed(self, steady: float) -> bool:
        """Whether what the clock says may be acted upon."""
        return steady >= self._until
