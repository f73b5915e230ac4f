"""The commands on deployments: `turnkeeper deployments list`, `publish`, `diff` and their like.

They work beside a running server or without one: a server looks up what a new session is made of
when it makes it. Which models there are, only a server knows, so a blueprint's models are not
checked here. To whoever types, a revision is a state, by its id or by its number.
"""

import asyncio
import difflib
import json
import secrets
import sys
import time
import tomllib
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, BinaryIO, TypeVar

import click
import msgspec

from turnkeeper.blueprint import (
    DEPLOYMENT_NAME,
    diff_blueprints,
    is_deployment_name,
    plain_blueprint,
    read_blueprint,
    wrong_fields,
)
from turnkeeper.command import aligned, minute, on_database, print_json, safe, with_json
from turnkeeper.contracts import Store
from turnkeeper.dialects.turn_stream import encode_time
from turnkeeper.domain import Blueprint, Deployment, Revision, make_revision_id
from turnkeeper.errors import ConfigError, RevisionNotFound

_LARGEST_FILE = 64 * 1024 * 1024  # bytes of a blueprint; more is a mistake
_PROMPT = ("system_message", "messages")  # shown as texts, all else as values
_STYLES = {"+": "green", "-": "red", "@": "cyan"}  # of a line in a diff, by how it begins


@click.group()
def deployments() -> None:
    """Publish prompts under names, and look at their states, also while a server runs."""


# --- Looking -----------------------------------------------------------------------------------


@deployments.command("list")
@with_json
@on_database
def list_(url: str, as_json: bool) -> None:
    """List the deployments, by name."""
    found = _visit(url, lambda store: store.list_deployments())
    if as_json:
        print_json([_encode_deployment(deployment) for deployment in found])
        return
    for line in aligned([_cells(deployment) for deployment in found]):
        click.echo(line)
    if not found:
        click.echo("There are no deployments", err=True)


@deployments.command()
@click.argument("name")
@click.option("--state", metavar="STATE", help="An earlier one. Default: the current one.")
@with_json
@on_database
def show(url: str, name: str, state: str | None, as_json: bool) -> None:
    """Show what a deployment makes sessions of: its settings and its prompt.

    STATE is an id or a number, as `turnkeeper deployments states` lists them.
    """
    deployment, revisions = _visit(url, lambda store: _read(store, name))
    revision = deployment.revision if state is None else _find(name, revisions, state)
    if as_json:
        shown = msgspec.structs.replace(deployment, revision=revision)
        print_json(_encode_deployment(shown))
        return
    click.echo(_title(revision))
    for line in _described(revision.blueprint):
        click.echo(safe(line))


@deployments.command()
@click.argument("name")
@with_json
@on_database
def states(url: str, name: str, as_json: bool) -> None:
    """List every state of a deployment, newest first."""
    deployment, revisions = _visit(url, lambda store: _read(store, name))
    if as_json:
        print_json([_encode_revision(revision) for revision in revisions])
        return
    rows = [
        (
            f"state {revision.number}",
            revision.id,
            minute(revision.created_at),
            "current" if revision.id == deployment.revision.id else "",
        )
        for revision in revisions
    ]
    for line in aligned(rows):
        click.echo(line)


@deployments.command()
@click.argument("name")
@click.argument("before", metavar="[FROM]", required=False)
@click.argument("after", metavar="[TO]", required=False)
@on_database
def diff(url: str, name: str, before: str | None, after: str | None) -> None:
    """Show what changed from one state to another.

    Without TO it is the current state, without FROM the one before that.
    """
    deployment, revisions = _visit(url, lambda store: _read(store, name))
    new = deployment.revision if after is None else _find(name, revisions, after)
    old = _before(name, revisions, new) if before is None else _find(name, revisions, before)
    _print_coloured([f"--- {_title(old)}", f"+++ {_title(new)}"])
    _print_coloured(_changes(old.blueprint, new.blueprint), _STYLES)


# --- Changing ----------------------------------------------------------------------------------


@deployments.command()
@click.argument("name")
@click.argument("file", type=click.File("rb"))
@on_database
def publish(url: str, name: str, file: BinaryIO) -> None:
    """Make a deployment of FILE, or give the one there is a new state.

    FILE has the fields of a deployment as TOML or as JSON; - is standard input. Sessions that are
    there keep the state they were made with. Whether the server offers the model is not checked.
    """
    if not is_deployment_name(name):
        raise ConfigError(f"NAME must be {DEPLOYMENT_NAME}")
    blueprint = _read_file(file)
    id_ = make_revision_id(secrets.randbits(130))
    revision = Revision(id_, name, 0, blueprint, _now())  # the store gives the number
    published = _visit(url, lambda store: store.publish_revision(name, revision, "api", new=None))
    is_new = published.revision.id == revision.id
    click.echo(f"{'Published' if is_new else 'Nothing changed:'} {_title(published.revision)}")


@deployments.command()
@click.argument("name")
@click.argument("state")
@on_database
def rollback(url: str, name: str, state: str) -> None:
    """Publish an earlier STATE again, for the sessions that are made from now on.

    STATE is an id or a number, as `turnkeeper deployments states` lists them.
    """

    async def roll_back(store: Store) -> Deployment:
        revision = _find(name, await store.list_revisions(name), state)
        return await store.roll_back(name, revision.id, _now())

    click.echo(f"Published {_title(_visit(url, roll_back).revision)}")


