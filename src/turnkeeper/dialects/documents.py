"""The document application of seeds 002 and 003: documents with sections, a chat in each section.

A chat is a session like any other: a session of any dialect can be read here, talked in and
cleared.
"""

import logging
from collections.abc import AsyncGenerator, Collection
from typing import Annotated, Any

import msgspec
from msgspec import UNSET, Meta, UnsetType

from turnkeeper.contracts import ChangedSection
from turnkeeper.dialects import exchange
from turnkeeper.dialects.exchange import (
    Answer,
    Call,
    Dialect,
    Handler,
    LongAnswer,
    Outcome,
    Parts,
    Route,
    completed,
    decode_object,
    decode_optional,
    encode_json,
    error_answer,
    made_headers,
    turn_answer,
)
from turnkeeper.dialects.session_view import (
    encode_conversation,
    encode_message,
    is_known,
    is_known_stamp,
    older,
    query_limit,
    read_said,
    tag_of,
    tagged_answer,
    wanted_stamps,
)
from turnkeeper.dialects.turn_stream import encode_time, turn_stream
from turnkeeper.domain import (
    ById,
    Document,
    Level,
    Section,
    SectionChange,
    SectionDraft,
    SectionType,
    find_session,
    split_owner,
)
from turnkeeper.errors import (
    AccessDenied,
    BlankContent,
    BlankMessage,
    DocumentNotFound,
    SectionNotFound,
    SessionNotFound,
    TurnkeeperError,
    Unauthenticated,
)
from turnkeeper.sessions import MESSAGE_PAGE_LIMIT, check_kept

log = logging.getLogger(__name__)

Position = Annotated[int, Meta(ge=0)]


class MessageRequest(msgspec.Struct):
    """`POST …/messages`."""

    message: str | None = None
    context_documents: list[str] | None = None
    config: dict[str, Any] | None = None
    model: str | None = None
    stream: bool = False


class DocumentRequest(msgspec.Struct):
    title: str | None = None
    sections: tuple[SectionDraft, ...] = ()


class TitleRequest(msgspec.Struct):
    title: str | None = None


class SectionRequest(msgspec.Struct):
    type: SectionType = "text"
    level: Level = 1
    title: str = ""
    content: str = ""
    position: Position | None = None


class SectionChangeRequest(msgspec.Struct):
    title: str | UnsetType = UNSET
    content: str | UnsetType = UNSET
    type: SectionType | UnsetType = UNSET
    level: Level | UnsetType = UNSET
    position: Position | UnsetType = UNSET


class ContentRequest(msgspec.Struct):
    content: str | None = None


_message_request = msgspec.json.Decoder(MessageRequest)
_document_request = msgspec.json.Decoder(DocumentRequest)
_title_request = msgspec.json.Decoder(TitleRequest)
_section_request = msgspec.json.Decoder(SectionRequest)
_section_change = msgspec.json.Decoder(SectionChangeRequest)
_content_request = msgspec.json.Decoder(ContentRequest)

# --- Chat sessions -----------------------------------------------------------------------------


async def open_chat(parts: Parts, call: Call) -> Answer:
    document, section = call.path["doc_id"], call.path["section_id"]
    opened = await parts.library.open_chat(call.caller, document, section)
    page = await parts.sessions.page_messages(call.caller, ById(opened.session_id))
    body: dict[str, Any] = {"chat_session": encode_conversation(page, older(page))}
    if opened.is_new:  # seed 003: no message when there was one already
        body["message"] = "Chat session created successfully"
    return Answer(200, encode_json(body), ((b"etag", tag_of(page.session)),))


async def get_session(parts: Parts, call: Call) -> Answer:
    choice = find_session(call.path["id"])
    limit = query_limit(call, MESSAGE_PAGE_LIMIT, MESSAGE_PAGE_LIMIT)
    if call.header(b"if-none-match"):
        session = await parts.sessions.get(call.caller, choice)
        if is_known(session, call):
            return Answer(304, b"", ((b"etag", tag_of(session)),))
    page = await parts.sessions.page_messages(call.caller, choice, limit=limit)
    return tagged_answer(200, page.session, encode_conversation(page, older(page)))


async def send_message(parts: Parts, call: Call) -> Outcome:
    choice = find_session(call.path["id"])
    request = decode_optional(_message_request, call.body)
    kept, acting = check_kept(request.config, request.context_documents)
    try:
        taken = await parts.engine.take_turn(
            call.caller,
            choice,
            request.message or "",
            model=request.model or acting.model,
            kept=kept,
            key=call.key(),
        )
    except BlankMessage:
        await parts.sessions.get(call.caller, choice)  # seed 003: the session is looked for first
        raise
    if call.wants_stream(request.stream):
        return turn_stream(call, taken, call.path["id"])
    text = await completed(call, taken)
    page = await read_said(parts, call, taken.reply, limit=2)
    body = {
        "response": text,
        "references": [],
        "message": encode_message(page.session.id, page.messages[-1]),
        # only this turn's two messages, so that the answer does not grow with the session
        "chat_session": encode_conversation(page, older(page)),
    }
    return turn_answer(taken, body)


