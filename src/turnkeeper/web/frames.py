"""One WebSocket: uvicorn's protocol for them, with limits on what a client can make it hold.

It begins where `protocol` has read and checked the opening handshake. A message has a largest size,
in however many pieces it comes, and must go on as a request's body must; a client that takes
nothing is not listened to, and one that answers no ping is cut off. Nothing is compressed: a few
bytes could become many. Knows uvicorn and the `websockets` library; does not know what is said.
"""

import asyncio
import logging
from typing import Any

from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.frames import CloseCode, Frame

from turnkeeper.web.asgi import Message, Scope
from turnkeeper.web.protocol import LEAST_RATE

PING_SECONDS = 20.0
PONG_SECONDS = 120.0  # as long as a client may take nothing of any other answer
LINGER_SECONDS = 5.0

# uvicorn logs each handshake with its query, and bytes that are no text: anyone could fill the log.
_SILENT = logging.Logger("turnkeeper.web.frames", logging.CRITICAL + 1)


class Frames(WebSocketsSansIOProtocol):
    """A connection that speaks in frames. Its state is uvicorn's, but for who is held up."""

    def __init__(self, *args: Any, patience: float, **kwargs: Any) -> None:
        """`patience` is how many seconds a message may take, as `Patience.body`."""
        super().__init__(*args, **kwargs)
        self.logger = _SILENT
        self._is_held = False  # nothing is read, since nothing can be written
        self._pieces = bytearray()  # of a message that comes in several
        self._patience = patience
        self._received = 0  # bytes since the timer was set
        self._timer: asyncio.TimerHandle | None = None  # while a message is unfinished

    def open(self, scope: Scope) -> None:
        """Have the application asked whether the client may come in; the handshake is sound."""
        headers = dict(scope["headers"])
        self._wanted = {**scope, "type": "websocket", "scheme": self.scheme, "subprotocols": []}
        key = headers[b"sec-websocket-key"]
        # What `websockets` needs of the head; it has limits of its own on the rest.
        self.data_received(
            b"GET / HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
            b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: %b\r\n\r\n" % key
        )

    def handle_connect(self, event: Any) -> None:
        self.request = event
        self.response = self.conn.accept(event)
        self.handshake_initiated = True
        scope: Any = {**self._wanted, "extensions": {"websocket.http.response": {}}}
        self.scope = scope
        self.queue.put_nowait({"type": "websocket.connect"})
        task = self.loop.create_task(self.run_asgi())
        task.add_done_callback(self.on_task_complete)
        self.tasks.add(task)

    # --- Holding little --------------------------------------------------------------------------

    def pause_writing(self) -> None:
        """Hear no more of a client that takes nothing: answers to its pings would pile up."""
        super().pause_writing()
        self._is_held = True
        self.transport.pause_reading()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._is_held = False
        if not self.read_paused:
            self.transport.resume_reading()

    async def receive(self) -> Any:
        message = await super().receive()
        if self._is_held:
            self.transport.pause_reading()
        return message

    def handle_cont(self, event: Frame) -> None:
        """Put the pieces of a message together as they come: each alone may be a byte, or none."""
        while self.frames:
            self._pieces += self.frames.pop()
        self._pieces += event.data
        if event.fin:
            self.frames, self._pieces = [bytes(self._pieces)], bytearray()
            self.send_receive_event_to_app()

    def send_receive_event_to_app(self) -> None:
        data = bytes(self.frames.pop())
        if self.close_sent:
            return
        message: Message = {"type": "websocket.receive", "bytes": data}
        if self.curr_msg_data_type == "text":
            try:
                message = {"type": "websocket.receive", "text": data.decode()}
            except UnicodeDecodeError:
                self.conn.fail(CloseCode.INVALID_DATA, "A message is text in UTF-8")
                self.handle_parser_exception()
                return
        self.queue.put_nowait(message)  # type: ignore[arg-type]
        if not self.read_paused:
            self.read_paused = True
            self.transport.pause_reading()

    # --- Waiting ---------------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._received += len(data)
        if self.conn.current_size is None and not self.conn.reader.buffer:
            self._stop_timer()
        elif self._timer is None:
            self._set_timer()

    def _set_timer(self) -> None:
        self._received = 0
        self._timer = self.loop.call_later(self._patience, self._look)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self) -> None:
        """Give up a message that does not go on, unless it is we who do not read."""
        is_ours = self.read_paused or self._is_held
        if is_ours or self._received >= LEAST_RATE * self._patience:
            self._set_timer()
        elif not self.close_sent:
            self.conn.fail(CloseCode.POLICY_VIOLATION, "The message took too long to come")
            self.handle_parser_exception()

    # --- Ending ----------------------------------------------------------------------------------

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        super().connection_lost(exc)

    def handle_parser_exception(self) -> None:
        super().handle_parser_exception()
        self._cut_off_soon()

    def keepalive_timeout(self) -> None:
        super().keepalive_timeout()
        self._cut_off_soon()

    def _cut_off_soon(self) -> None:
        """A connection is closed once all is written, which the client can put off for ever."""
        self.loop.call_later(LINGER_SECONDS, self.transport.abort)
