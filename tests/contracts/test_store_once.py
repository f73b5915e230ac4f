"""The store exam, on what is done once however often it is asked for, and what is tried again."""

import asyncio
from collections.abc import Awaitable, Callable

import msgspec
import pytest

from tests.contracts.test_store import NOW, a_turn, new_id, publish, say
from tests.contracts.test_store_sessions import (
    S,
    a_session,
    anew,
    answer,
    listed,
    place,
    prompted,
    words,
)
from turnkeeper.contracts import BegunTurn, EndedTurn, NewVersion, NextTurn, Store
from turnkeeper.domain import (
    Blueprint,
    ById,
    Ending,
    IdempotencyKey,
    Message,
    Revision,
    TurnRef,
    TurnStatus,
    make_revision_id,
)
from turnkeeper.errors import (
    ContextTooLong,
    KeyReused,
    NotRetryable,
    QueueFull,
    SessionBusy,
    SessionNotFound,
    TurnNotFound,
)

FAILED = Ending(TurnStatus.FAILED, "")
Do = Callable[[Store, IdempotencyKey | None], Awaitable[object]]


def key(request: str = "a request", name: str = "k", owner: str = "ann") -> IdempotencyKey:
    return IdempotencyKey(owner, name, request)


# --- Whatever takes a key ----------------------------------------------------------------------


async def begin(store: Store, key: IdempotencyKey | None) -> object:
    begun = await store.begin_turn(msgspec.structs.replace(a_turn("again"), key=key))
    return begun if isinstance(begun, TurnRef) else begun.turn.ref


async def begin_version(store: Store, key: IdempotencyKey | None) -> object:
    begun = await store.begin_version(msgspec.structs.replace(anew(), key=key))
    return begun if isinstance(begun, TurnRef) else begun.turn.ref


async def create_session(store: Store, key: IdempotencyKey | None) -> object:
    return (await store.create_session(a_session(key=key))).id


async def fork_session(store: Store, key: IdempotencyKey | None) -> object:
    return (await store.fork_session("ann", S, None, new_id(), NOW, key=key)).id


async def publish_deployment(store: Store, key: IdempotencyKey | None) -> object:
    revision = Revision(make_revision_id(int(new_id()[1:], 36)), "tutor", 0, Blueprint(), NOW)
    made = await store.publish_revision("tutor", revision, "api", new=True, key=key)
    return made.revision.id


acts = pytest.mark.parametrize(
    "act", [begin, begin_version, create_session, fork_session, publish_deployment]
)


@acts
async def test_what_has_a_key_is_done_once(store: Store, act: Do) -> None:
    await say(store, "hello", "hi", S)
    first = await act(store, key())
    assert await act(store, key()) == first
    with pytest.raises(KeyReused):
        await act(store, key("another request"))


@acts
async def test_of_many_at_once_under_one_key_one_does_it(store: Store, act: Do) -> None:
    await say(store, "hello", "hi", S)
    done = await asyncio.gather(*(act(store, key()) for _ in range(20)))
    assert len(set(done)) == 1
    sessions = await store.list_sessions("ann")
    assert len(sessions) == (2 if act in (begin, fork_session) else 1)


@pytest.mark.parametrize("act", [begin, create_session, fork_session])
async def test_another_key_is_another_request(store: Store, act: Do) -> None:
    await say(store, "hello", "hi", S)
    assert await act(store, key()) != await act(store, key(name="another"))


async def test_two_owners_may_choose_the_same_key(store: Store) -> None:
    hers = await store.create_session(a_session(key=key()))
    his = await store.create_session(a_session(owner="bob", key=key(owner="bob")))
    assert hers.id != his.id


async def test_the_first_of_two_that_race_is_never_in_the_seconds_way(store: Store) -> None:
    """Where a session takes one message at a time, its twin must not make a retry a conflict."""
    await publish(store, "default", Blueprint(concurrency="reject"))
    begun = await asyncio.gather(
        *(
            store.begin_turn(msgspec.structs.replace(a_turn("hi", session=S), key=key()))
            for _ in range(20)
        )
    )
    assert sum(isinstance(each, BegunTurn) for each in begun) == 1
    assert len({each.turn.ref if isinstance(each, BegunTurn) else each for each in begun}) == 1


