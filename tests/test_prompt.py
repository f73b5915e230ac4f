"""What the model is shown, and what it is not."""

import itertools

import pytest

from turnkeeper import prompt
from turnkeeper.counts import BYTES_PER_TOKEN
from turnkeeper.domain import (
    Blueprint,
    Context,
    History,
    ImagePart,
    Item,
    KeptItem,
    Message,
    Model,
    OutlineEntry,
    Passage,
    TextPart,
    ToolCall,
    ToolResult,
    item_weight,
)
from turnkeeper.errors import ContextTooLong


def history(*turns: tuple[Item, ...], unread: int = 0, messages: int | None = None) -> History:
    """Turns as the store gives them, with `unread` weight before them."""
    items = tuple(
        KeptItem(number, position, item, item_weight(item))
        for number, turn in enumerate(turns, start=1)
        for position, item in enumerate(turn)
    )
    weight = unread + sum(kept.weight for kept in items)
    return History(items, weight, len(items) if messages is None else messages)


def said(size: int, number: int = 0) -> tuple[Item, ...]:
    """A turn of `size` weight: a question and its answer."""
    text = f"{number:04d}" + "x" * (size // 2 - 20)
    return (Message("user", text), Message("assistant", text))


def shown(found: History, room: int) -> list[Item]:
    return [kept.item for kept in prompt.fit(found, room)]


def context_of(found: History, room: int) -> Context:
    return prompt.show("m", found, prompt.fit(found, room), BYTES_PER_TOKEN).context


def test_what_fits_is_shown_whole_after_the_system_message() -> None:
    frame = (Message("system", "Be kind."),)
    weight = prompt.weigh(frame)
    found = history(said(100), said(100))
    sent = prompt.fit(found, 1000)
    shown = prompt.show("m", found, sent, 4.0, frame=frame, frame_weight=weight)
    context = shown.context
    assert shown.prompt.items[:1] == frame
    assert shown.weight == 200 + weight
    assert context.estimated_tokens == shown.weight // 4
    assert len(shown.prompt.items) == 5
    assert (context.messages_sent, context.messages_dropped) == (4, 0)


def test_an_overflow_is_cut_to_three_quarters_in_whole_turns() -> None:
    turns = [said(100, n) for n in range(11)]
    assert shown(history(*turns[:10]), 1000) == list(itertools.chain(*turns[:10]))
    assert shown(history(*turns), 1000) == list(itertools.chain(*turns[3:]))


def test_the_beginning_stays_the_same_until_a_quarter_has_come() -> None:
    turns = [said(100, n) for n in range(40)]
    starts = [shown(history(*turns[:count]), 1000)[0] for count in range(11, 40)]
    assert len(set(starts)) == 12
    for count, start in enumerate(starts, start=11):
        found = shown(history(*turns[:count]), 1000)
        assert 700 <= sum(map(item_weight, found)) <= 1000
        assert found[0] == start


def test_what_the_store_did_not_read_counts_as_dropped() -> None:
    turns = [said(100, n) for n in range(10)]
    context = context_of(history(*turns, unread=100_000, messages=2020), 1000)
    assert context.messages_sent + context.messages_dropped == 2020


def test_system_messages_count_neither_as_messages_nor_as_dropped() -> None:
    turns = [said(400), (Message("user", "x"), *[Message("system", "s")] * 3)]
    context = context_of(history(*turns, messages=3), 300)
    assert (context.messages_sent, context.messages_dropped) == (4, 2)


def test_the_newest_turn_always_stays() -> None:
    newest = (Message("user", "x" * 2000),)
    assert shown(history(said(500), newest), 1000) == list(newest)


def test_half_a_turn_is_never_shown() -> None:
    """The store reads by pages, and may have read only the end of its oldest turn."""
    items = history(said(300, 1), said(300, 2), said(300, 3)).items[1:]
    found = shown(History(items, 5000, 100), 1000)
    assert found[0] == items[1].item


def test_a_tool_result_is_never_shown_without_its_call() -> None:
    call = (Message("user", "weather?"), ToolCall("c1", "weather", "{}" + " " * 300))
    result = (ToolResult("c1", "rain"), Message("user", "and?"))
    found = shown(history(call, result, said(500)), 800)
    assert found == list(said(500))  # what follows from a call goes with it


CALL, RESULT = ToolCall("c1", "weather", "{}"), ToolResult("c1", "rain")
OTHER_CALL, OTHER_RESULT = ToolCall("c2", "time", "{}"), ToolResult("c2", "noon")
AND = Message("user", "and?")


def test_a_chain_of_calls_too_long_for_the_model_loses_its_beginning() -> None:
    steps = [
        (ToolResult(f"c{n}", "x" * 300), ToolCall(f"c{n + 1}", "weather", "{}")) for n in range(9)
    ]
    start = (Message("user", "weather?"), ToolCall("c0", "weather", "{}"))
    found = prompt.pair(shown(history(start, *steps, (ToolResult("c9", "rain"),)), 1000))
    assert found[-1] == ToolResult("c9", "rain")
    assert found[-2] == ToolCall("c9", "weather", "{}")
    called = [item.call_id for item in found if isinstance(item, ToolCall)]
    assert called == [item.call_id for item in found if isinstance(item, ToolResult)]


@pytest.mark.parametrize(
    ("items", "expected"),
    [
        ([CALL, RESULT], [CALL, RESULT]),
        ([CALL, Message("user", "never mind")], [Message("user", "never mind")]),
        ([RESULT, Message("user", "and?")], [Message("user", "and?")]),
        ([RESULT, CALL], []),
        ([CALL, RESULT, RESULT], [CALL, RESULT]),
        ([CALL, OTHER_CALL, OTHER_RESULT, RESULT], [CALL, OTHER_CALL, OTHER_RESULT, RESULT]),
        # Only what stands side by side is one exchange for a provider.
        ([CALL, AND, RESULT], [AND, CALL, RESULT]),
        (
            [CALL, OTHER_CALL, RESULT, AND, OTHER_RESULT],
            [CALL, RESULT, AND, OTHER_CALL, OTHER_RESULT],
        ),
        # Some models call every call the same.
        ([CALL, AND, CALL, RESULT], [AND, CALL, RESULT]),
        ([CALL, CALL, RESULT, RESULT], [CALL, RESULT]),
        ([CALL, RESULT, AND, CALL, RESULT], [CALL, RESULT, AND, CALL, RESULT]),
    ],
)
def test_calls_and_results_are_shown_in_pairs(items: list[Item], expected: list[Item]) -> None:
    """An unpaired one has every later call of a provider fail: a history poisoned for good."""
    assert prompt.pair(items) == expected


def test_a_picture_takes_room_and_tells_nothing_of_how_a_model_counts() -> None:
    picture = Message("user", "see", (TextPart("see"), ImagePart("data:image/png;base64,AAAA")))
    items = history((picture,))
    sent = prompt.fit(items, 10_000)
    seen = prompt.show("m", items, sent, 3.0)
    assert seen.has_images
    assert seen.weight > 1000


def test_a_message_too_large_for_the_model_is_refused() -> None:
    model = Model("small", "Small", 1000)
    room = prompt.capacity(model.context_window, Blueprint(), 30, 3.0)
    assert 0 < room < 3000
    prompt.check_room(model, room, room, 3.0)
    with pytest.raises(ContextTooLong, match="small has room for"):
        prompt.check_room(model, room, room + 1, 3.0)


@pytest.mark.parametrize(
    ("blueprint", "tokens"),
    [
        (Blueprint(), 750),  # a quarter of a small window is the reply's
        (Blueprint(max_tokens=100), 900),
        (Blueprint(max_tokens=9999), 500),
        (Blueprint(context_window=500), 375),
        (Blueprint(context_window=5000), 750),  # no larger than the model's own
    ],
)
def test_the_reply_is_left_the_room_it_may_take(blueprint: Blueprint, tokens: int) -> None:
    room = prompt.capacity(1000, blueprint, 30, 4.0)
    assert room == tokens * 4 - 30


# --- A passage ---------------------------------------------------------------------------------


def entries(*titles: str, level: int = 1) -> tuple[OutlineEntry, ...]:
    return tuple(OutlineEntry(level, title) for title in titles)


PASSAGE = Passage(
    "My  report",
    OutlineEntry(2, "Aims"),
    "To know.",
    entries("Intro", ""),
    entries("Method\nand more", level=2),
)
WHOLE = """This conversation is about a section of a document.
Document: My report
Outline:
- Intro
  - Aims (this section)
  - Method and more

Section: Aims
Text of the section:
To know."""


def test_a_passage_is_described_whole_where_there_is_room() -> None:
    assert prompt.describe_passage(PASSAGE, 1000) == WHOLE
    assert prompt.describe_passage(PASSAGE, len(WHOLE) + 200) == WHOLE


def test_a_section_without_title_or_text_is_still_a_place() -> None:
    text = prompt.describe_passage(Passage("D", OutlineEntry(1, " "), ""), 1000)
    assert "- (no title) (this section)\n\nSection: (no title)\nText of the section:\n" in text


@pytest.mark.parametrize("budget", [0, 50, 200, 300, 1000, 5000, 50_000, 10_000_000])
@pytest.mark.parametrize("size", [0, 10, 1000, 1_000_000])
@pytest.mark.parametrize("sections", [0, 10, 500])
def test_a_description_is_never_longer_than_its_budget(
    budget: int, size: int, sections: int
) -> None:
    around = entries(*[f"Überschrift {n}" for n in range(sections)])
    passage = Passage("D", OutlineEntry(1, "T"), "ä" * size, around, around, 4321, 1234)
    text = prompt.describe_passage(passage, budget)
    assert len(text.encode()) <= max(budget, 0)
    assert bool(text) == (budget >= 200)


def test_a_long_text_is_cut_in_the_middle_and_a_long_outline_around_the_section() -> None:
    before = entries(*[f"before {n:03}" for n in range(100)])
    after = entries(*[f"after {n:03}" for n in range(100)])
    content = "BEGIN" + "x" * 10_000 + "END"
    passage = Passage("D", OutlineEntry(1, "T"), content, before, after, 1000, 2000)
    text = prompt.describe_passage(passage, 1200)
    assert "before 099\n- T (this section)\n- after 000" in text
    assert text.index("more …]\n- before") < text.index("- T") < text.rindex("[…", 0, 800)
    assert text.endswith("END")
    assert "\nBEGINxxx" in text
    assert "x\n[… 10008 characters in all, cut here …]\nx" in text


def test_a_short_text_leaves_its_room_to_the_outline() -> None:
    before = entries(*[f"before {n:03}" for n in range(100)])
    passage = Passage("D", OutlineEntry(1, "T"), "short", before)
    text = prompt.describe_passage(passage, 2000)
    assert "before 000" in text
    assert text.endswith("\nshort")


@pytest.mark.parametrize(
    ("text", "budget", "cut"),
    [
        ("whole", 5, "whole"),
        ("", 0, ""),
        ("too long", 3, ""),
        ("é" * 50, 100, "é" * 50),
        ("é" * 51, 53, "éé\n[… 51 characters in all, cut here …]\néé"),
    ],
)
def test_cutting(text: str, budget: int, cut: str) -> None:
    assert prompt.cut_middle(text, budget) == cut


def test_what_is_put_in_front_joins_the_system_message() -> None:
    hello = Message("user", "hello")
    assert prompt.put_in_front((Message("system", "Be kind."), hello), "Now.") == (
        Message("system", "Be kind.\n\nNow."),
        hello,
    )
    assert prompt.put_in_front((hello,), "Now.") == (Message("system", "Now."), hello)
    assert prompt.put_in_front((), "Now.") == (Message("system", "Now."),)


def test_a_passage_gets_half_of_the_room_and_the_newest_turn_fits() -> None:
    overhead = item_weight(Message("system", ""))
    assert prompt.allowance(1000, history(said(100)), keep_all=False) == 500 - overhead
    large = history(said(100), said(800))
    assert prompt.allowance(1000, large, keep_all=False) == 200 - overhead
    assert prompt.allowance(1000, large, keep_all=True) == 100 - overhead


USER, ASSISTANT = Message("user", "u"), Message("assistant", "a")
RULE, CALL, RESULT = Message("developer", "d"), ToolCall("c", "f", "{}"), ToolResult("c", "r")


@pytest.mark.parametrize(
    ("items", "lengths"),
    [
        ((), []),
        ((USER,), [1]),
        ((RULE, USER, ASSISTANT), [3]),
        ((USER, ASSISTANT, USER, ASSISTANT), [2, 2]),
        ((USER, CALL, RESULT, ASSISTANT, USER), [4, 1]),
        ((ASSISTANT, ASSISTANT, USER), [2, 1]),
        ((USER, USER, ASSISTANT, RULE, USER), [3, 2]),
    ],
)
def test_a_turn_begins_where_a_client_speaks_after_a_model(
    items: tuple[Item, ...], lengths: list[int]
) -> None:
    turns = prompt.turns_of(items)
    assert [len(turn) for turn in turns] == lengths
    assert tuple(itertools.chain(*turns)) == items


def test_of_a_clients_words_the_newest_stay_and_rules_before_them() -> None:
    rule = Message("developer", "Be brief.")
    turns = [said(100, number) for number in range(5)]
    items = history((rule, *turns[0]), *turns[1:]).items
    each = item_weight(turns[0][0])
    users = [turn[0] for turn in turns]
    assert prompt.words_of_client(items, 10_000) == (rule, *users)
    assert prompt.words_of_client(items, item_weight(rule) + 2 * each) == (rule, *users[-2:])
    assert prompt.words_of_client(items, item_weight(rule) + 2 * each - 1) == (rule, users[-1])
    assert prompt.words_of_client(items, 0) == ()
