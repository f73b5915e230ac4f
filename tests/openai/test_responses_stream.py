"""Streams of responses, by the official SDK: each event, and going on from any of them."""

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from rig.model_server import CallOf, Cut, Hang, ModelServer, Plan, Wait
from rig.server import Server
from tests.openai.conftest import MODEL, MakeClient, start_server
from tests.openai.test_responses import DEAD, SHELL, TWO_CALLS, WEATHER, ask
from tests.openai.types import check_event

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.usefixtures("model")]

TEXT = (
    "response.created",
    "response.in_progress",
    "response.output_item.added",
    "response.content_part.added",
    "response.output_text.delta",
    "response.output_text.done",
    "response.content_part.done",
    "response.output_item.done",
    "response.completed",
)


async def read(stream: AsyncIterator[Any], first: int = 0) -> list[Any]:
    """All its events: each of them as the SDK's types say, their numbers rising by one."""
    events = []
    async for event in stream:
        check_event(event)
        events.append(event)
    assert [e.sequence_number for e in events] == list(range(first, first + len(events)))
    return events


async def follow(client: openai.AsyncOpenAI, input_: Any = "hello", **more: Any) -> list[Any]:
    asked = {"model": MODEL, "input": input_, "stream": True} | more
    return await read(await client.responses.create(**asked))


async def resume(client: openai.AsyncOpenAI, id_: str, after: int | None = None) -> list[Any]:
    more = {} if after is None else {"starting_after": after}
    stream = await client.responses.retrieve(id_, stream=True, **more)
    return await read(stream, 0 if after is None else after + 1)


def types_of(events: list[Any]) -> list[str]:
    """Several deltas after each other, which may come as one, count as one."""
    types = [event.type for event in events]
    return [a for a, b in zip(types, ["", *types], strict=False) if a != b or "delta" not in a]


def deltas_of(events: list[Any]) -> str:
    return "".join(event.delta for event in events if event.type.endswith(".delta"))


# --- Golden sequences ----------------------------------------------------------------------------


async def test_text(client: openai.AsyncOpenAI, model: ModelServer) -> None:
    model.script = lambda _: Plan()
    events = await follow(client)
    assert types_of(events) == list(TEXT)
    assert deltas_of(events) == events[-4].text == "Hello there"
    last = events[-1].response
    assert last.output_text == "Hello there"
    assert last.output == [events[-2].item]
    assert await client.responses.retrieve(last.id) == last
    assert events[0].response.status == "in_progress"


async def test_tools_in_parallel(client: openai.AsyncOpenAI, model: ModelServer) -> None:
    model.script = lambda _: TWO_CALLS
    events = await follow(client, tools=[WEATHER])
    added = [e.item.call_id for e in events if e.type == "response.output_item.added"]
    assert added == ["call_a", "call_b"]
    deltas: dict[int, str] = {}
    for event in events:
        if event.type == "response.function_call_arguments.delta":
            deltas[event.output_index] = deltas.get(event.output_index, "") + event.delta
    assert deltas == {0: '{"town":"Rome"}', 1: '{"town":"Oslo"}'}
    done = [e.item for e in events if e.type == "response.output_item.done"]
    assert [item.arguments for item in done] == list(deltas.values())
    assert events[-1].response.output == done
    assert await resume(client, events[-1].response.id) == events


async def test_the_sdk_puts_it_together(client: openai.AsyncOpenAI, model: ModelServer) -> None:
    model.script = lambda _: TWO_CALLS
    async with client.responses.stream(model=MODEL, input="a", tools=[WEATHER]) as stream:
        final = await stream.get_final_response()
    assert [item.type for item in final.output] == ["function_call", "function_call"]


async def test_thoughts_words_and_calls(client: openai.AsyncOpenAI, model: ModelServer) -> None:
    model.script = lambda _: Plan(
        reasoning=("Let me ", "see."),
        deltas=("I ", "look."),
        tool_calls=(CallOf("weather", ("{", "}"), "call_a"),),
        finish_reason="tool_calls",
    )
    events = await follow(client, tools=[WEATHER])
    assert types_of(events) == [
        *TEXT[:4],
        "response.reasoning_text.delta",
        "response.reasoning_text.done",
        *TEXT[6:8],
        *TEXT[2:8],
        "response.output_item.added",
        "response.function_call_arguments.delta",
        "response.function_call_arguments.done",
        "response.output_item.done",
        "response.completed",
    ]
    done = [e.item for e in events if e.type == "response.output_item.done"]
    assert [item.type for item in done] == ["reasoning", "message", "function_call"]
    assert events[-1].response.output == done
    assert await resume(client, events[-1].response.id) == events


