"""A session's items one by one: read in either order, added without a turn, removed for good."""

from collections.abc import Sequence

from turnkeeper.contracts import ItemPage
from turnkeeper.domain import (
    ById,
    IdempotencyKey,
    Item,
    ListedItem,
    MessageRef,
    Session,
    SessionChoice,
    TurnStatus,
    counts_as_message,
)
from turnkeeper.errors import MessageNotFound, SessionNotFound
from turnkeeper.stores.sql.idempotency import once
from turnkeeper.stores.sql.rows import OF_ID, Transaction, decode_listed, weigh_shown
from turnkeeper.stores.sql.sessions import (
    LIST_ITEMS,
    LISTED_ITEMS,
    get_session,
    numbers_of,
    places_of,
)
from turnkeeper.stores.sql.turns import TURN_STATUS, busy, insert_item, take_numbers

# --- Reading -----------------------------------------------------------------------------------

LIST_ITEMS_BACK = f"""{LISTED_ITEMS}(i.turn, i.position) < (?, ?)
ORDER BY i.turn DESC, i.position DESC LIMIT ?
"""
GET_ITEM = f"{LISTED_ITEMS}i.turn = ? AND i.position = ?"
ITEMS_OF_TURNS = f"{LISTED_ITEMS}i.turn BETWEEN ? AND ? ORDER BY i.turn, i.position"

_BEGINNING, _END = (-1, -1), (1 << 62, 0)


def page_items(
    owner: str,
    session: SessionChoice,
    after: tuple[int, int] | None,
    limit: int,
    newest_first: bool,
) -> Transaction[ItemPage]:
    found = yield from get_session(owner, session)
    statement = LIST_ITEMS_BACK if newest_first else LIST_ITEMS
    place = after or (_END if newest_first else _BEGINNING)
    rows = yield statement, (found.id, *place, limit + 1)
    return ItemPage([decode_listed(row) for row in rows[:limit]], len(rows) > limit)


def get_item(owner: str, place: MessageRef) -> Transaction[ListedItem]:
    found = yield from get_session(owner, ById(place.session_id))
    rows = yield GET_ITEM, (found.id, place.turn, place.position)
    if not rows:
        raise MessageNotFound("Item not found")
    return decode_listed(rows[0])


# --- Adding ------------------------------------------------------------------------------------


def append_items(
    owner: str,
    session: SessionChoice,
    items: Sequence[Item],
    now: int,
    key: IdempotencyKey | None,
) -> Transaction[Sequence[ListedItem]]:
    """Remembered by the session and the numbers that they stand under."""

    def name(made: Sequence[ListedItem]) -> str:
        return f"{found.id} {made[0].turn} {made[-1].turn}"

    def again(made: str) -> Transaction[Sequence[ListedItem]]:
        session_id, first, last = made.split()
        return _items_of_turns(session_id, int(first), int(last))

    found = yield from get_session(owner, session)
    work = _append_items(owner, found.id, items, now)
    return (yield from once(key, work, name=name, again=again, now=now, session=lambda _: found.id))


def _append_items(
    owner: str, session_id: str, items: Sequence[Item], now: int
) -> Transaction[Sequence[ListedItem]]:
    numbers = numbers_of(items)
    counted = sum([counts_as_message(item) for item in items])
    added = (counted, weigh_shown(items), now)
    last = yield from take_numbers(owner, session_id, numbers[-1], added)
    first = last - numbers[-1] + 1
    places = places_of(session_id, numbers_of(items, first))
    for place, item in zip(places, items, strict=True):
        yield insert_item(place, item, now)
    return (yield from _items_of_turns(session_id, first, last))


def _items_of_turns(session_id: str, first: int, last: int) -> Transaction[Sequence[ListedItem]]:
    rows = yield ITEMS_OF_TURNS, (session_id, first, last)
    return [decode_listed(row) for row in rows]


# --- Removing ----------------------------------------------------------------------------------

LOCK_OWN = f"""
UPDATE sessions SET version = version + 1, updated_at = ? WHERE {OF_ID} RETURNING id
"""

# What some items add to their session: messages, those that no prompt shows, weight.
SUMS = """
SELECT COUNT(CASE WHEN text <> '' AND (kind = 'user' OR (kind = 'assistant' AND in_prompt = 1))
        THEN 1 END),
    COUNT(CASE WHEN text <> '' AND kind = 'user' AND in_prompt = 0 THEN 1 END),
    COALESCE(SUM(CASE WHEN in_prompt = 1 THEN weight ELSE 0 END), 0)
FROM """
SUMS_OF_ITEM = SUMS + "items WHERE session_id = ? AND turn = ? AND position = ?"
SUMS_OF_TURN = SUMS + "items WHERE session_id = ? AND turn = ?"
SUBTRACT_SUMS = """
UPDATE sessions SET message_count = message_count - ?, hidden_count = hidden_count - ?,
    weight = weight - ?
WHERE id = ?
"""
DELETE_ITEM = """
DELETE FROM items WHERE session_id = ? AND turn = ? AND position = ? RETURNING turn
"""
# One that tells of what is gone now.
DROP_SUMMARY = "DELETE FROM summaries WHERE session_id = ? AND turn >= ?"


def delete_item(owner: str, place: MessageRef, now: int) -> Transaction[Session]:
    yield from lock_own(owner, place.session_id, now)
    turn = (place.session_id, place.turn)
    status = yield TURN_STATUS, turn
    if status and not TurnStatus(status[0][0]).terminal:
        raise busy(*turn)
    sums = yield SUMS_OF_ITEM, (*turn, place.position)
    if not (yield DELETE_ITEM, (*turn, place.position)):
        raise MessageNotFound("Item not found")
    yield SUBTRACT_SUMS, (*map(int, sums[0]), place.session_id)
    yield DROP_SUMMARY, turn
    return (yield from get_session(owner, ById(place.session_id)))


def lock_own(owner: str, session_id: str, now: int) -> Transaction[None]:
    if not (yield LOCK_OWN, (now, owner, session_id)):
        raise SessionNotFound("Session not found")
