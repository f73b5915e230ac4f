"""One connection: uvicorn's protocol, with limits on what may come in before an application hears.

uvicorn on httptools reads heads of any size for as long as they take, and answers what is no HTTP
with a line of text. Here a head has a largest size, a head and a body have a time in which they
must come, and every refusal is JSON like any other error. A proper handshake hands the connection
over to `frames`. Knows HTTP/1.1 and uvicorn; does not know what is served.

A request that comes whole in one read, as nearly all do, costs three comparisons more. Only what
is unfinished after a read is watched, by one timer for the connection.
"""

import asyncio
import binascii
import logging
import secrets
from collections import deque
from typing import Any
from urllib.parse import unquote

import httptools
import msgspec
from uvicorn.protocols.http.httptools_impl import (
    STATUS_LINE,
    HttpToolsProtocol,
    RequestResponseCycle,
)

from turnkeeper.dialects.exchange import encode_error
from turnkeeper.errors import (
    HeadersTooLarge,
    InvalidRequest,
    RequestTimeout,
    TurnkeeperError,
    UrlTooLong,
)
from turnkeeper.web.request import COMMON_HEADERS

log = logging.getLogger(__name__)

HEAD_LIMIT = 32_768  # bytes
HEADERS_LIMIT = 100
URL_LIMIT = 8192  # bytes
PIPELINE_LIMIT = 16  # requests that wait for the answer to one before them
LEAST_RATE = 500  # bytes of a body in a second, as Apache's mod_reqtimeout has it
LINGER_SECONDS = 1.0

# Where headers go that come after the body: a proxy in front has not looked at those.
_NOWHERE: Any = deque(maxlen=0)


class Patience(msgspec.Struct, frozen=True):
    """How long a client may take, in seconds.

    Attributes:
        header: from the first byte of a request, or the connection's opening, to the end of the
            head.
        body: for every `LEAST_RATE * body` bytes of a body, or what is left of it.
    """

    header: float
    body: float


