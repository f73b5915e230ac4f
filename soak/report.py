"""What a run found, as the tables and the chart that the bench draws."""

from collections import Counter

from bench.charts import Line, Lines
from bench.machine import description
from bench.report import Results, Section, at_most, number
from soak.run import Findings
from soak.samples import GROWTH, KINDS, Level


def summarise(found: Findings) -> Results:
    return Results(description(), 1, [_levels(found), _load(found)], prefix="soak")


def _levels(found: Findings) -> Section:
    minutes = found.orders.seconds / 60
    method = (
        f"{minutes:g} minutes. Each thing levels off if the median of the last third is at most"
        f" {GROWTH - 1:.0%} above that of the third before, or little where there are few. Sessions"
        f" expire after {found.orders.idle_timeout} seconds."
    )
    rows = [[_name(level), number(level.middle), number(level.last)] for level in found.levels]
    figures = [
        at_most(f"{_name(level)}, last third", level.last, level.kind.unit, round(level.allowed, 1))
        for level in found.levels
    ]
    figures.append(at_most("answers that were wrong", len(found.diary.ledger.broken), "", 0))
    figures.append(at_most("lines in the log", len(found.log), "", 0))
    lines = [
        Line(
            f"{kind.name}, {kind.unit}" if kind.unit else kind.name,
            [(sample.at / 60, getattr(sample, kind.field)) for sample in found.samples],
        )
        for kind in KINDS
    ]
    chart = Lines("levels", "What a server holds under mixed load", "minutes", lines)
    return Section("Soak", method, ["", "middle third", "last third"], rows, figures, chart)


def _name(level: Level) -> str:
    return level.kind.name


def _load(found: Findings) -> Section:
    asks = found.diary.asks
    ends = Counter(ending.status for ask in asks for ending in ask.endings)
    rows = [
        ["messages sent by clients of five dialects", f"{len(asks):,}"],
        *([f"replies that were {status}", f"{count:,}"] for status, count in ends.most_common()),
        ["clients that hung up", f"{sum(ask.hang_ups for ask in asks):,}"],
        ["never came back", f"{sum(ask.left for ask in asks):,}"],
        ["rounds of documents, lists, forks, wrong and broken requests", f"{found.visits:,}"],
        ["answers that were looked at", f"{sum(found.diary.ledger.checked.values()):,}"],
    ]
    method = (
        f"{found.orders.clients} clients that talk, and {found.orders.visitors} that do everything"
        " else, on one machine with the model."
    )
    return Section("Load of the soak", method, ["what", "how many"], rows, [])
