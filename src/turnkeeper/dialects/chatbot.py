"""The chatbot API of the Flask tutorial (seed 001): one endpoint to talk, three to manage.

The seed's pseudo-code names no fields; the names here are those of its published solution,
which its Gradio and Streamlit clients depend on.
"""

from collections.abc import Sequence
from typing import Any

import msgspec

from turnkeeper.dialects import exchange
from turnkeeper.dialects.exchange import (
    Answer,
    Call,
    Dialect,
    Outcome,
    Parts,
    Route,
    completed,
    decode_object,
    encode_json,
    error_answer,
    turn_answer,
)
from turnkeeper.dialects.turn_stream import turn_stream
from turnkeeper.domain import choose_session
from turnkeeper.errors import BlankMessage, InvalidRequest, TurnkeeperError, UnknownModel


class ChatRequest(msgspec.Struct):
    """`POST /api/chat`. `session_id` null or empty: the server makes a session."""

    message: str | None = None
    session_id: str | None = None
    model: str | None = None
    stream: bool = False


class ChatAnswer(msgspec.Struct):
    model: str
    response: str
    session_id: str


class ClearRequest(msgspec.Struct):
    session_id: str | None = None


_chat_request = msgspec.json.Decoder(ChatRequest)
_clear_request = msgspec.json.Decoder(ClearRequest)


async def chat(parts: Parts, call: Call) -> Outcome:
    request = decode_object(_chat_request, call.body)
    text, model = request.message or "", request.model or None
    try:
        session = choose_session(request.session_id) if request.session_id else None
    except InvalidRequest:
        parts.engine.check_message(text)  # seed 001: a wrong message is told first
        parts.engine.check_model(model)
        raise
    taken = await parts.engine.take_turn(call.caller, session, text, model=model, key=call.key())
    session_id = request.session_id or taken.reply.turn.ref.session_id
    if call.wants_stream(request.stream):
        return turn_stream(call, taken, session_id)
    text = await completed(call, taken)
    return turn_answer(taken, ChatAnswer(taken.reply.turn.model, text, session_id))


async def clear(parts: Parts, call: Call) -> Answer:
    request = decode_object(_clear_request, call.body)
    if not request.session_id:
        raise InvalidRequest("No session ID provided")
    await parts.sessions.clear(call.caller, choose_session(request.session_id))
    # seed 001: success for an unknown session too
    return _ok({"message": "Conversation cleared", "status": "success"})


async def list_models(parts: Parts, _call: Call) -> Answer:
    return _ok([{"id": model.id, "name": model.name} for model in parts.engine.models])


async def list_sessions(parts: Parts, call: Call) -> Answer:
    sessions = await parts.sessions.list_all(call.caller)
    return _ok(
        [
            {"id": session.alias or session.id, "message_count": session.message_count}
            for session in sessions
        ]
    )


def encode_index(routes: Sequence[Route]) -> Answer:
    """`GET /` for programs: what is served here."""
    return _ok(
        {
            "message": "Turnkeeper is running",
            "endpoints": [
                {"method": route.method, "path": route.path, "description": route.description}
                for route in routes
            ],
        }
    )


def _ok(body: Any) -> Answer:
    return Answer(200, encode_json(body))


# --- Errors: the rows of the seed's table are exact, `{"error": sentence}` and nothing else ------

_EXACT = (InvalidRequest, BlankMessage, UnknownModel)


def encode_error(error: TurnkeeperError) -> Answer:
    if error.code.startswith("provider_"):
        return error_answer(error, {"error": f"API Error: {error.sentence}"})
    if isinstance(error, _EXACT):
        return error_answer(error, {"error": error.sentence})
    return exchange.encode_error(error)


DIALECT = Dialect(
    routes=(
        Route("POST", "/api/chat", chat, "Send a message and get the reply"),
        Route("POST", "/api/clear", clear, "Clear a session's conversation"),
        Route("GET", "/api/models", list_models, "List the models, the default first"),
        Route("GET", "/api/sessions", list_sessions, "List your sessions"),
    ),
    encode_error=encode_error,
)
