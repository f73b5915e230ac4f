"""Every way a turn can go, through a real store and a real model over HTTP."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from rig.model_server import BEFORE, Cut, Hang, ModelServer, Plan, Reset, Wait
from turnkeeper import compose
from turnkeeper.config import Config, read_config
from turnkeeper.domain import TurnStatus, choose_session, parse_turn_id
from turnkeeper.engine import Engine
from turnkeeper.errors import (
    BlankMessage,
    ContextTooLong,
    InvalidRequest,
    MessageTooLong,
    QueueFull,
    ServerStopping,
    SessionNotFound,
    TurnEnded,
    TurnkeeperError,
    TurnNotFound,
    UnknownModel,
)
from turnkeeper.events import Ended, Grew, ReplyEvent, Started
from turnkeeper.lives import _SHARES
from turnkeeper.reply import Reply

WORDS = ("Once ", "upon ", "a ", "time")


def configured(folder: Path, model: ModelServer, **options: str) -> Config:
    environment = {"OPENAI_BASE_URL": model.base_url, "TURNKEEPER_MODEL": "scripted"}
    database = {"database": f"sqlite:///{folder}/engine.db"}
    return read_config({**database, **options}, environment, folder)


@asynccontextmanager
async def running(folder: Path, model: ModelServer, **options: str) -> AsyncIterator[Engine]:
    async with compose.open_parts(configured(folder, model, **options)) as parts:
        yield parts.engine


@pytest.fixture
async def engine(tmp_path: Path, model_server: ModelServer) -> AsyncIterator[Engine]:
    async with running(tmp_path, model_server) as engine:
        yield engine


async def take(engine: Engine, session: str | None, text: str, model: str | None = None) -> Reply:
    choice = choose_session(session) if session else None
    return (await engine.take_turn("ann", choice, text, model=model)).reply


async def counts(engine: Engine) -> list[int]:
    """How many messages each of the sessions holds."""
    return [session.message_count for session in await engine._store.list_sessions("ann")]


async def ask(engine: Engine, text: str, session: str | None = "s") -> str:
    return await (await take(engine, session, text)).completed()


async def heard(reply: Reply, after: int | None = None) -> list[ReplyEvent]:
    """Everything a follower is told until the end."""
    follower, events = reply.follow(after), list[ReplyEvent]()
    while not follower.finished:
        events += await follower.next()
    follower.close()
    return events


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0)


def tick_through(engine: Engine) -> None:
    """As often as it takes until every reply has had its turn for a checkpoint."""
    for _ in range(_SHARES):
        engine._lives._tick()


def shown(model: ModelServer) -> list[str]:
    """What the model was shown last, the system message left out."""
    return [message["content"] for message in model.requests[-1].body["messages"][1:]]


# --- Finished ----------------------------------------------------------------------------------


async def test_a_turn_is_finished_stored_and_remembered(
    engine: Engine, model_server: ModelServer
) -> None:
    assert await ask(engine, "hello") == "You said: hello"
    assert await ask(engine, "and?") == "You said: and?"
    assert shown(model_server) == ["hello", "You said: hello", "and?"]
    assert await counts(engine) == [4]


async def test_the_first_message_is_the_deployments_system_message(
    engine: Engine, model_server: ModelServer
) -> None:
    await ask(engine, "hello")
    assert model_server.requests[0].body["messages"][0] == {
        "role": "system",
        "content": "You are a helpful AI assistant.",
    }


async def test_a_follower_hears_it_start_grow_and_end(
    engine: Engine, model_server: ModelServer
) -> None:
    gate = asyncio.Event()
    model_server.script = lambda _: Plan(deltas=WORDS, at={2: Wait(gate)})
    reply = await take(engine, None, "tell me")
    hearing = asyncio.ensure_future(heard(reply))
    await until(lambda: reply.length == len("Once upon "))
    gate.set()
    started, *grew, ended = await hearing
    assert isinstance(started, Started)
    assert isinstance(ended, Ended)
    assert "".join(event.text for event in grew if isinstance(event, Grew)) == "".join(WORDS)
    assert ended.turn.status is TurnStatus.COMPLETED
    assert ended.turn.usage is not None
    assert ended.turn.usage.total_tokens == 11


async def test_the_end_is_told_only_once_it_is_stored(
    engine: Engine, model_server: ModelServer
) -> None:
    reply = await take(engine, None, "x")
    await reply.wait()
    stored = await engine._store.get_turn("ann", reply.turn.ref)
    assert stored.turn == reply.turn
    assert stored.text == reply.text


async def test_usage_that_the_provider_does_not_count_is_estimated_and_marked(
    engine: Engine, model_server: ModelServer
) -> None:
    model_server.script = lambda _: Plan(deltas=WORDS, usage="none")
    reply = await take(engine, None, "x")
    usage = (await reply.wait()).turn.usage
    assert usage is not None
    assert usage.estimated
    assert usage.completion_tokens > 0


# --- Failed ------------------------------------------------------------------------------------


async def test_a_provider_that_fails_once_is_asked_again(
    tmp_path: Path, model_server: ModelServer
) -> None:
    def script(call: Any) -> Plan:
        return Plan(status=503, body={"error": {"message": "busy"}}) if call.number < 3 else Plan()

    model_server.script = script
    async with running(tmp_path, model_server) as engine:
        engine._maker._policy = _impatient(engine)
        assert await ask(engine, "x") == "Hello there"
    assert model_server.calls == 3


def _impatient(engine: Engine) -> Any:
    import msgspec

    return msgspec.structs.replace(engine._maker._policy, retry_delay=0.001)


async def test_after_the_first_word_nothing_is_asked_again(
    engine: Engine, model_server: ModelServer
) -> None:
    model_server.script = lambda _: Plan(deltas=WORDS, at={2: Reset()})
    reply = await take(engine, "s", "x")
    with pytest.raises(TurnEnded) as ending:
        await reply.completed()
    assert ending.value.code == "provider_cut_off"
    assert model_server.calls == 1
    assert reply.text == "Once upon "
    model_server.script = lambda _: Plan()
    await ask(engine, "again")
    assert shown(model_server) == ["again"]  # what failed is in no later prompt


@pytest.mark.parametrize(
    ("plan", "code", "calls"),
    [
        (Plan(status=401, body={"error": {"message": "who?"}}), "provider_refused", 1),
        (Plan(status=500, body=b"oops"), "provider_failed", 3),
        (Plan(deltas=()), "provider_empty_reply", 3),
        (Plan(at={BEFORE: Cut()}), "provider_cut_off", 3),
        (Plan(status=429, body=b"{}", headers={"retry-after": "99"}), "provider_rate_limited", 1),
    ],
)
async def test_failures_before_a_word(
    engine: Engine, model_server: ModelServer, plan: Plan, code: str, calls: int
) -> None:
    engine._maker._policy = _impatient(engine)
    model_server.script = lambda _: plan
    reply = await take(engine, "s", "x")
    ended = await reply.wait()
    assert ended.turn.status is TurnStatus.FAILED
    assert ended.turn.failure is not None
    assert ended.turn.failure.code in (code, "provider_unreachable")
    assert model_server.calls in (calls, calls * 2)
    assert await counts(engine) == [1]


async def test_a_retry_after_is_obeyed(engine: Engine, model_server: ModelServer) -> None:
    def script(call: Any) -> Plan:
        limited = Plan(status=429, body=b"{}", headers={"retry-after": "1"})
        return limited if call.number == 1 else Plan()

    model_server.script = script
    loop = asyncio.get_running_loop()
    before = loop.time()
    await ask(engine, "x")
    assert loop.time() - before >= 1


# --- Refused before anything is stored -----------------------------------------------------------


@pytest.mark.parametrize(
    ("message", "session", "model", "error"),
    [
        ("", "s", None, BlankMessage),
        (" \n\t\u2003", "s", None, BlankMessage),
        ("x" * 100_001, "s", None, MessageTooLong),
        ("a\x00b", "s", None, InvalidRequest),
        ("a\ud800b", "s", None, InvalidRequest),
        ("hi", "s", "gpt-99", UnknownModel),
        ("hi", "a b", None, InvalidRequest),
        ("hi", "x" * 129, None, InvalidRequest),
        ("hi", "é", None, InvalidRequest),
        ("hi", "s" + "0" * 26, None, SessionNotFound),
        ("漢" * 32_000, "s", None, ContextTooLong),
    ],
)
async def test_what_is_refused_leaves_nothing(
    engine: Engine,
    model_server: ModelServer,
    message: str,
    session: str,
    model: str | None,
    error: type[TurnkeeperError],
) -> None:
    with pytest.raises(error):
        await take(engine, session, message, model)
    assert await counts(engine) == []
    assert model_server.calls == 0


# --- The client goes, the turn stays -------------------------------------------------------------


async def test_a_client_gone_before_the_start_still_gets_its_turn(
    engine: Engine, model_server: ModelServer
) -> None:
    leaving = asyncio.ensure_future(take(engine, "s", "x"))
    await asyncio.sleep(0)
    leaving.cancel()
    await model_server.wait_for_calls(1)
    await ask(engine, "y")
    assert shown(model_server) == ["x", "You said: x", "y"]


@pytest.mark.parametrize("place", [1, 3])
async def test_a_follower_gone_at_the_first_word_or_later_changes_nothing(
    engine: Engine, model_server: ModelServer, place: int
) -> None:
    gate = asyncio.Event()
    model_server.script = lambda _: Plan(deltas=WORDS, at={place: Wait(gate)})
    reply = await take(engine, None, "x")
    follower = reply.follow()
    while reply.length < sum(map(len, WORDS[:place])):
        await follower.next()
    follower.close()
    gate.set()
    assert await reply.completed() == "".join(WORDS)


# --- Resuming ----------------------------------------------------------------------------------


async def test_a_reply_is_resumable_from_every_character_live_and_finished(
    engine: Engine, model_server: ModelServer
) -> None:
    words = ("Grüße, ", "🙂🙂 ", "", "漢字\n", "end")
    whole = "".join(words)
    gate = asyncio.Event()
    model_server.script = lambda _: Plan(deltas=words, at={2: Wait(gate)})
    reply = await take(engine, None, "x")
    await until(lambda: reply.length == len("Grüße, 🙂🙂 "))
    live = [asyncio.ensure_future(heard(reply, n)) for n in range(len(whole) + 1)]
    await asyncio.sleep(0)
    gate.set()
    await reply.wait()
    ref = parse_turn_id(reply.turn.ref.id)
    assert ref is not None
    stored = await engine.follow_turn("ann", ref)
    for n in range(len(whole) + 1):
        for events in (await live[n], await heard(stored, n)):
            assert "".join(e.text for e in events if isinstance(e, Grew)) == whole[n:]
            assert isinstance(events[-1], Ended)
            assert not events[-1].replace


async def test_from_beyond_the_end_the_whole_text_comes_again(
    engine: Engine, model_server: ModelServer
) -> None:
    reply = await take(engine, None, "x")
    ended = await reply.wait()
    events = await heard(reply, len(ended.text) + 1)
    assert events == [Ended(ended.turn, ended.text, replace=True)]


async def test_someone_elses_turn_does_not_exist(engine: Engine, model_server: ModelServer) -> None:
    gate = asyncio.Event()
    model_server.script = lambda _: Plan(at={1: Wait(gate)})
    reply = await take(engine, None, "x")
    for act in (engine.follow_turn, engine.cancel_turn):
        with pytest.raises(TurnNotFound):
            await act("bob", reply.turn.ref)
    gate.set()
    await reply.completed()


# --- Cancelled ---------------------------------------------------------------------------------


async def test_cancelling_stops_the_call_and_keeps_the_part(
    engine: Engine, model_server: ModelServer
) -> None:
    model_server.script = lambda _: Plan(deltas=WORDS, at={2: Hang()})
    reply = await take(engine, "s", "x")
    await until(lambda: reply.length == len("Once upon "))
    turn = await engine.cancel_turn("ann", reply.turn.ref)
    await model_server.wait_for_disconnects(1)
    assert turn.status is TurnStatus.CANCELLED
    assert (await engine.cancel_turn("ann", reply.turn.ref)) == turn
    model_server.script = lambda _: Plan()
    await ask(engine, "y")
    assert shown(model_server) == ["x", "Once upon ", "y"]


async def test_a_turn_cancelled_in_the_queue_is_never_made(
    engine: Engine, model_server: ModelServer
) -> None:
    gate = asyncio.Event()
    model_server.script = lambda call: Plan(at={1: Wait(gate)}) if call.number == 1 else Plan()
    first, second, third = [await take(engine, "s", text) for text in "abc"]
    await model_server.wait_for_calls(1)
    assert second.turn.status is TurnStatus.QUEUED
    assert (await engine.cancel_turn("ann", second.turn.ref)).status is TurnStatus.CANCELLED
    assert [type(event) for event in await heard(second)] == [Ended]
    gate.set()
    await first.completed()
    await third.completed()
    assert shown(model_server) == ["a", "Hello there", "c"]
    assert model_server.calls == 2


async def test_clearing_stops_what_runs_and_what_waits(
    engine: Engine, model_server: ModelServer
) -> None:
    model_server.script = lambda call: Plan(at={1: Hang()}) if call.number == 1 else Plan()
    first, second = [await take(engine, "s", text) for text in "ab"]
    await model_server.wait_for_calls(1)
    engine.stop_gone(await engine._store.clear_session("ann", choose_session("s"), 0))
    for reply in (first, second):
        assert (await reply.wait()).turn.status is TurnStatus.CANCELLED
    await model_server.wait_for_disconnects(1)
    assert await counts(engine) == []
    await ask(engine, "new")
    assert shown(model_server) == ["new"]


# --- The queue ---------------------------------------------------------------------------------


async def test_a_turn_cleared_at_its_very_end_is_not_remembered_for_ever(
    engine: Engine, model_server: ModelServer
) -> None:
    reply = await take(engine, "s", "hi")
    await reply.wait()
    engine.stop_gone([reply.turn.ref])  # as when the store's two answers come the other way round
    model_server.script = lambda _: Plan(at={1: Hang()})
    running = await take(engine, "s", "again")
    async with asyncio.timeout(5):
        while engine._lives._cancelled:
            await asyncio.sleep(0.05)
    assert running.ended is None


async def test_sends_in_one_session_wait_their_turn(
    engine: Engine, model_server: ModelServer
) -> None:
    replies = [await take(engine, "s", f"m{n}") for n in range(10)]
    for n, reply in enumerate(replies):
        assert await reply.completed() == f"You said: m{n}"
    expected = [text for n in range(9) for text in (f"m{n}", f"You said: m{n}")]
    assert shown(model_server) == [*expected, "m9"]


async def test_the_queue_is_bounded(tmp_path: Path, model_server: ModelServer) -> None:
    model_server.script = lambda _: Plan(at={1: Hang()})
    async with running(tmp_path, model_server, queue_limit="2") as engine:
        for text in "abc":
            await take(engine, "s", text)
        with pytest.raises(QueueFull):
            await take(engine, "s", "d")
        assert await counts(engine) == [3]


async def test_200_clients_in_50_sessions_are_all_in_order(
    engine: Engine, model_server: ModelServer
) -> None:
    async def client(session: int, number: int) -> None:
        for n in range(5):
            text = f"s{session} c{number} m{n}"
            assert await ask(engine, text, f"session-{session}") == f"You said: {text}"

    await asyncio.gather(*[client(s, c) for s in range(50) for c in range(4)])
    assert await counts(engine) == [40] * 50
    for session in range(50):
        await ask(engine, "last", f"session-{session}")
        *said, last = shown(model_server)
        assert last == "last"
        assert said[1::2] == [f"You said: {text}" for text in said[::2]]
        for client_number in range(4):
            mine = [text for text in said[::2] if f"c{client_number} " in text]
            assert mine == [f"s{session} c{client_number} m{n}" for n in range(5)]


# --- Stopping ----------------------------------------------------------------------------------


async def test_a_stopping_server_lets_turns_finish(
    engine: Engine, model_server: ModelServer
) -> None:
    gate = asyncio.Event()
    model_server.script = lambda _: Plan(deltas=WORDS, at={2: Wait(gate)})
    reply = await take(engine, "s", "x")
    await model_server.wait_for_calls(1)
    draining = asyncio.ensure_future(engine.drain(30))
    await asyncio.sleep(0)
    with pytest.raises(ServerStopping):
        await take(engine, "s", "y")
    assert not await engine.ready()
    gate.set()
    await draining
    assert reply.turn.status is TurnStatus.COMPLETED


async def test_what_does_not_finish_in_time_is_interrupted_and_kept(
    tmp_path: Path, model_server: ModelServer
) -> None:
    model_server.script = lambda _: Plan(deltas=WORDS, at={2: Hang()})
    async with running(tmp_path, model_server) as engine:
        replies = [await take(engine, "s", text) for text in "abc"]
        await until(lambda: replies[0].length == len("Once upon "))
        await engine.drain(0.01)
        assert [r.turn.status for r in replies] == [TurnStatus.INTERRUPTED] * 3
    model_server.script = lambda _: Plan()
    async with running(tmp_path, model_server) as engine:
        stored = await engine.follow_turn("ann", replies[0].turn.ref)
        assert stored.text == "Once upon "
        await ask(engine, "d")
        assert shown(model_server) == ["a", "Once upon ", "d"]


# --- The window --------------------------------------------------------------------------------


async def test_a_long_session_is_fitted_and_its_beginning_stays_put(
    tmp_path: Path, model_server: ModelServer
) -> None:
    """Cut to three quarters at once, then growing again: the prompt's start moves seldom."""
    starts: list[str] = []
    async with running(tmp_path, model_server, context_window="1024") as engine:
        for n in range(60):
            reply = await take(engine, "s", f"message number {n} " + "." * 100)
            context = (await reply.wait()).turn.context
            assert context is not None
            assert context.messages_sent == len(shown(model_server))
            assert context.messages_sent + context.messages_dropped == 2 * n + 1
            assert context.estimated_tokens <= 768
            starts.append(shown(model_server)[0])
    moves = sum(a != b for a, b in pairwise(starts))
    assert 10 < moves < 40
    assert starts[0] == starts[3]


