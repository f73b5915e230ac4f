"""Sessions as things one can hold: made, listed, read, changed, forked, cleared, deleted."""

import re
from collections.abc import Collection, Sequence
from itertools import accumulate
from operator import attrgetter
from typing import Any

from msgspec import UNSET

from turnkeeper.contracts import MessagePage, NewSession, Quota, SessionPage
from turnkeeper.domain import (
    Basis,
    ById,
    IdempotencyKey,
    Item,
    ListedItem,
    Message,
    MessageRef,
    Session,
    SessionChange,
    SessionChoice,
    SessionFilter,
    SessionSummary,
    TurnRef,
    TurnStatus,
    counts_as_message,
    item_weight,
    make_stamp,
    split_owner,
)
from turnkeeper.errors import (
    DeploymentNotFound,
    MessageNotFound,
    PreconditionFailed,
    SessionBusy,
    SessionNotFound,
    TurnNotFound,
)
from turnkeeper.stores.sql.deployments import get_basis, get_revision
from turnkeeper.stores.sql.expiry import expire_later, expire_unpinned
from turnkeeper.stores.sql.idempotency import once
from turnkeeper.stores.sql.removal import remove_belongings_of, remove_said_in
from turnkeeper.stores.sql.rows import (
    OF_ALIAS,
    OF_ID,
    Row,
    Rows,
    Transaction,
    decode_listed,
    decode_session,
    encode_object,
    weigh_shown,
)
from turnkeeper.stores.sql.spending import check_quotas
from turnkeeper.stores.sql.turns import TURN_STATUS, busy, insert_item, name_of
from turnkeeper.stores.sql.usage import record_open

# --- Reading one -------------------------------------------------------------------------------

# A session, with how many of its turns are open: the one that runs is the first of them, so that
# those that are over are not looked at. Without a title, with the words to make one of.
_SESSION = """
SELECT s.id, s.alias, s.title, s.model, COALESCE(r.deployment, ''), s.revision, s.message_count,
    s.running, (SELECT COUNT(*) FROM turns t
        WHERE t.session_id = s.id AND t.number >= s.running
            AND t.status IN ('queued', 'running')),
    s.pinned, s.archived, s.version, s.created_at, s.updated_at, d.variables, d.metadata,
    s.section, (SELECT x.document_id FROM sections x WHERE x.id = s.section),
    d.config, d.context_documents, s.owner,
    CASE WHEN s.title IS NULL THEN (SELECT substr(ltrim(i.text, ' \t\r\n'), 1, 500)
        FROM items i
        WHERE i.session_id = s.id AND i.kind = 'user'
        ORDER BY i.turn, i.position LIMIT 1) END
FROM sessions s LEFT JOIN revisions r ON r.id = s.revision
    LEFT JOIN session_data d ON d.session_id = s.id
WHERE """
GET_BY_ID = _SESSION + "? IN (s.owner, s.user_name) AND s.id = ?"
GET_BY_ALIAS = _SESSION + "s.owner = ? AND s.alias = ?"

COUNT_SESSIONS = "SELECT COUNT(*) FROM sessions"
COUNT_TURNS = "SELECT COUNT(*) FROM turns"


def get_session(owner: str, session: SessionChoice) -> Transaction[Session]:
    rows = yield _by(session, GET_BY_ID, GET_BY_ALIAS), (owner, name_of(session))
    return decode_session(_only(rows))


BASIS_OF = """
SELECT id, 0, 0, 0, 0, '', model, revision, variables, section, configured
FROM sessions WHERE """


def get_session_basis(owner: str, session: SessionChoice) -> Transaction[Basis]:
    statement = _by(session, BASIS_OF + OF_ID, BASIS_OF + OF_ALIAS)
    rows = yield statement, (owner, name_of(session))
    return (yield from get_basis(_only(rows), {}))


def _by(session: SessionChoice, by_id: str, by_alias: str) -> str:
    return by_id if isinstance(session, ById) else by_alias


def _only(rows: Rows) -> Row:
    if not rows:
        raise SessionNotFound("Session not found")
    return rows[0]


def count_kept() -> Transaction[tuple[int, int]]:
    """How many sessions and turns there are, of all owners."""
    sessions = yield COUNT_SESSIONS, ()
    turns = yield COUNT_TURNS, ()
    return sessions[0][0], turns[0][0]


def ping() -> Transaction[None]:
    yield "SELECT 1 FROM sessions LIMIT 1", ()


