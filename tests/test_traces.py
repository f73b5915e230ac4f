"""Traces, sent by the real exporter to a small collector."""

import asyncio
import builtins
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from rig.model_server import ModelServer, Plan
from rig.server import Server
from turnkeeper.errors import ConfigError
from turnkeeper.traces import open_traces

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


class Collector:
    """Takes spans. It has a `url`, and `spans` by name."""

    def __init__(self) -> None:
        self.url = ""
        self.spans: list[Any] = []
        self.raw = b""

    async def take(self, request: web.Request) -> web.Response:
        body = await request.read()
        self.raw += body
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            for scope in resource.scope_spans:
                self.spans += scope.spans
        return web.Response()


@pytest.fixture
async def collector() -> AsyncIterator[Collector]:
    collector = Collector()
    app = web.Application()
    app.router.add_post("/v1/traces", collector.take)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    collector.url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1/traces"
    yield collector
    await runner.cleanup()


def attributes(span: Any) -> dict[str, Any]:
    return {pair.key: pair.value.string_value or pair.value.int_value for pair in span.attributes}


async def stop(server: Server) -> None:
    """What is still to be sent is, so the collector must go on meanwhile."""
    assert await asyncio.to_thread(server.stop) == 0


async def test_a_turn_is_a_span_with_the_calls_of_models_inside(
    tmp_path: Path, model_server: ModelServer, collector: Collector
) -> None:
    model_server.script = lambda call: (
        Plan(status=503, body={}, headers={"retry-after": "0"}) if call.number == 1 else Plan()
    )
    env = {"OPENAI_BASE_URL": model_server.base_url, "OPENAI_API_KEY": "canarykey"}
    options = ("--model", "scripted", "--traces", collector.url)
    with Server(tmp_path, *options, env=env) as server:
        headers = {"traceparent": f"00-{TRACE}-{PARENT}-01"}
        async with (
            aiohttp.ClientSession(server.url) as http,
            http.post("/api/chat", json={"message": "canarywords"}, headers=headers) as answer,
        ):
            turn_id = answer.headers["Turn-Id"]
        await stop(server)
    [turn] = [span for span in collector.spans if span.name == "turn"]
    calls = [span for span in collector.spans if span.name == "chat scripted"]
    assert (turn.trace_id.hex(), turn.parent_span_id.hex()) == (TRACE, PARENT)
    assert attributes(turn)["turnkeeper.turn.id"] == turn_id
    assert attributes(turn)["gen_ai.usage.input_tokens"] == 7
    assert [event.name for event in turn.events] == ["started", "first delta"]
    assert len(calls) == 2
    for call in calls:
        assert (call.trace_id, call.parent_span_id) == (turn.trace_id, turn.span_id)
        assert turn.start_time_unix_nano <= call.start_time_unix_nano
        assert call.end_time_unix_nano <= turn.end_time_unix_nano
    outcomes = {attributes(call).get("error.type") for call in calls}
    assert outcomes == {"provider_failed", None}
    assert b"canary" not in collector.raw
    assert not any("traceparent" in call.headers for call in model_server.requests)


async def test_what_the_caller_does_not_sample_is_not_sent(
    tmp_path: Path, collector: Collector
) -> None:
    with Server(tmp_path, "--model", "eliza", "--traces", collector.url) as server:
        async with aiohttp.ClientSession(server.url) as http:
            for flags in ("00", "01"):
                headers = {"traceparent": f"00-{TRACE}-{PARENT}-{flags}"}
                async with http.post("/api/chat", json={"message": "Hi"}, headers=headers):
                    pass
        await stop(server)
    assert [span.name for span in collector.spans].count("turn") == 1


async def test_a_collector_that_is_not_there_holds_up_nobody(tmp_path: Path) -> None:
    options = ("--model", "eliza", "--traces", "http://127.0.0.1:9/v1/traces")
    with Server(tmp_path, *options) as server:
        async with (
            aiohttp.ClientSession(server.url) as http,
            http.post("/api/chat", json={"message": "Hi"}) as answer,
        ):
            assert answer.status == 200
        await stop(server)


def test_without_the_packages_it_is_said_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name.startswith("opentelemetry"):
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ConfigError, match=r"turnkeeper\[otel\]"), open_traces("http://x/"):
        pass
