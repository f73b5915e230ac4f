"""Requests that are done once, however often they are sent: by the key their caller gave them."""

from collections.abc import Callable
from typing import TypeVar

from turnkeeper.domain import IdempotencyKey
from turnkeeper.errors import KeyReused
from turnkeeper.stores.sql.rows import Contended, Transaction

T = TypeVar("T")

# Before any work: of two that race, one waits here until the other is stored or refused. Had both
# begun, the second might find the session busy, or the name taken, with its own twin.
CLAIM_KEY = """
INSERT INTO idempotency_keys (owner, key, request, made, created_at) VALUES (?, ?, ?, '', ?)
ON CONFLICT (owner, key) DO NOTHING RETURNING key
"""
FIND_MADE = "SELECT request, made FROM idempotency_keys WHERE owner = ? AND key = ?"
KEEP_MADE = """
UPDATE idempotency_keys SET made = ?, session_id = ? WHERE owner = ? AND key = ?
"""
DROP_OLD = """
DELETE FROM idempotency_keys WHERE (owner, key) IN (
    SELECT owner, key FROM idempotency_keys WHERE created_at < ? ORDER BY created_at LIMIT ?
) RETURNING owner
"""


def once(
    key: IdempotencyKey | None,
    work: Transaction[T],
    *,
    name: Callable[[T], str],
    again: Callable[[str], Transaction[T]],
    now: int,
    session: Callable[[T], str | None] = lambda _: None,
) -> Transaction[T]:
    """What `work` makes, or under a key that was used, `again` of what was made then.

    `name` is what the made thing is remembered by, and `session` the id of the session with which
    it goes: then `again` gets nothing but "".
    """
    made = yield from claim(key, now)
    if made is not None:
        return (yield from again(made))
    thing = yield from work
    yield from keep_made(key, name(thing), session(thing))
    return thing


def claim(key: IdempotencyKey | None, now: int) -> Transaction[str | None]:
    """What was made under a key, "" if its session is gone. None if nothing yet.

    With None, `keep_made` is to follow.

    Raises:
        KeyReused: another request was made under it.
    """
    if key is None or (yield CLAIM_KEY, (key.owner, key.key, key.request, now)):
        return None
    rows = yield FIND_MADE, (key.owner, key.key)
    if not rows:  # forgotten in this moment
        raise Contended
    request, made = rows[0]
    if request != key.request:
        raise KeyReused("This Idempotency-Key was used for another request")
    return str(made)


def was_made(key: IdempotencyKey) -> Transaction[bool]:
    rows = yield FIND_MADE, (key.owner, key.key)
    return bool(rows) and rows[0][0] == key.request and rows[0][1] != ""


def keep_made(key: IdempotencyKey | None, made: str, session_id: str | None) -> Transaction[None]:
    """Remember what was made under a key that was claimed, and with which session it goes."""
    if key is not None:
        yield KEEP_MADE, (made, session_id, key.owner, key.key)


def drop_keys(before: int, limit: int) -> Transaction[int]:
    rows = yield DROP_OLD, (before, limit)
    return len(rows)
