"""Killed at any moment, the server keeps its promises; and forged books do not pass the audit.

One run of `crash` with 41 kills. Its database is then forged in copies, a promise at a time.
"""

import asyncio
import dataclasses
import random
import shutil
import sqlite3
import statistics
from collections import Counter
from contextlib import closing
from pathlib import Path

import aiohttp
import pytest

from crash import diary
from crash.audit import audit_replays
from crash.campaign import DATABASE, SERVING, STARTING, Pace, check_file, plan_blows
from crash.diary import Ask, Diary, Ending, Ledger
from crash.report import summarise
from crash.run import Evidence, Findings, Orders, audit, run
from crash.victim import MOMENTS, TRANSACTIONS
from crash.words import breaks_off, make_message, play, right_reply
from rig.model_server import Call

ORDERS = Orders(
    kills=41,
    seed=6,
    longest_reply=2.0,
    checkpoint_seconds=0.2,
    settled_within=20.0,  # a start takes half a second, if the machine has nothing else to do
    pace=Pace(0.05, 1.6),
)

pytestmark = pytest.mark.timeout(300)  # half a minute, unless the machine has much else to do


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("crash")


@pytest.fixture(scope="module")
def found(folder: Path) -> Findings:
    return asyncio.run(run(ORDERS, folder, print))


def test_41_kills_and_every_promise_is_kept(found: Findings) -> None:
    ledger = found.evidence.diary.ledger
    assert ledger.broken == []
    assert len(found.kills) == 41
    assert [promise for promise in diary.PROMISES if not ledger.checked[promise]] == []


def test_the_kills_hit_turns_that_ran(found: Findings) -> None:
    places = summarise(found).places
    assert sum(places.values()) == 41
    assert places[SERVING] + places[STARTING] > 41 / 2
    assert len(places) >= 8
    assert sum(kill.abandoned for kill in found.kills) >= 100
    assert any(loss.characters > 0 for loss in found.losses)
    assert statistics.median(found.settled) <= 5


# --- Forged books ------------------------------------------------------------------------------

REPLY = "UPDATE items SET {} WHERE session_id = :session AND turn = :turn AND kind = 'assistant'"
TWICE = """
    CREATE TEMP TABLE again AS SELECT * FROM {0} WHERE session_id = :session AND {1} = :turn;
    UPDATE again SET {1} = 1000;
    INSERT INTO {0} SELECT * FROM again;
    DROP TABLE again;
"""
FORGERIES = {
    "a reply is cut off": (diary.WHOLE, REPLY.format("text = SUBSTR(text, 1, 9)")),
    "a reply is gone": (diary.WHOLE, REPLY.format("kind = 'reasoning'")),
    "a word is another": (diary.RIGHT, REPLY.format("text = REPLACE(text, 'end·', 'End·')")),
    "a reply is not what was told": (diary.HTTP, REPLY.format("text = text || '.'")),
    "a reply weighs more": (diary.SUMS, REPLY.format("weight = weight + 1")),
    "a turn is gone": (
        diary.KEPT,
        "DELETE FROM turns WHERE session_id = :session AND number = :turn",
    ),
    "a message is gone": (
        diary.KEPT,
        "DELETE FROM items WHERE session_id = :session AND turn = :turn AND kind = 'user'",
    ),
    "a message is another's": (diary.ONCE, "UPDATE items SET text = 'x' WHERE kind = 'user'"),
    "a message is there twice": (
        diary.ONCE,
        TWICE.format("turns", "number") + TWICE.format("items", "turn"),
    ),
    "a key has two turns": (
        diary.ONE_TURN,
        TWICE.format("turns", "number") + TWICE.format("items", "turn"),
    ),
    "a key has no turn": (diary.ONE_TURN, "UPDATE idempotency_keys SET made = 't'"),
    "a session is nobody's": (
        diary.ONCE,
        "UPDATE sessions SET id = 's' WHERE id = :session",
    ),
    "an ending is another": (
        diary.FINAL,
        "UPDATE turns SET status = 'cancelled' WHERE status = 'completed'",
    ),
    "a turn runs": (diary.OVER, "UPDATE turns SET status = 'running' WHERE status = 'failed'"),
    "a turn waits": (diary.OVER, "UPDATE turns SET status = 'queued' WHERE number = 1"),
    "a slot is taken": (diary.OVER, "UPDATE sessions SET running = 1"),
    "a number is missing": (diary.NUMBERS, "UPDATE sessions SET turns = turns + 1"),
    "a message more is counted": (
        diary.SUMS,
        "UPDATE sessions SET message_count = message_count + 1",
    ),
    "a message more is hidden": (diary.SUMS, "UPDATE sessions SET hidden_count = hidden_count + 1"),
    "a session weighs less": (diary.SUMS, "UPDATE sessions SET weight = weight - 1"),
    "a checkpoint is left": (
        diary.LEFTOVERS,
        "INSERT INTO checkpoints VALUES ('s', 1, 0, 'x', NULL)",
    ),
}


