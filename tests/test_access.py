"""Access mode `keys` on a real server: who comes in, with what, and who does not."""

import asyncio
import json
import os
import pty
import select
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from functools import cache
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from rig.server import Server
from turnkeeper.dialects.login import read_cookie

PASSWORD = "correct horse"
ADMIN_KEY = "an-administrators-key-of-40-characters.."


def turnkeeper(folder: Path, *command: str, stdin: str = "", code: int = 0) -> str:
    """What a command prints on standard output, and on standard error if it is to fail."""
    done = subprocess.run(
        [sys.executable, "-m", "turnkeeper", *command],
        cwd=folder,
        env={"PATH": os.environ["PATH"]},
        input=stdin,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == code, done.stderr
    return done.stderr if code else done.stdout


class Site:
    """A server in mode `keys` with the users `ann`, `bob` and the admin `root`."""

    def __init__(self, folder: Path, *options: str, env: dict[str, str] | None = None) -> None:
        self.folder = folder
        made, self.keys = _peopled()
        shutil.copy(Path(made.name) / DATABASE, folder)
        self.server = Server(folder, "--model", "eliza", "--auth", "keys", *options, env=env)

    def key(self, user: str, *options: str) -> str:
        """Another key."""
        return turnkeeper(self.folder, "keys", "create", user, *options).strip()


DATABASE = "turnkeeper.db"


@cache
def _peopled() -> tuple[tempfile.TemporaryDirectory[str], dict[str, str]]:
    """A folder with a database of these users, and their keys: made once, copied for each test."""
    made = tempfile.TemporaryDirectory(prefix="turnkeeper-people-")
    folder, names = Path(made.name), ("ann", "bob", "root")
    for name in names:
        admin = ("--admin",) if name == "root" else ()
        password = ("--password-stdin",) if name == "ann" else ("--no-password",)
        stdin = PASSWORD + "\n" if name == "ann" else ""
        turnkeeper(folder, "users", "create", name, *admin, *password, stdin=stdin)
    return made, {name: turnkeeper(folder, "keys", "create", name).strip() for name in names}


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    site = await asyncio.to_thread(Site, tmp_path)
    with site.server:
        yield site


@pytest.fixture
async def http(site: Site) -> AsyncIterator[aiohttp.ClientSession]:
    jar = aiohttp.DummyCookieJar()
    async with aiohttp.ClientSession(site.server.url, cookie_jar=jar) as http:
        yield http


Answer = tuple[int, Any, Any]


async def ask(
    http: aiohttp.ClientSession, method: str, path: str, body: Any = None, **headers: str
) -> Answer:
    """Status, body and headers; `_` in the name of a header is `-`."""
    given = {name.replace("_", "-"): value for name, value in headers.items()}
    async with http.request(method, path, json=body, headers=given) as response:
        text = await response.text()
        return response.status, json.loads(text) if text else None, response.headers


async def log_in(http: aiohttp.ClientSession, password: str = PASSWORD, **headers: str) -> Answer:
    return await ask(http, "POST", "/login", {"username": "ann", "password": password}, **headers)


def cookie_of(headers: Any) -> str:
    return headers["set-cookie"].partition(";")[0]


# --- Credentials -------------------------------------------------------------------------------


async def test_a_key_may_be_shown_in_two_ways(site: Site, http: aiohttp.ClientSession) -> None:
    key = site.keys["ann"]
    for headers in (
        {"Authorization": f"Bearer {key}"},
        {"Authorization": f"bearer  {key}"},
        {"X-API-Key": key},
        {"Authorization": "Basic YTpi", "X-API-Key": key},
        {"Authorization": f"Bearer {key}", "X-API-Key": key},
    ):
        status, me, _ = await ask(http, "GET", "/api/me", **headers)
        assert (status, me["user"]) == (200, {"username": "ann", "role": "user"})
    root = await ask(http, "GET", "/api/me", X_API_Key=site.keys["root"])
    assert root[1]["user"] == {"username": "root", "role": "admin"}


async def test_two_keys_are_none(site: Site, http: aiohttp.ClientSession) -> None:
    """Whichever counted, someone in front might have thought it was the other."""
    keys = {"Authorization": f"Bearer {site.keys['ann']}", "X-API-Key": site.keys["bob"]}
    error = "Authorization and X-API-Key show different keys"
    refusal = {"error": error, "code": "invalid_request"}
    assert (await ask(http, "GET", "/api/me", **keys))[:2] == (400, refusal)


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": "Bearer"},
        {"Authorization": "Bearer "},
        {"Authorization": "Bearer tk_" + "A" * 43},
        {"Authorization": "Basic {key}"},
        {"Authorization": "{key}"},
        {"X-API-Key": "{key}x"},
        {"X-API-Key": ""},
        {"Cookie": "turnkeeper_login={key}"},
        {"Cookie": "turnkeeper_login="},
        {"Cookie": "turnkeeper_login"},
        {"Cookie": ";;=;turnkeeper_login=;"},
        {"Cookie": "turnkeeper_login=" + "A" * 43},
        {"Cookie": "turnkeeper_login=" + "A" * 5000},
        {"Cookie": 'turnkeeper_login="%00"'},
        {"Cookie": "turnkeeper_login=\u00fc\u00ff"},
        {"Cookie": "other={token}"},
        {"Cookie": "__Host-turnkeeper_login={token}"},
        {"Cookie": "turnkeeper_login={token}x"},
        {"Cookie": "TURNKEEPER_LOGIN={token}"},
        {"Authorization": "Bearer {token}"},
        {"X-API-Key": "wrong", "Cookie": "turnkeeper_login={token}"},
    ],
    ids=str,
)
async def test_anything_else_is_nobody(
    site: Site, http: aiohttp.ClientSession, headers: dict[str, str]
) -> None:
    token = cookie_of((await log_in(http))[2]).partition("=")[2]
    forged = {
        name: value.format(key=site.keys["ann"], token=token) if "{" in value else value
        for name, value in headers.items()
    }
    status, body, answer = await ask(http, "GET", "/api/me", **forged)
    assert (status, answer["www-authenticate"]) == (401, "Bearer")
    assert body == {"error": "Authentication required", "code": "unauthenticated"}


