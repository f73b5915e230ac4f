"""What a hostile or broken client can do to a real server: nothing that others would notice.

Through raw sockets, since no HTTP library would send most of this.
"""

import asyncio
import base64
import hashlib
import json
import re
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from rig.model_server import Hang, ModelServer, Plan
from rig.server import Server
from turnkeeper.compose import visit_accounts

HEADER_TIMEOUT = 1.5
HOST = b"Host: localhost\r\n"
LIVE = b"GET /health/live HTTP/1.1\r\n" + HOST + b"\r\n"
HEAD = LIVE[:-2]  # to be gone on with
POST = b"POST /api/chat HTTP/1.1\r\n" + HOST
HELLO = b'{"message": "hi"}'


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Server]:
    times = ("--header-timeout", str(HEADER_TIMEOUT), "--body-timeout", "1")
    server = Server(tmp_path, "--model", "eliza", *times)
    await asyncio.to_thread(server.start)
    yield server
    server.kill()


Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def connect(server: Server) -> Streams:
    host, _, port = server.url.removeprefix("http://").partition(":")
    return await asyncio.open_connection(host, int(port), limit=1 << 24)


class Answer:
    """A whole answer, as it was read."""

    def __init__(self, head: bytes, body: bytes) -> None:
        lines = head.decode("latin-1").split("\r\n")
        self.status = int(lines[0].split()[1])
        self.headers = dict(line.split(": ", 1) for line in lines[1:] if line)
        self.body = json.loads(body) if body else None


async def read_answer(reader: asyncio.StreamReader) -> Answer:
    async with asyncio.timeout(20):
        head = await reader.readuntil(b"\r\n\r\n")
        if b" 100 Continue" in head:
            head = await reader.readuntil(b"\r\n\r\n")
        length = Answer(head, b"").headers.get("content-length", "0")
        return Answer(head, await reader.readexactly(int(length)))


async def ask(server: Server, *pieces: bytes) -> Answer:
    """The first answer to what is sent on a connection of its own."""
    reader, writer = await connect(server)
    for piece in pieces:
        writer.write(piece)
    answer = await read_answer(reader)
    writer.close()
    return answer


async def refused(server: Server, *pieces: bytes) -> Answer:
    """The answer, after which the connection must be at its end, and the server in good health."""
    reader, writer = await connect(server)
    for piece in pieces:
        writer.write(piece)
    answer = await read_answer(reader)
    assert await rest_of(reader) == b""
    writer.close()
    assert answer.headers["connection"] == "close"
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["cache-control"] == "no-store"
    assert len(answer.headers["x-request-id"]) == 16
    assert (await ask(server, LIVE)).status == 200
    return answer


async def rest_of(reader: asyncio.StreamReader) -> bytes:
    """Everything until the connection ends, which it must."""
    async with asyncio.timeout(20):
        try:
            return await reader.read()
        except ConnectionResetError:
            return b""


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not holds():
            await asyncio.sleep(0.02)


def open_files(server: Server) -> int:
    return sum(1 for _ in Path(f"/proc/{server.pid}/fd").iterdir())


def memory(server: Server) -> int:
    """Bytes that the process has in memory."""
    lines = Path(f"/proc/{server.pid}/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmRSS"))


# --- Size ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pieces", "status", "code"),
    [
        ([HEAD, b"a: " + b"b" * 33_000 + b"\r\n\r\n"], 431, "headers_too_large"),
        ([HEAD, b"a: " + b"b" * 2_000_000], 431, "headers_too_large"),
        ([HEAD, b"a" * 2_000_000], 431, "headers_too_large"),
        ([HEAD, b"a: b\r\n" * 100, b"\r\n"], 431, "headers_too_large"),
        ([b"GET /" + b"a" * 8192 + b" HTTP/1.1\r\n" + HOST + b"\r\n"], 414, "url_too_long"),
        ([b"GET /?" + b"a" * 2_000_000], 414, "url_too_long"),
        (
            [POST, b"Transfer-Encoding: chunked\r\n\r\n1\r\n{\r\n0\r\n", b"a: b\r\n" * 50_000],
            431,
            "headers_too_large",
        ),
        (
            [POST, b"Transfer-Encoding: chunked\r\n\r\n1;", b"a" * 200_000],
            431,
            "headers_too_large",
        ),
    ],
    ids=["header", "value", "name", "headers", "url", "endless-url", "trailers", "extension"],
)
async def test_what_is_too_large_is_refused(
    server: Server, pieces: list[bytes], status: int, code: str
) -> None:
    answer = await refused(server, *pieces)
    assert (answer.status, answer.body["code"]) == (status, code)


