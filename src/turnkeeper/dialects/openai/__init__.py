"""OpenAI's own wire formats: models, chat completions, responses, conversations."""
