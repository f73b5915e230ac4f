"""A person forgotten: whatever is theirs, or names them, in every table, some at a time.

A user's things are all that have the name as `user_name`, those of its end users too; an end user's
are those of the one `owner`. What lets someone in goes first, so that nothing new comes meanwhile.
"""

from collections import Counter
from collections.abc import Sequence

from turnkeeper.contracts import Forgotten
from turnkeeper.domain import TurnRef, split_owner
from turnkeeper.stores.sql.removal import (
    BLANK_KEYS,
    DELETE_KEPT,
    DELETE_SAID,
    OPEN_TURNS_OF_SESSION,
    UNLINK_SECTION,
)
from turnkeeper.stores.sql.rows import Transaction
from turnkeeper.stores.sql.usage import fold_sessions, forget_usage, record_open

DELETE_USER = "DELETE FROM users WHERE name = ? RETURNING name"
DELETE_KEYS = "DELETE FROM api_keys WHERE user_name = ? RETURNING id"
DELETE_LOGINS = "DELETE FROM logins WHERE user_name = ? RETURNING hash"
DELETE_TOKENS_OF_USER = "DELETE FROM session_tokens WHERE user_name = ? RETURNING hash"

# The newest first: they are who is likeliest to be asked for.
SOME_SESSIONS = """
DELETE FROM sessions WHERE id IN (
    SELECT id FROM sessions WHERE user_name = ? ORDER BY id DESC LIMIT ?
) RETURNING id, owner, revision, section
"""
SOME_SESSIONS_OF_END_USER = SOME_SESSIONS.replace("user_name = ?", "owner = ?")
SOME_DOCUMENTS = """
DELETE FROM documents WHERE id IN (
    SELECT id FROM documents WHERE user_name = ? ORDER BY id DESC LIMIT ?
) RETURNING id
"""
SOME_DOCUMENTS_OF_END_USER = SOME_DOCUMENTS.replace("user_name = ?", "owner = ?")
DELETE_TEXTS = """
DELETE FROM section_texts WHERE section_id IN (SELECT id FROM sections WHERE document_id = ?)
"""
DELETE_SECTIONS = "DELETE FROM sections WHERE document_id = ? RETURNING id"

# Of the last day only, so that reading all of them is soon done.
DELETE_KEYS_OF_REQUESTS = """
DELETE FROM idempotency_keys WHERE owner = ? OR substr(owner, 1, ?) = ? RETURNING key
"""
DELETE_SPENT = """
DELETE FROM spent WHERE kind IN ('user', 'end_user') AND (name = ? OR substr(name, 1, ?) = ?)
RETURNING name
"""
DELETE_SPENT_BY_KEY = "DELETE FROM spent WHERE kind = 'key' AND name = ? RETURNING name"
DELETE_QUOTAS = """
DELETE FROM session_quotas WHERE owner = ? OR substr(owner, 1, ?) = ? RETURNING owner
"""


def forget_credentials(user: str) -> Transaction[Forgotten]:
    removed = Counter[str]()
    for statement in (DELETE_USER, DELETE_KEYS, DELETE_LOGINS, DELETE_TOKENS_OF_USER):
        rows = yield statement, (user,)
        removed[_table(statement)] += len(rows)
        for (id_,) in rows if statement is DELETE_KEYS else ():
            yield DELETE_SPENT_BY_KEY, (id_,)
    return Forgotten(removed, (), more=True)


def forget_some(owner: str, limit: int) -> Transaction[Forgotten]:
    removed, open_turns = Counter[str](), list[TurnRef]()
    _, end_user = split_owner(owner)
    whole = end_user is None
    sessions = yield SOME_SESSIONS if whole else SOME_SESSIONS_OF_END_USER, (owner, limit)
    yield from record_open(sessions)
    for id_, *_, section in sessions:
        open_turns += yield from _forget_session(id_, section, removed)
    documents = yield SOME_DOCUMENTS if whole else SOME_DOCUMENTS_OF_END_USER, (owner, limit)
    for (id_,) in documents:
        yield DELETE_TEXTS, (id_,)
        removed["sections"] += len((yield DELETE_SECTIONS, (id_,)))
    removed["sessions"] += len(sessions)
    removed["documents"] += len(documents)
    more = limit in (len(sessions), len(documents))
    if not more:
        end_users = f"{owner}/"
        keys = yield DELETE_KEYS_OF_REQUESTS, (owner, len(end_users), end_users)
        removed["idempotency_keys"] += len(keys)
        for table, count in (yield from forget_usage(owner)).items():
            removed[table] += count
        for statement in (DELETE_SPENT, DELETE_QUOTAS):
            rows = yield statement, (owner, len(end_users), end_users)
            removed[_table(statement)] += len(rows)
    return Forgotten(removed, open_turns, more)


def _forget_session(
    id_: str, section: str | None, removed: Counter[str]
) -> Transaction[Sequence[TurnRef]]:
    """As `removal.remove_belongings_of`, counted."""
    open_turns = yield OPEN_TURNS_OF_SESSION, (id_,)
    yield from fold_sessions("= ?", id_)  # into what everybody has used together
    for statement in (*DELETE_SAID, *DELETE_KEPT):
        removed[_table(statement)] += len((yield f"{statement} RETURNING session_id", (id_,)))
    yield BLANK_KEYS, (id_,)
    if section is not None:
        yield UNLINK_SECTION, (section, id_)
    return [TurnRef(*row) for row in open_turns]


def _table(statement: str) -> str:
    return statement.split()[2]