def try_write() -> Transaction[None]:
    """Write something, and nothing stays of it. (SQLite writes no page that is as it was.)"""
    yield "INSERT INTO turnkeeper_migrations (number, name) VALUES (-1, 'try')", ()
    yield "DELETE FROM turnkeeper_migrations WHERE number = -1", ()


# --- Lists of sessions -------------------------------------------------------------------------

# Of a user: with those of the user's end users, whose aliases are not the user's.
LIST_SESSIONS = """
SELECT id, CASE WHEN owner = user_name THEN alias END, message_count FROM sessions
WHERE user_name = ? AND message_count > 0 AND archived < 2 ORDER BY id
"""
LIST_SESSIONS_OF_END_USER = """
SELECT id, alias, message_count FROM sessions
WHERE owner = ? AND owner <> user_name AND message_count > 0 AND archived < 2 ORDER BY id
"""
_NEWEST_FIRST = "s.id < ? ORDER BY s.id DESC LIMIT ?"
_OLDEST_FIRST = "s.id > ? ORDER BY s.id LIMIT ?"
# Without what may be long and is in no list.
NEXT_SESSIONS = (
    re.sub(r"d\.(variables|config|context_documents)", "NULL", _SESSION)
    + f"s.user_name = ? AND s.archived = ? AND {_NEWEST_FIRST}"
)
NEXT_SESSIONS_OF_END_USER = NEXT_SESSIONS.replace(
    "s.user_name = ?", "s.owner = ? AND s.owner <> s.user_name"
)

OLDEST_SESSIONS = NEXT_SESSIONS.replace(_NEWEST_FIRST, _OLDEST_FIRST)
OLDEST_SESSIONS_OF_END_USER = NEXT_SESSIONS_OF_END_USER.replace(_NEWEST_FIRST, _OLDEST_FIRST)

_BEFORE, _BEYOND = "", "t"  # before and after every session's id
_SCANNED = 1000  # sessions looked at for one page, at most about
_SCANNED_AT_ONCE = 250


def list_sessions(owner: str) -> Transaction[Sequence[SessionSummary]]:
    _, end_user = split_owner(owner)
    rows = yield LIST_SESSIONS_OF_END_USER if end_user else LIST_SESSIONS, (owner,)
    return [SessionSummary(*row) for row in rows]


def page_sessions(
    owner: str,
    wanted: SessionFilter,
    after: str | None,
    limit: int,
    *,
    oldest_first: bool = False,
) -> Transaction[SessionPage]:
    cursor = after or (_BEFORE if oldest_first else _BEYOND)
    scanned, found = 0, list[Session]()
    is_selective = (wanted.pinned, wanted.deployment, wanted.title) != (None, None, None)
    at_once = _SCANNED_AT_ONCE if is_selective else limit + 1
    while scanned < _SCANNED:
        rows = yield from _next_sessions(owner, wanted.archived, cursor, at_once, oldest_first)
        for row in rows:
            session = decode_session(row)
            if _is_wanted(session, wanted):
                if len(found) == limit:
                    return SessionPage(found, found[-1].id)
                found.append(session)
        if len(rows) < at_once:
            return SessionPage(found, None)
        cursor, scanned = rows[-1][0], scanned + at_once
    return SessionPage(found, cursor)


def _next_sessions(
    owner: str, archived: bool | None, cursor: str, limit: int, oldest_first: bool
) -> Transaction[Sequence[Row]]:
    kinds = (0, 1) if archived is None else (int(archived),)
    _, end_user = split_owner(owner)
    statement = NEXT_SESSIONS_OF_END_USER if end_user else NEXT_SESSIONS
    if oldest_first:
        statement = OLDEST_SESSIONS_OF_END_USER if end_user else OLDEST_SESSIONS
    merged: list[Row] = []
    for kind in kinds:
        merged += yield statement, (owner, kind, cursor, limit)
    if len(kinds) > 1:
        merged.sort(key=lambda row: str(row[0]), reverse=not oldest_first)
    return merged[:limit]


def _is_wanted(session: Session, wanted: SessionFilter) -> bool:
    """Here and not in SQL, whose databases fold the case of letters differently."""
    if wanted.pinned not in (None, session.pinned):
        return False
    if wanted.deployment not in (None, session.deployment):
        return False
    return wanted.title is None or wanted.title.casefold() in (session.title or "").casefold()


# --- What was said -----------------------------------------------------------------------------

