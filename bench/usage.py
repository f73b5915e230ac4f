"""What was used in a million turns, (l): how long `GET /api/usage` takes to tell it.

The turns are of a year, of users and models of whom some are much busier than others. They are
written as entries and added up by the server's own statements, so that the sums are what it would
have made of them; then a server is started on that database and asked.
"""

import asyncio
import json
import random
import statistics
import time
from collections.abc import Iterator, Sequence
from functools import partial
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

from bench.measures import OURS, Run
from bench.report import Section, at_most, number
from turnkeeper.domain import Blueprint, Revision
from turnkeeper.stores.sql import usage
from turnkeeper.stores.sql.rows import Transaction
from turnkeeper.stores.sqlite import open_sqlite
from turnkeeper.stores.store import SqlStore

TURNS = 1_000_000
QUICK_TURNS = 20_000
USERS, MODELS, DAYS = 50, 4, 365
DEPLOYMENTS = ("default", "tutor")
DAY_MS = 86_400_000
FIRST = 1_735_689_600_000  # the first of January 2025
BATCH = 1000
TIMES = 15  # each question is asked
BUDGET = 50  # ms

YEAR = "from=2025-01-01&to=2025-12-31"
QUESTIONS = {
    "by day": f"by=day&{YEAR}",
    "by model": f"by=model&{YEAR}",
    "by deployment": f"by=deployment&{YEAR}",
    "by user": f"by=user&{YEAR}",
    "by user, no whole months at its ends": "by=user&from=2025-01-02&to=2025-12-30",
    "by day, of one user": f"by=day&user=user0&{YEAR}",
}


def usage_of_a_million(run: Run) -> Section:
    total = QUICK_TURNS if run.quick else TURNS
    with run.place.model_server(deltas=1) as model:
        run.place.say(f"  {total:,} turns are written")

        def fill(folder: Path) -> None:
            asyncio.run(write_turns(folder / "bench.db", total))

        with run.place.server(OURS, model.url, prepare=fill) as server:
            found = {name: ask(server.port, query) for name, query in QUESTIONS.items()}
    slowest = max(taken for taken, _ in found.values())
    return Section(
        "Usage of a million turns",
        f"`GET /api/usage` over a year of {total:,} turns of {USERS} users with {MODELS} models, "
        f"medians of {TIMES} requests.",
        ["question", "ms", "lines", "turns"],
        [
            [name, number(taken), str(len(answer["usage"])), f"{counted(answer):,}"]
            for name, (taken, answer) in found.items()
        ],
        [at_most("the slowest answer", slowest, "ms", BUDGET)],
    )


def counted(answer: Any) -> int:
    return sum(answer["total"]["turns"].values())


def ask(port: int, query: str) -> tuple[float, Any]:
    """Milliseconds, and the answer."""
    connection = HTTPConnection("127.0.0.1", port, timeout=60)
    times = []
    for _ in range(TIMES):
        begun = time.perf_counter()
        connection.request("GET", f"/api/usage?{query}")
        body = connection.getresponse().read()
        times.append((time.perf_counter() - begun) * 1000)
    connection.close()
    return statistics.median(times), json.loads(body)


async def write_turns(path: Path, total: int) -> None:
    """Turns as their endings leave them, added up as the server does it."""
    driver = open_sqlite(path, "process")
    store = SqlStore(driver)
    for name in DEPLOYMENTS:
        await store.publish_revision(
            name, Revision(name, name, 0, Blueprint(), FIRST), "api", new=None
        )
    for batch in batches(total):
        await driver.write(partial(ended, batch), long=True)
    await store.close()


def ended(turns: Sequence[tuple[Any, ...]]) -> Transaction[None]:
    for turn in turns:
        yield usage.RECORD_ENDED, turn
    yield from usage.fold({}, BATCH)


def batches(total: int) -> Iterator[list[tuple[Any, ...]]]:
    chance = random.Random(8)
    for start in range(0, total, BATCH):
        yield [turn(chance, number, total) for number in range(start, min(start + BATCH, total))]


def turn(chance: random.Random, number: int, total: int) -> tuple[Any, ...]:
    """The turns come in order of time; a tenth of the users take half of them."""
    user = int(USERS * chance.random() ** 3)
    model = int(MODELS * chance.random() ** 2)
    status = chance.choices(("completed", "failed", "cancelled"), (96, 2, 2))[0]
    first = int(chance.lognormvariate(6, 0.6))
    return (
        f"s{number}",
        1,
        f"user{user}",
        DEPLOYMENTS[user % 2],
        f"model-{model}",
        status,
        FIRST + number * DAYS * DAY_MS // total,
        first + int(chance.lognormvariate(8, 0.8)),
        first,
        chance.randint(50, 4000),
        chance.randint(10, 800),
    )
