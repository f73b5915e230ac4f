"""`turnkeeper chat`: a real process in a pipe or in a terminal, its server real, its model too."""

import asyncio
import signal
import stat
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from itertools import count
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

import aiohttp
import pyte
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from rig.model_server import Hang, ModelServer, Plan, Wait
from rig.server import Server
from rig.terminal import PROMPT, Terminal
from turnkeeper import terminal
from turnkeeper.client import Client, ClientError, Finished, Lost, Taken, Unreachable, Words
from turnkeeper.screen import printable, split_blocks

WORDS = ("Once ", "upon ", "a ", "time")
STORY = "".join(WORDS)


def provider(model: ModelServer) -> dict[str, str]:
    return {
        "OPENAI_BASE_URL": model.base_url,
        "OPENAI_API_KEY": "secret",
        "TURNKEEPER_MODEL": "scripted",
    }


@asynccontextmanager
async def serving(model: ModelServer, folder: Path) -> AsyncIterator[Server]:
    server = Server(folder, env=provider(model))
    with await asyncio.to_thread(server.start):
        yield server


class Pipe:
    """`turnkeeper chat` with pipes for a terminal."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.said = b""

    @classmethod
    async def open(
        cls, folder: Path, text: bytes | str, *options: str, env: dict[str, str] | None = None
    ) -> Self:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "turnkeeper",
            "chat",
            *options,
            cwd=folder,
            env={"HOME": str(folder), **(env or {})},
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        assert process.stdin is not None
        process.stdin.write(text if isinstance(text, bytes) else text.encode())
        process.stdin.close()
        return cls(process)

    async def reads(self, text: str) -> None:
        """Wait until all that was printed is `text`."""
        assert self.process.stdout is not None
        while self.said != text.encode():
            data = await self.process.stdout.read(1000)
            assert data, self.said
            self.said += data

    async def end(self) -> tuple[int, str, str]:
        """Exit code, standard output, standard error."""
        out, err = await asyncio.wait_for(self.process.communicate(), 60)
        assert self.process.returncode is not None
        assert b"Traceback" not in err
        return self.process.returncode, (self.said + out).decode(), err.decode()


async def chat(
    folder: Path, text: bytes | str, *options: str, env: dict[str, str] | None = None
) -> tuple[int, str, str]:
    return await (await Pipe.open(folder, text, *options, env=env)).end()


class Wire:
    """The way to a server, which a test may cut: a proxy of bytes."""

    def __init__(self, url: str) -> None:
        self._there = urlsplit(url)
        self._writers: list[asyncio.StreamWriter] = []
        self.connections = 0

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._carry, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        self.cut()

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there = await asyncio.open_connection(self._there.hostname, self._there.port)
        self._writers += [writer, there[1]]
        self.connections += 1  # from here on `cut` cuts it
        await asyncio.gather(self._copy(reader, there[1]), self._copy(there[0], writer))

    async def _copy(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(65536):
                writer.write(data)
        except ConnectionError:
            pass
        writer.close()

    def cut(self) -> None:
        for writer in self._writers:
            writer.transport.abort()
        self._writers.clear()

    def cut_for_good(self) -> None:
        self._server.close()
        self.cut()


# --- In a pipe -----------------------------------------------------------------------------------


async def test_by_itself_it_prints_the_reply_and_a_newline(tmp_path: Path) -> None:
    greeting = "Hello. It is good that you are here. What shall we talk about?\n"
    for _ in range(2):  # and leaves nothing behind that the next run would stumble over
        assert await chat(tmp_path, "hello\n", "--model", "eliza") == (0, greeting, "")


async def test_the_message_is_sent_as_it_is_but_for_its_last_line_end(
    tmp_path: Path, model_server: ModelServer
) -> None:
    text = "  def f():\n\treturn '—'\n\n"
    code, _, _ = await chat(tmp_path, text, env=provider(model_server))
    assert code == 0
    assert model_server.requests[0].body["messages"][-1]["content"] == text.rstrip("\n")


async def test_without_a_provider_it_says_what_to_set(tmp_path: Path) -> None:
    code, out, err = await chat(tmp_path, "hello")
    assert (code, out, err.count("\n")) == (2, "", 1)
    for word in ("GROQ_API_KEY", "OPENAI_API_KEY", "OPENAI_BASE_URL", "--model eliza"):
        assert word in err


async def test_every_wrong_setting_is_named(tmp_path: Path) -> None:
    code, out, err = await chat(tmp_path, "hello", "--attempts", "0", "--message-limit", "none")
    assert (code, out) == (2, "")
    assert "turnkeeper: --attempts " in err
    assert "turnkeeper: --message-limit " in err


@pytest.mark.parametrize("text", [b"", b" \n\n", b"\xff\xfe"])
async def test_what_is_no_message_is_one_sentence(tmp_path: Path, text: bytes) -> None:
    code, out, err = await chat(tmp_path, text, "--model", "eliza")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("turnkeeper: Standard input ")


async def test_it_uses_the_server_that_runs_on_the_database(
    tmp_path: Path, model_server: ModelServer
) -> None:
    async with serving(model_server, tmp_path):
        for text in ("one", "two"):
            answer = await chat(tmp_path, text, "--session", "mine")
            assert answer == (0, f"You said: {text}\n", "")
    said = [message["content"] for message in model_server.requests[-1].body["messages"]]
    assert said[1:] == ["one", "You said: one", "two"]


async def test_the_address_that_a_killed_server_left_is_not_used(
    tmp_path: Path, model_server: ModelServer
) -> None:
    (tmp_path / "other").mkdir()
    async with serving(model_server, tmp_path) as server:
        left = server.url
        server.kill()
    lock = tmp_path / "turnkeeper.db.lock"
    assert lock.read_text() == left
    async with serving(model_server, tmp_path / "other") as other:
        lock.write_text(other.url)  # as if it had been given the same port
        code, out, _ = await chat(tmp_path, "hello", "--model", "eliza")
    assert (code, out[:5]) == (0, "Hello")
    assert model_server.requests == []


async def test_a_second_server_leaves_the_address_of_the_first(
    tmp_path: Path, model_server: ModelServer
) -> None:
    async with serving(model_server, tmp_path):
        with pytest.raises(RuntimeError, match="Another Turnkeeper"):
            await asyncio.to_thread(Server(tmp_path, "--model", "eliza").start)
        assert (await chat(tmp_path, "hi"))[:2] == (0, "You said: hi\n")


async def test_a_server_elsewhere_is_named(tmp_path: Path, model_server: ModelServer) -> None:
    (tmp_path / "there").mkdir()
    async with serving(model_server, tmp_path / "there") as server:
        answer = await chat(tmp_path, "hi", "--url", f"{server.url}/")
    assert answer == (0, "You said: hi\n", "")
    assert not (tmp_path / "turnkeeper.db").exists()


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("http://127.0.0.1:1", "No server answers"),
        ("127.0.0.1:5000", "must be an http:// or https:// address"),
        ("http://", "must be an http:// or https:// address"),
    ],
)
async def test_no_server_is_one_sentence(tmp_path: Path, url: str, said: str) -> None:
    code, out, err = await chat(tmp_path, "hi", "--url", url)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert said in err


async def test_what_is_no_turnkeeper_is_said_to_be_none(
    tmp_path: Path, model_server: ModelServer
) -> None:
    code, out, err = await chat(tmp_path, "hi", "--url", model_server.base_url)
    assert (code, out, err.count("\n")) == (2, "", 1)


@pytest.mark.parametrize(
    "options", [("--model", "gpt-7"), ("--session", "s" + "0" * 26), ("--session", "a b")]
)
async def test_what_the_server_does_not_have_is_a_wrong_setting(
    tmp_path: Path, model_server: ModelServer, options: Sequence[str]
) -> None:
    async with serving(model_server, tmp_path):
        code, out, err = await chat(tmp_path, "hi", *options)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert model_server.requests == []


async def test_a_turn_that_fails_is_one_sentence(tmp_path: Path, model_server: ModelServer) -> None:
    model_server.script = lambda _: Plan(status=401, body={"error": {"message": "bad key"}})
    code, out, err = await chat(tmp_path, "hi", env=provider(model_server))
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert err.startswith("turnkeeper: ")


async def test_a_message_over_the_limit_is_one_sentence(
    tmp_path: Path, model_server: ModelServer
) -> None:
    env = provider(model_server)
    code, out, err = await chat(tmp_path, "hello", "--message-limit", "4", env=env)
    assert (code, out, err.count("\n")) == (1, "", 1)


async def test_words_are_printed_as_they_come(tmp_path: Path, model_server: ModelServer) -> None:
    gate = asyncio.Event()
    model_server.script = lambda _: Plan(deltas=WORDS, at={2: Wait(gate)})
    pipe = await Pipe.open(tmp_path, "hi", env=provider(model_server))
    await pipe.reads("Once upon ")
    gate.set()
    assert await pipe.end() == (0, f"{STORY}\n", "")


async def test_ctrl_c_stops_the_reply_at_the_server(
    tmp_path: Path, model_server: ModelServer
) -> None:
    model_server.script = lambda _: Plan(deltas=WORDS, at={2: Hang()})
    async with serving(model_server, tmp_path) as server:
        pipe = await Pipe.open(tmp_path, "hi", "--session", "s")
        await pipe.reads("Once upon ")
        pipe.process.send_signal(signal.SIGINT)
        assert await pipe.end() == (130, "Once upon \n", "turnkeeper: Stopped.\n")
        model_server.script = lambda _: Plan()
        assert (await chat(tmp_path, "on", "--session", "s"))[0] == 0  # the session is free
        assert server.running
    shown = [message["content"] for message in model_server.requests[-1].body["messages"][1:]]
    assert shown == ["hi", "Once upon ", "on"]


async def test_sigterm_ends_it_in_good_order(tmp_path: Path, model_server: ModelServer) -> None:
    model_server.script = lambda _: Plan(deltas=WORDS, at={2: Hang()})
    pipe = await Pipe.open(tmp_path, "hi", env=provider(model_server))
    await pipe.reads("Once upon ")
    pipe.process.terminate()
    code, _, err = await pipe.end()
    assert (code, err) == (128 + signal.SIGTERM, "")


# --- When the connection breaks ----------------------------------------------------------------


async def test_a_reply_goes_on_where_its_connection_broke(
    tmp_path: Path, model_server: ModelServer
) -> None:
    gate = asyncio.Event()
    model_server.script = lambda _: Plan(deltas=WORDS, at={2: Wait(gate)})
    async with serving(model_server, tmp_path) as server, Wire(server.url) as wire:
        pipe = await Pipe.open(tmp_path, "hi", "--url", wire.url)
        await pipe.reads("Once upon ")
        for _ in range(3):
            before = wire.connections
            wire.cut()
            while wire.connections == before:
                await asyncio.sleep(0.01)
        gate.set()
        assert await pipe.end() == (0, f"{STORY}\n", "")
    assert len(model_server.requests) == 1


async def test_a_server_that_is_killed_and_started_anew_is_found_again(
    tmp_path: Path, model_server: ModelServer
) -> None:
    model_server.script = lambda _: Plan(deltas=WORDS, at={2: Hang()})
    async with serving(model_server, tmp_path) as server:
        pipe = await Pipe.open(tmp_path, "hi")
        await pipe.reads("Once upon ")
        server.kill()
        await asyncio.to_thread(server.start)  # at another port
        code, out, err = await pipe.end()
    assert (code, out) == (1, "Once upon \n")
    assert err == "turnkeeper: The server stopped before the reply was complete.\n"


async def test_a_server_that_stays_away_is_given_up(
    tmp_path: Path, model_server: ModelServer
) -> None:
    model_server.script = lambda _: Plan(deltas=WORDS, at={2: Hang()})
    events: list[Any] = []
    async with (
        serving(model_server, tmp_path) as server,
        Wire(server.url) as wire,
        aiohttp.ClientSession() as http,
    ):

        async def locate() -> str:
            return wire.url

        async def listen() -> None:
            async for event in Client(http, locate, pauses=(0, 0, 0)).take_turn("hi", "s", None):
                events.append(event)
                if isinstance(event, Words):
                    wire.cut_for_good()

        with pytest.raises(Unreachable, match="lost"):
            await listen()
    assert events[-1] == Lost()
    assert isinstance(events[0], Taken)
    assert not any(isinstance(event, Finished) for event in events)


async def test_a_message_whose_answer_was_lost_is_sent_again_under_its_key() -> None:
    """The server took it, and the connection broke before it could say so."""
    keys: list[str] = []

    async def lose(request: web.Request) -> web.Response:
        keys.append(request.headers["Idempotency-Key"])
        if len(keys) == 4:
            return web.json_response({"error": "no"}, status=400)
        assert request.transport is not None
        request.transport.close()
        return web.Response()

    app = web.Application()
    app.router.add_post("/api/chat", lose)
    app.router.add_get("/health/live", _is_live)
    async with TestServer(app) as server, aiohttp.ClientSession() as http:
        client = Client(http, lambda: _answer_url(server), new_key=map(str, count()).__next__)
        for message in ("hi", "hi", "other", "other", "other"):
            with pytest.raises(ClientError):
                await anext(client.take_turn(message, "s", None))
    assert keys == ["0", "0", "1", "1", "2"]


async def _is_live(_: web.Request) -> web.Response:
    return web.json_response({"status": "ok"})


async def _answer_url(server: TestServer) -> str:
    return str(server.make_url("")).rstrip("/")


# --- In a terminal -----------------------------------------------------------------------------


async def test_a_conversation(tmp_path: Path, model_server: ModelServer) -> None:
    async with Terminal(tmp_path, env=provider(model_server)) as screen:
        await screen.say("first")
        await screen.shows("You said: first")
        await screen.say("second")
        await screen.shows("You said: second")
        await screen.say("/quit")
        assert await screen.wait() == 0
    said = [message["content"] for message in model_server.requests[-1].body["messages"]]
    assert said[1:] == ["first", "You said: first", "second"]


async def test_what_was_typed_can_be_recalled_and_is_nobodys_business(
    tmp_path: Path, model_server: ModelServer
) -> None:
    for number in (1, 2):
        async with Terminal(tmp_path, env=provider(model_server)) as screen:
            await screen.shows(PROMPT)
            screen.type("remember\r" if number == 1 else "\x1b[A\r")  # the up arrow
            await screen.shows("You said: remember")
            await screen.shows(PROMPT)
            screen.type("\x04")  # Ctrl-D
            assert await screen.wait() == 0
    file = tmp_path / ".local" / "state" / "turnkeeper" / "history"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700


async def test_ctrl_c_stops_the_reply_and_not_the_program(
    tmp_path: Path, model_server: ModelServer
) -> None:
    model_server.script = lambda _: Plan(deltas=WORDS, at={2: Hang()})
    async with Terminal(tmp_path, env=provider(model_server)) as screen:
        await screen.say("hi")
        await screen.shows("Once upon")
        screen.type("\x03")
        await screen.shows("Stopped.")
        model_server.script = lambda _: Plan()
        await screen.say("go on")
        await screen.shows("Hello there")
        await screen.shows(PROMPT)
        screen.type("half a mess")
        await screen.shows("half a mess")
        screen.type("\x03")  # takes back what was typed
        screen.type("/help\r")
        await screen.shows("stop the reply")
        await screen.shows(PROMPT)
        screen.type("\x03")
        assert await screen.wait() == 0
    assert len(model_server.requests) == 2
    shown = [message["content"] for message in model_server.requests[-1].body["messages"][1:]]
    assert shown == ["hi", "Once upon ", "go on"]


async def test_a_second_ctrl_c_does_not_wait_for_the_server(
    tmp_path: Path, model_server: ModelServer
) -> None:
    model_server.script = lambda _: Plan(deltas=WORDS, at={2: Hang()})
    async with serving(model_server, tmp_path) as server, Terminal(tmp_path) as screen:
        await screen.say("hi")
        await screen.shows("Once upon")
        server.signal(signal.SIGSTOP)  # answers nothing any more
        while "Not waited for" not in screen.text:  # two at once may be one signal
            screen.type("\x03")
            await asyncio.sleep(0.1)
        server.signal(signal.SIGCONT)
        await screen.shows("Not waited for")
        await screen.say("/quit")
        assert await screen.wait() == 0


async def test_keys_pressed_while_a_reply_is_made_are_the_next_message(
    tmp_path: Path, model_server: ModelServer
) -> None:
    gate = asyncio.Event()
    model_server.script = lambda call: (
        Plan(deltas=WORDS, at={2: Wait(gate)}) if call.number == 1 else Plan()
    )
    async with Terminal(tmp_path, env=provider(model_server)) as screen:
        await screen.say("hi")
        await screen.shows("Once upon")
        screen.type("ahead\r")
        gate.set()
        assert "ahead" not in await screen.shows(STORY)
        await screen.shows("Hello there")
        assert model_server.requests[-1].last_user_message == "ahead"


async def test_a_message_may_have_lines(tmp_path: Path, model_server: ModelServer) -> None:
    async with Terminal(tmp_path, env=provider(model_server)) as screen:
        await screen.shows(PROMPT)
        screen.type("one\x1b\rtwo\r")  # Alt-Enter between
        await screen.shows("You said: one two")
        await screen.shows(PROMPT)
        screen.type("\x1b[200~three\nfour\x1b[201~\r")  # pasted
        await screen.shows("three four")
    texts = [call.last_user_message for call in model_server.requests]
    assert texts == ["one\ntwo", "three\nfour"]


async def test_a_reply_that_failed_is_tried_again(
    tmp_path: Path, model_server: ModelServer
) -> None:
    model_server.script = lambda _: Plan(status=400, body={"error": {"message": "no"}})
    async with Terminal(tmp_path, env=provider(model_server)) as screen:
        await screen.say("/retry")
        await screen.shows("nothing to send again")
        await screen.say("hi")
        await screen.shows("/retry sends")
        model_server.script = lambda _: Plan()
        await screen.say("/retry")
        await screen.shows("Again: hi")
        await screen.shows("Hello there")
    assert [call.last_user_message for call in model_server.requests] == ["hi", "hi"]


async def test_the_reply_goes_on_on_the_screen_too(
    tmp_path: Path, model_server: ModelServer
) -> None:
    gate = asyncio.Event()
    model_server.script = lambda _: Plan(deltas=WORDS, at={2: Wait(gate)})
    async with (
        serving(model_server, tmp_path) as server,
        Wire(server.url) as wire,
        Terminal(tmp_path, "--url", wire.url) as screen,
    ):
        await screen.say("hi")
        await screen.shows("Once upon")
        wire.cut()
        await screen.shows("trying again")
        gate.set()
        await screen.shows(STORY)


async def test_sessions_and_models(tmp_path: Path, model_server: ModelServer) -> None:
    async with Terminal(tmp_path, "--session", "old", env=provider(model_server)) as screen:
        await screen.say("/sessions")
        await screen.shows("no session with messages yet")
        await screen.say("in the old one")
        await screen.shows("You said: in the old one")
        await screen.say("/new")
        await screen.say("in the new one")
        await screen.shows("You said: in the new one")
        await screen.say("/sessions")
        assert "1  old" in await screen.shows("2  s")
        await screen.say("/switch 9")
        await screen.shows("no such session")
        await screen.say("/switch 1")
        await screen.shows("Now in session old")
        await screen.say("back")
        await screen.shows("You said: back")
        shown = [m["content"] for m in model_server.requests[-1].body["messages"][1:]]
        assert shown == ["in the old one", "You said: in the old one", "back"]
        await screen.say("/clear")
        await screen.shows("The session is empty now")
        await screen.say("/sessions")
        assert "old" not in (await screen.shows("1  s"))
        await screen.say("/model")
        await screen.shows("scripted  (scripted)")
        await screen.say("/model gpt-7")
        await screen.shows("has no model gpt-7")
        await screen.say("/model scripted")
        await screen.shows("From now on scripted is asked")
        await screen.say("/nonsense")
        await screen.shows("no command /nonsense")
        await screen.say("//etc")
        await screen.shows("You said: /etc")


async def test_what_was_said_can_be_exported(tmp_path: Path, model_server: ModelServer) -> None:
    async with Terminal(tmp_path, "--session", "s", env=provider(model_server)) as screen:
        await screen.say("hi")
        await screen.shows("You said: hi")
        await screen.say("/export")
        await screen.shows("Say which file")
        await screen.say("/export talk.md")
        await screen.shows("is in talk.md")
        await screen.say("/export talk.md")
        await screen.shows("is there already")
        await screen.say("/export nowhere/talk.md")
        await screen.shows("cannot be written")
    expected = "# A conversation\n\n## Session s\n\n### You\n\nhi\n\n### scripted\n\nYou said: hi\n"
    assert (tmp_path / "talk.md").read_text() == expected


async def test_a_second_conversation_uses_the_server_of_the_first(
    tmp_path: Path, model_server: ModelServer
) -> None:
    async with Terminal(tmp_path, env=provider(model_server)) as screen:
        await screen.shows("lists the commands.")
        assert (await chat(tmp_path, "hi"))[:2] == (0, "You said: hi\n")


async def test_when_the_first_leaves_the_second_goes_on_by_itself(
    tmp_path: Path, model_server: ModelServer
) -> None:
    env = provider(model_server)
    async with Terminal(tmp_path, env=env) as first:
        await first.shows(PROMPT)
        async with Terminal(tmp_path, env=env) as second:
            await second.say("one")
            await second.shows("You said: one")
            first.type("/quit\r")
            assert await first.wait() == 0
            await second.say("two")
            await second.shows("You said: two")
    said = [message["content"] for message in model_server.requests[-1].body["messages"]]
    assert said[1:] == ["one", "You said: one", "two"]


async def test_without_a_provider_it_says_so_in_a_terminal_too(tmp_path: Path) -> None:
    async with Terminal(tmp_path) as screen:
        assert await screen.wait() == 2
        await screen.shows("No model provider is configured")


# --- What is on the screen ---------------------------------------------------------------------

LONG = "".join(
    [
        "# A title\n\n",
        *(f"Paragraph {n} with *some* words in it, and `code`.\n\n" for n in range(30)),
        *(f"{n}. item number {n}\n" for n in range(1, 61)),
        "\n```python\n",
        *(f"line_{n} = {n}\n" for n in range(60)),
        "```\n\n| a | b |\n|---|---|\n",
        *(f"| row {n} | {n} |\n" for n in range(40)),
        "\nThe end.",
    ]
)


async def test_a_reply_longer_than_the_screen_is_whole(
    tmp_path: Path, model_server: ModelServer
) -> None:
    """Looked at with a terminal's eyes: everything once, in order, nothing between."""
    pieces = tuple(LONG[at : at + 7] for at in range(0, len(LONG), 7))
    model_server.script = lambda _: Plan(deltas=pieces, delta_delay=0.002)
    async with Terminal(tmp_path, env=provider(model_server)) as screen:
        await screen.say("hi")
        await screen.shows("The end.")
        await screen.say("/quit")
        assert await screen.wait() == 0
        output = screen.output
    display = pyte.HistoryScreen(80, 24, history=10_000, ratio=0.5)
    pyte.ByteStream(display).feed(output)
    rows = [
        "".join(row[column].data for column in range(80)).strip()
        for row in [*display.history.top, *map(display.buffer.get, range(24))]
        if row is not None
    ]
    seen = [row for row in rows if row]
    start = next(n for n, row in enumerate(seen) if "A title" in row)
    body = seen[start + 1 :]
    body = body[next(n for n, row in enumerate(body) if row.startswith("Paragraph")) :]
    wanted = [f"Paragraph {n} with some words in it, and code." for n in range(30)]
    wanted += [f"{n} item number {n}" for n in range(1, 61)]
    wanted += [f"line_{n} = {n}" for n in range(60)]
    assert body[: len(wanted)] == wanted
    table = [row.split() for row in body[len(wanted) :] if row.startswith("row")]
    assert table == [["row", str(n), str(n)] for n in range(40)]
    assert body.count("The end.") == 1


