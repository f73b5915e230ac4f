"""One request: whether it may come in, its body, and the headers that any answer to it carries."""

import re
from collections.abc import Collection, Sequence
from functools import partial
from ipaddress import ip_address
from urllib.parse import parse_qsl

from turnkeeper.dialects.exchange import (
    WEBSOCKET,
    Answer,
    Call,
    EventStream,
    LongAnswer,
    Upgrade,
)
from turnkeeper.domain import Caller
from turnkeeper.errors import BodyTooLarge, HostRefused, InvalidRequest
from turnkeeper.randomness import Randomness
from turnkeeper.web.asgi import Receive, Scope, Send
from turnkeeper.web.origins import SAFE_METHODS, Origins
from turnkeeper.web.socket import Admit, Sockets, refusing
from turnkeeper.web.streaming import (
    Headers,
    disconnected,
    send_answer,
    send_head,
    send_long,
    send_stream,
)

EXPOSED = (
    b"ETag, Idempotent-Replayed, Location, Retry-After, Session-Id, Turn-Id, X-Request-Id,"
    b" x-ratelimit-limit-requests, x-ratelimit-remaining-requests, x-ratelimit-reset-requests,"
    b" x-ratelimit-limit-tokens, x-ratelimit-remaining-tokens, x-ratelimit-reset-tokens"
)
_REQUEST_ID = re.compile(rb"[\x21-\x7e]{1,128}")

# On every answer. No browser takes one for something else than it says it is, nor loads it into a
# page of another origin; a page that may read answers (CORS) is not concerned.
COMMON_HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"cross-origin-resource-policy", b"same-origin"),
)
STRICT_TRANSPORT = (b"strict-transport-security", b"max-age=31536000")
_NO_STORE = (b"cache-control", b"no-store")
_ASK_AGAIN = (b"cache-control", b"private, no-cache")

# Headers of which two would say two things, and someone in front may have believed the other.
_SINGLE = (b"authorization", b"x-api-key", b"x-end-user", b"idempotency-key", b"session-id")

PREFLIGHT_METHODS = b"GET, HEAD, POST, PUT, PATCH, DELETE"
PREFLIGHT_SECONDS = b"600"


def origin_of(address: str, forwarded: str, proxies: Collection[str]) -> str:
    """Where a request comes from that has come by `proxies`: each names whom it has it from.

    What stands before the first that is no proxy of ours, anyone may have written.
    """
    hops = forwarded.split(",")
    while address in proxies and hops:
        hop = hops.pop().strip()
        try:
            address = _read_address(hop)
        except ValueError:
            break
    return address


def _read_address(text: str) -> str:
    """As `proxies` have it: of IPv4 also where a socket for both speaks of it as IPv6."""
    address = ip_address(text)
    return str((address.version == 6 and address.ipv4_mapped) or address)


