"""PostgreSQL through asyncpg: each transaction on a pooled connection of its own.

In its simplest form: one server at a time, which an advisory lock sees to.
"""

import asyncio
import functools
import itertools
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import asyncpg

from turnkeeper.contracts import Durability
from turnkeeper.errors import ConfigError, StoreUnavailable
from turnkeeper.observer import Commits
from turnkeeper.stores import migrations
from turnkeeper.stores.outage import Outage
from turnkeeper.stores.sql.rows import Contended, Rows, Transaction

T = TypeVar("T")

_LOCK = 0x7475726E  # "turn"; the advisory lock that the one server of a database holds
_ATTEMPTS = 10  # at a transaction that conflicts with others

# Bytes of our tables with their indexes.
_SIZE = """
SELECT SUM(pg_total_relation_size(name::regclass))::bigint FROM unnest($1::text[]) AS name
"""

# With "power" the database server's own setting stands, which waits for the disk.
_DURABILITY: dict[Durability, dict[str, str]] = {
    "power": {},
    "process": {"synchronous_commit": "off"},
}

_CONFLICTS = (asyncpg.SerializationError, asyncpg.DeadlockDetectedError, Contended)
_UNAVAILABLE = (
    asyncpg.PostgresConnectionError,
    asyncpg.InterfaceError,
    asyncpg.OperatorInterventionError,
    asyncpg.InsufficientResourcesError,
    asyncpg.ReadOnlySQLTransactionError,
    asyncpg.PostgresSystemError,
    OSError,
    TimeoutError,
)


class PostgresDriver:
    """`sql.Driver` on an open pool. Made by `open_postgres` and `visit_postgres`."""

    def __init__(self, pool: asyncpg.Pool, lock: asyncpg.Connection | None) -> None:
        self._pool = pool
        self._lock = lock  # a connection, which holds the lock while it lives; a visitor has none
        self.commits = Commits()
        self._writing = Outage("PostgreSQL cannot be written")
        self._reading = Outage("PostgreSQL cannot be read")

    @property
    def failing(self) -> bool:
        return self._writing.lasts

    async def write(self, transaction: Callable[[], Transaction[T]], *, long: bool = False) -> T:
        del long  # a connection of its own holds up nobody
        for attempt in itertools.count(1):
            try:
                return await self._run(transaction, "read_committed", readonly=False)
            except _CONFLICTS as error:
                if attempt == _ATTEMPTS:
                    raise StoreUnavailable("The database is too busy just now") from error
        raise AssertionError

    async def read(self, transaction: Callable[[], Transaction[T]]) -> T:
        return await self._run(transaction, "repeatable_read", readonly=True)

    async def _run(
        self, transaction: Callable[[], Transaction[T]], isolation: Any, *, readonly: bool
    ) -> T:
        outage = self._reading if readonly else self._writing
        begun = time.perf_counter()
        try:
            async with (
                self._pool.acquire() as connection,
                connection.transaction(isolation=isolation, readonly=readonly),
            ):
                result = await _drive(connection.fetch, transaction)
        except _UNAVAILABLE as error:
            outage.failed(error)
            raise StoreUnavailable("The database cannot be used just now") from error
        outage.worked()
        if not readonly:
            self.commits.add(time.perf_counter() - begun, 1)
        return result

    async def give_back_space(self) -> bool:
        return False  # autovacuum sees to it

    async def close(self) -> None:
        await self._pool.close()
        if self._lock is not None:
            await self._lock.close()


async def _drive(
    fetch: Callable[..., Awaitable[Rows]], transaction: Callable[[], Transaction[T]]
) -> T:
    """Feed a transaction the rows it asks for until it returns."""
    steps = transaction()
    try:
        sql, arguments = next(steps)
        while True:
            sql, arguments = steps.send(await fetch(_numbered(sql), *arguments))
    except StopIteration as finished:
        return finished.value  # type: ignore[no-any-return]


@functools.cache
def _numbered(sql: str) -> str:
    """The statement with `$1, $2, …` for its question marks."""
    numbers = itertools.count(1)
    return re.sub(r"\?", lambda _: f"${next(numbers)}", sql)


# --- Opening -----------------------------------------------------------------------------------


async def open_postgres(url: str, durability: Durability = "power") -> PostgresDriver:
    """Connect, lock and migrate the database at `url` (`postgresql://…`).

    Raises:
        ConfigError: it cannot be reached, another server has it, it is not ours, or it is newer
            than this program.
    """
    lock = await _connect(url)
    try:
        await _take_lock(lock)
        await _migrate(lock)
        pool = await asyncpg.create_pool(
            url, min_size=1, max_size=10, server_settings=_DURABILITY[durability]
        )
    except asyncpg.PostgresError as error:
        await lock.close()
        raise ConfigError(f"The PostgreSQL database cannot be used: {error}") from error
    except BaseException:
        await lock.close()
        raise
    return PostgresDriver(pool, lock)


