"""A reply and those who follow it: its text from any character, or each of its deltas."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from turnkeeper import cuts
from turnkeeper.domain import (
    Item,
    KeptItem,
    Message,
    Reasoning,
    RefusalPart,
    TextPart,
    ToolCall,
    Turn,
    TurnRef,
    TurnStatus,
)
from turnkeeper.events import (
    Ended,
    Grew,
    ReasoningDelta,
    RefusalDelta,
    ReplyDelta,
    ReplyEvent,
    Started,
    TextDelta,
    ToolCallDelta,
)
from turnkeeper.reply import Follower, LogFollower, Reply

RUNNING = Turn(TurnRef("s1", 1), TurnStatus.RUNNING, "m", 0)
DONE = Turn(TurnRef("s1", 1), TurnStatus.COMPLETED, "m", 0, 1)
MIXED: tuple[ReplyDelta, ...] = (
    ReasoningDelta("Hm, "),
    ReasoningDelta("well. "),
    TextDelta("Let me "),
    TextDelta("see."),
    ToolCallDelta(0, "c1", "weather", ""),
    ToolCallDelta(0, "", "", '{"city":'),
    ToolCallDelta(1, "c2", "time", "{}"),
    ToolCallDelta(0, "", "", '"Bonn"}'),
)
MADE: tuple[Item, ...] = (
    Reasoning("Hm, well. "),
    Message("assistant", "Let me see."),
    ToolCall("c1", "weather", '{"city":"Bonn"}'),
    ToolCall("c2", "time", "{}"),
)


def reply_of(*deltas: ReplyDelta) -> Reply:
    reply = Reply("ann", RUNNING)
    for delta in deltas:
        reply.add(delta)
    return reply


def kept(items: tuple[Item, ...]) -> list[KeptItem]:
    asked: tuple[Item, ...] = (Message("user", "?"),)
    return [KeptItem(1, n, item, 0) for n, item in enumerate((*asked, *items))]


async def all_of(follower: Follower | LogFollower) -> list[ReplyEvent]:
    events: list[ReplyEvent] = []
    while not follower.finished:
        events += await follower.next()
    return events


async def test_the_items_of_a_reply_stand_in_the_order_of_their_first_deltas() -> None:
    assert reply_of(*MIXED).items(with_calls=True) == MADE
    assert reply_of(*MIXED).items(with_calls=False) == MADE[:2]
    assert reply_of(TextDelta("a"), TextDelta("b")).items(with_calls=True) == ()


async def test_words_and_a_refusal_are_one_message() -> None:
    reply = reply_of(TextDelta("Well. "), RefusalDelta("I can"), RefusalDelta("not."))
    parts = (TextPart("Well. "), RefusalPart("I cannot."))
    assert reply.items(with_calls=True) == (Message("assistant", "Well. I cannot.", parts),)
    assert reply.text == "Well. I cannot."


async def test_a_follower_of_the_log_is_told_each_delta_as_it_came() -> None:
    reply = reply_of(*MIXED)
    reply.end(DONE, MADE)
    events = await all_of(reply.follow_log())
    assert events == [
        Started(DONE),
        *MIXED[:2],
        Grew("Let me ", 7),
        Grew("see.", 11),
        *MIXED[4:],
        Ended(DONE, "Let me see.", items=MADE),
    ]


async def test_the_deltas_of_a_stored_reply_are_those_that_came() -> None:
    live = reply_of(*MIXED[:4], *MIXED[4:6], MIXED[7], MIXED[6])
    live.follow_log()
    live.end(DONE, MADE)
    stored = Reply.stored("ann", DONE, live.text, kept(MADE), live.cuts())
    assert await all_of(stored.follow_log()) == await all_of(live.follow_log())
    assert stored.first_position == 1


async def test_where_nobody_counts_deltas_nothing_is_kept_of_them() -> None:
    assert reply_of(*MIXED).cuts() is None


async def test_a_follower_of_the_text_is_told_thoughts_between() -> None:
    reply = reply_of(*MIXED)
    reply.end(DONE, MADE)
    assert await all_of(reply.follow()) == [
        Started(DONE),
        ReasoningDelta("Hm, well. "),
        Grew("Let me see.", 11),
        Ended(DONE, "Let me see.", items=MADE),
    ]


async def test_who_goes_on_from_a_character_is_told_all_thoughts_again() -> None:
    """The wire: parts that are no reply text carry no offset, and are sent whole again."""
    reply = reply_of(*MIXED)
    reply.end(DONE, MADE)
    assert (await all_of(reply.follow(9)))[:2] == [ReasoningDelta("Hm, well. "), Grew("e.", 11)]


@pytest.mark.parametrize("after", range(12))
async def test_any_character_is_a_place_to_go_on_from(after: int) -> None:
    reply = reply_of(TextDelta("Let "), RefusalDelta("me "), ToolCallDelta(0, "c", "n", "{}"))
    reply.add(TextDelta("see."))
    reply.end(DONE)
    events = await all_of(reply.follow(after))
    assert "".join(e.text for e in events if isinstance(e, Grew)) == "Let me see."[after:]


async def test_who_knows_more_than_there_is_starts_over() -> None:
    reply = reply_of(TextDelta("Let "))
    follower = reply.follow(9)
    reply.add(TextDelta("me"))
    reply.end(DONE)
    assert await all_of(follower) == [Ended(DONE, "Let me", replace=True)]


async def test_who_is_ahead_of_a_reply_waits_for_it() -> None:
    reply = reply_of(TextDelta("Let "))
    follower = reply.follow(6)
    reply.add(TextDelta("me see."))
    assert await follower.next() == [Grew(" see.", 11)]


# --- Cuts --------------------------------------------------------------------------------------

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=5)
DELTAS = st.lists(
    st.one_of(
        st.builds(TextDelta, TEXTS.filter(bool)),
        st.builds(RefusalDelta, TEXTS.filter(bool)),
        st.builds(ReasoningDelta, TEXTS.filter(bool)),
        st.builds(lambda text: ToolCallDelta(0, "", "", text), TEXTS.filter(bool)),
    )
)


@given(DELTAS)
def test_deltas_are_put_together_again_as_they_came(deltas: list[ReplyDelta]) -> None:
    calls = [n for n, delta in enumerate(deltas) if isinstance(delta, ToolCallDelta)]
    if calls:
        first = deltas[calls[0]]
        assert isinstance(first, ToolCallDelta)
        deltas[calls[0]] = ToolCallDelta(0, "c1", "name", first.arguments)
    assert list(cuts.apply(cuts.encode(deltas), deltas)) == deltas


@given(DELTAS, st.integers(0, 20))
def test_what_a_crash_has_cut_is_given_as_far_as_it_goes(
    deltas: list[ReplyDelta], kept: int
) -> None:
    text = "".join(delta.text for delta in deltas if isinstance(delta, TextDelta))
    rest = [TextDelta(text[:kept])] if text[:kept] else []
    pieces = list(cuts.apply(cuts.encode(deltas), rest))
    assert "".join(piece.text for piece in pieces if isinstance(piece, TextDelta)) == text[:kept]


def test_text_beyond_what_was_counted_comes_in_one_piece() -> None:
    assert list(cuts.apply("t2,1", [TextDelta("abcdef")])) == [
        TextDelta("ab"),
        TextDelta("c"),
        TextDelta("def"),
    ]
