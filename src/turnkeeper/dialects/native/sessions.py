"""Sessions of any dialect: made, listed, changed, forked, removed; read page by page; answered
anew and edited, and the versions that this leaves.

`{id}` is a session's id or the caller's own alias for it. What they all look like is in
`session_view`.
"""

import re
from collections.abc import Mapping
from typing import Any, Literal

import msgspec
from msgspec import UNSET, UnsetType

from turnkeeper.dialects import exchange
from turnkeeper.dialects.exchange import (
    Answer,
    Call,
    Outcome,
    Parts,
    Route,
    decode_object,
    decode_optional,
    encode_json,
    plain_text,
)
from turnkeeper.dialects.session_view import (
    answer_with,
    encode_message,
    encode_messages,
    encode_session,
    encode_summary,
    find_message,
    made_answer,
    newer,
    older,
    query_limit,
    tagged_answer,
    wanted_stamps,
)
from turnkeeper.domain import (
    MessageRef,
    SessionChange,
    SessionFilter,
    TurnRef,
    Version,
    find_session,
    is_session_id,
    parse_message_id,
)
from turnkeeper.errors import InvalidRequest, MessageNotFound, SessionNotFound, TurnkeeperError
from turnkeeper.sessions import MESSAGE_PAGE_LIMIT, PAGE_LIMIT, Said, SessionRequest

# --- Bodies: what is not known here is refused, so that a slip of the pen is not lost ----------


class CreateRequest(msgspec.Struct, forbid_unknown_fields=True):
    """`POST /api/chat-sessions`. A variable's value is a string, or any JSON, told as its text."""

    title: str | None = None
    deployment: str | None = None
    model: str | None = None
    variables: dict[str, msgspec.Raw] = {}
    metadata: dict[str, Any] = {}
    messages: tuple[Said, ...] = ()


class ChangeRequest(msgspec.Struct, forbid_unknown_fields=True):
    title: str | UnsetType | None = UNSET
    model: str | UnsetType | None = UNSET
    metadata: dict[str, Any] | UnsetType = UNSET
    pinned: bool | UnsetType = UNSET
    archived: bool | UnsetType = UNSET


class ForkRequest(msgspec.Struct, forbid_unknown_fields=True):
    at: str | None = None


class AnewRequest(msgspec.Struct, forbid_unknown_fields=True):
    model: str | None = None
    stream: bool = False


class EditRequest(msgspec.Struct, forbid_unknown_fields=True):
    message: str | None = None
    model: str | None = None
    stream: bool = False


_create_request = msgspec.json.Decoder(CreateRequest)
_change_request = msgspec.json.Decoder(ChangeRequest)
_fork_request = msgspec.json.Decoder(ForkRequest)
_anew_request = msgspec.json.Decoder(AnewRequest)
_edit_request = msgspec.json.Decoder(EditRequest)

# --- Sessions ----------------------------------------------------------------------------------


async def create_session(parts: Parts, call: Call) -> Answer:
    wanted = decode_optional(_create_request, call.body)
    request = SessionRequest(
        wanted.deployment,
        wanted.title,
        wanted.model,
        {name: plain_text(value) for name, value in wanted.variables.items()},
        wanted.metadata,
        wanted.messages,
    )
    return made_answer(await parts.sessions.create(call.caller, request, key=call.key()))


async def list_sessions(parts: Parts, call: Call) -> Answer:
    query = call.query
    after = query.get("after")
    if after is not None and not is_session_id(after):
        raise InvalidRequest("after must be the id of a session")
    wanted = SessionFilter(
        archived=_kind(query, "archived", "false"),
        pinned=_kind(query, "pinned", "any"),
        deployment=query.get("deployment"),
        title=query.get("q"),
    )
    page = await parts.sessions.page(call.caller, wanted, after, query_limit(call, 20, PAGE_LIMIT))
    sessions = [encode_summary(session) for session in page.sessions]
    return _ok({"chat_sessions": sessions, "next": page.next})


def _kind(query: Mapping[str, str], name: Literal["archived", "pinned"], usual: str) -> bool | None:
    """Which of two kinds of sessions is wanted, or None for both."""
    try:
        return {"true": True, "false": False, "any": None}[query.get(name, usual)]
    except KeyError:
        raise InvalidRequest(f"{name} must be true, false or any") from None


async def change_session(parts: Parts, call: Call) -> Answer:
    choice = find_session(call.path["id"])
    wanted = decode_object(_change_request, call.body)
    change = SessionChange(
        wanted.title, wanted.model, wanted.metadata, wanted.pinned, wanted.archived
    )
    session = await parts.sessions.update(call.caller, choice, change, if_stamp=wanted_stamps(call))
    return tagged_answer(200, session, encode_session(session))


async def delete_session(parts: Parts, call: Call) -> Answer:
    choice = find_session(call.path["id"])
    await parts.sessions.delete(call.caller, choice, if_stamp=wanted_stamps(call))
    return Answer(204, b"")


