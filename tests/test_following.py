"""Following a session: every turn of it, in order, whoever begins it and however it ends."""

import asyncio
import itertools
import random
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from rig.model_server import Hang, ModelServer, Plan, Wait
from rig.server import Server
from tests.test_engine import WORDS, ask, running, take, until
from tests.test_process import chat, server_of
from turnkeeper.contracts import NextTurn
from turnkeeper.domain import ByAlias, Turn, TurnRef, TurnStatus
from turnkeeper.engine import Engine
from turnkeeper.errors import ServerStopping, SessionNotFound, StoreUnavailable
from turnkeeper.events import Ended, Grew, Started, TurnEvent
from turnkeeper.following import SessionFollower
from turnkeeper.reply import Reply

S = ByAlias("s")
Place = tuple[int, int | None]


@pytest.fixture
async def engine(tmp_path: Path, model_server: ModelServer) -> AsyncIterator[Engine]:
    async with running(tmp_path, model_server) as engine:
        yield engine


async def follow(engine: Engine, after: Place | None = None) -> SessionFollower:
    return await engine.follow_session("ann", S, after)


async def heard(follower: SessionFollower, turns: int = 1_000_000) -> list[str]:
    """What is told until so many turns are over, or until the end: one line for each turn."""
    lines, line = list[str](), ""
    async with asyncio.timeout(30):
        while len(lines) < turns and not follower.finished:
            for event in await follower.next():
                line += told(event)
                if isinstance(event.event, Ended):
                    lines, line = [*lines, line], ""
    return lines


def told(event: TurnEvent) -> str:
    match event.event:
        case Started():
            return f"{event.turn.number}: "
        case Grew(text=text):
            return text
        case Ended(turn=turn):
            return f" [{turn.status.value}]"


async def cancel(engine: Engine, reply: Reply) -> None:
    await engine.cancel_turn("ann", reply.turn.ref)


# --- What is told ------------------------------------------------------------------------------


async def test_it_begins_with_the_next_turn_of_an_idle_session(engine: Engine) -> None:
    await ask(engine, "one")
    followers = [await follow(engine) for _ in range(3)]
    await ask(engine, "two")
    await ask(engine, "three")
    for follower in followers:
        expected = ["2: You said: two [completed]", "3: You said: three [completed]"]
        assert await heard(follower, 2) == expected
        follower.close()


async def test_it_begins_with_the_turn_that_runs(engine: Engine, model_server: ModelServer) -> None:
    gate = asyncio.Event()
    await ask(engine, "one")
    model_server.script = lambda _: Plan(deltas=WORDS, at={2: Wait(gate)})
    for text in ("two", "three"):
        await take(engine, "s", text)
    await model_server.wait_for_calls(2)
    follower = await follow(engine)
    gate.set()
    story = "Once upon a time [completed]"
    assert await heard(follower, 2) == [f"2: {story}", f"3: {story}"]


async def test_every_way_that_a_turn_ends_is_told(
    engine: Engine, model_server: ModelServer
) -> None:
    await ask(engine, "one")
    follower = await follow(engine, (0, None))
    model_server.script = lambda _: Plan(deltas=WORDS, at={2: Hang()})
    stopped, waiting = [await take(engine, "s", text) for text in ("two", "three")]
    await until(lambda: stopped.length == 10)
    await cancel(engine, waiting)
    await cancel(engine, stopped)
    model_server.script = lambda _: Plan(status=401, body={"error": {"message": "no"}})
    await (await take(engine, "s", "four")).wait()
    model_server.script = lambda _: Plan()
    await (await engine.answer_anew("ann", S)).reply.wait()
    assert await heard(follower, 5) == [
        "1: You said: one [completed]",
        "2: Once upon  [cancelled]",
        " [cancelled]",
        "4:  [failed]",
        "5: Hello there [completed]",
    ]


@pytest.mark.parametrize(
    ("place", "told"),
    [
        ((0, None), ["1: You said: one [completed]", "2: You said: two [completed]"]),
        ((1, 0), ["You said: one [completed]", "2: You said: two [completed]"]),
        ((1, 10), ["one [completed]", "2: You said: two [completed]"]),
        ((1, 13), [" [completed]", "2: You said: two [completed]"]),
        ((1, None), ["2: You said: two [completed]"]),
        ((2, None), []),
        ((9, 3), []),
    ],
)
async def test_it_goes_on_from_any_place_also_after_a_restart(
    place: Place, told: list[str], tmp_path: Path, model_server: ModelServer
) -> None:
    async with running(tmp_path, model_server) as engine:
        await ask(engine, "one")
        await ask(engine, "two")
    async with running(tmp_path, model_server) as engine:
        follower = await follow(engine, place)
        assert await heard(follower, len(told)) == told
        follower.close()


async def test_words_that_a_crash_has_lost_are_replaced(engine: Engine) -> None:
    await ask(engine, "one")
    follower = await follow(engine, (1, 99))
    [event] = await follower.next()
    assert isinstance(event.event, Ended)
    assert event.event.replace


