"""What was used: `GET /api/usage`."""

import re
from datetime import date
from functools import reduce
from operator import add
from typing import Any, get_args

from turnkeeper.contracts import UsageBy
from turnkeeper.dialects.exchange import Answer, Call, Parts, Route, encode_json
from turnkeeper.domain import Sums, make_owner
from turnkeeper.errors import InvalidRequest
from turnkeeper.histograms import Spread
from turnkeeper.usage import UsageWish

_DATE = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")
_KNOWN = ("from", "to", "by", "user", "end_user")


async def get_usage(parts: Parts, call: Call) -> Answer:
    wish = _wish(parts, call)
    lines = await parts.usage.tell(wish)
    encode = encode_turns if wish.by in ("model", "deployment") else encode_sums
    body = {
        "by": wish.by,
        "from": wish.first.isoformat(),
        "to": wish.last.isoformat(),
        "usage": [{wish.by: line.name, **encode(line.sums)} for line in lines],
        "total": encode(reduce(add, (line.sums for line in lines), Sums())),
    }
    return Answer(200, encode_json(body))


def _wish(parts: Parts, call: Call) -> UsageWish:
    """What a request asks for.

    Raises:
        InvalidRequest: it cannot be understood.
    """
    unknown = sorted(set(call.query) - set(_KNOWN))
    if unknown:
        raise InvalidRequest(f"Unknown parameter: {unknown[0][:50]}")
    given = call.query.get("by", "day")
    by = next((word for word in get_args(UsageBy) if word == given), None)
    if by is None:
        raise InvalidRequest(f"by must be one of {', '.join(get_args(UsageBy))}")
    owner = _owner(call)
    if by == "end_user" and owner is None:
        raise InvalidRequest("by=end_user needs a user")
    return parts.usage.wish(owner, by, _day(call, "from"), _day(call, "to"))


def _owner(call: Call) -> str | None:
    """Whose usage: one's own, or for an admin everybody's, or that of the user who is named.

    A parameter that is not the caller's to give changes nothing: there is nobody else to see.
    """
    who, end_user = call.who, call.query.get("end_user")
    if who.end_user is not None:
        return who.owner
    if not who.is_admin:
        return make_owner(who.name, end_user)
    user = call.query.get("user")
    if user is None:
        return None if end_user is None else make_owner(who.name, end_user)
    return make_owner(user, end_user)


def _day(call: Call, name: str) -> date | None:
    text = call.query.get(name)
    if text is None:
        return None
    try:
        if _DATE.fullmatch(text):
            return date.fromisoformat(text)
    except ValueError:
        pass
    raise InvalidRequest(f"{name} must be a day, as 2026-01-31")


def encode_sums(sums: Sums) -> dict[str, Any]:
    return {"requests": sums.requests, **encode_turns(sums)}


def encode_turns(sums: Sums) -> dict[str, Any]:
    """Without the requests, which are of no model and no deployment."""
    tokens = sums.prompt_tokens + sums.completion_tokens
    return {
        "turns": {
            "completed": sums.completed,
            "failed": sums.failed,
            "cancelled": sums.cancelled,
            "interrupted": sums.interrupted,
        },
        "tokens": {
            "prompt_tokens": sums.prompt_tokens,
            "completion_tokens": sums.completion_tokens,
            "total_tokens": tokens,
        },
        "response_time": _encode_times(sums.durations, sums.duration),
        "time_to_first_token": _encode_times(sums.first_deltas, sums.first_delta),
    }


def _encode_times(spread: Spread, total: int) -> dict[str, float] | None:
    """In ms; None if there are none. The mean is exact, the others are within 5 %."""
    count = spread.count
    if not count:
        return None
    p50, p95, p99 = (round(time, 1) for time in spread.percentiles(50, 95, 99))
    return {"mean_ms": round(total / count, 1), "p50_ms": p50, "p95_ms": p95, "p99_ms": p99}


ROUTES = (Route("GET", "/api/usage", get_usage, "What was used, and how long it took"),)
