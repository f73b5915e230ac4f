"""Deployments over HTTP: what the model is shown, and which sessions a change reaches."""

import asyncio
import itertools
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from rig.model_server import ModelServer, Plan, Wait
from rig.server import Server
from turnkeeper import compose
from turnkeeper.config import read_config
from turnkeeper.dialects import deployment
from turnkeeper.dialects.exchange import Call
from turnkeeper.dialects.native.deployments import encode_change
from turnkeeper.domain import ById
from turnkeeper.sessions import Said, SessionRequest


class Client:
    """What an application and its operator send."""

    def __init__(self, url: str, model: ModelServer, http: aiohttp.ClientSession) -> None:
        self.url = url
        self.model = model
        self.http = http

    async def ask(self, method: str, path: str, body: Any = None, status: int = 200) -> Any:
        async with self.http.request(method, self.url + path, json=body) as response:
            assert response.status == status, await response.text()
            return await response.json() if response.content_type == "application/json" else None

    async def publish(self, name: str, **blueprint: Any) -> str:
        """The new state's id."""
        body = {"name": name, **blueprint}
        return (await self.ask("POST", "/api/deployments", body, 201))["deployment"][
            "engineStateId"
        ]

    async def republish(self, name: str, **blueprint: Any) -> str:
        answer = await self.ask("PUT", f"/api/deployments/{name}", blueprint)
        return answer["deployment"]["engineStateId"]

    async def open_session(self, base: str = "", **variables: Any) -> str:
        body = [{"key": key, "value": value} for key, value in variables.items()]
        answer = await self.ask("POST", f"{base}/create-chat-session", body)
        return answer["chat_session_id"]

    async def say(self, base: str, session: str, text: str, **options: Any) -> list[str]:
        """Take a turn; what the model was shown for it, a line for each message."""
        body = {"chat_session_id": session, "user_message": text, **options}
        await self.ask("POST", f"{base}/invoke", body)
        return self.shown()

    def shown(self) -> list[str]:
        messages = self.model.requests[-1].body["messages"]
        return [f"{message['role']}: {message['content']}" for message in messages]

    async def state_of(self, base: str, session: str) -> str:
        answer = await self.ask("GET", f"{base}/chat-session/{session}")
        return answer["data"]["engineStateId"]


@pytest.fixture
async def client(tmp_path: Path, model_server: ModelServer) -> AsyncIterator[Client]:
    (tmp_path / "turnkeeper.toml").write_text(
        f"""
model = "small"
[providers.scripted]
base_url = "{model_server.base_url}"
models = ["small", "large"]
attempts = 1
"""
    )
    server = Server(tmp_path, "--config", "turnkeeper.toml")
    await asyncio.to_thread(server.start)
    async with aiohttp.ClientSession() as http:
        yield Client(server.url, model_server, http)
    server.kill()


TRIPS = "/deployments/trips"

# --- Variables ---------------------------------------------------------------------------------


async def test_variables_stand_in_the_system_message_and_in_the_examples(client: Client) -> None:
    await client.publish(
        "trips",
        system_message="You plan trips to {country}.",
        messages=[
            {"role": "user", "content": "How is { country }?"},
            {"role": "assistant", "content": "{country} is fine."},
        ],
    )
    session = await client.open_session(TRIPS, country="France")
    assert await client.say(TRIPS, session, "And {country}?") == [
        "system: You plan trips to France.",
        "user: How is France?",
        "assistant: France is fine.",
        "user: And {country}?",  # words of the user's are never a template
    ]


async def test_the_seeds_example_reaches_a_model_that_was_told_nothing_of_it(
    client: Client,
) -> None:
    session = await client.open_session(country="France")
    assert await client.say("", session, "Help me plan a trip.") == [
        "system: You are a helpful AI assistant.\n\ncountry: France",
        "user: Help me plan a trip.",
    ]


async def test_what_no_placeholder_names_may_be_ignored(client: Client) -> None:
    await client.publish("trips", system_message="Be brief.", unused_variables="ignore")
    session = await client.open_session(TRIPS, country="France")
    assert await client.say(TRIPS, session, "Hi") == ["system: Be brief.", "user: Hi"]


async def test_values_are_fixed_when_the_session_is_made(client: Client) -> None:
    await client.publish("trips", system_message="{a}{b}")
    session = await client.open_session(TRIPS, a="{b}", b={"x": [1, 2.0]})
    expected = 'system: {b}{"x":[1,2.0]}'
    assert (await client.say(TRIPS, session, "one"))[0] == expected
    assert (await client.say(TRIPS, session, "two"))[0] == expected


