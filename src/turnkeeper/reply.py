"""One reply in the making: its text, who is following it, and from which character.

A reply is kept here as it grows; a follower holds nothing but a position in it. So a slow
follower costs no memory and slows nobody, and any number may come and go.
"""

import asyncio
from collections.abc import Callable

import msgspec

from turnkeeper.domain import Failure, Turn, TurnStatus
from turnkeeper.errors import TurnEnded
from turnkeeper.events import Ended, Grew, ReplyEvent, Started

_PIECE = 16_384  # characters told in one event: what a client that takes nothing costs in memory

_ENDED_EARLY = {
    TurnStatus.CANCELLED: Failure("turn_cancelled", "The turn was cancelled"),
    TurnStatus.INTERRUPTED: Failure(
        "turn_interrupted", "The server stopped before the reply was complete"
    ),
}


class Reply:
    """The reply of one turn of `owner`'s, from the queue to its end."""

    def __init__(self, owner: str, turn: Turn) -> None:
        self.owner = owner
        self.turn = turn
        self.length = 0  # in characters (code points)
        self.ended: Ended | None = None
        self.lost = False
        self._chunks: list[str] = []
        self._followers: list[Follower] = []
        self._waiting: list[asyncio.Future[Ended]] = []
        self.on_abandoned: Callable[[], None] | None = None  # nobody waits for it any more

    @classmethod
    def stored(cls, owner: str, turn: Turn, text: str) -> "Reply":
        """A reply that is over, as the store has it."""
        reply = cls(owner, turn)
        reply.append(text)
        reply.end(turn)
        return reply

    @property
    def text(self) -> str:
        return "".join(self._chunks)

    # --- What happens to it --------------------------------------------------------------------

    def start(self, turn: Turn) -> None:
        """Its place in the queue has come."""
        self.turn = turn
        self._tell()

    def append(self, text: str) -> None:
        if text:
            self._chunks.append(text)
            self.length += len(text)
            self._tell()

    def end(self, turn: Turn) -> None:
        """It is over and stored as `turn`. Nothing happens to it afterwards."""
        self.turn = turn
        self.ended = Ended(turn, self.text)
        self._tell()
        for future in self._waiting:
            if not future.done():
                future.set_result(self.ended)

    def lose(self) -> None:
        """Its end could not be stored: whoever follows is cut off, and may ask again later."""
        self.lost = True
        self.end(msgspec.structs.replace(self.turn, status=TurnStatus.INTERRUPTED))

    def _tell(self) -> None:
        for follower in self._followers:
            follower.nudge()

    # --- Those who want it ---------------------------------------------------------------------

    async def wait(self) -> Ended:
        """Its end, when it comes."""
        if self.ended is not None:
            return self.ended
        future: asyncio.Future[Ended] = asyncio.get_running_loop().create_future()
        self._waiting.append(future)
        if self.on_abandoned is None:
            return await future
        try:
            return await future
        finally:
            self._waiting.remove(future)
            self._look_round()

    async def completed(self) -> str:
        """Its whole text, once the turn is completed and stored.

        Raises:
            TurnEnded: the turn failed, was cancelled or interrupted.
        """
        ended = await self.wait()
        turn = ended.turn
        if turn.status is TurnStatus.COMPLETED:
            return ended.text
        failure = turn.failure or _ENDED_EARLY[turn.status]
        raise TurnEnded(
            turn.ref.id, turn.ref.session_id, failure.code, failure.sentence, failure.retry_after
        )

    def follow(self, after: int | None = None) -> "Follower":
        """Follow it from character `after` on; None is the beginning, with its `Started`."""
        follower = Follower(self, after)
        self._followers.append(follower)
        return follower

    def leave(self, follower: "Follower") -> None:
        self._followers.remove(follower)
        self._look_round()

    def _look_round(self) -> None:
        if self.on_abandoned is not None and not (self.ended or self._followers or self._waiting):
            self.on_abandoned()

    def since(self, position: int) -> str:
        """The characters from `position` on; quick near the end, where followers are."""
        missing = self.length - position
        if self._chunks and len(self._chunks[-1]) == missing:  # nearly always
            return self._chunks[-1]
        newest: list[str] = []
        for chunk in reversed(self._chunks):
            if missing <= 0:
                break
            newest.append(chunk if len(chunk) <= missing else chunk[-missing:])
            missing -= len(chunk)
        return newest[0] if len(newest) == 1 else "".join(reversed(newest))

    def find(self, position: int) -> tuple[int, int]:
        """Which chunk the character at `position` is in, and where; quick near the end."""
        start = self.length
        for number in range(len(self._chunks) - 1, -1, -1):
            start -= len(self._chunks[number])
            if start <= position:
                return number, position - start
        return 0, 0

    def read(self, chunk: int, offset: int, most: int) -> tuple[str, int, int]:
        """At most so many characters from a place on, and the place after them."""
        texts: list[str] = []
        while chunk < len(self._chunks) and most > 0:
            whole = self._chunks[chunk]
            text = whole[offset : offset + most]  # the chunk itself if that is all of it
            texts.append(text)
            most -= len(text)
            offset += len(text)
            if offset == len(whole):
                chunk, offset = chunk + 1, 0
        return texts[0] if len(texts) == 1 else "".join(texts), chunk, offset


