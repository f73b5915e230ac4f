"""A real engine, llama.cpp, as the provider: what it sends is read, whatever it means."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import aiohttp
import pytest

from rig.server import Server
from turnkeeper import sse

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def engine_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The base URL of a llama.cpp server."""
    folder = tmp_path_factory.mktemp("llama")
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "rig.llama", str(folder)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
        assert process.stdout is not None
        with process.stdout as output:
            said = next((line for line in output if line.startswith("listening on ")), "")
            assert said, (folder / "log").read_text()[-2000:]
            yield said.split()[-1] + "/v1"
            process.kill()
            process.wait()


async def test_turns_with_a_real_engine(engine_url: str, tmp_path: Path) -> None:
    env = {"OPENAI_BASE_URL": engine_url}
    body = {"message": "hello", "session_id": "s"}
    with Server(tmp_path, "--model", "tiny", env=env) as server:
        async with aiohttp.ClientSession(server.url) as http:
            async with http.post("/api/chat", json=body) as response:
                answer = await response.json()
                assert response.status == 200, answer
                turn_id = response.headers["turn-id"]
            assert answer["response"]
            async with http.get(f"/api/turns/{turn_id}") as response:
                usage = (await response.json())["turn"]["usage"]
            assert usage["completion_tokens"] == 24
            assert usage["estimated"] is False
            async with http.post("/api/chat", json=body | {"stream": True}) as response:
                events = sse.Reader().feed(await response.read())
            async with http.get("/api/sessions") as response:
                assert await response.json() == [{"id": "s", "message_count": 4}]
    said = [json.loads(event.data)["text"] for event in events if event.name == "message.delta"]
    assert events[-1].name == "turn.completed"
    assert "".join(said) == json.loads(events[-1].data)["response"]


async def test_the_engines_own_list_fills_the_models(engine_url: str, tmp_path: Path) -> None:
    (tmp_path / "t.toml").write_text(f'[providers.local]\nbase_url = "{engine_url}"\n')
    with Server(tmp_path, "--config", "t.toml") as server:
        async with aiohttp.ClientSession(server.url) as http, http.get("/api/models") as response:
            models = await response.json()
    assert len(models) == 1
    assert models[0]["id"].endswith("tiny.gguf")
