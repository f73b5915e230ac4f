"""Clients of what `crash.clients` leaves out: documents, logins, lists, searches, forks, pages.

One goes through everything again and again. What it made it deletes, or it leaves it to expire.
"""

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import Any

import aiohttp

from crash.clients import Site
from crash.diary import ANSWERS

_STOPPING = frozenset({429, 503})  # busy: tried again another time


class Visitor:
    """Someone who uses the server as pages and programs do, one call after the other."""

    def __init__(self, number: int, site: Site, http: aiohttp.ClientSession) -> None:
        self._number = number
        self._site = site
        self._http = http
        self._rng = random.Random(site.rng.random())
        self.done = 0

    async def run(self) -> None:
        rounds: tuple[Callable[[], Awaitable[None]], ...] = (
            self._write_a_document,
            self._look_around,
            self._go_another_way,
            self._ask_as_openai,
            self._get_lost,
        )
        while not self._site.closing:
            await self._rng.choice(rounds)()
            self.done += 1
            await asyncio.sleep(0.02)

    async def _ask(self, method: str, path: str, body: Any = None, *statuses: int) -> Any:
        """The answer, which must have one of these statuses, 200 to 204 if none is named."""
        async with self._http.request(method, self._site.url + path, json=body) as response:
            answer = await response.read()
            wanted = statuses or range(200, 205)
            holds = response.status in wanted or response.status in _STOPPING
            evidence = f"{method} {path} was answered with {response.status}: {answer[:300]!r}"
            self._site.diary.ledger.expect(ANSWERS, holds, evidence)
            is_json = answer and response.content_type == "application/json"
            return await response.json() if is_json and response.status < 300 else {}

    async def _write_a_document(self) -> None:
        sections = [{"title": f"Part {n}", "content": "It rains. " * 50} for n in range(3)]
        made = await self._ask("POST", "/api/documents", {"title": "Soak", "sections": sections})
        if not made:
            return
        path = f"/api/documents/{made['document']['id']}"
        section = f"{path}/sections/{made['document']['sections'][0]['id']}"
        await self._ask("PUT", section, {"content": "The sun shines. " * 50})
        chat = await self._ask("POST", f"{section}/chat")
        if chat:
            said = {"message": f"visitor-{self._number}: 5 words, one in 5 ms"}
            id_ = chat["chat_session"]["id"]
            await self._ask("POST", f"/api/chat-sessions/{id_}/messages", said, 200, 404)
        await self._ask("GET", path)
        await self._ask("DELETE", path)

    async def _look_around(self) -> None:
        page = await self._ask("GET", "/api/chat-sessions?limit=20")
        for session in page.get("chat_sessions", [])[:3]:
            await self._ask("GET", f"/api/chat-sessions/{session['id']}/messages", None, 200, 404)
        for path in ("/", "/api/models", "/api/sessions", "/health/ready", "/api/me"):
            await self._ask("GET", path)
        await self._ask("GET", "/metrics", None, 200, 404)

    async def _go_another_way(self) -> None:
        said = {"message": f"visitor-{self._number}: 9 words, one in 5 ms"}
        answer = await self._ask("POST", "/api/chat", said)
        if "session_id" not in answer:
            return
        path = f"/api/chat-sessions/{answer['session_id']}"
        fork = await self._ask("POST", f"{path}/fork", {})
        await self._ask("POST", f"{path}/regenerate", {})
        await self._ask("PATCH", path, {"title": "Soaked", "metadata": {"n": self._number}})
        if fork:
            await self._ask("DELETE", f"/api/chat-sessions/{fork['chat_session']['id']}")

    async def _ask_as_openai(self) -> None:
        """Both of its APIs, kept and not; where there are none, that is 404."""
        text = f"visitor-{self._number}: 5 words, one in 5 ms"
        messages = [{"role": "user", "content": text}]
        for stream in (False, True):
            asked = {"model": "scripted", "stream": stream}
            chat = {**asked, "messages": messages}
            await self._ask("POST", "/v1/chat/completions", chat, 200, 404)
            await self._ask("POST", "/v1/responses", {**asked, "input": text}, 200, 404)

    async def _get_lost(self) -> None:
        """What is wrong in every way is answered, and costs nothing that stays."""
        await self._ask("GET", "/api/nothing", None, 404)
        await self._ask("POST", "/api/chat", {"message": 7}, 400)
        await self._ask("GET", f"/api/turns/t{'0' * 26}_1", None, 404)
        await self._ask("PUT", "/api/chat", {}, 405)
        reader, writer = await asyncio.open_connection(*_host_of(self._site.url))
        writer.write(b"POST /api/chat HTTP/1.1\r\nHost: localhost\r\nContent-Length: 999\r\n\r\n{")
        await writer.drain()
        writer.close()
        del reader


def _host_of(url: str) -> tuple[str, int]:
    host, _, port = url.removeprefix("http://").partition(":")
    return host, int(port)
