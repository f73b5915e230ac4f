"""Nothing secret leaves: canaries are put wherever secrets are, and all that comes out is searched.

And nothing is fetched that anyone names: a server calls its providers, each with its own key.
"""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from rig import audit
from rig.model_server import ModelServer, Plan, model_list
from rig.server import Server
from turnkeeper.compose import visit_accounts
from turnkeeper.config import read_config
from turnkeeper.web.app import DIALECTS

ADMIN_KEY = "canary-admin-key-of-more-than-32-characters"
PASSWORD = "canary-password"
KEYS = {"FIRST_KEY": "canary-of-the-first", "SECOND_KEY": "canary-of-the-second"}
ROUTES = [route for dialect in DIALECTS for route in dialect.routes]


class Site:
    """A server with two providers, and canaries for everything that is secret."""

    def __init__(self, folder: Path, first: ModelServer, second: ModelServer) -> None:
        self.first, self.second = first, second
        first.listing, second.listing = (Plan(body=model_list(name)) for name in ("one", "two"))
        (folder / "t.toml").write_text(
            f'[providers.first]\nbase_url = "{first.base_url}"\nkey_env = "FIRST_KEY"\n'
            f'[providers.second]\nbase_url = "{second.base_url}"\nkey_env = "SECOND_KEY"\n'
            "attempts = 1\n"
        )
        env = {**KEYS, "TURNKEEPER_ADMIN_KEY": ADMIN_KEY}
        options = ("--config", "t.toml", "--auth", "keys")
        self.server = Server(folder, *options, env=env)
        self.user_key = ""
        self.seen: list[str] = []

    async def ask(self, method: str, path: str, body: Any = None, **headers: str) -> int:
        """The status; all that came is kept in `seen`."""
        request = aiohttp.request(
            method, self.server.url + path, json=body, headers=headers, allow_redirects=False
        )
        async with asyncio.timeout(20), request as answer:
            came = await answer.text() if answer.content_type != "text/event-stream" else ""
            self.seen.append(f"{method} {path} {answer.status} {dict(answer.headers)} {came}")
            return answer.status


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    async with ModelServer() as first, ModelServer() as second:
        site = Site(tmp_path, first, second)
        async with visit_accounts(f"sqlite:///{tmp_path}/turnkeeper.db", make=True) as accounts:
            await accounts.create_user("ann", "user", PASSWORD)
            site.user_key, _ = await accounts.create_key("ann", "")
        await asyncio.to_thread(site.server.start)
        yield site
        if site.server.running:
            site.server.kill()


async def test_no_secret_leaves_by_any_route(site: Site) -> None:
    """Neither in an answer, a header or an error, nor in what the server prints."""
    credentials = (
        {},
        {"X-API-Key": ADMIN_KEY},
        {"Authorization": f"Bearer {site.user_key}"},
        {"Cookie": "turnkeeper_login=canary-cookie"},
        {"X-API-Key": "tk_canary-key"},
    )
    broken = Plan(status=401, body={"error": {"message": f"bad key {KEYS['SECOND_KEY']}"}})
    site.second.script = lambda _: broken
    login = {"username": "ann", "password": PASSWORD}
    for headers in credentials:
        for route in ROUTES:
            path = route.path.replace("{", "").replace("}", "")
            body = None if route.method == "GET" else {"message": "hello", "model": "two"}
            await site.ask(route.method, path, body, **headers)
        for path in ("/", "/metrics", "/openapi.json", "/docs", "/api/nothing", "/health/ready"):
            await site.ask("GET", path, **headers)
        for model in ("one", "two"):
            await site.ask("POST", "/api/chat", {"message": "hi", "model": model}, **headers)
    assert await site.ask("POST", "/login", login) == 200
    assert await site.ask("POST", "/login", login | {"password": "canary-wrong"}) == 401
    await asyncio.to_thread(site.server.stop)
    site.seen = [each for each in site.seen if not each.startswith("POST /login 200")]
    for came in (*site.seen, *site.server.log):
        for secret in (*KEYS.values(), ADMIN_KEY, PASSWORD, site.user_key, "canary-cookie"):
            assert secret not in came, came
    assert site.first.calls >= 1
    assert site.second.calls >= 1


