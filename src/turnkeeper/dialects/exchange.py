"""One exchange, as a dialect sees it: the call it is given, the answer it gives back.

What all dialects share stands here: the records, strict reading of JSON bodies, and the shape
and status of an error wherever a dialect's own contract does not say otherwise.
"""

import asyncio
import math
import re
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Mapping, Sequence
from enum import Enum
from hashlib import blake2b
from typing import Any, Protocol, TypeVar

import msgspec

from turnkeeper.accounts import Accounts
from turnkeeper.contracts import Made
from turnkeeper.deployments import Deployments
from turnkeeper.domain import Caller, IdempotencyKey, Scope, check_end_user
from turnkeeper.engine import Engine
from turnkeeper.errors import (
    InvalidRequest,
    QuotaExceeded,
    SecretNotKept,
    SessionBusy,
    TurnEnded,
    TurnkeeperError,
    Unauthenticated,
)
from turnkeeper.gate import Gate
from turnkeeper.library import Library
from turnkeeper.reply import Taken
from turnkeeper.sessions import Sessions
from turnkeeper.sse import KEEP_ALIVE
from turnkeeper.usage import UsageBook
from turnkeeper.validation import explain

T = TypeVar("T")


Headers = tuple[tuple[bytes, bytes], ...]

NOBODY = Caller("", is_admin=False, scopes=frozenset())  # who has not said, and need not


class Parts(msgspec.Struct, frozen=True):
    """What a dialect may call; there are no `accounts` where nobody is asked for credentials."""

    engine: Engine
    sessions: Sessions
    deployments: Deployments
    library: Library
    usage: UsageBook
    gate: Gate
    accounts: Accounts | None = None


class Call(msgspec.Struct, frozen=True):
    """A request: who asks, and with what. Header names are lower-case.

    Attributes:
        caller: the owner of what the call makes and sees.
        line: its method and path, as they were sent.
        path: the values of the variables in its route's path.
        base: the address that clients reach the server by, as `http://localhost:5000`.
        disconnected: returns once the client has gone away.
        address: where the request comes from, as far as we can see.
        who: the caller whole.
    """

    caller: str
    line: str
    body: bytes
    path: Mapping[str, str]
    query: Mapping[str, str]
    headers: Mapping[bytes, bytes]
    base: str
    disconnected: Callable[[], Awaitable[None]]
    is_admin: bool = False
    address: str = ""
    who: Caller = NOBODY

    def __repr__(self) -> str:
        """Without what headers and bodies hold: keys, and what people say."""
        return f"Call({self.line!r}, {self.caller!r})"

    def header(self, name: bytes) -> str:
        return self.headers.get(name, b"").decode("latin-1")

    def wants_stream(self, asked: bool) -> bool:
        """Whether the reply is to be sent while it is made; `asked` is what the body says."""
        return asked or "text/event-stream" in self.header(b"accept")

    def on_behalf_of(self, end_user: str | None) -> "Call":
        """The call, made for one of its caller's own users, as a dialect's body may say; or None.

        Raises:
            InvalidRequest: no end user can be called so.
        """
        if end_user is None:
            return self
        who = acting_for(self.who, end_user)
        return msgspec.structs.replace(self, caller=who.owner, who=who)

    def key(self) -> IdempotencyKey | None:
        """The caller's own name for this request; None if it was given none.

        Raises:
            InvalidRequest: it can be no name.
        """
        given = self.headers.get(b"idempotency-key")
        if given is None:
            return None
        if not _KEY.fullmatch(given):
            raise InvalidRequest(
                f"Idempotency-Key must be 1 to {_KEY_LENGTH} visible characters of ASCII"
            )
        # What a browser may send must not take the names that its application will use.
        owner = self.caller if self.who.session is None else f"{self.caller}/{self.who.session}"
        return IdempotencyKey(owner, given.decode(), tell_apart(self.line, self.body))


