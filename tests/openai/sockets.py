"""A client of WebSocket mode that sees every message as it is."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from websockets.asyncio.client import ClientConnection, connect

from rig.server import Server
from tests.openai.conftest import MODEL
from tests.openai.schemas import SOCKET_ERROR, TERMINAL, check, check_event

Event = dict[str, Any]


class Socket:
    """A connection. Every message that comes must be bare JSON, and what its type says it is."""

    def __init__(self, connection: ClientConnection) -> None:
        self.connection = connection

    async def create(self, **request: Any) -> None:
        """Ask for a response, of the usual model unless it says otherwise."""
        await self.send({"type": "response.create", "model": MODEL, **request})

    async def send(self, message: Any) -> None:
        await self.connection.send(message if isinstance(message, str) else json.dumps(message))

    async def receive(self) -> Event:
        message = await self.connection.recv()
        assert isinstance(message, str)
        event: Event = json.loads(message)
        if event["type"] == "error":
            check(event, SOCKET_ERROR)
        else:
            check_event(event)
        return event

    async def rest(self) -> list[Event]:
        """All that comes up to the end of one response, or an error."""
        events = [await self.receive()]
        while events[-1]["type"] not in (*TERMINAL, "error"):
            events.append(await self.receive())
        return events

    async def ask(self, **request: Any) -> list[Event]:
        await self.create(**request)
        return await self.rest()

    async def respond(self, **request: Any) -> Event:
        """The response that is asked for, complete; its events are numbered from 0."""
        events = await self.ask(**request)
        assert [event["sequence_number"] for event in events] == list(range(len(events)))
        assert events[-1]["type"] == "response.completed", events[-1]
        response: Event = events[-1]["response"]
        return response

    async def fail(self, **request: Any) -> Event:
        """The error that comes of it, alone."""
        [event] = await self.ask(**request)
        assert event["type"] == "error", event
        error: Event = event["error"]
        assert (event["code"], event["message"], event["param"]) == (
            error["code"],
            error["message"],
            error["param"],
        )
        return error


@asynccontextmanager
async def open_socket(server: Server, **options: Any) -> AsyncIterator[Socket]:
    url = server.url.replace("http", "ws", 1) + "/v1/responses"
    async with connect(url, max_size=None, **options) as connection:
        yield Socket(connection)


def text_of(response: Event) -> str:
    """All that a response says."""
    parts = [part for item in response["output"] for part in item.get("content", ())]
    return "".join(part["text"] for part in parts if part["type"] == "output_text")