async def test_what_is_large_is_not(server: Server) -> None:
    for pieces in (
        [HEAD, b"a: " + b"b" * 32_000 + b"\r\n\r\n"],
        [HEAD, b"a: b\r\n" * 99, b"\r\n"],
        [b"GET /health/live?" + b"a" * 8170 + b" HTTP/1.1\r\n" + HOST + b"\r\n"],
    ):
        assert (await ask(server, *pieces)).status == 200


# --- Time ----------------------------------------------------------------------------------------


async def drip(server: Server, begun: float) -> tuple[float, bytes]:
    """A client that sends a byte of a header every second: when it was sent away, and with what."""
    reader, writer = await connect(server)
    writer.write(HEAD)
    ended = asyncio.ensure_future(rest_of(reader))
    while not ended.done():
        writer.write(b"a")
        await asyncio.wait({ended}, timeout=1)
    writer.close()
    return time.monotonic() - begun, ended.result()


async def test_slow_heads_do_not_keep_others_waiting_and_are_given_up(server: Server) -> None:
    """Slowloris."""
    before = open_files(server)
    hello = (POST, b"Content-Length: 17\r\n\r\n", HELLO)
    begun = time.monotonic()
    slow = [asyncio.ensure_future(drip(server, begun)) for _ in range(200)]
    await until(lambda: open_files(server) >= before + 200)
    answers = await asyncio.gather(*[ask(server, *hello) for _ in range(50)])
    assert {answer.status for answer in answers} == {200}
    async with asyncio.timeout(60):
        for took, answer in await asyncio.gather(*slow):
            assert took >= HEADER_TIMEOUT
            assert answer.startswith(b"HTTP/1.1 408 ")
    await until(lambda: open_files(server) <= before + 20)  # the database's among them


