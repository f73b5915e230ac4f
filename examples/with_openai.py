"""OpenAI's Python SDK as it is: a conversation in your own database."""

from openai import OpenAI

client = OpenAI()
conversation = client.conversations.create(metadata={"topic": "swimming"})
for words in ("I want to learn to swim", "I have no time"):
    reply = client.responses.create(model="eliza", input=words, conversation=conversation.id)
    print(reply.output_text)
for item in client.conversations.items.list(conversation.id, order="asc"):
    print(item.role, item.content[0].text, sep=": ")
