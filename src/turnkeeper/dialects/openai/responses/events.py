"""The events of a response's stream: a fold over what happens in its reply. Pure.

Each event has a number, and from the beginning of a reply the same numbers come every time: so a
stream can go on behind any of them, whenever it is asked for. That is why nothing here may depend
on when someone looks. An item is done when the next begins; calls of tools only at the end, since
clients act on a call that is done.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, assert_never

from turnkeeper.dialects.exchange import encode_json
from turnkeeper.dialects.openai.content import (
    Status,
    encode_call,
    encode_reasoning,
    output_text,
)
from turnkeeper.dialects.openai.ids import item_id
from turnkeeper.dialects.openai.responses.shape import (
    encode_items,
    encode_response,
    items_of,
    output_status,
    response_status,
)
from turnkeeper.domain import (
    Item,
    Message,
    MessageRef,
    Reasoning,
    ToolCall,
    Turn,
    TurnStatus,
)
from turnkeeper.events import (
    Ended,
    Grew,
    ReasoningDelta,
    RefusalDelta,
    ReplyEvent,
    Started,
    ToolCallDelta,
)

Frame = Callable[[str], tuple[bytes, bytes]]


def as_sse(type_: str) -> tuple[bytes, bytes]:
    """What stands around the JSON of an event of a type, as a server-sent event."""
    return b"event: %b\ndata: " % type_.encode(), b"\n\n"


# Open Responses wants it at the end of a stream; OpenAI does without, and its clients take either.
_DONE = b"data: [DONE]\n\n"


def as_json(_: str) -> tuple[bytes, bytes]:
    """Nothing: each event is a message of its own."""
    return b"", b""


class Opened:
    """Someone has begun to follow, whatever has happened so far."""


OPENED = Opened()


class Fold:
    """Makes events of what a `LogFollower` tells, `OPENED` first.

    Events up to number `after` are counted and not told; a client may know more of them than
    there are, if a crash has lost some: it is told the last one alone, under the next number.
    """

    def __init__(
        self,
        turn: Turn,
        first_position: int,
        echo: bytes,
        *,
        custom: frozenset[str] = frozenset(),
        queued: bool = False,
        after: int = -1,
        frame: Frame = as_sse,
    ) -> None:
        """`custom` are the names of those tools that take any text; `queued` as `Kept.queued`."""
        self._turn = turn
        self._first = first_position
        self._echo = echo
        self._custom = custom
        self._queued = queued
        self._after = after
        self._frame = frame
        self._number = 0
        self._told: list[bytes] = []
        self._items: list[_Message | _Thought | _Call] = []
        self._message: _Message | None = None
        self._thought: _Thought | None = None
        self._calls: dict[int, _Call] = {}
        self._has_started = False

    def feed(self, event: ReplyEvent | Opened) -> list[bytes]:
        """The events that this makes, each by itself."""
        match event:
            case Grew(text=text):
                self._say("output_text", text)
            case RefusalDelta(text=text):
                self._say("refusal", text)
            case ReasoningDelta(text=text):
                self._think(text)
            case ToolCallDelta():
                self._call(event)
            case Started(turn=turn):
                self._start(turn)
            case Ended():
                self._end(event)
            case Opened():
                self._open()
            case _:
                assert_never(event)
        told, self._told = self._told, []
        return told

    def join(self, event: ReplyEvent | Opened) -> bytes:
        """The same in one piece."""
        told = self.feed(event)
        return told[0] if len(told) == 1 else b"".join(told)

    # --- Telling -------------------------------------------------------------------------------

    def tell(self, type_: str, fields: Mapping[str, Any]) -> None:
        """One event."""
        number = self._next()
        if number > self._after:
            self._tell(type_, number, encode_json(fields)[1:-1])

    def next_wanted(self) -> int | None:
        """The number of the next event; None if it is not to be told."""
        number = self._next()
        return number if number > self._after else None

    def put(self, data: bytes) -> None:
        self._told.append(data)

    def delta_frame(self, type_: str, fields: Mapping[str, Any]) -> tuple[bytes, bytes]:
        """What stands before and behind the text of a delta, its number still to be put in."""
        before, behind = self._frame(type_)
        head = encode_json({"type": type_, **fields})[:-1]
        return b'%b%b,"delta":' % (before, head), b',"sequence_number":%%d}%b' % behind

    def _next(self) -> int:
        number = self._number
        self._number += 1
        return number

    def _tell(self, type_: str, number: int, fields: bytes) -> None:
        before, behind = self._frame(type_)
        self._told.append(
            b'%b{"type":"%b","sequence_number":%d,%b}%b'
            % (before, type_.encode(), number, fields, behind)
        )

    def _tell_response(self, type_: str, turn: Turn, output: list[dict[str, Any]]) -> None:
        number = self._next()
        if number > self._after:
            self._tell(type_, number, b'"response":' + encode_response(turn, output, self._echo))

    # --- Beginning and end -----------------------------------------------------------------------

    def _open(self) -> None:
        status = TurnStatus.QUEUED if self._queued else TurnStatus.RUNNING
        turn = _as_begun(self._turn, status)
        self._tell_response("response.created", turn, [])
        if self._queued:
            self._tell_response("response.queued", turn, [])

    def _start(self, turn: Turn) -> None:
        if not self._has_started:
            self._has_started = True
            running = _as_begun(turn, TurnStatus.RUNNING)
            self._tell_response("response.in_progress", running, [])

    def _end(self, ended: Ended) -> None:
        turn = ended.turn
        self._start(turn)  # that it was never told cannot be seen later on
        items, status = items_of(ended), output_status(turn)
        for item in self._items:
            item.close(self, status, items)
        output = encode_items(turn, items, self._first)
        # Of a reply that broke off the half calls are gone, and what a crash has lost: a client
        # may know as many events as there are now, and not the end.
        knows_end = self._after == self._number and turn.status is TurnStatus.COMPLETED
        if self._after >= self._number and not knows_end:
            self._number = self._after + 1
        self._tell_response(_LAST[response_status(turn)], turn, output)
        if self._frame is as_sse:
            self.put(_DONE)

    # --- Items -----------------------------------------------------------------------------------

    def _place(self, item: Item) -> tuple[int, str]:
        """The index in the output, and the id, of an item that begins."""
        index, ref = len(self._items), self._turn.ref
        return index, item_id(MessageRef(ref.session_id, ref.number, self._first + index), item)

    def _say(self, kind: str, text: str) -> None:
        message = self._message
        if message is None:
            self._close_open()
            message = self._message = _Message(*self._place(_A_MESSAGE))
            self._items.append(message)
            message.open(self)
        message.grow(self, kind, text)

    def _think(self, text: str) -> None:
        thought = self._thought
        if thought is None:
            self._close_open()
            thought = self._thought = _Thought(*self._place(_A_THOUGHT))
            self._items.append(thought)
            thought.open(self)
        thought.grow(self, text)

    def _call(self, delta: ToolCallDelta) -> None:
        call = self._calls.get(delta.index)
        if call is None:
            self._close_open()
            is_custom = delta.name in self._custom
            place = self._place(ToolCall("", "", "", custom=is_custom))
            call = self._calls[delta.index] = _Call(
                *place, delta.call_id, delta.name, custom=is_custom
            )
            self._items.append(call)
            call.open(self)
        if delta.arguments:
            call.grow(self, delta.arguments)

    def _close_open(self) -> None:
        """Another item begins."""
        for item in self._items:
            if not isinstance(item, _Call):
                item.close(self, "completed", ())


_LAST = {
    "completed": "response.completed",
    "incomplete": "response.incomplete",
    # There is no event for this: what the object says holds.
    "cancelled": "response.incomplete",
    "failed": "response.failed",
}
_A_MESSAGE = Message("assistant", "")
_A_THOUGHT = Reasoning("")


def _as_begun(turn: Turn, status: TurnStatus) -> Turn:
    """The turn as it was when it began."""
    return Turn(turn.ref, status, turn.model, turn.created_at)


class _Growing:
    """Pieces of text that are told as they come."""

    def __init__(self, fold: Fold, type_: str, fields: Mapping[str, Any]) -> None:
        self._pieces: list[str] = []
        self._before, self._behind = fold.delta_frame(type_, fields)

    def add(self, fold: Fold, text: str) -> None:
        self._pieces.append(text)
        number = fold.next_wanted()
        if number is not None:
            fold.put(b"%b%b%b" % (self._before, encode_json(text), self._behind % number))

    @property
    def text(self) -> str:
        return "".join(self._pieces)


class _Message:
    """The message of a reply, with a part for its text, and for what it declines."""

    def __init__(self, index: int, id_: str) -> None:
        self.index = index
        self.id = id_
        self._parts: list[tuple[str, _Growing]] = []
        self._is_closed = False

    def open(self, fold: Fold) -> None:
        item = self._encode([], "in_progress")
        fold.tell("response.output_item.added", {"output_index": self.index, "item": item})

    def grow(self, fold: Fold, kind: str, text: str) -> None:
        self._is_closed = False
        if not self._parts or self._parts[-1][0] != kind:
            if self._parts:
                self._close_part(fold)
            self._open_part(fold, kind)
        self._parts[-1][1].add(fold, text)

    def close(self, fold: Fold, status: Status, _: Sequence[Item]) -> None:
        if self._is_closed:
            return
        self._is_closed = True
        if self._parts:
            self._close_part(fold)
        content = [_part(kind, growing.text) for kind, growing in self._parts]
        item = self._encode(content, status)
        fold.tell("response.output_item.done", {"output_index": self.index, "item": item})

    def _open_part(self, fold: Fold, kind: str) -> None:
        place = self._place(len(self._parts))
        fold.tell("response.content_part.added", {**place, "part": _part(kind, "")})
        more: dict[str, Any] = {"logprobs": []} if kind == "output_text" else {}
        self._parts.append((kind, _Growing(fold, f"response.{kind}.delta", {**place, **more})))

    def _close_part(self, fold: Fold) -> None:
        kind, growing = self._parts[-1]
        place, text = self._place(len(self._parts) - 1), growing.text
        if kind == "output_text":
            fold.tell("response.output_text.done", {**place, "text": text, "logprobs": []})
        else:
            fold.tell("response.refusal.done", {**place, "refusal": text})
        fold.tell("response.content_part.done", {**place, "part": _part(kind, text)})

    def _place(self, content_index: int) -> dict[str, Any]:
        return {
            "item_id": self.id,
            "output_index": self.index,
            "content_index": content_index,
        }

    def _encode(self, content: list[dict[str, Any]], status: Status) -> dict[str, Any]:
        return {
            "id": self.id,
            "type": "message",
            "status": status,
            "role": "assistant",
            "content": content,
        }


def _part(kind: str, text: str) -> dict[str, Any]:
    return output_text(text) if kind == "output_text" else {"type": kind, "refusal": text}


class _Thought:
    """What the model thinks aloud."""

    def __init__(self, index: int, id_: str) -> None:
        self.index = index
        self.id = id_
        self._growing: _Growing | None = None
        self._is_closed = False

    @property
    def _place(self) -> dict[str, Any]:
        return {"item_id": self.id, "output_index": self.index, "content_index": 0}

    def open(self, fold: Fold) -> None:
        item = encode_reasoning(self.id, "", "in_progress")
        fold.tell("response.output_item.added", {"output_index": self.index, "item": item})
        fold.tell("response.content_part.added", {**self._place, "part": _thought("")})
        self._growing = _Growing(fold, "response.reasoning_text.delta", self._place)

    def grow(self, fold: Fold, text: str) -> None:
        assert self._growing is not None  # noqa: S101
        self._is_closed = False
        self._growing.add(fold, text)

    def close(self, fold: Fold, status: Status, _: Sequence[Item]) -> None:
        if self._is_closed:
            return
        self._is_closed = True
        assert self._growing is not None  # noqa: S101
        text = self._growing.text
        fold.tell("response.reasoning_text.done", {**self._place, "text": text})
        fold.tell("response.content_part.done", {**self._place, "part": _thought(text)})
        item = encode_reasoning(self.id, text, status)
        fold.tell("response.output_item.done", {"output_index": self.index, "item": item})


def _thought(text: str) -> dict[str, Any]:
    return {"type": "reasoning_text", "text": text}


class _Call:
    """A call of a tool. What a custom tool is given is known, and told, only at the end."""

    def __init__(self, index: int, id_: str, call_id: str, name: str, *, custom: bool) -> None:
        self.index = index
        self.id = id_
        self._call_id = call_id
        self._name = name
        self._custom = custom
        self._growing: _Growing | None = None

    @property
    def _place(self) -> dict[str, Any]:
        return {"item_id": self.id, "output_index": self.index}

    def open(self, fold: Fold) -> None:
        item = self._encode("", "in_progress")
        fold.tell("response.output_item.added", {"output_index": self.index, "item": item})
        self._growing = _Growing(fold, "response.function_call_arguments.delta", self._place)

    def grow(self, fold: Fold, arguments: str) -> None:
        if not self._custom:
            assert self._growing is not None  # noqa: S101
            self._growing.add(fold, arguments)

    def close(self, fold: Fold, status: Status, items: Sequence[Item]) -> None:
        if self._custom:
            given = self._input_in(items)
            delta = {**self._place, "delta": given}
            fold.tell("response.custom_tool_call_input.delta", delta)
            fold.tell("response.custom_tool_call_input.done", {**self._place, "input": given})
        else:
            assert self._growing is not None  # noqa: S101
            given = self._growing.text
            done = {**self._place, "name": self._name, "arguments": given}
            fold.tell("response.function_call_arguments.done", done)
        item = self._encode(given, status)
        fold.tell("response.output_item.done", {"output_index": self.index, "item": item})

    def _input_in(self, items: Sequence[Item]) -> str:
        for item in items:
            if isinstance(item, ToolCall) and item.call_id == self._call_id:
                return item.arguments
        return ""

    def _encode(self, given: str, status: Status) -> dict[str, Any]:
        return encode_call(self.id, self._call_id, self._name, given, status, custom=self._custom)
