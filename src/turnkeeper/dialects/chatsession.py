"""The chat sessions of an e-learning tutor (seed 000): the client says what happened in the
learner's app, the agent speaks first, then they talk.
"""

from typing import Any

import msgspec

from turnkeeper.dialects import exchange
from turnkeeper.dialects.exchange import (
    Answer,
    Call,
    Dialect,
    NoData,
    Outcome,
    Parts,
    Route,
    completed,
    decode_json,
    decode_object,
    encode_json,
    error_answer,
    is_empty,
    plain_text,
    turn_answer,
)
from turnkeeper.dialects.turn_stream import turn_stream
from turnkeeper.domain import check_text, find_session
from turnkeeper.errors import InvalidRequest, SessionNotFound, TurnkeeperError


class Opening(msgspec.Struct, frozen=True):
    """`POST /session/create`: what happened, in words for the model."""

    text: str
    stream: bool


class SendRequest(msgspec.Struct):
    """`POST /session/send`. Of any type here, so that faults are found in the contract's order."""

    session_id: Any = None
    msg_text: Any = None
    stream: bool = False


_any_json = msgspec.json.Decoder(msgspec.Raw)
_fields = msgspec.json.Decoder(dict[str, msgspec.Raw])
_send_request = msgspec.json.Decoder(SendRequest)


async def create(parts: Parts, call: Call) -> Outcome:
    opening = decode_opening(call.body)
    taken = await parts.engine.take_turn(call.caller, None, opening.text, key=call.key())
    session_id = taken.reply.turn.ref.session_id
    if call.wants_stream(opening.stream):
        return turn_stream(call, taken, session_id, "msg_text")
    text = await completed(call, taken)
    return turn_answer(taken, {"session_id": session_id, "msg_text": text})


async def send(parts: Parts, call: Call) -> Outcome:
    request = _decode_send(call.body)
    session = find_session(request.session_id)
    taken = await parts.engine.take_turn(call.caller, session, request.msg_text, key=call.key())
    if call.wants_stream(request.stream):
        return turn_stream(call, taken, request.session_id, "msg_text")
    return turn_answer(taken, {"msg_text": await completed(call, taken)})


async def end(parts: Parts, call: Call) -> Answer:
    session_id = call.query.get("session_id")
    if not session_id:
        raise InvalidRequest("Missing session_id")
    try:
        await parts.sessions.delete(call.caller, find_session(session_id))
    except SessionNotFound:
        # seed 000: "status (string): Status of the termination request"
        return Answer(404, encode_json({"status": "failed"}))
    return Answer(204, b"")


# --- Reading -----------------------------------------------------------------------------------


def decode_opening(body: bytes) -> Opening:
    """What a session begins with: the value of `ini_message`, or a body without it as a whole.

    Raises:
        NoData: there is neither, or it is null or blank.
        InvalidRequest: the body is not JSON, `stream` beside `ini_message` is no boolean, or the
            text cannot be kept.
    """
    if is_empty(body):
        raise NoData("No data provided")
    whole = decode_json(_any_json, body)
    is_object = bytes(whole).startswith(b"{")
    fields = _fields.decode(whole) if is_object else {}
    stream = bytes(fields.pop("stream", _FALSE))
    if "ini_message" in fields:
        if stream not in (b"true", b"false"):
            raise InvalidRequest("stream must be true or false")
        whole = fields["ini_message"]
    elif is_object and not fields:
        raise NoData("Missing ini_message")
    text = "" if bytes(whole) == b"null" else plain_text(whole)
    if not text.strip():
        raise NoData("ini_message must not be empty")
    return Opening(check_text(text, "ini_message"), stream == b"true")


_FALSE = msgspec.Raw(b"false")


def _decode_send(body: bytes) -> SendRequest:
    """A message and its session, of the right types.

    Raises:
        InvalidRequest: one of them is missing, or the body is not what it must be.
    """
    try:
        request = decode_object(_send_request, body)
    except NoData:
        request = SendRequest()
    for name in ("session_id", "msg_text"):
        value = getattr(request, name)
        if value is not None and not isinstance(value, str):
            raise InvalidRequest(f"{name} must be a string")
        is_missing = not value if name == "session_id" else not (value or "").strip()
        if is_missing:
            raise InvalidRequest(f"Missing {name}")
    check_text(request.msg_text, "msg_text")
    return request


# --- Errors: the rows of the wire page's table are `{"error": sentence}` and nothing else ---------

_EXACT = (InvalidRequest, SessionNotFound)


def encode_error(error: TurnkeeperError) -> Answer:
    if isinstance(error, _EXACT):
        return error_answer(error, {"error": error.sentence})
    return exchange.encode_error(error)


DIALECT = Dialect(
    routes=(
        Route(
            "POST",
            "/session/create",
            create,
            "Create a session; the agent speaks first",
            any_case=True,
        ),
        Route("POST", "/session/send", send, "Send a message to a session", any_case=True),
        Route("POST", "/chat", send, "The same as /session/send", any_case=True),
        Route("DELETE", "/session/end", end, "End a session and forget it", any_case=True),
    ),
    encode_error=encode_error,
    prefixes=("/session", "/chat"),
)
