"""The provider exam, on what is more than text: tools, thoughts, refusals, pictures, JSON."""

from collections.abc import Iterable
from typing import Any

import msgspec
import pytest

from rig.model_server import CallOf, ModelServer, Plan
from tests.contracts.test_provider import MODELS, PROMPT
from turnkeeper.domain import (
    ChosenTool,
    Compaction,
    ImagePart,
    Item,
    JsonFormat,
    Message,
    Options,
    Prompt,
    RefusalPart,
    Sampling,
    TextPart,
    Tool,
    ToolCall,
    ToolResult,
    Usage,
)
from turnkeeper.errors import ProviderError
from turnkeeper.events import (
    Finished,
    ProviderEvent,
    ReasoningDelta,
    RefusalDelta,
    TextDelta,
    ToolCallDelta,
    UsageReport,
)
from turnkeeper.providers.faults import Timeouts
from turnkeeper.providers.openai import OpenAIProvider


@pytest.fixture
async def provider(model_server: ModelServer) -> Any:
    provider = OpenAIProvider("acme", model_server.base_url, None, MODELS, Timeouts())
    yield provider
    await provider.close()


async def events(provider: OpenAIProvider, prompt: Prompt = PROMPT) -> list[ProviderEvent]:
    """What the model says; its count of tokens left out."""
    found = [event async for batch in provider.stream(prompt) for event in batch]
    return [event for event in found if not isinstance(event, UsageReport)]


def joined(deltas: Iterable[ProviderEvent], kind: type) -> str:
    return "".join(delta.text for delta in deltas if isinstance(delta, kind))


CALLS = (
    CallOf("weather", ('{"city":', '"Bonn"}'), "c1"),
    CallOf("time", ("{}",), "c2"),
)


@pytest.mark.parametrize("one_write", [True, False])
async def test_calls_come_with_their_arguments_in_pieces(
    provider: OpenAIProvider, model_server: ModelServer, one_write: bool
) -> None:
    model_server.script = lambda _: Plan(
        deltas=("See: ",), tool_calls=CALLS, finish_reason="tool_calls", one_write=one_write
    )
    assert await events(provider) == [
        TextDelta("See: "),
        ToolCallDelta(0, "c1", "weather", ""),
        ToolCallDelta(0, "", "", '{"city":'),
        ToolCallDelta(0, "", "", '"Bonn"}'),
        ToolCallDelta(1, "c2", "time", ""),
        ToolCallDelta(1, "", "", "{}"),
        Finished("tool_calls"),
    ]


async def test_calls_without_numbers_or_ids_are_told_apart(
    provider: OpenAIProvider, model_server: ModelServer
) -> None:
    """Some send each call whole, and number none."""
    whole = [{"function": {"name": name, "arguments": "{}"}} for name in ("a", "b")]
    chunk = {"choices": [{"index": 0, "delta": {"tool_calls": whole}}]}
    model_server.script = lambda _: Plan(deltas=(), chunks=[msgspec.json.encode(chunk)])
    assert (await events(provider))[:2] == [
        ToolCallDelta(0, "call_0", "a", "{}"),
        ToolCallDelta(1, "call_1", "b", "{}"),
    ]


@pytest.mark.parametrize(
    "calls", [7, [7], [{}], [{"index": 0, "function": {"arguments": "{}"}}], [{"function": 1}]]
)
async def test_what_is_no_call_is_passed_over(
    provider: OpenAIProvider, model_server: ModelServer, calls: Any
) -> None:
    chunk = {"choices": [{"index": 0, "delta": {"tool_calls": calls}}]}
    model_server.script = lambda _: Plan(chunks=[msgspec.json.encode(chunk)])
    assert joined(await events(provider), TextDelta) == "Hello there"


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning"])
async def test_thoughts_come_before_words(
    provider: OpenAIProvider, model_server: ModelServer, name: str
) -> None:
    model_server.script = lambda _: Plan(reasoning=("Hm, ", "so."), reasoning_name=name)
    found = await events(provider)
    assert joined(found, ReasoningDelta) == "Hm, so."
    assert joined(found, TextDelta) == "Hello there"
    assert isinstance(found[0], ReasoningDelta)


async def test_a_refusal_is_told_apart_from_words(
    provider: OpenAIProvider, model_server: ModelServer
) -> None:
    model_server.script = lambda _: Plan(deltas=(), refusal=("I can", "not."))
    found = await events(provider)
    assert joined(found, RefusalDelta) == "I cannot."
    assert not joined(found, TextDelta)


async def test_a_thought_alone_is_no_reply(
    provider: OpenAIProvider, model_server: ModelServer
) -> None:
    model_server.script = lambda _: Plan(deltas=(), reasoning=("Hm.",))
    with pytest.raises(ProviderError) as raised:
        await events(provider)
    assert raised.value.code == "provider_empty_reply"


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        ("length", "length"),
        ("content_filter", "content_filter"),
        ("function_call", "tool_calls"),
        ("eos", "stop"),
    ],
)
async def test_why_a_model_stopped(
    provider: OpenAIProvider, model_server: ModelServer, said: str, meant: str
) -> None:
    model_server.script = lambda _: Plan(finish_reason=said)
    assert (await events(provider))[-1] == Finished(meant)  # type: ignore[arg-type]


