"""The store exam, on what models are shown in place of what no longer fits, and how they count."""

from tests.contracts.test_store import NOW, PLENTY, a_turn, completed, new_id, say, texts
from turnkeeper.compose import open_store
from turnkeeper.contracts import BegunTurn, NewVersion, Store
from turnkeeper.domain import (
    ByAlias,
    ById,
    Context,
    Ending,
    Item,
    Message,
    MessageRef,
    ModelChoice,
    Place,
    Summary,
    TokenCount,
    TurnRef,
    TurnStatus,
)

MEMO = Summary(Place(2, 1), "They spoke of rain.")


async def with_summary(store: Store, turns: int = 4) -> ById:
    """A session of some turns whose first two are summarised."""
    ref = await say(store, "1", "one", None)
    session = ById(ref.session_id)
    for number in range(2, turns):
        await say(store, f"{number}", "reply", session)
    begun = await store.begin_turn(a_turn("last", session=session))
    await store.keep_summary(begun.turn.ref, MEMO)
    await store.end_turn(begun.turn.ref, completed("x"), NOW)
    return session


async def anew(store: Store, session: ById, turn: int, words: str | None = None) -> BegunTurn:
    """Other words in the place of a turn's message, or another reply to the newest."""
    message = None if words is None else MessageRef(session.id, turn, 0)
    item: Item | None = None if words is None else Message("user", words)
    new = NewVersion(
        owner="ann",
        session=session,
        message=message,
        words=item,
        model=None,
        choose=lambda *_: ModelChoice("default", PLENTY),
        revisions={},
        now=NOW,
    )
    begun = await store.begin_version(new)
    await store.end_turn(begun.turn.ref, completed("other"), NOW)
    return begun


async def test_a_summary_is_kept_and_takes_the_place_of_the_one_before(store: Store) -> None:
    session = await with_summary(store)
    assert await store.get_summary(session.id) == MEMO
    later = Summary(Place(3, 1), "Of rain and snow.")
    begun = await store.begin_turn(a_turn("more", session=session))
    await store.keep_summary(begun.turn.ref, later)
    assert await store.get_summary(session.id) == later
    assert await store.get_summary(new_id()) is None


async def test_a_summary_outlives_the_process(database: str, store: Store) -> None:
    session = await with_summary(store)
    await store.close()
    again = await open_store(database)
    assert await again.get_summary(session.id) == MEMO
    await again.close()


async def test_only_a_turn_that_runs_can_keep_a_summary(store: Store) -> None:
    ref = await say(store, "a", "b", None)
    await store.keep_summary(ref, MEMO)
    assert await store.get_summary(ref.session_id) is None
    begun = await store.begin_turn(a_turn("c", session=ById(ref.session_id)))
    await store.clear_session("ann", ById(ref.session_id), NOW)
    await store.keep_summary(begun.turn.ref, MEMO)
    assert await store.get_summary(ref.session_id) is None


async def test_clearing_and_deleting_take_the_summary_along(store: Store) -> None:
    cleared, deleted = await with_summary(store), await with_summary(store)
    await store.clear_session("ann", cleared, NOW)
    await store.delete_session("ann", deleted)
    assert await store.get_summary(cleared.id) is None
    assert await store.get_summary(deleted.id) is None


async def test_a_summary_goes_when_what_it_tells_of_changes_and_not_otherwise(store: Store) -> None:
    session = await with_summary(store)
    await anew(store, session, 4)
    await anew(store, session, 3, "other third")
    assert await store.get_summary(session.id) == MEMO
    await anew(store, session, 2, "other second")
    assert await store.get_summary(session.id) is None


async def test_a_summary_goes_when_a_version_of_what_it_tells_of_is_selected(store: Store) -> None:
    session = ById((await say(store, "1", "one", None)).session_id)
    begun = await anew(store, session, 1, "first in other words")
    number = begun.turn.ref.number
    running = await store.begin_turn(a_turn("more", session=session))
    await store.keep_summary(running.turn.ref, Summary(Place(number, 1), "memo"))
    await store.end_turn(running.turn.ref, completed("x"), NOW)
    assert await store.get_summary(session.id) is not None
    await store.select_version("ann", session, MessageRef(session.id, number, 0), 1, NOW)
    assert await store.get_summary(session.id) is None


async def test_a_fork_has_no_summary(store: Store) -> None:
    session = await with_summary(store)
    fork = await store.fork_session("ann", session, None, new_id(), NOW)
    assert await store.get_summary(fork.id) is None
    assert await store.get_summary(session.id) == MEMO


async def between(
    store: Store, id_: str, after: Place, before: Place, weight: int = PLENTY
) -> list[str]:
    items = await store.items_between(id_, after, before, weight)
    return [kept.item.text for kept in items if isinstance(kept.item, Message)]


async def test_the_items_between_two_places_are_read_in_order(store: Store) -> None:
    refs = [await say(store, f"q{n}", f"a{n}", ByAlias("s")) for n in range(5)]
    id_ = refs[0].session_id
    assert await between(store, id_, Place(0, 0), Place(3, 0)) == ["q0", "a0", "q1", "a1"]
    assert await between(store, id_, Place(1, 1), Place(3, 1)) == ["q1", "a1", "q2"]
    assert await between(store, id_, Place(3, 0), Place(3, 1)) == []


async def test_what_no_prompt_may_show_is_not_read_for_a_summary(store: Store) -> None:
    first = await say(store, "q", "a", ByAlias("s"))
    begun = await store.begin_turn(a_turn("lost", session=ByAlias("s")))
    await store.end_turn(begun.turn.ref, Ending(TurnStatus.FAILED, "half"), NOW)
    assert await between(store, first.session_id, Place(0, 0), Place(9, 0)) == ["q", "a"]


async def test_of_a_long_session_no_more_is_read_than_was_asked_for(store: Store) -> None:
    ref = await say(store, "q", "a", ByAlias("s"))
    for _ in range(99):
        await say(store, "q" * 100, "a" * 100, ByAlias("s"))
    found = await store.items_between(ref.session_id, Place(0, 0), Place(100, 0), 1160)
    assert 10 <= len(found) <= 80
    assert (found[-1].turn, found[-1].position) == (99, 1)
    assert len(await between(store, ref.session_id, Place(0, 0), Place(101, 0))) == 200
    assert len(await texts(store, ByAlias("s"))) == 200


async def test_that_a_summary_was_shown_is_kept_with_the_turn(store: Store) -> None:
    begun = await store.begin_turn(a_turn("x"))
    shown = Context(3, 10, 200, summarised=True)
    await store.end_turn(begun.turn.ref, Ending(TurnStatus.COMPLETED, "y", context=shown), NOW)
    ref = TurnRef(begun.turn.ref.session_id, begun.turn.ref.number)
    assert (await store.get_turn("ann", ref)).turn.context == shown


async def test_what_was_learned_of_models_is_kept(database: str, store: Store) -> None:
    assert list(await store.list_counts()) == []
    first = TokenCount("b", 4.25, 0.125, 0.05, 9)
    await store.keep_counts([first, TokenCount("a", 2.0, 0.5, 0.25, 3)])
    newer = TokenCount("a", 2.5, 0.25, 0.125, 4)
    await store.keep_counts([newer])
    await store.keep_counts([])
    await store.close()
    again = await open_store(database)
    assert list(await again.list_counts()) == [newer, first]
    await again.close()
