"""A model that does as it is told: a small real HTTP server in the dialect of OpenAI.

Serves `POST /v1/chat/completions`, streamed and whole, and `GET /v1/models`. In a test it runs
in the test's own loop and plays a `Plan` for each call, faults included; as a process
(`python -m rig.model_server`) it answers a benchmark. Knows nothing of Turnkeeper.

    async with ModelServer() as model:
        model.script = lambda call: Plan(deltas=("Hel", "lo"), at={1: Wait(gate)})

It takes HTTP/1.1 with `Content-Length` bodies, one call at a time on each connection.
"""

import asyncio
import itertools
import json
import re
import socket
import struct
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from http import HTTPStatus
from typing import Any, Literal, Self, cast

import click
import msgspec
import uvloop

# --- What a test tells the model to do ---------------------------------------------------------


@dataclass(frozen=True)
class Send:
    """Write these bytes to the socket as they are, in one write."""

    data: bytes


@dataclass(frozen=True)
class Stamp:
    """Write these bytes with the time between them: nanoseconds of the machine's own clock."""

    before: bytes
    after: bytes


@dataclass(frozen=True)
class Sleep:
    """Do nothing for so many seconds."""

    seconds: float


@dataclass(frozen=True)
class Wait:
    """Do nothing until the test sets `event`."""

    event: asyncio.Event


@dataclass(frozen=True)
class Hang:
    """Do nothing for ever: until the client goes away."""


@dataclass(frozen=True)
class Cut:
    """Close the connection, as a process does that ends in good order (FIN)."""


@dataclass(frozen=True)
class Reset:
    """Break the connection (RST)."""


Step = Send | Stamp | Sleep | Wait | Hang | Cut | Reset
Usage = Literal["extra", "last", "none"]

BEFORE = -1  # before any byte of the answer
HEAD = 0  # after the headers, before the first delta; n is after the nth delta
FINISHED = 1_000_000  # after [DONE], before the end of the body


@dataclass(frozen=True)
class CallOf:
    """A tool that the model calls, with its arguments in the pieces they come in."""

    name: str
    arguments: Sequence[str] = ("{}",)
    id: str = "call_1"


@dataclass(frozen=True, eq=False, kw_only=True)
class Plan:
    """How one call is answered. As it stands: a proper reply of two words, each in its own write.

    Attributes:
        deltas: the pieces of the reply's text.
        reasoning: the pieces of what is thought before it, under the name `reasoning_name`.
        refusal: the pieces of a refusal, after it.
        tool_calls: the tools that are called, after that.
        at: steps to take in the middle of the answer, by place: `BEFORE`, `HEAD`, n for after
            the nth delta, `FINISHED`. After a `Hang`, `Cut` or `Reset` nothing more is sent.
        first_delay, delta_delay: seconds before the headers, and between deltas.
        stamped: a streamed delta's text is the time of its write in place of its own.
        one_write: the whole stream leaves in a single write.
        role_first, null_first: a first chunk with the role, or with `content: null`, and no text.
        extra_fields: every chunk carries fields that OpenAI's documents do not name.
        finish_reason: what the finishing chunk says; None for no such chunk.
        usage: in a chunk of its own after the finishing one, in the last chunk with text, or none.
        errors: objects sent as chunks of the stream after the deltas.
        chunks: bytes sent as the data of an event each, as they are, after the deltas.
        done: whether `[DONE]` ends the stream.
        split: the stream's bytes are cut at these positions, one write each.
        status, headers, body: with a `body` (bytes, or what becomes JSON), that is the answer,
            of this status, in place of a reply. The headers go with either.
        raw: with these, they are everything that is sent, one write each, HTTP or not.
    """

    deltas: Sequence[str] = ("Hello ", "there")
    reasoning: Sequence[str] = ()
    reasoning_name: str = "reasoning_content"
    refusal: Sequence[str] = ()
    tool_calls: Sequence[CallOf] = ()
    at: Mapping[int, Step] = field(default_factory=dict)
    first_delay: float = 0
    delta_delay: float = 0
    stamped: bool = False
    one_write: bool = False
    role_first: bool = True
    null_first: bool = False
    extra_fields: bool = False
    finish_reason: str | None = "stop"
    usage: Usage = "extra"
    errors: Sequence[Any] = ()
    chunks: Sequence[bytes] = ()
    done: bool = True
    split: Sequence[int] = ()
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    body: Any = None
    raw: Sequence[bytes] = ()

    @cached_property
    def streamed(self) -> tuple[Step, ...]:
        """The steps that answer a call for a stream."""
        return _steps(self, _head(self, "text/event-stream", None), _stream(self))

    @cached_property
    def whole(self) -> tuple[Step, ...]:
        """The steps that answer a call for the whole reply."""
        body = msgspec.json.encode(_completion(self))
        return _steps(self, _head(self, "application/json", len(body)), [Send(body)])


