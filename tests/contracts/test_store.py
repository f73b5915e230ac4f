"""The store exam: the sentences of `contracts.Store`, on every database."""

import asyncio
import itertools
from collections.abc import Awaitable, Callable, Sequence

import msgspec
import pytest

from turnkeeper.compose import open_store
from turnkeeper.contracts import EndedTurn, NewTurn, Store
from turnkeeper.domain import (
    Basis,
    Blueprint,
    ByAlias,
    ById,
    Compaction,
    Context,
    Ending,
    Failure,
    ImagePart,
    Item,
    Kept,
    ListedItem,
    Message,
    ModelChoice,
    Reasoning,
    RefusalPart,
    Revision,
    Session,
    SessionChoice,
    SessionFilter,
    TextPart,
    ToolCall,
    ToolResult,
    TurnRef,
    TurnStatus,
    Usage,
    item_weight,
    make_revision_id,
    make_session_id,
)
from turnkeeper.errors import (
    ConfigError,
    ContextTooLong,
    QueueFull,
    SessionBusy,
    SessionNotFound,
    TurnNotFound,
)

Open = Callable[[], Awaitable[Store]]

NOW = 1_700_000_000_000
PLENTY = 1_000_000
PLAIN = Blueprint()
_numbers = itertools.count(1)


def new_id() -> str:
    return make_session_id(NOW * 1000 + next(_numbers), 12345)


async def publish(
    store: Store, name: str, blueprint: Blueprint = PLAIN, *, new: bool | None = None
) -> Revision:
    revision = Revision(make_revision_id(next(_numbers)), name, 0, blueprint, NOW)
    return (await store.publish_revision(name, revision, "api", new=new)).revision


def a_turn(
    *items: Item | str,
    session: SessionChoice | None = None,
    owner: str = "ann",
    model: str | None = None,
    history: int = PLENTY,
    queue_limit: int = 8,
    deployment: str = "default",
    scope: str | None = None,
    kept: Kept | None = None,
    after: TurnRef | None = None,
    data: str | None = None,
    bare: bool = False,
) -> NewTurn:
    """A turn; an alias makes a session."""
    if isinstance(session, ByAlias):
        session = ByAlias(session.alias, create=True)
    return NewTurn(
        owner=owner,
        session=session,
        new_id=new_id(),
        deployment=deployment,
        scope=scope,
        items=tuple(Message("user", i) if isinstance(i, str) else i for i in items),
        model=model,
        choose=lambda basis, _: ModelChoice(basis.model or "default", history),
        queue_limit=queue_limit,
        revisions={},
        now=NOW,
        kept=kept,
        after=after,
        data=data,
        bare=bare,
    )


def completed(text: str) -> Ending:
    return Ending(TurnStatus.COMPLETED, text, Usage(3, 4))


async def say(store: Store, text: str, reply: str, session: ById | ByAlias | None) -> TurnRef:
    begun = await store.begin_turn(a_turn(text, session=session))
    await store.end_turn(begun.turn.ref, completed(reply), NOW)
    return begun.turn.ref


async def newest_sessions(store: Store, limit: int) -> Sequence[Session]:
    return (await store.page_sessions("ann", SessionFilter(), None, limit)).sessions


async def texts(store: Store, session: ById | ByAlias) -> list[str]:
    """What a prompt would show now, seen by a turn that then fails and leaves no trace."""
    begun = await store.begin_turn(a_turn("probe", session=session))
    await store.end_turn(begun.turn.ref, Ending(TurnStatus.FAILED, ""), NOW)
    return [kept.item.text for kept in begun.history.items if isinstance(kept.item, Message)][:-1]


# --- A turn ------------------------------------------------------------------------------------


async def test_a_turn_is_kept_whole(store: Store) -> None:
    begun = await store.begin_turn(a_turn("hello"))
    assert begun.turn.status is TurnStatus.RUNNING
    assert [kept.item for kept in begun.history.items] == [Message("user", "hello")]
    ending = Ending(
        TurnStatus.COMPLETED, "hi there", Usage(5, 2, estimated=True), None, Context(1, 0, 9)
    )
    assert await store.end_turn(begun.turn.ref, ending, NOW + 5) == EndedTurn(True)
    stored = await store.get_turn("ann", begun.turn.ref)
    assert stored.text == "hi there"
    assert stored.turn.status is TurnStatus.COMPLETED
    assert stored.turn.usage == Usage(5, 2, estimated=True)
    assert stored.turn.context == Context(1, 0, 9)
    assert (stored.turn.created_at, stored.turn.finished_at) == (NOW, NOW + 5)