@pytest.mark.parametrize(
    ("pieces", "what"),
    [
        ([HEAD], "head"),
        ([b"G"], "head"),
        ([POST + b"Content-Length: 17\r\n\r\n"], "body"),
        ([POST + b"Content-Length: 17\r\n\r\n", b"{"], "body"),
        ([POST + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\n{\r\n"], "body"),
        ([POST + b"Expect: 100-continue\r\nContent-Length: 17\r\n\r\n"], "body"),
    ],
)
async def test_what_does_not_come_to_its_end_is_given_up(
    server: Server, pieces: list[bytes], what: str
) -> None:
    answer = await refused(server, *pieces)
    assert answer.status == 408
    sentence = f"The {what} of the request took too long to come"
    assert answer.body == {"error": sentence, "code": "request_timeout"}


async def test_a_body_that_drips_is_given_up(server: Server) -> None:
    reader, writer = await connect(server)
    writer.write(POST + b"Content-Length: 100000\r\n\r\n")
    answering = asyncio.ensure_future(read_answer(reader))
    while not answering.done():
        writer.write(b" ")
        await asyncio.wait({answering}, timeout=0.2)
    assert answering.result().status == 408
    writer.close()


async def test_a_slow_body_is_read_as_long_as_it_goes_on(server: Server) -> None:
    """Longer than both time-outs together."""
    reader, writer = await connect(server)
    writer.write(POST + b"Content-Length: 10017\r\n\r\n")
    for _ in range(20):
        writer.write(b" " * 500)
        await asyncio.sleep(0.2)
    writer.write(HELLO)
    assert (await read_answer(reader)).status == 200
    writer.close()


@pytest.mark.parametrize("said", [b"", b"\r\n", b"\r\n\r\n"])
async def test_a_connection_that_asks_nothing_is_closed_without_a_word(
    server: Server, said: bytes
) -> None:
    reader, writer = await connect(server)
    writer.write(said)
    assert await rest_of(reader) == b""
    writer.close()


async def test_line_breaks_between_requests_do_not_hold_a_connection(server: Server) -> None:
    reader, writer = await connect(server)
    writer.write(LIVE)
    assert (await read_answer(reader)).status == 200
    ended = asyncio.ensure_future(rest_of(reader))
    while not ended.done():
        writer.write(b"\r\n")
        await asyncio.wait({ended}, timeout=0.2)
    writer.close()


async def test_what_follows_an_early_answer_is_not_read_for_ever(server: Server) -> None:
    reader, writer = await connect(server)
    writer.write(POST + b"Content-Length: 99999999\r\n\r\n")
    assert (await read_answer(reader)).status == 413
    ended = asyncio.ensure_future(rest_of(reader))
    while not ended.done():
        writer.write(b" " * 1000)
        await asyncio.wait({ended}, timeout=0.1)
    assert ended.result() == b""
    writer.close()


async def test_an_idle_connection_is_kept(server: Server) -> None:
    reader, writer = await connect(server)
    for _ in range(2):
        writer.write(LIVE[:20])
        await asyncio.sleep(0.1)
        writer.write(LIVE[20:])
        assert (await read_answer(reader)).status == 200
        await asyncio.sleep(2 * HEADER_TIMEOUT)
    writer.close()


async def test_2000_silent_connections_leave_nothing(server: Server) -> None:
    before = open_files(server)
    held = [await connect(server) for _ in range(2000)]
    assert (await ask(server, LIVE)).status == 200
    for reader, writer in held:
        assert await rest_of(reader) == b""
        writer.close()
    await until(lambda: open_files(server) <= before + 1)


async def test_streams_and_waits_for_replies_may_take_their_time(
    tmp_path: Path, model_server: ModelServer
) -> None:
    model_server.script = lambda _: Plan(at={1: Hang()})
    env = {"OPENAI_BASE_URL": model_server.base_url}
    times = ("--header-timeout", "0.3", "--body-timeout", "0.3")
    with Server(tmp_path, "--model", "m", *times, env=env) as server:
        plain_reader, plain = await connect(server)
        plain.write(POST + b"Content-Length: 17\r\n\r\n" + HELLO)
        reader, stream = await connect(server)
        stream.write(POST + b"Accept: text/event-stream\r\n")
        await asyncio.sleep(0.1)  # so that the connection was watched once
        stream.write(b"Content-Length: 17\r\n\r\n" + HELLO)
        head = await reader.readuntil(b"\r\n\r\n")
        assert b"text/event-stream" in head
        await asyncio.sleep(1.5)
        assert not plain_reader.at_eof()
        assert not reader.at_eof()
        for writer in (plain, stream):
            writer.close()


# --- Many at once --------------------------------------------------------------------------------


async def test_requests_that_follow_each_other_are_answered_in_order(server: Server) -> None:
    paths = [b"live", b"ready"] * 8
    reader, writer = await connect(server)
    writer.write(b"".join(LIVE.replace(b"live", path) for path in paths))
    statuses = [(await read_answer(reader)).body["status"] for _ in paths]
    assert statuses == ["live", "ready"] * 8
    writer.close()


async def test_a_flood_of_requests_is_cut_off(server: Server) -> None:
    reader, writer = await connect(server)
    writer.write(LIVE * 1000)
    answers = await rest_of(reader)
    assert 1 <= answers.count(b"HTTP/1.1 200 OK") <= 20
    assert b"connection: close" in answers
    writer.close()


async def test_a_flood_that_reads_nothing_costs_little_memory(server: Server) -> None:
    await ask(server, LIVE)
    before = memory(server)
    clients = [await connect(server) for _ in range(20)]
    page = b"GET / HTTP/1.1\r\nAccept: text/html\r\n" + HOST + b"\r\n"
    for _, writer in clients:
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        writer.write(page * 40_000)
    for _ in range(20):
        assert (await ask(server, LIVE)).status == 200
    assert memory(server) - before < 60_000_000
    for _, writer in clients:
        writer.transport.abort()  # type: ignore[attr-defined]


async def test_a_client_that_asks_ahead_and_goes_is_noticed(
    tmp_path: Path, model_server: ModelServer
) -> None:
    """With a second request under way, it is the first whose client has gone."""
    model_server.script = lambda _: Plan(at={1: Hang()})
    env = {"OPENAI_BASE_URL": model_server.base_url}
    with Server(tmp_path, "--model", "m", env=env) as server:
        reader, writer = await connect(server)
        writer.write(POST + b"Accept: text/event-stream\r\nContent-Length: 17\r\n\r\n" + HELLO)
        await reader.readuntil(b"message.delta")
        writer.write(LIVE)
        await asyncio.sleep(0.1)
        during = open_files(server)
        writer.close()
        await until(lambda: open_files(server) < during)
        assert len(server.log) == 1


# --- What is no request, and what is an odd one --------------------------------------------------


@pytest.mark.parametrize(
    "request_",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"\x00" * 100,
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"CONNECT evil.example:443 HTTP/1.1\r\n" + HOST + b"\r\n",
        b"GET /\xff HTTP/1.1\r\n" + HOST + b"\r\n",
        b"GET /\x00 HTTP/1.1\r\n" + HOST + b"\r\n",
        b"GET http://localhost HTTP/1.1\r\n" + HOST + b"\r\n",
        b"GET / HTTP/1.1\r\nHost : localhost\r\n\r\n",
        HEAD + b"a: b\x00c\r\n\r\n",
        HEAD + b"a: b\r\n c\r\n\r\n",
        HEAD.replace(b"\r\n", b"\n") + b"\n",
        POST + b"Content-Length: 0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + LIVE,
        POST + b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n" + LIVE,
        POST + b"Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
        POST + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
        POST + b"Transfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\n",
        POST + b"Transfer-Encoding: chunked\r\n\r\n1\r\n{}\r\n0\r\n\r\n",
        POST + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}",
        POST + b"Content-Length: +2\r\n\r\n{}",
        POST + b"Content-Length: 99999999999999999999\r\n\r\n{}",
    ],
)
async def test_what_is_no_request_is_refused_as_json(server: Server, request_: bytes) -> None:
    answer = await refused(server, request_)
    assert answer.status == 400
    error = "This is not a request of HTTP/1.1"
    assert answer.body == {"error": error, "code": "invalid_request"}
    assert len(server.log) == 1, "anyone could fill the log"


@pytest.mark.parametrize(
    ("path", "status"),
    [
        (b"/health/live?a=%00&a=%ff&&=;%zz", 200),
        (b"/health/live#part", 200),
        (b"http://evil.example/health/live", 200),  # Host counts, and is checked
        (b"/health%2flive", 200),
        (b"/api/turns/a%00b", 404),
        (b"/api/chat-sessions/%00", 404),
        (b"/api/chat-sessions/%ff%zz%ed%a0%80", 404),
        (b"/api/turns/..%2f..%2fetc", 404),
        (b"//health/live", 404),
    ],
)
async def test_odd_paths(server: Server, path: bytes, status: int) -> None:
    answer = await ask(server, b"GET " + path + b" HTTP/1.1\r\n" + HOST + b"\r\n")
    assert answer.status == status
    assert answer.body


async def test_http_1_0_is_answered_and_closed(server: Server) -> None:
    reader, writer = await connect(server)
    writer.write(LIVE.replace(b"1.1", b"1.0"))
    answer = await read_answer(reader)
    assert (answer.status, answer.headers["connection"]) == (200, "close")
    assert await rest_of(reader) == b""
    writer.close()


async def test_a_body_is_asked_for_where_it_is_wanted(server: Server) -> None:
    reader, writer = await connect(server)
    writer.write(POST + b"Expect: 100-continue\r\nContent-Length: 17\r\n\r\n")
    assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
    writer.write(HELLO)
    assert (await read_answer(reader)).status == 200
    writer.write(POST + b"Expect: 100-continue\r\nContent-Length: 99999999\r\n\r\n")
    assert (await reader.readline()).startswith(b"HTTP/1.1 413 ")
    writer.close()


UPGRADE = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n"


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (HEAD + UPGRADE + b"\r\n", 200),
        (HEAD + UPGRADE.replace(b"h2c", b"websocket") + b"\r\n", 200),
        (POST + UPGRADE + b"Content-Length: 17\r\n\r\n" + HELLO, 200),
        (POST + UPGRADE + b"Content-Length: 0\r\n\r\n", 400),
        (
            POST + UPGRADE + b"Transfer-Encoding: chunked\r\n\r\n11\r\n" + HELLO + b"\r\n0\r\n\r\n",
            200,
        ),
    ],
)
async def test_an_upgrade_is_ignored_and_its_body_read(
    server: Server, request_: bytes, status: int
) -> None:
    """Java's client asks for HTTP/2 like this with the first thing it sends."""
    reader, writer = await connect(server)
    for cut in (len(request_), 1, len(request_) - 1, len(request_) - 5):
        writer.write(request_[:cut])
        await asyncio.sleep(0.05)
        writer.write(request_[cut:] + LIVE)
        assert (await read_answer(reader)).status == status
        assert (await read_answer(reader)).body == {"status": "live"}
    assert len(server.log) == 1
    writer.close()


