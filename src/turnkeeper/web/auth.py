"""Who a request is from, in access mode `keys`: by an API key or token, else by the cookie of a
login; and whether that is good for what it asks.

A browser sends its cookie with whatever any page makes it send. So a request that changes
something, and shows no more than a cookie, must come from a page of ours, by its `Origin`. A key
is sent on purpose alone.
"""

from collections.abc import Mapping
from urllib.parse import urlsplit

from turnkeeper.accounts import Accounts
from turnkeeper.dialects.exchange import NOBODY, Route
from turnkeeper.dialects.login import read_cookie
from turnkeeper.domain import Caller, parse_turn_id
from turnkeeper.errors import (
    HostRefused,
    InvalidRequest,
    MissingScope,
    SessionNotFound,
    TurnNotFound,
    Unauthenticated,
)
from turnkeeper.web.origins import SAFE_METHODS
from turnkeeper.web.request import Request

LOCAL = Caller(
    "local", is_admin=True, role="admin"
)  # whose everything is when no credentials are asked for


def authorize(caller: Caller, route: Route, path: Mapping[str, str]) -> None:
    """Let a caller do what a route is for, with these values of its path's variables.

    Raises:
        MissingScope: the credentials are not good for it.
        SessionNotFound, TurnNotFound: they are good for one session, and this is another's.
    """
    if caller.session is not None:
        _check_bound(caller.session, route, path)
    needs = route.needs
    if needs and needs.isdisjoint(caller.scopes):
        raise MissingScope(f"These credentials lack the scope {' or '.join(sorted(needs))}")


def _check_bound(session: str, route: Route, path: Mapping[str, str]) -> None:
    if not route.session_token:
        raise MissingScope("A session token is good for its own session alone")
    if "id" in path and path["id"] != session:
        raise SessionNotFound("Session not found")
    if "turn_id" in path:
        turn = parse_turn_id(path["turn_id"])
        if turn is None or turn.session_id != session:
            raise TurnNotFound("Turn not found")


class Access:
    """The rules in force."""

    def __init__(self, accounts: Accounts, public_url: str | None) -> None:
        """`public_url` is where browsers reach us; None for wherever `Host` says."""
        self._accounts = accounts
        self._origin = None if public_url is None else _origin_of(public_url)
        self._secure = public_url is not None and public_url.startswith("https:")

    async def admit(self, request: Request, *, is_open: bool) -> Caller:
        """Who it is from; where a path `is_open`, nobody is asked.

        Raises:
            Unauthenticated: there are no credentials, or none that are known.
            HostRefused: it comes from someone else's page, or does not say from whose.
            InvalidRequest: it shows two keys.
        """
        if is_open:
            self._check_page(request, must_say=False)
            return NOBODY
        key = _read_key(request.headers)
        if key is not None:
            caller = await self._accounts.identify(key, "key")
        else:
            token = read_cookie(request.headers, secure=self._secure) or ""
            caller = await self._accounts.identify(token, "login") if token else None
        if caller is None:
            raise Unauthenticated("Authentication required")
        if key is None:
            self._check_page(request, must_say=True)
        return caller

    def _check_page(self, request: Request, *, must_say: bool) -> None:
        if request.method in SAFE_METHODS:
            return
        origin = request.headers.get(b"origin")
        if origin is None:
            if must_say:
                raise HostRefused("A request with a cookie must say its Origin")
        elif not self._is_ours(origin.decode("latin-1"), request.host):
            raise HostRefused("Pages of this origin may not use this server")

    def _is_ours(self, origin: str, host: str) -> bool:
        if self._origin is not None:
            return origin == self._origin
        return bool(host) and origin in (f"http://{host}", f"https://{host}")


def _read_key(headers: dict[bytes, bytes]) -> str | None:
    """The key that a request shows; None if it shows none.

    Raises:
        InvalidRequest: it shows one in each of two ways, and they differ.
    """
    named, bearer = headers.get(b"x-api-key"), headers.get(b"authorization", b"")
    if bearer[:7].lower() != b"bearer ":
        return None if named is None else named.strip().decode("latin-1")
    key = bearer[7:].strip()
    if named is not None and named.strip() != key:
        raise InvalidRequest("Authorization and X-API-Key show different keys")
    return key.decode("latin-1")


def _origin_of(url: str) -> str:
    """As browsers write it: in lower case, without a port that goes without saying."""
    parts = urlsplit(url)
    usual = {"http": ":80", "https": ":443"}[parts.scheme]
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2].lower().removesuffix(usual)}"
