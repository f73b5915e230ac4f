"""LangChain's ChatOpenAI: a session by its name, or a chain of responses."""

from langchain_openai import ChatOpenAI

# Chat Completions. The session remembers: nothing but what is new has to be sent.
in_session = ChatOpenAI(model="eliza", extra_body={"metadata": {"session_id": "langchain"}})
for words in ("I want to learn to swim", "I have no time"):
    print(in_session.invoke(words).text)

# Responses. LangChain sends what is new, and the id of the reply before it.
chained = ChatOpenAI(model="eliza", use_responses_api=True, use_previous_response_id=True)
messages = [("user", "I want to learn to swim")]
messages += [chained.invoke(messages), ("user", "I have no time")]
print(chained.invoke(messages).text)
