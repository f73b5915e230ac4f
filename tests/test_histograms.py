"""Counting in buckets: exact at the bounds, and percentiles as near as is said."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from turnkeeper.histograms import ERROR, Buckets, Spread

times = st.lists(st.integers(0, 86_400_000), min_size=1, max_size=200)


def test_a_number_counts_in_the_first_bucket_that_it_is_not_above() -> None:
    buckets = Buckets((1.0, 5.0))
    for number in (0.5, 1.0, 1.1, 5.0, 6.0):
        buckets.add(number)
    assert (buckets.counts, buckets.sum) == ([2, 2, 1], 13.6)


@given(times, st.sampled_from([1, 50, 95, 99, 100]))
def test_a_percentile_is_within_five_per_cent_or_a_millisecond(
    milliseconds: list[int], percent: int
) -> None:
    ordered = sorted(milliseconds)
    exact = ordered[max(0, -(-len(ordered) * percent // 100) - 1)]
    [found] = Spread.of(milliseconds).percentiles(percent)
    assert abs(found - exact) <= max(1, exact * ERROR * 1.000001)


@given(times, times)
def test_to_add_two_is_to_count_all(one: list[int], other: list[int]) -> None:
    assert Spread.of(one) + Spread.of(other) == Spread.of([*one, *other])
    assert Spread.of(one).count == len(one)


@given(st.lists(st.integers(0, 86_400_000)))
def test_it_is_read_back_as_it_was_kept(milliseconds: list[int]) -> None:
    spread = Spread.of(milliseconds)
    assert Spread.decode(spread.encode()) == spread
    assert bool(spread) == bool(milliseconds)


def test_nothing_has_no_percentile() -> None:
    assert Spread().percentiles(50) == []


def test_a_million_of_one_kind_do_not_run_into_the_next() -> None:
    spread = Spread.of([700])
    for _ in range(31):
        spread += spread
    assert (spread + Spread.of([10])).count == 2**31 + 1
    assert spread.percentiles(50) == [pytest.approx(700, rel=ERROR)]


def test_what_is_kept_is_short_for_what_usually_happens() -> None:
    """A day of replies of one to thirty seconds, of one user."""
    chance = random.Random(1)
    spread = Spread.of([chance.randint(1_000, 30_000) for _ in range(10_000)])
    assert len(spread.encode()) < 300