async def test_headers_after_the_body_do_not_count(server: Server) -> None:
    trailer = b"X-Request-Id: smuggled\r\nHost: evil.example\r\n"
    body = b"Transfer-Encoding: chunked\r\n\r\n11\r\n" + HELLO + b"\r\n0\r\n" + trailer + b"\r\n"
    answer = await ask(server, POST + body)
    assert answer.status == 200
    assert answer.headers["x-request-id"] != "smuggled"


@pytest.mark.parametrize(
    "headers",
    [
        b"Authorization: Bearer a\r\nAuthorization: Bearer b\r\n",
        b"X-API-Key: a\r\nx-api-key: a\r\n",
        b"Idempotency-Key: a\r\nIdempotency-Key: b\r\n",
    ],
)
async def test_what_can_be_said_once_is_not_said_twice(server: Server, headers: bytes) -> None:
    answer = await ask(server, HEAD + headers + b"\r\n")
    assert answer.status == 400
    assert answer.body["code"] == "invalid_request"
    assert (await ask(server, HEAD + headers.partition(b"\r\n")[2] + b"\r\n")).status == 200


# --- Headers -------------------------------------------------------------------------------------


async def test_over_https_browsers_are_told_to_stay_there(tmp_path: Path) -> None:
    public = ("--public-url", "https://chat.example.org")
    with Server(tmp_path, "--model", "eliza", *public) as server:
        headers = (await ask(server, LIVE)).headers
        assert headers["strict-transport-security"] == "max-age=31536000"