async def test_history_is_in_order_and_ends_with_the_turns_own_items(store: Store) -> None:
    session = ByAlias("talk")
    for number in range(50):
        await say(store, f"q{number}", f"a{number}", session)
    begun = await store.begin_turn(a_turn("last", session=session))
    said = [kept.item.text for kept in begun.history.items if isinstance(kept.item, Message)]
    expected = [f"{kind}{n}" for n in range(50) for kind in "qa"]
    assert said == [*expected, "last"]
    assert begun.history.total_weight == sum(item_weight(kept.item) for kept in begun.history.items)
    assert begun.history.message_count == 101


async def test_history_is_read_from_its_end_and_only_as_far_as_asked(store: Store) -> None:
    session = ByAlias("long")
    for number in range(60):
        await say(store, f"question {number}", f"answer {number}", session)
    begun = await store.begin_turn(a_turn("now", session=session, history=200))
    assert sum(item_weight(kept.item) for kept in begun.history.items) >= 200
    assert len(begun.history.items) < 60
    assert begun.history.items[-1].item == Message("user", "now")
    assert begun.history.total_weight > 121 * 16


ITEMS: tuple[Item, ...] = (
    Message("user", "what's \"the\" weather\n\t'in' {Köln} — 東京 🙂 \\u0000?"),
    ToolCall("call_1", "weather", '{"city": "K\u00f6ln",  "exact" : 1.0}'),
    ToolResult("call_1", "rain; DROP TABLE items; --"),
    Reasoning("hm\r\n"),
    Message("system", ""),
    Message("user", "see", (TextPart("see"), ImagePart("data:image/png;base64,AA==", "low"))),
    Message("assistant", "No.", (RefusalPart("No."),)),
    ToolCall("call_2", "shell", "ls -l", custom=True),
    ToolResult("call_2", "", custom=True, parts=(ImagePart("https://example.org/a.png"),)),
    Compaction("They spoke of rain."),
)


async def test_items_of_every_kind_come_back_exactly(store: Store) -> None:
    begun = await store.begin_turn(a_turn(*ITEMS))
    listed = await store.list_items("ann", ById(begun.turn.ref.session_id), None, 100)
    assert tuple(kept.item for kept in listed) == ITEMS
    assert [kept.position for kept in listed] == list(range(len(ITEMS)))


async def test_what_a_model_has_thought_is_in_no_prompt(store: Store) -> None:
    begun = await store.begin_turn(a_turn(*ITEMS))
    shown = tuple(item for item in ITEMS if not isinstance(item, Reasoning))
    assert tuple(kept.item for kept in begun.history.items) == shown
    assert begun.history.total_weight == sum(map(item_weight, shown))


async def test_a_megabyte_of_text_comes_back_exactly(store: Store) -> None:
    text = "åß∂ƒ" * 250_000
    begun = await store.begin_turn(a_turn(text))
    await store.end_turn(begun.turn.ref, completed(text), NOW)
    assert (await store.get_turn("ann", begun.turn.ref)).text == text


async def test_a_terminal_state_never_changes(store: Store) -> None:
    ref = await say(store, "q", "first", ByAlias("x"))
    for status in (TurnStatus.FAILED, TurnStatus.CANCELLED, TurnStatus.COMPLETED):
        assert await store.end_turn(ref, Ending(status, "second"), NOW + 9) == EndedTurn(False)
    stored = await store.get_turn("ann", ref)
    assert (stored.turn.status, stored.text) == (TurnStatus.COMPLETED, "first")


async def test_a_failure_is_kept_with_its_words(store: Store) -> None:
    begun = await store.begin_turn(a_turn("q"))
    failure = Failure("provider_rate_limited", "Slow down", 7.5)
    await store.end_turn(begun.turn.ref, Ending(TurnStatus.FAILED, "part", None, failure), NOW)
    stored = await store.get_turn("ann", begun.turn.ref)
    assert stored.turn.failure == failure
    assert stored.text == "part"


# --- What stays in prompts ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "text", "shown"),
    [
        (TurnStatus.COMPLETED, "whole", ["q", "whole"]),
        (TurnStatus.CANCELLED, "part", ["q", "part"]),
        (TurnStatus.INTERRUPTED, "part", ["q", "part"]),
        (TurnStatus.CANCELLED, "", []),
        (TurnStatus.INTERRUPTED, "", []),
        (TurnStatus.FAILED, "", []),
        (TurnStatus.FAILED, "part", []),
    ],
)
async def test_what_an_ending_leaves_to_later_prompts(
    store: Store, status: TurnStatus, text: str, shown: list[str]
) -> None:
    session = ByAlias("s")
    begun = await store.begin_turn(a_turn("q", session=session))
    await store.end_turn(begun.turn.ref, Ending(status, text), NOW)
    assert await texts(store, session) == shown


