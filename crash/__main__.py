"""The command: how many kills, from which seed, where the figures go."""

import asyncio
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from shutil import rmtree
from tempfile import mkdtemp

import click
import msgspec

from bench.__main__ import stop
from bench.report import check_markdown, show, write_markdown
from crash.report import summarise
from crash.run import Findings, Orders, run


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--kills", type=click.IntRange(1), default=50, show_default=True)
@click.option("--seed", type=int, help="The same blows again; without one, others each time.")
@click.option("--clients", type=click.IntRange(1), default=12, show_default=True)
@click.option("--json", "json_file", type=Path, help="Write the figures here, as JSON.")
@click.option("--markdown", "page", type=Path, help="Put the figures between this page's markers.")
def main(
    *, kills: int, seed: int | None, clients: int, json_file: Path | None, page: Path | None
) -> None:
    """Kill a server under load again and again, then audit its books.

    Exit code 1 if a promise was broken; then the database is kept, and the evidence printed.
    """
    if page and (wrong := check_markdown(page)):
        raise click.UsageError(wrong)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    orders = Orders(kills, random.randrange(1_000_000) if seed is None else seed, clients)
    folder = Path(mkdtemp(dir=Path(__file__).parent, prefix="run-"))
    try:
        found = asyncio.run(run(orders, folder, _progress()))
    except BaseException:
        rmtree(folder)
        raise
    summary = summarise(found)
    show(summary.results)
    if json_file:
        json_file.write_bytes(msgspec.json.format(msgspec.json.encode(summary), indent=2))
    if page:
        write_markdown(summary.results, page)
    _judge(found, folder)


def _progress() -> Callable[[str], None]:
    """Lines with the time, not more than one a second."""
    begun, told = time.monotonic(), [0.0]

    def say(line: str) -> None:
        now = time.monotonic()
        if now - told[0] >= 1 or not line.startswith("kill"):
            told[0] = now
            print(f"{now - begun:5.0f} s  {line}", file=sys.stderr, flush=True)

    return say


def _judge(found: Findings, folder: Path) -> None:
    """Say what is wrong and keep the evidence; else leave nothing behind."""
    broken = found.evidence.diary.ledger.broken
    if not broken:
        rmtree(folder)
        return
    for promise, count in Counter(one.promise for one in broken).items():
        print(f"BROKEN, {count} times: {promise}", file=sys.stderr)
        for one in [one for one in broken if one.promise == promise][:5]:
            print(f"    {one.evidence}", file=sys.stderr)
    print(f"The database is in {folder}", file=sys.stderr)
    sys.exit(1)


if __name__ == "__main__":
    main()
