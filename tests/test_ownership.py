"""Whose is whose: every route there is, called by its owner, another user, an admin and nobody;
with keys that lack a scope or have expired, with tokens for one session, by users of an identity
provider, and for end users.

The routes are those of the route map. One without an entry in `EXAMPLES` fails: say there what a
call of it looks like, and what those get who own nothing of what it names.
"""

import itertools
import json
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Any

import aiohttp
import jwt
import pytest

from tests.test_access import Site
from turnkeeper.dialects.exchange import WEBSOCKET, Route
from turnkeeper.web.app import DIALECTS

ROUTES = [route for dialect in DIALECTS for route in dialect.routes]
SECRET = "amber otter"
SCOPES = ("chat", "documents", "read")
PROVIDER = {"ISSUER": "us", "AUDIENCE": "chat", "SECRET": "shared-with-the-identity-provider"}
_numbers = itertools.count(1)


@dataclass(frozen=True)
class Example:
    """A call, with the names of `Things` in braces for what belongs to `ann`.

    Attributes:
        others: the status that other users and admins get. Of what is for admins, it is what
            users get who are none.
        open_: the status that everyone gets, if nobody is asked for credentials.
        own: the status that `ann` gets, if it is none of success.
        root: the status that an admin gets, if another than other users; after all the others.
        person: the status that someone gets who is known to the identity provider alone, if
            another than other users.
        endless: what `ann` gets never ends.
    """

    body: Any = None
    others: int = 404
    query: str = ""
    open_: int | None = None
    own: int | None = None
    root: int | None = None
    person: int | None = None
    endless: bool = False


HELLO = [{"role": "user", "content": "hello"}]
SAY = {"chat_session_id": "{id}", "user_message": "hello"}

