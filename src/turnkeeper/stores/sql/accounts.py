"""Users, their logins, their API keys, and tokens for one session.

Whatever gives a user a way in locks the user's row first, and so does what takes it away: of a
login and the end of all logins, one comes after the other.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from turnkeeper.contracts import FoundKey, FoundToken
from turnkeeper.domain import (
    ALL_SCOPES,
    NO_LIMITS,
    IdempotencyKey,
    Key,
    Limits,
    Login,
    Role,
    SessionToken,
    User,
)
from turnkeeper.errors import (
    KeyNotFound,
    SecretNotKept,
    SessionNotFound,
    UserExists,
    UserNotEmpty,
    UserNotFound,
)
from turnkeeper.stores.sql.idempotency import claim, keep_made
from turnkeeper.stores.sql.rows import Row, Transaction

# --- Users -------------------------------------------------------------------------------------

_USER = "u.name, u.role, u.disabled, u.password_hash, u.created_at"
LIST_USERS = f"SELECT {_USER} FROM users u"  # sorted in Python: databases differ in how
FIND_PASSWORD = f"""
SELECT {_USER} FROM users u
WHERE u.name = ? AND u.disabled = 0 AND u.password_hash IS NOT NULL
"""
INSERT_USER = """
INSERT INTO users (name, password_hash, role, disabled, created_at) VALUES (?, ?, ?, ?, ?)
ON CONFLICT (name) DO NOTHING RETURNING name
"""
LOCK_USER = "UPDATE users SET name = name WHERE name = ? RETURNING name"
CHANGE_HASH = "UPDATE users SET password_hash = ? WHERE name = ? RETURNING name"
SET_DISABLED = "UPDATE users SET disabled = ? WHERE name = ? RETURNING name"
SET_ROLE = "UPDATE users SET role = ? WHERE name = ? RETURNING name"
GET_USER = f"SELECT {_USER} FROM users u WHERE u.name = ?"
HAS_SESSIONS = "SELECT 1 FROM sessions WHERE user_name = ? LIMIT 1"
HAS_DOCUMENTS = "SELECT 1 FROM documents WHERE user_name = ? LIMIT 1"
DELETE_USER = "DELETE FROM users WHERE name = ?"
CAN_ANYONE_ENTER = """
SELECT 1 FROM users u WHERE u.disabled = 0 AND (u.password_hash IS NOT NULL
    OR EXISTS (SELECT 1 FROM api_keys k WHERE k.user_name = u.name)) LIMIT 1
