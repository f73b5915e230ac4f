"""What nobody uses, or makes, any more goes or ends by itself."""

import asyncio
from collections.abc import AsyncIterator
from itertools import pairwise
from pathlib import Path

import aiohttp
import msgspec
import pytest

from rig.model_server import Hang, ModelServer, Plan
from rig.server import Server
from tests.contracts.test_store import NOW, a_turn, newest_sessions, publish
from tests.contracts.test_store_once import key
from tests.contracts.test_store_sessions import a_session
from tests.test_engine import WORDS, running, take, until
from turnkeeper.compose import open_store
from turnkeeper.contracts import BegunTurn, Expired
from turnkeeper.counts import Counts
from turnkeeper.domain import Blueprint, ByAlias, Message, TurnStatus
from turnkeeper.engine import Engine
from turnkeeper.errors import StoreUnavailable
from turnkeeper.keeper import KEY_MILLISECONDS, KEYS, Keeper


async def test_an_idle_session_is_gone_after_its_time(tmp_path: Path) -> None:
    (tmp_path / "t.toml").write_text("[deployments.default]\nidle_timeout = 1\n")
    with Server(tmp_path, "--model", "eliza", "--config", "t.toml") as server:
        async with aiohttp.ClientSession(server.url) as http:
            for name in ("one", "two"):
                asked = {"message": "Hello", "session_id": name}
                async with http.post("/api/chat", json=asked) as answer:
                    assert answer.status == 200
            async with asyncio.timeout(30):
                while True:
                    async with http.get("/api/sessions") as answer:
                        if not await answer.json():
                            break
                    await asyncio.sleep(0.2)


# --- Keys --------------------------------------------------------------------------------------


async def _none() -> int:
    return 0


async def test_keys_are_forgotten_after_a_day(tmp_path: Path) -> None:
    now = NOW
    store = await open_store(f"sqlite:///{tmp_path}/keeper.db")
    await publish(store, "default")
    keeper = Keeper(store, Counts(()), _none, now=lambda: now, tick=lambda: now / 1000)
    sessions = [a_session(key=key(name=f"k{n}"), now=NOW + n) for n in range(KEYS + 2)]
    first = await asyncio.gather(*(store.create_session(each) for each in sessions))

    async def known(number: int) -> bool:
        again = msgspec.structs.replace(a_session(), key=sessions[number].key)
        return (await store.create_session(again)).id == first[number].id

    now = NOW + KEY_MILLISECONDS
    assert not await keeper.step()
    assert await known(0)
    now += KEYS + 1  # all but the last are older than a day, which is more than one step
    assert await keeper.step()
    assert not await keeper.step()
    assert await known(KEYS + 1)
    assert not await known(KEYS)
    assert not await known(0)
    await store.close()


async def test_much_to_delete_holds_up_neither_strays_nor_turns() -> None:
    """A stray is settled within seconds, and the store is left alone most of the time."""
    time, working, looks = 0.0, 0.0, list[float]()

    async def sleep(seconds: float) -> None:
        nonlocal time
        time += seconds
        await asyncio.sleep(0)

    async def look() -> int:
        looks.append(time)
        return 0

    class Endless:
        """A store with no end of sessions, as far as the keeper sees."""

        async def expire(self, *_: object) -> Expired:
            nonlocal time, working
            time, working = time + 0.02, working + 0.02
            return Expired(20, more=True)

        async def drop_keys(self, *_: object) -> int:
            return 0

        async def drop_spent(self, *_: object) -> int:
            return 0

        async def give_back_space(self) -> bool:
            return False

    store, clock = Endless(), lambda: time
    keeper = Keeper(store, Counts(()), look, now=lambda: NOW, tick=clock, sleep=sleep)  # type: ignore[arg-type]
    keeping = asyncio.ensure_future(keeper.run())
    await until(lambda: len(looks) == 4)
    keeping.cancel()
    assert max(later - before for before, later in pairwise(looks)) <= 6
    assert 0.15 <= working / (time - looks[0]) <= 0.21


# --- Space -------------------------------------------------------------------------------------


