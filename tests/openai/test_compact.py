"""`/v1/responses/compact` and `/v1/responses/input_tokens`, by the official SDK."""

import asyncio
from collections.abc import Mapping
from typing import Any

import httpx
import openai
import pytest

from rig.model_server import Call, Hang, ModelServer, Plan, echo
from rig.server import Server
from tests.openai.conftest import MODEL

pytestmark = pytest.mark.asyncio(loop_scope="module")

SAID: list[Any] = [
    {"role": "user", "content": "We launch on Tuesday."},
    {"role": "assistant", "content": "Noted."},
    {"role": "user", "content": "And tell support first."},
]


def tell(call: Call) -> Plan:
    """A model that has something to tell of any conversation, and echoes all else."""
    if "You keep the memory" in call.body["messages"][0]["content"]:
        return Plan(deltas=("They launch ", "on Tuesday."))
    return echo(call)


@pytest.fixture(autouse=True)
def model(shared_model: ModelServer) -> ModelServer:
    shared_model.script = tell
    shared_model.requests.clear()
    return shared_model


def told(model: ModelServer, number: int = -1) -> str:
    """What a model was given to tell of."""
    text: str = model.requests[number].body["messages"][-1]["content"]
    return text


def as_input(output: Any) -> list[Any]:
    """What came out, to be sent in the place of the conversation, as OpenAI's guide has it."""
    return [item.to_dict(warnings=False) for item in output]


async def post(server: Server, path: str, body: Mapping[str, Any]) -> httpx.Response:
    async with httpx.AsyncClient(base_url=server.url) as http:
        return await http.post(path, json=body)


# --- Compaction ----------------------------------------------------------------------------------


async def test_a_conversation_is_told_and_its_users_words_stay(
    client: openai.AsyncOpenAI, model: ModelServer
) -> None:
    compacted = await client.responses.compact(model=MODEL, input=SAID)
    kinds = [(item.type, getattr(item, "role", None)) for item in compacted.output]
    assert kinds == [("message", "user"), ("message", "user"), ("compaction", None)]
    assert [item.content[0].text for item in compacted.output[:2]] == [
        "We launch on Tuesday.",
        "And tell support first.",
    ]
    for word in ("We launch on Tuesday.", "assistant: Noted.", "And tell support first."):
        assert word in told(model)
    assert compacted.usage.input_tokens == 7
    assert compacted.usage.output_tokens == 2


async def test_it_stands_in_the_conversations_place(
    client: openai.AsyncOpenAI, model: ModelServer
) -> None:
    compacted = await client.responses.compact(model=MODEL, input=SAID)
    question = {"role": "user", "content": "When?"}
    response = await client.responses.create(
        model=MODEL, input=[*as_input(compacted.output), question]
    )
    shown = [message["content"] for message in model.requests[-1].body["messages"]]
    assert shown[1:3] == ["We launch on Tuesday.", "And tell support first."]
    assert "They launch on Tuesday." in shown[3]
    assert shown[4] == "When?"
    items = await client.responses.input_items.list(response.id, order="asc")
    assert [item.type for item in items.data] == ["message", "message", "compaction", "message"]
    assert as_input(items.data)[2]["encrypted_content"] == compacted.output[2].encrypted_content
    more = await client.responses.create(
        model=MODEL, input="Sure?", previous_response_id=response.id
    )
    again = await client.responses.compact(model=MODEL, previous_response_id=more.id)
    assert "before this: They launch on Tuesday." in told(model)  # told of in its turn
    assert "user: Sure?" in told(model)
    assert as_input(again.output)[-1]["type"] == "compaction"


async def test_a_chain_is_told_up_to_the_response_that_is_named(
    client: openai.AsyncOpenAI, model: ModelServer
) -> None:
    first = await client.responses.create(model=MODEL, input="one")
    await client.responses.create(model=MODEL, input="two", previous_response_id=first.id)
    more: list[Any] = [{"role": "user", "content": "three"}]
    compacted = await client.responses.compact(
        model=MODEL, previous_response_id=first.id, input=more
    )
    assert "user: one\n\nassistant: You said: one\n\nuser: three" in told(model)
    assert "two" not in told(model)
    assert [item.type for item in compacted.output] == ["message", "message", "compaction"]


