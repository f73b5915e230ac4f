"""Versions: other words, or another reply, at a place where something was said before.

Turns that stand in one place share a *slot*, the number of the first of them. What is replaced
is put away from that place to the end, as one *branch* under the number of the turn it begins
with; selecting a version puts away what stands there now in the same way, and brings its own back.
"""

from collections.abc import Iterator, Sequence
from typing import Any

from turnkeeper.contracts import BegunTurn, NewVersion
from turnkeeper.domain import (
    ById,
    History,
    ListedItem,
    MessageRef,
    Session,
    SessionChoice,
    Turn,
    TurnRef,
    TurnStatus,
    Version,
    item_weight,
)
from turnkeeper.errors import MessageNotFound, NotRetryable, SessionNotFound, TurnNotFound
from turnkeeper.stores.sql.deployments import get_basis
from turnkeeper.stores.sql.idempotency import keep_made
from turnkeeper.stores.sql.items import DROP_SUMMARY, SUMS
from turnkeeper.stores.sql.rows import (
    OF_ID,
    Row,
    Rows,
    Transaction,
    decode_listed,
    encode_item,
)
from turnkeeper.stores.sql.sessions import get_session
from turnkeeper.stores.sql.turns import (
    INSERT_ITEM,
    TURN_STATUS,
    busy,
    claim_turn,
    newest_items,
    take_number_of,
)

# The kinds of items that a turn answers, which the turn that takes its place answers too.
_ASKED = "('user', 'system', 'developer', 'tool_result', 'compaction')"

# The place of the newest message there is to answer.
NEWEST_ASKED = """
SELECT turn FROM items WHERE session_id = ? AND kind = 'user'
ORDER BY turn DESC, position DESC LIMIT 1
"""
GET_ASKED = f"""
SELECT position, kind, text, data, weight FROM items
WHERE session_id = ? AND turn = ? AND kind IN {_ASKED} ORDER BY position
"""
GET_KIND = "SELECT kind FROM items WHERE session_id = ? AND turn = ? AND position = ?"
GET_HIDDEN_KIND = GET_KIND.replace("items", "hidden_items")
NEWEST_ITEM = """
SELECT turn FROM items WHERE session_id = ? ORDER BY turn DESC, position DESC LIMIT 1
"""
IS_LISTED = "SELECT 1 FROM items WHERE session_id = ? AND turn = ? LIMIT 1"
GET_SLOT = "SELECT slot, input FROM turns WHERE session_id = ? AND number = ?"
TURNS_IN_SLOT = "SELECT number, input FROM turns WHERE session_id = ? AND slot = ? ORDER BY number"

_FROM = "items WHERE session_id = ? AND turn BETWEEN ? AND ?"
_END = 2**53  # no turn has such a number
_BRANCH = "hidden_items WHERE session_id = ? AND branch = ?"
SUMS_FROM = SUMS + _FROM
SUMS_OF_BRANCH = SUMS + _BRANCH

_ITEM = "session_id, turn, position, kind, text, data, weight, created_at, in_prompt"
HIDE_FROM = (
    f"INSERT INTO hidden_items ({_ITEM}, branch) SELECT {_ITEM}, CAST(? AS BIGINT) FROM {_FROM}"
)
REMOVE_FROM = f"DELETE FROM {_FROM}"
BRING_BACK = f"INSERT INTO items ({_ITEM}) SELECT {_ITEM} FROM {_BRANCH}"
REMOVE_BRANCH = f"DELETE FROM {_BRANCH}"
ADD_SUMS = """
UPDATE sessions SET message_count = message_count + ?, hidden_count = hidden_count + ?,
    weight = weight + ?
WHERE id = ? RETURNING weight, message_count - hidden_count
"""

INSERT_VERSION = """
INSERT INTO turns (session_id, number, status, model, created_at, slot, input)
VALUES (?, ?, 'running', ?, ?, ?, ?)
"""


# --- Beginning one -----------------------------------------------------------------------------


def begin_version(new: NewVersion) -> Transaction[BegunTurn | TurnRef]:
    begun = yield from claim_turn(new.key, new.now)
    if begun is not None:
        return begun
    stored = yield from _begin_version(new)
    yield from keep_made(new.key, stored.turn.ref.id, stored.turn.ref.session_id)
    return stored


