"""What the engine needs of the world, as promises: a place to keep turns, a model to ask.

The docstrings are the contract, and the exams in `tests/contracts/` hold every store and every
provider to these sentences.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from typing import Any, Generic, Literal, Protocol, TypeVar

import msgspec

from turnkeeper.domain import (
    Basis,
    Deployment,
    Document,
    Ending,
    History,
    IdempotencyKey,
    Identity,
    Item,
    Kept,
    KeptItem,
    Key,
    ListedItem,
    Login,
    MessageRef,
    Model,
    ModelChoice,
    Passage,
    Place,
    Prompt,
    Revision,
    Role,
    Section,
    SectionChange,
    SectionDraft,
    SectionSize,
    Session,
    SessionChange,
    SessionChoice,
    SessionFilter,
    SessionSummary,
    SessionToken,
    Summary,
    Sums,
    TokenCount,
    Turn,
    TurnRef,
    User,
    Version,
)
from turnkeeper.events import ProviderEvent
from turnkeeper.limits import Spent, Subject

Source = Literal["file", "api"]

# What a committed write survives: a loss of power, or only that of the process.
Durability = Literal["power", "process"]


# From the section that a session is the chat of to what a model is shown of it: as it is now, None
# if it is gone. May raise `StoreUnavailable`.
Background = Callable[[str], Awaitable[Passage | None]]

# Told of a turn that is about to be stored: its session's id, its basis, and the weight of all
# that its prompt could show.
Admit = Callable[[str, Basis, int], None]


class Quota(msgspec.Struct, frozen=True):
    """How many sessions there may be of an owner; a user's include those of its end users."""

    owner: str
    sessions: int


class NewTurn(msgspec.Struct, frozen=True):
    """A turn to begin.

    Attributes:
        session: None for a new one; an alias nobody used yet makes a new one if it says so.
        new_id: the id of a session that has to be created.
        deployment: whose a new session is to be.
        scope: the deployment that a session must belong to; None for any.
        model: what the caller asked for; it becomes the session's model. None keeps that.
        choose: from what the turn is made on, and the weight of all that its prompt could show,
            to the turn's model. Pure, since a store may call it more than once; what it raises
            undoes the turn.
        queue_limit: how many turns may wait in one session.
        revisions: those the caller knows already, by id, so that they need not be read.
        admit: told of the session's id, what `choose` is told, and that twice if that is. What it
            raises undoes the turn.
        quotas: how many sessions there may be, if one has to be created.
        kept: what is to be kept with the session from now on; the basis has it already.
        key: the caller's own name for the request.
        after: the turn that this one answers to, which must be its session's newest but for such
            as no prompt shows.
        data: what a dialect wants kept with the turn, in words of its own.
        bare: a session that has to be created is kept out of lists that do not ask for such.
    """

    owner: str
    session: SessionChoice | None
    new_id: str
    deployment: str
    scope: str | None
    items: tuple[Item, ...]
    model: str | None
    choose: Callable[[Basis, int], ModelChoice]
    queue_limit: int
    revisions: Mapping[str, Revision]
    now: int
    kept: Kept | None = None
    key: IdempotencyKey | None = None
    after: TurnRef | None = None
    data: str | None = None
    bare: bool = False
    admit: Admit | None = None
    quotas: Sequence[Quota] = ()


class NewVersion(msgspec.Struct, frozen=True):
    """A turn to begin in the place of an earlier one; what is left out is as in `NewTurn`.

    Attributes:
        message: the user's message to put other words for; None to answer the newest anew.
        words: these other words.
        retried: the number of the turn whose words are to be answered after all, instead of the
            newest; one that is not the newest goes to the end.
    """

    owner: str
    session: SessionChoice
    message: MessageRef | None
    words: Item | None
    model: str | None
    choose: Callable[[Basis, int], ModelChoice]
    revisions: Mapping[str, Revision]
    now: int
    retried: int | None = None
    key: IdempotencyKey | None = None
    admit: Admit | None = None


class BegunTurn(msgspec.Struct, frozen=True):
    """A turn that is now stored, `running` or `queued`.

    A queued one has no items in its `history` yet: `get_history` gets them when it runs. A
    running one has as many as its choice's `history_weight` asks for. `owner` is its session's.
    `ahead` are the numbers of the turns before it that are not over, where the basis says that it
    interrupts them. `asked` is how many items of its own it answers.
    """

    turn: Turn
    history: History
    basis: Basis
    owner: str
    ahead: Sequence[int] = ()
    asked: int = 1