async def fork_session(parts: Parts, call: Call) -> Answer:
    choice = find_session(call.path["id"])
    wanted = decode_optional(_fork_request, call.body)
    at = None if wanted.at is None else find_message(wanted.at)
    return made_answer(await parts.sessions.fork(call.caller, choice, at, key=call.key()))


# --- Messages ----------------------------------------------------------------------------------


async def list_messages(parts: Parts, call: Call) -> Answer:
    choice = find_session(call.path["id"])
    after, before = _cursor(call, "after"), _cursor(call, "before")
    if after and before:
        raise InvalidRequest("after and before exclude each other")
    limit = query_limit(call, 100, MESSAGE_PAGE_LIMIT)
    page = await parts.sessions.page_messages(
        call.caller, choice, after=after, before=before, limit=limit
    )
    for name, cursor in (("after", after), ("before", before)):
        if cursor and cursor.session_id not in (page.session.id, _BEGINNING.session_id):
            raise InvalidRequest(f"{name} must be the id of a message of this session")
    next_ = newer(page) if after else older(page)
    return _ok({"messages": encode_messages(page), "next": next_})


_BEGINNING = MessageRef("", 0, 0)  # before the first message of any session


def _cursor(call: Call, name: Literal["after", "before"]) -> MessageRef | None:
    text = call.query.get(name)
    if text is None:
        return None
    if name == "after" and text == "0":
        return _BEGINNING
    ref = parse_message_id(text)
    if ref is None:
        raise InvalidRequest(f"{name} must be the id of a message of this session")
    return ref


async def answer_anew(parts: Parts, call: Call) -> Outcome:
    choice = find_session(call.path["id"])
    wanted = decode_optional(_anew_request, call.body)
    taken = await parts.engine.answer_anew(
        call.caller, choice, model=wanted.model or None, key=call.key()
    )
    return await answer_with(parts, call, taken, wanted.stream)


async def edit_message(parts: Parts, call: Call) -> Outcome:
    choice = find_session(call.path["id"])
    message = find_message(call.path["message_id"])
    wanted = decode_optional(_edit_request, call.body)
    taken = await parts.engine.edit_message(
        call.caller,
        choice,
        message,
        wanted.message or "",
        model=wanted.model or None,
        key=call.key(),
    )
    return await answer_with(parts, call, taken, wanted.stream)


# --- Versions ----------------------------------------------------------------------------------


async def list_versions(parts: Parts, call: Call) -> Answer:
    choice = find_session(call.path["id"])
    message = find_message(call.path["message_id"])
    versions = await parts.sessions.list_versions(call.caller, choice, message)
    return _ok(
        {
            "versions": [
                _encode_version(message.session_id, number, version)
                for number, version in enumerate(versions, 1)
            ]
        }
    )


def _encode_version(session_id: str, number: int, version: Version) -> dict[str, Any]:
    message = version.message and encode_message(session_id, version.message)
    return {
        "n": number,
        "selected": version.selected,
        "turn_id": message["turn_id"] if message else TurnRef(session_id, version.turn).id,
        "message": message,
    }


async def select_version(parts: Parts, call: Call) -> Answer:
    choice = find_session(call.path["id"])
    message = find_message(call.path["message_id"])
    number = call.path["n"]
    if not re.fullmatch(r"[0-9]{1,9}", number):
        raise MessageNotFound("The message has no such version")
    session = await parts.sessions.select_version(call.caller, choice, message, int(number))
    return tagged_answer(200, session, encode_session(session))


def _ok(body: Any) -> Answer:
    return Answer(200, encode_json(body))


def encode_error(error: TurnkeeperError) -> Answer:
    if isinstance(error, SessionNotFound):
        error = SessionNotFound("Chat session not found")  # as seeds 002 and 003 call it
    return exchange.encode_error(error)


_ONE = "/api/chat-sessions/{id}"
_MESSAGE = f"{_ONE}/messages/{{message_id}}"

ROUTES = (
    Route("POST", "/api/chat-sessions", create_session, "Create a session"),
    Route("GET", "/api/chat-sessions", list_sessions, "List your sessions, newest first"),
    Route("PATCH", _ONE, change_session, "Change a session's title, model, metadata or place"),
    Route("DELETE", _ONE, delete_session, "Delete a session and all that was said in it"),
    Route(
        "GET",
        f"{_ONE}/messages",
        list_messages,
        "Read a session's messages, page by page",
        session_token=True,
    ),
    Route("POST", f"{_ONE}/fork", fork_session, "Copy a session up to a message"),
    Route("POST", f"{_ONE}/regenerate", answer_anew, "Have the last message answered anew"),
    Route("POST", f"{_MESSAGE}/edit", edit_message, "Put other words for a message"),
    Route("GET", f"{_MESSAGE}/versions", list_versions, "List what was said at a place"),
    Route("POST", f"{_MESSAGE}/versions/{{n}}/select", select_version, "Go back to a version"),
)
