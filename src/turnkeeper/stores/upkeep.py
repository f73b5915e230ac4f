"""A SQLite file looked after while a server may be using it: copied whole, and given space back.

Takes no lock, migrates nothing, settles nothing. For PostgreSQL there are better tools.
"""

import os
import sqlite3
import tempfile
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import msgspec

from turnkeeper.errors import ConfigError, StoreUnavailable
from turnkeeper.stores.sql.sessions import count_kept
from turnkeeper.stores.sqlite import check_ours, drive, visiting_connection, without_server

Progress = Callable[[int, int], None]  # gets the bytes copied so far, and all there are

_COMPANIONS = (".lock", "-wal", "-shm", "-journal")  # files that a database has beside it
_PAGES_AT_ONCE = 1024
# A server waits five seconds for others who write. To rewrite so much takes well under one on a
# usual disk, and not five on a slow one.
LIVE_LIMIT = 128 * 1024 * 1024


# --- Backup ------------------------------------------------------------------------------------


class Backup(msgspec.Struct, frozen=True):
    """A copy that was made and checked; `size` in bytes."""

    size: int
    sessions: int
    turns: int


def back_up(source: Path, target: Path, *, force: bool, progress: Progress) -> Backup:
    """Copy the database as it stands at this moment to `target`, one file that needs no other.

    `target` appears only when the copy is whole, checked and on the disk. A database of an older
    program is copied too, so that there is a way back from an upgrade.

    Raises:
        ConfigError: there is no such database of ours, or `target` cannot or must not be written.
        StoreUnavailable: the copy failed, or was found damaged; `target` is as it was.
    """
    with closing(visiting_connection(source)) as connection:
        try:
            _check_target(source, target, force)
            part = _part_of(target)
        except OSError as error:
            raise ConfigError(f"{target} cannot be written: {error.strerror}") from error
        try:
            backup = _copy(connection, part, progress)
            _put(part, target, force)
        except sqlite3.Error as error:
            raise StoreUnavailable(f"The backup was not made: {error}") from error
        except OSError as error:
            raise StoreUnavailable(f"The backup was not made: {error.strerror}") from error
        finally:
            for suffix in ("", "-journal", "-wal", "-shm"):
                part.with_name(part.name + suffix).unlink(missing_ok=True)
    return backup


def _check_target(source: Path, target: Path, force: bool) -> None:
    beside = source.resolve()
    if target.resolve() in {beside.with_name(beside.name + suffix) for suffix in _COMPANIONS}:
        raise ConfigError(f"{target} belongs to the database itself: name another file")
    if target.exists():
        if target.is_dir():
            raise ConfigError(f"{target} is a folder: name a file in it")
        if target.samefile(source):
            raise ConfigError(f"{target} is the database itself: name another file")
        if not force:
            raise ConfigError(f"{target} exists already: name another file, or say --force")
    for suffix in ("-wal", "-journal"):
        if target.with_name(target.name + suffix).exists():
            # SQLite would take what is in it for the newest part of the copy.
            raise ConfigError(
                f"{target}{suffix} exists: a database of that name is in use, name another file"
            )


def _part_of(target: Path) -> Path:
    """An empty file of ours beside `target`, so that it can become `target` in one step."""
    handle, name = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".part", dir=target.parent)
    os.close(handle)
    return Path(name)


def _copy(source: sqlite3.Connection, part: Path, progress: Progress) -> Backup:
    # One read transaction around all of it: else every commit of the server would make the copy
    # start again from the beginning, and on a busy server it would never end.
    source.execute("BEGIN")
    [page_size] = source.execute("PRAGMA page_size").fetchone()
    source.execute("SELECT COUNT(*) FROM sqlite_master").fetchone()

    def report(_: int, remaining: int, pages: int) -> None:
        progress((pages - remaining) * page_size, pages * page_size)

    with closing(sqlite3.connect(part, isolation_level=None)) as copy:
        copy.execute("PRAGMA synchronous = OFF")  # it is flushed once, at the end
        source.backup(copy, pages=_PAGES_AT_ONCE, progress=report)
        source.execute("ROLLBACK")
        copy.execute("PRAGMA journal_mode = DELETE")  # one file; a server turns WAL on again
        _check_copy(copy, part)
        sessions, turns = drive(copy, count_kept)
    _flush(part)
    return Backup(part.stat().st_size, sessions, turns)


def _check_copy(copy: sqlite3.Connection, part: Path) -> None:
    [found] = copy.execute("PRAGMA integrity_check(1)").fetchone()
    if found != "ok":
        fault = found.splitlines()[-1]
        raise StoreUnavailable(f"The backup was not made: the database is damaged ({fault})")
    check_ours(copy, part)


def _put(part: Path, target: Path, force: bool) -> None:
    """Give the finished copy its name, durably."""
    if force:
        part.replace(target)
    else:
        try:
            os.link(part, target)  # unlike a rename, never takes a name that someone else took
        except FileExistsError as error:
            raise ConfigError(f"{target} exists already: name another file") from error
        except OSError:  # a file system without links
            _check_free(target)
            part.rename(target)
    _flush(target.parent)


def _check_free(target: Path) -> None:
    if target.exists():
        raise ConfigError(f"{target} exists already: name another file")


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


# --- Vacuum ------------------------------------------------------------------------------------


def vacuum(path: Path, limit: int = LIVE_LIMIT) -> tuple[int, int]:
    """Rewrite the database without its free space; its bytes on disk before and after.

    Nothing is lost if this is killed: the old pages count until the new ones are all there.
    While it works nobody else can write, and no server can start.

    Raises:
        ConfigError: there is no such database of ours.
        StoreUnavailable: a server runs, and more than `limit` bytes would have to be rewritten;
            or it failed, and everything is as it was.
    """
    with closing(visiting_connection(path)) as connection, without_server(path) as alone:
        before = _size_on_disk(path)
        try:
            if not alone and _live_bytes(connection) > limit:
                raise StoreUnavailable(
                    f"The database holds more than {limit >> 20} MiB, and rewriting it would keep"
                    " the server from writing for too long: stop the server first"
                )
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            # From then on the server gives space back by itself, also in a file of an old program.
            connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
            connection.execute("VACUUM")
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        except sqlite3.Error as error:
            raise StoreUnavailable(f"The database was not rewritten: {error}") from error
        return before, _size_on_disk(path)


def _live_bytes(connection: sqlite3.Connection) -> int:
    pages, free, size = (
        connection.execute(f"PRAGMA {what}").fetchone()[0]
        for what in ("page_count", "freelist_count", "page_size")
    )
    live: int = (pages - free) * size
    return live


def _size_on_disk(path: Path) -> int:
    files = (path, path.with_name(path.name + "-wal"))
    return sum(file.stat().st_size for file in files if file.exists())
