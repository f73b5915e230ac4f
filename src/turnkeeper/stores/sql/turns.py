"""Beginning, ending and checkpointing a turn, and what a crash leaves of one."""

from collections.abc import Sequence
from typing import Any, TypeGuard

from turnkeeper.contracts import BegunTurn, EndedTurn, NewTurn, NextTurn, StoredReply
from turnkeeper.domain import (
    Basis,
    ByAlias,
    ById,
    Ending,
    History,
    IdempotencyKey,
    Item,
    Kept,
    KeptItem,
    Message,
    SessionChoice,
    Turn,
    TurnRef,
    TurnStatus,
    counts_as_message,
    divide,
    item_weight,
    parse_turn_id,
    split_owner,
)
from turnkeeper.errors import (
    DeploymentNotFound,
    NotNewest,
    QueueFull,
    SessionBusy,
    SessionNotFound,
    TurnNotFound,
)
from turnkeeper.stores.sql.deployments import get_basis
from turnkeeper.stores.sql.expiry import expire_later
from turnkeeper.stores.sql.idempotency import claim, keep_made
from turnkeeper.stores.sql.rows import (
    OF_ALIAS,
    OF_ID,
    Row,
    Transaction,
    decode_item,
    decode_turn,
    encode_item,
    encode_object,
    is_shown,
    weigh_shown,
)
from turnkeeper.stores.sql.spending import check_quotas
from turnkeeper.stores.sql.usage import RECORD_ENDED, entry_of

# --- Beginning a turn --------------------------------------------------------------------------

_TAKEN = """
RETURNING id, turns, running, weight, message_count - hidden_count, owner, model, revision,
    variables, section, configured
"""

# Gives the turn its number and, when it is free, the session's slot.
TAKE_NUMBER = f"""
UPDATE sessions SET turns = turns + 1, running = COALESCE(running, turns + 1),
    message_count = message_count + ?, weight = weight + ?, model = COALESCE(?, model),
    version = version + 1, updated_at = ?
WHERE {OF_ID}
{_TAKEN}"""
TAKE_NUMBER_BY_ALIAS = TAKE_NUMBER.replace(OF_ID, OF_ALIAS)

# The same for a session that may not exist yet: two that race for one alias meet here.
CREATE_OR_TAKE_NUMBER = f"""
INSERT INTO sessions (message_count, weight, model, updated_at, owner, user_name, id, alias,
    created_at, revision, turns, running, hidden_count)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?,
    COALESCE((SELECT d.revision FROM deployments d WHERE d.name = ?), ''), 1, 1, 0)
ON CONFLICT (owner, alias) WHERE alias IS NOT NULL DO UPDATE SET
    turns = sessions.turns + 1, running = COALESCE(sessions.running, sessions.turns + 1),
    message_count = sessions.message_count + excluded.message_count,
    weight = sessions.weight + excluded.weight,
    model = COALESCE(excluded.model, sessions.model),
    version = sessions.version + 1, updated_at = excluded.updated_at
{_TAKEN}"""

COUNT_QUEUED = "SELECT COUNT(*) FROM turns WHERE session_id = ? AND status = 'queued'"
OPEN_BEFORE = """
SELECT number FROM turns
WHERE session_id = ? AND number < ? AND status IN ('queued', 'running') ORDER BY number
"""

INSERT_TURN = """
INSERT INTO turns (session_id, number, status, model, created_at) VALUES (?, ?, ?, ?, ?)
"""

INSERT_ITEM = """
INSERT INTO items (session_id, turn, position, kind, text, data, weight, created_at, in_prompt)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)
"""

INSERT_TURN_DATA = "INSERT INTO turn_data (session_id, number, data) VALUES (?, ?, ?)"


def begin_turn(new: NewTurn) -> Transaction[BegunTurn | TurnRef]:
    begun = yield from claim_turn(new.key, new.now)
    if begun is not None:
        return begun
    stored = yield from _begin_turn(new)
    yield from keep_made(new.key, stored.turn.ref.id, stored.turn.ref.session_id)
    return stored


