"""One run: a model, a server, clients; kills; and the audit when all have their answers."""

import asyncio
import random
import socket
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp

from crash.audit import (
    Loss,
    Told,
    ask_all,
    audit_books,
    audit_partials,
    audit_replays,
    audit_told,
)
from crash.books import Books, read_books
from crash.campaign import DATABASE, ROOT, Campaign, Kill, Pace, TurnKey, plan_blows
from crash.clients import Client, Room, Site
from crash.diary import ANSWERS, Diary
from crash.words import play
from rig.model_server import ModelServer
from rig.server import Server

REPLAYED = 300  # requests that are sent once more at the end
_LAST_ANSWERS = 60.0  # seconds that the clients have to hear all that is still to come


@dataclass(frozen=True)
class Orders:
    """What a run does; times are in seconds.

    `slack` is by how much a checkpoint may be late, on a machine with other things to do;
    `settled_within` is how long after a start every turn is over.
    """

    kills: int
    seed: int
    clients: int = 12
    longest_reply: float = 3.0
    checkpoint_seconds: float = 1.0
    slack: float = 0.5
    settled_within: float = 5.0
    pace: Pace = field(default_factory=lambda: Pace(0.05, 3.5))


@dataclass(frozen=True)
class Evidence:
    """What an audit needs beside the books. `died_at` is as in `Campaign`."""

    orders: Orders
    diary: Diary
    told: Told
    died_at: Mapping[TurnKey, float]


@dataclass(frozen=True)
class Findings:
    """What a run found; `seconds` is how long it took. `diary.ledger` has what was broken."""

    evidence: Evidence
    kills: list[Kill]
    settled: list[float]
    losses: list[Loss]
    books: Books
    seconds: float


Say = Callable[[str], None]


async def run(orders: Orders, folder: Path, say: Say) -> Findings:
    """Do it in `folder`, which is empty."""
    begun, rng, diary = time.monotonic(), random.Random(orders.seed), Diary()
    async with ModelServer(play, record=False) as model:
        server = _make_server(orders, folder, model.base_url)
        site = Site(f"http://127.0.0.1:{server.env['PORT']}", diary, rng, orders.longest_reply)
        campaign = Campaign(server, diary.ledger, rng, orders.settled_within)
        connector = aiohttp.TCPConnector(limit=0)
        try:
            async with aiohttp.ClientSession(connector=connector) as http:
                await _make_war(campaign, _clients(orders, site, http), orders, site, say)
                say("the clients have all their answers; asking once more")
                told = await ask_all(site.url, diary, http)
                answered = [ask for ask in diary.asks if ask.endings]
                sample = rng.sample(answered, min(REPLAYED, len(answered)))
                await audit_replays(site.url, diary, http, sample)
            await asyncio.to_thread(server.stop)
        finally:
            if server.running:
                server.kill()
    say("reading the books")
    evidence = Evidence(orders, diary, told, campaign.died_at)
    books, losses = audit(folder / DATABASE, evidence)
    seconds = time.monotonic() - begun
    return Findings(evidence, campaign.kills, campaign.settled, losses, books, seconds)


def audit(path: Path, evidence: Evidence) -> tuple[Books, list[Loss]]:
    """Hold the file against all that is known. What is found goes into the diary's ledger."""
    diary = evidence.diary
    books = read_books(path, diary.ledger)
    audit_books(books, diary)
    audit_told(evidence.told, books, diary.ledger)
    allowance = evidence.orders.checkpoint_seconds + evidence.orders.slack
    return books, audit_partials(books, diary, evidence.died_at, allowance)


def _make_server(orders: Orders, folder: Path, model_url: str) -> Server:
    """At a port that stays, so that clients find it again."""
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    variables = {
        "PORT": str(port),
        "PYTHONPATH": str(ROOT),
        "OPENAI_BASE_URL": model_url,
        "OPENAI_API_KEY": "secret",
        "TURNKEEPER_MODEL": "scripted",
        "TURNKEEPER_CHECKPOINT_SECONDS": str(orders.checkpoint_seconds),
    }
    return Server(folder, env=variables)


def _clients(orders: Orders, site: Site, http: aiohttp.ClientSession) -> list[Client]:
    """Every three share a room, in which they wait for each other."""
    rooms = [Room("named", f"shared-{number}") for number in range(orders.clients // 3 + 1)]
    return [Client(number, site, http, rooms[number // 3]) for number in range(orders.clients)]


async def _make_war(
    campaign: Campaign, clients: list[Client], orders: Orders, site: Site, say: Say
) -> None:
    """Deal every blow under load; then let the clients hear what is still to come."""
    blows, known = plan_blows(orders.kills, site.rng, orders.pace), 0
    talking = [asyncio.create_task(client.run()) for client in clients]
    try:
        for number, blow in enumerate(blows, 1):
            kill = await campaign.strike(blow)
            for task in talking:
                if task.done():
                    task.result()
            broken = site.diary.ledger.broken
            for one in broken[known:]:
                say(f"BROKEN: {one.promise}: {one.evidence}")
            known = len(broken)
            say(
                f"kill {number} of {len(blows)}: {kill.place}; {kill.abandoned} turns open,"
                f" {len(site.diary.asks)} messages sent, {known} promises broken"
            )
        site.closing = True
        await campaign.revive()
        _, late = await asyncio.wait(talking, timeout=_LAST_ANSWERS)
        waiting = f"{len(late)} clients wait for an answer that does not come"
        site.diary.ledger.expect(ANSWERS, not late, waiting)
    finally:
        for task in talking:
            task.cancel()
        await asyncio.gather(*talking, return_exceptions=True)