async def test_what_needs_no_credentials(http: aiohttp.ClientSession) -> None:
    for path in ("/", "/health/live", "/health/ready"):
        assert (await ask(http, "GET", path))[0] == 200
    assert (await ask(http, "POST", "/login", {}))[0] == 400


async def test_any_name_of_the_server_will_do(site: Site, http: aiohttp.ClientSession) -> None:
    headers = {"Host": "anything.example", "X-API-Key": site.keys["ann"]}
    assert (await ask(http, "GET", "/api/me", **headers))[0] == 200


# --- Logins ------------------------------------------------------------------------------------


async def test_a_login_gives_a_cookie_that_scripts_cannot_read(
    http: aiohttp.ClientSession,
) -> None:
    status, body, headers = await log_in(http)
    assert (status, body["user"]) == (200, {"username": "ann", "role": "user"})
    name, *attributes = headers["set-cookie"].split("; ")
    assert name.startswith("turnkeeper_login=")
    assert attributes == ["Path=/", "Max-Age=2592000", "HttpOnly", "SameSite=Lax"]
    status, body, _ = await ask(http, "GET", "/api/me", Cookie=f"a=b; {name}; c=d")
    assert (status, body["user"]["username"]) == (200, "ann")


async def test_over_https_the_cookie_is_for_https_and_this_host_alone(tmp_path: Path) -> None:
    site = await asyncio.to_thread(Site, tmp_path, "--public-url", "https://Chat.example:443/")
    with site.server as server:
        async with aiohttp.ClientSession(server.url) as http:
            headers = (await log_in(http, Origin="https://chat.example"))[2]
            assert headers["set-cookie"].startswith("__Host-turnkeeper_login=")
            assert headers["set-cookie"].endswith("; HttpOnly; SameSite=Lax; Secure")
            cookie = cookie_of(headers)
            ours = {"Cookie": cookie, "Origin": "https://chat.example"}
            assert (await ask(http, "POST", "/api/chat-sessions", {}, **ours))[0] == 201
            for origin in ("http://chat.example", server.url):
                theirs = {"Cookie": cookie, "Origin": origin}
                assert (await ask(http, "POST", "/api/chat-sessions", {}, **theirs))[0] == 403
            plain = cookie.removeprefix("__Host-")
            assert (await ask(http, "GET", "/api/me", Cookie=plain))[0] == 401


