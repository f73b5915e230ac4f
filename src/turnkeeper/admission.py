"""The commands on users and API keys: `turnkeeper users create`, `turnkeeper keys revoke` and their
like.

They work beside a running server, which notices within a second, or without one. A secret is never
an argument, where other users of the machine could see it.
"""

import asyncio
import re
import sys
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, ClassVar, TypeVar

import click
import msgspec

from turnkeeper.accounts import Accounts
from turnkeeper.callers import REMEMBERED
from turnkeeper.command import aligned, minute, on_database, print_json, safe, with_json
from turnkeeper.dialects.native.access import TEN_YEARS, encode_key, encode_user
from turnkeeper.domain import ALL_SCOPES, Key, Limits, Scope, User, make_owner

T = TypeVar("T")

_LONGEST_LINE = 8192

# --- Users -------------------------------------------------------------------------------------


@click.group()
def users() -> None:
    """Say who may use the server, also while it runs."""


def _with_password(command: Callable[..., None]) -> Callable[..., None]:
    """How the password is given: asked for twice unless an option says otherwise."""
    for option in (
        click.option("--no-password", is_flag=True, help="Let the user come in by keys alone."),
        click.option("--password-stdin", is_flag=True, help="Read it from standard input."),
    ):
        command = option(command)
    return command


@users.command("create")
@click.argument("name")
@click.option("--admin", is_flag=True, help="The user also sees to deployments.")
@_with_password
@on_database
def create_user(url: str, name: str, admin: bool, password_stdin: bool, no_password: bool) -> None:
    """Make a user. Asks for a password, twice.

    The database is made if it is not there.
    """
    password = _password(password_stdin, no_password)

    async def create(accounts: Accounts) -> User:
        return await accounts.create_user(name, "admin" if admin else "user", password)

    user = _visit(url, create, make=True)
    click.echo(f"Created {user.role} {user.name}")


@users.command("list")
@with_json
@on_database
def list_users(url: str, as_json: bool) -> None:
    """List the users, by name."""
    found = _visit(url, lambda accounts: accounts.list_users())
    if as_json:
        print_json([encode_user(user) for user in found])
        return
    for line in aligned([_user_cells(user) for user in found]):
        click.echo(line)
    if not found:
        click.echo("There are no users", err=True)


@users.command()
@click.argument("name")
@on_database
def disable(url: str, name: str) -> None:
    """Keep a user out: logins end at once, and keys do not work."""
    _visit(url, lambda accounts: accounts.disable_user(name))
    click.echo(f"Disabled {name}")


@users.command()
@click.argument("name")
@on_database
def enable(url: str, name: str) -> None:
    """Let a user in again, with the same password and the same keys."""
    _visit(url, lambda accounts: accounts.enable_user(name))
    click.echo(f"Enabled {name}")


@users.command("password")
@click.argument("name")
@_with_password
@on_database
def set_password(url: str, name: str, password_stdin: bool, no_password: bool) -> None:
    """Give a user another password. Asks for it, twice; all logins of the user end."""
    password = _password(password_stdin, no_password)
    _visit(url, lambda accounts: accounts.set_password(name, password))
    click.echo(f"{name} has {'no' if password is None else 'a new'} password")