def acting_for(caller: Caller, end_user: str) -> Caller:
    """A caller, who now acts for one of its own users and sees no other's.

    What it acts for already, by header or token, goes before that.

    Raises:
        InvalidRequest: no end user can be called so.
    """
    if caller.end_user is not None or caller.session is not None:
        return caller
    return msgspec.structs.replace(caller, end_user=check_end_user(end_user))


_KEY_LENGTH = 255
_KEY = re.compile(rb"[ -~]{1,%d}" % _KEY_LENGTH)
# Whether the reply is streamed makes no difference to what is asked.
_HOW_IT_IS_SENT = ("stream", "stream_options")


def tell_apart(line: str, body: bytes) -> str:
    """What is the same for two requests if they ask for the same.

    White space and the order of fields make no difference in JSON, so they make none here. No
    body is an object without fields.
    """
    try:
        value = msgspec.json.decode(body) if body.strip() else {}
        if isinstance(value, dict):
            value = {name: value[name] for name in value if name not in _HOW_IT_IS_SENT}
        body = msgspec.json.encode(value, order="sorted")
    except (ValueError, RecursionError):  # no JSON, or of an odd kind: each byte counts
        pass
    return blake2b(b"%b\n%b" % (line.encode(), body), digest_size=16).hexdigest()


class Answer(msgspec.Struct, frozen=True):
    """A whole response."""

    status: int
    body: bytes
    headers: Headers = ()
    content_type: bytes = b"application/json"


class LongAnswer(msgspec.Struct, frozen=True):
    """A JSON response that is never whole in memory: sent piece by piece as it is made.

    What fails between two pieces cuts it off, since its status has been sent.
    """

    pieces: AsyncGenerator[bytes, None]
    headers: Headers = ()


class Following(Protocol):
    """Someone's place in what goes on, as `reply.Follower`."""

    finished: bool

    async def next(self) -> Sequence[Any]: ...

    def nudge(self) -> None: ...

    def close(self) -> None: ...


class EventStream(msgspec.Struct, frozen=True):
    """A response that follows what goes on: server-sent events, each made by `encode`.

    `follow` opens the place that is followed from; whoever calls it closes that. What `encode`
    makes nothing of is not sent. `keep_alive` is sent when nothing else was for a while.
    """

    follow: Callable[[], Following]
    encode: Callable[[Any], bytes]
    headers: Headers
    keep_alive: bytes = KEEP_ALIVE


class End(Enum):
    """Why no more messages come on a WebSocket."""

    GONE = "gone"  # the client has left, or cannot be talked to
    STOPPING = "stopping"  # the server is
    EXPIRED = "expired"  # it has been open for as long as any may


class Wire(Protocol):
    """A WebSocket to whom was let in, as a dialect sees it: whole messages of text, both ways."""

    async def receive(self) -> str | End:
        """The next message, or why there is none; from then on always that.

        Raises:
            RateLimited: this message is one more than the caller may send; it is lost.
            TurnkeeperError: the caller's credentials no longer hold.
        """
        ...

    async def send(self, text: bytes) -> None:
        """Send a message, once the client has taken enough of those before.

        Does nothing where the client has gone.
        """
        ...


class Upgrade(msgspec.Struct, frozen=True):
    """The client may open the WebSocket that it asks for; `talk` is all that is said on it.

    The WebSocket is closed when that returns, and cut off soon after `Wire.receive` has said
    `End.STOPPING`.
    """

    talk: Callable[[Wire], Awaitable[None]]


Outcome = Answer | LongAnswer | EventStream | Upgrade
Handler = Callable[[Parts, Call], Awaitable[Outcome]]

WEBSOCKET = "WEBSOCKET"  # the method of a handshake, as routes and their gates see it