async def test_a_reply_without_end_is_broken_off(tmp_path: Path, model_server: ModelServer) -> None:
    model_server.script = lambda _: Plan(deltas=("x" * 400,) * 10, at={10: Hang()})
    async with running(tmp_path, model_server, reply_limit="1000") as engine:
        reply = await take(engine, "s", "x")
        turn = (await reply.wait()).turn
        await model_server.wait_for_disconnects(1)
    assert turn.status is TurnStatus.FAILED
    assert turn.failure is not None
    assert "longer than 1000 characters" in turn.failure.sentence


async def test_a_follower_far_behind_is_told_in_pieces(
    engine: Engine, model_server: ModelServer
) -> None:
    model_server.script = lambda _: Plan(deltas=("x" * 200_000,))
    reply = await take(engine, None, "x")
    await reply.completed()
    events = await heard(reply)
    sizes = [len(event.text) for event in events if isinstance(event, Grew)]
    assert sum(sizes) == 200_000
    assert max(sizes) <= 16_384
    assert isinstance(events[-1], Ended)


# --- When the store fails ------------------------------------------------------------------------


async def test_a_reply_that_cannot_be_stored_yet_is_not_lost_and_not_announced(
    engine: Engine, model_server: ModelServer
) -> None:
    """The disk fills while the reply is made; once there is room, the turn ends as it was."""
    gate = asyncio.Event()
    model_server.script = lambda _: Plan(deltas=("long " * 20_000,), at={1: Wait(gate)})
    reply = await take(engine, "s", "x")
    await until(lambda: reply.length > 0)
    writer = engine._store._driver._writer  # type: ignore[attr-defined]
    pages = writer.execute("PRAGMA page_count").fetchone()[0]
    writer.execute(f"PRAGMA max_page_count = {pages}")
    gate.set()
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(asyncio.shield(reply.wait()), 0.3)
    too_late = asyncio.ensure_future(engine.cancel_turn("ann", reply.turn.ref))
    await asyncio.sleep(0)
    writer.execute("PRAGMA max_page_count = 1000000")
    assert await reply.completed() == "long " * 20_000
    assert (await too_late).status is TurnStatus.COMPLETED
    assert (await engine._store.get_turn("ann", reply.turn.ref)).text == reply.text


