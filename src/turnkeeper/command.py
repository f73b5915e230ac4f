"""What the commands on a database share: which database it is, exit codes, what is printed.

Exit codes: 0 done; 1 not done, as things stand; 2 asked for wrongly.
"""

import functools
import sys
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import click
import msgspec

from turnkeeper.config import read_setting
from turnkeeper.dialects.turn_stream import encode_time
from turnkeeper.errors import ConfigError, TurnkeeperError


def on_database(command: Callable[..., None]) -> Callable[..., None]:
    """A command on the database that the settings name, which it gets as its first argument."""

    @click.option("--database", metavar="URL", help="sqlite:///FILE or postgresql://…")
    @click.option("--config", metavar="FILE", help="A TOML file with settings.")
    @functools.wraps(command)
    def run(database: str | None, config: str | None, **arguments: Any) -> None:
        try:
            url = read_setting("database", {"database": database, "config": config})
            command(url, **arguments)
        except TurnkeeperError as error:
            for sentence in error.sentence.splitlines():
                click.echo(f"turnkeeper: {safe(sentence)}.", err=True)
            sys.exit(2 if isinstance(error, ConfigError) else 1)

    return run


def with_json(command: Callable[..., None]) -> Callable[..., None]:
    return click.option("--json", "as_json", is_flag=True, help="Print JSON.")(command)


# --- What is printed -----------------------------------------------------------------------------


def print_json(value: object) -> None:
    click.echo(msgspec.json.format(msgspec.json.encode(value)).decode())


def count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def safe(text: str) -> str:
    """`text` without what would move the cursor or change the colours of a terminal."""
    return "".join(
        each if each in "\n\t" or unicodedata.category(each) != "Cc" else "\ufffd"
        for each in text.replace("\r\n", "\n")
    )


def minute(milliseconds: int) -> str:
    return encode_time(milliseconds)[:16].replace("T", " ")


def aligned(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (f"{cell:{width}}" for cell, width in zip(row, widths, strict=True))
        yield "  ".join(cells).rstrip()
