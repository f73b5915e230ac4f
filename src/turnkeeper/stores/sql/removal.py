"""What goes with a session: every row, in every table, that belongs to it."""

from collections.abc import Sequence

from turnkeeper.domain import TurnRef
from turnkeeper.stores.sql.rows import Transaction
from turnkeeper.stores.sql.usage import fold_sessions

OPEN_TURNS_OF_SESSION = """
SELECT session_id, number FROM turns
WHERE session_id = ? AND status IN ('queued', 'running') ORDER BY session_id, number
"""
DELETE_TURNS = "DELETE FROM turns WHERE session_id = ?"
DELETE_ITEMS = "DELETE FROM items WHERE session_id = ?"
DELETE_HIDDEN = "DELETE FROM hidden_items WHERE session_id = ?"
DELETE_CHECKPOINTS = "DELETE FROM checkpoints WHERE session_id = ?"
DELETE_SUMMARY = "DELETE FROM summaries WHERE session_id = ?"
DELETE_TURN_DATA = "DELETE FROM turn_data WHERE session_id = ?"
DELETE_SAID = (
    DELETE_TURNS,
    DELETE_ITEMS,
    DELETE_HIDDEN,
    DELETE_CHECKPOINTS,
    DELETE_SUMMARY,
    DELETE_TURN_DATA,
)
DELETE_DATA = "DELETE FROM session_data WHERE session_id = ?"
DELETE_TOKENS = "DELETE FROM session_tokens WHERE session_id = ?"
DELETE_KEPT = (DELETE_DATA, DELETE_TOKENS)  # what stays when a session is cleared
# A key stays known, so that a request that is sent again after that makes nothing anew.
BLANK_KEYS = "UPDATE idempotency_keys SET made = '', session_id = NULL WHERE session_id = ?"
UNLINK_SECTION = "UPDATE sections SET session_id = NULL WHERE id = ? AND session_id = ?"

_OF_ONE = "= ?"


def remove_said(which: str, id_: str) -> Transaction[Sequence[TurnRef]]:
    """Remove what was said in sessions; returns the turns that were not over.

    `which` is what follows `session_id` in a condition, with a place for `id_`.
    """
    open_turns = yield OPEN_TURNS_OF_SESSION.replace(_OF_ONE, which), (id_,)
    yield from fold_sessions(which, id_)
    for statement in DELETE_SAID:
        yield statement.replace(_OF_ONE, which), (id_,)
    return [TurnRef(*row) for row in open_turns]


def remove_said_in(session_id: str) -> Transaction[Sequence[TurnRef]]:
    return remove_said(_OF_ONE, session_id)


def remove_belongings(which: str, id_: str) -> Transaction[Sequence[TurnRef]]:
    """Remove all that belongs to sessions whose own rows have just been deleted, as `remove_said`.

    All but the link from a section whose chat one was (`UNLINK_SECTION`).
    """
    open_turns = yield from remove_said(which, id_)
    for statement in (*DELETE_KEPT, BLANK_KEYS):
        yield statement.replace(_OF_ONE, which), (id_,)
    return open_turns


def remove_belongings_of(session_id: str, section: str | None) -> Transaction[Sequence[TurnRef]]:
    """The same for one session, `section` being the one whose chat it was, with the link there."""
    open_turns = yield from remove_belongings(_OF_ONE, session_id)
    if section is not None:
        yield UNLINK_SECTION, (section, session_id)
    return open_turns
