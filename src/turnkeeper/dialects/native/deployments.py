"""Deployments made and changed over HTTP: names, blueprints, and the states they went through."""

from collections.abc import Mapping
from difflib import unified_diff
from typing import Any

import msgspec

from turnkeeper.blueprint import find_deployment, plain_blueprint, read_blueprint
from turnkeeper.dialects.exchange import (
    Answer,
    Call,
    Headers,
    Parts,
    Route,
    decode_object,
    encode_json,
    made_headers,
)
from turnkeeper.dialects.turn_stream import encode_time
from turnkeeper.domain import Deployment, Revision, check_text
from turnkeeper.errors import InvalidRequest

_DIFF_LIMIT = 2_000  # lines of a text; telling longer ones apart would hold up everyone


class RollbackRequest(msgspec.Struct):
    engine_state_id: str | None = msgspec.field(default=None, name="engineStateId")


_object = msgspec.json.Decoder(dict[str, Any])
_rollback_request = msgspec.json.Decoder(RollbackRequest)


async def list_deployments(parts: Parts, call: Call) -> Answer:
    found = await parts.deployments.list()
    shown = [encode_deployment(parts, call, deployment) for deployment in found]
    return Answer(200, encode_json({"deployments": shown}))


async def create_deployment(parts: Parts, call: Call) -> Answer:
    values = decode_object(_object, call.body)
    name = values.pop("name", None)
    if not isinstance(name, str):
        raise InvalidRequest("name must be a string")
    made = await parts.deployments.create(name, read_blueprint(values), key=call.key())
    return _answer(parts, call, made.thing, 201, made_headers(made))


async def get_deployment(parts: Parts, call: Call) -> Answer:
    return _answer(parts, call, await parts.deployments.get(find_deployment(call.path["name"])))


async def replace_deployment(parts: Parts, call: Call) -> Answer:
    blueprint = read_blueprint(decode_object(_object, call.body))
    return _answer(
        parts, call, await parts.deployments.replace(find_deployment(call.path["name"]), blueprint)
    )


async def delete_deployment(parts: Parts, call: Call) -> Answer:
    await parts.deployments.delete(find_deployment(call.path["name"]))
    return Answer(204, b"")


async def list_states(parts: Parts, call: Call) -> Answer:
    deployment = await parts.deployments.get(find_deployment(call.path["name"]))
    states = [
        encode_state(revision, current=revision.id == deployment.revision.id)
        for revision in await parts.deployments.list_revisions(deployment.name)
    ]
    return Answer(200, encode_json({"states": states}))


async def diff_states(parts: Parts, call: Call) -> Answer:
    before, after = call.query.get("from"), call.query.get("to")
    difference = await parts.deployments.diff(find_deployment(call.path["name"]), before, after)
    body = {
        "from": difference.before.id,
        "to": difference.after.id,
        "changes": {
            field: encode_change(old, new) for field, (old, new) in difference.changes.items()
        },
    }
    return Answer(200, encode_json(body))


async def roll_back(parts: Parts, call: Call) -> Answer:
    state = decode_object(_rollback_request, call.body).engine_state_id
    if not state:
        raise InvalidRequest("engineStateId is missing")
    deployment = await parts.deployments.roll_back(
        find_deployment(call.path["name"]), check_text(state, "engineStateId")
    )
    return _answer(parts, call, deployment)


# --- Writing -----------------------------------------------------------------------------------


def _answer(
    parts: Parts, call: Call, deployment: Deployment, status: int = 200, headers: Headers = ()
) -> Answer:
    shown = encode_deployment(parts, call, deployment)
    return Answer(status, encode_json({"deployment": shown}), headers)


def encode_deployment(parts: Parts, call: Call, deployment: Deployment) -> Mapping[str, Any]:
    return {
        "name": deployment.name,
        "base_url": f"{call.base}/deployments/{deployment.name}",
        "default": deployment.name == parts.deployments.default,
        "source": deployment.source,
        "engineStateId": deployment.revision.id,
        "created_at": encode_time(deployment.created_at),
        "updated_at": encode_time(deployment.updated_at),
        **plain_blueprint(deployment.revision.blueprint),
    }


def encode_state(revision: Revision, *, current: bool) -> Mapping[str, Any]:
    return {
        "engineStateId": revision.id,
        "number": revision.number,
        "created_at": encode_time(revision.created_at),
        "current": current,
        **plain_blueprint(revision.blueprint),
    }


def encode_change(old: Any, new: Any) -> Mapping[str, Any]:
    """A field as it was and as it is; of a text of several lines also which of them differ."""
    change = {"from": old, "to": new}
    if isinstance(old, str) and isinstance(new, str) and "\n" in old + new:
        before, after = old.split("\n"), new.split("\n")
        if max(len(before), len(after)) <= _DIFF_LIMIT:
            change["diff"] = list(unified_diff(before, after, "from", "to", lineterm=""))
    return change


ROUTES = (
    Route("GET", "/api/deployments", list_deployments, "List the deployments", admin=True),
    Route("POST", "/api/deployments", create_deployment, "Create a deployment", admin=True),
    Route("GET", "/api/deployments/{name}", get_deployment, "A deployment", admin=True),
    Route(
        "PUT",
        "/api/deployments/{name}",
        replace_deployment,
        "Publish a deployment anew",
        admin=True,
    ),
    Route(
        "DELETE", "/api/deployments/{name}", delete_deployment, "Delete a deployment", admin=True
    ),
    Route(
        "GET",
        "/api/deployments/{name}/states",
        list_states,
        "A deployment's engine states",
        admin=True,
    ),
    Route(
        "GET",
        "/api/deployments/{name}/diff",
        diff_states,
        "How two engine states differ",
        admin=True,
    ),
    Route(
        "POST",
        "/api/deployments/{name}/rollback",
        roll_back,
        "Publish an engine state again",
        admin=True,
    ),
)