# --- Engine states -----------------------------------------------------------------------------


async def test_a_session_keeps_its_state_across_a_publish_and_a_rollback(client: Client) -> None:
    first = await client.publish(
        "trips",
        system_message="You are strict.",
        messages=[{"role": "user", "content": "Old?"}, {"role": "assistant", "content": "Old."}],
    )
    older = await client.open_session(TRIPS)
    assert len(await client.say(TRIPS, older, "one")) == 4

    second = await client.republish(
        "trips",
        system_message="You are kind.",
        messages=[{"role": "user", "content": "New?"}, {"role": "assistant", "content": "New."}],
    )
    assert second != first
    newer = await client.open_session(TRIPS)
    assert await client.say(TRIPS, newer, "two") == [
        "system: You are kind.",
        "user: New?",
        "assistant: New.",
        "user: two",
    ]
    assert await client.say(TRIPS, older, "three") == [
        "system: You are strict.",
        "user: Old?",
        "assistant: Old.",
        "user: one",
        "assistant: You said: one",
        "user: three",
    ]
    assert await client.state_of(TRIPS, older) == first
    assert await client.state_of(TRIPS, newer) == second

    body = {"engineStateId": first}
    await client.ask("POST", "/api/deployments/trips/rollback", body)
    newest = await client.open_session(TRIPS)
    assert (await client.say(TRIPS, newest, "four"))[0] == "system: You are strict."
    assert (await client.say(TRIPS, newer, "five"))[0] == "system: You are kind."
    assert await client.state_of(TRIPS, newest) == first
    assert await client.state_of(TRIPS, newer) == second


async def test_unchanged_content_publishes_nothing(client: Client) -> None:
    first = await client.publish("trips", system_message="Hi", temperature=1)
    assert await client.republish("trips", temperature=1.0, system_message="Hi") == first
    answer = await client.ask("GET", "/api/deployments/trips/states")
    assert [state["engineStateId"] for state in answer["states"]] == [first]


async def test_states_survive_the_sessions_and_a_deletion(client: Client) -> None:
    await client.publish("trips", system_message="Be brief.")
    session = await client.open_session(TRIPS)
    await client.ask("DELETE", "/api/deployments/trips", status=204)
    assert await client.say(TRIPS, session, "Hi") == ["system: Be brief.", "user: Hi"]
    await client.ask("POST", f"{TRIPS}/create-chat-session", [], 404)


# --- What goes before what ---------------------------------------------------------------------


def asked(client: Client) -> dict[str, Any]:
    """The model and settings of the last call."""
    body = client.model.requests[-1].body
    names = ("model", "temperature", "top_p", "max_tokens", "stop")
    return {name: body[name] for name in names if name in body}


async def test_a_request_goes_before_the_session_and_that_before_its_state(
    client: Client,
) -> None:
    state = await client.publish("trips", system_message="x", temperature=0.5, max_tokens=100)
    session = await client.open_session(TRIPS)
    await client.say(TRIPS, session, "one")
    assert asked(client) == {"model": "small", "temperature": 0.5, "max_tokens": 100}

    await client.say(TRIPS, session, "two", temperature=0, top_p=0.9, stop="END", model="large")
    assert asked(client) == {
        "model": "large",
        "temperature": 0,
        "top_p": 0.9,
        "max_tokens": 100,
        "stop": ["END"],
    }
    await client.say(TRIPS, session, "three", stop=["a", "b"], max_tokens=7)
    assert asked(client) == {
        "model": "large",  # it stays the session's; the settings were for one turn
        "temperature": 0.5,
        "max_tokens": 7,
        "stop": ["a", "b"],
    }
    assert await client.state_of(TRIPS, session) == state


# --- Generate ----------------------------------------------------------------------------------


async def test_generate_asks_the_prompt_alone_and_keeps_nothing(client: Client) -> None:
    await client.publish("trips", system_message="Name a city in {country}.")
    answer = await client.ask("POST", f"{TRIPS}/generate", [{"key": "country", "value": "Italy"}])
    assert client.shown() == ["user: Name a city in Italy."]
    assert answer == {"message": "You said: Name a city in Italy."}
    assert await client.ask("GET", "/api/sessions") == []


async def test_generate_needs_a_prompt(client: Client) -> None:
    await client.publish("trips")
    answer = await client.ask("POST", f"{TRIPS}/generate", [], 400)
    assert answer == {"error": "The deployment has no prompt to generate from"}


# --- When the model fails ----------------------------------------------------------------------