def claim_turn(key: IdempotencyKey | None, now: int) -> Transaction[TurnRef | None]:
    """The turn that was begun under a key; None if none was yet.

    Raises:
        TurnNotFound: it has gone with its session.
    """
    made = yield from claim(key, now)
    if made == "":
        raise TurnNotFound("Turn not found")
    return None if made is None else parse_turn_id(made)


def _begin_turn(new: NewTurn) -> Transaction[BegunTurn]:
    row = yield from _take_number(new)
    session_id, number, running, total_weight, message_count, owner = row[:6]
    if new.after is not None:
        yield from _check_newest(new.after, number)
    if new.kept is not None:
        yield from _keep(session_id, new.kept)
    basis = yield from get_basis(row, new.revisions, configured=new.kept is not None)
    if new.scope is not None and basis.revision.deployment != new.scope:
        raise SessionNotFound("Session not found")
    if number == 1:  # of a session that is new; one that was made before has been noted
        yield from expire_later(session_id, basis.revision.blueprint, new.now)
        yield from check_quotas(new.quotas)
    choice = new.choose(basis, total_weight)
    if new.admit is not None:
        new.admit(session_id, basis, total_weight)
    ahead: Sequence[int] = ()
    if running != number:
        ahead = yield from _join_queue(new, basis, session_id, number, running)
    status = TurnStatus.RUNNING if running == number else TurnStatus.QUEUED
    yield INSERT_TURN, (session_id, number, status.value, choice.model, new.now)
    if new.data is not None:
        yield INSERT_TURN_DATA, (session_id, number, new.data)
    for position, item in enumerate(new.items):
        yield insert_item((session_id, number, position), item, new.now)
    turn = Turn(TurnRef(session_id, number), status, choice.model, new.now)
    items: tuple[KeptItem, ...] = ()
    if status is TurnStatus.RUNNING:
        items = yield from newest_items(turn.ref, choice.history_weight)
    history = History(items, total_weight, message_count)
    return BegunTurn(turn, history, basis, owner, ahead, asked=len(new.items))


def insert_item(place: tuple[str, int, int], item: Item, now: int) -> tuple[str, tuple[Any, ...]]:
    """The statement that stores an item."""
    shown = int(is_shown(item))
    return INSERT_ITEM, (*place, *encode_item(item), item_weight(item), now, shown)


# What came between a turn and one that is to follow it: a failure is in no prompt.
SHOWN_BETWEEN = """
SELECT 1 FROM items WHERE session_id = ? AND turn > ? AND turn < ? AND in_prompt = 1 LIMIT 1
"""


def _check_newest(after: TurnRef, number: int) -> Transaction[None]:
    """See that nothing stands between a turn and that `number` of its session."""
    if not (yield TURN_STATUS, (after.session_id, after.number)):
        raise TurnNotFound("Turn not found")
    if number - after.number > 1 and (
        yield SHOWN_BETWEEN, (after.session_id, after.number, number)
    ):
        raise NotNewest("Something else has been said since this turn")


# What is left out stays as it was.
KEEP_DATA = """
INSERT INTO session_data (session_id, variables, metadata, config, context_documents)
VALUES (?, '{}', '{}', ?, ?)
ON CONFLICT (session_id) DO UPDATE SET
    config = COALESCE(excluded.config, session_data.config),
    context_documents = COALESCE(excluded.context_documents, session_data.context_documents)
"""
SET_CONFIGURED = "UPDATE sessions SET configured = ? WHERE id = ?"


def _keep(session_id: str, kept: Kept) -> Transaction[None]:
    config, documents = kept.config, kept.context_documents
    values = (
        None if config is None else encode_object(config),
        None if documents is None else encode_object(documents),
    )
    yield KEEP_DATA, (session_id, *values)
    if config is not None:
        yield SET_CONFIGURED, (int(bool(config)), session_id)


_FULL = "Too many messages wait in this session already; try again in a moment"


