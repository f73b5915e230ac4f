"""Every SQL statement of Turnkeeper, once, and what is done with them; names no database.

A transaction is a generator: it yields statements with their arguments, is sent the rows back,
and returns its result. It does no I/O and has no side effect, so a driver may run it again
after a conflict. Its first statement locks the session's row, so that what is atomic under
SQLite's one writer is atomic under READ COMMITTED too.
"""

from collections.abc import Callable, Generator, Sequence
from typing import Any, Protocol, TypeVar, assert_never

import msgspec

from turnkeeper.contracts import (
    BegunTurn,
    ById,
    EndedTurn,
    NewTurn,
    SessionChoice,
    StoredReply,
)
from turnkeeper.domain import (
    Context,
    Ending,
    Failure,
    History,
    Item,
    KeptItem,
    ListedItem,
    Message,
    Reasoning,
    Session,
    SessionSummary,
    ToolCall,
    ToolResult,
    Turn,
    TurnRef,
    TurnStatus,
    Usage,
    item_weight,
)
from turnkeeper.errors import QueueFull, SessionBusy, SessionNotFound, TurnNotFound

T = TypeVar("T")
Row = Sequence[Any]
Rows = Sequence[Row]
Transaction = Generator[tuple[str, tuple[Any, ...]], Rows, T]


class Driver(Protocol):
    """Runs transactions on one kind of database."""

    async def write(self, transaction: Callable[[], Transaction[T]], *, long: bool = False) -> T:
        """Run it in a transaction of its own, or under a savepoint in one shared with others.

        Committed when this returns. `long` says that it may touch thousands of rows.
        """
        ...

    async def read(self, transaction: Callable[[], Transaction[T]]) -> T:
        """Run a transaction that changes nothing; it sees what is committed."""
        ...

    async def close(self) -> None: ...


class SqlStore:
    """`contracts.Store` over a driver."""

    def __init__(self, driver: Driver) -> None:
        self._driver = driver

    async def begin_turn(self, new: NewTurn) -> BegunTurn:
        return await self._driver.write(lambda: begin_turn(new))

    async def end_turn(self, ref: TurnRef, ending: Ending, now: int) -> EndedTurn:
        return await self._driver.write(lambda: end_turn(ref, ending, now))

    async def checkpoint(self, ref: TurnRef, position: int, text: str) -> None:
        await self._driver.write(lambda: checkpoint(ref, position, text))

    async def get_history(self, ref: TurnRef, history_weight: int) -> BegunTurn:
        return await self._driver.read(lambda: get_history(ref, history_weight))

    async def get_turn(self, owner: str, ref: TurnRef) -> StoredReply:
        return await self._driver.read(lambda: get_turn(owner, ref))

    async def list_sessions(self, owner: str) -> Sequence[SessionSummary]:
        return await self._driver.read(lambda: list_sessions(owner))

    async def list_newest(self, owner: str, limit: int) -> Sequence[Session]:
        return await self._driver.read(lambda: list_newest(owner, limit))

    async def get_session(self, owner: str, session: SessionChoice) -> Session:
        return await self._driver.read(lambda: get_session(owner, session))

    async def list_items(
        self, owner: str, session: SessionChoice, after: tuple[int, int] | None, limit: int
    ) -> Sequence[ListedItem]:
        return await self._driver.read(lambda: list_items(owner, session, after, limit))

    async def delete_session(
        self, owner: str, session: SessionChoice, *, if_idle: bool = False
    ) -> Sequence[TurnRef]:
        return await self._driver.write(lambda: delete_session(owner, session, if_idle), long=True)

    async def clear_session(
        self, owner: str, session: SessionChoice, now: int
    ) -> Sequence[TurnRef]:
        return await self._driver.write(lambda: clear_session(owner, session, now), long=True)

    async def settle_abandoned(self, now: int) -> int:
        return await self._driver.write(lambda: settle_abandoned(now), long=True)

    async def ping(self) -> None:
        await self._driver.read(ping)

    async def close(self) -> None:
        await self._driver.close()


# --- Beginning a turn --------------------------------------------------------------------------

