"""Users, logins and API keys: who a request is from, and who may say so.

Knows the store by its contract; does not know HTTP, cookies or SQL. Secrets are random and pass
through here once: what is kept is the SHA-256 of a token or key, which is looked up, and the
argon2id hash of a password.
"""

import base64
import hashlib
import time
from asyncio import get_running_loop
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Literal, TypeVar

import msgspec
from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError

from turnkeeper.contracts import AccountStore
from turnkeeper.domain import (
    USER_NAME,
    Caller,
    Key,
    Login,
    Role,
    TurnRef,
    User,
    is_user_name,
    make_key_id,
    make_owner,
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

REMEMBERED = 1.0  # seconds that an answer of `identify` holds

_SECRET_BYTES = 32
_LONGEST_SECRET = 512  # characters; none of ours is so long
_REMEMBERED_SIZE = 10_000
_SEEN_EVERY = 60_000  # ms
_DROP_EVERY = 3_600_000  # ms between two removals of logins that are over
_HASHING_AT_ONCE = 2  # each takes a core for a tenth of a second, and 64 MiB
_HASHING_WAITING = 32
_FORGOTTEN_AT_ONCE = 20  # sessions, and documents
_USER_WAIT = 30.0  # short: whoever knows a name must not be able to lock its user out
_ADDRESS_WAIT = 900.0

CredentialKind = Literal["key", "login"]


class LoginRules(msgspec.Struct, frozen=True):
    """How long a login lasts: `idle` since it was last seen, `lifetime` in all; milliseconds."""

    idle: int = 7 * 86_400_000
    lifetime: int = 30 * 86_400_000


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
        hasher: PasswordHasher | None = None,
    ) -> None:
        """`now` is the time in ms since 1970; `tick` are seconds that never go back."""
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
        self._known: dict[tuple[bytes, CredentialKind], tuple[Caller, float]] = {}
        self._changes = 0
        self._dropped_at = 0

    def close(self) -> None:
        self._threads.shutdown(wait=False)

    @property
    def login_seconds(self) -> int:
        """How long a login lasts at most."""
        return self._rules.lifetime // 1000

    # --- Who it is ---------------------------------------------------------------------------

    async def identify(self, credential: str, kind: CredentialKind) -> Caller | None:
        """Who shows this key, or the token of this login; None if it is not known any more.

        The answer is up to a second old, but never older than a change made through this object.
        """
        digest = hashlib.sha256(_to_bytes(credential))
        mark = digest.digest(), kind
        known = self._known.get(mark)
        begun = self._tick()
        if known is not None and begun < known[1]:
            return known[0]
        if len(credential) > _LONGEST_SECRET:
            return None
        changes = self._changes
        find = self._find_key if kind == "key" else self._find_login
        user = await find(digest.hexdigest())
        if user is None:
            self._known.pop(mark, None)
            return None
        caller = Caller(user.name, user.role == "admin")
        if changes == self._changes:  # else it may be older than the change
            if len(self._known) >= _REMEMBERED_SIZE:
                self._known.clear()
            self._known[mark] = (caller, begun + REMEMBERED)
        return caller

    async def _find_key(self, hash_: str) -> User | None:
        return await self._store.find_key(hash_)

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

    def _forget_callers(self) -> None:
        self._changes += 1
        self._known.clear()

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
        await self._drop_logins()
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
            return self._hasher.verify(password_hash, _to_bytes(password))
        except (VerificationError, InvalidHashError):
            return False

    async def log_out(self, token: str) -> None:
        """End a login. Nothing happens if it is over."""
        try:
            await self._store.end_login(_hash_secret(token))
        finally:
            self._forget_callers()

    async def _drop_logins(self) -> None:
        now = self._now()
        if now - self._dropped_at >= _DROP_EVERY:
            self._dropped_at = now
            await self._store.drop_logins(now - self._rules.lifetime, now - self._rules.idle)

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
            self._forget_callers()

    async def disable_user(self, name: str) -> None:
        """Keep a user out: logins end, keys do not work. Raises UserNotFound."""
        try:
            await self._store.set_disabled(name, True)
        finally:
            self._forget_callers()

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
                self._forget_callers()
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

    async def create_key(self, user: str, name: str) -> tuple[str, Key]:
        """A new key of a user, which nobody can be told again, and what is kept of it.

        Raises:
            UserNotFound
            InvalidRequest: the name is too long, or that of the key of the setting `admin_key`.
        """
        if name == ENVIRONMENT:
            raise InvalidRequest(f"The name {ENVIRONMENT} is that of the setting admin_key")
        if len(name) > KEY_NAME_LENGTH or not (name.isprintable() or not name):
            raise InvalidRequest(
                f"The name of a key has at most {KEY_NAME_LENGTH} characters that can be printed"
            )
        secret = KEY_PREFIX + self._new_secret()
        key = Key(make_key_id(self._random.bits(50)), user, name, self._now())
        await self._store.create_key(key, _hash_secret(secret))
        return secret, key

    async def list_keys(self, user: str | None = None) -> Sequence[Key]:
        """The keys of a user, or of all. Raises UserNotFound."""
        return await self._store.list_keys(user)

    async def revoke_key(self, id_: str) -> Key:
        """Make a key none any more. Raises KeyNotFound."""
        try:
            return await self._store.revoke_key(id_)
        finally:
            self._forget_callers()

    async def set_admin_key(self, secret: str | None) -> None:
        """Let exactly this key be the one that the environment gives to the user `admin`.

        The user is made if it is not there. With None there is no such key.
        """
        key = Key(make_key_id(self._random.bits(50)), ADMIN, ENVIRONMENT, self._now())
        try:
            await self._store.set_admin_key(key, None if secret is None else _hash_secret(secret))
        finally:
            self._forget_callers()

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
        return await self._run(lambda: self._hasher.hash(_to_bytes(password)))

    async def _run(self, work: Callable[[], T]) -> T:
        self._hashing += 1
        try:
            return await get_running_loop().run_in_executor(self._threads, work)
        finally:
            self._hashing -= 1


def _hash_secret(secret: str) -> str:
    """What is kept of a token or key: enough, since no one can guess 256 random bits."""
    return hashlib.sha256(_to_bytes(secret)).hexdigest()


def _to_bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")  # whatever came in, it is compared
