"""WebSocket mode of `/v1/responses`, by OpenAI's own SDKs and by a client that sees every frame."""

import asyncio
import json
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from openai.types.responses import ResponseStreamEvent
from pydantic import TypeAdapter
from websockets.exceptions import ConnectionClosed

from rig.model_server import Call, CallOf, ModelServer, Plan, Reset, Wait, echo
from rig.server import Server
from tests.openai.conftest import MODEL, start_server
from tests.openai.sockets import Event, Socket, open_socket, text_of

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.usefixtures("model")]

TOOL = {"type": "function", "name": "look_up", "parameters": {"type": "object", "properties": {}}}


def waiting_for(gate: asyncio.Event, *words: str) -> Any:
    """A model that says nothing to messages with one of these words before the gate opens."""

    def script(call: Call) -> Plan:
        plan = echo(call)
        if any(word in call.last_user_message for word in words):
            return Plan(deltas=plan.deltas, at={1: Wait(gate)})
        return plan

    return script


def shown(model: ModelServer) -> list[str]:
    """What the model was told last, but for the system message."""
    return [message["content"] for message in model.requests[-1].body["messages"][1:]]


async def get(server: Server, path: str) -> httpx.Response:
    async with httpx.AsyncClient(base_url=server.url) as http:
        return await http.get(path)


# --- By the SDKs ---------------------------------------------------------------------------------


async def test_the_sdk_asks_and_is_told(client: openai.AsyncOpenAI) -> None:
    """Every event is what the SDK's own types say it is."""
    any_event: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)
    async with client.responses.connect() as connection:
        for word in ("one", "two"):
            await connection.response.create(model=MODEL, input=word, store=False)
            events = []
            async for event in connection:
                any_event.validate_python(event.to_dict(), strict=True)
                events.append(event)
                if event.type == "response.completed":
                    break
            assert events[-1].response.output_text == f"You said: {word}"


# It opens connections in a way that a newer `websockets` asks it not to.
@pytest.mark.filterwarnings("ignore:connect.. must be used:DeprecationWarning")
async def test_the_sdk_without_async_too(sync_client: openai.OpenAI) -> None:
    def talk() -> list[str]:
        with sync_client.responses.connect() as connection:
            connection.response.create(model=MODEL, input="hello")
            types = []
            for event in connection:
                types.append(event.type)
                if event.type == "response.completed":
                    return types
        return []

    types = await asyncio.to_thread(talk)
    assert types[:2] == ["response.created", "response.in_progress"]


async def test_the_sdk_reads_what_went_wrong(client: openai.AsyncOpenAI) -> None:
    async with client.responses.connect() as connection:
        await connection.response.create(model="unheard-of", input="hello")
        event = await connection.recv()
    assert event.type == "error"
    type(event).model_validate(event.to_dict(), strict=True)
    assert (event.code, event.param) == ("model_not_found", "model")


# --- What is stored, and what is not -------------------------------------------------------------


async def test_what_is_stored_is_there_for_everyone(
    server: Server, client: openai.AsyncOpenAI, model: ModelServer
) -> None:
    """A response that one socket has made is read over HTTP, and gone on from on another."""
    async with open_socket(server) as socket:
        made = await socket.respond(input="first", metadata={"a": "b"})
    read = await client.responses.retrieve(made["id"])
    assert (read.output_text, read.metadata) == ("You said: first", {"a": "b"})
    async with open_socket(server) as socket:
        await socket.respond(input="second", previous_response_id=made["id"])
    assert shown(model) == ["first", "You said: first", "second"]
    over_http = await client.responses.create(
        model=MODEL, input="third", previous_response_id=made["id"]
    )
    assert over_http.output_text == "You said: third"
    assert shown(model) == ["first", "You said: first", "third"]  # a fork


async def test_a_conversation_goes_on_over_a_socket(
    server: Server, client: openai.AsyncOpenAI, model: ModelServer
) -> None:
    conversation = await client.conversations.create()
    async with open_socket(server) as socket:
        response = await socket.respond(input="here", conversation=conversation.id)
        await socket.respond(input="and not kept", conversation=conversation.id, store=False)
    assert response["conversation"] == {"id": conversation.id}
    assert shown(model) == ["here", "You said: here", "and not kept"]
    items = await client.conversations.items.list(conversation.id, order="asc")
    assert [item.content[0].text for item in items.data] == ["here", "You said: here"]


