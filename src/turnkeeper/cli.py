"""The command line."""

import asyncio
import logging
import sys
from typing import Any
from urllib.parse import urlsplit

import click
import uvloop

from turnkeeper.config import SETTINGS, Config, Setting, read_config
from turnkeeper.errors import ConfigError
from turnkeeper.upkeep import backup, sessions, vacuum


@click.group()
@click.version_option(package_name="turnkeeper")
def main() -> None:
    """Turnkeeper keeps chat sessions: it never loses a turn and never doubles one."""


for _command in (backup, vacuum, sessions):
    main.add_command(_command)


def _option(setting: Setting) -> Any:
    """A setting as an option of the command line; its text is read with all the others."""
    variables = ", ".join(setting.variables)
    return click.option(
        f"--{setting.name.replace('_', '-')}",
        setting.name,
        metavar="TEXT" if isinstance(setting.default, str | None) else "VALUE",
        help=f"{setting.help.replace('`', '')}  [{variables}]",
    )


def _with_settings(command: Any) -> Any:
    for setting in reversed(SETTINGS):
        if not setting.secret:
            command = _option(setting)(command)
    return command


@main.command()
@_with_settings
@click.option("--config", metavar="FILE", help="A TOML file with settings.")
def serve(**options: str | None) -> None:
    """Serve until SIGTERM or Ctrl-C."""
    logging.basicConfig(format="%(levelname)s %(name)s: %(message)s", level=logging.WARNING)
    try:
        config = read_config(options)
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_serve(config))
    except ConfigError as error:
        for sentence in error.sentence.splitlines():
            click.echo(f"turnkeeper: {sentence}.", err=True)
        sys.exit(2)


async def _serve(config: Config) -> None:
    from turnkeeper.compose import serve  # noqa: PLC0415  --help need not load the server

    def announce(address: str, model: str) -> None:
        database = _shown(config.database)
        click.echo(f"Turnkeeper is listening on {address} (model {model}, {database})")

    await serve(config, announce)


def _shown(database: str) -> str:
    """The database's URL without user, password or parameters."""
    if database.startswith("sqlite:"):
        return database
    parts = urlsplit(database)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
