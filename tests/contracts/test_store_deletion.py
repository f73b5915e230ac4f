"""A session that is deleted leaves nothing behind: no table holds anything that names it."""

import re
from collections.abc import AsyncIterator, Awaitable, Callable

import msgspec
import pytest

from tests.contracts.test_documents import a_document
from tests.contracts.test_store import NOW, a_turn, completed, publish
from tests.contracts.test_store_context import MEMO
from tests.contracts.test_store_once import key
from tests.contracts.test_store_sessions import a_session, anew
from turnkeeper.compose import open_driver
from turnkeeper.contracts import BegunTurn, DocumentStore, Store
from turnkeeper.domain import Blueprint, ById
from turnkeeper.errors import SessionNotFound, TurnNotFound
from turnkeeper.stores import migrations
from turnkeeper.stores.documents import SqlDocuments
from turnkeeper.stores.sql.rows import Rows, Transaction
from turnkeeper.stores.store import Driver, SqlStore

SHORT = Blueprint(idle_timeout=60)


@pytest.fixture
async def driver(database: str) -> AsyncIterator[Driver]:
    driver = await open_driver(database)
    yield driver
    await driver.close()


@pytest.fixture
async def store(driver: Driver) -> Store:
    store = SqlStore(driver)
    await publish(store, "default", SHORT)
    return store


@pytest.fixture
def documents(driver: Driver, store: Store) -> DocumentStore:
    return SqlDocuments(driver)


def everything() -> Transaction[dict[str, Rows]]:
    found = {}
    for table in migrations.table_names():
        found[table] = yield f"SELECT * FROM {table}", ()
    return found


async def tables_that_name(driver: Driver, text: str) -> set[str]:
    """Every table in which any value of any row holds `text`."""
    rows = await driver.read(everything)
    return {
        table
        for table, held in rows.items()
        if any(text in str(value) for row in held for value in tuple(row))
    }


def tables_of_sessions() -> set[str]:
    """Those that the migrations give a column for a session's id."""
    found, table = {"sessions"}, ""
    for line in "\n".join(script for *_, script in migrations.all_migrations()).splitlines():
        if match := re.match(r"(?:CREATE|ALTER) TABLE (\w+)", line):
            table = match[1]
        if re.search(r"\bsession_id (TEXT|CHAR)", line):
            found.add(table)
    return found


def a_token(session_id: str, user: str = "ann") -> Transaction[None]:
    values = (f"hash of {session_id[1:]} of {user}", session_id, user, NOW)
    columns = "hash, session_id, user_name, expires_at"
    yield f"INSERT INTO session_tokens ({columns}) VALUES (?, ?, ?, ?)", values


async def a_full_session(store: Store, documents: DocumentStore, driver: Driver) -> str:
    """A section's chat with a row in every table that can have one of a session."""
    document, [section] = await a_document(documents, "text")
    new = a_session(section=section, variables={"a": "b"}, metadata={"c": "d"})
    made = ById((await documents.open_chat("ann", document, new)).session_id)
    begun = await store.begin_turn(a_turn("a", session=made))
    assert isinstance(begun, BegunTurn)
    await store.end_turn(begun.turn.ref, completed("A"), NOW)
    begun = await store.begin_version(anew(made))  # the reply before it is hidden
    assert isinstance(begun, BegunTurn)
    await store.end_turn(begun.turn.ref, completed("A, anew"), NOW)
    keyed = msgspec.structs.replace(a_turn("b", session=made), key=key(), data="{}")
    begun = await store.begin_turn(keyed)
    assert isinstance(begun, BegunTurn)
    await store.checkpoint(begun.turn.ref, 0, "B")
    await store.keep_summary(begun.turn.ref, MEMO)
    await driver.write(lambda: a_token(made.id))
    return made.id


async def end_all(store: Store) -> None:
    for ref in await store.list_open():
        await store.settle(ref, NOW)


async def delete_it(store: Store, session_id: str) -> None:
    assert len(await store.delete_session("ann", ById(session_id))) == 1


async def let_it_expire(store: Store, session_id: str) -> None:
    await end_all(store)
    assert (await store.expire(20, NOW + 60_000)).sessions == 1


@pytest.mark.parametrize("remove", [delete_it, let_it_expire])
async def test_no_table_names_what_is_gone(
    store: Store,
    documents: DocumentStore,
    driver: Driver,
    remove: Callable[[Store, str], Awaitable[None]],
) -> None:
    id_ = await a_full_session(store, documents, driver)
    assert await tables_that_name(driver, id_[1:]) == tables_of_sessions()
    await remove(store, id_)
    assert await tables_that_name(driver, id_[1:]) == set()
    with pytest.raises(TurnNotFound):  # and nothing comes back of it
        await store.begin_turn(msgspec.structs.replace(a_turn("b", session=ById(id_)), key=key()))


async def test_a_document_takes_the_chats_of_its_sections_along(
    store: Store, documents: DocumentStore, driver: Driver
) -> None:
    id_ = await a_full_session(store, documents, driver)
    [document] = await documents.list_documents("ann")
    assert len(await documents.delete_document("ann", document.id, NOW)) == 1
    assert await tables_that_name(driver, id_[1:]) == set()
    assert await tables_that_name(driver, document.id) == set()


async def test_a_session_made_under_a_key_is_gone_and_not_made_again(
    store: Store, driver: Driver
) -> None:
    new = a_session(key=key())
    made = await store.create_session(new)
    await store.delete_session("ann", ById(made.id))
    assert await tables_that_name(driver, made.id[1:]) == set()
    with pytest.raises(SessionNotFound):
        await store.create_session(new)
