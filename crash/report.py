"""What a run found, as the tables and the chart that the bench draws."""

import statistics
from collections import Counter

import msgspec

from bench.charts import Bar, Bars, Group, Panel
from bench.machine import description
from bench.report import Figure, Results, Section, at_most
from crash.campaign import SERVING, STARTING, Kill
from crash.diary import PROMISES
from crash.run import Findings
from crash.victim import TRANSACTIONS

OUTSIDE = (SERVING, STARTING)


class Summary(msgspec.Struct, frozen=True):
    """A run's figures, as they are written to a file."""

    seed: int
    kills: int
    places: dict[str, int]
    results: Results


def summarise(found: Findings) -> Summary:
    places = Counter(kill.place for kill in found.kills)
    sections = [_kills(found), _promises(found), _load(found)]
    results = Results(description(), 1, sections, prefix="crash")
    return Summary(found.evidence.orders.seed, len(found.kills), dict(places), results)


def _kills(found: Findings) -> Section:
    kills = found.kills
    counts = Counter(_room_of(kill) for kill in kills)
    rows = [
        [room, f"{counts[room]:,}", f"{sum(k.abandoned for k in kills if _room_of(k) == room):,}"]
        for room in (*OUTSIDE, *TRANSACTIONS)
    ]
    outside = sum(counts[room] for room in OUTSIDE)
    method = (
        f"{len(kills):,} kills in {found.seconds:,.0f} s, seed {found.evidence.orders.seed}:"
        f" {outside:,} from outside at random moments, the rest in the program, at"
        f" {len({kill.place for kill in kills} - {*OUTSIDE}):,} points. They left"
        f" {sum(kill.abandoned for kill in kills):,} turns queued or running, up to"
        f" {max(kill.abandoned for kill in kills):,} at once."
    )
    columns = ["where the kill hit", "kills", "turns it left open"]
    return Section("Kills", method, columns, rows, _figures(found), _chart(counts))


def _room_of(kill: Kill) -> str:
    """The place without the moment."""
    return kill.place.partition(", ")[0]


def _figures(found: Findings) -> list[Figure]:
    orders = found.evidence.orders
    figures = [
        at_most(
            "from a start until every turn is over", max(found.settled), "s", orders.settled_within
        ),
        at_most("promises broken", len(found.evidence.diary.ledger.broken), "", 0),
    ]
    if found.losses:
        oldest = max(loss.seconds for loss in found.losses)
        allowed = orders.checkpoint_seconds + orders.slack
        figures.insert(1, at_most("oldest text lost, before the kill", oldest, "s", allowed))
    return figures


def _chart(counts: Counter[str]) -> Bars:
    outside = [Bar(room, counts[room]) for room in OUTSIDE]
    inside = [
        Bar(name.removesuffix("_abandoned"), counts[name], ours=True) for name in TRANSACTIONS
    ]
    groups = [Group(outside, "from outside, at random"), Group(inside, "in the program")]
    return Bars("kills", "Where the kills hit", [Panel("kills", groups)])


def _promises(found: Findings) -> Section:
    ledger = found.evidence.diary.ledger
    broken = Counter(one.promise for one in ledger.broken)
    rows = [[each, f"{ledger.checked[each]:,}", str(broken[each])] for each in PROMISES]
    method = "How often each promise was looked at, and how often it was broken."
    return Section("Promises", method, ["promise", "looked at", "broken"], rows, [])


def _load(found: Findings) -> Section:
    asks, turns = (
        found.evidence.diary.asks,
        Counter(turn.status for turn in found.books.turns.values()),
    )
    states = ", ".join(f"{count:,} {status}" for status, count in turns.most_common())
    ends = [ending for ask in asks for ending in ask.endings]
    losses = [loss.seconds for loss in found.losses if loss.characters > 0]
    rows = [
        ["messages sent, each with a key", f"{len(asks):,}"],
        ["sessions", f"{len(found.books.sessions):,}"],
        ["turns stored", f"{sum(turns.values()):,}: {states}"],
        ["replies acknowledged as complete", f"{sum(e.status == 'completed' for e in ends):,}"],
        ["requests with keys", f"{sum(ask.attempts for ask in asks):,}"],
        ["of them answered as replays", f"{sum(ask.replays for ask in asks):,}"],
        ["connections lost", f"{found.evidence.diary.losses:,}"],
        ["clients that hung up", f"{sum(ask.hang_ups for ask in asks):,}"],
        ["never came back", f"{sum(ask.left for ask in asks):,}"],
        ["interrupted replies that a client had seen more of", f"{len(losses):,}"],
        ["age of the oldest text they lost, median", f"{_median(losses):.2f} s"],
        ["from a start until every turn is over, median", f"{_median(found.settled):.2f} s"],
    ]
    method = (
        f"{found.evidence.orders.clients} clients in five dialects, replies of up to"
        f" {found.evidence.orders.longest_reply:g} s, checkpoints every"
        f" {found.evidence.orders.checkpoint_seconds:g} s."
    )
    return Section("Load", method, ["what", "how many"], rows, [])


def _median(values: list[float]) -> float:
    return statistics.median(values) if values else 0.0