async def test_a_key_goes_to_its_provider_and_nowhere_else(site: Site) -> None:
    """A redirect is not followed, whoever it leads to; what a caller shows goes to no provider."""
    leads_away = {"location": f"{site.first.base_url}/chat/completions"}
    site.second.script = lambda _: Plan(status=307, body={}, headers=leads_away)
    mine = {
        "X-API-Key": site.user_key,
        "X-Canary": "canary-header",
        "traceparent": f"00-{'c' * 32}-{'a' * 16}-01",
    }
    assert await site.ask("POST", "/api/chat", {"message": "a", "model": "two"}, **mine) == 502
    assert site.first.calls == 0
    assert await site.ask("POST", "/api/chat", {"message": "b", "model": "one"}, **mine) == 200
    for model, own in ((site.first, "FIRST_KEY"), (site.second, "SECOND_KEY")):
        heads = [*model.list_headers, *(call.headers for call in model.requests)]
        assert len(heads) >= 2
        for head in heads:
            assert head["authorization"] == f"Bearer {KEYS[own]}"
            said = json.dumps(head)
            for other in ({*KEYS.values()} - {KEYS[own]}) | {site.user_key, "canary-header"}:
                assert other not in said
            assert "traceparent" not in head
            assert "cookie" not in head


async def test_what_a_message_names_is_never_fetched(site: Site) -> None:
    """Not an image, not a document, not an address: the model gets it as it was written."""
    connections = 0

    async def count(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        writer.close()

    listener = await asyncio.start_server(count, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}/image.png"
    mine = {"X-API-Key": site.user_key}
    text = f"![otter]({url}) <img src={url}> {url}"
    assert await site.ask("POST", "/api/chat", {"message": text, "model": "one"}, **mine) == 200
    assert site.first.requests[-1].last_user_message == text
    parts = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "What?"}]
    asked = {"model": "one", "messages": [{"role": "user", "content": parts}]}
    for path in ("/v1/chat/completions", "/v1/responses"):  # where there are such
        await site.ask("POST", path, {**asked, "input": text}, **mine)
    documents = {"title": url, "sections": [{"title": url, "content": text}]}
    assert await site.ask("POST", "/api/documents", documents, **mine) == 201
    assert connections == 0
    listener.close()


def test_no_secret_is_in_what_a_configuration_shows_of_itself(tmp_path: Path) -> None:
    env = {
        "TURNKEEPER_ADMIN_KEY": ADMIN_KEY,
        "OPENAI_API_KEY": "canary-openai",
        "GROQ_API_KEY": "canary-groq",
        "DATABASE_URL": "postgresql://user:canary-database@localhost/x",
    }
    config = read_config({}, env, tmp_path)
    assert "canary" not in f"{config!r} {config} {config.providers!r}"


# --- Dependencies --------------------------------------------------------------------------------


def test_a_known_vulnerability_fails_the_audit() -> None:
    flaw = {"id": "PYSEC-1", "fix_versions": ["2.0"], "description": "bad"}
    report = {
        "dependencies": [
            {"name": "good", "version": "1", "vulns": []},
            {"name": "bad", "version": "1.9", "vulns": [flaw]},
            {"name": "unknown", "skip_reason": "not found"},
        ]
    }
    code, said = audit.judge(report)
    assert code == 1
    assert "bad 1.9: PYSEC-1 (fixed in 2.0)" in said
    report["dependencies"].pop(1)
    assert audit.judge(report)[0] == 0


def test_without_a_network_nothing_is_known_and_nothing_fails(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:1")
    code, said = audit.audit("requirements/build.lock")
    assert code == 0
    assert "not audited" in said
