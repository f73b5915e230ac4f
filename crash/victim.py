"""The server, with a tripwire: `python -m crash.victim` dies where `CRASH_AT` says.

`CRASH_AT=end_turn:after-commit:17` is the 17th time that a transaction `end_turn` has been
committed. Everything else is the server as it is: the wire is around its driver and around the
connection that it writes through. Settings come from the environment.
"""

import asyncio
import logging
import os
import signal
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast

import uvloop

from turnkeeper import compose
from turnkeeper.config import read_config
from turnkeeper.contracts import Durability
from turnkeeper.observer import Commits
from turnkeeper.stores.sql.rows import Transaction
from turnkeeper.stores.sqlite import open_sqlite
from turnkeeper.stores.store import Driver

T = TypeVar("T")

TRANSACTIONS = ("begin_turn", "begin_version", "checkpoint", "end_turn", "settle_abandoned")
# `inside` is after any of its statements; `told` is when whoever asked for it goes on.
MOMENTS = ("before", "inside", "before-commit", "after-commit", "told")


class Tripwire:
    """Kills this process when it passes a point for the nth time."""

    def __init__(self, where: str) -> None:
        self._transaction, self._moment, count = where.split(":")
        self._left = int(count)

    def passing(self, transaction: str, moment: str) -> None:
        if (transaction, moment) != (self._transaction, self._moment):
            return
        self._left -= 1
        if self._left == 0:
            os.kill(os.getpid(), signal.SIGKILL)


class WatchedDriver:
    """A driver whose writing transactions pass the wire."""

    def __init__(self, driver: Driver, wire: Tripwire, begun: list[str]) -> None:
        self._driver = driver
        self._wire = wire
        self._begun = begun

    async def write(self, transaction: Callable[[], Transaction[T]], *, long: bool = False) -> T:
        name = ""

        def watched() -> Transaction[T]:
            nonlocal name
            steps = transaction()
            name = cast("Any", steps).__name__
            self._begun.append(name)
            return self._watch(name, steps)

        result = await self._driver.write(watched, long=long)
        self._wire.passing(name, "told")
        return result

    async def read(self, transaction: Callable[[], Transaction[T]]) -> T:
        return await self._driver.read(transaction)

    async def give_back_space(self) -> bool:
        return await self._driver.give_back_space()

    @property
    def failing(self) -> bool:
        return self._driver.failing

    @property
    def commits(self) -> Commits:
        return self._driver.commits

    async def close(self) -> None:
        await self._driver.close()

    def _watch(self, name: str, steps: Transaction[T]) -> Transaction[T]:
        self._wire.passing(name, "before")
        try:
            statement = next(steps)
            while True:
                rows = yield statement
                self._wire.passing(name, "inside")
                statement = steps.send(rows)
        except StopIteration as finished:
            return cast("T", finished.value)


class WatchedWriter:
    """A connection that passes the wire before and after it commits `begun` transactions."""

    def __init__(self, connection: sqlite3.Connection, wire: Tripwire, begun: list[str]) -> None:
        self._connection = connection
        self._wire = wire
        self._begun = begun

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)

    def execute(self, statement: str, *arguments: Any) -> sqlite3.Cursor:
        if statement != "COMMIT":
            return self._connection.execute(statement, *arguments)
        names = tuple(self._begun)
        self._begun.clear()
        self._pass_all(names, "before-commit")
        cursor = self._connection.execute(statement)
        self._pass_all(names, "after-commit")
        return cursor

    def _pass_all(self, names: tuple[str, ...], moment: str) -> None:
        for name in names:
            self._wire.passing(name, moment)


async def open_watched(url: str, durability: Durability) -> Driver:
    wire, begun = Tripwire(os.environ["CRASH_AT"]), list[str]()

    def wrap(writer: sqlite3.Connection) -> sqlite3.Connection:
        return cast("sqlite3.Connection", WatchedWriter(writer, wire, begun))

    driver = open_sqlite(Path(url.removeprefix("sqlite:///")), durability, wrap)
    return WatchedDriver(driver, wire, begun)


def main() -> None:
    logging.basicConfig(format="%(levelname)s %(name)s: %(message)s", level=logging.WARNING)

    def announce(address: str, _model: str) -> None:
        print(f"Turnkeeper is listening on {address}", flush=True)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(compose.serve(read_config({}), announce, opening=open_watched))


if __name__ == "__main__":
    main()
