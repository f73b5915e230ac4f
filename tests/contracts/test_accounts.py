"""The exam of `contracts.AccountStore`, on every database."""

import asyncio
import itertools
from collections.abc import AsyncIterator

import msgspec
import pytest

from tests.contracts.test_store import NOW, a_turn, publish
from turnkeeper.compose import open_driver, visit_accounts
from turnkeeper.contracts import AccountStore, BegunTurn, FoundToken, Store
from turnkeeper.domain import ById, IdempotencyKey, Key, Limits, Login, SessionToken, User
from turnkeeper.errors import (
    ConfigError,
    KeyNotFound,
    KeyReused,
    SecretNotKept,
    SessionNotFound,
    UserExists,
    UserNotEmpty,
    UserNotFound,
)
from turnkeeper.stores.accounts import SqlAccounts
from turnkeeper.stores.store import SqlStore

_numbers = itertools.count(1)


@pytest.fixture
async def accounts(database: str) -> AsyncIterator[AccountStore]:
    driver = await open_driver(database)
    yield SqlAccounts(driver)
    await driver.close()


def a_user(name: str, *, role: str = "user", password: bool = False) -> User:
    return User(name, role, False, password, NOW)  # type: ignore[arg-type]


async def add(accounts: AccountStore, name: str, password_hash: str | None = None) -> User:
    user = a_user(name, password=password_hash is not None)
    await accounts.create_user(user, password_hash)
    return user


async def log_in(accounts: AccountStore, user: str, hash_: str, password: str = "h1") -> bool:
    return await accounts.begin_login(Login(hash_, user, NOW, NOW), password, None)


async def add_key(accounts: AccountStore, user: str, hash_: str, name: str = "") -> Key:
    key = Key(f"k{next(_numbers)}", user, name, NOW + next(_numbers))
    await accounts.create_key(key, hash_)
    return key


async def owner_of(accounts: AccountStore, hash_: str) -> User | None:
    found = await accounts.find_key(hash_)
    return None if found is None else found.user


# --- Users -------------------------------------------------------------------------------------


async def test_users_are_listed_by_name(accounts: AccountStore) -> None:
    zoe = await add(accounts, "zoe")
    ann = await add(accounts, "ann", "h1")
    upper = await add(accounts, "Bob")
    assert await accounts.list_users() == [upper, ann, zoe]


async def test_a_name_is_had_once(accounts: AccountStore) -> None:
    ann = await add(accounts, "ann", "h1")
    with pytest.raises(UserExists):
        await add(accounts, "ann")
    assert await accounts.find_password("ann") == (ann, "h1")


async def test_many_who_create_one_user_make_one(accounts: AccountStore) -> None:
    made = await asyncio.gather(
        *[add(accounts, "ann", f"h{n}") for n in range(9)], return_exceptions=True
    )
    assert sum(isinstance(each, User) for each in made) == 1
    assert len(await accounts.list_users()) == 1


async def test_only_those_who_may_log_in_have_a_password(accounts: AccountStore) -> None:
    await add(accounts, "ann", "h1")
    await add(accounts, "bob")
    assert await accounts.find_password("bob") is None
    assert await accounts.find_password("eve") is None
    await accounts.set_disabled("ann", True)
    assert await accounts.find_password("ann") is None
    await accounts.set_disabled("ann", False)
    assert await accounts.find_password("ann") is not None


async def test_who_is_not_there_cannot_be_changed(accounts: AccountStore) -> None:
    with pytest.raises(UserNotFound):
        await accounts.set_password("eve", "h1")
    with pytest.raises(UserNotFound):
        await accounts.set_disabled("eve", True)
    with pytest.raises(UserNotFound):
        await accounts.list_keys("eve")
    with pytest.raises(UserNotFound):
        await add_key(accounts, "eve", "a")


# --- Logins ------------------------------------------------------------------------------------


async def test_a_login_is_found_by_its_hash_until_it_ends(accounts: AccountStore) -> None:
    ann = await add(accounts, "ann", "h1")
    assert await log_in(accounts, "ann", "a")
    assert await log_in(accounts, "ann", "b")
    assert await accounts.find_login("a") == (Login("a", "ann", NOW, NOW), ann)
    await accounts.end_login("a")
    await accounts.end_login("a")
    assert await accounts.find_login("a") is None
    assert await accounts.find_login("b") is not None


async def test_a_login_begins_only_with_the_password_there_is(accounts: AccountStore) -> None:
    await add(accounts, "ann", "h1")
    assert not await log_in(accounts, "ann", "a", password="h0")
    assert not await log_in(accounts, "eve", "a")
    await accounts.set_disabled("ann", True)
    assert not await log_in(accounts, "ann", "a")
    assert await accounts.find_login("a") is None


