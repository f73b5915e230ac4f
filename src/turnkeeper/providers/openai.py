"""A model behind any endpoint that speaks OpenAI's chat completions, always streamed.

One `OpenAIProvider` is one endpoint with one key. Knows HTTP; does not know sessions, turns or
which company answers. What is said on the wire is `completions`, what is said of faults `faults`.
"""

import asyncio
import io
import socket
from collections.abc import AsyncGenerator, Sequence
from contextlib import suppress
from contextvars import ContextVar
from urllib.parse import urlsplit

import aiohttp
from aiohttp.http_exceptions import HttpProcessingError
from yarl import URL

from turnkeeper.domain import Model, Prompt
from turnkeeper.errors import ConfigError, ProviderError
from turnkeeper.events import ProviderEvent
from turnkeeper.providers.completions import (
    NO_SUCH_PAGE,
    IncomingReply,
    ListedModel,
    decode_models,
    encode_request,
)
from turnkeeper.providers.faults import Timeouts, Words

_KEEP_ALIVE = 30  # seconds an idle connection is kept; below what servers usually allow
_GRACE = 1.0  # seconds an answer has after [DONE] to end, so that its connection can be used again
_ERROR_BODY = 64 * 1024  # bytes that are read of an answer that is no reply
_ERROR_WAIT = 5.0  # seconds for the same
_LIST_BODY = 8 * 1024 * 1024  # bytes that are read of a list of models
_LARGE_BODY = 1024 * 1024  # bytes from where aiohttp wants a file-like body, written in pieces


class OpenAIProvider:
    """Implements `contracts.Provider`. `base_url` ends before `/chat/completions`.

    `title` is what sentences call it, `name` if there is none. `models` may be set anew by whoever
    opens it and has asked `list_models`, before anyone else has it.

    Raises:
        ConfigError: `base_url` is no HTTP address, or `key` cannot be sent in a header.
    """

    def __init__(
        self,
        name: str,
        base_url: str,
        key: str | None,
        models: Sequence[Model],
        timeouts: Timeouts,
        *,
        attempts: int = 3,
        title: str | None = None,
    ) -> None:
        self.name = name
        self.models = models
        self.attempts = attempts
        title = title or name
        self._words = Words(title, key)
        self._url = _endpoint(title, base_url)
        self._headers = _headers(title, key)
        self._timeouts = timeouts
        # OpenAI's newer models refuse the name that everybody else has kept.
        is_openai = urlsplit(base_url).hostname == "api.openai.com"
        self._max_tokens = "max_completion_tokens" if is_openai else "max_tokens"
        self._session: aiohttp.ClientSession | None = None
        self._ending: dict[aiohttp.ClientResponse, asyncio.TimerHandle] = {}

    def __repr__(self) -> str:
        return f"<OpenAIProvider {self._words.name}>"

    async def stream(self, prompt: Prompt) -> AsyncGenerator[Sequence[ProviderEvent], None]:
        """See `contracts.Provider.stream`."""
        ends_at = asyncio.get_running_loop().time() + self._timeouts.total
        response, data = await self._ask(encode_request(prompt, self._max_tokens))
        reply = IncomingReply(self._words)
        watch = _Watch(response, self._timeouts, ends_at, self._words)
        try:
            while data:
                if events := reply.feed(data):
                    yield events
                if reply.over:
                    break
                data = await watch.read(reply)
            reply.check()
        finally:
            watch.stop()
            if reply.done:
                self._let_end(response)
            else:
                response.close()  # does nothing when it has ended

    async def list_models(self, patience: float) -> Sequence[ListedModel] | None:
        """What the endpoint says it offers: `GET {base_url}/models`, within `patience` seconds.

        Each id once, in its order; ids that could be no one's choice are left out. None when
        it answers, but has no such list.

        Raises:
            ProviderError: it did not answer, or refused to.
        """
        _attempt.set(_Attempt())
        session = self._session or self._open_session()
        url = self._url.parent.parent / "models"
        try:
            async with (
                asyncio.timeout(patience),
                session.get(
                    url, headers={"Accept": "application/json"}, allow_redirects=False
                ) as response,
            ):
                status, headers = response.status, response.headers
                body = await _read_list(response)
        except _LOST as error:
            fault = self._words.unlisted(error, patience)
        else:
            if status == 200:
                return decode_models(body)
            if status in NO_SUCH_PAGE:
                return None
            fault = self._words.no_stream(status, headers, body)
        raise fault

    async def close(self) -> None:
        """Close connections; calls still running end with a `ProviderError`."""
        for response in list(self._ending):
            self._cut(response)
        if self._session is not None:
            await self._session.close()

    async def _ask(self, body: bytes) -> tuple[aiohttp.ClientResponse, bytes]:
        """An answer that is a stream, and its first bytes.

        Raises:
            ProviderError: there is none. It has no context: aiohttp's own errors hold the headers.
        """
        try:
            async with asyncio.timeout(min(self._timeouts.first_byte, self._timeouts.total)):
                response = await self._post(body)
                fault, data = await self._begin(response)
        except _LOST as error:
            fault = self._words.unanswered(error, self._timeouts)
        if fault is not None:
            raise fault
        return response, data

    async def _begin(self, response: aiohttp.ClientResponse) -> tuple[ProviderError | None, bytes]:
        """The first bytes of the stream, or what is wrong with an answer that is none."""
        try:
            if response.status == 200 and not _is_json(response):
                return None, await response.content.readany()
            body = await _read_error(response)
            response.close()
        except BaseException:
            response.close()
            raise
        return self._words.no_stream(response.status, response.headers, body), b""

    async def _post(self, body: bytes) -> aiohttp.ClientResponse:
        """Send the request; once more if it went to a kept connection that had died meanwhile.

        aiohttp does that itself only for idempotent methods. Nothing of an answer had come, and
        a server that closes an idle connection has not read what came after.
        """
        attempt = _Attempt()
        _attempt.set(attempt)
        try:
            return await self._send(body)
        except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError) as error:
            if attempt.connects or _has_begun(error):
                raise
        return await self._send(body)

    async def _send(self, body: bytes) -> aiohttp.ClientResponse:
        session = self._session or self._open_session()
        data = body if len(body) < _LARGE_BODY else io.BytesIO(body)
        return await session.post(self._url, data=data, allow_redirects=False)

    def _let_end(self, response: aiohttp.ClientResponse) -> None:
        """Give a whole reply a moment to end behind our back, and its connection is kept."""
        if response.closed:  # it has ended
            return
        timer = asyncio.get_running_loop().call_later(_GRACE, self._cut, response)
        self._ending[response] = timer
        response.content.on_eof(lambda: self._ending.pop(response).cancel())

    def _cut(self, response: aiohttp.ClientResponse) -> None:
        self._ending.pop(response).cancel()
        response.close()

    def _open_session(self) -> aiohttp.ClientSession:
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                limit=0, keepalive_timeout=_KEEP_ALIVE, socket_factory=_open_socket
            ),
            # The rest of the time limits is `_ask`'s and `_Watch`'s, without a timer per read.
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=self._timeouts.connect),
            headers=self._headers,
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            trust_env=False,
        )
        return self._session


