"""Responses, by the official SDK against a real server: made, read, chained, deleted."""

import asyncio
import json
from typing import Any

import httpx
import openai
import pytest
from openai.types.responses import Response
from pydantic import BaseModel

from rig.model_server import CallOf, Hang, ModelServer, Plan, Wait
from rig.server import Server
from tests.openai.conftest import MODEL, MakeClient, start_server

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.usefixtures("model")]

WEATHER: Any = {
    "type": "function",
    "name": "weather",
    "description": "of a town",
    "parameters": {"type": "object", "properties": {"town": {"type": "string"}}},
    "strict": True,
}
SHELL: Any = {"type": "custom", "name": "shell", "description": "runs it"}
TWO_CALLS = Plan(
    deltas=(),
    tool_calls=(
        CallOf("weather", ('{"town":', '"Rome"}'), "call_a"),
        CallOf("weather", ('{"town":"', 'Oslo"}'), "call_b"),
    ),
    finish_reason="tool_calls",
)
DEAD = Plan(status=500, body={"error": {"message": "dead"}})


async def ask(client: openai.AsyncOpenAI, input_: Any = "hello", **more: Any) -> Response:
    return await client.responses.create(**{"model": MODEL, "input": input_} | more)


async def refused(client: openai.AsyncOpenAI, *args: Any, **more: Any) -> openai.APIStatusError:
    with pytest.raises(openai.APIStatusError) as caught:
        await ask(client, *args, **more)
    return caught.value


USUAL = {"role": "system", "content": "You are a helpful AI assistant."}


def shown(model: ModelServer) -> Any:
    """What the model was shown last, without what it is always told."""
    return [m for m in model.requests[-1].body["messages"] if m != USUAL]


# --- Made --------------------------------------------------------------------------------------


async def test_a_response(client: openai.AsyncOpenAI, model: ModelServer) -> None:
    response = await ask(client)
    assert response.output_text == "You said: hello"
    assert (response.status, response.model) == ("completed", MODEL)
    assert response.id.startswith("resp_")
    assert response.usage is not None
    assert response.usage.total_tokens == response.usage.input_tokens + 3
    assert shown(model) == [{"role": "user", "content": "hello"}]


async def test_it_has_every_field_that_its_schema_requires(client: openai.AsyncOpenAI) -> None:
    raw = json.loads((await ask(client)).to_json())
    for name in ("temperature", "top_p", "presence_penalty", "frequency_penalty"):
        assert isinstance(raw[name], float | int)
    assert raw["safety_identifier"] is None
    assert raw["text"] == {"format": {"type": "text"}, "verbosity": "medium"}
    assert raw["completed_at"] >= raw["created_at"]
    for name in ("tools", "metadata", "service_tier", "tool_choice", "store", "truncation"):
        assert raw[name] is not None
    assert raw["usage"]["input_tokens_details"]["cached_tokens"] == 0
    assert raw["usage"]["output_tokens_details"]["reasoning_tokens"] == 0


async def test_the_client_without_async(sync_client: openai.OpenAI, model: ModelServer) -> None:
    def talk() -> tuple[str, str, str]:
        whole = sync_client.responses.create(model=MODEL, input="one")
        with sync_client.responses.stream(model=MODEL, input="two") as stream:
            streamed = stream.get_final_response().output_text
        return whole.output_text, streamed, sync_client.responses.retrieve(whole.id).output_text

    said = await asyncio.to_thread(talk)
    assert said == ("You said: one", "You said: two", "You said: one")


async def test_what_was_asked_is_told(client: openai.AsyncOpenAI, model: ModelServer) -> None:
    asked: dict[str, Any] = {
        "instructions": "Be brief.",
        "temperature": 0.5,
        "top_p": 0.9,
        "max_output_tokens": 50,
        "metadata": {"a": "b"},
        "safety_identifier": "someone",
        "prompt_cache_key": "here",
        "parallel_tool_calls": False,
        "tools": [WEATHER],
        "tool_choice": "auto",
        "truncation": "disabled",
        "user": "ann",
    }
    told = (await ask(client, reasoning={"effort": "low"}, **asked)).to_dict()
    assert {name: told[name] for name in asked} == asked
    assert told["reasoning"] == {"effort": "low", "summary": None}
    sent = model.requests[-1].body
    assert sent["temperature"] == 0.5
    assert sent["reasoning_effort"] == "low"
    assert sent["parallel_tool_calls"] is False
    assert shown(model)[0] == {"role": "system", "content": "Be brief."}
    again = (await client.responses.retrieve(str(told["id"]))).to_dict()
    assert again == told