@pytest.mark.parametrize(
    ("text", "settled"),
    [
        ("", ""),
        ("one", ""),
        ("one\n", ""),
        ("one\n\ntwo", ""),  # the last line is not complete
        ("one\n\ntwo\n", "one\n\n"),
        ("1. a\n\n2", ""),  # may be the second item
        ("1. a\n\n2. b\n", ""),
        ("```\na\n\nb\n", ""),  # an open fence
        ("```\na\n```\nb\n", "```\na\n```\n"),
        ("a\n\n| a |\n|---|\n", "a\n\n"),
        ("title\n===\n- x\n", "title\n===\n"),
    ],
)
def test_a_block_is_settled_once_another_has_begun(text: str, settled: str) -> None:
    assert split_blocks(text) == (settled, text[len(settled) :])


def test_however_a_reply_is_cut_its_blocks_are_the_same_text() -> None:
    for size in (1, 3, 50):
        pending, settled = "", ""
        for at in range(0, len(LONG), size):
            done, pending = split_blocks(pending + LONG[at : at + size])
            settled += done
        assert settled + pending == LONG


def test_a_reply_cannot_command_the_terminal() -> None:
    assert printable("a\x1b]52;c;AAAA\x07b\x9b2Jc\rd\n\te") == "a]52;c;AAAAb2Jcd\n\te"


async def test_the_history_is_of_this_run_where_no_file_can_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    history = terminal.open_history({"XDG_STATE_HOME": str(tmp_path / "file")})
    history.append_string("kept for now")
    assert list(history.get_strings()) == ["kept for now"]
