"""Chat completions, by the official SDK against a real server."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx
import openai
import pytest
import pytest_asyncio
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from pydantic import BaseModel

from rig.model_server import CallOf, Cut, Hang, ModelServer, Plan, Reset
from rig.server import Server
from tests.openai.conftest import MODEL, MakeClient, start_server
from tests.openai.types import check_chunk
from turnkeeper.dialects.openai.completions.chunks import encode_chunks
from turnkeeper.dialects.openai.streaming import KEEP_ALIVE
from turnkeeper.domain import Turn, TurnRef, TurnStatus
from turnkeeper.events import Ended, Grew

pytestmark = pytest.mark.asyncio(loop_scope="module")

HELLO: Any = [{"role": "user", "content": "hello"}]
WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "of a town",
        "parameters": {"type": "object", "properties": {"town": {"type": "string"}}},
        "strict": True,
    },
}
SHELL: Any = {"type": "custom", "custom": {"name": "shell", "description": "runs it"}}
TWO_CALLS = Plan(
    deltas=(),
    tool_calls=(
        CallOf("weather", ('{"town":', '"Rome"}'), "call_a"),
        CallOf("weather", ('{"town":"', 'Oslo"}'), "call_b"),
    ),
    finish_reason="tool_calls",
)


async def chunks_of(stream: AsyncIterator[ChatCompletionChunk]) -> list[ChatCompletionChunk]:
    chunks = []
    async for chunk in stream:
        check_chunk(chunk)
        chunks.append(chunk)
    assert len({(chunk.id, chunk.created, chunk.model) for chunk in chunks}) == 1
    return chunks


async def stream(client: openai.AsyncOpenAI, **asked: Any) -> list[ChatCompletionChunk]:
    asked = {"model": MODEL, "messages": HELLO, "stream": True} | asked
    return await chunks_of(await client.chat.completions.create(**asked))


def text_of(chunks: list[ChatCompletionChunk]) -> str:
    return "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)


# --- Whole -------------------------------------------------------------------------------------


async def test_a_completion(client: openai.AsyncOpenAI, model: ModelServer) -> None:
    completion = await client.chat.completions.create(model=MODEL, messages=HELLO)
    choice = completion.choices[0]
    assert choice.message.content == "You said: hello"
    assert choice.finish_reason == "stop"
    assert completion.usage is not None
    assert completion.usage.total_tokens == completion.usage.prompt_tokens + 3
    assert model.requests[-1].body["messages"] == HELLO


def ask_now(client: openai.OpenAI) -> tuple[ChatCompletion, str]:
    whole = client.chat.completions.create(model=MODEL, messages=HELLO)
    with client.chat.completions.stream(model=MODEL, messages=HELLO) as streamed:
        return whole, streamed.get_final_completion().choices[0].message.content or ""


async def test_the_client_without_async(sync_client: openai.OpenAI, model: ModelServer) -> None:
    whole, streamed = await asyncio.to_thread(ask_now, sync_client)
    assert whole.choices[0].message.content == streamed == "You said: hello"


async def test_a_model_is_shown_the_messages_as_they_were_sent(
    client: openai.AsyncOpenAI, model: ModelServer
) -> None:
    messages: Any = [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": "two"},
        {"role": "system", "content": "be briefer"},
        {"role": "user", "content": [{"type": "text", "text": "three"}]},
    ]
    await client.chat.completions.create(model=MODEL, messages=messages)
    messages[-1] = {"role": "user", "content": "three"}
    assert model.requests[-1].body["messages"] == messages


async def test_what_nobody_here_knows_goes_to_the_provider(
    client: openai.AsyncOpenAI, model: ModelServer
) -> None:
    await client.chat.completions.create(
        model=MODEL,
        messages=HELLO,
        seed=7,
        presence_penalty=0.5,
        logit_bias={"50256": -100},
        verbosity="low",
        reasoning_effort="high",
        temperature=0.25,
        top_p=0.5,
        max_completion_tokens=99,
        stop=["END"],
        user="someone",
        extra_body={"min_p": 0.1},
    )
    body = model.requests[-1].body
    expected = {
        "seed": 7,
        "presence_penalty": 0.5,
        "logit_bias": {"50256": -100.0},
        "verbosity": "low",
        "reasoning_effort": "high",
        "temperature": 0.25,
        "top_p": 0.5,
        "stop": ["END"],
        "min_p": 0.1,
    }
    assert {name: body.get(name) for name in expected} == expected
    assert 99 in (body.get("max_tokens"), body.get("max_completion_tokens"))
    assert "user" not in body


async def test_images_go_to_the_provider_as_they_are(
    client: openai.AsyncOpenAI, model: ModelServer
) -> None:
    content: Any = [
        {"type": "text", "text": "what is this?"},
        {"type": "image_url", "image_url": {"url": "https://example.org/cat.png"}},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA==", "detail": "low"}},
    ]
    await client.chat.completions.create(
        model=MODEL, messages=[{"role": "user", "content": content}]
    )
    assert model.requests[-1].body["messages"][-1]["content"] == content


class Town(BaseModel):
    name: str
    people: int


async def test_structured_output(client: openai.AsyncOpenAI, model: ModelServer) -> None:
    model.script = lambda _: Plan(deltas=('{"name":"Oslo",', '"people":700000}'))
    parsed = await client.chat.completions.parse(model=MODEL, messages=HELLO, response_format=Town)
    assert parsed.choices[0].message.parsed == Town(name="Oslo", people=700_000)
    sent = model.requests[-1].body["response_format"]
    assert sent["json_schema"]["schema"]["properties"].keys() == {"name", "people"}
    assert sent["json_schema"]["strict"] is True
    await client.chat.completions.create(
        model=MODEL, messages=HELLO, response_format={"type": "json_object"}
    )
    assert model.requests[-1].body["response_format"] == {"type": "json_object"}


async def test_a_refusal(client: openai.AsyncOpenAI, model: ModelServer) -> None:
    model.script = lambda _: Plan(deltas=(), refusal=("I will ", "not."))
    whole = await client.chat.completions.create(model=MODEL, messages=HELLO)
    assert whole.choices[0].message.refusal == "I will not."
    assert whole.choices[0].message.content is None
    chunks = await stream(client)
    deltas = [chunk.choices[0].delta for chunk in chunks]
    assert "".join(delta.refusal or "" for delta in deltas) == "I will not."
    assert not text_of(chunks)


@pytest.mark.parametrize("reason", ["length", "content_filter"])
async def test_a_reply_that_was_cut_says_why(
    client: openai.AsyncOpenAI, model: ModelServer, reason: str
) -> None:
    model.script = lambda _: Plan(finish_reason=reason)
    whole = await client.chat.completions.create(model=MODEL, messages=HELLO)
    assert whole.choices[0].finish_reason == reason
    chunks = await stream(client)
    assert chunks[-1].choices[0].finish_reason == reason


async def test_thoughts_are_told_where_the_provider_sends_them(
    client: openai.AsyncOpenAI, model: ModelServer
) -> None:
    model.script = lambda _: Plan(reasoning=("Hm. ", "Yes."))
    whole = await client.chat.completions.create(model=MODEL, messages=HELLO)
    extra = whole.choices[0].message.model_extra or {}
    assert extra["reasoning_content"] == "Hm. Yes."
    assert whole.choices[0].message.content == "Hello there"
    deltas = [chunk.choices[0].delta for chunk in await stream(client)]
    thoughts = [(delta.model_extra or {}).get("reasoning_content") or "" for delta in deltas]
    assert "".join(thoughts) == "Hm. Yes."


# --- Streamed ----------------------------------------------------------------------------------


async def test_a_stream(client: openai.AsyncOpenAI, model: ModelServer) -> None:
    chunks = await stream(client)
    first, last = chunks[0].choices[0], chunks[-1].choices[0]
    assert (first.delta.role, first.delta.content) == ("assistant", "")
    assert text_of(chunks) == "You said: hello"
    assert (last.finish_reason, last.delta.content) == ("stop", None)
    assert all(chunk.usage is None for chunk in chunks)


async def test_usage_comes_last_where_it_is_asked_for(
    client: openai.AsyncOpenAI, model: ModelServer
) -> None:
    *chunks, last = await stream(client, stream_options={"include_usage": True})
    assert last.choices == []
    assert last.usage is not None
    assert last.usage.total_tokens == 10
    assert all("usage" in chunk.to_dict() and chunk.usage is None for chunk in chunks)


async def test_the_streaming_helper(client: openai.AsyncOpenAI, model: ModelServer) -> None:
    model.script = lambda _: Plan(deltas=('{"name":"Os', 'lo","people":7}'))
    async with client.chat.completions.stream(
        model=MODEL, messages=HELLO, response_format=Town
    ) as events:
        kinds = [event.type async for event in events]
        final = await events.get_final_completion()
    assert {"chunk", "content.delta", "content.done"} <= set(kinds)
    assert final.choices[0].message.parsed == Town(name="Oslo", people=7)


# --- Tools -------------------------------------------------------------------------------------


async def test_tools_called_in_parallel(client: openai.AsyncOpenAI, model: ModelServer) -> None:
    model.script = lambda _: TWO_CALLS
    whole = await client.chat.completions.create(
        model=MODEL, messages=HELLO, tools=[WEATHER], parallel_tool_calls=True
    )
    message = whole.choices[0].message
    assert whole.choices[0].finish_reason == "tool_calls"
    assert message.content is None
    assert message.tool_calls is not None
    found = [(call.id, call.function.arguments) for call in message.tool_calls]  # type: ignore[union-attr]
    assert found == [("call_a", '{"town":"Rome"}'), ("call_b", '{"town":"Oslo"}')]
    sent = model.requests[-1].body
    assert sent["tools"] == [WEATHER]
    assert sent["parallel_tool_calls"] is True


async def test_arguments_are_streamed_as_they_come(
    client: openai.AsyncOpenAI, model: ModelServer
) -> None:
    model.script = lambda _: TWO_CALLS
    chunks = await stream(client, tools=[WEATHER])
    calls = [call for chunk in chunks for call in chunk.choices[0].delta.tool_calls or ()]
    arguments = ["", ""]
    for call in calls:
        assert call.function is not None
        arguments[call.index] += call.function.arguments or ""
    assert arguments == ['{"town":"Rome"}', '{"town":"Oslo"}']
    assert [call.id for call in calls if call.id] == ["call_a", "call_b"]
    async with client.chat.completions.stream(
        model=MODEL, messages=HELLO, tools=[WEATHER]
    ) as events:
        done = [
            event.parsed_arguments
            async for event in events
            if event.type == "tool_calls.function.arguments.done"
        ]
    assert done == [{"town": "Rome"}, {"town": "Oslo"}]


async def test_the_result_of_a_tool_goes_back(
    client: openai.AsyncOpenAI, model: ModelServer
) -> None:
    messages: Any = [
        *HELLO,
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [
                {
                    "id": "call_a",
                    "type": "function",
                    "function": {"name": "weather", "arguments": "{}"},
                }
            ],
        },
        {"role": "tool", "tool_call_id": "call_a", "content": "rain"},
    ]
    await client.chat.completions.create(model=MODEL, messages=messages, tools=[WEATHER])
    assert model.requests[-1].body["messages"] == messages


async def test_a_custom_tool_takes_one_string(
    client: openai.AsyncOpenAI, model: ModelServer
) -> None:
    """It is offered to the model as a function; what comes back is the string by itself."""
    call = CallOf("shell", ('{"input":', '"ls -l"}'), "call_s")
    model.script = lambda _: Plan(deltas=(), tool_calls=(call,), finish_reason="tool_calls")
    whole = await client.chat.completions.create(model=MODEL, messages=HELLO, tools=[SHELL])
    assert whole.choices[0].message.tool_calls is not None
    found = whole.choices[0].message.tool_calls[0]
    assert found.type == "custom"
    assert (found.id, found.custom.name, found.custom.input) == ("call_s", "shell", "ls -l")
    assert model.requests[-1].body["tools"][0]["type"] == "function"
    chunks = await client.chat.completions.create(
        model=MODEL, messages=HELLO, tools=[SHELL], stream=True
    )
    # The SDK has no type for a streamed call of a custom tool; OpenAI's servers send them so.
    calls = [
        call.to_dict() async for chunk in chunks for call in chunk.choices[0].delta.tool_calls or ()
    ]
    custom = {"name": "shell", "input": "ls -l"}
    assert calls == [{"index": 0, "id": "call_s", "type": "custom", "custom": custom}]


@pytest.mark.parametrize(
    ("choice", "sent"),
    [
        ("none", "none"),
        ("auto", "auto"),
        ("required", "required"),
        (
            {"type": "function", "function": {"name": "weather"}},
            {"type": "function", "function": {"name": "weather"}},
        ),
        (
            {"type": "custom", "custom": {"name": "shell"}},
            {"type": "function", "function": {"name": "shell"}},
        ),
        (
            {
                "type": "allowed_tools",
                "allowed_tools": {
                    "mode": "required",
                    "tools": [{"type": "function", "function": {"name": "weather"}}],
                },
            },
            "required",
        ),
    ],
)
async def test_which_tool_is_to_be_called(
    client: openai.AsyncOpenAI, model: ModelServer, choice: Any, sent: Any
) -> None:
    await client.chat.completions.create(
        model=MODEL, messages=HELLO, tools=[WEATHER, SHELL], tool_choice=choice
    )
    body = model.requests[-1].body
    assert body["tool_choice"] == sent
    assert len(body["tools"]) == (1 if "allowed_tools" in choice else 2)


# --- What is refused ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "param"),
    [
        ({"n": 2}, "n"),
        ({"logprobs": True}, "logprobs"),
        ({"modalities": ["text", "audio"]}, "modalities"),
        ({"audio": {"voice": "alloy", "format": "wav"}}, "audio"),
        ({"web_search_options": {}}, "web_search_options"),
        ({"functions": [{"name": "f"}]}, "functions"),
        ({"function_call": "auto"}, "function_call"),
        ({"temperature": "hot"}, "temperature"),
        ({"temperature": 3}, "temperature"),
        ({"stop": ["a", "b", "c", "d", "e"]}, "stop"),
        ({"stream": "yes"}, "stream"),
        ({"metadata": {"a": 1}}, "metadata.a"),
        ({"metadata": {str(number): "" for number in range(17)}}, "metadata"),
        ({"metadata": {"session_id": "no such name!"}}, "metadata.session_id"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "user", "content": 7}]}, "messages[0].content"),
        ({"messages": [{"role": "king", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "function", "name": "f", "content": "x"}]}, "messages[0].role"),
        (
            {"messages": [{"role": "user", "content": [{"type": "text", "text": 1}]}]},
            "messages[0].content[0].text",
        ),
        (
            {
                "messages": [
                    *HELLO,
                    {
                        "role": "user",
                        "content": [
                            {
                                "type": "input_audio",
                                "input_audio": {"data": "AA==", "format": "wav"},
                            }
                        ],
                    },
                ]
            },
            "messages[1].content[0].type",
        ),
        ({"tools": [{"type": "function", "function": {}}]}, "tools[0].function.name"),
        ({"tool_choice": "required"}, "tool_choice"),
        (
            {
                "tools": [WEATHER],
                "tool_choice": {"type": "function", "function": {"name": "other"}},
            },
            "tool_choice",
        ),
        ({"response_format": {"type": "xml"}}, "response_format.type"),
        ({"model": 5}, "model"),
        ({"messages": [{"role": "user", "content": "a\x00b"}]}, "messages"),
        ({"messages": [{"role": "user", "content": "a\x00b"}], "store": True}, "messages"),
    ],
)
async def test_what_cannot_be_is_refused_with_its_place(
    client: openai.AsyncOpenAI, model: ModelServer, asked: dict[str, Any], param: str
) -> None:
    """Ignoring any of these would give an answer to something else."""
    body = {"model": MODEL, "messages": HELLO} | asked
    with pytest.raises(openai.BadRequestError) as refused:
        await client.post("/chat/completions", body=body, cast_to=ChatCompletion)
    assert refused.value.param == param
    assert refused.value.type == "invalid_request_error"
    assert not model.requests


async def test_an_unknown_model(client: openai.AsyncOpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as missing:
        await client.chat.completions.create(model="nobody", messages=HELLO)
    assert (missing.value.code, missing.value.param) == ("model_not_found", "model")


async def test_legacy_calls_of_functions_are_refused(client: openai.AsyncOpenAI) -> None:
    call: Any = {"role": "assistant", "function_call": {"name": "f", "arguments": "{}"}}
    with pytest.raises(openai.BadRequestError, match="tool_calls") as refused:
        await client.chat.completions.create(model=MODEL, messages=[*HELLO, call])
    assert refused.value.param == "messages[1].function_call"


# --- What fails --------------------------------------------------------------------------------


async def test_what_fails_in_the_middle_of_a_stream_is_raised_by_the_sdk(
    client: openai.AsyncOpenAI, model: ModelServer
) -> None:
    model.script = lambda _: Plan(at={1: Cut()})
    chunks = await client.chat.completions.create(model=MODEL, messages=HELLO, stream=True)
    begun = [await anext(chunks), await anext(chunks)]
    assert text_of(begun) == "Hello "
    with pytest.raises(openai.APIError) as failed:
        await anext(chunks)
    assert failed.value.code == "provider_cut_off"


async def test_what_is_not_kept_may_be_sent_again(
    server: Server, make_client: MakeClient, model: ModelServer
) -> None:
    """Nothing has come of it, so the SDK's own retries do no harm, and may help."""
    client = make_client(server, max_retries=2)
    answers = iter([Plan(at={-1: Reset()}), Plan()])
    model.script = lambda _: next(answers)
    completion = await client.chat.completions.create(model=MODEL, messages=HELLO)
    assert completion.choices[0].message.content == "Hello there"
    assert len(model.requests) == 2