async def test_instructions_hold_for_one_turn(
    client: openai.AsyncOpenAI, model: ModelServer
) -> None:
    first = await ask(client, instructions="Be brief.")
    await ask(client, previous_response_id=first.id)
    assert [message["role"] for message in shown(model)] == ["user", "assistant", "user"]


async def test_input_of_every_kind(client: openai.AsyncOpenAI, model: ModelServer) -> None:
    image = "data:image/png;base64,iVBORw0KGgo="
    await ask(
        client,
        [
            {"role": "developer", "content": "Be kind."},
            {"role": "user", "content": "one"},
            {
                "type": "message",
                "role": "assistant",
                "id": "msg_1",
                "status": "completed",
                "content": [{"type": "output_text", "text": "two", "annotations": []}],
            },
            {"type": "reasoning", "id": "rs_1", "summary": [{"type": "summary_text", "text": "h"}]},
            {"type": "function_call", "call_id": "c1", "name": "weather", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "c1", "output": "rain"},
            {"type": "custom_tool_call", "call_id": "c2", "name": "shell", "input": "ls"},
            {
                "type": "custom_tool_call_output",
                "call_id": "c2",
                "output": [{"type": "input_text", "text": "none"}],
            },
            {
                "role": "user",
                "content": [
                    {"type": "input_text", "text": "what is this?"},
                    {"type": "input_image", "image_url": image, "detail": "low"},
                ],
            },
        ],
        tools=[WEATHER, SHELL],
    )
    sent = shown(model)
    roles = ["system", "user", "assistant", "tool", "assistant", "tool", "user"]
    assert [message["role"] for message in sent] == roles
    assert [call["id"] for m in sent for call in m.get("tool_calls", ())] == ["c1", "c2"]
    assert sent[-1]["content"][1]["image_url"] == {"url": image, "detail": "low"}


async def test_outputs_can_be_sent_back(client: openai.AsyncOpenAI, model: ModelServer) -> None:
    """As clients do that keep the conversation themselves."""
    model.script = lambda _: Plan(reasoning=("Hm.",), deltas=("Rain.",))
    first = await ask(client)
    assert [item.type for item in first.output] == ["reasoning", "message"]
    await ask(client, [{"role": "user", "content": "hello"}, *first.output, USER])
    assert [m["content"] for m in shown(model)] == ["hello", "Rain.", "and?"]


USER: Any = {"role": "user", "content": "and?"}


async def test_a_reference_stands_for_its_item(
    client: openai.AsyncOpenAI, model: ModelServer
) -> None:
    first = await ask(client, "one")
    [message] = first.output
    await ask(client, [{"type": "item_reference", "id": message.id}, USER])
    assert [m["content"] for m in shown(model)] == ["You said: one", "and?"]
    error = await refused(client, [{"type": "item_reference", "id": f"{message.id}9"}, USER])
    assert error.param == "input[0].id"


async def test_incomplete(client: openai.AsyncOpenAI, model: ModelServer) -> None:
    for finish, reason in (("length", "max_output_tokens"), ("content_filter", "content_filter")):
        model.script = lambda _, finish=finish: Plan(finish_reason=finish)
        response = await ask(client)
        assert response.status == "incomplete"
        assert response.incomplete_details is not None
        assert response.incomplete_details.reason == reason
        assert response.output_text == "Hello there"


async def test_refusal(client: openai.AsyncOpenAI, model: ModelServer) -> None:
    model.script = lambda _: Plan(deltas=(), refusal=("I ", "won't."))
    response = await ask(client)
    [item] = response.output
    assert item.type == "message"
    assert [part.to_dict() for part in item.content] == [{"type": "refusal", "refusal": "I won't."}]
    assert (await client.responses.retrieve(response.id)).output == response.output


