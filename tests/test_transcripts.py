"""The dialects, byte for byte: each file in `transcripts/` is a conversation with a real server.

Lines after `>` are a request, lines after `<` the answer to it; an empty `>` or `<` line parts
head and body, whose lines are joined by newlines. `{{name}}` stands for what is different each
time: the first time it takes what it finds, later it must be the same. Answers list every
header but those of framing, those that are `COMMON` to all answers, and a `cache-control` that
follows the rule (`caching`). `# model:` says how the model server answers from then on, a `Plan`
as in Python; without it, it echoes. Text before the first request is a comment.

With `# server: keys` for a first line the server asks for credentials. It knows the user `ann` with
the password `correct horse`, and the admin's key `ADMIN_KEY`.
"""

import asyncio
import re
from collections.abc import AsyncIterator, Iterator
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from rig import model_server as rig_model
from rig.model_server import Call, ModelServer, Plan
from rig.server import Server
from turnkeeper.compose import visit_accounts

FOLDER = Path(__file__).parent / "transcripts"
COMMON = ("x-content-type-options: nosniff", "cross-origin-resource-policy: same-origin")
TRANSCRIPTS = sorted(FOLDER.rglob("*.txt"))


class Exchange:
    """A request, the answer it must get, and how the model behaves meanwhile."""

    def __init__(self, plan: str, request: list[str], answer: list[str]) -> None:
        self.plan = plan
        self.request = request
        self.answer = answer


def read_exchanges(path: Path) -> Iterator[Exchange]:
    plan, request, answer = "", list[str](), list[str]()
    for line in [*path.read_text("utf-8").splitlines(), "> end"]:
        if line.startswith((">", "# model:")) and answer:
            yield Exchange(plan, request, answer)
            request, answer = [], []
        if line.startswith("# model:"):
            plan = line.removeprefix("# model:").strip()
        elif line.startswith(">"):
            request.append(line[2:])
        elif line.startswith("<"):
            answer.append(line[2:])


def encode_request(lines: list[str], known: dict[str, str]) -> bytes:
    for name, value in known.items():
        lines = [line.replace("{{" + name + "}}", value) for line in lines]
    blank = lines.index("") if "" in lines else len(lines)
    body = "\n".join(lines[blank + 1 :]).encode().replace(b"\\xff", b"\xff")
    head = lines[:blank]
    if body or head[0].startswith("POST"):
        head.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*head, "Connection: close", "", ""]).encode() + body


async def talk(url: str, request: bytes) -> str:
    parts = urlsplit(url)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    writer.write(request)
    answer = await reader.read()
    writer.close()
    await writer.wait_closed()
    return plain(answer)


def plain(answer: bytes) -> str:
    """An answer as a transcript has it: without framing, chunks joined."""
    head, _, body = answer.partition(b"\r\n\r\n")
    lines = head.decode("latin-1").split("\r\n")
    assert any(line.startswith("date: ") for line in lines)
    assert [lines.count(common) for common in COMMON] == [1] * len(COMMON)
    assert sum(line.startswith("cache-control: ") for line in lines) == 1
    dull = ("date: ", "connection: ", "transfer-encoding: ", "content-length: ")
    if any(line.startswith("transfer-encoding: chunked") for line in lines):
        body = b"".join(unchunk(body))
    usual = (*COMMON, caching(lines))
    kept = [line for line in lines if not line.startswith(dull) and line not in usual]
    return "\n".join([*kept, *(["", body.decode()] if body else [])])


def caching(lines: list[str]) -> str:
    """What an answer says to caches unless it has reasons of its own."""
    tagged = any(line.startswith("etag: ") for line in lines)
    return f"cache-control: {'private, no-cache' if tagged else 'no-store'}"


def unchunk(body: bytes) -> Iterator[bytes]:
    while body:
        size, _, rest = body.partition(b"\r\n")
        yield rest[: int(size, 16)]
        body = rest[int(size, 16) + 2 :]


def match(expected: str, found: str, known: dict[str, str]) -> None:
    """Fail unless they agree, taking what `{{names}}` stand for into `known`."""
    pattern, names = "", set[str]()
    for part in re.split(r"({{\w+}})", expected):
        name = part[2:-2] if part.startswith("{{") else ""
        if not name:
            pattern += re.escape(part)
        elif name in known:
            pattern += re.escape(known[name])
        else:
            pattern += f"(?P={name})" if name in names else f'(?P<{name}>[^\\s"]*?)'
            names.add(name)
    matched = re.fullmatch(pattern, found)
    if matched is None:
        for name, value in known.items():
            found = found.replace(value, "{{" + name + "}}") if value else found
        assert found == expected
    else:
        known |= matched.groupdict()


ADMIN_KEY = "an-administrators-key-of-40-characters.."


def options_of(path: Path) -> tuple[str, ...]:
    """How the server of a transcript is started, beside what all of them have."""
    asks = path.read_text("utf-8").startswith("# server: keys\n")
    return ("--auth", "keys") if asks else ()


async def make_user(folder: Path) -> None:
    async with visit_accounts(f"sqlite:///{folder}/turnkeeper.db", make=True) as accounts:
        await accounts.create_user("ann", "user", "correct horse")


@pytest.fixture
async def server(path: Path, tmp_path: Path, model_server: ModelServer) -> AsyncIterator[Server]:
    options = options_of(path)
    if options:
        await make_user(tmp_path)
    env = {
        "TURNKEEPER_ADMIN_KEY": ADMIN_KEY,
        "OPENAI_BASE_URL": model_server.base_url,
        "OPENAI_API_KEY": "secret",
        "TURNKEEPER_ATTEMPTS": "1",
        "TURNKEEPER_BODY_LIMIT": "20000",
        "TURNKEEPER_MESSAGE_LIMIT": "1000",
        "TURNKEEPER_FIRST_BYTE_TIMEOUT": "0.3",
        "TURNKEEPER_BETWEEN_TIMEOUT": "0.3",
    }
    server = Server(tmp_path, "--model", "scripted", *options, env=env)
    await asyncio.to_thread(server.start)
    yield server
    server.kill()


def _answer(plan: Plan, _: Call) -> Plan:
    return plan


@pytest.mark.parametrize("path", TRANSCRIPTS, ids=lambda p: str(p.relative_to(FOLDER)))
async def test_transcript(path: Path, server: Server, model_server: ModelServer) -> None:
    known: dict[str, str] = {}
    for exchange in read_exchanges(path):
        if exchange.plan:
            model_server.script = partial(_answer, eval(exchange.plan, vars(rig_model)))
        found = await talk(server.url, encode_request(exchange.request, known))
        match("\n".join(exchange.answer), found, known)


def test_there_are_transcripts() -> None:
    assert len(TRANSCRIPTS) > 10
