"""Chat completions as bytes: what is read of a request, what a reply looks like, piece by piece."""

import msgspec
import pytest

from turnkeeper.dialects.openai.completions.chunks import encode_chunks
from turnkeeper.dialects.openai.completions.messages import encode_messages
from turnkeeper.dialects.openai.completions.request import Wanted, decode_wanted
from turnkeeper.dialects.openai.errors import WrongParameter
from turnkeeper.domain import (
    ChosenTool,
    Failure,
    ImagePart,
    Item,
    JsonFormat,
    Message,
    RefusalPart,
    Sampling,
    TextPart,
    Tool,
    ToolCall,
    ToolResult,
    Turn,
    TurnRef,
    TurnStatus,
    Usage,
)
from turnkeeper.events import (
    Ended,
    Grew,
    ReasoningDelta,
    RefusalDelta,
    ReplyEvent,
    Started,
    ToolCallDelta,
)


def read(*messages: object, **more: object) -> Wanted:
    body = {"model": "m", "messages": messages or [{"role": "user", "content": "hi"}], **more}
    return decode_wanted(msgspec.json.encode(body))


def call(id_: str, name: str = "f") -> dict[str, object]:
    return {"id": id_, "type": "function", "function": {"name": name, "arguments": "{}"}}


# --- Messages and items ------------------------------------------------------------------------

CONVERSATIONS: list[tuple[object, tuple[Item, ...]]] = [
    ({"role": "user", "content": "hi"}, (Message("user", "hi"),)),
    ({"role": "user", "content": ""}, (Message("user", ""),)),
    ({"role": "system", "content": "be brief"}, (Message("system", "be brief"),)),
    ({"role": "developer", "content": "be kind"}, (Message("developer", "be kind"),)),
    ({"role": "assistant", "content": "yes"}, (Message("assistant", "yes"),)),
    (
        {"role": "assistant", "content": None, "tool_calls": [call("a"), call("b")]},
        (ToolCall("a", "f", "{}"), ToolCall("b", "f", "{}")),
    ),
    (
        {"role": "assistant", "content": "let me see", "tool_calls": [call("a")]},
        (Message("assistant", "let me see"), ToolCall("a", "f", "{}")),
    ),
    (
        {"role": "assistant", "content": None, "refusal": "no"},
        (Message("assistant", "no", (RefusalPart("no"),)),),
    ),
    ({"role": "tool", "tool_call_id": "a", "content": "1"}, (ToolResult("a", "1"),)),
    (
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "see"},
                {"type": "image_url", "image_url": {"url": "data:,x", "detail": "low"}},
            ],
        },
        (Message("user", "see", (TextPart("see"), ImagePart("data:,x", "low"))),),
    ),
    (
        {"role": "user", "content": [{"type": "text", "text": "one text is no more than that"}]},
        (Message("user", "one text is no more than that"),),
    ),
    ({"role": "assistant", "content": None, "tool_calls": None, "audio": None}, ()),
]


@pytest.mark.parametrize(("message", "items"), CONVERSATIONS)
def test_a_message_is_items(message: object, items: tuple[Item, ...]) -> None:
    assert read(message).conversation.items() == items


def test_the_result_of_a_custom_tool_is_known_by_its_call() -> None:
    custom = {"id": "a", "type": "custom", "custom": {"name": "sh", "input": "ls"}}
    found = read(
        {"role": "assistant", "tool_calls": [custom]},
        {"role": "tool", "tool_call_id": "a", "content": "x"},
    ).conversation.items()
    assert found == (ToolCall("a", "sh", "ls", custom=True), ToolResult("a", "x", custom=True))


@pytest.mark.parametrize(
    ("message", "items"), [row for row in CONVERSATIONS if row[1] and "content" in str(row[0])]
)
def test_items_are_messages_again(message: object, items: tuple[Item, ...]) -> None:
    [encoded] = encode_messages(items)
    encoded["content"] = encoded.pop("content_parts", None) or encoded["content"]
    assert read(encoded).conversation.items() == items