async def test_what_was_cached_and_what_was_thought_is_counted(
    provider: OpenAIProvider, model_server: ModelServer
) -> None:
    usage = {
        "prompt_tokens": 100,
        "completion_tokens": 20,
        "prompt_tokens_details": {"cached_tokens": 64},
        "completion_tokens_details": {"reasoning_tokens": 12},
    }
    chunk = msgspec.json.encode({"choices": [], "usage": usage})
    model_server.script = lambda _: Plan(chunks=[chunk], usage="none")
    found = [event async for batch in provider.stream(PROMPT) for event in batch]
    assert UsageReport(Usage(100, 20, False, 64, 12)) in found


# --- What is sent ------------------------------------------------------------------------------


async def sent(
    provider: OpenAIProvider, model_server: ModelServer, items: tuple[Item, ...], **options: Any
) -> dict[str, Any]:
    prompt = Prompt("scripted", items, Sampling(), Options(**options))
    await events(provider, prompt)
    body: dict[str, Any] = model_server.requests[-1].body
    return body


HI = (Message("user", "hi"),)
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}}


async def test_tools_and_how_to_choose_among_them(
    provider: OpenAIProvider, model_server: ModelServer
) -> None:
    tools = (Tool("weather", "Tells it.", SCHEMA, True), Tool("shell", custom=True))
    body = await sent(
        provider, model_server, HI, tools=tools, tool_choice=ChosenTool("weather"),
        parallel_tool_calls=False,
    )  # fmt: skip
    weather, shell = (tool["function"] for tool in body["tools"])
    expected = {"name": "weather", "description": "Tells it.", "parameters": SCHEMA}
    assert weather == {**expected, "strict": True}
    assert (shell["name"], shell["parameters"]["required"]) == ("shell", ["input"])
    assert body["tool_choice"] == {"type": "function", "function": {"name": "weather"}}
    assert body["parallel_tool_calls"] is False


async def test_without_tools_nothing_is_said_of_them(
    provider: OpenAIProvider, model_server: ModelServer
) -> None:
    body = await sent(provider, model_server, HI, tool_choice="auto", parallel_tool_calls=True)
    assert set(body) == {"model", "messages", "stream", "stream_options"}


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        (JsonFormat(), {"type": "json_object"}),
        (
            JsonFormat("place", None, SCHEMA, True),
            {
                "type": "json_schema",
                "json_schema": {"name": "place", "schema": SCHEMA, "strict": True},
            },
        ),
    ],
)
async def test_the_form_of_the_reply(
    provider: OpenAIProvider, model_server: ModelServer, wanted: JsonFormat, expected: Any
) -> None:
    body = await sent(provider, model_server, HI, reply_format=wanted)
    assert body["response_format"] == expected


async def test_what_else_is_wanted_is_passed_on_and_replaces_nothing_of_ours(
    provider: OpenAIProvider, model_server: ModelServer
) -> None:
    extra = {"seed": 7, "model": "other", "stream": False}
    body = await sent(provider, model_server, HI, extra=extra, reasoning_effort="low")
    assert (body["seed"], body["model"], body["stream"]) == (7, "scripted", True)
    assert body["reasoning_effort"] == "low"


async def test_items_of_every_kind_as_messages(
    provider: OpenAIProvider, model_server: ModelServer
) -> None:
    image = ImagePart("data:image/png;base64,AA==", "low")
    items: tuple[Item, ...] = (
        Message("developer", "Be brief."),
        Compaction("They met."),
        Message("user", "see", (TextPart("see"), image)),
        Message("assistant", "Let me look."),
        ToolCall("c1", "zoom", '{"x":1}'),
        ToolCall("c2", "shell", "ls", custom=True),
        ToolResult("c1", "", parts=(ImagePart("https://example.org/a.png"),)),
        ToolResult("c2", "a.png", custom=True),
        ToolCall("c3", "zoom", "{}"),
        ToolResult("c3", "ok"),
        Message("assistant", "No.", (RefusalPart("No."),)),
    )
    messages = (await sent(provider, model_server, items))["messages"]
    assert [message["role"] for message in messages] == [
        "system", "system", "user", "assistant", "tool", "tool", "assistant", "tool", "assistant",
    ]  # fmt: skip
    assert messages[2]["content"] == [
        {"type": "text", "text": "see"},
        {"type": "image_url", "image_url": {"url": image.url, "detail": "low"}},
    ]
    called = [call["function"] for call in messages[3]["tool_calls"]]
    assert messages[3]["content"] == "Let me look."
    assert called[1] == {"name": "shell", "arguments": '{"input":"ls"}'}
    assert messages[6]["content"] is None
    assert messages[8] == {"role": "assistant", "content": None, "refusal": "No."}
