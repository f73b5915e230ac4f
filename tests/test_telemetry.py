"""What a real server tells of itself: metrics, as Prometheus reads them."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest
from prometheus_client.parser import text_string_to_metric_families

from rig.model_server import Hang, ModelServer, Plan
from rig.server import Server
from tests.test_access import turnkeeper

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


@pytest.fixture
async def http(tmp_path: Path, model_server: ModelServer) -> AsyncIterator[aiohttp.ClientSession]:
    env = {"OPENAI_BASE_URL": model_server.base_url, "OPENAI_API_KEY": "k"}
    with Server(tmp_path, "--model", "scripted", "--attempts", "2", env=env) as server:
        async with aiohttp.ClientSession(server.url) as http:
            yield http


async def scrape(http: aiohttp.ClientSession, **headers: str) -> Samples:
    async with http.get("/metrics", headers=headers) as answer:
        assert answer.status == 200
        assert answer.headers["Content-Type"].startswith("text/plain; version=0.0.4")
        text = await answer.text()
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def value(samples: Samples, name: str, **labels: str) -> float:
    return samples.get((f"turnkeeper_{name}", frozenset(labels.items())), 0)


async def say(http: aiohttp.ClientSession, **more: object) -> str:
    async with http.post("/api/chat", json={"message": "Hi", **more}) as answer:
        await answer.read()
        return answer.headers.get("Turn-Id", "")


async def test_requests_turns_calls_tokens_and_commits_are_counted(
    http: aiohttp.ClientSession, model_server: ModelServer
) -> None:
    for _ in range(3):
        turn = await say(http)
    for path in (f"/api/turns/{turn}", "/api/turns/t1", "/nothing/here", "/nor/here"):
        async with http.get(path):
            pass
    model_server.script = lambda _: Plan(status=503, body={})
    await say(http)
    found = await scrape(http)
    chat = {"route": "/api/chat", "method": "POST"}
    assert value(found, "requests_total", **chat, status="200") == 3
    assert value(found, "requests_total", **chat, status="502") == 1
    turns = {"route": "/api/turns/{turn_id}", "method": "GET"}
    assert value(found, "requests_total", **turns, status="200") == 1
    assert value(found, "requests_total", **turns, status="404") == 1
    assert value(found, "requests_total", route="none", method="GET", status="404") == 2
    assert value(found, "request_seconds_count", route="/api/chat") == 4
    assert value(found, "turns_total", state="completed", model="scripted") == 3
    assert value(found, "turns_total", state="failed", model="scripted") == 1
    assert value(found, "turn_seconds_count", model="scripted") == 4
    assert value(found, "first_delta_seconds_count", model="scripted") == 3
    assert value(found, "tokens_total", model="scripted", kind="prompt") == 21
    assert value(found, "tokens_total", model="scripted", kind="completion") == 9
    assert value(found, "provider_calls_total", provider="server", outcome="ok") == 3
    failed = value(found, "provider_calls_total", provider="server", outcome="provider_failed")
    assert failed == 2
    assert value(found, "provider_retries_total", provider="server") == 1
    assert value(found, "model_rests", provider="server", model="scripted") == 0
    assert value(found, "commit_transactions_sum") >= 8
    assert value(found, "commit_seconds_bucket", le="+Inf") >= 2
    assert ("process_resident_memory_bytes", frozenset()) in found


async def test_what_goes_on_now_is_told(
    http: aiohttp.ClientSession, model_server: ModelServer
) -> None:
    model_server.script = lambda _: Plan(at={1: Hang()})
    ask = {"message": "Hi", "session_id": "mine", "stream": True}
    async with http.post("/api/chat", json=ask) as first:
        await first.content.readline()
        async with http.post("/api/chat", json=ask) as second:
            found = await scrape(http)
            assert value(found, "running_turns") == 1
            assert value(found, "queued_turns") == 1
            assert value(found, "open_streams") == 2
            second.close()
        first.close()
    async with asyncio.timeout(10):
        while value(await scrape(http), "open_streams"):
            await asyncio.sleep(0.02)


async def test_labels_are_bounded_whatever_is_asked(http: aiohttp.ClientSession) -> None:
    before = await scrape(http)
    for number in range(20):
        async with http.request(f"X{number}", f"/api/x{number}"):
            pass
        async with http.post("/api/chat", json={"message": "Hi", "model": f"m{number}"}):
            pass
    after = await scrape(http)
    names = {dict(labels).get("route", "") for _, labels in after.keys() - before.keys()}
    assert names <= {"none", "/api/chat", "/metrics", ""}
    assert not any("m1" in str(labels) for _, labels in after)


async def test_only_admins_see_metrics_where_credentials_are_asked_for(tmp_path: Path) -> None:
    turnkeeper(tmp_path, "users", "create", "ann", "--no-password")
    key = turnkeeper(tmp_path, "keys", "create", "ann").split()[-1]
    admin = "a" * 40
    env = {"TURNKEEPER_ADMIN_KEY": admin}
    with Server(tmp_path, "--model", "eliza", "--auth", "keys", env=env) as server:
        async with aiohttp.ClientSession(server.url) as http:
            for headers, status in (({}, 401), ({"X-API-Key": key}, 404)):
                async with http.get("/metrics", headers=headers) as answer:
                    assert answer.status == status
            assert await scrape(http, **{"X-API-Key": admin})