class Route(msgspec.Struct, frozen=True):
    """A row of the route map. `path` marks its variables with braces.

    Attributes:
        method: of HTTP; or `WEBSOCKET` for handshakes, whose handlers answer with an `Upgrade`.
        any_case: the path matches however its letters are written.
        is_open: nobody is asked for credentials, in any access mode.
        admin: for all but admins, there is nothing at this path; it needs the scope `admin`.
        scope: the one that credentials need; for what only reads, `read` does as well. None: any.
        session_token: what is good for one session alone is good here. The path's `id`,
            `turn_id`, if it has one, is of that session then.
    """

    method: str
    path: str
    handler: Handler
    description: str
    any_case: bool = False
    is_open: bool = False
    admin: bool = False
    scope: Scope | None = "chat"
    session_token: bool = False

    @property
    def needs(self) -> frozenset[Scope]:
        """One of these scopes; empty for none."""
        if self.admin:
            return frozenset({"admin"})
        if self.is_open or self.scope is None:
            return frozenset()
        return frozenset({self.scope, "read"} if self.method == "GET" else {self.scope})


class Dialect(msgspec.Struct, frozen=True):
    """A wire format: its routes, and how it words a failure.

    `prefixes` are the beginnings of paths that are its own, also where nothing is served.
    """

    routes: tuple[Route, ...]
    encode_error: Callable[[TurnkeeperError], Answer]
    prefixes: tuple[str, ...] = ()


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
    if is_empty(body):
        raise NoData("No data provided")
    return decode_json(decoder, body)


def is_empty(body: bytes) -> bool:
    """Whether a body says nothing: no bytes, `{}`, `[]` or `null`."""
    if body.strip(b" \t\r\n{}[]") not in (b"", b"null"):  # nearly always
        return False
    return b"".join(body.split()) in (b"", b"{}", b"[]", b"null")


def decode_json(decoder: msgspec.json.Decoder[T], body: bytes) -> T:
    """A request's JSON, whatever it is.

    Raises:
        InvalidRequest: it is not JSON, or something in it has the wrong type.
    """
    try:
        if not body.isascii():
            body.decode()  # msgspec does not look into fields that it skips
        decoded = decoder.decode(body)
    except msgspec.ValidationError as error:
        raise InvalidRequest(explain(str(error))) from error
    except UnicodeDecodeError as error:
        raise InvalidRequest("The body is not valid JSON: it is not UTF-8") from error
    except msgspec.DecodeError as error:
        raise InvalidRequest(f"The body is not valid JSON: {error}") from error
    except RecursionError as error:
        raise InvalidRequest("The body is nested too deeply") from error
    return decoded


def decode_optional(decoder: msgspec.json.Decoder[T], body: bytes) -> T:
    """A request's JSON object, all of whose fields may be left out, and so may itself.

    Raises:
        InvalidRequest: as `decode_object`.
    """
    says_nothing = b"".join(body.split()) in (b"", b"{}")
    return decoder.decode(b"{}") if says_nothing else decode_object(decoder, body)


def plain_text(value: msgspec.Raw) -> str:
    """A JSON value as text: a string as it is, anything else as its JSON without white space.

    Numbers and escapes stay as they were written.
    """
    written = bytes(value)
    if written.startswith(b'"'):
        return msgspec.json.decode(written, type=str)
    return msgspec.json.format(written, indent=-1).decode()


async def completed(call: Call, taken: Taken) -> str:
    """The whole text of a reply, once the turn is completed and stored.

    Where the reply is made only as long as it is wanted, a client that goes away waits no longer.

    Raises:
        TurnEnded: the turn failed, was cancelled or interrupted.
        InvalidRequest: the client went away.
    """
    reply = taken.reply
    try:
        if reply.on_abandoned is None:
            return await reply.completed()
        return await while_wanted(call, reply.completed())
    except TurnEnded as ended:
        ended.repeated = taken.repeated
        raise


def turn_answer(taken: Taken, body: Any) -> Answer:
    """`body` with the headers of the turn it tells of."""
    return Answer(200, encode_json(body), headers_of(taken))


def headers_of(taken: Taken) -> Headers:
    turn = taken.reply.turn.ref
    headers = turn_headers(turn.id, turn.session_id)
    return (*headers, REPEATED) if taken.repeated else headers


