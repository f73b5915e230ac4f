"""What was used: an entry for each turn that has ended, and the sums that entries are added to.

An entry is written in the transaction that ends the turn, and costs it one statement. It is added
to the sums by whoever removes it, many together and in one transaction: so each turn is counted
once, whatever happens between. What was used is read from both, and is therefore never late.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from itertools import chain
from typing import Any, TypeVar

from turnkeeper.contracts import UsageBy
from turnkeeper.domain import Ending, Sums, TurnRef, TurnStatus, is_for, split_owner
from turnkeeper.histograms import Spread
from turnkeeper.stores.sql.rows import Row, Rows, Transaction

K = TypeVar("K")

# --- Entries -----------------------------------------------------------------------------------

_ENTRY = """owner, revision, model, status, finished_at, duration, first_delta, prompt_tokens,
    completion_tokens"""

RECORD_ENDED = f"""
INSERT INTO usage_entries (session_id, turn, {_ENTRY}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
"""
# Of turns that are deleted before they have ended: for whoever asks later, they were cancelled.
RECORD_OPEN = f"""
INSERT INTO usage_entries (session_id, turn, {_ENTRY})
SELECT session_id, number, CAST(? AS TEXT), CAST(? AS TEXT), model, 'cancelled', created_at, 0,
    NULL, NULL, NULL
FROM turns WHERE session_id = ? AND status IN ('queued', 'running')
"""
NTH_ENTRY = "SELECT session_id, turn FROM usage_entries ORDER BY session_id, turn LIMIT 1 OFFSET ?"
TAKE_ENTRIES = f"DELETE FROM usage_entries WHERE (session_id, turn) <= (?, ?) RETURNING {_ENTRY}"
TAKE_ALL_ENTRIES = f"DELETE FROM usage_entries RETURNING {_ENTRY}"
TAKE_ENTRIES_OF_SESSION = f"DELETE FROM usage_entries WHERE session_id = ? RETURNING {_ENTRY}"
ALL_ENTRIES = f"SELECT {_ENTRY} FROM usage_entries"


def entry_of(ref: TurnRef, session: Row, turn: Row, ending: Ending, now: int) -> tuple[Any, ...]:
    """What `RECORD_ENDED` takes of a turn that ends.

    `session` is its session's owner and revision, `turn` its model and when it began.
    """
    usage = ending.usage
    return (
        ref.session_id,
        ref.number,
        *session,
        turn[0],
        ending.status.value,
        now,
        max(0, now - turn[1]),
        ending.first_delta,
        usage and usage.prompt_tokens,
        usage and usage.completion_tokens,
    )


def record_open(sessions: Rows) -> Transaction[None]:
    """Count the turns that are open in sessions whose turns are about to be deleted.

    `sessions` have an id, an owner and a revision in front.
    """
    for session_id, owner, revision, *_ in sessions:
        yield RECORD_OPEN, (owner, revision, session_id)


def fold_sessions(which: str, id_: str) -> Transaction[None]:
    """Add sessions' turns to the sums, where nothing tells any more whose session it was.

    `which` is what follows `session_id` in a condition, with a place for `id_`.
    """
    rows = yield TAKE_ENTRIES_OF_SESSION.replace("= ?", which), (id_,)
    if rows:
        yield from _add_entries(rows)


# --- Sums --------------------------------------------------------------------------------------

_NUMBERS = (
    "requests",
    "completed",
    "failed",
    "cancelled",
    "interrupted",
    "prompt_tokens",
    "completion_tokens",
    "duration",
    "first_delta",
)
_SUMS = f"{', '.join(_NUMBERS)}, durations, first_deltas"


def _adding(table: str, key: tuple[str, ...]) -> str:
    """Gives back the spreads as they were; those of a new row are empty."""
    added = ", ".join(f"{name} = {table}.{name} + excluded.{name}" for name in _NUMBERS)
    places = ", ".join("?" * (len(key) + len(_NUMBERS)))
    return f"""
INSERT INTO {table} ({", ".join(key)}, {_SUMS}) VALUES ({places}, '', '')
ON CONFLICT ({", ".join(key)}) DO UPDATE SET {added} RETURNING durations, first_deltas
"""


_DAY_KEY = ("username", "end_user", "day", "deployment", "model")
_MONTH_KEY = ("month", "username")
ADD_TO_DAY = _adding("usage_days", _DAY_KEY)
ADD_TO_MONTH = _adding("usage_months", _MONTH_KEY)
KEEP_SPREADS_OF_DAY = """
UPDATE usage_days SET durations = ?, first_deltas = ?
WHERE username = ? AND end_user = ? AND day = ? AND deployment = ? AND model = ?
"""
KEEP_SPREADS_OF_MONTH = """
UPDATE usage_months SET durations = ?, first_deltas = ? WHERE month = ? AND username = ?
"""
DEPLOYMENT_OF = "SELECT deployment FROM revisions WHERE id = ?"

# Requests of whoever has been forgotten meanwhile are nobody's.
IS_KNOWN = """
SELECT 1 WHERE EXISTS (SELECT 1 FROM users WHERE name = ?)
    OR EXISTS (SELECT 1 FROM sessions WHERE user_name = ?)
"""

# What sums are of: the owner, the day, the deployment and the model.
Base = tuple[str, str, str, str]
Key = tuple[str, ...]


def fold(requests: Mapping[tuple[str, str], int], limit: int) -> Transaction[int]:
    """Add so many entries to the sums, and `requests` by owner and day; the number of entries."""
    nth = yield NTH_ENTRY, (limit - 1,)
    rows = yield (TAKE_ENTRIES, tuple(nth[0])) if nth else (TAKE_ALL_ENTRIES, ())
    counted: dict[Base, Sums] = {}
    for (owner, day), count in requests.items():
        user = split_owner(owner)[0]
        is_known = yield IS_KNOWN, (user, user)
        _add(counted, (owner if is_known else "", day, "", ""), Sums(requests=count))
    yield from _add_entries(rows, counted)
    return len(rows)


def _add_entries(rows: Rows, sums: Mapping[Base, Sums] | None = None) -> Transaction[None]:
    deployments = yield from _deployments_of({row[1] for row in rows})
    all_sums = {**(sums or {}), **sum_up(rows, deployments)}
    days: dict[Key, Sums] = {}
    months: dict[Key, Sums] = {}
    key: Key
    for (owner, day, deployment, model), sum_ in all_sums.items():
        user, end_user = split_owner(owner)
        names = [("", ""), (user, ""), (user, end_user or "")]
        for who in names[: 1 if not user else 3 if end_user else 2]:
            for part in {("", ""), (deployment, model)}:
                key = (*who, day, *part)
                _add(days, key, sum_)
        if user:
            _add(months, (day[:7], user), sum_)
    # In one order, so that no two who add wait for each other.
    for key in sorted(days):
        yield from _add_to(ADD_TO_DAY, KEEP_SPREADS_OF_DAY, key, days[key])
    for key in sorted(months):
        yield from _add_to(ADD_TO_MONTH, KEEP_SPREADS_OF_MONTH, key, months[key])


def _deployments_of(revisions: Iterable[str]) -> Transaction[Mapping[str, str]]:
    deployments: dict[str, str] = {}
    for revision in revisions:
        rows = yield DEPLOYMENT_OF, (revision,)
        deployments[revision] = rows[0][0] if rows else ""
    return deployments


def sum_up(rows: Rows, deployments: Mapping[str, str]) -> dict[Base, Sums]:
    """Entries, added up by what they are of."""
    groups: dict[tuple[str, str, str, int], list[Row]] = {}
    for row in rows:
        groups.setdefault((row[0], row[1], row[2], row[4] // _DAY), []).append(row)
    sums: dict[Base, Sums] = {}
    for (owner, revision, model, day), group in groups.items():
        _add(sums, (owner, _day(day), deployments[revision], model), _sum_of(group))
    return sums


def _sum_of(rows: Rows) -> Sums:
    _, _, _, statuses, _, durations, first_deltas, prompt_tokens, completion_tokens = zip(
        *rows, strict=True
    )
    ended = Counter(statuses)
    completed = [
        duration
        for status, duration in zip(statuses, durations, strict=True)
        if status == TurnStatus.COMPLETED
    ]
    first = [delta for delta in first_deltas if delta is not None]
    return Sums(
        0,
        ended[TurnStatus.COMPLETED],
        ended[TurnStatus.FAILED],
        ended[TurnStatus.CANCELLED],
        ended[TurnStatus.INTERRUPTED],
        sum(filter(None, prompt_tokens)),
        sum(filter(None, completion_tokens)),
        sum(completed),
        sum(first),
        Spread.of(completed),
        Spread.of(first),
    )


def _add(sums: dict[K, Sums], key: K, more: Sums) -> None:
    before = sums.get(key)
    sums[key] = more if before is None else before + more


def _add_to(adding: str, keeping: str, key: Key, sums: Sums) -> Transaction[None]:
    rows = yield adding, (*key, *_numbers(sums))
    durations, first_deltas = rows[0]
    if sums.durations or sums.first_deltas:
        spreads = (
            (Spread.decode(durations) + sums.durations).encode(),
            (Spread.decode(first_deltas) + sums.first_deltas).encode(),
        )
        yield keeping, (*spreads, *key)


def _numbers(sums: Sums) -> tuple[int, ...]:
    return tuple(getattr(sums, name) for name in _NUMBERS)


def _decode_sums(rows: Rows) -> Sums:
    """What rows have together, of whose columns `_SUMS` are the last: column by column."""
    columns: list[Any] = list(zip(*rows, strict=True))[-len(_NUMBERS) - 2 :]
    every: list[Any] = [*map(sum, columns[:-2]), *(Spread.decode(*texts) for texts in columns[-2:])]
    return Sums(*every)


_DAY = 86_400_000  # ms


def _day(number: int) -> str:
    """The name of a day, counted from 1970."""
    return datetime.fromtimestamp(number * 86_400, UTC).date().isoformat()


# --- Reading -----------------------------------------------------------------------------------

SUMS_OF_OWNER = f"""
SELECT username, end_user, day, deployment, model, {_SUMS} FROM usage_days
WHERE username = ? AND end_user = ? AND day >= ? AND day <= ? AND model = ''
"""
PARTS_OF_OWNER = SUMS_OF_OWNER.replace("model = ''", "model > ''")
# Of one, or where that is nobody, of all.
SUMS_OF_END_USERS = SUMS_OF_OWNER.replace("end_user = ?", "? IN ('', end_user) AND end_user > ''")
SUMS_OF_USERS = f"""
SELECT username, end_user, day, deployment, model, {_SUMS} FROM usage_days
WHERE username > '' AND end_user = '' AND day >= ? AND day <= ? AND model = ''
"""
MONTHS_OF_USERS = f"""
SELECT username, '', month, '', '', {_SUMS} FROM usage_months WHERE month >= ? AND month < ?
"""

# Where what is told apart stands in these rows.
_PLACES: Mapping[UsageBy, int] = {
    "user": 0,
    "end_user": 1,
    "day": 2,
    "deployment": 3,
    "model": 4,
}


def list_usage(
    owner: str | None, by: UsageBy, first: str, last: str
) -> Transaction[Mapping[str, Sums]]:
    user, end_user = split_owner(owner or "")
    rows: Rows
    if by == "end_user":
        rows = yield SUMS_OF_END_USERS, (user, end_user or "", first, last)
    elif by == "user" and owner is None:
        rows = yield from _of_users(first, last)
    elif by in ("model", "deployment"):
        rows = yield PARTS_OF_OWNER, (user, end_user or "", first, last)
    else:
        rows = yield SUMS_OF_OWNER, (user, end_user or "", first, last)
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row[_PLACES[by]], []).append(row)
    sums = {name: _decode_sums(group) for name, group in groups.items()}
    entries = yield ALL_ENTRIES, ()
    deployments = yield from _deployments_of({row[1] for row in entries})
    for (whose, day, *of), more in sum_up(entries, deployments).items():
        if first <= day <= last and (owner is None or is_for(owner, whose)):
            name = (*split_owner(whose), day, *of)[_PLACES[by]]
            if name is not None:
                _add(sums, name, more)
    return sums


def _of_users(first: str, last: str) -> Transaction[Rows]:
    """Whole months in one piece, and days before and after."""
    begin, end = _whole_months(first, last)
    if begin >= end:
        return (yield SUMS_OF_USERS, (first, last))
    before = yield SUMS_OF_USERS, (first, f"{begin}-00")
    months = yield MONTHS_OF_USERS, (begin, end)
    after = yield SUMS_OF_USERS, (f"{end}-00", last)
    return list(chain(before, months, after))


def _whole_months(first: str, last: str) -> tuple[str, str]:
    """The first month that is whole, and the first after it that is not."""
    begin = first[:7] if first.endswith("-01") else _next_month(first[:7])
    next_day = datetime.fromisoformat(last).toordinal() + 1
    end = datetime.fromordinal(next_day).date().isoformat()[:7]
    return begin, end


def _next_month(month: str) -> str:
    year, number = int(month[:4]), int(month[5:])
    return f"{year + number // 12:04}-{number % 12 + 1:02}"


# --- Forgetting --------------------------------------------------------------------------------

DELETE_DAYS_OF_USER = "DELETE FROM usage_days WHERE username = ? RETURNING day"
DELETE_MONTHS_OF_USER = "DELETE FROM usage_months WHERE username = ? RETURNING month"
DELETE_DAYS_OF_END_USER = """
DELETE FROM usage_days WHERE username = ? AND end_user = ? RETURNING day
"""


def forget_usage(owner: str) -> Transaction[Mapping[str, int]]:
    """Remove the sums that are an owner's; how many rows of each table.

    What they have used stays in the sums of everybody, and an end user's in those of the user.
    """
    user, end_user = split_owner(owner)
    if not user:  # those are everybody's
        return {}
    if end_user is not None:
        return {"usage_days": len((yield DELETE_DAYS_OF_END_USER, (user, end_user)))}
    days = yield DELETE_DAYS_OF_USER, (user,)
    months = yield DELETE_MONTHS_OF_USER, (user,)
    return {"usage_days": len(days), "usage_months": len(months)}
