"""`contracts.DocumentStore` over any database that a driver can run transactions on."""

from collections.abc import Collection, Sequence

from turnkeeper.contracts import ChangedSection, NewSection, NewSession, OpenedChat
from turnkeeper.domain import (
    Document,
    IdempotencyKey,
    Passage,
    Section,
    SectionChange,
    SectionSize,
    TurnRef,
)
from turnkeeper.stores.sql import documents
from turnkeeper.stores.store import Driver


class SqlDocuments:
    """`contracts.DocumentStore` over a driver, which whoever opened it closes."""

    def __init__(self, driver: Driver) -> None:
        self._driver = driver

    async def create_document(
        self,
        owner: str,
        document_id: str,
        title: str,
        sections: Sequence[NewSection],
        now: int,
        *,
        key: IdempotencyKey | None = None,
    ) -> Document:
        return await self._driver.write(
            lambda: documents.create_document(owner, document_id, title, sections, now, key=key),
            long=True,
        )

    async def list_documents(self, owner: str) -> Sequence[Document]:
        return await self._driver.read(lambda: documents.list_documents(owner))

    async def get_document(self, owner: str, document_id: str) -> Document:
        return await self._driver.read(lambda: documents.get_document(owner, document_id))

    async def list_section_sizes(
        self, owner: str, document_id: str
    ) -> tuple[Document, Sequence[SectionSize]]:
        return await self._driver.read(lambda: documents.list_section_sizes(owner, document_id))

    async def get_sections(
        self, owner: str, document_id: str, ids: Sequence[str]
    ) -> Sequence[Section]:
        return await self._driver.read(lambda: documents.get_sections(owner, document_id, ids))

    async def rename_document(
        self,
        owner: str,
        document_id: str,
        title: str,
        now: int,
        *,
        if_stamp: Collection[str] | None = None,
    ) -> Document:
        return await self._driver.write(
            lambda: documents.rename_document(owner, document_id, title, now, if_stamp)
        )

    async def delete_document(
        self,
        owner: str,
        document_id: str,
        now: int,
        *,
        if_stamp: Collection[str] | None = None,
    ) -> Sequence[TurnRef]:
        return await self._driver.write(
            lambda: documents.delete_document(owner, document_id, now, if_stamp), long=True
        )

    async def create_section(
        self,
        owner: str,
        document_id: str,
        new: NewSection,
        now: int,
        *,
        key: IdempotencyKey | None = None,
    ) -> Section:
        return await self._driver.write(
            lambda: documents.create_section(owner, document_id, new, now, key),
            long=True,
        )

    async def get_section(self, owner: str, document_id: str, section_id: str) -> Section:
        return await self._driver.read(
            lambda: documents.get_section(owner, document_id, section_id)
        )

    async def update_section(
        self,
        owner: str,
        document_id: str,
        section_id: str,
        change: SectionChange,
        now: int,
        *,
        if_stamp: Collection[str] | None = None,
    ) -> ChangedSection:
        return await self._driver.write(
            lambda: documents.update_section(
                owner, document_id, section_id, change, now=now, if_stamp=if_stamp
            ),
            long=True,
        )

    async def delete_section(
        self,
        owner: str,
        document_id: str,
        section_id: str,
        now: int,
        *,
        if_stamp: Collection[str] | None = None,
    ) -> Sequence[TurnRef]:
        return await self._driver.write(
            lambda: documents.delete_section(owner, document_id, section_id, now, if_stamp),
            long=True,
        )

    async def find_chat(self, owner: str, document_id: str, section_id: str) -> str | None:
        return await self._driver.read(lambda: documents.find_chat(owner, document_id, section_id))

    async def open_chat(self, owner: str, document_id: str, new: NewSession) -> OpenedChat:
        return await self._driver.write(lambda: documents.open_chat(owner, document_id, new))

    async def get_passage(self, section_id: str) -> Passage | None:
        return await self._driver.read(lambda: documents.get_passage(section_id))