@dataclass(frozen=True)
class Call:
    """A request for a completion as it arrived. `number` counts from 1; header names are lower."""

    number: int
    headers: dict[str, str]
    body: Any

    @property
    def last_user_message(self) -> str:
        """The text of the newest message of a user, or nothing."""
        contents = [m["content"] for m in self.body["messages"] if m["role"] == "user"]
        newest = contents[-1] if contents else ""
        if isinstance(newest, str):
            return newest
        return "".join(part["text"] for part in newest if part["type"] == "text")


Script = Callable[[Call], Plan]


def model_list(*entries: str | Mapping[str, Any]) -> dict[str, Any]:
    """What OpenAI answers to `GET /v1/models`; an entry is an id, or whatever a test wants."""
    models = [
        {"id": entry, "object": "model"} if isinstance(entry, str) else entry for entry in entries
    ]
    return {"object": "list", "data": models}


def echo(call: Call) -> Plan:
    """Say what was said, word by word."""
    text = f"You said: {call.last_user_message}"
    return Plan(deltas=tuple(re.findall(r"\s*\S+", text)))


# --- From a plan to steps ----------------------------------------------------------------------


def _steps(plan: Plan, head: bytes, rest: Sequence[Step]) -> tuple[Step, ...]:
    steps: list[Step] = [Sleep(plan.first_delay)] if plan.first_delay else []
    steps += [plan.at[BEFORE]] if BEFORE in plan.at else []
    if plan.raw:
        steps += [*map(Send, plan.raw), Cut()]
    elif plan.body is not None:
        body = plan.body if isinstance(plan.body, bytes) else msgspec.json.encode(plan.body)
        steps += [Send(_head(plan, "application/json", len(body)) + body)]
    else:
        steps += [Send(head), *rest]
    if plan.headers.get("connection") == "close":
        steps += [Cut()]
    return tuple(_merge(steps) if plan.one_write else steps)


