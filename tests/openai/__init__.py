"""The dialect `openai`, seen by OpenAI's own clients."""
