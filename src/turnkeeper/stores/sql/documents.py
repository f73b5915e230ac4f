"""Documents and their sections, in order, and the chat of a section.

Whatever writes in a document locks its row first, so that ranks, counts and links are made by one
at a time. Two ranks have a gap between them for what will come there; when it is used up, all
ranks of the document are made anew.
"""

from collections.abc import Collection, Sequence

import msgspec
from msgspec import UNSET

from turnkeeper.contracts import ChangedSection, NewSection, NewSession, OpenedChat
from turnkeeper.domain import (
    Document,
    IdempotencyKey,
    OutlineEntry,
    Passage,
    Section,
    SectionChange,
    SectionSize,
    TurnRef,
    is_for,
    make_stamp,
    split_owner,
)
from turnkeeper.errors import (
    AccessDenied,
    DocumentNotFound,
    PreconditionFailed,
    SectionNotFound,
)
from turnkeeper.stores.sql.idempotency import once
from turnkeeper.stores.sql.removal import remove_belongings
from turnkeeper.stores.sql.rows import OF_ID, Rows, Transaction
from turnkeeper.stores.sql.sessions import create_session
from turnkeeper.stores.sql.usage import record_open

# --- Documents ---------------------------------------------------------------------------------

_DOCUMENT = """
SELECT id, owner, title, sections, version, created_at, updated_at FROM documents WHERE """
LIST_DOCUMENTS = _DOCUMENT + "user_name = ? ORDER BY id DESC"
LIST_DOCUMENTS_OF_END_USER = _DOCUMENT + "owner = ? AND owner <> user_name ORDER BY id DESC"
GET_DOCUMENT = _DOCUMENT + OF_ID
INSERT_DOCUMENT = """
INSERT INTO documents (id, owner, user_name, title, sections, version, created_at, updated_at)
VALUES (?, ?, ?, ?, ?, 0, ?, ?)
"""
# Locks the document for whoever changes something in it.
CHANGE_DOCUMENT = f"""
UPDATE documents SET title = COALESCE(?, title), sections = sections + ?, version = version + 1,
    updated_at = ?
WHERE {OF_ID} RETURNING version, sections
"""
DELETE_DOCUMENT = "DELETE FROM documents WHERE id = ?"


def create_document(
    owner: str,
    document_id: str,
    title: str,
    sections: Sequence[NewSection],
    now: int,
    *,
    key: IdempotencyKey | None = None,
) -> Transaction[Document]:
    def again(id_: str) -> Transaction[Document]:
        return get_document(owner, id_)

    work = _create_document(owner, document_id, title, sections, now)
    return (yield from once(key, work, name=lambda made: made.id, again=again, now=now))


def _create_document(
    owner: str,
    document_id: str,
    title: str,
    sections: Sequence[NewSection],
    now: int,
) -> Transaction[Document]:
    user, _ = split_owner(owner)
    yield INSERT_DOCUMENT, (document_id, owner, user, title, len(sections), now, now)
    for number, new in enumerate(sections, 1):
        yield from _insert_section(document_id, new, number * _GAP, now)
    return (yield from get_document(owner, document_id))


def list_documents(owner: str) -> Transaction[Sequence[Document]]:
    _, end_user = split_owner(owner)
    rows = yield LIST_DOCUMENTS_OF_END_USER if end_user else LIST_DOCUMENTS, (owner,)
    return [Document(*row) for row in rows]


def get_document(owner: str, document_id: str) -> Transaction[Document]:
    rows = yield GET_DOCUMENT, (owner, document_id)
    if not rows:
        raise DocumentNotFound("Document not found")
    return Document(*rows[0])


def rename_document(
    owner: str, document_id: str, title: str, now: int, if_stamp: Collection[str] | None
) -> Transaction[Document]:
    version, _ = yield from _change_document(owner, document_id, now, title=title)
    _check_stamp("document", make_stamp(document_id, version - 1), if_stamp)
    return (yield from get_document(owner, document_id))


def _check_stamp(what: str, stamp: str, if_stamp: Collection[str] | None) -> None:
    if if_stamp is not None and stamp not in if_stamp:
        raise PreconditionFailed(f"The {what} has changed meanwhile; read it again")


def _change_document(
    owner: str, document_id: str, now: int, *, title: str | None = None, added: int = 0
) -> Transaction[tuple[int, int]]:
    """Lock the document and count a change; its version and how many sections it has then."""
    rows = yield CHANGE_DOCUMENT, (title, added, now, owner, document_id)
    if not rows:
        raise DocumentNotFound("Document not found")
    return rows[0][0], rows[0][1]


