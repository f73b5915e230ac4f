"""A database of an older program is brought up to date, and nothing in it is lost."""

import pytest

from tests.contracts.test_store import NOW, publish, texts
from turnkeeper.compose import open_store
from turnkeeper.domain import Blueprint, ById, Message, make_session_id
from turnkeeper.stores import migrations
from turnkeeper.stores.sql.rows import Transaction
from turnkeeper.stores.store import SqlStore

OLD = make_session_id(NOW * 1000, 1)


SESSION = """
INSERT INTO sessions (id, owner, turns, message_count, hidden_count, weight, created_at, updated_at)
VALUES (?, 'ann', 1, 2, 0, 40, ?, ?)
"""
TURN = """
INSERT INTO turns (session_id, number, status, model, created_at, finished_at)
VALUES (?, 1, 'completed', 'm', ?, ?)
"""
ITEM = """
INSERT INTO items (session_id, turn, position, kind, text, weight, in_prompt)
VALUES (?, 1, ?, ?, ?, 20, 1)
"""


def an_old_session() -> Transaction[None]:
    """A session as the first schema had it."""
    yield SESSION, (OLD, NOW, NOW)
    yield TURN, (OLD, NOW, NOW + 5)
    yield ITEM, (OLD, 0, "user", "old")
    yield ITEM, (OLD, 1, "assistant", "reply")


async def test_sessions_from_before_deployments_join_the_first(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    all_migrations = migrations.all_migrations()
    with monkeypatch.context() as patch:
        patch.setattr(migrations, "all_migrations", lambda: all_migrations[:1])
        store = await open_store(database)
        assert isinstance(store, SqlStore)
        await store._driver.write(an_old_session)
        await store.close()
    store = await open_store(database)
    revision = await publish(store, "default")
    await publish(store, "other")
    page = await store.page_messages("ann", ById(OLD), limit=9)
    assert (page.session.deployment, page.session.revision) == ("default", revision.id)
    assert page.session.title == "old"
    assert [m.at for m in page.messages] == [NOW, NOW + 5]
    assert [m.item for m in page.messages] == [
        Message("user", "old"),
        Message("assistant", "reply"),
    ]
    assert await texts(store, ById(OLD)) == ["old", "reply"]
    await store.close()


async def test_sessions_from_before_expiry_had_an_index_expire(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    all_migrations = migrations.all_migrations()
    with monkeypatch.context() as patch:
        patch.setattr(migrations, "all_migrations", lambda: all_migrations[:1])
        store = await open_store(database)
        assert isinstance(store, SqlStore)
        await store._driver.write(an_old_session)
        await store.close()
    store = await open_store(database)
    await publish(store, "default", Blueprint(idle_timeout=60))
    assert (await store.expire(20, NOW + 59_999)).sessions == 0
    assert (await store.expire(20, NOW + 60_000)).sessions == 1
    await store.close()
