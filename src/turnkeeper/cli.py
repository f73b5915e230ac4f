"""The command line."""

import asyncio
import logging
import sys
from collections.abc import Callable
from typing import Any, NoReturn
from urllib.parse import urlsplit

import click
import uvloop

from turnkeeper.config import SETTINGS, Config, Setting, read_config, read_url
from turnkeeper.errors import ConfigError


@click.group()
@click.version_option(package_name="turnkeeper")
def main() -> None:
    """Turnkeeper keeps chat sessions: it never loses a turn and never doubles one."""


def _option(setting: Setting) -> Any:
    """A setting as an option of the command line; its text is read with all the others."""
    variables = ", ".join(setting.variables)
    return click.option(
        f"--{setting.name.replace('_', '-')}",
        setting.name,
        metavar="TEXT" if isinstance(setting.default, str | None) else "VALUE",
        help=f"{setting.help.replace('`', '')}  [{variables}]",
    )


def _with_settings(*without: str) -> Callable[[Any], Any]:
    def decorate(command: Any) -> Any:
        for setting in reversed(SETTINGS):
            if not setting.secret and setting.name not in without:
                command = _option(setting)(command)
        return command

    return decorate


@main.command()
@_with_settings()
@click.option("--config", metavar="FILE", help="A TOML file with settings.")
def serve(**options: str | None) -> None:
    """Serve until SIGTERM or Ctrl-C."""
    logging.basicConfig(format="%(levelname)s %(name)s: %(message)s", level=logging.WARNING)
    try:
        config = read_config(options)
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_serve(config))
    except ConfigError as error:
        _stop(error)


# The server that `chat` opens is for itself alone: on loopback, at a port of its own.
_OWN_SERVER = {"host": "127.0.0.1", "port": "0", "auth": "off", "cors": "", "hosts": ""}


@main.command()
@click.option(
    "--url", metavar="URL", help="The server to talk to. Default: the one on this machine."
)
@click.option("--session", metavar="ID", help="The session to go on in. Default: a new one.")
@click.option(
    "--model",
    metavar="TEXT",
    help="The model to ask with every message. Default: the session's own.",
)
@_with_settings(*_OWN_SERVER, "model", "body_limit", "queue_limit", "grace")
@click.option("--config", metavar="FILE", help="A TOML file with settings.")
def chat(url: str | None, session: str | None, **options: str | None) -> None:
    """Talk in the terminal; in a pipe, say standard input and print the reply.

    Talks to the server at --url, else to the one that runs on this machine on the same database,
    else opens one for itself, which the settings are for.
    """
    from turnkeeper import terminal  # noqa: PLC0415  --help need not load all this

    try:
        config = read_config({**options, **_OWN_SERVER})
        if url is not None:
            url = read_url(url)
    except ConfigError as error:
        _stop(error)
    sys.exit(terminal.run(config, terminal.Wish(url, session or None, options["model"])))


def _stop(error: ConfigError) -> NoReturn:
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
