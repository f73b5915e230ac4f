"""Clients and providers that behave badly, against a real server process.

Whatever they do: each gets a clear error or none, nothing is lost, nothing grows without bound,
and the server is as it was afterwards. Bounds are generous: they tell growth from none, not fast
from slow.
"""

import asyncio
import json
import socket
import struct
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from rig.model_server import BEFORE, Hang, ModelServer, Plan, Wait, echo
from rig.server import Server
from turnkeeper import sse
from turnkeeper.compose import bind

# A connection that is closed after each call leaves nothing open to be counted.
CLOSING = {"connection": "close"}
WORDS = tuple(f"word{number} " for number in range(20))
MEBIBYTE = 1024  # in the KiB that the system counts in
A_WHILE = 60  # seconds that what must happen may take on a busy machine


@asynccontextmanager
async def serving(
    folder: Path, model: ModelServer, **settings: object
) -> AsyncIterator[tuple[Server, aiohttp.ClientSession]]:
    env = {"OPENAI_BASE_URL": model.base_url}
    env |= {f"TURNKEEPER_{name.upper()}": str(value) for name, value in settings.items()}
    with Server(folder, "--model", "scripted", env=env) as server:
        connector = aiohttp.TCPConnector(limit=0, force_close=True)
        timeout = aiohttp.ClientTimeout(total=A_WHILE)
        async with aiohttp.ClientSession(server.url, connector=connector, timeout=timeout) as http:
            yield server, http


@pytest.fixture
async def hosted(
    tmp_path: Path, model_server: ModelServer
) -> AsyncIterator[tuple[Server, aiohttp.ClientSession]]:
    async with serving(tmp_path, model_server) as both:
        yield both


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(A_WHILE):
        while not condition():
            await asyncio.sleep(0.02)


# --- What the system says of the server --------------------------------------------------------


def open_files(server: Server) -> int:
    return len(list(Path(f"/proc/{server.pid}/fd").iterdir()))


def memory(server: Server) -> int:
    """What it holds, in KiB."""
    lines = Path(f"/proc/{server.pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS"))


# --- Clients -----------------------------------------------------------------------------------


async def ask(
    http: aiohttp.ClientSession, text: str = "hi", session: str | None = None
) -> tuple[int, dict[str, Any], float | None]:
    """A message and what comes of it: the status, the answer and its `Retry-After`."""
    async with http.post("/api/chat", json={"message": text, "session_id": session}) as answer:
        wait = answer.headers.get("Retry-After")
        return answer.status, await answer.json(), None if wait is None else float(wait)


async def begin(http: aiohttp.ClientSession) -> str:
    """Begin a turn and hang up at once; its id."""
    async with http.post("/api/chat", json={"message": "hi", "stream": True}) as answer:
        return answer.headers["Turn-Id"]


async def follow(http: aiohttp.ClientSession, turn: str, after: str = "") -> list[sse.Event]:
    """All events of a turn from there on, to its end."""
    headers = {"Last-Event-ID": after} if after else {}
    async with http.get(f"/api/turns/{turn}/events", headers=headers) as answer:
        return sse.Reader().feed(await answer.read())


def text_of(events: list[sse.Event]) -> str:
    deltas = [json.loads(event.data) for event in events if event.name == "message.delta"]
    return "".join(delta["text"] for delta in deltas)


def is_complete(events: list[sse.Event]) -> bool:
    return events[-1].name == "turn.completed"


