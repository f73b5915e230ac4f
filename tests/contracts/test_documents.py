"""The exam of `contracts.DocumentStore`, on every database."""

import asyncio
import itertools
import random
from collections.abc import AsyncIterator, Sequence

import msgspec
import pytest

from tests.contracts.test_store import NOW, a_turn, completed, publish, say
from tests.contracts.test_store_sessions import a_session, anew
from turnkeeper.compose import open_driver
from turnkeeper.contracts import DocumentStore, NewSection, Store
from turnkeeper.domain import (
    ById,
    ChatConfig,
    IdempotencyKey,
    Kept,
    OutlineEntry,
    SectionChange,
    SectionDraft,
    TurnRef,
    make_document_id,
    make_section_id,
)
from turnkeeper.errors import (
    AccessDenied,
    DocumentNotFound,
    KeyReused,
    PreconditionFailed,
    SectionNotFound,
    SessionNotFound,
)
from turnkeeper.stores.documents import SqlDocuments
from turnkeeper.stores.sql import documents as sql
from turnkeeper.stores.sql.rows import Transaction
from turnkeeper.stores.store import Driver, SqlStore

_numbers = itertools.count(1)


def document_id() -> str:
    return make_document_id(NOW * 1000 + next(_numbers), 12345)


def a_section(content: str = "", position: int | None = None, **fields: object) -> NewSection:
    draft = SectionDraft(content=content, **{"title": content[:9], **fields})  # type: ignore[arg-type]
    return NewSection(make_section_id(NOW * 1000 + next(_numbers), 1), draft, position)


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


async def a_document(
    documents: DocumentStore, *contents: str, owner: str = "ann", title: str = "Doc"
) -> tuple[str, list[str]]:
    """The ids of a document and of its sections."""
    id_, sections = document_id(), [a_section(content) for content in contents]
    await documents.create_document(owner, id_, title, sections, NOW)
    return id_, [section.id for section in sections]


async def order(documents: DocumentStore, id_: str) -> list[str]:
    _, sizes = await documents.list_section_sizes("ann", id_)
    return [each.id for each in sizes]


async def move(documents: DocumentStore, id_: str, section: str, position: int) -> None:
    await documents.update_section("ann", id_, section, SectionChange(position=position), NOW)


async def a_chat(documents: DocumentStore, id_: str, section: str) -> str:
    """The session of a section."""
    return (await documents.open_chat("ann", id_, a_session(section=section))).session_id


# --- Documents ---------------------------------------------------------------------------------


async def test_a_document_is_kept_whole(documents: DocumentStore) -> None:
    id_, ids = await a_document(documents, "one", "two\r\n é", "")
    document, sizes = await documents.list_section_sizes("ann", id_)
    assert (document.owner, document.title, document.sections) == ("ann", "Doc", 3)
    assert [(each.id, each.size) for each in sizes] == list(zip(ids, [3, 8, 0], strict=True))
    sections = await documents.get_sections("ann", id_, ids[::-1])
    assert [each.content for each in sections] == ["", "two\r\n é", "one"]


async def test_what_has_a_key_is_made_once(documents: DocumentStore) -> None:
    key = IdempotencyKey("ann", "k", "a request")

    async def make() -> str:
        return (await documents.create_document("ann", document_id(), "Doc", [], NOW, key=key)).id

    [id_] = {*await asyncio.gather(*(make() for _ in range(20)))}
    assert len(await documents.list_documents("ann")) == 1
    other = msgspec.structs.replace(key, request="another")
    with pytest.raises(KeyReused):
        await documents.create_document("ann", document_id(), "Doc", [], NOW, key=other)
    await documents.delete_document("ann", id_, NOW)
    with pytest.raises(DocumentNotFound):
        await make()


