"""Users, their logins and their API keys.

Whatever gives a user a way in locks the user's row first, and so does what takes it away: of a
login and the end of all logins, one comes after the other.
"""

from collections.abc import Sequence

from turnkeeper.domain import Key, Login, User
from turnkeeper.errors import KeyNotFound, UserExists, UserNotFound
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
SET_ADMIN = "UPDATE users SET role = 'admin' WHERE name = ?"
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
    yield END_LOGINS, (name,)


def set_disabled(name: str, disabled: bool) -> Transaction[None]:
    _expect_user(name, (yield SET_DISABLED, (int(disabled), name)))
    if disabled:
        yield END_LOGINS, (name,)


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

INSERT_KEY = """
INSERT INTO api_keys (id, user_name, name, hash, created_at) VALUES (?, ?, ?, ?, ?)
"""
LIST_KEYS = "SELECT id, user_name, name, created_at FROM api_keys"
LIST_KEYS_OF_USER = f"{LIST_KEYS} WHERE user_name = ?"
FIND_USER = "SELECT name FROM users WHERE name = ?"
REVOKE_KEY = "DELETE FROM api_keys WHERE id = ? RETURNING id, user_name, name, created_at"
FIND_KEY = f"""
SELECT {_USER} FROM api_keys k JOIN users u ON u.name = k.user_name
WHERE k.hash = ? AND u.disabled = 0
"""
# A key of this hash has one owner: whoever had it before gives it up.
DROP_OTHER_KEYS = """
DELETE FROM api_keys WHERE (user_name = ? AND name = ? AND hash <> ?)
    OR (hash = ? AND (user_name <> ? OR name <> ?))
"""
KEY_IS_THERE = "SELECT 1 FROM api_keys WHERE hash = ?"


def create_key(key: Key, hash_: str) -> Transaction[None]:
    _expect_user(key.user, (yield LOCK_USER, (key.user,)))
    yield INSERT_KEY, (key.id, key.user, key.name, hash_, key.created_at)


def list_keys(user: str | None) -> Transaction[Sequence[Key]]:
    if user is None:
        rows = yield LIST_KEYS, ()
    else:
        _expect_user(user, (yield FIND_USER, (user,)))
        rows = yield LIST_KEYS_OF_USER, (user,)
    keys = [Key(*row) for row in rows]
    return sorted(keys, key=lambda key: (key.user, key.created_at, key.id))


def revoke_key(id_: str) -> Transaction[Key]:
    rows = yield REVOKE_KEY, (id_,)
    if not rows:
        raise KeyNotFound(f"There is no key {id_}")
    return Key(*rows[0])


def find_key(hash_: str) -> Transaction[User | None]:
    rows = yield FIND_KEY, (hash_,)
    return _decode_user(rows[0]) if rows else None


def set_admin_key(key: Key, hash_: str | None) -> Transaction[None]:
    if hash_ is not None:
        yield INSERT_USER, (key.user, None, "admin", 0, key.created_at)
        yield SET_ADMIN, (key.user,)
    kept = hash_ or ""
    yield DROP_OTHER_KEYS, (key.user, key.name, kept, kept, key.user, key.name)
    if hash_ is not None and not (yield KEY_IS_THERE, (hash_,)):
        yield INSERT_KEY, (key.id, key.user, key.name, hash_, key.created_at)