class NewSession(msgspec.Struct, frozen=True):
    """A session to create before anything is said in it by a turn.

    Attributes:
        items: a conversation that was had elsewhere.
        check: raises what speaks against such a session; pure, like `NewTurn.choose`.
        section: the section whose chat it is to be.
        key: the caller's own name for the request.
    """

    owner: str
    id: str
    deployment: str
    title: str | None
    model: str | None
    variables: Mapping[str, str]
    metadata: Mapping[str, Any]
    items: tuple[Item, ...]
    check: Callable[[Basis], None]
    now: int
    section: str | None = None
    key: IdempotencyKey | None = None
    quotas: Sequence[Quota] = ()


class NewSection(msgspec.Struct, frozen=True):
    """A section to create, at a position among the others; at the end if None or beyond it."""

    id: str
    draft: SectionDraft
    position: int | None = None


T = TypeVar("T")


class Made(msgspec.Struct, Generic[T], frozen=True):
    """A thing that was asked for, and whether an earlier request under the same key made it."""

    thing: T
    repeated: bool


class OpenedChat(msgspec.Struct, frozen=True):
    """The session that is a section's chat, and whether it was made just now."""

    session_id: str
    is_new: bool


class ChangedSection(msgspec.Struct, frozen=True):
    """A section as it is after a change, and its text as it was before."""

    section: Section
    old_content: str


class SessionPage(msgspec.Struct, frozen=True):
    """Some sessions, newest first. `next` is the id to go on after; None at the end."""

    sessions: Sequence[Session]
    next: str | None


class Expired(msgspec.Struct, frozen=True):
    """How many sessions were deleted in one step, and whether there may be more to delete now."""

    sessions: int
    more: bool


class Forgotten(msgspec.Struct, frozen=True):
    """What was removed of a person in one step.

    Attributes:
        removed: how many rows of each table; a table without any may be named or not.
        open_turns: that were queued or running, now gone; whoever runs them should stop.
        more: whether there may be more to remove.
    """

    removed: Mapping[str, int]
    open_turns: Sequence[TurnRef]
    more: bool


class MessagePage(msgspec.Struct, frozen=True):
    """Some of a session's messages in order, and the session as it was with them.

    `more` says whether there are others beyond, in the direction that was asked for.
    """

    session: Session
    messages: Sequence[ListedItem]
    more: bool


class EndedTurn(msgspec.Struct, frozen=True):
    """What `end_turn` did: whether the turn was ended by it, and which turn runs now instead."""

    stored: bool
    promoted: Turn | None = None


class NextTurn(msgspec.Struct, frozen=True):
    """Where a session's turns go on: the numbers of the next, the newest and the running one."""

    next: int | None
    newest: int
    running: int | None = None


class StoredReply(msgspec.Struct, frozen=True):
    """A turn as the store has it, with the text of its reply as far as that was stored.

    Attributes:
        items: all that was said in it, in order, also what it answers.
        data: what a dialect had kept with it; None if nothing.
        cuts: how the reply came in pieces, where someone counted them.
    """

    turn: Turn
    text: str
    items: Sequence[KeptItem] = ()
    data: str | None = None
    cuts: str | None = None


class ItemPage(msgspec.Struct, frozen=True):
    """Some of a session's items in the order that was asked for; whether there are more beyond."""

    items: Sequence[ListedItem]
    more: bool


class TurnPage(msgspec.Struct, frozen=True):
    """Some turns that a dialect lists, in the order that was asked for; whether there are more."""

    turns: Sequence[StoredReply]
    more: bool


