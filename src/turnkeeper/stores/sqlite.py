"""SQLite: one file, one writer, many transactions per commit.

Statements run on the event loop, where each takes microseconds; only COMMIT, which waits for
the disk, runs in a thread. While it does, what arrives is gathered for the next commit. (Measured
against whole batches in the thread: handing the interpreter's lock to and fro costs more than
the statements.) Two rules follow, since statements on the writer's connection see rows that are
not committed: no result leaves before COMMIT has returned, and all other reading goes through a
connection of its own.
"""

import asyncio
import fcntl
import logging
import os
import queue
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import IO, Any, Generic, TypeVar
from urllib.parse import quote

from turnkeeper.contracts import Durability
from turnkeeper.errors import ConfigError, StoreDamaged, StoreUnavailable
from turnkeeper.observer import Commits
from turnkeeper.stores import migrations
from turnkeeper.stores.outage import Outage
from turnkeeper.stores.sql.rows import Transaction

T = TypeVar("T")
log = logging.getLogger(__name__)

_BATCH = 64  # transactions in one commit at most, so that the event loop is not held up
# How often the event loop goes round between two commits. Idle, a round takes microseconds; under
# load it brings more writes, and a commit costs as much as several turns' statements.
_ROUNDS = 3
_BUSY_MS = 5000  # how long to wait for another program that writes to the file
# What the write-ahead log is cut back to when it was longer, as after a backup: SQLite leaves it at
# the greatest length that it ever had.
_LOG_LIMIT = 64 * 1024 * 1024
# Free pages that a file keeps: so many, or an eighth of it. What is deleted is mostly used again.
_SPARE_PAGES = 1024
_PAGES_GIVEN_BACK = 64  # in one transaction, for which other writers wait
_LOCK_ATTEMPTS = 10  # at the server's lock, a tenth of a second apart


class _Job(Generic[T]):
    """A transaction that waits for its commit, and whoever waits for it."""

    __slots__ = ("error", "future", "long", "result", "transaction")

    def __init__(
        self, transaction: Callable[[], Transaction[T]], long: bool, future: asyncio.Future[T]
    ) -> None:
        self.transaction = transaction
        self.long = long
        self.future = future
        self.result: T | None = None
        self.error: Exception | None = None

    def settle(self) -> None:
        """Tell the waiter, unless it has gone away."""
        if self.future.done():
            return
        if self.error is not None:
            self.future.set_exception(_translate(self.error))
        else:
            self.future.set_result(self.result)  # type: ignore[arg-type]


