"""The kills: when and where each one hits, what it leaves, and how the server comes back.

The server is `turnkeeper serve` as it is, killed from outside at any moment; or, for the moments
that last microseconds, `crash.victim`, which kills itself there.
"""

import asyncio
import random
import shutil
import signal
import sqlite3
import time
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec

from crash.diary import FILE, FINAL, OVER, SOON, Ledger
from crash.victim import MOMENTS, TRANSACTIONS
from rig.server import TURNKEEPER, Server

ROOT = Path(__file__).parent.parent
DATABASE = "turnkeeper.db"
SERVING, STARTING = "while it serves", "while it starts"
_PATIENCE = 2.0  # seconds that a tripwire may take
_START_LIMIT = 30.0

TurnKey = tuple[str, int]


class Blow(msgspec.Struct, frozen=True):
    """How the server is to be killed.

    `after` is in seconds, from outside: since it was started, or since it serves. `wire` is the
    point in the program where it kills itself.
    """

    place: str
    after: float = 0
    wire: str | None = None


class Kill(msgspec.Struct, frozen=True):
    """A kill as it was.

    Attributes:
        place: where it hit.
        abandoned: turns it left queued or running.
    """

    place: str
    abandoned: int


@dataclass(frozen=True)
class Pace:
    """How long the server may live, in seconds, once it serves: short lives are more frequent."""

    shortest: float
    longest: float

    def draw(self, rng: random.Random) -> float:
        return self.shortest + (self.longest - self.shortest) * rng.random() ** 2


def plan_blows(count: int, rng: random.Random, pace: Pace) -> list[Blow]:
    """`count` blows in random order: 3 of 5 while it serves, 1 of 10 while it starts.

    The rest are at the points in the program, each as often as any other.
    """
    inside = count * 3 // 10
    starting = count // 10
    points = [(name, moment) for name in TRANSACTIONS for moment in MOMENTS]
    rng.shuffle(points)
    blows = [_trip(*points[number % len(points)], rng) for number in range(inside)]
    blows += [Blow(STARTING, rng.uniform(0.0, 0.5)) for _ in range(starting)]
    blows += [Blow(SERVING, pace.draw(rng)) for _ in range(count - inside - starting)]
    rng.shuffle(blows)
    return blows


def _trip(name: str, moment: str, rng: random.Random) -> Blow:
    """The wire at one point; at the start of a server the points come once, else often."""
    most = {"settle_abandoned": 1, "begin_version": 2, "checkpoint": 6}.get(name, 16)
    if moment == "inside":
        most *= 4  # after any of its statements
    return Blow(f"{name}, {moment}", wire=f"{name}:{moment}:{rng.randint(1, most)}")


