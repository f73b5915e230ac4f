"""`/v1/conversations`: sessions, and what is in them item by item."""

from collections.abc import Awaitable, Sequence
from typing import Any, TypeVar

import msgspec

from turnkeeper.dialects.exchange import Answer, Call, Parts, Route, encode_json, made_headers
from turnkeeper.dialects.openai.content import decode_items, encode_item, item_status
from turnkeeper.dialects.openai.errors import WrongParameter
from turnkeeper.dialects.openai.ids import (
    conversation_id,
    find_conversation,
    parse_conversation_id,
    parse_item_id,
)
from turnkeeper.dialects.openai.items import check_items, resolve_items
from turnkeeper.dialects.openai.paging import encode_list, query_limit, query_order
from turnkeeper.dialects.openai.parameters import check_metadata, decode_body
from turnkeeper.domain import (
    ById,
    Item,
    ListedItem,
    MessageRef,
    Session,
    SessionChange,
    SessionChoice,
    SessionFilter,
)
from turnkeeper.errors import MessageNotFound, SessionNotFound
from turnkeeper.sessions import SessionRequest

T = TypeVar("T")

_MOST_ITEMS = 20  # put into a conversation at once

# --- Bodies ------------------------------------------------------------------------------------


class CreateRequest(msgspec.Struct, forbid_unknown_fields=True):
    items: list[msgspec.Raw] | None = None
    metadata: dict[str, Any] | None = None


class UpdateRequest(msgspec.Struct, forbid_unknown_fields=True):
    metadata: dict[str, Any] | None


class ItemsRequest(msgspec.Struct, forbid_unknown_fields=True):
    items: list[msgspec.Raw]


_create_request = msgspec.json.Decoder(CreateRequest)
_update_request = msgspec.json.Decoder(UpdateRequest)
_items_request = msgspec.json.Decoder(ItemsRequest)

# --- Conversations -----------------------------------------------------------------------------


async def create_conversation(parts: Parts, call: Call) -> Answer:
    wanted = decode_body(_create_request, call.body.strip() or b"{}")
    metadata = _checked(wanted.metadata)
    items = await _decode(parts, call, wanted.items or [])
    made = await parts.sessions.create(
        call.caller, SessionRequest(metadata=metadata), items=items, key=call.key()
    )
    return Answer(200, encode_json(_encode(made.thing)), made_headers(made))


async def list_conversations(parts: Parts, call: Call) -> Answer:
    limit, newest_first = query_limit(call), query_order(call, "desc")
    after = call.query.get("after")
    known = None if after is None else parse_conversation_id(after)
    if after is not None and known is None:
        raise WrongParameter("after must be the id of a conversation", "after")
    page = await parts.sessions.page(
        call.caller, SessionFilter(), known, limit, oldest_first=not newest_first
    )
    data = [_encode(session) for session in page.sessions]
    return Answer(200, encode_json(encode_list(data, has_more=page.next is not None)))


async def get_conversation(parts: Parts, call: Call) -> Answer:
    return _ok(
        _encode(await _of_conversation(call, parts.sessions.get(call.caller, _choose(call))))
    )


async def update_conversation(parts: Parts, call: Call) -> Answer:
    choice = _choose(call)
    change = SessionChange(metadata=_checked(decode_body(_update_request, call.body).metadata))
    return _ok(
        _encode(await _of_conversation(call, parts.sessions.update(call.caller, choice, change)))
    )


async def delete_conversation(parts: Parts, call: Call) -> Answer:
    await _of_conversation(call, parts.sessions.delete(call.caller, _choose(call)))
    return _ok({"id": call.path["id"], "object": "conversation.deleted", "deleted": True})


def _checked(metadata: dict[str, Any] | None) -> dict[str, Any]:
    check_metadata(metadata or {})
    return metadata or {}


def _choose(call: Call) -> SessionChoice:
    try:
        return find_conversation(call.path["id"])
    except SessionNotFound:
        raise _not_found(call) from None


def _not_found(call: Call) -> SessionNotFound:
    return SessionNotFound(f"Conversation with id '{call.path['id'][:100]}' not found.")


async def _of_conversation(call: Call, work: Awaitable[T]) -> T:
    """What `work` returns; that something is not there is told in the words of this dialect."""
    try:
        return await work
    except SessionNotFound:
        raise _not_found(call) from None
    except MessageNotFound:
        raise _no_item(call) from None