async def test_a_login_may_bring_a_new_hash_and_ends_no_other(accounts: AccountStore) -> None:
    ann = await add(accounts, "ann", "h1")
    await log_in(accounts, "ann", "a")
    assert await accounts.begin_login(Login("b", "ann", NOW, NOW), "h1", "h2")
    assert await accounts.find_password("ann") == (ann, "h2")
    assert await accounts.find_login("a") is not None


async def test_another_password_ends_all_logins_of_its_user(accounts: AccountStore) -> None:
    await add(accounts, "ann", "h1")
    await add(accounts, "bob", "h1")
    await log_in(accounts, "ann", "a")
    await log_in(accounts, "bob", "b")
    await accounts.set_password("ann", "h2")
    assert await accounts.find_login("a") is None
    assert await accounts.find_login("b") is not None
    await accounts.set_password("bob", None)
    assert await accounts.find_login("b") is None
    assert [user.has_password for user in await accounts.list_users()] == [True, False]


async def test_who_is_disabled_loses_logins_for_good_and_keys_for_the_time(
    accounts: AccountStore,
) -> None:
    ann = await add(accounts, "ann", "h1")
    await log_in(accounts, "ann", "a")
    await add_key(accounts, "ann", "k")
    await accounts.set_disabled("ann", True)
    assert await accounts.find_login("a") is None
    assert await accounts.find_key("k") is None
    assert await accounts.list_users() == [msgspec.structs.replace(ann, disabled=True)]
    await accounts.set_disabled("ann", False)
    assert await accounts.find_login("a") is None
    assert await owner_of(accounts, "k") == ann


async def test_a_login_is_seen_later_and_never_earlier(accounts: AccountStore) -> None:
    await add(accounts, "ann", "h1")
    await log_in(accounts, "ann", "a")
    await accounts.touch_login("a", NOW + 9)
    await accounts.touch_login("a", NOW + 5)
    await accounts.touch_login("gone", NOW)
    found = await accounts.find_login("a")
    assert found is not None
    assert found[0].seen_at == NOW + 9


async def test_old_and_idle_logins_are_dropped(accounts: AccountStore) -> None:
    await add(accounts, "ann", "h1")
    for hash_, created, seen in (("old", 1, 90), ("idle", 50, 51), ("good", 50, 90)):
        await accounts.begin_login(Login(hash_, "ann", created, seen), "h1", None)
    assert await accounts.drop_logins(50, 60) == 2
    assert await accounts.find_login("good") is not None
    assert await accounts.drop_logins(50, 60) == 0


# --- Keys --------------------------------------------------------------------------------------


async def test_keys_are_listed_by_user_oldest_first(accounts: AccountStore) -> None:
    await add(accounts, "bob")
    await add(accounts, "ann")
    keys = [await add_key(accounts, user, f"h{n}") for n, user in enumerate(("bob", "ann", "ann"))]
    assert await accounts.list_keys(None) == [keys[1], keys[2], keys[0]]
    assert await accounts.list_keys("bob") == [keys[0]]


async def test_a_key_is_found_until_it_is_revoked(accounts: AccountStore) -> None:
    ann = await add(accounts, "ann")
    key = await add_key(accounts, "ann", "a", "laptop")
    await add_key(accounts, "ann", "b")
    assert await owner_of(accounts, "a") == ann
    assert await accounts.revoke_key(key.id) == key
    assert await accounts.find_key("a") is None
    assert await owner_of(accounts, "b") == ann
    with pytest.raises(KeyNotFound):
        await accounts.revoke_key(key.id)


async def test_the_admins_key_is_exactly_the_one_that_is_given(accounts: AccountStore) -> None:
    async def give(hash_: str | None) -> list[str]:
        key = Key(f"k{next(_numbers)}", "admin", "environment", NOW)
        await accounts.set_admin_key(key, hash_)
        users = await accounts.list_users()
        return [key.id for key in await accounts.list_keys("admin")] if users else []

    assert await give(None) == []
    assert await accounts.list_users() == []
    first = await give("a")
    assert len(first) == 1
    admin = a_user("admin", role="admin")
    assert await owner_of(accounts, "a") == admin
    assert await give("a") == first
    other = await add_key(accounts, "admin", "mine", "mine")
    assert other.id in await give("b")
    assert await accounts.find_key("a") is None
    assert await owner_of(accounts, "b") == admin
    assert await give(None) == [other.id]


async def test_a_user_called_admin_becomes_one_with_the_key(accounts: AccountStore) -> None:
    await add(accounts, "admin", "h1")
    await accounts.set_admin_key(Key("k", "admin", "environment", NOW), "a")
    assert await owner_of(accounts, "a") == a_user("admin", role="admin", password=True)
    assert await accounts.find_password("admin") is not None