class SqliteDriver:
    """`sql.Driver` on an open file. Made by `open_sqlite`."""

    def __init__(self, path: Path, writer: sqlite3.Connection, lock: IO[str]) -> None:
        self._path = path
        self._writer = writer
        self._lock = lock
        self._loop = asyncio.get_running_loop()
        self._waiting: list[_Job[Any]] = []
        self._busy = False
        self._idle = asyncio.Event()
        self._idle.set()
        self._committer = _Worker("turnkeeper-commit")
        self._readers = ThreadPoolExecutor(2, "turnkeeper-read")
        self._reader = threading.local()
        self._open_readers: list[sqlite3.Connection] = []
        self.commits = Commits()
        self._writing = Outage("SQLite cannot be written")
        self._reading = Outage("SQLite cannot be read")

    @property
    def failing(self) -> bool:
        return self._writing.lasts

    async def write(self, transaction: Callable[[], Transaction[T]], *, long: bool = False) -> T:
        job = _Job(transaction, long, self._loop.create_future())
        self._waiting.append(job)
        if not self._busy:
            self._busy = True
            self._idle.clear()
            # After everything that is ready now, so that it shares the commit.
            self._loop.call_soon(self._next_batch)
        result: T = await job.future
        return result

    async def read(self, transaction: Callable[[], Transaction[T]]) -> T:
        try:
            result = await self._loop.run_in_executor(self._readers, self._read, transaction)
        except sqlite3.Error as error:
            self._reading.failed(error)
            raise _translate(error) from error
        self._reading.worked()
        return result

    async def give_back_space(self) -> bool:
        return await self.write(_give_back_space, long=True)

    async def close(self) -> None:
        await self._idle.wait()
        self._committer.stop()
        self._readers.shutdown()
        for reader in self._open_readers:
            reader.close()
        self._writer.close()
        self._lock.close()

    # --- Writing -------------------------------------------------------------------------------

    def _next_batch(self) -> None:
        batch, self._waiting = self._waiting[:_BATCH], self._waiting[_BATCH:]
        if not batch:
            self._busy = False
            self._idle.set()
            return
        if any(job.long for job in batch):
            self._committer.do(lambda: self._write_in_thread(batch))
        elif self._run(batch):
            self._committer.do(lambda: self._commit(batch))
        else:
            self._committer.do(lambda: self._run_alone(batch))

    def _write_in_thread(self, batch: list[_Job[Any]]) -> None:
        if self._run(batch):
            self._commit(batch)
        else:
            self._run_alone(batch)

    def _run(self, batch: list[_Job[Any]]) -> bool:
        """Run the batch in one open transaction; False if that is gone and all of it undone.

        First without savepoints, which would be a third of a turn's statements: most errors
        come before anything was written, and leave nothing to undo.
        """
        return self._attempt(batch, self._run_job) or self._attempt(batch, self._run_guarded)

    def _attempt(self, batch: list[_Job[Any]], run: Callable[[_Job[Any]], None]) -> bool:
        try:
            self._writer.execute("BEGIN IMMEDIATE")
            for job in batch:
                job.error = None
                run(job)
        except Exception:
            self._roll_back()
            return False
        return True

    def _run_job(self, job: _Job[Any]) -> None:
        """Raises what the job raised once it had written something."""
        changes = self._writer.total_changes
        try:
            job.result = drive(self._writer, job.transaction)
        except Exception as error:
            if self._writer.total_changes != changes or not self._writer.in_transaction:
                raise
            job.error = error

    def _run_guarded(self, job: _Job[Any]) -> None:
        """Undo what the job wrote if it fails.

        On some errors (a full disk, for one) SQLite undoes the whole transaction by itself: then
        there is no savepoint to go back to, and that error is raised.
        """
        self._writer.execute("SAVEPOINT job")
        try:
            job.result = drive(self._writer, job.transaction)
        except Exception as error:
            self._writer.execute("ROLLBACK TO job")
            job.error = error
        self._writer.execute("RELEASE job")

    def _commit(self, batch: list[_Job[Any]]) -> None:
        """In the thread: make the batch durable, then tell everyone."""
        begun = time.perf_counter()
        try:
            self._writer.execute("COMMIT")
        except sqlite3.Error:
            self._roll_back()
            self._run_alone(batch)
        else:
            self.commits.add(time.perf_counter() - begun, len(batch))
            self._loop.call_soon_threadsafe(self._settle, batch)

    def _run_alone(self, batch: list[_Job[Any]]) -> None:
        """In the thread: each in a transaction of its own, so that only the guilty fail.

        Here, and not on the loop, is where another program's writing is waited for, once for
        the whole batch.
        """
        self._writer.execute(f"PRAGMA busy_timeout = {_BUSY_MS}")
        for job in batch:
            job.error = None
            try:
                self._writer.execute("BEGIN IMMEDIATE")
                job.result = drive(self._writer, job.transaction)
                self._writer.execute("COMMIT")
            except Exception as error:
                self._roll_back()
                job.error = error
                if getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_BUSY:
                    self._writer.execute("PRAGMA busy_timeout = 0")
        self._writer.execute("PRAGMA busy_timeout = 0")
        self._loop.call_soon_threadsafe(self._settle, batch)

    def _roll_back(self) -> None:
        if self._writer.in_transaction:
            with suppress(sqlite3.Error):  # on a broken disk: then there is nothing to keep
                self._writer.execute("ROLLBACK")

    def _settle(self, batch: list[_Job[Any]]) -> None:
        for job in batch:
            if isinstance(job.error, sqlite3.Error):
                self._writing.failed(job.error)
            elif job.error is None and self._writing.lasts:
                self._writing.worked()
            job.settle()
        self._gather(_ROUNDS)

    def _gather(self, rounds: int) -> None:
        """Let whoever was waiting go on, and share the next commit with what that brings."""
        if rounds:
            self._loop.call_soon(self._gather, rounds - 1)
        else:
            self._next_batch()

    # --- Reading -------------------------------------------------------------------------------

    def _read(self, transaction: Callable[[], Transaction[T]]) -> T:
        connection = getattr(self._reader, "connection", None)
        if connection is None:
            connection = self._reader.connection = _connect(self._path, "rw")
            connection.execute(f"PRAGMA busy_timeout = {_BUSY_MS}")
            connection.execute("PRAGMA query_only = ON")
            self._open_readers.append(connection)
        connection.execute("BEGIN")
        try:
            return drive(connection, transaction)
        finally:
            if connection.in_transaction:  # on some errors SQLite has ended it by itself
                connection.execute("ROLLBACK")


