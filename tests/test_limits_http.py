"""Limits on a real server: in every dialect's shape, with many clients at once, over restarts."""

import asyncio
import json
import sqlite3
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from rig.model_server import BEFORE, ModelServer, Plan, Wait
from rig.server import Server
from tests.test_process import server_of
from turnkeeper.web.limits import encode_duration

Http = aiohttp.ClientSession
CHAT = "/api/chat"
WORDS = tuple(f"{n} " for n in range(10))
USED = 7 + len(WORDS)  # tokens of a turn, as the model server counts them


class Got:
    """An answer as a client has it."""

    def __init__(self, status: int, text: str, headers: Any) -> None:
        self.status = status
        self.text = text
        self.headers = headers

    @property
    def body(self) -> Any:
        return json.loads(self.text)

    def left(self, what: str) -> int:
        return int(self.headers[f"x-ratelimit-remaining-{what}"])


async def ask(http: Http, path: str, body: Any = None, **headers: str) -> Got:
    """`headers` have underscores for hyphens; without a body it is a GET."""
    given = {name.replace("_", "-"): value for name, value in headers.items()}
    method = "GET" if body is None else "POST"
    async with http.request(method, path, json=body, headers=given) as answer:
        return Got(answer.status, await answer.text(), answer.headers)


async def say(http: Http, who: str = "bob", session: str = "s", **headers: str) -> Got:
    """One message of an end user's: they keep tests apart that share a server."""
    message = {"message": "hello", "session_id": session}
    return await ask(http, CHAT, message, X_End_User=who, **headers)


def write_limits(folder: Path, text: str) -> tuple[str, str]:
    """Options for a server with these limits, whose replies have ten tokens at most."""
    (folder / "t.toml").write_text(f"[deployments.default]\nmax_tokens = 10\n{text}\n")
    return "--config", "t.toml"


@asynccontextmanager
async def serving(
    folder: Path, model: ModelServer, limits: str, *options: str
) -> AsyncIterator[tuple[Http, Server]]:
    with server_of(model, folder, *write_limits(folder, limits), *options) as server:
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(server.url, connector=connector) as http:
            yield http, server


# --- What is told, in every dialect ------------------------------------------------------------

LIMITED = """
[limits.end_user]
requests_per_minute = 4
tokens_per_minute = 1000
"""
# A call in each dialect, and whether it words errors as OpenAI does.
SHAPES = [
    (CHAT, {"message": "hello"}, False),
    ("/session/create", {"ini_message": "hello"}, False),
    ("/invoke", {"chat_session_id": "s", "user_message": "hello"}, False),
    ("/api/documents", {"title": "t"}, False),
    ("/api/chat-sessions", {}, False),
    ("/api/me", None, False),
    ("/nowhere", None, False),
    ("/v1/chat/completions", {"model": "eliza", "messages": []}, True),
    ("/v1/responses", {"model": "eliza", "input": "hello"}, True),
    ("/v1/models", None, True),
]


