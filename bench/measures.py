"""The measurements, (a) to (h): each is a function from a run to a section of the report."""

import statistics
import time
from collections.abc import Callable, Iterable
from contextlib import closing

import msgspec

from bench.asks import Asker, make_sessions
from bench.charts import Bar, Bars, Curve, Goal, Group, Panel
from bench.load import Hold, Job, Outcome, Streams, Target, Turns, Visits
from bench.machine import fsync_ms, memory_mib, open_files
from bench.report import Figure, Section, at_least, at_most, number
from bench.servers import THREADS, BenchError, ModelServer, Place, target

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

HELD = (500, 1_000, 2_000, 5_000)  # streams at once
HELD_DELAY = 2.0  # seconds between two deltas of a stream
HELD_DELTAS = 7  # thus a stream lasts 12 seconds, of which no more than 10 are needed here:
HELD_OPENING = 2 * HELD_DELAY  # all begin within it, so that their deltas are spread evenly
HELD_SETTLE, HELD_SECONDS = 0.5, 5.0

SESSIONS = (1_000, 10_000)  # kept by then, each of two turns
TURNS_EACH = 2

LISTED = (1_000, 100_000)  # sessions there are, of which a page is listed
CONVERSATIONS = (100, 10_000)  # messages in a session, of which a page is read
PAGE = 50  # of either on a page
ASKED, FORKED = 200, 20  # times

# The goals
TURN_TO_FLOOR = 2.5
TURNS_TO_FLASK = 8
TOKEN_TO_FLOOR = 2.5
FIRST_TOKEN_MS = 1.5
LARGE_TO_SMALL = 1.3
START_SECONDS = 1.0
REST_MIB = 90
HELD_KIB = 40
PAGE_TO_SMALL = 1.3
FORK_MS = 20
GROWTH_MIB = 5  # from the first thousand sessions to ten thousand: what noise there is, no more


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


def bars(values: dict[str, float]) -> list[Bar]:
    return [Bar(TITLES[name], value, name == OURS) for name, value in values.items()]


def panel(axis: str, values: dict[str, float], goal: Goal | None = None) -> Panel:
    return Panel(axis, [Group(bars(values))], goal)


def medians(found: dict[str, list[Outcome]], of: Callable[[Outcome], float]) -> dict[str, float]:
    return {name: median(outcomes, of) for name, outcomes in found.items()}


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
    figures, goals = [], dict[str, Goal]()
    cpu, rate = medians(found, turn_cpu), medians(found, turn_rate)
    if {FLOOR, OURS} <= found.keys():
        ratio = cpu[OURS] / cpu[FLOOR]
        goals["cpu"] = times(cpu[FLOOR], "≤", TURN_TO_FLOOR, "the floor’s")
        figures.append(at_most("CPU of a durable turn, to the floor’s", ratio, "×", TURN_TO_FLOOR))
    if {FLASK, OURS} <= found.keys():
        ratio = rate[OURS] / rate[FLASK]
        goals["rate"] = times(rate[FLASK], "≥", TURNS_TO_FLASK, "Flask’s")
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
        Bars(
            "turns",
            f"Durable turns, {CLIENTS} clients",
            [
                panel("CPU of a turn, µs (less is better)", cpu, goals.get("cpu")),
                panel("turns per second (more is better)", rate, goals.get("rate")),
            ],
        ),
    )


def times(value: float, bound: str, factor: float, whose: str) -> Goal:
    """A goal that is a multiple of another's value."""
    return Goal(value * factor, f"goal: {bound} {factor:g} × {whose}")


def streamed_tokens(run: Run) -> Section:
    each = 1 if run.quick else 3
    with run.place.model_server(deltas=STREAM_TOKENS, delta_delay=STREAM_DELAY) as model:
        found = run.in_turn(model, lambda at: Streams(at, CLIENTS, each, STAGGER))
    figures, goal = [], None
    cpu = medians(found, token_cpu)
    if {FLOOR, OURS} <= found.keys():
        ratio = cpu[OURS] / cpu[FLOOR]
        goal = times(cpu[FLOOR], "≤", TOKEN_TO_FLOOR, "the floor’s")
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
        Bars(
            "tokens",
            f"Streamed tokens, {CLIENTS} streams at once",
            [panel("CPU of a token, µs (less is better)", cpu, goal)],
        ),
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
    middle = {name: statistics.median(all_) for name, all_ in middles.items()}
    figures, goal = [], None
    if OURS in run.servers:
        beside = middle[OURS] - fsync
        goal = Goal(
            FIRST_TOKEN_MS + fsync, f"goal: ≤ {FIRST_TOKEN_MS:g} ms and one flush of the disk"
        )
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
            ["added, median, ms", *(number(value) for value in middle.values())],
            ["added, p90, ms", *(number(statistics.median(all_)) for all_ in tails.values())],
        ],
        figures,
        Bars(
            "first-token",
            "Time to the first token, beside the model’s own",
            [panel("added by the server, median, ms (less is better)", middle, goal)],
        ),
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
        Curve(
            "history",
            "The cost of a turn against what its session holds",
            "messages in the session (logarithmic)",
            "CPU of a turn, µs",
            [(size, cpu[size]) for size in sizes],
            Goal(
                cpu[smallest] * LARGE_TO_SMALL,
                f"goal: ≤ {LARGE_TO_SMALL:g} × that of {smallest} messages",
            ),
        ),
    )


