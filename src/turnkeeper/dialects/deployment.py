"""The deployment endpoints (seed 004): a prompt under its own base URL, sessions with variables.

The base is `/deployments/{name}`, and for the default deployment also the server's root.
"""

from collections.abc import AsyncGenerator
from typing import Annotated

import msgspec
from msgspec import UNSET, Meta, UnsetType

from turnkeeper.blueprint import find_deployment
from turnkeeper.dialects import exchange
from turnkeeper.dialects.exchange import (
    Answer,
    Call,
    Dialect,
    Handler,
    LongAnswer,
    NoData,
    Outcome,
    Parts,
    Route,
    completed,
    decode_json,
    decode_object,
    encode_json,
    error_answer,
    made_headers,
    plain_text,
    turn_answer,
    while_wanted,
)
from turnkeeper.dialects.turn_stream import turn_stream
from turnkeeper.domain import (
    ById,
    ListedItem,
    MaxTokens,
    Message,
    MessageRef,
    Sampling,
    Session,
    StopText,
    Temperature,
    TopP,
    check_text,
    find_session,
)
from turnkeeper.errors import (
    DeploymentNotFound,
    InvalidRequest,
    SessionNotFound,
    TurnkeeperError,
)
from turnkeeper.sessions import SessionRequest


class Variable(msgspec.Struct):
    """One entry of the array that `create-chat-session` and `generate` take."""

    key: str | UnsetType = UNSET
    value: msgspec.Raw = msgspec.Raw(b"")


class InvokeRequest(msgspec.Struct):
    """`POST {base}/invoke`. What follows `stream` is ours: how this one reply is to be made."""

    user_message: str | None = None
    chat_session_id: str | None = None
    stream: bool = False
    model: str | None = None
    temperature: Temperature | None = None
    top_p: TopP | None = None
    max_tokens: MaxTokens | None = None
    stop: StopText | Annotated[tuple[StopText, ...], Meta(max_length=4)] | None = None


_variables = msgspec.json.Decoder(list[Variable])
_invoke_request = msgspec.json.Decoder(InvokeRequest)


async def create_session(parts: Parts, call: Call) -> Answer:
    wanted = SessionRequest(deployment=_name(parts, call), variables=decode_variables(call.body))
    made = await parts.sessions.create(call.caller, wanted, key=call.key())
    return Answer(200, encode_json({"chat_session_id": made.thing.id}), made_headers(made))


async def invoke(parts: Parts, call: Call) -> Outcome:
    request = _decode_invoke(call.body)
    session_id = _required(request.chat_session_id, "chat_session_id")
    text = _required(request.user_message, "user_message")
    taken = await parts.engine.take_turn(
        call.caller,
        find_session(session_id),
        text,
        model=request.model or None,
        sampling=_sampling(request),
        scope=_name(parts, call),
        key=call.key(),
    )
    if call.wants_stream(request.stream):
        return turn_stream(call, taken, session_id, "message")
    return turn_answer(taken, {"message": await completed(call, taken)})


async def get_session(parts: Parts, call: Call) -> LongAnswer:
    choice = find_session(call.path["chat_session_id"])
    session = await parts.sessions.get(call.caller, choice, scope=_name(parts, call))
    return LongAnswer(_session_pieces(parts, call.caller, session))


async def _session_pieces(
    parts: Parts, owner: str, session: Session
) -> AsyncGenerator[bytes, None]:
    """A session of any length, a page of its messages at a time."""
    yield b'{"data":{"engineStateId":%b,"messages":[' % encode_json(session.revision)
    place, comma, more = MessageRef(session.id, 0, 0), b"", True
    while more:
        try:
            page = await parts.sessions.page_messages(owner, ById(session.id), after=place)
        except SessionNotFound:
            break  # deleted meanwhile: what was read is the answer
        if page.messages:  # someone may clear the session meanwhile
            yield comma + b",".join([_encode_message(listed) for listed in page.messages])
            last, comma = page.messages[-1], b","
            place = MessageRef(session.id, last.turn, last.position)
        more = page.more
    yield b"]}}"


def _encode_message(listed: ListedItem) -> bytes:
    assert isinstance(listed.item, Message)  # noqa: S101
    return encode_json({"role": listed.item.role, "content": listed.item.text})