async def test_a_session_whose_opening_failed_goes_on(client: Client) -> None:
    client.model.script = lambda _: Plan(status=500, body={"error": {"message": "broken"}})
    opening = {"ini_message": {"event": "login"}}
    async with client.http.post(f"{client.url}/session/create", json=opening) as response:
        assert response.status == 502
        session = response.headers["Session-Id"]
        turn = response.headers["Turn-Id"]
    client.model.script = lambda _: Plan(deltas=("Welcome",))
    stored = await client.ask("GET", f"/api/turns/{turn}")
    assert stored["turn"]["status"] == "failed"
    body = {"session_id": session, "msg_text": "Hello?"}
    assert await client.ask("POST", "/session/send", body) == {"msg_text": "Welcome"}


async def test_a_session_that_ends_stops_its_turn(client: Client) -> None:
    gate = asyncio.Event()
    client.model.script = lambda _: Plan(deltas=("a", "b"), at={1: Wait(gate)})
    session = await client.open_session()
    body = {"chat_session_id": session, "user_message": "Hi", "stream": True}
    async with client.http.post(f"{client.url}/invoke", json=body) as stream:
        while b"message.delta" not in await stream.content.readany():
            pass
        answer = await client.ask("DELETE", f"/chat-session/{session}")
        assert answer == {"message": "Chat session deleted"}
        assert b"turn.cancelled" in await stream.content.read()


# --- Two at once -------------------------------------------------------------------------------


async def test_a_deployment_may_refuse_a_second_message(client: Client) -> None:
    await client.publish("trips", system_message="x", concurrency="reject")
    gate = asyncio.Event()
    client.model.script = lambda _: Plan(deltas=("a", "b"), at={1: Wait(gate)})
    session = await client.open_session(TRIPS)
    body = {"chat_session_id": session, "user_message": "Hi"}
    url = f"{client.url}{TRIPS}/invoke"
    async with client.http.post(url, json={**body, "stream": True}) as stream:
        async with client.http.post(url, json=body) as refused:
            assert refused.status == 409
            assert refused.headers["x-should-retry"] == "false"
            assert await refused.json() == {
                "error": "A reply is being made in this session; try again when it is over",
                "code": "session_busy",
                "busy_turn_id": stream.headers["Turn-Id"],
            }
        gate.set()
        assert b"turn.completed" in await stream.content.read()
    answer = await client.ask("GET", f"{TRIPS}/chat-session/{session}")
    assert [message["content"] for message in answer["data"]["messages"]] == ["Hi", "ab"]


# --- Long sessions -----------------------------------------------------------------------------


async def never() -> None:
    await asyncio.Event().wait()


@pytest.mark.parametrize(("count", "size"), [(0, 0), (1, 1), (2_050, 5), (30, 100_000)])
async def test_all_messages_of_a_session_are_shown(tmp_path: Path, count: int, size: int) -> None:
    roles = itertools.cycle(["user", "assistant"])
    messages = [
        {"role": next(roles), "content": str(number).ljust(size, ".")} for number in range(count)
    ]
    said = tuple(Said(message["role"], message["content"]) for message in messages)  # type: ignore[arg-type]
    options = {"database": f"sqlite:///{tmp_path}/d.db", "model": "eliza"}
    async with compose.open_parts(read_config(options, {}, tmp_path)) as parts:
        session = (await parts.sessions.create("local", SessionRequest(messages=said))).thing
        path = {"chat_session_id": session.id}
        call = Call("local", "GET /", b"", path, {}, {}, "http://localhost", never)
        answer = await deployment.get_session(parts, call)
        pieces = [piece async for piece in answer.pieces]
        page = await parts.sessions.page_messages("local", ById(session.id))
        assert page.more is (count > 1)  # it takes more than one read
    expected = {"data": {"engineStateId": session.revision, "messages": messages}}
    assert b"".join(pieces) == deployment.encode_json(expected)
    assert max(map(len, pieces)) < 1_200_000


# --- Differences -------------------------------------------------------------------------------


def test_a_change_of_one_line_needs_no_diff() -> None:
    assert encode_change("a", "b") == {"from": "a", "to": "b"}
    assert encode_change(None, 1.5) == {"from": None, "to": 1.5}


def test_a_change_of_a_text_of_several_lines_says_which() -> None:
    old, new = "one\ntwo\nthree\n", "one\n2\nthree"
    change = encode_change(old, new)
    assert [line for line in change["diff"] if line[0] in "+-"][2:] == ["-two", "+2", "-"]


def test_a_very_long_text_is_not_told_apart() -> None:
    assert "diff" not in encode_change("x\n" * 3_000, "y")
