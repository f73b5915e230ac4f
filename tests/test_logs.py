"""The log of a real server: what each line says, what none says, and that nobody waits for it."""

import asyncio
import json
import logging
import os
import re
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from rig.model_server import ModelServer, Plan
from rig.server import Server
from turnkeeper.logs import _MOST, Level, Logs, open_logs
from turnkeeper.web.app import DIALECTS

INFO = {"TURNKEEPER_LOG_LEVEL": "info"}


def lines(server: Server) -> list[dict[str, Any]]:
    """What a server that has stopped has logged."""
    return [json.loads(line) for line in server.log if line.startswith("{")]


def env_for(model: ModelServer, **more: str) -> dict[str, str]:
    return {"OPENAI_BASE_URL": model.base_url, "OPENAI_API_KEY": "k", **INFO, **more}


async def test_a_request_and_its_turn_are_a_line_each(
    tmp_path: Path, model_server: ModelServer
) -> None:
    env = env_for(model_server)
    with Server(tmp_path, "--model", "scripted", "--attempts", "1", env=env) as server:
        async with aiohttp.ClientSession(server.url) as http:
            ask = {"message": "very private", "stream": True}
            headers = {"X-Request-Id": "mine", "X-End-User": "kim"}
            async with http.post("/api/chat", json=ask, headers=headers) as answer:
                await answer.read()
                turn, session = answer.headers["Turn-Id"], answer.headers["Session-Id"]
            model_server.script = lambda _: Plan(status=500, body={})
            async with http.post("/api/chat", json=ask):
                pass
        assert server.stop() == 0
    found = lines(server)
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\dT[\d:]{8}\.\d{3}Z", line["time"]) for line in found)
    request = next(line for line in found if line["event"] == "request")
    assert request.pop("seconds") >= 0
    assert request.pop("time")
    assert request == {
        "level": "info",
        "event": "request",
        "request_id": "mine",
        "method": "POST",
        "route": "/api/chat",
        "status": 200,
        "user": "local/kim",
        "turn": turn,
    }
    ended = next(line for line in found if line["event"] == "turn")
    times = [ended.pop(f"{name}seconds") for name in ("queued_", "first_delta_", "")]
    assert times == sorted(times)
    assert ended.pop("time")
    assert ended == {
        "level": "info",
        "event": "turn",
        "turn": turn,
        "session": session,
        "user": "local/kim",
        "model": "scripted",
        "state": "completed",
        "request_id": "mine",
        "prompt_tokens": 7,
        "completion_tokens": 4,
    }
    failed = [line for line in found if line["event"] == "turn"][1]
    assert (failed["state"], failed["error"]) == ("failed", "provider_failed")
    assert "private" not in "".join(server.log)


async def test_what_is_said_is_logged_only_if_that_is_asked_for(
    tmp_path: Path, model_server: ModelServer
) -> None:
    env = env_for(model_server)
    with Server(tmp_path, "--model", "scripted", "--log-content", "on", env=env) as server:
        async with (
            aiohttp.ClientSession(server.url) as http,
            http.post("/api/chat", json={"message": "private"}),
        ):
            pass
        server.stop()
    [turn] = [line for line in lines(server) if line["event"] == "turn"]
    assert (turn["message"], turn["reply"]) == ("private", "You said: private")


async def test_the_usual_is_not_logged_where_only_warnings_are(tmp_path: Path) -> None:
    env = {"TURNKEEPER_LOG_LEVEL": "warning"}
    with Server(tmp_path, "--model", "eliza", env=env) as server:
        async with aiohttp.ClientSession(server.url) as http, http.get("/api/models"):
            pass
        server.stop()
    assert lines(server) == []


# --- What no line says -------------------------------------------------------------------------

WORDS = "canaryinwords"
KEY = "canaryinkey" + "x" * 40
PROVIDER_KEY = "canaryinproviderkey"
BODY = {
    "message": WORDS,
    "msg_text": WORDS,
    "input": WORDS,
    "text": WORDS,
    "title": WORDS,
    "password": KEY,
    "username": "ann",
    "instructions": WORDS,
    "messages": [{"role": "user", "content": WORDS}],
    "variables": {"a": WORDS},
}


