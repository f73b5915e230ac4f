"""`turnkeeper users forget`, beside a server that is making a reply, and without one."""

import asyncio
import json
import sqlite3
from contextlib import closing
from pathlib import Path

import aiohttp

from rig.model_server import ModelServer, Plan, Wait
from rig.server import Server
from tests.test_access import turnkeeper
from turnkeeper.compose import visit_accounts
from turnkeeper.stores import migrations

URL = "sqlite:///turnkeeper.db"


def tables_that_name(folder: Path, text: str) -> set[str]:
    """Every table in which any value of any row holds `text`."""
    with closing(sqlite3.connect(folder / "turnkeeper.db")) as look:
        return {
            table
            for table in migrations.table_names()
            if any(text in str(row) for row in look.execute(f"SELECT * FROM {table}"))
        }


async def test_a_person_goes_while_their_reply_is_made(
    tmp_path: Path, model_server: ModelServer
) -> None:
    """The server goes on for everyone else, and nothing of the reply comes back at its end."""
    gate = asyncio.Event()
    model_server.script = lambda call: Plan(
        at={1: Wait(gate)} if call.last_user_message == "wait" else {}
    )
    async with visit_accounts(f"sqlite:///{tmp_path}/turnkeeper.db", make=True) as accounts:
        keys = {}
        for name in ("zoe", "ann"):
            await accounts.create_user(name, "user", None)
            keys[name] = {"X-API-Key": (await accounts.create_key(name, ""))[0]}
    env = {"OPENAI_BASE_URL": model_server.base_url}
    with Server(tmp_path, "--model", "m", "--auth", "keys", env=env) as server:
        async with aiohttp.ClientSession(server.url) as http:

            async def say(who: str, message: str, **headers: str) -> int:
                body = {"message": message, "session_id": f"of-{who}"}
                async with http.post("/api/chat", json=body, headers=keys[who] | headers) as got:
                    return got.status

            assert await say("zoe", "one", **{"X-End-User": "zoe's child"}) == 200
            assert await say("zoe", "two", **{"Idempotency-Key": "k"}) == 200
            assert await say("ann", "hello") == 200
            waiting = asyncio.create_task(say("zoe", "wait"))
            queued = asyncio.create_task(say("zoe", "queued"))
            async with asyncio.timeout(20):
                while model_server.calls < 4:
                    await asyncio.sleep(0.01)
            forget = ("users", "forget", "zoe", "--yes", "--json")
            removed = json.loads(await asyncio.to_thread(turnkeeper, tmp_path, *forget))
            assert (removed["users"], removed["api_keys"], removed["sessions"]) == (1, 1, 2)
            assert removed["turns"] == 4
            assert tables_that_name(tmp_path, "zoe") == set()
            gate.set()
            assert await waiting == 409  # it was cancelled
            assert await queued == 409  # within ten seconds
            assert await say("zoe", "again") == 401
            assert await say("ann", "still here") == 200
            assert tables_that_name(tmp_path, "zoe") == set()
        server.stop()
    log = [line for line in server.log if "listening" not in line]
    assert not [line for line in log if "Traceback" in line or "fault of our own" in line], log


async def test_without_a_server_and_without_a_user(tmp_path: Path) -> None:
    with Server(tmp_path, "--model", "eliza") as server:
        async with (
            aiohttp.ClientSession(server.url) as http,
            http.post("/api/chat", json={"message": "hello"}) as answer,
        ):
            assert answer.status == 200
    forget = ("users", "forget", "local")
    refused = turnkeeper(tmp_path, *forget, code=2)
    assert "nobody is there to be asked" in refused
    said = turnkeeper(tmp_path, *forget, "--yes").splitlines()
    assert said[0] == "Forgot local"
    assert "         1  sessions" in said
    assert "         2  items" in said
    assert "There is nothing of local here" in turnkeeper(tmp_path, *forget, "--yes", code=1)
    assert tables_that_name(tmp_path, "local") == set()