EXAMPLES = {
    # chatbot
    "POST /api/chat": Example({"message": "hello", "session_id": "{id}"}),
    "POST /api/clear": Example({"session_id": "{id}"}, others=200),  # as for any unknown session
    "GET /api/models": Example(others=200),
    "GET /api/sessions": Example(others=200),
    # chatsession
    "POST /session/create": Example({"ini_message": "hello"}, others=200),
    "POST /session/send": Example({"session_id": "{id}", "msg_text": "hello"}),
    "POST /chat": Example({"session_id": "{id}", "msg_text": "hello"}),
    "DELETE /session/end": Example(query="?session_id={id}"),
    # deployment
    "POST /create-chat-session": Example(others=200),
    "POST /invoke": Example(SAY),
    "GET /chat-session/{chat_session_id}": Example(),
    "DELETE /chat-session/{chat_session_id}": Example(),
    "POST /generate": Example(others=200),
    "POST /deployments/{name}/create-chat-session": Example(others=200),
    "POST /deployments/{name}/invoke": Example(SAY),
    "GET /deployments/{name}/chat-session/{chat_session_id}": Example(),
    "DELETE /deployments/{name}/chat-session/{chat_session_id}": Example(),
    "POST /deployments/{name}/generate": Example(others=200),
    # documents
    "GET /api/documents": Example(others=200),
    "POST /api/documents": Example({"title": "Mine"}, others=201),
    "GET /api/documents/{doc_id}": Example(),
    "PUT /api/documents/{doc_id}": Example({"title": "taken"}),
    "DELETE /api/documents/{doc_id}": Example(),
    "POST /api/documents/{doc_id}/sections": Example({"title": "taken"}),
    "GET /api/documents/{doc_id}/sections/{section_id}": Example(),
    "PUT /api/documents/{doc_id}/sections/{section_id}": Example({"title": "taken"}),
    "DELETE /api/documents/{doc_id}/sections/{section_id}": Example(),
    "POST /api/documents/{doc_id}/sections/{section_id}/replace": Example({"content": "taken"}),
    "POST /api/documents/{doc_id}/sections/{section_id}/chat": Example(others=403),  # seed 003
    "GET /api/chat-sessions/{id}": Example(),
    "POST /api/chat-sessions/{id}/messages": Example({"message": "hello"}),
    "POST /api/chat-sessions/{id}/clear": Example(),
    # login
    "POST /login": Example({}, open_=400),
    "POST /logout": Example(others=200),
    # native: turns
    "GET /api/turns/{turn_id}": Example(),
    "GET /api/turns/{turn_id}/events": Example(),
    "POST /api/turns/{turn_id}/cancel": Example(),
    "POST /api/turns/{turn_id}/retry": Example({}, own=409),  # it went well
    "GET /api/chat-sessions/{id}/events": Example(endless=True),
    # native: sessions
    "POST /api/chat-sessions": Example({}, others=201),
    "GET /api/chat-sessions": Example(others=200, query="?archived=any"),
    "PATCH /api/chat-sessions/{id}": Example({"title": "taken"}),
    "DELETE /api/chat-sessions/{id}": Example(),
    "GET /api/chat-sessions/{id}/messages": Example(),
    "POST /api/chat-sessions/{id}/fork": Example({}),
    "POST /api/chat-sessions/{id}/regenerate": Example({}),
    "POST /api/chat-sessions/{id}/messages/{message_id}/edit": Example({"message": "hello"}),
    "GET /api/chat-sessions/{id}/messages/{message_id}/versions": Example(),
    "POST /api/chat-sessions/{id}/messages/{message_id}/versions/{n}/select": Example(),
    # native: deployments, for admins
    "GET /api/deployments": Example(),
    "POST /api/deployments": Example({"name": "{new_name}"}),
    "GET /api/deployments/{name}": Example(),
    "PUT /api/deployments/{name}": Example({"system_message": "Be brief."}),
    "DELETE /api/deployments/{name}": Example(),
    "GET /api/deployments/{name}/states": Example(),
    "GET /api/deployments/{name}/diff": Example(),
    "POST /api/deployments/{name}/rollback": Example({"engineStateId": "{state}"}),
    # native: keys, of which one cannot make, change or revoke another; and tokens
    "GET /api/keys": Example(others=200),
    "POST /api/keys": Example({}, others=403, own=403, root=201, person=404),
    "POST /api/keys/{key_id}/rotate": Example({}, own=403, root=201),
    "DELETE /api/keys/{key_id}": Example(own=403, root=204),
    "POST /api/chat-sessions/{id}/token": Example({}),
    # native: users, for admins
    "GET /api/users": Example(),
    "POST /api/users": Example({"name": "{new_name}"}),
    "PATCH /api/users/{name}": Example({"disabled": True}),
    "DELETE /api/users/{name}": Example(),
    "DELETE /api/users/{name}/end-users/{end_user*}": Example(own=404),  # of whom there is nothing
    # native: the caller
    "GET /api/me": Example(others=200),
    "GET /api/usage": Example(others=200),
    # openai: models, chat completions
    "GET /v1/models": Example(others=200),
    "GET /v1/models/{id*}": Example(others=200),
    "POST /v1/chat/completions": Example(
        {"model": "eliza", "messages": HELLO, "metadata": {"session_id": "{session}"}}
    ),
    "GET /v1/chat/completions": Example(others=200),
    "GET /v1/chat/completions/{id}": Example(),
    "POST /v1/chat/completions/{id}": Example({"metadata": {"a": "b"}}),
    "DELETE /v1/chat/completions/{id}": Example(),
    "GET /v1/chat/completions/{id}/messages": Example(),
    # openai: responses, conversations
    "POST /v1/responses": Example({"input": "hello", "conversation": "{conversation}"}),
    "GET /v1/responses/{id}": Example(),
    "DELETE /v1/responses/{id}": Example(),
    "POST /v1/responses/{id}/cancel": Example(own=400),  # it is over
    "GET /v1/responses/{id}/input_items": Example(),
    "POST /v1/responses/compact": Example(
        {"model": "eliza", "previous_response_id": "{response}"}, others=400
    ),
    "POST /v1/responses/input_tokens": Example({"input": "a", "conversation": "{conversation}"}),
    "WEBSOCKET /v1/responses": Example(
        {"type": "response.create", "input": "hello", "conversation": "{conversation}"}
    ),
    "POST /v1/conversations": Example(others=200),
    "GET /v1/conversations": Example(others=200),
    "GET /v1/conversations/{id}": Example(),
    "POST /v1/conversations/{id}": Example({"metadata": {"a": "b"}}),
    "DELETE /v1/conversations/{id}": Example(),
    "POST /v1/conversations/{id}/items": Example({"items": HELLO}),
    "GET /v1/conversations/{id}/items": Example(),
    "GET /v1/conversations/{id}/items/{item_id}": Example(),
    "DELETE /v1/conversations/{id}/items/{item_id}": Example(),
}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    env = {f"TURNKEEPER_JWT_{name}": value for name, value in PROVIDER.items()}
    site = Site(tmp_path_factory.mktemp("site"), env=env)
    for scope in SCOPES:
        site.keys[scope] = site.key("ann", "--scope", scope)
        site.keys[f"root {scope}"] = site.key("root", "--scope", scope)
    site.keys["root admin"] = site.key("root", "--scope", "admin")
    site.keys["expired"] = site.key("ann", "--expires", "1s")
    claims = {"sub": "eve", "iss": "us", "aud": "chat", "exp": time.time() + 3600}
    site.keys["person"] = jwt.encode(claims, PROVIDER["SECRET"])
    with site.server:
        yield site


