"""What a model is shown of a session that no longer fits, through a real store and a real model."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from rig.model_server import BEFORE, Call, Hang, ModelServer, Plan
from tests.test_plans import a_session, running, take
from turnkeeper.blueprint import read_blueprint
from turnkeeper.dialects.exchange import Parts
from turnkeeper.domain import ById, MessageRef, TurnStatus
from turnkeeper.errors import ContextTooLong, TurnEnded
from turnkeeper.reply import Reply
from turnkeeper.sessions import Said, SessionRequest
from turnkeeper.summaries import MOST_CALLS

WORDS = "word " * 40  # with its reply about a sixth of what the model small has room for
SMALL = {"model": "small", "overflow": "summarise"}


@pytest.fixture
async def parts(tmp_path: Path, model_server: ModelServer) -> AsyncIterator[Parts]:
    async with running(tmp_path, model_server) as parts:
        yield parts


def is_summarising(call: Call) -> bool:
    return "You keep the memory" in call.body["messages"][0]["content"]


def summariser(call: Call) -> Plan:
    """Numbered summaries, and replies that are as long as the messages."""
    if is_summarising(call):
        return Plan(deltas=(f"memo {call.number}",))
    return Plan(deltas=(call.last_user_message,))


def summaries(model: ModelServer) -> list[str]:
    """What the model was given each time to summarise."""
    return [c.body["messages"][1]["content"] for c in model.requests if is_summarising(c)]


def shown(model: ModelServer) -> list[str]:
    """What the model was shown the last time."""
    return [message["content"] for message in model.requests[-1].body["messages"]]


async def say(parts: Parts, session: ById, count: int, first: int = 0) -> list[Reply]:
    replies = []
    for number in range(first, first + count):
        reply = await take(parts, session, f"n{number:04d} {WORDS}")
        await reply.completed()
        replies.append(reply)
    return replies


async def a_long_session(parts: Parts, turns: int, **blueprint: Any) -> ById:
    name = f"long{len(await parts.deployments.list())}"
    await parts.deployments.create(name, read_blueprint(blueprint))
    said = [
        Said(role, f"n{n:04d} {WORDS}")  # type: ignore[arg-type]
        for n in range(turns)
        for role in ("user", "assistant")
    ]
    request = SessionRequest(deployment=name, messages=tuple(said))
    return ById((await parts.sessions.create("ann", request)).thing.id)


# --- Summaries ---------------------------------------------------------------------------------


async def test_what_no_longer_fits_is_summarised_and_the_turn_says_so(
    parts: Parts, model_server: ModelServer
) -> None:
    model_server.script = summariser
    session = await a_session(parts, **SMALL, system_message="Be kind.")
    replies = await say(parts, session, 7)
    contexts = [reply.turn.context for reply in replies]
    first = next(n for n, context in enumerate(contexts) if context and context.summarised)
    [told, *_] = summaries(model_server)
    assert "n0000" in told
    system, *rest = shown(model_server)
    assert system.startswith("Be kind.\n\nSummary of this")
    assert "memo" in system
    assert all("n0000" not in text for text in rest)
    for number, context in enumerate(contexts):
        assert context
        assert context.summarised == (number >= first)
        assert context.messages_sent + context.messages_dropped == 2 * number + 1
    assert contexts[-1]
    assert contexts[-1].messages_sent == len(rest)


async def test_a_later_overflow_tells_of_the_new_part_only(
    parts: Parts, model_server: ModelServer
) -> None:
    model_server.script = summariser
    session = await a_session(parts, **SMALL)
    for number in range(40):
        await (await take(parts, session, f"n{number:04d} {WORDS[:60]}")).completed()
    told = summaries(model_server)
    assert 5 <= len(told) <= 40 / 2  # a quarter of the room at once
    for before, after in pairwise(told):
        assert "Remembered so far:\nmemo" in after
        words = {line for line in before.split() if line.startswith("n0")}
        assert not any(word in after for word in words)


async def test_nothing_is_both_summarised_and_shown_nor_is_anything_neither(
    parts: Parts, model_server: ModelServer
) -> None:
    model_server.script = summariser
    session = await a_session(parts, **SMALL)
    await say(parts, session, 15)
    told = "".join(summaries(model_server))
    _, *rest = shown(model_server)
    for number in range(15):
        assert (f"user: n{number:04d}" in told) != any(f"n{number:04d}" in text for text in rest)


async def test_what_a_summary_tells_of_is_not_shown_again_when_there_is_more_room(
    parts: Parts, model_server: ModelServer
) -> None:
    model_server.script = summariser
    session = await a_session(parts, **SMALL)
    await say(parts, session, 20)
    for _ in range(40):
        parts.engine._plans.counts.learn("small", 60_000, 10_000)
    await say(parts, session, 1, first=20)
    _, *rest = shown(model_server)
    told = "".join(summaries(model_server))
    both = [n for n in range(20) if f"user: n{n:04d}" in told and f"n{n:04d}" in "".join(rest)]
    assert both == []


async def test_a_session_of_thousands_of_messages_is_summarised_in_few_calls(
    parts: Parts, model_server: ModelServer
) -> None:
    model_server.script = summariser
    session = await a_long_session(parts, 1500, **SMALL)
    await say(parts, session, 1, first=1500)
    assert 1 < len(summaries(model_server)) <= MOST_CALLS
    assert model_server.calls <= MOST_CALLS + 1
    assert "n1499" in "".join(shown(model_server))
    assert "n0000" not in "".join(summaries(model_server))


async def test_a_message_larger_than_a_call_is_cut_in_its_middle(
    parts: Parts, model_server: ModelServer
) -> None:
    model_server.script = summariser
    session = await a_session(parts, **SMALL)
    await (await take(parts, session, "begin" + "x" * 1900 + "end")).completed()
    await say(parts, session, 2)
    told = summaries(model_server)
    assert "begin" in told[0]
    assert "cut here" in told[0]
    assert max(map(len, told)) < 1600


async def test_a_summary_that_is_too_long_is_cut_and_no_longer_waited_for(
    parts: Parts, model_server: ModelServer
) -> None:
    model_server.script = lambda call: (
        Plan(deltas=("y" * 400,), at={1: Hang()}) if is_summarising(call) else summariser(call)
    )
    session = await a_session(parts, **SMALL)
    replies = await say(parts, session, 6)
    context = replies[-1].turn.context
    assert context
    assert context.summarised
    assert 100 < shown(model_server)[0].count("y") < 300
    assert context.estimated_tokens <= 750
    await model_server.wait_for_disconnects(1)


async def test_what_a_summary_used_is_part_of_the_turns_usage(
    parts: Parts, model_server: ModelServer
) -> None:
    model_server.script = summariser
    session = await a_session(parts, **SMALL)
    replies = await say(parts, session, 6)
    usages = [reply.turn.usage for reply in replies]
    totals = [usage.prompt_tokens for usage in usages if usage]
    assert totals[0] == 7
    assert sum(totals) == 7 * model_server.calls


@pytest.mark.parametrize("status", [500, 429, 400])
async def test_a_summary_that_fails_leaves_the_turn_as_with_truncate(
    parts: Parts, model_server: ModelServer, status: int
) -> None:
    model_server.script = lambda call: (
        Plan(status=status, body={}) if is_summarising(call) else summariser(call)
    )
    session = await a_session(parts, **SMALL)
    replies = await say(parts, session, 6)
    assert all(reply.turn.status is TurnStatus.COMPLETED for reply in replies)
    context = replies[-1].turn.context
    assert context
    assert not context.summarised
    assert context.messages_dropped > 0
    assert "Summary of" not in shown(model_server)[0]


async def test_cancelling_a_turn_cancels_its_summary(
    parts: Parts, model_server: ModelServer
) -> None:
    model_server.script = lambda call: (
        Plan(at={BEFORE: Hang()}) if is_summarising(call) else summariser(call)
    )
    session = await a_long_session(parts, 10, **SMALL)
    reply = await take(parts, session)
    await model_server.wait_for_calls(1)
    began = time.perf_counter()
    turn = await parts.engine.cancel_turn("ann", reply.turn.ref)
    took = time.perf_counter() - began
    assert turn.status is TurnStatus.CANCELLED
    assert took < 0.1
    await model_server.wait_for_disconnects(1)
    assert model_server.calls == 1


async def test_a_summary_goes_with_what_it_tells_of(
    parts: Parts, model_server: ModelServer
) -> None:
    model_server.script = summariser
    store = parts.engine._store
    session = await a_session(parts, **SMALL)
    await say(parts, session, 8)
    again = (await parts.engine.answer_anew("ann", session)).reply
    await again.completed()
    assert await store.get_summary(session.id) is not None
    fork = (await parts.sessions.fork("ann", session, None)).thing
    assert await store.get_summary(fork.id) is None
    place = MessageRef(session.id, 1, 0)
    edited = (await parts.engine.edit_message("ann", session, place, "other words")).reply
    await edited.completed()
    assert await store.get_summary(session.id) is None
    assert shown(model_server) == ["other words"]


async def test_a_summary_is_kept_over_a_restart(tmp_path: Path, model_server: ModelServer) -> None:
    model_server.script = summariser
    async with running(tmp_path, model_server) as parts:
        session = await a_session(parts, **SMALL)
        await say(parts, session, 7)
    known = len(summaries(model_server))
    assert known
    async with running(tmp_path, model_server) as parts:
        await (await take(parts, session)).completed()
    assert "user: n0000" not in "".join(summaries(model_server)[known:])
    assert "memo" in shown(model_server)[0]


async def test_sessions_that_are_summarised_together_do_not_meet(
    parts: Parts, model_server: ModelServer
) -> None:
    def script(call: Call) -> Plan:
        if is_summarising(call):
            names = {w for w in call.body["messages"][1]["content"].split() if w[0] == "<"}
            return Plan(deltas=(" ".join(sorted(names)),))
        return Plan(deltas=("z" * 200,))

    model_server.script = script
    sessions = [await a_session(parts, **SMALL) for _ in range(8)]

    async def talk(number: int, session: ById) -> None:
        for _ in range(8):
            await (await take(parts, session, f"<{number}> {WORDS}")).completed()

    await asyncio.gather(*(talk(n, session) for n, session in enumerate(sessions)))
    for number, session in enumerate(sessions):
        kept = await parts.engine._store.get_summary(session.id)
        assert kept
        assert kept.text == f"<{number}>"


async def test_one_generated_reply_is_never_summarised(
    parts: Parts, model_server: ModelServer
) -> None:
    await parts.deployments.create("g", read_blueprint({**SMALL, "system_message": "Hi."}))
    await parts.engine.generate("ann", "g", {})
    assert summaries(model_server) == []


@pytest.mark.parametrize("overflow", ["truncate", "summarise", "error"])
async def test_a_message_too_large_alone_is_refused_before_anything_is_stored(
    parts: Parts, model_server: ModelServer, overflow: str
) -> None:
    session = await a_session(parts, model="small", overflow=overflow)
    with pytest.raises(ContextTooLong):
        await take(parts, session, "x" * 3000)
    assert (await parts.sessions.get("ann", session)).message_count == 0
    assert model_server.calls == 0


# --- Counts ------------------------------------------------------------------------------------


def reporting(tokens: int, *deltas: str) -> Plan:
    """A reply whose provider counted so many tokens in the prompt."""
    usage = {"prompt_tokens": tokens, "completion_tokens": 1, "total_tokens": tokens + 1}
    chunk = json.dumps({"choices": [], "usage": usage}).encode()
    return Plan(deltas=deltas or ("x" * 100,), usage="none", chunks=(chunk,))


def weight_of(call: Call) -> int:
    return sum(len(m["content"].encode()) + 16 for m in call.body["messages"])


class Tokenizer:
    """A model that has so many bytes in a token and refuses what is more than its window."""

    def __init__(self, bytes_per_token: float, window: int = 1000, reserve: int = 250) -> None:
        self.rate, self.window, self.reserve = bytes_per_token, window, reserve
        self.prompts: list[int] = []
        self.refused = 0

    def __call__(self, call: Call) -> Plan:
        tokens = int(weight_of(call) / self.rate)
        self.prompts.append(tokens)
        if tokens > self.window - self.reserve // 2:
            self.refused += 1
            return too_long(self.window, tokens)
        return reporting(tokens, call.last_user_message[:400])


def too_long(window: int, tokens: int) -> Plan:
    """As OpenAI says it."""
    message = (
        f"This model's maximum context length is {window} tokens. However, your messages resulted"
        f" in {tokens} tokens. Please reduce the length of the messages."
    )
    error = {
        "message": message,
        "type": "invalid_request_error",
        "param": "messages",
        "code": "context_length_exceeded",
    }
    return Plan(status=400, body={"error": error})


@pytest.mark.parametrize("rate", [2.0, 4.3])
async def test_the_window_is_used_well_and_not_exceeded_once_a_model_is_known(
    parts: Parts, model_server: ModelServer, rate: float
) -> None:
    tokenizer = model_server.script = Tokenizer(rate)
    session = await a_session(parts, model="small")
    for number in range(60):
        await (await take(parts, session, f"{number} " + "語" * 40)).completed()
    later = tokenizer.prompts[20:]
    assert max(later) <= 750
    assert max(later) >= 0.75 * 750
    assert tokenizer.refused <= 3


async def test_counts_are_kept_over_a_restart(tmp_path: Path, model_server: ModelServer) -> None:
    model_server.script = Tokenizer(4.3)
    async with running(tmp_path, model_server) as parts:
        session = await a_session(parts, model="small")
        await say(parts, session, 30)
        learned = parts.engine._plans.counts.bytes_per_token("small")
        assert learned > 3.5
    async with running(tmp_path, model_server) as parts:
        counts = parts.engine._plans.counts
        assert abs(counts.bytes_per_token("small") - learned) <= 0.25
        assert counts.bytes_per_token("big") == 3
        assert 0 < counts.error("small") < 1
        reply = await take(parts, session, "y" * 400)
        await reply.completed()
        context = reply.turn.context
        assert context
        weight = weight_of(model_server.requests[-1])
        assert abs(context.estimated_tokens - weight / learned) < 0.1 * weight / learned


# --- A provider that refuses a prompt for its length -------------------------------------------


def refusing(times: int, window: int = 1000, tokens: int = 1200) -> Any:
    return lambda call: too_long(window, tokens) if call.number <= times else Plan(deltas=("fine",))


async def test_a_refused_prompt_is_refitted_once_and_the_turn_says_what_was_sent(
    parts: Parts, model_server: ModelServer
) -> None:
    session = await a_long_session(parts, 4, model="small")
    model_server.script = refusing(1)
    reply = await take(parts, session)
    assert await reply.completed() == "fine"
    first, second = [call.body["messages"] for call in model_server.requests]
    assert 0 < len(second) < len(first)
    context = reply.turn.context
    assert context
    assert (context.messages_sent, context.messages_dropped) == (len(second), 9 - len(second))
    rate = parts.engine._plans.counts.bytes_per_token("small")
    assert rate <= weight_of(model_server.requests[0]) / 1200
    assert context.estimated_tokens == int(weight_of(model_server.requests[1]) / rate)
    assert context.estimated_tokens <= 750
    await (await take(parts, session)).completed()
    assert model_server.calls == 3


async def test_a_refusal_without_figures_is_believed_too(
    parts: Parts, model_server: ModelServer
) -> None:
    session = await a_long_session(parts, 4, model="small")
    code = {"code": "context_length_exceeded", "message": "Please shorten your input."}
    model_server.script = lambda call: (
        Plan(status=400, body={"error": code}) if call.number == 1 else Plan(deltas=("fine",))
    )
    assert await (await take(parts, session)).completed() == "fine"
    first, second = model_server.requests
    assert weight_of(second) < weight_of(first)


async def test_a_window_smaller_than_configured_is_kept_to(
    parts: Parts, model_server: ModelServer
) -> None:
    session = await a_long_session(parts, 30, model="big")
    model_server.script = refusing(1, window=2000, tokens=5000)
    await (await take(parts, session)).completed()
    first, second = model_server.requests
    assert weight_of(second) <= 1500 * 3 < weight_of(first)
    await (await take(parts, session)).completed()
    assert model_server.calls == 3
    assert weight_of(model_server.requests[-1]) <= 1500 * 3


async def test_a_prompt_that_is_refused_twice_fails_the_turn(
    parts: Parts, model_server: ModelServer
) -> None:
    session = await a_long_session(parts, 4, model="small")
    model_server.script = refusing(9)
    with pytest.raises(TurnEnded) as ended:
        await (await take(parts, session)).completed()
    assert ended.value.code == "context_length_exceeded"
    assert model_server.calls == 2


async def test_a_prompt_that_cannot_be_shorter_is_not_sent_again(
    parts: Parts, model_server: ModelServer
) -> None:
    session = await a_session(parts, model="small")
    model_server.script = refusing(9)
    with pytest.raises(TurnEnded) as ended:
        await (await take(parts, session, "x" * 1000)).completed()
    assert ended.value.code == "context_length_exceeded"
    assert model_server.calls == 1


async def test_where_nothing_may_be_left_out_a_refusal_is_told(
    parts: Parts, model_server: ModelServer
) -> None:
    session = await a_long_session(parts, 4, model="small", overflow="error")
    model_server.script = refusing(9)
    with pytest.raises(TurnEnded) as ended:
        await (await take(parts, session)).completed()
    assert ended.value.code == "context_length_exceeded"
    assert model_server.calls == 1


async def test_a_refused_prompt_is_summarised_where_the_deployment_says_so(
    parts: Parts, model_server: ModelServer
) -> None:
    session = await a_long_session(parts, 4, **SMALL)
    model_server.script = lambda call: too_long(1000, 760) if call.number == 1 else summariser(call)
    reply = await take(parts, session)
    await reply.completed()
    context = reply.turn.context
    assert context
    assert context.summarised
    assert "memo" in shown(model_server)[0]


async def test_a_model_behind_is_asked_when_a_prompt_is_too_long(
    parts: Parts, model_server: ModelServer
) -> None:
    session = await a_long_session(parts, 4, model="small", fallback_models=["spare"])
    model_server.script = lambda call: (
        too_long(1000, 1200) if call.body["model"] == "small" else Plan(deltas=("fine",))
    )
    reply = await take(parts, session)
    assert await reply.completed() == "fine"
    assert reply.turn.model == "spare"
