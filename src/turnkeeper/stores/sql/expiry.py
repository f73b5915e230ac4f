"""Sessions that expire: looked at when they may have, and deleted some at a time.

A session's `due_at` is a time before which it cannot expire. It is written when the session is
made, and by nothing that is said in it: a turn would have to move an entry of an index twice. When
the time has come the session is looked at; it is deleted, or gets a later time. So a session that
is used all the time is looked at once in each of its idle time-outs.
"""

from turnkeeper.contracts import Expired
from turnkeeper.domain import Blueprint
from turnkeeper.stores.sql.removal import remove_belongings_of
from turnkeeper.stores.sql.rows import Row, Transaction

# Those that are due, the longest overdue first.
FIND_DUE = """
SELECT s.id, s.due_at, s.version, s.section, s.message_count, s.pinned, s.running, s.created_at,
    s.updated_at, r.idle_timeout, r.max_age
FROM sessions s LEFT JOIN revisions r ON r.id = s.revision
WHERE s.due_at <= ? ORDER BY s.due_at LIMIT ?
"""
# Someone may have spoken in it, or pinned it, since it was found.
DELETE_DUE = "DELETE FROM sessions WHERE id = ? AND version = ? RETURNING id"
LOOK_LATER = "UPDATE sessions SET due_at = ? WHERE id = ? AND due_at = ?"
FIRST_LOOK = "UPDATE sessions SET due_at = ? WHERE id = ? AND due_at IS NULL"
LOOK_NOW = "UPDATE sessions SET due_at = ? WHERE id = ? AND due_at IS NOT NULL"

_MESSAGES = 500  # that are deleted in one step, about: other writers wait meanwhile
_BUSY_MS = 5_000  # after which a session is looked at again that a running turn keeps


def expire_later(session_id: str, blueprint: Blueprint, now: int) -> Transaction[None]:
    """Note when a session that was made `now` is to be looked at, if it can ever expire."""
    due_at = _expires_at(now, now, blueprint.idle_timeout, blueprint.max_age)
    if due_at is not None:
        yield FIRST_LOOK, (due_at, session_id)


def expire_unpinned(session_id: str, now: int) -> Transaction[None]:
    """Have a session looked at that may have outlived its time while it was pinned."""
    yield LOOK_NOW, (now, session_id)


def expire(limit: int, now: int) -> Transaction[Expired]:
    rows = yield FIND_DUE, (now, limit)
    deleted, messages, seen = 0, 0, 0
    for id_, due_at, version, section, message_count, *facts in rows:
        if messages >= _MESSAGES:
            break
        seen += 1
        later = _look_again_at(now, facts)
        if later is None or later > now:
            yield LOOK_LATER, (later, id_, due_at)
        elif (yield DELETE_DUE, (id_, version)):
            yield from remove_belongings_of(id_, section)
            deleted, messages = deleted + 1, messages + message_count
    return Expired(deleted, more=seen < len(rows) or len(rows) == limit)


def _look_again_at(now: int, facts: Row) -> int | None:
    """When a session that is due is to be looked at again; `now` or before: it has expired.

    None if it never expires. `facts` are the last columns of `FIND_DUE`, from `pinned` on.
    """
    pinned, running, created_at, updated_at, idle_timeout, max_age = facts
    expires_at = _expires_at(created_at, updated_at, idle_timeout, max_age)
    if pinned:  # `expire_unpinned` comes back to it
        return None if expires_at is None else _expires_at(now, now, idle_timeout, max_age)
    if running is not None and expires_at is not None:
        return max(expires_at, now + _BUSY_MS)
    return expires_at


def _expires_at(
    created_at: int, updated_at: int, idle_timeout: int | None, max_age: int | None
) -> int | None:
    """From when on a session has outlived its time; None for never. The time-outs in seconds."""
    times = []
    if idle_timeout is not None:
        times.append(updated_at + idle_timeout * 1000)
    if max_age is not None:
        times.append(created_at + max_age * 1000)
    return min(times, default=None)
