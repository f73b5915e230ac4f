"""Keys, users, tokens and JWTs on a real server: made, used, and gone when they should be."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import aiohttp
import jwt
import pytest

from rig.server import Server
from tests.test_access import ADMIN_KEY, PASSWORD, Site, cookie_of, turnkeeper

SECRET = "shared-with-the-identity-provider"
KEYS, USERS, SESSIONS = "/api/keys", "/api/users", "/api/chat-sessions"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    env = {
        "TURNKEEPER_JWT_ISSUER": "us",
        "TURNKEEPER_JWT_AUDIENCE": "chat",
        "TURNKEEPER_JWT_SECRET": SECRET,
        "TURNKEEPER_JWT_SCOPE_CLAIM": "scope",
        "TURNKEEPER_ADMIN_KEY": ADMIN_KEY,
    }
    site = Site(tmp_path_factory.mktemp("site"), env=env)
    with site.server:
        yield site


Ask = Callable[..., Awaitable[tuple[int, Any]]]


@pytest.fixture
async def ask(site: Site) -> AsyncIterator[Ask]:
    """Calls: by whom (a name, or a secret itself), method, path, body; answers status and body."""
    jar = aiohttp.DummyCookieJar()
    async with aiohttp.ClientSession(site.server.url, cookie_jar=jar) as http:

        async def ask(
            who: str | None, method: str, path: str, body: Any = None, **headers: str
        ) -> tuple[int, Any]:
            given = {name.replace("_", "-"): value for name, value in headers.items()}
            if who is not None:
                given["Authorization"] = f"Bearer {site.keys.get(who, who)}"
            async with http.request(method, path, json=body, headers=given) as response:
                text = await response.text()
                return response.status, json.loads(text) if text else None

        yield ask


async def soon(ask: Ask, who: str, status: int, path: str = "/api/me") -> None:
    """Wait until it is answered so; a change holds within a second."""
    begun = time.monotonic()
    while (await ask(who, "GET", path))[0] != status:
        assert time.monotonic() - begun < 2
        await asyncio.sleep(0.02)


async def make_session(ask: Ask, who: str = "ann", **headers: str) -> str:
    _, body = await ask(who, "POST", SESSIONS, {}, **headers)
    return body["chat_session"]["id"]


def person(name: str, scope: str = "chat read documents", seconds: float = 60) -> str:
    claims = {"iss": "us", "aud": "chat", "sub": name, "exp": time.time() + seconds}
    return jwt.encode(claims | {"scope": scope}, SECRET)


# --- Keys --------------------------------------------------------------------------------------


async def test_an_admin_makes_a_key_and_its_secret_is_told_once(ask: Ask) -> None:
    wanted = {
        "user": "ann",
        "name": "laptop",
        "scopes": ["read", "chat"],
        "expires_in": 3600,
        "limits": {"requests_per_minute": 1000},
    }
    status, made = await ask("root", "POST", KEYS, wanted)
    assert status == 201
    key, secret = made["key"], made["secret"]
    assert (key["user"], key["scopes"]) == ("ann", ["chat", "read"])
    _, me = await ask(secret, "GET", "/api/me")
    assert me["user"] == {"username": "ann", "role": "user"}
    assert (me["key_id"], me["scopes"]) == (key["id"], ["chat", "read"])
    assert (me["limits"], me["expires_at"]) == (wanted["limits"], key["expires_at"])
    _, listed = await ask("ann", "GET", KEYS)
    assert secret not in json.dumps(listed)
    assert key["id"] in [one["id"] for one in listed["keys"]]
    assert (await ask("root", "DELETE", f"{KEYS}/{key['id']}"))[0] == 204
    assert (await ask(secret, "GET", "/api/me"))[0] == 401


async def test_a_key_has_an_old_secret_for_a_while(ask: Ask) -> None:
    _, made = await ask("root", "POST", KEYS, {"user": "ann"})
    first, path = made["secret"], f"{KEYS}/{made['key']['id']}/rotate"
    status, made = await ask(first, "POST", path, {"overlap": 60})  # by itself
    second = made["secret"]
    assert (status, made["key"]["old_secret_until"] is None) == (201, False)
    assert [(await ask(one, "GET", "/api/me"))[0] for one in (first, second)] == [200, 200]
    _, made = await ask(second, "POST", path)
    third = made["secret"]
    statuses = [(await ask(one, "GET", "/api/me"))[0] for one in (first, second, third)]
    assert statuses == [401, 401, 200]
    assert (await ask(third, "POST", path, {"overlap": 31 * 86_400}))[0] == 400


async def test_a_secret_is_not_told_again(ask: Ask) -> None:
    once = {"Idempotency_Key": f"once {time.time()}"}
    _, made = await ask("root", "POST", KEYS, {"user": "ann"}, **once)
    id_ = made["key"]["id"]
    status, refused = await ask("root", "POST", KEYS, {"user": "ann"}, **once)
    assert (status, refused["code"], refused["id"]) == (409, "secret_not_kept", id_)
    assert (await ask("root", "POST", KEYS, {"user": "bob"}, **once))[0] == 422
    session = await make_session(ask)
    once = {"Idempotency_Key": f"twice {time.time()}"}
    path = f"{SESSIONS}/{session}/token"
    assert (await ask("ann", "POST", path, **once))[0] == 201
    status, refused = await ask("ann", "POST", path, **once)
    assert (status, refused["code"], refused["id"]) == (409, "secret_not_kept", session)


async def test_people_make_keys_of_their_own_and_no_more_than_they_have(ask: Ask) -> None:
    """A key makes none."""
    status, refused = await ask("ann", "POST", KEYS, {})
    assert (status, refused["code"]) == (403, "insufficient_scope")
    less = person("ann", "read")
    status, made = await ask(less, "POST", KEYS, {"name": "mine"})
    assert (status, made["key"]["scopes"]) == (201, ["read"])
    for body in (
        {"scopes": ["chat"]},
        {"scopes": ["admin"]},
        {"user": "bob"},
        {"limits": {"requests_per_minute": 9}},
    ):
        assert (await ask(less, "POST", KEYS, body))[0] == 403, body
    assert (await ask(less, "DELETE", f"{KEYS}/{made['key']['id']}"))[0] == 204


async def test_a_login_makes_keys(site: Site) -> None:
    async with aiohttp.ClientSession(site.server.url, cookie_jar=aiohttp.DummyCookieJar()) as http:
        login = {"username": "ann", "password": PASSWORD}
        async with http.post("/login", json=login) as response:
            cookie = cookie_of(response.headers)
        headers = {"Cookie": cookie, "Origin": site.server.url}
        async with http.post(KEYS, json={}, headers=headers) as response:
            assert response.status == 201
            assert (await response.json())["key"]["scopes"] == ["chat", "documents", "read"]


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"scopes": []}, 400),
        ({"scopes": ["all"]}, 400),
        ({"scopes": ["admin"], "user": "ann"}, 400),
        ({"expires_in": 0}, 400),
        ({"expires_in": "soon"}, 400),
        ({"limits": {"requests": 1}}, 400),
        ({"limits": {"requests_per_minute": -1}}, 400),
        ({"name": "x" * 101}, 400),
        ({"name": "environment"}, 400),
        ({"user": "nobody"}, 404),
        ({"user": "a\0b"}, 404),
        ({"colour": "red"}, 400),
    ],
    ids=str,
)
async def test_a_key_that_cannot_be_is_refused(ask: Ask, body: Any, status: int) -> None:
    found, refused = await ask("root", "POST", KEYS, body)
    assert found == status, refused
    assert "code" in refused


async def test_keys_that_cannot_be_are_not_looked_for(ask: Ask) -> None:
    for id_ in ("x", "k0000000000", "%00", "k" * 500):
        assert (await ask("root", "DELETE", f"{KEYS}/{id_}"))[0] == 404
    _, listed = await ask(ADMIN_KEY, "GET", f"{KEYS}?user=admin")
    status, refused = await ask("root", "POST", f"{KEYS}/{listed['keys'][0]['id']}/rotate")
    assert (status, "admin_key" in refused["error"]) == (400, True)


async def test_the_command_line_makes_rotates_and_lists(site: Site, ask: Ask) -> None:
    options = ("--scope", "read", "--expires", "1h", "--limit", "cost_per_month=2.5")
    secret = site.key("ann", "--name", "cli", *options)
    _, me = await ask(secret, "GET", "/api/me")
    assert (me["scopes"], me["limits"]) == (["read"], {"cost_per_month": 2.5})
    listed = json.loads(turnkeeper(site.folder, "keys", "list", "ann", "--json"))
    [key] = [one for one in listed if one["id"] == me["key_id"]]
    assert (key["name"], key["limits"]) == ("cli", {"cost_per_month": 2.5})
    other = turnkeeper(site.folder, "keys", "rotate", key["id"]).strip()
    assert (await ask(other, "GET", "/api/me"))[0] == 200
    await soon(ask, secret, 401)
    said = turnkeeper(site.folder, "keys", "create", "ann", "--limit", "colour=1", code=2)
    assert "requests_per_minute" in said
    assert "90d" in turnkeeper(site.folder, "keys", "create", "ann", "--expires", "soon", code=2)


# --- Tokens for a browser ----------------------------------------------------------------------


async def test_a_token_talks_in_its_session(ask: Ask) -> None:
    session = await make_session(ask, X_End_User="zoe")
    status, made = await ask("ann", "POST", f"{SESSIONS}/{session}/token", {"ttl": 60})
    assert (status, made["session_id"]) == (201, session)
    token = made["token"]
    path = f"{SESSIONS}/{session}/messages"
    status, said = await ask(token, "POST", path, {"message": "hello"})
    assert status == 200
    turn = f"/api/turns/{said['message']['turn_id']}"
    for method, where in (("GET", turn), ("POST", f"{turn}/cancel"), ("GET", path)):
        assert (await ask(token, method, where))[0] == 200
    _, me = await ask(token, "GET", "/api/me")
    assert (me["session_id"], me["end_user"]) == (session, "zoe")
    assert (me["scopes"], me["user"]["role"]) == (["chat", "read"], "user")
    for ttl in (0, -1, 86_401):
        assert (await ask("ann", "POST", f"{SESSIONS}/{session}/token", {"ttl": ttl}))[0] == 400
    # its names for requests are its own
    once = {"Idempotency_Key": f"browser {time.time()}"}
    assert (await ask(token, "POST", path, {"message": "one"}, **once))[0] == 200
    assert (await ask("ann", "POST", path, {"message": "two"}, **once, X_End_User="zoe"))[0] == 200


async def test_a_token_ends_with_what_it_is_of(ask: Ask) -> None:
    _, made = await ask("root", "POST", KEYS, {"user": "ann"})
    key, id_ = made["secret"], made["key"]["id"]
    tokens = []
    for _ in range(2):
        session = await make_session(ask)
        _, made = await ask(key, "POST", f"{SESSIONS}/{session}/token")
        tokens.append(made["token"])
        assert (await ask(made["token"], "GET", "/api/me"))[0] == 200
    assert (await ask("ann", "DELETE", f"{SESSIONS}/{session}"))[0] == 204
    await soon(ask, tokens[1], 401)
    assert (await ask(tokens[0], "GET", "/api/me"))[0] == 200
    await ask("root", "DELETE", f"{KEYS}/{id_}")
    assert (await ask(tokens[0], "GET", "/api/me"))[0] == 401


async def test_a_token_and_a_key_expire(ask: Ask) -> None:
    _, made = await ask("root", "POST", KEYS, {"user": "ann", "expires_in": 2})
    session = await make_session(ask)
    path = f"{SESSIONS}/{session}/token"
    _, token = await ask(made["secret"], "POST", path, {"ttl": 3600})
    assert token["expires_at"] == made["key"]["expires_at"]  # no later than its key
    _, short = await ask("ann", "POST", path, {"ttl": 1})
    for secret in (short["token"], made["secret"], token["token"]):
        await soon(ask, secret, 401)


# --- Users -------------------------------------------------------------------------------------


async def test_users_are_made_changed_and_removed(ask: Ask) -> None:
    name = f"carl{time.time_ns()}"
    path = f"{USERS}/{name}"
    status, made = await ask("root", "POST", USERS, {"name": name, "password": PASSWORD})
    assert (status, made["user"]["has_password"]) == (201, True)
    assert (await ask("root", "POST", USERS, {"name": name}))[0] == 409
    _, key = await ask("root", "POST", KEYS, {"user": name})
    secret = key["secret"]
    assert (await ask(secret, "GET", USERS))[0] == 404
    _, changed = await ask("root", "PATCH", path, {"role": "admin", "password": None})
    assert (changed["user"]["role"], changed["user"]["has_password"]) == ("admin", False)
    assert (await ask(secret, "GET", USERS))[0] == 403  # the key was made without it
    await ask("root", "PATCH", path, {"disabled": True})
    assert (await ask(secret, "GET", "/api/me"))[0] == 401
    await ask("root", "PATCH", path, {"disabled": False, "role": "user"})
    session = await make_session(ask, secret)
    status, refused = await ask("root", "DELETE", path)
    assert (status, refused["code"]) == (409, "user_not_empty")
    await ask(secret, "DELETE", f"{SESSIONS}/{session}")
    assert (await ask("root", "DELETE", path))[0] == 204
    assert (await ask(secret, "GET", "/api/me"))[0] == 401
    assert (await ask("root", "PATCH", path, {"role": "user"}))[0] == 404
    for body in ({"name": "a b"}, {"name": "x", "password": "short"}, {}, {"name": 7}):
        assert (await ask("root", "POST", USERS, body))[0] == 400, body


async def test_a_person_is_forgotten_with_everything(ask: Ask) -> None:
    name = f"gone{time.time_ns()}"
    await ask("root", "POST", USERS, {"name": name})
    _, key = await ask("root", "POST", KEYS, {"user": name})
    secret, path = key["secret"], f"{USERS}/{name}"
    own, jo = [await make_session(ask, secret, **who) for who in ({}, {"X_End_User": "jo"})]
    assert (await ask("root", "DELETE", f"{path}?forget=yes"))[0] == 400
    assert (await ask(secret, "DELETE", f"{path}?forget=true"))[0] == 404
    status, told = await ask("root", "DELETE", f"{path}/end-users/jo")
    assert (status, told["removed"]["sessions"]) == (200, 1)
    statuses = [(await ask(secret, "GET", f"{SESSIONS}/{one}"))[0] for one in (own, jo)]
    assert statuses == [200, 404]
    status, told = await ask("root", "DELETE", f"{path}?forget=true")
    assert (status, told["removed"]["users"], told["removed"]["api_keys"]) == (200, 1, 1)
    assert (await ask(secret, "GET", "/api/me"))[0] == 401
    assert (await ask("root", "DELETE", f"{path}?forget=true"))[0] == 404


# --- People of an identity provider ------------------------------------------------------------


async def test_someone_comes_in_without_an_account(site: Site, ask: Ask) -> None:
    eve = person("auth0|eve")
    session = await make_session(ask, eve)
    assert (await ask(person("auth0|eve"), "GET", f"{SESSIONS}/{session}"))[0] == 200
    for other in (person("auth0|bob"), "ann", "root"):
        assert (await ask(other, "GET", f"{SESSIONS}/{session}"))[0] == 404
    assert (await ask(eve, "GET", USERS))[0] == 404
    assert (await ask(person("root"), "GET", USERS))[0] == 404  # only the claim makes an admin
    assert (await ask(person("boss", "admin"), "GET", USERS))[0] == 200
    assert (await ask(person("boss", "admin"), "GET", SESSIONS))[0] == 403
    assert (await ask(person("eve", seconds=-60), "GET", "/api/me"))[0] == 401
    _, made = await ask(eve, "POST", f"{SESSIONS}/{session}/token", {"ttl": 86_400})
    assert (await ask(made["token"], "GET", f"{SESSIONS}/{session}"))[0] == 200
    _, me = await ask(eve, "GET", "/api/me")
    assert made["expires_at"] == me["expires_at"]  # no later than what it was made with


async def test_a_user_who_is_disabled_does_not_come_in_by_the_provider(
    site: Site, ask: Ask
) -> None:
    dora = person("dora")
    assert (await ask(dora, "GET", "/api/me"))[0] == 200
    await ask("root", "POST", USERS, {"name": "dora"})
    turnkeeper(site.folder, "users", "disable", "dora")  # as another process does it
    await soon(ask, dora, 401)


# --- Without credentials -----------------------------------------------------------------------


async def test_where_nobody_is_asked_there_are_none(tmp_path: Any) -> None:
    with Server(tmp_path, "--model", "eliza") as server:
        async with aiohttp.ClientSession(server.url) as http:
            for method, path in (("GET", KEYS), ("POST", KEYS), ("GET", USERS)):
                async with http.request(method, path) as response:
                    assert response.status == 404
                    assert "auth is off" in (await response.json())["error"]


WRONG = {
    "jwt_jwks_url needs jwt_issuer and jwt_audience": {"JWKS_URL": "https://a.example/jwks"},
    "jwt_issuer needs jwt_jwks_url, jwt_public_key or jwt_secret": {"ISSUER": "us"},
    "exclude each other": {"SECRET": SECRET, "JWKS_URL": "https://a.example/jwks"},
    "jwt_algorithms must not have HS256 with jwt_jwks_url": {
        "JWKS_URL": "https://a.example/jwks",
        "ALGORITHMS": "HS256",
    },
    "must be some of": {"SECRET": SECRET, "ALGORITHMS": "none"},
    "must be 32 to 512": {"SECRET": "short"},
    "must be a public key in PEM": {"PUBLIC_KEY": "ssh-rsa AAAA"},
}


@pytest.mark.parametrize("sentence", list(WRONG))
def test_settings_that_do_not_fit_are_named(sentence: str) -> None:
    from turnkeeper.config import read_config
    from turnkeeper.errors import ConfigError

    env = {f"TURNKEEPER_JWT_{name}": value for name, value in WRONG[sentence].items()}
    with pytest.raises(ConfigError, match=sentence) as refused:
        read_config({}, env)
    assert SECRET not in str(refused.value)