async def test_a_section_with_a_key_is_put_in_once(documents: DocumentStore) -> None:
    id_, _ = await a_document(documents, "one")
    key = IdempotencyKey("ann", "k", "a request")

    async def put_in() -> str:
        return (await documents.create_section("ann", id_, a_section("two"), NOW, key=key)).id

    [made] = {*await asyncio.gather(*(put_in() for _ in range(20)))}
    assert (await order(documents, id_))[1:] == [made]
    await documents.delete_section("ann", id_, made, NOW)
    with pytest.raises(SectionNotFound):
        await put_in()


async def test_the_newest_document_is_listed_first(documents: DocumentStore) -> None:
    first, _ = await a_document(documents)
    second, _ = await a_document(documents, "x")
    await a_document(documents, owner="bob")
    assert [(d.id, d.sections) for d in await documents.list_documents("ann")] == [
        (second, 1),
        (first, 0),
    ]


async def test_another_owners_document_does_not_exist(documents: DocumentStore) -> None:
    id_, [section] = await a_document(documents, "secret")
    change = SectionChange(content="x")
    for act in (
        documents.get_document("bob", id_),
        documents.list_section_sizes("bob", id_),
        documents.get_sections("bob", id_, [section]),
        documents.rename_document("bob", id_, "x", NOW),
        documents.delete_document("bob", id_, NOW),
        documents.create_section("bob", id_, a_section("x"), NOW),
        documents.get_section("bob", id_, section),
        documents.update_section("bob", id_, section, change, NOW),
        documents.delete_section("bob", id_, section, NOW),
    ):
        with pytest.raises(DocumentNotFound):
            await act
    mine, _ = await a_document(documents, owner="bob")
    for act in (
        documents.get_section("bob", mine, section),
        documents.update_section("bob", mine, section, change, NOW),
        documents.delete_section("bob", mine, section, NOW),
        documents.open_chat("bob", mine, a_session(owner="bob", section=section)),
    ):
        with pytest.raises(SectionNotFound, match=r"^Section not found$"):
            await act
    assert (await documents.get_document("bob", mine)).version == 0
    assert (await documents.get_section("ann", id_, section)).content == "secret"


async def test_a_section_is_not_found_in_another_document(documents: DocumentStore) -> None:
    _, [section] = await a_document(documents, "x")
    other, _ = await a_document(documents)
    with pytest.raises(SectionNotFound, match=r"^Section not found in this document$"):
        await documents.get_section("ann", other, section)


async def test_every_change_makes_another_stamp(documents: DocumentStore) -> None:
    id_, [section] = await a_document(documents, "x")
    stamps = {(await documents.get_document("ann", id_)).stamp}
    new = a_section("new")
    for number, act in enumerate(
        (
            documents.rename_document("ann", id_, "Other", NOW),
            documents.create_section("ann", id_, new, NOW),
            documents.update_section("ann", id_, section, SectionChange(title="t"), NOW),
            documents.open_chat("ann", id_, a_session(section=section)),
            documents.delete_section("ann", id_, new.id, NOW),
        ),
        2,
    ):
        await act
        stamps.add((await documents.get_document("ann", id_)).stamp)
        assert len(stamps) == number


async def test_a_stale_change_changes_nothing(documents: DocumentStore) -> None:
    id_, [section] = await a_document(documents, "x")
    old = await documents.get_section("ann", id_, section)
    change = SectionChange(content="first", title="T", level=3, type="header")
    changed = await documents.update_section(
        "ann", id_, section, change, NOW + 1, if_stamp=[old.stamp]
    )
    assert changed.old_content == "x"
    now = changed.section
    assert (now.content, now.title, now.level, now.type) == ("first", "T", 3, "header")
    before = await documents.get_document("ann", id_)
    with pytest.raises(PreconditionFailed):
        await documents.update_section(
            "ann", id_, section, SectionChange(content="second"), NOW, if_stamp=[old.stamp]
        )
    with pytest.raises(PreconditionFailed):
        await documents.rename_document("ann", id_, "Late", NOW, if_stamp=[f"{id_}.0"])
    with pytest.raises(PreconditionFailed):
        await documents.delete_section("ann", id_, section, NOW, if_stamp=[old.stamp])
    with pytest.raises(PreconditionFailed):
        await documents.delete_document("ann", id_, NOW, if_stamp=[f"{id_}.0"])
    assert await documents.get_section("ann", id_, section) == now
    assert await documents.get_document("ann", id_) == before
    await documents.delete_section("ann", id_, section, NOW, if_stamp=[now.stamp])
    await documents.delete_document("ann", id_, NOW, if_stamp=[f"{id_}.{before.version + 1}"])