"""


def create_user(user: User, password_hash: str | None) -> Transaction[None]:
    values = (user.name, password_hash, user.role, int(user.disabled), user.created_at)
    if not (yield INSERT_USER, values):
        raise UserExists(f"There is a user {user.name} already")


def list_users() -> Transaction[Sequence[User]]:
    rows = yield LIST_USERS, ()
    return sorted(map(_decode_user, rows), key=lambda user: user.name)


def find_password(name: str) -> Transaction[tuple[User, str] | None]:
    rows = yield FIND_PASSWORD, (name,)
    return (_decode_user(rows[0]), rows[0][3]) if rows else None


def set_password(name: str, password_hash: str | None) -> Transaction[None]:
    _expect_user(name, (yield CHANGE_HASH, (password_hash, name)))
    yield from _end_logins(name)


def set_disabled(name: str, disabled: bool) -> Transaction[None]:
    _expect_user(name, (yield SET_DISABLED, (int(disabled), name)))
    if disabled:
        yield from _end_logins(name)


def get_user(name: str) -> Transaction[User]:
    rows = yield GET_USER, (name,)
    _expect_user(name, rows)
    return _decode_user(rows[0])


def set_role(name: str, role: Role) -> Transaction[None]:
    _expect_user(name, (yield SET_ROLE, (role, name)))


def delete_user(name: str) -> Transaction[None]:
    _expect_user(name, (yield LOCK_USER, (name,)))
    if (yield HAS_SESSIONS, (name,)) or (yield HAS_DOCUMENTS, (name,)):
        raise UserNotEmpty(f"There are still sessions or documents of {name}: disable the user")
    for statement in (END_LOGINS, DELETE_KEYS, DELETE_TOKENS, DELETE_USER):
        yield statement, (name,)


def can_anyone_enter() -> Transaction[bool]:
    return bool((yield CAN_ANYONE_ENTER, ()))


def _expect_user(name: str, rows: Sequence[Row]) -> None:
    if not rows:
        raise UserNotFound(f"There is no user {name}")


def _decode_user(row: Row) -> User:
    name, role, disabled, password_hash, created_at = row
    return User(name, role, bool(disabled), password_hash is not None, created_at)


# --- Logins ------------------------------------------------------------------------------------

# Locks the user's row, and finds it only while the password is the one that was checked.
CONFIRM_HASH = """
UPDATE users SET password_hash = ? WHERE name = ? AND password_hash = ? AND disabled = 0
RETURNING name
"""
INSERT_LOGIN = "INSERT INTO logins (hash, user_name, created_at, seen_at) VALUES (?, ?, ?, ?)"
FIND_LOGIN = f"""
SELECT {_USER}, l.created_at, l.seen_at FROM logins l JOIN users u ON u.name = l.user_name
WHERE l.hash = ? AND u.disabled = 0
"""
TOUCH_LOGIN = "UPDATE logins SET seen_at = ? WHERE hash = ? AND seen_at < ?"
END_LOGIN = "DELETE FROM logins WHERE hash = ?"
END_LOGINS = "DELETE FROM logins WHERE user_name = ?"
DROP_LOGINS = "DELETE FROM logins WHERE created_at < ? OR seen_at < ? RETURNING hash"


def _end_logins(name: str) -> Transaction[None]:
    """With the tokens that may have been made in one."""
    yield END_LOGINS, (name,)
    yield DELETE_TOKENS_WITHOUT_KEY, (name,)


def begin_login(login: Login, password_hash: str, new_hash: str | None) -> Transaction[bool]:
    if not (yield CONFIRM_HASH, (new_hash or password_hash, login.user, password_hash)):
        return False
    yield INSERT_LOGIN, (login.hash, login.user, login.created_at, login.seen_at)
    return True


def find_login(hash_: str) -> Transaction[tuple[Login, User] | None]:
    rows = yield FIND_LOGIN, (hash_,)
    if not rows:
        return None
    user = _decode_user(rows[0][:5])
    return Login(hash_, user.name, *rows[0][5:]), user


def touch_login(hash_: str, now: int) -> Transaction[None]:
    yield TOUCH_LOGIN, (now, hash_, now)


def end_login(hash_: str) -> Transaction[None]:
    yield END_LOGIN, (hash_,)


def drop_logins(created_before: int, seen_before: int) -> Transaction[int]:
    return len((yield DROP_LOGINS, (created_before, seen_before)))


# --- Keys --------------------------------------------------------------------------------------

_KEY = "id, user_name, name, created_at, scopes, limits, expires_at, used_at, old_until"
_KEY_K = ", ".join(f"k.{column}" for column in _KEY.split(", "))
_KEY_COLUMNS = len(_KEY.split(", "))
INSERT_KEY = """
INSERT INTO api_keys (id, user_name, name, created_at, scopes, limits, expires_at, hash)
VALUES (?, ?, ?, ?, ?, ?, ?, ?)
"""
LIST_KEYS = f"SELECT {_KEY} FROM api_keys"
LIST_KEYS_OF_USER = f"{LIST_KEYS} WHERE user_name = ?"
GET_KEY = f"{LIST_KEYS} WHERE id = ?"
FIND_USER = "SELECT name FROM users WHERE name = ?"
ROTATE_KEY = f"""
UPDATE api_keys SET old_hash = CASE WHEN ? = 1 THEN hash END, old_until = ?, hash = ?
WHERE id = ? RETURNING {_KEY}
"""
REVOKE_KEY = f"DELETE FROM api_keys WHERE id = ? RETURNING {_KEY}"
DELETE_KEYS = "DELETE FROM api_keys WHERE user_name = ?"
FIND_KEY = f"""
SELECT {_KEY_K}, CASE WHEN k.hash = ? THEN 0 ELSE 1 END, {_USER}
FROM api_keys k JOIN users u ON u.name = k.user_name
WHERE (k.hash = ? OR k.old_hash = ?) AND u.disabled = 0
"""
KEEP_USE = "UPDATE api_keys SET used_at = ? WHERE id = ? AND COALESCE(used_at, 0) < ?"
# A key of this hash has one owner: whoever had it before gives it up.
DROP_OTHER_KEYS = """
DELETE FROM api_keys WHERE (user_name = ? AND name = ? AND hash <> ?)
    OR (hash = ? AND (user_name <> ? OR name <> ?))