LISTED_ITEMS = """
SELECT i.turn, i.position, i.kind, i.text, i.data, t.status, t.model, i.created_at
FROM items i LEFT JOIN turns t ON t.session_id = i.session_id AND t.number = i.turn
WHERE i.session_id = ? AND """
LIST_ITEMS = f"""{LISTED_ITEMS}(i.turn, i.position) > (?, ?)
ORDER BY i.turn, i.position LIMIT ?
"""

# A user's and an assistant's words, but not those of a reply that failed.
_IS_MESSAGE = """i.text <> '' AND (i.kind = 'user' OR (i.kind = 'assistant' AND i.in_prompt = 1))"""
MESSAGES_AFTER = f"""{LISTED_ITEMS}{_IS_MESSAGE} AND (i.turn, i.position) > (?, ?)
ORDER BY i.turn, i.position LIMIT ?
"""
MESSAGES_BEFORE = f"""{LISTED_ITEMS}{_IS_MESSAGE} AND (i.turn, i.position) < (?, ?)
ORDER BY i.turn DESC, i.position DESC LIMIT ?
"""
FIND_MESSAGE = f"{LISTED_ITEMS}{_IS_MESSAGE} AND i.turn = ? AND i.position = ?"

_END = (1 << 62, 0)
_PAGE_WEIGHT = 1 << 20  # bytes of text in one page, about
_READ_AT_ONCE = 50


def list_items(
    owner: str, session: SessionChoice, after: tuple[int, int] | None, limit: int
) -> Transaction[Sequence[ListedItem]]:
    found = yield from get_session(owner, session)
    rows = yield LIST_ITEMS, (found.id, *(after or (-1, -1)), limit)
    return [decode_listed(row) for row in rows]


def page_messages(
    owner: str,
    session: SessionChoice,
    after: tuple[int, int] | None,
    before: tuple[int, int] | None,
    limit: int,
) -> Transaction[MessagePage]:
    found = yield from get_session(owner, session)
    statement = MESSAGES_BEFORE if after is None else MESSAGES_AFTER
    cursor = after or before or _END
    messages: list[ListedItem] = []
    weight, more = 0, True
    while more and len(messages) < limit and weight < _PAGE_WEIGHT:
        at_once = min(_READ_AT_ONCE, limit - len(messages))
        rows = yield statement, (found.id, *cursor, at_once + 1)
        more = len(rows) > at_once
        for row in rows[:at_once]:
            message = decode_listed(row)
            if messages and weight + item_weight(message.item) > _PAGE_WEIGHT:
                more = True
                break
            messages.append(message)
            weight += item_weight(message.item)
            cursor = (message.turn, message.position)
        else:
            continue
        break
    if after is None:
        messages.reverse()
    return MessagePage(found, messages, more)


# --- Making one --------------------------------------------------------------------------------

CURRENT_REVISION = "SELECT revision FROM deployments WHERE name = ?"
INSERT_SESSION = """
INSERT INTO sessions (id, owner, user_name, title, model, section, revision, variables, turns,
    message_count, hidden_count, weight, created_at, updated_at)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, 0, ?, ?, ?)
"""
INSERT_DATA = """
INSERT INTO session_data (session_id, variables, metadata) VALUES (?, ?, ?)
"""


def create_session(new: NewSession) -> Transaction[Session]:
    return (yield from _once(new.owner, new.key, _create_session(new), new.now))


def _once(
    owner: str, key: IdempotencyKey | None, work: Transaction[Session], now: int
) -> Transaction[Session]:
    def again(id_: str) -> Transaction[Session]:
        return get_session(owner, ById(id_))

    name = attrgetter("id")
    return (yield from once(key, work, name=name, again=again, now=now, session=name))


def _create_session(new: NewSession) -> Transaction[Session]:
    rows = yield CURRENT_REVISION, (new.deployment,)
    if not rows:
        raise DeploymentNotFound("Deployment not found")
    revision = yield from get_revision(rows[0][0])
    new.check(Basis(revision, new.variables, new.model))
    numbers = numbers_of(new.items)
    counted = sum(counts_as_message(item) for item in new.items)
    turns = numbers[-1] if numbers else 0
    user, _ = split_owner(new.owner)
    made = (new.id, new.owner, user, new.title, new.model, new.section)
    sums = (len(new.variables), turns, counted, weigh_shown(new.items))
    yield INSERT_SESSION, (*made, revision.id, *sums, new.now, new.now)
    yield from expire_later(new.id, revision.blueprint, new.now)
    yield from check_quotas(new.quotas)
    if new.variables or new.metadata:
        data = (encode_object(new.variables), encode_object(new.metadata))
        yield INSERT_DATA, (new.id, *data)
    for place, item in zip(places_of(new.id, numbers), new.items, strict=True):
        yield insert_item(place, item, new.now)
    return (yield from get_session(new.owner, ById(new.id)))


