"""Looking after a database: backups, vacuums and sessions, beside a server and without one."""

import asyncio
import fcntl
import itertools
import json
import os
import sqlite3
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import aiohttp
import asyncpg
import pytest

from rig.model_server import Hang, ModelServer, Plan, Wait
from rig.server import Server
from tests.contracts.test_store import NOW, a_turn, newest_sessions, publish, say
from tests.test_process import chat, server_of, stream
from turnkeeper import compose
from turnkeeper.domain import ByAlias, Ending, TurnStatus
from turnkeeper.errors import ConfigError, StoreUnavailable
from turnkeeper.stores import migrations, upkeep
from turnkeeper.stores.sql import turns as sql
from turnkeeper.stores.sqlite import open_sqlite, visit_sqlite, without_server
from turnkeeper.stores.store import SqlStore

_numbers = itertools.count(1)


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as session:
        yield session


@pytest.fixture
async def path(tmp_path: Path) -> Path:
    """A database with one session, and no server."""
    path = tmp_path / "turnkeeper.db"
    store = SqlStore(open_sqlite(path))
    await publish(store, "default")
    await say(store, "what's up?", "the sky", ByAlias("demo"))
    await store.close()
    return path


async def empty_database(postgres_url: str) -> str:
    """The URL of a new PostgreSQL database."""
    name = f"upkeep{next(_numbers)}"
    connection = await asyncpg.connect(postgres_url)
    await connection.execute(f"CREATE DATABASE {name}")
    await connection.close()
    return f"{postgres_url.rpartition('/')[0]}/{name}"


