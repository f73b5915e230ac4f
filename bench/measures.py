"""The measurements, (a) to (e): each is a function from a run to a section of the report."""

import statistics
import time
from collections.abc import Callable, Iterable

import msgspec

from bench.load import Job, Outcome, Streams, Target, Turns, Visits
from bench.machine import fsync_ms, memory_mib
from bench.report import Figure, Section, at_least, at_most, number
from bench.servers import ModelServer, Place, target

FLOOR, FLASK, OURS = "floor", "flask", "turnkeeper"
TITLES = {FLOOR: "floor", FLASK: "Flask", OURS: "Turnkeeper"}

CLIENTS = 32
TOKENS = 10  # of a short reply
STREAM_TOKENS = 200
STREAM_DELAY = 0.005  # seconds between two tokens
STAGGER = 0.006  # seconds from one stream's start to the next; no multiple, or all beat as one
FEW_CLIENTS = 8
SIZES = (10, 100, 1_000, 10_000)  # messages in a session
WINDOW = 600  # tokens: about ten of our messages, beside the quarter kept for the reply

# The goals
TURN_TO_FLOOR = 2.5
TURNS_TO_FLASK = 8
TOKEN_TO_FLOOR = 2.5
FIRST_TOKEN_MS = 1.5
LARGE_TO_SMALL = 1.3
START_SECONDS = 1.0
REST_MIB = 90


class Run(msgspec.Struct, frozen=True):
    place: Place
    servers: list[str]
    rounds: int
    quick: bool

    def in_turn(self, model: ModelServer, job: Callable[[Target], Job]) -> dict[str, list[Outcome]]:
        """The job on each server, round after round."""
        outcomes: dict[str, list[Outcome]] = {name: [] for name in self.servers}
        for round_ in range(1, self.rounds + 1):
            for name in self.servers:
                self.place.say(f"  round {round_}: {TITLES[name]}")
                with self.place.server(name, model.url) as server:
                    outcomes[name].append(self.place.load(job(target(server, model))))
        return outcomes


def median(outcomes: Iterable[Outcome], of: Callable[[Outcome], float]) -> float:
    return statistics.median(of(outcome) for outcome in outcomes)


def row(name: str, found: dict[str, list[Outcome]], of: Callable[[Outcome], float]) -> list[str]:
    return [name, *(number(median(outcomes, of)) for outcomes in found.values())]


def percent(
    name: str, found: dict[str, list[Outcome]], of: Callable[[Outcome], float]
) -> list[str]:
    return [name, *(f"{median(outcomes, of):.0%}" for outcomes in found.values())]


def columns(run: Run) -> list[str]:
    return ["", *(TITLES[name] for name in run.servers)]


def turn_cpu(outcome: Outcome) -> float:
    return outcome.server_cpu / outcome.turns * 1e6


def turn_rate(outcome: Outcome) -> float:
    return outcome.turns / outcome.wall


def token_cpu(outcome: Outcome) -> float:
    return outcome.server_cpu / (outcome.turns * STREAM_TOKENS) * 1e6


def server_share(outcome: Outcome) -> float:
    return outcome.server_cpu / outcome.wall


def own_share(outcome: Outcome) -> float:
    return outcome.own_cpu / outcome.wall


def durable_turns(run: Run) -> Section:
    warm, seconds = (0.3, 1.0) if run.quick else (1.0, 4.0)
    with run.place.model_server(deltas=TOKENS, one_write=True) as model:
        found = run.in_turn(model, lambda at: Turns(at, CLIENTS, warm, seconds))
    figures = []
    if {FLOOR, OURS} <= found.keys():
        ratio = median(found[OURS], turn_cpu) / median(found[FLOOR], turn_cpu)
        figures.append(at_most("CPU of a durable turn, to the floor’s", ratio, "×", TURN_TO_FLOOR))
    if {FLASK, OURS} <= found.keys():
        ratio = median(found[OURS], turn_rate) / median(found[FLASK], turn_rate)
        figures.append(at_least("turns per second, to Flask’s", ratio, "×", TURNS_TO_FLASK))
    return Section(
        "Durable turns",
        f"{CLIENTS} clients, sessions of seven turns (six messages of history on average), a "
        f"reply of {TOKENS} tokens at once. Turnkeeper asks the model for a stream, the others "
        "for the whole. A server that used less of its core than about 90 % could have done more "
        "turns per second than stand here.",
        columns(run),
        [
            row("CPU of a turn, µs", found, turn_cpu),
            row("turns per second", found, turn_rate),
            percent("of its core the server used", found, server_share),
            percent("of its core the load generator used", found, own_share),
        ],
        figures,
    )