def _no_item(call: Call) -> MessageNotFound:
    return MessageNotFound(f"Item with id '{call.path['item_id'][:100]}' not found.")


def _encode(session: Session) -> dict[str, Any]:
    return {
        "id": conversation_id(session.id),
        "object": "conversation",
        "created_at": session.created_at // 1000,
        "metadata": session.metadata,
    }


# --- Items -------------------------------------------------------------------------------------


async def create_items(parts: Parts, call: Call) -> Answer:
    id_ = await _session_id(parts, call)
    wanted = decode_body(_items_request, call.body)
    items = await _decode(parts, call, wanted.items)
    if not items:
        raise WrongParameter("items must have at least 1 entry", "items")
    adding = parts.sessions.add_items(call.caller, ById(id_), items, key=call.key())
    added = await _of_conversation(call, adding)
    return _page(id_, added, has_more=False)


async def list_items(parts: Parts, call: Call) -> Answer:
    limit, newest_first = query_limit(call), query_order(call, "desc")
    id_ = await _session_id(parts, call)
    reading = parts.sessions.page_items(
        call.caller, ById(id_), after=_after(call, id_), limit=limit, newest_first=newest_first
    )
    page = await _of_conversation(call, reading)
    return _page(id_, page.items, has_more=page.more)


async def get_item(parts: Parts, call: Call) -> Answer:
    place = await _find_item(parts, call)
    listed = await _of_conversation(call, parts.sessions.get_item(call.caller, place))
    return _ok(_encode_listed(place.session_id, listed))


async def delete_item(parts: Parts, call: Call) -> Answer:
    place = await _find_item(parts, call)
    deleting = parts.sessions.delete_item(call.caller, place)
    return _ok(_encode(await _of_conversation(call, deleting)))


async def _decode(parts: Parts, call: Call, given: list[msgspec.Raw]) -> tuple[Item, ...]:
    if len(given) > _MOST_ITEMS:
        raise WrongParameter(f"items must have at most {_MOST_ITEMS} entries", "items")
    items = await resolve_items(parts, call.caller, decode_items(given, "items"))
    return check_items(parts, items, "items")


async def _session_id(parts: Parts, call: Call) -> str:
    """The id of the session that a conversation is; whether it is there is seen later."""
    choice = _choose(call)
    if isinstance(choice, ById):
        return choice.id
    return (await _of_conversation(call, parts.sessions.get(call.caller, choice))).id


async def _find_item(parts: Parts, call: Call) -> MessageRef:
    place = parse_item_id(call.path["item_id"])
    if place is None or place.session_id != await _session_id(parts, call):
        raise _no_item(call)
    return place


def _after(call: Call, session_id: str) -> MessageRef | None:
    after = call.query.get("after")
    if after is None:
        return None
    place = parse_item_id(after)
    if place is None or place.session_id != session_id:
        raise WrongParameter("after must be the id of an item of this conversation", "after")
    return place


def _page(session_id: str, items: Sequence[ListedItem], *, has_more: bool) -> Answer:
    data = [_encode_listed(session_id, item) for item in items]
    return _ok(encode_list(data, has_more=has_more))


def _encode_listed(session_id: str, listed: ListedItem) -> dict[str, Any]:
    place = MessageRef(session_id, listed.turn, listed.position)
    return encode_item(place, listed.item, item_status(listed.status))


def _ok(body: Any) -> Answer:
    return Answer(200, encode_json(body))


_ONE = "/v1/conversations/{id}"
_ITEM = f"{_ONE}/items/{{item_id}}"

ROUTES = (
    Route("POST", "/v1/conversations", create_conversation, "Make a conversation"),
    Route("GET", "/v1/conversations", list_conversations, "List your conversations"),
    Route("GET", _ONE, get_conversation, "Read what is known of a conversation"),
    Route("POST", _ONE, update_conversation, "Change a conversation's metadata"),
    Route("DELETE", _ONE, delete_conversation, "Delete a conversation and all that is in it"),
    Route("POST", f"{_ONE}/items", create_items, "Put items into a conversation"),
    Route("GET", f"{_ONE}/items", list_items, "List a conversation's items, page by page"),
    Route("GET", _ITEM, get_item, "Read an item"),
    Route("DELETE", _ITEM, delete_item, "Delete an item"),
)
