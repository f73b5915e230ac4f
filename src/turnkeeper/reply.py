"""One reply in the making: what it consists of so far, and who follows it from where.

A reply is kept here as it grows; a follower holds nothing but a position in it. So a slow
follower costs no memory and slows nobody, and any number may come and go.
"""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from typing import assert_never

import msgspec

from turnkeeper import cuts
from turnkeeper.domain import (
    Failure,
    Item,
    KeptItem,
    Message,
    Reasoning,
    RefusalPart,
    TextPart,
    ToolCall,
    Turn,
    TurnStatus,
    divide,
)
from turnkeeper.errors import TurnEnded
from turnkeeper.events import (
    Ended,
    Grew,
    ReasoningDelta,
    RefusalDelta,
    ReplyDelta,
    ReplyEvent,
    Started,
    TextDelta,
    ToolCallDelta,
)

_PIECE = 16_384  # characters told in one event: what a client that takes nothing costs in memory
_AT_ONCE = 256  # deltas told together to one who wants each

_ENDED_EARLY = {
    TurnStatus.CANCELLED: Failure("turn_cancelled", "The turn was cancelled"),
    TurnStatus.INTERRUPTED: Failure(
        "turn_interrupted", "The server stopped before the reply was complete"
    ),
}


def failure_of(turn: Turn) -> Failure:
    """Why a turn that is over has no whole reply."""
    return turn.failure or _ENDED_EARLY[turn.status]


class Reply:
    """The reply of one turn of `owner`'s, from the queue to its end.

    Attributes:
        length: characters (code points) of its text so far, a refusal's among them.
        first_position: where its first item stands in its turn, behind what it answers.
        on_abandoned: called when nobody waits for it any more.
    """

    def __init__(self, owner: str, turn: Turn, first_position: int = 1) -> None:
        self.owner = owner
        self.turn = turn
        self.first_position = first_position
        self.length = 0
        self.ended: Ended | None = None
        self.lost = False
        self._log: list[ReplyDelta] = []
        self._is_plain = True  # it consists of nothing but text
        self._counted = False
        self._followers: list[Follower | LogFollower] = []
        self._waiting: list[asyncio.Future[Ended]] = []
        self.on_abandoned: Callable[[], object] | None = None

    @classmethod
    def stored(
        cls,
        owner: str,
        turn: Turn,
        text: str,
        items: Sequence[KeptItem] = (),
        cut: str | None = None,
    ) -> "Reply":
        """A reply that is over, as the store has it; `items` are those of its turn, if known."""
        asked, made = divide(items)
        reply = cls(owner, turn, made[0].position if made else len(asked) or 1)
        whole = _deltas([kept.item for kept in made]) if made else [TextDelta(text)] if text else []
        for delta in cuts.apply(cut, whole):
            reply.add(delta)
        reply.end(turn, () if reply._is_plain else tuple(kept.item for kept in made))
        return reply

    @property
    def text(self) -> str:
        """All words of it, a refusal's among them."""
        return "".join([d.text for d in self._log if isinstance(d, TextDelta | RefusalDelta)])

    @property
    def calls_tools(self) -> bool:
        return not self._is_plain and any(isinstance(d, ToolCallDelta) for d in self._log)

    def items(self, *, with_calls: bool) -> tuple[Item, ...]:
        """All that it consists of, in the order of first appearance; empty if that is but text.

        Without the calls where it broke off: their arguments may be half a JSON text.
        """
        if self._is_plain:
            return ()
        items = _collect(self._log)
        return tuple(item for item in items if with_calls or not isinstance(item, ToolCall))

    # --- What happens to it --------------------------------------------------------------------

    def start(self, turn: Turn) -> None:
        """Its place in the queue has come."""
        self.turn = turn
        self._tell()

    def add(self, delta: ReplyDelta) -> None:
        """What came next."""
        self._log.append(delta)
        if isinstance(delta, TextDelta):
            self.length += len(delta.text)
        else:
            self._is_plain = False
            if isinstance(delta, RefusalDelta):
                self.length += len(delta.text)
        self._tell()

    def end(self, turn: Turn, items: tuple[Item, ...] = ()) -> None:
        """It is over and stored as `turn`, with these `items` if it is more than text.

        Nothing happens to it afterwards.
        """
        self.turn = turn
        self.ended = Ended(turn, self.text, items=items)
        self._tell()
        for future in self._waiting:
            if not future.done():
                future.set_result(self.ended)

    def lose(self) -> None:
        """Its end could not be stored: whoever follows is cut off, and may ask again later."""
        self.lost = True
        self.end(msgspec.structs.replace(self.turn, status=TurnStatus.INTERRUPTED))

    def cuts(self, since: int = 0) -> str | None:
        """How it came in pieces from that delta on, where someone has counted them."""
        return cuts.encode(self._log[since:]) if self._counted else None

    @property
    def deltas(self) -> int:
        """How many there are."""
        return len(self._log)

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
        failure = failure_of(turn)
        raise TurnEnded(
            turn.ref.id, turn.ref.session_id, failure.code, failure.sentence, failure.retry_after
        )

    def follow(self, after: int | None = None) -> "Follower":
        """Follow it from character `after` on; None is the beginning, with its `Started`."""
        follower = Follower(self, after)
        self._followers.append(follower)
        return follower

    def follow_log(self) -> "LogFollower":
        """Follow each delta of it, from the first on.

        They are the same for whoever asks, now and whenever it is asked for again, so that they
        can be counted.
        """
        self._counted = True
        follower = LogFollower(self)
        self._followers.append(follower)
        return follower

    def leave(self, follower: "Follower | LogFollower") -> None:
        self._followers.remove(follower)
        self._look_round()

    def _look_round(self) -> None:
        if self.on_abandoned is not None and not (self.ended or self._followers or self._waiting):
            self.on_abandoned()

    def since(self, position: int) -> str:
        """The characters from `position` on; quick near the end."""
        number, offset = self.find(position)
        newest = "".join(_words(delta) for delta in self._log[number:])
        return newest[offset:]

    def find(self, position: int) -> tuple[int, int]:
        """Which delta the character at `position` is in, and where; quick near the end."""
        start, number = self.length, len(self._log)
        while number and start > position:
            number -= 1
            start -= len(_words(self._log[number]))
        return number, position - start

    def read(self, number: int, offset: int, most: int) -> tuple[str, int, int]:
        """At most so many characters of text from a place on, and the place after them.

        It ends before a thought, which is told by itself.
        """
        texts: list[str] = []
        log = self._log
        while number < len(log) and most > 0:
            delta = log[number]
            if isinstance(delta, TextDelta | RefusalDelta):
                text = delta.text[offset : offset + most]  # the text itself if that is all of it
                texts.append(text)
                most -= len(text)
                offset += len(text)
                if offset < len(delta.text):
                    break
            elif isinstance(delta, ReasoningDelta):
                break
            number, offset = number + 1, 0
        return texts[0] if len(texts) == 1 else "".join(texts), number, offset

    def read_log(self, start: int, most: int) -> list[ReplyDelta]:
        """At most so many deltas from a place on."""
        return self._log[start : start + most]

    def thoughts(self, start: int, end: int) -> str:
        """All that was thought between two places of the log."""
        part = self._log[start:end]
        return "".join([delta.text for delta in part if isinstance(delta, ReasoningDelta)])


