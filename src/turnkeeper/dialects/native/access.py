"""Who may come in, over HTTP: API keys, users, and tokens for one session.

A key is made by a person (a login, an identity provider's token) or by what has the scope `admin`:
one that has leaked must not be able to make others that outlive it. It may be changed for another
secret by itself.
"""

import asyncio
from typing import Annotated, Any

import msgspec
from msgspec import UNSET, Meta, UnsetType

from turnkeeper.accounts import Accounts
from turnkeeper.callers import REMEMBERED
from turnkeeper.dialects.exchange import (
    Answer,
    Call,
    Parts,
    Route,
    decode_object,
    decode_optional,
    encode_json,
)
from turnkeeper.dialects.turn_stream import encode_time
from turnkeeper.domain import (
    NO_LIMITS,
    Key,
    Limits,
    Role,
    Scope,
    User,
    check_end_user,
    find_session,
    is_key_id,
    is_user_name,
)
from turnkeeper.errors import InvalidRequest, KeyNotFound, MissingScope, NotFound, UserNotFound

TEN_YEARS = 10 * 366 * 86_400  # seconds

Lifetime = Annotated[int, Meta(ge=1, le=TEN_YEARS)]

# --- Bodies ------------------------------------------------------------------------------------


class KeyRequest(msgspec.Struct, forbid_unknown_fields=True):
    """`POST /api/keys`; everything may be left out. `expires_in` is in seconds."""

    user: str | None = None
    name: str = ""
    scopes: list[Scope] | None = None
    expires_in: Lifetime | None = None
    limits: Limits | None = None


class RotationRequest(msgspec.Struct, forbid_unknown_fields=True):
    """Seconds for which the secret that it had is good still."""

    overlap: int = 0


class TokenRequest(msgspec.Struct, forbid_unknown_fields=True):
    """Seconds that the token is to be good."""

    ttl: int = 3600


class UserRequest(msgspec.Struct, forbid_unknown_fields=True):
    """A user without a password comes in by keys alone."""

    name: str
    role: Role = "user"
    password: str | None = None


class UserChange(msgspec.Struct, forbid_unknown_fields=True):
    """What is left out stays as it is; a password of null takes it away."""

    role: Role | UnsetType = UNSET
    disabled: bool | UnsetType = UNSET
    password: str | UnsetType | None = UNSET


_key_request = msgspec.json.Decoder(KeyRequest)
_rotation_request = msgspec.json.Decoder(RotationRequest)
_token_request = msgspec.json.Decoder(TokenRequest)
_user_request = msgspec.json.Decoder(UserRequest)
_user_change = msgspec.json.Decoder(UserChange)

# --- Keys --------------------------------------------------------------------------------------


async def list_keys(parts: Parts, call: Call) -> Answer:
    accounts, who = _accounts(parts), call.who
    user = call.query.get("user", None if who.is_admin else who.name)
    if user is not None and user != who.name and not (who.is_admin and is_user_name(user)):
        raise UserNotFound("There is no such user")
    try:
        keys = await accounts.list_keys(user)
    except UserNotFound:
        if user != who.name:
            raise
        keys = ()  # known to an identity provider alone
    return Answer(200, encode_json({"keys": [encode_key(key) for key in keys]}))


async def create_key(parts: Parts, call: Call) -> Answer:
    accounts, who = _accounts(parts), call.who
    wanted = decode_optional(_key_request, call.body)
    if not who.is_admin:
        _check_own(call, wanted)
    user = who.name if wanted.user is None else wanted.user
    if not is_user_name(user):
        raise UserNotFound("There is no such user")
    # Who has less than a user in general gives no more.
    scopes = wanted.scopes if who.is_admin or wanted.scopes is not None else sorted(who.scopes)
    secret, key = await accounts.create_key(
        user,
        wanted.name,
        scopes=scopes,
        limits=wanted.limits or NO_LIMITS,
        lifetime=wanted.expires_in,
        request=call.key(),
    )
    return _with_secret(key, secret)


def _check_own(call: Call, wanted: KeyRequest) -> None:
    """Whether someone who is no admin may make such a key."""
    who = call.who
    if who.key is not None:
        raise MissingScope("A key makes no keys unless it has the scope admin")
    if wanted.user not in (None, who.name) or wanted.limits is not None:
        raise MissingScope("Keys of others, and limits, need the scope admin")
    if not who.scopes.issuperset(wanted.scopes or ()):
        raise MissingScope("A key cannot have scopes that you have not")


async def rotate_key(parts: Parts, call: Call) -> Answer:
    accounts = _accounts(parts)
    wanted = decode_optional(_rotation_request, call.body)
    id_ = await _key_of(accounts, call)
    secret, key = await accounts.rotate_key(id_, overlap=wanted.overlap, request=call.key())
    return _with_secret(key, secret)


async def revoke_key(parts: Parts, call: Call) -> Answer:
    accounts = _accounts(parts)
    await accounts.revoke_key(await _key_of(accounts, call))
    return Answer(204, b"")


async def _key_of(accounts: Accounts, call: Call) -> str:
    """The id in the path, if the caller may see to that key."""
    id_, who = call.path["key_id"], call.who
    if not is_key_id(id_):
        raise KeyNotFound("There is no such key")
    key = await accounts.get_key(id_)
    if not who.is_admin:
        if key.user != who.name:
            raise KeyNotFound(f"There is no key {id_}")
        if who.key not in (None, id_):
            raise MissingScope("A key sees to no other unless it has the scope admin")
    return id_


