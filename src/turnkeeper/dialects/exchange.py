"""One exchange, as a dialect sees it: the call it is given, the answer it gives back.

What all dialects share stands here: the records, strict reading of JSON bodies, and the shape
and status of an error wherever a dialect's own contract does not say otherwise.
"""

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeVar

import msgspec

from turnkeeper.engine import Engine
from turnkeeper.errors import InvalidRequest, TurnEnded, TurnkeeperError
from turnkeeper.events import ReplyEvent
from turnkeeper.reply import Reply
from turnkeeper.validation import explain

T = TypeVar("T")


class Call(msgspec.Struct, frozen=True):
    """A request: who asks, and with what. Header names are lower-case."""

    caller: str
    body: bytes
    path: Mapping[str, str]
    query: Mapping[str, str]
    headers: Mapping[bytes, bytes]

    def header(self, name: bytes) -> str:
        return self.headers.get(name, b"").decode("latin-1")


class Answer(msgspec.Struct, frozen=True):
    """A whole response."""

    status: int
    body: bytes
    headers: tuple[tuple[bytes, bytes], ...] = ()
    content_type: bytes = b"application/json"


class EventStream(msgspec.Struct, frozen=True):
    """A response that follows a reply: server-sent events, each made by `encode`."""

    reply: Reply
    after: int | None
    encode: Callable[[ReplyEvent], bytes]


Outcome = Answer | EventStream
Handler = Callable[[Engine, Call], Awaitable[Outcome]]


class Route(msgspec.Struct, frozen=True):
    """A row of the route map. `path` marks its variables with braces."""

    method: str
    path: str
    handler: Handler
    description: str


class Dialect(msgspec.Struct, frozen=True):
    """A wire format: its routes, and how it words a failure."""

    routes: tuple[Route, ...]
    encode_error: Callable[[TurnkeeperError], Answer]


# --- Bodies ------------------------------------------------------------------------------------

encode_json = msgspec.json.Encoder().encode


class NoData(InvalidRequest):
    """The body is empty, or an empty value."""


def decode_object(decoder: msgspec.json.Decoder[T], body: bytes) -> T:
    """A request's JSON object.

    Raises:
        NoData: it is empty: no bytes, `{}`, `[]` or `null`.
        InvalidRequest: it is not JSON, not an object, or a field has the wrong type.
    """
    if not body.strip(b" \t\r\n{}"):
        raise NoData("No data provided")
    try:
        if not body.isascii():
            body.decode()  # msgspec does not look into fields that it skips
        decoded = decoder.decode(body)
    except msgspec.ValidationError as error:
        if b"".join(body.split()) in (b"[]", b"null"):
            raise NoData("No data provided") from error
        raise InvalidRequest(explain(str(error))) from error
    except UnicodeDecodeError as error:
        raise InvalidRequest("The body is not valid JSON: it is not UTF-8") from error
    except msgspec.DecodeError as error:
        raise InvalidRequest(f"The body is not valid JSON: {error}") from error
    except RecursionError as error:
        raise InvalidRequest("The body is nested too deeply") from error
    return decoded


# --- Errors ------------------------------------------------------------------------------------

STATUSES: dict[str, int] = {
    "invalid_request": 400,
    "blank_message": 400,
    "unknown_model": 400,
    "context_length_exceeded": 400,
    "forbidden": 403,
    "not_found": 404,
    "session_not_found": 404,
    "turn_not_found": 404,
    "method_not_allowed": 405,
    "turn_cancelled": 409,
    "body_too_large": 413,
    "message_too_long": 413,
    "queue_full": 429,
    "provider_rate_limited": 429,
    "internal_error": 500,
    "provider_unreachable": 502,
    "provider_refused": 502,
    "provider_failed": 502,
    "provider_malformed": 502,
    "provider_cut_off": 502,
    "provider_empty_reply": 502,
    "server_stopping": 503,
    "store_unavailable": 503,
    "turn_interrupted": 503,
    "provider_timeout": 504,
}


def encode_error(error: TurnkeeperError) -> Answer:
    """The shape of every error that no seed words itself."""
    return error_answer(error, {"error": error.sentence, "code": error.code})


def error_answer(error: TurnkeeperError, body: Any) -> Answer:
    """`body` with the status, `Retry-After` and turn headers that belong to `error`."""
    headers: list[tuple[bytes, bytes]] = []
    if error.retry_after is not None:
        headers.append((b"retry-after", b"%d" % max(1, round(error.retry_after))))
    if isinstance(error, TurnEnded):
        headers += turn_headers(error.turn_id, error.session_id)
    return Answer(STATUSES[error.code], encode_json(body), tuple(headers))


def turn_headers(turn_id: str, session_id: str) -> tuple[tuple[bytes, bytes], ...]:
    return ((b"turn-id", turn_id.encode()), (b"session-id", session_id.encode()))
