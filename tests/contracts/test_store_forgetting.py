"""A person who is forgotten is named in no table any more; nobody else loses anything."""

from collections.abc import AsyncIterator

import msgspec
import pytest

from tests.contracts.test_documents import a_section, document_id
from tests.contracts.test_store import NOW, a_turn, completed, publish
from tests.contracts.test_store_context import MEMO
from tests.contracts.test_store_deletion import a_token, everything, tables_that_name
from tests.contracts.test_store_sessions import a_session, anew
from turnkeeper.accounts import Accounts
from turnkeeper.compose import open_driver
from turnkeeper.contracts import BegunTurn
from turnkeeper.domain import ByAlias, ById, IdempotencyKey, Key, Login, TurnRef, User
from turnkeeper.errors import UserNotFound
from turnkeeper.limits import Spent, Subject
from turnkeeper.stores.accounts import SqlAccounts
from turnkeeper.stores.documents import SqlDocuments
from turnkeeper.stores.sql.rows import Rows, Transaction
from turnkeeper.stores.store import Driver, SqlStore
from turnkeeper.stores.usage import SqlUsage

# Of nobody: what is said of models and deployments, and what the program keeps for itself.
IMPERSONAL = {"deployments", "revisions", "token_counts"}
# Where some rows are everybody's together, or will be.
SHARED = {"usage_days", "usage_entries"}


@pytest.fixture
async def driver(database: str) -> AsyncIterator[Driver]:
    driver = await open_driver(database)
    await publish(SqlStore(driver), "default")
    yield driver
    await driver.close()


async def everything_of(driver: Driver, owner: str, words: str) -> None:
    """A row in every table that can have one of an owner's; all text of theirs holds `words`."""
    store, documents = SqlStore(driver), SqlDocuments(driver)
    id_, section = document_id(), a_section(words)
    key = IdempotencyKey(owner, "document", "r")
    await documents.create_document(owner, id_, words, [section], NOW, key=key)
    chat = a_session(owner=owner, section=section.id, metadata={"a": words})
    session = ById((await documents.open_chat(owner, id_, chat)).session_id)
    for alias in (None, ByAlias(words)):
        turn = a_turn(words, session=alias or session, owner=owner)
        begun = await store.begin_turn(msgspec.structs.replace(turn, data=words))
        assert isinstance(begun, BegunTurn)
        await store.checkpoint(begun.turn.ref, 0, words)
        await store.keep_summary(begun.turn.ref, msgspec.structs.replace(MEMO, text=words))
        if alias is None:
            await store.end_turn(begun.turn.ref, completed(words), NOW)
            version = await store.begin_version(anew(session, owner=owner))
            assert isinstance(version, BegunTurn)
            await store.end_turn(version.turn.ref, completed(words), NOW)
    await driver.write(lambda: a_token(session.id, owner))
    await SqlUsage(driver).fold({}, 100)
    begun = await store.begin_turn(a_turn(words, owner=owner, session=session))
    assert isinstance(begun, BegunTurn)
    await store.end_turn(begun.turn.ref, completed(words), NOW)
    subject = Subject("end_user" if "/" in owner else "user", owner)
    await store.keep_spent([Spent(subject, "tokens_per_day", NOW, 7)])
    await driver.write(lambda: a_quota(owner))


def a_quota(owner: str) -> Transaction[None]:
    yield "INSERT INTO session_quotas (owner) VALUES (?)", (owner,)


async def a_user(driver: Driver, name: str) -> None:
    accounts = SqlAccounts(driver)
    await accounts.create_user(User(name, "user", False, True, NOW), "h")
    await accounts.create_key(Key(f"k{name}", name, name, NOW), f"key of {name}")
    await accounts.begin_login(Login(f"login of {name}", name, NOW, NOW), "h", None)


def counts(rows: dict[str, Rows]) -> dict[str, int]:
    return {table: len(held) for table, held in rows.items()}


async def test_no_table_names_who_is_forgotten(driver: Driver) -> None:
    for name in ("zoe", "ann"):
        await a_user(driver, name)
        await everything_of(driver, name, f"words of {name}")
        await everything_of(driver, f"{name}/child", f"words of {name}s child")
    before = counts(await driver.read(everything))
    stopped: list[TurnRef] = []
    accounts = Accounts(SqlAccounts(driver), now=lambda: NOW)
    removed = await accounts.forget("zoe", stop=stopped.extend)
    accounts.close()
    assert await tables_that_name(driver, "zoe") == set()
    after = counts(await driver.read(everything))
    assert {table: before[table] - left for table, left in after.items() if before[table] > left}
    for table, left in after.items():
        if table not in IMPERSONAL | SHARED:
            assert before[table], f"{table} had nothing to begin with"
            assert left * 2 == before[table], f"{table} is not halved"
    lost = {table: before[table] - left for table, left in after.items()}
    for table in ("section_texts", "usage_entries"):
        lost.pop(table)
    assert dict(removed) == {table: rows for table, rows in lost.items() if rows}
    assert len(stopped) == 2


async def test_an_end_user_is_forgotten_and_the_application_stays(driver: Driver) -> None:
    await a_user(driver, "app")
    for owner in ("app", "app/one", "app/one more", "app2/one"):
        await everything_of(driver, owner, f"words of {owner}")
    accounts = Accounts(SqlAccounts(driver), now=lambda: NOW)
    before = counts(await driver.read(everything))
    removed = await accounts.forget("app", "one")
    assert removed["sessions"] == 2
    after = counts(await driver.read(everything))
    assert after["users"] == before["users"] == 1
    for table in ("sessions", "documents", "idempotency_keys"):
        assert after[table] * 4 == before[table] * 3
    for held in (await driver.read(everything)).values():
        for row in held:
            assert "app/one" not in map(str, row)
            assert "words of app/one" not in map(str, row)
    with pytest.raises(UserNotFound):
        await accounts.forget("app", "one")
    accounts.close()


async def test_of_a_name_that_nobody_has_there_is_nothing_to_forget(driver: Driver) -> None:
    await everything_of(driver, "x_y", "words")
    accounts = Accounts(SqlAccounts(driver), now=lambda: NOW)
    for name in ("x", "x_", "xzy", "X_Y", ""):
        with pytest.raises(UserNotFound):
            await accounts.forget(name)
    removed = await accounts.forget("x_y")
    assert "users" not in removed
    accounts.close()


async def test_much_is_forgotten_in_small_steps(driver: Driver) -> None:
    store = SqlStore(driver)
    for _ in range(45):
        await store.create_session(a_session(owner="zoe"))
    await everything_of(driver, "ann", "words")
    accounts = SqlAccounts(driver)
    sizes = []
    more = True
    while more:
        step = await accounts.forget_some("zoe", 20)
        sizes.append(step.removed["sessions"])
        more = step.more
    assert sizes == [20, 20, 5]
    assert len((await driver.read(everything))["sessions"]) == 2