def start(run: Run) -> Section:
    starts: dict[str, list[float]] = {name: [] for name in run.servers}
    with run.place.model_server(deltas=TOKENS) as model:
        for round_ in range(1, run.rounds + 1):
            for name in run.servers:
                run.place.say(f"  round {round_}: {TITLES[name]}")
                with run.place.server(name, model.url) as server:
                    starts[name].append(server.start_seconds)
    figures: list[Figure] = []
    if OURS in run.servers:
        figures = [
            at_most("start to first answer", statistics.median(starts[OURS]), "s", START_SECONDS),
        ]
    return Section(
        "Start",
        "From exec to the first answer of 200, with a new database and compiled modules in place.",
        columns(run),
        [["start, s", *(number(statistics.median(all_)) for all_ in starts.values())]],
        figures,
    )


class Held(msgspec.Struct, frozen=True):
    """So many streams on one server, and its memory before they came, in MiB."""

    streams: int
    rest: float
    outcome: Outcome

    @property
    def kib(self) -> float:
        """Memory of a stream."""
        return (self.outcome.memory - self.rest) * 1024 / self.streams

    @property
    def lost(self) -> int:
        """Streams that were not open all the time, or did not end as they should."""
        return self.streams - min(self.outcome.held, self.outcome.turns)

    def delay(self, part: float) -> float:
        """The delay that this part of the deltas did not exceed, in ms."""
        delays = sorted(self.outcome.delays)
        return delays[int(part * (len(delays) - 1))] * 1e3


def held_streams(run: Run) -> Section:
    """Each size once, on a server that has done nothing else: every stream is a sample."""
    sizes = [size for size in (HELD[:1] if run.quick else HELD) if fits(size, run)]
    if not sizes:
        raise BenchError("More open files must be permitted to hold streams; see ulimit -Hn.")
    servers = [name for name in (FLOOR, OURS) if name in run.servers]
    found: dict[str, list[Held]] = {name: [] for name in servers}
    settings = {"deltas": HELD_DELTAS, "delta_delay": HELD_DELAY}
    with run.place.model_server(**settings, stamped=True) as model:  # type: ignore[arg-type]
        for size in sizes:
            for name in servers:
                run.place.say(f"  {size:,} streams: {TITLES[name]}")
                found[name].append(hold(run, model, name, size))
    rows = [
        held_row(f"{held.streams:,}", TITLES[name], held)
        for of_size in zip(*found.values(), strict=True)
        for name, held in zip(servers, of_size, strict=True)
    ]
    figures: list[Figure] = []
    if OURS in servers:
        ours = found[OURS]
        most = ours[-1].streams
        figures = [
            at_most(f"memory of a stream, {most:,} at once", ours[-1].kib, "KiB", HELD_KIB),
            at_most("streams lost", sum(held.lost for held in ours), "", 0),
        ]
    groups = [
        Group(bars({name: found[name][at].kib for name in servers}), f"{size:,} streams at once")
        for at, size in enumerate(sizes)
    ]
    return Section(
        "Slow streams held at once",
        f"Streamed turns of new sessions, each getting a delta every {HELD_DELAY:g} s, all begun "
        f"within {HELD_OPENING:g} s, all open for {HELD_SECONDS:g} s, each ending with every delta "
        "in its place. Memory is that of the server’s process beside what it had at rest. The "
        "delay of a delta is from the model server’s write to the client’s read; its text is the "
        f"time of that write. Flask holds {THREADS} streams here, as many as it has threads.",
        ["streams", "", "lost", "KiB each", "delay, median, ms", "p99, ms", "of its core"],
        rows,
        figures,
        Bars(
            "streams",
            "Memory of a slow stream",
            [Panel("KiB of a stream (less is better)", groups, held_goal())],
        ),
    )


def fits(size: int, run: Run) -> bool:
    """Whether the machine permits the files: two for a stream, and some beside."""
    if 2 * size + 100 <= open_files():
        return True
    run.place.say(f"  not {size:,} streams: only {open_files():,} open files are permitted here")
    return False


def hold(run: Run, model: ModelServer, name: str, size: int) -> Held:
    with run.place.server(name, model.url) as server:
        time.sleep(0.5)
        rest = memory_mib(server.pids)
        at, rate = target(server, model), size / HELD_OPENING
        job = Hold(at, size, HELD_DELTAS, rate, HELD_SETTLE, HELD_SECONDS)
        outcome = run.place.load(job, total=size, of="streams")
    if not outcome.delays:
        raise BenchError(f"{TITLES[name]} held no stream: {' '.join(outcome.errors)}")
    for error in outcome.errors:
        run.place.say(f"    lost: {error}")
    return Held(size, rest, outcome)