def test_a_cookie_of_nearly_our_name_is_not_ours() -> None:
    """Browsers let a neighbouring site set `\xa0__Host-…`, which is not the name they guard."""
    ours = b"a=b;\t __Host-turnkeeper_login=ours \t; c=d"
    assert read_cookie({b"cookie": ours}, secure=True) == "ours"
    for space in (b"\xa0", b"\x85", b"\x1c", b"\x0b"):
        tossed = space + b"__Host-turnkeeper_login=theirs; "
        assert read_cookie({b"cookie": tossed}, secure=True) is None
        assert read_cookie({b"cookie": tossed + ours}, secure=True) == "ours"


async def test_a_token_that_was_set_beforehand_is_not_taken_over(
    http: aiohttp.ClientSession,
) -> None:
    planted = "turnkeeper_login=" + "A" * 43
    headers = (await log_in(http, Cookie=planted))[2]
    assert cookie_of(headers) != planted
    assert (await ask(http, "GET", "/api/me", Cookie=planted))[0] == 401


async def test_logging_in_again_ends_the_login_before(http: aiohttp.ClientSession) -> None:
    first = cookie_of((await log_in(http))[2])
    second = cookie_of((await log_in(http, Cookie=first))[2])
    assert (await ask(http, "GET", "/api/me", Cookie=first))[0] == 401
    assert (await ask(http, "GET", "/api/me", Cookie=second))[0] == 200


async def test_after_logout_the_cookie_is_worth_nothing(
    site: Site, http: aiohttp.ClientSession
) -> None:
    cookie = cookie_of((await log_in(http))[2])
    status, body, headers = await ask(
        http, "POST", "/logout", Cookie=cookie, Origin=site.server.url
    )
    assert (status, body) == (200, {"success": True})
    assert headers["set-cookie"].startswith("turnkeeper_login=; Path=/; Max-Age=0;")
    assert (await ask(http, "GET", "/api/me", Cookie=cookie))[0] == 401
    again = await ask(http, "POST", "/logout", Cookie=cookie, Origin=site.server.url)
    assert again[0] == 401


async def test_a_login_outlives_the_server(site: Site, http: aiohttp.ClientSession) -> None:
    cookie = cookie_of((await log_in(http))[2])
    site.server.env["PORT"] = site.server.url.rpartition(":")[2]
    site.server.kill()
    await asyncio.to_thread(site.server.start)
    assert (await ask(http, "GET", "/api/me", Cookie=cookie))[0] == 200


async def test_guesses_are_slowed_down(http: aiohttp.ClientSession) -> None:
    for _ in range(5):
        status, body, _ = await log_in(http, "guess")
        assert (status, body) == (401, {"error": "Invalid username or password"})
    status, body, headers = await log_in(http)
    assert (status, body["code"]) == (429, "too_many_attempts")
    assert headers["retry-after"] == "1"


async def test_guesses_through_a_proxy_are_counted_by_where_they_come_from(
    tmp_path: Path,
) -> None:
    site = await asyncio.to_thread(Site, tmp_path, "--proxies", "127.0.0.1, 10.0.0.1")
    with site.server as server:
        async with aiohttp.ClientSession(server.url) as http:

            async def guess(user: str, address: str) -> int:
                body = {"username": user, "password": "guess"}
                return (await ask(http, "POST", "/login", body, X_Forwarded_For=address))[0]

            for n in range(5):
                assert await guess(f"user{n}", "192.0.2.7") == 401
            assert await guess("other", "10.9.9.9, 192.0.2.7") == 429
            assert await guess("other", "192.0.2.8") == 401


