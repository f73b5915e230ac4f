"""Limits, counted: never over, whoever asks how often and in whatever order."""

from collections.abc import Callable
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from turnkeeper.domain import Limits, Model
from turnkeeper.errors import Overloaded, QuotaExceeded, RateLimited
from turnkeeper.limits import (
    COST_UNIT,
    Estimate,
    Ledger,
    Moment,
    Party,
    Reservation,
    Spent,
    Subject,
    Window,
    cost_of,
    merge,
)

ANN = Subject("user", "ann")
NOON = int(datetime(2026, 12, 31, 12, tzinfo=UTC).timestamp()) * 1000
HOUR = 3_600_000


def at(seconds: float) -> Moment:
    """A moment so long after noon of the last day of a year."""
    return Moment(1000 + seconds, NOON + int(seconds * 1000))


def ann(**limits: float) -> list[Party]:
    return [Party(ANN, Limits(**limits))]  # type: ignore[arg-type]


def refused(act: Callable[[], object]) -> RateLimited:
    with pytest.raises(RateLimited) as raised:
        act()
    return raised.value


# --- Windows -----------------------------------------------------------------------------------

STEPS = st.lists(
    st.tuples(st.floats(0, 90, allow_nan=False), st.integers(0, 5)), min_size=1, max_size=60
)


@given(STEPS)
def test_a_window_never_misses_what_was_within_a_minute(steps: list[tuple[float, int]]) -> None:
    window, now, added = Window(), 0.0, list[tuple[float, int]]()
    for pause, amount in steps:
        now += pause
        used = window.used(now)
        assert used >= sum(amount for when, amount in added if when > now - 60)
        assert used <= sum(amount for when, amount in added if when > now - 62)
        window.add(amount, now)
        added.append((now, amount))
    assert window.used(now + window.reset(now)) == 0


@given(STEPS, st.integers(1, 20))
def test_after_the_wait_there_is_room(steps: list[tuple[float, int]], amount: int) -> None:
    window, now = Window(), 0.0
    for pause, added in steps:
        now += pause
        window.add(added, now)
    before = window.used(now)
    assert window.used(now + window.wait(amount, now)) <= max(0, before - amount)


# --- Requests ----------------------------------------------------------------------------------


def test_requests_are_counted_for_all_or_for_none() -> None:
    ledger = Ledger()
    bob = Party(Subject("user", "bob"), Limits(requests_per_minute=3))
    home = Party(Subject("address", "::1"), Limits(requests_per_minute=2))
    for _ in range(2):
        ledger.count_request([bob, home], 0)
    error = refused(lambda: ledger.count_request([bob, home], 1.5))
    assert (error.code, error.retry_after) == ("rate_limit_exceeded", 59.5)
    assert error.sentence == (
        "This address has used up its 2 requests per minute; try again in 60 s"
    )
    ledger.count_request([bob], 2)  # its third: the refused one was none
    refused(lambda: ledger.count_request([bob], 2))
    ledger.count_request([bob, home], 61)


def test_a_limit_of_none_at_all_is_not_waited_for() -> None:
    error = refused(lambda: Ledger().count_request(ann(requests_per_minute=0), 0))
    assert error.retry_after is None


def test_the_longest_wait_is_told() -> None:
    ledger = Ledger()
    bob = Party(Subject("user", "bob"), Limits(requests_per_minute=1))
    ledger.count_request(ann(requests_per_minute=1), 0)
    ledger.count_request([bob], 30)
    both = [*ann(requests_per_minute=1), bob]
    assert refused(lambda: ledger.count_request(both, 40)).retry_after == 51


def test_as_many_repeats_are_looked_at_as_requests_are_allowed() -> None:
    ledger, parties = Ledger(), ann(requests_per_minute=2)
    assert [ledger.count_replay(parties, 0) for _ in range(3)] == [True, True, False]
    assert ledger.count_replay(parties, 61)


# --- Turns -------------------------------------------------------------------------------------