async def test_nobody_listens_so_nothing_is_made(
    client: openai.AsyncOpenAI, model: ModelServer
) -> None:
    """Of what is not kept; what is kept is made to its end."""
    model.script = lambda _: Plan(at={1: Hang()})
    before = model.disconnects
    stream = await client.chat.completions.create(model=MODEL, messages=HELLO, stream=True)
    async for chunk in stream:
        if chunk.choices[0].delta.content:
            break
    await stream.close()
    await asyncio.wait_for(model.wait_for_disconnects(before + 1), 10)


async def test_an_idempotency_key_needs_something_that_is_kept(
    client: openai.AsyncOpenAI, model: ModelServer
) -> None:
    with pytest.raises(openai.BadRequestError, match="nothing is kept"):
        await client.chat.completions.create(
            model=MODEL, messages=HELLO, extra_headers={"Idempotency-Key": "one"}
        )
    assert not model.requests


async def test_nothing_is_left_behind(
    client: openai.AsyncOpenAI, server: Server, model: ModelServer
) -> None:
    async with httpx.AsyncClient(base_url=server.url) as http:
        before = (await http.get("/api/chat-sessions?limit=100")).json()
        raw = await client.chat.completions.with_raw_response.create(
            model=MODEL, messages=HELLO, metadata={"secret": "amber"}
        )
        after = (await http.get("/api/chat-sessions?limit=100")).json()
    assert before == after
    assert "turn-id" not in raw.headers
    assert "session-id" not in raw.headers
    with pytest.raises(openai.NotFoundError):
        await client.chat.completions.retrieve(raw.parse().id)
    store = next(server.folder.glob("*.db"))
    files = [store, *server.folder.glob("*.db-wal")]
    assert not any(b"amber" in file.read_bytes() for file in files)


