"""Gradio's load_chat: a page to chat on, whose words are kept in one session."""

import os

import gradio

os.environ["OPENAI_CUSTOM_HEADERS"] = "Session-Id: gradio"  # read by the SDK that Gradio uses
url, key = os.environ["OPENAI_BASE_URL"], os.environ["OPENAI_API_KEY"]
gradio.load_chat(url, "eliza", key, file_types=None).launch()
