"""Full, read-only and damaged disks, and wrong clocks: a clear error, nothing lost.

Real server processes. A disk is full in two ways: a small tmpfs, for which one must be root; and
a limit on the size of files, which the test sets on the process that runs, and lifts again.
"""

import asyncio
import os
import random
import resource
import signal
import sqlite3
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import closing
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol

import aiohttp
import pytest

from rig import clock
from rig.model_server import ModelServer, Plan, Wait
from rig.server import Server
from tests.test_process import Stream, chat, failure_of, server_of, stream

NAME = "turnkeeper.db"
LONG = "far too much for what is left " * 2_000  # 60 kB


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as session:
        yield session


async def ask(
    http: aiohttp.ClientSession, method: str, url: str, body: Any = None
) -> tuple[int, Any]:
    async with http.request(method, url, json=body) as response:
        return response.status, await response.json()


def mount(*arguments: object) -> None:
    command = ["mount", *(str(argument) for argument in arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"needs to be root and allowed to mount: {done.stderr.strip()}")


@pytest.fixture
def tmpfs(tmp_path: Path) -> Iterator[Path]:
    """A small file system of its own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount("-t", "tmpfs", "-o", "size=4m", "turnkeeper-test", folder)
    yield folder
    subprocess.run(["umount", folder], check=True)


def integrity(path: Path) -> str:
    with closing(sqlite3.connect(path)) as database:
        return str(database.execute("PRAGMA integrity_check").fetchone()[0])


# --- Full --------------------------------------------------------------------------------------


class Fillable(Protocol):
    folder: Path

    def fill(self, server: Server) -> None:
        """From now on nothing more can be written."""

    def free(self, server: Server) -> None:
        """There is space again."""


class SmallDisk:
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def fill(self, server: Server) -> None:
        del server
        with (self.folder / "ballast").open("wb", buffering=0) as ballast:
            for size in (65_536, 4_096):
                try:
                    while True:
                        ballast.write(bytes(size))
                except OSError:
                    pass

    def free(self, server: Server) -> None:
        del server
        (self.folder / "ballast").unlink()


class SmallFiles:
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def fill(self, server: Server) -> None:
        size = (self.folder / f"{NAME}-wal").stat().st_size
        resource.prlimit(server.pid, resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

    def free(self, server: Server) -> None:
        unlimited = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
        resource.prlimit(server.pid, resource.RLIMIT_FSIZE, unlimited)


@pytest.fixture(params=["disk", "files"])
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> Fillable:
    if request.param == "disk":
        return SmallDisk(request.getfixturevalue("tmpfs"))
    return SmallFiles(tmp_path)


def gate_after_two(model: ModelServer) -> asyncio.Event:
    """Replies of which the second half waits until the event is set."""
    gate = asyncio.Event()
    model.script = lambda _: Plan(deltas=("Once ", "upon ", "a ", "time"), at={2: Wait(gate)})
    return gate


async def test_a_full_disk_is_said_clearly_and_over_when_there_is_space(
    disk: Fillable, http: aiohttp.ClientSession, model_server: ModelServer
) -> None:
    with server_of(model_server, disk.folder, "--checkpoint-seconds", "0.2") as server:
        assert (await chat(http, server, "before", "s"))["response"] == "You said: before"
        gate = gate_after_two(model_server)
        running = [await stream(http, server, "running", f"r{n}") for n in range(5)]
        await model_server.wait_for_calls(6)
        disk.fill(server)
        files, lines = sorted(path.name for path in disk.folder.iterdir()), len(server.log)
        await check_refusals(http, server)
        gate.set()
        await check_reading(http, server)
        await asyncio.sleep(1.5)  # while ends and checkpoints are tried again and again
        assert sorted(path.name for path in disk.folder.iterdir()) == files
        assert len(server.log) - lines <= 3, server.log[lines:]
        disk.free(server)
        await asyncio.gather(*[check_end(each) for each in running])
        model_server.script = lambda _: Plan()
        assert (await chat(http, server, "after", "s"))["response"] == "Hello there"
        assert (await ask(http, "GET", f"{server.url}/health/ready"))[0] == 200
        shown = [m["content"] for m in model_server.requests[-1].body["messages"][1:]]
        assert shown == ["before", "You said: before", "after"]
        assert "it works again" in server.log[-1] or "is over" in server.log[-1]
        assert await asyncio.to_thread(server.stop) == 0
    assert integrity(disk.folder / NAME) == "ok"


async def check_refusals(http: aiohttp.ClientSession, server: Server) -> None:
    """Each dialect says in its own shape that the database cannot be used."""
    for path, body in (
        ("/api/chat", {"message": LONG, "session_id": "s"}),
        ("/api/chat", {"message": LONG, "stream": True}),
        ("/api/documents", {"title": "a title"}),
        ("/api/chat-sessions", {"messages": [{"role": "user", "content": LONG}]}),
    ):
        status, said = await ask(http, "POST", f"{server.url}{path}", body)
        assert status == 503, (path, said)
        assert "database" in said["error"]
        assert said.get("code", "store_unavailable") == "store_unavailable"
    status, said = await ask(http, "GET", f"{server.url}/health/ready")
    assert (status, said) == (503, {"status": "no database"})
    assert (await ask(http, "GET", f"{server.url}/health/live"))[0] == 200


async def check_reading(http: aiohttp.ClientSession, server: Server) -> None:
    status, listed = await ask(http, "GET", f"{server.url}/api/sessions")
    assert status == 200
    assert {"id": "s", "message_count": 2} in listed


async def check_end(running: Stream) -> None:
    async with asyncio.timeout(10):
        await running.read_all()
    assert running.last[0] == "turn.completed"
    assert running.text == "Once upon a time"


async def test_a_server_stops_while_its_disk_is_full_and_starts_when_it_is_not(
    tmpfs: Path, http: aiohttp.ClientSession, model_server: ModelServer
) -> None:
    disk = SmallDisk(tmpfs)
    with server_of(model_server, tmpfs, "--grace", "0.5") as server:
        await chat(http, server, "before", "s")
        gate_after_two(model_server)
        running = await stream(http, server, "running", "s")
        await running.read_until(10)
        disk.fill(server)
        assert await asyncio.to_thread(server.stop) == 0
        said = failure_of(server)
        assert "The database cannot be written: database or disk is full" in said
        disk.free(server)
        await asyncio.to_thread(server.start)
        url = f"{server.url}/api/turns/{running.turn_id}"
        assert (await ask(http, "GET", url))[1]["turn"]["status"] == "interrupted"


# --- Read-only ---------------------------------------------------------------------------------


def test_a_file_that_can_only_be_read_is_one_sentence(tmp_path: Path) -> None:
    with Server(tmp_path, "--model", "eliza") as server:
        server.stop()
        path = tmp_path / NAME
        mount("--bind", path, path)
        try:
            mount("-o", "remount,bind,ro", path)
            said = failure_of(server)
        finally:
            subprocess.run(["umount", path], check=True)
        assert "attempt to write a readonly database" in said
        server.start()
        assert server.stop() == 0, server.log


def test_a_folder_that_can_only_be_read_is_one_sentence(tmpfs: Path) -> None:
    with Server(tmpfs, "--model", "eliza") as server:
        server.stop()
        mount("-o", "remount,ro", tmpfs)
        said = failure_of(server)
        mount("-o", "remount,rw", tmpfs)
        assert "Read-only file system" in said


# --- Damaged -----------------------------------------------------------------------------------

PAGE = 4096
SESSIONS = 40


async def make_sessions(http: aiohttp.ClientSession, server: Server, count: int) -> None:
    """A turn in each, a few of which fill a page."""
    text = "x " * 400
    await asyncio.gather(*[chat(http, server, f"{n} {text}", f"s{n}") for n in range(count)])


async def ask_all(http: aiohttp.ClientSession, server: Server, count: int) -> list[int]:
    """The status of another turn in each session."""
    url, statuses = f"{server.url}/api/chat", []
    async with asyncio.timeout(30):
        for n in range(count):
            body = {"message": "?", "session_id": f"s{n}"}
            statuses.append((await ask(http, "POST", url, body))[0])
    return statuses


def page_of(path: Path, words: bytes) -> int:
    """Where the page begins that holds these words, and lies at the bottom of its tree."""
    content = path.read_bytes()
    pages = [content[at : at + PAGE] for at in range(0, len(content), PAGE)]
    return PAGE * next(n for n, page in enumerate(pages) if page[0] == 0x0A and words in page)


def overwrite(path: Path, offset: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)


NOISE = random.Random(6).randbytes(PAGE)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        pytest.param(lambda p: overwrite(p, 0, NOISE[:100]), "not a database", id="header"),
        pytest.param(lambda p: os.truncate(p, 5 * PAGE), "damaged", id="cut off"),
        pytest.param(lambda p: overwrite(p, 100, NOISE[100:]), "damaged", id="first page"),
    ],
)
def test_a_file_too_damaged_to_serve_is_one_sentence_and_stays_as_it_is(
    tmp_path: Path, damage: Callable[[Path], None], words: str
) -> None:
    path = tmp_path / NAME
    with Server(tmp_path, "--model", "eliza") as server:
        server.stop()
        damage(path)
        before = path.read_bytes()
        assert words in failure_of(server)
        assert path.read_bytes() == before


async def test_one_damaged_page_costs_only_what_is_on_it(
    tmp_path: Path, http: aiohttp.ClientSession, model_server: ModelServer
) -> None:
    path = tmp_path / NAME
    with server_of(model_server, tmp_path) as server:
        await make_sessions(http, server, SESSIONS)
        server.stop()
        overwrite(path, page_of(path, b"25 x x x"), NOISE)
        server.start()
        lines = len(server.log)
        outcomes = await ask_all(http, server, SESSIONS)
        assert set(outcomes) == {200, 503}
        assert outcomes.count(200) >= SESSIONS - 10
        assert len(server.log) - lines <= 6
        assert server.stop() == 0, server.log


async def test_a_page_that_is_damaged_under_a_running_server_is_no_crash(
    tmp_path: Path, http: aiohttp.ClientSession, model_server: ModelServer
) -> None:
    path = tmp_path / NAME
    with server_of(model_server, tmp_path) as server:
        await make_sessions(http, server, SESSIONS)
        server.stop()
        server.start()
        overwrite(path, page_of(path, b"25 x x x"), NOISE)
        outcomes = await ask_all(http, server, SESSIONS)
        assert set(outcomes) <= {200, 503}
        assert outcomes.count(200) >= SESSIONS - 10
        assert server.stop() == 0, server.log


async def test_a_log_that_was_cut_off_loses_what_it_held_and_nothing_else(
    tmp_path: Path, http: aiohttp.ClientSession
) -> None:
    log = tmp_path / f"{NAME}-wal"
    with Server(tmp_path, "--model", "eliza") as server:
        for n in range(10):
            await chat(http, server, "Hello", f"s{n}")
        server.kill()
        (tmp_path / f"{NAME}-shm").unlink()
        os.truncate(log, log.stat().st_size - 6 * PAGE)
        server.start()
        names = [each["id"] for each in (await ask(http, "GET", f"{server.url}/api/sessions"))[1]]
        assert names == [f"s{n}" for n in range(len(names))]
        assert 8 <= len(names) <= 10
        await chat(http, server, "Hello", "new")
        assert server.stop() == 0, server.log
    assert integrity(tmp_path / NAME) == "ok"


# --- A wrong clock -----------------------------------------------------------------------------

HOUR = 3600
YEAR = 365 * 24 * HOUR


class Clock:
    """The time of day, as a server sees it."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "shift"
        self.put(0)

    def put(self, seconds: int) -> None:
        new = self.file.with_name("shift.new")
        new.write_text(str(seconds))
        new.replace(self.file)

    def server(self, model: ModelServer, folder: Path, *options: str) -> Server:
        server = server_of(model, folder, *options)
        server.program = (clock.__file__, str(self.file))
        return server


async def get_turn(http: aiohttp.ClientSession, server: Server, turn_id: str) -> Any:
    return (await ask(http, "GET", f"{server.url}/api/turns/{turn_id}"))[1]["turn"]


async def test_a_clock_that_is_put_back_makes_no_negative_times(
    tmp_path: Path, http: aiohttp.ClientSession, model_server: ModelServer
) -> None:
    set_clock = Clock(tmp_path)
    gate = gate_after_two(model_server)
    with set_clock.server(model_server, tmp_path) as server:
        running = await stream(http, server, "first", "s0")
        await running.read_until(10)
        set_clock.put(-HOUR)
        gate.set()
        await running.read_all()
        assert running.last[0] == "turn.completed"
        assert (await get_turn(http, server, running.turn_id))["duration_ms"] == 0
        for n in range(1, 4):
            await chat(http, server, f"later {n}", f"s{n}")
        listed = (await ask(http, "GET", f"{server.url}/api/chat-sessions"))[1]["chat_sessions"]
        assert [each["title"] for each in listed] == ["later 3", "later 2", "later 1", "first"]
        for each in listed:
            created, updated = (
                datetime.fromisoformat(each[f"{what}_at"]) for what in ("created", "updated")
            )
            assert created <= updated


async def test_a_turn_that_a_kill_left_is_settled_though_the_clock_was_put_back(
    tmp_path: Path, http: aiohttp.ClientSession, model_server: ModelServer
) -> None:
    set_clock = Clock(tmp_path)
    gate_after_two(model_server)
    with set_clock.server(model_server, tmp_path) as server:
        running = await stream(http, server, "first", "s0")
        await running.read_until(10)
        server.kill()
        set_clock.put(-HOUR)
        await asyncio.to_thread(server.start)
        turn = await get_turn(http, server, running.turn_id)
        assert (turn["status"], turn["duration_ms"]) == ("interrupted", 0)


async def test_a_clock_that_is_put_forward_expires_nothing_and_stops_nothing(
    tmp_path: Path, http: aiohttp.ClientSession, model_server: ModelServer
) -> None:
    (tmp_path / "t.toml").write_text("[deployments.default]\nidle_timeout = 86400\n")
    set_clock = Clock(tmp_path)
    options = ("--config", "t.toml", "--checkpoint-seconds", "0.2", "--queue-timeout", "60")
    gate = gate_after_two(model_server)
    with set_clock.server(model_server, tmp_path, *options) as server:
        running = await stream(http, server, "first", "s")
        waiting = await stream(http, server, "second", "s")
        await running.read_until(10)
        set_clock.put(YEAR)
        await asyncio.sleep(6)  # in which the keeper has gone round
        gate.set()
        for each in (running, waiting):
            await each.read_all()
            assert each.last[0] == "turn.completed"
        set_clock.put(0)
        assert (await ask(http, "GET", f"{server.url}/api/sessions"))[1] == [
            {"id": "s", "message_count": 4}
        ]
        assert sum("The clock was put forward" in line for line in server.log) == 1
        server.signal(signal.SIGTERM)
        assert await asyncio.to_thread(server.wait) == 0