class Store(Protocol):
    """Keeps sessions, items and turns.

    Every write is on disk (or in a committed transaction of a server that says so) when its
    method returns, and is undone whole when it raises. Every method may raise
    `StoreUnavailable`. Owners never meet: what belongs to another owner does not exist.
    """

    async def begin_turn(self, new: NewTurn) -> BegunTurn | TurnRef:
        """Store the caller's items and a turn over them.

        Under a key that has begun a turn before, nothing is stored, and the answer is that turn,
        which may have been cleared away since.

        The turn takes the next number of its session. It is `running` when no other turn of
        the session is, else `queued`; turns of one session run one at a time, by number.

        Raises:
            SessionNotFound: the session is not there, not the owner's, or not of the `scope`.
            TurnNotFound: the turn of the key is gone, and so is its session.
            DeploymentNotFound: a session would have to be made, and there is no such deployment.
            NotNewest: something that prompts show has been said since the turn to come `after`.
            TurnNotFound: there is no such turn to come `after`.
            QueueFull: `queue_limit` turns wait already.
            QuotaExceeded: a session would have to be made, and there are as many as may be.
            SessionBusy: another turn is not over, and the basis says to refuse this one then.
            KeyReused: the key was used for another request.
        """
        ...

    async def end_turn(self, ref: TurnRef, ending: Ending, now: int) -> EndedTurn:
        """End a running or queued turn as `ending` says; the next one queued takes its place.

        Stores the reply. Unless the turn is completed, or ended with text other than by
        failing, its items appear in no later prompt. Does nothing to a turn that is over or
        gone: a terminal state never changes.
        """
        ...

    async def checkpoint(
        self, ref: TurnRef, position: int, text: str, cuts: str | None = None
    ) -> None:
        """Keep the newest words of a running turn, so that a crash loses only what follows.

        `position` counts a turn's checkpoints from 0; together they are its reply so far. The
        same position again replaces what was kept there.
        `end_turn` removes them, `settle_abandoned` makes them the reply. Does nothing to a turn
        that is not running.
        """
        ...

    async def get_history(self, ref: TurnRef, history_weight: int) -> tuple[Turn, History]:
        """What `begin_turn` had returned, had the turn been running: for one promoted since.

        Raises:
            TurnNotFound: it was cleared meanwhile.
        """
        ...

    async def get_basis(self, owner: str, session: SessionChoice) -> Basis:
        """What turns of a session are made on.

        Raises:
            SessionNotFound: as for `get_session`.
        """
        ...

    async def read_history(
        self, owner: str, before: TurnRef | SessionChoice, history_weight: int
    ) -> History:
        """What a prompt could show of a session, or of it up to and with a turn.

        Raises:
            SessionNotFound, TurnNotFound: no such session or turn, or not the owner's.
        """
        ...

    async def get_turn(self, owner: str, ref: TurnRef) -> StoredReply:
        """A turn of the owner's, in whatever state.

        Raises:
            TurnNotFound: no such turn, or not the owner's.
        """
        ...

    async def list_sessions(self, owner: str) -> Sequence[SessionSummary]:
        """The owner's sessions that hold a user's or assistant's message, oldest first."""
        ...

    async def create_session(self, new: NewSession) -> Session:
        """Store a session of the newest revision of its deployment.

        Under a key that has made a session before, the answer is that one, whose id is another.

        Raises:
            DeploymentNotFound: there is no such deployment.
            KeyReused: the key was used for another request.
            QuotaExceeded: there are as many sessions as may be.
            SessionNotFound: what was made under it is gone.
        """
        ...

    async def page_sessions(
        self,
        owner: str,
        wanted: SessionFilter,
        after: str | None,
        limit: int,
        *,
        oldest_first: bool = False,
    ) -> SessionPage:
        """The owner's next sessions in order of creation, newest first or not, at most `limit`.

        `after` is the id of the last one known; it need not exist any more. A page costs the
        same however many sessions there are: where few of them are `wanted`, it may hold fewer
        than `limit`, even none, and still have a `next`.
        """
        ...

    async def get_session(self, owner: str, session: SessionChoice) -> Session:
        """A session of the owner's.

        Raises:
            SessionNotFound: no such session, or not the owner's; an alias nobody used.
        """
        ...

    async def update_session(
        self,
        owner: str,
        session: SessionChoice,
        change: SessionChange,
        now: int,
        *,
        if_stamp: Collection[str] | None = None,
    ) -> Session:
        """Change what `change` says; returns the session as it is then.

        Raises:
            SessionNotFound: as for `get_session`.
            PreconditionFailed: its stamp is none of `if_stamp`; nothing was changed.
        """
        ...

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
        """Make a session of its own that holds what this one does, up to and with message `at`.

        A turn is for all that was said in it. None is for all of the session, but for turns that
        are not over. The fork has the same revision,
        variables, model, title, metadata and config, and shares nothing: neither can change the
        other. It is no section's chat.
        With a key as for `create_session`.

        Raises:
            SessionNotFound: as for `get_session`.
            MessageNotFound: `at` is not listed in the session.
            QuotaExceeded: there are as many sessions as may be.
            TurnNotFound: there is no turn `at` in the session.
            SessionBusy: it is not over.
        """
        ...

    async def append_items(
        self,
        owner: str,
        session: SessionChoice,
        items: Sequence[Item],
        now: int,
        *,
        key: IdempotencyKey | None = None,
    ) -> Sequence[ListedItem]:
        """Store items at the end of a session, without a turn.

        Under a key that has stored items before, the answer is those that are left of them.

        Raises:
            SessionNotFound: as for `get_session`.
            KeyReused: the key was used for another request.
        """
        ...

    async def page_items(
        self,
        owner: str,
        session: SessionChoice,
        *,
        after: tuple[int, int] | None,
        limit: int,
        newest_first: bool,
    ) -> ItemPage:
        """The next items of a session behind a place, of whatever kind and state.

        Raises:
            SessionNotFound: as for `get_session`.
        """
        ...

    async def get_item(self, owner: str, place: MessageRef) -> ListedItem:
        """An item of a session, of whatever kind and state.

        Raises:
            SessionNotFound: as for `get_session`.
            MessageNotFound: there is nothing at that place.
        """
        ...

    async def delete_item(self, owner: str, place: MessageRef, now: int) -> Session:
        """Remove an item for good; the answer is its session as it is then.

        Raises:
            SessionNotFound, MessageNotFound: as for `get_item`.
            SessionBusy: it belongs to a turn that is not over.
        """
        ...

    async def page_turns(
        self, owner: str, *, after: TurnRef | None, limit: int, newest_first: bool
    ) -> TurnPage:
        """The owner's next turns of `bare` sessions, in order of creation."""
        ...

    async def set_turn_data(self, owner: str, ref: TurnRef, data: str, now: int) -> None:
        """Keep this with a turn in place of what its dialect had kept with it.

        Raises:
            TurnNotFound: no such turn of the owner's, or nothing was kept with it.
        """
        ...

    async def delete_turn(self, owner: str, ref: TurnRef, now: int, *, keep_items: bool) -> None:
        """Remove what a dialect had kept with a turn; and all of the turn, unless `keep_items`.

        A session in which nothing is left then goes with it, if it was made for the turn: it has
        no alias, title, metadata or config, and is no section's chat.

        Raises:
            TurnNotFound: no such turn of the owner's, or nothing was kept with it.
            SessionBusy: it is not over.
        """
        ...

    async def list_items(
        self, owner: str, session: SessionChoice, after: tuple[int, int] | None, limit: int
    ) -> Sequence[ListedItem]:
        """The next items of a session in order, at most `limit`, of whatever kind and state.

        `after` is the turn and position of the last one known, None for the beginning.

        Raises:
            SessionNotFound: as for `get_session`.
        """
        ...

    async def page_messages(
        self,
        owner: str,
        session: SessionChoice,
        *,
        after: tuple[int, int] | None = None,
        before: tuple[int, int] | None = None,
        limit: int,
    ) -> MessagePage:
        """The first messages behind `after`, else the last ones before `before` or the end.

        Only a user's and assistant's words are messages here, not those of a reply that failed.
        A page holds fewer than `limit` where they are long: it is never larger than about a
        megabyte, unless a single message is.

        Raises:
            SessionNotFound: as for `get_session`.
        """
        ...

    async def begin_version(self, new: NewVersion) -> BegunTurn | TurnRef:
        """Store a turn that takes the place of an earlier one; with a key as for `begin_turn`.

        Without `message` it is over the same words as the newest turn; with one, over `words`
        instead of that message. What stood in that place, and all that followed it, is listed no
        more and in no prompt; it stays as a version, which `select_version` brings back.

        Raises:
            SessionNotFound: no such session of the owner's.
            MessageNotFound: `message` is not the user's, or not at a place that is listed; or
                there is no message to answer.
            SessionBusy: a turn of the session is queued or running.
            TurnNotFound: there is no turn to be `retried`.
            NotRetryable: it was completed, or its words have been answered anew.
            KeyReused: the key was used for another request.
        """
        ...

    async def list_words(self, owner: str, ref: TurnRef) -> Sequence[ListedItem]:
        """What was said in a turn, in order, also if another version stands in its place.

        Empty for a turn that is not there.

        Raises:
            SessionNotFound: as for `get_session`.
        """
        ...

    async def list_versions(
        self, owner: str, session: SessionChoice, message: MessageRef
    ) -> Sequence[Version]:
        """All that was said at the place of a message, oldest first; itself among it.

        For a user's message the different words that stood there; for a reply the others to the
        same words.

        Raises:
            SessionNotFound: as for `get_session`.
            MessageNotFound: there is no such message.
        """
        ...

    async def select_version(
        self, owner: str, session: SessionChoice, message: MessageRef, turn: int, now: int
    ) -> Session:
        """List the version that turn number `turn` made, with all that had followed it.

        What stands there now becomes a version in its turn. Nothing changes if it is that one.

        Raises:
            SessionNotFound: as for `get_session`.
            MessageNotFound: there is no such message, or its place is not listed now.
            SessionBusy: a turn of the session is queued or running.
        """
        ...

    async def delete_session(
        self,
        owner: str,
        session: SessionChoice,
        *,
        if_idle: bool = False,
        if_stamp: Collection[str] | None = None,
    ) -> Sequence[TurnRef]:
        """Remove a session and every row that belongs to it. Its id is never used again.

        Returns:
            The turns that were queued or running, now gone; whoever runs them should stop.

        Raises:
            SessionNotFound: as for `get_session`.
            SessionBusy: there are such turns, and the caller said `if_idle`.
            PreconditionFailed: its stamp is none of `if_stamp`; nothing was removed.
        """
        ...

    async def clear_session(
        self, owner: str, session: SessionChoice, now: int
    ) -> Sequence[TurnRef]:
        """Remove every item and turn of a session; the session itself stays.

        Returns:
            The turns that were queued or running, now gone; whoever runs them should stop.
            Nothing happens, and the answer is empty, if the owner has no such session.
        """
        ...

    async def publish_revision(
        self,
        name: str,
        revision: Revision,
        source: Source,
        *,
        new: bool | None,
        key: IdempotencyKey | None = None,
    ) -> Deployment:
        """Make `revision` what new sessions of deployment `name` get.

        Nothing is published if the newest revision has the same blueprint, and the deployment is
        returned as it is. The number of `revision` is given here. `new` says whether the
        deployment must not exist yet (True), must exist (False), or either (None). Under a key
        that has made a deployment before, the answer is that one as it is now.

        Raises:
            DeploymentExists, DeploymentNotFound: against `new`.
            DeploymentReadOnly: the configuration defines it, and `source` is `api`.
        """
        ...

    async def list_deployments(self) -> Sequence[Deployment]:
        """Every deployment, by name."""
        ...

    async def get_deployment(self, name: str) -> Deployment:
        """Raises DeploymentNotFound."""
        ...

    async def list_revisions(self, name: str) -> Sequence[Revision]:
        """All that were ever published of a deployment, newest first.

        Raises:
            DeploymentNotFound: there is no such deployment.
        """
        ...

    async def roll_back(self, name: str, revision: str, now: int) -> Deployment:
        """Publish an earlier revision of a deployment again, by its id.

        Raises:
            DeploymentNotFound: there is no such deployment.
            RevisionNotFound: it has no such revision.
            DeploymentReadOnly: the configuration defines it.
        """
        ...

    async def delete_deployment(self, name: str, source: Source) -> None:
        """Make no more sessions of it. Those there are keep their revisions.

        Raises:
            DeploymentNotFound: there is no such deployment.
            DeploymentReadOnly: the configuration defines it, and `source` is `api`.
        """
        ...

    async def expire(self, limit: int, now: int) -> Expired:
        """Delete sessions that have outlived the time their blueprint gives them, some at a time.

        They are those, of all owners, that have not changed for `idle_timeout` or were made
        `max_age` ago, are not pinned, and in which no turn runs. At most `limit` are looked at,
        and no more deleted than a turn may well wait for.
        """
        ...

    async def give_back_space(self) -> bool:
        """Give a little of the space that deleted rows have left back to the disk.

        Some is kept for what comes. Where the database does this by itself, nothing happens.

        Returns:
            Whether there is more to give back.
        """
        ...

    async def next_turn(self, owner: str, session_id: str, after: int) -> NextTurn:
        """The turn that follows number `after` in a session of the owner's, if there is one yet.

        Raises:
            SessionNotFound: no such session, or not the owner's.
        """
        ...

    async def list_open(self) -> Sequence[TurnRef]:
        """Every turn that is queued or running, of all owners."""
        ...

    async def settle(self, ref: TurnRef, now: int) -> EndedTurn:
        """End a turn that nobody makes any more as `interrupted`, with what was kept of it."""
        ...

    async def drop_keys(self, before: int, limit: int) -> int:
        """Forget idempotency keys that were first used before that time, at most `limit`.

        Returns:
            How many were forgotten.
        """
        ...

    async def settle_abandoned(self, now: int) -> int:
        """End everything queued or running as `interrupted`. For the only server, at its start.

        Returns:
            How many turns were settled.
        """
        ...

    async def get_summary(self, session_id: str) -> Summary | None:
        """What was kept for a session; None if nothing was, or what it told of has changed.

        It goes when the session is cleared or deleted, and when a version takes the place of
        something it tells of. A fork has none.
        """
        ...

    async def keep_summary(self, ref: TurnRef, summary: Summary) -> None:
        """Keep the summary of a turn's session in place of the one before.

        Does nothing unless the turn is running: what is told of may be gone.
        """
        ...

    async def items_between(
        self, session_id: str, after: Place, before: Place, weight: int
    ) -> Sequence[KeptItem]:
        """The newest items that stand between two places, in order, at least `weight` of them.

        What no prompt may show is left out.
        """
        ...

    async def list_counts(self) -> Sequence[TokenCount]:
        """All that was kept of how models count, by model."""
        ...

    async def keep_counts(self, counts: Sequence[TokenCount]) -> None:
        """Keep these, each in place of what was kept of its model."""
        ...

    async def get_spent(self, subject: Subject) -> Sequence[Spent]:
        """What was kept of a subject's days and months; they may be over."""
        ...

    async def keep_spent(self, spent: Sequence[Spent]) -> None:
        """Keep these, each in place of what was kept of the same subject and measure."""
        ...

    async def drop_spent(self, now: int, limit: int) -> int:
        """Remove what was kept of days and months that are over, at most `limit`; how many."""
        ...

    async def was_made(self, key: IdempotencyKey) -> bool:
        """Whether something was begun or made under a key, for the same request."""
        ...

    async def ping(self) -> None:
        """Return if the store can be read and written, as far as is known.

        Only if the last write failed, something is written to find out.
        """
        ...

    async def close(self) -> None:
        """Finish what was begun, then let go of the database."""
        ...


