"""Power loss: whatever a client was told is on the disk before it is told.

A real server is traced while real clients talk to it. The trace says when each byte was written,
when the disk was waited for, and when each answer left. From it the files are made anew as a disk
would have them on which the power failed.
"""

import asyncio
import random
import shutil
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from rig.disk import Disk, Fate
from rig.model_server import ModelServer, Plan
from rig.server import Server
from rig.trace import (
    ENVIRONMENT,
    Happening,
    Made,
    Removed,
    Resized,
    Sent,
    Synced,
    Wrote,
    read_trace,
    read_trace_file,
    strace,
)

CLIENTS = 16
NAME = "turnkeeper.db"
LONG = "so that the log fills up and is written back " * 900  # 40 kB

needs_strace = pytest.mark.skipif(
    shutil.which("strace") is None, reason="needs strace (Debian: strace)"
)

# --- Talking to a traced server ----------------------------------------------------------------


@dataclass(frozen=True)
class Told:
    """A turn as its client knows it. Its message begins with a word that no other has."""

    turn_id: str
    message: str
    reply: str

    @property
    def mark(self) -> str:
        return self.message.split()[0]


def reply_to(message: str) -> str:
    return f"answer to {message.split(maxsplit=1)[0]}"


def answer(call: Any) -> Plan:
    return Plan(deltas=(reply_to(call.body["messages"][-1]["content"]),))


async def take_turn(http: aiohttp.ClientSession, number: int, session: str) -> Told:
    """A turn, every other one of them streamed; other words while the server refuses them."""
    for attempt in range(50):
        message = f"ask-{number:03}.{attempt:02} {LONG}"
        body = {"message": message, "session_id": session, "stream": number % 2 == 1}
        async with http.post("/api/chat", json=body) as response:
            if response.status == 200:
                assert reply_to(message) in await response.text()
                return Told(response.headers["turn-id"], message, reply_to(message))
            assert response.status == 503
    raise AssertionError("it was refused again and again")


async def talk(url: str, turns: int) -> list[Told]:
    """Many clients at once, so that commits are shared; a new session for every fourth turn."""
    async with aiohttp.ClientSession(url) as http:

        async def client(first: int) -> list[Told]:
            numbers = range(first, turns, CLIENTS)
            return [await take_turn(http, n, f"s{first}-{n // CLIENTS // 4}") for n in numbers]

        told = await asyncio.gather(*[client(n) for n in range(CLIENTS)])
    return [turn for each in told for turn in each]


@dataclass(frozen=True)
class Traced:
    """What a server did, and what it told its clients; `before` is the file it found."""

    database: Path
    before: bytes | None
    happenings: Sequence[Happening]
    told: Sequence[Told]

    @property
    def log(self) -> Path:
        return self.database.with_name(f"{NAME}-wal")


async def run_traced(
    folder: Path, model: ModelServer, turns: int, *options: str, faults: Sequence[str] = ()
) -> Traced:
    output, database = folder / "trace", folder / NAME
    before = database.read_bytes() if database.exists() else None
    model.script = answer
    env = {"OPENAI_BASE_URL": model.base_url, "OPENAI_API_KEY": "secret", **ENVIRONMENT}
    under = strace(output, *faults)
    with Server(folder, "--model", "scripted", *options, env=env, under=under) as server:
        told = await talk(server.url, turns)
        assert await asyncio.to_thread(server.stop) == 0
    happenings = await asyncio.to_thread(read_trace_file, output, database, server.pid)
    return Traced(database, before, happenings, told)


# --- The rule: no acknowledgement before its sync ----------------------------------------------


def acknowledged(traced: Traced) -> Iterator[tuple[int, Told, bool]]:
    """When each turn's begin and its end were told, and whether it was the end.

    The head of an answer names its turn: a streamed one says so that it has begun, any other that
    it is complete. A stream says that in its last event.
    """
    turns = {turn.turn_id.encode(): turn for turn in traced.told}
    for when, happening in enumerate(traced.happenings):
        if not isinstance(happening, Sent):
            continue
        data = happening.data
        if b"\r\nturn-id: " in data:
            turn_id = data.partition(b"\r\nturn-id: ")[2].partition(b"\r\n")[0]
            yield when, turns[turn_id], False
            if b"text/event-stream" not in data:
                yield when, turns[turn_id], True
        if b"event: turn.completed" in data:
            turn_id = data.rpartition(b'"turn_id":"')[2].partition(b'"')[0]
            yield when, turns[turn_id], True


def find_commit(traced: Traced, words: bytes) -> int:
    """When the commit that first holds these words was written whole to the log.

    https://www.sqlite.org/fileformat2.html#the_write_ahead_log: each frame is a head of 24 bytes,
    whose second number is not 0 if a commit ends with it, and a page.
    """
    is_found = is_last = False
    for when, happening in enumerate(traced.happenings):
        if not isinstance(happening, Wrote) or happening.path != traced.log:
            continue
        if len(happening.data) == 24:
            is_last = happening.data[4:8] != bytes(4)
        else:
            is_found = is_found or words in happening.data
            if is_found and is_last:
                return when
    raise AssertionError(f"{words!r} was never committed")