# --- Other people's pages ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "origin", [None, "null", "https://evil.example", "http://127.0.0.1:1", "http://127.0.0.1"]
)
async def test_a_page_of_others_changes_nothing_with_the_cookie(
    site: Site, http: aiohttp.ClientSession, origin: str | None
) -> None:
    cookie = cookie_of((await log_in(http))[2])
    headers = {"Cookie": cookie, **({} if origin is None else {"Origin": origin})}
    for method, path in (("POST", "/api/chat-sessions"), ("POST", "/logout"), ("POST", "/nowhere")):
        status, body, answer = await ask(http, method, path, {}, **headers)
        assert (status, body["code"]) == (403, "forbidden")
        assert "access-control-allow-origin" not in answer
    assert (await ask(http, "GET", "/api/me", **headers))[0] == 200  # which the page cannot read
    headers["Origin"] = site.server.url
    assert (await ask(http, "POST", "/api/chat-sessions", {}, **headers))[0] == 201


async def test_a_page_of_others_logs_nobody_in(http: aiohttp.ClientSession) -> None:
    assert (await log_in(http, Origin="https://evil.example"))[0] == 403


async def test_with_a_key_it_does_not_matter_whose_page_it_is(
    site: Site, http: aiohttp.ClientSession
) -> None:
    headers = {"X-API-Key": site.keys["ann"], "Origin": "https://app.example"}
    status, _, answer = await ask(http, "POST", "/api/chat-sessions", {}, **headers)
    assert status == 201
    assert "access-control-allow-origin" not in answer  # cors does not name it


async def test_only_the_origins_in_cors_may_read_answers(tmp_path: Path) -> None:
    only = ("--cors", "https://app.example", "--cors-routes", "/api/*")
    site = await asyncio.to_thread(Site, tmp_path, *only)
    with site.server as server:
        async with aiohttp.ClientSession(server.url) as http:
            asking = {"Access-Control-Request-Method": "POST"}
            for origin, status, allowed in (
                ("https://app.example", 204, "https://app.example"),
                ("http://localhost:3000", 403, None),
            ):
                preflight = await ask(http, "OPTIONS", "/api/chat", Origin=origin, **asking)
                assert preflight[0] == status
                refused = await ask(http, "GET", "/api/me", Origin=origin)
                assert refused[0] == 401
                for answer in (preflight, refused):
                    assert answer[2].get("access-control-allow-origin") == allowed
                    assert "access-control-allow-credentials" not in answer[2]
                elsewhere = await ask(http, "OPTIONS", "/invoke", Origin=origin, **asking)
                assert elsewhere[0] == 403
                elsewhere = await ask(http, "POST", "/invoke", {}, Origin=origin)
                assert elsewhere[0] == 401
                assert "access-control-allow-origin" not in elsewhere[2]
            cookie = cookie_of((await log_in(http))[2])
            foreign = {"Cookie": cookie, "Origin": "https://app.example"}
            assert (await ask(http, "POST", "/api/chat-sessions", {}, **foreign))[0] == 403


# --- The command line beside the server --------------------------------------------------------


async def within_a_second(http: aiohttp.ClientSession, status: int, **headers: str) -> None:
    """Fail unless the server answers so at the latest a second from now, and a bit."""
    deadline = time.monotonic() + 1.2
    while (await ask(http, "GET", "/api/me", **headers))[0] != status:
        assert time.monotonic() < deadline
        await asyncio.sleep(0.02)