def _words(delta: ReplyDelta) -> str:
    return delta.text if isinstance(delta, TextDelta | RefusalDelta) else ""


def _collect(log: Sequence[ReplyDelta]) -> list[Item]:
    """The items that deltas make, each at the place of its first: one thought, one message."""
    order: dict[object, list[str]] = {}
    calls: dict[int, ToolCallDelta] = {}
    said: list[tuple[_SaidAs, list[str]]] = []
    for delta in log:
        match delta:
            case TextDelta(text=text):
                order.setdefault("message", [])
                _extend(said, TextPart, text)
            case RefusalDelta(text=text):
                order.setdefault("message", [])
                _extend(said, RefusalPart, text)
            case ReasoningDelta(text=text):
                order.setdefault("reasoning", []).append(text)
            case ToolCallDelta(index=index, arguments=arguments):
                calls.setdefault(index, delta)
                order.setdefault(index, []).append(arguments)
            case _:
                assert_never(delta)
    parts = tuple(kind("".join(texts)) for kind, texts in said)
    return [_item(key, texts, parts, calls) for key, texts in order.items()]


_SaidAs = type[TextPart] | type[RefusalPart]


def _extend(said: list[tuple[_SaidAs, list[str]]], kind: _SaidAs, text: str) -> None:
    """Pieces are joined once, at the end: a reply may have a great many."""
    if said and said[-1][0] is kind:
        said[-1][1].append(text)
    else:
        said.append((kind, [text]))


def _item(
    key: object,
    texts: list[str],
    parts: tuple[TextPart | RefusalPart, ...],
    calls: dict[int, ToolCallDelta],
) -> Item:
    if key == "message":
        text = "".join(part.text for part in parts)
        is_plain = all(isinstance(part, TextPart) for part in parts)
        return Message("assistant", text, () if is_plain else parts)
    if key == "reasoning":
        return Reasoning("".join(texts))
    assert isinstance(key, int)  # noqa: S101
    return ToolCall(calls[key].call_id, calls[key].name, "".join(texts))


def _deltas(items: Sequence[Item]) -> list[ReplyDelta]:
    """What would have made these items, each in one piece."""
    return list(_each_delta(items))


def _each_delta(items: Sequence[Item]) -> Iterator[ReplyDelta]:
    calls = 0
    for item in items:
        match item:
            case Message(text=text, parts=()):
                yield TextDelta(text)
            case Message(parts=parts):
                for part in parts:
                    if isinstance(part, RefusalPart):
                        yield RefusalDelta(part.text)
                    elif isinstance(part, TextPart):
                        yield TextDelta(part.text)
            case Reasoning(text=text):
                yield ReasoningDelta(text)
            case ToolCall():
                yield ToolCallDelta(calls, item.call_id, item.name, item.arguments)
                calls += 1
            case _:  # what is answered, not the answer
                pass


