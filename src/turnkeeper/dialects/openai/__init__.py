"""OpenAI's own wire formats: models, chat completions, responses, conversations."""

from turnkeeper.dialects.exchange import Dialect
from turnkeeper.dialects.openai import completions, conversations, models, responses
from turnkeeper.dialects.openai.errors import encode_error

DIALECT = Dialect(
    routes=(*models.ROUTES, *completions.ROUTES, *responses.ROUTES, *conversations.ROUTES),
    encode_error=encode_error,
    prefixes=("/v1",),
)
