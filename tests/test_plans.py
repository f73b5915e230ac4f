"""How the turns of a deployment are made: model, prompt, sampling, and what else it decides."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import pytest

from rig.model_server import BEFORE, Call, Hang, ModelServer, Plan, Wait
from turnkeeper import compose
from turnkeeper.blueprint import read_blueprint
from turnkeeper.config import read_config
from turnkeeper.contracts import BegunTurn, NewTurn
from turnkeeper.dialects.exchange import Parts
from turnkeeper.domain import ById, Sampling, TurnStatus
from turnkeeper.errors import ContextTooLong, InvalidRequest, SessionBusy, TurnEnded
from turnkeeper.reply import Reply
from turnkeeper.sessions import Said, SessionRequest

SPEAKERS: tuple[Literal["user", "assistant"], ...] = ("user", "assistant")
LARGER_BEHIND = {"model": "small", "fallback_models": ["big"]}


@asynccontextmanager
async def running(folder: Path, model: ModelServer, **settings: str) -> AsyncIterator[Parts]:
    """A server's parts with the models big, small and spare."""
    (folder / "t.toml").write_text(
        f"[providers.p]\nbase_url = '{model.base_url}'\n"
        "models = [{id='big'}, {id='small', context_window=1000}, {id='spare'}]\nattempts = 1\n"
    )
    options = {"config": f"{folder}/t.toml", "database": f"sqlite:///{folder}/t.db", **settings}
    async with compose.open_parts(read_config(options, {}, folder)) as parts:
        yield parts


@pytest.fixture
async def parts(tmp_path: Path, model_server: ModelServer) -> AsyncIterator[Parts]:
    async with running(tmp_path, model_server) as parts:
        yield parts


async def a_session(
    parts: Parts, variables: Mapping[str, str] = MappingProxyType({}), **blueprint: Any
) -> ById:
    """A session of a new deployment with this blueprint."""
    name = f"d{len(await parts.deployments.list())}"
    await parts.deployments.create(name, read_blueprint(blueprint))
    request = SessionRequest(deployment=name, variables=dict(variables))
    return ById((await parts.sessions.create("ann", request)).thing.id)


async def take(parts: Parts, session: ById, text: str = "hi", **more: Any) -> Reply:
    return (await parts.engine.take_turn("ann", session, text, **more)).reply


def asked(model: ModelServer) -> dict[str, Any]:
    """The body of the newest call, but for what every call says."""
    dull = ("stream", "stream_options")
    return {name: value for name, value in model.requests[-1].body.items() if name not in dull}


async def test_the_model_is_asked_as_the_deployment_says(
    parts: Parts, model_server: ModelServer
) -> None:
    session = await a_session(
        parts,
        {"name": "{Ann}", "extra": "1"},
        system_message="Teach { name }.",
        messages=[{"role": "user", "content": "{name}?"}, {"role": "assistant", "content": "Yes"}],
        model="small",
        temperature=0.5,
        top_p=1,
        max_tokens=100,
        stop=["END"],
    )
    await (await take(parts, session)).completed()
    assert asked(model_server) == {
        "model": "small",
        "messages": [
            {"role": "system", "content": "Teach {Ann}.\n\nextra: 1"},
            {"role": "user", "content": "{Ann}?"},
            {"role": "assistant", "content": "Yes"},
            {"role": "user", "content": "hi"},
        ],
        "temperature": 0.5,
        "top_p": 1.0,
        "max_tokens": 100,
        "stop": ["END"],
    }


async def test_what_a_request_says_goes_before_the_session_and_that_before_the_deployment(
    parts: Parts, model_server: ModelServer
) -> None:
    session = await a_session(parts, model="small", temperature=0.5, top_p=0.5)
    await (await take(parts, session, sampling=Sampling(temperature=0))).completed()
    body = asked(model_server)
    assert (body["model"], body["temperature"], body["top_p"]) == ("small", 0, 0.5)
    await (await take(parts, session, model="big")).completed()
    assert (asked(model_server)["model"], asked(model_server)["temperature"]) == ("big", 0.5)
    await (await take(parts, session)).completed()
    assert asked(model_server)["model"] == "big"