@pytest.fixture(scope="module")
def eliza(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a server with these limits and the built-in model."""
    folder = tmp_path_factory.mktemp("limited")
    with Server(folder, "--model", "eliza", *write_limits(folder, LIMITED)) as server:
        yield server.url


@pytest.fixture
async def limited(eliza: str) -> AsyncIterator[Http]:
    async with aiohttp.ClientSession(eliza) as http:
        yield http


async def used(http: Http, turn: str, who: str) -> int:
    """The tokens of a turn."""
    got = await ask(http, f"/api/turns/{turn}", X_End_User=who)
    return int(got.body["turn"]["usage"]["total_tokens"])


@pytest.mark.parametrize(("path", "body", "is_openai"), SHAPES)
async def test_too_many_requests_are_refused_in_each_dialects_shape(
    limited: Http, path: str, body: Any, is_openai: bool
) -> None:
    who = f"end user of {path}"
    for left in (3, 2, 1, 0):
        got = await ask(limited, "/api/chat-sessions", X_End_User=who)
        assert (got.status, got.left("requests")) == (200, left)
    refused = await ask(limited, path, body, X_End_User=who, Origin="http://localhost:1234")
    assert refused.status == 429
    told = refused.body["error"] if is_openai else refused.body
    assert told["code"] == "rate_limit_exceeded"
    sentence = told["message" if is_openai else "error"]
    assert sentence.startswith("This end user has used up its 4 requests per minute")
    assert 55 <= int(refused.headers["retry-after"]) <= 61
    assert refused.headers["x-ratelimit-limit-requests"] == "4"
    assert refused.headers["x-ratelimit-reset-requests"] in ("59s", "1m0s", "1m1s")
    exposed = refused.headers["access-control-expose-headers"].split(", ")
    assert {name for name in refused.headers if "ratelimit" in name} <= set(exposed)
    assert "Retry-After" in exposed
    assert (await ask(limited, "/api/chat-sessions", X_End_User=f"not {who}")).status == 200


async def test_whoever_watches_the_server_is_not_counted(limited: Http) -> None:
    for path in ("/health/live", "/health/ready", "/"):
        got = await ask(limited, path)
        assert (got.status, "x-ratelimit-limit-requests" in got.headers) == (200, False)


async def test_real_usage_takes_the_place_of_what_was_reserved(limited: Http) -> None:
    body = {"message": "hello", "stream": True}
    async with limited.post(CHAT, json=body, headers={"X-End-User": "ann"}) as answer:
        reserved = 1000 - int(answer.headers["x-ratelimit-remaining-tokens"])
        await answer.read()
        spent = await used(limited, answer.headers["turn-id"], "ann")
    assert reserved > spent
    got = await ask(limited, "/api/me", X_End_User="ann")
    assert (got.headers["x-ratelimit-limit-tokens"], got.left("tokens")) == ("1000", 1000 - spent)


async def test_a_request_sent_again_is_answered_when_all_is_used_up(limited: Http) -> None:
    first = await say(limited, "eve", Idempotency_Key="one")
    spent = await used(limited, first.headers["turn-id"], "eve")
    for _ in range(2):
        await ask(limited, "/api/me", X_End_User="eve")
    assert (await say(limited, "eve")).status == 429
    again = await say(limited, "eve", Idempotency_Key="one")
    assert (again.status, again.text) == (200, first.text)
    assert again.headers["idempotent-replayed"] == "true"
    assert again.left("tokens") == 1000 - spent  # one turn
    other = await say(limited, "eve", session="t", Idempotency_Key="one")
    assert other.status == 429  # another request under that key
    assert (await say(limited, "eve", Idempotency_Key="two")).status == 429


async def test_whoever_tries_keys_on_end_is_not_looked_up_on_end(limited: Http) -> None:
    await say(limited, "mallory", Idempotency_Key="one")
    for _ in range(3):
        await ask(limited, "/api/me", X_End_User="mallory")
    statuses = [
        (await say(limited, "mallory", Idempotency_Key=key)).status
        for key in ("one", "x", "y", "one", "one")
    ]
    assert statuses == [200, 429, 429, 200, 429]


# --- Many at once ------------------------------------------------------------------------------

CLIENTS = 100


async def test_a_hundred_clients_never_take_more_and_hardly_less(
    tmp_path: Path, model_server: ModelServer
) -> None:
    """Never more tokens than there are; and what is refused would have been more."""
    limit, gate = 2000, asyncio.Event()
    model_server.script = lambda _: Plan(deltas=WORDS, at={BEFORE: Wait(gate)})
    limits = f"[limits.user]\ntokens_per_day = {limit}\ntokens_per_minute = {limit}"
    async with serving(tmp_path, model_server, limits) as (http, _):
        begun = [
            asyncio.create_task(ask(http, CHAT, {"message": "hello", "stream": n % 2 == 0}))
            for n in range(CLIENTS)
        ]
        async with asyncio.timeout(30):  # until each is refused, or runs and waits
            while model_server.calls + sum(each.done() for each in begun) < CLIENTS:
                await asyncio.sleep(0.01)
        taken = limit - (await ask(http, "/api/me")).left("tokens")
        gate.set()
        statuses = [(await each).status for each in begun]
        admitted = statuses.count(200)
        reserved = taken // admitted
        assert set(statuses) == {200, 429}
        assert admitted * reserved == taken  # each had reserved the same
        assert admitted * reserved <= limit < (admitted + 1) * reserved
        used = admitted * USED
        while True:  # what was reserved and not used goes to others, until nobody gets any
            got = await asyncio.gather(
                *(ask(http, CHAT, {"message": "hello"}) for _ in range(CLIENTS))
            )
            admitted = [each.status for each in got].count(200)
            used += admitted * USED
            assert used <= limit
            if not admitted:
                break
        assert limit - reserved < used
        assert (await ask(http, "/api/me")).left("tokens") == limit - used
        async with http.get("/api/chat-sessions?limit=100") as answer:
            listed = (await answer.json())["chat_sessions"]
        assert len(listed) == min(used // USED, 100)  # a refused request stores nothing


async def test_requests_turns_and_sessions_are_exact_among_a_hundred(
    tmp_path: Path, model_server: ModelServer
) -> None:
    limits = (
        "[limits.end_user]\nrunning_turns = 7\nsessions = 20\n"
        "[limits.user]\nrequests_per_minute = 350"
    )
    gate = asyncio.Event()
    model_server.script = lambda _: Plan(deltas=WORDS, at={BEFORE: Wait(gate)})
    async with serving(tmp_path, model_server, limits) as (http, _):
        begun = [asyncio.create_task(say(http, session=f"s{n}")) for n in range(CLIENTS)]
        refused = 0
        for each in asyncio.as_completed(begun):
            refused += (await each).status == 429
            if refused == CLIENTS - 7:
                break
        gate.set()
        assert [(await each).status for each in begun].count(200) == 7
        got: list[Got] = []
        for _ in range(2):
            many = (ask(http, "/api/chat-sessions", {}, X_End_User="bob") for _ in range(CLIENTS))
            got += await asyncio.gather(*many)
        assert [each.status for each in got].count(201) == 13
        codes = {each.body["code"] for each in got if each.status == 429}
        assert codes == {"insufficient_quota"}
        rest = await asyncio.gather(*(ask(http, "/api/me") for _ in range(CLIENTS)))
        assert [each.status for each in rest].count(200) == 50


# --- Streams -----------------------------------------------------------------------------------


async def test_streams_are_counted_while_they_are_open(
    tmp_path: Path, model_server: ModelServer
) -> None:
    gate = asyncio.Event()
    model_server.script = lambda _: Plan(deltas=WORDS, at={1: Wait(gate)})
    limits = "[limits.end_user]\nopen_streams = 2"
    body = {"message": "hello", "stream": True}
    async with serving(tmp_path, model_server, limits) as (http, _):
        headers = {"X-End-User": "bob"}
        one = await http.post(CHAT, json=body, headers=headers | {"Idempotency-Key": "k"})
        two = await http.post(CHAT, json=body, headers=headers)
        assert (one.status, two.status) == (200, 200)
        refused = await ask(http, CHAT, body, X_End_User="bob")
        assert (refused.status, refused.body["code"]) == (429, "rate_limit_exceeded")
        assert refused.body["error"] == (
            "This end user has 2 streams open at once, which is all it may"
        )
        events = f"/api/turns/{one.headers['turn-id']}/events"
        assert (await ask(http, events, X_End_User="bob")).status == 429
        again = await http.post(CHAT, json=body, headers=headers | {"Idempotency-Key": "k"})
        assert again.headers["idempotent-replayed"] == "true"  # nothing is begun by it
        listed = await ask(http, "/api/chat-sessions", X_End_User="bob")
        assert len(listed.body["chat_sessions"]) == 2  # a refused request stores nothing
        again.close()
        two.close()
        one.close()  # hangs up
        async with asyncio.timeout(10):
            while True:
                async with http.get(events, headers=headers) as answer:
                    if answer.status == 200:
                        break
                await asyncio.sleep(0.01)
        gate.set()


async def test_a_websocket_is_a_stream_and_its_messages_are_requests(
    tmp_path: Path, model_server: ModelServer
) -> None:
    model_server.script = lambda _: Plan(deltas=WORDS)
    limits = "[limits.end_user]\nopen_streams = 1\ntokens_per_day = 500\nrequests_per_minute = 4"
    headers = {"X-End-User": "bob"}
    async with (
        serving(tmp_path, model_server, limits) as (http, _),
        http.ws_connect("/v1/responses", headers=headers) as socket,
    ):
        with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
            await http.ws_connect("/v1/responses", headers=headers)
        assert refused.value.status == 429
        asked = {"type": "response.create", "model": "scripted", "input": "hello"}
        await socket.send_json(asked)
        while (await socket.receive_json())["type"] != "response.completed":
            pass
        left = (await ask(http, "/api/me", X_End_User="bob")).body["left"]
        assert {one["limit"]: one["left"] for one in left} == {
            "requests_per_minute": 0,  # two handshakes, a message, and this one
            "tokens_per_day": 500 - USED,
            "open_streams": 0,
        }
        await socket.send_json(asked)
        told = await socket.receive_json()
        assert (told["type"], told["error"]["code"]) == ("error", "rate_limit_exceeded")


async def test_the_caller_is_told_all_that_is_left(
    tmp_path: Path, model_server: ModelServer
) -> None:
    model_server.script = lambda _: Plan(deltas=WORDS)
    limits = "[limits.user]\nrequests_per_minute = 9\ntokens_per_day = 500\nrunning_turns = 2"
    async with serving(tmp_path, model_server, limits) as (http, _):
        await say(http)
        left = (await ask(http, "/api/me")).body["left"]
        told = [(one["of"], one["limit"], one["allowed"], one["left"]) for one in left]
        assert told == [
            ("user", "requests_per_minute", 9, 7),
            ("user", "tokens_per_day", 500, 500 - USED),
            ("user", "running_turns", 2, 2),
        ]
        assert left[0]["reset_seconds"] in (60, 61)
        assert 0 < left[1]["reset_seconds"] <= 86_400
        assert left[2]["reset_seconds"] is None


# --- However a turn ends -----------------------------------------------------------------------


async def test_whatever_becomes_of_a_turn_it_is_settled(
    tmp_path: Path, model_server: ModelServer
) -> None:
    """Failed, cancelled, hung up on, refused later: nothing stays reserved, nothing runs."""
    limits = "[limits.end_user]\nrunning_turns = 1\ntokens_per_minute = 1000"
    async with serving(tmp_path, model_server, limits) as (http, _):

        async def left() -> int:
            return (await ask(http, "/api/me", X_End_User="bob")).left("tokens")

        model_server.script = lambda _: Plan(status=400, body={"error": {"message": "no"}})
        assert (await say(http)).status == 502
        assert await left() == 1000  # nothing was used
        assert (await say(http, session="not / a name")).status == 400
        gate = asyncio.Event()
        model_server.script = lambda _: Plan(deltas=WORDS, at={1: Wait(gate)}, usage="last")
        body = {"message": "hello", "stream": True}
        async with http.post(CHAT, json=body, headers={"X-End-User": "bob"}) as stream:
            assert (await say(http, session="t")).status == 429  # one runs
            turn = stream.headers["turn-id"]
        got = await ask(http, f"/api/turns/{turn}/cancel", {}, X_End_User="bob")
        assert got.body["turn"]["status"] == "cancelled"
        spent = got.body["turn"]["usage"]["total_tokens"]  # as is guessed of a broken call
        assert await left() == 1000 - spent
        gate.set()
        assert (await say(http)).status == 200
        assert await left() == 1000 - spent - USED


# --- Costs and restarts ------------------------------------------------------------------------

PRICED = """
[providers.p]
base_url = "{url}"
models = [{{ id = "m", input_price = 1000, output_price = 2000 }}]
[limits.user]
cost_per_month = 0.1
tokens_per_day = {tokens}
"""


def priced(folder: Path, model: ModelServer, tokens: int) -> Server:
    limits = PRICED.format(url=model.base_url, tokens=tokens)
    return Server(folder, *write_limits(folder, limits))


async def test_a_months_cost_is_a_quota(tmp_path: Path, model_server: ModelServer) -> None:
    model_server.script = lambda _: Plan(deltas=WORDS)
    with priced(tmp_path, model_server, 10_000) as server:
        async with aiohttp.ClientSession(server.url) as http:
            for _ in range(10):
                got = await ask(http, CHAT, {"message": "hello"})
                if got.status != 200:
                    break
            assert (got.status, got.body["code"]) == (429, "insufficient_quota")
            assert got.body["error"] == (
                "This user has used up the cost of 0.1 that it may have in a month"
            )
            assert got.headers["x-should-retry"] == "false"
            assert int(got.headers["retry-after"]) > 0
            turns = (10_000 - got.left("tokens")) / USED
            assert turns == 3  # of 7 * 0.001 + 10 * 0.002: a fourth would be more


async def test_days_and_months_outlast_a_stop_and_a_crash(
    tmp_path: Path, model_server: ModelServer
) -> None:
    model_server.script = lambda _: Plan(deltas=WORDS)
    server = priced(tmp_path, model_server, 100)

    async def spend() -> tuple[int, int]:
        async with aiohttp.ClientSession(server.url) as http:
            got = await ask(http, CHAT, {"message": "hello"})
            return got.status, got.left("tokens")

    with server:
        assert await spend() == (200, 100 - USED)
        assert await asyncio.to_thread(server.stop) == 0
        await asyncio.to_thread(server.start)
        assert await spend() == (200, 100 - 2 * USED)
        async with asyncio.timeout(10):  # a crash loses what was used within the last second
            while kept(tmp_path) != 2 * USED:
                await asyncio.sleep(0.02)
        await asyncio.to_thread(server.kill)
        await asyncio.to_thread(server.start)
        assert await spend() == (200, 100 - 3 * USED)


def kept(folder: Path) -> int:
    with sqlite3.connect(folder / "turnkeeper.db") as database:
        rows = database.execute("SELECT amount FROM spent WHERE measure = 'tokens_per_day'")
        return sum(amount for (amount,) in rows)


async def test_a_crash_leaves_what_running_turns_had_reserved_as_used(
    tmp_path: Path, model_server: ModelServer
) -> None:
    gate = asyncio.Event()
    model_server.script = lambda _: Plan(deltas=WORDS, at={1: Wait(gate)})
    limits = "[limits.session]\ntokens_per_day = 1000"
    options = write_limits(tmp_path, limits)
    with server_of(model_server, tmp_path, *options) as server:
        async with aiohttp.ClientSession(server.url) as http:
            body = {"message": "hello", "stream": True, "session_id": "mine"}
            async with http.post(CHAT, json=body) as stream:
                assert stream.status == 200
                async with asyncio.timeout(10):
                    while (reserved := kept(tmp_path)) == 0:
                        await asyncio.sleep(0.02)
                await asyncio.to_thread(server.kill)
        gate.set()
        write_limits(tmp_path, f"[limits.session]\ntokens_per_day = {2 * reserved - 1}")
        await asyncio.to_thread(server.start)
        async with aiohttp.ClientSession(server.url) as http:
            # by its alias, by which nobody knows whose counts to read before
            got = await ask(http, CHAT, {"message": "hello", "session_id": "mine"})
            assert (got.status, got.body["code"]) == (429, "rate_limit_exceeded")
            assert got.body["error"].startswith("This session has not enough left")
            assert (await ask(http, CHAT, {"message": "hello"})).status == 200


# --- Lengths, addresses, the whole server ------------------------------------------------------


async def test_a_message_may_be_shorter_than_the_server_allows(
    tmp_path: Path, model_server: ModelServer
) -> None:
    limits = "[limits.end_user]\nmessage_length = 5\n[limits.address]\nrequests_per_minute = 3"
    async with serving(tmp_path, model_server, limits) as (http, _):
        assert (await say(http)).status == 200
        got = await ask(http, CHAT, {"message": "hello!"}, X_End_User="bob")
        assert (got.status, got.body["code"]) == (413, "message_too_long")
        assert (await ask(http, CHAT, {"message": "hello!"})).status == 200
        got = await ask(http, "/api/me")
        assert got.status == 429
        assert got.body["error"].startswith("This address has used up its 3 requests per minute")


async def test_beyond_what_the_server_can_do_the_answer_is_503(
    tmp_path: Path, model_server: ModelServer
) -> None:
    gate = asyncio.Event()
    model_server.script = lambda _: Plan(deltas=WORDS, at={1: Wait(gate)})
    options = ("--max-turns", "3", "--max-streams", "2")
    body = {"message": "hello", "stream": True}
    async with serving(tmp_path, model_server, "", *options) as (http, _):
        streams = [await http.post(CHAT, json=body) for _ in range(2)]
        assert [stream.status for stream in streams] == [200, 200]
        for path, asked in ((CHAT, body), ("/session/create", {"ini_message": "a"} | body)):
            got = await ask(http, path, asked)
            assert (got.status, got.headers["retry-after"]) == (503, "1")
            assert got.body["code"] == "overloaded"
        third = asyncio.create_task(ask(http, CHAT, {"message": "hello"}))
        await model_server.wait_for_calls(3)
        got = await ask(http, CHAT, {"message": "hello"})
        assert (got.status, got.body) == (
            503,
            {
                "error": "The server has as much to do as it can; try again in a moment",
                "code": "overloaded",
            },
        )
        gate.set()
        assert (await third).status == 200
        await asyncio.gather(*(stream.read() for stream in streams))
        assert (await ask(http, CHAT, body)).status == 200  # at once


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, b"0ms"),
        (0.0115, b"12ms"),
        (0.9999, b"1s"),
        (1, b"1s"),
        (7.2, b"8s"),
        (360, b"6m0s"),
        (59.5, b"1m0s"),
        (86_400, b"24h0m0s"),
    ],
)
def test_durations_are_written_as_clients_know_them(seconds: float, text: bytes) -> None:
    assert encode_duration(seconds) == text
