"""The program the tutorial leads to (its module 3): Flask, a dict of conversations, the groq SDK.

Written as its pseudo-code says, with its streaming exercise done. Run by gunicorn with one worker
process, since the conversations are in its memory, and 32 threads.
"""

import json
import os
import uuid
from collections.abc import Iterator
from typing import Any

import httpx
from flask import Flask, Response, jsonify, request
from groq import DefaultHttpxClient, Groq

COMPLETIONS = httpx.URL(os.environ["MODEL_URL"] + "/chat/completions")
MODEL = "bench-model"
SYSTEM_MESSAGE = {"role": "system", "content": "You are a helpful AI assistant."}


def to_model_server(call: httpx.Request) -> None:
    """The SDK knows only Groq's own path, /openai/v1; this costs it nothing."""
    call.url = COMPLETIONS


app = Flask(__name__)
client = Groq(
    api_key="x",
    base_url=os.environ["MODEL_URL"],
    http_client=DefaultHttpxClient(event_hooks={"request": [to_model_server]}),
)
conversations: dict[str, list[Any]] = {}


@app.after_request
def allow_any_origin(response: Response) -> Response:
    response.headers["Access-Control-Allow-Origin"] = "*"
    return response


@app.route("/api/chat", methods=["POST"])
def chat() -> Any:
    data = request.json
    if not data:
        return jsonify({"error": "No data provided"}), 400
    message = data.get("message", "")
    if not message:
        return jsonify({"error": "No message provided"}), 400
    model = data.get("model", MODEL)
    session_id = data.get("session_id") or str(uuid.uuid4())
    if session_id not in conversations:
        conversations[session_id] = [SYSTEM_MESSAGE]
    history = conversations[session_id]
    history.append({"role": "user", "content": message})
    if data.get("stream"):
        return Response(stream(model, session_id, history), mimetype="text/event-stream")
    try:
        completion = client.chat.completions.create(model=model, messages=history)
    except Exception as error:
        return jsonify({"error": f"API Error: {error}"}), 500
    text = completion.choices[0].message.content
    history.append({"role": "assistant", "content": text})
    return jsonify({"response": text, "session_id": session_id, "model": model})


def stream(model: str, session_id: str, history: list[Any]) -> Iterator[str]:
    text = ""
    for chunk in client.chat.completions.create(model=model, messages=history, stream=True):
        delta = chunk.choices[0].delta.content if chunk.choices else None
        if delta:
            text += delta
            yield f"data: {json.dumps({'text': delta})}\n\n"
    history.append({"role": "assistant", "content": text})
    done = {"response": text, "session_id": session_id, "model": model}
    yield f"event: done\ndata: {json.dumps(done)}\n\n"


@app.route("/api/clear", methods=["POST"])
def clear() -> Any:
    session_id = (request.json or {}).get("session_id", "")
    if session_id in conversations:
        conversations[session_id] = [SYSTEM_MESSAGE]
    return jsonify({"status": "success", "message": "Conversation cleared"})


@app.route("/api/models", methods=["GET"])
def models() -> Any:
    return jsonify([{"id": MODEL, "name": MODEL}])


@app.route("/api/sessions", methods=["GET"])
def sessions() -> Any:
    return jsonify(
        [
            {"id": session_id, "message_count": len(history) - 1}
            for session_id, history in conversations.items()
        ]
    )