async def test_of_many_editors_who_say_what_they_saw_one_wins(documents: DocumentStore) -> None:
    id_, [section] = await a_document(documents, "x")
    stamp = (await documents.get_section("ann", id_, section)).stamp

    async def edit(number: int) -> bool:
        change = SectionChange(content=f"by {number}")
        try:
            await documents.update_section("ann", id_, section, change, NOW, if_stamp=[stamp])
        except PreconditionFailed:
            return False
        return True

    assert sum(await asyncio.gather(*map(edit, range(10)))) == 1


async def test_of_many_editors_who_do_not_each_gets_what_it_wrote_over(
    documents: DocumentStore,
) -> None:
    id_, [section] = await a_document(documents, "0")

    async def edit(number: int) -> str:
        change = SectionChange(content=str(number))
        return (await documents.update_section("ann", id_, section, change, NOW)).old_content

    old = await asyncio.gather(*map(edit, range(1, 11)))
    now = (await documents.get_section("ann", id_, section)).content
    assert sorted([*old, now], key=int) == [str(number) for number in range(11)]


# --- Order -------------------------------------------------------------------------------------


async def test_a_new_section_stands_where_it_is_put(documents: DocumentStore) -> None:
    id_, [one] = await a_document(documents, "one")
    made = [a_section(position=position) for position in (None, 0, 1, 99)]
    for each in made:
        await documents.create_section("ann", id_, each, NOW)
    last, first, second, end = (each.id for each in made)
    assert await order(documents, id_) == [first, second, one, last, end]


async def test_random_moves_are_those_of_a_list(documents: DocumentStore) -> None:
    id_, expected = await a_document(documents, *map(str, range(8)))
    dice = random.Random(5)
    for _ in range(60):
        section, position = dice.choice(expected), dice.randrange(10)
        await move(documents, id_, section, position)
        expected.remove(section)
        expected.insert(position, section)
        assert await order(documents, id_) == expected


async def test_a_gap_that_is_used_up_is_made_anew(documents: DocumentStore) -> None:
    id_, expected = await a_document(documents, "a", "b", "c")
    for _ in range(70):  # each halves the gap in front of the last
        new = a_section(position=len(expected) - 1)
        await documents.create_section("ann", id_, new, NOW)
        expected.insert(len(expected) - 1, new.id)
    for _ in range(30):  # and these the gap in front of the first
        await move(documents, id_, expected[-1], 0)
        expected.insert(0, expected.pop())
    assert await order(documents, id_) == expected


async def test_many_who_put_sections_in_at_once_all_find_room(documents: DocumentStore) -> None:
    id_, [first, last] = await a_document(documents, "a", "b")
    new = [a_section(position=1) for _ in range(30)]
    await asyncio.gather(*[documents.create_section("ann", id_, each, NOW) for each in new])
    found = await order(documents, id_)
    assert (found[0], found[-1]) == (first, last)
    assert sorted(found[1:-1]) == sorted(each.id for each in new)
    assert (await documents.get_document("ann", id_)).sections == 32


async def test_thousands_of_sections_and_a_large_text(documents: DocumentStore) -> None:
    large = "ü" * 600_000
    id_, ids = await a_document(documents, *[f"section {n}" for n in range(3000)], large)
    assert await order(documents, id_) == ids
    await move(documents, id_, ids[0], 2999)
    assert (await order(documents, id_))[-2:] == [ids[0], ids[-1]]
    [section] = await documents.get_sections("ann", id_, ids[-1:])
    assert section.content == large
    passage = await documents.get_passage(ids[1500])
    assert passage is not None
    assert passage.content == "section 1500"
    assert passage.before[-1] == OutlineEntry(1, "section 1")
    assert (len(passage.before), passage.more_before) == (sql.NEIGHBOURS, 1499 - sql.NEIGHBOURS)
    assert (len(passage.after), passage.more_after) == (sql.NEIGHBOURS, 1501 - sql.NEIGHBOURS)
    await documents.delete_document("ann", id_, NOW)


