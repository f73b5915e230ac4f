"""A model behind any endpoint that speaks OpenAI's chat completions, always streamed.

One `OpenAIProvider` is one endpoint with one key. Knows HTTP and that dialect; does not know
sessions, turns or which company answers. Every fault becomes a `ProviderError` whose sentence
names the provider; the key is in none of them, nor is more than a line of what the other side
wrote.
"""

import asyncio
import io
import json
import re
import socket
import time
from collections.abc import AsyncGenerator, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from contextvars import ContextVar
from email.utils import parsedate_to_datetime
from typing import Any

import aiohttp
import msgspec
from aiohttp.http_exceptions import HttpProcessingError
from yarl import URL

from turnkeeper import sse
from turnkeeper.domain import (
    Item,
    Message,
    Model,
    Prompt,
    Reasoning,
    ToolCall,
    ToolResult,
    Usage,
    storable,
)
from turnkeeper.errors import ConfigError, ProviderError, ProviderFault
from turnkeeper.events import ProviderEvent, TextDelta, UsageReport


class Timeouts(msgspec.Struct, frozen=True):
    """How long a call may take, in seconds.

    Attributes:
        connect: to have a connection, TLS included.
        first_byte: from the call to the first byte of the body.
        between: from any bytes to the next.
        total: from the call to the end of the reply.
    """

    connect: float = 10
    first_byte: float = 60
    between: float = 60
    total: float = 600


_KEEP_ALIVE = 30  # seconds an idle connection is kept; below what servers usually allow
_GRACE = 1.0  # seconds an answer has after [DONE] to end, so that its connection can be used again
_ERROR_BODY = 64 * 1024  # bytes that are read of an answer that is no reply
_ERROR_WAIT = 5.0  # seconds for the same
_MOST_TOKENS = 2**53  # a count from here on is none, and no database holds it
_LONGEST_WAIT = 86_400.0  # seconds that a provider may ask us to wait
_LIST_BODY = 8 * 1024 * 1024  # bytes that are read of a list of models
_MODEL_ID = 200  # characters of a model's id at most
_QUOTE = 200  # characters of another's error message that are passed on
_LARGE_BODY = 1024 * 1024  # bytes from where aiohttp wants a file-like body, written in pieces


class ListedModel(msgspec.Struct, frozen=True):
    """A model as its endpoint lists it. `context_window` where the list says so."""

    id: str
    context_window: int | None = None


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
        self._words = _Words(title, key)
        self._url = _endpoint(title, base_url)
        self._headers = _headers(title, key)
        self._timeouts = timeouts
        self._session: aiohttp.ClientSession | None = None
        self._ending: dict[aiohttp.ClientResponse, asyncio.TimerHandle] = {}

    def __repr__(self) -> str:
        return f"<OpenAIProvider {self._words.name}>"

    async def stream(self, prompt: Prompt) -> AsyncGenerator[Sequence[ProviderEvent], None]:
        """See `contracts.Provider.stream`."""
        ends_at = asyncio.get_running_loop().time() + self._timeouts.total
        response, data = await self._ask(encode_request(prompt))
        reply = _IncomingReply(self._words)
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
                return _decode_models(body)
            if status in _NO_SUCH_PAGE:
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


# --- What is sent ------------------------------------------------------------------------------


def encode_request(prompt: Prompt) -> bytes:
    """The body of a call: a stream is asked for, with a count of tokens at its end."""
    return msgspec.json.encode(
        {
            "model": prompt.model,
            "messages": _chat_messages(prompt.items),
            "stream": True,
            "stream_options": {"include_usage": True},
        }
    )


def _chat_messages(items: Sequence[Item]) -> list[dict[str, Any]]:
    messages: list[dict[str, Any]] = []
    calls: list[dict[str, Any]] | None = None  # of the newest message, while calls follow
    for item in items:
        match item:
            case Message(role=role, text=text):
                messages.append({"role": role, "content": text})
                calls = None
            case ToolCall():
                if calls is None:
                    calls = []
                    messages.append({"role": "assistant", "content": None, "tool_calls": calls})
                calls.append(_tool_call(item))
            case ToolResult(call_id=call_id, output=output):
                messages.append({"role": "tool", "tool_call_id": call_id, "content": output})
                calls = None
            case Reasoning():
                pass
    return messages


def _tool_call(call: ToolCall) -> dict[str, Any]:
    function = {"name": call.name, "arguments": call.arguments}
    return {"id": call.call_id, "type": "function", "function": function}


# --- What comes back ---------------------------------------------------------------------------


class _Delta(msgspec.Struct, gc=False):
    content: Any = None  # text, as a rule


class _Choice(msgspec.Struct, gc=False):
    index: int = 0
    delta: _Delta | None = None
    finish_reason: str | None = None


