"""The circuit breaker: when a model is left alone, for how long, and what makes it well again."""

import asyncio
import logging
from collections.abc import Callable
from typing import get_args

import pytest

from turnkeeper.breaker import Breakers
from turnkeeper.errors import ProviderError, ProviderFault

UNWELL: tuple[ProviderFault, ...] = (
    "provider_unreachable",
    "provider_timeout",
    "provider_failed",
    "provider_malformed",
    "provider_cut_off",
    "provider_empty_reply",
)
WELL = tuple(code for code in get_args(ProviderFault) if code not in UNWELL)


class Line:
    """A model behind a breaker, with a clock of its own and no jitter."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.jitter = 0.5
        self.breakers = Breakers(lambda: self.now, lambda: self.jitter)

    def call(
        self,
        outcome: BaseException | None = None,
        *,
        model: str = "m",
        has_begun: Callable[[], bool] = lambda: False,
    ) -> None:
        """One call that ends like this at once."""
        with self.breakers.guard("acme", model, has_begun):
            if outcome is not None:
                raise outcome

    def fail(self, times: int, code: ProviderFault = "provider_failed", **more: float) -> None:
        for _ in range(times):
            with pytest.raises(ProviderError) as raised:
                self.call(ProviderError(code, "it failed", **more))
            assert raised.value.code == code

    def refused(self, model: str = "m") -> ProviderError:
        """The error of a call that is not let through."""
        with pytest.raises(ProviderError) as raised:
            self.call(AssertionError("it was let through"), model=model)
        return raised.value


@pytest.fixture
def line() -> Line:
    return Line()


# --- Opening -----------------------------------------------------------------------------------


@pytest.mark.parametrize("code", UNWELL)
def test_after_five_failures_in_a_row_a_model_rests(line: Line, code: ProviderFault) -> None:
    line.fail(5, code)
    error = line.refused()
    assert (error.code, error.retryable, error.retry_after) == ("provider_resting", True, 10)
    assert error.sentence == "acme/m has failed too often and rests for another 10 seconds"


def test_a_success_in_between_starts_the_count_anew(line: Line) -> None:
    for _ in range(3):
        line.fail(4)
        line.call()


@pytest.mark.parametrize("code", WELL)
def test_what_says_nothing_of_its_health_does_not_count(line: Line, code: ProviderFault) -> None:
    line.fail(20, code)
    line.fail(4)
    line.call()


@pytest.mark.parametrize("error", [asyncio.CancelledError(), ZeroDivisionError()])
def test_what_is_not_the_providers_doing_does_not_count(line: Line, error: BaseException) -> None:
    for _ in range(20):
        with pytest.raises(type(error)):
            line.call(error)
    line.call()


def test_a_reply_too_long_for_us_does_not_count(line: Line) -> None:
    for _ in range(20):
        with pytest.raises(ProviderError):
            line.call(ProviderError("provider_malformed", "too long"), has_begun=lambda: True)
    line.call()


def test_another_model_of_the_same_provider_is_asked_all_the_same(line: Line) -> None:
    line.fail(5)
    line.refused()
    line.call(model="other")


def test_the_failures_of_calls_that_were_on_their_way_do_not_lengthen_the_rest(line: Line) -> None:
    guards = [line.breakers.guard("acme", "m", lambda: False) for _ in range(100)]
    for guard in guards:
        guard.__enter__()
    error = ProviderError("provider_timeout", "late")
    for guard in guards:
        guard.__exit__(None, error, None)
    assert line.refused().retry_after == 10
    line.now += 10
    line.call()
    guards[0].__exit__(None, error, None)
    line.fail(4)
    line.call()


# --- Resting and probing -----------------------------------------------------------------------


def test_after_the_rest_one_call_probes_while_others_are_refused(line: Line) -> None:
    line.fail(5)
    line.now += 9.9
    assert line.refused().retry_after == pytest.approx(0.1)
    line.now += 0.1
    with line.breakers.guard("acme", "m", lambda: False):
        assert line.refused().retry_after == 1
        line.now += 500
        assert line.refused().code == "provider_resting"
    line.call()
    line.call()


def test_a_probe_that_has_heard_a_word_lets_the_others_in(line: Line) -> None:
    line.fail(5)
    line.now += 10
    words: list[str] = []
    with line.breakers.guard("acme", "m", lambda: bool(words)):
        line.refused()
        words.append("Hello")
        line.call()
        line.fail(4)
    line.call()


def test_the_rest_doubles_while_probes_fail_up_to_two_minutes(line: Line) -> None:
    line.fail(5)
    rests = []
    for _ in range(20):
        rests.append(line.refused().retry_after)
        line.now += rests[-1] or 0
        line.fail(1)
    assert rests[:6] == [10, 20, 40, 80, 120, 120]
    assert set(rests[6:]) == {120}
    line.now += 120
    line.call()
    line.fail(5)
    assert line.refused().retry_after == 10


@pytest.mark.parametrize(("jitter", "rest"), [(0, 7.5), (0.5, 10), (1, 12.5)])
def test_rests_are_spread(line: Line, jitter: float, rest: float) -> None:
    line.jitter = jitter
    line.fail(5)
    assert line.refused().retry_after == rest


@pytest.mark.parametrize(("asked", "rest"), [(3, 10), (30, 30), (86_400, 120)])
def test_a_failure_that_says_how_long_is_believed_within_bounds(
    line: Line, asked: float, rest: float
) -> None:
    line.fail(5, "provider_failed", retry_after=asked)
    assert line.refused().retry_after == rest


@pytest.mark.parametrize("error", [asyncio.CancelledError(), ZeroDivisionError()])
def test_after_a_cancelled_probe_the_next_call_probes(line: Line, error: BaseException) -> None:
    line.fail(5)
    line.now += 10
    for _ in range(3):
        with pytest.raises(type(error)):
            line.call(error)
    line.fail(1)
    assert line.refused().retry_after == 20


@pytest.mark.parametrize("code", WELL)
def test_a_probe_that_is_refused_finds_it_well(line: Line, code: ProviderFault) -> None:
    line.fail(5)
    line.now += 10
    line.fail(1, code)
    line.call()


# --- Rate limits -------------------------------------------------------------------------------


@pytest.mark.parametrize(("asked", "wait"), [(0.5, 0.5), (7, 7), (86_400, 60)])
def test_a_rate_limit_keeps_all_calls_away_as_long_as_it_says(
    line: Line, asked: float, wait: float
) -> None:
    line.fail(1, "provider_rate_limited", retry_after=asked)
    error = line.refused()
    assert (error.code, error.retry_after) == ("provider_rate_limited", wait)
    line.call(model="other")
    line.now += wait
    for _ in range(3):
        line.call()


@pytest.mark.parametrize("asked", [None, 0])
def test_a_rate_limit_that_does_not_say_how_long_keeps_none_away(
    line: Line, asked: float | None
) -> None:
    with pytest.raises(ProviderError):
        line.call(ProviderError("provider_rate_limited", "slow", asked))
    line.call()


def test_a_shorter_limit_does_not_end_a_longer_one(line: Line) -> None:
    first, second = (line.breakers.guard("acme", "m", lambda: False) for _ in range(2))
    first.__enter__()
    second.__enter__()
    first.__exit__(None, ProviderError("provider_rate_limited", "slow", 30), None)
    second.__exit__(None, ProviderError("provider_rate_limited", "slow", 1), None)
    assert line.refused().retry_after == 30


# --- What is logged ----------------------------------------------------------------------------


def test_a_rest_is_logged_when_it_begins_and_when_it_is_over(
    line: Line, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    line.fail(5)
    for _ in range(10):
        line.refused()
    line.now += 10
    line.fail(1)
    line.now += 20
    line.call()
    line.call()
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        ("WARNING", "acme/m failed 5 times in a row and rests now"),
        ("INFO", "acme/m answers again"),
    ]
