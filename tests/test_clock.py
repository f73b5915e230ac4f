"""What is made of a clock that is set while the program runs."""

from turnkeeper.clock import Leaps, Rising


def test_numbers_rise_though_the_clock_stands_or_is_put_back() -> None:
    times = iter([10, 10, 5, 6, 20])
    rising = Rising(lambda: next(times))
    assert [rising() for _ in range(5)] == [10, 11, 12, 13, 20]


def test_a_clock_that_runs_on_is_believed() -> None:
    leaps = Leaps(tolerance=60, distrust=3600)
    for seconds in (0, 5, 10_000):
        assert not leaps.is_new(1e9 + seconds * 1.001, seconds)
        assert leaps.is_believed(seconds)


def test_a_clock_that_was_put_forward_is_not_believed_for_a_while() -> None:
    leaps = Leaps(tolerance=60, distrust=3600)
    leaps.is_new(0, 0)
    assert leaps.is_new(5000, 10)
    assert not leaps.is_new(5005, 15)
    assert not leaps.is_believed(3609)
    assert leaps.is_believed(3610)


def test_a_clock_that_was_put_back_is_believed() -> None:
    leaps = Leaps(tolerance=60, distrust=3600)
    leaps.is_new(10_000, 0)
    assert not leaps.is_new(0, 10)
    assert leaps.is_believed(10)
