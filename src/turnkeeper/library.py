"""Documents and sections: made, listed, read, changed, moved, deleted; and the chat of a section.

Knows its store by contract, and the engine to stop what runs in a chat that goes. What is said in
a chat is the engine's, and a chat is a session like any other.
"""

from collections.abc import Callable, Collection, Iterator, Sequence

from msgspec import UNSET

from turnkeeper.contracts import ChangedSection, DocumentStore, Made, NewSection, OpenedChat
from turnkeeper.domain import (
    Document,
    IdempotencyKey,
    Section,
    SectionChange,
    SectionDraft,
    SectionSize,
    check_text,
    is_document_id,
    is_section_id,
)
from turnkeeper.engine import Engine
from turnkeeper.errors import BlankContent, DocumentNotFound, InvalidRequest
from turnkeeper.sessions import SessionRequest, Sessions

TITLE_LIMIT = 1_000  # characters
SECTIONS_LIMIT = 10_000  # that a document can be made with
_PAGE_SIZE = 1 << 20  # bytes of text read together
_PAGE_SECTIONS = 100


class Library:
    """Every operation on documents. Owners never meet, but where seed 003 has them meet."""

    def __init__(
        self,
        store: DocumentStore,
        sessions: Sessions,
        engine: Engine,
        *,
        now: Callable[[], int],
        new_document_id: Callable[[], str],
        new_section_id: Callable[[], str],
    ) -> None:
        self._store = store
        self._sessions = sessions
        self._engine = engine
        self._now = now
        self._new_document_id = new_document_id
        self._new_section_id = new_section_id

    # --- Documents -----------------------------------------------------------------------------

    async def list(self, owner: str) -> Sequence[Document]:
        """The owner's documents, newest first."""
        return await self._store.list_documents(owner)

    async def create(
        self,
        owner: str,
        title: str,
        sections: Sequence[SectionDraft],
        *,
        key: IdempotencyKey | None = None,
    ) -> Made[tuple[Document, Sequence[Section]]]:
        """A new document with these sections; what was made under the key before, as it is now.

        Raises:
            InvalidRequest: a title or a text that cannot be kept, or too many sections.
            KeyReused
            DocumentNotFound: what was made under the key before is gone.
        """
        if len(sections) > SECTIONS_LIMIT:
            raise InvalidRequest(f"A document can be made with {SECTIONS_LIMIT} sections at most")
        for number, draft in enumerate(sections):
            _check_draft(draft, f"sections[{number}].")
        new = [NewSection(self._new_section_id(), draft) for draft in sections]
        id_, now = self._new_document_id(), self._now()
        document = await self._store.create_document(
            owner, id_, _check_title(title), new, now, key=key
        )
        if document.id != id_:
            return Made(await self._read_whole(document), repeated=True)
        return Made((document, [_as_made(section, document) for section in new]), repeated=False)

    async def _read_whole(self, document: Document) -> tuple[Document, Sequence[Section]]:
        document, pages = await self.outline(document.owner, document.id)
        read = [await self.get_sections(document, page) for page in pages]
        return document, [section for page in read for section in page]

    async def get(self, owner: str, document_id: str) -> Document:
        """Raises DocumentNotFound."""
        _check_document_id(document_id)
        return await self._store.get_document(owner, document_id)

    async def outline(
        self, owner: str, document_id: str
    ) -> tuple[Document, Sequence[Sequence[str]]]:
        """A document, and the ids of its sections in order, in pages to be read one by one.

        Raises:
            DocumentNotFound
        """
        _check_document_id(document_id)
        document, sizes = await self._store.list_section_sizes(owner, document_id)
        return document, list(_pages(sizes))

    async def get_sections(self, document: Document, ids: Sequence[str]) -> Sequence[Section]:
        """Those of a document's sections that are still there, in the order of `ids`.

        Raises:
            DocumentNotFound
        """
        return await self._store.get_sections(document.owner, document.id, ids)

    async def rename(
        self,
        owner: str,
        document_id: str,
        title: str,
        *,
        if_stamp: Collection[str] | None = None,
    ) -> Document:
        """Give a document another title.

        Raises:
            DocumentNotFound
            PreconditionFailed: its stamp is none of `if_stamp`.
            InvalidRequest: the title cannot be kept.
        """
        _check_document_id(document_id)
        return await self._store.rename_document(
            owner, document_id, _check_title(title), self._now(), if_stamp=if_stamp
        )

    async def delete(
        self, owner: str, document_id: str, *, if_stamp: Collection[str] | None = None
    ) -> None:
        """Remove a document with its sections and their chats; turns in these stop.

        Raises:
            DocumentNotFound
            PreconditionFailed: its stamp is none of `if_stamp`.
        """
        _check_document_id(document_id)
        gone = await self._store.delete_document(owner, document_id, self._now(), if_stamp=if_stamp)
        self._engine.stop_gone(gone)

    # --- Sections ------------------------------------------------------------------------------

    async def add_section(
        self,
        owner: str,
        document_id: str,
        draft: SectionDraft,
        position: int | None,
        *,
        key: IdempotencyKey | None = None,
    ) -> Made[Section]:
        """A new section at a position, counted from 0; at the end if None or beyond it.

        Raises:
            DocumentNotFound, KeyReused
            SectionNotFound: what was made under the key before is gone.
            InvalidRequest: a title or text that cannot be kept.
        """
        _check_document_id(document_id)
        new = NewSection(self._new_section_id(), _check_draft(draft), position)
        section = await self._store.create_section(owner, document_id, new, self._now(), key=key)
        return Made(section, repeated=section.id != new.id)

    async def get_section(self, owner: str, document_id: str, section_id: str) -> Section:
        """Raises DocumentNotFound, SectionNotFound."""
        _check_document_id(document_id)
        return await self._store.get_section(owner, document_id, _possible(section_id))

    async def change_section(
        self,
        owner: str,
        document_id: str,
        section_id: str,
        change: SectionChange,
        *,
        if_stamp: Collection[str] | None = None,
    ) -> ChangedSection:
        """Change what is written in a section, or where it stands.

        Raises:
            DocumentNotFound, SectionNotFound
            PreconditionFailed: its stamp is none of `if_stamp`.
            InvalidRequest: a title or text that cannot be kept.
        """
        _check_document_id(document_id)
        if change.title is not UNSET:
            _check_section_title(change.title)
        if change.content is not UNSET:
            check_text(change.content, "content")
        return await self._store.update_section(
            owner, document_id, _possible(section_id), change, self._now(), if_stamp=if_stamp
        )

    async def replace_content(
        self,
        owner: str,
        document_id: str,
        section_id: str,
        content: str,
        *,
        if_stamp: Collection[str] | None = None,
    ) -> ChangedSection:
        """Put another text in a section.

        Raises:
            BlankContent: it is nothing but white space.
            And as `change_section`; what is not found goes first.
        """
        if not content.strip():
            await self.get_section(owner, document_id, section_id)
            raise BlankContent("Content cannot be empty")
        change = SectionChange(content=content)
        return await self.change_section(owner, document_id, section_id, change, if_stamp=if_stamp)

    async def delete_section(
        self,
        owner: str,
        document_id: str,
        section_id: str,
        *,
        if_stamp: Collection[str] | None = None,
    ) -> None:
        """Remove a section and its chat; turns in that stop.

        Raises:
            DocumentNotFound, SectionNotFound
            PreconditionFailed: its stamp is none of `if_stamp`.
        """
        _check_document_id(document_id)
        gone = await self._store.delete_section(
            owner, document_id, _possible(section_id), self._now(), if_stamp=if_stamp
        )
        self._engine.stop_gone(gone)

    # --- The chat of a section -----------------------------------------------------------------

    async def open_chat(self, owner: str, document_id: str, section_id: str) -> OpenedChat:
        """The session that is a section's chat; made if there is none, or it is gone.

        Raises:
            DocumentNotFound, SectionNotFound
            AccessDenied: the document is someone else's.
        """
        _check_document_id(document_id)
        section_id = _possible(section_id)
        found = await self._store.find_chat(owner, document_id, section_id)
        if found is not None:  # nearly always, and nothing need be written
            return OpenedChat(found, is_new=False)
        new = self._sessions.draft(owner, SessionRequest(), section=section_id)
        return await self._store.open_chat(owner, document_id, new)


