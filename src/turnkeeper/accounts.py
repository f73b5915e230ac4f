"""Users, logins, API keys and session tokens: who may come in, and with what.

Knows the store by its contract; does not know HTTP, cookies or SQL. Who comes in with it is found
out by `callers`. Secrets are random and pass through here once: what is kept is the SHA-256 of a
token or key, which is looked up, and the argon2id hash of a password.
"""

import base64
import hashlib
import time
from asyncio import get_running_loop
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TypeVar

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError

from turnkeeper.callers import (
    TOKEN_PREFIX,
    USED_EVERY,
    Callers,
    CredentialKind,
    LoginRules,
    to_bytes,
)
from turnkeeper.contracts import AccountStore, Issuer
from turnkeeper.domain import (
    NO_LIMITS,
    USER_NAME,
    Caller,
    IdempotencyKey,
    Key,
    Limits,
    Login,
    Role,
    Scope,
    SessionToken,
    TurnRef,
    User,
    is_user_name,
    make_key_id,
    make_owner,
    scopes_of,
)
from turnkeeper.errors import (
    InvalidRequest,
    StoreUnavailable,
    TooManyAttempts,
    UserNotFound,
    WrongPassword,
)
from turnkeeper.randomness import Randomness
from turnkeeper.throttle import Throttle

T = TypeVar("T")

KEY_PREFIX = "tk_"  # by which people, and programs that look for leaked secrets, know a key
KEY_NAME_LENGTH = 100
PASSWORD_LENGTHS = (8, 1024)  # characters
ADMIN = "admin"
ENVIRONMENT = "environment"  # the name of the key that the setting `admin_key` gives

LONGEST_OVERLAP = 30 * 86_400  # seconds that a secret may be good after its rotation
TOKEN_SECONDS = (1, 86_400)  # that a session token may be good

_SECRET_BYTES = 32
_DROP_EVERY = 3_600_000  # ms between two removals of logins and tokens that are over
_HASHING_AT_ONCE = 2  # each takes a core for a tenth of a second, and 64 MiB
_HASHING_WAITING = 32
_FORGOTTEN_AT_ONCE = 20  # sessions, and documents
_USER_WAIT = 30.0  # short: whoever knows a name must not be able to lock its user out
_ADDRESS_WAIT = 900.0