class FoundKey(msgspec.Struct, frozen=True):
    """A key and its user; `is_old` when it was the secret before the last rotation."""

    key: Key
    user: User
    is_old: bool = False


class FoundToken(msgspec.Struct, frozen=True):
    """A session token, whose its session is, and the key it was made with, if with one."""

    token: SessionToken
    owner: str
    key: Key | None


UsageBy = Literal["day", "model", "user", "deployment", "end_user"]


class UsageStore(Protocol):
    """Keeps what was used. It outlives the sessions that it was used in.

    Each turn that ends is counted by `Store` in the transaction that ends it, and one that is
    deleted before it has ended as cancelled: none twice, none never.
    """

    async def fold(self, requests: Mapping[tuple[str, str], int], limit: int) -> int:
        """Add at most `limit` turns to the sums that are read quickly; how many they were.

        `requests` are counted with them, by owner and day (`YYYY-MM-DD`, in UTC): those of users
        that there are not, and who have no sessions, as everybody's alone.
        """
        ...

    async def list_usage(
        self, owner: str | None, by: UsageBy, first: str, last: str
    ) -> Mapping[str, Sums]:
        """What was used from day `first` up to and with day `last`, in UTC, by what is told apart.

        `owner` None is everybody, and a user is all of the user's end users too. A turn belongs
        to the day it ended on. Requests have no model and no deployment: there, none are counted.
        By `end_user` it is only what was used for one.
        """
        ...


