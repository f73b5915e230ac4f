"""A provider in trouble, as turns see it: waiting, other models, models that rest."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from rig.model_server import BEFORE, Call, Hang, ModelServer, Plan, Wait
from turnkeeper import compose
from turnkeeper.config import read_config
from turnkeeper.domain import Failure, TurnStatus
from turnkeeper.engine import Engine
from turnkeeper.reply import Reply

FAILS = Plan(status=500, body={})


@asynccontextmanager
async def running(
    folder: Path, model: ModelServer, *fallbacks: str, attempts: int = 3, patience: float = 30
) -> AsyncIterator[Engine]:
    (folder / "t.toml").write_text(
        f"[providers.p]\nbase_url = '{model.base_url}'\nmodels = ['big', 'small']\n"
        f"attempts = {attempts}\nfirst_byte_timeout = {patience}\n"
        f"[deployments.default]\nfallback_models = {list(fallbacks)}\n"
    )
    options = {"config": f"{folder}/t.toml", "database": f"sqlite:///{folder}/t.db"}
    async with compose.open_parts(read_config(options, {}, folder)) as parts:
        yield parts.engine


async def ended(engine: Engine) -> Reply:
    reply = (await engine.take_turn("ann", None, "hi")).reply
    await reply.wait()
    return reply


async def failure_of(engine: Engine) -> Failure:
    reply = await ended(engine)
    assert reply.turn.status is TurnStatus.FAILED
    assert reply.turn.failure is not None
    return reply.turn.failure


def asked(model: ModelServer) -> list[str]:
    return [call.body["model"] for call in model.requests]


def limited(headers: dict[str, str], status: int = 429) -> Plan:
    return Plan(status=status, body={}, headers=headers)


def pauses(caplog: pytest.LogCaptureFixture) -> list[float]:
    """How long each pause before another call was, as the log has it."""
    said: list[Any] = [r for r in caplog.records if r.msg.startswith("Calling the model again")]
    return [record.args[0] for record in said]


# --- Waiting -----------------------------------------------------------------------------------


async def test_pauses_double_and_are_spread(
    tmp_path: Path, model_server: ModelServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    model_server.script = lambda _: FAILS
    async with running(tmp_path, model_server) as engine:
        await failure_of(engine)
    first, second = pauses(caplog)
    assert 0.25 <= first <= 0.75
    assert 0.5 <= second <= 1.5


@pytest.mark.parametrize("status", [429, 503])
async def test_a_retry_after_is_the_least_that_is_waited(
    tmp_path: Path, model_server: ModelServer, caplog: pytest.LogCaptureFixture, status: int
) -> None:
    caplog.set_level(logging.INFO)
    plan = limited({"retry-after-ms": "40"}, status)
    model_server.script = lambda _: plan
    async with running(tmp_path, model_server) as engine:
        await failure_of(engine)
    assert model_server.calls == 3
    assert all(0.04 <= pause <= 0.05 for pause in pauses(caplog))


async def test_turns_that_were_told_the_same_do_not_come_back_together(
    tmp_path: Path, model_server: ModelServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    plan = limited({"retry-after-ms": "40"}, 503)
    model_server.script = lambda call: plan if call.number <= 4 else Plan()
    async with running(tmp_path, model_server) as engine:
        await asyncio.gather(*(ended(engine) for _ in range(4)))
    assert len(set(pauses(caplog))) == 4


@pytest.mark.parametrize("headers", [{"retry-after": "0"}, {"retry-after": "soon"}, {}])
async def test_without_a_wait_that_is_one_our_own_pause_is_made(
    tmp_path: Path,
    model_server: ModelServer,
    caplog: pytest.LogCaptureFixture,
    headers: dict[str, str],
) -> None:
    caplog.set_level(logging.INFO)
    model_server.script = lambda call: limited(headers) if call.number == 1 else Plan()
    async with running(tmp_path, model_server) as engine:
        assert (await ended(engine)).text == "Hello there"
    [pause] = pauses(caplog)
    assert 0.25 <= pause <= 0.75


@pytest.mark.parametrize("status", [429, 503])
async def test_a_wait_that_is_too_long_is_passed_on_at_once(
    tmp_path: Path, model_server: ModelServer, status: int
) -> None:
    model_server.script = lambda _: limited({"retry-after": "11"}, status)
    async with running(tmp_path, model_server) as engine:
        failure = await failure_of(engine)
    assert model_server.calls == 1
    assert failure.retry_after == 11


async def test_where_there_is_another_model_it_is_asked_in_place_of_a_long_wait(
    tmp_path: Path, model_server: ModelServer
) -> None:
    wait = limited({"retry-after": "Fri, 31 Dec 9999 23:59:59 GMT"})
    model_server.script = lambda call: wait if call.body["model"] == "big" else Plan()
    async with running(tmp_path, model_server, "small") as engine:
        assert (await ended(engine)).turn.model == "small"
        assert asked(model_server) == ["big", "small"]
        # What one turn was told holds for the next.
        assert (await ended(engine)).turn.model == "small"
        assert asked(model_server) == ["big", "small", "small"]


async def test_a_long_limit_is_told_to_later_turns_without_another_call(
    tmp_path: Path, model_server: ModelServer
) -> None:
    model_server.script = lambda _: limited({"retry-after": "3600"})
    async with running(tmp_path, model_server) as engine:
        first, second = await failure_of(engine), await failure_of(engine)
    assert model_server.calls == 1
    assert first.code == second.code == "provider_rate_limited"
    assert first.retry_after == 3600
    assert second.retry_after is not None
    assert 30 < second.retry_after <= 60


async def test_during_a_short_limit_turns_wait_and_are_made(
    tmp_path: Path, model_server: ModelServer
) -> None:
    wait = limited({"retry-after-ms": "300"})
    model_server.script = lambda call: wait if call.number == 1 else Plan()
    async with running(tmp_path, model_server) as engine:
        first = (await engine.take_turn("ann", None, "hi")).reply
        await model_server.wait_for_calls(1)
        replies = await asyncio.gather(*(ended(engine) for _ in range(20)))
        await first.completed()
    assert {reply.text for reply in replies} == {"Hello there"}
    assert model_server.calls <= 1 + 1 + 20


# --- Resting -----------------------------------------------------------------------------------


async def test_a_model_that_keeps_failing_is_not_asked_any_more(
    tmp_path: Path, model_server: ModelServer
) -> None:
    model_server.script = lambda _: FAILS
    async with running(tmp_path, model_server, attempts=1) as engine:
        codes = [(await failure_of(engine)).code for _ in range(7)]
        assert codes == ["provider_failed"] * 5 + ["provider_resting"] * 2
        assert model_server.calls == 5
        failure = await failure_of(engine)
        assert failure.retry_after is not None
        assert 0 < failure.retry_after <= 12.5


async def test_a_turn_that_finds_the_model_resting_says_what_it_saw_itself(
    tmp_path: Path, model_server: ModelServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    gate = asyncio.Event()
    model_server.script = lambda _: Plan(status=500, body={}, at={BEFORE: Wait(gate)})
    async with running(tmp_path, model_server) as engine:
        ending = [asyncio.ensure_future(failure_of(engine)) for _ in range(20)]
        await model_server.wait_for_calls(20)
        gate.set()
        codes = [(await failure).code for failure in ending]
    assert sorted(codes) == ["provider_failed"] * 16 + ["provider_resting"] * 4
    assert model_server.calls == 20
    assert len(pauses(caplog)) == 4  # of those that failed before it was too often


async def test_turns_go_on_with_another_model_of_the_same_provider(
    tmp_path: Path, model_server: ModelServer, caplog: pytest.LogCaptureFixture
) -> None:
    def script(call: Call) -> Plan:
        return Plan(at={BEFORE: Hang()}) if call.body["model"] == "big" else Plan()

    model_server.script = script
    async with running(tmp_path, model_server, "small", attempts=1, patience=0.5) as engine:
        for _ in range(10):
            assert (await ended(engine)).turn.model == "small"
    assert asked(model_server).count("big") == 5
    warnings = [record for record in caplog.records if record.levelname == "WARNING"]
    assert len(warnings) == 5 + 1  # a line for each call that failed, and one for the rest


async def test_cancelled_turns_are_no_failures(tmp_path: Path, model_server: ModelServer) -> None:
    model_server.script = lambda _: Plan(deltas=("half", "x"), at={1: Hang()})
    async with running(tmp_path, model_server) as engine:
        for number in range(1, 11):
            reply = (await engine.take_turn("ann", None, "hi")).reply
            await model_server.wait_for_calls(number)
            await engine.cancel_turn("ann", reply.turn.ref)
        model_server.script = lambda _: Plan()
        assert (await ended(engine)).turn.status is TurnStatus.COMPLETED


@pytest.mark.parametrize("status", [400, 401, 404])
async def test_calls_that_are_refused_are_no_failures(
    tmp_path: Path, model_server: ModelServer, status: int
) -> None:
    model_server.script = lambda _: Plan(status=status, body={})
    async with running(tmp_path, model_server) as engine:
        assert {(await failure_of(engine)).code for _ in range(10)} == {"provider_refused"}
    assert model_server.calls == 10


async def test_a_prompt_too_long_is_asked_once_and_is_no_failure_of_the_provider(
    tmp_path: Path, model_server: ModelServer
) -> None:
    body = {"error": {"message": "prompt is too long: 210 tokens > 200 maximum"}}
    model_server.script = lambda _: Plan(status=400, body=body)
    async with running(tmp_path, model_server) as engine:
        assert {(await failure_of(engine)).code for _ in range(10)} == {"context_length_exceeded"}
