"""A turn as a Response: the object, and what is kept with a turn to tell of it again. Pure.

Half of a Response tells of the request. That half is the same in every event of a stream and each
time it is asked for, so it is encoded once, and put in as bytes.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, assert_never

import msgspec

from turnkeeper.dialects.exchange import encode_json
from turnkeeper.dialects.openai.content import Status, encode_item, item_status
from turnkeeper.dialects.openai.ids import conversation_id, response_id
from turnkeeper.domain import (
    Failure,
    Item,
    KeptItem,
    Message,
    MessageRef,
    Turn,
    TurnRef,
    TurnStatus,
    Usage,
)
from turnkeeper.events import Ended
from turnkeeper.reply import Reply

# --- What is kept with a turn --------------------------------------------------------------------


class Kept(msgspec.Struct, frozen=True, tag_field="object", tag="response", omit_defaults=True):
    """What is kept with a turn that was asked for as a response.

    Attributes:
        asked: how many items it answers; its output stands behind them.
        in_conversation: it was asked for in a conversation, whose items outlive it.
        queued: it waited for others, and whoever followed it was told so.
        echo: what the response tells of the request, where that differs from the ordinary.
    """

    asked: int
    in_conversation: bool = False
    queued: bool = False
    echo: Mapping[str, Any] = {}


_kept = msgspec.json.Decoder(Kept)


def encode_kept(kept: Kept) -> str:
    return encode_json(kept).decode()


def decode_kept(data: str | None) -> Kept | None:
    """None for a turn that no one has asked for as a response."""
    if data is None:
        return None
    try:
        return _kept.decode(data)
    except (msgspec.ValidationError, RecursionError):  # another part of this dialect has kept it
        return None


# --- What a response tells of its request --------------------------------------------------------

ORDINARY: Mapping[str, Any] = {
    "background": False,
    "conversation": None,
    "instructions": None,
    "max_output_tokens": None,
    "max_tool_calls": None,
    "parallel_tool_calls": True,
    "previous_response_id": None,
    "prompt": None,
    "prompt_cache_key": None,
    "prompt_cache_options": None,
    "prompt_cache_retention": None,
    "reasoning": {"effort": None, "summary": None},
    "safety_identifier": None,
    "service_tier": "default",
    "store": True,
    "temperature": 1.0,
    "text": {"format": {"type": "text"}, "verbosity": "medium"},
    "tool_choice": "auto",
    "tools": [],
    "top_logprobs": 0,
    "top_p": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "truncation": "auto",
    "user": None,
    "metadata": {},
}
_ORDINARY = encode_json(ORDINARY)[1:-1]


def encode_echo(echo: Mapping[str, Any], session_id: str | None = None) -> bytes:
    """The fields that tell of the request, between braces; `session_id` is its conversation."""
    if session_id is not None:
        echo = {**echo, "conversation": {"id": conversation_id(session_id)}}
    return encode_json({**ORDINARY, **echo})[1:-1] if echo else _ORDINARY


# --- The object ----------------------------------------------------------------------------------

ResponseStatus = Literal["queued", "in_progress", "completed", "failed", "incomplete", "cancelled"]


def response_status(turn: Turn) -> ResponseStatus:
    """How a turn stands, as a response; one that a crash has interrupted is a failed one."""
    match turn.status:
        case TurnStatus.QUEUED:
            return "queued"
        case TurnStatus.RUNNING:
            return "in_progress"
        case TurnStatus.COMPLETED:
            return "incomplete" if _incomplete_reason(turn) else "completed"
        case TurnStatus.CANCELLED:
            return "cancelled"
        case TurnStatus.FAILED | TurnStatus.INTERRUPTED:
            return "failed"
        case _:
            assert_never(turn.status)


def _incomplete_reason(turn: Turn) -> str | None:
    match turn.finish:
        case "length":
            return "max_output_tokens"
        case "content_filter":
            return "content_filter"
        case _:
            return None


def encode_response(turn: Turn, output: Sequence[Mapping[str, Any]], echo: bytes) -> bytes:
    """The Response that a turn is, with the `output` it has so far."""
    status = response_status(turn)
    finished = turn.finished_at if status in ("completed", "incomplete") else None
    reason = _incomplete_reason(turn) if status == "incomplete" else None
    head = encode_json(
        {
            "id": response_id(turn.ref),
            "object": "response",
            "created_at": turn.created_at // 1000,
            "completed_at": None if finished is None else finished // 1000,
            "status": status,
            "error": _encode_error(turn.failure) if status == "failed" else None,
            "incomplete_details": None if reason is None else {"reason": reason},
            "model": turn.model,
            "output": output,
            "usage": None if turn.usage is None else encode_usage(turn.usage),
        }
    )
    return b"%b,%b}" % (head[:-1], echo)


_INTERRUPTED = Failure("turn_interrupted", "The server stopped before the reply was complete")
# The words that OpenAI's clients know for it.
_ERROR_CODES = {
    "provider_rate_limited": "rate_limit_exceeded",
    "context_length_exceeded": "invalid_prompt",
}


def _encode_error(failure: Failure | None) -> Mapping[str, Any]:
    failure = failure or _INTERRUPTED
    code = _ERROR_CODES.get(failure.code, "server_error")
    return {"code": code, "message": failure.sentence}


def encode_usage(usage: Usage) -> Mapping[str, Any]:
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {
            "cached_tokens": usage.cached_tokens,
            "cache_write_tokens": 0,
        },
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
        "total_tokens": usage.total_tokens,
    }


# --- Its output ----------------------------------------------------------------------------------


def output_status(turn: Turn) -> Status:
    """How the items of its output stand."""
    if response_status(turn) == "incomplete":
        return "incomplete"
    return item_status(turn.status)


def encode_output(reply: Reply) -> list[dict[str, Any]]:
    """What a reply consists of, so far as it has come."""
    return encode_items(reply.turn, _items_of(reply), reply.first_position)


def _items_of(reply: Reply) -> Sequence[Item]:
    ended = reply.ended
    if ended is not None:
        return items_of(ended)
    return reply.items(with_calls=False) or _message_of(reply.text)


def items_of(ended: Ended) -> Sequence[Item]:
    """All that a reply consists of that is over."""
    return ended.items or _message_of(ended.text)


def _message_of(text: str) -> Sequence[Item]:
    return (Message("assistant", text),) if text else ()


def encode_items(turn: Turn, items: Sequence[Item], first: int) -> list[dict[str, Any]]:
    """Items of a turn's output, the first of which stands at that position."""
    ref, status = turn.ref, output_status(turn)
    return [
        encode_item(MessageRef(ref.session_id, ref.number, place), item, status)
        for place, item in enumerate(items, first)
    ]


def encode_kept_items(ref: TurnRef, items: Sequence[KeptItem]) -> list[dict[str, Any]]:
    """Items of a turn that are not of its own making, each at its place."""
    return [
        encode_item(MessageRef(ref.session_id, kept.turn, kept.position), kept.item, "completed")
        for kept in items
    ]