ACTS = st.lists(
    st.tuples(
        st.sampled_from(["begin", "end", "wait"]),
        st.integers(0, 3),
        st.integers(1, 40),
        st.floats(0, 70, allow_nan=False),
    ),
    max_size=80,
)


@given(ACTS, st.integers(20, 100))
def test_no_interleaving_takes_more_tokens_than_there_are(
    acts: list[tuple[str, int, int, float]], limit: int
) -> None:
    """What turns have used within a minute, and what the running ones may, stays within it."""
    ledger, seconds = Ledger(), 0.0
    parties = [
        Party(Subject("user", f"u{n}"), Limits(tokens_per_minute=limit, tokens_per_day=5 * limit))
        for n in range(2)
    ]
    home = Party(Subject("address", "::1"), Limits(tokens_per_minute=2 * limit))
    running: list[tuple[int, int, Reservation]] = []  # whose, how much it may use
    used: list[tuple[float, int, int]] = []  # when, whose, how much it did

    def taken(who: int | None, since: float) -> int:
        mine = [spent for when, user, spent in used if who in (None, user) and when > since]
        return sum(mine) + sum(may for user, may, _ in running if who in (None, user))

    for act, who, tokens, pause in acts:
        user = who % 2
        if act == "wait":
            seconds += pause
        elif act == "begin":
            reserve = Estimate(tokens, tokens)
            try:
                held = ledger.reserve([parties[user], home], reserve, at(seconds))
            except RateLimited:
                assert (  # not for nothing: a second more or less
                    taken(user, seconds - 62) + tokens > limit
                    or taken(user, seconds - 1e9) + tokens > 5 * limit
                    or taken(None, seconds - 62) + tokens > 2 * limit
                )
            else:
                running.append((user, tokens, held))
        elif running:
            mine, may, held = running.pop(who % len(running))
            spent = min(may, pause.__trunc__())
            ledger.settle(held, spent, 0, at(seconds))
            ledger.settle(held, spent, 0, at(seconds))  # a second time is nothing
            used.append((seconds, mine, spent))
        for number in range(2):
            assert taken(number, seconds - 60) <= limit
            assert taken(number, seconds - 1e9) <= 5 * limit
        assert taken(None, seconds - 60) <= 2 * limit


def test_what_was_reserved_and_not_used_is_there_again() -> None:
    ledger, parties = Ledger(), ann(tokens_per_minute=100)
    held = ledger.reserve(parties, Estimate(80, 80), at(0))
    error = refused(lambda: ledger.reserve(parties, Estimate(30, 30), at(0)))
    assert error.retry_after == 1  # nobody knows when the turn that runs will end
    ledger.settle(held, 10, 0, at(5))
    ledger.reserve(parties, Estimate(90, 90), at(5))
    assert refused(lambda: ledger.check_turn(parties, at(5))).retry_after == 1


def test_what_was_used_is_there_again_after_a_minute() -> None:
    ledger, parties = Ledger(), ann(tokens_per_minute=100)
    ledger.settle(ledger.reserve(parties, Estimate(80, 80), at(0)), 80, 0, at(0))
    error = refused(lambda: ledger.reserve(parties, Estimate(30, 30), at(10)))
    assert error.retry_after == 51
    assert error.sentence == (
        "This user has not enough left of its 100 tokens per minute for this turn, which may need"
        " 30; try again in 51 s"
    )
    ledger.reserve(parties, Estimate(30, 30), at(61))


def test_a_long_reply_may_take_a_whole_limit_and_no_more() -> None:
    """A reply is given as much as there is where nobody said how long it may be."""
    ledger, parties = Ledger(), ann(tokens_per_minute=1000)
    held = ledger.reserve(parties, Estimate(4200, 104), at(0))
    refused(lambda: ledger.check_turn(parties, at(0)))
    ledger.settle(held, 300, 0, at(1))
    refused(lambda: ledger.reserve(parties, Estimate(4200, 104), at(1)))
    ledger.reserve(parties, Estimate(4200, 104), at(62))


