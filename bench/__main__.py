"""The command: which measurements, how many rounds, where the figures go."""

import signal
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from types import FrameType
from typing import NoReturn

import click
import msgspec

from bench.costs import promises
from bench.dialects import dialects
from bench.expiry import expiry
from bench.machine import allow_open_files, description
from bench.measures import FLASK, FLOOR, OURS, Run
from bench.measures import MEASURES as COMPARISONS
from bench.report import Results, check_markdown, show, write_markdown
from bench.servers import BenchError, Place
from bench.usage import usage_of_a_million

SERVERS = (FLOOR, FLASK, OURS)
MEASURES = COMPARISONS | {"i": promises, "j": expiry, "k": dialects, "l": usage_of_a_million}


class Chosen(click.ParamType[list[str]]):
    """Some of the known words, with commas between them."""

    name = "a,b,…"

    def __init__(self, known: tuple[str, ...]) -> None:
        self.known = known

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> list[str]:
        words = str(value).split(",")
        for word in words:
            if word not in self.known:
                self.fail(f"{word!r} is none of {', '.join(self.known)}.", param, ctx)
        return [word for word in self.known if word in words]


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--only", type=Chosen(tuple(MEASURES)), help="Only these measurements of a to l.")
@click.option("--servers", type=Chosen(SERVERS), help="Only these of floor,flask,turnkeeper.")
@click.option("--rounds", type=click.IntRange(1), default=3, show_default=True)
@click.option("--quick", is_flag=True, help="One short round: does it run, not how fast.")
@click.option("--json", "json_file", type=Path, help="Write the figures here, as JSON.")
@click.option("--markdown", "page", type=Path, help="Put the figures between this page's markers.")
def main(
    *,
    only: list[str] | None,
    servers: list[str] | None,
    rounds: int,
    quick: bool,
    json_file: Path | None,
    page: Path | None,
) -> None:
    """Compare Turnkeeper with the floor and with the tutorial's Flask program.

    \b
    a  durable turns          e  start
    b  streamed tokens        f  500 to 5,000 slow streams at once
    c  time to first token    g  memory at rest and after 10,000 sessions
    d  turns in sessions of 10 to 10,000 messages
    h  pages and forks, of few sessions and messages and of many
    i  what the promises cost: idempotency, checkpoints, detachment
    j  sessions that expire under load
    k  what other dialects cost
    l  usage of a million turns
    """
    if page and (wrong := check_markdown(page)):
        raise click.UsageError(wrong)
    servers = servers or list(SERVERS)
    measures = only or list(MEASURES)
    if OURS not in servers:  # only Turnkeeper's cost could depend on what it keeps
        measures = [measure for measure in measures if measure not in "dhijkl"]
    if "f" in measures and servers == [FLASK]:
        measures.remove("f")  # it holds as many as it has threads
    allow_open_files()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    begun = time.monotonic()

    def say(line: str) -> None:
        print(f"{time.monotonic() - begun:5.0f} s  {line}", file=sys.stderr, flush=True)

    with TemporaryDirectory(dir=Path(__file__).parent, prefix="run-") as directory:
        run = Run(Place(Path(directory), say), servers, 1 if quick else rounds, quick)
        sections = []
        for letter in measures:
            say(f"({letter}) {MEASURES[letter].__name__.replace('_', ' ')}")
            try:
                sections.append(MEASURES[letter](run))
            except BenchError as error:
                raise click.ClickException(str(error)) from error
    results = Results(description(), run.rounds, sections)
    show(results)
    if json_file:
        json_file.write_bytes(msgspec.json.format(msgspec.json.encode(results), indent=2))
    if page:
        write_markdown(results, page)


def stop(_signal: int, _frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


if __name__ == "__main__":
    main()
