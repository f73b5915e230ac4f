"""Pydantic AI: a session by its name, or a chain of responses."""

from pydantic_ai import Agent
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel

# Chat Completions. The session remembers: nothing but what is new has to be sent.
named = {"extra_body": {"metadata": {"session_id": "pydantic-ai"}}}
in_session = Agent(OpenAIChatModel("eliza"), model_settings=named)
for words in ("I want to learn to swim", "I have no time"):
    print(in_session.run_sync(words).output)

# Responses. Pydantic AI sends what is new, and the id of the reply before it.
by_id = {"openai_previous_response_id": "auto"}
chained = Agent(OpenAIResponsesModel("eliza"), model_settings=by_id)
first = chained.run_sync("I want to learn to swim")
print(chained.run_sync("I have no time", message_history=first.all_messages()).output)
