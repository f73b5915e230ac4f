"""What the promises cost, (i): idempotency, checkpoints and detachment, each against going without.

Noise between two processes of one program is as large as what is looked for. So with and without
take turns in short bursts, or run side by side; a cost is the median of the differences.
"""

import statistics
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import msgspec

from bench.charts import Bar, Bars, Goal, Group, Panel
from bench.load import Bursts, Streams
from bench.measures import CLIENTS, OURS, TOKENS, Run, turn_cpu
from bench.report import Section, at_most, number
from bench.servers import target

BURSTS, BURST = 7, 0.25  # of each kind of turn in a round, and the seconds of one
# So few that no request waits for another's: where they do, a step more on the way lets more of
# them gather for the next round of the event loop, which then hides what the step costs.
RELAY_CLIENTS = 4
SLOW_TOKENS = 125
SLOW_DELAY = 0.02  # seconds between two tokens of a slow turn
SLOW_SECONDS = SLOW_TOKENS * SLOW_DELAY  # 2.5: long enough for checkpoints
SLOW_STAGGER = 0.031  # seconds; thus the checkpoints of the streams are spread over the second
SLOW_PER_ROUND = 2  # on fresh servers each
NO_CHECKPOINTS = {"TURNKEEPER_CHECKPOINT_SECONDS": "0"}
SHARE = 15  # per cent of a turn that all promises may take together

PLAIN, KEYED, BARE, INLINE, DETACHED = "plain", "keyed", "bare", "inline", "detached"


class Costs(msgspec.Struct, frozen=True):
    """µs of CPU: of a turn without any switch on, and of what each promise adds to it."""

    turn: float
    idempotency: float
    checkpoints: float
    detachment: float

    @property
    def together(self) -> float:
        """What comes out below nothing is noise, and counts as nothing."""
        return sum(max(0.0, cost) for cost in self.each)

    @property
    def each(self) -> tuple[float, float, float]:
        return self.idempotency, self.checkpoints, self.detachment

    @property
    def share(self) -> float:
        return self.percent(self.together)

    def percent(self, cost: float) -> float:
        return cost / self.turn * 100


def promises(run: Run) -> Section:
    short = short_turns(run)
    slow = slow_turns(run)
    keyed, detached = added(short[KEYED], short[PLAIN]), added(short[DETACHED], short[INLINE])
    unkept = added(short[PLAIN], short[BARE])
    of_short = Costs(statistics.median(short[PLAIN]), keyed, 0.0, detached)
    of_slow = Costs(
        statistics.median(slow[PLAIN]),
        keyed,
        added(slow[PLAIN], slow[BARE]),
        added(slow[DETACHED], slow[INLINE]),
    )
    return Section(
        "What the promises cost",
        f"CPU of the server, {CLIENTS} clients, medians of differences between bursts in turn. A "
        f"short turn is one of those above; a slow one is a stream of {SLOW_TOKENS} tokens in "
        f"{SLOW_SECONDS:g} s. Idempotency: with a new `Idempotency-Key` on each request against "
        "none, on one server; a slow turn has the same two statements. Checkpoints: as they are "
        "by default against `checkpoint_seconds` 0; a short turn is over before its first, so "
        f"that the {number(unkept)} µs found there are noise and not counted. Detachment, which "
        "cannot be switched off: the floor relaying through a task of its own, a `Reply` and a "
        f"follower against the floor relaying at once (short turns with {RELAY_CLIENTS} clients, "
        "since under load the step more lets requests gather, and hides what it costs); of a slow "
        f"turn that is {number(of_slow.detachment / SLOW_TOKENS)} µs for each token.",
        ["", "short turn, µs", "of it", "slow turn, µs", "of it"],
        [
            ["the turn, without a key", number(of_short.turn), "", number(of_slow.turn), ""],
            *(
                [name, *cells(of_short, one), *cells(of_slow, other)]
                for name, one, other in zip(NAMES, of_short.each, of_slow.each, strict=True)
            ),
            ["together", *cells(of_short, of_short.together), *cells(of_slow, of_slow.together)],
        ],
        [
            at_most(f"what the promises cost, of a {kind} turn", costs.share, "%", SHARE)
            for kind, costs in (("short", of_short), ("slow", of_slow))
        ],
        chart(of_short, of_slow),
    )