class RawClient:
    """A client without a library's manners, that takes no more than it is told to."""

    def __init__(self, server: Server, buffer: int | None = None) -> None:
        self._sock = socket.socket()
        if buffer is not None:
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
        host, _, port = server.url.removeprefix("http://").partition(":")
        self._address = (host, int(port))
        self._host = f"{host}:{port}"

    async def connect(self) -> None:
        self._sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(self._sock, self._address)

    async def send(self, head: str, body: bytes = b"", *, claims: int | None = None) -> None:
        """A request; `claims` is the length it says its body has."""
        length = len(body) if claims is None else claims
        lines = [head, f"Host: {self._host}", f"Content-Length: {length}", "", ""]
        data = "\r\n".join(lines).encode() + body
        await asyncio.get_running_loop().sock_sendall(self._sock, data)

    async def read(self, count: int) -> bytes:
        return await asyncio.get_running_loop().sock_recv(self._sock, count)

    def hang_up(self, *, rudely: bool = False) -> None:
        if rudely:  # with a reset
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._sock.close()


# --- A provider that never answers -------------------------------------------------------------


async def test_500_turns_with_a_provider_that_never_answers(
    tmp_path: Path, model_server: ModelServer
) -> None:
    model_server.script = lambda _: Plan(at={BEFORE: Hang()})
    async with serving(tmp_path, model_server, first_byte_timeout=3) as (server, http):
        files = open_files(server)
        answers = await asyncio.gather(*(ask(http, session=f"s{n}") for n in range(500)))
        assert {status for status, _, _ in answers} <= {503, 504}
        assert all("API Error: " in body["error"] for _, body, _ in answers)
        # Had each turn found out by itself, it would have made three calls.
        assert model_server.calls < 2 * 500
        status, _, wait = await ask(http)
        assert status == 503
        assert wait is not None
        assert 0 < wait <= 13
        assert sum("rests now" in line for line in server.log) == 1

        model_server.script = lambda _: Plan(headers=CLOSING)
        await heals(http)
        answers = await asyncio.gather(*(ask(http, session=f"s{n}") for n in range(200)))
        assert Counter(status for status, _, _ in answers) == {200: 200}
        for number in range(0, 200, 20):
            assert await roles(http, f"s{number}") == ["user", "user", "assistant"]
        await until(lambda: open_files(server) <= files + 5)


async def heals(http: aiohttp.ClientSession) -> None:
    """Try again whenever the server says that it makes sense, until a turn completes."""
    async with asyncio.timeout(A_WHILE):
        status, _, wait = await ask(http)
        while status != 200:
            assert wait is not None
            await asyncio.sleep(wait)
            status, _, wait = await ask(http)


async def roles(http: aiohttp.ClientSession, session: str) -> list[str]:
    async with http.get(f"/api/chat-sessions/{session}/messages") as answer:
        return [message["role"] for message in (await answer.json())["messages"]]


# --- Clients that hang up ----------------------------------------------------------------------


async def test_200_clients_that_hang_up_at_once_in_the_middle_of_replies(
    hosted: tuple[Server, aiohttp.ClientSession], model_server: ModelServer
) -> None:
    server, http = hosted
    await ask(http)
    files, held = open_files(server), list[int]()
    for time in range(3):
        gate = asyncio.Event()
        plan = Plan(deltas=WORDS, at={10: Wait(gate)}, headers=CLOSING)
        model_server.script = lambda _, plan=plan: plan
        sessions = [f"{time}-{number}" for number in range(200)]
        await asyncio.gather(*(hear_and_leave(server, session) for session in sessions[:100]))
        await wait_and_leave(server, model_server, sessions[100:])
        gate.set()
        for events in await asyncio.gather(*(turn_in(http, session) for session in sessions)):
            assert is_complete(events)
            assert text_of(events) == "".join(WORDS)
        await until(lambda: open_files(server) <= files + 5)
        held.append(memory(server))
    assert held[-1] - held[0] < 16 * MEBIBYTE
    assert model_server.disconnects == 0


async def hear_and_leave(server: Server, session: str) -> None:
    """Ask for a stream, and hang up after the first words."""
    client = await asking(server, session, stream=True)
    heard = b""
    while b"word" not in heard:
        heard += await client.read(4096)
    client.hang_up(rudely=session.endswith("1"))