async def test_checkpoints_leave_no_gap_where_one_could_not_be_kept(
    tmp_path: Path, engine: Engine, model_server: ModelServer
) -> None:
    """A checkpoint that fails is part of the next."""
    gates = [asyncio.Event() for _ in range(2)]
    model_server.script = lambda _: Plan(
        deltas=("one ", "two ", "three "), at={1: Wait(gates[0]), 2: Wait(gates[1]), 3: Hang()}
    )
    reply = await take(engine, "s", "x")
    life = engine._lives._by_ref[reply.turn.ref]
    for words, gate, disk_is_full in (("one ", gates[0], False), ("two ", gates[1], True)):
        await until(lambda words=words: reply.text.endswith(words))  # type: ignore[misc]
        if disk_is_full:
            engine._store._driver._writer.execute("PRAGMA query_only = ON")  # type: ignore[attr-defined]
        tick_through(engine)
        await until(lambda: not life.checkpointing)
        gate.set()
    engine._store._driver._writer.execute("PRAGMA query_only = OFF")  # type: ignore[attr-defined]
    await until(lambda: reply.text.endswith("three "))
    tick_through(engine)
    await until(lambda: not life.checkpointing)
    assert (await engine._store.get_turn("ann", reply.turn.ref)).text == "one two three "
    await engine.cancel_turn("ann", reply.turn.ref)