def _head(plan: Plan, content_type: str, length: int | None) -> bytes:
    framing = {"transfer-encoding": "chunked"} if length is None else {"content-length": length}
    headers = {"content-type": content_type, **framing, **plan.headers}
    lines = [f"HTTP/1.1 {plan.status} {HTTPStatus(plan.status).phrase}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


def _merge(steps: Sequence[Step]) -> list[Step]:
    """The same steps, with neighbouring writes as one."""
    merged: list[Step] = []
    for is_send, group in itertools.groupby(steps, key=lambda step: isinstance(step, Send)):
        if is_send:
            merged.append(Send(b"".join(step.data for step in group if isinstance(step, Send))))
        else:
            merged.extend(group)
    return merged


def _stream(plan: Plan) -> list[Step]:
    """The body of a stream: each event one chunk of HTTP and one write, unless it is split."""
    events = list(_events(plan))
    if plan.split:
        data = b"".join(event for event in events if isinstance(event, bytes))
        edges = [0, *plan.split, len(data)]
        pieces = [data[a:b] for a, b in itertools.pairwise(edges) if a < b]
        # The pause lets a client, even in the same loop, read each piece by itself.
        events = [step for piece in pieces for step in (piece, Sleep(0.001))]
    steps = [Send(_http_chunk(event)) if isinstance(event, bytes) else event for event in events]
    return [*steps, Send(b"0\r\n\r\n")]


def _http_chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def _events(plan: Plan) -> Iterator[bytes | Step]:
    """What happens after the headers: events as bytes, and steps where the plan has them."""
    if HEAD in plan.at:
        yield plan.at[HEAD]
    if plan.role_first:
        yield _chunk(plan, {"role": "assistant", "content": ""})
    if plan.null_first:
        yield _chunk(plan, {"role": "assistant", "content": None})
    yield from (_chunk(plan, {plan.reasoning_name: piece}) for piece in plan.reasoning)
    for number, delta in enumerate(plan.deltas, start=1):
        if plan.delta_delay and number > 1:
            yield Sleep(plan.delta_delay)
        usage = _usage(plan) if plan.usage == "last" and number == len(plan.deltas) else None
        yield _stamp(plan) if plan.stamped else _chunk(plan, {"content": delta}, usage=usage)
        if number in plan.at:
            yield plan.at[number]
    yield from (_chunk(plan, {"refusal": piece}) for piece in plan.refusal)
    for index, call in enumerate(plan.tool_calls):
        yield from _call_chunks(plan, index, call)
    yield from map(_event, plan.chunks)
    yield from (_event(msgspec.json.encode(error)) for error in plan.errors)
    yield from _ending(plan)


def _call_chunks(plan: Plan, index: int, call: CallOf) -> Iterator[bytes]:
    function = {"name": call.name, "arguments": ""}
    begun = {"index": index, "id": call.id, "type": "function", "function": function}
    yield _chunk(plan, {"tool_calls": [begun]})
    for piece in call.arguments:
        more = {"index": index, "function": {"arguments": piece}}
        yield _chunk(plan, {"tool_calls": [more]})


_TIME = b"%020d"  # a place of fixed width, since the chunk's length goes before it


def _stamp(plan: Plan) -> Stamp:
    place = _TIME % 0
    before, _, after = _http_chunk(_chunk(plan, {"content": f"{place.decode()} "})).partition(place)
    return Stamp(before, after)


def _ending(plan: Plan) -> Iterator[bytes | Step]:
    if plan.finish_reason is not None:
        yield _chunk(plan, {}, plan.finish_reason)
    if plan.usage == "extra":
        yield _event(msgspec.json.encode({**_ENVELOPE, "choices": [], "usage": _usage(plan)}))
    if plan.done:
        yield _event(b"[DONE]")
    if FINISHED in plan.at:
        yield plan.at[FINISHED]


_ENVELOPE = {
    "id": "chatcmpl-1",
    "object": "chat.completion.chunk",
    "created": 1_700_000_000,
    "model": "scripted",
}
_EXTRA_FIELDS = {
    "system_fingerprint": "fp_1",
    "service_tier": "default",
    "x_groq": {"id": "req_1", "seed": 1},
    "obfuscation": "aB3",
}


def _event(data: bytes) -> bytes:
    return b"data: %b\n\n" % data


def _chunk(
    plan: Plan,
    delta: Mapping[str, Any],
    finish_reason: str | None = None,
    usage: Mapping[str, int] | None = None,
) -> bytes:
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
    chunk = {**_ENVELOPE, "choices": [choice]}
    chunk |= _EXTRA_FIELDS if plan.extra_fields else {}
    chunk |= {"usage": usage} if usage else {}
    # Lone surrogates, which a test may plan, leave as the escapes they are in JSON.
    return _event(json.dumps(chunk, separators=(",", ":")).encode())


def _usage(plan: Plan) -> dict[str, int]:
    count = len(plan.deltas)
    return {"prompt_tokens": 7, "completion_tokens": count, "total_tokens": 7 + count}


def _completion(plan: Plan) -> dict[str, Any]:
    message = {"role": "assistant", "content": "".join(plan.deltas)}
    choice = {"index": 0, "message": message, "finish_reason": plan.finish_reason}
    usage = {"usage": _usage(plan)} if plan.usage != "none" else {}
    return {**_ENVELOPE, "object": "chat.completion", "choices": [choice], **usage}


# --- The server --------------------------------------------------------------------------------


class ModelServer:
    """Listens on 127.0.0.1 while it is entered.

    Attributes:
        script: from a call to the plan of its answer; may be changed at any time.
        listing: the plan of what `GET /v1/models` answers, of which `status`, `body`, `raw`,
            `first_delay` and the step `BEFORE` count; may be changed at any time.
        list_headers: of each call for it, in order of arrival.
        base_url: what a client takes as its base, `/v1` included.
        requests: the calls so far in order of arrival; stays empty without `record`.
        calls, open_calls: how many arrived, how many are being answered now.
        disconnects: how many calls the client left before their answer was all written.
        connections, open_connections: how many were made, how many are open now.
    """

    def __init__(self, script: Script = echo, *, port: int = 0, record: bool = True) -> None:
        self.script = script
        self.listing = Plan(body=model_list("scripted"))
        self.list_headers: list[dict[str, str]] = []
        self.base_url = ""
        self.requests: list[Call] = []
        self.calls = self.open_calls = self.disconnects = 0
        self.connections = 0
        self._port = port
        self._record = record
        self._open: set[_Connection] = set()
        self._waiters: set[asyncio.Future[None]] = set()

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(
            lambda: _Connection(self), "127.0.0.1", self._port, backlog=4096
        )
        self._port = self._server.sockets[0].getsockname()[1]
        self.base_url = f"http://127.0.0.1:{self._port}/v1"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for connection in list(self._open):
            connection.abort()
        await self.wait_until(lambda: not self._open)
        await self._server.wait_closed()

    @property
    def open_connections(self) -> int:
        return len(self._open)

    async def wait_for_calls(self, count: int) -> None:
        """Return when `count` calls have arrived in all."""
        await self.wait_until(lambda: self.calls >= count)

    async def wait_for_disconnects(self, count: int) -> None:
        """Return when clients have left `count` calls before their end."""
        await self.wait_until(lambda: self.disconnects >= count)

    async def wait_until(self, condition: Callable[[], bool]) -> None:
        """Return when `condition`, of this server's counters, holds."""
        while not condition():
            changed = asyncio.get_running_loop().create_future()
            self._waiters.add(changed)
            try:
                await changed
            finally:
                self._waiters.discard(changed)

    def _changed(self) -> None:
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)

    # What connections report.

    def connection_made(self, connection: "_Connection") -> None:
        self._open.add(connection)
        self.connections += 1
        self._changed()

    def connection_lost(self, connection: "_Connection") -> None:
        self._open.discard(connection)
        self._changed()

    def call_began(self, headers: dict[str, str], body: bytes) -> tuple[Step, ...]:
        self.calls += 1
        self.open_calls += 1
        call = Call(self.calls, headers, msgspec.json.decode(body))
        if self._record:
            self.requests.append(call)
        plan = self.script(call)
        self._changed()
        return plan.streamed if call.body.get("stream") else plan.whole

    def list_began(self, headers: dict[str, str]) -> tuple[Step, ...]:
        self.open_calls += 1
        self.list_headers.append(headers)
        self._changed()
        return self.listing.whole

    def call_ended(self, *, by_client: bool = False) -> None:
        self.open_calls -= 1
        self.disconnects += by_client
        self._changed()