@users.command()
@click.argument("name")
@click.option("--end-user", metavar="WHO", help="One of those for whom NAME's applications act.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@with_json
@on_database
def forget(url: str, name: str, end_user: str | None, yes: bool, as_json: bool) -> None:
    """Remove a person: the user, and everything that is theirs or names them.

    With --end-user, what is WHO's; NAME stays. Prints how many rows of each table that were.
    """
    who = safe(make_owner(name, end_user))
    if not yes:
        if not sys.stdin.isatty():
            raise click.UsageError("nobody is there to be asked: say --yes to remove it all")
        click.confirm(f"Remove {who} and all that is theirs, for good?", abort=True, err=True)
    removed = asyncio.run(_forget(url, name, end_user))
    if as_json:
        print_json(removed)
        return
    click.echo(f"Forgot {who}")
    for table, rows in removed.items():
        click.echo(f"{rows:>10,}  {table.replace('_', ' ')}")


async def _forget(url: str, name: str, end_user: str | None) -> Mapping[str, int]:
    from turnkeeper.compose import visit_accounts, without_server  # noqa: PLC0415

    async def settle() -> None:
        async with without_server(url) as alone:
            if alone:
                return
        await asyncio.sleep(REMEMBERED + 0.2)  # a server notices who is gone within that time

    async with visit_accounts(url) as accounts:
        return await accounts.forget(name, end_user, settle=settle)


def _password(from_stdin: bool, none: bool) -> str | None:
    if from_stdin and none:
        raise click.UsageError("--password-stdin and --no-password exclude each other")
    if none:
        return None
    if from_stdin:
        try:
            return sys.stdin.buffer.read(_LONGEST_LINE).decode("utf-8").rstrip("\r\n")
        except UnicodeDecodeError as error:
            raise click.UsageError("standard input is not UTF-8") from error
    if not sys.stdin.isatty():
        raise click.UsageError(
            "nobody is there to be asked: say --password-stdin, or --no-password"
        )
    password: str = click.prompt("Password", hide_input=True, confirmation_prompt="Again", err=True)
    return password


# --- Keys --------------------------------------------------------------------------------------


@click.group()
def keys() -> None:
    """Make and revoke the API keys of users, also while the server runs."""


class _Duration(click.ParamType[int]):
    """Seconds, or a number with a unit: 90d, 12h, 30m, 45s."""

    name = "duration"
    _units: ClassVar = {"d": 86_400, "h": 3_600, "m": 60, "s": 1, "": 1}

    def convert(self, value: Any, param: Any, ctx: Any) -> int:
        match = re.fullmatch(r"([0-9]{1,9})([dhms]?)", str(value))
        seconds = int(match[1]) * self._units[match[2]] if match else TEN_YEARS + 1
        if seconds > TEN_YEARS:
            self.fail("must be a time as 90d, 12h, 30m or 45s, of ten years at most", param, ctx)
        return seconds


_LIMIT_NAMES = ", ".join(Limits.__struct_fields__)


class _Limit(click.ParamType[tuple[str, float]]):
    """One of `domain.Limits`, as NAME=NUMBER."""

    name = "limit"

    def convert(self, value: Any, param: Any, ctx: Any) -> tuple[str, float]:
        name, _, number = str(value).partition("=")
        try:
            limits = msgspec.convert({name: number}, Limits, strict=False)
        except msgspec.ValidationError:
            self.fail(f"must be NAME=NUMBER, with a name of {_LIMIT_NAMES}", param, ctx)
        return name, getattr(limits, name)


@keys.command("create")
@click.argument("user")
@click.option("--name", default="", metavar="TEXT", help="What it is for, to know it again.")
@click.option(
    "--scope",
    "scopes",
    multiple=True,
    type=click.Choice(sorted(ALL_SCOPES)),
    help="What it may do; can be given several times. Default: all that the user may.",
)
@click.option(
    "--expires", "lifetime", type=_Duration(), metavar="TIME", help="As 90d or 12h. Default: never."
)
@click.option(
    "--limit",
    "limits",
    multiple=True,
    type=_Limit(),
    metavar="NAME=NUMBER",
    help="A limit of its own, as requests_per_minute=60; can be given several times.",
)
@on_database
def create_key(
    url: str,
    user: str,
    *,
    name: str,
    scopes: tuple[Scope, ...],
    lifetime: int | None,
    limits: tuple[tuple[str, Any], ...],
) -> None:
    """Make an API key and print it, this once: it is not kept."""
    if lifetime == 0:
        raise click.UsageError("--expires must be more than 0")
    own = msgspec.convert(dict(limits), Limits)
    secret, key = _visit(
        url,
        lambda accounts: accounts.create_key(
            user, name, scopes=scopes or None, limits=own, lifetime=lifetime
        ),
    )
    _tell_secret(key, secret)


def _tell_secret(key: Key, secret: str) -> None:
    """On standard output it alone, so that it can be led into a file."""
    click.echo(f"Key {key.id} of {key.user}. It is shown only now:", err=True)
    click.echo(secret)


@keys.command("rotate")
@click.argument("id")
@click.option(
    "--overlap",
    default="0",
    type=_Duration(),
    metavar="TIME",
    help="How long the secret it had is good still, as 1h. Default: not at all.",
)
@on_database
def rotate_key(url: str, id: str, overlap: int) -> None:  # noqa: A002  click's name
    """Give a key another secret, by its ID in the list, and print that, this once."""
    secret, key = _visit(url, lambda accounts: accounts.rotate_key(id, overlap=overlap))
    _tell_secret(key, secret)


@keys.command("list")
@click.argument("user", required=False)
@with_json
@on_database
def list_keys(url: str, user: str | None, as_json: bool) -> None:
    """List the keys of USER, or of all users, without the keys themselves."""
    found = _visit(url, lambda accounts: accounts.list_keys(user))
    if as_json:
        print_json([encode_key(key) for key in found])
        return
    for line in aligned([_key_cells(key) for key in found]):
        click.echo(line)
    if not found:
        click.echo("There are no keys", err=True)


@keys.command()
@click.argument("id")
@on_database
def revoke(url: str, id: str) -> None:  # noqa: A002  click's name
    """Make a key none any more, by its ID in the list."""
    key = _visit(url, lambda accounts: accounts.revoke_key(id))
    click.echo(f"Revoked {key.id} of {key.user}")


# --- In the store, on the terminal, as JSON ----------------------------------------------------


def _visit(url: str, act: Callable[[Accounts], Awaitable[T]], *, make: bool = False) -> T:
    async def visit() -> T:
        from turnkeeper.compose import visit_accounts  # noqa: PLC0415  as in publishing

        async with visit_accounts(url, make=make) as accounts:
            return await act(accounts)

    return asyncio.run(visit())


def _key_cells(key: Key) -> tuple[str, ...]:
    ends = "" if key.expires_at is None else f"until {minute(key.expires_at)}"
    used = "never used" if key.used_at is None else f"used {minute(key.used_at)}"
    may = ",".join(sorted(key.scopes))
    return key.id, key.user, minute(key.created_at), used, ends, may, safe(key.name)


def _user_cells(user: User) -> tuple[str, ...]:
    way = "password" if user.has_password else "keys alone"
    made = minute(user.created_at)
    return user.name, user.role, way, made, "disabled" if user.disabled else ""
