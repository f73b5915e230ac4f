"""The route map, and the way of a request through it: in, to its dialect, and out.

Litestar finds the route; the rest of its request handling is left aside, since it costs 30 µs
of a turn's 200 (20 µs for bare ASGI, 24 with Litestar's routing, 50 with its handlers and
responses). Every answer, error and stream leaves through `_Exchange`, so none can miss a header.
"""

import base64
import hashlib
import logging
import re
import secrets
from collections.abc import Sequence
from importlib import resources
from itertools import groupby
from typing import Any
from urllib.parse import parse_qsl

import msgspec
from litestar import Litestar, Request, Response, asgi
from litestar.enums import ScopeType
from litestar.exceptions import HTTPException
from litestar.handlers import ASGIRouteHandler
from litestar.types import HTTPScope, Receive, Scope, Send

from turnkeeper.dialects import chatbot, native
from turnkeeper.dialects.exchange import (
    Answer,
    Call,
    Dialect,
    EventStream,
    Outcome,
    encode_json,
)
from turnkeeper.engine import Engine
from turnkeeper.errors import (
    BodyTooLarge,
    HostRefused,
    MethodNotAllowed,
    NotFound,
    StoreUnavailable,
    TurnkeeperError,
)
from turnkeeper.web.origins import SAFE_METHODS, Origins
from turnkeeper.web.streaming import Headers, send_answer, send_stream

log = logging.getLogger(__name__)

DIALECTS: tuple[Dialect, ...] = (chatbot.DIALECT, native.DIALECT)

LOCAL_USER = "local"  # whose everything is when no credentials are asked for

EXPOSED = b"Idempotent-Replayed, Retry-After, Session-Id, Turn-Id, X-Request-Id"
_REQUEST_ID = re.compile(rb"[\x21-\x7e]{1,128}")


