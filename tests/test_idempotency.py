"""A request under an `Idempotency-Key` is done once, in whichever dialect it comes.

What a dialect can begin or make is a row of `BEGINNERS` or `MAKERS`: what must be there before,
and the request.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from rig.model_server import BEFORE, Hang, ModelServer, Plan, Wait
from rig.server import Server
from tests.test_process import server_of
from turnkeeper.compose import visit_accounts
from turnkeeper.dialects.exchange import tell_apart

Http = aiohttp.ClientSession
WORDS = ("Once ", "upon ", "a ", "time")
STORY = "".join(WORDS)
SESSIONS = "/api/chat-sessions"
KEY = {"Idempotency-Key": "the first"}


@dataclass(frozen=True)
class Request:
    path: str
    body: Any = None


@dataclass(frozen=True)
class Got:
    """An answer as a client has it."""

    status: int
    body: str
    headers: Any

    @property
    def replayed(self) -> bool:
        return self.headers.get("Idempotent-Replayed") == "true"

    @property
    def turn(self) -> tuple[str, str]:
        return self.headers["Turn-Id"], self.headers["Session-Id"]


async def send(http: Http, request: Request, *, stream: bool = False, **headers: str) -> Got:
    """`headers` have underscores for hyphens; the key is `KEY` if they say nothing of it."""
    sent = KEY | {name.replace("_", "-"): value for name, value in headers.items()}
    body = {**(request.body or {}), "stream": True} if stream else request.body
    async with http.post(request.path, json=body, headers=sent) as answer:
        return Got(answer.status, await answer.text(), answer.headers)


async def prepare(http: Http, path: str, body: Any = None) -> tuple[Any, Any]:
    async with http.post(path, json=body) as answer:
        assert answer.status < 300, await answer.text()
        return await answer.json(), answer.headers


async def a_session(http: Http) -> tuple[str, str]:
    """The ids of a session in which something was said, and of what the user said."""
    _, headers = await prepare(http, "/api/chat", {"message": "one"})
    session = headers["Session-Id"]
    async with http.get(f"{SESSIONS}/{session}/messages?after=0") as answer:
        return session, (await answer.json())["messages"][0]["id"]


# --- What begins a turn ------------------------------------------------------------------------


async def chat(_: Http) -> Request:
    return Request("/api/chat", {"message": "two"})


async def chat_by_alias(_: Http) -> Request:
    return Request("/api/chat", {"message": "two", "session_id": "mine"})


async def chat_in_session(http: Http) -> Request:
    session, _ = await a_session(http)
    return Request("/api/chat", {"message": "two", "session_id": session})


async def session_create(_: Http) -> Request:
    return Request("/session/create", {"ini_message": "two"})


async def session_send(http: Http) -> Request:
    session, _ = await a_session(http)
    return Request("/session/send", {"session_id": session, "msg_text": "two"})


async def chat_send(http: Http) -> Request:
    session, _ = await a_session(http)
    return Request("/chat", {"session_id": session, "msg_text": "two"})


async def invoke(http: Http) -> Request:
    session, _ = await a_session(http)
    return Request("/invoke", {"chat_session_id": session, "user_message": "two"})


async def invoke_by_name(http: Http) -> Request:
    asked = await invoke(http)
    return Request("/deployments/default/invoke", asked.body)


async def message(http: Http) -> Request:
    session, _ = await a_session(http)
    return Request(f"{SESSIONS}/{session}/messages", {"message": "two"})


async def regenerate(http: Http) -> Request:
    session, _ = await a_session(http)
    return Request(f"{SESSIONS}/{session}/regenerate")


async def edit(http: Http) -> Request:
    session, said = await a_session(http)
    return Request(f"{SESSIONS}/{session}/messages/{said}/edit", {"message": "two"})


async def retry(http: Http) -> Request:
    """Of a turn that failed."""
    session, _ = await a_session(http)
    body = {"chat_session_id": session, "user_message": "DIE"}
    async with http.post("/invoke", json=body) as answer:
        assert answer.status == 502
        return Request(f"/api/turns/{answer.headers['Turn-Id']}/retry")


BEGINNERS = (
    chat,
    chat_by_alias,
    chat_in_session,
    session_create,
    session_send,
    chat_send,
    invoke,
    invoke_by_name,
    message,
    regenerate,
    edit,
    retry,
)
Prepare = Callable[[Http], Awaitable[Request]]
beginners = pytest.mark.parametrize("beginner", BEGINNERS, ids=lambda b: b.__name__)

DEAD = Plan(status=500, body={"error": {"message": "dead"}})


def one_then(model: ModelServer, plan: Plan) -> Callable[[], None]:
    """The model answers what prepares a test, and from the returned call on, by `plan`."""

    def first(call: Any) -> Plan:
        return DEAD if call.last_user_message == "DIE" else Plan()

    model.script = first

    def switch() -> None:
        model.script = lambda _: plan

    return switch


@pytest.fixture
def server(tmp_path: Path, model_server: ModelServer) -> Server:
    return server_of(model_server, tmp_path, TURNKEEPER_ATTEMPTS="1")


@pytest.fixture
async def http(server: Server) -> AsyncIterator[Http]:
    with server:
        async with aiohttp.ClientSession(server.url) as http:
            yield http


def another(request: Request) -> dict[str, str]:
    """What makes it another request, and is allowed in its dialect."""
    fields = ("ini_message", "msg_text", "user_message", "message")
    return {next((f for f in fields if f in (request.body or {})), "model"): "scripted"}


@beginners
async def test_sent_again_it_is_answered_again(
    beginner: Prepare, http: Http, model_server: ModelServer
) -> None:
    switch = one_then(model_server, Plan(deltas=WORDS))
    request = await beginner(http)
    switch()
    calls = len(model_server.requests)
    first = await send(http, request)
    assert (first.status, first.replayed) == (200, False)
    assert STORY in first.body

    again = await send(http, request)
    assert (again.status, again.body, again.turn) == (200, first.body, first.turn)
    assert again.replayed

    streamed = await send(http, request, stream=True)
    assert streamed.replayed
    assert streamed.turn == first.turn
    assert "event: turn.started" in streamed.body
    assert "id: 16/end" in streamed.body
    rest = await send(http, request, stream=True, Last_Event_ID="10")
    assert '"text":"a time"' in rest.body
    over = await send(http, request, stream=True, Last_Event_ID="16/end")
    assert (over.status, over.body, over.replayed) == (204, "", True)
    assert len(model_server.requests) == calls + 1

    other = await send(http, Request(request.path, (request.body or {}) | another(request)))
    assert (other.status, other.replayed) == (422, False)
    assert '"code":"idempotency_key_reused"' in other.body

    async with http.delete(f"{SESSIONS}/{first.turn[1]}") as answer:
        assert answer.status == 204
    assert (await send(http, request)).status == 404
    assert len(model_server.requests) == calls + 1


@beginners
async def test_streamed_first_it_is_answered_whole(
    beginner: Prepare, http: Http, model_server: ModelServer
) -> None:
    switch = one_then(model_server, Plan(deltas=WORDS))
    request = await beginner(http)
    switch()
    first = await send(http, request, stream=True)
    again = await send(http, request)
    assert (again.status, again.turn, again.replayed) == (200, first.turn, True)
    assert STORY in again.body


@beginners
async def test_while_it_runs_everyone_gets_the_one_answer(
    beginner: Prepare, http: Http, model_server: ModelServer
) -> None:
    gate = asyncio.Event()
    switch = one_then(model_server, Plan(deltas=WORDS, at={2: Wait(gate)}))
    request = await beginner(http)
    switch()
    calls = len(model_server.requests)
    asking = asyncio.gather(*(send(http, request, stream=n % 2 == 1) for n in range(4)))
    async with asyncio.timeout(20):
        await model_server.wait_for_calls(calls + 1)
    late = asyncio.ensure_future(send(http, request))
    streamed = await http.post(
        request.path, json={**(request.body or {}), "stream": True}, headers=KEY
    )
    await streamed.content.readuntil(b"upon ")  # what was said before it came
    gate.set()
    got = [*await asking, await late]
    assert b"turn.completed" in await streamed.read()
    assert {each.turn for each in got} == {got[0].turn}
    assert sum(not each.replayed for each in got) == 1
    assert got[0].body == got[2].body == got[4].body
    assert "16/end" in got[1].body
    assert len(model_server.requests) == calls + 1


@beginners
async def test_a_failure_is_told_again(
    beginner: Prepare, http: Http, model_server: ModelServer
) -> None:
    switch = one_then(model_server, DEAD)
    request = await beginner(http)
    switch()
    calls = len(model_server.requests)
    first, again = await send(http, request), await send(http, request)
    assert (first.status, again.status) == (502, 502)
    assert (again.body, again.turn) == (first.body, first.turn)
    assert (first.replayed, again.replayed) == (False, True)
    assert "event: turn.failed" in (await send(http, request, stream=True)).body
    assert len(model_server.requests) == calls + 1


# --- What makes something ----------------------------------------------------------------------


async def create_chat_session(_: Http) -> Request:
    return Request("/create-chat-session")


async def create_chat_session_by_name(_: Http) -> Request:
    return Request("/deployments/default/create-chat-session")


async def chat_session(_: Http) -> Request:
    return Request(SESSIONS, {"title": "Mine"})


async def fork(http: Http) -> Request:
    session, _ = await a_session(http)
    return Request(f"{SESSIONS}/{session}/fork")


async def document(_: Http) -> Request:
    return Request("/api/documents", {"title": "D", "sections": [{"title": "S", "content": "c"}]})


async def section(http: Http) -> Request:
    made, _ = await prepare(http, "/api/documents", {"title": "D"})
    return Request(f"/api/documents/{made['document']['id']}/sections", {"title": "S"})


async def deployment(_: Http) -> Request:
    return Request("/api/deployments", {"name": "tutor"})


MAKERS = (
    create_chat_session,
    create_chat_session_by_name,
    chat_session,
    fork,
    document,
    section,
    deployment,
)


@pytest.mark.parametrize("maker", MAKERS, ids=lambda m: m.__name__)
async def test_a_thing_is_made_once(maker: Prepare, http: Http) -> None:
    request = await maker(http)
    several = await asyncio.gather(*(send(http, request) for _ in range(5)))
    assert {each.status for each in several} <= {200, 201}, several
    assert len({(each.status, each.body) for each in several}) == 1
    assert len({(each.headers.get("Location"), each.headers.get("ETag")) for each in several}) == 1
    assert sum(not each.replayed for each in several) == 1
    async with http.post(f"{request.path}/x", headers=KEY) as answer:
        assert answer.status in (404, 405)  # what is nowhere does not look at the key


# --- The key itself ----------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["", "x" * 256, "naïve", "tab\there"])
async def test_a_key_that_can_be_none_is_refused(key: str, http: Http) -> None:
    for beginner in (chat, session_create, invoke, message, chat_session, document):
        request = await beginner(http)
        got = await send(http, request, Idempotency_Key=key)
        assert (got.status, "Idempotency-Key" in got.body) == (400, True)


async def test_a_key_of_255_characters_will_do(http: Http, model_server: ModelServer) -> None:
    for _ in range(2):
        got = await send(http, await chat(http), Idempotency_Key="x" * 254 + "~")
    assert got.replayed


async def test_what_keeps_nothing_takes_no_key(http: Http, model_server: ModelServer) -> None:
    for path in ("/generate", "/deployments/default/generate"):
        assert (await send(http, Request(path, []))).status == 400
    assert len(model_server.requests) == 0


async def test_another_path_is_another_request(http: Http) -> None:
    request = await session_send(http)
    await send(http, request)
    got = await send(http, Request("/chat", request.body))
    assert (got.status, got.replayed) == (422, False)
    assert '"code":"idempotency_key_reused"' in got.body


def test_the_same_json_is_the_same_request() -> None:
    """A client that builds its request anew may order and space it in another way."""
    first = tell_apart("POST /x", b'{"a":1,"b":{"c":[1,2],"d":"\xc3\xa9"}}')
    spaced = b'{ "b": {"d": "\\u00e9", "c": [1, 2]},\n "a": 1, "stream": true, "stream_options":{}}'
    assert tell_apart("POST /x", spaced) == first
    assert tell_apart("POST /x", b"") == tell_apart("POST /x", b' {"stream": true}')


@pytest.mark.parametrize(
    "other",
    [
        b'{"a":1,"b":[2,1]}',
        b'{"a":"1","b":[1,2]}',
        b'{"a":1,"b":[1,2],"c":null}',
        b'{"a":1}',
        b'[{"a":1,"b":[1,2]}]',
        b"{}",
        b'{"a":1,"b":[1,2]',
        b'{"a":1,"b":[1,{"stream":true}]}',
        b"",
        b"\xff",
        b"[" * 100_000,
    ],
)
def test_other_json_is_another_request(other: bytes) -> None:
    assert tell_apart("POST /x", other) != tell_apart("POST /x", b'{"a":1,"b":[1,2]}')
    assert tell_apart("POST /x", other) != tell_apart("POST /y", other)


async def test_pages_may_send_and_read_the_headers(http: Http) -> None:
    asked = {"Origin": "http://localhost:8080", "Access-Control-Request-Method": "POST"}
    asked["Access-Control-Request-Headers"] = "idempotency-key,last-event-id"
    async with http.options("/api/chat", headers=asked) as answer:
        assert answer.headers["Access-Control-Allow-Headers"] == "idempotency-key,last-event-id"
    got = await send(http, await chat(http), Origin="http://localhost:8080")
    exposed = got.headers["Access-Control-Expose-Headers"].split(", ")
    assert {"Idempotent-Replayed", "Turn-Id", "Session-Id", "Retry-After"} <= {*exposed}


# --- In which state the turn is found ----------------------------------------------------------


async def test_an_answer_is_told_again_when_another_stands_in_its_place(
    http: Http, model_server: ModelServer
) -> None:
    for beginner in (message, regenerate):
        request = await beginner(http)
        first = await send(http, request, Idempotency_Key=beginner.__name__)
        await prepare(http, f"{SESSIONS}/{first.turn[1]}/regenerate")
        again = await send(http, request, Idempotency_Key=beginner.__name__)
        assert (again.status, again.turn, again.replayed) == (200, first.turn, True)
        if beginner is regenerate:
            assert again.body == first.body


async def cancel(http: Http, turn: str) -> None:
    await prepare(http, f"/api/turns/{turn}/cancel")


async def running_turn(http: Http, model: ModelServer, request: Request) -> Any:
    """The stream of a turn whose model says two words and then nothing."""
    model.script = lambda _: Plan(deltas=WORDS, at={2: Hang()})
    body = {**request.body, "stream": True}
    answer = await http.post(request.path, json=body, headers=KEY)
    await answer.content.readuntil(b"upon ")
    return answer


async def test_a_cancelled_turn_is_told_again_as_such(
    http: Http, model_server: ModelServer
) -> None:
    answer = await running_turn(http, model_server, await chat(http))
    waiting = asyncio.ensure_future(send(http, await chat(http)))
    await cancel(http, answer.headers["Turn-Id"])
    for got in (await waiting, await send(http, await chat(http))):
        assert (got.status, got.replayed) == (409, True)
        assert '"turn_cancelled"' in got.body
        assert got.turn[0] == answer.headers["Turn-Id"]


async def test_a_queued_turn_is_waited_for(http: Http, model_server: ModelServer) -> None:
    first = await running_turn(http, model_server, await chat_by_alias(http))
    other = Request("/api/chat", {"message": "three", "session_id": "mine"})
    asking = [asyncio.ensure_future(send(http, other, Idempotency_Key="b")) for _ in range(3)]
    async with asyncio.timeout(20):
        while not await queued_in(http, "mine"):
            await asyncio.sleep(0.01)
    model_server.script = lambda _: Plan(deltas=WORDS)
    await cancel(http, first.headers["Turn-Id"])
    got = await asyncio.gather(*asking)
    assert {each.status for each in got} == {200}
    assert len({each.turn for each in got}) == 1
    assert sum(not each.replayed for each in got) == 1
    assert len(model_server.requests) == 2


async def queued_in(http: Http, session: str) -> bool:
    async with http.get(f"{SESSIONS}/{session}/messages?after=0") as answer:
        return any(m["status"] == "queued" for m in (await answer.json())["messages"])


@pytest.fixture
def says(tmp_path: Path, server: Server) -> Callable[[str], None]:
    """What the default deployment says, to be called before the server starts."""

    def say(line: str) -> None:
        (tmp_path / "t.toml").write_text(f"[deployments.default]\n{line}\n")
        server.options = (*server.options, "--config", "t.toml")

    return say


async def test_a_busy_session_is_no_hindrance_to_the_retry_that_makes_it_busy(
    says: Callable[[str], None], server: Server, model_server: ModelServer
) -> None:
    says('concurrency = "reject"')
    gate = asyncio.Event()
    with server:
        async with aiohttp.ClientSession(server.url) as http:
            model_server.script = lambda _: Plan(deltas=WORDS, at={2: Wait(gate)})
            first = asyncio.ensure_future(send(http, await chat_by_alias(http)))
            await model_server.wait_for_calls(1)
            again = asyncio.ensure_future(send(http, await chat_by_alias(http)))
            refused = await send(http, await chat_by_alias(http), Idempotency_Key="other")
            assert refused.status == 409
            gate.set()
            assert (await again).body == (await first).body
            accepted = await send(http, await chat_by_alias(http), Idempotency_Key="other")
            assert (accepted.status, accepted.replayed) == (200, False)


async def test_a_retry_that_comes_in_time_keeps_the_turn_going(
    says: Callable[[str], None], server: Server, model_server: ModelServer
) -> None:
    says('on_disconnect = "cancel"')
    gate = asyncio.Event()
    with server:
        async with aiohttp.ClientSession(server.url) as http:
            model_server.script = lambda _: Plan(deltas=WORDS, at={2: Wait(gate)})
            body = {"message": "two", "stream": True}
            first = await http.post("/api/chat", json=body, headers=KEY)
            await first.content.readuntil(b"upon ")
            second = await http.post("/api/chat", json=body, headers=KEY)
            await second.content.readuntil(b"upon ")
            first.close()
            gate.set()
            assert b"turn.completed" in await second.read()


async def test_a_retry_that_comes_too_late_hears_that_it_was_cancelled(
    says: Callable[[str], None], server: Server, model_server: ModelServer
) -> None:
    says('on_disconnect = "cancel"')
    with server:
        async with aiohttp.ClientSession(server.url) as http:
            first = await running_turn(http, model_server, await chat(http))
            first.close()
            async with asyncio.timeout(20):
                await model_server.wait_for_disconnects(1)
            got = await send(http, await chat(http))
            assert (got.status, got.replayed) == (409, True)
            assert len(model_server.requests) == 1


async def test_keys_belong_to_their_caller(
    server: Server, tmp_path: Path, model_server: ModelServer
) -> None:
    server.options = (*server.options, "--auth", "keys")
    async with visit_accounts(f"sqlite:///{tmp_path}/turnkeeper.db", make=True) as accounts:
        secrets = []
        for name in ("ann", "bob"):
            await accounts.create_user(name, "user", None)
            secrets.append((await accounts.create_key(name, "test"))[0])
    with server:
        async with aiohttp.ClientSession(server.url) as http:
            got = [
                await send(http, await chat(http), X_API_Key=secret)
                for secret in (*secrets, *secrets)
            ]
    assert [each.replayed for each in got] == [False, False, True, True]
    assert [each.turn for each in got[:2]] == [each.turn for each in got[2:]]
    assert got[0].turn != got[1].turn


# --- Across a crash ----------------------------------------------------------------------------


@pytest.mark.parametrize("moment", ["before", "middle", "after"])
async def test_a_key_outlives_the_server(
    moment: str, server: Server, model_server: ModelServer
) -> None:
    stops = {"before": {BEFORE: Hang()}, "middle": {2: Hang()}, "after": {}}[moment]
    model_server.script = lambda _: Plan(deltas=WORDS, at=stops)
    with server:
        async with aiohttp.ClientSession(server.url) as http:
            request = await chat_by_alias(http)
            asking = asyncio.ensure_future(send(http, request))
            await model_server.wait_for_calls(1)
            first = await asking if moment == "after" else None
            server.kill()
            await asyncio.wait({asking})
    with server:
        async with aiohttp.ClientSession(server.url) as http:
            again, more = await send(http, request), await send(http, request)
    assert again.replayed
    assert (more.status, more.body, more.turn) == (again.status, again.body, again.turn)
    if first is None:
        assert again.status == 503
        assert '"turn_interrupted"' in again.body
    else:
        assert (again.status, again.body, again.turn) == (200, first.body, first.turn)
    assert len(model_server.requests) == 1
