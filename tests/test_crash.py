"""Killed at any moment, the server keeps its promises; and a forged book does not pass the audit.

One run of `crash` with 41 kills. Its database is then forged in copies, one promise after the other.
"""

import asyncio
import dataclasses
import random
import shutil
import sqlite3
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from crash import diary
from crash.campaign import DATABASE, SERVING, STARTING, Pace, plan_blows
from crash.diary import Ask, Diary, Ending, Ledger
from crash.report import summarise
from crash.run import Evidence, Findings, Orders, audit, run
from crash.victim import MOMENTS, TRANSACTIONS, Tripwire
from crash.words import make_message, right_reply

ORDERS = Orders(
    kills=41, seed=6, longest_reply=1.0, checkpoint_seconds=0.3, pace=Pace(0.05, 0.9)
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("crash")


@pytest.fixture(scope="module")
def found(folder: Path) -> Findings:
    return asyncio.run(run(ORDERS, folder, print))


def test_41_kills_and_every_promise_is_kept(found: Findings) -> None:
    ledger = found.evidence.diary.ledger
    assert ledger.broken == []
    assert len(found.kills) >= 40
    unchecked = {promise for promise in diary.PROMISES if not ledger.checked[promise]}
    assert unchecked == set()


def test_the_kills_hit_turns_that_ran(found: Findings) -> None:
    outside = [kill for kill in found.kills if kill.place in (SERVING, STARTING)]
    assert len(outside) > len(found.kills) / 2
    assert len({kill.place for kill in found.kills}) >= 6
    assert sum(kill.abandoned for kill in found.kills) >= 100
    assert any(loss.characters > 0 for loss in found.losses)
    summary = summarise(found)
    assert sum(summary.places.values()) == len(found.kills)


# --- The audit bites ---------------------------------------------------------------------------


def audited(found: Findings, file: Path, evidence: Evidence) -> set[str]:
    """The promises that are broken now."""
    fresh = dataclasses.replace(evidence.diary, ledger=Ledger())
    audit(file, dataclasses.replace(evidence, diary=fresh))
    return {one.promise for one in fresh.ledger.broken}


@pytest.fixture
def copy(folder: Path, found: Findings, tmp_path: Path) -> Path:
    return Path(shutil.copy(folder / DATABASE, tmp_path))


A_REPLY = """
    SELECT i.session_id, i.turn, i.position FROM items i JOIN turns t
    ON t.session_id = i.session_id AND t.number = i.turn
    WHERE i.kind = 'assistant' AND t.status = '{}' AND LENGTH(i.text) > 200
    AND (t.session_id, t.number) IN (SELECT session_id, number FROM known) LIMIT 1
"""
COMPLETED = A_REPLY.format("completed")
FORGERIES = [
    (diary.WHOLE, f"UPDATE items SET text = SUBSTR(text, 1, 90) WHERE (session_id, turn, position) IN ({COMPLETED})"),
    (diary.RIGHT, f"UPDATE items SET text = REPLACE(text, '·', ':') WHERE (session_id, turn, position) IN ({COMPLETED})"),
    (diary.HTTP, f"UPDATE items SET text = text || '.' WHERE (session_id, turn, position) IN ({COMPLETED})"),
    (diary.SUMS, f"UPDATE items SET weight = weight + 1 WHERE (session_id, turn, position) IN ({COMPLETED})"),
    (diary.KEPT, "DELETE FROM turns WHERE (session_id, number) IN (SELECT * FROM known LIMIT 1)"),
    (diary.KEPT, "DELETE FROM items WHERE (session_id, turn) IN (SELECT * FROM known LIMIT 1)"),
    (diary.ONCE, "INSERT INTO items SELECT 's2', 1, * FROM (SELECT * FROM items LIMIT 1)"),
    (diary.FINAL, "UPDATE turns SET status = 'cancelled' WHERE status = 'completed'"),
    (diary.OVER, "UPDATE turns SET status = 'running' WHERE status = 'interrupted'"),
    (diary.OVER, "UPDATE sessions SET running = 1"),
    (diary.NUMBERS, "UPDATE sessions SET turns = turns + 1"),
    (diary.NUMBERS, "UPDATE turns SET number = number + 1000"),
    (diary.SUMS, "UPDATE sessions SET message_count = message_count + 1"),
    (diary.SUMS, "UPDATE sessions SET hidden_count = hidden_count + 1"),
    (diary.SUMS, "UPDATE sessions SET weight = weight - 1"),
    (diary.LEFTOVERS, "INSERT INTO checkpoints VALUES ('s', 1, 0, 'once')"),
]