class Protocol(HttpToolsProtocol):
    """A connection. Its state is uvicorn's; here is only what it waits for, and since when."""

    def __init__(self, *args: Any, patience: Patience, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.scope: Any = {}  # no head has begun
        self._patience = patience
        self._interval = min(patience.header, patience.body)
        self._quota = LEAST_RATE * patience.body
        self._timer: asyncio.TimerHandle | None = None
        self._awaited: object = None  # the scope whose head, or the cycle whose body, is unfinished
        self._since = 0.0  # when the stretch of time began in which something must come
        self._received = 0  # bytes in that stretch
        self._framing = 0  # bytes that were read whole since the last that were part of a body
        self._overtaken: list[RequestResponseCycle] = []
        self._is_rereading = False
        self._deaf = False  # the connection is over: what still comes is read and forgotten
        self._is_handshake = False  # the newest head opens a WebSocket

    # --- What comes from the socket --------------------------------------------------------------

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._await_rest(0)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._awaited = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for cycle in self._overtaken:  # uvicorn only tells the newest
            cycle.disconnected = cycle.disconnected or not cycle.response_complete
            cycle.message_event.set()

    def data_received(self, data: bytes) -> None:
        if len(data) > HEAD_LIMIT:
            for start in range(0, len(data), HEAD_LIMIT):
                self.data_received(data[start : start + HEAD_LIMIT])
            return
        self._unset_keepalive_if_required()
        if self._deaf:
            return
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            rest = data[upgrade.args[0] :]
            if self._is_handshake:
                self._hand_over(rest)
            else:  # to nothing we know: it goes on as HTTP/1.1
                self._read_on_from_upgrade()
                self.data_received(rest)
            return
        except httptools.HttpParserError as error:
            self._refuse(_reason(error))
            return
        cycle = self.cycle
        is_whole = cycle is not None and cycle.scope is self.scope and not cycle.more_body
        if is_whole and not cycle.response_complete:
            self._awaited = None
        else:
            self._await_rest(len(data))

    # --- What the parser makes of it -------------------------------------------------------------

    def on_headers_complete(self) -> None:
        """Refuse a head that is too large, and requests that nobody waits for the answers to."""
        if self._is_rereading:
            return
        if len(self.headers) > HEADERS_LIMIT:
            raise HeadersTooLarge(f"A request has at most {HEADERS_LIMIT} headers")
        if len(self.url) > URL_LIMIT:
            raise _url_too_long()
        if self._awaited is self.scope and _size(self.headers) > HEAD_LIMIT:  # not in one read
            raise _head_too_large()
        if len(self.pipeline) >= PIPELINE_LIMIT:
            raise InvalidRequest("Too many requests were sent before the first was answered")
        before = self.cycle
        self._is_handshake = self.parser.should_upgrade() and self._opens_socket()
        super().on_headers_complete()
        self.headers = _NOWHERE
        if self.pipeline:
            # uvicorn would read no more, and so not hear that the client has gone.
            self.flow.resume_reading()
            waited_for = (cycle for cycle in self._overtaken if not cycle.response_complete)
            self._overtaken = [*waited_for, before]

    def _opens_socket(self) -> bool:
        """Whether the head is a handshake that we take: one by the book, with nothing before it."""
        is_free = self.cycle is None or self.cycle.response_complete
        return (
            is_free
            and self.ws_protocol_class is not None
            and self.parser.get_method() == b"GET"
            and self.parser.get_http_version() == "1.1"
            and _is_handshake(self.headers)
        )

    def _should_upgrade(self) -> bool:
        return self._is_handshake

    def _hand_over(self, rest: bytes) -> None:
        """Leave the connection to whom frames mean something; `rest` came behind the head."""
        self._awaited = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self.connections.discard(self)
        url = httptools.parse_url(self.url)
        self.scope["path"] = unquote(url.path.decode("ascii"))
        self.scope["query_string"] = url.query or b""
        frames: Any = self.ws_protocol_class
        protocol = frames(
            config=self.config, server_state=self.server_state, app_state=self.app_state
        )
        protocol.connection_made(self.transport)
        self.transport.set_protocol(protocol)
        protocol.open(self.scope)
        if rest:
            protocol.data_received(rest)

    def _read_on_from_upgrade(self) -> None:
        """Have the body of a request parsed that the parser leaves to the protocol it asks for.

        Java's client asks for HTTP/2 with whatever it sends first. An upgrade may be ignored.
        """
        scope, framing = self.scope, _framing(self.scope["headers"])
        if not framing:
            return
        self.cycle.more_body = True
        self.parser = httptools.HttpRequestParser(self)
        self._is_rereading = True
        self.parser.feed_data(b"POST / HTTP/1.1\r\n" + framing + b"\r\n")
        self._is_rereading = False
        self.scope, self.headers = scope, _NOWHERE

    def on_body(self, body: bytes) -> None:
        self._framing = 0
        super().on_body(body)

    def _unsupported_upgrade_warning(self) -> None:
        """Nothing: anyone could fill the log with it."""

    # --- Waiting ---------------------------------------------------------------------------------

    def _await_rest(self, size: int) -> None:
        """After a read of `size` bytes a request is unfinished, or there was none in them."""
        in_body = self._is_in_body()
        awaited = self.cycle if in_body else self.scope
        if awaited is not self._awaited:
            self._awaited = awaited
            self._since, self._received, self._framing = self.loop.time(), 0, 0
        else:
            self._received += size
            self._framing += size
        if self._framing > HEAD_LIMIT:
            self._refuse(_head_too_large())
        elif not in_body and len(getattr(self, "url", b"")) > URL_LIMIT:
            self._refuse(_url_too_long())
        elif in_body and self._received >= self._quota and not self.cycle.response_complete:
            self._since, self._received = self.loop.time(), 0
        if self._timer is None and not self._deaf:
            self._timer = self.loop.call_later(self._interval, self._look)

    def _is_in_body(self) -> bool:
        cycle = self.cycle
        return cycle is not None and cycle.scope is self.scope and cycle.more_body

    def _look(self) -> None:
        """Give up what is late; look again when the next thing can be."""
        self._timer = None
        if self._awaited is None:
            return
        now = self.loop.time()
        if self._is_our_turn():
            self._since = now
        in_body = self._awaited is self.cycle
        due = self._since + (self._patience.body if in_body else self._patience.header)
        if now < due:
            self._timer = self.loop.call_at(min(due, now + self._interval), self._look)
        else:
            self._give_up(in_body=in_body)

    def _is_our_turn(self) -> bool:
        """Whether it is we who keep the client waiting, by not reading or with an answer."""
        answering = self.cycle is not None and not self.cycle.response_complete
        return self.flow.read_paused or (answering and self._awaited is not self.cycle)

    def _give_up(self, *, in_body: bool) -> None:
        if not self.scope:  # nothing was ever said: browsers open connections in advance
            self.transport.close()
            return
        part = "body" if in_body else "head"
        self._refuse(RequestTimeout(f"The {part} of the request took too long to come"))

    # --- Refusing --------------------------------------------------------------------------------

    def _refuse(self, error: TurnkeeperError) -> None:
        """Hear no more. Answers to requests before this one are still sent."""
        self._deaf, self._awaited = True, None
        cycle = self.cycle
        log.info("A request could not be read: %s", error.sentence)
        if not self._is_in_body():
            if cycle is None or cycle.response_complete:
                self._say(error)
            else:
                cycle.keep_alive = False
        elif cycle.response_started or self.pipeline:
            self.transport.close()
        else:
            cycle.disconnected = True
            cycle.message_event.set()
            self._say(error)

    def _say(self, error: TurnkeeperError) -> None:
        """Answer and close, but not before the client had time to read it.

        A socket that is closed with bytes unread takes the answer back.
        """
        answer = encode_error(error)
        headers = (
            *self.server_state.default_headers,
            *COMMON_HEADERS,
            (b"x-request-id", secrets.token_hex(8).encode()),
            (b"cache-control", b"no-store"),
            (b"connection", b"close"),
            (b"content-type", answer.content_type),
            (b"content-length", b"%d" % len(answer.body)),
        )
        lines = b"".join(b"%b: %b\r\n" % header for header in headers)
        self.transport.write(STATUS_LINE[answer.status] + lines + b"\r\n" + answer.body)
        self.transport.write_eof()
        self.flow.resume_reading()
        self.timeout_keep_alive_task = self.loop.call_later(LINGER_SECONDS, self.transport.close)


def _reason(error: httptools.HttpParserError) -> TurnkeeperError:
    """What to say of an error of the parser, which may be one of ours from within it."""
    cause = error.__context__
    if isinstance(cause, TurnkeeperError):
        return cause
    return InvalidRequest("This is not a request of HTTP/1.1")


def _head_too_large() -> TurnkeeperError:
    return HeadersTooLarge(f"The headers of a request have at most {HEAD_LIMIT} bytes")


def _url_too_long() -> TurnkeeperError:
    return UrlTooLong(f"The URL of a request has at most {URL_LIMIT} bytes")


def _is_handshake(headers: list[tuple[bytes, bytes]]) -> bool:
    """Whether these are the headers of a WebSocket's opening handshake (RFC 6455, 4.2.1)."""
    one = dict(headers)
    names = [name for name, _ in headers]
    tokens = [token.strip().lower() for token in one.get(b"connection", b"").split(b",")]
    try:
        key = binascii.a2b_base64(one.get(b"sec-websocket-key", b""), strict_mode=True)
    except binascii.Error:
        return False
    return (
        one.get(b"upgrade", b"").lower() == b"websocket"
        and b"upgrade" in tokens
        and one.get(b"sec-websocket-version") == b"13"
        and len(key) == 16
        and names.count(b"sec-websocket-key") == names.count(b"upgrade") == 1
        and not _framing(headers)  # a body would be read as frames
    )


def _framing(headers: list[tuple[bytes, bytes]]) -> bytes:
    """The lines of a head that say how long the body is; the parser has found them in order."""
    names = (b"content-length", b"transfer-encoding")
    return b"".join(b"%b: %b\r\n" % header for header in headers if header[0] in names)


def _size(headers: list[tuple[bytes, bytes]]) -> int:
    return sum(len(name) + len(value) + 4 for name, value in headers)
