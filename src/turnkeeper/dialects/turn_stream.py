"""A turn on the wire, for every dialect that has no words of its own for it.

An event's id is how many characters of the reply the client has by then, so that any server
that has the text can go on from any id; nothing about chunks is kept. The last event's id ends
in `/end`.
"""

import re
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, assert_never

from turnkeeper.dialects.exchange import Answer, Call, EventStream, Outcome, encode_json
from turnkeeper.domain import Failure, Turn
from turnkeeper.errors import InvalidRequest, ProviderError
from turnkeeper.events import Ended, Grew, ReplyEvent, Started
from turnkeeper.reply import Reply
from turnkeeper.sse import encode_event

_EVENT_ID = re.compile(r"([0-9]{1,15})(/end)?")


def turn_stream(
    reply: Reply, after: int | None, session_id: str, reply_key: str | None = None
) -> EventStream:
    """The reply as server-sent events.

    `session_id` is the name the client has for the session; `reply_key` is what its dialect calls
    the reply, if not `response`: the last event has it under both.
    """
    return EventStream(reply, after, encode_for(session_id, reply_key))


def resumed_stream(reply: Reply, call: Call) -> Outcome:
    """The rest of a stream, from `Last-Event-ID` or `?after=`; 204 when nothing is left.

    Raises:
        InvalidRequest: the id is not one of ours.
    """
    session_id = reply.turn.ref.session_id
    after = call.header(b"last-event-id") or call.query.get("after", "")
    if not after:
        return turn_stream(reply, None, session_id)
    match = _EVENT_ID.fullmatch(after)
    if match is None:
        raise InvalidRequest("The event id must be a number of characters")
    if match[2] and reply.ended is not None:
        return Answer(204, b"")  # an EventSource stops asking
    return turn_stream(reply, int(match[1]), session_id)


def encode_for(session_id: str, reply_key: str | None = None) -> Callable[[ReplyEvent], bytes]:
    def encode(event: ReplyEvent) -> bytes:
        match event:
            case Grew(text=text, end=end):  # first: it is nearly always this
                delta = b'{"text":%b}' % encode_json(text)
                return encode_event(delta, "message.delta", str(end))
            case Started(turn=turn):
                started = {"turn_id": turn.ref.id, "session_id": session_id, "model": turn.model}
                return encode_event(encode_json(started), "turn.started", "0")
            case Ended(turn=turn, text=text):
                data = _ending(event, session_id)
                if reply_key is not None and "response" in data:
                    data[reply_key] = data["response"]
                ending = encode_json(data)
                return encode_event(ending, f"turn.{turn.status.value}", f"{len(text)}/end")
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
    return data | ({"response": event.text, "replace": True} if event.replace else {})


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