@pytest.mark.parametrize("auth", ["off", "keys"])
async def test_no_key_no_cookie_and_no_words_are_logged_or_counted(
    tmp_path: Path, model_server: ModelServer, auth: str
) -> None:
    """Through every route, with a provider that says back whatever it is told, key and all."""
    said = {"error": {"message": f"{PROVIDER_KEY} is wrong for {WORDS}"}}
    model_server.script = lambda call: (
        Plan(deltas=(WORDS,)) if call.number % 2 else Plan(status=401, body=said)
    )
    env = env_for(
        model_server,
        OPENAI_API_KEY=PROVIDER_KEY,
        TURNKEEPER_ADMIN_KEY=KEY,
        TURNKEEPER_LOG_LEVEL="debug",
    )
    options = ("--model", "scripted", "--attempts", "1", "--auth", auth)
    headers = {"Authorization": f"Bearer {KEY}", "Cookie": f"turnkeeper={KEY}"}
    with Server(tmp_path, *options, env=env) as server:
        async with aiohttp.ClientSession(server.url, headers=headers) as http:
            for route in (route for dialect in DIALECTS for route in dialect.routes):
                path = re.sub(r"{\w+\*?}", WORDS, route.path)
                if route.method == "WEBSOCKET" or path.endswith("/events"):
                    continue
                for body in (BODY, {"message": WORDS}, [WORDS]):
                    for query in ("", f"?q={WORDS}"):
                        url, name = f"{path}{query}", route.method
                        async with http.request(name, url, json=body) as answer:
                            await answer.read()
            async with http.get(f"/{WORDS}?key={KEY}") as answer:
                assert answer.status == 404
            async with http.get("/metrics") as answer:
                assert answer.status == 200
                metrics = await answer.text()
        assert server.stop() == 0
    assert {line["event"] for line in lines(server)} >= {"request", "turn"}
    for told in ("".join(server.log), metrics):
        assert "canary" not in told


# --- Nobody waits for it -----------------------------------------------------------------------


@contextmanager
def logging_into_a_pipe(
    format_: Any = "json", level: Level = "info"
) -> Iterator[tuple[Logs, Callable[[], str]]]:
    """The logs, and what reads all of them, once they are closed."""
    reading, writing = os.pipe()
    found: list[str] = []

    def read() -> str:
        if not found:
            os.close(writing)
            with os.fdopen(reading, encoding="utf-8") as pipe:
                found.append(pipe.read())
        return found[0]

    with open_logs(format_, level, writing) as logs:
        yield logs, read
    read()


def test_what_the_library_logs_takes_the_same_way() -> None:
    with logging_into_a_pipe() as (_, read):
        log = logging.getLogger("turnkeeper.somewhere")
        log.warning("%d things", 3)
        log.debug("not wanted")
        logging.getLogger("somebody.else").info("not wanted either")
        try:
            raise ValueError("odd")  # noqa: TRY301
        except ValueError:
            log.exception("Broken")
    first, second = map(json.loads, read().splitlines())
    assert (first["event"], first["level"]) == ("3 things", "warning")
    assert first["logger"] == "turnkeeper.somewhere"
    assert "ValueError: odd" in second["exception"]


def test_people_read_text() -> None:
    with logging_into_a_pipe("text") as (logs, read):
        assert logs.write is not None
        logs.write({"event": "turn", "state": "completed"})
    assert re.search(r"turn +state=completed", read())


def test_a_full_pipe_holds_nobody_up_and_lines_are_dropped_and_counted() -> None:
    reading, writing = os.pipe()
    with os.fdopen(reading) as pipe:
        with open_logs("json", "info", writing) as logs:
            assert logs.write is not None
            for number in range(_MOST + 5000):  # more than it holds, and the pipe with it
                logs.write({"event": "turn", "number": number})
            found: list[str] = []
            reader = threading.Thread(target=lambda: found.extend(pipe))
            reader.start()
        os.close(writing)
        reader.join()
    dropped = [json.loads(line) for line in found if "dropped" in line]
    told = sum(int(line["event"].split()[0]) for line in dropped)
    assert told > 0
    assert told + len(found) - len(dropped) == _MOST + 5000


async def test_a_server_whose_log_nobody_reads_goes_on(tmp_path: Path) -> None:
    """A pipe holds 64 KiB: what a few hundred requests say."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "turnkeeper", "serve", "--model", "eliza"),
        cwd=tmp_path,
        env={"PATH": os.environ["PATH"], "PORT": "0", **INFO},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        limit=1,
    )
    assert process.stdout is not None
    url = b""
    while b"(model" not in url:
        url += await process.stdout.read(1)
    address = url.decode().split()[4]
    async with aiohttp.ClientSession(address) as http, asyncio.timeout(60):
        for _ in range(1500):
            async with http.get("/health/live") as answer:
                assert answer.status == 200
    process.kill()
    await process.communicate()