def _begin_version(new: NewVersion) -> Transaction[BegunTurn]:
    taken = yield from take_number_of(new.owner, new.session, (0, 0, new.model, new.now))
    session_id, number, running = taken[:3]
    owner = taken[5]
    if new.retried is not None:
        yield from _check_retryable(session_id, new.retried)
    if running != number:
        raise busy(session_id, running)
    basis = yield from get_basis(taken, new.revisions)
    replaced, in_place = yield from _find_replaced(session_id, new)
    asked = yield GET_ASKED, (session_id, replaced)
    items = list(_exchange(asked, new, replaced))
    counted = sum(kind == "user" and text != "" for kind, text, _, _ in items)
    added = (counted, 0, sum(weight for *_, weight in items))
    removed = yield from _hide(session_id, replaced, None if in_place else replaced)
    change = [more - less for more, less in zip(added, removed, strict=True)]
    [[total_weight, message_count]] = yield ADD_SUMS, (*change, session_id)
    choice = new.choose(basis, total_weight)
    if new.admit is not None:
        new.admit(session_id, basis, total_weight)
    stood: tuple[int | None, int | None] = (None, None)
    if in_place:
        slot, input_ = yield from _slot_of(session_id, replaced)
        stood = (slot, input_ if new.message is None else None)
    yield INSERT_VERSION, (session_id, number, choice.model, new.now, *stood)
    for position, item in enumerate(items):
        yield INSERT_ITEM, (session_id, number, position, *item, new.now, 1)
    turn = Turn(TurnRef(session_id, number), TurnStatus.RUNNING, choice.model, new.now)
    kept = yield from newest_items(turn.ref, choice.history_weight)
    history = History(kept, total_weight, message_count)
    return BegunTurn(turn, history, basis, owner, asked=len(items))


def _find_replaced(session_id: str, new: NewVersion) -> Transaction[tuple[int, bool]]:
    """The turn whose words are answered, and whether the new one takes its place.

    If not, the new one comes at the end, and nothing but that turn goes away.
    """
    if new.retried is not None:
        newest = yield NEWEST_ITEM, (session_id,)
        return new.retried, newest[0][0] == new.retried
    if new.message is not None:
        return (yield from _place_of_words(session_id, new.message)), True
    return (yield from _newest_place(session_id)), True


def _check_retryable(session_id: str, number: int) -> Transaction[None]:
    rows = yield TURN_STATUS, (session_id, number)
    if not rows:
        raise TurnNotFound("Turn not found")
    if TurnStatus(rows[0][0]) not in _RETRYABLE:
        raise NotRetryable("Only a turn that failed, was cancelled or interrupted is tried again")
    if not (yield IS_LISTED, (session_id, number)):
        raise NotRetryable("The message of this turn has been answered anew already")


_RETRYABLE = (TurnStatus.FAILED, TurnStatus.CANCELLED, TurnStatus.INTERRUPTED)


def _newest_place(session_id: str) -> Transaction[int]:
    rows = yield NEWEST_ASKED, (session_id,)
    if not rows:
        raise MessageNotFound("There is no message to answer")
    return int(rows[0][0])


def _place_of_words(session_id: str, message: MessageRef) -> Transaction[int]:
    """The listed turn at the place of a message of the user's."""
    kind = yield from _kind_of(session_id, message)
    if kind != "user":
        raise MessageNotFound("Only a message of the user's can be edited")
    return (yield from _listed_at(session_id, message.turn))


def _kind_of(session_id: str, message: MessageRef) -> Transaction[str]:
    rows: Rows = ()
    if message.session_id == session_id:
        place = (session_id, message.turn, message.position)
        rows = (yield GET_KIND, place) or (yield GET_HIDDEN_KIND, place)
    if not rows or rows[0][0] not in ("user", "assistant"):
        raise MessageNotFound("Message not found")
    return str(rows[0][0])


def _listed_at(session_id: str, turn: int) -> Transaction[int]:
    """The one of the turns in the same slot that is listed now."""
    for number, _ in (yield from _turns_at(session_id, turn)):
        if (yield IS_LISTED, (session_id, number)):
            return number
    raise MessageNotFound("The message belongs to a version that is not selected")


def _exchange(asked: Rows, new: NewVersion, replaced: int) -> Iterator[tuple[Any, ...]]:
    """What the new turn answers: kind, text, data and weight of each item."""
    pending = new.words
    for position, *item in asked:
        here = (
            new.message is None
            or new.message.turn != replaced
            or (new.message.position == position)
        )
        if pending is not None and item[0] == "user" and here:
            yield (*encode_item(pending), item_weight(pending))
            pending = None
        else:
            yield tuple(item)


