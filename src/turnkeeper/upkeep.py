"""The commands that look after a database: `backup`, `vacuum`, `sessions`.

They work beside a running server or without one: they write briefly, migrate nothing and settle
nothing (DESIGN: "One server per SQLite file"). Exit codes: 0 done; 1 not done, as things stand;
2 asked for wrongly.
"""

import asyncio
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, assert_never

import click
import msgspec

from turnkeeper.command import count, on_database, print_json, safe, with_json
from turnkeeper.contracts import Store
from turnkeeper.dialects.turn_stream import encode_time
from turnkeeper.domain import (
    Compaction,
    Item,
    ListedItem,
    Message,
    Reasoning,
    Session,
    SessionChoice,
    SessionFilter,
    ToolCall,
    ToolResult,
    TurnStatus,
    find_session,
)

_LARGE = 64 * 1024 * 1024  # bytes from which on a copy takes long enough to be watched
_PAGE = 500  # items read at once


# --- The file ----------------------------------------------------------------------------------


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--force", is_flag=True, help="Replace FILE if it exists.")
@on_database
def backup(url: str, file: Path, force: bool) -> None:
    """Copy the SQLite database to FILE, also while a server is serving it.

    The copy is the database as it stands at one moment, in a single file, and is checked before it
    gets its name.
    """
    from turnkeeper import compose  # noqa: PLC0415  --help need not load the server

    with _progress() as progress:
        made = compose.back_up(url, file, force=force, progress=progress)
    kept = f"{count(made.sessions, 'session')}, {count(made.turns, 'turn')}"
    click.echo(f"{file}: {_bytes(made.size)}, {kept}")


@contextmanager
def _progress() -> Iterator[Callable[[int, int], None]]:
    """A bar on the terminal, once it is known that there is much to copy."""
    bars: list[Any] = []

    def show(done: int, size: int) -> None:
        if not bars and size >= _LARGE and sys.stderr.isatty():
            bars.append(click.progressbar(length=size, label="Copying", file=sys.stderr))
        for bar in bars:
            bar.update(done - bar.pos)

    try:
        yield show
    finally:
        for bar in bars:
            bar.render_finish()


@click.command()
@on_database
def vacuum(url: str) -> None:
    """Give the space of what was deleted back to the disk."""
    from turnkeeper import compose  # noqa: PLC0415

    before, after = asyncio.run(compose.vacuum(url))
    click.echo(f"{_bytes(before)} before, {_bytes(after)} after")


def _bytes(size: int) -> str:
    for unit, name in ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")):
        if size >= unit:
            return f"{size / unit:.1f} {name}"
    return count(size, "byte")


# --- Sessions ----------------------------------------------------------------------------------


def _of_owner(command: Callable[..., None]) -> Callable[..., None]:
    return click.option(
        "--owner", default="local", show_default=True, metavar="USER", help="Whose sessions."
    )(command)


@click.group()
def sessions() -> None:
    """Look at sessions, and delete them, also while a server runs."""


@sessions.command("list")
@_of_owner
@click.option(
    "--limit", type=click.IntRange(1, 1_000_000), default=50, show_default=True, metavar="N"
)
@with_json
@on_database
def list_(url: str, owner: str, limit: int, as_json: bool) -> None:
    """List the newest sessions, newest first."""
    found = asyncio.run(_list(url, owner, limit + 1))
    shown = found[:limit]
    if as_json:
        print_json([_encode_session(session) for session in shown])
        return
    for session in shown:
        click.echo(_line(session))
    if len(found) > limit:
        click.echo(f"Older ones are not shown; say --limit {limit * 10}", err=True)
    if not shown:
        click.echo(f"{safe(owner)} has no sessions", err=True)


async def _list(url: str, owner: str, limit: int) -> list[Session]:
    from turnkeeper.compose import visit_store  # noqa: PLC0415

    async with visit_store(url) as store:
        page = await store.page_sessions(owner, SessionFilter(), None, limit)
        return list(page.sessions)


@sessions.command()
@click.argument("id")
@_of_owner
@with_json
@on_database
def show(url: str, id: str, owner: str, as_json: bool) -> None:  # noqa: A002  click's name
    """Show what was said in a session, in order.

    ID is the session's own, or the one that its client chose.
    """
    asyncio.run(_show(url, owner, find_session(id), as_json))


