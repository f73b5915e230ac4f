"""What a run found, as the tables and the chart that the bench draws."""

import statistics
from collections import Counter

import msgspec

from bench.charts import Bar, Bars, Group, Panel
from bench.machine import description
from bench.report import Results, Section, at_most
from crash.campaign import SERVING, SETTLED_WITHIN, STARTING
from crash.diary import PROMISES
from crash.run import Findings
from crash.victim import MOMENTS, TRANSACTIONS


class Summary(msgspec.Struct, frozen=True):
    """A run's figures, as they are written to a file."""

    seed: int
    kills: int
    places: dict[str, int]
    results: Results


def summarise(found: Findings) -> Summary:
    places = Counter(kill.place for kill in found.kills)
    sections = [_kills(found, places), _promises(found), _load(found)]
    results = Results(description(), 1, sections, prefix="crash")
    return Summary(found.evidence.orders.seed, len(found.kills), dict(places), results)


def _kills(found: Findings, places: Counter[str]) -> Section:
    abandoned = [kill.abandoned for kill in found.kills]
    rows = [
        [place, str(count), str(sum(k.abandoned for k in found.kills if k.place == place))]
        for place, count in sorted(places.items(), key=lambda pair: _rank(pair[0]))
    ]
    method = (
        f"{len(found.kills)} kills in {found.seconds:,.0f} s, seed {found.evidence.orders.seed}:"
        f" {places[SERVING] + places[STARTING]} from outside at random moments, the rest at points"
        f" in the program. They left {sum(abandoned)} turns queued or running, up to"
        f" {max(abandoned, default=0)} at once."
    )
    figures = [
        at_most("from a start until every turn is over", max(found.settled), "s", SETTLED_WITHIN),
        at_most("promises broken", len(found.evidence.diary.ledger.broken), "", 0),
    ]
    if found.losses:
        oldest = max(loss.seconds for loss in found.losses)
        allowed = found.evidence.orders.checkpoint_seconds + found.evidence.orders.slack
        figures.insert(1, at_most("oldest text lost, before the kill", oldest, "s", allowed))
    columns = ["where the kill hit", "kills", "turns it left open"]
    return Section("Kills", method, columns, rows, figures, _chart(places))


def _rank(place: str) -> tuple[int, int]:
    """Outside first, then in the order of a turn's life."""
    if place in (SERVING, STARTING):
        return -1, 0
    name, moment = place.split(", ")
    return TRANSACTIONS.index(name), MOMENTS.index(moment)


def _chart(places: Counter[str]) -> Bars:
    outside = [Bar(place, places[place]) for place in (SERVING, STARTING)]
    groups = [Group(outside, "from outside, at random")]
    for name in TRANSACTIONS:
        bars = [Bar(moment, places[f"{name}, {moment}"], ours=True) for moment in MOMENTS]
        groups.append(Group(bars, name))
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