async def test_the_turn_of_a_key_may_be_over_or_gone(store: Store) -> None:
    turn = msgspec.structs.replace(a_turn("hi", session=S), key=key())
    begun = await store.begin_turn(turn)
    await answer(store, begun, "hello")
    ref = await store.begin_turn(turn)
    assert ref == begun.turn.ref
    assert (await store.get_turn("ann", ref)).text == "hello"
    await store.delete_session("ann", S)
    with pytest.raises(TurnNotFound):
        await store.begin_turn(turn)
    with pytest.raises(TurnNotFound):
        await store.get_turn("ann", ref)


@pytest.mark.parametrize("make", [create_session, fork_session])
async def test_the_session_of_a_key_may_be_gone(store: Store, make: Do) -> None:
    await say(store, "hello", "hi", S)
    made = str(await make(store, key()))
    await store.delete_session("ann", ById(made))
    with pytest.raises(SessionNotFound):
        await make(store, key())


# --- What was refused keeps no key -------------------------------------------------------------


async def fill_queue(store: Store) -> list[BegunTurn]:
    return [await store.begin_turn(a_turn("wait", session=S, queue_limit=1)) for _ in range(2)]


async def test_a_full_queue_keeps_no_key(store: Store) -> None:
    begun = await fill_queue(store)
    turn = msgspec.structs.replace(a_turn("hi", session=S, queue_limit=1), key=key())
    with pytest.raises(QueueFull):
        await store.begin_turn(turn)
    await answer(store, begun[0], "one")
    assert isinstance(await store.begin_turn(turn), BegunTurn)


async def test_a_busy_session_keeps_no_key(store: Store) -> None:
    await say(store, "hello", "hi", S)
    begun = await store.begin_turn(a_turn("wait", session=S))
    with pytest.raises(SessionBusy):
        await begin_version(store, key())
    await answer(store, begun, "one")
    assert await begin_version(store, key()) == TurnRef(begun.turn.ref.session_id, 3)


async def test_a_session_that_is_not_there_keeps_no_key(store: Store) -> None:
    id_ = new_id()
    turn = msgspec.structs.replace(a_turn("hi", session=ById(id_)), key=key())
    with pytest.raises(SessionNotFound):
        await store.begin_turn(turn)
    await store.create_session(a_session(id=id_))
    assert isinstance(await store.begin_turn(turn), BegunTurn)


async def test_a_turn_that_is_too_long_keeps_no_key(store: Store) -> None:
    def refuse(*_: object) -> object:
        raise ContextTooLong("too long")

    turn = msgspec.structs.replace(a_turn("hi", session=S), key=key())
    with pytest.raises(ContextTooLong):
        await store.begin_turn(msgspec.structs.replace(turn, choose=refuse))
    assert isinstance(await store.begin_turn(turn), BegunTurn)


async def test_keys_are_forgotten_by_age_and_some_at_a_time(store: Store) -> None:
    for number in range(5):
        new = a_session(key=key(name=f"k{number}"), now=NOW + number)
        await store.create_session(new)
    assert await store.drop_keys(NOW, 10) == 0
    assert await store.drop_keys(NOW + 4, 3) == 3
    assert await store.drop_keys(NOW + 4, 3) == 1
    first = await store.create_session(a_session(key=key("another request", "k0")))
    assert first.id == (await store.create_session(a_session(key=key("another request", "k0")))).id
    with pytest.raises(KeyReused):
        await store.create_session(a_session(key=key("another request", "k4")))


# --- Following a session, and strays -----------------------------------------------------------


async def test_a_session_is_followed_from_turn_to_turn(store: Store) -> None:
    made = await store.create_session(a_session())
    session = ById(made.id)
    assert await store.next_turn("ann", made.id, 0) == NextTurn(None, 0)
    await say(store, "one", "1", session)
    running = await store.begin_turn(a_turn("two", session=session))
    await store.begin_turn(a_turn("three", session=session))
    assert await store.next_turn("ann", made.id, 0) == NextTurn(1, 3, 2)
    assert await store.next_turn("ann", made.id, 1) == NextTurn(2, 3, 2)
    await answer(store, running, "2")
    assert await store.next_turn("ann", made.id, 3) == NextTurn(None, 3, 3)
    for owner, id_ in (("bob", made.id), ("ann", new_id())):
        with pytest.raises(SessionNotFound):
            await store.next_turn(owner, id_, 0)