async def test_a_deployment_without_a_prompt_has_none(
    parts: Parts, model_server: ModelServer
) -> None:
    session = await a_session(parts, {"a": "b"}, unused_variables="ignore")
    await (await take(parts, session)).completed()
    assert asked(model_server)["messages"] == [{"role": "user", "content": "hi"}]


async def test_a_model_that_fails_is_followed_by_the_next(
    parts: Parts, model_server: ModelServer
) -> None:
    def script(call: Call) -> Plan:
        fails = call.body["model"] in ("big", "small")
        return Plan(status=500, body={}) if fails else Plan(deltas=("fine",))

    model_server.script = script
    session = await a_session(parts, fallback_models=["small", "spare"])
    reply = await take(parts, session)
    assert await reply.completed() == "fine"
    assert [request.body["model"] for request in model_server.requests] == ["big", "small", "spare"]
    stored = await parts.engine.follow_turn("ann", reply.turn.ref)
    assert (reply.turn.model, stored.turn.model) == ("spare", "spare")
    assert (await parts.sessions.get("ann", session)).model is None


async def test_a_reply_that_has_begun_is_not_begun_again_elsewhere(
    parts: Parts, model_server: ModelServer
) -> None:
    from rig.model_server import Cut

    model_server.script = lambda _: Plan(deltas=("half", "x"), at={1: Cut()})
    session = await a_session(parts, fallback_models=["small"])
    with pytest.raises(TurnEnded):
        await (await take(parts, session)).completed()
    assert model_server.calls == 1


async def test_a_larger_model_fallen_back_on_is_shown_whole_turns_and_says_what_was_dropped(
    parts: Parts, model_server: ModelServer
) -> None:
    name = (await parts.deployments.create("d", read_blueprint(LARGER_BEHIND))).thing.name
    said = [Said(role, f"{n}" + "x" * 150) for n in range(20) for role in SPEAKERS]
    request = SessionRequest(deployment=name, messages=tuple(said))
    session = ById((await parts.sessions.create("ann", request)).thing.id)
    model_server.script = lambda call: (
        Plan(status=500, body={}) if call.body["model"] == "small" else Plan()
    )
    reply = await take(parts, session)
    await reply.completed()
    messages, context = model_server.requests[-1].body["messages"], reply.turn.context
    assert model_server.requests[-1].body["model"] == "big"
    assert messages[0]["role"] == "user"
    assert context
    assert context.messages_dropped == 41 - len(messages) > 0


async def test_a_model_too_small_for_all_is_not_fallen_back_on_where_nothing_may_be_left_out(
    parts: Parts, model_server: ModelServer
) -> None:
    session = await a_session(parts, fallback_models=["small", "spare"], overflow="error")
    model_server.script = lambda _: Plan(deltas=("x" * 3000,))
    await (await take(parts, session)).completed()
    model_server.script = lambda call: (
        Plan(status=500, body={}) if call.body["model"] == "big" else Plan()
    )
    reply = await take(parts, session)
    await reply.completed()
    assert asked(model_server)["model"] == reply.turn.model == "spare"
    assert len(asked(model_server)["messages"]) == 3


async def test_of_models_that_all_fail_the_last_ones_fault_is_told(
    parts: Parts, model_server: ModelServer
) -> None:
    model_server.script = lambda _: Plan(status=500, body={})
    session = await a_session(parts, fallback_models=["small"])
    with pytest.raises(TurnEnded) as ended:
        await (await take(parts, session)).completed()
    assert ended.value.code == "provider_failed"