def _with_secret(key: Key, secret: str) -> Answer:
    return Answer(201, encode_json({"key": encode_key(key), "secret": secret}))


# --- Tokens for one session --------------------------------------------------------------------


async def create_token(parts: Parts, call: Call) -> Answer:
    accounts = _accounts(parts)
    choice = find_session(call.path["id"])
    wanted = decode_optional(_token_request, call.body)
    session = await parts.sessions.get(call.caller, choice)
    secret, token = await accounts.create_token(
        session.id, call.who, wanted.ttl, request=call.key()
    )
    body = {
        "token": secret,
        "session_id": token.session_id,
        "expires_at": encode_time(token.expires_at),
    }
    return Answer(201, encode_json(body))


# --- Users -------------------------------------------------------------------------------------


async def list_users(parts: Parts, _call: Call) -> Answer:
    users = await _accounts(parts).list_users()
    return Answer(200, encode_json({"users": [encode_user(user) for user in users]}))


async def create_user(parts: Parts, call: Call) -> Answer:
    accounts = _accounts(parts)
    wanted = decode_object(_user_request, call.body)
    user = await accounts.create_user(wanted.name, wanted.role, wanted.password)
    return Answer(201, encode_json({"user": encode_user(user)}))


async def change_user(parts: Parts, call: Call) -> Answer:
    accounts, name = _accounts(parts), _user_name(call)
    wanted = decode_object(_user_change, call.body)
    await accounts.get_user(name)
    if wanted.password is not UNSET:
        await accounts.set_password(name, wanted.password)
    if wanted.role is not UNSET:
        await accounts.set_role(name, wanted.role)
    if wanted.disabled is not UNSET:
        await (accounts.disable_user(name) if wanted.disabled else accounts.enable_user(name))
    return Answer(200, encode_json({"user": encode_user(await accounts.get_user(name))}))


async def delete_user(parts: Parts, call: Call) -> Answer:
    """Remove a user; with `?forget=true` also all that is theirs."""
    accounts, name = _accounts(parts), _user_name(call)
    forget = call.query.get("forget", "false")
    if forget not in ("true", "false"):
        raise InvalidRequest("forget must be true or false")
    if forget == "true":
        return await _forget(parts, name, None)
    await accounts.delete_user(name)
    return Answer(204, b"")


async def forget_end_user(parts: Parts, call: Call) -> Answer:
    return await _forget(parts, _user_name(call), check_end_user(call.path["end_user"]))


async def _forget(parts: Parts, name: str, end_user: str | None) -> Answer:
    removed = await _accounts(parts).forget(
        name, end_user, settle=_settle, stop=parts.engine.stop_gone
    )
    return Answer(200, encode_json({"removed": removed}))


async def _settle() -> None:
    """Until no other server of the database remembers who could come in."""
    await asyncio.sleep(REMEMBERED + 0.2)


def _user_name(call: Call) -> str:
    name = call.path["name"]
    if not is_user_name(name):
        raise UserNotFound("There is no such user")
    return name


def _accounts(parts: Parts) -> Accounts:
    if parts.accounts is None:
        raise NotFound("Nobody is asked for credentials here (auth is off), so there are none")
    return parts.accounts


# --- What they look like -----------------------------------------------------------------------


def encode_key(key: Key) -> dict[str, Any]:
    return {
        "id": key.id,
        "user": key.user,
        "name": key.name,
        "scopes": sorted(key.scopes),
        "limits": msgspec.to_builtins(key.limits),
        "created_at": encode_time(key.created_at),
        "expires_at": _time(key.expires_at),
        "last_used_at": _time(key.used_at),
        "old_secret_until": _time(key.old_until),
    }


def encode_user(user: User) -> dict[str, Any]:
    return {
        "name": user.name,
        "role": user.role,
        "disabled": user.disabled,
        "has_password": user.has_password,
        "created_at": encode_time(user.created_at),
    }


def _time(milliseconds: int | None) -> str | None:
    return None if milliseconds is None else encode_time(milliseconds)


_KEY = "/api/keys/{key_id}"
_USER = "/api/users/{name}"

ROUTES = (
    Route("GET", "/api/keys", list_keys, "List API keys, without their secrets", scope=None),
    Route("POST", "/api/keys", create_key, "Make an API key", scope=None),
    Route("POST", f"{_KEY}/rotate", rotate_key, "Give a key another secret", scope=None),
    Route("DELETE", _KEY, revoke_key, "Revoke a key", scope=None),
    Route("POST", "/api/chat-sessions/{id}/token", create_token, "Make a token for one session"),
    Route("GET", "/api/users", list_users, "List the users", admin=True),
    Route("POST", "/api/users", create_user, "Add a user", admin=True),
    Route("PATCH", _USER, change_user, "Change a user", admin=True),
    Route("DELETE", _USER, delete_user, "Remove a user", admin=True),
    Route(
        "DELETE",
        f"{_USER}/end-users/{{end_user*}}",
        forget_end_user,
        "Forget an end user of an application",
        admin=True,
    ),
)
