"""Turns while sessions expire, (j): what it costs them that thousands are deleted meanwhile."""

import sqlite3
import statistics
import time
from contextlib import closing
from pathlib import Path

from bench.asks import Asker
from bench.load import Outcome, Turns
from bench.measures import OURS, TOKENS, Run
from bench.report import Section, at_most, number
from bench.servers import BenchError, Server, target

EXPIRING = 100_000  # sessions of two turns each
CLIENTS = 16
MODEL_DELAY = 0.02  # seconds: a server that waits for models has time to spare
AT_ONCE = 3.0  # seconds of turns between two looks at how many sessions are left
P99_TO_WITHOUT = 1.5
PATIENCE = 300.0

_SESSION = """
INSERT INTO sessions (id, owner, revision, turns, message_count, hidden_count, weight, created_at,
    updated_at) VALUES (?, 'local', ?, 2, 4, 0, 400, 1, 1)
"""
_TURN = """
INSERT INTO turns (session_id, number, status, model, created_at, finished_at)
VALUES (?, ?, 'completed', 'm', 1, 1)
"""
_ITEM = """
INSERT INTO items (session_id, turn, position, kind, text, weight, created_at, in_prompt)
VALUES (?, ?, ?, ?, ?, 100, 1, 1)
"""


def expiry(run: Run) -> Section:
    total = 2_000 if run.quick else EXPIRING
    during: list[Outcome] = []
    with (
        run.place.model_server(deltas=TOKENS, first_delay=MODEL_DELAY, one_write=True) as model,
        run.place.server(OURS, model.url) as server,
    ):
        job = Turns(target(server, model), CLIENTS, 0.5, 0.5 if run.quick else AT_ONCE)
        run.place.say(f"  making {total:,} sessions")
        fill(database(server), publish(server), total)
        without = [run.place.load(job) for _ in range(1 if run.quick else 5)]
        outlive(database(server))
        begun = time.perf_counter()
        while left := waiting(database(server)):
            if time.perf_counter() - begun > PATIENCE:
                raise BenchError(f"After {PATIENCE:g} s there are {left:,} sessions left.")
            run.place.say(f"    {left:,} sessions left")
            during.append(run.place.load(job))
        took = time.perf_counter() - begun
    if not during:
        raise BenchError("The sessions were gone before a turn was taken.")
    plain, busy = percentiles(without), percentiles(during)
    return Section(
        "Turns while sessions expire",
        f"{CLIENTS} clients, a model that answers after {MODEL_DELAY * 1e3:g} ms, sessions of two "
        f"turns each that all outlive their time in the same moment. {total:,} of them were gone "
        f"after {took:.0f} s, the sessions made meanwhile left alone.",
        ["a turn, ms", "without", f"while {total:,} sessions expire"],
        [
            [name, number(a), number(b)]
            for name, a, b in zip(("median", "p90", "p99"), plain, busy, strict=True)
        ],
        [
            at_most(
                f"p99 of a turn while {total:,} sessions expire, to that without",
                busy[2] / plain[2],
                "×",
                P99_TO_WITHOUT,
            )
        ],
    )


def percentiles(outcomes: list[Outcome]) -> tuple[float, float, float]:
    """The median, the p90 and the p99 of all turns, in ms."""
    took = [seconds * 1e3 for outcome in outcomes for seconds in outcome.took]
    cuts = statistics.quantiles(took, n=100)
    return cuts[49], cuts[89], cuts[98]


# --- The sessions, straight into the server's file ---------------------------------------------


def publish(server: Server) -> str:
    """The revision of a deployment whose sessions may expire."""
    with closing(Asker(server.port)) as asker:
        body = {"name": "brief", "idle_timeout": 3600}
        answer = asker.ask("POST", "/api/deployments", body)
    return str(answer["deployment"]["engineStateId"])


def database(server: Server) -> Path:
    return Path(f"/proc/{server.pids[0]}/cwd/bench.db").resolve()


def fill(path: Path, revision: str, total: int) -> None:
    ids = [f"s{number:026d}" for number in range(total)]
    items = [(1, 0, "user"), (1, 1, "assistant"), (2, 0, "user"), (2, 1, "assistant")]
    for start in range(0, total, 2_000):  # so that the server can write in between
        some = ids[start : start + 2_000]
        with closing(sqlite3.connect(path, timeout=30)) as file, file:
            file.executemany(_SESSION, [(id_, revision) for id_ in some])
            file.executemany(_TURN, [(id_, number) for id_ in some for number in (1, 2)])
            file.executemany(_ITEM, [(id_, *item, "x" * 100) for id_ in some for item in items])


def outlive(path: Path) -> None:
    """From now on they are looked at; they have been idle for decades."""
    with closing(sqlite3.connect(path, timeout=30)) as file, file:
        file.execute("UPDATE sessions SET due_at = 1 WHERE updated_at = 1")


def waiting(path: Path) -> int:
    with closing(sqlite3.connect(path, timeout=30)) as file:
        [[left]] = file.execute("SELECT COUNT(*) FROM sessions WHERE due_at = 1")
    return int(left)
