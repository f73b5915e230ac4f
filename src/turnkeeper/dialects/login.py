"""Logging in and out with a cookie (the document application's, seeds 002 and 003)."""

import ipaddress
from collections.abc import Mapping

import msgspec

from turnkeeper.dialects import exchange
from turnkeeper.dialects.exchange import (
    Answer,
    Call,
    Dialect,
    Parts,
    Route,
    decode_object,
    encode_json,
    error_answer,
)
from turnkeeper.domain import Role
from turnkeeper.errors import InvalidRequest, TurnkeeperError, WrongPassword

_COOKIE = "turnkeeper_login"
_SECURE_COOKIE = "__Host-turnkeeper_login"  # browsers take it over HTTPS alone, for one host alone


class LoginRequest(msgspec.Struct):
    username: str | None = None
    password: str | None = None


_login_request = msgspec.json.Decoder(LoginRequest)


async def log_in(parts: Parts, call: Call) -> Answer:
    request = decode_object(_login_request, call.body)
    for name in ("username", "password"):
        if not getattr(request, name):
            raise InvalidRequest(f"{name} is missing")
    if parts.accounts is None:  # nobody is asked for credentials: everyone is the one user
        return _welcome(call.caller, "admin")
    name, password = request.username or "", request.password or ""
    token, user = await parts.accounts.log_in(name, password, network_of(call.address))
    earlier = read_cookie(call.headers, secure=_is_secure(call))
    if earlier:
        await parts.accounts.log_out(earlier)
    cookie = _encode_cookie(call, token, parts.accounts.login_seconds)
    return _welcome(user.name, user.role, cookie)


async def log_out(parts: Parts, call: Call) -> Answer:
    token = read_cookie(call.headers, secure=_is_secure(call))
    body = encode_json({"success": True})
    if parts.accounts is None:
        return Answer(200, body)
    if token:
        await parts.accounts.log_out(token)
    return Answer(200, body, (_encode_cookie(call, "", 0),))


def _welcome(name: str, role: Role, *headers: tuple[bytes, bytes]) -> Answer:
    body = {"success": True, "user": {"username": name, "role": role}}
    return Answer(200, encode_json(body), ((b"cache-control", b"no-store"), *headers))


def network_of(address: str) -> str:
    """What attempts are counted by: an address, or of IPv6 the network that one client has."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return address
    if parsed.version == 4:
        return address
    if parsed.ipv4_mapped is not None:
        return str(parsed.ipv4_mapped)
    return str(ipaddress.ip_network((parsed.packed[:8] + bytes(8), 64)))


# --- The cookie --------------------------------------------------------------------------------


def read_cookie(headers: Mapping[bytes, bytes], *, secure: bool) -> str | None:
    """The token of the login that a browser shows; None if it shows none."""
    cookies = headers.get(b"cookie")
    if cookies is None:
        return None
    wanted = _SECURE_COOKIE if secure else _COOKIE
    for cookie in cookies.decode("latin-1").split(";"):
        # Not all white space: to browsers `\xa0__Host-…` is another name, which anyone may set.
        name, _, value = cookie.strip(" \t").partition("=")
        if name == wanted:
            return value
    return None


def _is_secure(call: Call) -> bool:
    return call.base.startswith("https:")


def _encode_cookie(call: Call, token: str, seconds: int) -> tuple[bytes, bytes]:
    name = _SECURE_COOKIE if _is_secure(call) else _COOKIE
    secure = "; Secure" if _is_secure(call) else ""
    cookie = f"{name}={token}; Path=/; Max-Age={seconds}; HttpOnly; SameSite=Lax{secure}"
    return b"set-cookie", cookie.encode()


# --- Errors: the rows of the wire page are `{"error": sentence}` and nothing else -----------------


def encode_error(error: TurnkeeperError) -> Answer:
    if isinstance(error, (InvalidRequest, WrongPassword)):
        return error_answer(error, {"error": error.sentence})
    return exchange.encode_error(error)


DIALECT = Dialect(
    routes=(
        Route("POST", "/login", log_in, "Log in with a name and a password", is_open=True),
        Route("POST", "/logout", log_out, "End the login", scope=None),
    ),
    encode_error=encode_error,
    prefixes=("/login", "/logout"),
)
