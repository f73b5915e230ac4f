"""Lists as OpenAI's clients page through them: `after`, `limit`, `order`. Pure."""

import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from turnkeeper.dialects.exchange import Call
from turnkeeper.dialects.openai.errors import WrongParameter

_DEFAULT, _MOST = 20, 100


def query_limit(call: Call) -> int:
    """How many things are wanted on a page.

    Raises:
        WrongParameter: no number from 1 to 100.
    """
    text = call.query.get("limit")
    if text is None:
        return _DEFAULT
    number = int(text) if re.fullmatch(r"[0-9]{1,9}", text) else 0
    if not 1 <= number <= _MOST:
        raise WrongParameter(f"limit must be a number from 1 to {_MOST}", "limit")
    return number


def query_order(call: Call, default: Literal["asc", "desc"]) -> bool:
    """Whether the newest come first.

    Raises:
        WrongParameter: neither `asc` nor `desc`.
    """
    order = call.query.get("order", default)
    if order not in ("asc", "desc"):
        raise WrongParameter("order must be asc or desc", "order")
    return order == "desc"


def encode_list(data: Sequence[Mapping[str, Any]], *, has_more: bool) -> Mapping[str, Any]:
    """A page; each of `data` has an `id`."""
    return {
        "object": "list",
        "data": data,
        "first_id": data[0]["id"] if data else None,
        "last_id": data[-1]["id"] if data else None,
        "has_more": has_more,
    }