class Callers:
    """The server as each of them sees it."""

    def __init__(self, site: Site, http: aiohttp.ClientSession) -> None:
        self._keys = site.keys
        self._http = http

    async def call(
        self,
        who: str | None,
        method: str,
        path: str,
        body: Any = None,
        *,
        endless: bool = False,
        end_user: str | None = None,
    ) -> tuple[int, str, Any]:
        """Status, body and headers. Of an endless body nothing is read.

        `who` None is nobody; else the name of a key, or what has none: a key or token itself.
        """
        headers = {} if who is None else {"X-API-Key": self._keys.get(who, who)}
        if end_user is not None:
            headers["X-End-User"] = end_user
        if method == WEBSOCKET:
            return await self._say(path, body, headers)
        async with self._http.request(method, path, json=body, headers=headers) as response:
            text = "" if endless else await response.text()
            return response.status, text, response.headers

    async def _say(self, path: str, body: Any, headers: dict[str, str]) -> tuple[int, str, Any]:
        """The status that a message gets, or the handshake before it, and all that is said."""
        try:
            async with self._http.ws_connect(path, headers=headers) as socket:
                await socket.send_json(body)
                text = await socket.receive_str()
                if '"type":"error"' not in text:
                    async for message in socket:
                        text += message.data
                        if message.data.startswith('{"type":"response.completed"'):
                            break
                return json.loads(text)["status"] if "error" in text[:30] else 200, text, {}
        except aiohttp.WSServerHandshakeError as refusal:
            return refusal.status, "", refusal.headers

    async def succeed(self, who: str, method: str, path: str, body: Any = None) -> Any:
        status, text, headers = await self.call(who, method, path, body)
        assert status < 300, text
        return headers


@pytest.fixture
async def callers(site: Site) -> AsyncIterator[Callers]:
    async with aiohttp.ClientSession(site.server.url) as http:
        yield Callers(site, http)


