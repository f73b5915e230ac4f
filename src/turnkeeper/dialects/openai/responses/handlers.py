"""`/v1/responses` over HTTP: made, read, followed, cancelled, deleted; what was asked in one."""

import re
from collections.abc import Awaitable
from typing import TypeVar

from turnkeeper.dialects.exchange import (
    REPEATED,
    Answer,
    Call,
    EventStream,
    Headers,
    Outcome,
    Parts,
    Route,
    encode_json,
    turn_headers,
    while_wanted,
)
from turnkeeper.dialects.openai.errors import NotMade, WrongParameter, encode_error
from turnkeeper.dialects.openai.ids import parse_item_id, parse_response_id
from turnkeeper.dialects.openai.paging import encode_list, query_limit, query_order
from turnkeeper.dialects.openai.responses.request import decode_wanted
from turnkeeper.dialects.openai.responses.running import Running, begin, find, kept_of
from turnkeeper.dialects.openai.responses.shape import decode_kept, encode_kept_items
from turnkeeper.dialects.openai.streaming import KEEP_ALIVE
from turnkeeper.domain import TurnRef, TurnStatus
from turnkeeper.errors import InvalidRequest, TurnEnded, TurnNotFound

T = TypeVar("T")


async def create_response(parts: Parts, call: Call) -> Outcome:
    wanted = decode_wanted(call.body)
    if wanted.session is None and wanted.previous is None:
        # What is there already stays whose it is.
        try:
            call = call.on_behalf_of(wanted.user)
        except InvalidRequest as error:
            name = "safety_identifier" if "safety_identifier" in wanted.echo else "user"
            raise WrongParameter(error.sentence, name) from None
    key = call.key()
    running = await begin(parts, call.caller, wanted, key)
    headers = _headers_of(running)
    if call.wants_stream(wanted.stream):
        return _stream(running, headers)
    if not wanted.background:
        try:
            await _see_end(call, running)
        except TurnEnded as ended:
            if not running.is_kept:
                raise NotMade(ended) from None
            ended.repeated = running.repeated
            return encode_error(ended, keyed=key is not None)
    return Answer(200, running.encode(), headers)


async def _see_end(call: Call, running: Running) -> None:
    """Returns once it is over, if something came of it that is to be told.

    Raises:
        TurnEnded: it failed, or the server stopped.
        InvalidRequest: the client went away, and it was made as long as it was wanted.
    """
    reply = running.reply
    waiting = reply.completed()
    try:
        await (waiting if reply.on_abandoned is None else while_wanted(call, waiting))
    except TurnEnded:
        if reply.turn.status is not TurnStatus.CANCELLED or not running.is_kept:
            raise


def _stream(running: Running, headers: Headers, after: int = -1) -> EventStream:
    return EventStream(running.follow, running.fold(after).join, headers, KEEP_ALIVE)


def _headers_of(running: Running) -> Headers:
    if not running.is_kept:
        return ()
    ref = running.reply.turn.ref
    headers = turn_headers(ref.id, ref.session_id)
    return (*headers, REPEATED) if running.repeated else headers


async def get_response(parts: Parts, call: Call) -> Outcome:
    running = await _of_response(call, find(parts, call.caller, _find_ref(call)))
    headers = _headers_of(running)
    after = call.query.get("starting_after")
    if not call.wants_stream(call.query.get("stream") == "true"):
        if after is not None:
            raise WrongParameter("starting_after needs stream=true", "starting_after")
        return Answer(200, running.encode(), headers)
    return _stream(running, headers, -1 if after is None else _number(after))


def _number(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,15}", text):
        raise WrongParameter("starting_after must be the number of an event", "starting_after")
    return int(text)


async def cancel_response(parts: Parts, call: Call) -> Answer:
    ref = _find_ref(call)
    turn = await _of_response(call, parts.engine.cancel_turn(call.caller, ref))
    if turn.status is not TurnStatus.CANCELLED:
        raise InvalidRequest("Cannot cancel a completed response")
    running = await find(parts, call.caller, ref)
    return Answer(200, running.encode(), _headers_of(running))


async def delete_response(parts: Parts, call: Call) -> Answer:
    ref = _find_ref(call)
    stored = await _of_response(call, parts.engine.read_turn(call.caller, ref))
    kept = decode_kept(stored.data)
    if kept is None:
        raise _not_found(call)
    deleting = parts.engine.delete_turn(call.caller, ref, keep_items=kept.in_conversation)
    await _of_response(call, deleting)
    body = {"id": call.path["id"], "object": "response.deleted", "deleted": True}
    return Answer(200, encode_json(body))


async def list_input_items(parts: Parts, call: Call) -> Answer:
    ref = _find_ref(call)
    limit, newest_first = query_limit(call), query_order(call, "desc")
    after = call.query.get("after")
    stored = await _of_response(call, parts.engine.read_turn(call.caller, ref))
    asked = kept_of(stored).asked
    items = [item for item in stored.items if item.position < asked]
    if newest_first:
        items.reverse()
    if after is not None:
        known = parse_item_id(after)
        if known is None or (known.session_id, known.turn) != (ref.session_id, ref.number):
            raise WrongParameter("after must be the id of one of the input items", "after")
        items = [
            item
            for item in items
            if (item.position < known.position) == newest_first and item.position != known.position
        ]
    data = encode_kept_items(ref, items[:limit])
    return Answer(200, encode_json(encode_list(data, has_more=len(items) > limit)))


def _find_ref(call: Call) -> TurnRef:
    ref = parse_response_id(call.path["id"])
    if ref is None:
        raise _not_found(call)
    return ref


def _not_found(call: Call) -> TurnNotFound:
    return TurnNotFound(f"Response with id '{call.path['id'][:100]}' not found.")


async def _of_response(call: Call, work: Awaitable[T]) -> T:
    """What `work` returns; that there is no such turn is told in the words of this dialect."""
    try:
        return await work
    except TurnNotFound:
        raise _not_found(call) from None


_ONE = "/v1/responses/{id}"

ROUTES = (
    Route("POST", "/v1/responses", create_response, "Make a response"),
    Route("GET", _ONE, get_response, "Read a response, or follow it from any event on"),
    Route("DELETE", _ONE, delete_response, "Delete a response"),
    Route("POST", f"{_ONE}/cancel", cancel_response, "Stop a response"),
    Route("GET", f"{_ONE}/input_items", list_input_items, "List what a response answers"),
)