def _join_queue(
    new: NewTurn, basis: Basis, session_id: str, number: int, running: int
) -> Transaction[Sequence[int]]:
    """Whether the turn may wait behind others; the numbers of those it is to interrupt."""
    match basis.revision.blueprint.concurrency:
        case "reject":
            raise busy(session_id, running)
        case "interrupt":
            rows = yield OPEN_BEFORE, (session_id, number)
            if len(rows) > new.queue_limit:  # they end in a moment, but no faster than that
                raise QueueFull(_FULL)
            return [row[0] for row in rows]
    if number - running > new.queue_limit:  # else there cannot be so many
        rows = yield COUNT_QUEUED, (session_id,)
        if rows[0][0] >= new.queue_limit:
            raise QueueFull(_FULL)
    return ()


def busy(session_id: str, number: int) -> SessionBusy:
    return SessionBusy(
        "A reply is being made in this session; try again when it is over",
        TurnRef(session_id, number).id,
    )


def _take_number(new: NewTurn) -> Transaction[Row]:
    messages = sum([counts_as_message(item) for item in new.items])
    weight = weigh_shown(new.items)
    session = new.session
    if session is None or (isinstance(session, ByAlias) and session.create):
        alias = session.alias if session else None
        user, _ = split_owner(new.owner)
        created = (new.now, new.owner, user, new.new_id, alias, new.now, new.deployment)
        rows = yield CREATE_OR_TAKE_NUMBER, (messages, weight, new.model, *created)
        if not rows[0][7]:
            raise DeploymentNotFound("Deployment not found")
        if new.bare and rows[0][1] == 1:
            yield SET_BARE, (rows[0][0],)
        return rows[0]
    added = (messages, weight, new.model, new.now)
    return (yield from take_number_of(new.owner, session, added))


# A session that is made for one exchange, and in no list.
SET_BARE = "UPDATE sessions SET archived = 2 WHERE id = ?"


def take_number_of(
    owner: str, session: SessionChoice, added: tuple[int, int, str | None, int]
) -> Transaction[Row]:
    """The row of a session that is there, with the number of one turn more.

    `added` are the messages and the weight that come to it, the model asked for, and the time.
    """
    statement = TAKE_NUMBER if isinstance(session, ById) else TAKE_NUMBER_BY_ALIAS
    rows = yield statement, (*added, owner, name_of(session))
    if not rows:
        raise SessionNotFound("Session not found")
    return rows[0]


def name_of(session: SessionChoice) -> str:
    """The id or the alias that a session is chosen by."""
    return session.id if isinstance(session, ById) else session.alias


# So many numbers at once, for items that no turn makes.
TAKE_NUMBERS = f"""
UPDATE sessions SET turns = turns + ?, message_count = message_count + ?, weight = weight + ?,
    version = version + 1, updated_at = ?
WHERE {OF_ID} RETURNING turns
"""


def take_numbers(
    owner: str, session_id: str, count: int, added: tuple[int, int, int]
) -> Transaction[int]:
    """The last of `count` numbers of a session; `added` are messages and weight, and the time."""
    rows = yield TAKE_NUMBERS, (count, *added, owner, session_id)
    if not rows:
        raise SessionNotFound("Session not found")
    return int(rows[0][0])


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


def newest_items(ref: TurnRef, history_weight: int) -> Transaction[tuple[KeptItem, ...]]:
    """The newest items up to and with turn `ref`, in order, at least `history_weight` of them."""
    behind = (ref.number + 1, 0)
    return (yield from read_back(NEWEST_ITEMS, (ref.session_id,), behind, history_weight))


def read_back(
    statement: str, where: tuple[Any, ...], before: tuple[int, int], least_weight: int
) -> Transaction[tuple[KeptItem, ...]]:
    """The last items before a place, in order, at least `least_weight` of them.

    `where` is what the statement, which gives the newest first, takes in front of the place.
    """
    items: list[KeptItem] = []
    page, weight = _FIRST_PAGE, 0
    while weight < least_weight:
        rows = yield statement, (*where, *before, page)
        for turn, position, kind, text, data, heavy in rows:
            items.append(KeptItem(turn, position, decode_item(kind, text, data), heavy))
            weight += heavy
        if len(rows) < page:
            break
        before, page = (rows[-1][0], rows[-1][1]), page * 2
    items.reverse()
    return tuple(items)