async def make_things(callers: Callers) -> dict[str, str]:
    """What `ann` has: a session with a turn, by its id and by an alias; a document with a section;
    and a deployment."""
    number = next(_numbers)
    alias, name = f"otters-{number}", f"made-{number}"
    said = {"message": SECRET, "session_id": alias}
    headers = await callers.succeed("ann", "POST", "/api/chat", said)
    id_ = headers["session-id"]
    await callers.succeed("root", "POST", "/api/deployments", {"name": name})
    written = {"title": SECRET, "sections": [{"title": SECRET, "content": SECRET}]}
    _, text, _ = await callers.call("ann", "POST", "/api/documents", written)
    document = json.loads(text)["document"]
    _, text, _ = await callers.call("root", "GET", f"/api/deployments/{name}")
    state = text.partition('"engineStateId":"')[2].partition('"')[0]
    _, text, _ = await callers.call("root", "POST", "/api/keys", {"user": "ann"})
    await callers.succeed("root", "POST", "/api/users", {"name": f"user-{number}"})
    response = await openai_call(callers, "responses", {"input": SECRET})
    stored = {"model": "eliza", "store": True, "messages": [{"role": "user", "content": SECRET}]}
    completion = await openai_call(callers, "chat/completions", stored)
    return {
        "id": id_,
        "session": id_,
        "conversation": f"conv_{id_[1:]}",
        "response": response["id"],
        "completion": completion["id"],
        "model": "eliza",
        "item_id": f"msg_{id_[1:]}_1_0",
        "chat_session_id": id_,
        "alias": alias,
        "turn_id": headers["turn-id"],
        "message_id": f"m{id_[1:]}_1_0",
        "n": "1",
        "end_user": "nobody",
        "doc_id": document["id"],
        "section_id": document["sections"][0]["id"],
        "key_id": json.loads(text)["key"]["id"],
        "user": f"user-{number}",
        "name": name,
        "new_name": f"new-{number}",
        "state": state,
    }


async def openai_call(callers: Callers, path: str, body: Any) -> Any:
    status, text, _ = await callers.call("ann", "POST", f"/v1/{path}", body)
    assert status == 200, text
    return json.loads(text)


# What `{id}` names in the paths of OpenAI's dialect.
NAMED = {
    "/v1/models/": "model",
    "/v1/chat/completions/": "completion",
    "/v1/responses/": "response",
    "/v1/conversations/": "conversation",
}


def path_of(route: Any, things: dict[str, str]) -> str:
    path: str = route.path.replace("*}", "}")
    for prefix, name in NAMED.items():
        if path.startswith(prefix):
            path = path.replace("{id}", f"{{{name}}}")
    return path.format_map(things)


def filled(value: Any, things: dict[str, str]) -> Any:
    if isinstance(value, str):
        return value.format_map(things)
    if isinstance(value, dict):
        return {key: filled(each, things) for key, each in value.items()}
    if isinstance(value, list):
        return [filled(each, things) for each in value]
    return value


async def stamp(callers: Callers, things: dict[str, str]) -> tuple[str, ...]:
    """What changes with anything in the session and the document of `ann`."""
    paths = (f"/api/chat-sessions/{things['id']}", f"/api/documents/{things['doc_id']}")
    return tuple([(await callers.succeed("ann", "GET", path))["etag"] for path in paths])


def test_every_route_has_an_example() -> None:
    assert set(EXAMPLES) == {f"{route.method} {route.path}" for route in ROUTES}


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: f"{route.method} {route.path}")
async def test_who_gets_what(callers: Callers, route: Any) -> None:
    example = EXAMPLES[f"{route.method} {route.path}"]
    things = await make_things(callers)
    call = call_of(route, things)
    before = await stamp(callers, things)

    status, text, headers = await callers.call(None, *call)
    if example.open_ is not None:
        assert (status, route.is_open) == (example.open_, True)
        return
    assert (status, headers["www-authenticate"]) == (401, "Bearer")
    assert SECRET not in text

    owner = "root" if route.admin else "ann"
    others = {"ann", "bob", "root"} - ({owner} if example.root is None else {owner, "root"})
    for other in others:
        status, text, _ = await callers.call(other, *call)
        assert status == example.others, text
        sent = json.dumps(call)  # what it names may be told back
        for secret in (SECRET, things["id"][1:], things["alias"], things["doc_id"]):
            assert secret not in text or secret in sent
    assert await stamp(callers, things) == before

    status, text, _ = await callers.call(owner, *call, endless=example.endless)
    assert status == example.own or status < 300, text
    if example.root is not None:
        assert (await callers.call("root", *call))[0] == example.root


