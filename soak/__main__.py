"""The command: for how many minutes, where the figures go."""

import asyncio
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from shutil import rmtree
from tempfile import mkdtemp

import click
import msgspec

from bench.__main__ import stop
from bench.report import check_markdown, show, write_markdown
from soak.report import summarise
from soak.run import Findings, Orders, run

MARKER = "soak figures"


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--minutes", type=click.FloatRange(min=0.05), default=10, show_default=True)
@click.option("--clients", type=click.IntRange(1), default=12, show_default=True)
@click.option("--json", "json_file", type=Path, help="Write the samples here, as JSON.")
@click.option("--markdown", "page", type=Path, help="Put the figures between this page's markers.")
def main(*, minutes: float, clients: int, json_file: Path | None, page: Path | None) -> None:
    """Keep a server under mixed load, and see that nothing of it grows.

    Exit code 1 if something did not level off, an answer was wrong, or the log holds anything.
    """
    if page and (wrong := check_markdown(page, MARKER)):
        raise click.UsageError(wrong)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    folder = Path(mkdtemp(dir=Path(__file__).parent, prefix="run-"))
    try:
        found = asyncio.run(run(Orders(minutes * 60, clients=clients), folder, _progress()))
    finally:
        rmtree(folder)
    results = summarise(found)
    show(results)
    if json_file:
        json_file.write_bytes(msgspec.json.encode(found.samples))
    if page:
        write_markdown(results, page, MARKER)
    _judge(found)


def _progress() -> Callable[[str], None]:
    """A line with the time, every ten seconds."""
    begun, told = time.monotonic(), [-10.0]

    def say(line: str) -> None:
        now = time.monotonic() - begun
        if now - told[0] >= 10:
            told[0] = now
            print(f"{now:5.0f} s  {line}", file=sys.stderr, flush=True)

    return say


def _judge(found: Findings) -> None:
    wrong = [
        f"{level.kind.name}: {level.middle:.1f}, then {level.last:.1f}"
        for level in found.levels
        if not level.holds
    ]
    wrong += [one.evidence for one in found.diary.ledger.broken[:5]] + [*found.log[:5]]
    for line in wrong:
        print(f"NOT as it should be: {line}", file=sys.stderr)
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