def _hide(session_id: str, turn: int, last: int | None = None) -> Transaction[Row]:
    """Hide what is listed from a turn on, up to `last`; returns what it added to the session."""
    part = (session_id, turn, _END if last is None else last)
    sums = yield SUMS_FROM, part
    yield HIDE_FROM, (turn, *part)
    yield REMOVE_FROM, part
    yield DROP_SUMMARY, (session_id, turn)
    return [int(value) for value in sums[0]]


def _slot_of(session_id: str, turn: int) -> Transaction[tuple[int, int]]:
    """The slot of a turn, and the number of the one whose words it answers."""
    rows = yield GET_SLOT, (session_id, turn)
    slot, input_ = rows[0] if rows else (None, None)
    return slot or turn, input_ or turn


def _turns_at(session_id: str, turn: int) -> Transaction[Sequence[tuple[int, int]]]:
    """All turns in the slot of one, oldest first, each with whose words it answers."""
    slot, _ = yield from _slot_of(session_id, turn)
    later = yield TURNS_IN_SLOT, (session_id, slot)
    return [(slot, slot), *((number, input_ or number) for number, input_ in later)]


# --- Listing and selecting ---------------------------------------------------------------------

# A turn's words of the user's and its reply, listed or hidden.
WORDS_OF_TURN = """
SELECT i.turn, i.position, i.kind, i.text, i.data, t.status, t.model, i.created_at
FROM items i LEFT JOIN turns t ON t.session_id = i.session_id AND t.number = i.turn
WHERE i.session_id = ? AND i.turn = ? AND i.kind IN ('user', 'assistant') ORDER BY i.position
"""
HIDDEN_WORDS_OF_TURN = WORDS_OF_TURN.replace("FROM items", "FROM hidden_items")

LOCK_IDLE = f"""
UPDATE sessions SET version = version + 1, updated_at = ? WHERE {OF_ID} RETURNING running
"""


def list_words(owner: str, ref: TurnRef) -> Transaction[Sequence[ListedItem]]:
    found = yield from get_session(owner, ById(ref.session_id))
    words = yield from _words_of(TurnRef(found.id, ref.number))
    return [decode_listed(row) for row in words if row[3]]


def _words_of(ref: TurnRef) -> Transaction[Rows]:
    """A turn's words, listed or else hidden."""
    place = (ref.session_id, ref.number)
    return (yield WORDS_OF_TURN, place) or (yield HIDDEN_WORDS_OF_TURN, place)


def list_versions(
    owner: str, session: SessionChoice, message: MessageRef
) -> Transaction[Sequence[Version]]:
    found = yield from get_session(owner, session)
    kind = yield from _kind_of(found.id, message)
    turns = yield from _turns_at(found.id, message.turn)
    inputs = dict(turns)
    versions: dict[int, Version] = {}
    for number, input_ in turns:
        if kind == "assistant" and input_ != inputs[message.turn]:
            continue
        words = yield WORDS_OF_TURN, (found.id, number)
        selected = bool(words)
        if not selected:
            words = yield HIDDEN_WORDS_OF_TURN, (found.id, number)
        version = Version(number, selected, _first(kind, words))
        key = input_ if kind == "user" else number
        if not (key in versions and versions[key].selected):
            versions[key] = version
    return list(versions.values())


def _first(kind: str, words: Rows) -> ListedItem | None:
    return next((decode_listed(row) for row in words if row[2] == kind and row[3]), None)


def select_version(
    owner: str, session: SessionChoice, message: MessageRef, turn: int, now: int
) -> Transaction[Session]:
    found = yield from get_session(owner, session)
    rows = yield LOCK_IDLE, (now, owner, found.id)
    if not rows:
        raise SessionNotFound("Session not found")
    if rows[0][0] is not None:
        raise busy(found.id, rows[0][0])
    yield from _kind_of(found.id, message)
    if turn not in dict((yield from _turns_at(found.id, message.turn))):
        raise MessageNotFound("The message has no such version")
    listed = yield from _listed_at(found.id, turn)
    if listed != turn:
        removed = yield from _hide(found.id, listed)
        added = yield SUMS_OF_BRANCH, (found.id, turn)
        yield BRING_BACK, (found.id, turn)
        yield REMOVE_BRANCH, (found.id, turn)
        change = [int(more) - less for more, less in zip(added[0], removed, strict=True)]
        yield ADD_SUMS, (*change, found.id)
    return (yield from get_session(owner, ById(found.id)))