# Gives the turn its number and, when it is free, the session's slot.
TAKE_NUMBER = """
UPDATE sessions SET turns = turns + 1, running = COALESCE(running, turns + 1),
    message_count = message_count + ?, weight = weight + ?, model = COALESCE(?, model),
    updated_at = ?
WHERE owner = ? AND id = ?
RETURNING id, turns, running, weight, message_count - hidden_count, model
"""

# The same for a session that may not exist yet: two that race for one alias meet here.
CREATE_OR_TAKE_NUMBER = """
INSERT INTO sessions (message_count, weight, model, updated_at, owner, id, alias, created_at,
    turns, running, hidden_count)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, 1, 1, 0)
ON CONFLICT (owner, alias) WHERE alias IS NOT NULL DO UPDATE SET
    turns = sessions.turns + 1, running = COALESCE(sessions.running, sessions.turns + 1),
    message_count = sessions.message_count + excluded.message_count,
    weight = sessions.weight + excluded.weight,
    model = COALESCE(excluded.model, sessions.model), updated_at = excluded.updated_at
RETURNING id, turns, running, weight, message_count - hidden_count, model
"""

COUNT_QUEUED = "SELECT COUNT(*) FROM turns WHERE session_id = ? AND status = 'queued'"

INSERT_TURN = """
INSERT INTO turns (session_id, number, status, model, created_at) VALUES (?, ?, ?, ?, ?)
"""

INSERT_ITEM = """
INSERT INTO items (session_id, turn, position, kind, text, data, weight, in_prompt)
VALUES (?, ?, ?, ?, ?, ?, ?, 1)
"""


def begin_turn(new: NewTurn) -> Transaction[BegunTurn]:
    weights = [item_weight(item) for item in new.items]
    row = yield from _take_number(new, sum(weights))
    session_id, number, running, total_weight, message_count, model = row
    if number - running > new.queue_limit:
        yield from _check_queue(session_id, new.queue_limit)
    choice = new.choose(model)
    status = TurnStatus.RUNNING if running == number else TurnStatus.QUEUED
    yield INSERT_TURN, (session_id, number, status.value, choice.model, new.now)
    for position, (item, weight) in enumerate(zip(new.items, weights, strict=True)):
        yield INSERT_ITEM, (session_id, number, position, *_encode_item(item), weight)
    turn = Turn(TurnRef(session_id, number), status, choice.model, new.now)
    items: tuple[KeptItem, ...] = ()
    if status is TurnStatus.RUNNING:
        items = yield from _newest_items(turn.ref, choice.history_weight)
    return BegunTurn(turn, History(items, total_weight, message_count))


def _check_queue(session_id: str, limit: int) -> Transaction[None]:
    """Numbers alone say too much: some that waited may have been cancelled."""
    rows = yield COUNT_QUEUED, (session_id,)
    if rows[0][0] >= limit:
        raise QueueFull("Too many messages wait in this session already; try again in a moment")


def _take_number(new: NewTurn, weight: int) -> Transaction[Row]:
    messages = sum(_counts_as_message(item) for item in new.items)
    session = new.session
    if isinstance(session, ById):
        rows = yield (
            TAKE_NUMBER,
            (messages, weight, new.model, new.now, new.owner, session.id),
        )
        if not rows:
            raise SessionNotFound("Session not found")
    else:
        alias = session.alias if session else None
        rows = yield (
            CREATE_OR_TAKE_NUMBER,
            (messages, weight, new.model, new.now, new.owner, new.new_id, alias, new.now),
        )
    return rows[0]


def _counts_as_message(item: Item) -> bool:
    """The seeds count user and assistant messages with text, nothing else."""
    return isinstance(item, Message) and item.role != "system" and item.text != ""


# --- History -----------------------------------------------------------------------------------

# Newest first, so that an old session's beginning is never read.
NEWEST_ITEMS = """
SELECT turn, position, kind, text, data, weight FROM items
WHERE session_id = ? AND (turn, position) < (?, ?) AND in_prompt = 1
ORDER BY turn DESC, position DESC LIMIT ?
"""

# What a turn's prompt could show: later turns may have joined the queue behind it.
TURN_IN_SESSION = """
SELECT t.status, t.model, t.created_at, s.weight, s.message_count - s.hidden_count
FROM turns t JOIN sessions s ON s.id = t.session_id
WHERE t.session_id = ? AND t.number = ?
"""
QUEUED_BEHIND = """
SELECT COALESCE(SUM(weight), 0), COUNT(CASE WHEN kind IN ('user', 'assistant') THEN 1 END)
FROM items WHERE session_id = ? AND turn > ? AND in_prompt = 1
"""

