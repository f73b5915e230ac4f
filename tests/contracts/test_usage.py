"""The exam of `contracts.UsageStore`: every turn is counted once, whatever becomes of it."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from datetime import UTC, datetime

import pytest

from tests.contracts.test_store import NOW, a_turn, completed, publish
from turnkeeper.compose import open_driver
from turnkeeper.contracts import BegunTurn, UsageBy
from turnkeeper.domain import (
    Blueprint,
    ById,
    Ending,
    SessionChoice,
    Sums,
    TurnRef,
    TurnStatus,
    Usage,
)
from turnkeeper.histograms import Spread
from turnkeeper.stores.store import Driver, SqlStore
from turnkeeper.stores.usage import SqlUsage

DAY_MS = 86_400_000
ALWAYS = ("1970-01-01", "2999-12-31")
SECOND = 1000


def day(milliseconds: int) -> str:
    return datetime.fromtimestamp(milliseconds / 1000, UTC).date().isoformat()


TODAY = day(NOW)


@pytest.fixture
async def driver(database: str) -> AsyncIterator[Driver]:
    driver = await open_driver(database)
    await publish(SqlStore(driver), "default")
    yield driver
    await driver.close()


@pytest.fixture
def store(driver: Driver) -> SqlStore:
    return SqlStore(driver)


@pytest.fixture
def usage(driver: Driver) -> SqlUsage:
    return SqlUsage(driver)


async def begin(
    store: SqlStore,
    owner: str = "ann",
    model: str | None = None,
    session: SessionChoice | None = None,
    deployment: str = "default",
) -> TurnRef:
    turn = a_turn("hi", owner=owner, model=model, session=session, deployment=deployment)
    begun = await store.begin_turn(turn)
    assert isinstance(begun, BegunTurn)
    return begun.turn.ref


async def take(
    store: SqlStore, owner: str = "ann", *, model: str | None = None, at: int = NOW + SECOND
) -> TurnRef:
    ref = await begin(store, owner, model)
    await store.end_turn(ref, completed("hello"), at)
    return ref


async def fold(usage: SqlUsage) -> None:
    while await usage.fold({}, 2):
        pass


async def turns(
    usage: SqlUsage,
    owner: str | None = None,
    by: UsageBy = "day",
    days: tuple[str, str] = ALWAYS,
) -> Mapping[str, int]:
    """How many ended, however they did."""
    found = await usage.list_usage(owner, by, *days)
    return {name: count(sums) for name, sums in found.items()}


def count(sums: Sums) -> int:
    return sums.completed + sums.failed + sums.cancelled + sums.interrupted


async def test_a_turn_is_told_before_it_is_folded_and_just_so_after(
    store: SqlStore, usage: SqlUsage
) -> None:
    ref = await begin(store)
    ending = Ending(TurnStatus.COMPLETED, "hi", Usage(30, 4), first_delta=400)
    await store.end_turn(ref, ending, NOW + 1500)
    expected = {
        TODAY: Sums(
            completed=1,
            prompt_tokens=30,
            completion_tokens=4,
            duration=1500,
            first_delta=400,
            durations=Spread.of([1500]),
            first_deltas=Spread.of([400]),
        )
    }
    assert await usage.list_usage("ann", "day", *ALWAYS) == expected
    assert await usage.fold({}, 10) == 1
    assert await usage.list_usage("ann", "day", *ALWAYS) == expected
    assert await usage.list_usage(None, "day", *ALWAYS) == expected
    assert await usage.fold({}, 10) == 0


async def test_states_and_times_add_up_over_several_folds(store: SqlStore, usage: SqlUsage) -> None:
    for number, status in enumerate(("completed", "failed", "cancelled", "interrupted") * 3):
        ref = await begin(store)
        ending = Ending(TurnStatus(status), "", Usage(10, 1), first_delta=100)
        await store.end_turn(ref, ending, NOW + 1000 + number)
        if number % 5 == 0:
            await fold(usage)
    await fold(usage)
    sums = (await usage.list_usage(None, "model", *ALWAYS))["default"]
    assert (sums.completed, sums.failed, sums.cancelled, sums.interrupted) == (3, 3, 3, 3)
    assert (sums.prompt_tokens, sums.completion_tokens, sums.first_delta) == (120, 12, 1200)
    assert (sums.duration, sums.durations.count, sums.first_deltas.count) == (3012, 3, 12)


async def test_what_is_told_apart(store: SqlStore, usage: SqlUsage) -> None:
    await publish(store, "tutor")
    await take(store, "ann", model="m1")
    await take(store, "ann", model="m2", at=NOW + DAY_MS)
    ref = await begin(store, "bob", deployment="tutor")
    await store.end_turn(ref, completed("hello"), NOW)
    for folded in (False, True):
        if folded:
            await fold(usage)
        assert await turns(usage, None, "day") == {TODAY: 2, day(NOW + DAY_MS): 1}
        assert await turns(usage, None, "user") == {"ann": 2, "bob": 1}
        assert await turns(usage, None, "model") == {"m1": 1, "m2": 1, "default": 1}
        assert await turns(usage, None, "deployment") == {"default": 2, "tutor": 1}
        assert await turns(usage, "ann", "deployment") == {"default": 2}
        assert await turns(usage, "ann", "user") == {"ann": 2}
        assert await turns(usage, "eve", "day") == {}
        assert await turns(usage, "ann", "day", (TODAY, TODAY)) == {TODAY: 1}


async def test_a_user_has_what_the_end_users_have(store: SqlStore, usage: SqlUsage) -> None:
    for owner in ("app/kim", "app/kim", "app/lee", "app", "apple"):
        await take(store, owner)
    for folded in (False, True):
        if folded:
            await fold(usage)
        assert await turns(usage, "app") == {TODAY: 4}
        assert await turns(usage, "app/kim") == {TODAY: 2}
        assert await turns(usage, "app", "end_user") == {"kim": 2, "lee": 1}
        assert await turns(usage, "app/lee", "end_user") == {"lee": 1}
        assert await turns(usage, None, "user") == {"app": 4, "apple": 1}
        assert await turns(usage) == {TODAY: 5}


@pytest.mark.parametrize(
    ("first", "last"),
    [
        ("2024-01-01", "2024-12-31"),
        ("2024-01-02", "2024-12-30"),
        ("2024-02-29", "2024-03-01"),
        ("2024-02-01", "2024-02-29"),
        ("2024-03-15", "2024-03-16"),
        ("2023-12-31", "2024-01-01"),
        ("2023-12-15", "2024-02-01"),
    ],
)
async def test_users_are_told_apart_over_whole_months_and_parts(
    store: SqlStore, usage: SqlUsage, first: str, last: str
) -> None:
    """Months are read in one piece, so each day's turns must be in or out by their own day."""
    await begin(store, "ann")
    days = [date.isoformat() for date in all_days("2023-12-01", "2025-01-31")]
    await usage.fold({("ann", day): 1 for day in days}, 1)
    found = await usage.list_usage(None, "user", first, last)
    assert found["ann"].requests == sum(first <= day <= last for day in days)