async def test_the_space_of_what_has_expired_comes_back(tmp_path: Path) -> None:
    file, now = tmp_path / "keeper.db", NOW
    store = await open_store(f"sqlite:///{file}")
    await publish(store, "default")
    await publish(store, "short", Blueprint(idle_timeout=60))
    words = Message("user", "x" * 50_000)
    for _ in range(300):
        await store.create_session(a_session(words, deployment="short"))
    await store.create_session(a_session(Message("user", "kept")))
    await store.close()
    full = file.stat().st_size
    assert full > 15_000_000
    store = await open_store(f"sqlite:///{file}")
    keeper = Keeper(store, Counts(()), _none, now=lambda: now, tick=lambda: now / 1000)
    now += 60_000
    while await keeper.step():
        pass
    await store.close()
    assert file.stat().st_size < full / 3
    store = await open_store(f"sqlite:///{file}")
    assert [session.title for session in await newest_sessions(store, 9)] == ["kept"]
    await store.close()


# --- Strays ------------------------------------------------------------------------------------


@pytest.fixture
async def engine(tmp_path: Path, model_server: ModelServer) -> AsyncIterator[Engine]:
    async with running(tmp_path, model_server) as engine:
        yield engine


async def a_stray(engine: Engine) -> BegunTurn:
    """A turn that the database has, though its beginning was never answered."""
    turn = msgspec.structs.replace(a_turn("lost", session=ByAlias("s")), now=engine._now())
    begun = await engine._store.begin_turn(turn)
    assert isinstance(begun, BegunTurn)
    return begun


async def test_a_stray_is_settled_with_its_words_and_the_next_turn_runs(
    engine: Engine, model_server: ModelServer
) -> None:
    stray = (await a_stray(engine)).turn.ref
    await engine._store.checkpoint(stray, 0, "as far as it came")
    waiting = await take(engine, "s", "next")
    assert waiting.turn.status is TurnStatus.QUEUED
    assert await engine.settle_strays() == 0
    assert await engine.settle_strays() == 1
    assert await waiting.completed() == "You said: next"
    stored = await engine._store.get_turn("ann", stray)
    assert stored.turn.status is TurnStatus.INTERRUPTED
    assert stored.text == "as far as it came"
    assert await engine.settle_strays() == 0


async def test_what_is_made_is_no_stray(engine: Engine, model_server: ModelServer) -> None:
    model_server.script = lambda _: Plan(deltas=WORDS, at={2: Hang()})
    replies = [await take(engine, "s", text) for text in ("one", "two")]
    for _ in range(3):
        assert await engine.settle_strays() == 0
    await until(lambda: replies[0].length == 10)
    assert [reply.ended for reply in replies] == [None, None]


async def test_what_is_made_for_a_session_that_is_gone_is_stopped(
    engine: Engine, model_server: ModelServer
) -> None:
    """Deleted by another process, which cannot tell us; also what waits behind it."""
    model_server.script = lambda _: Plan(deltas=WORDS, at={2: Hang()})
    replies = [await take(engine, "s", text) for text in ("one", "two")]
    kept = await take(engine, "other", "three")
    await engine._store.delete_session("ann", ByAlias("s"))
    await engine.settle_strays()
    assert [reply.ended for reply in replies] == [None, None]
    await engine.settle_strays()
    for reply in replies:
        await until(lambda reply=reply: reply.ended is not None)
        assert reply.turn.status is TurnStatus.CANCELLED
    assert kept.ended is None


async def test_a_stray_that_is_seen_once_was_only_late(engine: Engine) -> None:
    stray = (await a_stray(engine)).turn.ref
    assert await engine.settle_strays() == 0
    await engine._store.settle(stray, 0)
    another = (await a_stray(engine)).turn.ref
    assert await engine.settle_strays() == 0
    assert [*await engine._store.list_open()] == [another]


async def test_a_database_that_is_away_delays_it(engine: Engine) -> None:
    await a_stray(engine)
    await engine.settle_strays()
    settle = engine._store.settle

    async def fail(*_: object) -> None:
        raise StoreUnavailable("away")

    engine._store.settle = fail  # type: ignore[assignment, method-assign]
    with pytest.raises(StoreUnavailable):
        await engine.settle_strays()
    engine._store.settle = settle  # type: ignore[method-assign]
    assert await engine.settle_strays() + await engine.settle_strays() == 1
