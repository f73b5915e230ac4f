"""A real server process: how it starts, stops, is killed, and what is left afterwards."""

import asyncio
import json
import resource
import signal
import socket
import sqlite3
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from rig.model_server import Hang, ModelServer, Plan, Sleep, Wait
from rig.server import Server
from turnkeeper import sse

WORDS = ("Once ", "upon ", "a ", "time")


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector) as session:
        yield session


def server_of(model: ModelServer, folder: Path, *options: str, **env: str) -> Server:
    provider = {"OPENAI_BASE_URL": model.base_url, "OPENAI_API_KEY": "secret"}
    return Server(folder, "--model", "scripted", *options, env=provider | env)


async def chat(http: aiohttp.ClientSession, server: Server, text: str, session: str) -> Any:
    body = {"message": text, "session_id": session}
    async with http.post(f"{server.url}/api/chat", json=body) as response:
        return await response.json()


class Stream:
    """A streamed turn as a client sees it."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self.response = response
        self.turn_id = response.headers["turn-id"]
        self.text = ""
        self.last: tuple[str, Any] = ("", None)
        self._reader = sse.Reader()

    async def read_until(self, length: int) -> None:
        """Read until so many characters have come, or the stream ends."""
        while len(self.text) < length and (data := await self.response.content.readany()):
            for event in self._reader.feed(data):
                self.last = (event.name, json.loads(event.data))
                self.text += self.last[1].get("text", "")

    async def read_all(self) -> None:
        await self.read_until(1_000_000_000)


async def stream(http: aiohttp.ClientSession, server: Server, text: str, session: str) -> Stream:
    body = {"message": text, "session_id": session, "stream": True}
    return Stream(await http.post(f"{server.url}/api/chat", json=body))


async def rest(http: aiohttp.ClientSession, server: Server, turn_id: str, after: int) -> Stream:
    headers = {"Last-Event-ID": str(after)}
    return Stream(await http.get(f"{server.url}/api/turns/{turn_id}/events", headers=headers))


# --- Starting ----------------------------------------------------------------------------------


def failure_of(server: Server) -> str:
    with pytest.raises(RuntimeError, match="ended with 2") as failed:
        server.start()
    said = str(failed.value)
    assert "Traceback" not in said
    return said


def test_it_says_where_it_listens_in_one_line(tmp_path: Path) -> None:
    with Server(tmp_path, "--model", "eliza") as server:
        assert len(server.log) == 1
        assert server.url.startswith("http://127.0.0.1:")


def test_without_a_provider_it_says_what_to_set(tmp_path: Path) -> None:
    said = failure_of(Server(tmp_path))
    for word in ("GROQ_API_KEY", "OPENAI_API_KEY", "OPENAI_BASE_URL", "--model eliza"):
        assert word in said


def test_a_base_url_needs_a_model(tmp_path: Path) -> None:
    said = failure_of(Server(tmp_path, env={"OPENAI_BASE_URL": "http://127.0.0.1:1/v1"}))
    assert "--model" in said


def test_every_wrong_setting_is_named_at_once(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("TURNKEEPER_GRACE=soon\n")
    (tmp_path / "t.toml").write_text('body_limit = "tiny"\ncolour = "red"\n')
    env = {"PORT": "http", "TURNKEEPER_DATABASE": "mysql://x"}
    said = failure_of(Server(tmp_path, "--attempts", "0", "--config", "t.toml", env=env))
    for name in ("PORT", "TURNKEEPER_DATABASE", "--attempts", "TURNKEEPER_GRACE", "body_limit"):
        assert f"turnkeeper: {name} " in said
    assert "unknown setting colour" in said


def test_a_port_in_use_is_one_sentence(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        said = failure_of(Server(tmp_path, "--model", "eliza", "--port", str(port)))
    assert f"Port {port} of 127.0.0.1 cannot be used" in said
    assert said.count("turnkeeper: ") == 1


def test_a_second_server_of_one_database_is_refused(tmp_path: Path) -> None:
    with Server(tmp_path, "--model", "eliza"):
        assert "Another Turnkeeper" in failure_of(Server(tmp_path, "--model", "eliza"))


def test_a_database_that_is_not_ours_is_one_sentence(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "turnkeeper.db") as other:
        other.execute("CREATE TABLE recipes (name TEXT)")
    other.close()
    assert "is not Turnkeeper's" in failure_of(Server(tmp_path, "--model", "eliza"))


def test_a_postgres_that_is_not_there_is_one_sentence_without_the_password(
    tmp_path: Path,
) -> None:
    url = "postgresql://me:hunter2@127.0.0.1:1/db"
    said = failure_of(Server(tmp_path, "--model", "eliza", "--database", url))
    assert "cannot be reached" in said
    assert "hunter2" not in said


def test_another_address_than_loopback_needs_a_word(tmp_path: Path) -> None:
    said = failure_of(Server(tmp_path, "--model", "eliza", "--host", "0.0.0.0"))
    assert "--auth off" in said


def test_the_dotenv_file_is_read(tmp_path: Path, model_server: ModelServer) -> None:
    (tmp_path / ".env").write_text(
        f"OPENAI_BASE_URL={model_server.base_url}\nTURNKEEPER_MODEL=from-dotenv\n"
    )
    with Server(tmp_path) as server:
        assert "from-dotenv" in server.log[0]


async def test_it_serves_from_postgres(
    postgres_url: str, tmp_path: Path, http: aiohttp.ClientSession, model_server: ModelServer
) -> None:
    server = server_of(model_server, tmp_path, "--database", postgres_url)
    for _ in range(2):
        await asyncio.to_thread(server.start)
        assert (await chat(http, server, "hi", "pg"))["response"] == "You said: hi"
        server.kill()
    assert len(model_server.requests[-1].body["messages"]) == 4


# --- Clients -----------------------------------------------------------------------------------


async def test_a_low_soft_limit_on_open_files_is_raised(
    model_server: ModelServer, tmp_path: Path, http: aiohttp.ClientSession
) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, hard))
    try:
        server = server_of(model_server, tmp_path).start()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    model_server.script = lambda _: Plan(at={1: Hang()})
    with server:
        streams = [await stream(http, server, "Hello", f"s{number}") for number in range(40)]
        for held in streams:
            await held.read_until(1)
        assert all(held.text for held in streams)


async def test_200_clients_in_50_sessions(
    tmp_path: Path, http: aiohttp.ClientSession, model_server: ModelServer
) -> None:
    async def client(number: int) -> None:
        session = f"session-{number % 50}"
        for n in range(3):
            text = f"client {number} message {n}"
            answer = await chat(http, server, text, session)
            assert answer["response"] == f"You said: {text}"

    with server_of(model_server, tmp_path) as server:
        await asyncio.gather(*[client(number) for number in range(200)])
        async with http.get(f"{server.url}/api/sessions") as response:
            assert [s["message_count"] for s in await response.json()] == [24] * 50
        model_server.requests.clear()
        await chat(http, server, "last", "session-7")
    said = [m["content"] for m in model_server.requests[0].body["messages"][1:-1]]
    assert said[1::2] == [f"You said: {text}" for text in said[::2]]
    for number in (7, 57, 107, 157):
        mine = [text for text in said[::2] if text.startswith(f"client {number} ")]
        assert mine == [f"client {number} message {n}" for n in range(3)]


async def test_a_client_that_hangs_up_leaves_its_turn_running(
    tmp_path: Path, http: aiohttp.ClientSession, model_server: ModelServer
) -> None:
    gate = asyncio.Event()
    model_server.script = lambda _: Plan(deltas=WORDS, at={2: Wait(gate)})
    with server_of(model_server, tmp_path) as server:
        leaving = await stream(http, server, "hi", "s")
        await leaving.read_until(10)
        leaving.response.close()
        gate.set()
        back = await rest(http, server, leaving.turn_id, 10)
        await back.read_all()
        assert leaving.text + back.text == "".join(WORDS)
        assert back.last[0] == "turn.completed"


async def test_followers_may_come_and_go_and_all_hear_the_same(
    tmp_path: Path, http: aiohttp.ClientSession, model_server: ModelServer
) -> None:
    gate = asyncio.Event()
    model_server.script = lambda _: Plan(deltas=WORDS, at={2: Wait(gate)})
    with server_of(model_server, tmp_path) as server:
        first = await stream(http, server, "hi", "s")
        others = [await rest(http, server, first.turn_id, n) for n in range(10)]
        gate.set()
        for n, other in enumerate(others):
            await other.read_all()
            assert other.text == "".join(WORDS)[n:]


async def test_a_silent_stream_is_kept_alive(
    tmp_path: Path, http: aiohttp.ClientSession, model_server: ModelServer
) -> None:
    """The one place where a test waits for the clock: 15 seconds of silence."""
    model_server.script = lambda _: Plan(deltas=WORDS, at={2: Sleep(16)})
    with server_of(model_server, tmp_path) as server:
        response = (await stream(http, server, "hi", "s")).response
        assert b"\n\n: keep-alive\n\nevent: message.delta" in await response.read()


async def test_a_body_over_the_limit_is_refused(
    tmp_path: Path, http: aiohttp.ClientSession, model_server: ModelServer
) -> None:
    async def endless() -> AsyncIterator[bytes]:
        for _ in range(100):
            yield b"x" * 1000

    with server_of(model_server, tmp_path, TURNKEEPER_BODY_LIMIT="5000") as server:
        for body in (b"x" * 5001, endless()):
            async with http.post(f"{server.url}/api/chat", data=body) as response:
                assert response.status == 413
                assert (await response.json())["code"] == "body_too_large"
        async with http.post(f"{server.url}/api/chat", data=b" " * 5000) as response:
            assert response.status == 400


async def test_hostile_json_is_refused(
    tmp_path: Path, http: aiohttp.ClientSession, model_server: ModelServer
) -> None:
    deep = b'{"message": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    deep_elsewhere = b'{"message": "x", "other": ' + b'{"a":' * 50_000 + b"1" + b"}" * 50_001
    with server_of(model_server, tmp_path) as server:
        for body in (deep, deep_elsewhere, b"\xff\xfe{}", b"{" * 1000, b'{"message": NaN}'):
            async with http.post(f"{server.url}/api/chat", data=body) as response:
                assert response.status == 400
                assert list(await response.json()) == ["error"]
        long = {"message": "x" * 100_001}
        async with http.post(f"{server.url}/api/chat", json=long) as response:
            assert response.status == 413
        async with http.get(f"{server.url}/api/sessions") as response:
            assert await response.json() == []
        assert len(server.log) == 1


async def test_the_providers_key_goes_to_the_provider_and_nowhere_else(
    tmp_path: Path, http: aiohttp.ClientSession, model_server: ModelServer
) -> None:
    model_server.script = lambda _: Plan(status=401, body={"error": {"message": "bad key"}})
    with server_of(model_server, tmp_path) as server:
        answer = await chat(http, server, "hi", "s")
        assert "secret" not in json.dumps(answer)
        assert "secret" not in "".join(server.log)
    assert model_server.requests[0].headers["authorization"] == "Bearer secret"
    kept = [file.read_bytes() for file in sorted(tmp_path.iterdir())]  # noqa: ASYNC240
    assert not any(b"secret" in content for content in kept)


# --- Stopping ----------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_lets_streams_end_with_an_event_and_the_process_exits(
    tmp_path: Path, http: aiohttp.ClientSession, model_server: ModelServer, number: signal.Signals
) -> None:
    model_server.script = lambda _: Plan(deltas=WORDS, at={2: Hang()})
    with server_of(model_server, tmp_path, "--grace", "0.2") as server:
        running = await stream(http, server, "hi", "s")
        queued = await stream(http, server, "and?", "s")
        await running.read_until(10)
        server.signal(number)
        await running.read_all()
        await queued.read_all()
        assert running.last[0] == queued.last[0] == "turn.interrupted"
        assert running.last[1]["response"] == "Once upon "
        assert await asyncio.to_thread(server.wait, 5) == 0
        assert len(server.log) == 1


async def test_while_it_drains_it_is_alive_and_not_ready_and_tells_where_to_resume(
    tmp_path: Path, http: aiohttp.ClientSession, model_server: ModelServer
) -> None:
    """Also whoever follows a session, not a turn: what comes after is found by the last id."""
    gate = asyncio.Event()
    model_server.script = lambda _: Plan(deltas=WORDS, at={2: Wait(gate)})
    with server_of(model_server, tmp_path, "--grace", "30") as server:
        running = await stream(http, server, "hi", "s")
        session = running.response.headers["session-id"]
        events = f"/api/chat-sessions/{session}/events"
        async with http.get(f"{server.url}{events}") as followed:
            await running.read_until(10)
            server.signal(signal.SIGTERM)
            async with asyncio.timeout(10):
                while True:
                    async with http.get(f"{server.url}/health/ready") as ready:
                        if ready.status == 503:
                            assert await ready.json() == {"status": "stopping"}
                            break
            async with http.get(f"{server.url}/health/live") as live:
                assert live.status == 200
            gate.set()
            heard = list(sse.Reader().feed(await followed.content.read()))
        await running.read_all()
        assert running.last[0] == heard[-1].name == "turn.completed"
        assert await asyncio.to_thread(server.wait, 5) == 0
        await asyncio.to_thread(server.start)
        await chat(http, server, "again", "s")
        last = {"Last-Event-ID": heard[-1].id or ""}
        async with http.get(f"{server.url}{events}", headers=last) as followed:
            line = b""
            while not line.startswith(b"id: "):
                line = await followed.content.readline()
            assert line == b"id: 2:0\n"


async def test_within_the_grace_period_turns_finish_and_new_ones_are_refused(
    tmp_path: Path, http: aiohttp.ClientSession, model_server: ModelServer
) -> None:
    gate = asyncio.Event()
    model_server.script = lambda _: Plan(deltas=WORDS, at={2: Wait(gate)})
    with server_of(model_server, tmp_path, "--grace", "30") as server:
        running = await stream(http, server, "hi", "s")
        await running.read_until(10)
        server.signal(signal.SIGTERM)
        while (await http.get(f"{server.url}/health/ready")).status == 200:
            pass
        body = {"message": "late"}
        async with http.post(f"{server.url}/api/chat", json=body) as response:
            assert response.status == 503
            assert response.headers["retry-after"] == "1"
        gate.set()
        await running.read_all()
        assert running.last[0] == "turn.completed"
        assert await asyncio.to_thread(server.wait, 5) == 0


async def test_a_second_signal_does_not_wait_for_the_grace_period(
    tmp_path: Path, http: aiohttp.ClientSession, model_server: ModelServer
) -> None:
    model_server.script = lambda _: Plan(deltas=WORDS, at={2: Hang()})
    with server_of(model_server, tmp_path, "--grace", "3000") as server:
        running = await stream(http, server, "hi", "s")
        await running.read_until(10)
        server.signal(signal.SIGTERM)
        while (await http.get(f"{server.url}/health/ready")).status == 200:
            pass
        server.signal(signal.SIGTERM)
        await running.read_all()
        assert running.last[0] == "turn.interrupted"
        assert await asyncio.to_thread(server.wait, 5) == 0


# --- Killing -----------------------------------------------------------------------------------


async def test_killed_between_first_word_and_last_everything_is_found_whole(
    tmp_path: Path, http: aiohttp.ClientSession, model_server: ModelServer
) -> None:
    def script(call: Any) -> Plan:
        return Plan(deltas=WORDS, at={2: Hang()}) if call.number > 1 else Plan()

    model_server.script = script
    with server_of(model_server, tmp_path) as server:
        assert (await chat(http, server, "first", "s"))["response"] == "Hello there"
        running = await stream(http, server, "second", "s")
        waiting = await stream(http, server, "third", "s")
        await running.read_until(10)
        server.kill()
        assert waiting.last[1] is None

        model_server.script = lambda _: Plan()
        await asyncio.to_thread(server.start)
        for one in (running, waiting):
            async with http.get(f"{server.url}/api/turns/{one.turn_id}") as response:
                assert (await response.json())["turn"]["status"] == "interrupted"
        back = await rest(http, server, running.turn_id, 10)
        await back.read_all()
        assert back.last[0] == "turn.interrupted"
        assert back.last[1]["replace"] is True  # a crash before the first checkpoint
        assert (await chat(http, server, "fourth", "s"))["response"] == "Hello there"
        shown = [m["content"] for m in model_server.requests[-1].body["messages"][1:]]
        assert shown == ["first", "Hello there", "fourth"]


async def test_what_was_said_a_second_before_a_kill_is_kept(
    tmp_path: Path, http: aiohttp.ClientSession, model_server: ModelServer
) -> None:
    """Though the model has fallen silent since: words do not wait for more words."""
    model_server.script = lambda _: Plan(deltas=WORDS, at={2: Hang()})
    with server_of(model_server, tmp_path) as server:
        running = await stream(http, server, "hi", "s")
        await running.read_until(10)
        before = time.monotonic()
        with sqlite3.connect(f"file:{tmp_path}/turnkeeper.db?mode=ro", uri=True) as look:
            while not look.execute("SELECT COUNT(*) FROM checkpoints").fetchone()[0]:
                assert time.monotonic() - before < 10
        look.close()
        server.kill()
        await asyncio.to_thread(server.start)
        back = await rest(http, server, running.turn_id, 0)
        await back.read_all()
        assert back.text == "Once upon "


async def test_killed_while_many_turns_run_every_one_is_settled(
    tmp_path: Path, http: aiohttp.ClientSession, model_server: ModelServer
) -> None:
    model_server.script = lambda _: Plan(deltas=WORDS, at={1: Hang()})
    with server_of(model_server, tmp_path) as server:
        streams = [await stream(http, server, "hi", f"s{n % 25}") for n in range(100)]
        await model_server.wait_for_calls(25)
        server.kill()
        await asyncio.to_thread(server.start)
        for one in streams:
            async with http.get(f"{server.url}/api/turns/{one.turn_id}") as response:
                assert (await response.json())["turn"]["status"] == "interrupted"
        model_server.script = lambda _: Plan()
        answers = await asyncio.gather(*[chat(http, server, "on", f"s{n}") for n in range(25)])
        assert [answer["response"] for answer in answers] == ["Hello there"] * 25


# --- Who may use it ------------------------------------------------------------------------------


async def test_any_origin_if_the_operator_says_so(
    tmp_path: Path, http: aiohttp.ClientSession
) -> None:
    headers = {"Origin": "https://tutorial.example"}
    with Server(tmp_path, "--model", "eliza", "--cors", "*") as server:
        async with http.post(
            f"{server.url}/api/clear", json={"session_id": "x"}, headers=headers
        ) as response:
            assert response.status == 200
            assert response.headers["access-control-allow-origin"] == headers["Origin"]


async def test_on_all_addresses_it_answers_to_addresses_and_its_given_names(
    tmp_path: Path, http: aiohttp.ClientSession
) -> None:
    options = ("--host", "0.0.0.0", "--auth", "off", "--hosts", "chat.example,other.example")
    with Server(tmp_path, "--model", "eliza", *options) as server:
        url = server.url.replace("0.0.0.0", "127.0.0.1")
        for host, status in (
            ("192.168.0.9:5000", 200),
            ("chat.example", 200),
            ("evil.example", 403),
        ):
            async with http.get(f"{url}/health/live", headers={"Host": host}) as response:
                assert response.status == status
