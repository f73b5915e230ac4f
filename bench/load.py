"""The load generator: one process, one job on its standard input, an outcome on its output.

A lean client, so that it is seldom the limit: keep-alive connections on uvloop, one request at a
time on each, answers read by httptools. It reads the server's CPU clock itself, at the moment its
count of turns begins and ends, and checks every answer.
"""

import asyncio
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Iterator
from contextlib import asynccontextmanager
from typing import Literal, cast
from uuid import uuid4

import httptools
import msgspec
import uvloop

from bench.machine import cpu_seconds, memory_mib

TURNS_PER_SESSION = 7  # histories of 0, 2, … 12 messages: six on average
MESSAGE = "Tell me one short thing about the sea, please: why is it salty? " * 2
PATIENCE = 30.0  # seconds without any answer
TELL_EVERY = 5.0  # seconds


class LoadError(Exception):
    """A sentence on what went wrong under load."""


# Jobs and what comes of them


class Target(msgspec.Struct, frozen=True):
    """Where the turns go, and how.

    Attributes:
        direct: to the model server itself, in its own format.
        keyed: each under an idempotency key of its own.
        detached: the way of `bench.detached`, where that is the server.
        dialect: how Turnkeeper is spoken to: in its own, or in OpenAI's chat completions, whose
            clients send all that was said each time; as a session's turn, or with nothing kept;
            or in its responses, each of which names the one before.
    """

    port: int
    pids: list[int]
    expected: str
    direct: bool = False
    keyed: bool = False
    detached: bool = False
    dialect: Literal["own", "chat", "unkept", "responses"] = "own"


class Turns(msgspec.Struct, frozen=True, tag=True):
    """As many turns as will be answered in a time, by clients that each wait for their answer."""

    target: Target
    clients: int
    warm_seconds: float
    seconds: float


class Bursts(msgspec.Struct, frozen=True, tag=True):
    """Turns in bursts on each of the targets in turn, so many `times` and once uncounted before."""

    targets: list[Target]
    clients: int
    seconds: float
    times: int


class Streams(msgspec.Struct, frozen=True, tag=True):
    """Streamed turns: so many for each client, after one that is not counted if it is to `warm`."""

    target: Target
    clients: int
    each: int
    stagger: float  # seconds between the clients' first counted turns
    warm: bool = True


class Visits(msgspec.Struct, frozen=True, tag=True):
    """So many turns in each of these sessions, or in `new` ones."""

    target: Target
    clients: int
    turns: int
    sessions: list[str] = []
    new: int = 0


class Hold(msgspec.Struct, frozen=True, tag=True):
    """So many streams at once, of so many deltas each, whose text is the time they were written.

    They are opened `per_second`; once all have begun and have settled, the time counts.
    """

    target: Target
    streams: int
    deltas: int
    per_second: float
    settle_seconds: float
    seconds: float


Job = Turns | Bursts | Streams | Visits | Hold


class Outcome(msgspec.Struct, tag=True):
    wall: float = 0.0
    server_cpu: float = 0.0
    own_cpu: float = 0.0
    turns: int = 0
    events: int = 0  # events with a piece of the reply in them
    writes: int = 0  # HTTP chunks, in a streamed answer what the server wrote at once
    first_deltas: list[float] = []
    took: list[float] = []  # seconds of each turn, of `Turns`
    sessions: list[str] = []
    held: int = 0  # streams that were open at once, from the first counted moment to the last
    errors: list[str] = []
    memory: float = 0.0  # MiB of the server with all streams open
    costs: list[list[float]] = []  # server's CPU seconds for a turn: of each target, by burst
    delays: list[float] = []  # seconds from the model server's write of a delta to its arrival


class Progress(msgspec.Struct, frozen=True, tag=True):
    done: int


class Failure(msgspec.Struct, frozen=True, tag=True):
    sentence: str


Report = Outcome | Progress | Failure


# The client


class Answer(msgspec.Struct):
    response: str
    session_id: str


class Delta(msgspec.Struct, frozen=True):
    content: str | None = None


class Choice(msgspec.Struct):
    delta: Delta = Delta()
    message: Delta = Delta()


class Completion(msgspec.Struct):
    choices: list[Choice]


class Part(msgspec.Struct):
    text: str


class Item(msgspec.Struct):
    content: list[Part] = []


class Response(msgspec.Struct):
    id: str
    output: list[Item] = []


class Event(msgspec.Struct):
    """A streamed event of any of the servers: the model's own, Flask's or Turnkeeper's."""

    choices: list[Choice] = []
    text: str = ""
    session_id: str = ""
    type: str = ""
    delta: str | None = None
    response: str | Response = ""

    @property
    def piece(self) -> str | None:
        if self.choices:
            return self.choices[0].delta.content
        return self.delta if self.type.startswith("response.") else self.text