async def test_what_is_not_to_be_stored_leaves_nothing(
    server: Server, client: openai.AsyncOpenAI
) -> None:
    secret = "nothing-of-this-stays"
    async with open_socket(server) as socket:
        first = await socket.respond(input=secret, store=False)
        await socket.respond(input="more", store=False, previous_response_id=first["id"])
    with pytest.raises(openai.NotFoundError):
        await client.responses.retrieve(first["id"])
    files = [path.read_bytes() for path in server.folder.iterdir() if path.is_file()]
    assert files
    assert not any(secret.encode() in data for data in files)


async def test_what_is_not_to_be_stored_is_not_stored_later_either(server: Server) -> None:
    """To store a response that goes on from it would store it too."""
    async with open_socket(server) as socket:
        first = await socket.respond(input="off the record", store=False)
        error = await socket.fail(input="more", previous_response_id=first["id"])
    assert error["code"] == "previous_response_not_found"


async def test_what_is_not_stored_may_stand_behind_what_is(
    server: Server, model: ModelServer
) -> None:
    async with open_socket(server) as socket:
        kept = await socket.respond(input="kept")
        first = await socket.respond(input="a", store=False, previous_response_id=kept["id"])
        await socket.respond(input="b", store=False, previous_response_id=first["id"])
        assert shown(model) == ["kept", "You said: kept", "a", "You said: a", "b"]
        await socket.respond(input="c", previous_response_id=kept["id"])
    assert shown(model) == ["kept", "You said: kept", "c"]


async def test_only_the_newest_is_remembered(server: Server) -> None:
    async with open_socket(server) as socket:
        first = await socket.respond(input="a", store=False)
        await socket.respond(input="b", store=False, previous_response_id=first["id"])
        error = await socket.fail(input="c", store=False, previous_response_id=first["id"])
    assert error["code"] == "previous_response_not_found"


async def test_a_call_and_its_result(server: Server, model: ModelServer) -> None:
    def script(call: Call) -> Plan:
        if any(message["role"] == "tool" for message in call.body["messages"]):
            return echo(call)
        return Plan(deltas=(), tool_calls=(CallOf("look_up", ("{", "}"), "call_7"),))

    model.script = script
    async with open_socket(server) as socket:
        first = await socket.respond(input="look", tools=[TOOL], store=False)
        [call] = first["output"]
        result = {"type": "function_call_output", "call_id": call["call_id"], "output": "42"}
        second = await socket.respond(
            input=[result], tools=[TOOL], store=False, previous_response_id=first["id"]
        )
    assert text_of(second) == "You said: look"
    *_, called, given = model.requests[-1].body["messages"]
    assert called["tool_calls"][0]["id"] == given["tool_call_id"] == "call_7"


async def test_a_long_reply_can_be_gone_on_from(server: Server, model: ModelServer) -> None:
    """It may be longer than any message that a client sends."""
    model.script = lambda _: Plan(deltas=("x" * 50_000,) * 3)
    async with open_socket(server) as socket:
        first = await socket.respond(input="a", store=False, truncation="auto")
        second = await socket.respond(
            input="b", store=False, truncation="auto", previous_response_id=first["id"]
        )
    assert len(text_of(second)) == 150_000


# --- Getting ready -------------------------------------------------------------------------------


@pytest.mark.parametrize("store", [False, True])
async def test_without_generation_no_model_is_asked_yet(
    server: Server, model: ModelServer, store: bool
) -> None:
    rules = {"type": "message", "role": "developer", "content": "Be brief."}
    async with open_socket(server) as socket:
        events = await socket.ask(input=[rules], generate=False, store=store)
        assert [event["type"] for event in events] == [
            "response.created",
            "response.in_progress",
            "response.completed",
        ]
        ready = events[-1]["response"]
        assert (ready["output"], ready["usage"]["total_tokens"]) == ([], 0)
        assert not model.requests
        response = await socket.respond(input="Go.", store=store, previous_response_id=ready["id"])
        assert shown(model) == ["Be brief.", "Go."]
        again = {"input": "On.", "store": store, "previous_response_id": response["id"]}
        await socket.respond(**again)
    assert shown(model) == ["Be brief.", "Go.", "You said: Go.", "On."]
    assert (await get(server, f"/v1/responses/{ready['id']}")).status_code == 404
    assert (await get(server, f"/v1/responses/{response['id']}")).is_success == store


