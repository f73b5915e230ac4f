"""What one request takes of its caller's limits, and the headers that tell what is left."""

import math
import re
from collections.abc import Awaitable, Callable
from functools import lru_cache

from turnkeeper.dialects.exchange import REPEATED, Call, EventStream, Outcome, Upgrade
from turnkeeper.domain import Caller, IdempotencyKey
from turnkeeper.errors import RateLimited
from turnkeeper.gate import Gate
from turnkeeper.limits import Least, Party
from turnkeeper.web.origins import SAFE_METHODS
from turnkeeper.web.streaming import Headers

WasMade = Callable[[IdempotencyKey], Awaitable[bool]]

_ASKS_FOR_STREAM = re.compile(rb'"stream"\s*:\s*true')


class Visit:
    """One request on its way through the gate.

    What is refused may yet be a request that was done before and is sent again: it takes nothing
    that the first has not taken. So the refusal of one with an idempotency key waits until the key
    can be looked up.
    """

    __slots__ = ("_close", "_gate", "_keyed", "_refusal", "counts", "parties")

    def __init__(self, gate: Gate, *, keyed: bool) -> None:
        self._gate = gate
        self._keyed = keyed
        self._refusal: RateLimited | None = None
        self._close: Callable[[], None] | None = None
        self.parties: tuple[Party, ...] = ()
        self.counts = gate.counts_streams

    def arrive(self, address: str) -> None:
        """Count a request that nobody knows more of. Raises RateLimited."""
        self._count(self._gate.at(address))

    def enter(self, caller: Caller) -> None:
        """Count it for its caller; what it begins counts for the same. Raises RateLimited."""
        self._count(self._gate.of(caller))
        if self.parties:
            self._gate.note(caller, self.parties)

    def _count(self, parties: tuple[Party, ...]) -> None:
        if not parties:
            return
        self.parties = (*parties, *self.parties)
        self.counts = True
        try:
            self._gate.count_request(parties)
        except RateLimited as refusal:
            if not self._keyed:
                raise
            self._refusal = refusal

    async def take_place(self, call: Call, was_made: WasMade) -> None:
        """Have room for a stream, if the answer may be one, before anything is begun.

        Raises:
            RateLimited, Overloaded: there is none; or there were too many requests, and this one
                repeats none.
        """
        if self._refusal is None and _may_stream(call):
            self._open_stream()
        if self._refusal is not None:
            key = call.key() if self._gate.may_repeat(self.parties) else None
            if key is None or not await was_made(key):
                raise self._refusal

    def follow(self, outcome: Outcome) -> Outcome:
        """The outcome itself, with room for it if it is a stream that nobody had foreseen.

        Raises:
            RateLimited, Overloaded: there is none.
        """
        if self._close is None and _is_new_stream(outcome):
            self._close = self._gate.open_stream(self.parties)
        return outcome

    def _open_stream(self) -> None:
        try:
            self._close = self._gate.open_stream(self.parties)
        except RateLimited as refusal:
            if not self._keyed:
                raise
            self._refusal = refusal

    def close(self) -> None:
        """The answer has been sent, or nobody takes it any more."""
        if self._close is not None:
            self._close()

    def headers(self) -> Headers:
        """What is left of requests and tokens, where there are limits to them."""
        return encode_least(*self._gate.least(self.parties))


def _is_new_stream(outcome: Outcome) -> bool:
    if isinstance(outcome, Upgrade):
        return True
    """A WebSocket is one as long as it is open."""
    if isinstance(outcome, Upgrade):
        return True
    return isinstance(outcome, EventStream) and REPEATED not in outcome.headers


def _may_stream(call: Call) -> bool:
    """Also if a field deep in the body is called so: room that is not needed is soon given back."""
    return "text/event-stream" in call.header(b"accept") or (
        b'"stream"' in call.body and _ASKS_FOR_STREAM.search(call.body) is not None
    )


def is_keyed(method: str, headers: dict[bytes, bytes]) -> bool:
    """Whether a request may be one that was done before."""
    return b"idempotency-key" in headers and method not in SAFE_METHODS


# --- Headers -----------------------------------------------------------------------------------


def _names(what: bytes) -> tuple[bytes, bytes, bytes]:
    return (
        b"x-ratelimit-limit-" + what,
        b"x-ratelimit-remaining-" + what,
        b"x-ratelimit-reset-" + what,
    )


_NAMES = (_names(b"requests"), _names(b"tokens"))


def encode_least(requests: Least | None, tokens: Least | None) -> Headers:
    """The headers for what is left."""
    headers: Headers = []
    for least, (limit, remaining, reset) in zip((requests, tokens), _NAMES, strict=True):
        if least is not None:
            headers += (
                (limit, b"%d" % least.allowed),
                (remaining, b"%d" % least.left if least.left > 0 else b"0"),
                (reset, encode_duration(least.reset)),
            )
    return headers


def encode_duration(seconds: float) -> bytes:
    """As OpenAI writes it: `12ms`, `7s`, `6m0s`, `23h5m0s`; whole seconds if it is one or more."""
    if seconds < 1:
        milliseconds = math.ceil(seconds * 1000)
        return b"%dms" % milliseconds if milliseconds < 1000 else b"1s"
    return _encode_seconds(math.ceil(seconds))


@lru_cache
def _encode_seconds(seconds: int) -> bytes:
    minutes, rest = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return b"%dh%dm%ds" % (hours, minutes, rest)
    return b"%dm%ds" % (minutes, rest) if minutes else b"%ds" % rest
