"""WebSocket mode: responses asked for, and told, in messages of one connection.

A message that asks for a response is the body of `POST /v1/responses` with a `type`; it is told of
in the events of a stream, each a message of its own. Requests of one lane (`stream_id`) are
answered one after another, those of several lanes at once. What is stored nowhere can be gone on
from for as long as the connection remembers it (`memory`).

From OpenAI's guide to WebSocket mode and the Open Responses specification of 2026-04-24.
"""

import asyncio
import logging
import math
import re
from collections import deque

import msgspec

from turnkeeper.dialects.exchange import (
    WEBSOCKET,
    Call,
    End,
    Parts,
    Route,
    Upgrade,
    Wire,
    encode_json,
)
from turnkeeper.dialects.openai.errors import WrongParameter, error_body, status_of
from turnkeeper.dialects.openai.ids import response_id
from turnkeeper.dialects.openai.items import check_items, resolve_items
from turnkeeper.dialects.openai.parameters import decode_body, unsupported
from turnkeeper.dialects.openai.responses.events import OPENED, Fold, as_json
from turnkeeper.dialects.openai.responses.memory import Context, Memory
from turnkeeper.dialects.openai.responses.request import (
    CreateRequest,
    Wanted,
    make_wanted,
    no_previous,
)
from turnkeeper.dialects.openai.responses.running import Running, begin
from turnkeeper.dialects.openai.responses.shape import encode_echo, items_of
from turnkeeper.domain import Failure, TurnRef, TurnStatus
from turnkeeper.errors import (
    InvalidRequest,
    RateLimited,
    StoreUnavailable,
    TurnkeeperError,
    TurnNotFound,
)
from turnkeeper.events import Ended

log = logging.getLogger(__name__)

AT_ONCE = 16  # responses that one connection has made at the same time
LANES = 32  # with a name, on one connection
WAITING = 64  # requests that wait for those before them
WAITING_BYTES = 8_388_608  # of those

_STREAM_ID = re.compile(r"[A-Za-z0-9_.-]{1,256}")
_MISTAKE = Failure("internal_error", "The server made a mistake")


class CreateMessage(CreateRequest):
    """`response.create`: what it may say beside what a request's body may.

    That is streamed is understood here, so `stream` and `background` make no difference.
    """

    type: str = ""
    stream_id: str | None = None
    generate: bool | None = None


class _Envelope(msgspec.Struct):
    """What any message has, whatever it is."""

    type: msgspec.Raw = msgspec.Raw(b"null")
    stream_id: msgspec.Raw = msgspec.Raw(b"null")


_message = msgspec.json.Decoder(CreateMessage)
_envelope = msgspec.json.Decoder(_Envelope)


async def open_socket(parts: Parts, call: Call) -> Upgrade:
    """Have a client in for as long as it likes to ask for responses.

    Raises:
        InvalidRequest: the handshake has an idempotency key, which would name all of them.
    """
    if call.header(b"idempotency-key"):
        raise InvalidRequest("An Idempotency-Key names one request; a WebSocket carries many")
    return Upgrade(lambda wire: _Connection(parts, call, wire).talk())


class _Lane:
    """Requests that are answered one after another. `name` None is for those that name none."""

    def __init__(self, name: str | None) -> None:
        self.name = name
        self.waiting: deque[bytes] = deque()
        self.task: asyncio.Task[None] | None = None
        self._mark = b"" if name is None else b'{"stream_id":%b,' % encode_json(name)

    def mark(self, event: bytes) -> bytes:
        """The event with the lane's name in it, if it has one."""
        return self._mark + event[1:] if self._mark else event