"""
KEY_IS_THERE = "SELECT 1 FROM api_keys WHERE hash = ?"


def create_key(key: Key, hash_: str, request: IdempotencyKey | None = None) -> Transaction[None]:
    yield from _claim(request, key.created_at)
    _expect_user(key.user, (yield LOCK_USER, (key.user,)))
    yield INSERT_KEY, _key_values(key, hash_)
    yield from keep_made(request, key.id, None)


def _claim(request: IdempotencyKey | None, now: int) -> Transaction[None]:
    """As `idempotency.claim`, for what can be done once and never be told again."""
    made = yield from claim(request, now)
    if made is not None:
        raise SecretNotKept(made)


def list_keys(user: str | None) -> Transaction[Sequence[Key]]:
    if user is None:
        rows = yield LIST_KEYS, ()
    else:
        _expect_user(user, (yield FIND_USER, (user,)))
        rows = yield LIST_KEYS_OF_USER, (user,)
    keys = [_decode_key(row) for row in rows]
    return sorted(keys, key=lambda key: (key.user, key.created_at, key.id))


def get_key(id_: str) -> Transaction[Key]:
    return _expect_key(id_, (yield GET_KEY, (id_,)))


def rotate_key(
    id_: str, hash_: str, old_until: int | None, now: int, request: IdempotencyKey | None
) -> Transaction[Key]:
    yield from _claim(request, now)
    rows = yield ROTATE_KEY, (int(old_until is not None), old_until, hash_, id_)
    key = _expect_key(id_, rows)
    yield from keep_made(request, id_, None)
    return key


def revoke_key(id_: str) -> Transaction[Key]:
    return _expect_key(id_, (yield REVOKE_KEY, (id_,)))


def _expect_key(id_: str, rows: Sequence[Row]) -> Key:
    if not rows:
        raise KeyNotFound(f"There is no key {id_}")
    return _decode_key(rows[0])


def find_key(hash_: str) -> Transaction[FoundKey | None]:
    rows = yield FIND_KEY, (hash_, hash_, hash_)
    if not rows:
        return None
    key, is_old, user = rows[0][:_KEY_COLUMNS], rows[0][_KEY_COLUMNS], rows[0][_KEY_COLUMNS + 1 :]
    return FoundKey(_decode_key(key), _decode_user(user), bool(is_old))


def keep_uses(uses: Mapping[str, int]) -> Transaction[None]:
    for id_, at in uses.items():
        yield KEEP_USE, (at, id_, at)


def set_admin_key(key: Key, hash_: str | None) -> Transaction[None]:
    if hash_ is not None:
        yield INSERT_USER, (key.user, None, "admin", 0, key.created_at)
        yield SET_ROLE, ("admin", key.user)
    kept = hash_ or ""
    yield DROP_OTHER_KEYS, (key.user, key.name, kept, kept, key.user, key.name)
    if hash_ is not None and not (yield KEY_IS_THERE, (hash_,)):
        yield INSERT_KEY, _key_values(key, hash_)


_encode_json = msgspec.json.Encoder().encode
_decode_limits = msgspec.json.Decoder(Limits).decode


def _key_values(key: Key, hash_: str) -> tuple[Any, ...]:
    scopes = " ".join(sorted(key.scopes))
    limits = None if key.limits == NO_LIMITS else _encode_json(key.limits).decode()
    return (key.id, key.user, key.name, key.created_at, scopes, limits, key.expires_at, hash_)


def _decode_key(row: Row) -> Key:
    id_, user, name, created_at, scopes, limits, *times = row
    return Key(
        id_,
        user,
        name,
        created_at,
        ALL_SCOPES if scopes is None else ALL_SCOPES.intersection(scopes.split()),
        _decode_limits(limits) if limits else NO_LIMITS,
        *times,
    )


# --- Tokens for one session --------------------------------------------------------------------

# So that it is not deleted meanwhile, and the token left behind.
LOCK_SESSION = "UPDATE sessions SET version = version WHERE id = ? RETURNING id"
INSERT_TOKEN = """
INSERT INTO session_tokens (hash, session_id, user_name, key_id, expires_at) VALUES (?, ?, ?, ?, ?)
"""  # noqa: S105  a statement
FIND_TOKEN = f"""
SELECT t.session_id, t.user_name, t.key_id, t.expires_at, s.owner, {_KEY_K}
FROM session_tokens t JOIN sessions s ON s.id = t.session_id
    LEFT JOIN api_keys k ON k.id = t.key_id LEFT JOIN users u ON u.name = t.user_name
WHERE t.hash = ? AND (t.key_id IS NULL OR k.id IS NOT NULL) AND COALESCE(u.disabled, 0) = 0
"""
DELETE_TOKENS = "DELETE FROM session_tokens WHERE user_name = ?"
DELETE_TOKENS_WITHOUT_KEY = f"{DELETE_TOKENS} AND key_id IS NULL"
DROP_TOKENS = "DELETE FROM session_tokens WHERE expires_at < ? RETURNING hash"


def create_token(
    token: SessionToken, hash_: str, now: int, request: IdempotencyKey | None
) -> Transaction[None]:
    yield from _claim(request, now)
    if not (yield LOCK_SESSION, (token.session_id,)):
        raise SessionNotFound("Session not found")
    yield INSERT_TOKEN, (hash_, token.session_id, token.user, token.key, token.expires_at)
    yield from keep_made(request, token.session_id, token.session_id)


def find_token(hash_: str) -> Transaction[FoundToken | None]:
    rows = yield FIND_TOKEN, (hash_,)
    if not rows:
        return None
    token, owner, key = rows[0][:4], rows[0][4], rows[0][5:]
    return FoundToken(SessionToken(*token), owner, None if key[0] is None else _decode_key(key))


def drop_tokens(expired_before: int) -> Transaction[int]:
    return len((yield DROP_TOKENS, (expired_before,)))