class AccountStore(Protocol):
    """Keeps users, their logins, API keys and session tokens; of a secret no more than a hash.

    What makes a secret takes the caller's own name for the request: under one that was used
    before, it raises `SecretNotKept` and changes nothing, or `KeyReused` for another request.
    """

    async def create_user(self, user: User, password_hash: str | None) -> None:
        """Add a user; `has_password` follows from the hash.

        Raises:
            UserExists: there is one of this name.
        """
        ...

    async def list_users(self) -> Sequence[User]:
        """Every user, by name."""
        ...

    async def get_user(self, name: str) -> User:
        """Raises UserNotFound: there is no such user."""
        ...

    async def set_role(self, name: str, role: Role) -> None:
        """Give a user another role. Raises UserNotFound."""
        ...

    async def delete_user(self, name: str) -> None:
        """Remove a user with every way in: logins, keys and session tokens.

        Raises:
            UserNotFound: there is no such user.
            UserNotEmpty: there are still sessions or documents of the user's or its end users',
                which another user of the name would get; nothing was removed.
        """
        ...

    async def find_password(self, name: str) -> tuple[User, str] | None:
        """A user who may log in, and the hash of the password.

        None if there is no such user, who is disabled, or has no password.
        """
        ...

    async def set_password(self, name: str, password_hash: str | None) -> None:
        """Give a user another password, or none.

        All logins of the user end, and the session tokens that were not made with a key.

        Raises:
            UserNotFound: there is no such user.
        """
        ...

    async def set_disabled(self, name: str, disabled: bool) -> None:
        """Keep a user out, or let the user in again.

        When a user is disabled, it is with logins and tokens as for another password. Keys, and
        the tokens made with them, stay but are not found while their user is disabled.

        Raises:
            UserNotFound: there is no such user.
        """
        ...

    async def begin_login(self, login: Login, password_hash: str, new_hash: str | None) -> bool:
        """Keep a login, if the user may log in and the password still has this hash.

        The hash becomes `new_hash` unless that is None; other logins stay.

        Returns:
            Whether it was kept.
        """
        ...

    async def find_login(self, hash_: str) -> tuple[Login, User] | None:
        """A login by the hash of its token. None if it is gone, or its user is disabled."""
        ...

    async def touch_login(self, hash_: str, now: int) -> None:
        """Note when it was seen; never an earlier time than is noted. Nothing if it is gone."""
        ...

    async def end_login(self, hash_: str) -> None:
        """Remove it. Nothing happens if it is gone."""
        ...

    async def drop_logins(self, created_before: int, seen_before: int) -> int:
        """Remove those that were begun, or last seen, before these times; how many it were."""
        ...

    async def create_key(self, key: Key, hash_: str, request: IdempotencyKey | None = None) -> None:
        """Add a key.

        Raises:
            UserNotFound: there is no such user.
        """
        ...

    async def list_keys(self, user: str | None) -> Sequence[Key]:
        """The keys of a user, or of all: by user, oldest first.

        Raises:
            UserNotFound: there is no such user.
        """
        ...

    async def get_key(self, id_: str) -> Key:
        """Raises KeyNotFound: there is no such key."""
        ...

    async def rotate_key(
        self,
        id_: str,
        hash_: str,
        old_until: int | None,
        *,
        now: int,
        request: IdempotencyKey | None = None,
    ) -> Key:
        """Give a key another secret. The one it had is good until `old_until`; None: no more.

        That from before its last rotation is none any more.

        Raises:
            KeyNotFound: there is no such key.
        """
        ...

    async def revoke_key(self, id_: str) -> Key:
        """Remove a key; the answer is what was removed.

        Raises:
            KeyNotFound: there is no such key.
        """
        ...

    async def find_key(self, hash_: str) -> FoundKey | None:
        """A key by the hash of its secret, or of the one before its last rotation.

        None if there is none, or its user is disabled. Whether it, or that secret, is still good
        at this time is not looked at.
        """
        ...

    async def keep_uses(self, uses: Mapping[str, int]) -> None:
        """Note when keys were last used, by id; never an earlier time than is noted."""
        ...

    async def create_token(
        self, token: SessionToken, hash_: str, *, now: int, request: IdempotencyKey | None = None
    ) -> None:
        """Add a token. Under a request's name that was used, `SecretNotKept` has its session's id.

        Raises:
            SessionNotFound: there is no such session.
        """
        ...

    async def find_token(self, hash_: str) -> FoundToken | None:
        """A token by its hash.

        None if it is gone, or its session is, or the key it was made with; or if a user of the
        name it was made by is disabled. Whether it is still good at this time is not looked at.
        """
        ...

    async def drop_tokens(self, expired_before: int) -> int:
        """Remove the tokens that were good until before this time; how many they were."""
        ...

    async def set_admin_key(self, key: Key, hash_: str | None) -> None:
        """See to it that the user of `key` is there as an admin, with exactly this one of its name.

        Other keys of that name and user are removed; the same one is left as it is. With None for
        a hash there is to be none of that name, and no user is made.
        """
        ...

    async def forget_credentials(self, user: str) -> Forgotten:
        """Remove a user with all logins, keys and tokens, if there is one."""
        ...

    async def forget_some(self, owner: str, limit: int) -> Forgotten:
        """Remove what is an owner's, or names one; at most `limit` sessions and documents.

        A user's name stands for the end users of that user too. Once nothing is left nothing
        happens.
        """
        ...

    async def can_anyone_enter(self) -> bool:
        """Whether any user who is not disabled has a password or a key."""
        ...