# --- Chats -------------------------------------------------------------------------------------


async def test_one_chat_is_made_however_many_ask(store: Store, documents: DocumentStore) -> None:
    id_, [section] = await a_document(documents, "x")
    assert await documents.find_chat("ann", id_, section) is None
    opened = await asyncio.gather(
        *[documents.open_chat("ann", id_, a_session(section=section)) for _ in range(50)]
    )
    assert len({each.session_id for each in opened}) == 1
    assert sum(each.is_new for each in opened) == 1
    assert await documents.find_chat("ann", id_, section) == opened[0].session_id
    session = await store.get_session("ann", ById(opened[0].session_id))
    assert (session.section, session.document) == (section, id_)
    assert (await documents.get_section("ann", id_, section)).session_id == session.id


async def test_a_chat_that_is_gone_is_made_anew(store: Store, documents: DocumentStore) -> None:
    id_, [section] = await a_document(documents, "x")
    first = await a_chat(documents, id_, section)
    await store.delete_session("ann", ById(first))
    assert await documents.find_chat("ann", id_, section) is None
    second = await documents.open_chat("ann", id_, a_session(section=section))
    assert second.is_new
    assert second.session_id != first


async def test_someone_elses_document_denies_its_chat(documents: DocumentStore) -> None:
    id_, [section] = await a_document(documents, "x")
    with pytest.raises(AccessDenied):
        await documents.find_chat("bob", id_, section)
    with pytest.raises(AccessDenied):
        await documents.open_chat("bob", id_, a_session(owner="bob", section="nothing"))
    with pytest.raises(DocumentNotFound):
        await documents.find_chat("bob", document_id(), section)
    with pytest.raises(SectionNotFound):
        await documents.find_chat("ann", id_, "")


async def test_a_turn_of_a_chat_names_its_section_and_a_fork_does_not(
    store: Store, documents: DocumentStore
) -> None:
    id_, [section] = await a_document(documents, "x")
    chat = ById(await a_chat(documents, id_, section))
    begun = await store.begin_turn(a_turn("hi", session=chat))
    assert begun.basis.section == section
    await store.end_turn(begun.turn.ref, completed("ho"), NOW)
    await store.clear_session("ann", chat, NOW)
    assert (await store.get_session("ann", chat)).section == section
    fork = await store.fork_session("ann", chat, None, a_session().id, NOW)
    assert (fork.section, fork.document) == (None, None)
    begun = await store.begin_turn(a_turn("hi", session=ById(fork.id)))
    assert begun.basis.section is None


async def test_what_is_kept_with_a_message_acts_from_then_on(store: Store) -> None:
    session = ById((await store.create_session(a_session())).id)
    first = {"temperature": 0.5, "mine": [1]}
    begun = await store.begin_turn(a_turn("1", session=session, kept=Kept(first, None)))
    assert begun.basis.config == ChatConfig(temperature=0.5)
    await store.end_turn(begun.turn.ref, completed("x"), NOW)
    begun = await store.begin_turn(a_turn("2", session=session, kept=Kept(None, ["a"])))
    assert begun.basis.config == ChatConfig(temperature=0.5)
    await store.end_turn(begun.turn.ref, completed("x"), NOW)
    found = await store.get_session("ann", session)
    assert (found.config, found.context_documents) == (first, ["a"])
    begun = await store.begin_turn(
        a_turn("3", session=session, kept=Kept({"detailedInstructions": "Brief."}, []))
    )
    assert begun.basis.config == ChatConfig(detailed_instructions="Brief.")
    await store.end_turn(begun.turn.ref, completed("x"), NOW)
    fork = await store.fork_session("ann", session, None, a_session().id, NOW)
    assert (fork.config, fork.context_documents) == ({"detailedInstructions": "Brief."}, [])
    begun = await store.begin_turn(a_turn("4", session=ById(fork.id)))
    assert begun.basis.config == ChatConfig(detailed_instructions="Brief.")
    assert begun.basis.variables == {}