class VisitingDriver:
    """`sql.Driver` for a command that writes briefly, beside a server or without one.

    One connection, one transaction after another, on the caller's thread. Made by `visit_sqlite`.
    """

    failing = False

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self.commits = Commits()

    async def write(self, transaction: Callable[[], Transaction[T]], *, long: bool = False) -> T:
        del long  # nothing else waits
        return self._run("BEGIN IMMEDIATE", transaction)

    async def read(self, transaction: Callable[[], Transaction[T]]) -> T:
        return self._run("BEGIN", transaction)

    def _run(self, begin: str, transaction: Callable[[], Transaction[T]]) -> T:
        try:
            self._connection.execute(begin)
            result = drive(self._connection, transaction)
            self._connection.execute("COMMIT")
        except sqlite3.Error as error:
            raise StoreUnavailable(f"The database cannot be used just now: {error}") from error
        finally:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
        return result

    async def give_back_space(self) -> bool:
        return False  # the server's business

    async def close(self) -> None:
        self._connection.close()


def _give_back_space() -> Transaction[bool]:
    """Cut free pages off the file's end, having moved what lies there to the front.

    In a file that was not made for this (`_migrate`) nothing happens, and there is no more to do.
    """
    [[pages]] = yield "PRAGMA page_count", ()
    [[free]] = yield "PRAGMA freelist_count", ()
    spare = max(_SPARE_PAGES, pages // 8)
    if free <= spare:
        return False
    for _ in range(min(_PAGES_GIVEN_BACK, free - spare)):
        yield "PRAGMA incremental_vacuum(1)", ()  # of more, sqlite3 would do the first only
    [[left]] = yield "PRAGMA freelist_count", ()
    return bool(spare < left < free)


class _Worker:
    """A thread that does one thing after another; half the cost of an executor's submit."""

    def __init__(self, name: str) -> None:
        self._todo: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()
        self.do = self._todo.put

    def _work(self) -> None:
        while (todo := self._todo.get()) is not None:
            todo()

    def stop(self) -> None:
        self._todo.put(None)
        self._thread.join()


def drive(connection: sqlite3.Connection, transaction: Callable[[], Transaction[T]]) -> T:
    """Feed a transaction the rows it asks for until it returns."""
    steps = transaction()
    execute = connection.execute
    try:
        sql, arguments = next(steps)
        while True:
            cursor = execute(sql, arguments)
            sql, arguments = steps.send(cursor.fetchall() if cursor.description else ())
    except StopIteration as finished:
        return finished.value  # type: ignore[no-any-return]


def _translate(error: Exception) -> Exception:
    """What SQLite says of its file, as an error the caller may see; anything else is a bug."""
    if isinstance(error, sqlite3.OperationalError | sqlite3.DatabaseError) and not isinstance(
        error, sqlite3.IntegrityError | sqlite3.ProgrammingError
    ):
        kind = StoreDamaged if _is_damage(error) else StoreUnavailable
        unavailable = kind("The database cannot be used just now")
        unavailable.__cause__ = error
        return unavailable
    return error


def _is_damage(error: sqlite3.Error) -> bool:
    return getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_CORRUPT


# --- Opening -----------------------------------------------------------------------------------


def open_sqlite(
    path: Path,
    durability: Durability = "power",
    wrap: Callable[[sqlite3.Connection], sqlite3.Connection] = lambda writer: writer,
) -> SqliteDriver:
    """Open, lock and migrate the database at `path`; creates it if there is none.

    The driver writes through what `wrap` makes of its connection.

    Raises:
        ConfigError: another server has it, it is not ours, it is newer than this program, or it
            cannot be opened or written.
    """
    lock = _lock(path)
    try:
        _make_private(path)
        writer = _connect(path)
        try:
            writer.execute(f"PRAGMA busy_timeout = {_BUSY_MS}")
            _migrate(writer, path)
            _check_writable(writer)
            writer.execute("PRAGMA busy_timeout = 0")
            writer.execute(f"PRAGMA journal_size_limit = {_LOG_LIMIT}")
            if durability == "process":  # the log is written at each commit, but not waited for
                writer.execute("PRAGMA synchronous = NORMAL")
        except BaseException:
            writer.close()
            raise
    except sqlite3.Error as error:
        lock.close()
        raise _unusable(path, error) from error
    except BaseException:
        lock.close()
        raise
    return SqliteDriver(path, wrap(writer), lock)


def _make_private(path: Path) -> None:
    """Make a file that only its owner can read; one that is there stays as it is.

    SQLite gives the files beside it the same permissions.
    """
    with suppress(OSError):  # SQLite says better what is wrong
        os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))