class _Attempt:
    """One sending of a request. `connects`: it made a connection of its own."""

    connects = False


# aiohttp says whether a connection was kept or made only to its tracers, which cost a call a
# fifth more; that a socket is opened on behalf of this call says the same.
_attempt: ContextVar[_Attempt] = ContextVar("_attempt")


def _open_socket(address: aiohttp.AddrInfoType) -> socket.socket:
    _attempt.get().connects = True
    family, kind, protocol, _, _ = address
    return socket.socket(family, kind, protocol)


_LOST = (aiohttp.ClientError, HttpProcessingError, OSError)  # TimeoutError is an OSError


def _endpoint(name: str, base_url: str) -> URL:
    try:
        url = URL(base_url.rstrip("/") + "/chat/completions")
    except ValueError:
        url = URL()
    if url.scheme not in ("http", "https") or not url.host:
        raise ConfigError(f"the base URL of {name} must be an http:// or https:// address")
    return url


def _headers(name: str, key: str | None) -> dict[str, str]:
    headers = {
        "Accept": "text/event-stream",
        "Accept-Encoding": "identity",
        "Content-Type": "application/json",
        "User-Agent": "turnkeeper",
    }
    if key is None:
        return headers
    if not (key and key.isascii() and key.isprintable()):
        raise ConfigError(f"the key for {name} is empty or holds what no HTTP header can carry")
    return {**headers, "Authorization": f"Bearer {key}"}


def _is_json(response: aiohttp.ClientResponse) -> bool:
    return response.headers.get("Content-Type", "").startswith("application/json")


def _has_begun(error: aiohttp.ClientError) -> bool:
    """Whether the connection was lost after some of the answer's head had come."""
    return isinstance(error, aiohttp.ServerDisconnectedError) and not isinstance(error.message, str)


async def _read_error(response: aiohttp.ClientResponse) -> bytes:
    """As much of the body as comes in reasonable time and size."""
    body = b""
    with suppress(*_LOST):
        async with asyncio.timeout(_ERROR_WAIT):
            while len(body) < _ERROR_BODY and (data := await response.content.readany()):
                body += data
    return body


async def _read_list(response: aiohttp.ClientResponse) -> bytes:
    body = bytearray()
    async for data in response.content.iter_any():
        body += data
        if len(body) > _LIST_BODY:
            break  # and what there is of it is no JSON
    return bytes(body)


class _Watch:
    """Reads a stream and loses patience with it, with one timer for very many reads.

    Only time spent waiting counts as silence: whoever consumes the reply may be slow.
    """

    def __init__(
        self,
        response: aiohttp.ClientResponse,
        timeouts: Timeouts,
        ends_at: float,
        words: "Words",
    ) -> None:
        self._words = words
        self._response = response
        self._content = response.content
        self._timeouts = timeouts
        self._ends_at = ends_at
        self._loop = asyncio.get_running_loop()
        self._waiting_since: float | None = None
        self._gave_up = False
        self._timer: asyncio.TimerHandle | None = None  # a short reply needs none

    async def read(self, reply: IncomingReply) -> bytes:
        """The next bytes. Nothing at the end, or when no more will come: `reply` then knows why."""
        self._waiting_since = now = self._loop.time()
        if self._timer is None:
            self._look()
        fault: ProviderError
        try:
            if now < self._ends_at:
                return await self._content.readany()
            fault = self._words.overdue(self._timeouts)
        except _LOST:
            fault = self._reason()
        finally:
            self._waiting_since = None
        reply.lose(fault)
        return b""

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _reason(self) -> ProviderError:
        if not self._gave_up:
            return self._words.fault("provider_cut_off", "lost the connection in the middle")
        if self._loop.time() >= self._ends_at:
            return self._words.overdue(self._timeouts)
        return self._words.silent(self._timeouts)

    def _look(self) -> None:
        now = self._loop.time()
        since = now if self._waiting_since is None else self._waiting_since
        due = min(since + self._timeouts.between, self._ends_at)
        if self._waiting_since is None:
            # Not ours to hurry: the next read sees by itself that all time is over.
            due = due if due > now else now + self._timeouts.between
        if due > now:
            self._timer = self._loop.call_at(due, self._look)
        else:
            self._gave_up = True
            self._response.close()  # wakes the reader with an error
