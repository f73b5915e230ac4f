"""The database file as it is: read without the server's own code, to be held against the diary."""

import sqlite3
from collections import defaultdict
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from crash.campaign import TurnKey, check_file
from crash.diary import Ledger

ITEM_OVERHEAD = 16  # what an item weighs beside its text


@dataclass(eq=False)
class StoredTurn:
    """A turn and what stands in its place. It is `listed` unless another took that place."""

    session: str
    number: int
    status: str
    said: str | None = None
    reply: str = ""
    listed: bool = False

    @property
    def key(self) -> TurnKey:
        return self.session, self.number

    @property
    def id(self) -> str:
        return f"t{self.session.removeprefix('s')}_{self.number}"


@dataclass
class StoredSession:
    """A session's row, and what its items add up to."""

    id: str
    newest: int
    running: int | None
    sums: tuple[int, int, int]  # messages, those that no prompt shows, weight
    found: list[int] = field(default_factory=lambda: [0, 0, 0])


@dataclass
class Books:
    """All that is stored. `said` has the turns by the user's message that they hold."""

    sessions: dict[str, StoredSession]
    turns: dict[str, StoredTurn]
    said: dict[str, list[StoredTurn]]
    keys: dict[str, list[str]]  # what each key made
    checkpoints: int
    oddities: list[str] = field(default_factory=list)


def read_books(path: Path, ledger: Ledger) -> Books:
    with closing(sqlite3.connect(path)) as file:
        check_file(file, ledger)
        return _read(file)


def _read(file: sqlite3.Connection) -> Books:
    books = Books({}, {}, defaultdict(list), defaultdict(list), 0)
    for row in file.execute(
        "SELECT id, turns, running, message_count, hidden_count, weight FROM sessions"
    ):
        books.sessions[row[0]] = StoredSession(row[0], row[1], row[2], tuple(row[3:]))
    for row in file.execute("SELECT session_id, number, status FROM turns"):
        turn = StoredTurn(*row)
        books.turns[turn.id] = turn
    for table in ("items", "hidden_items"):
        _read_items(file, table, books)
    for key, made in file.execute("SELECT key, made FROM idempotency_keys"):
        books.keys[key].append(made)
    [(books.checkpoints,)] = file.execute("SELECT COUNT(*) FROM checkpoints")
    return books


def _read_items(file: sqlite3.Connection, table: str, books: Books) -> None:
    """What is hidden counts in no sum, and so does a reply that failed."""
    rows = file.execute(
        "SELECT session_id, turn, position, kind, text, in_prompt, weight"
        f" FROM {table} ORDER BY session_id, turn, position"
    )
    for session, number, position, kind, text, in_prompt, weight in rows:
        place = f"{table}: {session}, turn {number}, position {position}"
        turn = books.turns.get(StoredTurn(session, number, "").id)
        if turn is None or session not in books.sessions:
            books.oddities.append(f"{place} belongs to no turn")
            continue
        if table == "items":
            _add(books.sessions[session].found, kind, in_prompt, weight)
        if weight != len(text.encode()) + ITEM_OVERHEAD:
            books.oddities.append(f"{place} weighs {weight}")
        if (kind, position) == ("user", 0):
            turn.said, turn.listed = text, table == "items"
            books.said[text].append(turn)
        elif kind == "assistant" and not turn.reply:
            turn.reply = text
        else:
            books.oddities.append(f"{place}: a second {kind} item in one turn")


def _add(found: list[int], kind: str, in_prompt: int, weight: int) -> None:
    """Every message of the user's counts, and each reply that prompts show."""
    found[0] += kind == "user" or in_prompt
    found[1] += kind == "user" and not in_prompt
    found[2] += weight if in_prompt else 0
