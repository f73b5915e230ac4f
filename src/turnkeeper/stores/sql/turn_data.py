"""What a dialect keeps with a turn, lists of such turns, and their removal."""

from turnkeeper.contracts import StoredReply, TurnPage
from turnkeeper.domain import TurnRef, TurnStatus, split_owner
from turnkeeper.errors import SessionNotFound, TurnNotFound
from turnkeeper.stores.sql.items import DROP_SUMMARY, SUBTRACT_SUMS, SUMS_OF_TURN, lock_own
from turnkeeper.stores.sql.removal import remove_belongings_of
from turnkeeper.stores.sql.rows import Transaction, decode_turn
from turnkeeper.stores.sql.turns import TURN_COLUMNS, TURN_STATUS, busy, items_of_turn

# --- Lists -------------------------------------------------------------------------------------

_TURNS_OF_BARE = f"""
SELECT s.id, t.number, d.data, d.cuts, {TURN_COLUMNS}
FROM sessions s JOIN turns t ON t.session_id = s.id
    JOIN turn_data d ON d.session_id = s.id AND d.number = t.number
WHERE s.archived = 2 AND d.data IS NOT NULL AND """
_FORWARD = " AND (s.id, t.number) > (?, ?) ORDER BY s.id, t.number LIMIT ?"
_BACK = " AND (s.id, t.number) < (?, ?) ORDER BY s.id DESC, t.number DESC LIMIT ?"
_OF_USER = "s.user_name = ?"  # with those of the user's end users
_OF_END_USER = "s.owner = ? AND s.owner <> s.user_name"

_BEFORE_ALL, _BEHIND_ALL = TurnRef("", 0), TurnRef("t", 0)  # no session has such an id


def page_turns(
    owner: str, after: TurnRef | None, limit: int, newest_first: bool
) -> Transaction[TurnPage]:
    place = after or (_BEHIND_ALL if newest_first else _BEFORE_ALL)
    whose = _OF_USER if split_owner(owner)[1] is None else _OF_END_USER
    statement = _TURNS_OF_BARE + whose + (_BACK if newest_first else _FORWARD)
    rows = yield statement, (owner, place.session_id, place.number, limit + 1)
    turns: list[StoredReply] = []
    for session_id, number, data, cuts, *columns in rows[:limit]:
        ref = TurnRef(session_id, number)
        items = yield from items_of_turn(ref)
        turns += [StoredReply(decode_turn(ref, columns), "", items, data, cuts)]
    return TurnPage(turns, len(rows) > limit)


# --- Changing and removing ---------------------------------------------------------------------

SET_DATA = """
UPDATE turn_data SET data = ? WHERE session_id = ? AND number = ? AND data IS NOT NULL
RETURNING number
"""
DROP_DATA = """
UPDATE turn_data SET data = NULL WHERE session_id = ? AND number = ? AND data IS NOT NULL
RETURNING number
"""
REMOVE_TURN = (
    "DELETE FROM items WHERE session_id = ? AND turn = ?",
    "DELETE FROM hidden_items WHERE session_id = ? AND turn = ?",
    "DELETE FROM checkpoints WHERE session_id = ? AND turn = ?",
    "DELETE FROM turn_data WHERE session_id = ? AND number = ?",
    "DELETE FROM turns WHERE session_id = ? AND number = ?",
)
# A session that was made by a turn, and in which nothing is left.
REMOVE_EMPTY = """
DELETE FROM sessions WHERE id = ? AND alias IS NULL AND title IS NULL AND section IS NULL
    AND NOT EXISTS (SELECT 1 FROM turns t WHERE t.session_id = sessions.id)
    AND NOT EXISTS (SELECT 1 FROM items i WHERE i.session_id = sessions.id)
    AND NOT EXISTS (SELECT 1 FROM hidden_items h WHERE h.session_id = sessions.id)
    AND NOT EXISTS (SELECT 1 FROM session_data x WHERE x.session_id = sessions.id)
RETURNING id, section
"""


def set_turn_data(owner: str, ref: TurnRef, data: str, now: int) -> Transaction[None]:
    yield from _lock(owner, ref, now)
    if not (yield SET_DATA, (data, ref.session_id, ref.number)):
        raise TurnNotFound("Turn not found")


def delete_turn(owner: str, ref: TurnRef, now: int, keep_items: bool) -> Transaction[None]:
    place = (ref.session_id, ref.number)
    yield from _lock(owner, ref, now)
    status = yield TURN_STATUS, place
    if status and not TurnStatus(status[0][0]).terminal:
        raise busy(*place)
    if not (yield DROP_DATA, place):
        raise TurnNotFound("Turn not found")
    if keep_items:
        return
    sums = yield SUMS_OF_TURN, place
    for statement in REMOVE_TURN:
        yield statement, place
    yield SUBTRACT_SUMS, (*map(int, sums[0]), ref.session_id)
    yield DROP_SUMMARY, place
    for emptied in (yield REMOVE_EMPTY, (ref.session_id,)):
        yield from remove_belongings_of(*emptied)


def _lock(owner: str, ref: TurnRef, now: int) -> Transaction[None]:
    try:
        yield from lock_own(owner, ref.session_id, now)
    except SessionNotFound:
        raise TurnNotFound("Turn not found") from None