def all_days(first: str, last: str) -> list[datetime]:
    begin, end = datetime.fromisoformat(first), datetime.fromisoformat(last)
    numbers = range(begin.toordinal(), end.toordinal() + 1)
    return [datetime.fromordinal(number).date() for number in numbers]  # type: ignore[misc]


async def test_requests_are_counted_by_day_and_user_and_are_of_no_model(
    store: SqlStore, usage: SqlUsage
) -> None:
    for owner in ("ann", "app/kim"):
        await begin(store, owner)
    assert await usage.fold({("ann", TODAY): 5, ("app/kim", TODAY): 2}, 10) == 0
    await usage.fold({("ann", TODAY): 1, ("who was forgotten", TODAY): 9}, 10)
    by_user = await usage.list_usage(None, "user", *ALWAYS)
    assert {name: sums.requests for name, sums in by_user.items()} == {"ann": 6, "app": 2}
    assert await usage.list_usage("ann", "model", *ALWAYS) == {}


# --- Once, and not never -----------------------------------------------------------------------


async def test_usage_outlives_what_was_said(store: SqlStore, usage: SqlUsage) -> None:
    """Also where it is deleted before it was folded."""
    early, late = await take(store), await take(store)
    await store.delete_session("ann", ById(early.session_id))
    await fold(usage)
    await store.clear_session("ann", ById(late.session_id), NOW)
    await publish(store, "brief", Blueprint(idle_timeout=60))
    ref = await begin(store, deployment="brief")
    await store.end_turn(ref, completed("hello"), NOW + SECOND)
    assert (await store.expire(10, NOW + DAY_MS)).sessions == 1
    assert await turns(usage, "ann", "deployment") == {"default": 2, "brief": 1}
    await fold(usage)
    assert await turns(usage, "ann", "deployment") == {"default": 2, "brief": 1}


async def test_a_turn_that_is_deleted_while_open_counts_as_cancelled_and_once(
    store: SqlStore, usage: SqlUsage
) -> None:
    running = await begin(store)
    queued = await begin(store, session=ById(running.session_id))
    await store.clear_session("ann", ById(running.session_id), NOW)
    for ref in (running, queued):  # their own endings come too late
        await store.end_turn(ref, Ending(TurnStatus.CANCELLED, "half"), NOW + 9)
    assert (await usage.list_usage("ann", "day", *ALWAYS))[TODAY] == Sums(cancelled=2)


async def test_an_ending_that_is_stored_twice_counts_once(store: SqlStore, usage: SqlUsage) -> None:
    """As where the database took it and its answer was lost."""
    ref = await begin(store)
    for _ in range(2):
        await store.end_turn(ref, completed("hello"), NOW)
        await fold(usage)
    assert await turns(usage) == {TODAY: 1}


async def test_queued_turns_and_what_a_crash_leaves_are_counted(
    store: SqlStore, usage: SqlUsage
) -> None:
    running = await begin(store)
    queued = await begin(store, session=ById(running.session_id))
    await store.end_turn(queued, Ending(TurnStatus.CANCELLED, ""), NOW)
    assert await store.settle_abandoned(NOW) == 1
    sums = (await usage.list_usage(None, "day", *ALWAYS))[TODAY]
    assert (sums.cancelled, sums.interrupted) == (1, 1)


async def test_those_who_fold_at_once_count_nothing_twice(store: SqlStore, usage: SqlUsage) -> None:
    refs = [await take(store, f"user{number % 3}") for number in range(30)]
    await asyncio.gather(
        *(usage.fold({}, 4) for _ in range(12)),
        *(store.delete_session(f"user{n % 3}", ById(r.session_id)) for n, r in enumerate(refs)),
    )
    await fold(usage)
    assert await turns(usage, None, "user") == {"user0": 10, "user1": 10, "user2": 10}
    assert await turns(usage) == {TODAY: 30}
