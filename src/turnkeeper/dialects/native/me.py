"""Who the caller is."""

import math
from typing import Any

from turnkeeper.dialects.exchange import Answer, Call, Parts, Route, encode_json
from turnkeeper.limits import Left


async def get_me(parts: Parts, call: Call) -> Answer:
    user = {"username": call.caller, "role": "admin" if call.is_admin else "user"}
    return Answer(
        200, encode_json({"user": user, "left": [_left(one) for one in parts.gate.left()]})
    )


def _left(left: Left) -> dict[str, Any]:
    return {
        "of": left.subject.kind,
        "limit": left.limit,
        "allowed": left.allowed,
        "left": left.left,
        "reset_seconds": None if left.reset is None else math.ceil(left.reset),
    }


ROUTES = (Route("GET", "/api/me", get_me, "Who you are"),)
