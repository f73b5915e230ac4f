"""`/v1/responses/compact` and `/v1/responses/input_tokens`: of a prompt, without a response.

A compaction is the newest words of a conversation's client and what a model tells of all of it, to
be sent in its place. Nothing of it is kept here.
"""

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from turnkeeper.dialects.exchange import (
    Answer,
    Call,
    Parts,
    Route,
    encode_json,
    while_wanted,
)
from turnkeeper.dialects.openai.content import encode_item
from turnkeeper.dialects.openai.errors import WrongParameter
from turnkeeper.dialects.openai.ids import response_id
from turnkeeper.dialects.openai.items import check_items, resolve_items
from turnkeeper.dialects.openai.parameters import decode_body
from turnkeeper.dialects.openai.responses.request import (
    Conversation,
    CreateRequest,
    ReasoningConfig,
    TextConfig,
    Wanted,
    make_wanted,
)
from turnkeeper.dialects.openai.responses.running import not_there
from turnkeeper.dialects.openai.responses.shape import encode_usage
from turnkeeper.domain import MessageRef
from turnkeeper.errors import SessionNotFound, TurnNotFound


class CompactRequest(msgspec.Struct, forbid_unknown_fields=True):
    """All that clients know to send; what of it is about a cache makes no difference."""

    model: str
    input: str | list[msgspec.Raw] | None = None
    instructions: str | None = None
    previous_response_id: str | None = None
    prompt_cache_key: Annotated[str, Meta(max_length=64)] | None = None
    prompt_cache_options: dict[str, Any] | None = None
    prompt_cache_retention: Literal["in_memory", "in-memory", "24h"] | None = None
    service_tier: Literal["auto", "default", "fast", "flex", "priority"] | None = None


class CountRequest(msgspec.Struct, forbid_unknown_fields=True):
    """Of a response's parameters those that its prompt depends on."""

    input: str | list[msgspec.Raw] | None = None
    model: str | None = None
    instructions: str | None = None
    previous_response_id: str | None = None
    conversation: str | Conversation | None = None
    tools: list[msgspec.Raw] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    text: TextConfig | None = None
    reasoning: ReasoningConfig | None = None
    truncation: Literal["auto", "disabled"] | None = None


_compact = msgspec.json.Decoder(CompactRequest)
_count = msgspec.json.Decoder(CountRequest)


async def compact(parts: Parts, call: Call) -> Answer:
    request = decode_body(_compact, call.body)
    if not request.model:
        raise WrongParameter("model must name one", "model")
    wanted = make_wanted(
        CreateRequest(
            input=request.input,
            model=request.model,
            previous_response_id=request.previous_response_id,
        )
    )
    engine = parts.engine
    items = check_items(parts, await resolve_items(parts, call.caller, wanted.items), "input")
    try:
        telling = engine.compact(
            call.caller,
            items,
            model=wanted.model,
            wish=request.instructions or "",
            before=wanted.previous,
        )
        compacted = await while_wanted(call, telling)
    except (SessionNotFound, TurnNotFound) as error:
        raise not_there(wanted, error) from None
    turn = await engine.unasked_turn(call.caller, model=wanted.model)
    ref = turn.ref
    body = {
        "id": response_id(ref),
        "object": "response.compaction",
        "created_at": turn.created_at // 1000,
        "output": [
            encode_item(MessageRef(ref.session_id, ref.number, place), item, "completed")
            for place, item in enumerate(compacted.items)
        ],
        "usage": encode_usage(compacted.usage),
    }
    return Answer(200, encode_json(body))


async def count_input_tokens(parts: Parts, call: Call) -> Answer:
    request = decode_body(_count, call.body)
    wanted = make_wanted(CreateRequest(**msgspec.structs.asdict(request)))
    tokens = await _count_tokens(parts, call.caller, wanted)
    body = {"object": "response.input_tokens", "input_tokens": tokens}
    return Answer(200, encode_json(body))


async def _count_tokens(parts: Parts, caller: str, wanted: Wanted) -> int:
    engine = parts.engine
    items = check_items(parts, await resolve_items(parts, caller, wanted.items), "input")
    try:
        return await engine.count_tokens(
            caller,
            items,
            model=wanted.model,
            options=wanted.options,
            before=wanted.previous or wanted.session,
        )
    except (SessionNotFound, TurnNotFound) as error:
        raise not_there(wanted, error) from None


ROUTES = (
    Route("POST", "/v1/responses/compact", compact, "Have a conversation told in short"),
    Route("POST", "/v1/responses/input_tokens", count_input_tokens, "Count a prompt's tokens"),
)