_FIRST_PAGE = 32


def _newest_items(ref: TurnRef, history_weight: int) -> Transaction[tuple[KeptItem, ...]]:
    """The newest items up to and with turn `ref`, in order, at least `history_weight` of them."""
    items: list[KeptItem] = []
    before, page, weight = (ref.number + 1, 0), _FIRST_PAGE, 0
    while weight < history_weight:
        rows = yield NEWEST_ITEMS, (ref.session_id, *before, page)
        for turn, position, kind, text, data, heavy in rows:
            items.append(KeptItem(turn, position, _decode_item(kind, text, data), heavy))
            weight += heavy
        if len(rows) < page:
            break
        before, page = (rows[-1][0], rows[-1][1]), page * 2
    items.reverse()
    return tuple(items)


def get_history(ref: TurnRef, history_weight: int) -> Transaction[BegunTurn]:
    place = (ref.session_id, ref.number)
    rows = yield TURN_IN_SESSION, place
    if not rows:
        raise TurnNotFound("Turn not found")
    status, model, created_at, weight, messages = rows[0]
    behind = yield QUEUED_BEHIND, place
    items = yield from _newest_items(ref, history_weight)
    turn = Turn(ref, TurnStatus(status), model, created_at)
    return BegunTurn(turn, History(items, weight - int(behind[0][0]), messages - behind[0][1]))


# --- Ending a turn -----------------------------------------------------------------------------

FREE_SLOT = """
UPDATE sessions SET running = NULL, message_count = message_count + ?, weight = weight + ?,
    updated_at = ?
WHERE id = ? AND running = ? RETURNING turns
"""

LOCK_SESSION = "UPDATE sessions SET updated_at = ? WHERE id = ?"
TURN_STATUS = "SELECT status FROM turns WHERE session_id = ? AND number = ?"

END_TURN = """
UPDATE turns SET status = ?, finished_at = ?, prompt_tokens = ?, completion_tokens = ?,
    usage_estimated = ?, error_code = ?, error = ?, retry_after = ?, messages_sent = ?,
    messages_dropped = ?, estimated_tokens = ?
WHERE session_id = ? AND number = ?
"""

APPEND_REPLY = """
INSERT INTO items (session_id, turn, position, kind, text, weight, in_prompt)
VALUES (?, ?, (SELECT COALESCE(MAX(position) + 1, 0) FROM items WHERE session_id = ? AND turn = ?),
    'assistant', ?, ?, ?)
"""

DROP_CHECKPOINTS = "DELETE FROM checkpoints WHERE session_id = ? AND turn = ?"

TURN_WEIGHT = """
SELECT COALESCE(SUM(weight), 0), COUNT(CASE WHEN kind IN ('user', 'assistant') THEN 1 END)
FROM items WHERE session_id = ? AND turn = ? AND in_prompt = 1
"""
HIDE_FROM_PROMPTS = "UPDATE items SET in_prompt = 0 WHERE session_id = ? AND turn = ?"
LIGHTEN_SESSION = """
UPDATE sessions SET weight = weight - ?, hidden_count = hidden_count + ? WHERE id = ?
"""

NEXT_QUEUED = """
SELECT number, model, created_at FROM turns
WHERE session_id = ? AND number > ? AND status = 'queued' ORDER BY number LIMIT 1
"""
GIVE_SLOT = "UPDATE sessions SET running = ? WHERE id = ?"
START_TURN = "UPDATE turns SET status = 'running' WHERE session_id = ? AND number = ?"


def end_turn(ref: TurnRef, ending: Ending, now: int) -> Transaction[EndedTurn]:
    shown = _stays_in_prompts(ending)
    messages, weight = 0, 0
    if shown and ending.text:
        messages, weight = 1, item_weight(Message("assistant", ending.text))
    rows = yield FREE_SLOT, (messages, weight, now, ref.session_id, ref.number)
    if not rows:
        return (yield from _end_waiting(ref, ending, now))
    yield from _close_turn(ref, ending, now)
    newest = rows[0][0]
    return EndedTurn(True, (yield from _start_next(ref)) if newest > ref.number else None)