async def test_an_ending_that_cannot_be_stored_is_told_to_no_one(
    tmp_path: Path, model_server: ModelServer
) -> None:
    """The server stops and the database is gone: the next start says how the turn ended."""
    model_server.script = lambda _: Plan(deltas=WORDS, at={2: Hang()})
    async with running(tmp_path, model_server) as engine:
        reply = await take(engine, "s", "x")
        await until(lambda: reply.length > 0)
        engine._store._driver._writer.execute("PRAGMA query_only = ON")  # type: ignore[attr-defined]
        hearing = asyncio.ensure_future(heard(reply))
        await engine.drain(0)
        assert not any(isinstance(event, Ended) for event in await hearing)
    async with running(tmp_path, model_server) as engine:
        stored = await engine.follow_turn("ann", reply.turn.ref)
        assert stored.turn.status is TurnStatus.INTERRUPTED


# --- Stopped, and what it cost -----------------------------------------------------------------


async def test_cancelling_closes_the_call_at_once_and_keeps_what_was_said(
    engine: Engine, model_server: ModelServer
) -> None:
    """The model is silent: waiting for its next word would be waiting for ever."""
    model_server.script = lambda _: Plan(deltas=WORDS, at={2: Hang()})
    reply = await take(engine, "s", "x")
    await until(lambda: reply.length == 10)
    async with asyncio.timeout(2):  # of a busy machine; alone it takes a few milliseconds
        first, _ = await asyncio.gather(
            engine.cancel_turn("ann", reply.turn.ref), model_server.wait_for_disconnects(1)
        )
    assert first.status is TurnStatus.CANCELLED
    assert await engine.cancel_turn("ann", reply.turn.ref) == first
    stored = await engine._store.get_turn("ann", reply.turn.ref)
    assert (stored.text, stored.turn.status) == ("Once upon ", TurnStatus.CANCELLED)
    model_server.script = lambda _: Plan()
    await ask(engine, "y")
    assert shown(model_server) == ["x", "Once upon ", "y"]


