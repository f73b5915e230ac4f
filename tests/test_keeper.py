"""Sessions that nobody uses any more go by themselves."""

import asyncio
from pathlib import Path

import aiohttp

from rig.server import Server


async def test_an_idle_session_is_gone_after_its_time(tmp_path: Path) -> None:
    (tmp_path / "t.toml").write_text("[deployments.default]\nidle_timeout = 1\n")
    with Server(tmp_path, "--model", "eliza", "--config", "t.toml") as server:
        async with aiohttp.ClientSession(server.url) as http:
            for name in ("one", "two"):
                asked = {"message": "Hello", "session_id": name}
                async with http.post("/api/chat", json=asked) as answer:
                    assert answer.status == 200
            async with asyncio.timeout(30):
                while True:
                    async with http.get("/api/sessions") as answer:
                        if not await answer.json():
                            break
                    await asyncio.sleep(0.2)