async def test_what_the_command_line_changes_is_noticed_within_a_second(
    site: Site, http: aiohttp.ClientSession
) -> None:
    async def run(*command: str) -> str:
        return await asyncio.to_thread(turnkeeper, site.folder, *command)

    listed = json.loads(await run("keys", "list", "bob", "--json"))
    await within_a_second(http, 200, X_API_Key=site.keys["bob"])
    assert await run("keys", "revoke", listed[0]["id"]) == f"Revoked {listed[0]['id']} of bob\n"
    await within_a_second(http, 401, X_API_Key=site.keys["bob"])
    cookie = cookie_of((await log_in(http))[2])
    await within_a_second(http, 200, Cookie=cookie)
    await run("users", "disable", "ann")
    await within_a_second(http, 401, Cookie=cookie)
    await within_a_second(http, 401, X_API_Key=site.keys["ann"])
    assert (await log_in(http))[0] == 401
    await run("users", "enable", "ann")
    await within_a_second(http, 200, X_API_Key=site.keys["ann"])
    assert (await ask(http, "GET", "/api/me", Cookie=cookie))[0] == 401


def test_the_commands_on_users(tmp_path: Path) -> None:
    def run(*command: str, stdin: str = "", code: int = 0) -> str:
        return turnkeeper(tmp_path, *command, stdin=stdin, code=code)

    assert "There is no database" in run("users", "list", code=2)
    created = run("users", "create", "ann", "--password-stdin", stdin=f"{PASSWORD}\n")
    assert created == "Created user ann\n"
    assert "already" in run("users", "create", "ann", "--no-password", code=1)
    assert "8 to 1024" in run("users", "create", "bob", "--password-stdin", stdin="x", code=1)
    assert "128 characters" in run("users", "create", "b b", "--no-password", code=1)
    assert "nobody is there" in run("users", "create", "bob", code=2)
    assert run("users", "create", "root", "--admin", "--no-password") == "Created admin root\n"
    assert run("users", "disable", "ann") == "Disabled ann\n"
    listed = json.loads(run("users", "list", "--json"))
    assert [(user["name"], user["role"], user["disabled"]) for user in listed] == [
        ("ann", "user", True),
        ("root", "admin", False),
    ]
    assert [line.split()[:3] for line in run("users", "list").splitlines()] == [
        ["ann", "user", "password"],
        ["root", "admin", "keys"],
    ]
    assert run("users", "enable", "ann") == "Enabled ann\n"
    assert run("users", "password", "ann", "--no-password") == "ann has no password\n"
    assert "no user eve" in run("users", "disable", "eve", code=1)