class _Chunk(msgspec.Struct, gc=False):
    choices: list[_Choice] | None = None
    usage: Any = None
    error: Any = None


_decode_json = msgspec.json.Decoder(_Chunk).decode
_decode_many = msgspec.json.Decoder(list[_Chunk]).decode

_DONE = b"\n\ndata: [DONE]"


def _decode_plain(data: bytes) -> tuple[list[_Chunk], bool] | None:
    """The chunks in `data`, and whether `[DONE]` follows, if it is nothing but plain events.

    Plain are whole events of one `data:` line each, as providers send them: put together they
    are one JSON array, decoded at once. JSON holds no line ends, so nothing else can look like
    the seam between two. None for all that is not so simple, which is then read with care.
    """
    if not (data.startswith(b"data: {") and data.endswith(b"\n\n")):
        return None
    body = data[6:-2]
    done = body.endswith(_DONE)
    if done:
        body = body[: -len(_DONE)]
    try:
        chunks = _decode_many(b"[%b]" % body.replace(b"\n\ndata: ", b","))
    except (ValueError, RecursionError):
        return None
    return None if any(chunk.error is not None for chunk in chunks) else (chunks, done)


def _decode_chunk(data: bytes) -> _Chunk | None:
    """The chunk in `data`, if it is one.

    msgspec refuses JSON with bad UTF-8 and with the escape of a lone surrogate, which some
    models do write; the standard library does not. Neither may fail a turn.
    """
    try:
        return _decode_json(data)
    except (ValueError, RecursionError):
        if not data:  # some keep a connection alive with events of nothing
            return _Chunk()
        with suppress(ValueError, RecursionError):
            return msgspec.convert(json.loads(data.decode("utf-8", "replace")), _Chunk)
        return None


class _IncomingReply:
    """From the bytes of one stream to events, and to the verdict on it.

    Attributes:
        done: `[DONE]` was read.
        over: nothing more needs to be read: done, or something is wrong.
    """

    def __init__(self, words: "_Words") -> None:
        self._words = words
        self._reader = sse.Reader()
        self._fault: ProviderError | None = None
        self._finished = False  # the model said why it stopped: the text is whole
        self._has_events = False
        self._has_text = False
        self.done = False
        self.over = False

    def feed(self, data: bytes) -> list[ProviderEvent]:
        """What these bytes say; a fault among them comes out of `check`, after what preceded it."""
        texts: list[str] = []
        usage: Any = None
        for chunk in self._chunks(data):
            if chunk.choices:
                self._take(chunk.choices, texts)
            usage = chunk.usage or usage
        events: list[ProviderEvent] = []
        if texts:
            self._has_text = True
            events.append(TextDelta(storable("".join(texts))))
        report = _usage_report(usage) if usage is not None else None
        if report is not None:
            events.append(report)
        return events

    def lose(self, fault: ProviderError) -> None:
        """The connection is gone. That matters unless the model had said that it was finished."""
        if not self._finished:
            self._fail(fault)

    def check(self) -> None:
        """Return if this was a whole reply.

        Raises:
            ProviderError: it was not.
        """
        if self._fault is not None:
            raise self._fault
        if not self._has_events:
            raise self._words.fault("provider_malformed", "answered with no event stream")
        if not (self.done or self._finished):
            raise self._words.fault("provider_cut_off", "ended its reply in the middle")
        if not self._has_text:
            raise self._words.fault("provider_empty_reply", "replied without a word")

    def _fail(self, fault: ProviderError) -> None:
        self._fault = fault
        self.over = True

    def _chunks(self, data: bytes) -> Iterable[_Chunk]:
        plain = _decode_plain(data) if self._reader.at_rest else None
        if plain is None:
            return self._read_chunks(data)
        chunks, done = plain
        self._has_events = True
        self.done = self.over = done
        return chunks

    def _read_chunks(self, data: bytes) -> Iterator[_Chunk]:
        for event in self._read(data):
            chunk = self._decode(event)
            if chunk is None:
                return
            yield chunk

    def _read(self, data: bytes) -> list[sse.Event]:
        try:
            return self._reader.feed(data)
        except ValueError:
            self._fail(self._words.fault("provider_malformed", "sent an event without an end"))
            return []

    def _decode(self, event: sse.Event) -> _Chunk | None:
        """The chunk in an event; None when the stream is over with it."""
        self._has_events = True
        data = event.data
        if data == b"[DONE]":
            self.done = self.over = True
            return None
        chunk = _decode_chunk(data)
        if chunk is None:
            self._fail(self._words.fault("provider_malformed", "sent what is no chunk of JSON"))
            return None
        if chunk.error is not None or event.name == "error":
            self._fail(self._words.reported(_json(data)))
            return None
        return chunk

    def _take(self, choices: list[_Choice], texts: list[str]) -> None:
        for choice in choices:
            if choice.index != 0:  # one was asked for
                continue
            if choice.delta is not None and (text := _text_of(choice.delta.content)):
                texts.append(text)
            if choice.finish_reason is not None:
                self._finished = True


