"""Circuit breakers: a model that keeps failing is left alone for a while, then tried by one call.

Our own, since the libraries at hand know neither replies that come as streams nor a single probe.
Pure: the clock and randomness are arguments. Does not know how a model is called.
"""

import logging
import math
from collections.abc import Callable, Mapping

from turnkeeper.errors import ProviderError, ProviderFault

log = logging.getLogger(__name__)

_FAILURES = 5  # in a row, and the model rests
_FIRST_REST = 10.0  # seconds; twice as long after each probe that fails
_LONGEST_REST = 120.0
_LONGEST_LIMIT = 60.0  # seconds that a rate limit keeps all calls away, whatever it asks for
_PROBING = 1.0  # seconds to wait while a probe finds out

# What says that the provider is unwell, and not that it minds this call.
_UNWELL: frozenset[ProviderFault] = frozenset(
    {
        "provider_unreachable",
        "provider_timeout",
        "provider_failed",
        "provider_malformed",
        "provider_cut_off",
        "provider_empty_reply",
    }
)


class Breakers:
    """A breaker for each model of each provider.

    Limits, and most faults, are a model's own, and what a turn falls back on may be another
    model of the same provider.
    """

    def __init__(self, clock: Callable[[], float], jitter: Callable[[], float]) -> None:
        """`clock` gives seconds and never goes back, `jitter` numbers from 0 to 1."""
        self._clock = clock
        self._jitter = jitter
        self._breakers: dict[tuple[str, str], Breaker] = {}

    @property
    def resting(self) -> Mapping[tuple[str, str], bool]:
        """Whether it rests, for each model that was called, by provider and id."""
        return {who: breaker.rests for who, breaker in self._breakers.items()}

    def guard(self, provider: str, model: str, has_begun: Callable[[], bool]) -> "Guarded":
        """What one call is made within. `has_begun` says whether a word of its reply has come."""
        breaker = self._breakers.get((provider, model))
        if breaker is None:
            breaker = Breaker(f"{provider}/{model}", self._jitter)
            self._breakers[provider, model] = breaker
        return Guarded(breaker, self._clock, has_begun)


class Breaker:
    """Whether a model may be called just now, and what became of the calls that were.

    Closed, it lets all through. After `_FAILURES` in a row it opens: the model rests, then one
    call probes, and the others are still refused until that one hears a word. What comes of
    calls that began before it last opened or closed changes nothing: that is old news.
    """

    def __init__(self, title: str, jitter: Callable[[], float]) -> None:
        self._title = title
        self._jitter = jitter
        self._failures = 0  # in a row, while it is closed
        self._rests = 0  # in a row; none while it is closed
        self._rests_until = 0.0
        self._limited_until = 0.0
        self._probe: Guarded | None = None
        self._era = 0  # how often it has opened or closed

    @property
    def rests(self) -> bool:
        return self._rests > 0

    def admit(self, call: "Guarded", clock: Callable[[], float]) -> int:
        """Let a call through; the number is for `end`.

        Raises:
            ProviderError: not now, with the seconds after which it may be.
        """
        if self._limited_until:
            self._check_limit(clock())
        if self._rests:
            self._check_rest(clock())
        if self._rests:
            self._probe = call
        return self._era

    def end(self, call: "Guarded", era: int, error: BaseException | None, now: float) -> None:
        """A call that was let through is over. An error that is not the provider's says nothing."""
        was_probe = self._probe is call
        if was_probe:
            self._probe = None
        if era != self._era:
            return
        if error is None:
            self._recover()
        elif not isinstance(error, ProviderError):
            pass
        elif _is_unwell(call, error):
            self._failures += 1
            if was_probe or self._failures >= _FAILURES:
                self._open(now, error.retry_after or 0.0)
        else:
            if was_probe:
                self._recover()  # it minds this call, but it is there
            if error.code == "provider_rate_limited" and error.retry_after:
                until = now + min(error.retry_after, _LONGEST_LIMIT)
                self._limited_until = max(self._limited_until, until)

    def _check_limit(self, now: float) -> None:
        wait = self._limited_until - now
        if wait > 0:
            raise ProviderError(
                "provider_rate_limited",
                f"{self._title} limits our rate for another {_seconds(wait)}",
                wait,
            )
        self._limited_until = 0.0

    def _check_rest(self, now: float) -> None:
        if self._probe is not None and self._probe.has_begun():
            self._recover()
            return
        wait = self._rests_until - now
        if self._probe is not None:
            wait = _PROBING
        if wait > 0:
            raise ProviderError(
                "provider_resting",
                f"{self._title} has failed too often and rests for another {_seconds(wait)}",
                wait,
            )

    def _open(self, now: float, asked_for: float) -> None:
        if not self._rests:
            log.warning("%s failed %d times in a row and rests now", self._title, self._failures)
            self._era += 1
        rest = min(_FIRST_REST * 2**self._rests, _LONGEST_REST) * (0.75 + self._jitter() / 2)
        self._rests_until = now + max(rest, min(asked_for, _LONGEST_REST))
        self._rests = min(self._rests + 1, 10)

    def _recover(self) -> None:
        self._failures = 0
        if self._rests:
            log.info("%s answers again", self._title)
            self._rests = 0
            self._probe = None
            self._era += 1


class Guarded:
    """Around one call: entering it may raise what `Breaker.admit` does, leaving it is noticed."""

    __slots__ = ("_breaker", "_clock", "_era", "has_begun")

    def __init__(
        self, breaker: Breaker, clock: Callable[[], float], has_begun: Callable[[], bool]
    ) -> None:
        self._breaker = breaker
        self._clock = clock
        self._era = 0
        self.has_begun = has_begun

    @property
    def model_rests(self) -> bool:
        """Whether another call would be refused just now, or be the probe."""
        return self._breaker.rests

    def __enter__(self) -> None:
        self._era = self._breaker.admit(self, self._clock)

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        self._breaker.end(self, self._era, error, self._clock())


def _is_unwell(call: Guarded, error: ProviderError) -> bool:
    """A reply that was well until it became too long for us is no sign of illness."""
    if error.code == "provider_malformed":
        return not call.has_begun()
    return error.code in _UNWELL


def _seconds(wait: float) -> str:
    count = math.ceil(wait)
    return f"{count} second{'s' if count > 1 else ''}"
