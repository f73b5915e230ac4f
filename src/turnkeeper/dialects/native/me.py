"""Who the caller is, and what for."""

import math
from typing import Any

import msgspec

from turnkeeper.dialects.exchange import Answer, Call, Parts, Route, encode_json
from turnkeeper.dialects.turn_stream import encode_time
from turnkeeper.limits import Left


async def get_me(parts: Parts, call: Call) -> Answer:
    who = call.who
    body = {
        "user": {"username": who.name, "role": who.role},
        "scopes": sorted(who.scopes),
        "key_id": who.key,
        "session_id": who.session,
        "end_user": who.end_user,
        "expires_at": None if who.expires_at is None else encode_time(who.expires_at),
        "limits": msgspec.to_builtins(who.limits),
        "left": [_left(one) for one in parts.gate.left()],
    }
    return Answer(200, encode_json(body))


def _left(left: Left) -> dict[str, Any]:
    return {
        "of": left.subject.kind,
        "limit": left.limit,
        "allowed": left.allowed,
        "left": left.left,
        "reset_seconds": None if left.reset is None else math.ceil(left.reset),
    }


ROUTES = (Route("GET", "/api/me", get_me, "Who you are", scope=None, session_token=True),)
