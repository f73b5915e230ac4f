"""OpenAI's Agents SDK: its session is a conversation in your own database."""

from agents import Agent, ModelSettings, OpenAIConversationsSession, Runner, set_tracing_disabled

set_tracing_disabled(True)  # else each run is reported to OpenAI
session = OpenAIConversationsSession()
# The session keeps all that is said; without `store=False` every response would be kept beside it.
agent = Agent("Friend", model="eliza", model_settings=ModelSettings(store=False))
for words in ("I want to learn to swim", "I have no time"):
    print(Runner.run_sync(agent, words, session=session).final_output)
print(session.session_id)
