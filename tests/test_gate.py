"""The gate: for whom a request counts, whoever it comes from."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from turnkeeper.compose import open_store
from turnkeeper.contracts import Quota, Store
from turnkeeper.domain import Caller, Limits
from turnkeeper.errors import MessageTooLong, RateLimited
from turnkeeper.gate import Gate
from turnkeeper.limits import Estimate, Rules

NOW = 1_800_000_000_000
HUNDRED, TEN = Limits(tokens_per_day=100), Limits(tokens_per_day=10)


def a_caller(**fields: Any) -> Caller:
    return Caller("ann", is_admin=False, **fields)


ANN = a_caller(key="k1")


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    store = await open_store(f"sqlite:///{tmp_path}/gate.db")
    yield store
    await store.close()


def gate_of(store: Store, rules: Rules) -> Gate:
    return Gate(store, rules, now=lambda: NOW, tick=lambda: 1000.0)


def enter(gate: Gate, caller: Caller, address: str = "10.0.0.1") -> None:
    gate.note(caller, (*gate.at(address), *gate.of(caller)))


async def spend(gate: Gate, owner: str, tokens: int, session: str = "s1") -> None:
    """A turn that is admitted, and uses so much."""
    ticket = await gate.ticket(owner)
    ticket.reserve(session, Estimate(tokens, tokens))
    ticket.settle(tokens, 0)


def left(gate: Gate) -> dict[str, float]:
    return {one.subject.kind: one.left for one in gate.left()}


async def test_a_keys_own_limits_go_before_the_default_and_the_users_hold_too(
    store: Store,
) -> None:
    gate = gate_of(store, Rules(key=TEN, user=HUNDRED))
    own = a_caller(key="k2", limits=Limits(tokens_per_day=60))
    enter(gate, ANN)
    await spend(gate, "ann", 10)
    with pytest.raises(RateLimited) as raised:
        await spend(gate, "ann", 1)
    assert raised.value.sentence.startswith("This API key")
    enter(gate, own)
    await spend(gate, "ann", 60)
    assert left(gate) == {"key": 0, "user": 30}
    login = a_caller()
    enter(gate, login)
    await spend(gate, "ann", 30)
    with pytest.raises(RateLimited) as raised:
        await spend(gate, "ann", 1)
    assert raised.value.sentence.startswith("This user")


async def test_limits_of_one_key_alone_hold_where_there_are_no_others(store: Store) -> None:
    gate = gate_of(store, Rules())
    enter(gate, ANN)
    assert not gate.has_asker
    enter(gate, a_caller(key="k1", limits=TEN))
    assert gate.has_asker
    with pytest.raises(RateLimited):
        await spend(gate, "ann", 11)


async def test_an_end_user_counts_whether_a_header_or_a_body_names_it(store: Store) -> None:
    rules = Rules(end_user=Limits(tokens_per_day=10, sessions=3, message_length=5), user=HUNDRED)
    gate = gate_of(store, rules)
    enter(gate, a_caller(key="k1", end_user="bob"))
    await spend(gate, "ann/bob", 6)
    enter(gate, ANN)
    assert left(gate) == {"user": 94}
    with pytest.raises(RateLimited):
        await spend(gate, "ann/bob", 5)
    await spend(gate, "ann", 5)
    gate.check_length(6, "ann")
    with pytest.raises(MessageTooLong):
        gate.check_length(6, "ann/bob")
    assert (gate.quotas("ann"), gate.quotas("ann/bob")) == ((), (Quota("ann/bob", 3),))


async def test_a_session_counts_whoever_speaks_in_it(store: Store) -> None:
    gate = gate_of(store, Rules(session=HUNDRED))
    for caller in (ANN, a_caller(session="s1")):
        enter(gate, caller)
        await gate.read(gate.of(a_caller(session="s1"))[0].subject)
        await spend(gate, "ann", 50)
    with pytest.raises(RateLimited) as raised:
        await spend(gate, "ann", 1)
    assert raised.value.sentence.startswith("This session")


async def test_an_address_of_ipv6_is_its_network(store: Store) -> None:
    gate = gate_of(store, Rules(address=HUNDRED))
    names = [gate.at(address)[0].subject.name for address in ("2001:db8::1", "2001:db8::ffff:1")]
    assert names == ["2001:db8::", "2001:db8::"]
    assert gate.at("10.0.0.1")[0].subject.name == "10.0.0.1"
    assert gate.at("")[0].subject.name == ""


async def test_what_was_used_is_kept_and_read_by_the_next(store: Store) -> None:
    gate = gate_of(store, Rules(user=HUNDRED))
    enter(gate, ANN)
    await spend(gate, "ann", 70)
    await gate.keep()
    again = gate_of(store, Rules(user=HUNDRED))
    enter(again, ANN)
    await spend(again, "ann", 30)
    with pytest.raises(RateLimited):
        await spend(again, "ann", 1)