class Campaign:
    """A server in `folder` that is killed again and again.

    Attributes:
        kills: so far.
        died_at: of each turn that was left open, when the server died under it.
        settled: seconds from each start until nothing was left open.
    """

    def __init__(
        self, server: Server, ledger: Ledger, rng: random.Random, settled_within: float
    ) -> None:
        self.server = server
        self.kills: list[Kill] = []
        self.died_at: dict[TurnKey, float] = {}
        self.settled: list[float] = []
        self._ledger = ledger
        self._rng = rng
        self._settled_within = settled_within
        self._over: dict[TurnKey, str] = {}  # how those turns ended that have
        self._open: set[TurnKey] = set()  # what the last death left

    async def strike(self, blow: Blow) -> Kill:
        """Start the server, kill it, and look at what is left."""
        self._arm(blow)
        begun = time.monotonic()
        place = blow.place
        if await self._start(blow, begun):
            await self._see_settled(begun)
            place = await self._let_live(blow)
        kill = Kill(place, await self._examine(time.monotonic()))
        self.kills.append(kill)
        return kill

    async def revive(self) -> None:
        """Start the server to stay."""
        self._arm(Blow(SERVING))
        begun = time.monotonic()
        await asyncio.to_thread(self.server.start)
        await self._see_settled(begun)

    def _arm(self, blow: Blow) -> None:
        self.server.program = ("-m", "crash.victim") if blow.wire else TURNKEEPER
        self.server.env["CRASH_AT"] = blow.wire or ""
        self.server.log.clear()

    async def _start(self, blow: Blow, begun: float) -> bool:
        """Whether it came so far as to serve, before it was killed or killed itself."""
        starting = asyncio.create_task(asyncio.to_thread(self.server.start))
        if blow.place == STARTING:
            while not (self.server.running or starting.done()):
                await asyncio.sleep(0.001)
            await asyncio.sleep(blow.after)
            if not starting.done():
                self.server.signal(signal.SIGKILL)
        try:
            await asyncio.wait_for(starting, _START_LIMIT)
        except RuntimeError as ended:
            if f"ended with {-signal.SIGKILL}" in str(ended):
                return False
            raise
        self._ledger.expect(
            SOON,
            time.monotonic() - begun <= self._settled_within,
            f"the start took {time.monotonic() - begun:.1f} s",
        )
        return True

    async def _let_live(self, blow: Blow) -> str:
        """Wait for the blow, or deal it; where it hit."""
        if blow.wire is None:
            await asyncio.sleep(blow.after if blow.place == SERVING else self._rng.random() / 4)
            await asyncio.to_thread(self.server.kill)
            return SERVING
        try:
            async with asyncio.timeout(_PATIENCE):
                while self.server.running:
                    await asyncio.sleep(0.002)
        except TimeoutError:  # it does not come there
            await asyncio.to_thread(self.server.kill)
            return SERVING
        await asyncio.to_thread(self.server.wait)
        return blow.place

    # --- What a death leaves ---------------------------------------------------------------------

    async def _examine(self, died: float) -> int:
        """Look at a copy of the files, so that the server itself has to recover them."""
        statuses = await asyncio.to_thread(self._read_copy)
        for turn, status in self._over.items():
            now = statuses.get(turn)
            self._ledger.expect(FINAL, now == status, f"turn {turn} was {status} and is {now}")
        still = {turn for turn, status in statuses.items() if status in ("queued", "running")}
        self._over = {turn: status for turn, status in statuses.items() if turn not in still}
        for turn in still - self._open:
            self.died_at.setdefault(turn, died)
        self._open = still
        return len(still)

    def _read_copy(self) -> dict[TurnKey, str]:
        with TemporaryDirectory(dir=self.server.folder) as directory:
            for name in (DATABASE, f"{DATABASE}-wal"):
                with suppress(FileNotFoundError):
                    shutil.copy(self.server.folder / name, directory)
            with closing(sqlite3.connect(Path(directory) / DATABASE)) as copy:
                check_file(copy, self._ledger)
                return read_statuses(copy)

    async def _see_settled(self, begun: float) -> None:
        """Note how long it took from the start until all that was left open was over.

        A server that has killed itself meanwhile leaves it to the next one.
        """
        left = self._left_open()
        while left and self.server.running and time.monotonic() - begun <= self._settled_within:
            await asyncio.sleep(0.01)
            left = self._left_open()
        if not self.server.running:
            return
        took = time.monotonic() - begun
        self._ledger.expect(OVER, not left, f"{took:.1f} s after a start these are open: {left}")
        self.settled.append(took)
        self._open = set()

    def _left_open(self) -> list[TurnKey]:
        """Which of the turns that the last death left are not over."""
        path = (self.server.folder / DATABASE).absolute()
        try:
            with closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)) as books:
                return [turn for turn in _read_open(books) if turn in self._open]
        except sqlite3.OperationalError:  # one cannot look into what a dead server has left
            if self.server.running:
                raise
            return []


def check_file(books: sqlite3.Connection, ledger: Ledger) -> None:
    try:
        found = books.execute("PRAGMA integrity_check").fetchall()
    except sqlite3.DatabaseError as error:
        found = [(str(error),)]
    ledger.expect(FILE, found == [("ok",)], f"the integrity check says {found[:3]}")


def read_statuses(books: sqlite3.Connection) -> dict[TurnKey, str]:
    """How each turn stands; none before the first migration was done."""
    if not books.execute("SELECT 1 FROM sqlite_master WHERE name = 'turns'").fetchall():
        return {}
    rows = books.execute("SELECT session_id, number, status FROM turns")
    return {(session, number): status for session, number, status in rows}


def _read_open(books: sqlite3.Connection) -> list[TurnKey]:
    rows = books.execute(
        "SELECT session_id, number FROM turns WHERE status IN ('queued', 'running')"
    )
    return [(session, number) for session, number in rows]
