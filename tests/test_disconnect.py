"""Where a deployment says so, a turn that nobody waits for any more is cancelled."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from rig.model_server import Hang, ModelServer, Plan
from rig.server import Server


@pytest.fixture
async def http(
    tmp_path: Path, model_server: ModelServer, request: pytest.FixtureRequest
) -> AsyncIterator[aiohttp.ClientSession]:
    said = request.param
    (tmp_path / "t.toml").write_text(f'[deployments.default]\non_disconnect = "{said}"\n')
    env = {"OPENAI_BASE_URL": model_server.base_url}
    server = Server(tmp_path, "--model", "scripted", "--config", "t.toml", env=env)
    with server:
        async with aiohttp.ClientSession(server.url) as http:
            yield http


async def ask_and_leave(http: aiohttp.ClientSession, model: ModelServer, *, stream: bool) -> None:
    model.script = lambda _: Plan(deltas=("half", "x"), at={1: Hang()})
    asked = {"message": "hi", "session_id": "s", "stream": stream}
    asking = asyncio.ensure_future(http.post("/api/chat", json=asked))
    await model.wait_for_calls(1)
    if stream:
        answer = await asking
        await answer.content.readuntil(b"half")
        answer.close()
    else:
        asking.cancel()
        await asyncio.wait({asking})


async def the_turn(http: aiohttp.ClientSession) -> dict[str, Any]:
    """The only turn of the only session."""
    async with http.get("/api/chat-sessions/s/messages") as answer:
        [asked, *_] = (await answer.json())["messages"]
    async with http.get(f"/api/turns/{asked['turn_id']}") as answer:
        turn: dict[str, Any] = (await answer.json())["turn"]
    return turn


async def follow_to_its_end(http: aiohttp.ClientSession) -> None:
    async with http.get(f"/api/turns/{(await the_turn(http))['id']}/events") as answer:
        await answer.read()


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("http", ["cancel"], indirect=True)
async def test_who_hangs_up_stops_the_turn(
    http: aiohttp.ClientSession, model_server: ModelServer, stream: bool
) -> None:
    await ask_and_leave(http, model_server, stream=stream)
    await model_server.wait_for_disconnects(1)
    await follow_to_its_end(http)
    assert (await the_turn(http))["status"] == "cancelled"


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("http", ["continue"], indirect=True)
async def test_who_hangs_up_stops_nothing_otherwise(
    http: aiohttp.ClientSession, model_server: ModelServer, stream: bool
) -> None:
    await ask_and_leave(http, model_server, stream=stream)
    assert (await the_turn(http))["status"] == "running"


@pytest.mark.parametrize("http", ["cancel"], indirect=True)
async def test_the_last_of_several_to_leave_stops_the_turn(
    http: aiohttp.ClientSession, model_server: ModelServer
) -> None:
    model_server.script = lambda _: Plan(deltas=("half", "x"), at={1: Hang()})
    asking = asyncio.ensure_future(
        http.post("/api/chat", json={"message": "hi", "session_id": "s"})
    )
    await model_server.wait_for_calls(1)
    other = await http.get(f"/api/turns/{(await the_turn(http))['id']}/events")
    await other.content.readuntil(b"half")
    asking.cancel()
    await asyncio.wait({asking})
    await asyncio.sleep(0.2)
    assert (await the_turn(http))["status"] == "running"
    other.close()
    async with asyncio.timeout(5):
        await model_server.wait_for_disconnects(1)


@pytest.mark.parametrize("http", ["continue"], indirect=True)
async def test_a_generation_that_nobody_waits_for_is_not_made(
    http: aiohttp.ClientSession, model_server: ModelServer
) -> None:
    model_server.script = lambda _: Plan(deltas=("half", "x"), at={1: Hang()})
    asking = asyncio.ensure_future(http.post("/generate", json=[]))
    await model_server.wait_for_calls(1)
    asking.cancel()
    async with asyncio.timeout(5):
        await model_server.wait_for_disconnects(1)