_TLS_HELLO = b"\x16\x03"


class _Connection(asyncio.Protocol):
    """One connection: takes requests in turn, plays the steps of each answer."""

    def __init__(self, server: ModelServer) -> None:
        self._server = server
        self._received = b""
        self._playing: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is none by inheritance
        self._server.connection_made(self)

    def data_received(self, data: bytes) -> None:
        self._received += data
        self._answer_all()

    def connection_lost(self, _: Exception | None) -> None:
        if self._playing is not None:
            self._playing.cancel()
            self._playing = None
            self._server.call_ended(by_client=True)
        self._server.connection_lost(self)

    def abort(self) -> None:
        self._transport.abort()

    def _answer_all(self) -> None:
        while self._playing is None and (request := self._take_request()) is not None:
            self._answer(*request)

    def _take_request(self) -> tuple[str, dict[str, str], bytes] | None:
        """The request line, headers and body of the next request, once it is all there."""
        if self._received.startswith(_TLS_HELLO):
            self._transport.write(_NOT_HTTP)
            self._transport.close()
        head, found, rest = self._received.partition(b"\r\n\r\n")
        if not found:
            return None
        line, _, fields = head.decode("latin-1").partition("\r\n")
        pairs = (field.partition(":") for field in fields.split("\r\n"))
        headers = {name.lower(): value.strip() for name, _, value in pairs}
        length = int(headers.get("content-length", 0))
        if len(rest) < length:
            return None
        self._received = rest[length:]
        return line, headers, rest[:length]

    def _answer(self, line: str, headers: dict[str, str], body: bytes) -> None:
        route = line.rpartition(" ")[0]
        if route == "GET /v1/models":
            steps = self._server.list_began(headers)
        elif route == "POST /v1/chat/completions":
            steps = self._server.call_began(headers, body)
        else:
            self._transport.write(_NOT_FOUND)
            return
        sends = [step.data for step in steps if isinstance(step, Send)]
        if len(sends) == len(steps):  # no need of a task
            for data in sends:
                self._transport.write(data)
            self._server.call_ended()
        else:
            self._playing = asyncio.get_running_loop().create_task(self._play(steps))

    async def _play(self, steps: Sequence[Step]) -> None:
        for step in steps:
            match step:
                case Send(data):
                    self._transport.write(data)
                case Stamp(before, after):
                    self._transport.write(before + _TIME % time.monotonic_ns() + after)
                case Sleep(seconds):
                    await asyncio.sleep(seconds)
                case Wait(event):
                    await event.wait()
                case Hang():
                    await asyncio.get_running_loop().create_future()
                case Cut():
                    self._transport.close()
                case Reset():
                    self._reset()
            if self._transport.is_closing():
                break
        self._playing = None
        self._server.call_ended()
        self._answer_all()

    def _reset(self) -> None:
        linger = struct.pack("ii", 1, 0)  # none: what is unsent is dropped, and RST goes out
        sock = self._transport.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self._transport.abort()