def call_of(route: Route, things: dict[str, str]) -> tuple[str, str, Any]:
    example = EXAMPLES[f"{route.method} {route.path}"]
    if route.path.startswith("/deployments/"):
        things = things | {"name": "default"}  # that of the session
    if route.path.startswith("/api/users/"):
        things = things | {"name": things["user"]}
    path = path_of(route, things) + filled(example.query, things)
    return route.method, path, filled(example.body, things)


CLOSED = pytest.mark.parametrize(
    "route",
    [route for route in ROUTES if not route.is_open],
    ids=lambda route: f"{route.method} {route.path}",
)


@CLOSED
async def test_a_scope_is_good_for_what_it_says(callers: Callers, route: Route) -> None:
    """A key of `ann`, and one of an admin's, with each scope alone."""
    things = await make_things(callers)
    call = call_of(route, things)
    for scope in SCOPES:
        if scope in route.needs or not route.needs:
            continue
        status, text, _ = await callers.call(scope, *call)
        if route.admin:  # of which a user is told nothing
            assert status == 404
            status, text, _ = await callers.call(f"root {scope}", *call)
        assert status == 403
        assert "insufficient_scope" in text or route.method == WEBSOCKET
        assert SECRET not in text
    endless = EXAMPLES[f"{route.method} {route.path}"].endless
    good = "root admin" if route.admin else min(route.needs or {"read"})
    status, text, _ = await callers.call(good, *call, endless=endless)
    assert status == EXAMPLES[f"{route.method} {route.path}"].own or status < 300, text


@CLOSED
async def test_an_expired_key_is_good_for_nothing(callers: Callers, route: Route) -> None:
    call = call_of(route, dict.fromkeys(NAMES, "none"))
    assert (await callers.call("expired", *call))[0] == 401


@CLOSED
async def test_a_token_is_good_for_its_session_alone(callers: Callers, route: Route) -> None:
    things, other = await make_things(callers), await make_things(callers)
    _, text, _ = await callers.call("ann", "POST", f"/api/chat-sessions/{things['id']}/token")
    token = json.loads(text)["token"]
    example = EXAMPLES[f"{route.method} {route.path}"]
    status, text, _ = await callers.call(token, *call_of(route, other))
    if "{" in route.path and route.session_token:
        assert status == 404
    elif route.session_token:
        assert (status, json.loads(text)["session_id"]) == (200, things["id"])
    else:
        assert status == (404 if route.admin else 403)
    for secret in (SECRET, other["id"][1:], other["doc_id"]):
        assert secret not in text
    status, _, _ = await callers.call(token, *call_of(route, things), endless=example.endless)
    assert (status < 300) == route.session_token
    if "{id}" in route.path:  # an alias is another's business
        by_alias = things | {"id": things["alias"]}
        assert (await callers.call(token, *call_of(route, by_alias)))[0] in (403, 404)


@CLOSED
async def test_strangers_of_other_kinds_get_what_strangers_get(
    callers: Callers, route: Route
) -> None:
    """Someone of the identity provider's, and an end user of `ann`, who owns none of it."""
    example, things = EXAMPLES[f"{route.method} {route.path}"], await make_things(callers)
    call, before = call_of(route, things), await stamp(callers, things)
    status, text, _ = await callers.call("person", *call)
    assert status == (example.others if example.person is None else example.person), text
    texts = [text]
    if not route.path.startswith("/api/keys"):  # they are the user's
        status, text, _ = await callers.call("ann", *call, end_user="zed")
        assert status == example.others, text
        texts.append(text)
    sent = json.dumps(call)  # what it names may be told back
    for secret in (SECRET, things["id"][1:], things["alias"], things["doc_id"]):
        assert secret in sent or secret not in "".join(texts)
    assert await stamp(callers, things) == before