@pytest.mark.parametrize("end", ["cancel", "interrupt", "cut"])
async def test_what_an_unfinished_turn_used_is_estimated(
    end: str, engine: Engine, model_server: ModelServer
) -> None:
    last: Any = Cut() if end == "cut" else Hang()
    model_server.script = lambda _: Plan(deltas=WORDS, at={2: last})
    reply = await take(engine, "s", "x")
    await until(lambda: reply.length == 10)
    if end == "cancel":
        await engine.cancel_turn("ann", reply.turn.ref)
    elif end == "interrupt":
        await engine.drain(0)
    turn = (await reply.wait()).turn
    assert turn.usage is not None
    assert turn.usage.estimated
    assert turn.usage.prompt_tokens > 0
    assert turn.usage.completion_tokens > 0
    assert (await engine._store.get_turn("ann", turn.ref)).turn.usage == turn.usage


async def test_what_the_provider_has_counted_is_believed(
    engine: Engine, model_server: ModelServer
) -> None:
    """Cancelled behind the count, before the end of the stream."""
    model_server.script = lambda _: Plan(deltas=WORDS, usage="last", at={4: Hang()})
    reply = await take(engine, "s", "x")
    await until(lambda: reply.length == 16)
    await engine.cancel_turn("ann", reply.turn.ref)
    assert reply.turn.usage is not None
    assert not reply.turn.usage.estimated