def test_what_never_fits_is_not_waited_for() -> None:
    error = refused(lambda: Ledger().reserve(ann(tokens_per_minute=100), Estimate(150, 150), at(0)))
    assert (error.code, error.retry_after) == ("rate_limit_exceeded", None)
    assert error.sentence == (
        "This turn needs about 150 tokens, and this user has 100 tokens per minute"
    )


def test_days_and_months_are_those_of_the_calendar() -> None:
    ledger, parties = Ledger(), ann(tokens_per_day=100, cost_per_month=2)
    ledger.settle(ledger.reserve(parties, Estimate(100, 100, COST_UNIT), at(0)), 100, 0, at(0))
    error = refused(lambda: ledger.check_turn(parties, at(60)))
    assert (error.code, error.retry_after) == ("rate_limit_exceeded", 12 * 3600 - 60)
    midnight = 12 * 3600
    assert refused(lambda: ledger.check_turn(parties, at(midnight - 1))).retry_after == 1
    held = ledger.reserve(parties, Estimate(1, 1, 2 * COST_UNIT), at(midnight))
    ledger.settle(held, 1, 2 * COST_UNIT, at(midnight))
    error = refused(lambda: ledger.reserve(parties, Estimate(1, 1, 1), at(midnight)))
    assert isinstance(error, QuotaExceeded)
    assert (error.code, error.retry_after) == ("insufficient_quota", 31 * 24 * 3600)
    ledger.reserve(parties, Estimate(1, 1, 1), at(midnight + 31 * 24 * 3600))


def test_turns_at_once_are_counted_until_they_end() -> None:
    ledger, parties = Ledger(), ann(running_turns=2)
    held = [ledger.reserve(parties, Estimate(1, 1), at(0)) for _ in range(2)]
    error = refused(lambda: ledger.reserve(parties, Estimate(1, 1), at(0)))
    assert (error.code, error.retry_after) == ("rate_limit_exceeded", 1)
    ledger.settle(held[0], 0, 0, at(1))
    ledger.reserve(parties, Estimate(1, 1), at(1))


def test_so_are_streams_and_of_the_server_it_says_so() -> None:
    ledger = Ledger()
    server = Party(Subject("server", ""), Limits(open_streams=2, running_turns=1))
    parties = [*ann(open_streams=1), server]
    opened = ledger.open_stream(parties, 0)
    assert refused(lambda: ledger.open_stream(parties, 0)).code == "rate_limit_exceeded"
    ledger.open_stream([server], 0)
    assert isinstance(refused(lambda: ledger.open_stream([server], 0)), Overloaded)
    ledger.close_stream(opened)
    ledger.open_stream(parties, 0)
    ledger.reserve([server], Estimate(1, 1), at(0))
    error = refused(lambda: ledger.check_turn([server], at(0)))
    assert (error.code, error.retry_after) == ("overloaded", 1)


# --- Costs and limits --------------------------------------------------------------------------


def test_a_cost_is_exact_and_never_too_small() -> None:
    model = Model("m", "m", 1000, input_price=0.15, output_price=0.6)
    assert cost_of(model, 1_000_000, 1_000_000) == 0.75 * COST_UNIT
    assert cost_of(model, 1, 0) == 150
    assert cost_of(Model("m", "m", 1000, input_price=0.0004), 1, 1) == 1
    assert cost_of(Model("m", "m", 1000), 1000, 1000) == 0


def test_own_limits_go_before_the_default_one_by_one() -> None:
    default = Limits(requests_per_minute=10, tokens_per_day=100)
    own = Limits(requests_per_minute=0, sessions=5)
    assert merge(own, default) == Limits(requests_per_minute=0, tokens_per_day=100, sessions=5)


