"""Clients of WebSocket mode that mean no good, or have lost their way."""

import asyncio
import json
import os
import socket as sockets
import struct
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from rig.model_server import ModelServer, Plan, echo
from rig.server import Server
from tests.openai.conftest import start_server
from tests.openai.schemas import ERROR, check
from tests.openai.sockets import open_socket, text_of

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.usefixtures("model")]

HANDSHAKE = (
    b"GET /v1/responses HTTP/1.1\r\nHost: localhost\r\nConnection: keep-alive, Upgrade\r\n"
    b"Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
)
TEXT, BINARY, CLOSE, PING = 1, 2, 8, 9


def frame(opcode: int, data: bytes, *, fin: bool = True) -> bytes:
    """A client's frame, masked with zeros."""
    size = len(data)
    if size < 126:
        length = bytes([0x80 | size])
    elif size < 65536:
        length = b"\xfe" + struct.pack("!H", size)
    else:
        length = b"\xff" + struct.pack("!Q", size)
    return bytes([(0x80 if fin else 0) | opcode]) + length + bytes(4) + data


class Raw:
    """A connection on which anything can be written."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def head(self) -> bytes:
        return await self.reader.readuntil(b"\r\n\r\n")

    async def read_frame(self) -> tuple[int, bytes]:
        """The next frame that the server sends: its opcode and what it holds."""
        first, size = await self.reader.readexactly(2)
        if size == 126:
            [size] = struct.unpack("!H", await self.reader.readexactly(2))
        elif size == 127:
            [size] = struct.unpack("!Q", await self.reader.readexactly(8))
        return first & 0x0F, await self.reader.readexactly(size)

    async def code(self) -> int:
        """The code that it is closed with, whatever is said before."""
        opcode, data = await self.read_frame()
        while opcode != CLOSE:
            opcode, data = await self.read_frame()
        return int.from_bytes(data[:2], "big")


@asynccontextmanager
async def raw(server: Server, handshake: bytes = HANDSHAKE + b"\r\n") -> AsyncIterator[Raw]:
    """A connection with its handshake sent."""
    host, _, port = server.url.removeprefix("http://").partition(":")
    reader, writer = await asyncio.open_connection(host, int(port), limit=1 << 24)
    try:
        writer.write(handshake)
        yield Raw(reader, writer)
    finally:
        writer.close()


@asynccontextmanager
async def raw_open(server: Server) -> AsyncIterator[Raw]:
    async with raw(server) as connection:
        assert b" 101 " in await connection.head()
        yield connection


async def is_well(server: Server) -> None:
    """It answers others as ever, and nothing has gone wrong inside it."""
    async with open_socket(server) as socket:
        assert text_of(await socket.respond(input="hello", store=False)) == "You said: hello"
    assert len(server.log) == 1, server.log


def memory(server: Server) -> int:
    """Bytes that it has in memory."""
    pages = int(Path(f"/proc/{server.pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


CREATE = frame(TEXT, b'{"type": "response.create", "input": "hello", "store": false}')

# --- Who may come in -----------------------------------------------------------------------------


async def refused(server: Server, path: str = "/v1/responses", **options: Any) -> tuple[int, Any]:
    """The status and the body of a handshake that is not accepted."""
    url = server.url.replace("http", "ws", 1) + path
    with pytest.raises(InvalidStatus) as refusal:
        async with connect(url, **options):
            pass
    response = refusal.value.response
    assert response.headers["content-type"] == "application/json"
    assert response.headers["x-request-id"]
    assert response.body is not None
    return response.status_code, json.loads(response.body)


async def test_a_page_of_someone_elses_does_not_come_in(server: Server) -> None:
    """It could spend the provider's key, as any local page could that is open in a browser."""
    assert (await refused(server, origin="https://evil.example"))[0] == 403
    async with open_socket(server, origin="http://localhost:3000") as socket:
        await socket.respond(input="hello", store=False)