class Request:
    """What came in, and the way back. Everything leaves through `answer`."""

    def __init__(
        self,
        scope: Scope,
        receive: Receive,
        send: Send,
        randomness: Randomness,
        proxies: Collection[str] = (),
        *,
        common: Sequence[tuple[bytes, bytes]] = COMMON_HEADERS,
    ) -> None:
        """`common` headers are on the answer, whatever it is."""
        self.is_handshake = scope.get("type") == "websocket"
        self.method: str = WEBSOCKET if self.is_handshake else scope["method"]
        self.path: str = scope["path"]
        self._header_list: list[tuple[bytes, bytes]] = scope["headers"]
        self.headers: dict[bytes, bytes] = dict(self._header_list)
        self._query: bytes = scope["query_string"]
        client = scope.get("client")
        self.address: str = client[0] if client else ""
        if self.address.startswith("::ffff:"):
            self.address = _read_address(self.address)
        if self.address in proxies:
            forwarded = self._all(b"x-forwarded-for").decode("latin-1")
            self.address = origin_of(self.address, forwarded, proxies)
        self.route = "none"  # the pattern of its path, once that is found
        self.caller: Caller | None = None
        self._receive = receive
        self._send = refusing(send) if self.is_handshake else send
        self._send_frames = send
        given = self.headers.get(b"x-request-id", b"")
        wanted = given and _REQUEST_ID.fullmatch(given)
        self.id = given if wanted else randomness.bytes(8).hex().encode()
        self._extra: Headers = [*common, (b"x-request-id", self.id)]

    def _all(self, name: bytes) -> bytes:
        """A header that is a list, which each proxy may go on with in a line of its own."""
        return b",".join([value for key, value in self._header_list if key == name])

    def enter(self, origins: Origins) -> Answer | None:
        """Let the request in and note its CORS headers; or the answer that is all it gets.

        Raises:
            HostRefused: the host it names, or the page it comes from, is not ours.
            InvalidRequest: it says twice what can be said once.
        """
        if len(self.headers) < len(self._header_list):
            self._refuse_doubles()
        host = self.host
        if not origins.host_is_ours(host):
            raise HostRefused(f"This server is not called {host[:100] or 'nothing'}")
        origin = self.headers.get(b"origin")
        if origin is None:
            return None
        self._extra.append((b"vary", b"Origin"))
        asks_first = self.method == "OPTIONS" and b"access-control-request-method" in self.headers
        if not origins.origin_is_ours(origin.decode("latin-1"), host, self.path):
            if self.method in ("GET", "HEAD") or not (origins.guarded or asks_first):
                return None  # harmless: the browser keeps the answer from the page
            raise HostRefused("Pages of this origin may not use this server")
        self._extra.append((b"access-control-allow-origin", origin))
        self._extra.append((b"access-control-expose-headers", EXPOSED))
        return self._preflight() if asks_first else None

    @property
    def host(self) -> str:
        """What the request calls us."""
        return self.headers.get(b"host", b"").decode("latin-1")

    def end_user(self) -> str | None:
        """For which of its own users an application says that it asks.

        Raises:
            InvalidRequest: it is not UTF-8.
        """
        name = self.headers.get(b"x-end-user")
        try:
            return None if name is None else name.decode()
        except UnicodeDecodeError:
            raise InvalidRequest("X-End-User is not UTF-8") from None

    def _refuse_doubles(self) -> None:
        names = [name for name, _ in self._header_list]
        if names.count(b"host") > 1 or names.count(b"origin") > 1:
            raise HostRefused("A request has one Host and one Origin")
        for name in _SINGLE:
            if names.count(name) > 1:
                raise InvalidRequest(f"A request has one {name.decode().title()} header")

    def _preflight(self) -> Answer:
        wanted = self.headers.get(b"access-control-request-headers", b"")
        headers = (
            (b"access-control-allow-methods", PREFLIGHT_METHODS),
            (b"access-control-allow-headers", wanted),
            (b"access-control-max-age", PREFLIGHT_SECONDS),
        )
        return Answer(204, b"", headers)

    async def read(
        self, caller: Caller, path: dict[str, str], body_limit: int, base: str | None
    ) -> Call:
        """The request as a dialect sees it, its body read; `base` None is the host it names.

        Raises:
            BodyTooLarge: it has more than `body_limit` bytes; the rest is not read.
        """
        has_body = not (self.is_handshake or self.method in SAFE_METHODS)
        body = await self._read_body(body_limit) if has_body else b""
        query = dict(parse_qsl(self._query.decode("latin-1"))) if self._query else {}
        if base is None:
            base = f"http://{self.host}"
        return Call(
            caller.owner,
            f"{self.method} {self.path}",
            body,
            path,
            query,
            self.headers,
            base,
            partial(disconnected, self._receive),
            caller.is_admin,
            self.address,
            caller,
        )

    async def _read_body(self, limit: int) -> bytes:
        declared = self.headers.get(b"content-length", b"")
        size = int(declared) if declared.isdigit() else 0
        pieces: list[bytes] = []
        read, more = 0, True
        while more and max(size, read) <= limit:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise InvalidRequest("The body ended early")
            pieces.append(message.get("body", b""))
            read += len(pieces[-1])
            more = message.get("more_body", False)
        if max(size, read) > limit:
            raise BodyTooLarge(f"The body has more than {limit} bytes")
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    async def open_socket(self, upgrade: Upgrade, sockets: Sockets, admit: Admit) -> None:
        """Accept the handshake that this is, and stay until the talk on it is over.

        `admit` says with each message that comes whether its credentials still hold.
        """
        await sockets.open(self._receive, self._send_frames, upgrade, self._extra, admit)

    def add_headers(self, headers: Headers) -> None:
        """Let the answer have these too."""
        self._extra += headers

    async def answer(self, outcome: Answer | LongAnswer | EventStream) -> None:
        if not isinstance(outcome, EventStream):
            self._extra += _caching(outcome.headers)
        wants_body = self.method != "HEAD"
        if isinstance(outcome, Answer):
            await send_answer(self._send, outcome, self._extra, body=wants_body)
        elif not wants_body:
            await send_head(self._send, outcome, self._extra)
        elif isinstance(outcome, EventStream):
            await send_stream(self._send, self._receive, outcome, self._extra)
        else:
            await send_long(self._send, outcome, self._extra)


def _caching(headers: Sequence[tuple[bytes, bytes]]) -> Headers:
    """What caches are told of an answer that says nothing itself: nearly all hold someone's text.

    What has a tag may be kept by whom it is for, who asks each time whether it still holds.
    """
    for name, _ in headers:
        if name == b"cache-control":
            return []
        if name == b"etag":
            return [_ASK_AGAIN]
    return [_NO_STORE]