READ_ANSWER = msgspec.json.Decoder(Answer)
READ_EVENT = msgspec.json.Decoder(Event)
READ_COMPLETION = msgspec.json.Decoder(Completion)
READ_RESPONSE = msgspec.json.Decoder(Response)
PATHS = {
    "own": "/api/chat",
    "chat": "/v1/chat/completions",
    "unkept": "/v1/chat/completions",
    "responses": "/v1/responses",
}
TO_JSON = msgspec.json.Encoder()


class Exchange:
    """What has come of one request."""

    def __init__(self, streamed: bool) -> None:
        self.streamed = streamed
        self.begun = time.perf_counter()
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.body = b""
        self.pieces: list[str] = []
        self.session_id = ""
        self.first_delta = 0.0
        self.writes = 0

    def feed(self, data: bytes) -> None:
        self.body += data
        if not self.streamed:
            return
        *events, self.body = self.body.split(b"\n\n")
        for event in events:
            self.read_event(event)

    def read_event(self, event: bytes) -> None:
        _, found, data = event.rpartition(b"data:")
        if not found or data.endswith(b"[DONE]"):
            return
        parsed = READ_EVENT.decode(data)
        if parsed.piece:
            self.take(parsed.piece)
        self.session_id = parsed.session_id or self.session_id
        if isinstance(parsed.response, Response):
            self.session_id = parsed.response.id

    def take(self, piece: str) -> None:
        if not self.pieces:
            self.first_delta = time.perf_counter() - self.begun
        self.pieces.append(piece)


class HeldExchange(Exchange):
    """A stream of deltas that say when they were written."""

    def __init__(self, outcome: Outcome) -> None:
        super().__init__(streamed=True)
        self.outcome = outcome

    def take(self, piece: str) -> None:
        now = time.monotonic_ns()
        if not self.pieces:
            self.outcome.held += 1
        self.pieces.append(piece)
        self.outcome.delays += [(now - int(stamp)) / 1e9 for stamp in piece.split()]

    def check(self, deltas: int) -> None:
        """Every delta must have come, in order."""
        stamps = [int(stamp) for stamp in "".join(self.pieces).split()]
        if len(stamps) != deltas or stamps != sorted(stamps):
            raise LoadError(f"A stream had {len(stamps)} of {deltas} deltas, or not in order.")


class Connection(asyncio.Protocol):
    """A keep-alive connection with one request at a time on it."""

    transport: asyncio.Transport

    def __init__(self) -> None:
        self.parser = httptools.HttpResponseParser(self)
        self.exchange: Exchange | None = None
        self.closed = False

    def send(self, request: bytes, exchange: Exchange) -> None:
        self.exchange = exchange
        self.transport.write(request)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)  # uvloop's is of no common class

    def data_received(self, data: bytes) -> None:
        try:
            self.parser.feed_data(data)
        except (httptools.HttpParserError, msgspec.MsgspecError) as error:
            self.fail(f"The server sent what cannot be read: {error}")

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed = True
        self.fail(f"The server closed the connection before it had answered: {exc}")

    def on_chunk_header(self) -> None:
        if self.exchange:
            self.exchange.writes += 1

    def on_body(self, body: bytes) -> None:
        if self.exchange:
            self.exchange.feed(body)

    def on_message_complete(self) -> None:
        self.closed = not self.parser.should_keep_alive()
        status = self.parser.get_status_code()
        if status != 200:
            body = self.exchange.body if self.exchange else b""
            self.fail(f"The server answered {status}: {body[:300].decode(errors='replace')}")
            return
        exchange, self.exchange = self.exchange, None
        if exchange and not exchange.done.done():
            exchange.done.set_result(None)

    def fail(self, sentence: str) -> None:
        exchange, self.exchange = self.exchange, None
        if exchange and not exchange.done.done():
            exchange.done.set_exception(LoadError(sentence))


