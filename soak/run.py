"""One run: a model, a server, clients of every kind for so many seconds, and samples all along."""

import asyncio
import random
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import aiohttp

from crash.campaign import ROOT
from crash.clients import Client, Room, Site
from crash.diary import ANSWERS, Diary
from crash.words import play
from rig.model_server import ModelServer
from rig.server import Server
from soak.samples import Level, Sample, levels, take_sample
from soak.visitors import Visitor

_SETTINGS = """
[deployments.default]
idle_timeout = {idle_timeout}
"""
_LAST_ANSWERS = 60.0  # seconds


@dataclass(frozen=True)
class Orders:
    """What a run does; times are in seconds.

    `idle_timeout` is after how long a session is deleted, and `moving` how often those who share
    rooms move to others.
    """

    seconds: float
    seed: int = 1
    clients: int = 12
    visitors: int = 3
    longest_reply: float = 3.0
    idle_timeout: int = 20
    moving: float = 15.0


@dataclass(frozen=True)
class Findings:
    """What a run found; `diary.ledger` has what was not as it should be."""

    orders: Orders
    diary: Diary
    samples: Sequence[Sample]
    visits: int
    log: Sequence[str]

    @property
    def levels(self) -> list[Level]:
        return levels(self.samples)


Say = Callable[[str], None]


async def run(orders: Orders, folder: Path, say: Say) -> Findings:
    """Do it in `folder`, which is empty."""
    rng, diary = random.Random(orders.seed), Diary()
    (folder / "soak.toml").write_text(_SETTINGS.format(idle_timeout=orders.idle_timeout))
    async with ModelServer(play, record=False) as model:
        variables = {
            "PYTHONPATH": str(ROOT),
            "OPENAI_BASE_URL": model.base_url,
            "OPENAI_API_KEY": "secret",
            "TURNKEEPER_MODEL": "scripted",
        }
        server = Server(folder, env=variables, program=("-m", "soak.subject"))
        await asyncio.to_thread(server.start)
        try:
            site = Site(server.url, diary, rng, orders.longest_reply)
            connector = aiohttp.TCPConnector(limit=0)
            async with aiohttp.ClientSession(connector=connector) as http:
                samples, visits = await _soak(server, site, http, orders, say)
            await asyncio.to_thread(server.stop)
        finally:
            if server.running:
                server.kill()
    return Findings(orders, diary, samples, visits, server.log[1:])


async def _soak(
    server: Server, site: Site, http: aiohttp.ClientSession, orders: Orders, say: Say
) -> tuple[list[Sample], int]:
    rooms = [Room("named", f"shared-{number}") for number in range(orders.clients // 3 + 1)]
    clients = [Client(number, site, http, rooms[number // 3]) for number in range(orders.clients)]
    visitors = [Visitor(number, site, http) for number in range(orders.visitors)]
    everyone: list[Client | Visitor] = [*clients, *visitors]
    talking = [asyncio.create_task(each.run()) for each in everyone]
    moving = asyncio.create_task(_move(rooms, orders.moving))
    samples: list[Sample] = []
    begun = time.monotonic()
    try:
        while (now := time.monotonic() - begun) < orders.seconds:
            samples.append(take_sample(server.pid, server.folder, now))
            for task in talking:
                if task.done():
                    task.result()
            say(_line(samples[-1], site.diary))
            await asyncio.sleep(max(0.2, orders.seconds / 600))
        site.closing = True
        _, late = await asyncio.wait(talking, timeout=_LAST_ANSWERS)
        waiting = f"{len(late)} clients wait for an answer that does not come"
        site.diary.ledger.expect(ANSWERS, not late, waiting)
    finally:
        moving.cancel()
        for task in talking:
            task.cancel()
        with suppress(asyncio.CancelledError):
            await asyncio.gather(*talking, return_exceptions=True)
    return samples, sum(visitor.done for visitor in visitors)


async def _move(rooms: Sequence[Room], every: float) -> None:
    """Rooms that many share do not grow for ever: they leave them for others, to expire."""
    for number in range(1_000_000):
        await asyncio.sleep(every)
        for place, room in enumerate(rooms):
            room.session = f"shared-{place}-{number}"


def _line(sample: Sample, diary: Diary) -> str:
    return (
        f"{len(diary.asks):,} messages, {sample.memory:.1f} MiB, {sample.descriptors:.0f}"
        f" descriptors, {sample.tasks:.0f} tasks, {sample.database:.1f} MiB on disk,"
        f" {len(diary.ledger.broken)} answers wrong"
    )