async def test_getting_ready_is_checked_like_any_request(server: Server) -> None:
    async with open_socket(server) as socket:
        error = await socket.fail(input="a", generate=False, model="unheard-of")
        assert error["code"] == "model_not_found"
        unknown = "resp_" + "0" * 26 + "_1"
        error = await socket.fail(input="a", generate=False, previous_response_id=unknown)
        assert error["code"] == "previous_response_not_found"
        error = await socket.fail(input="a", generate=False, conversation="conv_" + "0" * 26)
        assert error["param"] == "generate"
        kept = await socket.respond(input="kept")
        ready = await socket.respond(input="a", generate=False, previous_response_id=kept["id"])
        response = await socket.respond(input="b", previous_response_id=ready["id"])
    assert response["previous_response_id"] == ready["id"]


# --- One after another, and at once --------------------------------------------------------------


async def test_two_requests_at_once_are_answered_in_order(
    server: Server, model: ModelServer
) -> None:
    gate = asyncio.Event()
    model.script = waiting_for(gate, "first")
    async with open_socket(server) as socket:
        await socket.create(input="first")
        await socket.create(input="second")
        await model.wait_until(lambda: len(model.requests) == 1)
        gate.set()
        texts = [text_of((await socket.rest())[-1]["response"]) for _ in range(2)]
    assert texts == ["You said: first", "You said: second"]


async def test_lanes_are_answered_at_once(server: Server, model: ModelServer) -> None:
    """Each event says which lane it is of, and a lane keeps its own order."""
    gate = asyncio.Event()
    model.script = waiting_for(gate, "slow")
    async with open_socket(server) as socket:
        for word in ("slow", "after"):
            await socket.create(input=word, stream_id="a.1", store=False)
        fast = await socket.ask(input="fast", stream_id="b_2", store=False)
        told = [event for event in fast if event["stream_id"] == "a.1"]
        assert {event["stream_id"] for event in fast} == {"a.1", "b_2"}
        assert text_of(fast[-1]["response"]) == "You said: fast"
        gate.set()
        rest = told + await socket.rest()
        assert text_of(rest[-1]["response"]) == "You said: slow"
        assert [event["sequence_number"] for event in rest] == list(range(len(rest)))
        after = await socket.rest()
        assert {event["stream_id"] for event in after} == {"a.1"}


async def test_a_lane_forks_from_another(server: Server, model: ModelServer) -> None:
    """What a fork does in vain costs the lane that it came from nothing."""
    async with open_socket(server) as socket:
        first = await socket.respond(input="plan", stream_id="planner", store=False)
        behind = {"store": False, "previous_response_id": first["id"]}
        orphan = {"type": "function_call_output", "call_id": "x", "output": "y"}
        error = await socket.fail(input=[orphan], stream_id="critic", **behind)
        assert "x" in error["message"]
        await socket.respond(input="gaps", stream_id="critic", **behind)
        assert shown(model) == ["plan", "You said: plan", "gaps"]
        await socket.respond(input="steps", stream_id="planner", **behind)
    assert shown(model) == ["plan", "You said: plan", "steps"]


async def test_sixteen_are_made_at_once_and_the_next_waits(
    server: Server, model: ModelServer
) -> None:
    gate = asyncio.Event()
    model.script = waiting_for(gate, "word")
    before = model.calls
    async with open_socket(server) as socket:
        for number in range(17):
            await socket.create(input=f"word {number}", stream_id=f"lane{number}", store=False)
        await model.wait_for_calls(before + 16)
        await socket.create(input="a", stream_id="not one")  # it is listened to all the while
        event = await socket.receive()
        while event["type"] != "error":
            event = await socket.receive()
        assert event["code"] == "invalid_stream_id"
        assert model.calls == before + 16
        gate.set()
        ended = 0
        while ended < 17:
            ended += (await socket.receive())["type"] == "response.completed"
    assert model.calls == before + 17


