"""What a chat completion looks like, made just now or kept. Pure."""

from collections.abc import Mapping, Sequence
from typing import Any

from turnkeeper.dialects.openai.completions.messages import encode_reply
from turnkeeper.dialects.openai.ids import completion_id
from turnkeeper.domain import Item, ToolCall, Turn

SERVICE_TIER = "default"  # how quickly a provider serves us is its own business


def encode_completion(turn: Turn, text: str, items: Sequence[Item]) -> dict[str, Any]:
    """A completed turn; `items` is what its reply consists of, where that is more than `text`."""
    choice = {
        "index": 0,
        "message": encode_reply(text, items),
        "logprobs": None,
        "finish_reason": finish_of(turn, items),
    }
    return {
        "id": completion_id(turn.ref),
        "object": "chat.completion",
        "created": turn.created_at // 1000,
        "model": turn.model,
        "choices": [choice],
        "usage": encode_usage(turn),
        "service_tier": SERVICE_TIER,
        "system_fingerprint": None,
    }


def finish_of(turn: Turn, items: Sequence[Item]) -> str:
    """Why the model stopped, also where it did not say."""
    if turn.finish is not None:
        return turn.finish
    return "tool_calls" if any(isinstance(item, ToolCall) for item in items) else "stop"


def encode_usage(turn: Turn) -> Mapping[str, Any] | None:
    """The tokens of a turn; None if nobody counted them."""
    usage = turn.usage
    if usage is None:
        return None
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.total_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens, "audio_tokens": 0},
        "completion_tokens_details": {
            "reasoning_tokens": usage.reasoning_tokens,
            "audio_tokens": 0,
            "accepted_prediction_tokens": 0,
            "rejected_prediction_tokens": 0,
        },
    }