async def clear_session(parts: Parts, call: Call) -> Answer:
    choice = find_session(call.path["id"])
    await parts.sessions.get(call.caller, choice)
    await parts.sessions.clear(call.caller, choice)
    return _said("Chat history cleared successfully")


# --- Documents ---------------------------------------------------------------------------------


async def list_documents(parts: Parts, call: Call) -> Answer:
    found = await parts.library.list(call.caller)
    return Answer(200, encode_json({"documents": [encode_document(each) for each in found]}))


async def create_document(parts: Parts, call: Call) -> Answer:
    request = decode_object(_document_request, call.body)
    made = await parts.library.create(
        call.caller, request.title or "", request.sections, key=call.key()
    )
    document, sections = made.thing
    shown = {**encode_document(document), "sections": [encode_section(s) for s in sections]}
    body = {"document": shown, "message": "Document created successfully"}
    headers = (_tag(document.stamp), (b"location", f"/api/documents/{document.id}".encode()))
    return Answer(201, encode_json(body), (*headers, *made_headers(made)))


async def get_document(parts: Parts, call: Call) -> Outcome:
    if call.header(b"if-none-match"):
        document = await parts.library.get(call.caller, call.path["doc_id"])
        if is_known_stamp(document.stamp, call):
            return Answer(304, b"", (_tag(document.stamp),))
    return await _whole_document(parts, call, b"}")


async def change_document(parts: Parts, call: Call) -> LongAnswer:
    request = decode_object(_title_request, call.body)
    document = call.path["doc_id"]
    await parts.library.rename(
        call.caller, document, request.title or "", if_stamp=wanted_stamps(call)
    )
    return await _whole_document(parts, call, b',"message":"Document updated successfully"}')


async def _whole_document(parts: Parts, call: Call, end: bytes) -> LongAnswer:
    document, pages = await parts.library.outline(call.caller, call.path["doc_id"])
    return LongAnswer(_document_pieces(parts, document, pages, end), (_tag(document.stamp),))


async def _document_pieces(
    parts: Parts, document: Document, pages: Collection[Collection[str]], end: bytes
) -> AsyncGenerator[bytes, None]:
    """A document of any length, some of its sections at a time."""
    yield b'{"document":' + encode_json(encode_document(document)).removesuffix(b"}")
    yield b',"sections":['
    comma = b""
    for page in pages:
        sections = await parts.library.get_sections(document, tuple(page))
        if sections:  # someone may delete them meanwhile
            yield comma + b",".join([encode_json(encode_section(each)) for each in sections])
            comma = b","
    yield b"]}" + end


async def delete_document(parts: Parts, call: Call) -> Answer:
    await parts.library.delete(call.caller, call.path["doc_id"], if_stamp=wanted_stamps(call))
    return _said("Document deleted successfully")


# --- Sections ----------------------------------------------------------------------------------


async def create_section(parts: Parts, call: Call) -> Answer:
    wanted = decode_optional(_section_request, call.body)
    draft = SectionDraft(wanted.type, wanted.level, wanted.title, wanted.content)
    made = await parts.library.add_section(
        call.caller, call.path["doc_id"], draft, wanted.position, key=call.key()
    )
    section = made.thing
    where = f"/api/documents/{section.document_id}/sections/{section.id}"
    body = {"section": encode_section(section), "message": "Section created successfully"}
    headers = (_section_tag(section), (b"location", where.encode()))
    return Answer(201, encode_json(body), (*headers, *made_headers(made)))


async def get_section(parts: Parts, call: Call) -> Answer:
    section = await parts.library.get_section(call.caller, *_section_path(call))
    if is_known_stamp(_shown_stamp(section), call):
        return Answer(304, b"", (_section_tag(section),))
    body = {"section": encode_section(section)}
    return Answer(200, encode_json(body), (_section_tag(section),))


async def change_section(parts: Parts, call: Call) -> Answer:
    wanted = decode_object(_section_change, call.body)
    change = SectionChange(wanted.title, wanted.content, wanted.type, wanted.level, wanted.position)
    stamps = _wanted_stamps(call)
    changed = await parts.library.change_section(
        call.caller, *_section_path(call), change, if_stamp=stamps
    )
    return _changed(changed, "Section updated successfully", with_old=stamps is None)


async def replace_content(parts: Parts, call: Call) -> Answer:
    wanted = decode_optional(_content_request, call.body)
    changed = await parts.library.replace_content(
        call.caller, *_section_path(call), wanted.content or "", if_stamp=_wanted_stamps(call)
    )
    return _changed(changed, "Section content replaced successfully", with_old=True)


def _changed(changed: ChangedSection, message: str, *, with_old: bool) -> Answer:
    body: dict[str, Any] = {"section": encode_section(changed.section)}
    if with_old:  # whoever wrote over another's text has it back
        body["old_content"] = changed.old_content
    body["message"] = message
    return Answer(200, encode_json(body), (_section_tag(changed.section),))


