"""Every example, as its reader runs it, against a real server; and what is kept of it.

They all run at once: most of their time goes into what they import. None may reach for the
network: whatever is not on loopback is sent to a proxy that nobody runs, and so fails at once.
"""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from rig.server import Server
from tests.openai.test_node import SCRIPTS, find_node

EXAMPLES = Path(__file__).parent.parent / "examples"
BIN = Path(sys.executable).parent
KEY = "a-key-of-more-than-32-characters-for-tests"
FIRST = "What has kept you so far from setting out to learn to swim?"
SECOND = "How do you get on with no time?"
SAID = ["I want to learn to swim", FIRST, "I have no time", SECOND]

PLAIN = ("with_openai.py", "with_agents.py", "with_langchain.py", "with_pydantic_ai.py")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    options = ("--model", "eliza", "--auth", "keys")
    folder = tmp_path_factory.mktemp("server")
    with Server(folder, *options, env={"TURNKEEPER_ADMIN_KEY": KEY}) as server:
        yield server


@pytest.fixture(scope="module")
def api(server: Server) -> Iterator[httpx.Client]:
    bearer = {"Authorization": f"Bearer {KEY}"}
    with httpx.Client(base_url=server.url, headers=bearer, trust_env=False) as api:
        yield api


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Running:
    """The examples, each begun in a folder of its own."""

    def __init__(self, server: Server, folder: Path) -> None:
        self.gradio_url = f"http://127.0.0.1:{(port := free_port())}"
        self._folder = folder
        self._env = {
            "PATH": f"{BIN}:{os.environ['PATH']}",
            "HOME": str(folder),
            "OPENAI_BASE_URL": f"{server.url}/v1",
            "OPENAI_API_KEY": KEY,
            "GRADIO_ANALYTICS_ENABLED": "False",
            "GRADIO_SERVER_PORT": str(port),
            "HTTP_PROXY": "http://127.0.0.1:9",
            "HTTPS_PROXY": "http://127.0.0.1:9",
            "NO_PROXY": "127.0.0.1,localhost",
        }
        self._processes = {
            name: self._begin(name, sys.executable, str(EXAMPLES / name))
            for name in (*PLAIN, "with_gradio.py")
        }
        self._processes["with_llm.sh"] = self._begin(
            "with_llm.sh", "sh", str(EXAMPLES / "with_llm.sh")
        )
        if (SCRIPTS / "node_modules").is_dir():
            # Its reader has run `npm install openai` beside it.
            script = self._folder / "with_openai.mjs"
            shutil.copy(EXAMPLES / script.name, script)
            (self._folder / "node_modules").symlink_to(SCRIPTS / "node_modules")
            self._processes[script.name] = self._begin(script.name, str(find_node()), str(script))

    def _begin(self, name: str, *command: str) -> subprocess.Popen[bytes]:
        with (self._folder / f"{name}.out").open("wb") as output:
            return subprocess.Popen(
                command, cwd=self._folder, env=self._env, stdout=output, stderr=subprocess.STDOUT
            )

    def said(self, name: str) -> str:
        return (self._folder / f"{name}.out").read_text("utf-8")

    def end(self, name: str) -> list[str]:
        """The lines it has printed, once it has ended well."""
        code = self._processes[name].wait(100)
        assert code == 0, self.said(name)
        return self.said(name).splitlines()

    def is_running(self, name: str) -> bool:
        return self._processes[name].poll() is None

    def stop(self) -> None:
        for process in self._processes.values():
            process.kill()
            process.wait()


@pytest.fixture(scope="module")
def running(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    running = Running(server, tmp_path_factory.mktemp("examples"))
    yield running
    running.stop()


def said_in(api: httpx.Client, session: str) -> list[str]:
    """What any dialect reads there."""
    answer = api.get(f"/api/chat-sessions/{session}/messages?after=0")
    return [message["content"] for message in answer.json()["messages"]]


def conversation_items(api: httpx.Client, conversation: str) -> list[Any]:
    return api.get(f"/v1/conversations/{conversation}/items?order=asc").json()["data"]


def test_openai_python(running: Running, api: httpx.Client) -> None:
    speakers = ("user", "assistant", "user", "assistant")
    listed = [f"{who}: {text}" for who, text in zip(speakers, SAID, strict=True)]
    assert running.end("with_openai.py") == [FIRST, SECOND, *listed]
    conversations = api.get("/v1/conversations?limit=100").json()["data"]
    (mine,) = [one for one in conversations if one["metadata"] == {"topic": "swimming"}]
    assert len(conversation_items(api, mine["id"])) == 4


def test_openai_node(running: Running, api: httpx.Client) -> None:
    if not (SCRIPTS / "node_modules").is_dir():
        pytest.skip("needs the packages of tests/node (make .venv/dev.stamp)")
    (line,) = running.end("with_openai.mjs")
    match = re.fullmatch(r"(.*) \((resp_.*)\)", line)
    assert match is not None
    assert match[1] == FIRST
    response = api.get(f"/v1/responses/{match[2]}").json()
    assert response["output"][0]["content"][0]["text"] == FIRST


def test_openai_agents(running: Running, api: httpx.Client) -> None:
    first, second, conversation = running.end("with_agents.py")
    assert [first, second] == [FIRST, SECOND]
    items = conversation_items(api, conversation)
    assert [item["content"][0]["text"] for item in items] == SAID


def test_langchain(running: Running, api: httpx.Client) -> None:
    assert running.end("with_langchain.py") == [FIRST, SECOND, SECOND]
    assert said_in(api, "langchain") == SAID


def test_pydantic_ai(running: Running, api: httpx.Client) -> None:
    assert running.end("with_pydantic_ai.py") == [FIRST, SECOND, SECOND]
    assert said_in(api, "pydantic-ai") == SAID


def test_llm(running: Running, api: httpx.Client) -> None:
    assert running.end("with_llm.sh") == [FIRST, SECOND]
    assert said_in(api, "llm") == SAID


def test_gradio(running: Running, api: httpx.Client) -> None:
    with httpx.Client(base_url=running.gradio_url, trust_env=False, timeout=30) as page:
        wait_for_page(page, running)
        for words, reply in ((SAID[0], FIRST), (SAID[2], SECOND)):
            assert chat(page, words) == reply
    assert said_in(api, "gradio") == SAID


def wait_for_page(page: httpx.Client, running: Running) -> None:
    deadline = time.monotonic() + 100
    while True:
        assert running.is_running("with_gradio.py"), running.said("with_gradio.py")
        assert time.monotonic() < deadline, running.said("with_gradio.py")
        try:
            if page.get("/config").is_success:
                return
        except httpx.TransportError:
            time.sleep(0.1)


def chat(page: httpx.Client, words: str) -> str:
    """What the page answers, as Gradio's own clients ask it: the name is `load_chat`'s."""
    begun = page.post("/gradio_api/call/open_api_stream", json={"data": [words]}).json()
    events = page.get(f"/gradio_api/call/open_api_stream/{begun['event_id']}").text
    (last,) = re.findall(r"^event: complete\ndata: (.*)$", events, re.MULTILINE)
    return str(json.loads(last)[0])
