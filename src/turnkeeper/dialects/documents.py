"""The document application of seeds 002 and 003: today its three calls on chat sessions.

A session of any dialect can be read here, talked in and cleared.
"""

import logging

import msgspec

from turnkeeper.dialects import exchange
from turnkeeper.dialects.exchange import (
    Answer,
    Call,
    Dialect,
    Handler,
    Outcome,
    Parts,
    Route,
    completed,
    decode_optional,
    encode_json,
    error_answer,
    turn_headers,
)
from turnkeeper.dialects.session_view import (
    encode_conversation,
    encode_message,
    is_known,
    older,
    query_limit,
    read_said,
    tag_of,
    tagged_answer,
)
from turnkeeper.dialects.turn_stream import turn_stream
from turnkeeper.domain import find_session
from turnkeeper.errors import BlankMessage, SessionNotFound, TurnkeeperError, Unauthenticated
from turnkeeper.sessions import MESSAGE_PAGE_LIMIT

log = logging.getLogger(__name__)


class MessageRequest(msgspec.Struct):
    """`POST …/messages`."""

    message: str | None = None
    model: str | None = None
    stream: bool = False


_message_request = msgspec.json.Decoder(MessageRequest)


async def get_session(parts: Parts, call: Call) -> Answer:
    choice = find_session(call.path["id"])
    limit = query_limit(call, MESSAGE_PAGE_LIMIT, MESSAGE_PAGE_LIMIT)
    if call.header(b"if-none-match"):
        session = await parts.sessions.get(call.caller, choice)
        if is_known(session, call):
            return Answer(304, b"", ((b"etag", tag_of(session)),))
    page = await parts.sessions.page_messages(call.caller, choice, limit=limit)
    return tagged_answer(200, page.session, encode_conversation(page, older(page)))


async def send_message(parts: Parts, call: Call) -> Outcome:
    choice = find_session(call.path["id"])
    request = decode_optional(_message_request, call.body)
    try:
        reply = await parts.engine.take_turn(
            call.caller, choice, request.message or "", model=request.model or None
        )
    except BlankMessage:
        await parts.sessions.get(call.caller, choice)  # seed 003: the session is looked for first
        raise
    if call.wants_stream(request.stream):
        return turn_stream(reply, None, call.path["id"])
    text = await completed(call, reply)
    page = await read_said(parts, call, reply, limit=2)
    ref = reply.turn.ref
    body = {
        "response": text,
        "references": [],
        "message": encode_message(ref.session_id, page.messages[-1]),
        # only this turn's two messages, so that the answer does not grow with the session
        "chat_session": encode_conversation(page, older(page)),
    }
    return Answer(200, encode_json(body), turn_headers(ref.id, ref.session_id))


async def clear_session(parts: Parts, call: Call) -> Answer:
    choice = find_session(call.path["id"])
    await parts.sessions.get(call.caller, choice)
    await parts.sessions.clear(call.caller, choice)
    return Answer(200, encode_json({"message": "Chat history cleared successfully"}))


# --- Errors: the rows of the seeds are exact, `{"error": sentence}` and nothing else ------------


def encode_error(error: TurnkeeperError) -> Answer:
    if isinstance(error, SessionNotFound):
        return error_answer(error, {"error": "Chat session not found"})
    if isinstance(error, BlankMessage):
        return error_answer(error, {"error": "Message cannot be empty"})
    if isinstance(error, Unauthenticated):
        return error_answer(error, {"error": error.sentence})
    return exchange.encode_error(error)


def or_failed(handler: Handler, sentence: str) -> Handler:
    """The handler, with what a caller is told of a fault of our own, which goes to the log."""

    async def handle(parts: Parts, call: Call) -> Outcome:
        try:
            return await handler(parts, call)
        except TurnkeeperError:
            raise
        except Exception:
            log.exception(sentence)
            return Answer(500, encode_json({"error": sentence}))

    return handle


_ONE = "/api/chat-sessions/{id}"
_get = or_failed(get_session, "Failed to get chat session")
_clear = or_failed(clear_session, "Failed to clear chat session")

DIALECT = Dialect(
    routes=(
        Route("GET", _ONE, _get, "Read a session and what was said in it"),
        Route("POST", f"{_ONE}/messages", send_message, "Send a message and get the reply"),
        Route("POST", f"{_ONE}/clear", _clear, "Clear a session's conversation"),
    ),
    encode_error=encode_error,
)
