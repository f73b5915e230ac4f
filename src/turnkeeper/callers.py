"""Who a request is from: what it shows is looked up, and the answer remembered for a moment.

Knows keys, logins, session tokens and what an outside identity provider says, by contract; does
not know HTTP or SQL. A secret is looked up by its SHA-256, so that no comparison takes a time that
tells something.
"""

import hashlib
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Literal

import msgspec

from turnkeeper.contracts import AccountStore, Issuer
from turnkeeper.domain import (
    ALL_SCOPES,
    Caller,
    Identity,
    Key,
    Role,
    Scope,
    User,
    scopes_of,
    split_owner,
)
from turnkeeper.errors import StoreUnavailable, UserNotFound

CredentialKind = Literal["key", "login"]

TOKEN_PREFIX = "ts_"  # noqa: S105  what a session token begins with
TOKEN_SCOPES: frozenset[Scope] = frozenset({"chat", "read"})

_LONGEST_SECRET = 512  # characters; none of ours is so long
_LONGEST_JWT = 16_384
REMEMBERED = 1.0  # seconds that an answer of `identify` holds
_REMEMBERED_SIZE = 10_000
_SEEN_EVERY = 60_000  # ms
USED_EVERY = 60_000  # ms


class LoginRules(msgspec.Struct, frozen=True):
    """How long a login lasts: `idle` since it was last seen, `lifetime` in all; milliseconds."""

    idle: int = 7 * 86_400_000
    lifetime: int = 30 * 86_400_000


class Callers:
    """Finds out who shows a credential."""

    def __init__(
        self,
        store: AccountStore,
        issuer: Issuer | None,
        rules: LoginRules,
        *,
        now: Callable[[], int],
        tick: Callable[[], float],
    ) -> None:
        """`now` is the time in ms since 1970; `tick` are seconds that never go back."""
        self._store = store
        self._issuer = issuer
        self._rules = rules
        self._now = now
        self._tick = tick
        self._known: dict[tuple[bytes, CredentialKind], tuple[Caller, float]] = {}
        self._identities: dict[bytes, Identity] = {}
        self._uses: dict[str, int] = {}
        self._changes = 0

    async def identify(self, credential: str, kind: CredentialKind) -> Caller | None:
        """Who shows this key or token, or the token of this login; None if it is not good (now).

        The answer is up to a second old, but never older than what was forgotten, and never older
        than what it shows is good.
        """
        digest = hashlib.sha256(to_bytes(credential)).digest()
        mark = digest, kind
        known = self._known.get(mark)
        begun = self._tick()
        if known is not None and begun < known[1]:
            return known[0]
        changes = self._changes
        caller = await self._look_up(credential, digest, kind)
        left = REMEMBERED
        if caller is not None and caller.expires_at is not None:
            left = min(left, (caller.expires_at - self._now()) / 1000)
        if caller is None or left <= 0:
            self._known.pop(mark, None)
            return None
        if changes == self._changes:  # else it may be older than the change
            if len(self._known) >= _REMEMBERED_SIZE:
                self._known.clear()
            self._known[mark] = (caller, begun + left)
        return caller

    def forget(self) -> None:
        """Something has changed of what was remembered."""
        self._changes += 1
        self._known.clear()

    def take_uses(self) -> Mapping[str, int]:
        """When keys were used of which that is not yet noted to the minute, by id."""
        uses, self._uses = self._uses, {}
        return uses

    async def _look_up(self, credential: str, digest: bytes, kind: CredentialKind) -> Caller | None:
        if kind == "key" and self._issuer is not None and _looks_like_jwt(credential):
            return await self._by_issuer(self._issuer, credential, digest)
        if len(credential) > _LONGEST_SECRET:
            return None
        if kind == "login":
            return await self._by_login(digest.hex())
        if credential.startswith(TOKEN_PREFIX):
            found = await self._by_token(digest.hex())
            if found is not None:
                return found
        return await self._by_key(digest.hex())

    # --- By what is shown ----------------------------------------------------------------------

    async def _by_key(self, hash_: str) -> Caller | None:
        found = await self._store.find_key(hash_)
        if found is None:
            return None
        key, now = found.key, self._now()
        if found.is_old and now >= (key.old_until or 0):
            return None
        self._note_use(key, now)
        caller = _as_caller(found.user.name, found.user.role, key.scopes)
        expires_at = _earlier(key.expires_at, key.old_until if found.is_old else None)
        return msgspec.structs.replace(caller, key=key.id, limits=key.limits, expires_at=expires_at)

    def _note_use(self, key: Key, now: int) -> None:
        if abs(now - (key.used_at or 0)) >= USED_EVERY:
            self._uses[key.id] = now

    async def _by_token(self, hash_: str) -> Caller | None:
        found = await self._store.find_token(hash_)
        if found is None:
            return None
        token, key = found.token, found.key
        user, end_user = split_owner(found.owner)
        caller = Caller(
            user,
            is_admin=False,
            scopes=TOKEN_SCOPES,
            end_user=end_user,
            session=token.session_id,
            expires_at=token.expires_at,
        )
        if key is None:
            return caller
        self._note_use(key, self._now())
        return msgspec.structs.replace(
            caller,
            key=key.id,
            scopes=TOKEN_SCOPES & key.scopes,
            limits=key.limits,
            expires_at=_earlier(token.expires_at, key.expires_at),
        )

    async def _by_login(self, hash_: str) -> Caller | None:
        user = await self._find_login(hash_)
        return None if user is None else _as_caller(user.name, user.role, ALL_SCOPES)

    async def _find_login(self, hash_: str) -> User | None:
        found = await self._store.find_login(hash_)
        if found is None:
            return None
        login, user = found
        now = self._now()
        # Either way: if it is from the future, the clock was put back since.
        age, idle = abs(now - login.created_at), abs(now - login.seen_at)
        if age > self._rules.lifetime or idle > self._rules.idle:
            with suppress(StoreUnavailable):
                await self._store.end_login(hash_)
            return None
        if idle >= min(_SEEN_EVERY, self._rules.idle // 10):
            with suppress(StoreUnavailable):  # what only reads goes on while the disk is full
                await self._store.touch_login(hash_, now)
        return user

    async def _by_issuer(self, issuer: Issuer, token: str, digest: bytes) -> Caller | None:
        """By an identity provider's token. What it says of itself is checked once."""
        identity = self._identities.get(digest)
        if identity is None:
            if len(token) > _LONGEST_JWT:
                return None
            identity = await issuer.read(token)
            if identity is None:
                return None
            if len(self._identities) >= _REMEMBERED_SIZE:
                self._identities.clear()
            self._identities[digest] = identity
        if self._now() >= identity.expires_at:
            self._identities.pop(digest, None)
            return None
        with suppress(UserNotFound):  # there need be none
            if (await self._store.get_user(identity.name)).disabled:
                return None
        role: Role = "admin" if "admin" in identity.scopes else "user"
        caller = _as_caller(identity.name, role, identity.scopes)
        return msgspec.structs.replace(caller, expires_at=identity.expires_at)


def _as_caller(name: str, role: Role, scopes: frozenset[Scope]) -> Caller:
    allowed = scopes & scopes_of(role)
    return Caller(name, is_admin="admin" in allowed, scopes=allowed, role=role)


def _earlier(one: int | None, other: int | None) -> int | None:
    times = [time for time in (one, other) if time is not None]
    return min(times, default=None)


def _looks_like_jwt(credential: str) -> bool:
    """Whether it is three parts, the first of which begins as `{"` does in base 64."""
    return credential.startswith("eyJ") and credential.count(".") == 2


def to_bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")  # whatever came in, it is compared