async def _show(url: str, owner: str, choice: SessionChoice, as_json: bool) -> None:
    from turnkeeper.compose import visit_store  # noqa: PLC0415

    async with visit_store(url) as store:
        session = await store.get_session(owner, choice)
        items = _items(store, owner, choice)
        if as_json:
            encoded = [_encode_listed(listed) async for listed in items]
            print_json({"session": _encode_session(session), "items": encoded})
            return
        click.echo(_line(session))
        async for listed in items:
            click.echo(f"\n{_heading(listed)}\n{safe(_text(listed.item))}")


async def _items(store: Store, owner: str, choice: SessionChoice) -> AsyncIterator[ListedItem]:
    after: tuple[int, int] | None = None
    while page := await store.list_items(owner, choice, after, _PAGE):
        for listed in page:
            yield listed
        after = (page[-1].turn, page[-1].position)


@sessions.command()
@click.argument("id")
@_of_owner
@click.option("--yes", is_flag=True, help="Do not ask.")
@on_database
def delete(url: str, id: str, owner: str, yes: bool) -> None:  # noqa: A002  click's name
    """Delete a session and everything that was said in it.

    Refused while one of its turns is queued or running, unless no server runs that could end it.
    """
    choice = find_session(id)
    session = asyncio.run(_get(url, owner, choice))
    click.echo(_line(session))
    if not yes:
        if not sys.stdin.isatty():
            raise click.UsageError("nobody is there to be asked: say --yes to delete it")
        click.confirm("Delete it and everything said in it, for good?", abort=True, err=True)
    asyncio.run(_delete(url, owner, choice))
    click.echo("Deleted")


async def _get(url: str, owner: str, choice: SessionChoice) -> Session:
    from turnkeeper.compose import visit_store  # noqa: PLC0415

    async with visit_store(url) as store:
        return await store.get_session(owner, choice)


async def _delete(url: str, owner: str, choice: SessionChoice) -> None:
    from turnkeeper.compose import visit_store, without_server  # noqa: PLC0415

    # With no server, an open turn is one that a crash has left: nobody will ever end it.
    async with visit_store(url) as store, without_server(url) as alone:
        await store.delete_session(owner, choice, if_idle=not alone)


# --- On the terminal ---------------------------------------------------------------------------


def _line(session: Session) -> str:
    """A session in a line: id, when it changed, how much is in it, its alias, what is open."""
    parts = [
        session.id,
        encode_time(session.updated_at)[:16].replace("T", " "),
        f"{count(session.message_count, 'message'):>14}",
        safe(session.alias or ""),
        f"({count(session.open_turns, 'open turn')})" if session.open_turns else "",
    ]
    return "  ".join(part for part in parts if part)


def _heading(listed: ListedItem) -> str:
    time = "" if listed.at is None else f"  {encode_time(listed.at)}"
    ended_well = listed.status in (None, TurnStatus.COMPLETED)
    mark = "" if ended_well else f"  ({listed.status})"
    return f"{_role(listed.item)}{time}{mark}"


def _role(item: Item) -> str:
    match item:
        case Message(role=role):
            return role
        case ToolCall(name=name):
            return f"tool call {name}"
        case ToolResult():
            return "tool result"
        case Reasoning():
            return "reasoning"
        case Compaction():
            return "summary"
        case _:
            assert_never(item)


def _text(item: Item) -> str:
    match item:
        case Message(text=text) | Reasoning(text=text) | Compaction(text=text):
            return text
        case ToolCall(arguments=arguments):
            return arguments
        case ToolResult(output=output):
            return output
        case _:
            assert_never(item)


# --- As JSON -----------------------------------------------------------------------------------


def _encode_session(session: Session) -> dict[str, Any]:
    times = {name: encode_time(getattr(session, name)) for name in ("created_at", "updated_at")}
    return {**msgspec.structs.asdict(session), **times}


def _encode_listed(listed: ListedItem) -> dict[str, Any]:
    """The item's own fields, `type` among them, after where it stands."""
    return {
        "turn": listed.turn,
        "position": listed.position,
        "status": listed.status,
        "at": encode_time(listed.at),
        **msgspec.to_builtins(listed.item),
    }