async def test_a_page_may_do_no_more_than_it_needs(server: Server) -> None:
    """Its own script and style, by their hashes; nobody frames it, nothing comes from elsewhere."""
    reader, writer = await connect(server)
    writer.write(b"GET / HTTP/1.1\r\nAccept: text/html\r\n" + HOST + b"\r\n")
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    lines = head.split("\r\n")[1:]
    headers = dict(line.split(": ", 1) for line in lines if line)
    html = (await reader.readexactly(int(headers["content-length"]))).decode()
    writer.close()
    policy = dict(
        part.strip().split(" ", 1) for part in headers["content-security-policy"].split(";")
    )
    for name in ("default-src", "base-uri", "form-action", "frame-ancestors"):
        assert policy[name] == "'none'"
    assert policy["connect-src"] == "'self'"
    assert policy["img-src"] == "data:"
    for tag in ("script", "style"):
        [inline] = re.findall(f"<{tag}>(.*?)</{tag}>", html, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(inline.encode()).digest()).decode()
        assert policy[f"{tag}-src"] == f"'sha256-{digest}'"
    assert not re.search(r"\son\w+=|javascript:|\sstyle=|<(script|iframe)\s", html)
    assert headers["referrer-policy"] == "no-referrer"
    assert headers["cross-origin-opener-policy"] == "same-origin"
    assert "camera=()" in headers["permissions-policy"]
    assert "server" not in headers


