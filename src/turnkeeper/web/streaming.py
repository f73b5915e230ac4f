"""Sending: whole answers, and event streams that last as long as a reply is made."""

import asyncio
import logging
from collections.abc import Callable, Sequence
from contextlib import aclosing

from turnkeeper.dialects.exchange import Answer, EventStream, LongAnswer
from turnkeeper.errors import TurnkeeperError
from turnkeeper.web.asgi import Message, Receive, Send

log = logging.getLogger(__name__)

Headers = list[tuple[bytes, bytes]]

KEEP_ALIVE_SECONDS = 15.0

STREAM_HEADERS = (
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache, no-transform"),
    (b"x-accel-buffering", b"no"),  # else a proxy may hand on the whole reply at once
)


async def send_answer(send: Send, answer: Answer, extra: Headers, *, body: bool = True) -> None:
    """Send `answer` with `extra` headers; without its body to a HEAD request."""
    headers = [*answer.headers, *extra]
    if answer.status not in (204, 304):
        headers.append((b"content-type", answer.content_type))
        headers.append((b"content-length", b"%d" % len(answer.body)))
    await send({"type": "http.response.start", "status": answer.status, "headers": headers})
    await _send_piece(send, answer.body if body else b"", more=False)


async def send_head(send: Send, outcome: LongAnswer | EventStream, extra: Headers) -> None:
    """Answer a HEAD request for what is sent piece by piece: without a length, as to GET."""
    if isinstance(outcome, EventStream):
        outcome.follow().close()
    await send(_start_of(outcome, extra))
    await _send_piece(send, b"", more=False)


async def send_long(send: Send, answer: LongAnswer, extra: Headers) -> None:
    """Send an answer's pieces as they are made, and as fast as the client takes them."""
    await send(_start_of(answer, extra))
    try:
        async with aclosing(answer.pieces) as pieces:
            async for piece in pieces:
                await _send_piece(send, piece, more=True)
    except TurnkeeperError as error:  # what was to be read is gone, or cannot be read just now
        log.info("An answer was broken off: %s", error.sentence)
        return
    await _send_piece(send, b"", more=False)


async def send_stream(send: Send, receive: Receive, stream: EventStream, extra: Headers) -> None:
    """Send a reply's events until it ends or the client goes away, which stops nothing else."""
    follower = stream.follow()
    gone = asyncio.ensure_future(disconnected(receive))
    gone.add_done_callback(lambda _: follower.nudge())
    silence = _Silence(follower.nudge)
    try:
        await send(_start_of(stream, extra))
        while not gone.done():
            events = await follower.next()
            data = _join([stream.encode(event) for event in events])
            if not data and silence.is_long():
                data = stream.keep_alive
            if data or follower.finished:
                silence.broken()
                await _send_piece(send, data, more=not follower.finished)
            if follower.finished:
                return
    finally:
        silence.close()
        gone.cancel()
        follower.close()


def _start_of(outcome: LongAnswer | EventStream, extra: Headers) -> Message:
    if isinstance(outcome, LongAnswer):
        headers = [*outcome.headers, *extra, (b"content-type", b"application/json")]
    else:
        headers = [*STREAM_HEADERS, *outcome.headers, *extra]
    return {"type": "http.response.start", "status": 200, "headers": headers}


async def _send_piece(send: Send, data: bytes, *, more: bool) -> None:
    await send({"type": "http.response.body", "body": data, "more_body": more})


def _join(pieces: Sequence[bytes]) -> bytes:
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


async def disconnected(receive: Receive) -> None:
    """Returns once the client has gone away."""
    while (await receive())["type"] != "http.disconnect":
        pass


class _Silence:
    """Calls `tell` whenever nothing was sent for a while: one timer a stream, not one an event."""

    def __init__(self, tell: Callable[[], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._tell = tell
        self._since = self._loop.time()
        self._timer = self._loop.call_later(KEEP_ALIVE_SECONDS, self._look)

    def broken(self) -> None:
        self._since = self._loop.time()

    def is_long(self) -> bool:
        return self._loop.time() - self._since >= KEEP_ALIVE_SECONDS

    def _look(self) -> None:
        due = self._since + KEEP_ALIVE_SECONDS
        if self.is_long():
            self._tell()
            due = self._loop.time() + KEEP_ALIVE_SECONDS
        self._timer = self._loop.call_at(due, self._look)

    def close(self) -> None:
        self._timer.cancel()