async def test_a_cleared_turn_is_not_followed(store: Store) -> None:
    ref = await say(store, "one", "1", S)
    await store.clear_session("ann", S, NOW)
    then = await say(store, "two", "2", S)
    assert (await store.next_turn("ann", ref.session_id, 0)).next == then.number


async def test_open_turns_are_listed_and_settled_with_their_words(store: Store) -> None:
    over = await say(store, "one", "1", S)
    stray = (await store.begin_turn(a_turn("two", session=S))).turn.ref
    queued = (await store.begin_turn(a_turn("three", session=S))).turn.ref
    assert list(await store.list_open()) == [stray, queued]
    await store.checkpoint(stray, 0, "it ")
    await store.checkpoint(stray, 1, "was")
    ended = await store.settle(stray, NOW + 9)
    assert ended.promoted is not None
    assert ended.promoted.ref == queued
    stored = await store.get_turn("ann", stray)
    assert (stored.turn.status, stored.text) == (TurnStatus.INTERRUPTED, "it was")
    assert list(await store.list_open()) == [queued]
    assert await store.settle(stray, NOW) == await store.settle(over, NOW) == EndedTurn(False)
    assert (await store.get_turn("ann", over)).text == "1"


async def test_a_stray_in_the_queue_is_settled_without_a_word(store: Store) -> None:
    running = await store.begin_turn(a_turn("one", session=S))
    queued = (await store.begin_turn(a_turn("two", session=S))).turn.ref
    assert await store.settle(queued, NOW) == EndedTurn(True)
    await answer(store, running, "1")
    assert await prompted(store) == "one 1"


# --- Tried again -------------------------------------------------------------------------------


def retried(ref: TurnRef, owner: str = "ann") -> NewVersion:
    return msgspec.structs.replace(anew(ById(ref.session_id), owner=owner), retried=ref.number)


async def begin_retry(store: Store, ref: TurnRef) -> BegunTurn:
    begun = await store.begin_version(retried(ref))
    assert isinstance(begun, BegunTurn)
    return begun


async def fail(store: Store, text: str, ending: Ending = FAILED) -> TurnRef:
    begun = await store.begin_turn(a_turn(text, session=S))
    await store.end_turn(begun.turn.ref, ending, NOW)
    return begun.turn.ref


CUT = Ending(TurnStatus.INTERRUPTED, "half")
STOPPED = Ending(TurnStatus.CANCELLED, "some")
endings = pytest.mark.parametrize(
    "ending", [FAILED, Ending(TurnStatus.CANCELLED, ""), STOPPED, CUT], ids=str
)


@endings
async def test_the_newest_turn_is_tried_again_in_its_place(store: Store, ending: Ending) -> None:
    await say(store, "one", "1", S)
    ref = await fail(store, "two", ending)
    begun = await begin_retry(store, ref)
    assert [k.item for k in begun.history.items][-1] == Message("user", "two")
    assert begun.history.message_count == 3
    await answer(store, begun, "2")
    assert words(await listed(store)) == "one 1 two 2"
    assert await prompted(store) == "one 1 two 2"
    reply = await place(store, "2")
    versions = await store.list_versions("ann", S, reply)
    assert [(v.turn, v.selected) for v in versions] == [(ref.number, False), (reply.turn, True)]


@endings
async def test_an_older_turn_is_tried_again_at_the_end(store: Store, ending: Ending) -> None:
    ref = await fail(store, "one", ending)
    await say(store, "two", "2", S)
    begun = await begin_retry(store, ref)
    assert begun.history.message_count == 3
    await answer(store, begun, "1")
    assert words(await listed(store)) == "two 2 one 1"
    assert await prompted(store) == "two 2 one 1"
    session = await store.get_session("ann", S)
    assert session.message_count == len(await listed(store))


@endings
async def test_a_turn_is_tried_again_once(store: Store, ending: Ending) -> None:
    ref = await fail(store, "one", ending)
    begun = await begin_retry(store, ref)
    await store.end_turn(begun.turn.ref, FAILED, NOW)
    with pytest.raises(NotRetryable):
        await store.begin_version(retried(ref))
    again = await begin_retry(store, begun.turn.ref)
    await answer(store, again, "1")
    assert await prompted(store) == "one 1"