async def test_else_they_are_not(server: Server) -> None:
    assert "strict-transport-security" not in (await ask(server, LIVE)).headers


# --- Secrets -------------------------------------------------------------------------------------

KEY = "tk_" + "S3CRET" * 7 + "k"
ADMIN_KEY = "S3CRET-admin-key-of-more-than-32-characters"
PROVIDER_KEY = "S3CRET-provider"
SECRETS = ("S3CRET", "s3cret")


def hostile(path: bytes, headers: bytes, body: bytes) -> bytes:
    length = b"Content-Length: %d\r\n" % len(body)
    return b"POST " + path + b" HTTP/1.1\r\n" + HOST + headers + length + b"\r\n" + body


async def test_no_secret_is_in_the_log_or_in_an_error(
    tmp_path: Path, model_server: ModelServer
) -> None:
    """Keys, cookies, passwords and what people say, where all goes well and where it does not."""
    async with visit_accounts(f"sqlite:///{tmp_path}/turnkeeper.db", make=True) as accounts:
        await accounts.create_user("ann", "user", "S3CRET-password")
    env = {
        "OPENAI_BASE_URL": model_server.base_url,
        "OPENAI_API_KEY": PROVIDER_KEY,
        "TURNKEEPER_ADMIN_KEY": ADMIN_KEY,
        "TURNKEEPER_ATTEMPTS": "1",
        "PYTHONASYNCIODEBUG": "1",
    }
    with Server(tmp_path, "--model", "m", "--auth", "keys", env=env) as server:
        admin = b"Authorization: Bearer " + ADMIN_KEY.encode() + b"\r\n"
        said = b'{"message": "S3CRET words"}'
        answers: list[Any] = []
        for plan in (
            Plan(),
            Plan(status=401, body={"error": PROVIDER_KEY}),
            Plan(status=500),
            Plan(),
        ):
            model_server.script = lambda _, plan=plan: plan
            requests = (
                hostile(b"/api/chat", admin, said),
                hostile(b"/api/chat", b"X-API-Key: " + KEY.encode() + b"\r\n", said),
                hostile(b"/api/chat", b"Cookie: turnkeeper_login=S3CRET\r\n", said),
                hostile(b"/api/chat", admin + b"X-API-Key: S3CRET\r\n", said),
                hostile(b"/api/chat?key=S3CRET", admin, b'{"message": ["S3CRET"]}'),
                hostile(b"/api/chat", admin, b'{"message": "S3CRET" '),
                hostile(b"/login", b"", b'{"username": "ann", "password": "S3CRET-wrong"}'),
                hostile(b"/api/chat", b"Authorization : S3CRET\r\n", said),
                b"S3CRET\r\n\r\n",
            )
            answers += [(await ask(server, request_)).body for request_ in requests]
        log = "".join(server.log)
    assert not any(secret in log for secret in SECRETS), log
    errors = [answer for answer in answers if "error" in answer]
    assert len(errors) > 20
    assert not [e for e in errors if any(secret in json.dumps(e) for secret in SECRETS)]