def held_row(size: str, title: str, held: Held) -> list[str]:
    delays = (number(held.delay(part)) for part in (0.5, 0.99))
    share = f"{server_share(held.outcome):.0%}"
    return [size, title, str(held.lost), number(held.kib), *delays, share]


def held_goal() -> Goal:
    return Goal(HELD_KIB, f"goal: ≤ {HELD_KIB} KiB")


def memory(run: Run) -> Section:
    sessions = (100, 1_000) if run.quick else SESSIONS
    found: dict[str, list[float]] = {}
    with run.place.model_server(deltas=TOKENS, one_write=True) as model:
        for name in run.servers:
            run.place.say(f"  {TITLES[name]}")
            with run.place.server(name, model.url) as server:
                time.sleep(0.5)
                found[name] = [memory_mib(server.pids)]
                kept = 0
                for total in sessions:
                    new = total - kept
                    job = Visits(target(server, model), FEW_CLIENTS, TURNS_EACH, new=new)
                    run.place.load(job, total=new * TURNS_EACH)
                    time.sleep(0.5)
                    found[name].append(memory_mib(server.pids))
                    kept = total
    names = ["at rest", *(f"{total:,} sessions" for total in sessions)]
    figures: list[Figure] = []
    if OURS in found:
        rest, few, many = found[OURS]
        what = f"memory that grew from {sessions[0]:,} sessions to {sessions[1]:,}"
        figures = [
            at_most("memory at rest", rest, "MiB", REST_MIB),
            at_most(what, many - few, "MiB", GROWTH_MIB),
        ]
    return Section(
        "Memory",
        "Resident memory half a second after the first answer, and when so many sessions have been "
        f"made and have taken {TURNS_EACH} turns each, all of them kept: by Turnkeeper in its "
        "file, by Flask in a dictionary, by the floor not at all.",
        columns(run),
        [
            [f"{name}, MiB", *(number(of_server[at]) for of_server in found.values())]
            for at, name in enumerate(names)
        ],
        figures,
        Bars(
            "memory",
            "Memory at rest and with sessions kept",
            [
                Panel(
                    "resident memory, MiB (less is better)",
                    [
                        Group(bars({server: kept[at] for server, kept in found.items()}), name)
                        for at, name in enumerate(names)
                    ],
                    Goal(REST_MIB, f"goal at rest: ≤ {REST_MIB} MiB"),
                )
            ],
        ),
    )


def pages(run: Run) -> Section:
    """What a page takes, and a fork, against how much there is."""
    listed = (100, 1_000) if run.quick else LISTED
    few, many = sizes = (100, 400) if run.quick else CONVERSATIONS
    listing: dict[int, float] = {}
    path_of: dict[int, str] = {}
    with (
        run.place.model_server(deltas=TOKENS, one_write=True) as model,
        run.place.server(OURS, model.url) as server,
        closing(Asker(server.port)) as asker,
    ):
        for total in listed:
            run.place.say(f"  {total:,} sessions")
            make_sessions(server.port, total - max(listing, default=0))
            paths = [f"/api/chat-sessions?limit={PAGE}"] * ASKED
            listing[total] = asker.milliseconds("GET", paths)
        for size in sizes:
            run.place.say(f"  a session of {size:,} messages")
            fill = Visits(target(server, model), 1, size // 2, new=1)
            [id_] = run.place.load(fill, total=size // 2).sessions
            path_of[size] = f"/api/chat-sessions/{id_}"
        reading = {
            size: asker.milliseconds("GET", [f"{path}/messages?limit={PAGE}"] * ASKED)
            for size, path in path_of.items()
        }
        fork = asker.milliseconds("POST", [f"{path_of[many]}/fork"] * FORKED)
    fewest, most = listed
    return Section(
        "Pages and forks",
        f"One client, one request after the other, medians of {ASKED} pages of {PAGE} and of "
        f"{FORKED} forks: from the request to its whole answer.",
        ["what", "ms"],
        [
            *(
                [f"a page of the list of {total:,} sessions", number(ms)]
                for total, ms in listing.items()
            ),
            *(
                [f"a page of a session of {size:,} messages", number(ms)]
                for size, ms in reading.items()
            ),
            [f"a fork of {many:,} messages", number(fork)],
        ],
        [
            at_most(
                f"a page of the list of {most:,} sessions, to one of {fewest:,}",
                listing[most] / listing[fewest],
                "×",
                PAGE_TO_SMALL,
            ),
            at_most(
                f"a page of a session of {many:,} messages, to one of {few:,}",
                reading[many] / reading[few],
                "×",
                PAGE_TO_SMALL,
            ),
            at_most(f"a fork of {many:,} messages", fork, "ms", FORK_MS),
        ],
    )


MEASURES: dict[str, Callable[[Run], Section]] = {
    "a": durable_turns,
    "b": streamed_tokens,
    "c": first_token,
    "d": session_sizes,
    "e": start,
    "f": held_streams,
    "g": memory,
    "h": pages,
}
