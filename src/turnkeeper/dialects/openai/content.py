"""temporary"""

from typing import TypeVar

import msgspec

from turnkeeper.dialects.exchange import decode_json
from turnkeeper.dialects.openai.errors import WrongParameter
from turnkeeper.errors import InvalidRequest

T = TypeVar("T")


def decode_body(decoder: msgspec.json.Decoder[T], body: bytes) -> T:
    try:
        return decode_json(decoder, body)
    except InvalidRequest as error:
        cause = error.__cause__
        if not isinstance(cause, msgspec.ValidationError):
            raise
        raise WrongParameter(error.sentence, param_of(str(cause))) from None


def param_of(problem: str) -> str | None:
    complaint, _, path = problem.partition(" - at `")
    place = path.rstrip("`").removeprefix("$").removeprefix(".")
    for kind in ("Object missing required field `", "Object contains unknown field `"):
        if complaint.startswith(kind):
            name = complaint.removeprefix(kind).removesuffix("`")[:100]
            return f"{place}.{name}" if place else name
    return place.replace("[...]", "") or None