# --- Tools and forms ---------------------------------------------------------------------------


async def test_tools_run_by_the_client(client: openai.AsyncOpenAI, model: ModelServer) -> None:
    model.script = lambda _: TWO_CALLS
    first = await ask(client, "weather?", tools=[WEATHER])
    calls = [item for item in first.output if item.type == "function_call"]
    assert [(call.call_id, call.arguments) for call in calls] == [
        ("call_a", '{"town":"Rome"}'),
        ("call_b", '{"town":"Oslo"}'),
    ]
    model.script = lambda _: Plan(deltas=("Rain and ", "snow."))
    results: Any = [
        {"type": "function_call_output", "call_id": call.call_id, "output": "wet"} for call in calls
    ]
    second = await ask(client, results, previous_response_id=first.id, tools=[WEATHER])
    assert second.output_text == "Rain and snow."
    sent = shown(model)
    assert [m["role"] for m in sent] == ["user", "assistant", "tool", "tool"]
    assert [call["id"] for call in sent[1]["tool_calls"]] == ["call_a", "call_b"]


async def test_a_result_needs_its_call(client: openai.AsyncOpenAI, model: ModelServer) -> None:
    result: Any = [{"type": "function_call_output", "call_id": "call_x", "output": "wet"}]
    first = await ask(client)
    for more in ({}, {"previous_response_id": first.id}):
        error = await refused(client, result, **more)
        assert (error.status_code, error.param) == (400, "input")
        assert "call_x" in error.message


async def test_custom_tools(client: openai.AsyncOpenAI, model: ModelServer) -> None:
    call = CallOf("shell", ('{"input"', ':"ls -l"}'), "call_a")
    model.script = lambda _: Plan(deltas=(), tool_calls=(call,), finish_reason="tool_calls")
    response = await ask(client, tools=[SHELL])
    [item] = response.output
    assert item.type == "custom_tool_call"
    assert (item.name, item.input) == ("shell", "ls -l")
    assert model.requests[-1].body["tools"][0]["function"]["name"] == "shell"
    output: Any = {"type": "custom_tool_call_output", "call_id": "call_a", "output": "none"}
    model.script = lambda _: Plan()
    await ask(client, [output], previous_response_id=response.id, tools=[SHELL])
    assert shown(model)[-1] == {"role": "tool", "tool_call_id": "call_a", "content": "none"}


HOSTED: Any = [
    {"type": "web_search"},
    {"type": "local_shell"},
    {"type": "mcp", "server_label": "x", "server_url": "http://localhost"},
]


async def test_tools_that_nobody_runs_are_left_out(
    client: openai.AsyncOpenAI, model: ModelServer
) -> None:
    response = await ask(client, tools=[*HOSTED, WEATHER])
    assert [tool.type for tool in response.tools] == [
        "web_search",
        "local_shell",
        "mcp",
        "function",
    ]
    assert [t["function"]["name"] for t in model.requests[-1].body["tools"]] == ["weather"]
    await ask(client, tools=HOSTED)
    assert "tools" not in model.requests[-1].body
    for choice in ({"type": "web_search"}, {"type": "mcp", "server_label": "x"}, "required"):
        error = await refused(client, tools=HOSTED, tool_choice=choice)
        assert (error.status_code, error.param) == (400, "tool_choice")


async def test_which_tool(client: openai.AsyncOpenAI, model: ModelServer) -> None:
    function = {"type": "function", "function": {"name": "weather"}}
    for choice, sent in (
        ("none", "none"),
        ("required", "required"),
        ({"type": "function", "name": "weather"}, function),
        (
            {
                "type": "allowed_tools",
                "mode": "required",
                "tools": [{"type": "function", "name": "weather"}],
            },
            "required",
        ),
    ):
        await ask(client, tools=[WEATHER, SHELL], tool_choice=choice)
        assert model.requests[-1].body["tool_choice"] == sent
    assert len(model.requests[-1].body["tools"]) == 1
    error = await refused(client, tools=[WEATHER], tool_choice={"type": "function", "name": "x"})
    assert error.param == "tool_choice.name"


class Person(BaseModel):
    name: str
    age: int