async def test_there_are_only_so_many_lanes(server: Server) -> None:
    async with open_socket(server) as socket:
        for number in range(32):
            await socket.respond(input="a", stream_id=f"lane{number}", store=False)
        error = await socket.fail(input="a", stream_id="one-more", store=False)
        assert error["code"] == "websocket_stream_limit_reached"
        await socket.respond(input="a", stream_id="lane7", store=False)
        await socket.respond(input="a", store=False)


async def test_only_so_many_requests_may_wait(server: Server, model: ModelServer) -> None:
    gate = asyncio.Event()
    model.script = waiting_for(gate, "first")
    async with open_socket(server) as socket:
        await socket.create(input="first", store=False)
        for _ in range(65):
            await socket.create(input="next", store=False)
        error = None
        while error is None:
            error = (await socket.receive()).get("error")
        assert error["code"] == "websocket_queue_limit_reached"
        gate.set()
        ended = 0
        while ended < 65:
            ended += (await socket.receive())["type"] == "response.completed"


# --- What goes wrong -----------------------------------------------------------------------------


async def test_a_provider_that_fails_in_the_middle(server: Server, model: ModelServer) -> None:
    """The response failed, and what it was to go on from is forgotten."""
    async with open_socket(server) as socket:
        first = await socket.respond(input="a", store=False)
        model.script = lambda _: Plan(deltas=("Well, ", "no"), at={1: Reset()})
        behind = {"input": "b", "store": False, "previous_response_id": first["id"]}
        events = await socket.ask(**behind)
        assert events[-1]["type"] == "response.failed"
        assert events[-1]["response"]["error"]["code"] == "server_error"
        model.script = echo
        assert (await socket.fail(**behind))["code"] == "previous_response_not_found"
        assert text_of(await socket.respond(input="anew", store=False)) == "You said: anew"


@pytest.mark.parametrize(
    ("message", "code", "param"),
    [
        ("", "invalid_json", None),
        ("hello", "invalid_json", None),
        ('{"type": "response.create", "model"', "invalid_json", None),
        ("[]", "invalid_type", None),
        ("null", "invalid_type", None),
        ('"response.create"', "invalid_type", None),
        ('{"type": "response.create", "input": ' + "[" * 100_000, "invalid_value", None),
        ({}, "invalid_value", "type"),
        ({"type": "response.steer"}, "invalid_value", "type"),
        ({"type": ["response.create"]}, "invalid_value", "type"),
        ({"type": "response.create", "stream_id": ""}, "invalid_stream_id", "stream_id"),
        ({"type": "response.create", "stream_id": 7}, "invalid_stream_id", "stream_id"),
        ({"type": "response.create", "stream_id": "x" * 257}, "invalid_stream_id", "stream_id"),
        ({"type": "response.create"}, "missing_required_parameter", "input"),
        ({"type": "response.create", "input": "a", "what": 1}, "unknown_parameter", "what"),
        ({"type": "response.create", "input": "a", "generate": 1}, "invalid_type", "generate"),
        ({"type": "response.create", "input": "a", "store": "no"}, "invalid_type", "store"),
        (
            {"type": "response.create", "input": [{"role": "user", "content": [{"type": "x"}]}]},
            "invalid_value",
            "input[0].content[0].type",
        ),
    ],
    ids=lambda value: str(value)[:40],
)
async def test_a_message_that_is_none(
    server: Server, message: Any, code: str, param: str | None
) -> None:
    """It is told what is wrong with it, and the connection is as good as before."""
    async with open_socket(server) as socket:
        await socket.send(message)
        event = await socket.receive()
        assert event["status"] == 400
        assert (event["error"]["code"], event["error"]["param"]) == (code, param)
        assert text_of(await socket.respond(input="hello")) == "You said: hello"


async def test_what_only_a_stream_over_http_needs_makes_no_difference(server: Server) -> None:
    extra = {"stream": True, "stream_options": {"include_obfuscation": False}, "background": False}
    async with open_socket(server) as socket:
        assert text_of(await socket.respond(input="hello", **extra)) == "You said: hello"


# --- Clients that go away ------------------------------------------------------------------------