async def test_what_went_well_or_is_not_over_is_not_tried_again(store: Store) -> None:
    done = await say(store, "one", "1", S)
    with pytest.raises(NotRetryable):
        await store.begin_version(retried(done))
    running = (await store.begin_turn(a_turn("two", session=S))).turn.ref
    queued = (await store.begin_turn(a_turn("three", session=S))).turn.ref
    for ref in (done, running, queued):
        with pytest.raises(NotRetryable):
            await store.begin_version(retried(ref))
    assert (await store.next_turn("ann", done.session_id, 0)).newest == 3


async def test_nothing_is_tried_again_while_a_turn_is_open(store: Store) -> None:
    ref = await fail(store, "one")
    running = await store.begin_turn(a_turn("two", session=S))
    with pytest.raises(SessionBusy):
        await store.begin_version(retried(ref))
    await answer(store, running, "2")
    await begin_retry(store, ref)


async def test_what_another_version_hides_is_not_tried_again(store: Store) -> None:
    await say(store, "one", "1", S)
    ref = await fail(store, "two")
    begun = await store.begin_version(anew(S, await place(store, "one"), "uno"))
    assert isinstance(begun, BegunTurn)
    await answer(store, begun, "1")
    with pytest.raises(NotRetryable):
        await store.begin_version(retried(ref))


@pytest.mark.parametrize("wrong", ["owner", "number", "session"])
async def test_what_is_not_ones_own_is_not_there_to_try_again(store: Store, wrong: str) -> None:
    ref = await fail(store, "one")
    version = {
        "owner": retried(ref, "bob"),
        "number": retried(TurnRef(ref.session_id, 7)),
        "session": retried(TurnRef(new_id(), 1)),
    }[wrong]
    with pytest.raises((SessionNotFound, TurnNotFound)):
        await store.begin_version(version)
    assert await prompted(store) == ""


async def test_a_retry_that_is_refused_leaves_all_as_it_was(store: Store) -> None:
    def refuse(*_: object) -> object:
        raise ContextTooLong("too long")

    ref = await fail(store, "one", CUT)
    with pytest.raises(ContextTooLong):
        await store.begin_version(msgspec.structs.replace(retried(ref), choose=refuse))
    assert words(await listed(store)) == "one half"
    assert await prompted(store) == "one half"


@pytest.mark.parametrize("alone", [True, False])
async def test_sessions_with_retried_turns_are_cleared_and_deleted(
    store: Store, alone: bool
) -> None:
    ref = await fail(store, "one", CUT)
    if not alone:
        await say(store, "two", "2", S)
    await answer(store, await begin_retry(store, ref), "1")
    assert await store.clear_session("ann", S, NOW) == []
    assert await prompted(store) == ""
    with pytest.raises(TurnNotFound):
        await store.get_turn("ann", ref)
    assert await store.delete_session("ann", S) == []
    assert await store.list_sessions("ann") == []


async def test_a_moved_message_is_not_a_version_of_what_stands_in_its_place(store: Store) -> None:
    ref = await fail(store, "one", CUT)
    await say(store, "two", "2", S)
    await answer(store, await begin_retry(store, ref), "1")
    reply = await place(store, "1")
    assert [v.turn for v in await store.list_versions("ann", S, reply)] == [reply.turn]
    assert (await store.get_turn("ann", ref)).text == "half"


# --- The words of one turn ---------------------------------------------------------------------


async def test_the_words_of_a_turn_are_there_when_others_stand_in_its_place(store: Store) -> None:
    ref = await say(store, "one", "1", S)
    begun = await store.begin_version(anew())
    assert isinstance(begun, BegunTurn)
    await answer(store, begun, "2")
    assert words(list(await store.list_words("ann", ref))) == "one 1"
    assert words(list(await store.list_words("ann", begun.turn.ref))) == "one 2"
    assert list(await store.list_words("ann", TurnRef(ref.session_id, 9))) == []
    with pytest.raises(SessionNotFound):
        await store.list_words("bob", ref)
