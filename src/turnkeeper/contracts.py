"""What the engine needs of the world, as promises: a place to keep turns, a model to ask.

The docstrings are the contract, and the exams in `tests/contracts/` hold every store and every
provider to these sentences.
"""

from collections.abc import AsyncIterator, Callable, Sequence
from typing import Protocol

import msgspec

from turnkeeper.domain import (
    Ending,
    History,
    Item,
    ListedItem,
    Model,
    ModelChoice,
    Prompt,
    Session,
    SessionSummary,
    Turn,
    TurnRef,
)
from turnkeeper.events import ProviderEvent


class ById(msgspec.Struct, frozen=True):
    """A session by the id the server gave it: it exists, or the caller is wrong."""

    id: str


class ByAlias(msgspec.Struct, frozen=True):
    """A session by the id its client chose, which is the client's own until it is used."""

    alias: str


SessionChoice = ById | ByAlias


class NewTurn(msgspec.Struct, frozen=True):
    """A turn to begin.

    Attributes:
        session: None for a new one; an alias nobody used yet makes a new one too.
        new_id: the id of a session that has to be created.
        model: what the caller asked for; it becomes the session's model. None keeps that.
        choose: from the session's model (None when it has none) to the turn's. Pure, since a
            store may call it more than once; what it raises undoes the turn.
        queue_limit: how many turns may wait in one session.
    """

    owner: str
    session: SessionChoice | None
    new_id: str
    items: tuple[Item, ...]
    model: str | None
    choose: Callable[[str | None], ModelChoice]
    queue_limit: int
    now: int


class BegunTurn(msgspec.Struct, frozen=True):
    """A turn that is now stored, `running` or `queued`.

    A queued one has no items in its `history` yet: `get_history` gets them when it runs. A
    running one has as many as its choice's `history_weight` asks for.
    """

    turn: Turn
    history: History


class EndedTurn(msgspec.Struct, frozen=True):
    """What `end_turn` did: whether the turn was ended by it, and which turn runs now instead."""

    stored: bool
    promoted: Turn | None = None


class StoredReply(msgspec.Struct, frozen=True):
    """A turn as the store has it, with the text of its reply as far as that was stored."""

    turn: Turn
    text: str


class Store(Protocol):
    """Keeps sessions, items and turns.

    Every write is on disk (or in a committed transaction of a server that says so) when its
    method returns, and is undone whole when it raises. Every method may raise
    `StoreUnavailable`. Owners never meet: what belongs to another owner does not exist.
    """

    async def begin_turn(self, new: NewTurn) -> BegunTurn:
        """Store the caller's items and a turn over them.

        The turn takes the next number of its session. It is `running` when no other turn of
        the session is, else `queued`; turns of one session run one at a time, by number.

        Raises:
            SessionNotFound: `ById` names no session of the owner.
            QueueFull: `queue_limit` turns wait already.
        """
        ...

    async def end_turn(self, ref: TurnRef, ending: Ending, now: int) -> EndedTurn:
        """End a running or queued turn as `ending` says; the next one queued takes its place.

        Stores the reply. Unless the turn is completed, or ended with text other than by
        failing, its items appear in no later prompt. Does nothing to a turn that is over or
        gone: a terminal state never changes.
        """
        ...

    async def checkpoint(self, ref: TurnRef, position: int, text: str) -> None:
        """Keep the newest words of a running turn, so that a crash loses only what follows.

        `position` counts a turn's checkpoints from 0; together they are its reply so far. The
        same position again replaces what was kept there.
        `end_turn` removes them, `settle_abandoned` makes them the reply. Does nothing to a turn
        that is not running.
        """
        ...

    async def get_history(self, ref: TurnRef, history_weight: int) -> BegunTurn:
        """What `begin_turn` returned had the turn been running: for one promoted since.

        Raises:
            TurnNotFound: it was cleared meanwhile.
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

    async def list_newest(self, owner: str, limit: int) -> Sequence[Session]:
        """The owner's `limit` newest sessions, newest first; those without a message too."""
        ...

    async def get_session(self, owner: str, session: SessionChoice) -> Session:
        """A session of the owner's.

        Raises:
            SessionNotFound: no such session, or not the owner's; an alias nobody used.
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

    async def delete_session(
        self, owner: str, session: SessionChoice, *, if_idle: bool = False
    ) -> Sequence[TurnRef]:
        """Remove a session and every row that belongs to it. Its id is never used again.

        Returns:
            The turns that were queued or running, now gone; whoever runs them should stop.

        Raises:
            SessionNotFound: as for `get_session`.
            SessionBusy: there are such turns, and the caller said `if_idle`.
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

    async def settle_abandoned(self, now: int) -> int:
        """End everything queued or running as `interrupted`. For the only server, at its start.

        Returns:
            How many turns were settled.
        """
        ...

    async def ping(self) -> None:
        """Return if the store can be read."""
        ...

    async def close(self) -> None:
        """Finish what was begun, then let go of the database."""
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

        A reply that ends normally had at least one `TextDelta`. Closing the iterator stops the
        call at once and leaves no connection open that still carries the reply.

        Raises:
            ProviderError: the model could not be reached or broke off; nothing is retried here,
                but for a kept-alive connection that turns out to be dead before any byte.
        """
        ...

    async def close(self) -> None:
        """Close connections; calls still running end."""
        ...