async def test_nobody_comes_in_under_another_name(server: Server) -> None:
    async with raw(server, HANDSHAKE.replace(b"localhost", b"evil.example") + b"\r\n") as asking:
        assert b" 403 " in await asking.head()


async def test_only_some_paths_have_any(server: Server) -> None:
    status, body = await refused(server, "/v1/chat/completions")
    assert status == 405
    check(body, ERROR)
    assert (await refused(server, "/v1/nothing"))[0] == 404
    assert (await refused(server, "/api/chat"))[0] == 405


async def test_an_idempotency_key_is_of_one_request(server: Server) -> None:
    status, body = await refused(server, additional_headers={"Idempotency-Key": "k"})
    assert status == 400
    check(body, ERROR)


@pytest.mark.parametrize(
    "change",
    [
        (b"Version: 13", b"Version: 12"),
        (b"AAAAAAAAAAAAAAAAAAAAAA==", b"AAAA"),
        (b"AAAAAAAAAAAAAAAAAAAAAA==", b"\xff\xff"),
        (b"Upgrade: websocket", b"Upgrade: websocket\r\nUpgrade: websocket"),
        (b"HTTP/1.1\r\n", b"HTTP/1.1\r\nContent-Length: 5\r\n"),
        (b"GET ", b"POST "),
    ],
    ids=["version", "short key", "no key", "two upgrades", "body", "method"],
)
async def test_what_is_no_handshake_is_a_request_like_any_other(
    server: Server, change: tuple[bytes, bytes]
) -> None:
    async with raw(server, HANDSHAKE.replace(*change) + b"\r\nhello") as asking:
        assert (await asking.head()).split()[1] in (b"400", b"405")
    await is_well(server)


