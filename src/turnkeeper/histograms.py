"""How numbers are spread: counted in buckets, added up, read as percentiles. Pure.

Two kinds. `Buckets` are few, with bounds chosen for what they count, and live as long as the
process: metrics are made of them. A `Spread` has many, each a tenth wider than the one before,
so that percentiles can be read from it to within five per cent; it is kept and added to.
"""

import math
import sys
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import accumulate
from typing import Final


class Buckets:
    """How many numbers were at most each of the `bounds`, more than the last, and their sum."""

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def add(self, number: float) -> None:
        self.counts[bisect_left(self.bounds, number)] += 1
        self.sum += number


ERROR: Final = 0.05  # by what part a percentile may be wrong

_GROWTH: Final = (1 + ERROR) / (1 - ERROR)  # as in DDSketch (Masson, Rim, Lee, 2019)
_SCALE: Final = 1 / math.log(_GROWTH)
_LAST: Final = math.ceil(math.log(86_400_000) * _SCALE)  # a day of milliseconds and more
_BITS: Final = 32  # of a bucket's count


class Spread:
    """How many milliseconds what has happened took. Adding two is one addition of integers.

    The counts stand side by side in one integer, `_BITS` for each bucket. Up to a millisecond is
    the first bucket, and from a day on the last.
    """

    __slots__ = ("_counts",)

    def __init__(self, counts: int = 0) -> None:
        self._counts = counts

    @classmethod
    def of(cls, milliseconds: Iterable[int]) -> "Spread":
        counts = Counter(map(_bucket, milliseconds))  # of few buckets: they are long integers
        return cls(sum(count << _BITS * bucket for bucket, count in counts.items()))

    def __add__(self, other: "Spread") -> "Spread":
        return Spread(self._counts + other._counts)

    def __bool__(self) -> bool:
        return self._counts > 0

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Spread) and self._counts == other._counts

    def __hash__(self) -> int:
        return hash(self._counts)

    def __repr__(self) -> str:
        return f"Spread.decode({self.encode()!r})"

    @property
    def count(self) -> int:
        return sum(self._by_bucket())

    def percentiles(self, *percents: float) -> list[float]:
        """What so many per cent of all took at most, to within `ERROR` or a ms; none of nothing."""
        so_far = list(accumulate(self._by_bucket()))
        if not so_far:
            return []
        total = so_far[-1]
        return [_middle(bisect_left(so_far, total * percent / 100)) for percent in percents]

    def _by_bucket(self) -> Sequence[int]:
        """The count of each bucket, from the first to the last that has any."""
        buckets = -(-self._counts.bit_length() // _BITS)
        return memoryview(self._counts.to_bytes(buckets * _BITS // 8, sys.byteorder)).cast("I")[
            :: 1 if sys.byteorder == "little" else -1
        ]

    # --- As it is kept ---------------------------------------------------------------------------

    def encode(self) -> str:
        """`first:counts`: a bucket's number, and the counts from there on in hexadecimal, each of
        eight digits, the last bucket in front. Nothing for no counts."""
        if not self._counts:
            return ""
        first = ((self._counts & -self._counts).bit_length() - 1) // _BITS
        return f"{first}:{self._counts >> _BITS * first:x}"

    @classmethod
    def decode(cls, *texts: str) -> "Spread":
        """What was kept in each of `texts`, together."""
        total = 0
        for text in filter(None, texts):
            first, _, counts = text.partition(":")
            total += int(counts, 16) << _BITS * int(first)
        return cls(total)


def _bucket(milliseconds: int) -> int:
    if milliseconds <= 1:
        return 0
    return min(math.ceil(math.log(milliseconds) * _SCALE), _LAST)


def _middle(bucket: int) -> float:
    """What is as far, in proportion, from the least of a bucket as from the most."""
    return 1.0 if bucket == 0 else 2 * _GROWTH**bucket / (_GROWTH + 1)