def numbers_of(items: Sequence[Item], first: int = 1) -> list[int]:
    """The number that each item stands under: every message of the user's begins a new one."""
    begins = [isinstance(item, Message) and item.role == "user" for item in items]
    return list(accumulate(begins[1:], initial=first)) if items else []


def places_of(session_id: str, numbers: Sequence[int]) -> list[tuple[str, int, int]]:
    """The place of each item, by the number that it stands under."""
    places: list[tuple[str, int, int]] = []
    for number in numbers:
        position = places[-1][2] + 1 if places and places[-1][1] == number else 0
        places.append((session_id, number, position))
    return places


# --- Changing one ------------------------------------------------------------------------------

CHANGE_BY_ID = f"""
UPDATE sessions SET title = CASE WHEN ? = 1 THEN ? ELSE title END,
    model = CASE WHEN ? = 1 THEN ? ELSE model END, pinned = COALESCE(?, pinned),
    archived = COALESCE(?, archived), version = version + 1, updated_at = ?
WHERE {OF_ID} RETURNING id, version
"""
CHANGE_BY_ALIAS = CHANGE_BY_ID.replace(OF_ID, OF_ALIAS)
SET_METADATA = """
INSERT INTO session_data (session_id, variables, metadata) VALUES (?, '{}', ?)
ON CONFLICT (session_id) DO UPDATE SET metadata = excluded.metadata
"""


def update_session(
    owner: str,
    session: SessionChoice,
    change: SessionChange,
    now: int,
    if_stamp: Collection[str] | None,
) -> Transaction[Session]:
    arguments = (
        *_optional(change.title),
        *_optional(change.model),
        None if change.pinned is UNSET else int(change.pinned),
        None if change.archived is UNSET else int(change.archived),
        now,
    )
    statement = _by(session, CHANGE_BY_ID, CHANGE_BY_ALIAS)
    rows = yield statement, (*arguments, owner, name_of(session))
    id_, version = _only(rows)
    _check_stamp(make_stamp(id_, version - 1), if_stamp)
    if change.pinned is False:
        yield from expire_unpinned(id_, now)
    if change.metadata is not UNSET:
        yield SET_METADATA, (id_, encode_object(change.metadata))
    return (yield from get_session(owner, ById(id_)))


def _check_stamp(stamp: str, wanted: Collection[str] | None) -> None:
    if wanted is not None and stamp not in wanted:
        raise PreconditionFailed("The session has changed meanwhile; read it again")


def _optional(value: Any) -> tuple[int, Any]:
    """Whether to set a column, and to what."""
    return (0, None) if value is UNSET else (1, value)


# --- Forking one -------------------------------------------------------------------------------

LOCK_BY_ID = f"""
UPDATE sessions SET version = version WHERE {OF_ID} RETURNING id, running
"""
LOCK_BY_ALIAS = LOCK_BY_ID.replace(OF_ID, OF_ALIAS)

# What a fork takes along: what is listed, up to a place, but for replies that failed.
_TAKEN_ALONG = """
FROM items WHERE session_id = ? AND (turn, position) <= (?, ?)
    AND NOT (kind = 'assistant' AND in_prompt = 0)
"""
SUMS_TAKEN_ALONG = f"""
SELECT MAX(turn), COUNT(CASE WHEN kind IN ('user', 'assistant') AND text <> '' THEN 1 END),
    COUNT(CASE WHEN in_prompt = 0 AND kind IN ('user', 'assistant') AND text <> '' THEN 1 END),
    SUM(CASE WHEN in_prompt = 1 THEN weight ELSE 0 END)
{_TAKEN_ALONG}"""
FORK_SESSION = """
INSERT INTO sessions (id, owner, user_name, title, model, revision, variables, configured, turns,
    message_count, hidden_count, weight, created_at, updated_at)
SELECT CAST(? AS TEXT), owner, user_name, title, model, revision, variables, configured,
    CAST(? AS BIGINT), CAST(? AS BIGINT), CAST(? AS BIGINT), CAST(? AS BIGINT), CAST(? AS BIGINT),
    CAST(? AS BIGINT)
FROM sessions WHERE id = ?
"""
FORK_DATA = """
INSERT INTO session_data (session_id, variables, metadata, config, context_documents)
SELECT CAST(? AS TEXT), variables, metadata, config, context_documents
FROM session_data WHERE session_id = ?
"""
FORK_ITEMS = f"""
INSERT INTO items (session_id, turn, position, kind, text, data, weight, created_at, in_prompt)
SELECT CAST(? AS TEXT), turn, position, kind, text, data, weight, created_at, in_prompt
{_TAKEN_ALONG} ORDER BY turn, position
"""


