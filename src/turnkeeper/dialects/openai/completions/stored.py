"""Chat completions that were kept: listed, read, changed, deleted.

A kept completion is a turn with which its parameters are kept. One by itself has a session for
itself, which no list of sessions shows.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec

from turnkeeper.contracts import StoredReply
from turnkeeper.dialects.exchange import Answer, Call, Parts, encode_json
from turnkeeper.dialects.openai.completions.messages import encode_messages
from turnkeeper.dialects.openai.completions.shape import encode_completion
from turnkeeper.dialects.openai.errors import WrongParameter
from turnkeeper.dialects.openai.ids import completion_id, parse_completion_id
from turnkeeper.dialects.openai.paging import encode_list, query_limit, query_order
from turnkeeper.dialects.openai.parameters import check_metadata, decode_body
from turnkeeper.domain import Item, Message, TurnRef, TurnStatus, divide
from turnkeeper.errors import TurnNotFound

PAGE_LIMIT = 100
_BATCH = 100  # turns looked through at once for those that are wanted


class Kept(msgspec.Struct, frozen=True, tag_field="object", tag="chat.completion"):
    """What is kept with the turn of a completion.

    Attributes:
        is_alone: its session was made for it.
        asked: the parameters of its request.
    """

    metadata: dict[str, str]
    asked: dict[str, msgspec.Raw]
    is_alone: bool


_kept = msgspec.json.Decoder(Kept)


def encode_kept(
    metadata: Mapping[str, str], asked: Mapping[str, msgspec.Raw], *, is_alone: bool
) -> str:
    return encode_json(Kept(dict(metadata), dict(asked), is_alone)).decode()


def decode_kept(data: str | None) -> Kept | None:
    """What is kept with a turn; None if that was no chat completion."""
    try:
        return None if data is None else _kept.decode(data)
    except msgspec.ValidationError:
        return None


# --- One ---------------------------------------------------------------------------------------


class Found(msgspec.Struct, frozen=True):
    """A kept completion."""

    stored: StoredReply
    kept: Kept

    @property
    def asked(self) -> Sequence[Item]:
        asked, _ = divide(self.stored.items)
        return [kept.item for kept in asked]

    def encode(self) -> dict[str, Any]:
        _, made = divide(self.stored.items)
        items = [kept.item for kept in made]
        text = "".join([item.text for item in items if isinstance(item, Message)])
        whole = encode_completion(self.stored.turn, text, items)
        asked = {name: value for name, value in self.kept.asked.items() if name not in whole}
        return {**whole, **asked, "metadata": self.kept.metadata}


async def _find(parts: Parts, call: Call, *, is_over: bool = True) -> Found:
    """The completion that a path names; where it `is_over`, only one that was completed.

    Raises:
        TurnNotFound: there is none.
    """
    id_ = call.path["id"]
    try:
        ref = parse_completion_id(id_)
        if ref is not None:
            stored = await parts.engine.read_turn(call.caller, ref)
            kept = decode_kept(stored.data)
            if kept is not None and (stored.turn.status is TurnStatus.COMPLETED or not is_over):
                return Found(stored, kept)
    except TurnNotFound:
        pass
    raise TurnNotFound(f"No chat completion {id_[:100]} is stored")


async def get_completion(parts: Parts, call: Call) -> Answer:
    found = await _find(parts, call)
    return _ok(found.encode())


class UpdateRequest(msgspec.Struct, forbid_unknown_fields=True):
    metadata: dict[str, Any] | None


_update_request = msgspec.json.Decoder(UpdateRequest)


async def update_completion(parts: Parts, call: Call) -> Answer:
    request = decode_body(_update_request, call.body)
    check_metadata(request.metadata or {})
    found = await _find(parts, call)
    kept = msgspec.structs.replace(found.kept, metadata=request.metadata or {})
    data = encode_json(kept).decode()
    await parts.engine.set_turn_data(call.caller, found.stored.turn.ref, data)
    return _ok(Found(found.stored, kept).encode())


async def delete_completion(parts: Parts, call: Call) -> Answer:
    """What was said goes with it, unless it was said in a session."""
    found = await _find(parts, call, is_over=False)
    ref = found.stored.turn.ref
    await parts.engine.delete_turn(call.caller, ref, keep_items=not found.kept.is_alone)
    deleted = {"id": completion_id(ref), "object": "chat.completion.deleted", "deleted": True}
    return _ok(deleted)


async def list_messages(parts: Parts, call: Call) -> Answer:
    """What it answers, as messages with ids of their own."""
    found = await _find(parts, call)
    limit, newest_first = query_limit(call), query_order(call, "asc")
    id_ = completion_id(found.stored.turn.ref)
    messages = [
        {"id": f"{id_}-{number}", "name": None, "content_parts": None, **message}
        for number, message in enumerate(encode_messages(found.asked))
    ]
    if newest_first:
        messages.reverse()
    after = call.query.get("after")
    if after is not None:
        ids = [message["id"] for message in messages]
        if after not in ids:
            raise WrongParameter("after must be the id of one of the messages", "after")
        messages = messages[ids.index(after) + 1 :]
    return _ok(encode_list(messages[:limit], has_more=len(messages) > limit))


# --- All ---------------------------------------------------------------------------------------


async def list_completions(parts: Parts, call: Call) -> Answer:
    """Those that have a session for themselves, and were completed."""
    limit, newest_first = query_limit(call), query_order(call, "asc")
    is_wanted = _filter(call.query)
    place = _after(call)
    found: list[Found] = []
    more = True
    while more and len(found) <= limit:
        page = await parts.engine.page_turns(
            call.caller, after=place, limit=_BATCH, newest_first=newest_first
        )
        for stored in page.turns:
            kept = decode_kept(stored.data)
            if kept is not None and is_wanted(stored, kept):
                found.append(Found(stored, kept))
        more = page.more
        place = page.turns[-1].turn.ref if page.turns else place
    listed = [one.encode() for one in found[:limit]]
    return _ok(encode_list(listed, has_more=len(found) > limit))


def _after(call: Call) -> TurnRef | None:
    after = call.query.get("after")
    if after is None:
        return None
    ref = parse_completion_id(after)
    if ref is None:
        raise WrongParameter("after must be the id of a chat completion", "after")
    return ref


def _filter(query: Mapping[str, str]) -> Callable[[StoredReply, Kept], bool]:
    """Whether a turn is what a query asks for: `model`, `metadata[key]=value`."""
    model = query.get("model")
    wanted = {
        name[len("metadata[") : -1]: value
        for name, value in query.items()
        if name.startswith("metadata[") and name.endswith("]")
    }

    def is_wanted(stored: StoredReply, kept: Kept) -> bool:
        return (
            stored.turn.status is TurnStatus.COMPLETED
            and model in (None, stored.turn.model)
            and wanted.items() <= kept.metadata.items()
        )

    return is_wanted


def _ok(body: Any) -> Answer:
    return Answer(200, encode_json(body))
