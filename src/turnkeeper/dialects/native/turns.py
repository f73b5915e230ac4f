"""What any turn has, whichever dialect began it."""

from turnkeeper.dialects.exchange import (
    Answer,
    Call,
    Outcome,
    Parts,
    Route,
    encode_json,
    turn_headers,
)
from turnkeeper.dialects.turn_stream import encode_turn, resumed_stream
from turnkeeper.domain import Turn, TurnRef, parse_turn_id
from turnkeeper.errors import TurnNotFound


async def get_turn(parts: Parts, call: Call) -> Answer:
    reply = await parts.engine.follow_turn(call.caller, _turn_ref(call))
    return _encode(reply.turn)


async def follow_turn(parts: Parts, call: Call) -> Outcome:
    reply = await parts.engine.follow_turn(call.caller, _turn_ref(call))
    return resumed_stream(reply, call)


async def cancel_turn(parts: Parts, call: Call) -> Answer:
    return _encode(await parts.engine.cancel_turn(call.caller, _turn_ref(call)))


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
    Route("GET", "/api/turns/{turn_id}", get_turn, "A turn and how it stands"),
    Route("GET", "/api/turns/{turn_id}/events", follow_turn, "Follow a turn's reply"),
    Route("POST", "/api/turns/{turn_id}/cancel", cancel_turn, "Stop a turn"),
)
