"""The exam of `contracts.AccountStore`, on every database."""

import asyncio
import itertools
from collections.abc import AsyncIterator

import msgspec
import pytest

from tests.contracts.test_store import NOW
from turnkeeper.compose import open_driver, visit_accounts
from turnkeeper.contracts import AccountStore
from turnkeeper.domain import Caller, Key, Login, User
from turnkeeper.errors import ConfigError, KeyNotFound, UserExists, UserNotFound
from turnkeeper.stores.accounts import SqlAccounts

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
    assert await accounts.find_key("k") == ann


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
    assert await accounts.find_key("a") == ann
    assert await accounts.revoke_key(key.id) == key
    assert await accounts.find_key("a") is None
    assert await accounts.find_key("b") == ann
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
    assert await accounts.find_key("a") == admin
    assert await give("a") == first
    other = await add_key(accounts, "admin", "mine", "mine")
    assert other.id in await give("b")
    assert await accounts.find_key("a") is None
    assert await accounts.find_key("b") == admin
    assert await give(None) == [other.id]


async def test_a_user_called_admin_becomes_one_with_the_key(accounts: AccountStore) -> None:
    await add(accounts, "admin", "h1")
    await accounts.set_admin_key(Key("k", "admin", "environment", NOW), "a")
    assert await accounts.find_key("a") == a_user("admin", role="admin", password=True)
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
        assert await accounts.identify(secret, "key") == Caller("ann", is_admin=False)


async def test_a_command_beside_a_server_is_seen_by_it(
    database: str, accounts: AccountStore
) -> None:
    async with visit_accounts(database) as visitor:
        await visitor.create_user("ann", "user", None)
    assert [user.name for user in await accounts.list_users()] == ["ann"]
