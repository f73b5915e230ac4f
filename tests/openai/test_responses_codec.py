"""The pure halves of responses: the fold from what happens to events, items in and out, ids."""

import json
from typing import Any

import msgspec
import pytest
from openai._streaming import SSEDecoder

from turnkeeper.dialects.openai import content, ids, streaming
from turnkeeper.dialects.openai.errors import WrongParameter
from turnkeeper.dialects.openai.responses.events import OPENED, Fold, as_json, as_sse
from turnkeeper.dialects.openai.responses.request import decode_wanted
from turnkeeper.dialects.openai.responses.shape import (
    Kept,
    decode_kept,
    encode_echo,
    encode_kept,
)
from turnkeeper.domain import (
    NO_OPTIONS,
    Compaction,
    ImagePart,
    Item,
    Message,
    MessageRef,
    Reasoning,
    RefusalPart,
    TextPart,
    ToolCall,
    ToolResult,
    Turn,
    TurnRef,
    TurnStatus,
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

SESSION = "s" + "0" * 26
REF = TurnRef(SESSION, 3)
RUNNING = Turn(REF, TurnStatus.RUNNING, "scripted", 1_700_000_000_000)


def ended(
    text: str, *items: Item, status: TurnStatus = TurnStatus.COMPLETED, finish: Any = "stop"
) -> Ended:
    turn = Turn(REF, status, "scripted", 1_700_000_000_000, 1_700_000_001_000, finish=finish)
    return Ended(turn, text, items=items)


def fold(*events: ReplyEvent, after: int = -1, **more: Any) -> list[Any]:
    folding = Fold(RUNNING, 1, encode_echo({}), after=after, frame=as_json, **more)
    told = [json.loads(data) for event in (OPENED, *events) for data in folding.feed(event)]
    numbers = [event["sequence_number"] for event in told]
    assert numbers == list(range(after + 1, after + 1 + len(told)))
    return told


def types(events: list[Any]) -> list[str]:
    return [event["type"].removeprefix("response.") for event in events]


TEXT: tuple[ReplyEvent, ...] = (Started(RUNNING), Grew("He", 2), Grew("llo", 5), ended("Hello"))


# --- The fold ----------------------------------------------------------------------------------


def test_each_delta_is_an_event() -> None:
    events = fold(*TEXT)
    assert types(events) == [
        "created",
        "in_progress",
        "output_item.added",
        "content_part.added",
        "output_text.delta",
        "output_text.delta",
        "output_text.done",
        "content_part.done",
        "output_item.done",
        "completed",
    ]
    assert [event["delta"] for event in events[4:6]] == ["He", "llo"]
    assert {event["item_id"] for event in events[3:8]} == {f"msg_{SESSION[1:]}_3_1"}
    assert events[-1]["response"]["output"] == [events[-2]["item"]]


def test_it_goes_on_behind_any_number() -> None:
    events = fold(*TEXT)
    for number in range(len(events)):
        assert fold(*TEXT, after=number) == events[number + 1 :]


def test_what_a_crash_has_lost_is_the_end_alone() -> None:
    """The client knows as many events as there are left, or more."""
    cut = (Started(RUNNING), Grew("He", 2), ended("He", status=TurnStatus.INTERRUPTED))
    events = fold(*cut)
    assert types(events)[-1] == "failed"
    for number in (len(events) - 1, len(events), len(events) + 50):
        [last] = fold(*cut, after=number)
        assert last["type"] == "response.failed"
        assert last["sequence_number"] == number + 1
        assert last["response"]["output"][0]["content"][0]["text"] == "He"


def test_whoever_knows_the_end_is_told_nothing() -> None:
    assert fold(*TEXT, after=len(fold(*TEXT)) - 1) == []


def test_a_start_that_nobody_tells_of_is_told_all_the_same() -> None:
    """Of a stored reply one cannot see whether it had begun before it was cancelled."""
    cancelled = ended("", status=TurnStatus.CANCELLED)
    assert fold(cancelled) == fold(Started(RUNNING), cancelled)
    assert types(fold(cancelled)) == ["created", "in_progress", "incomplete"]
    assert types(fold(cancelled, queued=True)) == ["created", "queued", "in_progress", "incomplete"]


def test_words_and_a_refusal_are_parts_of_one_message() -> None:
    parts = (TextPart("Well. "), RefusalPart("No."))
    events = fold(
        Grew("Well. ", 6), RefusalDelta("No."), ended("Well. No.", Message("assistant", "x", parts))
    )
    added = [e["content_index"] for e in events if e["type"] == "response.content_part.added"]
    assert added == [0, 1]
    assert [part["type"] for part in events[-2]["item"]["content"]] == ["output_text", "refusal"]
    assert events[-1]["response"]["output"] == [events[-2]["item"]]


def test_calls_that_come_mixed_are_done_once() -> None:
    calls = (ToolCall("a", "f", "12"), ToolCall("b", "f", "3"))
    events = fold(
        ToolCallDelta(0, "a", "f", "1"),
        ToolCallDelta(1, "b", "f", "3"),
        ToolCallDelta(0, "", "", "2"),
        ended("", *calls, finish="tool_calls"),
    )
    done = [e["item"] for e in events if e["type"] == "response.output_item.done"]
    assert [item["arguments"] for item in done] == ["12", "3"]
    assert events[-1]["response"]["output"] == done


def test_thoughts_amid_words_go_on_where_they_were() -> None:
    events = fold(
        ReasoningDelta("Hm"),
        Grew("a", 1),
        ReasoningDelta("m."),
        Grew("b", 2),
        ended("ab", Reasoning("Hmm."), Message("assistant", "ab")),
    )
    last = [e["item"] for e in events if e["type"] == "response.output_item.done"][-2:]
    assert [item["content"][0]["text"] for item in last] == ["Hmm.", "ab"]
    assert events[-1]["response"]["output"] == last


def test_a_call_that_broke_off_is_incomplete() -> None:
    events = fold(
        ToolCallDelta(0, "a", "f", '{"to'),
        ended("", status=TurnStatus.FAILED),
    )
    assert events[-2]["item"]["status"] == "incomplete"
    assert events[-1]["response"]["output"] == []


def test_the_queue_of_a_fold_is_empty_after_each_event() -> None:
    folding = Fold(RUNNING, 1, encode_echo({}))
    for event in (OPENED, *TEXT):
        assert b"".join(folding.feed(event)).endswith((b"}\n\n", b"data: [DONE]\n\n"))


# --- Bytes -------------------------------------------------------------------------------------


def test_the_sdk_reads_events_between_keep_alives() -> None:
    folding = Fold(RUNNING, 1, encode_echo({}), frame=as_sse)
    data = b"".join(folding.join(event) + streaming.KEEP_ALIVE for event in (OPENED, *TEXT))
    for size in (1, 7, len(data)):
        pieces = iter([data[n : n + size] for n in range(0, len(data), size)])
        *events, done = SSEDecoder().iter_bytes(pieces)
        assert [event.json()["sequence_number"] for event in events] == list(range(10))
        assert done.data == "[DONE]"


# --- Items -------------------------------------------------------------------------------------

KINDS: tuple[Item, ...] = (
    Message("user", "one"),
    Message("system", "two"),
    Message("user", "ab", (TextPart("a"), ImagePart("http://x/y.png", "low"), TextPart("b"))),
    Message("assistant", "No.", (RefusalPart("No."),)),
    ToolCall("c1", "f", '{"a":1}'),
    ToolCall("c2", "g", "ls", custom=True),
    ToolResult("c1", "wet"),
    ToolResult("c2", "", custom=True, parts=(ImagePart("data:,", "auto"),)),
    Reasoning("Hm."),
    Compaction("They spoke of otters. ☃"),
)


@pytest.mark.parametrize("item", KINDS, ids=lambda item: type(item).__name__)
def test_what_is_told_of_an_item_can_be_sent_back(item: Item) -> None:
    told = content.encode_item(MessageRef(SESSION, 1, 0), item, "completed")
    raw = msgspec.Raw(msgspec.json.encode(told))
    assert content.decode_items([raw], "input") == (item,)


def test_a_compaction_that_is_none_is_refused() -> None:
    sealed = content.seal("told")
    assert content.unseal(sealed, "p") == "told"
    for wrong in ("", "x", "ä", sealed[:-4], "A" + sealed[1:], sealed[::-1]):
        with pytest.raises(WrongParameter):
            content.unseal(wrong, "p")


def test_ids_are_dressed_and_undressed() -> None:
    assert ids.parse_response_id(ids.response_id(REF)) == REF
    assert ids.parse_completion_id(ids.completion_id(REF)) == REF
    assert ids.parse_conversation_id(ids.conversation_id(SESSION)) == SESSION
    place = MessageRef(SESSION, 3, 1)
    for item in KINDS:
        assert ids.parse_item_id(ids.item_id(place, item)) == place
    for wrong in ("", "resp_", "resp_x", SESSION, REF.id, f"xx_{SESSION[1:]}_3_1"):
        assert ids.parse_response_id(wrong) is None
        assert ids.parse_conversation_id(wrong) is None
        assert ids.parse_item_id(wrong) is None


# --- What is kept ------------------------------------------------------------------------------


def test_what_is_kept_is_read_back() -> None:
    kept = Kept(2, in_conversation=True, echo={"metadata": {"a": "b"}})
    assert decode_kept(encode_kept(kept)) == kept
    assert encode_kept(Kept(1)) == '{"object":"response","asked":1}'
    assert decode_kept(None) is None
    assert decode_kept('{"object":"chat.completion","metadata":{}}') is None


def test_a_plain_request_has_the_options_that_all_share() -> None:
    """So that its plan is the one remembered for its session."""
    wanted = decode_wanted(b'{"model": "m", "input": "hello"}')
    assert wanted.options is NO_OPTIONS
    assert wanted.echo == {}