def test_what_is_new_stands_behind_the_assistants_last_words() -> None:
    said = read(
        {"role": "system", "content": "one"},
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": None, "tool_calls": [call("c")]},
        {"role": "tool", "tool_call_id": "c", "content": "b"},
        {"role": "developer", "content": "two"},
        {"role": "user", "content": "d"},
    ).conversation
    assert said.new() == (ToolResult("c", "b"), Message("user", "d"))
    assert said.instructions() == "one\\n\\ntwo".replace("\\n", "\n")
    assert len(said.said()) == 4
    assert said.has_history


def test_a_conversation_that_begins_is_all_new() -> None:
    said = read({"role": "user", "content": "a"}, {"role": "user", "content": "b"}).conversation
    assert said.new() == said.said() == said.items()
    assert said.instructions() is None
    assert not said.has_history


# --- Parameters --------------------------------------------------------------------------------


def test_what_is_known_is_in_the_options() -> None:
    wanted = read(
        temperature=1,
        top_p=0.5,
        max_tokens=5,
        max_completion_tokens=6,
        stop="END",
        parallel_tool_calls=False,
        reasoning_effort="low",
        tools=[
            {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}},
            {"type": "custom", "custom": {"name": "sh"}},
        ],
        tool_choice={"type": "custom", "custom": {"name": "sh"}},
        response_format={"type": "json_schema", "json_schema": {"name": "r", "strict": True}},
        metadata={"session_id": "here"},
        stream=True,
        stream_options={"include_usage": True},
        safety_identifier="ann",
        user="old",
    )
    options = wanted.options
    assert options.sampling == Sampling(1, 0.5, 6, ("END",))
    assert options.tools == (Tool("f", None, {"type": "object"}), Tool("sh", custom=True))
    assert options.tool_choice == ChosenTool("sh")
    assert options.reply_format == JsonFormat("r", None, {}, True)
    assert (options.parallel_tool_calls, options.reasoning_effort) == (False, "low")
    assert options.extra == {}
    assert (wanted.session_id, wanted.user, wanted.custom) == ("here", "ann", frozenset({"sh"}))
    assert (wanted.stream, wanted.include_usage) == (True, True)


def test_null_is_as_if_nothing_was_said() -> None:
    names = ("temperature", "stop", "tools", "tool_choice", "response_format", "seed", "metadata")
    assert read(**dict.fromkeys(names)).options == read().options


def test_what_is_new_since_goes_to_the_provider() -> None:
    options = read(seed=1, min_p=0.5, thinking={"type": "on"}).options
    assert options.extra == {"seed": 1, "min_p": 0.5, "thinking": {"type": "on"}}


def test_parameters_are_told_as_they_were_sent() -> None:
    told = read(temperature=1.0, min_p=0.5, stream=True, store=True, metadata={}).echo()
    assert {name: bytes(value) for name, value in told.items()} == {
        "temperature": b"1.0",
        "min_p": b"0.5",
    }


@pytest.mark.parametrize(
    ("store", "session", "kept"),
    [
        (None, None, False),
        (False, None, False),
        (True, None, True),
        (None, "here", True),
        (True, "here", True),
        (False, "here", False),
    ],
)
def test_what_is_kept(store: bool | None, session: str | None, *, kept: bool) -> None:
    metadata = {} if session is None else {"session_id": session}
    assert read(store=store, metadata=metadata).is_kept is kept


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b"null", b'"x"', b"{}", b'{"a":"\xff"}', b"[" * 100_000]
)
def test_what_is_no_request_is_refused(body: bytes) -> None:
    with pytest.raises(WrongParameter):
        decode_wanted(body)


# --- Chunks ------------------------------------------------------------------------------------

REF = TurnRef("s" + "0" * 26, 1)
RUNNING = Turn(REF, TurnStatus.RUNNING, "m", 5_000)
DONE = Turn(REF, TurnStatus.COMPLETED, "m", 5_000, 6_000, Usage(1, 2), finish="stop")
HEAD = (
    '{"id":"chatcmpl-' + "0" * 26 + '_1","object":"chat.completion.chunk","created":5,"model":"m",'
    '"service_tier":"default","system_fingerprint":null,"choices":['
)


def chunk(delta: str, finish: str = "null") -> str:
    choice = f'{{"index":0,"delta":{{{delta}}},"logprobs":null,"finish_reason":{finish}}}'
    return f"data: {HEAD}{choice}]}}\n\n"