def _end_waiting(ref: TurnRef, ending: Ending, now: int) -> Transaction[EndedTurn]:
    """End a turn that did not run when we looked, unless it is over."""
    yield LOCK_SESSION, (now, ref.session_id)
    rows = yield TURN_STATUS, (ref.session_id, ref.number)
    status = rows[0][0] if rows else None
    if status == TurnStatus.RUNNING:  # promoted before we had the lock
        return (yield from end_turn(ref, ending, now))
    if status == TurnStatus.QUEUED:
        yield from _close_turn(ref, ending, now)
    return EndedTurn(status == TurnStatus.QUEUED)


def _stays_in_prompts(ending: Ending) -> bool:
    """DESIGN, "What is kept": failed, or ended without text → in no later prompt."""
    if ending.status is TurnStatus.COMPLETED:
        return True
    return ending.status is not TurnStatus.FAILED and ending.text != ""


def _close_turn(ref: TurnRef, ending: Ending, now: int) -> Transaction[None]:
    """Everything an ending changes but the session's own row."""
    place = (ref.session_id, ref.number)
    usage, failure, context = ending.usage, ending.failure, ending.context
    yield (
        END_TURN,
        (
            ending.status.value,
            now,
            *((usage.prompt_tokens, usage.completion_tokens) if usage else (None, None)),
            int(usage.estimated) if usage else None,
            *((failure.code, failure.sentence) if failure else (None, None)),
            failure.retry_after if failure else None,
            *((context.messages_sent, context.messages_dropped) if context else (None, None)),
            context.estimated_tokens if context else None,
            *place,
        ),
    )
    shown = _stays_in_prompts(ending)
    if not shown:
        rows = yield TURN_WEIGHT, place
        yield LIGHTEN_SESSION, (int(rows[0][0]), rows[0][1], ref.session_id)
        yield HIDE_FROM_PROMPTS, place
    if ending.text:
        weight = item_weight(Message("assistant", ending.text))
        yield APPEND_REPLY, (*place, *place, ending.text, weight, int(shown))
    if ending.checkpointed:
        yield DROP_CHECKPOINTS, place


def _start_next(ref: TurnRef) -> Transaction[Turn | None]:
    rows = yield NEXT_QUEUED, (ref.session_id, ref.number)
    if not rows:
        return None
    number, model, created_at = rows[0]
    yield GIVE_SLOT, (number, ref.session_id)
    yield START_TURN, (ref.session_id, number)
    return Turn(TurnRef(ref.session_id, number), TurnStatus.RUNNING, model, created_at)


# --- While a turn runs -------------------------------------------------------------------------

LOCK_RUNNING = "UPDATE sessions SET running = running WHERE id = ? AND running = ? RETURNING id"
INSERT_CHECKPOINT = """
INSERT INTO checkpoints (session_id, turn, position, text) VALUES (?, ?, ?, ?)
ON CONFLICT (session_id, turn, position) DO UPDATE SET text = excluded.text
"""


def checkpoint(ref: TurnRef, position: int, text: str) -> Transaction[None]:
    rows = yield LOCK_RUNNING, (ref.session_id, ref.number)
    if rows:
        yield INSERT_CHECKPOINT, (ref.session_id, ref.number, position, text)


# --- After a crash -----------------------------------------------------------------------------

OPEN_TURNS = """
SELECT session_id, number FROM turns WHERE status IN ('queued', 'running')
ORDER BY session_id, number
"""
CHECKPOINTED_TEXT = """
SELECT text FROM checkpoints WHERE session_id = ? AND turn = ? ORDER BY position
"""
SETTLE_SESSION = """
UPDATE sessions SET running = NULL, message_count = message_count + ?, weight = weight + ?
WHERE id = ?
"""


def settle_abandoned(now: int) -> Transaction[int]:
    abandoned = yield OPEN_TURNS, ()
    for session_id, number in abandoned:
        rows = yield CHECKPOINTED_TEXT, (session_id, number)
        text = "".join(row[0] for row in rows)
        weight = item_weight(Message("assistant", text)) if text else 0
        yield SETTLE_SESSION, (int(text != ""), weight, session_id)
        ending = Ending(TurnStatus.INTERRUPTED, text, checkpointed=text != "")
        yield from _close_turn(TurnRef(session_id, number), ending, now)
    return len(abandoned)