@pytest.mark.filterwarnings("ignore:Pydantic serializer warnings")  # the SDK's own
async def test_structured_output(client: openai.AsyncOpenAI, model: ModelServer) -> None:
    model.script = lambda _: Plan(deltas=('{"name":"Ann",', '"age":7}'))
    response = await client.responses.parse(model=MODEL, input="who?", text_format=Person)
    assert response.output_parsed == Person(name="Ann", age=7)
    form = model.requests[-1].body["response_format"]
    assert form["type"] == "json_schema"
    assert form["json_schema"]["name"] == "Person"
    assert form["json_schema"]["strict"] is True
    again: Any = [{"role": "user", "content": "who?"}, *response.output, USER]
    await client.responses.parse(model=MODEL, input=again, text_format=Person)
    await ask(client, text={"format": {"type": "json_object"}})
    assert model.requests[-1].body["response_format"] == {"type": "json_object"}


# --- Chains and conversations ------------------------------------------------------------------


async def test_a_chain(client: openai.AsyncOpenAI, model: ModelServer) -> None:
    first = await ask(client, "one")
    second = await ask(client, "two", previous_response_id=first.id)
    assert second.previous_response_id == first.id
    said = ["one", "You said: one", "two"]
    assert [message["content"] for message in shown(model)] == said


async def test_answering_to_an_older_response_forks(
    client: openai.AsyncOpenAI, model: ModelServer
) -> None:
    first = await ask(client, "one")
    second = await ask(client, "two", previous_response_id=first.id)
    other = await ask(client, "three", previous_response_id=first.id)
    assert [m["content"] for m in shown(model)] == ["one", "You said: one", "three"]
    await ask(client, "four", previous_response_id=other.id)
    assert [m["content"] for m in shown(model)][2:] == ["three", "You said: three", "four"]
    await ask(client, "five", previous_response_id=second.id)
    assert [m["content"] for m in shown(model)][2:] == ["two", "You said: two", "five"]


async def test_an_unknown_previous_response(client: openai.AsyncOpenAI) -> None:
    first = await ask(client)
    for id_ in ("resp_x", "nonsense", f"{first.id}0"):
        for more in ({}, {"store": False}):
            error = await refused(client, previous_response_id=id_, **more)
            assert (error.status_code, error.param) == (400, "previous_response_id")
            assert error.code == "previous_response_not_found"


async def test_a_conversation(client: openai.AsyncOpenAI, model: ModelServer) -> None:
    conversation = await client.conversations.create()
    first = await ask(client, "one", conversation=conversation.id)
    assert first.conversation is not None
    assert first.conversation.id == conversation.id
    await ask(client, "two", conversation={"id": conversation.id})
    assert [m["content"] for m in shown(model)] == ["one", "You said: one", "two"]
    items = await client.conversations.items.list(conversation.id, order="asc")
    assert [item.type for item in items.data] == ["message"] * 4
    missing = conversation.id[:-1] + ("0" if conversation.id[-1] != "0" else "1")
    for id_ in (missing, "conv_x y"):
        error = await refused(client, conversation=id_)
        assert (error.status_code, error.code) == (404, "not_found")
    error = await refused(client, conversation=conversation.id, previous_response_id=first.id)
    assert (error.status_code, error.param) == (400, "previous_response_id")


async def test_twenty_clients_in_one_conversation(
    client: openai.AsyncOpenAI, model: ModelServer
) -> None:
    conversation = await client.conversations.create()
    responses = await asyncio.gather(
        *[ask(client, f"number {n}", conversation=conversation.id) for n in range(20)]
    )
    assert sorted(r.output_text for r in responses) == sorted(
        f"You said: number {n}" for n in range(20)
    )
    assert len({r.id for r in responses}) == 20
    said = [
        item.content[0].text  # type: ignore[union-attr]
        async for item in client.conversations.items.list(conversation.id, order="asc")
    ]
    assert [said[n + 1] for n in range(0, 40, 2)] == [
        f"You said: {said[n]}" for n in range(0, 40, 2)
    ]


