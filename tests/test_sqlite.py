"""SQLite's own traps: grouped commits, a full disk, other programs, foreign and newer files."""

import asyncio
import sqlite3
import threading
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.contracts.test_store import NOW, a_turn, completed, publish
from turnkeeper.contracts import Durability
from turnkeeper.domain import ByAlias, Ending, TurnStatus
from turnkeeper.errors import ConfigError, StoreUnavailable
from turnkeeper.stores.sql.rows import Transaction
from turnkeeper.stores.sqlite import SqliteDriver, open_sqlite
from turnkeeper.stores.store import SqlStore


@pytest.fixture
async def driver(tmp_path: Path) -> AsyncIterator[SqliteDriver]:
    driver = open_sqlite(tmp_path / "t.db")
    yield driver
    await driver.close()


@pytest.fixture
async def store(driver: SqliteDriver) -> SqlStore:
    store = SqlStore(driver)
    await publish(store, "default")
    return store


def write(text: str) -> Transaction[str]:
    yield "INSERT INTO turnkeeper_migrations (number, name) VALUES (ABS(RANDOM()), ?)", (text,)
    return text


def read_names() -> Transaction[set[str]]:
    rows = yield "SELECT name FROM turnkeeper_migrations WHERE number > 1000", ()
    return {row[0] for row in rows}


def limit_pages(driver: SqliteDriver, spare: int) -> None:
    """Let the file grow by `spare` pages, as a disk would that is nearly full."""
    pages = driver._writer.execute("PRAGMA page_count").fetchone()[0]
    driver._writer.execute(f"PRAGMA max_page_count = {pages + spare}")


async def test_no_result_leaves_before_its_commit_is_durable(
    driver: SqliteDriver, tmp_path: Path
) -> None:
    """A second connection sees what any awaited write said it wrote."""
    other = sqlite3.connect(tmp_path / "t.db")

    async def write_and_look(text: str) -> bool:
        await driver.write(lambda: write(text))
        rows = other.execute("SELECT 1 FROM turnkeeper_migrations WHERE name = ?", (text,))
        return rows.fetchone() is not None

    assert all(await asyncio.gather(*[write_and_look(f"w{n}") for n in range(200)]))
    other.close()


async def test_readers_never_see_what_is_not_committed(driver: SqliteDriver) -> None:
    """While a commit is held up, its rows are on the writer's connection only."""
    gate = threading.Event()
    driver._committer.do(lambda: gate.wait(10) and None)
    writing = asyncio.ensure_future(driver.write(lambda: write("unseen")))
    seen = await driver.read(read_names)
    while not driver._writer.in_transaction:
        await asyncio.sleep(0)
    seen |= await driver.read(read_names)
    assert seen == set()
    assert not writing.done()
    gate.set()
    await writing
    assert await driver.read(read_names) == {"unseen"}


async def test_writes_that_wait_share_one_commit(driver: SqliteDriver) -> None:
    commits: list[str] = []
    driver._writer.set_trace_callback(lambda sql: commits.append(sql) if sql == "COMMIT" else None)
    await asyncio.gather(*[driver.write(lambda: write("x")) for _ in range(60)])
    assert len(commits) <= 2


async def test_a_full_disk_inside_a_batch_fails_only_what_does_not_fit(
    driver: SqliteDriver, store: SqlStore
) -> None:
    """SQLITE_FULL under a savepoint ends the whole transaction: nobody else may be lost by it."""
    await store.begin_turn(a_turn("first"))
    limit_pages(driver, 8)
    outcomes = await asyncio.gather(
        *[store.begin_turn(a_turn(t)) for t in ("a", "b", "x" * 200_000, "c")],
        return_exceptions=True,
    )
    failed = [isinstance(outcome, StoreUnavailable) for outcome in outcomes]
    assert failed == [False, False, True, False]
    assert len(await store.list_sessions("ann")) == 4


async def test_after_the_disk_was_full_everything_works_again(
    driver: SqliteDriver, store: SqlStore
) -> None:
    limit_pages(driver, 0)
    with pytest.raises(StoreUnavailable):
        await store.begin_turn(a_turn("x" * 100_000))
    limit_pages(driver, 1000)
    begun = await store.begin_turn(a_turn("x" * 100_000))
    await store.end_turn(begun.turn.ref, completed("fine"), NOW)
    assert (await store.get_turn("ann", begun.turn.ref)).text == "fine"


async def test_checkpoints_go_when_their_turn_ends(driver: SqliteDriver, store: SqlStore) -> None:
    begun = await store.begin_turn(a_turn("q"))
    await store.checkpoint(begun.turn.ref, 0, "half")
    count = "SELECT COUNT(*) FROM checkpoints"
    assert driver._writer.execute(count).fetchone() == (1,)
    await store.end_turn(
        begun.turn.ref, Ending(TurnStatus.COMPLETED, "all", checkpointed=True), NOW
    )
    assert driver._writer.execute(count).fetchone() == (0,)