async def test_a_session_that_overflows_is_refused_where_the_deployment_says_so(
    parts: Parts, model_server: ModelServer
) -> None:
    session = await a_session(parts, model="small", overflow="error")
    model_server.script = lambda _: Plan(deltas=("x" * 1000,))
    for _ in range(2):
        await (await take(parts, session)).completed()
    with pytest.raises(ContextTooLong):
        await take(parts, session, "y" * 500)
    assert (await parts.sessions.get("ann", session)).message_count == 4
    await (await take(parts, session)).completed()
    assert len(asked(model_server)["messages"]) == 5


async def test_a_message_in_the_queue_overflows_when_its_turn_comes(
    parts: Parts, model_server: ModelServer
) -> None:
    gate = asyncio.Event()
    session = await a_session(parts, model="small", overflow="error")
    model_server.script = lambda _: Plan(deltas=("x" * 2000,), at={BEFORE: Wait(gate)})
    first, second = [await take(parts, session, text) for text in ("a", "b" * 500)]
    gate.set()
    await first.completed()
    with pytest.raises(TurnEnded) as ended:
        await second.completed()
    assert ended.value.code == "context_length_exceeded"


async def test_a_reply_is_left_the_room_that_its_request_allows_it(parts: Parts) -> None:
    session = await a_session(parts, model="small")
    await (await take(parts, session, "x" * 2000)).completed()
    with pytest.raises(ContextTooLong):
        await take(parts, session, "x" * 2000, sampling=Sampling(max_tokens=500))


async def test_a_window_of_the_deployments_own_is_kept_to(
    parts: Parts, model_server: ModelServer
) -> None:
    session = await a_session(parts, context_window=256)
    with pytest.raises(ContextTooLong):
        await take(parts, session, "x" * 700)
    await (await take(parts, session, "x" * 400)).completed()


async def test_a_second_message_is_refused_or_interrupts(
    parts: Parts, model_server: ModelServer
) -> None:
    model_server.script = lambda call: (
        Plan(deltas=("half", "x"), at={1: Hang()})
        if "stay" in str(call.body["messages"][-1])
        else Plan()
    )
    rejecting = await a_session(parts, concurrency="reject")
    first = await take(parts, rejecting, "stay")
    with pytest.raises(SessionBusy) as refused:
        await take(parts, rejecting, "b")
    assert refused.value.turn_id == first.turn.ref.id
    interrupting = await a_session(parts, concurrency="interrupt")
    running = await take(parts, interrupting, "stay")
    follower = running.follow(0)
    await follower.next()
    second = await take(parts, interrupting, "b")
    ended = await running.wait()
    assert (ended.turn.status, ended.text) == (TurnStatus.CANCELLED, "half")
    assert await second.completed() != ""
    shown = [m["content"] for m in asked(model_server)["messages"]]
    assert shown == ["stay", "half", "b"]
    await parts.engine.cancel_turn("ann", first.turn.ref)


async def test_a_turn_is_interrupted_though_its_beginning_is_heard_of_last(
    parts: Parts, model_server: ModelServer
) -> None:
    session, engine, told = await a_session(parts, concurrency="interrupt"), parts.engine, []
    begin_turn, later = engine._store.begin_turn, asyncio.Event()  # as PostgreSQL may answer

    async def begin(new: NewTurn) -> BegunTurn:
        begun = await begin_turn(new)
        told.append(begun)
        if len(told) == 1:
            await later.wait()
        return begun

    engine._store.begin_turn = begin  # type: ignore[method-assign]
    model_server.script = lambda _: Plan(at={BEFORE: Hang()})
    first = asyncio.ensure_future(take(parts, session, "first"))
    while not told:
        await asyncio.sleep(0.01)
    second = await take(parts, session, "second")
    later.set()
    async with asyncio.timeout(5):
        assert (await (await first).wait()).turn.status is TurnStatus.CANCELLED
        await model_server.wait_for_calls(1)
    assert second.ended is None


