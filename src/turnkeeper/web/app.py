"""The route map, and the way of a request through it: in, to its dialect, and out.

Bare ASGI: a web framework's own handling of a request costs as much as half of a turn (measured:
20 µs for ASGI alone, 50 with Litestar's handlers), and every dialect reads its own bodies and
words its own errors. Every answer leaves through `Request.answer`, so none can miss a header.
"""

import logging
from collections.abc import Awaitable, Callable, Mapping
from functools import partial

import msgspec

from turnkeeper.dialects import chatbot, chatsession, deployment, documents, login, native, openai
from turnkeeper.dialects.exchange import (
    WEBSOCKET,
    Answer,
    Call,
    Dialect,
    Outcome,
    Parts,
    Route,
    Upgrade,
    acting_for,
    encode_json,
)
from turnkeeper.domain import Caller
from turnkeeper.errors import MethodNotAllowed, NotFound, StoreUnavailable, TurnkeeperError
from turnkeeper.randomness import Randomness
from turnkeeper.web.asgi import Receive, Scope, Send
from turnkeeper.web.auth import LOCAL, Access, authorize
from turnkeeper.web.limits import Visit, is_keyed
from turnkeeper.web.origins import Origins
from turnkeeper.web.pages import read_page
from turnkeeper.web.request import COMMON_HEADERS, STRICT_TRANSPORT, Request
from turnkeeper.web.routes import RouteMap
from turnkeeper.web.socket import Sockets
from turnkeeper.web.telemetry import Telemetry

log = logging.getLogger(__name__)

DIALECTS: tuple[Dialect, ...] = (
    chatbot.DIALECT,
    chatsession.DIALECT,
    deployment.DIALECT,
    documents.DIALECT,
    login.DIALECT,
    native.DIALECT,
    openai.DIALECT,
)

_ROUTES = tuple(route for dialect in DIALECTS for route in dialect.routes)

Act = Callable[[Call], Awaitable[Outcome]]


EncodeError = Callable[[TurnkeeperError], Answer]


class Served(msgspec.Struct, frozen=True):
    """What is served at one path by one method, and how its dialect words failures.

    `route` says who may.
    """

    act: Act
    encode_error: EncodeError
    route: Route


class Endpoint(msgspec.Struct, frozen=True):
    """What is served at one path, by method.

    Attributes:
        encode_error: words those that come before a method is chosen.
        route: the path, with its variables in braces; `none` where nothing is served.
        is_open: nobody is asked for credentials.
        admin: for all but admins, there is nothing here.
        uncounted: no limits hold here: whoever watches the server must get an answer.
    """

    acts: Mapping[str, Served]
    encode_error: EncodeError
    route: str = "none"
    is_open: bool = False
    admin: bool = False
    uncounted: bool = False


