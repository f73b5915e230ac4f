"""WebSockets: opened by a request that any gate has let in, and ended in one of few ways.

A handshake that is refused gets the answer that its dialect has for the failure, as any request.
What is said on an open one is the dialect's; here is when it ends, and with what code.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

from turnkeeper.dialects.exchange import End, Upgrade
from turnkeeper.errors import RateLimited, TurnkeeperError
from turnkeeper.web.asgi import Message, Receive, Send
from turnkeeper.web.streaming import Headers

log = logging.getLogger(__name__)

FAREWELL_SECONDS = 2.0  # for what is still to be said when the server stops

Admit = Callable[[], Awaitable[None]]

# RFC 6455, 7.4.1
_NORMAL = (1000, "")
_STOPPING = (1001, "The server is stopping")
_EXPIRED = (1001, "The connection was open for as long as it may")
_NOT_TEXT = (1003, "A message is text")
_NOT_ADMITTED = (1008, "The credentials no longer hold")
_MISTAKE = (1011, "The server made a mistake")


def refusing(send: Send) -> Send:
    """A `send` for the answer to a handshake that is not accepted: whole, as any other."""

    async def send_refusal(message: Message) -> None:
        await send({**message, "type": f"websocket.{message['type']}"})

    return send_refusal


class Sockets:
    """All that are open."""

    def __init__(self, lifetime: float) -> None:
        """`lifetime` is how many seconds one may be open."""
        self._lifetime = lifetime
        self._open: dict[_Socket, asyncio.Event] = {}
        self._stopping = False

    async def open(
        self, receive: Receive, send: Send, upgrade: Upgrade, headers: Headers, admit: Admit
    ) -> None:
        """Accept a handshake, and close the socket when all is said on it."""
        await receive()  # the handshake itself
        await send({"type": "websocket.accept", "headers": headers})
        socket = _Socket(receive, send, admit)
        closed = self._open[socket] = asyncio.Event()
        expiry = asyncio.get_running_loop().call_later(self._lifetime, socket.end, End.EXPIRED)
        if self._stopping:
            socket.end(End.STOPPING)
        try:
            await upgrade.talk(socket)
        except Exception:
            log.exception("A WebSocket failed through a fault of our own")
            socket.closing = _MISTAKE
        finally:
            expiry.cancel()
            await socket.close()
            del self._open[socket]
            closed.set()

    async def hang_up(self) -> None:
        """End every one; returns once they are closed, or the time for farewells is over."""
        self._stopping = True
        for socket in self._open:
            socket.end(End.STOPPING)
        all_closed = asyncio.gather(*[closed.wait() for closed in self._open.values()])
        await asyncio.wait({asyncio.ensure_future(all_closed)}, timeout=FAREWELL_SECONDS)


class _Socket:
    """One that is open: the `Wire` of whoever talks on it.

    Attributes:
        closing: the code and the reason with which it is going to be closed.
    """

    def __init__(self, receive: Receive, send: Send, admit: Admit) -> None:
        self._receive = receive
        self._send = send
        self._admit = admit
        self._ended: asyncio.Future[End] = asyncio.get_running_loop().create_future()
        self._is_lost = False
        self.closing = _NORMAL

    def end(self, end: End) -> None:
        """No more is received; nothing if that is so already."""
        if self._ended.done():
            return
        self._ended.set_result(end)
        if end is End.STOPPING:
            self.closing = _STOPPING
        elif end is End.EXPIRED:
            self.closing = _EXPIRED

    async def receive(self) -> str | End:
        coming = asyncio.ensure_future(self._receive())
        either: set[asyncio.Future[Any]] = {coming, self._ended}
        try:
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            if self._ended.done():
                return self._ended.result()
            return await self._take(coming.result())
        finally:
            coming.cancel()

    async def _take(self, message: Message) -> str | End:
        text: str | None = message.get("text")
        if message["type"] == "websocket.disconnect":
            self._lose()
        elif text is None:
            self.closing = _NOT_TEXT
            self.end(End.GONE)
        else:
            try:
                await self._admit()
            except RateLimited:
                raise
            except TurnkeeperError:
                self.closing = _NOT_ADMITTED
                raise
            return text
        return self._ended.result()

    def _lose(self) -> None:
        self._is_lost = True
        self.end(End.GONE)

    async def send(self, text: bytes) -> None:
        await self._say({"type": "websocket.send", "text": text.decode()})

    async def close(self) -> None:
        code, reason = self.closing
        await self._say({"type": "websocket.close", "code": code, "reason": reason})

    async def _say(self, message: Message) -> None:
        if self._is_lost:
            return
        try:
            await self._send(message)
        except OSError:  # ASGI's word for a client that has gone
            self._lose()
