"""`GET /api/usage`, asked of a real server."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from rig.model_server import ModelServer, Plan
from rig.server import Server
from tests.test_access import turnkeeper

TODAY = datetime.now(UTC).date().isoformat()


@pytest.fixture
async def http(tmp_path: Path, model_server: ModelServer) -> AsyncIterator[aiohttp.ClientSession]:
    env = {"OPENAI_BASE_URL": model_server.base_url, "OPENAI_API_KEY": "k"}
    options = ("--model", "scripted", "--attempts", "1")
    with Server(tmp_path, *options, env=env) as server:
        async with aiohttp.ClientSession(server.url) as http:
            yield http


async def say(http: aiohttp.ClientSession, **headers: str) -> str:
    async with http.post("/api/chat", json={"message": "Hi"}, headers=headers) as answer:
        return answer.headers["Session-Id"]


async def usage(http: aiohttp.ClientSession, query: str = "", **headers: str) -> Any:
    async with http.get(f"/api/usage{query}", headers=headers) as answer:
        assert answer.status == 200, await answer.text()
        return await answer.json()


async def test_usage_is_told_at_once_and_outlives_the_session(
    http: aiohttp.ClientSession, model_server: ModelServer
) -> None:
    session = await say(http)
    model_server.script = lambda _: Plan(status=500, body={})
    await say(http)
    async with http.delete(f"/api/chat-sessions/{session}") as answer:
        assert answer.status == 204
    told = await usage(http)
    assert (told["by"], told["to"]) == ("day", TODAY)
    [line] = told["usage"]
    assert line["day"] == TODAY
    assert line["turns"] == {"completed": 1, "failed": 1, "cancelled": 0, "interrupted": 0}
    assert line["tokens"] == {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}
    for times in (line["response_time"], line["time_to_first_token"]):
        assert set(times) == {"mean_ms", "p50_ms", "p95_ms", "p99_ms"}
    assert line["time_to_first_token"]["mean_ms"] <= line["response_time"]["mean_ms"]
    [model] = (await usage(http, "?by=model"))["usage"]
    assert (model["model"], model["turns"]["completed"]) == ("scripted", 1)
    assert "requests" not in model


async def test_requests_are_told_once_they_are_kept(tmp_path: Path) -> None:
    """At the latest when the server stops."""
    with Server(tmp_path, "--model", "eliza") as server:
        async with aiohttp.ClientSession(server.url) as http:
            for _ in range(3):
                await say(http)
        server.stop()
        server.start()
        async with aiohttp.ClientSession(server.url) as http:
            assert (await usage(http))["total"]["requests"] == 3


async def test_end_users_see_their_own_and_the_application_all(
    http: aiohttp.ClientSession,
) -> None:
    for name in ("kim", "kim", "lee"):
        await say(http, **{"X-End-User": name})
    told = await usage(http, "?by=end_user&user=local")
    assert [(line["end_user"], line["turns"]["completed"]) for line in told["usage"]] == [
        ("kim", 2),
        ("lee", 1),
    ]
    told = await usage(http, "?user=local", **{"X-End-User": "lee"})
    assert told["total"]["turns"]["completed"] == 1
    assert (await usage(http, "?end_user=kim"))["total"]["turns"]["completed"] == 2


async def test_users_see_their_own_and_admins_everybodys(tmp_path: Path) -> None:
    admin, key = "a" * 40, ""
    turnkeeper(tmp_path, "users", "create", "ann", "--no-password")
    key = turnkeeper(tmp_path, "keys", "create", "ann").split()[-1]
    env = {"TURNKEEPER_ADMIN_KEY": admin}
    with Server(tmp_path, "--model", "eliza", "--auth", "keys", env=env) as server:
        async with aiohttp.ClientSession(server.url) as http:
            await say(http, **{"X-API-Key": key})
            await say(http, **{"X-API-Key": admin})
            for query in ("", "?user=admin", "?by=user"):
                told = await usage(http, query, **{"X-API-Key": key})
                assert told["total"]["turns"]["completed"] == 1
            told = await usage(http, "?by=user", **{"X-API-Key": admin})
            assert [line["user"] for line in told["usage"]] == ["admin", "ann"]
            told = await usage(http, "?user=ann&by=user", **{"X-API-Key": admin})
            assert [line["user"] for line in told["usage"]] == ["ann"]


@pytest.mark.parametrize(
    ("query", "sentence"),
    [
        ("by=hour", "by must be one of day, model, user, deployment, end_user"),
        ("from=2026-02-30", "from must be a day, as 2026-01-31"),
        ("to=yesterday", "to must be a day, as 2026-01-31"),
        ("from=2026-02-03&to=2026-02-02", "from must not be later than to"),
        ("from=0001-01-01&to=9999-12-31", "from and to must not be more than 3660 days apart"),
        ("by=end_user", "by=end_user needs a user"),
        ("since=2026-02-03", "Unknown parameter: since"),
    ],
)
async def test_what_cannot_be_understood_is_refused(
    server_url: str, query: str, sentence: str
) -> None:
    async with (
        aiohttp.ClientSession(server_url) as http,
        http.get(f"/api/usage?{query}") as answer,
    ):
        assert answer.status == 400
        assert await answer.json() == {"error": sentence, "code": "invalid_request"}