def streamed_tokens(run: Run) -> Section:
    each = 1 if run.quick else 3
    with run.place.model_server(deltas=STREAM_TOKENS, delta_delay=STREAM_DELAY) as model:
        found = run.in_turn(model, lambda at: Streams(at, CLIENTS, each, STAGGER))
    figures = []
    if {FLOOR, OURS} <= found.keys():
        ratio = median(found[OURS], token_cpu) / median(found[FLOOR], token_cpu)
        figures.append(
            at_most("CPU of a streamed token, to the floor’s", ratio, "×", TOKEN_TO_FLOOR)
        )

    def tokens(outcome: Outcome) -> int:
        return outcome.turns * STREAM_TOKENS

    return Section(
        "Streamed tokens",
        f"{CLIENTS} streams at once of {STREAM_TOKENS} tokens, one about every "
        f"{STREAM_DELAY * 1e3:.0f} ms; all CPU of the stream is divided by its tokens. A server "
        "that sends several tokens together spends less on each; how many those were is shown.",
        columns(run),
        [
            row("CPU of a token, µs", found, token_cpu),
            row("tokens in an event", found, lambda one: tokens(one) / one.events),
            row("tokens in a write", found, lambda one: tokens(one) / one.writes),
            row("tokens per second", found, lambda one: tokens(one) / one.wall),
            percent("of its core the server used", found, server_share),
            percent("of its core the load generator used", found, own_share),
        ],
        figures,
    )


def first_token(run: Run) -> Section:
    each = 35 if run.quick else 210
    own: list[float] = []
    disk: list[float] = []
    middles: dict[str, list[float]] = {name: [] for name in run.servers}
    tails: dict[str, list[float]] = {name: [] for name in run.servers}
    with run.place.model_server(deltas=3, delta_delay=0.001) as model:
        direct = Target(model.port, [], model.reply, direct=True)
        for round_ in range(1, run.rounds + 1):
            run.place.say(f"  round {round_}: the model server itself")
            alone = statistics.median(run.place.load(Streams(direct, 1, each, 0)).first_deltas)
            own.append(alone * 1e3)
            disk.append(fsync_ms(run.place.directory))
            for name in run.servers:
                run.place.say(f"  round {round_}: {TITLES[name]}")
                with run.place.server(name, model.url) as server:
                    outcome = run.place.load(Streams(target(server, model), 1, each, 0))
                added = [(taken - alone) * 1e3 for taken in outcome.first_deltas]
                middles[name].append(statistics.median(added))
                tails[name].append(statistics.quantiles(added, n=10)[-1])
    fsync = statistics.median(disk)
    figures = []
    if OURS in run.servers:
        beside = statistics.median(middles[OURS]) - fsync
        figures.append(
            at_most("time to first token, beside model and fsync", beside, "ms", FIRST_TOKEN_MS)
        )
    return Section(
        "Time to first token",
        "One client, sessions of seven streamed turns; what the server adds to the model’s own "
        f"time, which is {number(statistics.median(own))} ms. A 4 KiB append and fdatasync takes "
        f"{number(fsync)} ms on this disk; Turnkeeper waits for one before it calls the model, "
        "the others keep nothing on disk.",
        columns(run),
        [
            ["added, median, ms", *(number(statistics.median(all_)) for all_ in middles.values())],
            ["added, p90, ms", *(number(statistics.median(all_)) for all_ in tails.values())],
        ],
        figures,
    )