def _check_writable(connection: sqlite3.Connection) -> None:
    """Raises sqlite3.Error if it is not: SQLite opens what it may only read without a word."""
    connection.execute("BEGIN IMMEDIATE")
    connection.execute("ROLLBACK")


def _unusable(path: Path, error: sqlite3.Error) -> ConfigError:
    if _is_damage(error):
        advice = "go back to a backup, or have sqlite3 recover what it can"
        return ConfigError(f"The database {path} is damaged ({error}): {advice}")
    return ConfigError(f"The database {path} cannot be used: {error}")


def inspect_sqlite(path: Path) -> int | None:
    """The number of the newest migration in the database at `path`, 0 before the first.

    Only looks: locks, makes and changes nothing. None if there is no database yet.

    Raises:
        ConfigError: it is not ours, it is newer than this program, or it cannot be read.
    """
    if not (path.parent.is_dir() and os.access(path.parent, os.W_OK)):
        raise ConfigError(f"The database {path} cannot be used: its folder cannot be written")
    if not path.exists():
        return None
    if not os.access(path, os.R_OK | os.W_OK):
        raise ConfigError(f"The database {path} cannot be used: it cannot be written")
    # Without a log beside it nobody uses the file, and SQLite need not be kept from making one.
    in_use = path.with_name(path.name + "-wal").exists()
    uri = f"{path.absolute().as_uri()}?{'mode=ro' if in_use else 'immutable=1'}"
    try:
        with closing(sqlite3.connect(uri, uri=True)) as connection:
            if not _check_tables(connection, path):
                return 0
            applied: int = connection.execute(migrations.APPLIED).fetchone()[0] or 0
    except sqlite3.Error as error:
        raise _unusable(path, error) from error
    migrations.pending_migrations(applied)
    return applied


def _lock(path: Path) -> IO[str]:
    """Held for as long as the file stays open, and let go by the kernel if we are killed.

    A command may keep servers away while it deletes, or look whether there is one: wait a moment.
    """
    lock = _open_lock(path)
    for _ in range(_LOCK_ATTEMPTS):
        if _try_lock(lock, fcntl.LOCK_EX):
            lock.truncate(0)
            return lock
        time.sleep(0.1)
    lock.close()
    raise ConfigError(f"Another Turnkeeper is serving the database {path} already, or rewriting it")


def _open_lock(path: Path) -> IO[str]:
    """The lock's file, not held yet; what its holder wrote there stays."""
    try:
        return _lock_file(path).open("a")
    except OSError as error:
        raise ConfigError(f"The database {path} cannot be used: {error.strerror}") from error


def _lock_file(path: Path) -> Path:
    return path.with_name(path.name + ".lock")