def begun(content: str) -> str:
    return chunk(f'"role":"assistant","content":{content},"refusal":null')


def told(*events: ReplyEvent, custom: frozenset[str] = frozenset(), usage: bool = False) -> str:
    encode = encode_chunks(RUNNING, custom=custom, include_usage=usage)
    return b"".join([encode(event) for event in (Started(RUNNING), *events)]).decode()


def test_text() -> None:
    assert told(Grew("Hé", 2), Grew('"', 3), Ended(DONE, 'Hé"')) == (
        begun('""')
        + chunk('"content":"Hé"')
        + chunk('"content":"\\""')
        + chunk("", '"stop"')
        + "data: [DONE]\n\n"
    )


def test_thoughts_a_refusal_and_calls() -> None:
    events = (
        ReasoningDelta("hm"),
        RefusalDelta("no"),
        ToolCallDelta(0, "c", "f", ""),
        ToolCallDelta(0, "", "", "{}"),
    )
    ended = Ended(DONE, "no", items=(ToolCall("c", "f", "{}"),))
    function = '"type":"function","function":{"name":"f","arguments":""}'
    assert told(*events, ended) == (
        begun("null")
        + chunk('"reasoning_content":"hm"')
        + chunk('"refusal":"no"')
        + chunk(f'"tool_calls":[{{"index":0,"id":"c",{function}}}]')
        + chunk('"tool_calls":[{"index":0,"function":{"arguments":"{}"}}]')
        + chunk("", '"stop"')
        + "data: [DONE]\n\n"
    )


@pytest.mark.parametrize("pieces", [('{"input":', '"ls"}'), ("ls",)])
def test_a_custom_tools_string_is_told_once_it_is_whole(pieces: tuple[str, ...]) -> None:
    """Live it comes as the JSON it was asked in, from the store as the string itself."""
    first, *rest = pieces
    events = [ToolCallDelta(0, "c", "sh", first), *(ToolCallDelta(0, "", "", p) for p in rest)]
    ended = Ended(DONE, "", items=(ToolCall("c", "sh", "ls", custom=True),))
    found = told(*events, ended, custom=frozenset({"sh"}))
    called = '"id":"c","type":"custom","custom":{"name":"sh","input":"ls"}'
    assert found == (
        begun("null")
        + chunk(f'"tool_calls":[{{"index":0,{called}}}]')
        + chunk("", '"stop"')
        + "data: [DONE]\n\n"
    )


def test_an_end_without_a_reason_has_one() -> None:
    silent = msgspec.structs.replace(DONE, finish=None)
    assert '"finish_reason":"stop"' in told(Ended(silent, ""))
    calls = (ToolCall("c", "f", "{}"),)
    assert '"finish_reason":"tool_calls"' in told(Ended(silent, "", items=calls))


def test_usage_is_in_a_chunk_of_its_own() -> None:
    *_, finish, usage, done, _ = told(Ended(DONE, ""), usage=True).split("\n\n")
    assert finish.endswith('"finish_reason":"stop"}],"usage":null}')
    assert usage.startswith(f'data: {HEAD}],"usage":{{"prompt_tokens":1,"completion_tokens":2,')
    assert done == "data: [DONE]"


def test_a_model_to_fall_back_on_is_named_from_its_start() -> None:
    other = msgspec.structs.replace(RUNNING, model="other")
    encode = encode_chunks(RUNNING, custom=frozenset(), include_usage=False)
    encode(Started(other))
    assert b'"model":"other"' in encode(Grew("x", 1))


@pytest.mark.parametrize("status", ["failed", "cancelled", "interrupted"])
def test_what_breaks_off_ends_with_an_error_and_is_not_done(status: str) -> None:
    failure = Failure("provider_failed", "It failed") if status == "failed" else None
    turn = msgspec.structs.replace(DONE, status=TurnStatus(status), failure=failure)
    *_, last, end = told(Grew("x", 1), Ended(turn, "x")).split("\n\n")
    error = msgspec.json.decode(last.removeprefix("data: "))["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert error["type"] in ("server_error", "invalid_request_error")
    assert end == ""