def unsafe(traced: Traced) -> list[str]:
    """What was told before the log that holds it was on the disk."""
    syncs = [
        (when, happening.covers)
        for when, happening in enumerate(traced.happenings)
        if isinstance(happening, Synced) and happening.path == traced.log
    ]
    found = []
    for told, turn, is_end in acknowledged(traced):
        written = find_commit(traced, (turn.reply if is_end else turn.mark).encode())
        if not any(written < covers and synced < told for synced, covers in syncs):
            found.append(f"{turn.turn_id} {'end' if is_end else 'begin'}")
    return found


# --- The files as they are found after a power loss --------------------------------------------


def nothing_more() -> bool:
    return False


def everything() -> bool:
    return True


def at_random(seed: int) -> Fate:
    """Anything may be there, sector by sector: mostly little, or mostly much."""
    dice = random.Random(seed)
    chance = dice.choice((0.1, 0.5, 0.9))
    return lambda: dice.random() < chance


def put(files: dict[str, bytes], folder: Path) -> Path:
    for old in folder.glob(f"{NAME}*"):
        old.unlink()
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder / NAME


_SAID = """
SELECT 't' || substr(t.session_id, 2) || '_' || t.number, t.status, i.kind, i.text
FROM turns t LEFT JOIN items i ON i.session_id = t.session_id AND i.turn = t.number
"""


def check_whole(database: Path, told: Sequence[tuple[Told, bool]]) -> None:
    """SQLite finds nothing wrong, and all that was told is there word for word."""
    with closing(sqlite3.connect(database)) as found:
        assert found.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        rows = found.execute(_SAID).fetchall() if told else []
    said = {(turn_id, kind): text for turn_id, _, kind, text in rows}
    states = {turn_id: status for turn_id, status, *_ in rows}
    for turn, is_end in told:
        assert said[turn.turn_id, "user"] == turn.message
        if is_end:
            assert said[turn.turn_id, "assistant"] == turn.reply
            assert states[turn.turn_id] == "completed"