async def test_failed_turns_never_make_the_next_prompt_heavier(store: Store) -> None:
    session = ByAlias("s")
    await say(store, "q", "a", session)
    for _ in range(5):
        begun = await store.begin_turn(a_turn("x" * 1000, session=session))
        await store.end_turn(begun.turn.ref, Ending(TurnStatus.FAILED, "y" * 500), NOW)
    begun = await store.begin_turn(a_turn("z", session=session))
    assert begun.history.total_weight == sum(item_weight(kept.item) for kept in begun.history.items)


# --- The queue ---------------------------------------------------------------------------------


async def test_turns_of_one_session_run_one_at_a_time_in_order(store: Store) -> None:
    session = ByAlias("busy")
    first, second, third = [
        (await store.begin_turn(a_turn(text, session=session))).turn for text in "abc"
    ]
    assert [t.status.value for t in (first, second, third)] == ["running", "queued", "queued"]
    promoted = (await store.end_turn(first.ref, completed("A"), NOW)).promoted
    assert promoted is not None
    assert (promoted.ref, promoted.status) == (second.ref, TurnStatus.RUNNING)
    _, history = await store.get_history(second.ref, PLENTY)
    assert [kept.item.text for kept in history.items if isinstance(kept.item, Message)] == [
        "a",
        "A",
        "b",
    ]
    assert history.total_weight == sum(item_weight(kept.item) for kept in history.items)
    assert history.message_count == 3
    promoted = (await store.end_turn(second.ref, completed("B"), NOW)).promoted
    assert promoted is not None
    assert promoted.ref == third.ref


async def test_a_queued_turn_that_ends_leaves_the_queue(store: Store) -> None:
    session = ByAlias("busy")
    first, second, third = [
        (await store.begin_turn(a_turn(text, session=session))).turn for text in "abc"
    ]
    assert await store.end_turn(second.ref, Ending(TurnStatus.CANCELLED, ""), NOW) == EndedTurn(
        True
    )
    assert (await store.get_turn("ann", second.ref)).turn.status is TurnStatus.CANCELLED
    promoted = (await store.end_turn(first.ref, completed("A"), NOW)).promoted
    assert promoted is not None
    assert promoted.ref == third.ref


async def test_the_queue_is_bounded_and_the_refused_turn_leaves_nothing(store: Store) -> None:
    session = ByAlias("busy")
    for text in "abc":
        await store.begin_turn(a_turn(text, session=session, queue_limit=2))
    with pytest.raises(QueueFull):
        await store.begin_turn(a_turn("d", session=session, queue_limit=2))
    listed = await store.list_sessions("ann")
    assert [s.message_count for s in listed] == [3]


async def test_what_was_cancelled_in_the_queue_holds_no_place(store: Store) -> None:
    session = ByAlias("busy")
    await store.begin_turn(a_turn("a", session=session, queue_limit=1))
    for _ in range(3):
        queued = await store.begin_turn(a_turn("b", session=session, queue_limit=1))
        with pytest.raises(QueueFull):
            await store.begin_turn(a_turn("c", session=session, queue_limit=1))
        await store.end_turn(queued.turn.ref, Ending(TurnStatus.CANCELLED, ""), NOW)


async def test_fifty_at_once_get_fifty_places_in_order(store: Store) -> None:
    session = ByAlias("race")
    begun = await asyncio.gather(
        *[store.begin_turn(a_turn(f"m{n}", session=session, queue_limit=100)) for n in range(50)]
    )
    assert sorted(b.turn.ref.number for b in begun) == list(range(1, 51))
    assert len({b.turn.ref.session_id for b in begun}) == 1
    assert sum(b.turn.status is TurnStatus.RUNNING for b in begun) == 1


async def test_ends_and_begins_that_race_never_leave_a_session_stuck(store: Store) -> None:
    session = ByAlias("race")
    first = (await store.begin_turn(a_turn("0", session=session))).turn.ref
    running = [first]
    for n in range(1, 20):
        ended, begun = await asyncio.gather(
            store.end_turn(running[-1], completed("x"), NOW),
            store.begin_turn(a_turn(str(n), session=session)),
        )
        assert begun.turn.status is TurnStatus.RUNNING or ended.promoted is not None
        running.append(begun.turn.ref)