def _usage_report(usage: Any) -> UsageReport | None:
    """The provider's count, if it is one: what is no sensible number is no report."""
    if not isinstance(usage, dict):
        return None
    prompt, completion = _count(usage.get("prompt_tokens")), _count(usage.get("completion_tokens"))
    if prompt is None or completion is None:
        return None
    return UsageReport(Usage(prompt, completion))


def _count(number: Any) -> int | None:
    if number is None:
        return 0
    return number if isinstance(number, int) and 0 <= number < _MOST_TOKENS else None


def _text_of(content: Any) -> str:
    """A delta's text; some send a list of parts."""
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else []
    texts = [part.get("text") for part in parts if isinstance(part, dict)]
    return "".join(text for text in texts if isinstance(text, str))


class _Watch:
    """Reads a stream and loses patience with it, with one timer for very many reads.

    Only time spent waiting counts as silence: whoever consumes the reply may be slow.
    """

    def __init__(
        self,
        response: aiohttp.ClientResponse,
        timeouts: Timeouts,
        ends_at: float,
        words: "_Words",
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

    async def read(self, reply: _IncomingReply) -> bytes:
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


# --- What is offered --------------------------------------------------------------------------


class _ListEntry(msgspec.Struct):
    """OpenAI's own list has only ids; the windows are Groq's, OpenRouter's and vLLM's."""

    id: str
    context_window: Any = None
    context_length: Any = None
    max_model_len: Any = None

    @property
    def window(self) -> int | None:
        for tokens in (self.context_window, self.context_length, self.max_model_len):
            if type(tokens) is int and tokens >= _LEAST_WINDOW:
                return tokens
        return None


_NO_SUCH_PAGE = frozenset({404, 405, 501})
_LEAST_WINDOW = 256  # tokens; what claims less means something else


class _List(msgspec.Struct):
    data: list[_ListEntry]


_decode_list = msgspec.json.Decoder(_List | list[_ListEntry]).decode  # some send the bare array


def _decode_models(body: bytes) -> Sequence[ListedModel] | None:
    """The models in an answer, None if it is no list of them."""
    try:
        value = _decode_list(body)
    except (ValueError, RecursionError):
        return None
    models: dict[str, ListedModel] = {}
    for entry in value.data if isinstance(value, _List) else value:
        if 0 < len(entry.id) <= _MODEL_ID and entry.id.isprintable():
            models.setdefault(entry.id, ListedModel(entry.id, entry.window))
    return tuple(models.values())


async def _read_list(response: aiohttp.ClientResponse) -> bytes:
    body = bytearray()
    async for data in response.content.iter_any():
        body += data
        if len(body) > _LIST_BODY:
            break  # and what there is of it is no JSON
    return bytes(body)


# --- What is said about faults -----------------------------------------------------------------


class _Words:
    """Makes the `ProviderError`s of one provider: names it, and keeps its key out of them."""

    def __init__(self, name: str, key: str | None) -> None:
        self.name = name
        self._key = key

    def fault(
        self, code: ProviderFault, what: str, retry_after: float | None = None
    ) -> ProviderError:
        return ProviderError(code, f"{self.name} {what}", retry_after)

    def overdue(self, timeouts: Timeouts) -> ProviderError:
        return self.fault(
            "provider_timeout", f"did not finish its reply within {timeouts.total:g} seconds"
        )

    def silent(self, timeouts: Timeouts) -> ProviderError:
        return self.fault(
            "provider_timeout",
            f"fell silent for {timeouts.between:g} seconds in the middle of its reply",
        )

    def unanswered(self, error: Exception, timeouts: Timeouts) -> ProviderError:
        """For a call that came to no answer at all, or to none that is HTTP."""
        if isinstance(error, aiohttp.ConnectionTimeoutError):
            what = f"took no connection within {timeouts.connect:g} seconds"
            return self.fault("provider_timeout", what)
        if isinstance(error, TimeoutError):
            if timeouts.total < timeouts.first_byte:
                return self.overdue(timeouts)
            what = f"did not begin its reply within {timeouts.first_byte:g} seconds"
            return self.fault("provider_timeout", what)
        for kind, code, what in _UNANSWERED:
            if isinstance(error, kind):
                return self.fault(code, what)
        return self.fault("provider_cut_off", "closed the connection without an answer")

    def unlisted(self, error: Exception, patience: float) -> ProviderError:
        """For a question after models that came to no answer."""
        if isinstance(error, TimeoutError):
            return self.fault(
                "provider_timeout", f"did not list its models within {patience:g} seconds"
            )
        return self.unanswered(error, Timeouts())

    def no_stream(self, status: int, headers: Mapping[str, str], body: bytes) -> ProviderError:
        """For an answer that is not the stream that was asked for."""
        value = _json(body)
        if status == 200:
            if isinstance(value, dict) and value.get("error"):
                return self.reported(value)
            return self.fault("provider_malformed", "answered with JSON in place of a stream")
        code, what = _STATUS.get(status) or _STATUS_CLASS.get(
            status // 100, ("provider_malformed", "gave an answer that HTTP does not know")
        )
        wait = parse_retry_after(headers, time.time()) if code in _WAITABLE else None
        return self.fault(code, f"{what} (status {status}){self._quote(value)}", wait)

    def reported(self, value: Any) -> ProviderError:
        """For an error object where a reply should be."""
        if _is_rate_limit(value):
            return self.fault("provider_rate_limited", f"limits our rate{self._quote(value)}")
        return self.fault("provider_failed", f"reported an error{self._quote(value)}")

    def _quote(self, value: Any) -> str:
        """The other side's own message, in one line of limited length."""
        message = _error_message(value)
        if self._key:
            message = message.replace(self._key, "[key]")
        line = " ".join("".join(c if c.isprintable() else " " for c in message).split())
        if not line:
            return ""
        return f": {line}" if len(line) <= _QUOTE else f": {line[:_QUOTE]}…"


# The first that fits; aiohttp's more special errors stand before their kind.
_UNANSWERED: tuple[tuple[type[Exception], ProviderFault, str], ...] = (
    (
        aiohttp.ClientConnectorCertificateError,
        "provider_unreachable",
        "could not be reached: its certificate is not trusted",
    ),
    (aiohttp.ClientSSLError, "provider_unreachable", "could not be reached: TLS failed"),
    (
        aiohttp.ClientConnectorDNSError,
        "provider_unreachable",
        "could not be reached: its host name is not known",
    ),
    (aiohttp.ClientConnectorError, "provider_unreachable", "could not be reached"),
    (aiohttp.ClientPayloadError, "provider_cut_off", "broke off before the first word"),
    (aiohttp.ClientResponseError, "provider_malformed", "answered with what is not HTTP"),
    (HttpProcessingError, "provider_malformed", "answered with what is not HTTP"),
)

_STATUS: dict[int, tuple[ProviderFault, str]] = {
    401: ("provider_refused", "refused the key"),
    403: ("provider_refused", "refused the key"),
    408: ("provider_timeout", "gave up waiting for the request"),
    429: ("provider_rate_limited", "limits our rate"),
}
_STATUS_CLASS: dict[int, tuple[ProviderFault, str]] = {
    2: ("provider_malformed", "answered without a reply"),
    3: ("provider_failed", "answered with a redirect, which is not followed"),
    4: ("provider_refused", "refused the request"),
    5: ("provider_failed", "failed"),
}
_WAITABLE: frozenset[ProviderFault] = frozenset(
    {"provider_rate_limited", "provider_failed", "provider_timeout"}
)


def parse_retry_after(headers: Mapping[str, str], now: float) -> float | None:
    """Seconds to wait, from `retry-after-ms` or `Retry-After` (seconds, or a date after `now`).

    None if neither can be understood. `now` is in seconds since 1970.
    """
    milliseconds = _number(headers.get("retry-after-ms", ""))
    if milliseconds is not None:
        return min(milliseconds / 1000, _LONGEST_WAIT)
    text = headers.get("Retry-After", "")
    seconds = _number(text)
    try:
        seconds = parsedate_to_datetime(text).timestamp() - now if seconds is None else seconds
    except (ValueError, OverflowError):
        return None
    return min(max(seconds, 0.0), _LONGEST_WAIT)


def _number(text: str) -> float | None:
    """A plain number that is not negative."""
    return float(text) if _NUMBER.fullmatch(text.strip()) else None


_NUMBER = re.compile(r"[0-9]{1,9}(\.[0-9]{0,9})?")


def _json(data: bytes) -> Any:
    try:
        return json.loads(data.decode("utf-8", "replace"))
    except (ValueError, RecursionError):
        return None


def _error_of(value: Any) -> Any:
    return value.get("error", value) if isinstance(value, dict) else None


def _error_message(value: Any) -> str:
    error = _error_of(value)
    message = error.get("message") if isinstance(error, dict) else error
    return message if isinstance(message, str) else ""


def _is_rate_limit(value: Any) -> bool:
    error = _error_of(value)
    if not isinstance(error, dict):
        return False
    marks = (str(error.get(field)) for field in ("code", "type", "status"))
    return any(mark == "429" or "rate_limit" in mark for mark in marks)