def test_a_password_is_asked_for_twice_and_not_shown(tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-m", "turnkeeper", "users", "create", "ann"],
        cwd=tmp_path,
        env={"PATH": os.environ["PATH"]},
        stdin=theirs,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        for prompt in (b"Password: ", b"Again: "):
            said = b""
            while not said.endswith(prompt):
                piece = process.stderr.read(1)
                assert piece, said
                said += piece
            os.write(ours, f"{PASSWORD}\n".encode())
        assert process.stdout.read() == b"Created user ann\n"
        assert process.wait() == 0
    shown = os.read(ours, 1000) if select.select([ours], [], [], 0)[0] else b""
    assert PASSWORD.encode() not in shown
    os.close(theirs)
    os.close(ours)
    assert json.loads(turnkeeper(tmp_path, "users", "list", "--json"))[0]["has_password"]


def test_the_commands_on_keys(tmp_path: Path) -> None:
    def run(*command: str, code: int = 0) -> str:
        return turnkeeper(tmp_path, *command, code=code)

    run("users", "create", "ann", "--no-password")
    secret = run("keys", "create", "ann", "--name", "laptop")
    assert secret.startswith("tk_")
    assert len(secret) == 47
    [line] = run("keys", "list").splitlines()
    id_, user, *_, name = line.split()
    assert (user, name) == ("ann", "laptop")
    assert secret.strip() not in run("keys", "list", "ann", "--json")
    assert run("keys", "revoke", id_) == f"Revoked {id_} of ann\n"
    assert f"no key {id_}" in run("keys", "revoke", id_, code=1)
    assert "no user eve" in run("keys", "create", "eve", code=1)
    assert "no user eve" in run("keys", "list", "eve", code=1)


# --- Starting ----------------------------------------------------------------------------------


def test_a_server_that_lets_nobody_in_does_not_start(tmp_path: Path) -> None:
    server = Server(tmp_path, "--model", "eliza", "--auth", "keys")
    with pytest.raises(RuntimeError, match="ended with 2") as failed:
        server.start()
    for word in ("users create", "TURNKEEPER_ADMIN_KEY", "--auth off"):
        assert word in str(failed.value)
    assert "can serve" not in str(failed.value)
    said = subprocess.run(
        [sys.executable, "-m", "turnkeeper", "check", "--model", "eliza", "--auth", "keys"],
        cwd=tmp_path,
        env={"PATH": os.environ["PATH"], "PORT": "0"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert said.returncode == 2
    assert "Access     keys: everyone is asked for credentials; 0 users, 0 API keys" in said.stdout
    turnkeeper(tmp_path, "users", "create", "ann", "--no-password")
    turnkeeper(tmp_path, "keys", "create", "ann")
    with server:
        assert server.url


async def test_the_environments_key_is_an_admins_and_can_be_replaced(tmp_path: Path) -> None:
    server = Server(tmp_path, "--model", "eliza", "--auth", "keys")
    for key, other in ((ADMIN_KEY, "x" * 40), ("y" * 40, ADMIN_KEY)):
        server.env["TURNKEEPER_ADMIN_KEY"] = key
        with server:
            async with aiohttp.ClientSession(server.url) as http:
                _, body, _ = await ask(http, "GET", "/api/me", X_API_Key=key)
                assert body["user"] == {"username": "admin", "role": "admin"}
                assert (await ask(http, "GET", "/api/me", X_API_Key=other))[0] == 401
        assert key not in "".join(server.log)
    del server.env["TURNKEEPER_ADMIN_KEY"]
    with pytest.raises(RuntimeError, match="nobody has any"):
        server.start()


async def test_in_mode_off_credentials_are_ignored(server_url: str) -> None:
    async with aiohttp.ClientSession(server_url) as http:
        for headers in ({}, {"Authorization": "Bearer nonsense"}, {"Cookie": "turnkeeper_login=x"}):
            _, body, _ = await ask(http, "GET", "/api/me", **headers)
            assert body["user"] == {"username": "local", "role": "admin"}
        status, body, headers = await log_in(http)
        assert (status, body["user"]["username"]) == (200, "local")
        assert "set-cookie" not in headers
        assert (await ask(http, "POST", "/logout"))[:2] == (200, {"success": True})


# --- In the terminal ---------------------------------------------------------------------------


def chat(site: Site, *options: str, env: dict[str, str] | None = None) -> tuple[int, str, str]:
    done = subprocess.run(
        [sys.executable, "-m", "turnkeeper", "chat", "--url", site.server.url, *options],
        cwd=site.folder,
        env={"PATH": os.environ["PATH"], **(env or {})},
        input="zebra",
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


async def test_the_terminal_shows_a_key_to_a_server_that_asks_for_one(site: Site) -> None:
    key = site.keys["ann"]
    for options, env in ((("--key", key), {}), ((), {"TURNKEEPER_KEY": key})):
        code, out, err = await asyncio.to_thread(chat, site, *options, env=env)
        assert (code, err) == (0, "")
        assert out.strip()


async def test_without_a_key_that_is_known_the_terminal_says_so_in_a_sentence(site: Site) -> None:
    code, out, err = await asyncio.to_thread(chat, site)
    assert (code, out) == (2, "")
    asked = f"The server at {site.server.url} asks for a key: say --key, or set TURNKEEPER_KEY."
    assert err == f"turnkeeper: {asked}\n"
    code, out, err = await asyncio.to_thread(chat, site, "--key", "tk_wrong")
    assert (code, out) == (2, "")
    assert err == f"turnkeeper: The server at {site.server.url} does not know this key.\n"
