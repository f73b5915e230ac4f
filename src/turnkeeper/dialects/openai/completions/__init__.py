"""Chat completions: exchanges of a whole conversation, kept in a session or not at all."""

from turnkeeper.dialects.exchange import Route
from turnkeeper.dialects.openai.completions.create import create_completion
from turnkeeper.dialects.openai.completions.stored import (
    delete_completion,
    get_completion,
    list_completions,
    list_messages,
    update_completion,
)

_ALL = "/v1/chat/completions"
_ONE = f"{_ALL}/{{id}}"

ROUTES = (
    Route("POST", _ALL, create_completion, "Have a conversation answered, as OpenAI's clients do"),
    Route("GET", _ALL, list_completions, "List your stored chat completions"),
    Route("GET", _ONE, get_completion, "Read a stored chat completion"),
    Route("POST", _ONE, update_completion, "Change a stored chat completion's metadata"),
    Route("DELETE", _ONE, delete_completion, "Delete a stored chat completion"),
    Route("GET", f"{_ONE}/messages", list_messages, "Read what a chat completion answers"),
)
