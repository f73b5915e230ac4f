"""Unguessable numbers, fetched from the system many at a time.

A call to the system costs microseconds, and a turn needs two numbers.
"""

import os
from collections.abc import Callable

_AT_ONCE = 4096  # bytes


class Randomness:
    """Numbers that nobody has seen before and nobody can foresee."""

    def __init__(self, fetch: Callable[[int], bytes] = os.urandom) -> None:
        self._fetch = fetch
        self._bytes = b""
        self._used = 0

    def bytes(self, count: int) -> bytes:
        """The next `count` bytes, at most some thousand."""
        start, end = self._used, self._used + count
        if end > len(self._bytes):
            self._bytes = self._fetch(_AT_ONCE)
            start, end = 0, count
        self._used = end
        return self._bytes[start:end]

    def bits(self, count: int) -> int:
        """A number of `count` bits, from 0."""
        size = (count + 7) // 8
        return int.from_bytes(self.bytes(size)) >> (8 * size - count)