def fork_session(
    owner: str,
    session: SessionChoice,
    at: MessageRef | TurnRef | None,
    new_id: str,
    now: int,
    *,
    key: IdempotencyKey | None = None,
    quotas: Sequence[Quota] = (),
) -> Transaction[Session]:
    def work() -> Transaction[Session]:
        yield from check_quotas(quotas, to_come=1)  # before thousands of items are copied
        return (yield from _fork_session(owner, session, at, new_id, now))

    return (yield from _once(owner, key, work(), now))


def _fork_session(
    owner: str, session: SessionChoice, at: MessageRef | TurnRef | None, new_id: str, now: int
) -> Transaction[Session]:
    rows = yield _by(session, LOCK_BY_ID, LOCK_BY_ALIAS), (owner, name_of(session))
    id_, running = _only(rows)
    last = yield from _last_place(id_, running, at)
    sums = yield SUMS_TAKEN_ALONG, (id_, *last)
    turns, counted, hidden, weight = (int(value or 0) for value in sums[0])
    yield FORK_SESSION, (new_id, turns, counted, hidden, weight, now, now, id_)
    yield FORK_DATA, (new_id, id_)
    yield FORK_ITEMS, (new_id, id_, *last)
    fork = yield from get_session(owner, ById(new_id))
    revision = yield from get_revision(fork.revision)
    yield from expire_later(new_id, revision.blueprint, now)
    return fork


def _last_place(
    session_id: str, running: int | None, at: MessageRef | TurnRef | None
) -> Transaction[tuple[int, int]]:
    if at is None:
        return _END if running is None else (running, -1)
    if isinstance(at, TurnRef):
        return (yield from _last_place_of_turn(session_id, at))
    if at.session_id == session_id:
        rows = yield FIND_MESSAGE, (session_id, at.turn, at.position)
        if rows:
            return at.turn, at.position
    raise MessageNotFound("Message not found")


def _last_place_of_turn(session_id: str, at: TurnRef) -> Transaction[tuple[int, int]]:
    rows = yield TURN_STATUS, (at.session_id, at.number)
    if not rows or at.session_id != session_id:
        raise TurnNotFound("Turn not found")
    if not TurnStatus(rows[0][0]).terminal:
        raise busy(session_id, at.number)
    return at.number, _END[0]


# --- Clearing and deleting ---------------------------------------------------------------------

CLEAR_BY_ID = f"""
UPDATE sessions SET running = NULL, message_count = 0, hidden_count = 0, weight = 0,
    version = version + 1, updated_at = ?
WHERE {OF_ID} RETURNING id, owner, revision
"""
CLEAR_BY_ALIAS = CLEAR_BY_ID.replace(OF_ID, OF_ALIAS)


def clear_session(owner: str, session: SessionChoice, now: int) -> Transaction[Sequence[TurnRef]]:
    rows = yield _by(session, CLEAR_BY_ID, CLEAR_BY_ALIAS), (now, owner, name_of(session))
    yield from record_open(rows)
    return (yield from remove_said_in(rows[0][0])) if rows else []


DELETE_BY_ID = f"""
DELETE FROM sessions WHERE {OF_ID} RETURNING id, owner, revision, version, section
"""
DELETE_BY_ALIAS = DELETE_BY_ID.replace(OF_ID, OF_ALIAS)


def delete_session(
    owner: str, session: SessionChoice, if_idle: bool, if_stamp: Collection[str] | None
) -> Transaction[Sequence[TurnRef]]:
    rows = yield _by(session, DELETE_BY_ID, DELETE_BY_ALIAS), (owner, name_of(session))
    id_, _, _, version, section = _only(rows)
    _check_stamp(make_stamp(id_, version), if_stamp)
    yield from record_open(rows)
    open_turns = yield from remove_belongings_of(id_, section)
    if open_turns and if_idle:
        raise SessionBusy(
            "A turn of this session is queued or running; try again when it is over",
            open_turns[0].id,
        )
    return open_turns