async def test_a_turn_that_never_reached_its_provider_used_nothing(
    tmp_path: Path, model_server: ModelServer
) -> None:
    async with running(tmp_path, model_server, attempts="1") as engine:
        await model_server.__aexit__()
        turn = (await (await take(engine, "s", "x")).wait()).turn
        assert turn.failure is not None
        assert (turn.failure.code, turn.usage) == ("provider_unreachable", None)


# --- Waiting no longer -------------------------------------------------------------------------


async def test_a_message_waits_only_so_long_and_can_be_tried_again(
    tmp_path: Path, model_server: ModelServer
) -> None:
    model_server.script = lambda _: Plan(deltas=WORDS, at={2: Hang()})
    async with running(tmp_path, model_server, queue_timeout="0.05") as engine:
        first = await take(engine, "s", "one")
        late = await take(engine, "s", "two")
        with pytest.raises(TurnEnded) as failed:
            await late.completed()
        assert failed.value.code == "queue_timeout"
        assert late.turn.usage is None
        await engine.cancel_turn("ann", first.turn.ref)
        model_server.script = lambda _: Plan()
        again = (await engine.retry_turn("ann", late.turn.ref)).reply
        assert await again.completed() == "Hello there"
        assert shown(model_server) == ["one", "Once upon ", "two"]


async def test_who_interrupts_too_often_is_told_to_wait(
    tmp_path: Path, model_server: ModelServer
) -> None:
    """Those who are interrupted end in a moment; until then they count."""
    (tmp_path / "t.toml").write_text('[deployments.default]\nconcurrency = "interrupt"\n')
    options = {"queue_limit": "2", "config": str(tmp_path / "t.toml")}
    model_server.script = lambda _: Plan(deltas=WORDS, at={2: Hang()})
    async with running(tmp_path, model_server, **options) as engine:
        await take(engine, "s", "first")
        results = await asyncio.gather(
            *(take(engine, "s", str(n)) for n in range(30)), return_exceptions=True
        )
        refused = [r for r in results if isinstance(r, BaseException)]
        assert refused
        assert all(isinstance(each, QueueFull) for each in refused)
        taken = [r for r in results if isinstance(r, Reply)]
        for reply in taken[:-1]:
            assert (await reply.wait()).turn.status is TurnStatus.CANCELLED
        await engine.cancel_turn("ann", taken[-1].turn.ref)