class _Connection:
    """What goes on between one client and us, from when it was let in."""

    def __init__(self, parts: Parts, call: Call, wire: Wire) -> None:
        self._parts = parts
        self._call = call
        self._wire = wire
        self._memory = Memory()
        self._lanes: dict[str | None, _Lane] = {}
        self._places = asyncio.Semaphore(AT_ONCE)
        self._is_ending = False

    async def talk(self) -> None:
        """Answer requests until no more come; what is stored goes on without the client."""
        try:
            end = await self._listen()
            self._is_ending = True
            if end is not End.GONE:
                await asyncio.gather(*self._tasks())
            if end is End.EXPIRED:
                await self._tell(None, _expired())
        finally:
            for task in self._tasks():
                task.cancel()
            await asyncio.gather(*self._tasks(), return_exceptions=True)

    def _tasks(self) -> list[asyncio.Task[None]]:
        return [lane.task for lane in self._lanes.values() if lane.task is not None]

    async def _listen(self) -> End:
        while True:
            try:
                message = await self._wire.receive()
            except RateLimited as error:
                await self._tell(None, _encode_error(error))
                continue
            except TurnkeeperError as error:  # the client may ask for nothing any more
                await self._tell(None, _encode_error(error))
                return End.GONE
            if isinstance(message, End):
                return message
            await self._take(message.encode())

    async def _tell(self, lane: _Lane | None, event: bytes) -> None:
        await self._wire.send(event if lane is None else lane.mark(event))

    # --- Requests that wait ---------------------------------------------------------------------

    async def _take(self, message: bytes) -> None:
        """Have a request wait in its lane, and see that the lane is at work."""
        lane = None
        try:
            lane = self._find_lane(decode_body(_envelope, message))
            self._check_waiting()
        except TurnkeeperError as error:
            await self._tell(lane, _encode_error(error))
            return
        lane.waiting.append(message)
        if lane.task is None or lane.task.done():
            lane.task = asyncio.create_task(self._work(lane))

    def _find_lane(self, envelope: _Envelope) -> _Lane:
        type_, name = msgspec.json.decode(envelope.type), msgspec.json.decode(envelope.stream_id)
        if type_ != "response.create":
            raise WrongParameter(
                f"Only events of the type response.create are taken, not {str(type_)[:100]}", "type"
            )
        if name is not None and not (isinstance(name, str) and _STREAM_ID.fullmatch(name)):
            raise WrongParameter(
                "stream_id must be 1 to 256 letters, digits and . _ -",
                "stream_id",
                "invalid_stream_id",
            )
        lane = self._lanes.get(name)
        if lane is None:
            if name is not None and len(self._lanes.keys() - {None}) >= LANES:
                raise WrongParameter(
                    f"A connection has at most {LANES} stream_ids: use one again, or connect anew",
                    "stream_id",
                    "websocket_stream_limit_reached",
                )
            lane = self._lanes[name] = _Lane(name)
        return lane

    def _check_waiting(self) -> None:
        waiting = [len(message) for lane in self._lanes.values() for message in lane.waiting]
        if len(waiting) >= WAITING or sum(waiting) > WAITING_BYTES:
            raise WrongParameter(
                "Too many requests of this connection wait for those before them",
                None,
                "websocket_queue_limit_reached",
            )

    async def _work(self, lane: _Lane) -> None:
        """Answer what waits in a lane."""
        while lane.waiting:
            async with self._places:
                if self._is_ending:
                    return
                await self._answer(lane, lane.waiting.popleft())

    # --- Answering ------------------------------------------------------------------------------

    async def _answer(self, lane: _Lane, message: bytes) -> None:
        """Answer a request, whatever comes of it."""
        previous, went_well = None, False
        try:
            request = decode_body(_message, message)
            wanted = make_wanted(request)
            previous = wanted.previous
            make = self._warm_up if request.generate is False else self._respond
            went_well = await make(lane, wanted)
        except TurnkeeperError as error:
            await self._tell(lane, _encode_error(error))
        except Exception:
            log.exception("A message on a WebSocket failed through a fault of our own")
            await self._tell(lane, _encode_error(_MISTAKE))
        finally:
            if previous is not None and not went_well:
                self._memory.forget(lane.name, previous)

    async def _respond(self, lane: _Lane, asked: Wanted) -> bool:
        """Have a response made, and tell of it while it is; whether it went well."""
        wanted = self._behind_previous(asked)
        call = self._call
        if wanted.session is None and wanted.previous is None:
            call = call.on_behalf_of(wanted.user)
        running = await begin(self._parts, call.caller, wanted)
        await self._tell_of(lane, running)
        ended = running.reply.ended
        if ended is None or running.reply.lost:
            raise StoreUnavailable("The end of the response could not be stored; ask for it later")
        went_well = ended.turn.status is TurnStatus.COMPLETED
        if went_well and not running.is_kept and wanted.session is None:
            context = Context((*running.asked, *items_of(ended)), wanted.previous)
            self._memory.remember(lane.name, ended.turn.ref, context)
        return went_well

    async def _tell_of(self, lane: _Lane, running: Running) -> None:
        fold, follower = running.fold(frame=as_json), running.follow()
        try:
            while not follower.finished:
                for happened in await follower.next():
                    for event in fold.feed(happened):
                        await self._tell(lane, event)
        finally:
            follower.close()

    async def _warm_up(self, lane: _Lane, asked: Wanted) -> bool:
        """Take in what a later request is to stand behind, and have no model asked."""
        if asked.session is not None:
            raise unsupported("generate", "A conversation needs no response without a reply")
        wanted = self._behind_previous(asked)
        if wanted.previous is not None:
            await self._check_stored(wanted.previous)
        engine, caller = self._parts.engine, self._call.caller
        items = check_items(
            self._parts, await resolve_items(self._parts, caller, wanted.items), "input"
        )
        turn = await engine.unasked_turn(caller, model=wanted.model)
        context = Context((*wanted.remembered, *items), wanted.previous, may_be_stored=wanted.store)
        self._memory.remember(lane.name, turn.ref, context)
        fold = Fold(turn, len(items), encode_echo(wanted.echo), frame=as_json)
        for happened in (OPENED, Ended(turn, "")):
            for event in fold.feed(happened):
                await self._tell(lane, event)
        return True

    async def _check_stored(self, ref: TurnRef) -> None:
        try:
            await self._parts.engine.read_turn(self._call.caller, ref)
        except TurnNotFound:
            raise no_previous(response_id(ref)) from None

    def _behind_previous(self, wanted: Wanted) -> Wanted:
        """What is wanted, with what is remembered of the response before it.

        Raises:
            WrongParameter: that may not be stored, as this one is to be.
        """
        context = None if wanted.previous is None else self._memory.find(wanted.previous)
        if wanted.previous is None or context is None:
            return wanted
        if wanted.store and not context.may_be_stored:
            raise no_previous(response_id(wanted.previous))
        return msgspec.structs.replace(wanted, remembered=context.items, previous=context.before)


def _expired() -> bytes:
    return _encode_error(
        WrongParameter(
            "This connection has been open for as long as it may (Responses websocket connection"
            " limit reached). Create a new websocket connection to continue.",
            None,
            "websocket_connection_limit_reached",
        )
    )


def _encode_error(error: TurnkeeperError | Failure) -> bytes:
    """A failure that is no event of a response: as the guide shows it, and as the SDKs read it."""
    body = error_body(error)
    event = {
        "type": "error",
        "status": status_of(error.code),
        "error": body,
        "code": body.code,
        "message": body.message,
        "param": body.param,
        "sequence_number": 0,
    }
    if error.retry_after is not None:
        event["headers"] = {"retry-after": str(max(1, math.ceil(error.retry_after)))}
    return encode_json(event)


ROUTES = (Route(WEBSOCKET, "/v1/responses", open_socket, "Make responses over a WebSocket"),)