class Accounts:
    """What is done with users, logins and keys."""

    def __init__(
        self,
        store: AccountStore,
        *,
        now: Callable[[], int],
        tick: Callable[[], float] = time.monotonic,
        randomness: Randomness | None = None,
        rules: LoginRules | None = None,
        issuer: Issuer | None = None,
        hasher: PasswordHasher | None = None,
    ) -> None:
        """`now` is the time in ms since 1970; `tick` are seconds that never go back.

        An `issuer`'s tokens let people in too.
        """
        self._store = store
        self._now = now
        self._tick = tick
        self._random = randomness or Randomness()
        self._rules = rules or LoginRules()
        self._hasher = hasher or PasswordHasher()
        self._threads = ThreadPoolExecutor(_HASHING_AT_ONCE, "turnkeeper-password")
        self._hashing = 0
        self._by_user = Throttle(_USER_WAIT)
        self._by_address = Throttle(_ADDRESS_WAIT)
        self._callers = Callers(store, issuer, self._rules, now=now, tick=tick)
        self._dropped_at = 0

    def close(self) -> None:
        self._threads.shutdown(wait=False)

    async def identify(self, credential: str, kind: CredentialKind) -> Caller | None:
        """Who shows this; see `Callers.identify`. What was changed here holds at once."""
        return await self._callers.identify(credential, kind)

    async def keep_uses(self) -> None:
        """Keep when keys were used, as long as the store takes it: it is no great loss."""
        uses = self._callers.take_uses()
        if uses:
            with suppress(StoreUnavailable):
                await self._store.keep_uses(uses)

    async def run(self, sleep: Callable[[float], Awaitable[None]]) -> None:
        """Keep uses once a minute, until cancelled."""
        while True:
            await sleep(USED_EVERY / 1000)
            await self.keep_uses()

    @property
    def login_seconds(self) -> int:
        """How long a login lasts at most."""
        return self._rules.lifetime // 1000

    # --- Logins --------------------------------------------------------------------------------

    async def log_in(self, name: str, password: str, address: str) -> tuple[str, User]:
        """A new login's token, and whose it is. `address` is where the attempt comes from.

        Raises:
            WrongPassword: or no such user, or one who may not log in.
            TooManyAttempts: by this address, for this user, or in all.
        """
        who = name if is_user_name(name) else ""
        self._admit(who, address)
        login = await self._check(name, password)
        now = self._tick()
        if login is None:
            self._by_user.fail(who, now)
            self._by_address.fail(address, now)
            raise WrongPassword("Invalid username or password")
        self._by_user.forget(who)
        self._by_address.take_back(address, now)
        await self._drop_old()
        return login

    def _admit(self, name: str, address: str) -> None:
        now = self._tick()
        wait = max(self._by_user.wait(name, now), self._by_address.wait(address, now))
        if self._hashing >= _HASHING_WAITING:
            wait = max(wait, 1.0)
        if wait > 0:
            raise TooManyAttempts("Too many attempts, try again later", wait)
        self._by_user.attempt(name, now)
        self._by_address.attempt(address, now)

    async def _check(self, name: str, password: str) -> tuple[str, User] | None:
        """A login if the password is right. As much work is done if there is no such user."""
        for _ in range(2):  # a second time if the hash was renewed meanwhile
            found = await self._store.find_password(name) if is_user_name(name) else None
            if found is None:
                await self._hash(password)
                return None
            user, password_hash = found
            if not await self._run(lambda: self._verify(password_hash, password)):  # noqa: B023
                return None
            renew = self._hasher.check_needs_rehash(password_hash)
            new_hash = await self._hash(password) if renew else None
            token, now = self._new_secret(), self._now()
            login = Login(_hash_secret(token), user.name, now, now)
            if await self._store.begin_login(login, password_hash, new_hash):
                return token, user
        return None

    def _verify(self, password_hash: str, password: str) -> bool:
        try:
            return self._hasher.verify(password_hash, to_bytes(password))
        except (VerificationError, InvalidHashError):
            return False

    async def log_out(self, token: str) -> None:
        """End a login. Nothing happens if it is over."""
        try:
            await self._store.end_login(_hash_secret(token))
        finally:
            self._callers.forget()

    async def _drop_old(self) -> None:
        now = self._now()
        if now - self._dropped_at >= _DROP_EVERY:
            self._dropped_at = now
            await self._store.drop_logins(now - self._rules.lifetime, now - self._rules.idle)
            await self._store.drop_tokens(now)

    # --- Users ---------------------------------------------------------------------------------

    async def create_user(self, name: str, role: Role, password: str | None) -> User:
        """Add a user; without a password it is one who comes in by keys alone.

        Raises:
            UserExists
            InvalidRequest: the name or the password is not one that can be had.
        """
        if not is_user_name(name):
            raise InvalidRequest(f"The name of a user must be {USER_NAME}")
        password_hash = await self._hash_new(password)
        user = User(name, role, False, password is not None, self._now())
        await self._store.create_user(user, password_hash)
        return user

    async def list_users(self) -> Sequence[User]:
        """Every user, by name."""
        return await self._store.list_users()

    async def get_user(self, name: str) -> User:
        """Raises UserNotFound."""
        return await self._store.get_user(name)

    async def set_role(self, name: str, role: Role) -> None:
        """Give a user another role. Raises UserNotFound."""
        try:
            await self._store.set_role(name, role)
        finally:
            self._callers.forget()

    async def delete_user(self, name: str) -> None:
        """Remove a user and every way in. Raises UserNotFound, UserNotEmpty."""
        try:
            await self._store.delete_user(name)
        finally:
            self._callers.forget()

    async def set_password(self, name: str, password: str | None) -> None:
        """Give a user another password, or none; all logins of the user end.

        Raises:
            UserNotFound
            InvalidRequest: the password is too short or too long.
        """
        password_hash = await self._hash_new(password)
        try:
            await self._store.set_password(name, password_hash)
        finally:
            self._callers.forget()

    async def disable_user(self, name: str) -> None:
        """Keep a user out: logins end, keys do not work. Raises UserNotFound."""
        try:
            await self._store.set_disabled(name, True)
        finally:
            self._callers.forget()

    async def enable_user(self, name: str) -> None:
        """Let a user in again, with the same password and keys. Raises UserNotFound."""
        await self._store.set_disabled(name, False)

    async def forget(
        self,
        user: str,
        end_user: str | None = None,
        *,
        settle: Callable[[], Awaitable[None]] | None = None,
        stop: Callable[[Sequence[TurnRef]], None] = lambda _: None,
    ) -> Mapping[str, int]:
        """Remove a person: all that is theirs, or names them, and what lets them in.

        `settle` is waited for once nobody can come in as this user any more, until no other process
        lets someone in whom it remembers; `stop` gets the turns that were under way. With
        `end_user` it is one of those for whom the user's applications act, and the user stays.

        Returns:
            How many rows of each table, of those that had any.

        Raises:
            UserNotFound: there is nothing of theirs, and no such user.
        """
        owner, removed = make_owner(user, end_user), Counter[str]()
        if end_user is None:
            try:
                removed.update((await self._store.forget_credentials(user)).removed)
            finally:
                self._callers.forget()
            if settle is not None:
                await settle()
        more = True
        while more:
            step = await self._store.forget_some(owner, _FORGOTTEN_AT_ONCE)
            removed.update(step.removed)
            stop(step.open_turns)
            more = step.more
        if not removed.total():
            raise UserNotFound(f"There is nothing of {owner} here")
        return {table: rows for table, rows in removed.items() if rows}

    async def can_anyone_enter(self) -> bool:
        """Whether any user who is not disabled has a password or a key."""
        return await self._store.can_anyone_enter()

    # --- Keys ----------------------------------------------------------------------------------

    async def create_key(
        self,
        user: str,
        name: str,
        *,
        scopes: Collection[Scope] | None = None,
        limits: Limits = NO_LIMITS,
        lifetime: int | None = None,
        request: IdempotencyKey | None = None,
    ) -> tuple[str, Key]:
        """A new key of a user, which nobody can be told again, and what is kept of it.

        `scopes` None are all that the user may have; `lifetime` is in seconds, None for ever.

        Raises:
            UserNotFound, KeyReused
            SecretNotKept: it was made under the same `request` before.
            InvalidRequest: the name is too long, or that of the key of the setting `admin_key`;
                or a scope that the user cannot have.
        """
        if name == ENVIRONMENT:
            raise InvalidRequest(f"The name {ENVIRONMENT} is that of the setting admin_key")
        if len(name) > KEY_NAME_LENGTH or not (name.isprintable() or not name):
            raise InvalidRequest(
                f"The name of a key has at most {KEY_NAME_LENGTH} characters that can be printed"
            )
        now = self._now()
        key = Key(
            make_key_id(self._random.bits(50)),
            user,
            name,
            now,
            self._check_scopes(await self._store.get_user(user), scopes),
            limits,
            None if lifetime is None else now + lifetime * 1000,
        )
        secret = KEY_PREFIX + self._new_secret()
        await self._store.create_key(key, _hash_secret(secret), request)
        return secret, key

    def _check_scopes(self, user: User, scopes: Collection[Scope] | None) -> frozenset[Scope]:
        allowed = scopes_of(user.role)
        if scopes is None:
            return allowed
        if not scopes:
            raise InvalidRequest("A key needs a scope at least")
        if not allowed.issuperset(scopes):
            raise InvalidRequest("Only a key of an admin's can have the scope admin")
        return frozenset(scopes)

    async def list_keys(self, user: str | None = None) -> Sequence[Key]:
        """The keys of a user, or of all. Raises UserNotFound."""
        return await self._store.list_keys(user)

    async def get_key(self, id_: str) -> Key:
        """Raises KeyNotFound."""
        return await self._store.get_key(id_)

    async def rotate_key(
        self, id_: str, *, overlap: int = 0, request: IdempotencyKey | None = None
    ) -> tuple[str, Key]:
        """Another secret for a key; the one it had is good for `overlap` seconds more.

        Raises:
            KeyNotFound, KeyReused
            SecretNotKept: it was rotated under the same `request` before.
            InvalidRequest: it is the key of the setting `admin_key`, or that is too long.
        """
        if not 0 <= overlap <= LONGEST_OVERLAP:
            raise InvalidRequest(f"overlap must be 0 to {LONGEST_OVERLAP} seconds")
        if (await self._store.get_key(id_)).name == ENVIRONMENT:
            raise InvalidRequest("This key is given by the setting admin_key: change that")
        secret, now = KEY_PREFIX + self._new_secret(), self._now()
        old_until = now + overlap * 1000 if overlap else None
        try:
            key = await self._store.rotate_key(
                id_, _hash_secret(secret), old_until, now=now, request=request
            )
        finally:
            self._callers.forget()
        return secret, key

    async def revoke_key(self, id_: str) -> Key:
        """Make a key none any more. Raises KeyNotFound."""
        try:
            return await self._store.revoke_key(id_)
        finally:
            self._callers.forget()

    async def set_admin_key(self, secret: str | None) -> None:
        """Let exactly this key be the one that the environment gives to the user `admin`.

        The user is made if it is not there. With None there is no such key.
        """
        key = Key(make_key_id(self._random.bits(50)), ADMIN, ENVIRONMENT, self._now())
        try:
            await self._store.set_admin_key(key, None if secret is None else _hash_secret(secret))
        finally:
            self._callers.forget()

    # --- Session tokens ------------------------------------------------------------------------

    async def create_token(
        self, session_id: str, by: Caller, seconds: int, *, request: IdempotencyKey | None = None
    ) -> tuple[str, SessionToken]:
        """A token that is good for one session alone, and for no longer than what `by` showed.

        Raises:
            SessionNotFound, KeyReused
            SecretNotKept: one was made under the same `request` before.
            InvalidRequest: it is to be good for too long.
        """
        least, most = TOKEN_SECONDS
        if not least <= seconds <= most:
            raise InvalidRequest(f"ttl must be {least} to {most} seconds")
        now = self._now()
        until = now + seconds * 1000
        token = SessionToken(
            session_id,
            by.name,
            by.key,
            until if by.expires_at is None else min(until, by.expires_at),
        )
        secret = TOKEN_PREFIX + self._new_secret()
        await self._store.create_token(token, _hash_secret(secret), now=now, request=request)
        await self._drop_old()
        return secret, token

    # --- Secrets -------------------------------------------------------------------------------

    def _new_secret(self) -> str:
        random = self._random.bytes(_SECRET_BYTES)
        return base64.urlsafe_b64encode(random).rstrip(b"=").decode()

    async def _hash_new(self, password: str | None) -> str | None:
        if password is None:
            return None
        least, most = PASSWORD_LENGTHS
        if not least <= len(password) <= most:
            raise InvalidRequest(f"A password has {least} to {most} characters")
        return await self._hash(password)

    async def _hash(self, password: str) -> str:
        return await self._run(lambda: self._hasher.hash(to_bytes(password)))

    async def _run(self, work: Callable[[], T]) -> T:
        self._hashing += 1
        try:
            return await get_running_loop().run_in_executor(self._threads, work)
        finally:
            self._hashing -= 1


def _hash_secret(secret: str) -> str:
    """What is kept of a token or key: enough, since no one can guess 256 random bits."""
    return hashlib.sha256(to_bytes(secret)).hexdigest()