class Client:
    """Someone who talks to a server: sends a message, waits for the answer, checks it."""

    def __init__(self, target: Target, outcome: Outcome, streamed: bool = False) -> None:
        self.target = target
        self.outcome = outcome
        self.streamed = streamed
        self.connection: Connection | None = None
        self.session_id = ""
        self.said: list[dict[str, str]] = []  # in the session, where all of it is sent each time
        path = "/v1/chat/completions" if target.direct else PATHS[target.dialect]
        path += "?detached" * target.detached
        self.head = (
            f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1:{target.port}\r\n"
            "Content-Type: application/json\r\nContent-Length: "
        ).encode()

    async def take_turn(self) -> None:
        """One turn in the client's session, or in a new one if it has none."""
        exchange = Exchange(self.streamed)
        begun = time.perf_counter()
        await self.ask(exchange)
        took = time.perf_counter() - begun
        if self.streamed:
            text = "".join(exchange.pieces)
            self.session_id = exchange.session_id or self.session_id
            self.outcome.events += len(exchange.pieces)
            self.outcome.writes += exchange.writes - 1  # the last, empty chunk is the end
            self.outcome.first_deltas.append(exchange.first_delta)
        else:
            text = self.read(exchange.body)
            self.outcome.took.append(took)
        if text != self.target.expected:
            raise LoadError(f"The server answered {text[:100]!r}, the model had said otherwise.")
        self.said.append({"role": "assistant", "content": text})
        self.outcome.turns += 1

    def read(self, body: bytes) -> str:
        """The reply in an answer that came whole."""
        if self.target.dialect == "responses":
            response = READ_RESPONSE.decode(body)
            self.session_id = response.id
            return response.output[0].content[0].text
        if self.target.dialect != "own":
            return READ_COMPLETION.decode(body).choices[0].message.content or ""
        answer = READ_ANSWER.decode(body)
        self.session_id = answer.session_id
        return answer.response

    async def ask(self, exchange: Exchange) -> None:
        """Send the message; returns when the answer is complete."""
        if self.connection is None or self.connection.closed:
            loop = asyncio.get_running_loop()
            _, self.connection = await loop.create_connection(
                Connection, "127.0.0.1", self.target.port
            )
        body = self.body()
        key = b"\r\nIdempotency-Key: %b" % str(uuid4()).encode() if self.target.keyed else b""
        self.connection.send(b"%b%d%b\r\n\r\n%b" % (self.head, len(body), key, body), exchange)
        await exchange.done

    def body(self) -> bytes:
        if self.target.direct:
            messages = [{"role": "user", "content": MESSAGE}]
            return TO_JSON.encode({"model": "bench-model", "messages": messages, "stream": True})
        if self.target.dialect == "responses":
            return self.response()
        if self.target.dialect != "own":
            return self.completion()
        said: dict[str, object] = {"message": MESSAGE}
        if self.session_id:
            said["session_id"] = self.session_id
        if self.streamed:
            said["stream"] = True
        return TO_JSON.encode(said)

    def response(self) -> bytes:
        asked: dict[str, object] = {"model": "bench-model", "input": MESSAGE}
        if self.session_id:
            asked["previous_response_id"] = self.session_id
        if self.streamed:
            asked["stream"] = True
        return TO_JSON.encode(asked)

    def completion(self) -> bytes:
        if not self.session_id:
            self.session_id, self.said = str(uuid4()), []
        self.said.append({"role": "user", "content": MESSAGE})
        asked: dict[str, object] = {"model": "bench-model", "messages": self.said}
        if self.target.dialect == "chat":
            asked["metadata"] = {"session_id": self.session_id}
        if self.streamed:
            asked["stream"] = True
        return TO_JSON.encode(asked)

    async def sessions_of_seven(self, turns: int | None, first: int = 0) -> None:
        """So many turns, or without end; a new session after every seventh."""
        number = first
        while turns is None or number < first + turns:
            if number % TURNS_PER_SESSION == 0:
                self.session_id = ""
            await self.take_turn()
            number += 1


# The jobs


@asynccontextmanager
async def measured(outcome: Outcome, pids: list[int]) -> AsyncIterator[None]:
    """Counts only what happens inside."""
    blank = Outcome()
    for field in outcome.__struct_fields__:
        setattr(outcome, field, getattr(blank, field))
    wall, own, cpu = time.perf_counter(), time.process_time(), cpu_seconds(pids)
    yield
    outcome.server_cpu = cpu_seconds(pids) - cpu
    outcome.wall, outcome.own_cpu = time.perf_counter() - wall, time.process_time() - own


async def run_turns(job: Turns, outcome: Outcome) -> Outcome:
    clients = [Client(job.target, outcome) for _ in range(job.clients)]
    async with asyncio.TaskGroup() as group:
        tasks = [
            group.create_task(client.sessions_of_seven(None, first=number))
            for number, client in enumerate(clients)
        ]
        await asyncio.sleep(job.warm_seconds)
        async with measured(outcome, job.target.pids):
            await asyncio.sleep(job.seconds)
        counted = msgspec.structs.replace(outcome)
        for task in tasks:
            task.cancel()
    return counted