def moments(traced: Traced, count: int, seed: int) -> set[int]:
    """When the power may fail: half of the times while the log is written back, which is when
    both files change.
    """
    dice = random.Random(seed)
    written_back = [
        when
        for when, happening in enumerate(traced.happenings)
        if isinstance(happening, Wrote | Synced | Resized) and happening.path == traced.database
    ]
    anywhere = range(len(traced.happenings))
    return {*dice.sample(written_back, count // 2), *dice.sample(anywhere, count // 2)}


def replay(traced: Traced, when: set[int]) -> Iterator[tuple[int, Disk, list[tuple[Told, bool]]]]:
    """The disk at these moments, with what had been told by then."""
    told = sorted(acknowledged(traced), key=lambda each: each[0])
    found = {} if traced.before is None else {NAME: traced.before}
    disk = Disk(traced.database.parent, found)
    for now, happening in enumerate(traced.happenings):
        disk.feed(happening)
        if now in when:
            yield now, disk, [(turn, is_end) for at, turn, is_end in told if at <= now]


# --- The proof ---------------------------------------------------------------------------------


@needs_strace
async def test_what_was_told_is_there_after_a_power_loss(
    tmp_path: Path, model_server: ModelServer
) -> None:
    traced = await run_traced(tmp_path, model_server, 160)
    assert len(list(acknowledged(traced))) == 2 * 160
    assert unsafe(traced) == []
    assert written_back_while_serving(traced) >= 2
    await asyncio.to_thread(check_after_power_losses, traced, moments(traced, 40, seed=6))


def check_after_power_losses(traced: Traced, when: set[int]) -> None:
    folder = traced.database.with_name("found")
    folder.mkdir()
    for now, disk, told in replay(traced, when):
        for fate in (nothing_more, at_random(now), everything):
            check_whole(put(disk.after_power_loss(fate), folder), told)


def written_back_while_serving(traced: Traced) -> int:
    """How often the log's pages came into the main file and were synced there."""
    last = max(when for when, *_ in acknowledged(traced))
    return sum(
        isinstance(happening, Synced) and happening.path == traced.database
        for happening in traced.happenings[:last]
    )


@needs_strace
async def test_a_server_starts_on_what_a_power_loss_left(
    tmp_path: Path, model_server: ModelServer
) -> None:
    traced = await run_traced(tmp_path, model_server, 32)
    commit = find_commit(traced, b"ask-031")
    [(_, disk, told)] = replay(traced, {commit})
    folder = tmp_path / "found"
    folder.mkdir()
    put(disk.after_power_loss(everything), folder)
    with Server(folder, "--model", "eliza") as server:
        async with aiohttp.ClientSession(server.url) as http:
            for turn, is_end in told:
                async with http.get(f"/api/turns/{turn.turn_id}") as response:
                    status = (await response.json())["turn"]["status"]
                    assert status == "completed" if is_end else status != "running"


@needs_strace
async def test_with_durability_process_answers_do_not_wait_for_the_disk(
    tmp_path: Path, model_server: ModelServer
) -> None:
    """So the rule above can be broken, and the check of it would see that."""
    traced = await run_traced(tmp_path, model_server, 32, "--durability", "process")
    assert len(unsafe(traced)) > 32


@needs_strace
async def test_a_sync_that_fails_acknowledges_nothing(
    tmp_path: Path, model_server: ModelServer
) -> None:
    """The disk says no to every second: some turns are written again, some are refused.

    The first few are those of the start, which would not be one without them.
    """
    with Server(tmp_path, "--model", "eliza") as server:  # which makes the file, undisturbed
        server.stop()
    faults = ("-e", "inject=fdatasync:error=EIO:when=6+2")
    traced = await run_traced(tmp_path, model_server, 32, faults=faults)
    assert (tmp_path / "trace").read_bytes().count(b"(INJECTED)") >= 2
    assert unsafe(traced) == []
    told = [when for when, *_ in acknowledged(traced)]
    await asyncio.to_thread(check_after_power_losses, traced, set(told[::3]))


# --- The rig itself ----------------------------------------------------------------------------

DB = Path("/data/turnkeeper.db")
WAL = Path("/data/turnkeeper.db-wal")
LINES = rb"""
10  openat(AT_FDCWD</data>, "turnkeeper.db", O_RDWR|O_CREAT, 0600) = 5</data/turnkeeper.db>
10  openat(AT_FDCWD</data>, "other", O_RDWR|O_CREAT, 0600) = 9</data/other>
10  pwrite64(5</data/turnkeeper.db>, "a\"b\n\x00\xff) = 3", 11, 4096) = 11
11  pwrite64(6</data/turnkeeper.db-wal>, "half", 4, 0 <unfinished ...>
10  fdatasync(5</data/turnkeeper.db> <unfinished ...>
11  <... pwrite64 resumed>)             = 4
10  <... fdatasync resumed>)            = 0
11  fdatasync(6</data/turnkeeper.db-wal>) = -1 EIO (Input/output error) (INJECTED)
11  pwrite64(6</data/turnkeeper.db-wal>, "full", 4, 4) = -1 ENOSPC (No space left on device)
11  pwrite64(6</data/turnkeeper.db-wal>, "short", 5, 4) = 2
12  writev(7<socket:[1]>, [{iov_base="HTTP", iov_len=4}, {iov_base="/1.1"}], 2 <unfinished ...>
10  ftruncate(6</data/turnkeeper.db-wal>, 0) = 0
12  <... writev resumed>)               = 8
10  write(3<pipe:[9]>, "*", 1)          = 1
10  openat(AT_FDCWD</data>, "/data", O_RDONLY|O_CLOEXEC) = 8</data>
10  fsync(8</data>)                     = 0
10  unlink("/data/turnkeeper.db-wal")   = 0
10  +++ exited with 0 +++
"""


def test_a_trace_is_read_in_the_order_in_which_things_took_effect() -> None:
    assert list(read_trace(LINES.splitlines(), DB)) == [
        Made(DB),
        Wrote(DB, 4096, b'a"b\n\x00\xff) = 3'),
        Wrote(WAL, 0, b"half"),
        Synced(DB, 2),  # it was asked for before the other thread's write had ended
        Wrote(WAL, 4, b"sh"),
        Sent("socket:[1]", b"HTTP/1.1"),  # once it has begun
        Resized(WAL, 0),
        Synced(DB.parent, 7),
        Removed(WAL),
    ]


def disk_of(*happenings: Happening) -> Disk:
    disk = Disk(DB.parent)
    for happening in happenings:
        disk.feed(happening)
    return disk


def test_a_disk_keeps_what_was_synced_and_nothing_else_for_certain() -> None:
    made = (Made(DB), Wrote(DB, 0, b"sure"), Synced(DB, 2), Synced(DB.parent, 3))
    disk = disk_of(*made, Wrote(DB, 2, b"!"), Resized(DB, 3))
    assert disk.after_power_loss(nothing_more) == {NAME: b"sure"}
    assert disk.after_power_loss(everything) == {NAME: b"su!"}


def test_a_disk_forgets_a_name_whose_folder_was_not_synced() -> None:
    disk = disk_of(Made(DB), Wrote(DB, 0, b"sure"), Synced(DB, 2))
    assert disk.after_power_loss(nothing_more) == {}
    gone = disk_of(Made(DB), Synced(DB.parent, 1), Removed(DB))
    assert gone.after_power_loss(nothing_more) == {NAME: b""}
    assert gone.after_power_loss(everything) == {}


def test_a_sync_does_not_cover_what_was_written_while_it_ran() -> None:
    disk = disk_of(Made(DB), Synced(DB.parent, 1), Wrote(DB, 0, b"late"), Synced(DB, 2))
    assert disk.after_power_loss(nothing_more) == {NAME: b""}


def test_a_write_is_torn_between_sectors() -> None:
    disk = disk_of(Made(DB), Synced(DB.parent, 1), Wrote(DB, 500, b"x" * 600))
    fates = iter((False, True, False))
    found = disk.after_power_loss(lambda: next(fates))
    assert found == {NAME: bytes(512) + b"x" * 512}