async def delete_section(parts: Parts, call: Call) -> Answer:
    await parts.library.delete_section(
        call.caller, *_section_path(call), if_stamp=_wanted_stamps(call)
    )
    return _said("Section deleted successfully")


def _section_path(call: Call) -> tuple[str, str]:
    return call.path["doc_id"], call.path["section_id"]


def _said(message: str) -> Answer:
    return Answer(200, encode_json({"message": message}))


# --- What they look like -----------------------------------------------------------------------


def encode_document(document: Document) -> dict[str, Any]:
    """A document in a list, without its sections."""
    return {
        "id": document.id,
        "title": document.title,
        "author": split_owner(document.owner)[1] or document.owner,
        "sections_count": document.sections,
        "created_at": encode_time(document.created_at),
        "updated_at": encode_time(document.updated_at),
    }


def encode_section(section: Section) -> dict[str, Any]:
    return {
        "id": section.id,
        "type": section.type,
        "level": section.level,
        "title": section.title,
        "content": section.content,
        "chat_session_id": section.session_id,
        "references": [],
        "created_at": encode_time(section.created_at),
        "updated_at": encode_time(section.updated_at),
    }


def _tag(stamp: str) -> tuple[bytes, bytes]:
    return b"etag", f'"{stamp}"'.encode()


def _section_tag(section: Section) -> tuple[bytes, bytes]:
    return _tag(_shown_stamp(section))


def _shown_stamp(section: Section) -> str:
    """A section's stamp and its chat: opening a chat changes what is shown, but not the text."""
    return f"{section.stamp}.{section.session_id or ''}".rstrip(".")


def _wanted_stamps(call: Call) -> Collection[str] | None:
    """What `If-Match` demands of a section; which chat it had then does not matter."""
    wanted = wanted_stamps(call)
    return None if wanted is None else {".".join(stamp.split(".")[:2]) for stamp in wanted}


# --- Errors: the rows of the seeds are exact, `{"error": sentence}` and nothing else ------------


def encode_error(error: TurnkeeperError) -> Answer:
    if isinstance(error, SessionNotFound):
        return error_answer(error, {"error": "Chat session not found"})
    if isinstance(error, BlankMessage):
        return error_answer(error, {"error": "Message cannot be empty"})
    exact = DocumentNotFound | AccessDenied | SectionNotFound | BlankContent | Unauthenticated
    if isinstance(error, exact):
        return error_answer(error, {"error": error.sentence})
    return exchange.encode_error(error)


def or_failed(handler: Handler, sentence: str) -> Handler:
    """The handler, with what a caller is told of a fault of our own, which goes to the log."""

    async def handle(parts: Parts, call: Call) -> Outcome:
        try:
            return await handler(parts, call)
        except TurnkeeperError:
            raise
        except Exception:
            log.exception(sentence)
            return Answer(500, encode_json({"error": sentence}))

    return handle


_ONE = "/api/chat-sessions/{id}"
_get = or_failed(get_session, "Failed to get chat session")
_open = or_failed(open_chat, "Failed to create chat session")
_clear = or_failed(clear_session, "Failed to clear chat session")

_DOCUMENT = "/api/documents/{doc_id}"
_SECTION = f"{_DOCUMENT}/sections/{{section_id}}"

DIALECT = Dialect(
    routes=(
        Route(
            "GET",
            "/api/documents",
            list_documents,
            "List your documents, newest first",
            scope="documents",
        ),
        Route("POST", "/api/documents", create_document, "Create a document", scope="documents"),
        Route(
            "GET", _DOCUMENT, get_document, "Read a document with its sections", scope="documents"
        ),
        Route(
            "PUT", _DOCUMENT, change_document, "Give a document another title", scope="documents"
        ),
        Route(
            "DELETE",
            _DOCUMENT,
            delete_document,
            "Delete a document and its chats",
            scope="documents",
        ),
        Route(
            "POST",
            f"{_DOCUMENT}/sections",
            create_section,
            "Put a section into a document",
            scope="documents",
        ),
        Route("GET", _SECTION, get_section, "Read a section", scope="documents"),
        Route("PUT", _SECTION, change_section, "Change or move a section", scope="documents"),
        Route(
            "DELETE", _SECTION, delete_section, "Delete a section and its chat", scope="documents"
        ),
        Route(
            "POST",
            f"{_SECTION}/replace",
            replace_content,
            "Replace a section's text",
            scope="documents",
        ),
        Route("POST", f"{_SECTION}/chat", _open, "Get a section's chat session, or create it"),
        Route("GET", _ONE, _get, "Read a session and what was said in it", session_token=True),
        Route(
            "POST",
            f"{_ONE}/messages",
            send_message,
            "Send a message and get the reply",
            session_token=True,
        ),
        Route("POST", f"{_ONE}/clear", _clear, "Clear a session's conversation"),
    ),
    encode_error=encode_error,
    prefixes=("/api/documents",),
)