@pytest.fixture
def copy(folder: Path, found: Findings, tmp_path: Path) -> Path:
    assert found.kills
    return Path(shutil.copy(folder / DATABASE, tmp_path))


def audited(copy: Path, evidence: Evidence) -> set[str]:
    """The promises that are broken now."""
    fresh = dataclasses.replace(evidence.diary, ledger=Ledger())
    audit(copy, dataclasses.replace(evidence, diary=fresh))
    return {one.promise for one in fresh.ledger.broken}


def forge(copy: Path, script: str, turn_id: str) -> None:
    session, _, number = turn_id[1:].partition("_")
    with closing(sqlite3.connect(copy)) as file:
        before = file.total_changes
        file.executescript(script.replace(":session", f"'s{session}'").replace(":turn", number))
        assert file.total_changes > before, "nothing was forged"


def told_as(found: Findings, status: str) -> Ask:
    """The first message whose client was told of such an ending, with the text."""
    return next(
        ask
        for ask in found.evidence.diary.asks
        if any(ending.status == status and ending.text for ending in ask.endings)
    )


def test_books_that_nobody_forged_pass(found: Findings, copy: Path) -> None:
    assert audited(copy, found.evidence) == set()


@pytest.mark.parametrize("forgery", FORGERIES)
def test_the_audit_finds_that(forgery: str, found: Findings, copy: Path) -> None:
    promise, script = FORGERIES[forgery]
    forge(copy, script, told_as(found, "completed").turn_id or "")
    assert promise in audited(copy, found.evidence)


def test_the_audit_finds_that_two_messages_changed_places(found: Findings, copy: Path) -> None:
    ask = next(
        ask
        for ask in found.evidence.diary.asks
        if ask.before and ask.turn_id and ask.before.turn_id
        if ask.turn_id.partition("_")[0] == ask.before.turn_id.partition("_")[0]
    )
    assert ask.before is not None
    earlier = (ask.before.turn_id or "").partition("_")[2]
    swap = "UPDATE {} SET {} = {} WHERE session_id = :session AND {} = {};"
    script = ""
    for table, column in (("turns", "number"), ("items", "turn")):
        for old, new in ((":turn", "9999"), (earlier, ":turn"), ("9999", earlier)):
            script += swap.format(table, column, new, column, old)
    forge(copy, script, ask.turn_id or "")
    ask.turn_ids, ask.before.turn_ids = ask.before.turn_ids, ask.turn_ids
    try:
        assert diary.ORDER in audited(copy, found.evidence)
    finally:
        ask.turn_ids, ask.before.turn_ids = ask.before.turn_ids, ask.turn_ids


def test_the_audit_finds_an_interrupted_reply_that_kept_too_little(
    found: Findings, copy: Path
) -> None:
    ask = told_as(found, "interrupted")
    cut = REPLY.format("text = SUBSTR(text, 1, 1)")
    hidden = cut.replace("items", "hidden_items")  # it may have been tried again
    forge(copy, f"{cut}; {hidden}", ask.turn_id or "")
    late = {turn: died + 10 for turn, died in found.evidence.died_at.items()}
    assert diary.PARTIAL in audited(copy, dataclasses.replace(found.evidence, died_at=late))


def test_the_audit_finds_a_broken_file(copy: Path) -> None:
    with copy.open("r+b") as file:
        file.seek(3 * 4096)
        file.write(b"\xff" * 4096)
    ledger = Ledger()
    with closing(sqlite3.connect(copy)) as books:
        check_file(books, ledger)
    assert [one.promise for one in ledger.broken] == [diary.FILE]


async def test_the_audit_finds_an_answer_that_is_no_replay(server_url: str) -> None:
    ask = Ask("key", "Hello", "/api/chat", {"message": "Hello"}, "response")
    ask.turn_ids, ask.endings = {"t1_1"}, [Ending("t1_1", "completed", "Good evening.")]
    kept = Diary(asks=[ask])
    async with aiohttp.ClientSession() as http:
        await audit_replays(server_url, kept, http, [ask])
    assert [one.promise for one in kept.ledger.broken] == [diary.REPLAY]


# --- Messages and blows ------------------------------------------------------------------------


def test_the_model_says_what_the_audit_expects() -> None:
    rng = random.Random(1)
    for number in range(200):
        message = make_message(f"client-{number}", rng, 1.0)
        call = Call(1, {}, {"messages": [{"role": "user", "content": message}]})
        plan = play(call)
        assert "".join(plan.deltas) == right_reply(message)
        assert bool(plan.at) == breaks_off(message)


def test_most_blows_come_from_outside_and_every_point_has_some() -> None:
    blows = plan_blows(500, random.Random(1), Pace(0, 1))
    places = Counter(blow.place for blow in blows)
    assert places[SERVING] + places[STARTING] == 350
    points = {f"{name}, {moment}" for name in TRANSACTIONS for moment in MOMENTS}
    assert set(places) == points | {SERVING, STARTING}