class Web:
    """The ASGI application."""

    def __init__(
        self,
        parts: Parts,
        origins: Origins,
        body_limit: int,
        public_url: str | None = None,
        *,
        telemetry: Telemetry,
        proxies: frozenset[str] = frozenset(),
        socket_lifetime: float = 3600,
    ) -> None:
        """`body_limit` is in bytes; `public_url` is where clients reach us, if not by `Host`.

        A WebSocket is open for `socket_lifetime` seconds at most.

        `proxies` are believed when they say where a request comes from.

        Without accounts among its parts it asks nobody for credentials.
        """
        self._parts = parts
        self._access = None if parts.accounts is None else Access(parts.accounts, public_url)
        self._origins = origins
        self._public_url = public_url
        self._proxies = proxies
        is_https = public_url is not None and public_url.startswith("https:")
        self._common = (*COMMON_HEADERS, STRICT_TRANSPORT) if is_https else COMMON_HEADERS
        self._random = Randomness()
        self._telemetry = telemetry
        self._metrics: Callable[[], bytes] | None = None
        self._sockets = Sockets(socket_lifetime)
        self.body_limit = body_limit
        self._page = read_page("chat.html")
        self._index = chatbot.encode_index(_ROUTES)
        self._routes = RouteMap(
            [
                ("/", self._own("/", self._get_root)),
                ("/health/live", self._own("/health/live", self._get_live)),
                ("/health/ready", self._own("/health/ready", self._get_ready)),
                ("/metrics", self._own("/metrics", self._get_metrics, admin=True)),
                *((path, self._endpoint(path)) for path in dict.fromkeys(r.path for r in _ROUTES)),
            ],
            any_case={route.path for route in _ROUTES if route.any_case},
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive, send, self._random, self._proxies, common=self._common)
        visit = Visit(self._parts.gate, keyed=is_keyed(request.method, request.headers))
        began, outcome = self._telemetry.request_began(request), None
        try:
            outcome = await self._outcome(request, visit)
            self._telemetry.answering(outcome)
            if isinstance(outcome, Upgrade):
                admit = partial(self._admit_message, request)
                await request.open_socket(outcome, self._sockets, admit)
            else:
                await request.answer(outcome)
        finally:
            if visit.counts:
                visit.close()
            self._telemetry.request_ended(request, outcome, began)

    async def _outcome(self, request: Request, visit: Visit) -> Outcome:
        """What is answered, whatever happens."""
        try:
            outcome = await self._serve(request, visit)
        except TurnkeeperError as error:
            outcome = native.DIALECT.encode_error(error)
        except Exception:
            log.exception("Request %s failed through a fault of our own", request.id.decode())
            outcome = _INTERNAL_ERROR
        if visit.parties:
            request.add_headers(visit.headers())
        return outcome

    async def hang_up(self) -> None:
        """End what is said on WebSockets: the server is stopping, and its turns have ended."""
        await self._sockets.hang_up()

    async def _serve(self, request: Request, visit: Visit) -> Outcome:
        """Find what is served at the path, and do it."""
        preflight = request.enter(self._origins)
        if preflight is not None:
            return preflight
        endpoint, path_values = self._routes.find(request.path) or _nothing(request.path)
        request.route = endpoint.route
        method = "GET" if request.method == "HEAD" else request.method
        served = endpoint.acts.get(method)
        encode_error = endpoint.encode_error if served is None else served.encode_error
        try:
            if not endpoint.uncounted:
                visit.arrive(request.address)
            # Who is not known is not even told what there is.
            caller = await self._identify(request, is_open=endpoint.is_open)
            request.caller = caller
            if not endpoint.uncounted:
                visit.enter(caller)
            if caller.name:
                self._parts.usage.count_request(caller.owner)
            if not endpoint.acts or (endpoint.admin and caller.role != "admin"):
                raise NotFound("There is nothing at this path")
            if served is None:
                return _other_method(request.method, endpoint)
            authorize(caller, served.route, path_values)
            call = await request.read(caller, path_values, self.body_limit, base=self._public_url)
            if not visit.counts:
                return await served.act(call)
            await visit.take_place(call, self._parts.engine.was_made)
            return visit.follow(await served.act(call))
        except TurnkeeperError as error:
            return encode_error(error)

    async def _identify(self, request: Request, *, is_open: bool = False) -> Caller:
        """Who a request is from."""
        caller = LOCAL
        if self._access is not None:
            caller = await self._access.admit(request, is_open=is_open)
        end_user = request.end_user()
        return caller if end_user is None else acting_for(caller, end_user)

    async def _admit_message(self, request: Request) -> None:
        """See whether a WebSocket's credentials still hold; its message counts as a request."""
        visit = Visit(self._parts.gate, keyed=False)
        visit.arrive(request.address)
        visit.enter(await self._identify(request))

    # --- What is served where ------------------------------------------------------------------

    def _endpoint(self, path: str) -> Endpoint:
        here = [
            (route, dialect.encode_error)
            for dialect in DIALECTS
            for route in dialect.routes
            if route.path == path
        ]
        return Endpoint(
            {
                route.method: Served(self._act(route), encode_error, route)
                for route, encode_error in here
            },
            _dialect_of(path).encode_error,
            path,
            is_open=all(route.is_open for route, _ in here),
            admin=any(route.admin for route, _ in here),
        )

    def _act(self, route: Route) -> Act:
        parts, handler = self._parts, route.handler
        return lambda call: handler(parts, call)

    def _own(self, path: str, act: Act, *, admin: bool = False) -> Endpoint:
        encode_error = native.DIALECT.encode_error
        route = Route("GET", path, lambda _, call: act(call), "", is_open=not admin, admin=admin)
        acts = {"GET": Served(act, encode_error, route)}
        return Endpoint(acts, encode_error, path, is_open=not admin, admin=admin, uncounted=True)

    async def _get_root(self, call: Call) -> Outcome:
        """A page for people, a list of endpoints for programs."""
        return self._page if "text/html" in call.header(b"accept") else self._index

    async def _get_live(self, _: Call) -> Outcome:
        return Answer(200, encode_json({"status": "live"}))

    async def _get_metrics(self, _: Call) -> Outcome:
        from turnkeeper.web import metrics  # noqa: PLC0415  many are never asked for it

        if self._metrics is None:
            self._metrics = metrics.Metrics(self._telemetry).tell
        return Answer(200, self._metrics(), content_type=metrics.CONTENT_TYPE)

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


def _nothing(path: str) -> tuple[Endpoint, dict[str, str]]:
    return Endpoint({}, _dialect_of(path).encode_error), {}


def _other_method(method: str, endpoint: Endpoint) -> Answer:
    """OPTIONS, or a method that the path does not have."""
    methods = endpoint.acts.keys() - {WEBSOCKET}
    allowed = {*methods, "OPTIONS"} | ({"HEAD"} if "GET" in methods else set())
    headers = ((b"allow", ", ".join(sorted(allowed)).encode()),)
    if method == "OPTIONS":
        return Answer(204, b"", headers)
    is_handshake = method == WEBSOCKET
    what = "No WebSocket can be opened here" if is_handshake else f"{method} is not allowed here"
    refusal = endpoint.encode_error(MethodNotAllowed(what))
    return msgspec.structs.replace(refusal, headers=headers)
