"""The store exam, on items that no turn makes, and on what a dialect keeps with a turn."""

import pytest

from tests.contracts.test_store import NOW, a_turn, completed, new_id, say
from turnkeeper.contracts import Store
from turnkeeper.domain import (
    ByAlias,
    ById,
    Ending,
    IdempotencyKey,
    Item,
    ListedItem,
    Message,
    MessageRef,
    Reasoning,
    SessionFilter,
    ToolCall,
    ToolResult,
    Turn,
    TurnRef,
    TurnStatus,
    Usage,
    item_weight,
)
from turnkeeper.errors import (
    KeyReused,
    MessageNotFound,
    NotNewest,
    SessionBusy,
    SessionNotFound,
    TurnNotFound,
)

CALLS: tuple[Item, ...] = (
    Reasoning("They want the weather."),
    Message("assistant", "Let me see."),
    ToolCall("c1", "weather", '{"city":"Bonn"}'),
)


async def listed(store: Store, session: ById) -> list[Item]:
    return [kept.item for kept in await store.list_items("ann", session, None, 1000)]


def _text(kept: ListedItem) -> str:
    assert isinstance(kept.item, Message)
    return kept.item.text


async def texts(store: Store, session: ById) -> list[str]:
    return list(map(_text, await store.list_items("ann", session, None, 1000)))


async def weight_of(store: Store, session: ById) -> tuple[int, int]:
    """The weight and the messages that the next prompt could show, less its own."""
    begun = await store.begin_turn(a_turn("?", session=session))
    await store.end_turn(begun.turn.ref, Ending(TurnStatus.CANCELLED, ""), NOW)
    history = begun.history
    assert history.total_weight == sum(item_weight(kept.item) for kept in history.items)
    return history.total_weight - item_weight(Message("user", "?")), history.message_count - 1


# --- Replies of more than text -----------------------------------------------------------------


async def test_a_reply_of_several_items_is_kept_in_order_and_thoughts_are_in_no_prompt(
    store: Store,
) -> None:
    begun = await store.begin_turn(a_turn("weather?"))
    session = ById(begun.turn.ref.session_id)
    usage = Usage(10, 5, False, 8, 2)
    ending = Ending(
        TurnStatus.COMPLETED, "Let me see.", usage, items=CALLS, finish="tool_calls", cuts="r3 t2"
    )
    await store.end_turn(begun.turn.ref, ending, NOW)
    stored = await store.get_turn("ann", begun.turn.ref)
    assert [kept.item for kept in stored.items] == [Message("user", "weather?"), *CALLS]
    assert (stored.text, stored.cuts, stored.data) == ("Let me see.", "r3 t2", None)
    assert (stored.turn.finish, stored.turn.usage) == ("tool_calls", usage)
    following = await store.begin_turn(a_turn(ToolResult("c1", "rain"), session=session))
    shown = [kept.item for kept in following.history.items]
    assert shown == [Message("user", "weather?"), *CALLS[1:], ToolResult("c1", "rain")]
    assert following.history.total_weight == sum(map(item_weight, shown))
    assert following.history.message_count == 2


async def test_a_crash_leaves_in_which_pieces_the_words_had_come(store: Store) -> None:
    begun = await store.begin_turn(a_turn("hi"))
    await store.checkpoint(begun.turn.ref, 0, "Hel", "t2,1")
    await store.checkpoint(begun.turn.ref, 1, "lo", "t2")
    running = await store.get_turn("ann", begun.turn.ref)
    assert (running.text, running.cuts) == ("Hello", "t2,1 t2")
    await store.settle_abandoned(NOW)
    settled = await store.get_turn("ann", begun.turn.ref)
    assert (settled.text, settled.cuts) == ("Hello", "t2,1 t2")


async def test_a_turn_over_nothing_new(store: Store) -> None:
    ref = await say(store, "hi", "hello", None)
    begun = await store.begin_turn(a_turn(session=ById(ref.session_id)))
    assert begun.asked == 0
    await store.end_turn(begun.turn.ref, completed("hello?"), NOW)
    assert await texts(store, ById(ref.session_id)) == [
        "hi",
        "hello",
        "hello?",
    ]


# --- Turns that come behind another ------------------------------------------------------------


async def test_a_turn_comes_behind_the_newest_or_not_at_all(store: Store) -> None:
    first = await say(store, "1", "one", None)
    session = ById(first.session_id)
    second = await say(store, "2", "two", session)
    with pytest.raises(NotNewest):
        await store.begin_turn(a_turn("x", session=session, after=first))
    with pytest.raises(TurnNotFound):
        await store.begin_turn(a_turn("x", session=session, after=TurnRef(session.id, 9)))
    begun = await store.begin_turn(a_turn("3", session=session, after=second))
    assert begun.turn.ref.number == 3
    queued = await store.begin_turn(a_turn("4", session=session, after=begun.turn.ref))
    assert queued.turn.status is TurnStatus.QUEUED


