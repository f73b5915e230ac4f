"""`X-End-User`: an application says for which of its own users it asks, in every dialect."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from rig.model_server import ModelServer, Plan, Wait
from tests.test_process import server_of
from turnkeeper.dialects.exchange import Call
from turnkeeper.domain import Caller, is_for, make_owner, split_owner
from turnkeeper.errors import InvalidRequest

SESSIONS = "/api/chat-sessions"


class App:
    """An application that acts for several users of its own."""

    def __init__(self, http: aiohttp.ClientSession) -> None:
        self._http = http

    async def ask(
        self, who: str | None, method: str, path: str, body: Any = None
    ) -> tuple[int, Any]:
        headers = {} if who is None else {"X-End-User": who}
        async with self._http.request(method, path, json=body, headers=headers) as response:
            text = await response.text()
            return response.status, json.loads(text) if text else None

    async def get(self, who: str | None, path: str) -> Any:
        status, body = await self.ask(who, "GET", path)
        assert status == 200, body
        return body

    async def say(self, who: str | None, session: str) -> str:
        """The id of the turn's session, whose alias is `session`."""
        status, body = await self.ask(
            who, "POST", "/api/chat", {"message": f"I am {who}", "session_id": session}
        )
        assert status == 200, body
        return await self.find(who, session)

    async def find(self, who: str | None, session: str) -> str:
        return (await self.get(who, f"{SESSIONS}/{session}"))["chat_session"]["id"]

    async def listed(self, who: str | None) -> list[str]:
        return [s["id"] for s in (await self.get(who, SESSIONS))["chat_sessions"]]


@pytest.fixture
async def app(tmp_path: Path, model_server: ModelServer) -> AsyncIterator[App]:
    with server_of(model_server, tmp_path) as server:
        async with aiohttp.ClientSession(server.url) as http:
            yield App(http)


async def test_end_users_have_sessions_of_their_own(app: App) -> None:
    bob, eve, own = [await app.say(who, "s") for who in ("bob", "eve", None)]
    assert len({bob, eve, own}) == 3
    assert (await app.listed("bob"), await app.listed("eve")) == ([bob], [eve])
    assert await app.listed(None) == [own, eve, bob]
    shown = (await app.get(None, SESSIONS))["chat_sessions"]
    assert [session.get("end_user") for session in shown] == [None, "eve", "bob"]
    # every dialect: another's session is as if it were not there
    for method, path, body in (
        ("GET", f"{SESSIONS}/{bob}", None),
        ("POST", f"{SESSIONS}/{bob}/messages", {"message": "hello"}),
        ("POST", "/api/chat", {"message": "hello", "session_id": bob}),
        ("POST", "/session/send", {"msg_text": "hello", "session_id": bob}),
        ("POST", "/invoke", {"user_message": "hello", "chat_session_id": bob}),
        ("GET", f"/api/turns/t{bob[1:]}_1", None),
        ("DELETE", f"/session/end?session_id={bob}", None),
    ):
        assert (await app.ask("eve", method, path, body))[0] == 404, path
        if method != "DELETE":
            assert (await app.ask("bob", method, path, body))[0] == 200, path


async def test_a_document_is_its_end_users(app: App) -> None:
    _, made = await app.ask("bob", "POST", "/api/documents", {"title": "Mine"})
    assert made["document"]["author"] == "bob"
    path = f"/api/documents/{made['document']['id']}"
    assert [(await app.ask(who, "GET", path))[0] for who in ("bob", "eve", None)] == [200, 404, 200]


async def test_a_reply_is_followed_live_by_its_end_user_and_the_application(
    app: App, model_server: ModelServer
) -> None:
    """Whoever of them began it."""
    gate = asyncio.Event()
    session = await app.say("bob", "s")
    model_server.script = lambda _: Plan(at={0: Wait(gate)})
    body = {"message": "hello", "stream": True}
    for who in ("bob", None):
        gate.clear()
        headers = {} if who is None else {"X-End-User": who}
        path = f"{SESSIONS}/{session}/messages"
        async with app._http.post(path, json=body, headers=headers) as streamed:
            turn = f"/api/turns/{streamed.headers['turn-id']}"
            for reader in ("bob", None):
                assert (await app.get(reader, turn))["turn"]["status"] == "running"
            assert (await app.ask("eve", "POST", f"{turn}/cancel"))[0] == 404
            gate.set()
            assert b"turn.completed" in await streamed.read()


@pytest.mark.parametrize("name", ["", " ", "a\tb", "x" * 257, "b\u200eob"])
async def test_a_name_that_can_be_none_is_refused(app: App, name: str) -> None:
    status, body = await app.ask(name, "GET", SESSIONS)
    assert (status, body["code"]) == (400, "invalid_request")


async def test_any_other_name_goes(app: App) -> None:
    for name in ("bob@example.org", "Zoë Ünal", "a/b", "user-8f3e", "x" * 256):
        session = await app.say(name, "s")
        assert (await app.get(None, f"{SESSIONS}/{session}"))["chat_session"]["end_user"] == name


def a_call(who: Caller) -> Call:
    async def never() -> None: ...

    return Call(who.owner, "POST /x", b"", {}, {}, {}, "", never, who=who)


def test_a_dialect_may_say_the_end_user_but_not_another() -> None:
    app = a_call(Caller("ann", is_admin=False))
    bob = app.on_behalf_of("bob")
    assert (bob.caller, bob.who.end_user) == ("ann/bob", "bob")
    assert bob.on_behalf_of("eve") == bob
    assert app.on_behalf_of(None) == app
    bound = a_call(Caller("ann", is_admin=False, session="s1"))
    assert bound.on_behalf_of("eve") == bound
    with pytest.raises(InvalidRequest):
        app.on_behalf_of("")


def test_an_owner_is_read_back_as_it_was_written() -> None:
    for user, end_user in (("ann", None), ("ann", "bob"), ("ann", "b/o/b"), ("ann", "/")):
        assert split_owner(make_owner(user, end_user)) == (user, end_user)
    assert is_for("ann", "ann/bob")
    assert not is_for("ann/bob", "ann")
    assert not is_for("ann", "ann2/bob")
    assert not is_for("ann/b", "ann/b/c")