# --- Reading -----------------------------------------------------------------------------------

GET_TURN = """
SELECT t.status, t.model, t.created_at, t.finished_at, t.prompt_tokens, t.completion_tokens,
    t.usage_estimated, t.error_code, t.error, t.retry_after, t.messages_sent,
    t.messages_dropped, t.estimated_tokens
FROM turns t JOIN sessions s ON s.id = t.session_id
WHERE t.session_id = ? AND t.number = ? AND s.owner = ?
"""
REPLY_TEXT = """
SELECT text FROM items WHERE session_id = ? AND turn = ? AND kind = 'assistant' ORDER BY position
"""
LIST_SESSIONS = """
SELECT id, alias, message_count FROM sessions WHERE owner = ? AND message_count > 0 ORDER BY id
"""

# A session, with how many of its turns are open.
_SESSION = """
SELECT s.id, s.alias, s.model, s.message_count, (SELECT COUNT(*) FROM turns t
    WHERE t.session_id = s.id AND t.status IN ('queued', 'running')), s.created_at, s.updated_at
FROM sessions s WHERE s.owner = ?
"""
GET_SESSION_BY_ID = _SESSION + "AND s.id = ?"
GET_SESSION_BY_ALIAS = _SESSION + "AND s.alias = ?"
LIST_NEWEST = _SESSION + "ORDER BY s.id DESC LIMIT ?"

LIST_ITEMS = """
SELECT i.turn, i.position, i.kind, i.text, i.data, t.status, t.created_at, t.finished_at
FROM items i LEFT JOIN turns t ON t.session_id = i.session_id AND t.number = i.turn
WHERE i.session_id = ? AND (i.turn, i.position) > (?, ?)
ORDER BY i.turn, i.position LIMIT ?
"""

COUNT_SESSIONS = "SELECT COUNT(*) FROM sessions"
COUNT_TURNS = "SELECT COUNT(*) FROM turns"


def get_turn(owner: str, ref: TurnRef) -> Transaction[StoredReply]:
    rows = yield GET_TURN, (ref.session_id, ref.number, owner)
    if not rows:
        raise TurnNotFound("Turn not found")
    turn = _decode_turn(ref, rows[0])
    words = REPLY_TEXT if turn.status.terminal else CHECKPOINTED_TEXT
    texts = yield words, (ref.session_id, ref.number)
    return StoredReply(turn, "".join(row[0] for row in texts))


def list_sessions(owner: str) -> Transaction[Sequence[SessionSummary]]:
    rows = yield LIST_SESSIONS, (owner,)
    return [SessionSummary(*row) for row in rows]


def list_newest(owner: str, limit: int) -> Transaction[Sequence[Session]]:
    rows = yield LIST_NEWEST, (owner, limit)
    return [Session(*row) for row in rows]


def get_session(owner: str, session: SessionChoice) -> Transaction[Session]:
    if isinstance(session, ById):
        rows = yield GET_SESSION_BY_ID, (owner, session.id)
    else:
        rows = yield GET_SESSION_BY_ALIAS, (owner, session.alias)
    if not rows:
        raise SessionNotFound("Session not found")
    return Session(*rows[0])


def list_items(
    owner: str, session: SessionChoice, after: tuple[int, int] | None, limit: int
) -> Transaction[Sequence[ListedItem]]:
    found = yield from get_session(owner, session)
    rows = yield LIST_ITEMS, (found.id, *(after or (-1, -1)), limit)
    return [_decode_listed(row) for row in rows]


def count_kept() -> Transaction[tuple[int, int]]:
    """How many sessions and turns there are, of all owners."""
    sessions = yield COUNT_SESSIONS, ()
    turns = yield COUNT_TURNS, ()
    return sessions[0][0], turns[0][0]


def ping() -> Transaction[None]:
    yield "SELECT 1 FROM sessions LIMIT 1", ()


# --- Clearing and deleting ---------------------------------------------------------------------

