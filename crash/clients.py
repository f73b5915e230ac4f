"""Clients of every kind: they send with keys, lose their connection, try again, hang up, cancel.

A client knows the server by its wire alone. It gives up on nothing: whatever breaks, it sends the
same request with the same key until there is an answer. What it is told goes into the diary.
"""

import asyncio
import json
import random
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from crash.diary import ANSWERS, FINAL, RIGHT, Ask, Diary, Ending
from crash.words import breaks_off, make_message, right_reply
from turnkeeper import sse

DIALECTS = ("named", "unnamed", "tutor", "agent", "written")
_PAUSE = 0.03  # seconds between two tries
_TRY_AGAIN = frozenset({"server_stopping", "store_unavailable", "queue_full", "session_busy"})
_STATUS_OF = {"turn_cancelled": "cancelled", "turn_interrupted": "interrupted"}


class Lost(Exception):
    """The connection broke, or there was none; what became of the request is not known."""


@dataclass(eq=False)
class Site:
    """Where the clients are: the server's address, what they write down, when they go home."""

    url: str
    diary: Diary
    rng: random.Random
    longest_reply: float
    closing: bool = False


@dataclass(eq=False)
class Room:
    """A session as its client has it. `session` is None before the client knows of one."""

    dialect: str
    session: str | None = None
    last: dict[int, Ask] = field(default_factory=dict)  # by client: what it said last, for certain

    def request(self, message: str) -> tuple[str, dict[str, Any], str]:
        """How a message is sent here: path, body, and what the reply is called in the answer."""
        match self.dialect:
            case "named" | "unnamed":
                body = {"message": message}
                if self.session is not None:
                    body["session_id"] = self.session
                return "/api/chat", body, "response"
            case "tutor" if self.session is None:
                return "/session/create", {"ini_message": message}, "msg_text"
            case "tutor":
                body = {"session_id": self.session or "", "msg_text": message}
                return "/session/send", body, "msg_text"
            case "agent":
                body = {"chat_session_id": self.session or "", "user_message": message}
                return "/invoke", body, "message"
            case _:
                path = f"/api/chat-sessions/{self.session}/messages"
                return path, {"message": message}, "response"