async def test_calls_and_results_are_told_of(
    client: openai.AsyncOpenAI, model: ModelServer
) -> None:
    call = {"call_id": "c", "name": "look_up", "arguments": '{"day": 2}'}
    items: list[Any] = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": "Which day?"},
        {"type": "function_call", **call},
        {"type": "function_call_output", "call_id": "c", "output": "Tuesday"},
    ]
    compacted = await client.responses.compact(model=MODEL, input=items)
    assert 'assistant calls look_up: {"day": 2}' in told(model)
    assert "result: Tuesday" in told(model)
    assert [getattr(item, "role", "") for item in compacted.output] == ["developer", "user", ""]


async def test_what_the_client_asks_of_it_is_passed_on(
    client: openai.AsyncOpenAI, model: ModelServer
) -> None:
    await client.responses.compact(model=MODEL, input=SAID, instructions="Keep the dates.")
    assert model.requests[-1].body["messages"][0]["content"].endswith("\n\nKeep the dates.")


async def test_what_is_too_long_for_one_call_is_told_in_several(
    client: openai.AsyncOpenAI, model: ModelServer
) -> None:
    """Each is shown what was told before; of the user's words as many stay as have room."""
    items: list[Any] = [
        {"role": "user", "content": f"{number} {'word ' * 3000}"} for number in range(10)
    ]
    compacted = await client.responses.compact(model=MODEL, input=items)
    assert 2 <= len(model.requests) <= 4
    assert "Remembered so far" not in told(model, 0)
    assert "Remembered so far:\nThey launch on Tuesday." in told(model, 1)
    kept = [item.content[0].text[:2] for item in compacted.output[:-1]]
    assert kept == ["9 "]
    assert compacted.usage.input_tokens == 7 * len(model.requests)


async def test_what_is_too_long_altogether_is_refused(client: openai.AsyncOpenAI) -> None:
    items: list[Any] = [{"role": "user", "content": "word " * 19_000} for _ in range(5)]
    with pytest.raises(openai.BadRequestError) as refusal:
        await client.responses.compact(model=MODEL, input=items)
    assert refusal.value.code == "context_length_exceeded"


@pytest.mark.parametrize(
    "sealed", ["", "hello", "gAAAAABpM0Yj-...=", "AAAAAAAAAAAA", "AAAAAAAAAAA=" * 9, "ö"]
)
async def test_a_compaction_that_was_not_given_out_is_refused(
    client: openai.AsyncOpenAI, sealed: str
) -> None:
    item: Any = {"type": "compaction", "encrypted_content": sealed}
    with pytest.raises(openai.BadRequestError) as refusal:
        await client.responses.create(model=MODEL, input=[item])
    assert refusal.value.param == "input[0].encrypted_content"


async def test_a_compaction_with_a_slip_of_the_pen_is_refused(client: openai.AsyncOpenAI) -> None:
    compacted = await client.responses.compact(model=MODEL, input=SAID)
    item: Any = as_input(compacted.output)[-1]
    sealed = item["encrypted_content"]
    for place in range(0, len(sealed) - 2, 3):
        other = "A" if sealed[place] != "A" else "B"
        wrong: Any = {**item, "encrypted_content": sealed[:place] + other + sealed[place + 1 :]}
        with pytest.raises(openai.BadRequestError):
            await client.responses.create(model=MODEL, input=[wrong], store=False)


@pytest.mark.parametrize(
    ("body", "status", "param"),
    [
        ({"input": "a"}, 400, "model"),
        ({"input": "a", "model": None}, 400, "model"),
        ({"input": "a", "model": ""}, 400, "model"),
        ({"input": "a", "model": "unheard-of"}, 404, "model"),
        ({"model": MODEL}, 400, "input"),
        ({"model": MODEL, "input": 7}, 400, "input"),
        ({"model": MODEL, "input": [{"role": "nobody", "content": "a"}]}, 400, "input[0].role"),
        ({"model": MODEL, "input": "a", "stream": True}, 400, "stream"),
        ({"model": MODEL, "previous_response_id": "resp_1"}, 400, "previous_response_id"),
        (
            {"model": MODEL, "previous_response_id": "resp_" + "0" * 26 + "_1"},
            400,
            "previous_response_id",
        ),
    ],
    ids=lambda value: str(value)[:50],
)
async def test_what_cannot_be_compacted(
    server: Server, body: Mapping[str, Any], status: int, param: str
) -> None:
    answer = await post(server, "/v1/responses/compact", body)
    assert answer.status_code == status
    assert answer.json()["error"]["param"] == param