# --- Sections ----------------------------------------------------------------------------------

_SECTION = """
SELECT x.id, x.document_id, x.type, x.level, x.title, x.session_id, x.version, x.created_at,
    x.updated_at, t.content
FROM sections x JOIN section_texts t ON t.section_id = x.id
"""
GET_SECTION = _SECTION + "WHERE x.document_id = ? AND x.id = ?"
SECTIONS_AT_ONCE = 50
GET_SECTIONS = f"""{_SECTION}
WHERE x.document_id = ? AND x.id IN ({", ".join("?" * SECTIONS_AT_ONCE)})
"""
LIST_SIZES = "SELECT id, size FROM sections WHERE document_id = ? ORDER BY rank"

# Whose document a section is in, to say why it was not found where it was looked for.
PLACE_OF_SECTION = """
SELECT x.document_id, d.owner, x.session_id
FROM sections x JOIN documents d ON d.id = x.document_id WHERE x.id = ?
"""

INSERT_SECTION = """
INSERT INTO sections (id, document_id, rank, type, level, title, size, version, created_at,
    updated_at)
VALUES (?, ?, ?, ?, ?, ?, ?, 0, ?, ?)
"""
INSERT_TEXT = "INSERT INTO section_texts (section_id, content) VALUES (?, ?)"
CHANGE_SECTION = """
UPDATE sections SET title = COALESCE(?, title), type = COALESCE(?, type),
    level = COALESCE(?, level), size = COALESCE(?, size), rank = COALESCE(?, rank),
    version = version + 1, updated_at = ?
WHERE id = ?
"""
SET_TEXT = "UPDATE section_texts SET content = ? WHERE section_id = ?"


def list_section_sizes(
    owner: str, document_id: str
) -> Transaction[tuple[Document, Sequence[SectionSize]]]:
    document = yield from get_document(owner, document_id)
    rows = yield LIST_SIZES, (document_id,)
    return document, [SectionSize(*row) for row in rows]


def get_section(owner: str, document_id: str, section_id: str) -> Transaction[Section]:
    yield from get_document(owner, document_id)
    return (yield from _find_section(owner, document_id, section_id))


def get_sections(
    owner: str, document_id: str, ids: Sequence[str]
) -> Transaction[Sequence[Section]]:
    yield from get_document(owner, document_id)
    found: list[Section] = []
    for start in range(0, len(ids), SECTIONS_AT_ONCE):
        wanted = ids[start : start + SECTIONS_AT_ONCE]
        filled = (*wanted, *(SECTIONS_AT_ONCE - len(wanted)) * [""])
        rows = yield GET_SECTIONS, (document_id, *filled)
        by_id = {row[0]: Section(*row) for row in rows}
        found += [by_id[id_] for id_ in wanted if id_ in by_id]
    return found


def create_section(
    owner: str, document_id: str, new: NewSection, now: int, key: IdempotencyKey | None = None
) -> Transaction[Section]:
    def again(id_: str) -> Transaction[Section]:
        return get_section(owner, document_id, id_)

    work = _create_section(owner, document_id, new, now)
    return (yield from once(key, work, name=lambda made: made.id, again=again, now=now))


def _create_section(
    owner: str, document_id: str, new: NewSection, now: int
) -> Transaction[Section]:
    _, count = yield from _change_document(owner, document_id, now, added=1)
    at = count - 1 if new.position is None else min(new.position, count - 1)
    rank = yield from _make_room(document_id, at, count - 1)
    yield from _insert_section(document_id, new, rank, now)
    return (yield from _find_section(owner, document_id, new.id))


def update_section(
    owner: str,
    document_id: str,
    section_id: str,
    change: SectionChange,
    *,
    now: int,
    if_stamp: Collection[str] | None,
) -> Transaction[ChangedSection]:
    _, count = yield from _change_document(owner, document_id, now)
    old = yield from _find_section(owner, document_id, section_id)
    _check_stamp("section", old.stamp, if_stamp)
    rank: int | None = None
    if change.position is not UNSET:
        rank = yield from _move(document_id, section_id, change.position, count)
    content = None if change.content is UNSET else change.content
    values = (change.title, change.type, change.level)
    yield (
        CHANGE_SECTION,
        (
            *(None if value is UNSET else value for value in values),
            None if content is None else len(content.encode()),
            rank,
            now,
            section_id,
        ),
    )
    if content is not None:
        yield SET_TEXT, (content, section_id)
    section = yield from _find_section(owner, document_id, section_id)
    return ChangedSection(section, old.content)