async def wait_and_leave(server: Server, model: ModelServer, sessions: list[str]) -> None:
    """Ask for whole answers, and hang up together when the model has been called for all."""
    calls = model.calls + len(sessions)
    clients = [await asking(server, session, stream=False) for session in sessions]
    await model.wait_for_calls(calls)
    for number, client in enumerate(clients):
        client.hang_up(rudely=number % 2 == 0)


async def asking(server: Server, session: str, *, stream: bool) -> RawClient:
    client = RawClient(server)
    await client.connect()
    asked = {"message": "hi", "session_id": session, "stream": stream}
    await client.send("POST /api/chat HTTP/1.1", json.dumps(asked).encode())
    return client


async def turn_in(http: aiohttp.ClientSession, session: str) -> list[sse.Event]:
    """The events of the only turn of a session."""
    async with http.get(f"/api/chat-sessions/{session}/messages") as answer:
        [asked, *_] = (await answer.json())["messages"]
    return await follow(http, asked["turn_id"])


async def test_200_clients_that_hang_up_at_once_in_the_middle_of_requests(
    hosted: tuple[Server, aiohttp.ClientSession], model_server: ModelServer
) -> None:
    server, http = hosted
    await ask(http)
    files, held = open_files(server), list[int]()
    for _ in range(3):
        clients = [RawClient(server) for _ in range(200)]
        await asyncio.gather(*(client.connect() for client in clients))
        for client in clients:
            await client.send("POST /api/chat HTTP/1.1", b'{"message": "never', claims=50_000)
        await until(lambda: open_files(server) >= files + 190)  # some of ours may close
        for number, client in enumerate(clients):
            client.hang_up(rudely=number % 2 == 0)
        await until(lambda: open_files(server) <= files + 5)
        held.append(memory(server))
    assert held[-1] - held[0] < 8 * MEBIBYTE
    assert model_server.calls == 1
    assert (await ask(http))[0] == 200
    assert not [line for line in server.log if "Traceback" in line]


# --- Followers that are slow, many, or deaf ----------------------------------------------------

LONG = tuple("x" * 999 + str(number % 10) for number in range(1000))  # a million characters
WIDE = tuple(text.replace("x", "😀") for text in LONG)  # more bytes than the system's buffers take


async def test_a_follower_of_a_byte_a_second_slows_nobody_and_can_resume(
    hosted: tuple[Server, aiohttp.ClientSession], model_server: ModelServer
) -> None:
    server, http = hosted
    gate = asyncio.Event()
    model_server.script = lambda _: Plan(deltas=WIDE, at={1: Wait(gate)}, headers=CLOSING)
    turn = await begin(http)
    slow = RawClient(server, buffer=2048)
    await slow.connect()
    await slow.send(f"GET /api/turns/{turn}/events HTTP/1.1")
    sipping = asyncio.ensure_future(sip(slow))
    others = [asyncio.ensure_future(follow(http, turn)) for _ in range(10)]
    before = memory(server)
    gate.set()
    for events in await asyncio.gather(*others):
        assert is_complete(events)
        assert text_of(events) == "".join(WIDE)
    model_server.script = echo
    assert {status for status, _, _ in await asyncio.gather(*(ask(http) for _ in range(50)))} == {
        200
    }
    assert not sipping.done()
    assert memory(server) - before < 64 * MEBIBYTE

    sipping.cancel()
    slow.hang_up()
    await asyncio.wait({sipping})
    rest = await follow(http, turn, after="1000")  # of a million, it had a thousand at most
    assert is_complete(rest)
    assert text_of(rest) == "".join(WIDE)[1000:]


async def sip(client: RawClient) -> None:
    """Take a byte a second until the other side ends it."""
    while await client.read(1):
        await asyncio.sleep(1)


