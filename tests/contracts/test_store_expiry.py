"""Sessions that outlive the time their deployment gives them are deleted, and no others."""

import pytest

from tests.contracts.test_store import NOW, a_turn, completed, publish, say
from tests.contracts.test_store_sessions import a_session
from turnkeeper.contracts import Store
from turnkeeper.domain import Blueprint, ByAlias, ById, Message, SessionChange, SessionFilter

HOUR = 3_600_000
SHORT = Blueprint(idle_timeout=60)
OLD = Blueprint(max_age=3600)
BOTH = Blueprint(idle_timeout=60, max_age=3600)
PINNED = SessionChange(pinned=True)


async def kept(store: Store) -> set[str]:
    page = await store.page_sessions("ann", SessionFilter(), None, 100)
    return {session.id for session in page.sessions}


async def expire(store: Store, now: int) -> int:
    """All that has outlived its time, step by step; how many sessions."""
    deleted = 0
    for _ in range(100):
        step = await store.expire(20, now)
        deleted += step.sessions
        if not step.more:
            return deleted
    raise AssertionError("it never ends")


async def a_turn_at(store: Store, session_id: str, now: int) -> None:
    begun = await store.begin_turn(a_turn("a", session=ById(session_id)))
    await store.end_turn(begun.turn.ref, completed("A"), now)


async def test_sessions_expire_by_their_own_deployments_time(store: Store) -> None:
    await publish(store, "short", SHORT)
    never = await store.create_session(a_session())
    short = await store.create_session(a_session(variables={"a": "b"}, deployment="short"))
    await say(store, "a", "A", ById(short.id))
    assert await expire(store, NOW + 59_999) == 0
    assert await kept(store) == {never.id, short.id}
    assert await expire(store, NOW + 60_000) == 1
    assert await kept(store) == {never.id}
    assert await expire(store, NOW + 100 * HOUR) == 0


async def test_a_session_is_as_old_as_its_deployment_lets_it_be(store: Store) -> None:
    """However much it is used."""
    await publish(store, "old", OLD)
    made = await store.create_session(a_session(deployment="old"))
    await a_turn_at(store, made.id, NOW + HOUR - 2)
    assert await expire(store, NOW + HOUR - 1) == 0
    assert await expire(store, NOW + HOUR) == 1
    assert await kept(store) == set()


@pytest.mark.parametrize("used_at", [0, 30_000])
async def test_of_two_times_the_first_counts(store: Store, used_at: int) -> None:
    await publish(store, "both", BOTH)
    made = await store.create_session(a_session(deployment="both"))
    await a_turn_at(store, made.id, NOW + used_at)
    assert await expire(store, NOW + used_at + 59_999) == 0
    assert await expire(store, NOW + used_at + 60_000) == 1


async def test_what_is_used_again_and_again_expires_after_its_last_use(store: Store) -> None:
    await publish(store, "short", SHORT)
    made = await store.create_session(a_session(deployment="short"))
    for minute in range(5):
        now = NOW + minute * 50_000
        await a_turn_at(store, made.id, now)
        assert await expire(store, now + 49_000) == 0
    assert await expire(store, now + 60_000) == 1


async def test_a_pin_keeps_a_session_from_both(store: Store) -> None:
    await publish(store, "both", BOTH)
    made = await store.create_session(a_session(deployment="both"))
    await store.update_session("ann", ById(made.id), PINNED, NOW)
    assert await expire(store, NOW + HOUR) == 0
    unpinned = SessionChange(pinned=False)
    await store.update_session("ann", ById(made.id), unpinned, NOW + HOUR)
    assert await expire(store, NOW + HOUR) == 1, "it is too old, whenever it was pinned"


async def test_a_session_in_which_a_turn_runs_does_not_expire(store: Store) -> None:
    await publish(store, "both", BOTH)
    made = await store.create_session(a_session(deployment="both"))
    begun = await store.begin_turn(a_turn("q", session=ById(made.id)))
    assert await expire(store, NOW + HOUR) == 0
    assert await expire(store, NOW + 2 * HOUR) == 0
    await store.end_turn(begun.turn.ref, completed("A"), NOW + 2 * HOUR)
    assert await expire(store, NOW + 2 * HOUR) == 0, "it was looked at a moment ago"
    assert await expire(store, NOW + 2 * HOUR + 5_000) == 1


@pytest.mark.parametrize("way", ["by alias", "without a name", "fork"])
async def test_however_a_session_is_made_it_expires(store: Store, way: str) -> None:
    await publish(store, "short", SHORT)
    if way == "fork":
        made = await store.create_session(a_session(deployment="short"))
        await store.fork_session("ann", ById(made.id), None, "s" + "f" * 26, NOW + 1)
        await store.delete_session("ann", ById(made.id))
    else:
        session = ByAlias("x") if way == "by alias" else None
        begun = await store.begin_turn(a_turn("q", session=session, deployment="short"))
        await store.end_turn(begun.turn.ref, completed("A"), NOW + 1)
    assert await expire(store, NOW + 60_000) == 0
    assert await expire(store, NOW + 60_001) == 1
    assert await kept(store) == set()


async def test_many_expire_in_small_steps(store: Store) -> None:
    await publish(store, "short", SHORT)
    for n in range(45):
        await store.create_session(a_session(deployment="short", now=NOW + n))
    sizes, more = [], True
    while more:
        step = await store.expire(20, NOW + 60_044)
        sizes.append(step.sessions)
        more = step.more
    assert sizes == [20, 20, 5]


async def test_long_sessions_make_a_step_smaller(store: Store) -> None:
    """So that no turn waits for thousands of rows to be deleted."""
    await publish(store, "short", SHORT)
    for _ in range(4):
        await store.create_session(a_session(*[Message("user", "m")] * 300, deployment="short"))
    step = await store.expire(20, NOW + 60_000)
    assert (step.sessions, step.more) == (2, True)
    step = await store.expire(20, NOW + 60_000)
    assert (step.sessions, step.more) == (2, False)
