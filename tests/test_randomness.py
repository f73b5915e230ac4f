"""Numbers nobody has seen before."""

import itertools

from turnkeeper.randomness import Randomness


def test_no_byte_is_used_twice() -> None:
    """Each fetch is another run of two-byte numbers, so that any byte used again would be seen."""
    counter = itertools.count()

    def fetch(size: int) -> bytes:
        return b"".join(next(counter).to_bytes(2) for _ in range(size // 2))

    randomness = Randomness(fetch)
    taken = [randomness.bytes(10) for _ in range(2000)]
    numbers = [int.from_bytes(t[i : i + 2]) for t in taken for i in range(0, 10, 2)]
    assert len(set(numbers)) == len(numbers) == 10_000


def test_bits_are_as_many_as_asked_for() -> None:
    for count in (1, 7, 8, 76, 130):
        ones = Randomness(lambda size: b"\xff" * size).bits(count)
        assert ones == 2**count - 1
        assert Randomness(bytes).bits(count) == 0


def test_two_are_not_alike() -> None:
    assert Randomness().bits(76) != Randomness().bits(76)