async def test_100_followers_of_one_long_turn(
    hosted: tuple[Server, aiohttp.ClientSession], model_server: ModelServer
) -> None:
    server, http = hosted
    await ask(http)
    files, before = open_files(server), memory(server)
    gate = asyncio.Event()
    model_server.script = lambda _: Plan(deltas=LONG[:300], at={1: Wait(gate)}, headers=CLOSING)
    turn = await begin(http)
    following = [asyncio.ensure_future(follow(http, turn)) for _ in range(100)]
    await until(lambda: open_files(server) >= files + 90)
    gate.set()
    for events in await asyncio.gather(*following):
        assert is_complete(events)
        assert text_of(events) == "".join(LONG[:300])
        ids = [int(event.id.partition("/")[0]) for event in events]
        assert all(a <= b for a, b in pairwise(ids))
    # Were a text of its own kept for each of them, that would be thirty megabytes.
    assert memory(server) - before < 24 * MEBIBYTE
    await until(lambda: open_files(server) <= files + 5)


async def test_followers_that_never_read_a_reply_of_a_million_characters(
    hosted: tuple[Server, aiohttp.ClientSession], model_server: ModelServer
) -> None:
    server, http = hosted
    await ask(http)
    files, before = open_files(server), memory(server)
    gate = asyncio.Event()
    model_server.script = lambda _: Plan(deltas=WIDE, at={1: Wait(gate)}, headers=CLOSING)
    turn = await begin(http)
    deaf = [RawClient(server, buffer=2048) for _ in range(50)]
    for client in deaf:
        await client.connect()
        await client.send(f"GET /api/turns/{turn}/events HTTP/1.1")
    # A connection that was just closed may have been counted in `files`.
    await until(lambda: open_files(server) >= files + 45)
    gate.set()
    events = await follow(http, turn)
    assert is_complete(events)
    assert text_of(events) == "".join(WIDE)
    # Were all that is unread kept for each of them, that would be 200 megabytes.
    assert memory(server) - before < 64 * MEBIBYTE
    model_server.script = echo
    assert (await ask(http))[0] == 200
    for client in deaf:
        client.hang_up()
    await until(lambda: open_files(server) <= files + 5)


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux: others have no such limit")
def test_a_client_that_takes_nothing_is_given_up_after_two_minutes() -> None:
    with bind("127.0.0.1", 0) as listener:
        listener.listen()
        with socket.create_connection(listener.getsockname()):
            connection, _ = listener.accept()
            with connection:
                limit = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT)
    assert limit == 120_000


# --- Many at one session -----------------------------------------------------------------------


async def test_many_clients_at_one_session_queue_in_order_or_are_told_to_come_back(
    hosted: tuple[Server, aiohttp.ClientSession], model_server: ModelServer
) -> None:
    _, http = hosted
    gate = asyncio.Event()
    model_server.script = lambda call: Plan(
        deltas=(f"heard {call.last_user_message}",), at={BEFORE: Wait(gate)}
    )
    asking = {asyncio.ensure_future(ask(http, f"m{n}", "s")) for n in range(100)}
    refused: set[asyncio.Future[Any]] = set()
    async with asyncio.timeout(A_WHILE):
        while len(refused) < 100 - 33:  # one runs, 32 wait
            done, asking = await asyncio.wait(asking, return_when=asyncio.FIRST_COMPLETED)
            refused |= done
    for future in refused:
        status, body, wait = future.result()
        assert (status, body["code"]) == (429, "queue_full")
        assert wait is not None
        assert wait >= 1
    gate.set()
    answers = await asyncio.gather(*asking)
    assert Counter(status for status, _, _ in answers) == {200: 33}
    async with http.get("/api/chat-sessions/s/messages?limit=200") as answer:
        listed = [message["content"] for message in (await answer.json())["messages"]]
    said = [call.last_user_message for call in model_server.requests]
    assert listed == [text for message in said for text in (message, f"heard {message}")]
    assert len(set(said)) == 33
    assert (await ask(http, "later", "s"))[0] == 200
