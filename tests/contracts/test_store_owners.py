"""The store exam, on owners: users, and the end users of applications behind them."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

import msgspec
import pytest

from tests.contracts.test_documents import a_section, document_id
from tests.contracts.test_store import NOW, a_turn, completed, publish
from tests.contracts.test_store_sessions import PLENTY, a_session, anew
from turnkeeper.compose import open_driver
from turnkeeper.contracts import BegunTurn, DocumentStore, Store
from turnkeeper.domain import (
    ByAlias,
    ById,
    IdempotencyKey,
    MessageRef,
    Session,
    SessionChange,
    SessionFilter,
    TurnRef,
    make_owner,
)
from turnkeeper.errors import AccessDenied, DocumentNotFound, SessionNotFound, TurnNotFound
from turnkeeper.stores.documents import SqlDocuments
from turnkeeper.stores.store import Driver, SqlStore

ANN, BOB, EVE = "ann", make_owner("ann", "bob"), make_owner("ann", "eve")
STRANGERS = ("an", "ann2", "anna", make_owner("an", "n/bob"), make_owner("ann2", "bob"), "bob", "")
ALIAS = ByAlias("s")


@pytest.fixture
async def driver(database: str) -> AsyncIterator[Driver]:
    driver = await open_driver(database)
    yield driver
    await driver.close()


@pytest.fixture
async def store(driver: Driver) -> Store:
    store = SqlStore(driver)
    await publish(store, "default")
    return store


@pytest.fixture
def documents(driver: Driver, store: Store) -> DocumentStore:
    return SqlDocuments(driver)


async def say(store: Store, owner: str, session: ById | ByAlias | None = None) -> TurnRef:
    begun = await store.begin_turn(a_turn(f"I am {owner}", session=session, owner=owner))
    assert isinstance(begun, BegunTurn)
    await store.end_turn(begun.turn.ref, completed("Hello"), NOW)
    return begun.turn.ref


async def seen_by(store: Store, owner: str, **wanted: bool) -> list[str]:
    filter_ = SessionFilter(**wanted)
    return [s.id for s in (await store.page_sessions(owner, filter_, None, 100)).sessions]


async def listed_for(store: Store, owner: str) -> list[tuple[str, str | None]]:
    return [(s.id, s.alias) for s in await store.list_sessions(owner)]


async def test_a_user_sees_what_is_its_end_users_and_they_see_their_own(store: Store) -> None:
    own, bobs, eves = [(await say(store, owner, ALIAS)).session_id for owner in (ANN, BOB, EVE)]
    assert await seen_by(store, ANN) == [eves, bobs, own]
    assert await seen_by(store, BOB) == [bobs]
    assert await seen_by(store, EVE) == [eves]
    # an alias is its owner's alone, and is told to no one else
    assert await listed_for(store, ANN) == [(own, "s"), (bobs, None), (eves, None)]
    assert await listed_for(store, BOB) == [(bobs, "s")]
    for stranger in STRANGERS:
        assert await seen_by(store, stranger) == []
        assert await listed_for(store, stranger) == []


async def test_archived_sessions_of_an_end_user_are_found_as_such(store: Store) -> None:
    first, second = [(await say(store, BOB)).session_id for _ in range(2)]
    await store.update_session(BOB, ById(first), SessionChange(archived=True), NOW)
    for owner in (ANN, BOB):
        assert await seen_by(store, owner, archived=True) == [first]
        assert await seen_by(store, owner, archived=False) == [second]


async def test_an_alias_names_the_owners_session(store: Store) -> None:
    ids = {owner: (await say(store, owner, ALIAS)).session_id for owner in (ANN, BOB, EVE)}
    assert len(set(ids.values())) == 3
    for owner, id_ in ids.items():
        assert (await store.get_session(owner, ALIAS)).id == id_
        assert (await say(store, owner, ALIAS)).session_id == id_


async def test_a_session_says_whose_it_is(store: Store) -> None:
    ref = await say(store, BOB)
    for owner in (ANN, BOB):
        assert (await store.get_session(owner, ById(ref.session_id))).end_user == "bob"
    assert (await store.get_session(ANN, ById((await say(store, ANN)).session_id))).end_user is None


Act = Callable[[Store, str, TurnRef], Awaitable[object]]


def _session(ref: TurnRef) -> ById:
    return ById(ref.session_id)


ACTS: dict[str, Act] = {
    "get": lambda store, owner, ref: store.get_session(owner, _session(ref)),
    "turn": lambda store, owner, ref: store.get_turn(owner, ref),
    "next": lambda store, owner, ref: store.next_turn(owner, ref.session_id, 0),
    "say": lambda store, owner, ref: say(store, owner, _session(ref)),
    "anew": lambda store, owner, ref: store.begin_version(anew(_session(ref), owner=owner)),
    "items": lambda store, owner, ref: store.list_items(owner, _session(ref), None, 9),
    "page": lambda store, owner, ref: store.page_messages(owner, _session(ref), limit=9),
    "words": lambda store, owner, ref: store.list_words(owner, ref),
    "versions": lambda store, owner, ref: store.list_versions(
        owner, _session(ref), MessageRef(ref.session_id, 1, 0)
    ),
    "select": lambda store, owner, ref: store.select_version(
        owner, _session(ref), MessageRef(ref.session_id, 1, 0), 1, NOW
    ),
    "change": lambda store, owner, ref: store.update_session(
        owner, _session(ref), SessionChange(pinned=True), NOW
    ),
    "fork": lambda store, owner, ref: store.fork_session(
        owner, _session(ref), None, a_session().id, NOW
    ),
    "delete": lambda store, owner, ref: store.delete_session(owner, _session(ref)),
}


@pytest.mark.parametrize("act", ACTS.values(), ids=list(ACTS))
async def test_what_is_an_end_users_is_the_users_and_no_one_elses(store: Store, act: Act) -> None:
    ref = await say(store, BOB)
    version = (await store.get_session(BOB, _session(ref))).version
    for stranger in (EVE, *STRANGERS):
        with pytest.raises((SessionNotFound, TurnNotFound)):
            await act(store, stranger, ref)
    assert (await store.get_session(BOB, _session(ref))).version == version
    await act(store, ANN, ref)


async def test_clearing_what_is_not_ones_own_changes_nothing(store: Store) -> None:
    ref = await say(store, BOB)
    for stranger in (EVE, *STRANGERS):
        assert await store.clear_session(stranger, _session(ref), NOW) == []
    assert (await store.get_session(BOB, _session(ref))).message_count == 2
    await store.clear_session(ANN, _session(ref), NOW)
    assert (await store.get_session(BOB, _session(ref))).message_count == 0


async def test_a_fork_and_a_turn_stay_the_end_users(store: Store) -> None:
    ref = await say(store, BOB)
    fork: Session = await store.fork_session(ANN, _session(ref), None, a_session().id, NOW)
    assert fork.end_user == "bob"
    assert await seen_by(store, BOB) == [fork.id, ref.session_id]
    begun = await store.begin_turn(a_turn("by the user", session=_session(ref), owner=ANN))
    assert isinstance(begun, BegunTurn)
    assert begun.owner == BOB
    await store.end_turn(begun.turn.ref, completed("Yes"), NOW)
    version = await store.begin_version(anew(_session(ref), owner=ANN))
    assert isinstance(version, BegunTurn)
    assert version.owner == BOB


async def test_end_users_may_choose_the_same_idempotency_key(store: Store) -> None:
    made = set()
    for owner in (ANN, BOB, EVE, BOB):
        new = msgspec.structs.replace(
            a_turn("hello", owner=owner), key=IdempotencyKey(owner, "k", "r")
        )
        begun = await store.begin_turn(new)
        made.add(begun.turn.ref if isinstance(begun, BegunTurn) else begun)
    assert len(made) == 3


async def test_one_alias_is_made_once_for_each_end_user_however_many_race(store: Store) -> None:
    refs = await asyncio.gather(
        *(
            store.begin_turn(a_turn("hello", session=ALIAS, owner=owner, history=PLENTY))
            for owner in (BOB, EVE) * 4
        )
    )
    sessions = {begun.turn.ref.session_id for begun in refs if isinstance(begun, BegunTurn)}
    assert len(sessions) == 2


async def test_documents_are_their_end_users(store: Store, documents: DocumentStore) -> None:
    ids = {}
    for owner in (ANN, BOB, EVE):
        section = a_section("words")
        ids[owner] = document_id(), section.id
        await documents.create_document(owner, ids[owner][0], "Doc", [section], NOW)
    id_, section_id = ids[BOB]
    assert [d.id for d in await documents.list_documents(ANN)] == [
        ids[owner][0] for owner in (EVE, BOB, ANN)
    ]
    assert [d.id for d in await documents.list_documents(BOB)] == [id_]
    for stranger in (EVE, *STRANGERS):
        with pytest.raises(DocumentNotFound):
            await documents.get_section(stranger, id_, section_id)
        with pytest.raises(AccessDenied):
            await documents.find_chat(stranger, id_, section_id)
        with pytest.raises(DocumentNotFound):
            await documents.delete_document(stranger, id_, NOW)
    assert (await documents.get_document(ANN, id_)).owner == BOB
    # the chat of a section is its author's, whoever opens it
    opened = await documents.open_chat(ANN, id_, a_session(owner=ANN, section=section_id))
    assert (await store.get_session(BOB, ById(opened.session_id))).end_user == "bob"
    assert await documents.find_chat(BOB, id_, section_id) == opened.session_id
    await documents.delete_document(ANN, id_, NOW)
    with pytest.raises(SessionNotFound):
        await store.get_session(BOB, ById(opened.session_id))