# --- Sessions ----------------------------------------------------------------------------------


async def test_an_alias_is_its_owners_own(store: Store) -> None:
    mine = await store.begin_turn(a_turn("mine", session=ByAlias("same"), owner="ann"))
    yours = await store.begin_turn(a_turn("yours", session=ByAlias("same"), owner="bob"))
    assert mine.turn.ref.session_id != yours.turn.ref.session_id
    assert [s.alias for s in await store.list_sessions("ann")] == ["same"]


async def test_another_owners_session_and_turn_do_not_exist(store: Store) -> None:
    ref = await say(store, "q", "a", None)
    with pytest.raises(SessionNotFound):
        await store.begin_turn(a_turn("hi", session=ById(ref.session_id), owner="bob"))
    with pytest.raises(TurnNotFound):
        await store.get_turn("bob", ref)
    assert await store.clear_session("bob", ById(ref.session_id), NOW) == []
    assert (await store.get_turn("ann", ref)).text == "a"


async def test_an_unknown_id_is_not_found_and_not_made(store: Store) -> None:
    with pytest.raises(SessionNotFound):
        await store.begin_turn(a_turn("hi", session=ById(new_id())))
    assert await store.list_sessions("ann") == []


async def test_sessions_are_listed_oldest_first_without_empty_ones(store: Store) -> None:
    refs = [await say(store, "q", "a", None) for _ in range(5)]
    await store.clear_session("ann", ById(refs[2].session_id), NOW)
    only_system = await store.begin_turn(a_turn(Message("system", "rules")))
    await store.end_turn(only_system.turn.ref, Ending(TurnStatus.CANCELLED, ""), NOW)
    listed = await store.list_sessions("ann")
    kept = [ref.session_id for ref in (refs[0], refs[1], refs[3], refs[4])]
    assert [(s.id, s.message_count) for s in listed] == [(k, 2) for k in kept]


async def test_a_model_asked_for_becomes_the_sessions(store: Store) -> None:
    session = ByAlias("s")
    first = await store.begin_turn(a_turn("1", session=session, model="big"))
    second = await store.begin_turn(a_turn("2", session=session))
    third = await store.begin_turn(a_turn("3", session=session, model="small"))
    assert [t.turn.model for t in (first, second, third)] == ["big", "big", "small"]


async def test_what_the_choice_raises_undoes_the_turn(store: Store) -> None:
    def refuse(_: Basis, __: int) -> ModelChoice:
        raise ContextTooLong("too long")

    plain = a_turn("q", session=ByAlias("s"))
    refused = msgspec.structs.replace(plain, choose=refuse)
    with pytest.raises(ContextTooLong):
        await store.begin_turn(refused)
    assert await store.list_sessions("ann") == []


# --- Clearing ----------------------------------------------------------------------------------


async def test_clearing_forgets_everything_and_keeps_the_session(store: Store) -> None:
    session = ByAlias("s")
    ref = await say(store, "q", "a", session)
    assert await store.clear_session("ann", session, NOW) == []
    assert await texts(store, session) == []
    again = await store.begin_turn(a_turn("new", session=session))
    assert again.turn.ref.session_id == ref.session_id
    assert again.turn.ref.number > ref.number
    with pytest.raises(TurnNotFound):
        await store.get_turn("ann", ref)


async def test_clearing_ends_what_runs_and_waits(store: Store) -> None:
    session = ByAlias("s")
    turns = [(await store.begin_turn(a_turn(t, session=session))).turn.ref for t in "ab"]
    assert list(await store.clear_session("ann", session, NOW)) == turns
    assert await store.end_turn(turns[0], completed("late"), NOW) == EndedTurn(False)
    assert await store.list_sessions("ann") == []
    with pytest.raises(TurnNotFound):
        await store.get_history(turns[1], PLENTY)
    fresh = await store.begin_turn(a_turn("c", session=session))
    assert fresh.turn.status is TurnStatus.RUNNING


async def test_clearing_an_unknown_session_changes_nothing(store: Store) -> None:
    assert await store.clear_session("ann", ByAlias("never"), NOW) == []
    assert await store.list_sessions("ann") == []


# --- Looking at sessions, and deleting them ----------------------------------------------------


async def everything(store: Store, session: ById | ByAlias) -> list[ListedItem]:
    return list(await store.list_items("ann", session, None, PLENTY))


