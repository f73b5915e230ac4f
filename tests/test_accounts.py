"""Who may come in: passwords, logins, keys, and what those meet who guess."""

import asyncio
import sqlite3
import timeit
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from argon2 import PasswordHasher

from turnkeeper.accounts import Accounts
from turnkeeper.callers import LoginRules
from turnkeeper.compose import open_driver
from turnkeeper.domain import ALL_SCOPES, USER_SCOPES, Caller, Identity
from turnkeeper.errors import InvalidRequest, TooManyAttempts, UserNotFound, WrongPassword
from turnkeeper.stores.accounts import SqlAccounts
from turnkeeper.throttle import Throttle

NOW = 1_700_000_000_000
DAY = 86_400_000
PASSWORD = "correct horse"


class Clock:
    """Both clocks of `Accounts`, which stand still until they are told to go on."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def now(self) -> int:
        return NOW + round(self.seconds * 1000)

    def tick(self) -> float:
        return self.seconds


class CountingHasher(PasswordHasher):
    """As the real one, but quick; counts what it works."""

    def __init__(self, time_cost: int = 1) -> None:
        super().__init__(time_cost=time_cost, memory_cost=8, parallelism=1)
        self.worked = 0

    def hash(self, password: str | bytes, *, salt: bytes | None = None) -> str:
        self.worked += 1
        return super().hash(password, salt=salt)

    def verify(self, hash: str | bytes, password: str | bytes) -> bool:  # noqa: A002  its name
        self.worked += 1
        return super().verify(hash, password)


class CountingStore(SqlAccounts):
    """As the real one; counts the questions of `identify`."""

    asked = 0

    async def find_key(self, hash_: str):
        self.asked += 1
        return await super().find_key(hash_)


class Rig:
    """Accounts on a database of their own, with `ann`, who has a password."""

    def __init__(self, path: Path, store: CountingStore) -> None:
        self.path = path
        self.store = store
        self.clock = Clock()
        self.hasher = CountingHasher()
        self.accounts = self.another()

    def another(self, hasher: PasswordHasher | None = None) -> Accounts:
        """As another process would have them, on the same database and at the same time."""
        return Accounts(
            self.store,
            now=self.clock.now,
            tick=self.clock.tick,
            rules=LoginRules(idle=7 * DAY, lifetime=30 * DAY),
            hasher=hasher or self.hasher,
        )

    async def log_in(self, name: str = "ann", password: str = PASSWORD, address: str = "a") -> str:
        token, _ = await self.accounts.log_in(name, password, address)
        return token

    async def fails(self, name: str = "ann", password: str = "wrong", address: str = "a") -> str:
        with pytest.raises((WrongPassword, TooManyAttempts)) as failed:
            await self.accounts.log_in(name, password, address)
        return failed.value.sentence


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    driver = await open_driver(f"sqlite:///{tmp_path}/t.db")
    rig = Rig(tmp_path / "t.db", CountingStore(driver))
    await rig.accounts.create_user("ann", "user", PASSWORD)
    yield rig
    await driver.close()


# --- Logging in --------------------------------------------------------------------------------


async def test_a_login_is_known_until_it_is_ended(rig: Rig) -> None:
    token = await rig.log_in()
    ann = Caller("ann", is_admin=False, scopes=USER_SCOPES)
    assert await rig.accounts.identify(token, "login") == ann
    await rig.accounts.log_out(token)
    assert await rig.accounts.identify(token, "login") is None
    await rig.accounts.log_out(token)


async def test_every_login_is_another_token(rig: Rig) -> None:
    tokens = {await rig.log_in() for _ in range(5)}
    assert len(tokens) == 5
    assert all(len(token) == 43 for token in tokens)


async def test_a_token_is_no_key_and_a_key_no_token(rig: Rig) -> None:
    token = await rig.log_in()
    key, _ = await rig.accounts.create_key("ann", "")
    assert await rig.accounts.identify(token, "key") is None
    assert await rig.accounts.identify(key, "login") is None
    assert await rig.accounts.identify(key, "key") is not None
    assert await rig.accounts.identify(key, "login") is None  # though it is remembered now


async def test_no_secret_is_in_the_database(rig: Rig) -> None:
    token = await rig.log_in()
    key, _ = await rig.accounts.create_key("ann", "mine")
    await rig.accounts.set_admin_key("x" * 40)
    dump = "\n".join(sqlite3.connect(rig.path).iterdump())
    assert "$argon2id$" in dump
    for secret in (PASSWORD, token, key, key.removeprefix("tk_"), "x" * 40):
        assert secret not in dump


async def test_unknown_disabled_and_passwordless_users_fail_like_a_wrong_password(
    rig: Rig,
) -> None:
    await rig.accounts.create_user("bot", "user", None)
    await rig.accounts.create_user("gone", "user", PASSWORD)
    await rig.accounts.disable_user("gone")
    sentences, works = set(), []
    for name in ("ann", "bot", "gone", "nobody", "no name\0", "x" * 100, ""):
        before = rig.hasher.worked
        sentences.add(await rig.fails(name, "guess", address=f"of {name}"))
        works.append(rig.hasher.worked - before)
    assert sentences == {"Invalid username or password"}
    assert works == [1] * 7


async def test_a_password_hash_is_renewed_when_the_parameters_change(rig: Rig) -> None:
    harder = rig.another(CountingHasher(time_cost=2))
    _, before = await rig.store.find_password("ann") or (None, "")
    await asyncio.gather(*[harder.log_in("ann", PASSWORD, "b") for _ in range(3)])
    _, after = await rig.store.find_password("ann") or (None, "")
    assert ("t=1," in before, "t=2," in after) == (True, True)
    assert await rig.log_in()


async def test_passwords_of_any_characters(rig: Rig) -> None:
    password = "pä\0ss \ud83d\ude42🙂 ￾"
    with pytest.raises(WrongPassword):
        await rig.accounts.log_in("ann", password, "a")
    await rig.accounts.set_password("ann", "pä\0ss 🙂🙂🙂")
    assert await rig.log_in(password="pä\0ss 🙂🙂🙂")
    for wrong in ("short", "x" * 1025):
        with pytest.raises(InvalidRequest):
            await rig.accounts.set_password("ann", wrong)


@pytest.mark.parametrize("name", ["", "a b", "x" * 129, "ann/..", "änn", "a\n"])
async def test_names_that_cannot_be_had(rig: Rig, name: str) -> None:
    with pytest.raises(InvalidRequest, match="128 characters"):
        await rig.accounts.create_user(name, "user", None)


# --- How long it lasts -------------------------------------------------------------------------


async def test_a_login_ends_when_it_is_idle(rig: Rig) -> None:
    token = await rig.log_in()
    for _ in range(3):
        rig.clock.seconds += 6.9 * 86_400
        assert await rig.accounts.identify(token, "login")
    rig.clock.seconds += 7.1 * 86_400
    assert await rig.accounts.identify(token, "login") is None
    assert await rig.store.find_login("x") is None


async def test_a_login_ends_in_any_case(rig: Rig) -> None:
    token = await rig.log_in()
    for _ in range(30):
        assert await rig.accounts.identify(token, "login")
        rig.clock.seconds += 86_400 + 1
    assert await rig.accounts.identify(token, "login") is None


async def test_logins_that_are_over_are_dropped_by_later_ones(rig: Rig) -> None:
    await rig.log_in()
    rig.clock.seconds += 8 * 86_400
    await rig.log_in()
    [(count,)] = sqlite3.connect(rig.path).execute("SELECT COUNT(*) FROM logins").fetchall()
    assert count == 1


async def test_that_it_was_seen_is_written_once_a_minute(rig: Rig) -> None:
    token = await rig.log_in()
    seen = "SELECT seen_at FROM logins"
    written = set()
    for _ in range(60):
        rig.clock.seconds += 3
        await rig.accounts.identify(token, "login")
        written |= set(sqlite3.connect(rig.path).execute(seen).fetchall())
    assert len(written) == 4


async def test_what_ends_logins_ends_them_at_once(rig: Rig) -> None:
    for end in (
        lambda: rig.accounts.disable_user("ann"),
        lambda: rig.accounts.set_password("ann", PASSWORD),
    ):
        token = await rig.log_in()
        key, _ = await rig.accounts.create_key("ann", "")
        assert await rig.accounts.identify(token, "login")
        assert await rig.accounts.identify(key, "key")
        await end()
        assert await rig.accounts.identify(token, "login") is None
        disabled = (await rig.accounts.list_users())[0].disabled
        assert (await rig.accounts.identify(key, "key") is None) == disabled
        await rig.accounts.enable_user("ann")
        assert await rig.accounts.identify(token, "login") is None
        assert await rig.accounts.identify(key, "key")


# --- Keys --------------------------------------------------------------------------------------


async def test_a_key_looks_like_one_and_is_told_once(rig: Rig) -> None:
    secret, key = await rig.accounts.create_key("ann", "laptop")
    assert secret.startswith("tk_")
    assert len(secret) == 46
    assert await rig.accounts.list_keys("ann") == [key]
    ann = Caller("ann", is_admin=False, key=key.id, scopes=USER_SCOPES)
    assert await rig.accounts.identify(secret, "key") == ann
    await rig.accounts.revoke_key(key.id)
    assert await rig.accounts.identify(secret, "key") is None


async def test_keys_need_a_user_and_a_name_that_is_free_to_use(rig: Rig) -> None:
    with pytest.raises(UserNotFound):
        await rig.accounts.create_key("eve", "")
    for name in ("environment", "x" * 101, "a\nb"):
        with pytest.raises(InvalidRequest):
            await rig.accounts.create_key("ann", name)


@pytest.mark.parametrize("key", ["", "tk_", "x" * 1_000_000, "\0", "tk_ä", "\udcff", "' OR 1=1 --"])
async def test_odd_credentials_are_nobodys(rig: Rig, key: str) -> None:
    assert await rig.accounts.identify(key, "key") is None
    assert await rig.accounts.identify(key, "login") is None


async def test_an_answer_is_remembered_for_a_second(rig: Rig) -> None:
    secret, key = await rig.accounts.create_key("ann", "")
    for _ in range(100):
        assert await rig.accounts.identify(secret, "key")
    assert rig.store.asked == 1
    await rig.another().revoke_key(key.id)  # as another process does it
    rig.clock.seconds += 0.99
    assert await rig.accounts.identify(secret, "key")
    rig.clock.seconds += 0.02
    assert await rig.accounts.identify(secret, "key") is None


async def test_an_answer_that_a_change_overtook_is_not_remembered(rig: Rig) -> None:
    secret, key = await rig.accounts.create_key("ann", "")
    answer = asyncio.Event()
    find = rig.store.find_key

    async def slow(hash_: str):
        found = await find(hash_)
        await answer.wait()
        return found

    rig.store.find_key = slow  # type: ignore[method-assign]
    identifying = asyncio.create_task(rig.accounts.identify(secret, "key"))
    await asyncio.sleep(0.05)
    await rig.accounts.revoke_key(key.id)
    answer.set()
    assert await identifying is not None  # it was asked before
    assert await rig.accounts.identify(secret, "key") is None


async def test_a_remembered_answer_is_cheap(rig: Rig) -> None:
    secret, _ = await rig.accounts.create_key("ann", "")
    await rig.accounts.identify(secret, "key")

    def ask() -> None:
        with pytest.raises(StopIteration):
            rig.accounts.identify(secret, "key").send(None)

    def identify() -> None:
        try:
            rig.accounts.identify(secret, "key").send(None)
        except StopIteration:
            return

    ask()
    assert min(timeit.repeat(identify, number=1000, repeat=20)) / 1000 < 5e-6


async def test_memory_is_bounded(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("turnkeeper.callers._REMEMBERED_SIZE", 3)
    for _ in range(10):
        secret, _ = await rig.accounts.create_key("ann", "")
        assert await rig.accounts.identify(secret, "key")
    assert len(rig.accounts._callers._known) <= 3


async def test_a_key_ends_when_it_expires_however_lately_it_was_asked_for(rig: Rig) -> None:
    secret, key = await rig.accounts.create_key("ann", "", lifetime=10)
    rig.clock.seconds += 9.5
    caller = await rig.accounts.identify(secret, "key")
    assert caller is not None
    assert caller.expires_at == key.expires_at
    rig.clock.seconds += 0.49
    assert await rig.accounts.identify(secret, "key")
    rig.clock.seconds += 0.01
    assert await rig.accounts.identify(secret, "key") is None


async def test_the_old_secret_ends_when_it_should(rig: Rig) -> None:
    first, key = await rig.accounts.create_key("ann", "")
    second, _ = await rig.accounts.rotate_key(key.id, overlap=10)
    for seconds, good in ((9.9, True), (0.1, False)):
        rig.clock.seconds += seconds
        assert (await rig.accounts.identify(first, "key") is not None) == good
        assert await rig.accounts.identify(second, "key")


async def test_a_use_is_kept_once_a_minute(rig: Rig) -> None:
    secret, key = await rig.accounts.create_key("ann", "")

    async def used_at() -> int | None:
        await rig.accounts.keep_uses()
        return (await rig.accounts.get_key(key.id)).used_at

    assert await used_at() is None
    assert await rig.accounts.identify(secret, "key")
    assert await used_at() == NOW
    rig.clock.seconds += 59
    assert await rig.accounts.identify(secret, "key")
    assert await used_at() == NOW
    rig.clock.seconds += 2
    assert await rig.accounts.identify(secret, "key")
    assert await used_at() == NOW + 61_000


async def test_an_admin_who_becomes_a_user_is_one_by_every_key(rig: Rig) -> None:
    await rig.accounts.set_role("ann", "admin")
    secret, key = await rig.accounts.create_key("ann", "")
    less, _ = await rig.accounts.create_key("ann", "", scopes={"chat"})
    callers = [await rig.accounts.identify(one, "key") for one in (secret, less)]
    assert [caller and caller.is_admin for caller in callers] == [True, False]
    await rig.accounts.set_role("ann", "user")
    caller = await rig.accounts.identify(secret, "key")
    assert caller is not None
    assert (caller.is_admin, caller.scopes, key.scopes) == (False, USER_SCOPES, ALL_SCOPES)


class CountingIssuer:
    """Believes every token, for a minute; counts what it is asked."""

    asked = 0

    async def read(self, token: str) -> Identity | None:
        self.asked += 1
        return Identity(token.partition(".")[0], USER_SCOPES, NOW + 60_000)


async def test_an_issuers_token_is_checked_once_until_it_expires(rig: Rig) -> None:
    issuer = CountingIssuer()
    accounts = Accounts(rig.store, now=rig.clock.now, tick=rig.clock.tick, issuer=issuer)
    token = "eyJeve.b.c"
    for _ in range(15):
        caller = await accounts.identify(token, "key")
        assert caller is not None
        assert (caller.name, caller.expires_at) == ("eyJeve", NOW + 60_000)
        rig.clock.seconds += 1.9
    assert issuer.asked == 1
    await rig.accounts.create_user("eyJeve", "user", None)
    await rig.another().disable_user("eyJeve")  # as another process does it
    rig.clock.seconds += 1.01
    assert await accounts.identify(token, "key") is None
    await rig.accounts.enable_user("eyJeve")
    assert await accounts.identify(token, "key")
    rig.clock.seconds = 60
    assert await accounts.identify(token, "key") is None
    assert await accounts.identify(token, "login") is None


# --- The environment's key ---------------------------------------------------------------------


async def test_the_environments_key_is_an_admins(rig: Rig) -> None:
    first, second = "a" * 40, "b" * 40

    async def is_admin(secret: str) -> bool:
        caller = await rig.accounts.identify(secret, "key")
        return caller is not None and (caller.name, caller.is_admin) == ("admin", True)

    await rig.accounts.set_admin_key(first)
    assert await is_admin(first)
    await rig.accounts.set_admin_key(second)
    assert await rig.accounts.identify(first, "key") is None
    assert await is_admin(second)
    await rig.accounts.set_admin_key(None)
    assert await rig.accounts.identify(second, "key") is None


# --- Guessing ----------------------------------------------------------------------------------


async def test_after_five_failures_even_the_right_password_waits(rig: Rig) -> None:
    for n in range(5):
        assert await rig.fails(address=f"{n}") == "Invalid username or password"
    with pytest.raises(TooManyAttempts) as refused:
        await rig.log_in(address="new")
    assert refused.value.retry_after == 1
    before = rig.hasher.worked
    await rig.fails(address="new")
    assert rig.hasher.worked == before  # nothing is even looked at
    rig.clock.seconds += 1.01
    assert await rig.log_in(address="new")
    await rig.fails(address="other")
    assert await rig.log_in(address="other")  # a right one makes the user's failures forgotten


async def test_nobody_is_locked_out_for_long(rig: Rig) -> None:
    for n in range(100):
        await rig.fails(address=f"{n}")
        rig.clock.seconds += 31
    await rig.fails(address="x")
    rig.clock.seconds += 30.01
    assert await rig.log_in()


async def test_one_address_that_tries_many_users_waits_long(rig: Rig) -> None:
    for n in range(30):
        await rig.fails(f"user{n}")
        rig.clock.seconds += 901
    await rig.fails()
    with pytest.raises(TooManyAttempts) as refused:
        await rig.log_in()
    assert refused.value.retry_after == 900
    assert await rig.log_in(address="elsewhere")


async def test_a_login_of_ones_own_does_not_pardon_an_address(rig: Rig) -> None:
    await rig.accounts.create_user("eve", "user", PASSWORD)
    for n in range(4):
        await rig.fails(f"user{n}")
    assert await rig.log_in("eve")
    await rig.fails("user5")
    with pytest.raises(TooManyAttempts):
        await rig.log_in("eve")


async def test_many_guesses_at_once_are_no_way_around(rig: Rig) -> None:
    results = await asyncio.gather(
        *[rig.fails(password=f"guess {n}", address=f"{n}") for n in range(50)]
    )
    assert results.count("Invalid username or password") == 5


def test_a_wait_doubles_up_to_the_longest() -> None:
    throttle, now, waits = Throttle(30), 0.0, []
    for _ in range(12):
        throttle.attempt("ann", now)
        waits.append(throttle.wait("ann", now))
        now += waits[-1]
    assert waits == [0, 0, 0, 0, 1, 2, 4, 8, 16, 30, 30, 30]
    assert throttle.wait("bob", now) == 0


def test_a_wait_counts_from_the_end_of_an_attempt() -> None:
    throttle = Throttle(30)
    for _ in range(6):
        throttle.attempt("ann", 0)
    throttle.fail("ann", 10)
    throttle.fail("bob", 10)
    assert (throttle.wait("ann", 10), throttle.wait("bob", 10)) == (2, 0)


def test_failures_are_forgotten_after_an_hour() -> None:
    throttle = Throttle(30)
    for _ in range(9):
        throttle.attempt("ann", 0)
    throttle.attempt("ann", 3700)
    assert throttle.wait("ann", 3700) == 0


def test_a_throttle_is_bounded_and_keeps_the_latest() -> None:
    throttle = Throttle(30, size=100)
    for n in range(1000):
        for _ in range(5):
            throttle.attempt(f"{n}", 0)
    assert len(throttle) == 100
    assert throttle.wait("999", 0) == 1
    assert throttle.wait("0", 0) == 0