class Issuer(Protocol):
    """An identity provider of someone else's, whose tokens let people in."""

    async def read(self, token: str) -> Identity | None:
        """Who the token says that its bearer is.

        None if it is not the provider's, not meant for us, not good (any more), or says nothing
        of what is needed; or if the provider's keys cannot be had just now.
        """
        ...


class Provider(Protocol):
    """Makes replies."""

    @property
    def name(self) -> str:
        """What it is called in `name/model`; no two in one server are called alike."""
        ...

    @property
    def models(self) -> Sequence[Model]:
        """The models it offers, by its own ids, each once, the default first."""
        ...

    @property
    def attempts(self) -> int:
        """How often it may be asked for one reply, as long as no word has come; at least 1."""
        ...

    def stream(self, prompt: Prompt) -> AsyncIterator[Sequence[ProviderEvent]]:
        """Ask the model. Yields what arrived together, together; ends when the reply is whole.

        A reply that ends normally had at least one `TextDelta`, `RefusalDelta` or `ToolCallDelta`.
        Closing the iterator stops the
        call at once and leaves no connection open that still carries the reply.

        Raises:
            ProviderError: the model could not be reached or broke off; nothing is retried here,
                but for a kept-alive connection that turns out to be dead before any byte.
        """
        ...

    async def close(self) -> None:
        """Close connections; calls still running end."""
        ...