async def test_a_summary_stands_for_what_no_longer_fits(
    client: openai.AsyncOpenAI, model: ModelServer
) -> None:
    """Where the client asks for compaction, and only then."""
    long = [said(f"{n} " + "otters " * 13_000) for n in range(2)]
    for more, told in (({}, False), ({"context_management": [{"type": "compaction"}]}, True)):
        conversation = await client.conversations.create()
        for item in long:
            await client.conversations.items.create(conversation.id, items=[item])
        model.requests.clear()
        await ask(client, "and?", conversation=conversation.id, **more)
        assert (len(model.requests) > 1) is told


def said(text: str) -> Any:
    return {"role": "user", "content": text}


# --- Nothing kept ------------------------------------------------------------------------------


async def sessions(server: Server) -> Any:
    async with httpx.AsyncClient(base_url=server.url) as http:
        return (await http.get("/api/chat-sessions?limit=100")).json()["chat_sessions"]


async def test_what_is_not_stored_leaves_nothing(
    client: openai.AsyncOpenAI, server: Server, model: ModelServer
) -> None:
    before = await sessions(server)
    response = await ask(client, store=False)
    assert (response.output_text, response.to_dict()["store"]) == ("You said: hello", False)
    assert await sessions(server) == before
    with pytest.raises(openai.NotFoundError):
        await client.responses.retrieve(response.id)
    first = await ask(client, "one")
    await ask(client, "two", previous_response_id=first.id, store=False)
    assert [m["content"] for m in shown(model)] == ["one", "You said: one", "two"]
    await ask(client, "three", previous_response_id=first.id)
    assert [m["content"] for m in shown(model)] == ["one", "You said: one", "three"]


# --- Read, deleted, cancelled ------------------------------------------------------------------


async def test_it_is_read_again(client: openai.AsyncOpenAI) -> None:
    response = await ask(client)
    assert await client.responses.retrieve(response.id) == response
    with pytest.raises(openai.NotFoundError):
        await client.responses.retrieve("resp_x")


async def test_a_turn_of_another_dialect_is_a_response(
    client: openai.AsyncOpenAI, server: Server
) -> None:
    async with httpx.AsyncClient(base_url=server.url) as http:
        answer = await http.post("/api/chat", json={"message": "hello"})
    id_ = answer.headers["turn-id"].replace("t", "resp_", 1)
    response = await client.responses.retrieve(id_)
    assert response.output_text == "You said: hello"
    assert response.conversation is not None
    items = await client.responses.input_items.list(id_)
    assert [item.type for item in items.data] == ["message"]
    await ask(client, "more", previous_response_id=id_)


async def test_replies_sent_along_are_no_reply(
    client: openai.AsyncOpenAI, server: Server, model: ModelServer
) -> None:
    """A client that resends the conversation sends older replies with it."""
    history: Any = [
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": "two"},
        {"role": "user", "content": "three"},
    ]
    done = await ask(client, history)
    assert (await client.responses.retrieve(done.id)) == done
    items = await client.responses.input_items.list(done.id, order="asc")
    assert len(items.data) == 3
    model.script = lambda _: DEAD
    error = await refused(client, history)
    turn = error.response.headers["turn-id"]
    failed = await client.responses.retrieve(turn.replace("t", "resp_", 1))
    assert (failed.status, failed.output) == ("failed", [])
    async with httpx.AsyncClient(base_url=server.url) as http:
        events = (await http.get(f"/api/turns/{turn}/events?after=0")).text
    assert "two" not in events


async def test_a_chain_loses_what_is_deleted(
    client: openai.AsyncOpenAI, model: ModelServer
) -> None:
    first = await ask(client, "one")
    second = await ask(client, "two", previous_response_id=first.id)
    await client.responses.delete(second.id)
    with pytest.raises(openai.NotFoundError):
        await client.responses.retrieve(second.id)
    with pytest.raises(openai.NotFoundError):
        await client.responses.delete(second.id)
    await ask(client, "three", previous_response_id=first.id)
    assert [m["content"] for m in shown(model)] == ["one", "You said: one", "three"]


async def test_a_conversation_keeps_the_items_of_what_is_deleted(
    client: openai.AsyncOpenAI, model: ModelServer
) -> None:
    conversation = await client.conversations.create()
    first = await ask(client, "one", conversation=conversation.id)
    await client.responses.delete(first.id)
    await ask(client, "two", conversation=conversation.id)
    assert [m["content"] for m in shown(model)] == ["one", "You said: one", "two"]