def made_headers(made: Made[Any]) -> Headers:
    """What tells a client that an earlier request of its own had made a thing."""
    return (REPEATED,) if made.repeated else ()


async def while_wanted(call: Call, work: Coroutine[Any, Any, T]) -> T:
    """What `work` returns; it is cancelled if the client goes away first.

    Raises:
        InvalidRequest: the client went away, so that nobody reads the answer.
    """
    working = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(call.disconnected())
    try:
        await asyncio.wait({working, gone}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        working.cancel()
        await asyncio.gather(working, return_exceptions=True)
        raise InvalidRequest("The client went away")
    finally:
        gone.cancel()
        working.cancel()


# --- Errors ------------------------------------------------------------------------------------

STATUSES: dict[str, int] = {
    "invalid_request": 400,
    "blank_message": 400,
    "blank_content": 400,
    "unknown_model": 400,
    "context_length_exceeded": 400,
    "unauthenticated": 401,
    "wrong_password": 401,
    "forbidden": 403,
    "insufficient_scope": 403,
    "access_denied": 403,
    "not_found": 404,
    "session_not_found": 404,
    "turn_not_found": 404,
    "message_not_found": 404,
    "deployment_not_found": 404,
    "user_not_found": 404,
    "key_not_found": 404,
    "revision_not_found": 404,
    "document_not_found": 404,
    "section_not_found": 404,
    "method_not_allowed": 405,
    "request_timeout": 408,
    "turn_cancelled": 409,
    "not_newest": 409,
    "not_retryable": 409,
    "session_busy": 409,
    "deployment_exists": 409,
    "user_exists": 409,
    "user_not_empty": 409,
    "secret_not_kept": 409,
    "deployment_read_only": 409,
    "precondition_failed": 412,
    "body_too_large": 413,
    "message_too_long": 413,
    "url_too_long": 414,
    "idempotency_key_reused": 422,
    "queue_full": 429,
    "rate_limit_exceeded": 429,
    "insufficient_quota": 429,
    "too_many_attempts": 429,
    "provider_rate_limited": 429,
    "headers_too_large": 431,
    "internal_error": 500,
    "provider_unreachable": 502,
    "provider_refused": 502,
    "provider_failed": 502,
    "provider_malformed": 502,
    "provider_cut_off": 502,
    "provider_empty_reply": 502,
    "overloaded": 503,
    "server_stopping": 503,
    "store_unavailable": 503,
    "turn_interrupted": 503,
    "queue_timeout": 503,
    "provider_resting": 503,
    "provider_timeout": 504,
}


def encode_error(error: TurnkeeperError) -> Answer:
    """The shape of every error that no seed words itself."""
    body = {"error": error.sentence, "code": error.code}
    if isinstance(error, SessionBusy):
        body["busy_turn_id"] = error.turn_id
    if isinstance(error, SecretNotKept):
        body["id"] = error.id
    return error_answer(error, body)


def error_answer(error: TurnkeeperError, body: Any) -> Answer:
    """`body` with the status, `Retry-After` and turn headers that belong to `error`."""
    headers: list[tuple[bytes, bytes]] = []
    if error.retry_after is not None:
        headers.append((b"retry-after", b"%d" % max(1, math.ceil(error.retry_after))))
    if isinstance(error, Unauthenticated):
        headers.append((b"www-authenticate", b"Bearer"))
    if isinstance(error, SessionBusy | QuotaExceeded):
        headers.append((b"x-should-retry", b"false"))
    if isinstance(error, TurnEnded):
        headers += turn_headers(error.turn_id, error.session_id)
        headers += (REPEATED,) if error.repeated else ()
    return Answer(STATUSES[error.code], encode_json(body), tuple(headers))


REPEATED = (b"idempotent-replayed", b"true")


def turn_headers(turn_id: str, session_id: str) -> Headers:
    return ((b"turn-id", turn_id.encode()), (b"session-id", session_id.encode()))