async def test_a_turn_is_cancelled_when_the_last_who_wants_it_goes(
    parts: Parts, model_server: ModelServer
) -> None:
    model_server.script = lambda _: Plan(deltas=("half", "x"), at={1: Hang()})
    session = await a_session(parts, on_disconnect="cancel")
    reply = await take(parts, session)
    one, other = reply.follow(), reply.follow()
    waiting = asyncio.ensure_future(reply.completed())
    await model_server.wait_for_calls(1)
    one.close()
    waiting.cancel()
    await asyncio.wait({waiting})
    assert reply.ended is None
    other.close()
    await model_server.wait_for_disconnects(1)
    stored = await parts.engine.follow_turn("ann", reply.turn.ref)
    assert (await stored.wait()).turn.status is TurnStatus.CANCELLED


async def test_one_reply_is_generated_and_nothing_kept(
    parts: Parts, model_server: ModelServer
) -> None:
    await parts.deployments.create("g", read_blueprint({"system_message": "Praise {town}."}))
    text = await parts.engine.generate("ann", "g", {"town": "Kyiv", "year": "1"})
    said = [{"role": "user", "content": "Praise Kyiv.\n\nyear: 1"}]
    assert asked(model_server)["messages"] == said
    assert text == "You said: Praise Kyiv.\n\nyear: 1"
    assert await parts.sessions.list_all("ann") == []
    await parts.deployments.create("empty", read_blueprint({}))
    with pytest.raises(InvalidRequest):
        await parts.engine.generate("ann", "empty", {})


async def test_a_generation_does_not_hold_up_the_end(
    tmp_path: Path, model_server: ModelServer
) -> None:
    from turnkeeper.errors import ServerStopping

    model_server.script = lambda _: Plan(at={BEFORE: Hang()})
    async with running(tmp_path, model_server) as parts:
        generating = asyncio.ensure_future(parts.engine.generate("ann", "default", {}))
        await model_server.wait_for_calls(1)
    with pytest.raises(ServerStopping):
        await generating
    await model_server.wait_for_disconnects(1)


async def test_a_pinned_model_that_is_gone_is_passed_over(
    tmp_path: Path, model_server: ModelServer
) -> None:
    async with running(tmp_path, model_server) as parts:
        alone = await a_session(parts, model="spare")
        with_other = await a_session(parts, model="spare", fallback_models=["small"])
    table = f"[providers.p]\nbase_url = '{model_server.base_url}'\nmodels = ['big', 'small']\n"
    (tmp_path / "later.toml").write_text(table)
    options = {"config": f"{tmp_path}/later.toml", "database": f"sqlite:///{tmp_path}/t.db"}
    async with compose.open_parts(read_config(options, {}, tmp_path)) as parts:
        assert (await take(parts, alone)).turn.model == "big"
        assert (await take(parts, with_other)).turn.model == "small"


async def test_a_prompt_that_fills_the_window_is_told_at_once(
    parts: Parts, model_server: ModelServer
) -> None:
    large = read_blueprint({"system_message": "x" * 4000, "model": "small"})
    with pytest.raises(ContextTooLong):
        await parts.deployments.create("large", large)
    with pytest.raises(ContextTooLong):
        await a_session(parts, {"v": "x" * 4000}, system_message="{v}", model="small")
    with pytest.raises(InvalidRequest, match="Unknown model"):
        await parts.deployments.create("wrong", read_blueprint({"model": "none"}))


async def test_answers_made_anew_are_asked_like_the_first(
    parts: Parts, model_server: ModelServer
) -> None:
    session = await a_session(parts, system_message="Be kind.")
    first = await take(parts, session, "hello")
    await first.completed()
    again = (await parts.engine.answer_anew("ann", session, model="spare")).reply
    await again.completed()
    body = asked(model_server)
    assert (body["model"], [m["content"] for m in body["messages"]]) == (
        "spare",
        ["Be kind.", "hello"],
    )
    page = await parts.sessions.page_messages("ann", session)
    assert [m.status for m in page.messages] == ["completed", "completed"]