async def inspect_postgres(url: str) -> int | None:
    """The number of the newest migration in the database at `url`; None if it has none of ours.

    Only looks: locks, makes and changes nothing.

    Raises:
        ConfigError: it cannot be reached, it is not ours, or it is newer than this program.
    """
    connection = await _connect(url)
    try:
        async with connection.transaction(readonly=True):
            if not await _check_tables(connection):
                return None
            applied: int = await connection.fetchval(migrations.APPLIED) or 0
    except asyncpg.PostgresError as error:
        raise ConfigError(f"The PostgreSQL database cannot be used: {error}") from error
    finally:
        await connection.close()
    migrations.pending_migrations(applied)
    return applied


async def _connect(url: str) -> asyncpg.Connection:
    try:
        return await asyncpg.connect(url, timeout=10)
    except (
        OSError,
        TimeoutError,
        ValueError,
        asyncpg.PostgresError,
        asyncpg.InterfaceError,
    ) as error:
        raise ConfigError(f"The PostgreSQL database cannot be reached: {error}") from error


async def _take_lock(connection: asyncpg.Connection) -> None:
    """A server that was killed may hold the lock until PostgreSQL notices: wait a moment."""
    for _ in range(20):
        if await connection.fetchval("SELECT pg_try_advisory_lock($1)", _LOCK):
            return
        await asyncio.sleep(0.1)
    raise ConfigError("Another Turnkeeper is serving this PostgreSQL database already")


async def _check_tables(connection: asyncpg.Connection) -> bool:
    """Whether our tables are there; ConfigError if others are, of names that ours have."""
    tables = await _tables(connection)
    if tables & {"sessions", "turns", "items"} and "turnkeeper_migrations" not in tables:
        raise ConfigError(
            "The PostgreSQL database is not Turnkeeper's: it holds tables of these names"
        )
    return "turnkeeper_migrations" in tables


async def _migrate(connection: asyncpg.Connection) -> None:
    await _check_tables(connection)
    await connection.execute(migrations.CREATE_TABLE)
    applied = await connection.fetchval(migrations.APPLIED) or 0
    for number, name, script in migrations.pending_migrations(applied):
        async with connection.transaction():
            await connection.execute(script)
            await connection.execute(_numbered(migrations.RECORD), number, name)


async def _tables(connection: asyncpg.Connection) -> set[str]:
    rows = await connection.fetch(
        "SELECT table_name FROM information_schema.tables WHERE table_schema = current_schema()"
    )
    return {row[0] for row in rows}


# --- Visiting: commands that take no lock ------------------------------------------------------


async def visit_postgres(url: str) -> PostgresDriver:
    """Connect for a command; a server may be serving the database meanwhile.

    Raises:
        ConfigError: it cannot be reached, it is not ours, or it is older or newer than this
            program.
    """
    async with _visiting_connection(url):
        pool = await asyncpg.create_pool(url, min_size=1, max_size=1)
    return PostgresDriver(pool, None)


@asynccontextmanager
async def _visiting_connection(url: str) -> AsyncIterator[asyncpg.Connection]:
    connection = await _connect(url)
    try:
        if "turnkeeper_migrations" not in await _tables(connection):
            raise ConfigError("The PostgreSQL database is not Turnkeeper's: no server has used it")
        migrations.check_current(await connection.fetchval(migrations.APPLIED) or 0)
        yield connection
    except asyncpg.PostgresError as error:
        raise ConfigError(f"The PostgreSQL database cannot be used: {error}") from error
    finally:
        await connection.close()


@asynccontextmanager
async def without_server(url: str) -> AsyncIterator[bool]:
    """Whether no server has the database; if so, none can start until this is left."""
    async with _visiting_connection(url) as connection:
        yield await connection.fetchval("SELECT pg_try_advisory_lock_shared($1)", _LOCK)


async def vacuum_postgres(url: str) -> tuple[int, int]:
    """Make the space of deleted rows usable again; bytes of our tables before and after."""
    async with _visiting_connection(url) as connection:
        tables = migrations.table_names()
        before = await connection.fetchval(_SIZE, tables)
        await connection.execute(f"VACUUM {', '.join(tables)}")
        return before, await connection.fetchval(_SIZE, tables)
