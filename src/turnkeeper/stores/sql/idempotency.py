"""Requests that are done once, however often they are sent: by the key their caller gave them."""

from collections.abc import Callable
from typing import TypeVar

from turnkeeper.domain import IdempotencyKey
from turnkeeper.errors import KeyReused
from turnkeeper.stores.sql.rows import Contended, Transaction

T = TypeVar("T")

FIND_MADE = "SELECT request, made FROM idempotency_keys WHERE owner = ? AND key = ?"
# Two that race do the same work; the one that comes second here undoes it.
KEEP_MADE = """
INSERT INTO idempotency_keys (owner, key, request, made, created_at) VALUES (?, ?, ?, ?, ?)
ON CONFLICT (owner, key) DO NOTHING RETURNING made
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
) -> Transaction[T]:
    """What `work` makes, or under a key that was used, `again` of what was made then.

    `name` is what the made thing is remembered by.
    """
    made = yield from find_made(key)
    if made is not None:
        return (yield from again(made))
    thing = yield from work
    yield from keep_made(key, name(thing), now)
    return thing


def find_made(key: IdempotencyKey | None) -> Transaction[str | None]:
    """What was made under a key; None if nothing yet.

    Raises:
        KeyReused: another request was made under it.
    """
    if key is None:
        return None
    rows = yield FIND_MADE, (key.owner, key.key)
    if not rows:
        return None
    request, made = rows[0]
    if request != key.request:
        raise KeyReused("This Idempotency-Key was used for another request")
    return str(made)


def keep_made(key: IdempotencyKey | None, made: str, now: int) -> Transaction[None]:
    """Remember what was made under a key that `find_made` did not know."""
    if key is None:
        return
    rows = yield KEEP_MADE, (key.owner, key.key, key.request, made, now)
    if not rows:
        raise Contended


def drop_keys(before: int, limit: int) -> Transaction[int]:
    rows = yield DROP_OLD, (before, limit)
    return len(rows)