# --- Deployments -------------------------------------------------------------------------------

DEPLOYED = """
[deployments.default]
system_message = "Speak of otters."
temperature = 0.125
concurrency = "reject"
messages = [{ role = "user", content = "example" }]
"""


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def deployed(
    shared_model: ModelServer, make_client: MakeClient, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[openai.AsyncOpenAI]:
    """A client of a server with a prompt of its own, where one turn of a session has to wait."""
    folder = tmp_path_factory.mktemp("deployed")
    (folder / "config.toml").write_text(DEPLOYED)
    server = start_server(shared_model, folder, "--config", "config.toml")
    await asyncio.to_thread(server.start)
    yield make_client(server)
    server.kill()


@pytest.mark.parametrize("store", [False, True])
async def test_what_has_no_session_is_shown_what_was_sent(
    deployed: openai.AsyncOpenAI, model: ModelServer, *, store: bool
) -> None:
    """Whatever the default deployment says, which is there for sessions."""
    await deployed.chat.completions.create(model=MODEL, messages=HELLO, store=store)
    body = model.requests[-1].body
    assert body["messages"] == HELLO
    assert "temperature" not in body


async def test_a_session_has_its_deployments_prompt(
    deployed: openai.AsyncOpenAI, model: ModelServer
) -> None:
    session = {"session_id": "prompted"}
    await deployed.chat.completions.create(model=MODEL, messages=HELLO, metadata=session)
    body = model.requests[-1].body
    assert [message["content"] for message in body["messages"]] == [
        "Speak of otters.",
        "example",
        "hello",
    ]
    assert body["temperature"] == 0.125


async def test_a_busy_session_is_told_so_that_no_sdk_tries_again(
    deployed: openai.AsyncOpenAI, model: ModelServer
) -> None:
    model.script = lambda _: Plan(at={1: Hang()})
    session = {"session_id": "busy"}
    stream = await deployed.chat.completions.create(
        model=MODEL, messages=HELLO, metadata=session, stream=True
    )
    await anext(stream)
    with pytest.raises(openai.BadRequestError) as busy:
        await deployed.chat.completions.create(model=MODEL, messages=HELLO, metadata=session)
    assert (busy.value.code, busy.value.param) == ("conversation_locked", "conversation")
    assert len(model.requests) == 1
    await stream.close()


# --- Keep-alives -------------------------------------------------------------------------------


async def test_keep_alives_are_nothing_to_the_sdk() -> None:
    """At any seam of a stream; in another form they have crashed it."""
    turn = Turn(TurnRef("s" + "0" * 26, 1), TurnStatus.COMPLETED, MODEL, 0, 0, finish="stop")
    encode = encode_chunks(turn, custom=frozenset(), include_usage=False)
    pieces = [encode(Grew("one", 3)), encode(Grew("two", 6)), encode(Ended(turn, "onetwo"))]
    data = KEEP_ALIVE + KEEP_ALIVE.join(pieces) + KEEP_ALIVE
    answer = httpx.Response(200, headers={"content-type": "text/event-stream"}, content=data)
    http = httpx.AsyncClient(transport=httpx.MockTransport(lambda _: answer))
    async with openai.AsyncOpenAI(base_url="http://test", api_key="x", http_client=http) as client:
        chunks = await stream(client)
    assert text_of(chunks) == "onetwo"