async def test_another_program_that_writes_is_waited_for_off_the_loop(
    driver: SqliteDriver, tmp_path: Path
) -> None:
    other = sqlite3.connect(tmp_path / "t.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    writing = asyncio.ensure_future(driver.write(lambda: write("later")))
    for _ in range(50):
        await asyncio.sleep(0.001)  # the loop goes on while the file is taken
    assert not writing.done()
    other.execute("COMMIT")
    other.close()
    assert await writing == "later"


async def test_a_database_that_stays_taken_is_waited_for_once(
    driver: SqliteDriver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("turnkeeper.stores.sqlite._BUSY_MS", 300)
    other = sqlite3.connect(tmp_path / "t.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    loop = asyncio.get_running_loop()
    before = loop.time()
    writing = [driver.write(lambda: write("x")) for _ in range(20)]
    outcomes = await asyncio.gather(*writing, return_exceptions=True)
    assert all(isinstance(outcome, StoreUnavailable) for outcome in outcomes)
    assert loop.time() - before < 3  # not 20 times 0.3 s
    other.execute("COMMIT")
    other.close()
    assert await driver.write(lambda: write("y")) == "y"


async def test_a_file_that_was_deleted_is_not_made_anew(
    driver: SqliteDriver, store: SqlStore, tmp_path: Path
) -> None:
    await store.begin_turn(a_turn("x"))
    (tmp_path / "t.db").unlink()
    with pytest.raises(StoreUnavailable):
        await store.ping()
    assert not (tmp_path / "t.db").exists()


@pytest.mark.parametrize(("durability", "synchronous"), [("power", 2), ("process", 1)])
async def test_durability_says_whether_a_commit_waits_for_the_disk(
    tmp_path: Path, durability: Durability, synchronous: int
) -> None:
    """https://www.sqlite.org/pragma.html#pragma_synchronous: 2 is FULL, 1 is NORMAL."""
    driver = open_sqlite(tmp_path / "d.db", durability)
    assert driver._writer.execute("PRAGMA synchronous").fetchone() == (synchronous,)
    await driver.close()


async def test_a_log_that_had_to_grow_is_cut_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While someone reads, as a backup does, the log cannot begin anew."""
    monkeypatch.setattr("turnkeeper.stores.sqlite._LOG_LIMIT", 5_000_000)
    driver = open_sqlite(tmp_path / "g.db")
    with closing(sqlite3.connect(tmp_path / "g.db", isolation_level=None)) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT COUNT(*) FROM sessions").fetchone()
        for _ in range(100):
            await driver.write(lambda: write("x" * 100_000))
    log = tmp_path / "g.db-wal"
    assert log.stat().st_size > 9_000_000
    for _ in range(3):
        await driver.write(lambda: write("y"))
    assert log.stat().st_size <= 5_000_000
    await driver.close()


async def test_what_was_full_is_failing_until_a_write_works(
    driver: SqliteDriver, store: SqlStore
) -> None:
    await store.ping()
    limit_pages(driver, 0)
    with pytest.raises(StoreUnavailable):
        await store.begin_turn(a_turn("x" * 100_000))
    assert driver.failing
    limit_pages(driver, 1000)
    await store.ping()  # writes, and finds that it works
    assert not driver.failing


async def test_closing_waits_for_what_was_begun(tmp_path: Path) -> None:
    driver = open_sqlite(tmp_path / "t.db")
    writing = [asyncio.ensure_future(driver.write(lambda: write("x"))) for _ in range(100)]
    await asyncio.sleep(0)
    await driver.close()
    assert await asyncio.gather(*writing) == ["x"] * 100


async def test_an_error_of_our_own_is_not_called_the_databases(driver: SqliteDriver) -> None:
    def wrong() -> Transaction[None]:
        yield "SELECT nothing FROM nowhere_at_all WHERE ((", ()

    def bug() -> Transaction[None]:
        yield "SELECT 1", ()
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await driver.write(bug)
    with pytest.raises(StoreUnavailable):
        await driver.write(wrong)


# --- Opening -----------------------------------------------------------------------------------


async def test_a_file_of_other_tables_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "other.db"
    with sqlite3.connect(path) as other:
        other.execute("CREATE TABLE recipes (name TEXT)")
    other.close()
    before = path.read_bytes()
    with pytest.raises(ConfigError, match="not Turnkeeper's"):
        open_sqlite(path)
    assert path.read_bytes() == before


async def test_a_file_that_is_no_database_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("remember the milk\n" * 100)
    with pytest.raises(ConfigError, match="cannot be used"):
        open_sqlite(path)
    assert path.read_text() == "remember the milk\n" * 100


async def test_a_newer_database_is_refused(tmp_path: Path) -> None:
    driver = open_sqlite(tmp_path / "t.db")
    await driver.write(lambda: write("from the future"))
    await driver.close()
    with pytest.raises(ConfigError, match="newer Turnkeeper"):
        open_sqlite(tmp_path / "t.db")


async def test_an_unwritable_place_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be used"):
        open_sqlite(tmp_path / "no" / "such" / "folder.db")


async def test_a_history_is_read_from_the_index_and_not_sorted(
    driver: SqliteDriver, store: SqlStore
) -> None:
    """The cost of a turn does not grow with the session: no scan, no sort."""
    from turnkeeper.stores.sql import sessions, turns

    await store.begin_turn(a_turn("x", session=ByAlias("s")))
    statements = (
        (turns.NEWEST_ITEMS, 4),
        (turns.NEXT_QUEUED, 2),
        (turns.OPEN_TURNS, 0),
        (sessions.NEXT_SESSIONS, 4),
        (sessions.MESSAGES_AFTER, 4),
        (sessions.MESSAGES_BEFORE, 4),
    )
    for statement, count in statements:
        plan = driver._writer.execute(f"EXPLAIN QUERY PLAN {statement}", (1,) * count).fetchall()
        steps = " / ".join(row[3] for row in plan)
        assert "TEMP B-TREE" not in steps, steps
        assert "USING" in steps, steps


def test_a_new_database_can_be_read_by_its_owner_only(tmp_path: Path, store: SqlStore) -> None:
    files = [file for file in tmp_path.iterdir() if not file.name.endswith(".lock")]
    assert len(files) >= 2
    assert {file.stat().st_mode & 0o777 for file in files} == {0o600}