class Taken(msgspec.Struct, frozen=True):
    """The turn that a request has begun, by its reply.

    `repeated` says that an earlier request under the same idempotency key had begun it.
    """

    reply: Reply
    repeated: bool = False


class Follower:
    """Someone's place in a reply. Used by one task; closed by whoever opened it."""

    def __init__(self, reply: Reply, after: int | None) -> None:
        self.reply = reply
        self._position = after or 0
        self._place: tuple[int, int] | None = (0, 0) if not after else None  # of that character
        self._wants_start = after is None
        self.finished = False  # it has been told the end, or was closed
        self._waiter: asyncio.Future[None] | None = None
        self._loop = asyncio.get_running_loop()  # looked up once: each time is a system call

    async def next(self) -> list[ReplyEvent]:
        """What happened since the last call, in order, once there is anything.

        Text that arrived in several pieces comes in one. Empty when `nudge` was called and
        nothing had happened, or after the end.
        """
        events = self._news()
        if events or self.finished:
            return events
        waiter = self._waiter = self._loop.create_future()
        try:
            await waiter
        finally:
            self._waiter = None
        return self._news()

    def nudge(self) -> None:
        """Wake whoever waits in `next`."""
        waiter = self._waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    def close(self) -> None:
        self.finished = True
        self.reply.leave(self)
        self.nudge()

    def _news(self) -> list[ReplyEvent]:
        if self.finished:
            return []
        reply = self.reply
        if reply.ended is None and not self._wants_start:  # nearly always
            return [self._growth()] if reply.length > self._position else []
        events: list[ReplyEvent] = []
        if self._wants_start and _has_started(reply):
            self._wants_start = False
            events.append(Started(reply.turn))
        if reply.length > self._position:
            events.append(self._growth())
        if reply.ended is not None and self._position >= reply.length:
            self.finished = True
            events += [] if reply.lost else [self._ending(reply.ended)]
        return events

    def _growth(self) -> Grew:
        """The next words, not more than `_PIECE` characters: someone may be far behind."""
        chunk, offset = self._place or self.reply.find(self._position)
        text, chunk, offset = self.reply.read(chunk, offset, _PIECE)
        self._place = chunk, offset
        self._position += len(text)
        return Grew(text, self._position)

    def _ending(self, ended: Ended) -> Ended:
        """A follower from beyond the end had seen words that a crash has lost: start over."""
        if self._position > self.reply.length:
            return Ended(ended.turn, ended.text, replace=True)
        return ended


def _has_started(reply: Reply) -> bool:
    """Whether the model was called, as far as one can tell: not if it ended in the queue."""
    if reply.turn.status in (TurnStatus.CANCELLED, TurnStatus.INTERRUPTED):
        return reply.length > 0
    return reply.turn.status is not TurnStatus.QUEUED
