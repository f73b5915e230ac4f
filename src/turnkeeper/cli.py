"""The command line."""

import asyncio
import logging
import sys
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, NoReturn, TypeVar

import click
import uvloop

from turnkeeper.admission import keys, users
from turnkeeper.config import SETTINGS, Config, Setting, read_config, read_url, shown_database
from turnkeeper.errors import ConfigError
from turnkeeper.logs import open_logs
from turnkeeper.publishing import deployments
from turnkeeper.upkeep import backup, sessions, vacuum


@click.group()
@click.version_option(package_name="turnkeeper")
def main() -> None:
    """Turnkeeper keeps chat sessions: it never loses a turn and never doubles one."""


for _command in (backup, vacuum, sessions, deployments, users, keys):
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


def _with_settings(*without: str) -> Callable[[Any], Any]:
    def decorate(command: Any) -> Any:
        for setting in reversed(SETTINGS):
            if not setting.secret and setting.name not in without:
                command = _option(setting)(command)
        return click.option(
            "--config", metavar="FILE", help="A TOML file with settings, providers and deployments."
        )(command)

    return decorate


@main.command()
@_with_settings()
def serve(**options: str | None) -> None:
    """Serve until SIGTERM or Ctrl-C."""
    _run(options, _serve)


@main.command()
@_with_settings()
def check(**options: str | None) -> None:
    """Say what the settings amount to, and whether they would serve.

    Takes the settings that serve takes. Asks every provider what it offers and looks at the
    database; changes nothing. Exit code 0 if the server could serve like this, else 2.
    """
    if not _run(options, _check):
        sys.exit(2)


T = TypeVar("T")


def _run(options: Mapping[str, str | None], act: Callable[[Config], Coroutine[Any, Any, T]]) -> T:
    """Read the settings and act on them; what is wrong with them is said, with exit code 2."""
    logging.basicConfig(format="%(levelname)s %(name)s: %(message)s", level=logging.WARNING)
    try:
        config = read_config(options)
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(act(config))
    except ConfigError as error:
        _stop(error)


# The server that `chat` opens is for itself alone: on loopback, at a port of its own.
_OWN_SERVER = {"host": "127.0.0.1", "port": "0", "auth": "off", "cors": "", "hosts": ""}
_OF_A_SERVER = (
    "public_url",
    "proxies",
    "login_idle",
    "login_lifetime",
    "body_limit",
    "header_timeout",
    "body_timeout",
    "socket_lifetime",
    "queue_limit",
    "queue_timeout",
    "durability",
    "checkpoint_seconds",
    "grace",
    "log_format",
    "log_level",
    "log_content",
    "traces",
)


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
@click.option(
    "--key",
    metavar="KEY",
    envvar="TURNKEEPER_KEY",
    help="An API key, for a server that asks for one.  [TURNKEEPER_KEY]",
)
@_with_settings(*_OWN_SERVER, *_OF_A_SERVER, "model")
def chat(url: str | None, session: str | None, key: str | None, **options: str | None) -> None:
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
    sys.exit(
        terminal.run(config, terminal.Wish(url, session or None, options["model"], key or None))
    )


def _stop(error: ConfigError) -> NoReturn:
    for sentence in error.sentence.splitlines():
        click.echo(f"turnkeeper: {sentence}.", err=True)
    sys.exit(2)


async def _serve(config: Config) -> None:
    from turnkeeper.compose import serve  # noqa: PLC0415  --help need not load the server

    def announce(address: str, model: str) -> None:
        database = shown_database(config.database)
        click.echo(f"Turnkeeper is listening on {address} (model {model}, {database})")

    with open_logs(config.log_format, config.log_level) as logs:
        await serve(config, announce, write=logs.write)


async def _check(config: Config) -> bool:
    from turnkeeper.check import check  # noqa: PLC0415  as for serve

    return await check(config, click.echo)
