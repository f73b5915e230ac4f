"""What any turn has, whichever dialect began it."""

import msgspec

from turnkeeper.dialects.exchange import (
    Answer,
    Call,
    EventStream,
    Outcome,
    Parts,
    Route,
    decode_optional,
    encode_json,
    turn_headers,
)
from turnkeeper.dialects.session_view import answer_with
from turnkeeper.dialects.turn_stream import (
    encode_turn,
    known_place,
    resumed_stream,
    session_stream,
)
from turnkeeper.domain import Turn, TurnRef, find_session, parse_turn_id
from turnkeeper.errors import TurnNotFound


class RetryRequest(msgspec.Struct, forbid_unknown_fields=True):
    model: str | None = None
    stream: bool = False


_retry_request = msgspec.json.Decoder(RetryRequest)


async def get_turn(parts: Parts, call: Call) -> Answer:
    reply = await parts.engine.follow_turn(call.caller, _turn_ref(call))
    return _encode(reply.turn)


async def follow_turn(parts: Parts, call: Call) -> Outcome:
    reply = await parts.engine.follow_turn(call.caller, _turn_ref(call))
    return resumed_stream(reply, call)


async def cancel_turn(parts: Parts, call: Call) -> Answer:
    return _encode(await parts.engine.cancel_turn(call.caller, _turn_ref(call)))


async def retry_turn(parts: Parts, call: Call) -> Outcome:
    wanted = decode_optional(_retry_request, call.body)
    taken = await parts.engine.retry_turn(
        call.caller, _turn_ref(call), model=wanted.model or None, key=call.key()
    )
    return await answer_with(parts, call, taken, wanted.stream)


async def follow_session(parts: Parts, call: Call) -> EventStream:
    choice = find_session(call.path["id"])
    return session_stream(await parts.engine.follow_session(call.caller, choice, known_place(call)))


def _turn_ref(call: Call) -> TurnRef:
    """The turn in the path; an id of impossible form is not looked for."""
    ref = parse_turn_id(call.path["turn_id"])
    if ref is None:
        raise TurnNotFound("Turn not found")
    return ref


def _encode(turn: Turn) -> Answer:
    body = encode_json({"turn": encode_turn(turn)})
    return Answer(200, body, turn_headers(turn.ref.id, turn.ref.session_id))


ROUTES = (
    Route("GET", "/api/turns/{turn_id}", get_turn, "A turn and how it stands", session_token=True),
    Route(
        "GET",
        "/api/turns/{turn_id}/events",
        follow_turn,
        "Follow a turn's reply",
        session_token=True,
    ),
    Route("POST", "/api/turns/{turn_id}/cancel", cancel_turn, "Stop a turn", session_token=True),
    Route(
        "POST", "/api/turns/{turn_id}/retry", retry_turn, "Try again a turn that came to nothing"
    ),
    Route(
        "GET",
        "/api/chat-sessions/{id}/events",
        follow_session,
        "Follow every turn of a session",
        session_token=True,
    ),
)