def _find_section(owner: str, document_id: str, section_id: str) -> Transaction[Section]:
    rows = yield GET_SECTION, (document_id, section_id)
    if not rows:
        raise _not_here((yield PLACE_OF_SECTION, (section_id,)), owner)
    return Section(*rows[0])


def _find_link(owner: str, document_id: str, section_id: str) -> Transaction[str | None]:
    """The session that a section is linked to."""
    rows = yield PLACE_OF_SECTION, (section_id,)
    if not rows or rows[0][0] != document_id or not is_for(owner, rows[0][1]):
        raise _not_here(rows, owner)
    link: str | None = rows[0][2]
    return link


def _not_here(places: Rows, owner: str) -> SectionNotFound:
    """Seed 003 tells a section that is nowhere from one in another document of the caller's."""
    is_elsewhere = places and is_for(owner, places[0][1])
    return SectionNotFound(f"Section not found{' in this document' if is_elsewhere else ''}")


def _insert_section(document_id: str, new: NewSection, rank: int, now: int) -> Transaction[None]:
    draft = new.draft
    written = (draft.type, draft.level, draft.title, len(draft.content.encode()))
    yield INSERT_SECTION, (new.id, document_id, rank, *written, now, now)
    yield INSERT_TEXT, (new.id, draft.content)


# --- Their order -------------------------------------------------------------------------------

_GAP = 1 << 20

# The ranks on both sides of a position, of the sections but one that is being moved.
RANKS_AROUND = """
SELECT rank FROM sections WHERE document_id = ? AND id <> ? ORDER BY rank LIMIT 2 OFFSET ?
"""
LAST_RANK = "SELECT MAX(rank) FROM sections WHERE document_id = ? AND id <> ?"
RENUMBER = f"""
UPDATE sections SET rank = n.number * {_GAP}
FROM (SELECT id, ROW_NUMBER() OVER (ORDER BY rank) AS number FROM sections WHERE document_id = ?) n
WHERE sections.id = n.id
"""
POSITION = """
SELECT COUNT(*) FROM sections WHERE document_id = ?
    AND rank < (SELECT rank FROM sections WHERE id = ?)
"""


def _move(document_id: str, section_id: str, position: int, count: int) -> Transaction[int | None]:
    """The rank that brings a section to a position; None if it stands there already."""
    at = min(position, count - 1)
    stands = yield POSITION, (document_id, section_id)
    if stands[0][0] == at:
        return None
    return (yield from _make_room(document_id, at, count - 1, section_id))


def _make_room(document_id: str, at: int, others: int, section_id: str = "") -> Transaction[int]:
    """A rank between those of the `others` that come to stand before and behind position `at`."""
    if at >= others:
        rows = yield LAST_RANK, (document_id, section_id)
        return (rows[0][0] or 0) + _GAP
    rows = yield RANKS_AROUND, (document_id, section_id, max(at - 1, 0))
    before, behind = (0, rows[0][0]) if at == 0 else (rows[0][0], rows[1][0])
    if behind - before > 1:
        return int(before + behind) // 2
    yield RENUMBER, (document_id,)
    return (yield from _make_room(document_id, at, others, section_id))


# --- Deleting ----------------------------------------------------------------------------------

DELETE_SECTION = "DELETE FROM sections WHERE id = ?"
DELETE_SECTIONS = "DELETE FROM sections WHERE document_id = ?"
DELETE_TEXT = "DELETE FROM section_texts WHERE section_id = ?"
DELETE_TEXTS = """
DELETE FROM section_texts WHERE section_id IN (SELECT id FROM sections WHERE document_id = ?)
"""

_CHAT_OF_SECTION = "(SELECT session_id FROM sections WHERE id = ?)"
_CHATS_OF_DOCUMENT = """
(SELECT session_id FROM sections WHERE document_id = ? AND session_id IS NOT NULL)
"""
_DELETE_CHATS = "DELETE FROM sessions WHERE id IN "


def delete_document(
    owner: str, document_id: str, now: int, if_stamp: Collection[str] | None
) -> Transaction[Sequence[TurnRef]]:
    version, _ = yield from _change_document(owner, document_id, now)
    _check_stamp("document", make_stamp(document_id, version - 1), if_stamp)
    yield DELETE_DOCUMENT, (document_id,)
    open_turns = yield from _delete_chats(_CHATS_OF_DOCUMENT, document_id)
    yield DELETE_TEXTS, (document_id,)
    yield DELETE_SECTIONS, (document_id,)
    return open_turns


