"""An empty database of each kind, and a store on it."""

import itertools
from collections.abc import AsyncIterator
from pathlib import Path

import asyncpg
import pytest

from tests.contracts.test_store import publish
from turnkeeper.compose import open_store
from turnkeeper.contracts import Store

_numbers = itertools.count(1)


@pytest.fixture(params=["sqlite", "postgres"])
async def database(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an empty database."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/exam.db"
    server = request.getfixturevalue("postgres_url")
    name = f"exam{next(_numbers)}"
    connection = await asyncpg.connect(server)
    await connection.execute(f"CREATE DATABASE {name}")
    await connection.close()
    return f"{server.rpartition('/')[0]}/{name}"


@pytest.fixture
async def store(database: str) -> AsyncIterator[Store]:
    store = await open_store(database)
    await publish(store, "default")
    yield store
    await store.close()