NAMES = ("idempotency", "checkpoints", "detachment")


def cells(costs: Costs, cost: float) -> list[str]:
    return [number(cost), f"{costs.percent(cost):.1f} %"]


def chart(short: Costs, slow: Costs) -> Bars:
    groups = [
        Group(
            [
                *(
                    Bar(name, max(0.0, costs.percent(cost)))
                    for name, cost in zip(NAMES, costs.each, strict=True)
                ),
                Bar("together", costs.share, ours=True),
            ],
            heading,
        )
        for heading, costs in (("a short turn", short), ("a slow turn, streamed", slow))
    ]
    goal = Goal(SHARE, f"goal: ≤ {SHARE} % together")
    return Bars(
        "promises",
        "What the promises cost",
        [Panel("of the CPU of a turn, % (less is better)", groups, goal)],
    )


def added(with_it: Sequence[float], without: Sequence[float]) -> float:
    """What a switch adds: the median over bursts that were made beside each other."""
    return statistics.median(more - less for more, less in zip(with_it, without, strict=True))


def short_turns(run: Run) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {kind: [] for kind in (PLAIN, KEYED, BARE, INLINE, DETACHED)}
    with run.place.model_server(deltas=TOKENS, one_write=True) as model:
        for round_ in range(1, run.rounds + 1):
            run.place.say(f"  round {round_}: short turns")
            with (
                run.place.server(OURS, model.url) as kept,
                run.place.server(OURS, model.url, NO_CHECKPOINTS) as bare,
                run.place.server("detached", model.url) as relay,
            ):
                ours, floor = target(kept, model), target(relay, model)
                keyed = msgspec.structs.replace(ours, keyed=True)
                detached = msgspec.structs.replace(floor, detached=True)
                times = 2 if run.quick else BURSTS
                jobs = (
                    Bursts([ours, keyed, target(bare, model)], CLIENTS, BURST, times),
                    Bursts([floor, detached], RELAY_CLIENTS, BURST, times),
                )
                costs = [cost for job in jobs for cost in run.place.load(job).costs]
            for taken, seconds in zip(found.values(), costs, strict=True):
                taken += [each * 1e6 for each in seconds]
    return found


def slow_turns(run: Run) -> dict[str, list[float]]:
    """Side by side: the servers' core is far from busy, and so they share whatever goes on."""
    found: dict[str, list[float]] = {kind: [] for kind in (PLAIN, BARE, INLINE, DETACHED)}
    with run.place.model_server(deltas=SLOW_TOKENS, delta_delay=SLOW_DELAY) as model:
        for round_ in range(1, run.rounds * (1 if run.quick else SLOW_PER_ROUND) + 1):
            run.place.say(f"  round {round_}: slow turns")
            with ExitStack() as stack:
                ours, bare, floor, relay = (
                    target(stack.enter_context(run.place.server(*server)), model)
                    for server in (
                        (OURS, model.url),
                        (OURS, model.url, NO_CHECKPOINTS),
                        ("detached", model.url),
                        ("detached", model.url),
                    )
                )
                targets = [ours, bare, floor, msgspec.structs.replace(relay, detached=True)]
                jobs = [Streams(at, CLIENTS, 1, SLOW_STAGGER, warm=False) for at in targets]
                with ThreadPoolExecutor(len(jobs)) as pool:
                    for taken, outcome in zip(
                        found.values(), pool.map(run.place.load, jobs), strict=True
                    ):
                        taken.append(turn_cpu(outcome))
    return found
