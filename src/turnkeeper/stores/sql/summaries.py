"""What models are shown in place of what no longer fits, and how they count their tokens."""

from collections.abc import Sequence

from turnkeeper.domain import KeptItem, Place, Summary, TokenCount, TurnRef
from turnkeeper.stores.sql.rows import Transaction
from turnkeeper.stores.sql.turns import LOCK_RUNNING, read_back

# --- Summaries ---------------------------------------------------------------------------------

GET_SUMMARY = "SELECT turn, position, text FROM summaries WHERE session_id = ?"
KEEP_SUMMARY = """
INSERT INTO summaries (session_id, turn, position, text) VALUES (?, ?, ?, ?)
ON CONFLICT (session_id) DO UPDATE SET
    turn = excluded.turn, position = excluded.position, text = excluded.text
"""

# Newest first: what is too much to tell of is never read.
ITEMS_BETWEEN = """
SELECT turn, position, kind, text, data, weight FROM items
WHERE session_id = ? AND (turn, position) > (?, ?) AND (turn, position) < (?, ?) AND in_prompt = 1
ORDER BY turn DESC, position DESC LIMIT ?
"""


def get_summary(session_id: str) -> Transaction[Summary | None]:
    rows = yield GET_SUMMARY, (session_id,)
    return Summary(Place(rows[0][0], rows[0][1]), rows[0][2]) if rows else None


def keep_summary(ref: TurnRef, summary: Summary) -> Transaction[None]:
    rows = yield LOCK_RUNNING, (ref.session_id, ref.number)
    if rows:  # else it tells of what may be gone
        last = summary.last
        yield KEEP_SUMMARY, (ref.session_id, last.turn, last.position, summary.text)


def items_between(
    session_id: str, after: Place, before: Place, weight: int
) -> Transaction[Sequence[KeptItem]]:
    where = (session_id, after.turn, after.position)
    return (yield from read_back(ITEMS_BETWEEN, where, (before.turn, before.position), weight))


# --- Counts ------------------------------------------------------------------------------------

LIST_COUNTS = """
SELECT model, bytes_per_token, deviation, error, reports FROM token_counts ORDER BY model
"""
KEEP_COUNT = """
INSERT INTO token_counts (model, bytes_per_token, deviation, error, reports)
VALUES (?, ?, ?, ?, ?)
ON CONFLICT (model) DO UPDATE SET bytes_per_token = excluded.bytes_per_token,
    deviation = excluded.deviation, error = excluded.error, reports = excluded.reports
"""


def list_counts() -> Transaction[Sequence[TokenCount]]:
    rows = yield LIST_COUNTS, ()
    return [TokenCount(*row) for row in rows]


def keep_counts(counts: Sequence[TokenCount]) -> Transaction[None]:
    for count in sorted(counts, key=lambda count: count.model):  # in one order: no deadlock
        learned = (count.bytes_per_token, count.deviation, count.error, count.reports)
        yield KEEP_COUNT, (count.model, *learned)