async def test_a_custom_tool(client: openai.AsyncOpenAI, model: ModelServer) -> None:
    call = CallOf("shell", ('{"input"', ':"ls"}'), "call_a")
    model.script = lambda _: Plan(deltas=(), tool_calls=(call,), finish_reason="tool_calls")
    events = await follow(client, tools=[SHELL])
    assert types_of(events)[2:-1] == [
        "response.output_item.added",
        "response.custom_tool_call_input.delta",
        "response.custom_tool_call_input.done",
        "response.output_item.done",
    ]
    assert (events[3].delta, events[4].input, events[5].item.input) == ("ls", "ls", "ls")
    assert await resume(client, events[-1].response.id) == events


async def test_a_refusal(client: openai.AsyncOpenAI, model: ModelServer) -> None:
    model.script = lambda _: Plan(deltas=(), refusal=("I ", "won't."))
    events = await follow(client)
    assert types_of(events)[4:6] == ["response.refusal.delta", "response.refusal.done"]
    assert deltas_of(events) == events[-4].refusal == "I won't."
    assert await resume(client, events[-1].response.id) == events


async def test_what_is_incomplete(client: openai.AsyncOpenAI, model: ModelServer) -> None:
    model.script = lambda _: Plan(finish_reason="length")
    events = await follow(client)
    assert types_of(events) == [*TEXT[:-1], "response.incomplete"]
    assert events[-2].item.status == "incomplete"
    assert events[-1].response.incomplete_details.reason == "max_output_tokens"


async def test_a_failure_amid_the_words(client: openai.AsyncOpenAI, model: ModelServer) -> None:
    model.script = lambda _: Plan(at={2: Cut()})
    events = await follow(client)
    assert types_of(events) == [*TEXT[:-1], "response.failed"]
    last = events[-1]
    assert last.response.status == "failed"
    assert last.response.error.code == "server_error"


async def test_a_failure_before_any_word(client: openai.AsyncOpenAI, model: ModelServer) -> None:
    model.script = lambda _: DEAD
    events = await follow(client)
    assert types_of(events) == ["response.created", "response.in_progress", "response.failed"]
    model.script = lambda _: Plan(status=429, body={"error": {"message": "slow down"}})
    assert (await follow(client))[-1].response.error.code == "rate_limit_exceeded"


async def test_a_cancel(client: openai.AsyncOpenAI, model: ModelServer) -> None:
    model.script = lambda _: Plan(at={2: Hang()})
    stream = await client.responses.create(model=MODEL, input="a", stream=True)
    events = []
    async for event in stream:
        events.append(event)
        if deltas_of(events) == "Hello there" and event.type.endswith(".delta"):
            await client.responses.cancel(events[0].response.id)  # type: ignore[union-attr]
    assert types_of(events) == [*TEXT[:-1], "response.incomplete"]
    assert events[-1].response.status == "cancelled"  # type: ignore[union-attr]
    assert events[-1].response.output_text == "Hello there"  # type: ignore[union-attr]
    assert await resume(client, events[0].response.id) == events  # type: ignore[union-attr]


async def test_what_waits_in_its_conversation(
    client: openai.AsyncOpenAI, model: ModelServer
) -> None:
    gate = asyncio.Event()
    model.script = lambda _: Plan(at={1: Wait(gate)} if len(model.requests) == 1 else {})
    conversation = await client.conversations.create()
    first = await ask(client, background=True, conversation=conversation.id)
    stream = await client.responses.create(
        model=MODEL, input="b", stream=True, conversation=conversation.id
    )
    events = []
    async for event in stream:
        events.append(event)
        if event.type == "response.queued":
            assert event.response.status == "queued"
            gate.set()
    assert types_of(events) == ["response.created", "response.queued", *TEXT[1:]]
    assert await resume(client, events[0].response.id) == events  # type: ignore[union-attr]
    assert (await client.responses.retrieve(first.id)).status == "completed"