async def test_a_stored_response_is_made_without_its_client(
    server: Server, client: openai.AsyncOpenAI, model: ModelServer
) -> None:
    gate = asyncio.Event()
    model.script = waiting_for(gate, "left")
    async with open_socket(server) as socket:
        await socket.create(input="left alone")
        made = (await socket.receive())["response"]
        await model.wait_until(lambda: len(model.requests) == 1)
    gate.set()
    stream = await client.responses.retrieve(made["id"], stream=True)
    events = [event async for event in stream]
    assert events[-1].type == "response.completed"
    assert events[-1].response.output_text == "You said: left alone"


async def test_a_response_that_is_not_stored_ends_with_its_client(
    server: Server, model: ModelServer
) -> None:
    gone = model.disconnects
    model.script = waiting_for(asyncio.Event(), "left")
    async with open_socket(server) as socket:
        await socket.create(input="left alone", store=False)
        while (await socket.receive())["type"] != "response.output_text.delta":
            pass
    await model.wait_for_disconnects(gone + 1)


# --- Their time, and the server's ----------------------------------------------------------------


async def test_a_connection_is_open_for_only_so_long(model: ModelServer, tmp_path: Path) -> None:
    """What is being made then is told to its end; the next needs another connection."""
    gate = asyncio.Event()
    model.script = waiting_for(gate, "slow")
    with start_server(model, tmp_path, "--socket-lifetime", "0.5") as server:
        async with open_socket(server) as idle, open_socket(server) as busy:
            await busy.create(input="slow")
            event = await idle.receive()
            assert (event["status"], event["code"]) == (400, "websocket_connection_limit_reached")
            with pytest.raises(ConnectionClosed) as closed:
                await idle.receive()
            assert closed.value.rcvd is not None
            assert closed.value.rcvd.code == 1001
            gate.set()
            assert text_of((await busy.rest())[-1]["response"]) == "You said: slow"
            assert (await busy.receive())["code"] == "websocket_connection_limit_reached"


async def test_a_server_that_stops_says_goodbye(model: ModelServer, tmp_path: Path) -> None:
    """Nobody is left in doubt about a response, and every connection is closed with the reason."""
    model.script = waiting_for(asyncio.Event(), "slow")
    server = start_server(model, tmp_path, "--grace", "0").start()
    async with open_socket(server) as idle, open_socket(server) as busy:
        await busy.create(input="slow")
        await busy.create(input="too late")
        made = (await busy.receive())["response"]
        await model.wait_until(lambda: len(model.requests) == 1)
        stopped = asyncio.create_task(asyncio.to_thread(server.stop))
        events = await busy.rest()
        assert events[-1]["type"] == "response.failed"
        assert events[-1]["response"]["id"] == made["id"]
        assert (await busy.receive())["code"] == "server_stopping"
        for socket in (idle, busy):
            with pytest.raises(ConnectionClosed) as closed:
                await socket.receive()
            assert closed.value.rcvd is not None
            assert closed.value.rcvd.code == 1001
    assert await stopped == 0
    assert len(server.log) == 1


async def test_a_stopping_server_takes_no_more(model: ModelServer, tmp_path: Path) -> None:
    gate = asyncio.Event()
    model.script = waiting_for(gate, "slow")
    server = start_server(model, tmp_path, "--grace", "20").start()
    async with open_socket(server) as busy, open_socket(server) as other:
        await busy.create(input="slow")
        await model.wait_until(lambda: len(model.requests) == 1)
        stopped = asyncio.create_task(asyncio.to_thread(server.stop))
        event = await _first_refusal(other)
        assert (event["status"], event["code"]) == (503, "server_stopping")
        assert event["headers"] == {"retry-after": "1"}
        gate.set()
        assert text_of((await busy.rest())[-1]["response"]) == "You said: slow"
    assert await stopped == 0


async def _first_refusal(socket: Socket) -> Event:
    """What is said to the first request that comes too late."""
    while True:
        event = (await socket.ask(input="hello", store=False))[-1]
        if event["type"] == "error":
            return event


async def test_events_are_bare_json(server: Server) -> None:
    async with open_socket(server) as socket:
        await socket.create(input="hello")
        event = {"type": ""}
        while event["type"] != "response.completed":
            message = await socket.connection.recv()
            assert isinstance(message, str)
            event = json.loads(message)
        await socket.create(input="again")
        assert json.loads(await socket.connection.recv())["type"] == "response.created"  # no [DONE]
