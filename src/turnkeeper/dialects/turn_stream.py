"""A turn on the wire, for every dialect that has no words of its own for it.

An event's id is how many characters of the reply the client has by then, so that any server
that has the text can go on from any id; nothing about chunks is kept. The last event's id ends
in `/end`.
"""

import re
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, assert_never

from turnkeeper.dialects.exchange import (
    Answer,
    Call,
    EventStream,
    Outcome,
    encode_json,
    headers_of,
)
from turnkeeper.domain import Failure, ToolCall, Turn
from turnkeeper.errors import InvalidRequest, ProviderError
from turnkeeper.events import (
    Ended,
    Grew,
    ReasoningDelta,
    RefusalDelta,
    ReplyEvent,
    Started,
    ToolCallDelta,
    TurnEvent,
)
from turnkeeper.following import SessionFollower
from turnkeeper.reply import Reply, Taken
from turnkeeper.sse import encode_event

Encode = Callable[[ReplyEvent], bytes]

_EVENT_ID = re.compile(r"([0-9]{1,15})(/end)?")
_SESSION_EVENT_ID = re.compile(r"([0-9]{1,9}):([0-9]{1,15})(/end)?")


def turn_stream(call: Call, taken: Taken, session_id: str, reply_key: str | None = None) -> Outcome:
    """The reply as server-sent events.

    `session_id` is the name the client has for the session; `reply_key` is what its dialect calls
    the reply, if not `response`: the last event has it under both. Where an earlier request had
    begun the turn, the stream goes on from `Last-Event-ID`.
    """
    encode = encode_for(session_id, reply_key)
    return _stream_from(taken, encode, _last_known(call) if taken.repeated else "")


def resumed_stream(reply: Reply, call: Call) -> Outcome:
    """The rest of a stream, from `Last-Event-ID` or `?after=`; 204 when nothing is left.

    Raises:
        InvalidRequest: the id is not one of ours.
    """
    encode = encode_for(reply.turn.ref.session_id)
    return _stream_from(Taken(reply), encode, _last_known(call))


def _last_known(call: Call) -> str:
    """The id of the last event that a client has; empty if it has none."""
    return call.header(b"last-event-id") or call.query.get("after", "")


def _stream_from(taken: Taken, encode: Encode, known: str) -> Outcome:
    reply, after = taken.reply, None
    if known:
        match = _EVENT_ID.fullmatch(known)
        if match is None:
            raise InvalidRequest("The event id must be a number of characters")
        if match[2] and reply.ended is not None:
            return Answer(204, b"", headers_of(taken))  # an EventSource stops asking
        after = int(match[1])
    return EventStream(lambda: reply.follow(after), encode, headers_of(taken))


def session_stream(follower: SessionFollower) -> EventStream:
    """Every turn of a session as server-sent events, with ids that say which turn it is."""

    def encode(event: TurnEvent) -> bytes:
        turn = event.turn
        return encode_for(turn.session_id, None, f"{turn.number}:")(event.event)

    return EventStream(lambda: follower, encode, ())


def known_place(call: Call) -> tuple[int, int | None] | None:
    """Where a client goes on that follows a session; see `Engine.follow_session`.

    Raises:
        InvalidRequest: the id is not one of ours.
    """
    known = _last_known(call)
    if not known:
        return None
    match = _SESSION_EVENT_ID.fullmatch(known)
    if match is None:
        raise InvalidRequest("The event id must be the number of a turn, a colon, and an id")
    return int(match[1]), None if match[3] else int(match[2])


def encode_for(session_id: str, reply_key: str | None = None, prefix: str = "") -> Encode:
    """How a turn's events are written; `prefix` comes before their ids."""

    def encode(event: ReplyEvent) -> bytes:
        match event:
            case Grew(text=text, end=end):  # first: it is nearly always this
                delta = b'{"text":%b}' % encode_json(text)
                return encode_event(delta, "message.delta", f"{prefix}{end}")
            case Started(turn=turn):
                started = {"turn_id": turn.ref.id, "session_id": session_id, "model": turn.model}
                return encode_event(encode_json(started), "turn.started", f"{prefix}0")
            case ReasoningDelta(text=text):  # no character of the reply, so it moves no id
                return encode_event(b'{"text":%b}' % encode_json(text), "reasoning.delta")
            case RefusalDelta() | ToolCallDelta():  # told as text, and at the end
                return b""
            case Ended(turn=turn, text=text):
                data = _ending(event, session_id)
                if reply_key is not None and "response" in data:
                    data[reply_key] = data["response"]
                ending = encode_json(data)
                return encode_event(ending, f"turn.{turn.status.value}", f"{prefix}{len(text)}/end")
            case _:
                assert_never(event)

    return encode


def _ending(event: Ended, session_id: str) -> dict[str, Any]:
    turn = event.turn
    data: dict[str, Any] = {"turn_id": turn.ref.id, "session_id": session_id}
    if turn.failure is not None:
        data |= {"error": turn.failure.sentence, "code": turn.failure.code}
        data["retryable"] = is_retryable(turn.failure)
    else:
        data |= {"response": event.text, "usage": encode_usage(turn)}
    if calls := [item for item in event.items if isinstance(item, ToolCall)]:
        data["tool_calls"] = [encode_call(call) for call in calls]
    return data | ({"response": event.text, "replace": True} if event.replace else {})


def encode_call(call: ToolCall) -> dict[str, Any]:
    """A tool that the model asks its client to run."""
    return {"id": call.call_id, "name": call.name, "arguments": call.arguments}


def encode_turn(turn: Turn) -> dict[str, Any]:
    """A turn as the native surface shows it."""
    finished = turn.finished_at
    return {
        "id": turn.ref.id,
        "session_id": turn.ref.session_id,
        "status": turn.status.value,
        "model": turn.model,
        "usage": encode_usage(turn),
        "error": _encode_failure(turn.failure),
        "created_at": encode_time(turn.created_at),
        "finished_at": None if finished is None else encode_time(finished),
        "duration_ms": None if finished is None else finished - turn.created_at,
        "context": _encode_context(turn),
    }


def encode_usage(turn: Turn) -> dict[str, Any] | None:
    usage = turn.usage
    if usage is None:
        return None
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.total_tokens,
        "estimated": usage.estimated,
    }


def _encode_failure(failure: Failure | None) -> dict[str, Any] | None:
    if failure is None:
        return None
    return {
        "code": failure.code,
        "message": failure.sentence,
        "retryable": is_retryable(failure),
    }


_RETRYABLE = frozenset({"store_unavailable", "queue_timeout"})


def is_retryable(failure: Failure) -> bool:
    return failure.code in ProviderError.RETRYABLE or failure.code in _RETRYABLE


def _encode_context(turn: Turn) -> dict[str, Any] | None:
    context = turn.context
    if context is None:
        return None
    return {
        "messages_sent": context.messages_sent,
        "messages_dropped": context.messages_dropped,
        "summarised": context.summarised,
        "estimated_tokens": context.estimated_tokens,
    }


def encode_time(milliseconds: int) -> str:
    """A time as ISO 8601 in UTC, to the millisecond."""
    time = datetime.fromtimestamp(milliseconds / 1000, UTC)
    return time.isoformat(timespec="milliseconds").replace("+00:00", "Z")