def session_sizes(run: Run) -> Section:
    """Turns in sessions of several sizes.

    The small sessions are fresh in each round and take so few turns that they grow by a tenth at
    most; those of 10,000 messages are visited again, since making them takes the longest.
    """
    sizes = SIZES[:-1] if run.quick else SIZES
    counted = 200 if run.quick else 800  # turns of each size in a round
    found: dict[int, list[Outcome]] = {size: [] for size in sizes}
    with (
        run.place.model_server(deltas=TOKENS, one_write=True) as model,
        run.place.server(OURS, model.url, {"TURNKEEPER_CONTEXT_WINDOW": str(WINDOW)}) as server,
    ):
        at = target(server, model)
        sessions: dict[int, list[list[str]]] = {}
        turns = {size: min(max(1, size // 20), counted // FEW_CLIENTS) for size in sizes}
        for size in sizes:
            fresh = size < max(SIZES)
            many = counted // turns[size] * (run.rounds if fresh else 1)
            run.place.say(f"  filling {many:,} sessions with {size:,} messages each")
            fill = Visits(at, CLIENTS, size // 2, new=many)
            ids = run.place.load(fill, total=many * size // 2).sessions
            step = len(ids) // run.rounds if fresh else 0
            group = counted // turns[size]
            sessions[size] = [ids[n * step : n * step + group] for n in range(run.rounds)]
        for round_ in range(run.rounds):
            for size in sizes:
                run.place.say(f"  round {round_ + 1}: sessions of {size:,} messages")
                visits = Visits(at, FEW_CLIENTS, turns[size], sessions[size][round_])
                found[size].append(run.place.load(visits))
    cpu = {size: median(outcomes, turn_cpu) for size, outcomes in found.items()}
    smallest, largest = min(sizes), max(sizes)
    return Section(
        "Turns in long sessions",
        f"{FEW_CLIENTS} clients, {counted} turns of each size in a round, with a context window of "
        f"{WINDOW:,} tokens, which holds about ten of the messages.",
        ["messages in the session", "CPU of a turn, µs", f"to that of {smallest}"],
        [[f"{size:,}", number(cpu[size]), f"{cpu[size] / cpu[smallest]:.2f} ×"] for size in sizes],
        [
            at_most(
                f"CPU of a turn in a session of {largest:,} messages, to one of {smallest}",
                cpu[largest] / cpu[smallest],
                "×",
                LARGE_TO_SMALL,
            )
        ],
    )


def start_and_rest(run: Run) -> Section:
    starts: dict[str, list[float]] = {name: [] for name in run.servers}
    memory: dict[str, list[float]] = {name: [] for name in run.servers}
    with run.place.model_server(deltas=TOKENS) as model:
        for round_ in range(1, run.rounds + 1):
            for name in run.servers:
                run.place.say(f"  round {round_}: {TITLES[name]}")
                with run.place.server(name, model.url) as server:
                    time.sleep(0.5)
                    starts[name].append(server.start_seconds)
                    memory[name].append(memory_mib(server.pids))
    figures: list[Figure] = []
    if OURS in run.servers:
        figures = [
            at_most("start to first answer", statistics.median(starts[OURS]), "s", START_SECONDS),
            at_most("memory at rest", statistics.median(memory[OURS]), "MiB", REST_MIB),
        ]
    return Section(
        "Start and rest",
        "From exec to the first answer of 200, with a new database and compiled modules in "
        "place; resident memory half a second later.",
        columns(run),
        [
            ["start, s", *(number(statistics.median(all_)) for all_ in starts.values())],
            ["memory, MiB", *(number(statistics.median(all_)) for all_ in memory.values())],
        ],
        figures,
    )


MEASURES: dict[str, Callable[[Run], Section]] = {
    "a": durable_turns,
    "b": streamed_tokens,
    "c": first_token,
    "d": session_sizes,
    "e": start_and_rest,
}