def test_what_is_left_is_told_of_every_limit_that_is_counted() -> None:
    ledger = Ledger()
    parties = ann(
        requests_per_minute=10,
        tokens_per_minute=100,
        tokens_per_day=1000,
        cost_per_month=1,
        running_turns=4,
        open_streams=3,
    )
    ledger.count_request(parties, at(0).tick)
    held = ledger.reserve(parties, Estimate(60, 60, COST_UNIT // 2), at(0))
    ledger.open_stream(parties, at(0).tick)
    told = {left.limit: (left.left, left.reset) for left in ledger.left(parties, at(1))}
    assert told == {
        "requests_per_minute": (9, 60),
        "tokens_per_minute": (40, 0),
        "tokens_per_day": (940, 12 * 3600 - 1),
        "cost_per_month": (0.5, 12 * 3600 - 1),
        "running_turns": (3, None),
        "open_streams": (2, None),
    }
    ledger.settle(held, 10, 0, at(2))
    told = {left.limit: (left.left, left.reset) for left in ledger.left(parties, at(2))}
    assert told["tokens_per_minute"] == (90, 61)


# --- What outlasts the process -----------------------------------------------------------------

LASTING = {"tokens_per_day": 100, "cost_per_month": 1.0}


def test_news_are_days_and_months_with_what_is_reserved() -> None:
    ledger, parties = Ledger(), ann(**LASTING)
    held = ledger.reserve(parties, Estimate(60, 60, 7), at(0))
    day, month = NOON + 12 * HOUR, NOON + 12 * HOUR
    assert ledger.take_news(NOON, 10) == [
        Spent(ANN, "tokens_per_day", day, 60),
        Spent(ANN, "cost_per_month", month, 7),
    ]
    ledger.kept()
    assert ledger.take_news(NOON, 10) == []
    ledger.settle(held, 0, 0, at(1))  # nothing was used: what was kept is put right
    assert [spent.amount for spent in ledger.take_news(NOON, 10)] == [0, 0]
    ledger.kept(failed=True)
    assert len(ledger.take_news(NOON, 10)) == 2


def test_what_an_earlier_process_kept_counts_once() -> None:
    ledger, parties = Ledger(), ann(**LASTING)
    assert ledger.unknown(parties) == [ANN]
    kept = [
        Spent(ANN, "tokens_per_day", NOON + HOUR, 90),
        Spent(ANN, "cost_per_month", NOON, COST_UNIT),  # of a month that is over
    ]
    ledger.learn(ANN, kept, at(0))
    ledger.learn(ANN, kept, at(0))
    assert ledger.unknown(parties) == []
    refused(lambda: ledger.reserve(parties, Estimate(11, 11), at(0)))
    ledger.reserve(parties, Estimate(10, 10), at(0))


# --- Memory ------------------------------------------------------------------------------------


def test_who_is_not_seen_for_a_minute_is_forgotten() -> None:
    ledger = Ledger()
    for number in range(100):
        ledger.count_request([Party(Subject("address", f"{number}"), Limits(1))], number / 10)
    assert ledger.forget(60) == 0
    assert ledger.forget(66) == 51
    assert len(ledger) == 49
    assert ledger.forget(1000) == 49


def test_but_not_who_has_something_running_or_not_kept_yet() -> None:
    ledger, parties = Ledger(), ann(**LASTING)
    held = ledger.reserve(parties, Estimate(1, 1), at(0))
    assert ledger.forget(at(1000).tick) == 0
    ledger.settle(held, 1, 0, at(1000))
    assert ledger.forget(at(2000).tick) == 0
    ledger.take_news(NOON, 10)
    assert ledger.forget(at(2000).tick) == 0  # on its way to where it is kept
    ledger.kept()
    assert ledger.forget(at(2000).tick) == 1


def test_many_addresses_do_not_fill_the_memory_nor_drive_out_users() -> None:
    ledger = Ledger(size=50)
    parties = ann(requests_per_minute=1)
    ledger.count_request(parties, 0)
    for number in range(1000):
        ledger.count_request([Party(Subject("address", f"{number}"), Limits(1))], 1)
    assert len(ledger) == 51
    refused(lambda: ledger.count_request(parties, 2))
    refused(lambda: ledger.count_request([Party(Subject("address", "999"), Limits(1))], 2))