class Client:
    """Someone who says one thing after the other, in one room after the other."""

    def __init__(self, number: int, site: Site, http: aiohttp.ClientSession, shared: Room) -> None:
        self._number = number
        self._site = site
        self._http = http
        self._shared = shared
        self._rng = random.Random(site.rng.random())
        self._said = 0

    async def run(self) -> None:
        """Talk until it is closing time, and hear every answer that is still to come."""
        while not self._site.closing:
            room = await self._enter()
            for _ in range(self._rng.randint(1, 4)):
                if not self._site.closing:
                    await self._say(room)

    async def _enter(self) -> Room:
        if self._rng.random() < 0.25:
            return self._shared
        dialect = self._rng.choice(DIALECTS)
        room = Room(dialect)
        match dialect:
            case "named":
                room.session = f"room-{self._number}-{self._rng.randrange(3)}"
            case "agent":
                made = await self._make("/create-chat-session", [])
                room.session = made["chat_session_id"]
            case "written":
                made = await self._make("/api/chat-sessions", {"title": self._next_key()})
                room.session = made["chat_session"]["id"]
        return room

    def _next_key(self) -> str:
        self._said += 1
        return f"client-{self._number}-{self._said}"

    async def _make(self, path: str, body: Any) -> Any:
        """Have something made, once: with the same key until there is an answer."""
        key, diary = self._next_key(), self._site.diary
        ids = diary.sessions.setdefault(key, set())
        while True:
            with suppress(Lost):
                async with self._request("POST", path, key, body) as response:
                    answer = await response.json()
                    ok = response.status in (200, 201)
                    evidence = f"{path} was answered with {response.status}: {answer}"
                    diary.ledger.expect(ANSWERS, ok or _passes(answer), evidence)
                    if ok:
                        ids.add(answer.get("chat_session_id") or answer["chat_session"]["id"])
                        return answer
            await self._pause()

    def _request(
        self, method: str, path: str, key: str = "", body: Any = None, after: int | None = None
    ) -> "_Request":
        headers = {"Idempotency-Key": key} if key else {}
        if after is not None:
            headers["Last-Event-ID"] = str(after)
        url = self._site.url + path
        return _Request(self._http.request(method, url, json=body, headers=headers), self._lose)

    def _lose(self) -> None:
        self._site.diary.losses += 1

    async def _pause(self) -> None:
        await asyncio.sleep(_PAUSE * (0.5 + self._rng.random()))

    # --- One message -----------------------------------------------------------------------------

    async def _say(self, room: Room) -> None:
        key = self._next_key()
        message = make_message(key, self._rng, self._site.longest_reply)
        path, body, reply_key = room.request(message)
        streamed = self._rng.random() < 0.6
        ask = Ask(key, message, path, {**body, "stream": True} if streamed else body, reply_key)
        ask.before = room.last.get(self._number)
        self._site.diary.asks.append(ask)
        await (self._stream(ask) if streamed else self._wait(ask))
        if ask.turn_ids:
            room.last[self._number] = ask
            room.session = room.session or _session_of(ask)
        unfinished = ask.endings and ask.endings[-1].status != "completed"
        if unfinished and room is not self._shared and self._rng.random() < 0.4:
            await self._try_again(ask)

    async def _try_again(self, ask: Ask) -> None:
        """Have the message of a turn that came to nothing answered after all."""
        path, streamed = f"/api/turns/{ask.turn_id}/retry", self._rng.random() < 0.5
        again = Ask(self._next_key(), ask.message, path, {"stream": streamed}, "message")
        self._site.diary.asks.append(again)
        await (self._stream(again) if streamed else self._wait(again))

    async def _wait(self, ask: Ask) -> None:
        """Ask for the whole reply until it is there."""
        patience = self._rng.uniform(0.0, 0.5) if self._rng.random() < 0.08 else None
        while not (ask.endings or ask.left):
            ask.attempts += 1
            try:
                async with asyncio.timeout(patience):
                    await self._try_whole(ask)
            except Lost:
                await self._pause()
            except TimeoutError:
                ask.hang_ups += 1
                ask.left, patience = self._rng.random() < 0.5, None
            if not ask.endings:
                await self._pause()

    async def _try_whole(self, ask: Ask) -> None:
        async with self._request("POST", ask.path, ask.key, ask.body) as response:
            answer = await response.json()
            self._note(ask, response)
            if response.status == 200:
                text = ask.reply_in(answer)
                ask.see(len(text))
                self._end(ask, "completed", text)
            else:
                self._refused(ask, response.status, answer)

    def _refused(self, ask: Ask, status: int, answer: Any) -> None:
        """An answer without a reply: the turn's ending, or a reason to try again."""
        code = answer.get("code", "")
        if code in _STATUS_OF:
            self._end(ask, _STATUS_OF[code], None)
        elif status == 502 and breaks_off(ask.message):
            self._end(ask, "failed", None)
        else:
            evidence = f"{ask.key}, {ask.path}: {status} {answer}"
            self._site.diary.ledger.expect(ANSWERS, _passes(answer), evidence)

    def _note(self, ask: Ask, response: aiohttp.ClientResponse) -> None:
        if "Turn-Id" in response.headers:
            ask.turn_ids.add(response.headers["Turn-Id"])
        if response.headers.get("Idempotent-Replayed") == "true":
            ask.replays += 1

    def _end(self, ask: Ask, status: str, text: str | None) -> None:
        turn_id = ask.turn_id or ""
        evidence = f"{ask.key}: {status} came without a Turn-Id"
        self._site.diary.ledger.expect(ANSWERS, turn_id != "", evidence)
        ask.endings.append(Ending(turn_id, status, text))

    # --- One message, streamed -------------------------------------------------------------------

    async def _stream(self, ask: Ask) -> None:
        """Follow the reply to its end, going on where the connection broke."""
        mood = self._rng.choices(("stays", "leaves", "returns", "cancels"), (78, 8, 8, 6))[0]
        ear = _Ear(ask, self._site.diary)
        stop_at = None if mood == "stays" else self._rng.choice((0, self._rng.randrange(200)))
        while not (ask.endings or ask.left):
            ask.attempts += 1
            with suppress(Lost):
                async with self._open_stream(ask, ear) as response:
                    self._note(ask, response)
                    if response.status != 200:
                        self._refused(ask, response.status, await response.json())
                    elif not await self._listen(ask, ear, response, stop_at):
                        ask.hang_ups += 1
                        ask.left, stop_at = mood == "leaves", None
            if mood == "cancels" and ask.hang_ups:
                mood = "stays"
                await self._cancel(ask)
            if not ask.endings:
                await self._pause()

    def _open_stream(self, ask: Ask, ear: "_Ear") -> "_Request":
        """The same request again from where it broke, or the rest of the turn's events."""
        length = len(ear.text) if ear.text else None
        if ask.turn_id is not None and self._rng.random() < 0.4:
            path = f"/api/turns/{ask.turn_id}/events"
            if self._rng.random() < 0.5:
                return self._request("GET", path, after=length)
            query = "" if length is None else f"?after={length}"
            return self._request("GET", path + query)
        if self._rng.random() < 0.3:  # from the beginning
            ear.text, length = "", None
        return self._request("POST", ask.path, ask.key, ask.body, length)

    async def _listen(
        self, ask: Ask, ear: "_Ear", response: aiohttp.ClientResponse, stop_at: int | None
    ) -> bool:
        """Hear a stream; False if it was left in the middle."""
        if stop_at == 0:
            response.close()
            return False
        async for event in _events(response):
            ear.hear(event)
            if ear.ending is not None:
                self._end(ask, *ear.ending)
                return True
            if stop_at is not None and len(ear.text) >= stop_at:
                response.close()
                return False
        return True

    async def _cancel(self, ask: Ask) -> None:
        with suppress(Lost):
            path = f"/api/turns/{ask.turn_id}/cancel"
            async with self._request("POST", path) as response:
                await response.read()