async def test_a_failure_does_not_stand_between_two_turns(store: Store) -> None:
    first = await say(store, "1", "one", None)
    session = ById(first.session_id)
    failed = await store.begin_turn(a_turn("2", session=session, after=first))
    await store.end_turn(failed.turn.ref, Ending(TurnStatus.FAILED, "part"), NOW)
    again = await store.begin_turn(a_turn("2", session=session, after=first))
    assert again.turn.ref.number == 3


async def test_a_fork_at_a_turn_holds_all_that_was_said_in_it(store: Store) -> None:
    first = await say(store, "1", "one", None)
    session = ById(first.session_id)
    await say(store, "2", "two", session)
    fork = await store.fork_session("ann", session, first, new_id(), NOW)
    assert await texts(store, ById(fork.id)) == ["1", "one"]
    running = await store.begin_turn(a_turn("3", session=session))
    with pytest.raises(SessionBusy):
        await store.fork_session("ann", session, running.turn.ref, new_id(), NOW)
    with pytest.raises(TurnNotFound):
        await store.fork_session("ann", session, TurnRef(session.id, 77), new_id(), NOW)


# --- Items without a turn ----------------------------------------------------------------------


async def test_items_are_added_at_the_end(store: Store) -> None:
    ref = await say(store, "1", "one", None)
    session = ById(ref.session_id)
    items: tuple[Item, ...] = (
        Message("user", "2"),
        Message("assistant", "two"),
        Message("user", "3"),
        Reasoning("hm"),
    )
    added = await store.append_items("ann", session, items, NOW)
    assert [kept.item for kept in added] == list(items)
    assert [(kept.turn, kept.position) for kept in added] == [(2, 0), (2, 1), (3, 0), (3, 1)]
    assert [kept.status for kept in added] == [None] * 4
    assert (await listed(store, session))[2:] == list(items)
    shown = [Message("user", "1"), Message("assistant", "one"), *items[:3]]
    assert await weight_of(store, session) == (sum(map(item_weight, shown)), 5)


async def test_items_are_added_while_a_turn_runs(store: Store) -> None:
    begun = await store.begin_turn(a_turn("1"))
    session = ById(begun.turn.ref.session_id)
    await store.append_items("ann", session, [Message("user", "aside")], NOW)
    queued = await store.begin_turn(a_turn("2", session=session))
    ended = await store.end_turn(begun.turn.ref, completed("one"), NOW)
    assert ended.promoted is not None
    assert ended.promoted.ref == queued.turn.ref
    assert await texts(store, session) == ["1", "one", "aside", "2"]


async def test_items_are_added_once_under_a_key(store: Store) -> None:
    ref = await say(store, "1", "one", None)
    session, key = ById(ref.session_id), IdempotencyKey("ann", "k", "r")
    items = [Message("user", "2"), Message("user", "3")]
    first = await store.append_items("ann", session, items, NOW, key=key)
    assert await store.append_items("ann", session, items, NOW, key=key) == first
    assert await texts(store, session) == ["1", "one", "2", "3"]
    other = IdempotencyKey("ann", "k", "other")
    with pytest.raises(KeyReused):
        await store.append_items("ann", session, items, NOW, key=other)


async def test_items_are_paged_in_both_orders_with_others_added_meanwhile(store: Store) -> None:
    ref = await say(store, "0", "zero", None)
    session = ById(ref.session_id)
    await store.append_items("ann", session, [Message("user", f"{n}") for n in range(9)], NOW)
    expected = await texts(store, session)
    for newest_first in (False, True):
        found: list[str] = []
        after, more = None, True
        while more:
            page = await store.page_items(
                "ann", session, after=after, limit=2, newest_first=newest_first
            )
            found += map(_text, page.items)
            after, more = (page.items[-1].turn, page.items[-1].position), page.more
            if len(found) == 4:
                await store.append_items("ann", session, [Message("user", "late")], NOW)
        # Going back, the one that came first is seen; what comes after the beginning is not.
        assert found == (["late", *expected[::-1]] if newest_first else [*expected, "late"])


async def test_an_item_is_removed_for_good(store: Store) -> None:
    ref = await say(store, "1", "one", None)
    session = ById(ref.session_id)
    place = MessageRef(session.id, 1, 0)
    assert (await store.get_item("ann", place)).item == Message("user", "1")
    left = await store.delete_item("ann", place, NOW)
    assert left.message_count == 1
    with pytest.raises(MessageNotFound):
        await store.get_item("ann", place)
    with pytest.raises(MessageNotFound):
        await store.delete_item("ann", place, NOW)
    with pytest.raises(SessionNotFound):
        await store.get_item("bob", MessageRef(session.id, 1, 1))
    with pytest.raises(SessionNotFound):
        await store.delete_item("bob", MessageRef(session.id, 1, 1), NOW)
    assert await weight_of(store, session) == (item_weight(Message("assistant", "one")), 1)
    running = await store.begin_turn(a_turn("2", session=session))
    with pytest.raises(SessionBusy):
        await store.delete_item("ann", MessageRef(session.id, running.turn.ref.number, 0), NOW)


