"""What has been used of limits that outlast the process, and how many sessions someone has."""

from collections.abc import Sequence

from turnkeeper.contracts import Quota
from turnkeeper.errors import QuotaExceeded
from turnkeeper.limits import Spent, Subject
from turnkeeper.stores.sql.rows import Transaction

# --- Days and months ---------------------------------------------------------------------------

GET_SPENT = "SELECT measure, ends_at, amount FROM spent WHERE kind = ? AND name = ?"
# One row for each: what was used of a day or a month before is of no use any more.
KEEP_SPENT = """
INSERT INTO spent (kind, name, measure, ends_at, amount) VALUES (?, ?, ?, ?, ?)
ON CONFLICT (kind, name, measure) DO UPDATE SET
    ends_at = excluded.ends_at, amount = excluded.amount
"""
DROP_SPENT = """
DELETE FROM spent WHERE (kind, name, measure) IN (
    SELECT kind, name, measure FROM spent WHERE ends_at <= ? ORDER BY ends_at LIMIT ?
) RETURNING kind
"""


def get_spent(subject: Subject) -> Transaction[Sequence[Spent]]:
    rows = yield GET_SPENT, (subject.kind, subject.name)
    return [Spent(subject, *row) for row in rows]


def keep_spent(spent: Sequence[Spent]) -> Transaction[None]:
    # In one order: no deadlock.
    for one in sorted(spent, key=lambda one: (one.subject, one.measure)):
        yield KEEP_SPENT, (*one.subject, one.measure, one.ends_at, one.amount)


def drop_spent(now: int, limit: int) -> Transaction[int]:
    rows = yield DROP_SPENT, (now, limit)
    return len(rows)


# --- Sessions ----------------------------------------------------------------------------------

# Whoever makes a session for the owner too waits here until this one is made or refused.
LOCK_QUOTA = """
INSERT INTO session_quotas (owner) VALUES (?)
ON CONFLICT (owner) DO UPDATE SET owner = excluded.owner
"""
# No further than it matters. A user's are those of its end users too.
COUNT_OF_USER = "SELECT COUNT(*) FROM (SELECT 1 FROM sessions WHERE user_name = ? LIMIT ?) AS found"
COUNT_OF_END_USER = """
SELECT COUNT(*) FROM (
    SELECT 1 FROM sessions WHERE owner = ? AND owner <> user_name LIMIT ?
) AS found
"""


def check_quotas(quotas: Sequence[Quota], *, to_come: int = 0) -> Transaction[None]:
    """See that there are not too many sessions, with those that are `to_come`."""
    for quota in quotas:
        yield LOCK_QUOTA, (quota.owner,)
        count = COUNT_OF_END_USER if "/" in quota.owner else COUNT_OF_USER
        rows = yield count, (quota.owner, quota.sessions + 1)
        if rows[0][0] + to_come > quota.sessions:
            raise QuotaExceeded(
                f"There are {quota.sessions} sessions, which is all there may be; delete one", None
            )
