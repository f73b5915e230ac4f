"""A client of a Turnkeeper: talks to it over HTTP, in the chatbot dialect and `/api/turns`.

Knows neither who asks nor how it is shown, and nothing of the server but its wire. A connection
that breaks while a reply is made is made again, and the reply goes on from where it was.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any
from uuid import uuid4

import aiohttp
import msgspec

from turnkeeper import sse

# Seconds before each further attempt to find the rest of a reply; begun anew once words come.
PAUSES = (0.1, 0.3, 1.0, 2.0, 4.0, 8.0, 15.0)
_SILENCE = 60.0  # seconds without a byte, four keep-alives, after which a connection counts as lost
_CONNECT = 5.0


# --- What it says --------------------------------------------------------------------------------


class ClientError(Exception):
    """What was asked was not done; `sentence` says why."""

    def __init__(self, sentence: str) -> None:
        super().__init__(sentence)
        self.sentence = sentence


class Unreachable(ClientError):
    """No server answers, or not as one."""


class Refusal(ClientError):
    """The server refused. `code` is empty where the dialect has none."""

    def __init__(self, status: int, code: str, sentence: str) -> None:
        super().__init__(sentence)
        self.status = status
        self.code = code


class Taken(msgspec.Struct, frozen=True):
    """The turn is stored, and has its id. `session_id` is the name we have for the session."""

    turn_id: str
    session_id: str


class Started(msgspec.Struct, frozen=True):
    """The model is asked."""

    model: str


class Words(msgspec.Struct, frozen=True):
    """The next words of the reply."""

    text: str


class Lost(msgspec.Struct, frozen=True):
    """The connection broke; it is tried again."""


class Finished(msgspec.Struct, frozen=True):
    """How the turn ended; nothing comes after it.

    Attributes:
        status: a turn's final state.
        text: the reply as it is stored, where that is not what was heard; else None.
        error: why it failed, in a sentence, if it did.
    """

    status: str
    text: str | None = None
    error: str | None = None


Event = Taken | Started | Words | Lost | Finished


class Model(msgspec.Struct, frozen=True):
    id: str
    name: str


class Session(msgspec.Struct, frozen=True):
    id: str
    message_count: int


class _Live(msgspec.Struct, frozen=True):
    status: str


class _Error(msgspec.Struct, frozen=True):
    error: str
    code: str = ""


class _EventData(msgspec.Struct, frozen=True):
    """All that we read of any event of a turn."""

    model: str = ""
    text: str = ""
    response: str | None = None
    replace: bool = False
    error: str | None = None


_ENDINGS = {f"turn.{status}": status for status in ("completed", "failed", "cancelled")}
_ENDINGS["turn.interrupted"] = "interrupted"


# --- The client ----------------------------------------------------------------------------------


class Client:
    """Talks to the server that `locate` finds; it is asked again before every act."""

    def __init__(
        self,
        http: aiohttp.ClientSession,
        locate: Callable[[], Awaitable[str]],
        pauses: Sequence[float] = PAUSES,
        key: str | None = None,
        new_key: Callable[[], str] = lambda: uuid4().hex,
    ) -> None:
        """`pauses` are seconds; `key` is shown to a server that asks for one, and to no other.

        `new_key` makes idempotency keys.

        `locate` raises `Unreachable` if there is no server just now.
        """
        self._http = http
        self._locate = locate
        self._pauses = pauses
        self._key = key
        self._asking = ""  # the server that has asked for a key
        self._new_key = new_key
        self._unanswered: tuple[Any, str] | None = None  # a message, and its idempotency key
        self.url = ""

    async def connect(self) -> None:
        """Find the server.

        Raises:
            Unreachable: there is none, or what answers is something else.
        """
        self.url = await self._locate()
        await self._get("/health/live", _Live)

    async def list_models(self) -> list[Model]:
        """The models that may be asked, the default first."""
        await self.connect()
        models: list[Model] = await self._get("/api/models", list[Model])
        return models

    async def list_sessions(self) -> list[Session]:
        await self.connect()
        sessions: list[Session] = await self._get("/api/sessions", list[Session])
        return sessions

    async def clear_session(self, session_id: str) -> None:
        await self.connect()
        await self._post("/api/clear", {"session_id": session_id})

    async def cancel_turn(self, turn_id: str) -> None:
        """Returns once the turn has ended."""
        await self._post(f"/api/turns/{turn_id}/cancel", None)

    async def take_turn(
        self, message: str, session_id: str | None, model: str | None
    ) -> AsyncIterator[Event]:
        """Say `message`, and everything that happens until the reply is complete.

        Without a session the server makes one; without a model the session's own is asked. The
        same once more, after it was not known whether the server had it, is the same turn.

        Raises:
            Refusal: the turn was not taken.
            Unreachable: no server; or it was lost, and not found again in time.
        """
        body: dict[str, Any] = {"message": message, "stream": True}
        body |= {"session_id": session_id} if session_id else {}
        body |= {"model": model} if model else {}
        await self.connect()  # it may have been started anew since, and elsewhere
        response = await self._request_once("/api/chat", body)
        turn_id = response.headers.get("turn-id", "")
        session_id = session_id or response.headers.get("session-id")
        if not turn_id or not session_id:
            response.close()
            raise Unreachable(f"What answers at {self.url} is not a Turnkeeper")
        yield Taken(turn_id, session_id)
        async for event in self._follow(response, turn_id):
            yield event

    async def _follow(self, response: aiohttp.ClientResponse, turn_id: str) -> AsyncIterator[Event]:
        """The events of a turn, over as many connections as it takes."""
        heard, failures = 0, 0
        while True:
            try:
                async for event in _read_events(response):
                    yield event
                    if isinstance(event, Finished):
                        return
                    if isinstance(event, Words):
                        heard, failures = heard + len(event.text), 0
            except (aiohttp.ClientError, TimeoutError, OSError):
                pass  # as if the stream had ended, which without its last event it may not
            finally:
                response.close()
            yield Lost()
            response, failures = await self._resume(turn_id, heard, failures)

    async def _resume(
        self, turn_id: str, heard: int, failures: int
    ) -> tuple[aiohttp.ClientResponse, int]:
        """The rest of a turn's stream, and how many attempts have brought no word so far."""
        for number, pause in enumerate(self._pauses[failures:], failures + 1):
            await asyncio.sleep(pause)
            try:
                await self.connect()
                headers = {"Last-Event-ID": str(heard)}
                path = f"/api/turns/{turn_id}/events"
                return await self._request("GET", path, headers=headers), number
            except Refusal as refusal:
                if refusal.status < 500:
                    raise
            except Unreachable:
                pass
        raise Unreachable("The connection to the server was lost; the reply may go on there")

    # --- HTTP ------------------------------------------------------------------------------------

    async def _get(self, path: str, kind: type[Any]) -> Any:
        response = await self._request("GET", path)
        async with response:
            return self._decode(await self._read(response), kind)

    async def _post(self, path: str, body: Any) -> None:
        async with await self._request("POST", path, body) as response:
            await self._read(response)

    async def _request_once(self, path: str, body: Any) -> aiohttp.ClientResponse:
        """As `_request`, under a key: the one of last time if that has had no answer."""
        if self._unanswered is None or self._unanswered[0] != body:
            self._unanswered = body, self._new_key()
        headers = {"Idempotency-Key": self._unanswered[1]}
        try:
            response = await self._request("POST", path, body, headers)
        except Refusal as refusal:
            if refusal.status < 500:
                self._unanswered = None
            raise
        self._unanswered = None
        return response

    async def _request(
        self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None
    ) -> aiohttp.ClientResponse:
        """An answer of status 200, its body to be read.

        Raises:
            Refusal: another status, with an error in the shape of a Turnkeeper's.
            Unreachable: no answer, or not a Turnkeeper's.
        """
        response = await self._send(method, path, body, headers)
        if _asks_for_key(response) and self._key is not None and self._asking != self.url:
            response.close()
            self._asking = self.url
            response = await self._send(method, path, body, headers)
        if response.status == 200:
            return response
        if _asks_for_key(response):
            response.close()
            raise Refusal(401, "unauthenticated", self._sentence_on_key())
        async with response:
            refused: _Error = self._decode(await self._read(response), _Error)
        raise Refusal(response.status, refused.code, refused.error)

    async def _send(
        self, method: str, path: str, body: Any, headers: dict[str, str] | None
    ) -> aiohttp.ClientResponse:
        shown = dict(headers or {})
        if self._key is not None and self._asking == self.url:
            shown["Authorization"] = f"Bearer {self._key}"
        try:
            return await self._http.request(
                method,
                self.url + path,
                json=body,
                headers=shown,
                allow_redirects=False,
                timeout=aiohttp.ClientTimeout(sock_connect=_CONNECT, sock_read=_SILENCE),
            )
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
            raise Unreachable(f"No server answers at {self.url}") from error

    def _sentence_on_key(self) -> str:
        if self._key is None:
            return f"The server at {self.url} asks for a key: say --key, or set TURNKEEPER_KEY"
        return f"The server at {self.url} does not know this key"

    async def _read(self, response: aiohttp.ClientResponse) -> bytes:
        try:
            return await response.read()
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise Unreachable(f"The connection to {self.url} was lost") from error

    def _decode(self, body: bytes, kind: type[Any]) -> Any:
        try:
            return msgspec.json.decode(body, type=kind)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise Unreachable(f"What answers at {self.url} is not a Turnkeeper") from error


def _asks_for_key(response: aiohttp.ClientResponse) -> bool:
    scheme = response.headers.get("www-authenticate", "")
    return response.status == 401 and scheme.lower().startswith("bearer")


async def _read_events(response: aiohttp.ClientResponse) -> AsyncIterator[Event]:
    """What one connection tells of a turn. It ends as it does: only `Finished` is an ending."""
    reader = sse.Reader()
    async for data in response.content.iter_any():
        for event in reader.feed(data):
            read = _read_event(event)
            if read is not None:
                yield read


def _read_event(event: sse.Event) -> Event | None:
    """An event of the stream; None if it is of no kind that we know."""
    try:
        data = msgspec.json.decode(event.data, type=_EventData)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise aiohttp.ClientPayloadError("an event that is not one of ours") from error
    if event.name == "message.delta":
        return Words(data.text)
    if event.name == "turn.started":
        return Started(data.model)
    if event.name in _ENDINGS:
        text = data.response if data.replace else None
        return Finished(_ENDINGS[event.name], text, data.error)
    return None