# --- Deleting ----------------------------------------------------------------------------------

TABLES = (
    "documents", "sections", "section_texts", "sessions", "session_data", "turns", "items",
    "hidden_items", "checkpoints",
)  # fmt: skip


def count_rows() -> Transaction[dict[str, int]]:
    counts = {}
    for table in TABLES:
        rows = yield f"SELECT COUNT(*) FROM {table}", ()
        counts[table] = rows[0][0]
    return counts


async def in_use(
    store: Store, documents: DocumentStore
) -> tuple[str, Sequence[str], list[TurnRef]]:
    """A document with two chats, one of which has a turn that runs and one that waits."""
    id_, sections = await a_document(documents, "a", "b", "c")
    await a_chat(documents, id_, sections[1])
    busy = await a_chat(documents, id_, sections[0])
    await say(store, "one", "two", ById(busy))
    begun = await store.begin_version(anew(ById(busy)))
    await store.end_turn(begun.turn.ref, completed("other"), NOW)
    for kept in (None, Kept({"a": 1}, ["b"])):
        await store.begin_turn(a_turn("hi", session=ById(busy), kept=kept))
    refs = [TurnRef(busy, 3), TurnRef(busy, 4)]
    await store.checkpoint(refs[0], 0, "words")
    return id_, sections, refs


async def test_deleting_a_document_leaves_no_row(
    store: Store, documents: DocumentStore, driver: Driver
) -> None:
    id_, _, refs = await in_use(store, documents)
    assert all((await driver.read(count_rows)).values())
    assert sorted(await documents.delete_document("ann", id_, NOW), key=lambda r: r.number) == refs
    assert not any((await driver.read(count_rows)).values())
    assert not (await store.end_turn(refs[0], completed("late"), NOW)).stored
    assert not any((await driver.read(count_rows)).values())
    with pytest.raises(DocumentNotFound):
        await documents.delete_document("ann", id_, NOW)


async def test_turns_that_begin_while_a_document_is_deleted_go_with_it(
    store: Store, documents: DocumentStore, driver: Driver
) -> None:
    id_, sections = await a_document(documents, "a", "b")
    chat = ById(await a_chat(documents, id_, sections[0]))
    await asyncio.gather(
        *[store.begin_turn(a_turn("hi", session=chat, queue_limit=99)) for _ in range(20)],
        documents.delete_document("ann", id_, NOW),
        *[store.begin_turn(a_turn("hi", session=chat, queue_limit=99)) for _ in range(20)],
        *[documents.open_chat("ann", id_, a_session(section=each)) for each in sections],
        return_exceptions=True,
    )
    assert not any((await driver.read(count_rows)).values())


async def test_deleting_a_section_takes_its_chat_and_no_other(
    store: Store, documents: DocumentStore, driver: Driver
) -> None:
    id_, sections, refs = await in_use(store, documents)
    gone = await documents.delete_section("ann", id_, sections[0], NOW)
    assert sorted(gone, key=lambda r: r.number) == refs
    counts = await driver.read(count_rows)
    assert counts == dict.fromkeys(TABLES, 0) | {
        "documents": 1, "sections": 2, "section_texts": 2, "sessions": 1
    }  # fmt: skip
    assert (await documents.get_document("ann", id_)).sections == 2
    assert await documents.get_passage(sections[0]) is None
    with pytest.raises(SessionNotFound):
        await store.begin_turn(a_turn("hi", session=ById(refs[0].session_id)))
    assert await documents.delete_section("ann", id_, sections[2], NOW) == []
