"""The floor: what a turn costs when nothing is kept. No session, no storage, no framework.

A bare ASGI program on uvicorn with an aiohttp call to the model. A turn is one parse of the
request and one of the model's answer; a stream is passed through unread, each read one send.
"""

import sys
from contextlib import AbstractAsyncContextManager
from typing import Any

import aiohttp
import msgspec
import uvicorn


class ChatRequest(msgspec.Struct):
    message: str
    stream: bool = False


class Message(msgspec.Struct):
    role: str
    content: str


class ModelRequest(msgspec.Struct):
    model: str
    messages: list[Message]
    stream: bool


class Choice(msgspec.Struct):
    message: Message


class ModelAnswer(msgspec.Struct):
    model: str
    choices: list[Choice]


class ChatAnswer(msgspec.Struct):
    model: str
    response: str
    session_id: str


Scope = dict[str, Any]
READ_REQUEST = msgspec.json.Decoder(ChatRequest)
READ_ANSWER = msgspec.json.Decoder(ModelAnswer)
ENCODER = msgspec.json.Encoder()
MODEL_HEADERS = {"Content-Type": "application/json", "Authorization": "Bearer x"}
JSON = [(b"content-type", b"application/json")]
EVENTS = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache")]


class Floor:
    """The ASGI program; `model_url` is the model server's base, ending in /v1."""

    def __init__(self, model_url: str) -> None:
        self.url = f"{model_url}/chat/completions"
        self.client: aiohttp.ClientSession | None = None

    async def __call__(self, scope: Scope, receive: Any, send: Any) -> None:
        if scope["path"] != "/api/chat":
            await answer(send, b"{}")
            return
        request = READ_REQUEST.decode(await whole_body(receive))
        async with self.ask_model(request) as reply:
            reply.raise_for_status()
            if request.stream:
                await send({"type": "http.response.start", "status": 200, "headers": EVENTS})
                async for chunk in reply.content.iter_any():
                    await send({"type": "http.response.body", "body": chunk, "more_body": True})
                await send({"type": "http.response.body", "body": b""})
                return
            parsed = READ_ANSWER.decode(await reply.read())
        text = parsed.choices[0].message.content
        await answer(send, ENCODER.encode(ChatAnswer(parsed.model, text, "floor")))

    def ask_model(
        self, request: ChatRequest
    ) -> AbstractAsyncContextManager[aiohttp.ClientResponse]:
        if self.client is None:  # made here, on the running loop: there is no lifespan
            self.client = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0), headers=MODEL_HEADERS
            )
        upstream = ENCODER.encode(
            ModelRequest("bench-model", [Message("user", request.message)], request.stream)
        )
        return self.client.post(self.url, data=upstream)


async def whole_body(receive: Any) -> bytes:
    body = b""
    more = True
    while more:
        part = await receive()
        body += part.get("body", b"")
        more = part.get("more_body", False)
    return body


async def answer(send: Any, body: bytes) -> None:
    headers = [*JSON, (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def serve(program: Any, port: int) -> None:
    config = uvicorn.Config(
        program,
        port=port,
        loop="uvloop",
        http="httptools",
        interface="asgi3",
        lifespan="off",
        access_log=False,
        log_level="warning",
    )
    uvicorn.Server(config).run()


def main(model_url: str, port: str) -> None:
    serve(Floor(model_url), int(port))


if __name__ == "__main__":
    main(*sys.argv[1:])