async def test_input_items_page_by_page(client: openai.AsyncOpenAI) -> None:
    asked: Any = [{"role": "user", "content": f"{n}"} for n in range(7)]
    response = await ask(client, asked)
    for order, expected in (("asc", "0123456"), ("desc", "6543210")):
        for limit in (1, 3, 7, 100):
            items: Any = client.responses.input_items.list(response.id, order=order, limit=limit)
            assert "".join([item.content[0].text async for item in items]) == expected
    assert len({item.id async for item in client.responses.input_items.list(response.id)}) == 7
    for wrong in ({"limit": 0}, {"limit": 101}, {"order": "up"}, {"after": "msg_x"}):
        with pytest.raises(openai.BadRequestError) as caught:
            await client.responses.input_items.list(response.id, **wrong)
        assert caught.value.param == next(iter(wrong))


async def test_background(client: openai.AsyncOpenAI, model: ModelServer) -> None:
    gate = asyncio.Event()
    model.script = lambda _: Plan(at={1: Wait(gate)})
    response = await ask(client, background=True)
    assert (response.status, response.background) == ("in_progress", True)
    assert response.output == []
    assert (await client.responses.retrieve(response.id)).status == "in_progress"
    gate.set()
    while (await client.responses.retrieve(response.id)).status == "in_progress":
        pass
    done = await client.responses.retrieve(response.id)
    assert (done.status, done.output_text) == ("completed", "Hello there")
    error = await refused(client, background=True, store=False)
    assert (error.status_code, error.param) == (400, "background")


async def test_what_waits_is_queued(client: openai.AsyncOpenAI, model: ModelServer) -> None:
    gate = asyncio.Event()
    model.script = lambda _: Plan(at={1: Wait(gate)})
    conversation = await client.conversations.create()
    first = await ask(client, background=True, conversation=conversation.id)
    second = await ask(client, background=True, conversation=conversation.id)
    assert (first.status, second.status) == ("in_progress", "queued")
    cancelled = await client.responses.cancel(second.id)
    assert cancelled.status == "cancelled"
    gate.set()


async def test_cancelled(client: openai.AsyncOpenAI, model: ModelServer) -> None:
    model.script = lambda _: Plan(at={1: Hang()})
    response = await ask(client, background=True)
    await model.wait_until(lambda: model.open_calls == 1)
    assert (await client.responses.cancel(response.id)).status == "cancelled"
    assert (await client.responses.cancel(response.id)).status == "cancelled"
    assert (await client.responses.retrieve(response.id)).status == "cancelled"
    await model.wait_until(lambda: model.open_calls == 0)
    model.script = lambda _: Plan()
    done = await ask(client)
    with pytest.raises(openai.BadRequestError, match="Cannot cancel a completed response"):
        await client.responses.cancel(done.id)


async def test_whoever_waits_is_told_of_a_cancel(
    client: openai.AsyncOpenAI, model: ModelServer
) -> None:
    model.script = lambda _: Plan(at={1: Hang()})
    conversation = await client.conversations.create()
    waiting = asyncio.ensure_future(ask(client, conversation=conversation.id))
    await model.wait_until(lambda: model.open_calls == 1)
    page = await client.conversations.items.list(conversation.id)
    await client.responses.cancel("resp_" + page.data[0].id[4:].rpartition("_")[0])  # type: ignore[operator,union-attr]
    assert (await waiting).status == "cancelled"


# --- Deployments -------------------------------------------------------------------------------


