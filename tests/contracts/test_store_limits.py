"""The store exam, on limits: what days and months have used, and how many sessions may be."""

import asyncio
from collections.abc import Awaitable

import msgspec
import pytest

from tests.contracts.test_store import NOW, a_turn, completed, new_id, say
from tests.contracts.test_store_once import key
from tests.contracts.test_store_sessions import a_session
from turnkeeper.compose import open_store
from turnkeeper.contracts import NewTurn, Quota, Store
from turnkeeper.domain import Basis, ByAlias, ById, SessionFilter, make_owner
from turnkeeper.errors import QuotaExceeded, RateLimited
from turnkeeper.limits import Spent, Subject

ANN, BOB = Subject("user", "ann"), Subject("key", "k1")
TODAY = Spent(ANN, "tokens_per_day", NOW + 1, 70)
THIS_MONTH = Spent(ANN, "cost_per_month", NOW + 2, 2**60)


# --- Days and months ---------------------------------------------------------------------------


async def test_what_was_used_is_kept_one_in_place_of_another(database: str, store: Store) -> None:
    assert await store.get_spent(ANN) == []
    await store.keep_spent([TODAY, THIS_MONTH])
    later = msgspec.structs.replace(TODAY, ends_at=NOW + 5, amount=3)
    await store.keep_spent([later, msgspec.structs.replace(TODAY, subject=BOB)])
    await store.close()
    again = await open_store(database)
    assert sorted(await again.get_spent(ANN), key=str) == sorted([later, THIS_MONTH], key=str)
    assert [spent.amount for spent in await again.get_spent(BOB)] == [70]
    await again.close()


async def test_what_is_over_is_dropped_some_at_a_time(store: Store) -> None:
    names = [Subject("address", f"{n}") for n in range(5)]
    await store.keep_spent([Spent(name, "tokens_per_day", NOW, 1) for name in names])
    await store.keep_spent([TODAY])
    assert [await store.drop_spent(NOW, 3) for _ in range(3)] == [3, 2, 0]
    assert await store.get_spent(ANN) == [TODAY]


# --- What must be let in -----------------------------------------------------------------------


class Door:
    """An `admit` that notes what it was told, and may refuse."""

    def __init__(self, refusal: RateLimited | None = None) -> None:
        self.refusal = refusal
        self.told: list[tuple[str, str, int]] = []

    def __call__(self, session_id: str, basis: Basis, total_weight: int) -> None:
        self.told.append((session_id, basis.revision.deployment, total_weight))
        if self.refusal is not None:
            raise self.refusal


def with_door(new: NewTurn, door: Door) -> NewTurn:
    return msgspec.structs.replace(new, admit=door)


async def test_a_turn_is_let_in_with_its_session_and_weight(store: Store) -> None:
    ref = await say(store, "one", "reply", None)
    door = Door()
    begun = await store.begin_turn(with_door(a_turn("two", session=ById(ref.session_id)), door))
    assert set(door.told) == {(ref.session_id, "default", begun.history.total_weight)}


async def test_one_that_is_not_leaves_nothing(store: Store) -> None:
    door = Door(RateLimited("too much", 1))
    new = msgspec.structs.replace(with_door(a_turn("one", session=ByAlias("s")), door), key=key())
    with pytest.raises(RateLimited):
        await store.begin_turn(new)
    assert (await store.page_sessions("ann", SessionFilter(), None, 10)).sessions == []
    assert not await store.was_made(key())
    door.refusal = None
    begun = await store.begin_turn(new)
    assert await store.was_made(key())
    assert not await store.was_made(key("another request"))
    door.refusal = RateLimited("too much", 1)
    assert await store.begin_turn(new) == begun.turn.ref  # sent again, it asks for nothing


# --- How many sessions -------------------------------------------------------------------------

TWO = (Quota("ann", 2),)


def turn(alias: str, owner: str = "ann", quotas: tuple[Quota, ...] = TWO) -> NewTurn:
    new = a_turn("hello", session=ByAlias(alias), owner=owner)
    return msgspec.structs.replace(new, quotas=quotas)


async def count(store: Store, owner: str = "ann") -> int:
    return len((await store.page_sessions(owner, SessionFilter(), None, 100)).sessions)


async def test_there_are_no_more_sessions_than_may_be(store: Store) -> None:
    first = await store.begin_turn(turn("a"))
    await store.create_session(a_session(quotas=TWO))
    session = ById(first.turn.ref.session_id)
    await store.end_turn(first.turn.ref, completed("hi"), NOW)
    acts: list[Awaitable[object]] = [
        store.begin_turn(turn("b")),
        store.begin_turn(msgspec.structs.replace(turn("c"), session=None)),
        store.create_session(a_session(quotas=TWO)),
        store.fork_session("ann", session, None, new_id(), NOW, quotas=TWO),
    ]
    for act in acts:
        with pytest.raises(QuotaExceeded) as raised:
            await act
        assert raised.value.retry_after is None
    assert await count(store) == 2
    await store.begin_turn(turn("a"))  # in one that is there
    await store.delete_session("ann", session)
    await store.begin_turn(turn("b"))


async def test_a_users_are_those_of_its_end_users_too(store: Store) -> None:
    bob, eve = make_owner("ann", "bob"), make_owner("ann", "eve")
    both = (Quota("ann", 3), Quota(bob, 1))
    await store.begin_turn(turn("a", bob, both))
    with pytest.raises(QuotaExceeded):
        await store.begin_turn(turn("b", bob, both))
    await store.begin_turn(turn("b", "ann", (Quota("ann", 3),)))
    await store.begin_turn(turn("b", eve, (Quota("ann", 3),)))
    with pytest.raises(QuotaExceeded):
        await store.begin_turn(turn("c", eve, (Quota("ann", 3),)))


async def test_not_if_all_are_made_at_once(store: Store) -> None:
    five = (Quota("ann", 5),)
    made = await asyncio.gather(
        *(store.begin_turn(turn(f"s{n}", quotas=five)) for n in range(20)),
        *(store.create_session(a_session(quotas=five)) for _ in range(20)),
        return_exceptions=True,
    )
    refused = [one for one in made if isinstance(one, QuotaExceeded)]
    assert (len(made) - len(refused), await count(store)) == (5, 5)
