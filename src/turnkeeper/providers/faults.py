"""What can go wrong with a provider over HTTP, and what is said of it.

Every sentence names the provider; its key is in none of them, nor is more than a line of what
the other side wrote.
"""

import json
import re
import time
from collections.abc import Mapping
from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import Any

import aiohttp
import msgspec
from aiohttp.http_exceptions import HttpProcessingError

from turnkeeper.errors import ProviderError, ProviderFault
from turnkeeper.providers.overflow import find_overflow

_LONGEST_WAIT = 86_400.0  # seconds that a provider may ask us to wait
_QUOTE = 200  # characters of another's error message that are passed on


class Timeouts(msgspec.Struct, frozen=True):
    """How long a call may take, in seconds.

    Attributes:
        connect: to have a connection, TLS included.
        first_byte: from the call to the first byte of the body.
        between: from any bytes to the next.
        total: from the call to the end of the reply.
    """

    connect: float = 10
    first_byte: float = 60
    between: float = 60
    total: float = 600


class Words:
    """Makes the `ProviderError`s of one provider: names it, and keeps its key out of them."""

    def __init__(self, name: str, key: str | None) -> None:
        self.name = name
        self._key = key

    def fault(
        self, code: ProviderFault, what: str, retry_after: float | None = None
    ) -> ProviderError:
        return ProviderError(code, f"{self.name} {what}", retry_after)

    def overdue(self, timeouts: Timeouts) -> ProviderError:
        return self.fault(
            "provider_timeout", f"did not finish its reply within {timeouts.total:g} seconds"
        )

    def silent(self, timeouts: Timeouts) -> ProviderError:
        return self.fault(
            "provider_timeout",
            f"fell silent for {timeouts.between:g} seconds in the middle of its reply",
        )

    def unanswered(self, error: Exception, timeouts: Timeouts) -> ProviderError:
        """For a call that came to no answer at all, or to none that is HTTP."""
        if isinstance(error, aiohttp.ConnectionTimeoutError):
            what = f"took no connection within {timeouts.connect:g} seconds"
            return self.fault("provider_timeout", what)
        if isinstance(error, TimeoutError):
            if timeouts.total < timeouts.first_byte:
                return self.overdue(timeouts)
            what = f"did not begin its reply within {timeouts.first_byte:g} seconds"
            return self.fault("provider_timeout", what)
        for kind, code, what in _UNANSWERED:
            if isinstance(error, kind):
                return self.fault(code, what)
        return self.fault("provider_cut_off", "closed the connection without an answer")

    def unlisted(self, error: Exception, patience: float) -> ProviderError:
        """For a question after models that came to no answer."""
        if isinstance(error, TimeoutError):
            return self.fault(
                "provider_timeout", f"did not list its models within {patience:g} seconds"
            )
        return self.unanswered(error, Timeouts())

    def no_stream(self, status: int, headers: Mapping[str, str], body: bytes) -> ProviderError:
        """For an answer that is not the stream that was asked for."""
        value = parse_json(body)
        if status == 200:
            if isinstance(value, dict) and value.get("error"):
                return self.reported(value)
            return self.fault("provider_malformed", "answered with JSON in place of a stream")
        if status not in _STATUS and (fault := self._overflow(value)):
            return fault
        code, what = _STATUS.get(status) or _STATUS_CLASS.get(
            status // 100, ("provider_malformed", "gave an answer that HTTP does not know")
        )
        wait = parse_retry_after(headers, time.time()) if code in _WAITABLE else None
        return self.fault(code, f"{what} (status {status}){self._quote(value)}", wait)

    def reported(self, value: Any) -> ProviderError:
        """For an error object where a reply should be."""
        if _is_rate_limit(value):
            return self.fault("provider_rate_limited", f"limits our rate{self._quote(value)}")
        if fault := self._overflow(value):
            return fault
        return self.fault("provider_failed", f"reported an error{self._quote(value)}")

    def _overflow(self, value: Any) -> ProviderError | None:
        """If that is what an answer says: the prompt is longer than the model's context."""
        found = None if _is_rate_limit(value) else find_overflow(_error_of(value))
        if found is None:
            return None
        return ProviderError(
            "context_length_exceeded",
            f"{self.name} takes no prompt as long as this{self._quote(value)}",
            prompt_tokens=found.prompt_tokens,
            context_window=found.context_window,
        )

    def _quote(self, value: Any) -> str:
        """The other side's own message, in one line of limited length."""
        message = _error_message(value)
        if self._key:
            message = message.replace(self._key, "[key]")
        line = " ".join("".join(c if c.isprintable() else " " for c in message).split())
        if not line:
            return ""
        return f": {line}" if len(line) <= _QUOTE else f": {line[:_QUOTE]}…"


