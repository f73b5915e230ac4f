"""A reply as the chunks of a streamed chat completion. Pure.

What is the same in every chunk is written once, since a chunk is made for every token.
"""

from collections.abc import Callable, Sequence
from typing import Any, assert_never

from turnkeeper.dialects.exchange import encode_json
from turnkeeper.dialects.openai.completions.messages import encode_call
from turnkeeper.dialects.openai.completions.shape import SERVICE_TIER, encode_usage, finish_of
from turnkeeper.dialects.openai.errors import encode_failure
from turnkeeper.dialects.openai.ids import completion_id
from turnkeeper.domain import ToolCall, Turn, TurnStatus
from turnkeeper.events import (
    Ended,
    Grew,
    ReasoningDelta,
    RefusalDelta,
    ReplyEvent,
    Started,
    ToolCallDelta,
)
from turnkeeper.reply import failure_of

Encode = Callable[[ReplyEvent], bytes]

_DONE = b"data: [DONE]\n\n"


def encode_chunks(turn: Turn, *, custom: frozenset[str], include_usage: bool) -> Encode:
    """How one follower of a turn is told its reply; for one that follows it from the beginning.

    `custom` are the names of tools that take one string: what comes of these calls on the way is
    not yet that string, so they are told whole, at the end. With `include_usage` the last chunk
    is a count of tokens.
    """
    stream = _Stream(turn, custom, include_usage=include_usage)
    return stream.encode


class _Stream:
    """What has been told of a reply, as far as later chunks depend on it."""

    def __init__(self, turn: Turn, custom: frozenset[str], *, include_usage: bool) -> None:
        self._include_usage = include_usage
        self._custom = custom
        self._hidden: set[int] = set()  # calls of custom tools, by their index
        self._has_begun = False
        self._open = b""  # what every chunk begins with, up to its delta
        self._close = b"}" + self._ending(None)
        self._set_model(turn)

    def _set_model(self, turn: Turn) -> None:
        self._open = (
            b'data: {"id":%b,"object":"chat.completion.chunk","created":%d,"model":%b,'
            b'"service_tier":"%b","system_fingerprint":null,"choices":['
            % (
                encode_json(completion_id(turn.ref)),
                turn.created_at // 1000,
                encode_json(turn.model),
                SERVICE_TIER.encode(),
            )
        )
        self._delta = self._open + b'{"index":0,"delta":{'
        self._content = self._delta + b'"content":'

    def _ending(self, finish: str | None) -> bytes:
        """What follows the fields of a delta."""
        usage = b',"usage":null' if self._include_usage else b""
        return b',"logprobs":null,"finish_reason":%b}]%b}\n\n' % (encode_json(finish), usage)

    def encode(self, event: ReplyEvent) -> bytes:
        match event:
            case Grew(text=text):  # first: it is nearly always this
                chunk = b"%b%b%b" % (self._content, encode_json(text), self._close)
                return chunk if self._has_begun else self._begin(b'""') + chunk
            case Started(turn=turn):
                self._set_model(turn)
                return b""
            case ReasoningDelta(text=text):
                return self._tell(b'"reasoning_content":%b' % encode_json(text))
            case RefusalDelta(text=text):
                return self._tell(b'"refusal":%b' % encode_json(text))
            case ToolCallDelta():
                return self._tell_call(event)
            case Ended(turn=turn):
                return self._end(event)
            case _:
                assert_never(event)

    def _tell(self, fields: bytes) -> bytes:
        chunk = b"%b%b%b" % (self._delta, fields, self._close)
        return chunk if self._has_begun else self._begin(b"null") + chunk

    def _begin(self, content: bytes) -> bytes:
        """The role comes first; what the words begin with is null where there may be none."""
        self._has_begun = True
        return self._tell(b'"role":"assistant","content":%b,"refusal":null' % content)

    def _tell_call(self, delta: ToolCallDelta) -> bytes:
        if delta.index in self._hidden:
            return b""
        arguments = encode_json(delta.arguments)
        if not delta.call_id:
            call = b'{"index":%d,"function":{"arguments":%b}}' % (delta.index, arguments)
        elif delta.name in self._custom:
            self._hidden.add(delta.index)
            return b""
        else:
            call = (
                b'{"index":%d,"id":%b,"type":"function","function":{"name":%b,"arguments":%b}}'
                % (
                    delta.index,
                    encode_json(delta.call_id),
                    encode_json(delta.name),
                    arguments,
                )
            )
        return self._tell(b'"tool_calls":[%b]' % call)

    def _end(self, event: Ended) -> bytes:
        turn = event.turn
        if turn.status is not TurnStatus.COMPLETED:
            return encode_failure(failure_of(turn))
        finish = self._delta + b"}" + self._ending(finish_of(turn, event.items))
        return b"".join([*self._custom_calls(event), finish, *self._usage(turn), _DONE])

    def _custom_calls(self, event: Ended) -> Sequence[bytes]:
        if not self._hidden:
            return ()
        calls = [item for item in event.items if isinstance(item, ToolCall)]
        told: list[dict[str, Any]] = [
            {"index": index, **encode_call(call)}
            for index, call in enumerate(calls)
            if index in self._hidden
        ]
        return [self._tell(b'"tool_calls":[%b]' % encode_json(call)) for call in told]

    def _usage(self, turn: Turn) -> Sequence[bytes]:
        if not self._include_usage:
            return ()
        return (b'%b],"usage":%b}\n\n' % (self._open, encode_json(encode_usage(turn))),)
