"""The floor with a second way, `/api/chat?detached`: the turn belongs to the server.

The same turns and streams, but made by a task of their own into a `Reply`, as Turnkeeper's are,
and sent by a follower of it. What that takes more than the floor's first way, in the same process,
is what detachment costs. Not in `floor.py`, so that the floor's start and memory stay its own.
"""

import asyncio
import sys
from collections.abc import Awaitable
from typing import Any

from bench.floor import (
    ENCODER,
    EVENTS,
    READ_ANSWER,
    READ_REQUEST,
    ChatAnswer,
    ChatRequest,
    Floor,
    Scope,
    answer,
    serve,
    whole_body,
)
from turnkeeper.domain import Turn, TurnRef, TurnStatus
from turnkeeper.events import Grew, TextDelta
from turnkeeper.reply import Reply

RUNNING = Turn(TurnRef("", 0), TurnStatus.RUNNING, "bench-model", 0)
COMPLETED = Turn(TurnRef("", 0), TurnStatus.COMPLETED, "bench-model", 0)


class Detached(Floor):
    """The ASGI program."""

    def __init__(self, model_url: str) -> None:
        super().__init__(model_url)
        self.tasks: set[asyncio.Task[None]] = set()

    def __call__(self, scope: Scope, receive: Any, send: Any) -> Awaitable[None]:  # type: ignore[override]
        if scope["query_string"] == b"detached":
            return self.detached(receive, send)
        return super().__call__(scope, receive, send)

    async def detached(self, receive: Any, send: Any) -> None:
        request = READ_REQUEST.decode(await whole_body(receive))
        reply = await self.begin(request)
        if request.stream:
            await relay(reply, send)
            return
        text = await reply.completed()
        await answer(send, ENCODER.encode(ChatAnswer("bench-model", text, "floor")))

    async def begin(self, request: ChatRequest) -> Reply:
        """As the engine begins a turn: the task says when it has begun."""
        loop = asyncio.get_running_loop()
        begun: asyncio.Future[Reply] = loop.create_future()
        task = loop.create_task(self.live(request, begun))
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
        return await begun

    async def live(self, request: ChatRequest, begun: asyncio.Future[Reply]) -> None:
        reply = Reply("floor", RUNNING)
        begun.set_result(reply)
        try:
            async with self.ask_model(request) as response:
                response.raise_for_status()
                if not request.stream:
                    parsed = READ_ANSWER.decode(await response.read())
                    reply.add(TextDelta(parsed.choices[0].message.content))
                    return
                async for chunk in response.content.iter_any():
                    text = chunk.decode("latin-1")  # a reply is text; these are any bytes
                    reply.add(TextDelta(text))
        finally:
            reply.end(COMPLETED)


async def relay(reply: Reply, send: Any) -> None:
    follower = reply.follow()
    await send({"type": "http.response.start", "status": 200, "headers": EVENTS})
    while not follower.finished:
        for event in await follower.next():
            if isinstance(event, Grew):
                chunk = event.text.encode("latin-1")
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
    follower.close()
    await send({"type": "http.response.body", "body": b""})


if __name__ == "__main__":
    serve(Detached(sys.argv[1]), int(sys.argv[2]))
