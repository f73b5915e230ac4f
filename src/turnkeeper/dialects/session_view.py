"""A session and its messages on the wire, for every dialect that has no words of its own for them.

What a session looks like: in a list; read alone; with what was said in it. Aliases are never
shown: a client that chose one knows it.
"""

import re
from collections.abc import Collection, Sequence
from typing import Any

from turnkeeper.contracts import Made, MessagePage
from turnkeeper.dialects.exchange import (
    Answer,
    Call,
    Headers,
    Outcome,
    Parts,
    completed,
    encode_json,
    made_headers,
    turn_answer,
)
from turnkeeper.dialects.turn_stream import encode_time, encode_turn, turn_stream
from turnkeeper.domain import (
    ById,
    ListedItem,
    Message,
    MessageRef,
    Session,
    TurnRef,
    parse_message_id,
)
from turnkeeper.errors import InvalidRequest, MessageNotFound, SessionNotFound, TurnEnded
from turnkeeper.reply import Reply, Taken

# --- What a session looks like -----------------------------------------------------------------


def encode_summary(session: Session) -> dict[str, Any]:
    """A session in a list."""
    return {
        "id": session.id,
        "title": session.title,
        "deployment": session.deployment,
        "model": session.model,
        "message_count": session.message_count,
        "pinned": session.pinned,
        "archived": session.archived,
        **({} if session.end_user is None else {"end_user": session.end_user}),
        "metadata": session.metadata,
        "created_at": encode_time(session.created_at),
        "updated_at": encode_time(session.updated_at),
    }


def encode_session(session: Session) -> dict[str, Any]:
    """A session read alone, without what was said in it."""
    running = session.running
    return {
        **encode_summary(session),
        "engineStateId": session.revision,  # seed 004's word for a revision
        "variables": session.variables,
        "running_turn_id": None if running is None else TurnRef(session.id, running).id,
    }


def encode_conversation(page: MessagePage, next_: str | None) -> dict[str, Any]:
    """A session with messages, and the cursor for those before them."""
    session = page.session
    return {
        **encode_session(session),
        "section_id": session.section,
        "document_id": session.document,
        "messages": encode_messages(page),
        "context_documents": session.context_documents,
        "references": [],
        "config": session.config,
        "next": next_,
    }


def encode_messages(page: MessagePage) -> list[dict[str, Any]]:
    return [encode_message(page.session.id, item) for item in page.messages]


def encode_message(session_id: str, item: ListedItem) -> dict[str, Any]:
    words, status = item.item, item.status
    assert isinstance(words, Message)  # noqa: S101
    return {
        "id": MessageRef(session_id, item.turn, item.position).id,
        "turn_id": None if status is None else TurnRef(session_id, item.turn).id,
        "role": words.role,
        "content": words.text,
        "status": None if status is None else status.value,
        "model": item.model,
        "timestamp": encode_time(item.at),
        "references": [],
    }


def older(page: MessagePage) -> str | None:
    """The cursor for what is before a page that was read backwards."""
    return _cursor(page.session.id, page.messages[:1]) if page.more else None


def newer(page: MessagePage) -> str | None:
    """The cursor for what is behind a page that was read forwards."""
    return _cursor(page.session.id, page.messages[-1:]) if page.more else None


def _cursor(session_id: str, items: Sequence[ListedItem]) -> str | None:
    return MessageRef(session_id, items[0].turn, items[0].position).id if items else None


async def read_said(parts: Parts, call: Call, reply: Reply, limit: int) -> MessagePage:
    """The last `limit` messages up to a reply that was completed, itself the last.

    If another version stands in its place since, only what was said in its own turn.

    Raises:
        TurnEnded: it was removed since; the caller learns what it would have a moment earlier.
    """
    ref = reply.turn.ref
    behind = MessageRef(ref.session_id, ref.number + 1, 0)
    try:
        page = await parts.sessions.page_messages(
            call.caller, ById(ref.session_id), before=behind, limit=limit
        )
        if not _ends_with_reply(page.messages, ref.number):
            said = await parts.sessions.list_words(call.caller, ref)
            page = MessagePage(page.session, said[-limit:], bool(page.messages))
    except SessionNotFound:
        page = None
    if page is None or not _ends_with_reply(page.messages, ref.number):
        raise TurnEnded(ref.id, ref.session_id, "turn_cancelled", "The turn was cancelled", None)
    return page


def _ends_with_reply(messages: Sequence[ListedItem], number: int) -> bool:
    return any(_is_reply(item, number) for item in messages[-1:])


def _is_reply(item: ListedItem, number: int) -> bool:
    return item.turn == number and isinstance(item.item, Message) and item.item.role == "assistant"


async def answer_with(parts: Parts, call: Call, taken: Taken, stream: bool) -> Outcome:
    """A reply that takes the place of another, as a stream or once it is whole."""
    ref = taken.reply.turn.ref
    if call.wants_stream(stream):
        return turn_stream(call, taken, call.path.get("id", ref.session_id))
    await completed(call, taken)
    page = await read_said(parts, call, taken.reply, limit=1)
    body = {
        "message": encode_message(ref.session_id, page.messages[-1]),
        "turn": encode_turn(taken.reply.turn),
    }
    return turn_answer(taken, body)


# --- What names a message ----------------------------------------------------------------------


def find_message(text: str) -> MessageRef:
    """The message that a caller means; an id of impossible form is not looked for.

    Raises:
        MessageNotFound: there can be none.
    """
    ref = parse_message_id(text)
    if ref is None:
        raise MessageNotFound("Message not found")
    return ref


# --- Tags: how a client knows that a session has changed ----------------------------------------

_TAG = re.compile(r'(W/)?"([^"]*)"')


def tagged_answer(status: int, session: Session, view: Any, more: Headers = ()) -> Answer:
    """`{"chat_session": view}` with the session's tag, and `more` headers."""
    headers = ((b"etag", tag_of(session)), *more)
    return Answer(status, encode_json({"chat_session": view}), headers)


def made_answer(made: Made[Session]) -> Answer:
    """A session that was made, and where to find it."""
    session = made.thing
    where = (b"location", f"/api/chat-sessions/{session.id}".encode())
    return tagged_answer(201, session, encode_session(session), (where, *made_headers(made)))


def tag_of(session: Session) -> bytes:
    """Strong: the same tag, the same bytes at the same address."""
    return f'"{session.stamp}"'.encode()


def is_known(session: Session, call: Call) -> bool:
    """Whether `If-None-Match` names the session as it is."""
    return is_known_stamp(session.stamp, call)


def is_known_stamp(stamp: str, call: Call) -> bool:
    """Whether `If-None-Match` names this stamp: compared weakly, as RFC 9110 has it."""
    wanted = call.header(b"if-none-match").strip()
    return wanted == "*" or stamp in {known for _, known in _TAG.findall(wanted)}


def wanted_stamps(call: Call) -> Collection[str] | None:
    """What `If-Match` demands, compared strongly; None when any state will do."""
    wanted = call.header(b"if-match").strip()
    if wanted in ("", "*"):
        return None
    return {stamp for weak, stamp in _TAG.findall(wanted) if not weak}


# --- Queries -----------------------------------------------------------------------------------


def query_limit(call: Call, default: int, most: int) -> int:
    """How many things are wanted on a page.

    Raises:
        InvalidRequest: no number from 1 to `most`.
    """
    text = call.query.get("limit")
    if text is None:
        return default
    number = int(text) if re.fullmatch(r"[0-9]{1,9}", text) else 0
    if not 1 <= number <= most:
        raise InvalidRequest(f"limit must be a number from 1 to {most}")
    return number
