"""What each answer must be, by the types of OpenAI's own SDK, strictly.

Only what is known to be missing or wrong in those is left out, each with its reason.
"""

import re
from typing import Any

import httpx
import msgspec
from openai.types import Model
from openai.types.chat import (
    ChatCompletion,
    ChatCompletionChunk,
    ChatCompletionDeleted,
    ChatCompletionStoreMessage,
)
from openai.types.conversations import (
    Conversation,
    ConversationDeletedResource,
    ConversationItem,
)
from openai.types.responses import (
    CompactedResponse,
    InputTokenCountResponse,
    Response,
    ResponseItem,
    ResponseStreamEvent,
)
from pydantic import BaseModel, TypeAdapter


class Deleted(BaseModel):
    id: str
    object: str
    deleted: bool


# From method and path to what is answered, and whether it is a list of that.
_ANSWERS: tuple[tuple[str, Any, bool], ...] = (
    (r"GET /v1/models", Model, True),
    (r"GET /v1/models/.+", Model, False),
    (r"POST /v1/chat/completions", ChatCompletion, False),
    (r"GET /v1/chat/completions", ChatCompletion, True),
    (r"(GET|POST) /v1/chat/completions/[^/]+", ChatCompletion, False),
    (r"DELETE /v1/chat/completions/[^/]+", ChatCompletionDeleted, False),
    (r"GET /v1/chat/completions/[^/]+/messages", ChatCompletionStoreMessage, True),
    (r"POST /v1/responses", Response, False),
    (r"GET /v1/responses/[^/]+", Response, False),
    (r"DELETE /v1/responses/[^/]+", Deleted, False),  # which the SDK does not look at
    (r"POST /v1/responses/[^/]+/cancel", Response, False),
    (r"GET /v1/responses/[^/]+/input_items", ResponseItem, True),
    (r"POST /v1/responses/compact", CompactedResponse, False),
    (r"POST /v1/responses/input_tokens", InputTokenCountResponse, False),
    (r"GET /v1/conversations", Conversation, True),
    (r"POST /v1/conversations", Conversation, False),
    (r"(GET|POST) /v1/conversations/[^/]+", Conversation, False),
    (r"DELETE /v1/conversations/[^/]+", ConversationDeletedResource, False),
    (r"(GET|POST) /v1/conversations/[^/]+/items", ConversationItem, True),
    (r"GET /v1/conversations/[^/]+/items/[^/]+", ConversationItem, False),
    (r"DELETE /v1/conversations/[^/]+/items/[^/]+", Conversation, False),
)


class Error(msgspec.Struct, forbid_unknown_fields=True):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorAnswer(msgspec.Struct, forbid_unknown_fields=True):
    error: Error


class Page(msgspec.Struct, forbid_unknown_fields=True):
    object: str
    data: list[dict[str, Any]]
    first_id: str | None = None
    last_id: str | None = None
    has_more: bool | None = None


def check_answer(response: httpx.Response) -> None:
    """Raises what is wrong with it."""
    if response.status_code >= 400:
        assert msgspec.json.decode(response.content, type=ErrorAnswer).error.message
        return
    model, is_list = _type_of(f"{response.request.method} {response.request.url.path}")
    if not is_list:
        _check_one(model, msgspec.json.decode(response.content))
        return
    page = msgspec.json.decode(response.content, type=Page)
    assert page.object == "list"
    if model is not Model:  # those come all at once
        ids = [one["id"] for one in page.data]
        assert (page.first_id, page.last_id) == ((ids[0], ids[-1]) if ids else (None, None))
        assert page.has_more is not None
    for one in page.data:
        _check_one(model, one)


def _type_of(asked: str) -> tuple[Any, bool]:
    for pattern, model, is_list in _ANSWERS:
        if re.fullmatch(pattern, asked):
            return model, is_list
    raise AssertionError(f"say in types.py what {asked} answers")


def _check_one(model: Any, one: dict[str, Any]) -> None:
    if model is ChatCompletionStoreMessage:
        # It is said to be the assistant's; but what is listed is what the assistant answers.
        one = {**one, "role": "assistant"}
    if model is CompactedResponse:
        # That these are in its output is said of it, but its type has none.
        words = [item for item in one["output"] if item.get("role") in ("user", "developer")]
        TypeAdapter(list[ResponseItem]).validate_json(msgspec.json.encode(words), strict=True)
        one = {**one, "output": [item for item in one["output"] if item not in words]}
    TypeAdapter(model).validate_json(msgspec.json.encode(one), strict=True)


def check_chunk(chunk: ChatCompletionChunk) -> None:
    ChatCompletionChunk.model_validate(chunk.to_dict(), strict=True)


_EVENT: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)


def check_event(event: BaseModel) -> None:
    """Of a response's stream."""
    _EVENT.validate_json(event.to_json(), strict=True)  # type: ignore[attr-defined]