def _as_made(new: NewSection, document: Document) -> Section:
    """A section of a document that was just made with it."""
    draft, now = new.draft, document.created_at
    written = (draft.type, draft.level, draft.title)
    return Section(new.id, document.id, *written, None, 0, now, now, draft.content)


def _pages(sections: Sequence[SectionSize]) -> Iterator[Sequence[str]]:
    """Sections whose texts are read together: about a megabyte, unless one alone is more."""
    page: list[str] = []
    size = 0
    for section in sections:
        if page and (size + section.size > _PAGE_SIZE or len(page) == _PAGE_SECTIONS):
            yield page
            page, size = [], 0
        page.append(section.id)
        size += section.size
    if page:
        yield page


# --- What can be kept, and what there can be ---------------------------------------------------


def _check_document_id(text: str) -> None:
    """An id of impossible form is not looked for."""
    if not is_document_id(text):
        raise DocumentNotFound("Document not found")


def _possible(section_id: str) -> str:
    """The id, or "" if there can be no such section: its document is looked for all the same."""
    return section_id if is_section_id(section_id) else ""


def _check_title(title: str) -> str:
    if not title.strip():
        raise InvalidRequest("title must not be blank")
    return _check_section_title(title)


def _check_section_title(title: str, name: str = "title") -> str:
    if len(title) > TITLE_LIMIT:
        raise InvalidRequest(f"{name} must have at most {TITLE_LIMIT} characters")
    return check_text(title, name)


def _check_draft(draft: SectionDraft, where: str = "") -> SectionDraft:
    _check_section_title(draft.title, f"{where}title")
    check_text(draft.content, f"{where}content")
    return draft