class Taken(msgspec.Struct, frozen=True):
    """The turn that a request has begun, by its reply.

    `repeated` says that an earlier request under the same idempotency key had begun it.
    """

    reply: Reply
    repeated: bool = False


class _Place:
    """What both kinds of followers do. Used by one task; closed by whoever opened it."""

    def __init__(self, reply: Reply) -> None:
        self.reply = reply
        self.finished = False  # it has been told the end, or was closed
        self._waiter: asyncio.Future[None] | None = None
        self._loop = asyncio.get_running_loop()  # looked up once: each time is a system call

    async def next(self) -> list[ReplyEvent]:
        """What happened since the last call, in order, once there is anything.

        Empty when `nudge` was called and nothing had happened, or after the end.
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
        self._leave()
        self.nudge()

    def _leave(self) -> None:
        raise NotImplementedError

    def _news(self) -> list[ReplyEvent]:
        raise NotImplementedError


class Follower(_Place):
    """Someone's place in the text of a reply. What came in several pieces is told in one.

    Calls of tools are told by the `Ended` alone.
    """

    def __init__(self, reply: Reply, after: int | None) -> None:
        super().__init__(reply)
        self._position = after or 0
        self._wants_start = after is None
        self._missed = ""  # what was thought before the place it goes on from
        self._is_beyond = False  # it knows more than there is: of a reply that a crash has cut
        self._number, self._offset = 0, 0
        if after:
            self._go_on()

    def _go_on(self) -> None:
        """Find the place it goes on from."""
        self._is_beyond = self._position > self.reply.length
        self._number, self._offset = self.reply.find(min(self._position, self.reply.length))
        self._missed = "" if self._is_beyond else self.reply.thoughts(0, self._number)

    def _leave(self) -> None:
        self.reply.leave(self)

    def _news(self) -> list[ReplyEvent]:
        if self.finished:
            return []
        reply = self.reply
        if self._is_beyond:
            self._go_on()
            if self._is_beyond and reply.ended is None:
                return []
        if reply.ended is None and not self._wants_start and not self._missed:  # nearly always
            return self._growth() if reply.deltas > self._number else []
        events: list[ReplyEvent] = []
        if self._wants_start and _has_started(reply):
            self._wants_start = False
            events.append(Started(reply.turn))
        if self._missed:
            events.append(ReasoningDelta(self._missed))
            self._missed = ""
        if reply.deltas > self._number:
            events += self._growth()
        if reply.ended is not None and self._number >= reply.deltas:
            self.finished = True
            events += [] if reply.lost else [self._ending(reply.ended)]
        return events

    def _growth(self) -> list[ReplyEvent]:
        """The next words, not more than `_PIECE` characters: someone may be far behind."""
        text, self._number, self._offset = self.reply.read(self._number, self._offset, _PIECE)
        if text:
            self._position += len(text)
            return [Grew(text, self._position)]
        return self._thoughts()

    def _thoughts(self) -> list[ReplyEvent]:
        """What is thought from here on, up to the next words; nothing where words come next."""
        thought: list[str] = []
        for delta in self.reply.read_log(self._number, _AT_ONCE):
            if not isinstance(delta, ReasoningDelta):
                break
            thought.append(delta.text)
        self._number += len(thought)
        return [ReasoningDelta("".join(thought))] if thought else []

    def _ending(self, ended: Ended) -> Ended:
        """A follower from beyond the end had seen words that a crash has lost: start over."""
        if self._position > self.reply.length:
            return msgspec.structs.replace(ended, replace=True)
        return ended


class LogFollower(_Place):
    """Someone's place among the deltas of a reply, each of which is told as it came."""

    def __init__(self, reply: Reply) -> None:
        super().__init__(reply)
        self._number = 0
        self._position = 0
        self._wants_start = True

    def _leave(self) -> None:
        self.reply.leave(self)

    def _news(self) -> list[ReplyEvent]:
        if self.finished:
            return []
        reply, events = self.reply, list[ReplyEvent]()
        if self._wants_start and _has_started(reply):
            self._wants_start = False
            events.append(Started(reply.turn))
        if reply.deltas > self._number:
            deltas = reply.read_log(self._number, _AT_ONCE)
            self._number += len(deltas)
            events += [self._told(delta) for delta in deltas]
        if reply.ended is not None and self._number >= reply.deltas:
            self.finished = True
            events += [] if reply.lost else [reply.ended]
        return events

    def _told(self, delta: ReplyDelta) -> ReplyEvent:
        if isinstance(delta, TextDelta):  # nearly always
            self._position += len(delta.text)
            return Grew(delta.text, self._position)
        if isinstance(delta, RefusalDelta):
            self._position += len(delta.text)
        return delta


def _has_started(reply: Reply) -> bool:
    """Whether the model was called, as far as one can tell: not if it ended in the queue."""
    if reply.turn.status in (TurnStatus.CANCELLED, TurnStatus.INTERRUPTED):
        return reply.deltas > 0
    return reply.turn.status is not TurnStatus.QUEUED
