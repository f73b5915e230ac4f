"""What a run found, and how it is shown: tables on the terminal, Markdown, JSON."""

from pathlib import Path
from typing import Literal

import msgspec
from rich.console import Console
from rich.table import Table

from bench.charts import Chart, draw

IMAGES = "images"
FIGURES = "figures"  # what the markers around them are called


class Figure(msgspec.Struct, frozen=True):
    """A figure with the goal it was given, `most` or `least`."""

    name: str
    value: float
    unit: str
    bound: Literal["≤", "≥"]
    goal: float
    met: bool

    @property
    def cells(self) -> list[str]:
        verdict = "met" if self.met else "NOT met"
        value = f"{number(self.value)} {self.unit}".rstrip()
        return [self.name, value, f"{self.bound} {self.goal:g} {self.unit}".rstrip(), verdict]


class Section(msgspec.Struct, frozen=True):
    """One measurement: how it was made, what it found, the figures that have a goal, a chart."""

    title: str
    method: str
    columns: list[str]
    rows: list[list[str]]
    figures: list[Figure]
    chart: Chart | None = None


class Results(msgspec.Struct, frozen=True):
    """A run's figures; the names of its charts' files begin with `prefix`."""

    machine: str
    rounds: int
    sections: list[Section]
    prefix: str = "bench"


def at_most(name: str, value: float, unit: str, goal: float) -> Figure:
    return Figure(name, value, unit, "≤", goal, value <= goal)


def at_least(name: str, value: float, unit: str, goal: float) -> Figure:
    return Figure(name, value, unit, "≥", goal, value >= goal)


def number(value: float) -> str:
    """Three digits that matter: 1,234 · 98.7 · 1.23; none of nothing."""
    if value == 0:
        return "0"
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


GOAL_COLUMNS = ["figure", "measured", "goal", ""]


def show(results: Results) -> None:
    console = Console()
    for section in results.sections:
        console.print(f"\n[bold]{section.title}[/bold]\n{section.method}")
        console.print(table(section.columns, section.rows))
    figures = [figure.cells for section in results.sections for figure in section.figures]
    if figures:
        console.print("\n[bold]Goals[/bold]")
        console.print(table(GOAL_COLUMNS, figures))
    console.print(origin(results))


def table(columns: list[str], rows: list[list[str]]) -> Table:
    made = Table()
    for position, column in enumerate(columns):
        made.add_column(column, justify="right" if position else "left")
    for row in rows:
        made.add_row(*row)
    return made


def markers(name: str) -> tuple[str, str]:
    """The lines between which figures stand."""
    return f"<!-- {name} -->", f"<!-- /{name} -->"


def write_markdown(results: Results, path: Path, name: str = FIGURES) -> None:
    """Puts the figures between the two markers of the file; the rest of it stays as it is.

    The charts go into the folder `images` beside it.
    """
    images = path.parent / IMAGES
    images.mkdir(exist_ok=True)
    for section in results.sections:
        if section.chart:
            (images / file_name(results, section.chart)).write_text(draw(section.chart))
    text, (first, last) = path.read_text(), markers(name)
    before, begin, rest = text.partition(first)
    _, end, after = rest.partition(last)
    path.write_text(f"{before}{begin}\n{markdown(results)}\n{end}{after}")


def check_markdown(path: Path, name: str = FIGURES) -> str | None:
    """A sentence on why the figures cannot be put there."""
    begin, end = markers(name)
    if not path.is_file():
        return f"{path} is not there; it needs the lines {begin} and {end}."
    _, _, rest = path.read_text().partition(begin)
    return None if end in rest else f"{path} needs the lines {begin} and {end}, in this order."


def markdown(results: Results) -> str:
    figures = [figure.cells for section in results.sections for figure in section.figures]
    parts = [origin(results), markdown_table(GOAL_COLUMNS, figures)]
    for section in results.sections:
        parts.append(f"### {section.title}\n\n{section.method}")
        if section.chart:
            link = f"{IMAGES}/{file_name(results, section.chart)}"
            parts.append(f"![{section.chart.title}]({link})")
        parts.append(markdown_table(section.columns, section.rows))
    return "\n\n".join(parts)


def file_name(results: Results, chart: Chart) -> str:
    return f"{results.prefix}-{chart.name}.svg"


def markdown_table(columns: list[str], rows: list[list[str]]) -> str:
    lines = [columns, ["---", *["---:"] * (len(columns) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def origin(results: Results) -> str:
    rounds = "one round" if results.rounds == 1 else f"medians of {results.rounds} rounds"
    return f"{results.machine}; {rounds}."