@deployments.command()
@click.argument("name")
@click.option("--yes", is_flag=True, help="Do not ask.")
@on_database
def delete(url: str, name: str, yes: bool) -> None:
    """Make no more sessions of a deployment. Those there are go on as they are."""
    deployment = _visit(url, lambda store: store.get_deployment(name))
    click.echo("  ".join(_cells(deployment)).rstrip())
    if not yes:
        if not sys.stdin.isatty():
            raise click.UsageError("nobody is there to be asked: say --yes to delete it")
        click.confirm("Delete it?", abort=True, err=True)
    _visit(url, lambda store: store.delete_deployment(name, "api"))
    click.echo("Deleted")


# --- In the store ------------------------------------------------------------------------------

T = TypeVar("T")


def _visit(url: str, act: Callable[[Store], Awaitable[T]]) -> T:
    async def visit() -> T:
        from turnkeeper.compose import visit_store  # noqa: PLC0415  --help need not load the server

        async with visit_store(url) as store:
            return await act(store)

    return asyncio.run(visit())


async def _read(store: Store, name: str) -> tuple[Deployment, Sequence[Revision]]:
    return await store.get_deployment(name), await store.list_revisions(name)


def _find(name: str, revisions: Sequence[Revision], state: str) -> Revision:
    """The one that `state` names: by its id, or by its number."""
    for revision in revisions:
        if state in (revision.id, str(revision.number)):
            return revision
    raise RevisionNotFound(f"The deployment {name} has no state {state}")


def _before(name: str, revisions: Sequence[Revision], revision: Revision) -> Revision:
    older = (other for other in revisions if other.number < revision.number)
    found = max(older, key=lambda other: other.number, default=None)
    if found is None:
        raise RevisionNotFound(f"The deployment {name} has no state before {revision.number}")
    return found


def _now() -> int:
    return time.time_ns() // 1_000_000


# --- A blueprint from a file -------------------------------------------------------------------


def _read_file(file: BinaryIO) -> Blueprint:
    """Raises ConfigError with every wrong field."""
    values = _parse(file)
    wrong = [f"{file.name}: {sentence}" for sentence in wrong_fields(values)]
    if wrong:
        raise ConfigError("\n".join(wrong))
    return read_blueprint(values)


def _parse(file: BinaryIO) -> dict[str, Any]:
    """The fields: JSON if the text begins with a brace, which no TOML does."""
    content = file.read(_LARGEST_FILE + 1)
    if len(content) > _LARGEST_FILE:
        raise ConfigError(f"{file.name} is too large for a deployment")
    kind = "TOML"
    try:
        text = content.decode("utf-8-sig").replace("\r\n", "\n")
        if not text.lstrip().startswith("{"):
            return tomllib.loads(text)
        kind = "JSON"
        return msgspec.json.decode(text, type=dict[str, Any])
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{file.name} cannot be read as {kind}: {error}") from error


# --- On the terminal ---------------------------------------------------------------------------


def _print_coloured(lines: Iterable[str], styles: Mapping[str, str] | None = None) -> None:
    """Lines in the style of their first character, or bold; plain where nobody sees colours."""
    from rich.console import Console  # noqa: PLC0415  no other command needs it
    from rich.text import Text  # noqa: PLC0415

    console = Console(highlight=False, soft_wrap=True)
    for line in lines:
        console.print(Text(safe(line), "bold" if styles is None else styles.get(line[:1], "")))


def _title(revision: Revision) -> str:
    made = minute(revision.created_at)
    return f"{revision.deployment}  state {revision.number}  {revision.id}  {made}"


def _cells(deployment: Deployment) -> tuple[str, ...]:
    """A deployment in a line: name, state, id, when it changed, model, who defines it."""
    revision = deployment.revision
    return (
        deployment.name,
        f"state {revision.number}",
        revision.id,
        minute(deployment.updated_at),
        safe(revision.blueprint.model or "default model"),
        "configuration" if deployment.source == "file" else "",
    )


def _described(blueprint: Blueprint) -> Iterator[str]:
    """The settings that were given, then the prompt."""
    given = diff_blueprints(Blueprint(), blueprint)
    for name, (_, value) in given.items():
        if name not in _PROMPT:
            yield f"{name} = {_value(value)}"
    for role, text in _prompt(plain_blueprint(blueprint)):
        yield f"\n{role}\n{text}"


def _prompt(plain: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Who says what in it, in order."""
    if plain["system_message"]:
        yield "system_message", plain["system_message"]
    for example in plain["messages"]:
        yield example["role"], example["content"]


def _value(value: Any) -> str:
    return "not set" if value is None else json.dumps(value, ensure_ascii=False)


def _changes(before: Blueprint, after: Blueprint) -> Iterator[str]:
    """The prompt as a unified diff, every other field as it was and as it is."""
    changed = diff_blueprints(before, after)
    if not changed:
        yield "Nothing differs"
    old, new = (_lines(plain_blueprint(each)) for each in (before, after))
    yield from list(difflib.unified_diff(old, new, lineterm=""))[2:]  # the titles are ours
    for name, (was, is_now) in changed.items():
        if name not in _PROMPT:
            yield f"-{name} = {_value(was)}"
            yield f"+{name} = {_value(is_now)}"


def _lines(plain: dict[str, Any]) -> list[str]:
    return [line for role, text in _prompt(plain) for line in (f"[{role}]", *text.split("\n"), "")]


# --- As JSON -----------------------------------------------------------------------------------


def _encode_deployment(deployment: Deployment) -> dict[str, Any]:
    return {
        "name": deployment.name,
        "source": deployment.source,
        "created_at": encode_time(deployment.created_at),
        "updated_at": encode_time(deployment.updated_at),
        "state": _encode_revision(deployment.revision),
    }


def _encode_revision(revision: Revision) -> dict[str, Any]:
    return {
        "id": revision.id,
        "number": revision.number,
        "created_at": encode_time(revision.created_at),
        "blueprint": plain_blueprint(revision.blueprint),
    }