# --- What a dialect keeps with a turn ----------------------------------------------------------


async def a_bare_turn(store: Store, text: str) -> Turn:
    begun = await store.begin_turn(a_turn(text, data=f'{{"n":"{text}"}}', bare=True))
    await store.end_turn(begun.turn.ref, completed(f"re {text}"), NOW)
    return begun.turn


async def test_what_was_kept_with_a_turn_is_given_back_and_changed(store: Store) -> None:
    turn = await a_bare_turn(store, "1")
    assert (await store.get_turn("ann", turn.ref)).data == '{"n":"1"}'
    await store.set_turn_data("ann", turn.ref, "{}", NOW)
    assert (await store.get_turn("ann", turn.ref)).data == "{}"
    plain = await say(store, "2", "two", None)
    for owner, ref in (("bob", turn.ref), ("ann", plain)):
        with pytest.raises(TurnNotFound):
            await store.set_turn_data(owner, ref, "{}", NOW)


async def test_bare_sessions_are_in_no_list_but_their_own(store: Store) -> None:
    await say(store, "listed", "yes", None)
    bare = [await a_bare_turn(store, str(n)) for n in range(5)]
    page = await store.page_sessions("ann", SessionFilter(), None, 100)
    assert len(page.sessions) == 1
    assert len(await store.list_sessions("ann")) == 1
    for newest_first in (False, True):
        found: list[TurnRef] = []
        after, more = None, True
        while more:
            turns = await store.page_turns("ann", after=after, limit=2, newest_first=newest_first)
            found += [stored.turn.ref for stored in turns.turns]
            after, more = found[-1], turns.more
        expected = [turn.ref for turn in bare]
        assert found == (expected[::-1] if newest_first else expected)
    [stored] = (await store.page_turns("ann", after=None, limit=1, newest_first=True)).turns
    assert [kept.item for kept in stored.items] == [
        Message("user", "4"),
        Message("assistant", "re 4"),
    ]
    assert not (await store.page_turns("bob", after=None, limit=9, newest_first=True)).turns


async def test_a_turn_is_removed_with_its_items_and_a_session_left_empty_with_it(
    store: Store,
) -> None:
    turn = await a_bare_turn(store, "1")
    with pytest.raises(TurnNotFound):
        await store.delete_turn("bob", turn.ref, NOW, keep_items=False)
    await store.delete_turn("ann", turn.ref, NOW, keep_items=False)
    with pytest.raises(TurnNotFound):
        await store.get_turn("ann", turn.ref)
    with pytest.raises(SessionNotFound):
        await store.get_session("ann", ById(turn.ref.session_id))


async def test_of_a_turn_that_is_removed_the_others_stay(store: Store) -> None:
    first = await say(store, "1", "one", None)
    session = ById(first.session_id)
    begun = await store.begin_turn(a_turn("2", session=session, data="{}"))
    with pytest.raises(SessionBusy):
        await store.delete_turn("ann", begun.turn.ref, NOW, keep_items=False)
    await store.end_turn(begun.turn.ref, completed("two"), NOW)
    await store.delete_turn("ann", begun.turn.ref, NOW, keep_items=False)
    assert await listed(store, session) == [Message("user", "1"), Message("assistant", "one")]
    shown = (Message("user", "1"), Message("assistant", "one"))
    assert await weight_of(store, session) == (sum(map(item_weight, shown)), 2)


async def test_the_items_of_a_turn_may_stay_without_what_was_kept_with_it(store: Store) -> None:
    begun = await store.begin_turn(a_turn("1", session=ByAlias("x", create=True), data="{}"))
    await store.end_turn(begun.turn.ref, completed("one"), NOW)
    await store.delete_turn("ann", begun.turn.ref, NOW, keep_items=True)
    stored = await store.get_turn("ann", begun.turn.ref)
    assert (stored.data, stored.text) == (None, "one")
    with pytest.raises(TurnNotFound):
        await store.delete_turn("ann", begun.turn.ref, NOW, keep_items=True)


async def test_what_was_said_before_a_turn_is_read_without_storing_anything(store: Store) -> None:
    first = await say(store, "1", "one", None)
    session = ById(first.session_id)
    await say(store, "2", "two", session)
    upto = await store.read_history("ann", first, 10_000)
    assert [kept.item for kept in upto.items] == [
        Message("user", "1"),
        Message("assistant", "one"),
    ]
    assert (upto.message_count, upto.total_weight) == (2, sum(k.weight for k in upto.items))
    whole = await store.read_history("ann", session, 10_000)
    assert (whole.message_count, len(whole.items)) == (4, 4)
    assert (await store.get_basis("ann", session)).revision.deployment == "default"
    with pytest.raises(TurnNotFound):
        await store.read_history("bob", first, 10)
    with pytest.raises(SessionNotFound):
        await store.read_history("bob", session, 10)
