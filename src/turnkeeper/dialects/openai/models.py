"""`/v1/models`: which models there are."""

from collections.abc import Mapping
from typing import Any

from turnkeeper.dialects.exchange import Answer, Call, Parts, Route, encode_json
from turnkeeper.domain import Model
from turnkeeper.errors import UnknownModel

_OWNER = "turnkeeper"


async def list_models(parts: Parts, _call: Call) -> Answer:
    data = [_encode(model) for model in parts.engine.models]
    return Answer(200, encode_json({"object": "list", "data": data}))


async def get_model(parts: Parts, call: Call) -> Answer:
    id_ = parts.engine.check_model(call.path["id"])
    for model in parts.engine.models:
        if model.id == id_:
            return Answer(200, encode_json(_encode(model)))
    raise UnknownModel(f"Unknown model: {call.path['id'][:100]}")


def _encode(model: Model) -> Mapping[str, Any]:
    """`created` is when a model was made, which nobody tells us."""
    return {
        "id": model.id,
        "object": "model",
        "created": 0,
        "owned_by": _OWNER,
        "context_window": model.context_window,
    }


ROUTES = (
    Route("GET", "/v1/models", list_models, "List the models, the default first"),
    Route("GET", "/v1/models/{id*}", get_model, "Read what is known of a model"),
)