def get_history(ref: TurnRef, history_weight: int) -> Transaction[tuple[Turn, History]]:
    place = (ref.session_id, ref.number)
    rows = yield TURN_IN_SESSION, place
    if not rows:
        raise TurnNotFound("Turn not found")
    status, model, created_at, weight, messages = rows[0]
    behind = yield QUEUED_BEHIND, place
    items = yield from newest_items(ref, history_weight)
    turn = Turn(ref, TurnStatus(status), model, created_at)
    return turn, History(items, weight - int(behind[0][0]), messages - behind[0][1])


# --- Ending a turn -----------------------------------------------------------------------------

FREE_SLOT = """
UPDATE sessions SET running = NULL, message_count = message_count + ?, weight = weight + ?,
    version = version + 1, updated_at = ?
WHERE id = ? AND running = ? RETURNING turns, owner, revision
"""

LOCK_SESSION = """
UPDATE sessions SET version = version + 1, updated_at = ? WHERE id = ? RETURNING owner, revision
"""
TURN_STATUS = "SELECT status FROM turns WHERE session_id = ? AND number = ?"

END_TURN = """
UPDATE turns SET status = ?, model = COALESCE(?, model), finished_at = ?, prompt_tokens = ?,
    completion_tokens = ?, usage_estimated = ?, error_code = ?, error = ?, retry_after = ?,
    messages_sent = ?, messages_dropped = ?, estimated_tokens = ?, summarised = ?, finish = ?,
    cached_tokens = ?, reasoning_tokens = ?
WHERE session_id = ? AND number = ? RETURNING model, created_at
"""

APPEND_REPLY = """
INSERT INTO items (session_id, turn, position, kind, text, weight, created_at, in_prompt)
VALUES (?, ?, (SELECT COALESCE(MAX(position) + 1, 0) FROM items WHERE session_id = ? AND turn = ?),
    'assistant', ?, ?, ?, ?)
"""

# The next item of a turn, whatever it is.
APPEND_ITEM = APPEND_REPLY.replace("kind, text,", "kind, text, data,").replace(
    "'assistant', ?,", "?, ?, ?,"
)

KEEP_CUTS = """
INSERT INTO turn_data (session_id, number, cuts) VALUES (?, ?, ?)
ON CONFLICT (session_id, number) DO UPDATE SET cuts = excluded.cuts
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
    messages, weight = _added_by(ending)
    rows = yield FREE_SLOT, (messages, weight, now, ref.session_id, ref.number)
    if not rows:
        return (yield from _end_waiting(ref, ending, now))
    newest, *whose = rows[0]
    yield from _close_turn(ref, whose, ending, now)
    return EndedTurn(True, (yield from _start_next(ref)) if newest > ref.number else None)


def _added_by(ending: Ending) -> tuple[int, int]:
    """The messages and the weight that a reply adds to what its session's prompts show."""
    if not _stays_in_prompts(ending):
        return 0, 0
    if ending.items:
        return int(ending.text != ""), weigh_shown(ending.items)
    return (1, item_weight(Message("assistant", ending.text))) if ending.text else (0, 0)


def _end_waiting(ref: TurnRef, ending: Ending, now: int) -> Transaction[EndedTurn]:
    """End a turn that did not run when we looked, unless it is over."""
    session = yield LOCK_SESSION, (now, ref.session_id)
    rows = yield TURN_STATUS, (ref.session_id, ref.number)
    status = rows[0][0] if rows else None
    if status == TurnStatus.RUNNING:  # promoted before we had the lock
        return (yield from end_turn(ref, ending, now))
    if status == TurnStatus.QUEUED:
        yield from _close_turn(ref, session[0], ending, now)
    return EndedTurn(status == TurnStatus.QUEUED)


def _stays_in_prompts(ending: Ending) -> bool:
    """DESIGN, "What is kept": failed, or ended without text → in no later prompt."""
    if ending.status is TurnStatus.COMPLETED:
        return True
    return ending.status is not TurnStatus.FAILED and ending.text != ""


