"""The route map, and the way of a request through it: in, to its dialect, and out.

Bare ASGI: a web framework's own handling of a request costs as much as half of a turn (measured:
20 µs for ASGI alone, 50 with Litestar's handlers), and every dialect reads its own bodies and
words its own errors. Every answer leaves through `Request.answer`, so none can miss a header.
"""

import logging
from collections.abc import Awaitable, Callable, Mapping

import msgspec

from turnkeeper.dialects import chatbot, chatsession, deployment, documents, native
from turnkeeper.dialects.exchange import (
    Answer,
    Call,
    Dialect,
    Outcome,
    Parts,
    Route,
    encode_json,
)
from turnkeeper.errors import MethodNotAllowed, NotFound, StoreUnavailable, TurnkeeperError
from turnkeeper.randomness import Randomness
from turnkeeper.web.asgi import Receive, Scope, Send
from turnkeeper.web.origins import Origins
from turnkeeper.web.pages import read_page
from turnkeeper.web.request import Request
from turnkeeper.web.routes import RouteMap

log = logging.getLogger(__name__)

DIALECTS: tuple[Dialect, ...] = (
    chatbot.DIALECT,
    chatsession.DIALECT,
    deployment.DIALECT,
    documents.DIALECT,
    native.DIALECT,
)

_ROUTES = tuple(route for dialect in DIALECTS for route in dialect.routes)

LOCAL_USER = "local"  # whose everything is when no credentials are asked for

Act = Callable[[Call], Awaitable[Outcome]]


EncodeError = Callable[[TurnkeeperError], Answer]


class Endpoint(msgspec.Struct, frozen=True):
    """What is served at one path: for each method an act, and how its dialect words failures.

    `encode_error` words those that come before a method is chosen.
    """

    acts: Mapping[str, tuple[Act, EncodeError]]
    encode_error: EncodeError


class Web:
    """The ASGI application."""

    def __init__(
        self, parts: Parts, origins: Origins, body_limit: int, public_url: str | None = None
    ) -> None:
        """`body_limit` is in bytes; `public_url` is where clients reach us, if not by `Host`."""
        self._parts = parts
        self._origins = origins
        self._public_url = public_url
        self._random = Randomness()
        self._body_limit = body_limit
        self._page = read_page("chat.html")
        self._index = chatbot.encode_index(_ROUTES)
        self._routes = RouteMap(
            [
                ("/", self._own(self._get_root)),
                ("/health/live", self._own(self._get_live)),
                ("/health/ready", self._own(self._get_ready)),
                *((path, self._endpoint(path)) for path in dict.fromkeys(r.path for r in _ROUTES)),
            ],
            any_case={route.path for route in _ROUTES if route.any_case},
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive, send, self._random)
        try:
            outcome = await self._serve(request)
        except TurnkeeperError as error:
            outcome = native.DIALECT.encode_error(error)
        except Exception:
            log.exception("Request %s failed through a fault of our own", request.id.decode())
            outcome = _INTERNAL_ERROR
        await request.answer(outcome)

    async def _serve(self, request: Request) -> Outcome:
        """Find what is served at the path, and do it."""
        preflight = request.enter(self._origins)
        if preflight is not None:
            return preflight
        found = self._routes.find(request.path)
        if found is None:
            return _dialect_of(request.path).encode_error(NotFound("There is nothing at this path"))
        endpoint, path_values = found
        method = "GET" if request.method == "HEAD" else request.method
        if method not in endpoint.acts:
            return _other_method(request.method, endpoint)
        act, encode_error = endpoint.acts[method]
        try:
            call = await request.read(
                LOCAL_USER, path_values, self._body_limit, base=self._public_url
            )
            return await act(call)
        except TurnkeeperError as error:
            return encode_error(error)

    # --- What is served where ------------------------------------------------------------------

    def _endpoint(self, path: str) -> Endpoint:
        acts = {
            route.method: (self._act(route), dialect.encode_error)
            for dialect in DIALECTS
            for route in dialect.routes
            if route.path == path
        }
        return Endpoint(acts, _dialect_of(path).encode_error)

    def _act(self, route: Route) -> Act:
        parts, handler = self._parts, route.handler
        return lambda call: handler(parts, call)

    def _own(self, act: Act) -> Endpoint:
        encode_error = native.DIALECT.encode_error
        return Endpoint({"GET": (act, encode_error)}, encode_error)

    async def _get_root(self, call: Call) -> Outcome:
        """A page for people, a list of endpoints for programs."""
        return self._page if "text/html" in call.header(b"accept") else self._index

    async def _get_live(self, _: Call) -> Outcome:
        return Answer(200, encode_json({"status": "live"}))

    async def _get_ready(self, _: Call) -> Outcome:
        try:
            ready = await self._parts.engine.ready()
        except StoreUnavailable:
            return Answer(503, encode_json({"status": "no database"}))
        if not ready:
            return Answer(503, encode_json({"status": "stopping"}))
        return Answer(200, encode_json({"status": "ready"}))


_INTERNAL_ERROR = Answer(
    500, encode_json({"error": "The server made a mistake", "code": "internal_error"})
)


def _dialect_of(path: str) -> Dialect:
    """Whose prefix a path begins with; the native one's if nobody's."""
    folded = path.lower()
    for dialect in DIALECTS:
        if any(f"{folded}/".startswith(f"{prefix}/") for prefix in dialect.prefixes):
            return dialect
    return native.DIALECT


def _other_method(method: str, endpoint: Endpoint) -> Answer:
    """OPTIONS, or a method that the path does not have."""
    allowed = {*endpoint.acts, "OPTIONS"} | ({"HEAD"} if "GET" in endpoint.acts else set())
    headers = ((b"allow", ", ".join(sorted(allowed)).encode()),)
    if method == "OPTIONS":
        return Answer(204, b"", headers)
    refusal = endpoint.encode_error(MethodNotAllowed(f"{method} is not allowed here"))
    return msgspec.structs.replace(refusal, headers=headers)