CLEAR_BY_ID = """
UPDATE sessions SET running = NULL, message_count = 0, hidden_count = 0, weight = 0,
    updated_at = ?
WHERE owner = ? AND id = ? RETURNING id
"""
CLEAR_BY_ALIAS = CLEAR_BY_ID.replace("AND id = ?", "AND alias = ?")
OPEN_TURNS_OF_SESSION = """
SELECT number FROM turns WHERE session_id = ? AND status IN ('queued', 'running')
"""
DELETE_TURNS = "DELETE FROM turns WHERE session_id = ?"
DELETE_ITEMS = "DELETE FROM items WHERE session_id = ?"
DELETE_CHECKPOINTS = "DELETE FROM checkpoints WHERE session_id = ?"


def clear_session(owner: str, session: SessionChoice, now: int) -> Transaction[Sequence[TurnRef]]:
    if isinstance(session, ById):
        rows = yield CLEAR_BY_ID, (now, owner, session.id)
    else:
        rows = yield CLEAR_BY_ALIAS, (now, owner, session.alias)
    if not rows:
        return []
    session_id = rows[0][0]
    open_turns = yield OPEN_TURNS_OF_SESSION, (session_id,)
    for statement in (DELETE_TURNS, DELETE_ITEMS, DELETE_CHECKPOINTS):
        yield statement, (session_id,)
    return [TurnRef(session_id, number) for (number,) in open_turns]


DELETE_SESSION_BY_ID = "DELETE FROM sessions WHERE owner = ? AND id = ? RETURNING id"
DELETE_SESSION_BY_ALIAS = "DELETE FROM sessions WHERE owner = ? AND alias = ? RETURNING id"


def delete_session(
    owner: str, session: SessionChoice, if_idle: bool
) -> Transaction[Sequence[TurnRef]]:
    if isinstance(session, ById):
        rows = yield DELETE_SESSION_BY_ID, (owner, session.id)
    else:
        rows = yield DELETE_SESSION_BY_ALIAS, (owner, session.alias)
    if not rows:
        raise SessionNotFound("Session not found")
    session_id = rows[0][0]
    open_turns = yield OPEN_TURNS_OF_SESSION, (session_id,)
    if open_turns and if_idle:
        raise SessionBusy("A turn of this session is queued or running; try again when it is over")
    for statement in (DELETE_TURNS, DELETE_ITEMS, DELETE_CHECKPOINTS):
        yield statement, (session_id,)
    return [TurnRef(session_id, number) for (number,) in open_turns]


# --- Rows and records --------------------------------------------------------------------------

_encode_json = msgspec.json.Encoder().encode
_decode_json = msgspec.json.Decoder().decode


def _encode_item(item: Item) -> tuple[str, str, str | None]:
    """An item's `kind`, `text` and `data`; a message's kind is its role."""
    match item:
        case Message(role=role, text=text):
            return role, text, None
        case ToolCall(call_id=call_id, name=name, arguments=arguments):
            return "tool_call", arguments, _encode_json([call_id, name]).decode()
        case ToolResult(call_id=call_id, output=output):
            return "tool_result", output, _encode_json([call_id]).decode()
        case Reasoning(text=text):
            return "reasoning", text, None
        case _:
            assert_never(item)


def _decode_item(kind: str, text: str, data: str | None) -> Item:
    match kind:
        case "tool_call":
            call_id, name = _decode_json(data or "")
            return ToolCall(call_id, name, text)
        case "tool_result":
            return ToolResult(_decode_json(data or "")[0], text)
        case "reasoning":
            return Reasoning(text)
        case _:
            return Message(kind, text)


def _decode_listed(row: Row) -> ListedItem:
    turn, position, kind, text, data, status, created_at, finished_at = row
    return ListedItem(
        turn,
        position,
        _decode_item(kind, text, data),
        None if status is None else TurnStatus(status),
        finished_at if kind == "assistant" and finished_at is not None else created_at,
    )


def _decode_turn(ref: TurnRef, row: Row) -> Turn:
    status, model, created_at, finished_at, prompt, completion, estimated = row[:7]
    code, sentence, retry_after, sent, dropped, tokens = row[7:]
    return Turn(
        ref,
        TurnStatus(status),
        model,
        created_at,
        finished_at,
        None if prompt is None else Usage(prompt, completion, bool(estimated)),
        None if code is None else Failure(code, sentence, retry_after),
        None if sent is None else Context(sent, dropped, tokens),
    )
