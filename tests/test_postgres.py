"""PostgreSQL's own: what only its driver does."""

import pytest

from tests.test_upkeep import empty_database
from turnkeeper.contracts import Durability
from turnkeeper.stores import migrations
from turnkeeper.stores.postgres import open_postgres
from turnkeeper.stores.sql.rows import Transaction


def show() -> Transaction[str]:
    rows = yield "SELECT current_setting('synchronous_commit')", ()
    return str(rows[0][0])


@pytest.mark.parametrize(("durability", "commits"), [("power", "on"), ("process", "off")])
async def test_durability_says_whether_a_commit_waits_for_the_disk(
    postgres_url: str, durability: Durability, commits: str
) -> None:
    driver = await open_postgres(await empty_database(postgres_url), durability)
    assert await driver.write(show) == commits
    await driver.close()


async def test_a_vacuum_knows_every_table(postgres_url: str) -> None:
    driver = await open_postgres(await empty_database(postgres_url))
    made = await driver.read(list_tables)
    await driver.close()
    assert made == sorted([*migrations.table_names(), "turnkeeper_migrations"])


def list_tables() -> Transaction[list[str]]:
    rows = yield "SELECT tablename FROM pg_tables WHERE schemaname = current_schema()", ()
    return sorted(row[0] for row in rows)
