"""`contracts.Store` over any database that a driver can run transactions on."""

from collections.abc import Callable, Collection, Sequence
from typing import Protocol, TypeVar

from turnkeeper.contracts import (
    BegunTurn,
    EndedTurn,
    Expired,
    ItemPage,
    MessagePage,
    NewSession,
    NewTurn,
    NewVersion,
    NextTurn,
    Quota,
    SessionPage,
    Source,
    StoredReply,
    TurnPage,
)
from turnkeeper.domain import (
    Basis,
    Deployment,
    Ending,
    History,
    IdempotencyKey,
    Item,
    KeptItem,
    ListedItem,
    MessageRef,
    Place,
    Revision,
    Session,
    SessionChange,
    SessionChoice,
    SessionFilter,
    SessionSummary,
    Summary,
    TokenCount,
    Turn,
    TurnRef,
    Version,
)
from turnkeeper.limits import Spent, Subject
from turnkeeper.observer import Commits
from turnkeeper.stores.sql import (
    deployments,
    expiry,
    idempotency,
    sessions,
    spending,
    summaries,
    turn_data,
    turns,
    versions,
)
from turnkeeper.stores.sql import items as items_
from turnkeeper.stores.sql.rows import Transaction

T = TypeVar("T")


class Driver(Protocol):
    """Runs transactions on one kind of database."""

    async def write(self, transaction: Callable[[], Transaction[T]], *, long: bool = False) -> T:
        """Run it in a transaction of its own, or under a savepoint in one shared with others.

        Committed when this returns. `long` says that it may touch thousands of rows.
        """
        ...

    async def read(self, transaction: Callable[[], Transaction[T]]) -> T:
        """Run a transaction that changes nothing; it sees what is committed."""
        ...

    async def give_back_space(self) -> bool:
        """As `contracts.Store` says."""
        ...

    @property
    def failing(self) -> bool:
        """Whether the last write failed because the database could not be written."""
        ...

    @property
    def commits(self) -> Commits:
        """How its commits went."""
        ...

    async def close(self) -> None: ...