def _try_lock(lock: IO[str], kind: int) -> bool:
    try:
        fcntl.flock(lock, kind | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def write_address(path: Path, address: str) -> None:
    """Note in the lock file where the server of the database at `path` listens: its holder's act.

    A file that cannot be written stops nobody from serving; nobody will find the server by it.
    """
    try:
        _lock_file(path).write_text(address, "utf-8")
    except OSError as error:
        log.warning("The server's address was not noted beside %s: %s", path, error)


def read_address(path: Path) -> str | None:
    """Where the server of the database at `path` listens; None if nothing serves it.

    Empty while a server starts. Only a lock that is held counts: a server that was killed leaves
    its address behind, where another may listen since.
    """
    try:
        with _lock_file(path).open(encoding="utf-8") as lock:
            return None if _try_lock(lock, fcntl.LOCK_SH) else lock.read()
    except (OSError, UnicodeDecodeError):
        return None


def _connect(path: Path, mode: str = "rwc") -> sqlite3.Connection:
    """A connection to the file; only with mode `rwc` is one made that is not there."""
    connection = sqlite3.connect(
        f"file:{quote(str(path))}?mode={mode}",
        uri=True,
        isolation_level=None,
        check_same_thread=False,
        cached_statements=256,
    )
    connection.execute("PRAGMA synchronous = FULL")
    return connection


def _check_tables(connection: sqlite3.Connection, path: Path) -> bool:
    """Whether our tables are there; ConfigError if only others are."""
    tables = _tables(connection)
    if tables and "turnkeeper_migrations" not in tables:
        raise ConfigError(f"The database {path} is not Turnkeeper's: it holds other tables")
    return bool(tables)


def _migrate(connection: sqlite3.Connection, path: Path) -> None:
    _check_tables(connection, path)
    connection.execute("PRAGMA auto_vacuum = INCREMENTAL")  # heard in an empty file alone
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute(migrations.CREATE_TABLE)
    applied = connection.execute(migrations.APPLIED).fetchone()[0] or 0
    for number, name, script in migrations.pending_migrations(applied):
        connection.execute("BEGIN IMMEDIATE")
        for statement in _statements(script.replace("-- clustered", "WITHOUT ROWID")):
            connection.execute(statement)
        connection.execute(migrations.RECORD, (number, name))
        connection.execute("COMMIT")


def _statements(script: str) -> list[str]:
    """A script's statements one by one: `executescript` would commit between them."""
    statements, start = [], 0
    for end, character in enumerate(script, 1):
        if character == ";" and sqlite3.complete_statement(script[start:end]):
            statements.append(script[start:end])
            start = end
    return statements


# --- Visiting: commands that take no lock ------------------------------------------------------


def visit_sqlite(path: Path) -> VisitingDriver:
    """Open the database at `path` for a command; a server may be serving it meanwhile.

    Raises:
        ConfigError: as for `visiting_connection`, or it is older than this program.
    """
    connection = visiting_connection(path)
    try:
        migrations.check_current(check_ours(connection, path))
    except BaseException:
        connection.close()
        raise
    return VisitingDriver(connection)


def visiting_connection(path: Path) -> sqlite3.Connection:
    """A connection to a database of ours that is there; changes nothing by being opened.

    Raises:
        ConfigError: it is not there, it is not ours, it is newer than this program, or it cannot
            be opened.
    """
    if not path.exists():
        raise ConfigError(f"There is no database {path}")
    try:
        connection = _connect(path, "rw")
        try:
            connection.execute(f"PRAGMA busy_timeout = {_BUSY_MS}")
            check_ours(connection, path)
        except BaseException:
            connection.close()
            raise
    except sqlite3.Error as error:
        raise _unusable(path, error) from error
    return connection


def check_ours(connection: sqlite3.Connection, path: Path) -> int:
    """The number of the newest migration that the database has had.

    Raises:
        ConfigError: it has had none of ours, or more than this program knows.
    """
    tables = _tables(connection)
    if "turnkeeper_migrations" not in tables:
        what = "it holds other tables" if tables else "it is empty"
        raise ConfigError(f"The database {path} is not Turnkeeper's: {what}")
    applied: int = connection.execute(migrations.APPLIED).fetchone()[0] or 0
    if not applied:
        raise ConfigError(f"The database {path} is not complete: start a server on it once")
    migrations.pending_migrations(applied)
    return applied


def _tables(connection: sqlite3.Connection) -> set[str]:
    return {row[0] for row in connection.execute("SELECT name FROM sqlite_master")}


@contextmanager
def without_server(path: Path) -> Iterator[bool]:
    """Whether no server has the database; if so, none can start until this is left."""
    with _open_lock(path) as lock:
        yield _try_lock(lock, fcntl.LOCK_SH)