def _close_turn(ref: TurnRef, whose: Row, ending: Ending, now: int) -> Transaction[None]:
    """Everything an ending changes but the session's own row, of which `whose` is the owner and
    the revision."""
    place = (ref.session_id, ref.number)
    usage, failure, context = ending.usage, ending.failure, ending.context
    turns = yield (
        END_TURN,
        (
            ending.status.value,
            ending.model,
            now,
            *((usage.prompt_tokens, usage.completion_tokens) if usage else (None, None)),
            int(usage.estimated) if usage else None,
            *((failure.code, failure.sentence) if failure else (None, None)),
            failure.retry_after if failure else None,
            *((context.messages_sent, context.messages_dropped) if context else (None, None)),
            *((context.estimated_tokens, int(context.summarised)) if context else (None, None)),
            ending.finish,
            *((usage.cached_tokens, usage.reasoning_tokens) if usage else (None, None)),
            *place,
        ),
    )
    yield RECORD_ENDED, entry_of(ref, whose, turns[0], ending, now)
    shown = _stays_in_prompts(ending)
    if not shown:
        rows = yield TURN_WEIGHT, place
        yield LIGHTEN_SESSION, (int(rows[0][0]), rows[0][1], ref.session_id)
        yield HIDE_FROM_PROMPTS, place
    for item in ending.items:
        in_prompt = int(shown and is_shown(item))
        kept = (*encode_item(item), item_weight(item))
        yield APPEND_ITEM, (*place, *place, *kept, now, in_prompt)
    if ending.text and not ending.items:
        weight = item_weight(Message("assistant", ending.text))
        yield APPEND_REPLY, (*place, *place, ending.text, weight, now, int(shown))
    if ending.cuts:
        yield KEEP_CUTS, (*place, ending.cuts)
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
INSERT INTO checkpoints (session_id, turn, position, text, cuts) VALUES (?, ?, ?, ?, ?)
ON CONFLICT (session_id, turn, position) DO UPDATE SET
    text = excluded.text, cuts = excluded.cuts
"""


def checkpoint(ref: TurnRef, position: int, text: str, cuts: str | None) -> Transaction[None]:
    rows = yield LOCK_RUNNING, (ref.session_id, ref.number)
    if rows:
        yield INSERT_CHECKPOINT, (ref.session_id, ref.number, position, text, cuts)


# --- After a crash -----------------------------------------------------------------------------

OPEN_TURNS = """
SELECT session_id, number FROM turns WHERE status IN ('queued', 'running')
ORDER BY session_id, number
"""
CHECKPOINTED = """
SELECT text, cuts FROM checkpoints WHERE session_id = ? AND turn = ? ORDER BY position
"""
SETTLE_SESSION = """
UPDATE sessions SET running = NULL, message_count = message_count + ?, weight = weight + ?,
    version = version + 1
WHERE id = ? RETURNING owner, revision
"""


def list_open() -> Transaction[Sequence[TurnRef]]:
    rows = yield OPEN_TURNS, ()
    return [TurnRef(session_id, number) for session_id, number in rows]


def settle(ref: TurnRef, now: int) -> Transaction[EndedTurn]:
    return (yield from end_turn(ref, (yield from _interruption(ref)), now))


def _interruption(ref: TurnRef) -> Transaction[Ending]:
    """The ending of a turn that nobody makes any more, with what was kept of it."""
    rows = yield CHECKPOINTED, (ref.session_id, ref.number)
    text = "".join(row[0] for row in rows)
    cuts = " ".join(row[1] for row in rows if row[1]) or None
    return Ending(TurnStatus.INTERRUPTED, text, checkpointed=text != "", cuts=cuts)


def settle_abandoned(now: int) -> Transaction[int]:
    abandoned = yield from list_open()
    for ref in abandoned:
        ending = yield from _interruption(ref)
        rows = yield SETTLE_SESSION, (*_added_by(ending), ref.session_id)
        yield from _close_turn(ref, rows[0], ending, now)
    return len(abandoned)


# --- Following a session -----------------------------------------------------------------------

NEXT_TURN = """
SELECT s.turns, s.running,
    (SELECT MIN(t.number) FROM turns t WHERE t.session_id = s.id AND t.number > ?)