async def test_a_session_is_got_by_id_and_by_alias(store: Store) -> None:
    ref = await say(store, "q", "a", ByAlias("s"))
    await store.begin_turn(a_turn("and?", session=ByAlias("s"), model="big"))
    await store.begin_turn(a_turn("well?", session=ByAlias("s")))
    session = await store.get_session("ann", ByAlias("s"))
    assert session == await store.get_session("ann", ById(ref.session_id))
    assert (session.id, session.alias, session.model) == (ref.session_id, "s", "big")
    assert (session.message_count, session.open_turns) == (4, 2)
    assert (session.created_at, session.updated_at) == (NOW, NOW)


async def test_what_is_not_there_or_not_ones_own_is_not_found(store: Store) -> None:
    ref = await say(store, "q", "a", ByAlias("s"))
    for owner, session in (
        ("ann", ById(new_id())),
        ("ann", ByAlias("never")),
        ("bob", ById(ref.session_id)),
        ("bob", ByAlias("s")),
    ):
        with pytest.raises(SessionNotFound):
            await store.get_session(owner, session)
        with pytest.raises(SessionNotFound):
            await store.list_items(owner, session, None, 10)
        with pytest.raises(SessionNotFound):
            await store.delete_session(owner, session)
    assert len(await everything(store, ByAlias("s"))) == 2


async def test_the_newest_sessions_come_first_and_no_more_than_asked_for(store: Store) -> None:
    refs = [await say(store, "q", "a", None) for _ in range(5)]
    await store.clear_session("ann", ById(refs[4].session_id), NOW)
    await store.begin_turn(a_turn("mine", owner="bob"))
    newest = await newest_sessions(store, 3)
    assert [s.id for s in newest] == [refs[n].session_id for n in (4, 3, 2)]
    assert [s.message_count for s in newest] == [0, 2, 2]
    assert len(await newest_sessions(store, 10)) == 5


async def test_items_are_listed_with_how_their_turns_stand(store: Store) -> None:
    session = ByAlias("s")
    for status, reply in ((TurnStatus.COMPLETED, "a"), (TurnStatus.FAILED, "half")):
        begun = await store.begin_turn(a_turn("q", session=session))
        await store.end_turn(begun.turn.ref, Ending(status, reply), NOW + 7)
    await store.begin_turn(a_turn(ITEMS[1], ITEMS[2], session=session))
    await store.begin_turn(a_turn("later", session=session))
    listed = await everything(store, session)
    assert [(i.turn, i.position, i.status, i.at) for i in listed] == [
        (1, 0, "completed", NOW),
        (1, 1, "completed", NOW + 7),
        (2, 0, "failed", NOW),
        (2, 1, "failed", NOW + 7),
        (3, 0, "running", NOW),
        (3, 1, "running", NOW),
        (4, 0, "queued", NOW),
    ]
    assert [i.item for i in listed[3:6]] == [Message("assistant", "half"), ITEMS[1], ITEMS[2]]


async def test_items_are_listed_page_by_page(store: Store) -> None:
    session = ByAlias("s")
    for number in range(7):
        await say(store, f"q{number}", f"a{number}", session)
    pages: list[ListedItem] = []
    after = None
    while page := await store.list_items("ann", session, after, 3):
        assert len(page) <= 3
        pages += page
        after = (page[-1].turn, page[-1].position)
    assert pages == await everything(store, session)
    assert len(pages) == 14


async def test_deleting_leaves_no_session_and_no_turn(store: Store) -> None:
    ref = await say(store, "q", "a", ByAlias("s"))
    other = await say(store, "other", "fine", None)
    assert await store.delete_session("ann", ByAlias("s")) == []
    with pytest.raises(SessionNotFound):
        await store.get_session("ann", ById(ref.session_id))
    with pytest.raises(TurnNotFound):
        await store.get_turn("ann", ref)
    with pytest.raises(SessionNotFound):
        await store.begin_turn(a_turn("still there?", session=ById(ref.session_id)))
    assert (await store.get_turn("ann", other)).text == "fine"
    again = await store.begin_turn(a_turn("new", session=ByAlias("s")))
    assert again.turn.ref.session_id != ref.session_id


async def test_deleting_ends_what_runs_and_waits(store: Store) -> None:
    session = ByAlias("s")
    turns = [(await store.begin_turn(a_turn(t, session=session))).turn.ref for t in "ab"]
    await store.checkpoint(turns[0], 0, "half")
    assert list(await store.delete_session("ann", session)) == turns
    await store.checkpoint(turns[0], 1, "late")
    assert await store.end_turn(turns[0], completed("late"), NOW) == EndedTurn(False)
    assert await store.end_turn(turns[1], completed("late"), NOW) == EndedTurn(False)
    assert await store.settle_abandoned(NOW) == 0
    assert await newest_sessions(store, 10) == []