class Web:
    """The ASGI application."""

    def __init__(self, engine: Engine, origins: Origins, body_limit: int) -> None:
        """`body_limit` is in bytes."""
        self._engine = engine
        self._origins = origins
        self._body_limit = body_limit
        self._page = _read_page()
        self._litestar = Litestar(
            [self._endpoint(path, dialect) for path, dialect in _paths(DIALECTS)]
            + [self._root(), *self._health()],
            openapi_config=None,
            logging_config=None,
            exception_handlers={HTTPException: _not_found},
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == ScopeType.WEBSOCKET:  # no dialect speaks it yet
            await self._litestar(scope, receive, send)
            return
        exchange = _Exchange(scope, receive, send, self._body_limit)
        refusal = exchange.enter(self._origins)
        if refusal is not None:
            await exchange.send(refusal)
            return
        scope.setdefault("state", {})["exchange"] = exchange
        await self._litestar(scope, receive, send)

    # --- The route map -------------------------------------------------------------------------

    def _endpoint(self, path: str, dialect: Dialect) -> ASGIRouteHandler:
        by_method = {route.method: route.handler for route in dialect.routes if route.path == path}

        async def answer(exchange: "_Exchange", path_values: dict[str, str]) -> Outcome:
            handler = by_method.get("GET" if exchange.method == "HEAD" else exchange.method)
            if handler is None:
                return _other_method(exchange, by_method, dialect)
            try:
                return await handler(self._engine, await exchange.call(path_values))
            except TurnkeeperError as error:
                return dialect.encode_error(error)

        return _mount(path, answer)

    def _root(self) -> ASGIRouteHandler:
        index = chatbot.encode_index([route for dialect in DIALECTS for route in dialect.routes])

        async def answer(exchange: "_Exchange", _: dict[str, str]) -> Outcome:
            if exchange.method not in SAFE_METHODS:
                return _other_method(exchange, {"GET": None}, native.DIALECT)
            return self._page if b"text/html" in exchange.headers.get(b"accept", b"") else index

        return _mount("/", answer)

    def _health(self) -> Sequence[ASGIRouteHandler]:
        async def live(_exchange: "_Exchange", _: dict[str, str]) -> Outcome:
            return Answer(200, encode_json({"status": "live"}))

        async def ready(_exchange: "_Exchange", _: dict[str, str]) -> Outcome:
            try:
                if await self._engine.ready():
                    return Answer(200, encode_json({"status": "ready"}))
            except StoreUnavailable as error:
                return native.DIALECT.encode_error(error)
            return Answer(503, encode_json({"status": "stopping"}))

        return [_mount("/health/live", live), _mount("/health/ready", ready)]


def _paths(dialects: Sequence[Dialect]) -> list[tuple[str, Dialect]]:
    return [
        (path, dialect)
        for dialect in dialects
        for path, _ in groupby(dialect.routes, key=lambda route: route.path)
    ]


def _mount(path: str, answer: Any) -> ASGIRouteHandler:
    """A Litestar route for every method of `path`, answered by `answer`."""

    @asgi(re.sub(r"{(\w+)}", r"{\1:str}", path), copy_scope=False)
    async def endpoint(scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG001
        exchange: _Exchange = scope["state"]["exchange"]
        try:
            outcome = await answer(exchange, scope.get("path_params", {}))
        except Exception:
            log.exception("Request %s failed through a fault of our own", exchange.request_id)
            outcome = _INTERNAL_ERROR
        await exchange.send(outcome)

    return endpoint


_INTERNAL_ERROR = Answer(
    500, encode_json({"error": "The server made a mistake", "code": "internal_error"})
)


def _other_method(exchange: "_Exchange", by_method: dict[str, Any], dialect: Dialect) -> Answer:
    """OPTIONS, or a method the path does not have."""
    allowed = sorted({*by_method, "OPTIONS"} | ({"HEAD"} if "GET" in by_method else set()))
    allow = ((b"allow", ", ".join(allowed).encode()),)
    if exchange.method == "OPTIONS":
        return Answer(204, b"", allow)
    error = MethodNotAllowed(f"{exchange.method} is not allowed here")
    return msgspec.structs.replace(dialect.encode_error(error), headers=allow)


def _not_found(request: Request[Any, Any, Any], _: HTTPException) -> Response[bytes]:
    """Litestar knows no route for the path."""
    exchange: _Exchange = request.scope["state"]["exchange"]
    answer = native.DIALECT.encode_error(NotFound("There is nothing at this path"))
    return Response(
        b"" if exchange.method == "HEAD" else answer.body,
        status_code=answer.status,
        media_type="application/json",
        headers={name.decode(): value.decode("latin-1") for name, value in exchange.extra},
    )


# --- One request -------------------------------------------------------------------------------


class _Exchange:
    """A request and the headers that its answer will carry, whatever the answer is."""

    def __init__(self, scope: HTTPScope, receive: Receive, send: Send, body_limit: int) -> None:
        self.method: str = scope["method"]
        self.headers: dict[bytes, bytes] = dict(scope["headers"])
        self.extra: Headers = []
        self._query: bytes = scope["query_string"]
        self._receive = receive
        self._send = send
        self._body_limit = body_limit
        given = self.headers.get(b"x-request-id", b"")
        self.request_id = given if _REQUEST_ID.fullmatch(given) else secrets.token_hex(8).encode()
        self.extra.append((b"x-request-id", self.request_id))

    def enter(self, origins: Origins) -> Answer | None:
        """Let the request in, noting its CORS headers; or the answer that keeps it out."""
        host = self.headers.get(b"host", b"").decode("latin-1")
        if not origins.host_is_ours(host):
            return _refusal(f"This server is not called {host[:100] or 'nothing'}")
        origin = self.headers.get(b"origin")
        if origin is None:
            return None
        self.extra.append((b"vary", b"Origin"))
        if not origins.origin_is_ours(origin.decode("latin-1"), host):
            allowed = self.method in ("GET", "HEAD")  # harmless: the page cannot read the answer
            return None if allowed else _refusal("Pages of this origin may not use this server")
        self.extra.append((b"access-control-allow-origin", origin))
        self.extra.append((b"access-control-expose-headers", EXPOSED))
        return self._preflight()

    def _preflight(self) -> Answer | None:
        """The answer to a browser that asks before it sends."""
        if self.method != "OPTIONS" or b"access-control-request-method" not in self.headers:
            return None
        wanted = self.headers.get(b"access-control-request-headers", b"")
        return Answer(
            204,
            b"",
            (
                (b"access-control-allow-methods", b"GET, HEAD, POST, PUT, PATCH, DELETE"),
                (b"access-control-allow-headers", wanted),
                (b"access-control-max-age", b"600"),
            ),
        )

    async def call(self, path_values: dict[str, str]) -> Call:
        """The request as a dialect sees it, its body read.

        Raises:
            BodyTooLarge: nothing more of it is read.
        """
        body = b"" if self.method in SAFE_METHODS else await self._read_body()
        query = dict(parse_qsl(self._query.decode("latin-1"))) if self._query else {}
        return Call(LOCAL_USER, body, path_values, query, self.headers)

    async def _read_body(self) -> bytes:
        declared = self.headers.get(b"content-length", b"0")
        size = int(declared) if declared.isdigit() else 0
        pieces: list[bytes] = []
        while size <= self._body_limit:
            message: Any = await self._receive()
            piece = message.get("body", b"")
            if not message.get("more_body") and not pieces:
                pieces = [piece]  # the usual request: all in one
            else:
                pieces.append(piece)
            if not message.get("more_body"):
                break
            size = max(size, sum(map(len, pieces)))
        body = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        if max(size, len(body)) > self._body_limit:
            raise BodyTooLarge(f"The body is larger than {self._body_limit} bytes")
        return body

    async def send(self, outcome: Outcome) -> None:
        if not isinstance(outcome, EventStream):
            await send_answer(self._send, outcome, self.extra, body=self.method != "HEAD")
        elif self.method == "HEAD":
            await send_answer(self._send, Answer(200, b""), self.extra, body=False)
        else:
            await send_stream(self._send, self._receive, outcome, self.extra)


def _refusal(sentence: str) -> Answer:
    return native.DIALECT.encode_error(HostRefused(sentence))


# --- The page ----------------------------------------------------------------------------------


def _read_page() -> Answer:
    """The chat page, allowed nothing but its own style and script and this server."""
    html = resources.files("turnkeeper.web.static").joinpath("chat.html").read_bytes()
    policy = (
        "default-src 'none'; connect-src 'self'; img-src data:; base-uri 'none';"
        f" form-action 'none'; frame-ancestors 'none'; style-src {_hash(html, b'style')};"
        f" script-src {_hash(html, b'script')}"
    )
    headers = (
        (b"content-security-policy", policy.encode()),
        (b"x-content-type-options", b"nosniff"),
        (b"referrer-policy", b"no-referrer"),
        (b"cache-control", b"no-cache"),
        (b"vary", b"Accept"),
    )
    return Answer(200, html, headers, b"text/html; charset=utf-8")


def _hash(html: bytes, tag: bytes) -> str:
    match = re.search(rb"<%b>(.*?)</%b>" % (tag, tag), html, re.DOTALL)
    content = match[1] if match else b""
    return f"'sha256-{base64.b64encode(hashlib.sha256(content).digest()).decode()}'"
