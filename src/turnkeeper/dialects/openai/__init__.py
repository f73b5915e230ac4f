"""OpenAI's own wire formats: models, chat completions, responses, conversations."""

from turnkeeper.dialects.exchange import Dialect
from turnkeeper.dialects.openai import completions, models
from turnkeeper.dialects.openai.errors import encode_error

DIALECT = Dialect(
    routes=(*models.ROUTES, *completions.ROUTES),
    encode_error=encode_error,
    prefixes=("/v1",),
)