async def test_a_prompt_is_a_deployment(
    client: openai.AsyncOpenAI, server: Server, model: ModelServer
) -> None:
    blueprint = {
        "name": "tutor",
        "system_message": "Teach {subject}.",
        "messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}],
        "temperature": 0.25,
        "max_tokens": 77,
    }
    async with httpx.AsyncClient(base_url=server.url) as http:
        made = (await http.post("/api/deployments", json=blueprint)).json()
        await http.put("/api/deployments/tutor", json={"system_message": "Be new."})
    id_ = made["deployment"]["engineStateId"]
    for version in ("1", id_):
        prompt: Any = {"id": "tutor", "version": version, "variables": {"subject": "art"}}
        response = await ask(client, prompt=prompt, temperature=0.5)
        assert [m["content"] for m in shown(model)] == ["Teach art.", "Hi", "Hello", "hello"]
        sent = model.requests[-1].body
        assert (sent["temperature"], sent["max_tokens"]) == (0.5, 77)
        assert response.prompt is not None
        assert response.prompt.id == "tutor"
    await ask(client, prompt={"id": "tutor"})
    assert shown(model)[0]["content"] == "Be new."
    await ask(client, previous_response_id=response.id)
    assert shown(model)[0]["role"] == "user"
    for prompt in ({"id": "nobody"}, {"id": "tutor", "version": "9"}, {"id": "No Name"}):
        assert (await refused(client, prompt=prompt)).status_code == 404


# --- Errors ------------------------------------------------------------------------------------

WRONG: list[tuple[dict[str, Any], str, str]] = [
    ({"temperature": "hot"}, "temperature", "invalid_type"),
    ({"temperature": 3}, "temperature", "invalid_value"),
    ({"stream": "yes"}, "stream", "invalid_type"),
    ({"metadata": {"a": 1}}, "metadata.a", "invalid_value"),
    ({"metadata": {"a": "b" * 513}}, "metadata.a", "invalid_value"),
    ({"metadata": {str(n): "" for n in range(17)}}, "metadata", "invalid_value"),
    ({"text": {"format": {"type": "xml"}}}, "text.format.type", "invalid_value"),
    ({"text": {"formats": {}}}, "text.formats", "unknown_parameter"),
    ({"tools": [{"type": "function"}]}, "tools[0].name", "missing_required_parameter"),
    ({"tools": [WEATHER, WEATHER]}, "tools[1].name", "invalid_value"),
    ({"tools": {}}, "tools", "invalid_type"),
    ({"tool_choice": "some"}, "tool_choice", "invalid_value"),
    ({"input": 7}, "input", "invalid_type"),
    ({"input": " "}, "input", "invalid_value"),
    ({"input": []}, "input", "missing_required_parameter"),
    ({"input": "a\0b"}, "input", "invalid_value"),
    ({"user": " "}, "user", "invalid_value"),
    ({"input": [{"role": "user", "content": 7}]}, "input[0].content", "invalid_type"),
    ({"input": [{"role": "user", "content": ""}]}, "input[0].content", "invalid_value"),
    ({"input": [{"role": "king", "content": "a"}]}, "input[0].role", "invalid_value"),
    ({"input": [{"type": "shell_call"}]}, "input[0].type", "unsupported_parameter"),
    (
        {"input": [{"role": "user", "content": [{"type": "input_file", "file_id": "f"}]}]},
        "input[0].content[0].type",
        "unsupported_parameter",
    ),
    (
        {"input": [{"role": "user", "content": [{"type": "input_image", "file_id": "f"}]}]},
        "input[0].content[0].file_id",
        "unsupported_parameter",
    ),
    ({"input": [{"role": "user", "content": "a", "zip": 1}]}, "input[0].zip", "unknown_parameter"),
    ({"top_logprobs": 2}, "top_logprobs", "unsupported_parameter"),
    ({"include": ["message.output_text.logprobs"]}, "include", "unsupported_parameter"),
    ({"include": ["all"]}, "include[0]", "invalid_value"),
    ({"moderation": {"model": "m"}}, "moderation", "unsupported_parameter"),
    ({"truncation": "some"}, "truncation", "invalid_value"),
    (
        {"context_management": [{"type": "x"}]},
        "context_management[0].type",
        "unsupported_parameter",
    ),
    ({"extra_body": {"surprise": 1}}, "surprise", "unknown_parameter"),
    ({"max_output_tokens": 0}, "max_output_tokens", "invalid_value"),
    ({"reasoning": {"effort": "huge"}}, "reasoning.effort", "invalid_value"),
]