async def test_whether_anyone_can_enter(accounts: AccountStore) -> None:
    assert not await accounts.can_anyone_enter()
    await add(accounts, "ann")
    assert not await accounts.can_anyone_enter()
    key = await add_key(accounts, "ann", "a")
    assert await accounts.can_anyone_enter()
    await accounts.set_disabled("ann", True)
    assert not await accounts.can_anyone_enter()
    await accounts.set_disabled("ann", False)
    await accounts.revoke_key(key.id)
    await accounts.set_password("ann", "h1")
    assert await accounts.can_anyone_enter()


# --- Beside a server, and before the first -----------------------------------------------------


async def test_a_command_may_make_the_database(database: str) -> None:
    with pytest.raises(ConfigError):
        async with visit_accounts(database):
            pass
    async with visit_accounts(database, make=True) as accounts:
        await accounts.create_user("ann", "user", None)
        secret, _ = await accounts.create_key("ann", "")
    async with visit_accounts(database, make=True) as accounts:
        caller = await accounts.identify(secret, "key")
        assert (caller and caller.name) == "ann"


async def test_a_command_beside_a_server_is_seen_by_it(
    database: str, accounts: AccountStore
) -> None:
    async with visit_accounts(database) as visitor:
        await visitor.create_user("ann", "user", None)
    assert [user.name for user in await accounts.list_users()] == ["ann"]


# --- Keys in full ------------------------------------------------------------------------------


async def test_a_key_is_kept_whole(accounts: AccountStore) -> None:
    await add(accounts, "ann")
    limits = Limits(requests_per_minute=60, cost_per_month=1.5)
    key = Key("k1", "ann", "laptop", NOW, frozenset({"chat", "read"}), limits, NOW + 5)
    await accounts.create_key(key, "a")
    found = await accounts.find_key("a")
    assert found is not None
    assert (found.key, found.is_old) == (key, False)
    assert await accounts.get_key("k1") == key
    assert await accounts.list_keys("ann") == [key]


async def test_a_rotated_key_has_two_secrets_for_a_while_and_never_three(
    accounts: AccountStore,
) -> None:
    await add(accounts, "ann")
    key = await add_key(accounts, "ann", "a")
    rotated = await accounts.rotate_key(key.id, "b", NOW + 60, now=NOW)
    assert rotated == msgspec.structs.replace(key, old_until=NOW + 60)
    is_old = [(await accounts.find_key(hash_)).is_old for hash_ in ("a", "b")]  # type: ignore[union-attr]
    assert is_old == [True, False]
    await accounts.rotate_key(key.id, "c", NOW + 90, now=NOW)
    assert await accounts.find_key("a") is None
    await accounts.rotate_key(key.id, "d", None, now=NOW)
    assert [await accounts.find_key(hash_) for hash_ in ("a", "b", "c")] == [None] * 3
    found = await accounts.find_key("d")
    assert found is not None
    assert found.key == key
    with pytest.raises(KeyNotFound):
        await accounts.rotate_key("k0", "e", None, now=NOW)


async def test_what_made_a_secret_is_not_done_again(accounts: AccountStore) -> None:
    await add(accounts, "ann")
    request = IdempotencyKey("ann", "once", "r1")
    key = Key("k1", "ann", "", NOW)
    await accounts.create_key(key, "a", request)
    with pytest.raises(SecretNotKept) as replayed:
        await accounts.create_key(Key("k2", "ann", "", NOW), "b", request)
    assert replayed.value.id == "k1"
    with pytest.raises(SecretNotKept) as replayed:
        await accounts.rotate_key("k1", "b", None, now=NOW, request=request)
    assert await accounts.list_keys("ann") == [key]
    other = IdempotencyKey("ann", "once", "r2")
    with pytest.raises(KeyReused):
        await accounts.rotate_key("k1", "b", None, now=NOW, request=other)
    with pytest.raises(KeyNotFound):  # what is refused has used no name
        await accounts.rotate_key("k9", "b", None, now=NOW, request=IdempotencyKey("ann", "2", "r"))
    await accounts.rotate_key("k1", "b", None, now=NOW, request=IdempotencyKey("ann", "2", "r2"))


async def test_a_use_is_noted_and_never_an_earlier_one(accounts: AccountStore) -> None:
    await add(accounts, "ann")
    first, second = [await add_key(accounts, "ann", hash_) for hash_ in "ab"]
    await accounts.keep_uses({first.id: NOW, second.id: NOW, "k0": NOW})
    await accounts.keep_uses({first.id: NOW + 5, second.id: NOW - 5})
    used = {key.id: key.used_at for key in await accounts.list_keys("ann")}
    assert used == {first.id: NOW + 5, second.id: NOW}


# --- Users that change and go ------------------------------------------------------------------