def turnkeeper(folder: Path, *command: str, stdin: str = "") -> str:
    return subprocess.run(
        [sys.executable, "-m", "turnkeeper", *command],
        cwd=folder,
        input=stdin,
        env={"PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()


async def test_with_credentials_alone_and_as_long_as_they_hold(
    model: ModelServer, tmp_path: Path
) -> None:
    turnkeeper(tmp_path, "users", "create", "ann", "--no-password")
    key = turnkeeper(tmp_path, "keys", "create", "ann")
    with start_server(model, tmp_path, "--auth", "keys") as server:
        for headers in ({}, {"Authorization": "Bearer wrong"}):
            status, body = await refused(server, additional_headers=headers)
            assert (status, body["error"]["code"]) == (401, "invalid_api_key")
        headers = {"Authorization": f"Bearer {key}"}
        async with open_socket(server, additional_headers=headers) as socket:
            await socket.respond(input="hello", store=False)
            [listed] = json.loads(turnkeeper(tmp_path, "keys", "list", "ann", "--json"))
            turnkeeper(tmp_path, "keys", "revoke", listed["id"])
            error = None
            while error is None:  # what another process does is noticed within a second
                error = (await socket.ask(input="hello", store=False))[-1].get("error")
            assert error["code"] == "invalid_api_key"
            with pytest.raises(ConnectionClosed) as closed:
                await socket.receive()
            assert closed.value.rcvd is not None
            assert closed.value.rcvd.code == 1008


async def test_a_cookie_opens_a_socket_for_the_servers_own_pages_alone(
    model: ModelServer, tmp_path: Path
) -> None:
    """A browser sends it with the handshake of any page's, and lets any page read what comes."""
    password = "correct horse"
    turnkeeper(tmp_path, "users", "create", "ann", "--password-stdin", stdin=f"{password}\n")
    with start_server(model, tmp_path, "--auth", "keys") as server:
        async with httpx.AsyncClient(base_url=server.url) as http:
            body = {"username": "ann", "password": password}
            cookie = (await http.post("/login", json=body)).headers["set-cookie"].split(";")[0]
        headers = {"Cookie": cookie}
        for origin in ("https://evil.example", "http://localhost:1", None):
            status, _ = await refused(server, additional_headers=headers, origin=origin)
            assert status == 403
        async with open_socket(server, additional_headers=headers, origin=server.url) as socket:
            await socket.respond(input="hello", store=False)


async def test_limits_hold_on_a_socket_as_for_requests(model: ModelServer, tmp_path: Path) -> None:
    """A message counts as a request, and the connection as a stream; what is refused is told."""
    (tmp_path / "limits.toml").write_text(
        "[limits.user]\nrequests_per_minute = 4\nopen_streams = 1\nmessage_length = 100\n"
    )
    with start_server(model, tmp_path, "--config", "limits.toml") as server:
        async with open_socket(server) as socket:
            assert socket.connection.response is not None
            assert socket.connection.response.headers["x-ratelimit-remaining-requests"] == "3"
            status, body = await refused(server)
            assert (status, body["error"]["code"]) == (429, "rate_limit_exceeded")
            error = await socket.fail(input="a" * 101, store=False)
            assert error["code"] == "string_above_max_length"
            await socket.respond(input="hello", store=False)
            await socket.create(input="hello", store=False)
            event = await socket.receive()
            assert (event["status"], event["code"]) == (429, "rate_limit_exceeded")
            assert int(event["headers"]["retry-after"]) > 0
            await socket.connection.ping()  # it is open still


# --- Frames that are none ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (frame(BINARY, b"{}"), 1003),
        (frame(TEXT, b"\xff\xfe"), 1007),
        (frame(TEXT, b"x" * 4_194_305), 1009),
        (b"\x81\xff" + b"\x7f" * 8, 1009),  # it says that it is longer than memory
        (frame(TEXT, b"x" * 3_000_000, fin=False) + frame(0, b"x" * 3_000_000), 1009),
        (b"\x81\x05hello", 1002),  # not masked
        (frame(3, b""), 1002),
        (frame(0, b"more"), 1002),
        (frame(PING, b"x" * 126), 1002),
        (b"\xc1\x80" + bytes(4), 1002),  # compressed, which was not agreed on
        (b"GET / HTTP/1.1\r\n\r\n", 1002),
    ],
    ids=[
        "binary",
        "no text",
        "too long",
        "endless",
        "too long in pieces",
        "unmasked",
        "unknown",
        "no beginning",
        "long ping",
        "compressed",
        "HTTP",
    ],
)
async def test_what_is_no_message(server: Server, data: bytes, code: int) -> None:
    """The connection is closed with the code that the RFC has for it."""
    async with raw_open(server) as connection:
        connection.writer.write(data)
        assert await connection.code() == code
    await is_well(server)


async def test_a_message_in_thousands_of_pieces(server: Server) -> None:
    """Pieces of one byte, and of none, with a ping in between."""
    body = json.dumps({"type": "response.create", "input": "x" * 20_000, "store": False}).encode()
    first, rest = body[:1], body[1:]
    pieces = [frame(0, rest[n : n + 1], fin=False) for n in range(len(rest))]
    nothing = frame(0, b"", fin=False) * 50_000
    async with raw_open(server) as connection:
        connection.writer.write(frame(TEXT, first, fin=False) + nothing + frame(PING, b"hello"))
        connection.writer.write(b"".join(pieces) + frame(0, b""))
        opcode, data = await connection.read_frame()
        assert (opcode, data) == (0xA, b"hello")
        while b"response.completed" not in data:
            opcode, data = await connection.read_frame()
    await is_well(server)


async def test_what_comes_with_the_handshake_is_heard(server: Server) -> None:
    async with raw(server, HANDSHAKE + b"\r\n" + CREATE) as connection:
        assert b" 101 " in await connection.head()
        _, data = await connection.read_frame()
        assert b'"response.created"' in data


async def test_a_handshake_may_come_in_pieces_and_after_others(server: Server) -> None:
    """On a connection that has served requests before, cut anywhere."""
    async with raw(server, b"GET /health/live HTTP/1.1\r\nHost: localhost\r\n\r\n") as connection:
        assert b" 200 " in await connection.head()
        await connection.reader.readexactly(len(b'{"status":"live"}'))
        whole = HANDSHAKE + b"\r\n"
        for piece in (whole[:7], whole[7:60], whole[60:-3], whole[-3:]):
            connection.writer.write(piece)
            await asyncio.sleep(0.01)
        assert b" 101 " in await connection.head()