async def test_a_session_is_deleted_only_if_idle_when_that_is_asked(store: Store) -> None:
    session = ByAlias("s")
    ref = await say(store, "q", "a", session)
    begun = await store.begin_turn(a_turn("and?", session=session))
    with pytest.raises(SessionBusy):
        await store.delete_session("ann", session, if_idle=True)
    assert len(await everything(store, ById(ref.session_id))) == 3
    await store.end_turn(begun.turn.ref, completed("so"), NOW)
    assert await store.delete_session("ann", session, if_idle=True) == []


async def test_turns_and_a_deletion_that_race_never_leave_rows_behind(store: Store) -> None:
    for number in range(20):
        session = ById((await say(store, "q", "a", None)).session_id)
        begun, _ = await asyncio.gather(
            store.begin_turn(a_turn(f"late {number}", session=session)),
            store.delete_session("ann", session),
            return_exceptions=True,
        )
        assert not isinstance(begun, Exception) or isinstance(begun, SessionNotFound)
    assert await newest_sessions(store, 10) == []
    assert await store.settle_abandoned(NOW) == 0


# --- Crashes -----------------------------------------------------------------------------------


async def test_what_a_crash_abandons_is_settled_with_its_words(store: Store) -> None:
    session = ByAlias("s")
    running, waiting = [
        (await store.begin_turn(a_turn(text, session=session))).turn.ref for text in "ab"
    ]
    for position, text in enumerate(["Once ", "up", "a time"]):
        await store.checkpoint(running, position, text)
    await store.checkpoint(running, 1, "upon ")
    assert (await store.get_turn("ann", running)).text == "Once upon a time"
    assert await store.settle_abandoned(NOW + 1) == 2
    kept = await store.get_turn("ann", running)
    assert (kept.turn.status, kept.text) == (TurnStatus.INTERRUPTED, "Once upon a time")
    assert (await store.get_turn("ann", waiting)).turn.status is TurnStatus.INTERRUPTED
    assert await texts(store, session) == ["a", "Once upon a time"]
    assert await store.settle_abandoned(NOW + 2) == 0


async def test_checkpoints_count_only_while_a_turn_runs(store: Store) -> None:
    begun = await store.begin_turn(a_turn("q"))
    await store.checkpoint(begun.turn.ref, 0, "half")
    ending = Ending(TurnStatus.COMPLETED, "half and half", checkpointed=True)
    await store.end_turn(begun.turn.ref, ending, NOW)
    await store.checkpoint(begun.turn.ref, 1, "late")
    assert (await store.get_turn("ann", begun.turn.ref)).text == "half and half"


async def test_everything_is_there_after_closing_and_opening(database: str) -> None:
    store = await open_store(database)
    await publish(store, "default")
    ref = await say(store, "q", "a", ByAlias("s"))
    await store.close()
    store = await open_store(database)
    assert (await store.get_turn("ann", ref)).text == "a"
    assert await texts(store, ByAlias("s")) == ["q", "a"]
    await store.ping()
    await store.close()


async def test_a_database_has_one_server(database: str, store: Store) -> None:
    with pytest.raises(ConfigError, match="Another Turnkeeper"):
        await open_store(database)


# --- Many at once ------------------------------------------------------------------------------


async def test_an_error_in_one_transaction_spares_those_it_shares_a_commit_with(
    store: Store,
) -> None:
    outcomes = await asyncio.gather(
        *[
            store.begin_turn(a_turn(str(n), session=ById(new_id()) if n % 2 else None))
            for n in range(40)
        ],
        return_exceptions=True,
    )
    assert [isinstance(outcome, SessionNotFound) for outcome in outcomes] == [False, True] * 20
    assert len(await store.list_sessions("ann")) == 20


async def test_a_waiter_that_goes_away_disturbs_nobody(store: Store) -> None:
    begun = await store.begin_turn(a_turn("q"))
    leaving = asyncio.ensure_future(store.end_turn(begun.turn.ref, completed("a"), NOW))
    staying = asyncio.ensure_future(store.begin_turn(a_turn("other")))
    await asyncio.sleep(0)
    leaving.cancel()
    assert (await staying).turn.status is TurnStatus.RUNNING
