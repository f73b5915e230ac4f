"""`/v1/responses`: turns as OpenAI's Responses."""

from turnkeeper.dialects.openai.responses import compacting, handlers, socket

ROUTES = (*handlers.ROUTES, *compacting.ROUTES, *socket.ROUTES)