async def test_what_is_not_stored_is_streamed(
    client: openai.AsyncOpenAI, model: ModelServer
) -> None:
    events = await follow(client, store=False)
    assert events[-1].response.output_text == "You said: hello"
    with pytest.raises(openai.NotFoundError):
        await client.responses.retrieve(events[0].response.id)


# --- Going on ------------------------------------------------------------------------------------


async def test_it_goes_on_from_any_event(client: openai.AsyncOpenAI, model: ModelServer) -> None:
    model.script = lambda _: Plan(reasoning=("Hm",), deltas=("a", "bc ", "d"))
    events = await follow(client)
    id_ = events[0].response.id
    assert await resume(client, id_) == events
    for number in range(len(events)):
        assert await resume(client, id_, number) == events[number + 1 :]


async def test_whoever_saw_a_call_begin_is_told_that_it_broke_off(
    client: openai.AsyncOpenAI, model: ModelServer
) -> None:
    """The half call is gone then: there are no more events than this client knows, but the end."""
    error = {"error": {"message": "boom"}}
    model.script = lambda _: Plan(deltas=("a",), tool_calls=(CallOf("f"),), errors=(error,))
    tools = [{"type": "function", "name": "f", "parameters": {}, "strict": False}]
    events = await follow(client, tools=tools)
    id_ = events[0].response.id
    for number in range(len(events) - 1):
        last = (await resume(client, id_, number))[-1]
        assert last.type == "response.failed"


async def test_it_goes_on_while_it_is_made(client: openai.AsyncOpenAI, model: ModelServer) -> None:
    gate = asyncio.Event()
    model.script = lambda _: Plan(deltas=("a", "bc ", "d"), at={2: Wait(gate)})
    stream = await client.responses.create(model=MODEL, input="a", stream=True, background=True)
    seen = []
    async for event in stream:
        seen.append(event)
        if deltas_of(seen) == "abc ":
            break
    await stream.close()
    id_ = seen[0].response.id  # type: ignore[union-attr]
    others = [asyncio.ensure_future(resume(client, id_, n)) for n in (0, 3, 5, 7)]
    gate.set()
    whole = seen + await resume(client, id_, len(seen) - 1)
    assert types_of(whole) == list(TEXT)
    for number, other in zip((0, 3, 5, 7), others, strict=True):
        assert await other == whole[number + 1 :]
    assert await resume(client, id_) == whole


async def test_the_sdk_goes_on_and_puts_it_together(
    client: openai.AsyncOpenAI, model: ModelServer
) -> None:
    model.script = lambda _: Plan(deltas=("a", "bc ", "d"))
    response = await ask(client)
    async with client.responses.stream(response_id=response.id) as stream:
        assert (await stream.get_final_response()).output_text == "abc d"
    async with client.responses.stream(response_id=response.id, starting_after=3) as stream:
        numbers = [event.sequence_number async for event in stream]
    assert numbers[0] == 4


async def test_what_a_number_may_be(client: openai.AsyncOpenAI) -> None:
    response = await ask(client)
    for wrong in ("-1", "x", "1.5"):
        with pytest.raises(openai.BadRequestError) as caught:
            await client.responses.retrieve(
                response.id, stream=True, extra_query={"starting_after": wrong}
            )
        assert caught.value.param == "starting_after"
    with pytest.raises(openai.BadRequestError):
        await client.responses.retrieve(response.id, starting_after=1)


async def test_it_goes_on_after_a_restart(
    model: ModelServer, tmp_path_factory: pytest.TempPathFactory, make_client: MakeClient
) -> None:
    server = start_server(model, tmp_path_factory.mktemp("again"))
    await asyncio.to_thread(server.start)
    client = make_client(server, max_retries=0)
    model.script = lambda _: Plan(reasoning=("Hm",), deltas=("a", "bc ", "d"))
    done = await follow(client)
    model.script = lambda _: Plan(deltas=("a", "bc ", "d"), at={2: Hang()})
    stream = await client.responses.create(model=MODEL, input="a", stream=True)
    seen = []
    async for event in stream:
        seen.append(event)
        if deltas_of(seen) == "abc ":
            break
    await asyncio.to_thread(server.kill)
    await asyncio.to_thread(server.start)
    client = make_client(server, max_retries=0)
    id_ = done[0].response.id
    for number in range(len(done)):
        assert await resume(client, id_, number) == done[number + 1 :]

    # What no checkpoint had kept is lost with its numbers; the client is told the end.
    lost = seen[0].response.id  # type: ignore[union-attr]
    for number in range(len(seen)):
        rest = await resume(client, lost, number)
        assert rest[-1].type == "response.failed"
        assert rest[-1].response.status == "failed"
    assert (await client.responses.retrieve(lost)).status == "failed"
    server.kill()