async def test_a_long_head_is_refused_before_any_handshake(server: Server) -> None:
    async with raw(server, HANDSHAKE + b"X-Long: " + b"x" * 20_000 + b"\r\n\r\n") as connection:
        assert b" 101 " in await connection.head()  # within the limit of any request
    async with raw(server, HANDSHAKE + b"X-Long: " + b"x" * 40_000 + b"\r\n\r\n") as connection:
        assert b" 431 " in await connection.head()


# --- Clients that do not listen ------------------------------------------------------------------


@pytest.mark.parametrize(
    "begun", [frame(TEXT, b"{}")[:1], frame(TEXT, b"{}")[:-1], frame(TEXT, b"{", fin=False)]
)
async def test_a_message_that_does_not_go_on_is_given_up(
    model: ModelServer, tmp_path: Path, begun: bytes
) -> None:
    """Silence between messages is nothing unusual, but within one it is."""
    with start_server(model, tmp_path, "--body-timeout", "0.2") as server:
        async with raw_open(server) as idle, raw_open(server) as dripping:
            dripping.writer.write(begun)
            assert await dripping.code() == 1008
            idle.writer.write(CREATE)
            assert (await idle.read_frame())[0] == TEXT


async def test_half_closed(server: Server, model: ModelServer) -> None:
    """A client that has said its last word, without a goodbye, has gone."""
    gone = model.disconnects
    model.script = lambda _: Plan(deltas=["x"] * 1000, delta_delay=0.1)
    async with raw_open(server) as connection:
        connection.writer.write(CREATE)
        data = b""
        while b"output_text.delta" not in data:
            _, data = await connection.read_frame()
        connection.writer.write_eof()
        await model.wait_for_disconnects(gone + 1)


async def test_a_client_that_takes_nothing_costs_little(server: Server, model: ModelServer) -> None:
    """Its replies wait in one place, whatever they are; its pings are not even heard."""
    await is_well(server)
    model.script = lambda _: Plan(deltas=["x" * 100_000] * 9, one_write=True)
    before, calls = memory(server), model.calls
    lazy = sockets.socket()
    lazy.setsockopt(sockets.SOL_SOCKET, sockets.SO_RCVBUF, 4096)
    lazy.setblocking(False)
    with lazy:
        await flood(lazy, server, HANDSHAKE + b"\r\n" + CREATE * 3)
        await model.wait_for_calls(calls + 1)
        pings = frame(PING, b"x" * 125) * 1000
        with pytest.raises(TimeoutError):  # from some time on the server hears no more
            await asyncio.wait_for(flood(lazy, server, pings, again=True), 2)
        assert memory(server) - before < 16_000_000
    model.script = echo
    await is_well(server)


async def flood(lazy: sockets.socket, server: Server, data: bytes, *, again: bool = False) -> None:
    """Write on a socket that is never read from, for ever if `again`."""
    loop = asyncio.get_running_loop()
    host, _, port = server.url.removeprefix("http://").partition(":")
    if not again:
        await loop.sock_connect(lazy, (host, int(port)))
    await loop.sock_sendall(lazy, data)
    while again:
        await loop.sock_sendall(lazy, data)


async def test_a_hundred_that_say_nothing(server: Server, model: ModelServer) -> None:
    """Each costs a few kilobytes, and is closed when it likes."""
    async with open_socket(server) as first:
        await first.respond(input="hello", store=False)
        before = memory(server)
        opened = [open_socket(server) for _ in range(100)]
        idle = [await each.__aenter__() for each in opened]
        cost = (memory(server) - before) / 100
        assert cost < 60_000, cost
        assert text_of(await first.respond(input="hello", store=False)) == "You said: hello"
        for each in opened:
            await each.__aexit__(None, None, None)
        assert len(idle) == 100
