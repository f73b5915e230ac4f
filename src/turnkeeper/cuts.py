"""In which pieces a reply came, written down in little: `r40 t5,3,12 c0:17,20`.

A client that counts the pieces it was given can go on from any of them, also when they are put
together again from what was stored. Pure. A word is a kind and the lengths of pieces in
characters: `t` text, `f` refusal, `r` reasoning, `c0:` the arguments of call 0.
"""

import re
from collections.abc import Iterator, Sequence
from typing import assert_never

from turnkeeper.events import (
    ReasoningDelta,
    RefusalDelta,
    ReplyDelta,
    TextDelta,
    ToolCallDelta,
)


def encode(deltas: Sequence[ReplyDelta]) -> str:
    """How these came."""
    words: list[str] = []
    last = ""
    for delta in deltas:
        kind, length = _kind(delta), _length(delta)
        if kind == last:
            words.append(f",{length}")
        else:
            words.append(f" {kind}{length}")
        last = kind
    return "".join(words).lstrip()


def _kind(delta: ReplyDelta) -> str:
    match delta:
        case TextDelta():
            return "t"
        case RefusalDelta():
            return "f"
        case ReasoningDelta():
            return "r"
        case ToolCallDelta(index=index):
            return f"c{index}:"
        case _:
            assert_never(delta)


def _length(delta: ReplyDelta) -> int:
    return len(delta.arguments if isinstance(delta, ToolCallDelta) else delta.text)


_WORD = re.compile(r"(t|f|r|c[0-9]+:)([0-9]+(?:,[0-9]+)*)")


def apply(cut: str | None, whole: Sequence[ReplyDelta]) -> Iterator[ReplyDelta]:
    """`whole` in the pieces it came in, as far as it is there; what is left over in one."""
    if not cut:
        yield from whole
        return
    sources = {kind: _Source(deltas) for kind, deltas in _by_kind(whole).items()}
    for kind, lengths in _WORD.findall(cut):
        source = sources.get(kind)
        for length in lengths.split(",") if source else ():
            piece = source.take(int(length))  # type: ignore[union-attr]
            if piece is not None:
                yield piece
    for source in sources.values():
        rest = source.take(None)
        if rest is not None:
            yield rest


def _by_kind(deltas: Sequence[ReplyDelta]) -> dict[str, list[ReplyDelta]]:
    kinds: dict[str, list[ReplyDelta]] = {}
    for delta in deltas:
        kinds.setdefault(_kind(delta), []).append(delta)
    return kinds


class _Source:
    """What is there of one kind, from which pieces are taken."""

    def __init__(self, deltas: Sequence[ReplyDelta]) -> None:
        self._first = deltas[0]
        self._text = "".join(
            [d.arguments if isinstance(d, ToolCallDelta) else d.text for d in deltas]
        )
        self._taken = 0
        self._is_begun = False

    def take(self, length: int | None) -> ReplyDelta | None:
        """The next so many characters, all that is left for None; None if nothing is."""
        end = len(self._text) if length is None else self._taken + length
        text = self._text[self._taken : end]
        is_call = isinstance(self._first, ToolCallDelta)
        if not text and not (is_call and not self._is_begun):
            return None
        self._taken += len(text)
        piece = self._piece(text)
        self._is_begun = True
        return piece

    def _piece(self, text: str) -> ReplyDelta:
        match self._first:
            case TextDelta():
                return TextDelta(text)
            case RefusalDelta():
                return RefusalDelta(text)
            case ReasoningDelta():
                return ReasoningDelta(text)
            case ToolCallDelta(index=index, call_id=call_id, name=name):
                call_id, name = ("", "") if self._is_begun else (call_id, name)
                return ToolCallDelta(index, call_id, name, text)