class SqlStore:
    """`contracts.Store` over a driver."""

    def __init__(self, driver: Driver) -> None:
        self._driver = driver

    async def begin_turn(self, new: NewTurn) -> BegunTurn | TurnRef:
        return await self._driver.write(lambda: turns.begin_turn(new))

    async def end_turn(self, ref: TurnRef, ending: Ending, now: int) -> EndedTurn:
        return await self._driver.write(lambda: turns.end_turn(ref, ending, now))

    async def checkpoint(
        self, ref: TurnRef, position: int, text: str, cuts: str | None = None
    ) -> None:
        await self._driver.write(lambda: turns.checkpoint(ref, position, text, cuts))

    async def get_history(self, ref: TurnRef, history_weight: int) -> tuple[Turn, History]:
        return await self._driver.read(lambda: turns.get_history(ref, history_weight))

    async def get_turn(self, owner: str, ref: TurnRef) -> StoredReply:
        return await self._driver.read(lambda: turns.get_turn(owner, ref))

    async def get_basis(self, owner: str, session: SessionChoice) -> Basis:
        return await self._driver.read(lambda: sessions.get_session_basis(owner, session))

    async def read_history(
        self, owner: str, before: TurnRef | SessionChoice, history_weight: int
    ) -> History:
        return await self._driver.read(lambda: turns.read_history(owner, before, history_weight))

    async def page_turns(
        self, owner: str, *, after: TurnRef | None, limit: int, newest_first: bool
    ) -> TurnPage:
        return await self._driver.read(
            lambda: turn_data.page_turns(owner, after, limit, newest_first)
        )

    async def set_turn_data(self, owner: str, ref: TurnRef, data: str, now: int) -> None:
        await self._driver.write(lambda: turn_data.set_turn_data(owner, ref, data, now))

    async def delete_turn(self, owner: str, ref: TurnRef, now: int, *, keep_items: bool) -> None:
        await self._driver.write(lambda: turn_data.delete_turn(owner, ref, now, keep_items))

    async def append_items(
        self,
        owner: str,
        session: SessionChoice,
        items: Sequence[Item],
        now: int,
        *,
        key: IdempotencyKey | None = None,
    ) -> Sequence[ListedItem]:
        return await self._driver.write(
            lambda: items_.append_items(owner, session, items, now, key), long=len(items) > 100
        )

    async def page_items(
        self,
        owner: str,
        session: SessionChoice,
        *,
        after: tuple[int, int] | None,
        limit: int,
        newest_first: bool,
    ) -> ItemPage:
        return await self._driver.read(
            lambda: items_.page_items(owner, session, after, limit, newest_first)
        )

    async def get_item(self, owner: str, place: MessageRef) -> ListedItem:
        return await self._driver.read(lambda: items_.get_item(owner, place))

    async def delete_item(self, owner: str, place: MessageRef, now: int) -> Session:
        return await self._driver.write(lambda: items_.delete_item(owner, place, now))

    async def list_sessions(self, owner: str) -> Sequence[SessionSummary]:
        return await self._driver.read(lambda: sessions.list_sessions(owner))

    async def create_session(self, new: NewSession) -> Session:
        return await self._driver.write(
            lambda: sessions.create_session(new), long=len(new.items) > 100
        )

    async def page_sessions(
        self,
        owner: str,
        wanted: SessionFilter,
        after: str | None,
        limit: int,
        *,
        oldest_first: bool = False,
    ) -> SessionPage:
        return await self._driver.read(
            lambda: sessions.page_sessions(owner, wanted, after, limit, oldest_first=oldest_first)
        )

    async def get_session(self, owner: str, session: SessionChoice) -> Session:
        return await self._driver.read(lambda: sessions.get_session(owner, session))

    async def update_session(
        self,
        owner: str,
        session: SessionChoice,
        change: SessionChange,
        now: int,
        *,
        if_stamp: Collection[str] | None = None,
    ) -> Session:
        return await self._driver.write(
            lambda: sessions.update_session(owner, session, change, now, if_stamp)
        )

    async def fork_session(
        self,
        owner: str,
        session: SessionChoice,
        at: MessageRef | TurnRef | None,
        new_id: str,
        now: int,
        *,
        key: IdempotencyKey | None = None,
        quotas: Sequence[Quota] = (),
    ) -> Session:
        return await self._driver.write(
            lambda: sessions.fork_session(owner, session, at, new_id, now, key=key, quotas=quotas),
            long=True,
        )

    async def page_messages(
        self,
        owner: str,
        session: SessionChoice,
        *,
        after: tuple[int, int] | None = None,
        before: tuple[int, int] | None = None,
        limit: int,
    ) -> MessagePage:
        return await self._driver.read(
            lambda: sessions.page_messages(owner, session, after, before, limit)
        )

    async def begin_version(self, new: NewVersion) -> BegunTurn | TurnRef:
        return await self._driver.write(lambda: versions.begin_version(new), long=True)

    async def list_words(self, owner: str, ref: TurnRef) -> Sequence[ListedItem]:
        return await self._driver.read(lambda: versions.list_words(owner, ref))

    async def list_versions(
        self, owner: str, session: SessionChoice, message: MessageRef
    ) -> Sequence[Version]:
        return await self._driver.read(lambda: versions.list_versions(owner, session, message))

    async def select_version(
        self, owner: str, session: SessionChoice, message: MessageRef, turn: int, now: int
    ) -> Session:
        return await self._driver.write(
            lambda: versions.select_version(owner, session, message, turn, now), long=True
        )

    async def list_items(
        self, owner: str, session: SessionChoice, after: tuple[int, int] | None, limit: int
    ) -> Sequence[ListedItem]:
        return await self._driver.read(lambda: sessions.list_items(owner, session, after, limit))

    async def delete_session(
        self,
        owner: str,
        session: SessionChoice,
        *,
        if_idle: bool = False,
        if_stamp: Collection[str] | None = None,
    ) -> Sequence[TurnRef]:
        return await self._driver.write(
            lambda: sessions.delete_session(owner, session, if_idle, if_stamp), long=True
        )

    async def clear_session(
        self, owner: str, session: SessionChoice, now: int
    ) -> Sequence[TurnRef]:
        return await self._driver.write(
            lambda: sessions.clear_session(owner, session, now), long=True
        )

    async def publish_revision(
        self,
        name: str,
        revision: Revision,
        source: Source,
        *,
        new: bool | None,
        key: IdempotencyKey | None = None,
    ) -> Deployment:
        return await self._driver.write(
            lambda: deployments.publish_revision(name, revision, source, new, key), long=True
        )

    async def list_deployments(self) -> Sequence[Deployment]:
        return await self._driver.read(deployments.list_deployments)

    async def get_deployment(self, name: str) -> Deployment:
        return await self._driver.read(lambda: deployments.get_deployment(name))

    async def list_revisions(self, name: str) -> Sequence[Revision]:
        return await self._driver.read(lambda: deployments.list_revisions(name))

    async def roll_back(self, name: str, revision: str, now: int) -> Deployment:
        return await self._driver.write(lambda: deployments.roll_back(name, revision, now))

    async def delete_deployment(self, name: str, source: Source) -> None:
        await self._driver.write(lambda: deployments.delete_deployment(name, source))

    async def expire(self, limit: int, now: int) -> Expired:
        return await self._driver.write(lambda: expiry.expire(limit, now), long=True)

    async def give_back_space(self) -> bool:
        return await self._driver.give_back_space()

    async def next_turn(self, owner: str, session_id: str, after: int) -> NextTurn:
        return await self._driver.read(lambda: turns.next_turn(owner, session_id, after))

    async def list_open(self) -> Sequence[TurnRef]:
        return await self._driver.read(turns.list_open)

    async def settle(self, ref: TurnRef, now: int) -> EndedTurn:
        return await self._driver.write(lambda: turns.settle(ref, now))

    async def drop_keys(self, before: int, limit: int) -> int:
        return await self._driver.write(lambda: idempotency.drop_keys(before, limit), long=True)

    async def settle_abandoned(self, now: int) -> int:
        return await self._driver.write(lambda: turns.settle_abandoned(now), long=True)

    async def get_summary(self, session_id: str) -> Summary | None:
        return await self._driver.read(lambda: summaries.get_summary(session_id))

    async def keep_summary(self, ref: TurnRef, summary: Summary) -> None:
        await self._driver.write(lambda: summaries.keep_summary(ref, summary))

    async def items_between(
        self, session_id: str, after: Place, before: Place, weight: int
    ) -> Sequence[KeptItem]:
        return await self._driver.read(
            lambda: summaries.items_between(session_id, after, before, weight)
        )

    async def list_counts(self) -> Sequence[TokenCount]:
        return await self._driver.read(summaries.list_counts)

    async def keep_counts(self, counts: Sequence[TokenCount]) -> None:
        await self._driver.write(lambda: summaries.keep_counts(counts))

    async def get_spent(self, subject: Subject) -> Sequence[Spent]:
        return await self._driver.read(lambda: spending.get_spent(subject))

    async def keep_spent(self, spent: Sequence[Spent]) -> None:
        await self._driver.write(lambda: spending.keep_spent(spent), long=True)

    async def drop_spent(self, now: int, limit: int) -> int:
        return await self._driver.write(lambda: spending.drop_spent(now, limit), long=True)

    async def was_made(self, key: IdempotencyKey) -> bool:
        return await self._driver.read(lambda: idempotency.was_made(key))

    async def ping(self) -> None:
        await self._driver.read(sessions.ping)
        if self._driver.failing:
            await self._driver.write(sessions.try_write)

    async def close(self) -> None:
        await self._driver.close()
