"""`make soak` in small: its clients find nothing wrong, and its rule finds what grows."""

import asyncio

import pytest

from bench.charts import Lines, draw
from soak.report import summarise
from soak.run import Findings, Orders, run
from soak.samples import KINDS, Sample, levels

SMALL = Orders(seconds=5, clients=6, visitors=3, longest_reply=0.5, idle_timeout=2, moving=1)


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Findings:
    return asyncio.run(run(SMALL, tmp_path_factory.mktemp("soak"), print))


def test_a_short_soak_finds_nothing_wrong(found: Findings) -> None:
    assert found.diary.ledger.broken == []
    assert list(found.log) == []
    assert len([ask for ask in found.diary.asks if ask.endings]) > 10
    assert found.visits > 10


def test_it_is_told_in_tables_and_a_chart(found: Findings) -> None:
    results = summarise(found)
    chart = results.sections[0].chart
    assert isinstance(chart, Lines)
    assert [line.points for line in chart.lines if len(line.points) != len(found.samples)] == []
    assert draw(chart).count("<polyline") == len(KINDS)
    assert len(results.sections[0].figures) == len(KINDS) + 2


def samples(**grows: float) -> list[Sample]:
    """Five minutes of a server that holds the same all the time, but for what `grows` a second."""
    at_rest = {"memory": 60.0, "descriptors": 50.0, "tasks": 40.0, "database": 20.0}
    return [
        Sample(at=at, **{name: rest + at * grows.get(name, 0) for name, rest in at_rest.items()})
        for at in range(300)
    ]


def test_what_stays_level_is_level() -> None:
    assert all(level.holds for level in levels(samples()))


@pytest.mark.parametrize(
    ("kind", "second"), [("memory", 0.1), ("descriptors", 0.5), ("tasks", 1), ("database", 0.1)]
)
def test_what_grows_is_found(kind: str, second: float) -> None:
    wrong = [level.kind.field for level in levels(samples(**{kind: second})) if not level.holds]
    assert wrong == [kind]