# The first that fits; aiohttp's more special errors stand before their kind.
_UNANSWERED: tuple[tuple[type[Exception], ProviderFault, str], ...] = (
    (
        aiohttp.ClientConnectorCertificateError,
        "provider_unreachable",
        "could not be reached: its certificate is not trusted",
    ),
    (aiohttp.ClientSSLError, "provider_unreachable", "could not be reached: TLS failed"),
    (
        aiohttp.ClientConnectorDNSError,
        "provider_unreachable",
        "could not be reached: its host name is not known",
    ),
    (aiohttp.ClientConnectorError, "provider_unreachable", "could not be reached"),
    (aiohttp.ClientPayloadError, "provider_cut_off", "broke off before the first word"),
    (aiohttp.ClientResponseError, "provider_malformed", "answered with what is not HTTP"),
    (HttpProcessingError, "provider_malformed", "answered with what is not HTTP"),
)

_STATUS: dict[int, tuple[ProviderFault, str]] = {
    401: ("provider_refused", "refused the key"),
    403: ("provider_refused", "refused the key"),
    408: ("provider_timeout", "gave up waiting for the request"),
    429: ("provider_rate_limited", "limits our rate"),
}
_STATUS_CLASS: dict[int, tuple[ProviderFault, str]] = {
    2: ("provider_malformed", "answered without a reply"),
    3: ("provider_failed", "answered with a redirect, which is not followed"),
    4: ("provider_refused", "refused the request"),
    5: ("provider_failed", "failed"),
}
_WAITABLE: frozenset[ProviderFault] = frozenset(
    {"provider_rate_limited", "provider_failed", "provider_timeout"}
)


def parse_retry_after(headers: Mapping[str, str], now: float) -> float | None:
    """Seconds to wait, from `retry-after-ms` or `Retry-After` (seconds, or a date after `now`).

    None if neither can be understood. `now` is in seconds since 1970.
    """
    milliseconds = _number(headers.get("retry-after-ms", ""))
    if milliseconds is not None:
        return min(milliseconds / 1000, _LONGEST_WAIT)
    text = headers.get("Retry-After", "")
    seconds = _number(text)
    try:
        seconds = _date(text) - now if seconds is None else seconds
    except (ValueError, OverflowError):
        return None
    return min(max(seconds, 0.0), _LONGEST_WAIT)


def _date(text: str) -> float:
    """Seconds since 1970. HTTP knows no other zone than GMT, and one old form does not name it."""
    date = parsedate_to_datetime(text)
    return (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp()


def _number(text: str) -> float | None:
    """A plain number that is not negative."""
    return float(text) if _NUMBER.fullmatch(text.strip()) else None


_NUMBER = re.compile(r"[0-9]{1,99}(\.[0-9]{0,99})?")


def parse_json(data: bytes) -> Any:
    try:
        return json.loads(data.decode("utf-8", "replace"))
    except (ValueError, RecursionError):
        return None


def _error_of(value: Any) -> Any:
    if isinstance(value, list) and value:  # Gemini puts its only one into a list
        value = value[0]
    return value.get("error", value) if isinstance(value, dict) else None


def _error_message(value: Any) -> str:
    error = _error_of(value)
    message = error.get("message") if isinstance(error, dict) else error
    return message if isinstance(message, str) else ""


def _is_rate_limit(value: Any) -> bool:
    error = _error_of(value)
    if not isinstance(error, dict):
        return False
    marks = (str(error.get(field)) for field in ("code", "type", "status"))
    return any(mark == "429" or "rate_limit" in mark for mark in marks)