FROM sessions s WHERE ? IN (s.owner, s.user_name) AND s.id = ?
"""


def next_turn(owner: str, session_id: str, after: int) -> Transaction[NextTurn]:
    rows = yield NEXT_TURN, (after, owner, session_id)
    if not rows:
        raise SessionNotFound("Session not found")
    newest, running, following = rows[0]
    return NextTurn(following, newest, running)


# --- Reading -----------------------------------------------------------------------------------

TURN_COLUMNS = """t.status, t.model, t.created_at, t.finished_at, t.prompt_tokens,
    t.completion_tokens, t.usage_estimated, t.error_code, t.error, t.retry_after,
    t.messages_sent, t.messages_dropped, t.estimated_tokens, t.summarised, t.finish,
    t.cached_tokens, t.reasoning_tokens"""
GET_TURN = f"""
SELECT d.data, d.cuts, {TURN_COLUMNS}
FROM turns t JOIN sessions s ON s.id = t.session_id
    LEFT JOIN turn_data d ON d.session_id = t.session_id AND d.number = t.number
WHERE t.session_id = ? AND t.number = ? AND ? IN (s.owner, s.user_name)
"""
ITEMS_OF_TURN = """
SELECT turn, position, kind, text, data, weight FROM items
WHERE session_id = ? AND turn = ? ORDER BY position
"""
# Of a turn in whose place another stands now.
HIDDEN_ITEMS_OF_TURN = ITEMS_OF_TURN.replace("items", "hidden_items")


def get_turn(owner: str, ref: TurnRef) -> Transaction[StoredReply]:
    rows = yield GET_TURN, (ref.session_id, ref.number, owner)
    if not rows:
        raise TurnNotFound("Turn not found")
    data, cuts, *columns = rows[0]
    turn = decode_turn(ref, columns)
    items = yield from items_of_turn(ref)
    _, made = divide(items)
    text = "".join([kept.item.text for kept in made if is_reply(kept.item)])
    if not turn.status.terminal:
        checkpoints = yield CHECKPOINTED, (ref.session_id, ref.number)
        text = "".join([row[0] for row in checkpoints])
        cuts = " ".join([row[1] for row in checkpoints if row[1]])
    return StoredReply(turn, text, items, data, cuts)


def items_of_turn(ref: TurnRef) -> Transaction[Sequence[KeptItem]]:
    """All that was said in a turn, listed or else hidden, in order."""
    place = (ref.session_id, ref.number)
    rows = (yield ITEMS_OF_TURN, place) or (yield HIDDEN_ITEMS_OF_TURN, place)
    return [
        KeptItem(turn, position, decode_item(kind, text, data), weight)
        for turn, position, kind, text, data, weight in rows
    ]


def is_reply(item: Item) -> TypeGuard[Message]:
    return isinstance(item, Message) and item.role == "assistant"


# What prompts could show up to a turn.
SHOWN_UP_TO = """
SELECT COALESCE(SUM(weight), 0), COUNT(CASE WHEN kind IN ('user', 'assistant') THEN 1 END)
FROM items WHERE session_id = ? AND turn <= ? AND in_prompt = 1
"""
SHOWN_IN_SESSION = """
SELECT id, weight, message_count - hidden_count, turns FROM sessions WHERE """


def read_history(
    owner: str, before: TurnRef | SessionChoice, history_weight: int
) -> Transaction[History]:
    if isinstance(before, TurnRef):
        if not (yield GET_TURN, (before.session_id, before.number, owner)):
            raise TurnNotFound("Turn not found")
        ref, sums = before, (yield SHOWN_UP_TO, (before.session_id, before.number))[0]
    else:
        by_id = isinstance(before, ById)
        statement = SHOWN_IN_SESSION + (OF_ID if by_id else OF_ALIAS)
        rows = yield statement, (owner, name_of(before))
        if not rows:
            raise SessionNotFound("Session not found")
        id_, *sums, newest = rows[0]
        ref = TurnRef(id_, newest)
    items = yield from newest_items(ref, history_weight)
    return History(items, int(sums[0]), int(sums[1]))