async def test_what_was_cleared_is_passed_over(engine: Engine) -> None:
    await ask(engine, "one")
    await engine._store.clear_session("ann", S, 0)
    await ask(engine, "two")
    follower = await follow(engine, (1, 3))
    assert await heard(follower, 1) == ["2: You said: two [completed]"]


async def test_someone_elses_session_is_not_followed(engine: Engine) -> None:
    await ask(engine, "one")
    with pytest.raises(SessionNotFound):
        await engine.follow_session("bob", S, None)
    assert not engine._watchers


# --- Its end -----------------------------------------------------------------------------------


async def test_it_ends_when_the_session_is_deleted_under_a_turn(
    engine: Engine, model_server: ModelServer
) -> None:
    model_server.script = lambda _: Plan(deltas=WORDS, at={2: Hang()})
    reply = await take(engine, "s", "one")
    follower = await follow(engine)
    await until(lambda: reply.length == 10)
    await follower.next()
    engine.stop_gone(await engine._store.delete_session("ann", S))
    assert await heard(follower) == [" [cancelled]"]


async def test_it_ends_at_the_next_look_when_an_idle_session_is_deleted(engine: Engine) -> None:
    """The keep-alive of the connection is what makes it look: `nudge`."""
    await ask(engine, "one")
    follower = await follow(engine)
    hearing = asyncio.ensure_future(heard(follower))
    await asyncio.sleep(0)
    await engine._store.delete_session("ann", S)
    follower.nudge()
    assert await hearing == []


async def test_it_ends_when_the_server_stops_once_the_turn_is_told(
    engine: Engine, model_server: ModelServer
) -> None:
    model_server.script = lambda _: Plan(deltas=WORDS, at={2: Hang()})
    reply = await take(engine, "s", "one")
    slow, idle = await follow(engine), await follow(engine, (1, None))
    await until(lambda: reply.length == 10)
    hearing = asyncio.ensure_future(heard(idle))
    await slow.next()
    await engine.drain(0)  # while the slow one is busy with what it was told
    assert await heard(slow) == [" [interrupted]"]
    assert await hearing == []
    with pytest.raises(ServerStopping):
        await follow(engine)


async def test_followers_leave_nothing_behind(engine: Engine) -> None:
    await ask(engine, "one")
    for place in (None, (1, None), (1, 3), (0, None)):
        follower = await follow(engine, place)
        if place in ((1, 3), (0, None)):
            await follower.next()
        follower.close()
    assert not engine._watchers


async def test_a_session_that_vanishes_while_it_is_looked_up_leaves_no_follower(
    engine: Engine,
) -> None:
    await ask(engine, "one")
    found = await engine._store.get_session("ann", S)
    await engine._store.delete_session("ann", S)
    engine._store.get_session = _always(found)  # type: ignore[method-assign]
    with pytest.raises(SessionNotFound):
        await follow(engine)
    assert not engine._watchers


def _always(value: Any) -> Any:
    async def give(*_: object) -> Any:
        return value

    return give


# --- Races -------------------------------------------------------------------------------------


async def test_a_turn_that_begins_between_looking_and_waiting_is_not_missed() -> None:
    """`nudge` comes after the look in the store found nothing, and before anyone waits."""
    numbers: list[int] = []
    reply = Reply.stored("ann", turn_of(1), "hello")

    async def find_next(_: int) -> NextTurn:
        found = NextTurn(numbers[0] if numbers else None, len(numbers))
        if not numbers:
            numbers.append(1)
            follower.nudge()
        return found

    follower = SessionFollower("s", find_next, _always(reply), lambda _: None)
    assert await heard(follower, 1) == ["1: hello [completed]"]


async def test_a_database_that_is_away_ends_it_and_does_not_hang() -> None:
    async def find_next(_: int) -> NextTurn:
        raise StoreUnavailable("away")

    follower = SessionFollower("s", find_next, _always(None), lambda _: None)
    assert await heard(follower) == []


def turn_of(number: int) -> Any:

    return Turn(TurnRef("s", number), TurnStatus.COMPLETED, "m", 0)


async def test_a_turn_that_is_just_beginning_is_not_taken_for_one_that_nobody_makes(
    engine: Engine, model_server: ModelServer
) -> None:
    """It is stored, but its coroutine hears of that only while someone looks in the store."""
    model_server.script = lambda _: Plan(deltas=WORDS, at={2: Hang()})
    begin, get = engine._store.begin_turn, engine._store.get_turn
    stored, told = asyncio.Event(), asyncio.Event()

    async def begin_slowly(new: Any) -> Any:
        begun = await begin(new)
        stored.set()
        await told.wait()
        return begun

    looks = itertools.count(1)

    async def get_slowly(owner: str, ref: TurnRef) -> Any:
        found = await get(owner, ref)
        if next(looks) == 2:
            told.set()
            await until(lambda: engine._lives.find(ref) is not None)
        return found

    engine._store.begin_turn = begin_slowly  # type: ignore[method-assign]
    engine._store.get_turn = get_slowly  # type: ignore[method-assign]
    taking = asyncio.ensure_future(take(engine, "s", "one"))
    await stored.wait()
    [ref] = await engine._store.list_open()
    assert (await engine.follow_turn("ann", ref)).ended is None
    await cancel(engine, await taking)