async def delete_session(parts: Parts, call: Call) -> Answer:
    choice = find_session(call.path["chat_session_id"])
    await parts.sessions.delete(call.caller, choice, scope=_name(parts, call))
    return Answer(200, encode_json({"message": "Chat session deleted"}))


async def generate(parts: Parts, call: Call) -> Answer:
    if call.key() is not None:
        raise InvalidRequest("Nothing is kept of what is generated, so it takes no Idempotency-Key")
    variables = decode_variables(call.body)
    making = parts.engine.generate(call.caller, _name(parts, call), variables)
    text = await while_wanted(call, making)  # nothing is kept: who leaves wants it no longer
    return Answer(200, encode_json({"message": text}))


def _name(parts: Parts, call: Call) -> str:
    """The deployment whose base the path begins with."""
    name = call.path.get("name")
    return parts.deployments.default if name is None else find_deployment(name)


def _knowing(act: Handler) -> Handler:
    """The same act, telling a deployment that is not there from a session that is not.

    It looks for the deployment only when there is no session: one may be older than its
    deployment's end.
    """

    async def known(parts: Parts, call: Call) -> Outcome:
        try:
            return await act(parts, call)
        except SessionNotFound:
            await parts.deployments.get(_name(parts, call))
            raise

    return known


# --- Reading -----------------------------------------------------------------------------------


def decode_variables(body: bytes) -> dict[str, str]:
    """Variables by their keys; the last of two equal keys wins. An empty body has none.

    Raises:
        InvalidRequest: it is not an array of `{"key", "value"}`.
    """
    if not body.strip():
        return {}
    entries = decode_json(_variables, body)
    variables: dict[str, str] = {}
    for number, variable in enumerate(entries):
        key = variable.key
        if key is UNSET:
            raise InvalidRequest(f"[{number}].key is missing")
        if not key.strip():
            raise InvalidRequest(f"[{number}].key must not be blank")
        if not bytes(variable.value):
            raise InvalidRequest(f"[{number}].value is missing")
        value = plain_text(variable.value)
        variables[check_text(key, f"[{number}].key")] = check_text(value, f"[{number}].value")
    return variables


def _decode_invoke(body: bytes) -> InvokeRequest:
    try:
        return decode_object(_invoke_request, body)
    except NoData:
        return InvokeRequest()


def _required(text: str | None, name: str) -> str:
    if text is None:
        raise InvalidRequest(f"{name} is missing")
    if not text.strip():
        raise InvalidRequest(f"{name} must not be blank")
    return check_text(text, name)


def _sampling(request: InvokeRequest) -> Sampling | None:
    stop = (request.stop,) if isinstance(request.stop, str) else request.stop or ()
    wanted = Sampling(request.temperature, request.top_p, request.max_tokens, stop)
    return wanted if wanted != Sampling() else None


# --- Errors: the rows of the wire page are `{"error": sentence}` and nothing else -----------------


def encode_error(error: TurnkeeperError) -> Answer:
    if isinstance(error, SessionNotFound):
        return error_answer(error, {"error": "Chat session not found"})
    if isinstance(error, (DeploymentNotFound, InvalidRequest)):
        return error_answer(error, {"error": error.sentence})
    return exchange.encode_error(error)


_CALLS: tuple[tuple[str, str, Handler, str], ...] = (
    ("POST", "/create-chat-session", create_session, "Create a session with variables"),
    ("POST", "/invoke", _knowing(invoke), "Send a message to a session"),
    ("GET", "/chat-session/{chat_session_id}", _knowing(get_session), "A session's messages"),
    ("DELETE", "/chat-session/{chat_session_id}", _knowing(delete_session), "Delete a session"),
    ("POST", "/generate", generate, "One reply to the prompt alone, nothing kept"),
)

DIALECT = Dialect(
    routes=tuple(
        Route(method, base + path, handler, f"{description} ({whose})")
        for base, whose in (("", "default deployment"), ("/deployments/{name}", "any deployment"))
        for method, path, handler, description in _CALLS
    ),
    encode_error=encode_error,
    prefixes=("/deployments", "/create-chat-session", "/invoke", "/chat-session", "/generate"),
)