def delete_section(
    owner: str,
    document_id: str,
    section_id: str,
    now: int,
    if_stamp: Collection[str] | None,
) -> Transaction[Sequence[TurnRef]]:
    yield from _change_document(owner, document_id, now, added=-1)
    section = yield from _find_section(owner, document_id, section_id)
    _check_stamp("section", section.stamp, if_stamp)
    open_turns = yield from _delete_chats(_CHAT_OF_SECTION, section_id)
    yield DELETE_TEXT, (section_id,)
    yield DELETE_SECTION, (section_id,)
    return open_turns


def _delete_chats(which: str, id_: str) -> Transaction[Sequence[TurnRef]]:
    """Delete sessions with all that belongs to them; returns the turns that were not over."""
    # First: that locks them, so that no turn begins there.
    chats = yield f"{_DELETE_CHATS}{which} RETURNING id, owner, revision", (id_,)
    yield from record_open(chats)
    return (yield from remove_belongings(f"IN {which}", id_))


# --- The chat of a section ---------------------------------------------------------------------

OWNER_OF_DOCUMENT = "SELECT owner FROM documents WHERE id = ?"
LOCK_DOCUMENT = "UPDATE documents SET version = version WHERE id = ? RETURNING owner"
IS_SESSION = "SELECT 1 FROM sessions WHERE id = ?"
LINK_SECTION = "UPDATE sections SET session_id = ? WHERE id = ?"


def find_chat(owner: str, document_id: str, section_id: str) -> Transaction[str | None]:
    return (yield from _find_chat(OWNER_OF_DOCUMENT, owner, document_id, section_id))[0]


def _find_chat(
    look: str, owner: str, document_id: str, section_id: str
) -> Transaction[tuple[str | None, str]]:
    """In the order of seed 003: the document, whose it is, the section. With that owner."""
    rows = yield look, (document_id,)
    if not rows:
        raise DocumentNotFound("Document not found")
    author: str = rows[0][0]
    if not is_for(owner, author):
        raise AccessDenied("Access denied")
    link = yield from _find_link(owner, document_id, section_id)
    if link is None or not (yield IS_SESSION, (link,)):
        return None, author
    return link, author


def open_chat(owner: str, document_id: str, new: NewSession) -> Transaction[OpenedChat]:
    section_id = new.section or ""
    found, author = yield from _find_chat(LOCK_DOCUMENT, owner, document_id, section_id)
    if found is not None:  # made by someone else, in this moment
        return OpenedChat(found, is_new=False)
    yield from create_session(msgspec.structs.replace(new, owner=author))
    yield LINK_SECTION, (new.id, section_id)
    yield from _change_document(owner, document_id, new.now)
    return OpenedChat(new.id, is_new=True)


# --- What a model is shown ---------------------------------------------------------------------

NEIGHBOURS = 500  # of the outline, in each direction

GET_PLACE = """
SELECT x.document_id, x.rank, d.title, d.sections, x.level, x.title, t.content
FROM sections x JOIN documents d ON d.id = x.document_id
    JOIN section_texts t ON t.section_id = x.id
WHERE x.id = ?
"""
SECTIONS_BEFORE = """
SELECT level, title FROM sections WHERE document_id = ? AND rank < ? ORDER BY rank DESC LIMIT ?
"""
SECTIONS_AFTER = """
SELECT level, title FROM sections WHERE document_id = ? AND rank > ? ORDER BY rank LIMIT ?
"""


def get_passage(section_id: str) -> Transaction[Passage | None]:
    places = yield GET_PLACE, (section_id,)
    if not places:
        return None
    document_id, rank, document, count, level, title, content = places[0]
    before = yield SECTIONS_BEFORE, (document_id, rank, NEIGHBOURS)
    after = yield SECTIONS_AFTER, (document_id, rank, NEIGHBOURS)
    position = len(before)
    if position == NEIGHBOURS:
        position = (yield POSITION, (document_id, section_id))[0][0]
    return Passage(
        document,
        OutlineEntry(level, title),
        content,
        [OutlineEntry(*row) for row in reversed(before)],
        [OutlineEntry(*row) for row in after],
        position - len(before),
        count - position - 1 - len(after),
    )