async def run_bursts(job: Bursts, outcome: Outcome) -> Outcome:
    ways = [[Client(target, outcome) for _ in range(job.clients)] for target in job.targets]
    numbers = {client: number for clients in ways for number, client in enumerate(clients)}
    costs: list[list[float]] = [[] for _ in ways]

    async def keep_busy(client: Client, until: float) -> None:
        while time.monotonic() < until:
            await client.sessions_of_seven(1, first=numbers[client])
            numbers[client] += 1

    for time_ in range(job.times + 1):
        order = list(zip(job.targets, ways, costs, strict=True))
        for target, clients, cost in order[:: -1 if time_ % 2 else 1]:  # nobody always the first
            cpu, turns = cpu_seconds(target.pids), outcome.turns
            until = time.monotonic() + job.seconds
            await together(keep_busy(client, until) for client in clients)
            if time_:
                cost.append((cpu_seconds(target.pids) - cpu) / (outcome.turns - turns))
    outcome.costs = costs
    return outcome


async def run_streams(job: Streams, outcome: Outcome) -> Outcome:
    clients = [Client(job.target, outcome, streamed=True) for _ in range(job.clients)]
    if job.warm:
        await together(client.take_turn() for client in clients)

    async def later(number: int, client: Client) -> None:
        await asyncio.sleep(number * job.stagger)
        await client.sessions_of_seven(job.each)

    async with measured(outcome, job.target.pids):
        await together(later(number, client) for number, client in enumerate(clients))
    return outcome


async def run_visits(job: Visits, outcome: Outcome) -> Outcome:
    waiting = iter(job.sessions or [""] * job.new)
    visited: list[str] = []

    async def visit(client: Client) -> None:
        for client.session_id in waiting:
            for _ in range(job.turns):
                await client.take_turn()
            visited.append(client.session_id)

    clients = [Client(job.target, outcome) for _ in range(job.clients)]
    async with measured(outcome, job.target.pids):
        await together(visit(client) for client in clients)
    outcome.sessions = visited
    return outcome


async def run_hold(job: Hold, outcome: Outcome) -> Outcome:
    errors: list[str] = []
    ended = 0

    async def hold(number: int) -> None:
        nonlocal ended
        await asyncio.sleep(number / job.per_second)
        exchange = HeldExchange(outcome)
        try:
            await Client(job.target, outcome, streamed=True).ask(exchange)
            exchange.check(job.deltas)
        except (LoadError, OSError) as error:
            errors.append(str(error))
        ended += 1

    streams = asyncio.gather(*(hold(number) for number in range(job.streams)))
    patience = time.monotonic() + 2 * job.streams / job.per_second + PATIENCE
    while outcome.held + ended < job.streams and time.monotonic() < patience:  # noqa: ASYNC110
        await asyncio.sleep(0.05)
    await asyncio.sleep(job.settle_seconds)
    begun = outcome.held
    async with measured(outcome, job.target.pids):
        outcome.held = begun
        await asyncio.sleep(job.seconds)
    counted = msgspec.structs.replace(outcome, delays=list(outcome.delays))
    counted.held = begun - ended
    counted.memory = memory_mib(job.target.pids)
    await streams
    counted.errors = errors[:5]
    counted.turns = job.streams - len(errors)
    return counted


async def together(doings: Iterator[Awaitable[None]]) -> None:
    await asyncio.gather(*doings)


async def run(job: Job) -> Outcome:
    outcome = Outcome()
    telling = asyncio.create_task(tell_progress(outcome))
    try:
        match job:
            case Turns():
                return await run_turns(job, outcome)
            case Bursts():
                return await run_bursts(job, outcome)
            case Streams():
                return await run_streams(job, outcome)
            case Visits():
                return await run_visits(job, outcome)
            case Hold():
                return await run_hold(job, outcome)
    finally:
        telling.cancel()


async def tell_progress(outcome: Outcome) -> None:
    """A line now and then; ends the process when nothing has come for a while."""
    last, since = (-1, -1), time.monotonic()
    while True:
        await asyncio.sleep(TELL_EVERY)
        if (outcome.turns, len(outcome.delays)) != last:
            last, since = (outcome.turns, len(outcome.delays)), time.monotonic()
        elif time.monotonic() - since > PATIENCE:
            tell(Failure(f"Nothing came in {PATIENCE:.0f} seconds."))
            raise SystemExit(1)
        tell(Progress(outcome.held or outcome.turns))


def tell(report: Report) -> None:
    sys.stdout.buffer.write(TO_JSON.encode(report) + b"\n")
    sys.stdout.buffer.flush()


def main() -> None:
    job = msgspec.json.decode(sys.stdin.buffer.read(), type=Job)
    try:
        tell(uvloop.run(run(job)))
    except* (LoadError, OSError, msgspec.MsgspecError) as group:
        error: BaseException = group
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        tell(Failure(str(error)))
        raise SystemExit(1) from None


if __name__ == "__main__":
    main()