async def test_a_user_gets_another_role(accounts: AccountStore) -> None:
    ann = await add(accounts, "ann")
    await accounts.set_role("ann", "admin")
    assert await accounts.get_user("ann") == msgspec.structs.replace(ann, role="admin")
    for act in (accounts.set_role("bob", "user"), accounts.get_user("bob")):
        with pytest.raises(UserNotFound):
            await act


async def test_a_user_who_goes_leaves_no_way_in(
    accounts: AccountStore, store: Store, session: str
) -> None:
    await add(accounts, "bob", "h1")
    await add_key(accounts, "bob", "a")
    assert await log_in(accounts, "bob", "l")
    await accounts.create_token(SessionToken(session, "bob", None, NOW + 9), "t", now=NOW)
    await accounts.delete_user("bob")
    assert await accounts.find_key("a") is None
    assert await accounts.find_login("l") is None
    assert await accounts.find_token("t") is None
    with pytest.raises(UserNotFound):
        await accounts.delete_user("bob")


async def test_a_user_who_has_something_stays(
    accounts: AccountStore, store: Store, session: str
) -> None:
    await add_key(accounts, "ann", "a")
    with pytest.raises(UserNotEmpty):
        await accounts.delete_user("ann")
    assert await accounts.find_key("a") is not None
    await store.delete_session("ann", ById(session))
    ended = await store.begin_turn(a_turn("hello", owner="ann/bob"))
    assert isinstance(ended, BegunTurn)
    with pytest.raises(UserNotEmpty):  # or has an end user who does
        await accounts.delete_user("ann")
    await store.delete_session("ann", ById(ended.turn.ref.session_id))
    await accounts.delete_user("ann")


# --- Tokens for one session --------------------------------------------------------------------


@pytest.fixture
async def store(accounts: AccountStore) -> Store:
    store = SqlStore(accounts._driver)  # type: ignore[attr-defined]
    await publish(store, "default")
    return store


@pytest.fixture
async def session(accounts: AccountStore, store: Store) -> str:
    """The id of a session of `ann`."""
    await add(accounts, "ann", "h1")
    begun = await store.begin_turn(a_turn("hello", owner="ann"))
    assert isinstance(begun, BegunTurn)
    return begun.turn.ref.session_id


async def test_a_token_is_found_with_whose_session_it_is(
    accounts: AccountStore, session: str
) -> None:
    key = await add_key(accounts, "ann", "a")
    token = SessionToken(session, "ann", key.id, NOW + 9)
    await accounts.create_token(token, "t", now=NOW)
    assert await accounts.find_token("t") == FoundToken(token, "ann", key)
    assert await accounts.find_token("a") is None
    assert await accounts.find_key("t") is None


@pytest.mark.parametrize("by_key", [True, False])
async def test_a_token_goes_with_its_session_its_key_and_its_user(
    accounts: AccountStore, store: Store, session: str, by_key: bool
) -> None:
    key = (await add_key(accounts, "ann", "a")) if by_key else None
    token = SessionToken(session, "ann", key and key.id, NOW + 9)

    async def is_there(hash_: str) -> bool:
        return await accounts.find_token(hash_) is not None

    await accounts.create_token(token, "1", now=NOW)
    await accounts.set_password("ann", "h2")
    assert await is_there("1") == by_key
    await accounts.create_token(token, "2", now=NOW)
    await accounts.set_disabled("ann", True)
    assert not await is_there("2")
    await accounts.set_disabled("ann", False)
    assert await is_there("2") == by_key
    await accounts.create_token(token, "3", now=NOW)
    await store.clear_session("ann", ById(session), NOW)
    assert await is_there("3")
    await store.delete_session("ann", ById(session))
    assert not await is_there("3")
    with pytest.raises(SessionNotFound):
        await accounts.create_token(token, "4", now=NOW)
    if key is not None:
        begun = await store.begin_turn(a_turn("hello", owner="ann"))
        assert isinstance(begun, BegunTurn)
        other = msgspec.structs.replace(token, session_id=begun.turn.ref.session_id)
        await accounts.create_token(other, "5", now=NOW)
        await accounts.revoke_key(key.id)
        assert not await is_there("5")


async def test_tokens_that_are_over_are_dropped(accounts: AccountStore, session: str) -> None:
    for number in range(3):
        token = SessionToken(session, "ann", None, NOW + number)
        await accounts.create_token(token, f"{number}", now=NOW)
    assert await accounts.drop_tokens(NOW + 2) == 2
    assert await accounts.find_token("2") is not None


async def test_a_token_is_made_once_under_a_name(accounts: AccountStore, session: str) -> None:
    request = IdempotencyKey("ann", "once", "r")
    token = SessionToken(session, "ann", None, NOW + 9)
    await accounts.create_token(token, "a", now=NOW, request=request)
    with pytest.raises(SecretNotKept) as replayed:
        await accounts.create_token(token, "b", now=NOW, request=request)
    assert replayed.value.id == session
    assert await accounts.find_token("b") is None