def _json_answer(status: int, value: object) -> bytes:
    body = msgspec.json.encode(value)
    return _head(Plan(status=status), "application/json", len(body)) + body


_NOT_HTTP = _json_answer(400, {"error": {"message": "this is an HTTP server"}})
_NOT_FOUND = _json_answer(404, {"error": {"message": "no such page"}})


# --- As a process, for benchmarks --------------------------------------------------------------


async def _serve(plan: Plan, port: int) -> None:
    async with ModelServer(lambda _: plan, port=port, record=False) as server:
        print(f"listening on {server.base_url}", flush=True)
        await asyncio.get_running_loop().create_future()


@click.command()
@click.option("--port", default=0, help="0 takes a free one.")
@click.option("--deltas", default=200, help="Pieces of text in each reply.")
@click.option("--first-delay", default=0.0, help="Seconds before the headers.")
@click.option("--delta-delay", default=0.0, help="Seconds between deltas.")
@click.option("--stamped", is_flag=True, help="A delta's text is the time of its write.")
@click.option("--one-write", is_flag=True, help="Send each stream in a single write.")
def main(
    *,
    port: int,
    deltas: int,
    first_delay: float,
    delta_delay: float,
    stamped: bool,
    one_write: bool,
) -> None:
    """Answer every call alike, until killed."""
    plan = Plan(
        deltas=tuple(f"word{number} " for number in range(deltas)),
        first_delay=first_delay,
        delta_delay=delta_delay,
        stamped=stamped,
        one_write=one_write,
    )
    uvloop.run(_serve(plan, port))


if __name__ == "__main__":
    main()
