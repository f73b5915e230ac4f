"""`/v1/responses`: turns as OpenAI's Responses."""

from turnkeeper.dialects.openai.responses.handlers import ROUTES

__all__ = ["ROUTES"]