async def test_what_was_counted_late_is_counted_from_the_beginning(
    model: ModelServer, tmp_path_factory: pytest.TempPathFactory, make_client: MakeClient
) -> None:
    """Followed only when some of it had been kept; then the server is killed."""
    folder = tmp_path_factory.mktemp("late")
    server = start_server(model, folder, TURNKEEPER_CHECKPOINT_SECONDS="0.05")
    await asyncio.to_thread(server.start)
    client = make_client(server, max_retries=0)
    gate = asyncio.Event()
    model.script = lambda _: Plan(
        deltas=("a", "bc", "def", "ghij"), at={2: Wait(gate), 4: Hang()}, delta_delay=0.01
    )
    response = await ask(client, background=True)
    await until_kept(folder, "abc")
    stream = await client.responses.retrieve(response.id, stream=True)
    gate.set()
    seen: list[Any] = []
    async for event in stream:
        seen.append(event)
        if deltas_of(seen) == "abcdefghij":
            break
    await until_kept(folder, "abcdefghij")
    await asyncio.to_thread(server.kill)
    await asyncio.to_thread(server.start)
    again = await resume(make_client(server, max_retries=0), response.id)
    deltas = [event.delta for event in again if event.type.endswith(".delta")]
    assert deltas == [event.delta for event in seen if event.type.endswith(".delta")]
    server.kill()


async def until_kept(folder: Path, text: str) -> None:
    """Return when so much of a reply has been checkpointed."""
    with closing(sqlite3.connect(folder / "turnkeeper.db")) as database:
        while True:
            kept = database.execute("SELECT text FROM checkpoints ORDER BY position").fetchall()
            if "".join(row[0] for row in kept) == text:
                return
            await asyncio.sleep(0.01)


async def test_a_turn_of_another_dialect_is_followed(
    client: openai.AsyncOpenAI, server: Server
) -> None:
    async with httpx.AsyncClient(base_url=server.url) as http:
        answer = await http.post("/api/chat", json={"message": "hello"})
    id_ = answer.headers["turn-id"].replace("t", "resp_", 1)
    events = await resume(client, id_)
    assert events[-1].response.output_text == "You said: hello"
    for number in range(len(events)):
        assert await resume(client, id_, number) == events[number + 1 :]


async def test_a_stream_under_a_key_is_told_again(
    client: openai.AsyncOpenAI, model: ModelServer
) -> None:
    key = {"Idempotency-Key": "stream"}
    first = await follow(client, extra_headers=key)
    assert await follow(client, extra_headers=key) == first
    assert (await ask(client, extra_headers=key)).id == first[0].response.id
    assert len(model.requests) == 1


async def test_a_client_that_goes_away_stops_nothing(
    client: openai.AsyncOpenAI, model: ModelServer
) -> None:
    gate = asyncio.Event()
    model.script = lambda _: Plan(at={1: Wait(gate)})
    stream = await client.responses.create(model=MODEL, input="a", stream=True)
    async for event in stream:
        id_ = event.response.id  # type: ignore[union-attr]
        break
    await stream.close()
    gate.set()
    events = await resume(client, id_)
    assert events[-1].response.output_text == "Hello there"


# --- The traps -----------------------------------------------------------------------------------


async def test_the_bytes_of_a_stream(server: Server, model: ModelServer) -> None:
    """No `id:`, no `retry:`, each event named and in a piece of its own."""
    asked = {"model": MODEL, "input": "hello", "stream": True}
    async with httpx.AsyncClient(base_url=server.url) as http:
        answer = await http.post("/v1/responses", json=asked)
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.headers["turn-id"]
    assert answer.headers["session-id"]
    *blocks, done, end = answer.text.split("\n\n")
    assert (done, end) == ("data: [DONE]", "")
    for block in blocks:
        name, data = block.split("\n")
        assert name.startswith("event: response.")
        assert data.startswith('data: {"type":"' + name[7:] + '",')
    assert '"error":null' in blocks[-1]