async def test_a_model_that_cannot_tell(client: openai.AsyncOpenAI, model: ModelServer) -> None:
    """Nothing has come of it, so it may be sent again."""
    model.script = lambda _: Plan(status=500, body={"error": {"message": "no"}})
    with pytest.raises(openai.InternalServerError) as failure:
        await client.responses.compact(model=MODEL, input=SAID)
    assert failure.value.status_code == 502
    assert "x-should-retry" not in failure.value.response.headers


async def test_it_is_not_made_for_a_client_that_has_gone(
    server: Server, model: ModelServer
) -> None:
    gone = model.disconnects
    model.script = lambda _: Plan(at={1: Hang()})
    body = {"model": MODEL, "input": "a"}
    asking = asyncio.create_task(post(server, "/v1/responses/compact", body))
    await model.wait_until(lambda: len(model.requests) == 1)
    await asyncio.sleep(0.1)  # the model's first word
    asking.cancel()
    await model.wait_for_disconnects(gone + 1)


# --- Counting ------------------------------------------------------------------------------------


async def count(client: openai.AsyncOpenAI, **request: Any) -> int:
    counted = await client.responses.input_tokens.count(model=MODEL, **request)
    return counted.input_tokens


async def test_what_a_prompt_has_is_counted_and_no_model_is_asked(
    client: openai.AsyncOpenAI, model: ModelServer
) -> None:
    short, long = await count(client, input="a"), await count(client, input="a" * 3001)
    assert long - short == 1000  # three bytes a token, as long as nothing was learned
    assert not model.requests
    with_tool = await count(
        client,
        input="a",
        tools=[{"type": "function", "name": "f", "parameters": {"type": "object"}, "strict": True}],
    )
    assert with_tool > short
    assert await count(client, input="a", instructions="b" * 3000) > short + 900
    picture: Any = {"type": "input_image", "detail": "auto", "image_url": "https://a.example/b.png"}
    assert await count(client, input=[{"role": "user", "content": [picture]}]) > short + 900


async def test_what_was_said_before_is_counted_too(client: openai.AsyncOpenAI) -> None:
    short = await count(client, input="a")
    said = await client.responses.create(model=MODEL, input="b" * 3000)
    assert await count(client, input="a", previous_response_id=said.id) > short + 1900
    conversation = await client.conversations.create(
        items=[{"type": "message", "role": "user", "content": "c" * 3000}]
    )
    assert await count(client, input="a", conversation=conversation.id) > short + 900
    assert await count(client, conversation=conversation.id) > 900


@pytest.mark.parametrize(
    ("body", "status", "param"),
    [
        ({}, 400, "input"),
        ({"input": "a", "store": False}, 400, "store"),
        ({"input": "a", "model": "unheard-of"}, 404, "model"),
        ({"input": "a", "tools": [{"type": "function"}]}, 400, "tools[0].name"),
        ({"input": "a", "previous_response_id": "resp_1"}, 400, "previous_response_id"),
        ({"input": "a", "personality": "friendly"}, 400, "personality"),
    ],
    ids=lambda value: str(value)[:50],
)
async def test_what_cannot_be_counted(
    server: Server, body: Mapping[str, Any], status: int, param: str
) -> None:
    answer = await post(server, "/v1/responses/input_tokens", body)
    assert answer.status_code == status
    assert answer.json()["error"]["param"] == param


async def test_an_unknown_conversation_is_not_counted(client: openai.AsyncOpenAI) -> None:
    with pytest.raises(openai.NotFoundError):
        await count(client, input="a", conversation="conv_" + "0" * 26)