class DocumentStore(Protocol):
    """Keeps documents and their sections.

    Writes are on disk, or undone whole, as for `Store`, and every method may raise
    `StoreUnavailable`. What belongs to another owner does not exist: unless it says otherwise,
    a method raises `DocumentNotFound` for a document that is not there or not the owner's, and
    `SectionNotFound` for a section that is not in it.
    """

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
        """Store a document with these sections, in this order.

        Under a key that has made a document before, the answer is that one, whose id is another.

        Raises:
            KeyReused: the key was used for another request.
        """
        ...

    async def list_documents(self, owner: str) -> Sequence[Document]:
        """The owner's documents, newest first."""
        ...

    async def get_document(self, owner: str, document_id: str) -> Document: ...

    async def list_section_sizes(
        self, owner: str, document_id: str
    ) -> tuple[Document, Sequence[SectionSize]]:
        """A document, and which sections it has, in order, without reading their texts."""
        ...

    async def get_sections(
        self, owner: str, document_id: str, ids: Sequence[str]
    ) -> Sequence[Section]:
        """Those of a document's sections that are still there, in the order of `ids`."""
        ...

    async def rename_document(
        self,
        owner: str,
        document_id: str,
        title: str,
        now: int,
        *,
        if_stamp: Collection[str] | None = None,
    ) -> Document:
        """Give a document another title.

        Raises:
            PreconditionFailed: its stamp is none of `if_stamp`; nothing was changed.
        """
        ...

    async def delete_document(
        self,
        owner: str,
        document_id: str,
        now: int,
        *,
        if_stamp: Collection[str] | None = None,
    ) -> Sequence[TurnRef]:
        """Remove a document, its sections, their chats, and every row that belongs to these.

        Returns:
            The turns that were queued or running, now gone; whoever runs them should stop.

        Raises:
            PreconditionFailed: its stamp is none of `if_stamp`; nothing was deleted.
        """
        ...

    async def create_section(
        self,
        owner: str,
        document_id: str,
        new: NewSection,
        now: int,
        *,
        key: IdempotencyKey | None = None,
    ) -> Section:
        """Store a section at its position; those from there on stand one further.

        With a key as for `create_document`.
        """
        ...

    async def get_section(self, owner: str, document_id: str, section_id: str) -> Section: ...

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
        """Change what `change` says. `position` is where it stands among the others afterwards.

        Raises:
            PreconditionFailed: its stamp is none of `if_stamp`; nothing was changed.
        """
        ...

    async def delete_section(
        self,
        owner: str,
        document_id: str,
        section_id: str,
        now: int,
        *,
        if_stamp: Collection[str] | None = None,
    ) -> Sequence[TurnRef]:
        """Remove a section and its chat, and every row that belongs to these.

        Returns:
            As `delete_document`.

        Raises:
            PreconditionFailed: its stamp is none of `if_stamp`; nothing was deleted.
        """
        ...

    async def find_chat(self, owner: str, document_id: str, section_id: str) -> str | None:
        """The session that is a section's chat; None if there is none, or it is gone.

        Raises:
            DocumentNotFound: there is no such document.
            AccessDenied: it is someone else's.
        """
        ...

    async def open_chat(self, owner: str, document_id: str, new: NewSession) -> OpenedChat:
        """The session that is the chat of section `new.section`; `new` is made if there is none.

        However many ask at once, one session is made. It takes the place of one that is gone.

        Raises:
            DocumentNotFound, AccessDenied: as for `find_chat`.
            DeploymentNotFound: there is no such deployment.
        """
        ...

    async def get_passage(self, section_id: str) -> Passage | None:
        """A section amid its document as they are now; None if it is gone."""
        ...