def test_what_is_needed_follows_from_what_is_done() -> None:
    for route in ROUTES:
        name = f"{route.method} {route.path}"
        if route.admin:
            assert route.needs == {"admin"}, name
        elif not route.needs:
            assert route.is_open or name in ANY_CREDENTIALS, name
        else:
            assert ("read" in route.needs) == (route.method == "GET"), name
            room = "documents" if route.path.startswith("/api/documents") else "chat"
            writes = "chat" if route.path.endswith("/chat") else room  # a turn is one everywhere
            assert route.needs - {"read"} == {writes}, name
        assert not (route.session_token and name not in FOR_TOKENS), name


ANY_CREDENTIALS = {
    "GET /api/me",
    "POST /logout",
    "GET /api/keys",
    "POST /api/keys",
    "POST /api/keys/{key_id}/rotate",
    "DELETE /api/keys/{key_id}",
}
FOR_TOKENS = {
    "GET /api/me",
    "GET /api/chat-sessions/{id}",
    "GET /api/chat-sessions/{id}/messages",
    "GET /api/chat-sessions/{id}/events",
    "POST /api/chat-sessions/{id}/messages",
    "GET /api/turns/{turn_id}",
    "GET /api/turns/{turn_id}/events",
    "POST /api/turns/{turn_id}/cancel",
}
NAMES = (
    "id",
    "chat_session_id",
    "turn_id",
    "message_id",
    "n",
    "doc_id",
    "section_id",
    "key_id",
    "name",
    "user",
    "new_name",
    "state",
    "alias",
    "model",
    "completion",
    "response",
    "conversation",
    "item_id",
    "session",
    "end_user",
)


@pytest.mark.parametrize("method", ["GET", "POST", "PATCH", "OPTIONS", "HEAD"])
async def test_what_is_for_admins_is_as_if_it_were_not_there(callers: Callers, method: str) -> None:
    for path in ("/api/deployments", "/api/deployments/default", "/api/deployments/none/states"):
        there = await callers.call("bob", method, path)
        nowhere = await callers.call("bob", method, "/api/nowhere")
        assert there[:2] == nowhere[:2]
        assert there[0] == 404


ALIASED = [
    ("POST", "/session/send", {"session_id": "{alias}", "msg_text": "hello"}),
    ("DELETE", "/session/end?session_id={alias}", None),
    ("POST", "/invoke", {"chat_session_id": "{alias}", "user_message": "hello"}),
    ("GET", "/chat-session/{alias}", None),
    ("GET", "/api/chat-sessions/{alias}", None),
    ("DELETE", "/api/chat-sessions/{alias}", None),
    ("POST", "/api/chat-sessions/{alias}/messages", {"message": "hello"}),
]


@pytest.mark.parametrize(("method", "path", "body"), ALIASED, ids=lambda value: str(value)[:30])
async def test_an_alias_reaches_no_other_user(
    callers: Callers, method: str, path: str, body: Any
) -> None:
    things = await make_things(callers)
    before = await stamp(callers, things)
    for other in ("bob", "root"):
        call = (method, filled(path, things), filled(body, things))
        assert (await callers.call(other, *call))[0] == 404
    assert await stamp(callers, things) == before


async def test_two_users_may_choose_the_same_alias(callers: Callers) -> None:
    things = await make_things(callers)
    before = await stamp(callers, things)
    said = {"message": "hello", "session_id": things["alias"]}
    headers = await callers.succeed("bob", "POST", "/api/chat", said)
    assert headers["session-id"] != things["id"]
    await callers.succeed("bob", "POST", "/api/clear", {"session_id": things["alias"]})
    assert await stamp(callers, things) == before