def _passes(answer: Any) -> bool:
    return answer.get("code") in _TRY_AGAIN


def _session_of(ask: Ask) -> str:
    return "s" + (ask.turn_id or "").removeprefix("t").partition("_")[0]


class _Request:
    """A request that is `Lost` however its connection fails."""

    def __init__(self, opening: Any, lose: Callable[[], None]) -> None:
        self._opening = opening
        self._lose = lose

    async def __aenter__(self) -> aiohttp.ClientResponse:
        try:
            response: aiohttp.ClientResponse = await self._opening.__aenter__()
        except (aiohttp.ClientError, OSError) as error:
            self._lose()
            raise Lost from error
        return response

    async def __aexit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        await self._opening.__aexit__(kind, error, trace)
        if isinstance(error, aiohttp.ClientError | OSError) and not isinstance(error, TimeoutError):
            self._lose()
            raise Lost from error


async def _events(response: aiohttp.ClientResponse) -> AsyncIterator[sse.Event]:
    reader = sse.Reader()
    async for data in response.content.iter_any():
        for event in reader.feed(data):
            yield event


class _Ear:
    """What a client has of a reply, put together from as many streams as it took."""

    def __init__(self, ask: Ask, diary: Diary) -> None:
        self.text = ""
        self.ending: tuple[str, str | None] | None = None
        self._ask = ask
        self._ledger = diary.ledger
        self._right = right_reply(ask.message)

    def hear(self, event: sse.Event) -> None:
        data: Mapping[str, Any] = json.loads(event.data)
        match event.name:
            case "turn.started":
                self.text = ""
                self._ask.turn_ids.add(data["turn_id"])
            case "message.delta":
                self._grow(data["text"], int(event.id))
            case _:
                self._finish(event.name.removeprefix("turn."), data)

    def _grow(self, text: str, length: int) -> None:
        self.text += text
        self._ask.see(len(self.text))
        evidence = f"{self._ask.key}: at {length} the stream says {text!r}"
        holds = self._right.startswith(self.text) and len(self.text) == length
        self._ledger.expect(RIGHT, holds, evidence)

    def _finish(self, status: str, data: Mapping[str, Any]) -> None:
        """What the ending says must be what was heard, unless it says that it replaces it."""
        text: str | None = data.get("response")
        if text is not None and not data.get("replace"):
            evidence = f"{self._ask.key}: heard {self.text[-40:]!r}, ended with {text[-40:]!r}"
            self._ledger.expect(FINAL, text == self.text, evidence)
        self.ending = (status, text)