@pytest.mark.parametrize(("asked", "param", "code"), WRONG, ids=lambda value: str(value)[:40])
async def test_what_is_wrong_is_named(
    client: openai.AsyncOpenAI, model: ModelServer, asked: dict[str, Any], param: str, code: str
) -> None:
    error = await refused(client, **asked)
    assert (error.status_code, error.param, error.code) == (400, param, code)
    assert error.type == "invalid_request_error"
    assert model.requests == []


async def test_no_input(client: openai.AsyncOpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        await client.responses.create(model=MODEL)
    assert caught.value.param == "input"


async def test_what_is_no_json(server: Server) -> None:
    async with httpx.AsyncClient(base_url=server.url) as http:
        huge = b'{"input": "a", "tools": [{"type": "x", "a": 1e999}]}'
        for body in (b"{", b"[]", b'"a"', b'{"input": "\xff"}', b"[" * 100_000, huge):
            answer = await http.post("/v1/responses", content=body)
            assert answer.status_code == 400
            assert answer.json()["error"]["type"] == "invalid_request_error"


async def test_an_unknown_model(client: openai.AsyncOpenAI) -> None:
    error = await refused(client, model="nobody")
    assert (error.status_code, error.param, error.code) == (404, "model", "model_not_found")


async def test_a_failure_stores_one_turn_however_often_the_client_tries(
    server: Server, make_client: MakeClient, model: ModelServer
) -> None:
    patient = make_client(server, max_retries=2)
    model.script = lambda _: DEAD
    conversation = await patient.conversations.create()
    error = await refused(patient, conversation=conversation.id)
    assert error.status_code == 502
    assert error.response.headers["x-should-retry"] == "false"
    assert len(model.requests) == 1
    items = await patient.conversations.items.list(conversation.id)
    assert [item.status for item in items.data] == ["incomplete"]  # type: ignore[union-attr]
    ref = error.response.headers["turn-id"].replace("t", "resp_", 1)
    failed = await patient.responses.retrieve(ref)
    assert failed.status == "failed"
    assert failed.error is not None
    assert failed.error.code == "server_error"


async def test_what_is_not_stored_may_be_tried_again(
    server: Server, make_client: MakeClient, model: ModelServer
) -> None:
    patient = make_client(server, max_retries=1)
    model.script = lambda call: DEAD if call.number == 1 else Plan()
    model.script = lambda _: DEAD if len(model.requests) == 1 else Plan()
    assert (await ask(patient, store=False)).output_text == "Hello there"
    assert len(model.requests) == 2


async def test_under_a_key_it_is_done_once(
    client: openai.AsyncOpenAI, server: Server, model: ModelServer
) -> None:
    key = {"Idempotency-Key": "once"}
    first = await ask(client, "one", extra_headers=key)
    again = await client.responses.with_raw_response.create(
        model=MODEL, input="one", extra_headers=key
    )
    assert again.headers["idempotent-replayed"] == "true"
    assert again.parse() == first
    assert len(model.requests) == 1
    error = await refused(client, "two", extra_headers=key)
    assert error.status_code == 422
    error = await refused(client, store=False, extra_headers=key)
    assert error.status_code == 400
    second = await ask(client, "two", previous_response_id=first.id)
    forked = {"Idempotency-Key": "fork"}
    more: Any = {"previous_response_id": first.id, "extra_headers": forked}
    third = await ask(client, "three", **more)
    assert await ask(client, "three", **more) == third
    assert second.id != third.id


async def test_a_busy_conversation_under_reject(
    model: ModelServer, tmp_path_factory: pytest.TempPathFactory, make_client: MakeClient
) -> None:
    folder = tmp_path_factory.mktemp("reject")
    (folder / "turnkeeper.toml").write_text('[deployments.default]\nconcurrency = "reject"\n')
    server = start_server(model, folder, "--config", "turnkeeper.toml")
    await asyncio.to_thread(server.start)
    try:
        client = make_client(server, max_retries=2)
        model.script = lambda _: Plan(at={1: Hang()})
        conversation = await client.conversations.create()
        running = await ask(client, background=True, conversation=conversation.id)
        error = await refused(client, conversation=conversation.id)
        assert (error.status_code, error.param) == (400, "conversation")
        assert (error.code, error.type) == ("conversation_locked", "invalid_request_error")
        await client.responses.cancel(running.id)
    finally:
        server.kill()
