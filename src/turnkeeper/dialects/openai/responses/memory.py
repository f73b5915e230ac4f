"""What a WebSocket remembers of responses that are stored nowhere: what the next stands behind.

Pure. The newest of each lane is remembered for as long as the connection is open. One that was gone
on from in vain is forgotten: its client is to begin again with all that it knows.
"""

from collections.abc import Sequence

import msgspec

from turnkeeper.domain import ImagePart, Item, Message, ToolCall, ToolResult, TurnRef

LIMIT = 16_777_216  # bytes that one connection may have remembered


class Context(msgspec.Struct, frozen=True):
    """What a next response is to stand behind.

    Attributes:
        items: all that was said, the response's own items among it, or since `before`.
        before: the stored turn that it began behind; None if there was none.
        may_be_stored: nobody has said that it must not be.
    """

    items: tuple[Item, ...] = ()
    before: TurnRef | None = None
    may_be_stored: bool = False


class Memory:
    """Of one connection. A lane goes by its name; None is that of messages without one."""

    def __init__(self, limit: int = LIMIT) -> None:
        self._limit = limit
        self._size = 0
        self._contexts: dict[TurnRef, tuple[str | None, Context, int]] = {}  # the oldest first
        self._newest: dict[str | None, TurnRef] = {}

    def remember(self, lane: str | None, ref: TurnRef, context: Context) -> None:
        """Keep a lane's newest response, in place of the one before.

        The oldest of other lanes go where there is no room; so does this one if it is too large.
        """
        self._drop(self._newest.get(lane))
        size = size_of(context.items)
        while self._contexts and self._size + size > self._limit:
            self._drop(next(iter(self._contexts)))
        if size <= self._limit:
            self._contexts[ref] = lane, context, size
            self._newest[lane] = ref
            self._size += size

    def find(self, ref: TurnRef) -> Context | None:
        found = self._contexts.get(ref)
        return None if found is None else found[1]

    def forget(self, lane: str | None, ref: TurnRef) -> None:
        """Let go of a response that a lane has gone on from in vain, unless it is another lane's.

        That one may still go on from it.
        """
        if self._newest.get(lane) == ref:
            self._drop(ref)

    def _drop(self, ref: TurnRef | None) -> None:
        found = None if ref is None else self._contexts.pop(ref, None)
        if found is not None:
            lane, _, size = found
            self._size -= size
            del self._newest[lane]


def size_of(items: Sequence[Item]) -> int:
    """The bytes that items take in memory, about; pictures may be data URIs of any length."""
    return sum([_size_of(item) for item in items])


_OVERHEAD = 200  # of the objects that an item is made of


def _size_of(item: Item) -> int:
    match item:
        case Message(text=text, parts=parts) | ToolResult(output=text, parts=parts):
            pictures = sum(len(part.url) for part in parts if isinstance(part, ImagePart))
            return _OVERHEAD + 2 * len(text) + pictures  # as it is in the parts again
        case ToolCall(arguments=arguments):
            return _OVERHEAD + len(arguments)
        case _:
            return _OVERHEAD + len(item.text)