async def test_whoever_joins_and_leaves_at_any_time_misses_nothing(
    engine: Engine, model_server: ModelServer
) -> None:
    """Followers come, go on and go away while turns begin, queue, end and are cancelled."""
    chance, total = random.Random(7), 60
    await ask(engine, "0")

    async def talk() -> None:
        for number in range(total):
            reply = await take(engine, "s", str(number))
            if chance.random() < 0.2:
                await cancel(engine, reply)
            if chance.random() < 0.5:
                await reply.wait()
            for _ in range(chance.randrange(4)):
                await asyncio.sleep(0)

    async def listen() -> str:
        """Everything from the first turn on, over many connections."""
        place, all_told = (1, None), list[TurnEvent]()
        while place != (total + 1, None):
            follower = await follow(engine, place)
            for _ in range(chance.randrange(1, 9)):
                events = await follower.next()
                all_told += events
                if events:
                    place = place_behind(events[-1])
                if place == (total + 1, None):
                    break
            follower.close()
        return "".join(told(event) for event in all_told)

    async with asyncio.timeout(60):
        *tellings, _ = await asyncio.gather(*(listen() for _ in range(6)), talk())
    ends = tellings[0].count("]")
    assert ends == total
    texts = [await engine._store.get_turn("ann", ref) for ref in await every_turn(engine, total)]
    for telling in tellings:
        assert telling.count("]") == total
        for stored in texts:
            assert f"{stored.text} [{stored.turn.status.value}]" in telling
    assert not engine._watchers


def place_behind(event: TurnEvent) -> Place:
    """The id that a client sends to go on behind an event."""
    match event.event:
        case Started():
            return event.turn.number, 0
        case Grew(end=end):
            return event.turn.number, end
        case Ended():
            return event.turn.number, None


async def every_turn(engine: Engine, total: int) -> list[TurnRef]:
    id_ = (await engine._store.get_session("ann", S)).id
    return [TurnRef(id_, number) for number in range(2, total + 2)]


# --- On the wire -------------------------------------------------------------------------------

EVENTS = "/api/chat-sessions/s/events"


@pytest.fixture
def server(tmp_path: Path, model_server: ModelServer) -> Server:
    return server_of(model_server, tmp_path)


@pytest.fixture
async def http(server: Server) -> AsyncIterator[aiohttp.ClientSession]:
    with server:
        async with aiohttp.ClientSession() as http:
            await chat(http, server, "one", "s")
            yield http


async def test_turns_of_every_dialect_are_told(server: Server, http: aiohttp.ClientSession) -> None:
    stream = await http.get(f"{server.url}{EVENTS}?after=1:13/end")
    id_ = (await chat(http, server, "two", "s"))["session_id"]
    async with http.get(f"{server.url}/api/chat-sessions/{id_}") as answer:
        id_ = (await answer.json())["chat_session"]["id"]
    for path, body in (
        ("/session/send", {"session_id": id_, "msg_text": "three"}),
        ("/invoke", {"chat_session_id": id_, "user_message": "four"}),
        (f"/api/chat-sessions/{id_}/messages", {"message": "five"}),
        (f"/api/chat-sessions/{id_}/regenerate", {}),
    ):
        async with http.post(f"{server.url}{path}", json=body) as answer:
            assert answer.status == 200
    for number, text in enumerate(("two", "three", "four", "five", "five"), 2):
        part = await stream.content.readuntil(b"/end\ndata: ")
        assert f"id: {number}:0\n".encode() in part
        length = len(f"You said: {text}")
        assert part.endswith(f"id: {number}:{length}/end\ndata: ".encode())
    stream.close()


@pytest.mark.parametrize("after", ["1", "x:1", "1:", ":1", "1:1/", "1:1/ends", "-1:0", "1" * 10])
async def test_what_is_no_place_is_refused(
    after: str, server: Server, http: aiohttp.ClientSession
) -> None:
    for asked in (
        http.get(f"{server.url}{EVENTS}", params={"after": after}),
        http.get(f"{server.url}{EVENTS}", headers={"Last-Event-ID": after}),
    ):
        async with asked as answer:
            assert answer.status == 400


async def test_a_head_request_is_answered_at_once(
    server: Server, http: aiohttp.ClientSession
) -> None:
    async with http.head(f"{server.url}{EVENTS}") as answer:
        assert answer.status == 200
        assert answer.content_type == "text/event-stream"


async def test_a_server_that_stops_ends_the_stream_whole(
    server: Server, http: aiohttp.ClientSession
) -> None:
    stream = await http.get(f"{server.url}{EVENTS}")
    server.signal(signal.SIGTERM)
    async with asyncio.timeout(10):
        assert await stream.read() == b""  # raises if it were cut off
    assert await asyncio.to_thread(server.wait) == 0