def turnkeeper(
    folder: Path, *arguments: str, code: int = 0, **env: str
) -> "subprocess.CompletedProcess[str]":
    """A command, which must end with this exit code; a failure in one sentence."""
    done = subprocess.run(
        [sys.executable, "-m", "turnkeeper", *arguments],
        cwd=folder,
        env={"PATH": os.environ["PATH"]} | env,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    if code:
        assert done.stderr.count("turnkeeper: ") == 1 or "Usage:" in done.stderr
    return done


def failure(folder: Path, *arguments: str, code: int = 2, **env: str) -> str:
    return turnkeeper(folder, *arguments, code=code, **env).stderr


def rows_of(path: Path, *tables: str) -> list[int]:
    with closing(sqlite3.connect(path)) as look:
        return [look.execute(f"SELECT COUNT(*) FROM {table}").fetchone()[0] for table in tables]


def quiet(done: int, size: int) -> None:
    pass


# --- Backup ------------------------------------------------------------------------------------


def test_a_backup_is_one_whole_file_and_says_what_is_in_it(path: Path) -> None:
    said = turnkeeper(path.parent, "backup", "copy.db").stdout
    assert said.startswith("copy.db: ")
    assert said.endswith("KiB, 1 session, 1 turn\n")
    copy = path.parent / "copy.db"
    assert copy.read_bytes()[18:20] == b"\x01\x01"  # no WAL: needs no file beside it
    assert copy.stat().st_mode & 0o777 == 0o600
    assert sorted(file.name for file in path.parent.iterdir() if "copy" in file.name) == ["copy.db"]


async def test_a_backup_can_be_served(path: Path) -> None:
    upkeep.back_up(path, path.with_name("copy.db"), force=False, progress=quiet)
    store = SqlStore(open_sqlite(path.with_name("copy.db")))
    listed = await store.list_items("ann", ByAlias("demo"), None, 10)
    assert [each.item.text for each in listed] == ["what's up?", "the sky"]
    await say(store, "and now?", "still", ByAlias("demo"))
    await store.close()


async def test_a_backup_of_a_busy_server_has_every_turn_acknowledged_before_it(
    tmp_path: Path, http: aiohttp.ClientSession, model_server: ModelServer
) -> None:
    model_server.script = lambda _: Plan(deltas=("x" * 20_000,))
    with server_of(model_server, tmp_path) as server:
        done = 0

        async def talk(number: int) -> None:
            nonlocal done
            while True:
                await chat(http, server, "hi", f"s{number}")
                done += 1

        talking = [asyncio.create_task(talk(n)) for n in range(16)]
        while done < 200:
            await asyncio.sleep(0.01)
        for number in range(5):
            before = done
            name = f"copy{number}.db"
            said = await asyncio.to_thread(turnkeeper, tmp_path, "backup", name)
            assert done > before, "the server stood still"
            sessions, turns, items = rows_of(tmp_path / name, "sessions", "turns", "items")
            assert said.stdout.endswith(f"16 sessions, {turns:,} turns\n")
            assert sessions == 16
            assert before <= turns <= done + 16
            assert before * 2 <= items
        for task in talking:
            task.cancel()
        await asyncio.gather(*talking, return_exceptions=True)
        assert server.log == server.log[:1]


async def test_commits_of_others_do_not_make_a_backup_start_again(path: Path) -> None:
    """Else it would never end beside a server that always writes."""
    store = SqlStore(visit_sqlite(path))
    for _ in range(8):
        await say(store, "q", "a" * 1_000_000, None)
    seen: list[int] = []

    def write_on(done: int, size: int) -> None:
        seen.append(done)
        with closing(sqlite3.connect(path)) as other:
            other.execute("UPDATE sessions SET updated_at = updated_at + 1")
            other.commit()

    upkeep.back_up(path, path.with_name("copy.db"), force=False, progress=write_on)
    await store.close()
    assert len(seen) >= 2
    assert seen == sorted(seen)
    assert rows_of(path.with_name("copy.db"), "sessions") == [9]


def test_a_backup_overwrites_only_when_told(path: Path) -> None:
    target = path.with_name("copy.db")
    target.write_text("precious")
    assert "exists already" in failure(path.parent, "backup", "copy.db")
    assert target.read_text() == "precious"
    turnkeeper(path.parent, "backup", "copy.db", "--force")
    assert rows_of(target, "turns") == [1]


def test_a_name_that_is_taken_meanwhile_is_not_overwritten(path: Path) -> None:
    target = path.with_name("copy.db")
    with pytest.raises(ConfigError, match="exists already"):
        upkeep.back_up(path, target, force=False, progress=lambda *_: target.write_text("mine"))
    assert target.read_text() == "mine"
    assert not list(path.parent.glob("*.part"))


@pytest.mark.parametrize("suffix", ["", ".lock", "-wal", "-shm"])
def test_a_backup_never_replaces_what_belongs_to_the_database(path: Path, suffix: str) -> None:
    with closing(sqlite3.connect(path)) as user:
        user.execute("SELECT 1 FROM sessions").fetchone()
        said = failure(path.parent, "backup", f"turnkeeper.db{suffix}", "--force")
    assert "the database itself" in said


def test_a_backup_never_replaces_a_database_in_use(path: Path) -> None:
    """SQLite would read the old log into the new file, and ruin it."""
    turnkeeper(path.parent, "backup", "copy.db")
    copy = path.with_name("copy.db")
    with closing(sqlite3.connect(copy)) as user:
        user.execute("PRAGMA journal_mode = WAL")
        user.execute("CREATE TABLE x (y)")
        assert "in use" in failure(path.parent, "backup", "copy.db", "--force")


def test_a_backup_that_fails_leaves_nothing(path: Path) -> None:
    def fail(done: int, size: int) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(StoreUnavailable, match="No space left"):
        upkeep.back_up(path, path.with_name("copy.db"), force=False, progress=fail)
    assert not [file for file in path.parent.iterdir() if "copy" in file.name]


def test_damage_is_found_and_an_older_backup_kept(path: Path) -> None:
    with closing(sqlite3.connect(path)) as writer:
        for number in range(100):
            turn = ("s", number, "x" * 1000, "x", 0)
            writer.execute(sql.INSERT_TURN, turn)
        writer.commit()
    turnkeeper(path.parent, "backup", "copy.db")
    whole = path.with_name("copy.db").read_bytes()
    spoiled = bytearray(path.read_bytes())
    spoiled[-40_000:-20_000] = b"\xff" * 20_000  # among the turns
    path.write_bytes(spoiled)
    said = failure(path.parent, "backup", "copy.db", "--force", code=1)
    assert "The backup was not made" in said
    assert path.with_name("copy.db").read_bytes() == whole


def test_places_that_cannot_be_written_are_one_sentence(path: Path) -> None:
    assert "cannot be written" in failure(path.parent, "backup", "no/such/copy.db")
    assert "is a folder" in failure(path.parent, "backup", ".")


def test_a_backup_of_an_older_schema_is_made_before_an_upgrade(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    newer = [*migrations.all_migrations(), (migrations.newest_migration() + 1, "later.sql", "")]
    monkeypatch.setattr(migrations, "all_migrations", lambda: newer)
    made = upkeep.back_up(path, path.with_name("copy.db"), force=False, progress=quiet)
    assert made.turns == 1
    with pytest.raises(ConfigError, match="start its server once"):
        visit_sqlite(path)


# --- Vacuum ------------------------------------------------------------------------------------


async def test_a_vacuum_gives_the_space_back_while_the_server_writes(
    tmp_path: Path, http: aiohttp.ClientSession, model_server: ModelServer
) -> None:
    model_server.script = lambda _: Plan(deltas=("x" * 100_000,))
    with server_of(model_server, tmp_path) as server:
        for _ in range(100):
            await chat(http, server, "hi", "large")
        await asyncio.to_thread(turnkeeper, tmp_path, "sessions", "delete", "large", "--yes")
        model_server.script = lambda _: Plan()
        answers: list[Any] = []

        async def talk(number: int) -> None:
            while True:
                answers.append(await chat(http, server, "hi", f"s{number}"))

        talking = [asyncio.create_task(talk(n)) for n in range(8)]
        for _ in range(5):
            said = (await asyncio.to_thread(turnkeeper, tmp_path, "vacuum")).stdout
            assert "before" in said
        for task in talking:
            task.cancel()
        await asyncio.gather(*talking, return_exceptions=True)
        assert len(answers) > 20
        assert {answer["response"] for answer in answers} == {"Hello there"}
        assert len(server.log) == 1
    assert (tmp_path / "turnkeeper.db").stat().st_size < 5_000_000
    with closing(sqlite3.connect(tmp_path / "turnkeeper.db")) as look:
        assert look.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        [turns] = look.execute("SELECT COUNT(*) FROM turns").fetchone()
    assert turns >= len(answers)


def test_a_large_database_is_not_rewritten_under_a_server(path: Path) -> None:
    with path.with_name("turnkeeper.db.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(StoreUnavailable, match="stop the server first"):
            upkeep.vacuum(path, limit=0)
    before, after = upkeep.vacuum(path, limit=0)
    assert 0 < after <= before


async def test_postgres_is_vacuumed_and_left_to_its_own_backups(
    postgres_url: str, tmp_path: Path
) -> None:
    database = await empty_database(postgres_url)
    at = ("--database", database)
    assert "no server has used it" in failure(tmp_path, "vacuum", *at)
    store = await compose.open_store(database)
    await publish(store, "default")
    await say(store, "q", "a", None)
    assert "before" in (await asyncio.to_thread(turnkeeper, tmp_path, "vacuum", *at)).stdout
    assert "pg_dump" in failure(tmp_path, "backup", "copy.db", *at)
    await store.close()


# --- Sessions ----------------------------------------------------------------------------------


@pytest.fixture(params=["sqlite", "postgres"])
async def database(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/turnkeeper.db"
    return await empty_database(request.getfixturevalue("postgres_url"))


async def test_sessions_are_listed_shown_and_deleted(database: str, tmp_path: Path) -> None:
    def run(*arguments: str, code: int = 0) -> str:
        done = turnkeeper(tmp_path, "sessions", *arguments, "--owner", "ann", code=code, **env)
        return done.stdout + done.stderr

    env = {"DATABASE_URL": database}
    store = await compose.open_store(database)  # as a server has it
    await publish(store, "default")
    first = await say(store, "what's \x1b[31mup?", "the sky", ByAlias("demo"))
    failed = await store.begin_turn(a_turn("again", session=ByAlias("demo")))
    await store.end_turn(failed.turn.ref, Ending(TurnStatus.CANCELLED, ""), NOW)
    second = await say(store, "q", "a", None)

    lines = run("list").splitlines()
    assert [line.split()[0] for line in lines] == [second.session_id, first.session_id]
    assert lines[1].endswith("3 messages  demo")
    assert "--limit 10" in run("list", "--limit", "1")
    assert [each["id"] for each in json.loads(run("list", "--json"))] == [
        second.session_id,
        first.session_id,
    ]

    shown = run("show", "demo")
    assert "user  2023-11-14T22:13:20.000Z\nwhat's \ufffd[31mup?\n" in shown
    assert "the sky" in shown
    whole = json.loads(run("show", first.session_id, "--json"))
    assert whole["session"]["alias"] == "demo"
    assert whole["items"][0] == {
        "turn": 1,
        "position": 0,
        "status": "completed",
        "at": "2023-11-14T22:13:20.000Z",
        "type": "message",
        "role": "user",
        "text": "what's \x1b[31mup?",
    }

    assert "--yes" in run("delete", "demo", code=2)
    assert run("delete", "demo", "--yes").endswith("Deleted\n")
    assert "Session not found" in run("show", "demo", code=1)
    assert "Session not found" in run("delete", "demo", "--yes", code=1)
    assert [s.id for s in await newest_sessions(store, 9)] == [second.session_id]
    await store.close()


async def test_a_turns_end_is_marked(path: Path) -> None:
    store = SqlStore(visit_sqlite(path))
    begun = await store.begin_turn(a_turn("more", session=ByAlias("demo")))
    await store.end_turn(begun.turn.ref, Ending(TurnStatus.CANCELLED, "the se"), NOW)
    await store.begin_turn(a_turn("hello?", session=ByAlias("demo")))
    await store.close()
    shown = turnkeeper(path.parent, "sessions", "show", "demo", "--owner", "ann").stdout
    headings = [line.partition("  ")[::2] for line in shown.splitlines() if "T22:13" in line]
    marks = [(role, time[26:]) for role, time in headings]
    assert marks == [
        ("user", ""),
        ("assistant", ""),
        ("user", "(cancelled)"),
        ("assistant", "(cancelled)"),
        ("user", "(running)"),
    ]
    assert "(1 open turn)" in shown


async def test_a_session_is_not_deleted_under_a_turn_that_runs(
    tmp_path: Path, http: aiohttp.ClientSession, model_server: ModelServer
) -> None:
    gate = asyncio.Event()
    model_server.script = lambda _: Plan(at={1: Wait(gate)})
    delete = ("sessions", "delete", "demo", "--yes")
    with server_of(model_server, tmp_path) as server:
        running = await stream(http, server, "hi", "demo")
        await model_server.wait_for_calls(1)
        said = await asyncio.to_thread(failure, tmp_path, *delete, code=1)
        assert "queued or running" in said
        gate.set()
        await running.read_all()
        assert running.last[0] == "turn.completed"
        await asyncio.to_thread(turnkeeper, tmp_path, *delete)
        async with http.get(f"{server.url}/api/sessions") as response:
            assert await response.json() == []
        assert (await chat(http, server, "again", "demo"))["response"] == "Hello there"
    assert len(model_server.requests[-1].body["messages"]) == 2


async def test_what_a_crash_left_open_is_deleted_with_its_session(
    tmp_path: Path, http: aiohttp.ClientSession, model_server: ModelServer
) -> None:
    model_server.script = lambda _: Plan(deltas=("Once ", "upon"), at={1: Hang()})
    with server_of(model_server, tmp_path) as server:
        running = await stream(http, server, "hi", "demo")
        await running.read_until(1)
        server.kill()
    path = tmp_path / "turnkeeper.db"
    await asyncio.to_thread(turnkeeper, tmp_path, "sessions", "list")
    assert rows_of(path, "turns") == [1], "looking settles nothing"
    with closing(sqlite3.connect(path)) as look:
        assert look.execute("SELECT status FROM turns").fetchone() == ("running",)
    await asyncio.to_thread(turnkeeper, tmp_path, "sessions", "delete", "demo", "--yes")
    assert rows_of(path, "sessions", "turns", "items", "checkpoints") == [0, 0, 0, 0]


def test_a_server_that_starts_during_a_deletion_waits_for_its_end(path: Path) -> None:
    with Server(path.parent, "--model", "eliza") as server, without_server(path) as alone:
        assert not alone, "a server that runs is seen"
        server.kill()
    with ThreadPoolExecutor(1) as thread, without_server(path) as alone:
        assert alone
        server = Server(path.parent, "--model", "eliza")
        starting = thread.submit(server.start)
        # Its address is bound first and the lock is asked for next; then comes the second of grace.
        time.sleep(0.8)
        assert not starting.done()
    with server:
        assert "listening" in server.log[0]


def test_a_vacuum_keeps_servers_away(path: Path) -> None:
    with without_server(path), pytest.raises(RuntimeError, match="or rewriting it"):
        Server(path.parent, "--model", "eliza").start()


# --- Databases that are refused ------------------------------------------------------------------


COMMANDS = [
    ("backup", "copy.db"),
    ("vacuum",),
    ("sessions", "list"),
    ("sessions", "show", "x"),
    ("sessions", "delete", "x", "--yes"),
]


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_no_command_makes_or_touches_a_database_that_is_not_ours(
    tmp_path: Path, command: tuple[str, ...]
) -> None:
    assert "There is no database" in failure(tmp_path, *command)
    assert not list(tmp_path.iterdir())
    path = tmp_path / "turnkeeper.db"
    path.write_bytes(b"")
    assert "it is empty" in failure(tmp_path, *command)
    path.write_text("remember the milk\n" * 100)
    assert "cannot be used" in failure(tmp_path, *command)
    path.unlink()
    with closing(sqlite3.connect(path)) as other:
        other.execute("CREATE TABLE recipes (name TEXT)")
    before = path.read_bytes()
    assert "is not Turnkeeper's" in failure(tmp_path, *command)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_no_command_touches_a_newer_database(path: Path, command: tuple[str, ...]) -> None:
    with closing(sqlite3.connect(path)) as later:
        later.execute("INSERT INTO turnkeeper_migrations VALUES (9999, 'later')")
        later.commit()
    assert "newer Turnkeeper" in failure(path.parent, *command)


def test_only_the_setting_that_is_needed_has_to_be_right(path: Path) -> None:
    env = {"PORT": "http", "HOST": "0.0.0.0"}
    assert "demo" in turnkeeper(path.parent, "sessions", "list", "--owner", "ann", **env).stdout
    said = failure(path.parent, "sessions", "list", TURNKEEPER_DATABASE="mysql://x")
    assert "TURNKEEPER_DATABASE" in said
