"""Sessions and turns: the one place where a user's words become a reply.

Knows stores and providers by their contracts; does not know HTTP, SQL or the name of any
company. The life of a turn is one coroutine, `_live`: stored, perhaps queued, made, ended. It
belongs to the engine and not to whoever asked, who may come and go.
"""

import asyncio
import logging
import random
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import aclosing
from typing import Any, assert_never

import msgspec

from turnkeeper import prompt
from turnkeeper.contracts import (
    BegunTurn,
    ByAlias,
    ById,
    NewTurn,
    Provider,
    SessionChoice,
    Store,
)
from turnkeeper.domain import (
    Context,
    Ending,
    Failure,
    Message,
    Model,
    ModelChoice,
    Prompt,
    SessionSummary,
    Turn,
    TurnRef,
    TurnStatus,
    Usage,
    check_text,
    is_session_id,
)
from turnkeeper.errors import (
    BlankMessage,
    InvalidRequest,
    MessageTooLong,
    ProviderError,
    ServerStopping,
    StoreUnavailable,
    TurnNotFound,
    UnknownModel,
)
from turnkeeper.events import ProviderEvent, TextDelta, UsageReport
from turnkeeper.offers import Offers
from turnkeeper.reply import Reply

log = logging.getLogger(__name__)

CHECKPOINT_SECONDS = 1.0
ALIAS_LENGTH = 128
_ALIAS_CHARACTERS = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._:-")


class Policy(msgspec.Struct, frozen=True):
    """What an operator decides about turns.

    Attributes:
        system_message: what every prompt begins with; empty for nothing.
        message_limit: characters of one message.
        reply_limit: characters of one reply; a longer one is broken off and fails.
        queue_limit: turns that may wait in one session.
        retry_delay: seconds before a provider is called a second time, doubling; its own
            Retry-After goes before it, up to `patience` seconds. Longer, and the turn fails at
            once.
    """

    system_message: str = "You are a helpful AI assistant."
    message_limit: int = 100_000
    reply_limit: int = 1_000_000
    queue_limit: int = 32
    retry_delay: float = 0.5
    patience: float = 10.0


class Engine:
    """Takes turns, lets them be followed and cancelled, and ends every one of them."""

    def __init__(
        self,
        store: Store,
        offers: Offers,
        policy: Policy,
        *,
        now: Callable[[], int],
        new_id: Callable[[], str],
        jitter: Callable[[], float] = random.random,
    ) -> None:
        """`offers` has one at least.

        `now` gives milliseconds since 1970, `new_id` an unguessable session id.
        `jitter` gives numbers from 0 to 1, by which repeated calls to a provider are spread.
        """
        self._store = store
        self._policy = policy
        self._now = now
        self._new_id = new_id
        self._jitter = jitter
        self._offers = offers.by_id
        self.models: Sequence[Model] = [offer.model for offer in offers.listed]
        self._lives: dict[TurnRef, _Life] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        # What the store said of turns before their own coroutines had come so far.
        self._promoted: set[TurnRef] = set()
        self._cleared: set[TurnRef] = set()
        self._ticking = False
        self.stopping = False
        self._loop = asyncio.get_running_loop()

    # --- What callers do -----------------------------------------------------------------------

    async def take_turn(
        self, owner: str, session: str | None, text: str, model: str | None = None
    ) -> Reply:
        """Store a message and have it answered. Returns once the message is durable.

        `session` is a session's id or the client's own name for one, which is then made; None
        makes a new one. `model` None keeps the session's.

        Raises:
            BlankMessage, MessageTooLong, InvalidRequest, UnknownModel, SessionNotFound,
            ContextTooLong, QueueFull, ServerStopping, StoreUnavailable: nothing was stored.
        """
        if self.stopping:
            raise ServerStopping("The server is stopping; try again in a moment")
        message = self._check_message(text)
        if model is not None:
            if model not in self._offers:
                raise UnknownModel(f"Unknown model: {model[:100]}")
            model = self._offers[model].model.id
        new = NewTurn(
            owner=owner,
            session=None if not session else choose_session(session),
            new_id=self._new_id(),
            items=(message,),
            model=model,
            choose=lambda kept: self._choose_model(model or kept, message),
            queue_limit=self._policy.queue_limit,
            now=self._now(),
        )
        begun: asyncio.Future[Reply] = self._loop.create_future()
        self._spawn(self._live(new, begun))
        return await begun

    async def follow_turn(self, owner: str, ref: TurnRef) -> Reply:
        """A turn's reply: live while it is made here, else as the store has it.

        Raises:
            TurnNotFound: no such turn, or someone else's.
        """
        for _ in range(2):  # it may end, or begin, between a look here and one in the store
            life = self._lives.get(ref)
            if life is not None and life.reply.owner == owner:
                return life.reply
            stored = await self._store.get_turn(owner, ref)
            if stored.turn.status.terminal:
                break
        return Reply.stored(owner, _as_ended(stored.turn), stored.text)

    async def cancel_turn(self, owner: str, ref: TurnRef) -> Turn:
        """Stop a turn; what was said so far is kept. Changes nothing in one that has ended.

        Raises:
            TurnNotFound: no such turn, or someone else's.
        """
        reply = await self.follow_turn(owner, ref)
        if reply.ended is not None:
            return reply.turn
        self._stop(ref, TurnStatus.CANCELLED)
        return (await reply.wait()).turn

    async def list_sessions(self, owner: str) -> Sequence[SessionSummary]:
        """The owner's sessions that hold a message, oldest first."""
        return await self._store.list_sessions(owner)

    async def clear_session(self, owner: str, session: str) -> None:
        """Forget everything said in a session; turns in it stop. Nothing if there is none."""
        gone = await self._store.clear_session(owner, choose_session(session), self._now())
        for ref in gone:
            if ref in self._lives:
                self._stop(ref, TurnStatus.CANCELLED)
            else:
                self._cleared.add(ref)

    async def ready(self) -> bool:
        """Whether turns are taken just now.

        Raises:
            StoreUnavailable: no, since the database cannot be read.
        """
        await self._store.ping()
        return not self.stopping

    async def drain(self, grace: float) -> None:
        """Take no more turns; let those that run finish, and interrupt them after `grace` s."""
        self.stopping = True
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=grace)
        while self._tasks:
            for ref in tuple(self._lives):
                self._stop(ref, TurnStatus.INTERRUPTED)
            await asyncio.wait(self._tasks, timeout=0.1)

    # --- What is asked of a message ------------------------------------------------------------

    def _check_message(self, text: str) -> Message:
        if not text.strip():
            raise BlankMessage("No message provided")
        if len(text) > self._policy.message_limit:
            raise MessageTooLong(
                f"The message has {len(text)} characters; {self._policy.message_limit} are allowed"
            )
        return Message("user", check_text(text, "message"))

    def _choose_model(self, wanted: str | None, message: Message) -> ModelChoice:
        """`wanted`, or the default where a session's model is no longer offered."""
        offer = self._offers.get(wanted or "") or self._offers[self.models[0].id]
        return prompt.choose(offer.model, offer.room, (message,))

    # --- The life of a turn --------------------------------------------------------------------

    def _spawn(self, life: Any) -> None:
        task = self._loop.create_task(life)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _live(self, new: NewTurn, begun: asyncio.Future[Reply]) -> None:
        try:
            stored = await self._store.begin_turn(new)
        except Exception as error:
            if not begun.done():
                begun.set_exception(error)
            return
        reply = Reply(new.owner, stored.turn)
        life = self._lives[stored.turn.ref] = _Life(reply)
        self._keep_ticking()
        if not begun.done():
            begun.set_result(reply)
        try:
            ending = await self._play(life, stored)
        finally:
            life.settled = True
        if life.checkpointed:
            ending = msgspec.structs.replace(ending, checkpointed=True)
        await self._end(life, ending)

    async def _play(self, life: "_Life", stored: BegunTurn) -> Ending:
        """Wait for the turn's place, make the reply, and say how that ended, whatever happened."""
        reply = life.reply
        context: Context | None = None
        try:
            if reply.turn.ref in self._cleared:
                self._cleared.remove(reply.turn.ref)
                return Ending(TurnStatus.CANCELLED, "")
            if stored.turn.status is TurnStatus.QUEUED:
                stored = await self._await_place(life)
            offer = self._offers[stored.turn.model]
            asked, context = prompt.fit(
                offer.asked_as,
                self._policy.system_message,
                offer.room,
                stored.history,
            )
            usage = await self._make(life, offer.provider, asked)
            usage = usage or _estimate_usage(context, reply.text)
            return Ending(TurnStatus.COMPLETED, reply.text, usage, None, context)
        except asyncio.CancelledError:
            status = life.stopped_as or TurnStatus.INTERRUPTED
            return Ending(status, reply.text, None, None, context)
        except (ProviderError, StoreUnavailable) as error:
            failure = Failure(error.code, error.sentence, error.retry_after)
        except TurnNotFound:
            return Ending(TurnStatus.CANCELLED, "")
        except Exception:
            log.exception("Turn %s failed through a fault of our own", reply.turn.ref.id)
            failure = Failure("internal_error", "The server failed to make this reply")
        return Ending(TurnStatus.FAILED, reply.text, None, failure, context)

    async def _await_place(self, life: "_Life") -> BegunTurn:
        ref = life.reply.turn.ref
        if ref in self._promoted:
            self._promoted.remove(ref)
        else:
            life.place = self._loop.create_future()
            await life.place
        room = self._offers[life.reply.turn.model].room
        stored = await self._store.get_history(ref, room)
        life.reply.start(stored.turn)
        return stored

    async def _make(self, life: "_Life", provider: Provider, asked: Prompt) -> Usage | None:
        """Call the model, again while it says nothing; returns the usage it reported."""
        delay = self._policy.retry_delay
        for attempt in range(1, provider.attempts + 1):
            try:
                return await self._listen(life, provider.stream(asked))
            except ProviderError as error:
                pause = error.retry_after or delay * (0.5 + self._jitter())
                last = attempt == provider.attempts or pause > self._policy.patience
                if life.reply.length or not error.retryable or last:
                    raise
                log.info("Calling the model again in %.1f s: %s", pause, error.sentence)
            await asyncio.sleep(pause)
            delay *= 2
        raise AssertionError

    async def _listen(
        self, life: "_Life", stream: AsyncIterator[Sequence[ProviderEvent]]
    ) -> Usage | None:
        reply, usage = life.reply, None
        async with aclosing(stream) as events_together:  # type: ignore[type-var]
            async for events in events_together:
                for event in events:
                    match event:
                        case TextDelta(text=text):
                            reply.append(text)
                            self._check_length(reply)
                        case UsageReport(usage=reported):
                            usage = reported
                        case _:
                            assert_never(event)
        return usage

    def _check_length(self, reply: Reply) -> None:
        """A model that never stops must not fill memory and disk."""
        limit = self._policy.reply_limit
        if reply.length > limit:
            raise ProviderError(
                "provider_malformed", f"the reply is longer than {limit} characters"
            )

    # --- Checkpoints ---------------------------------------------------------------------------

    def _keep_ticking(self) -> None:
        if not self._ticking:
            self._ticking = True
            self._loop.call_later(CHECKPOINT_SECONDS, self._tick)

    def _tick(self) -> None:
        """Keep what replies have grown by since the last time, all in one commit or few."""
        self._ticking = False
        for life in self._lives.values():
            if life.reply.length > life.kept and not (life.settled or life.checkpointing):
                life.checkpointing = life.checkpointed = True
                self._spawn(self._checkpoint(life))
        if self._lives:
            self._keep_ticking()

    async def _checkpoint(self, life: "_Life") -> None:
        """What cannot be kept now is part of the next one: checkpoints have no gaps."""
        ref, length, text = life.reply.turn.ref, life.reply.length, life.reply.since(life.kept)
        try:
            await self._store.checkpoint(ref, life.checkpoints, text)
            life.kept = length
            life.checkpoints += 1
        except StoreUnavailable:
            log.warning("A checkpoint of turn %s was not kept", ref.id)
        finally:
            life.checkpointing = False

    # --- The end of a turn ---------------------------------------------------------------------

    async def _end(self, life: "_Life", ending: Ending) -> None:
        """Store the ending, then tell everyone. Cannot be skipped, and is tried until it holds.

        No one cancels this: `_stop` leaves a settled life alone. A server that stops gives up:
        then no one is told an end, and the next start settles the turn from its checkpoints.
        """
        reply, pause = life.reply, 0.05
        while True:
            now = self._now()
            try:
                ended = await self._store.end_turn(reply.turn.ref, ending, now)
                break
            except StoreUnavailable:
                pass
            except Exception:
                log.exception("Turn %s could not be ended as it was", reply.turn.ref.id)
                ending = _plainer(ending)
            if self.stopping:
                self._lives.pop(reply.turn.ref, None)
                reply.lose()
                return
            await asyncio.sleep(pause)
            pause = min(pause * 2, 2.0)
        self._lives.pop(reply.turn.ref, None)
        if ended.promoted is not None:
            self._give_place(ended.promoted.ref)
        if not ended.stored:  # it was cleared meanwhile
            ending = Ending(TurnStatus.CANCELLED, reply.text)
        reply.end(_ended(reply.turn, ending, now))

    def _give_place(self, ref: TurnRef) -> None:
        life = self._lives.get(ref)
        if life is None or life.place is None:
            self._promoted.add(ref)  # stored, but its own coroutine has not come to wait for it
        elif not life.place.done():
            life.place.set_result(None)

    def _stop(self, ref: TurnRef, status: TurnStatus) -> None:
        """Make a turn end as `status`, unless its ending is settled already."""
        life = self._lives.get(ref)
        if life is None or life.settled or life.stopped_as is not None:
            return
        life.stopped_as = status
        life.task.cancel()


class _Life:
    """A turn between `begin_turn` and `end_turn`, as its coroutine and `_stop` see it."""

    __slots__ = (
        "checkpointed",
        "checkpointing",
        "checkpoints",
        "kept",
        "place",
        "reply",
        "settled",
        "stopped_as",
        "task",
    )

    def __init__(self, reply: Reply) -> None:
        task = asyncio.current_task()
        assert task is not None  # noqa: S101
        self.reply = reply
        self.task = task
        self.place: asyncio.Future[None] | None = None  # while it waits in the queue
        self.stopped_as: TurnStatus | None = None
        self.settled = False
        self.checkpoints = 0  # how many hold the first `kept` characters of the reply
        self.kept = 0
        self.checkpointing = False
        self.checkpointed = False  # at least one was tried


def choose_session(text: str) -> SessionChoice:
    """Which session a caller means: an id of ours, else a name of the caller's own.

    Raises:
        InvalidRequest: neither could be.
    """
    if is_session_id(text):
        return ById(text)
    if len(text) <= ALIAS_LENGTH and _ALIAS_CHARACTERS.issuperset(text):
        return ByAlias(text)
    raise InvalidRequest(
        f"session_id must be 1 to {ALIAS_LENGTH} characters of A-Z a-z 0-9 . _ : -"
    )


def _as_ended(turn: Turn) -> Turn:
    """A turn that no one is making any more is over, though its end could not be stored yet."""
    if turn.status.terminal:
        return turn
    return msgspec.structs.replace(turn, status=TurnStatus.INTERRUPTED)


def _plainer(ending: Ending) -> Ending:
    """The ending without what may have been too odd to store, the text last of all."""
    if ending.usage is not None or ending.context is not None:
        return msgspec.structs.replace(ending, usage=None, context=None)
    failure = Failure("internal_error", "The server failed to store this reply")
    return Ending(TurnStatus.FAILED, "", None, failure, None, ending.checkpointed)


def _ended(turn: Turn, ending: Ending, now: int) -> Turn:
    return msgspec.structs.replace(
        turn,
        status=ending.status,
        finished_at=now,
        usage=ending.usage,
        failure=ending.failure,
        context=ending.context,
    )


def _estimate_usage(context: Context, text: str) -> Usage:
    completion = len(text.encode()) // prompt.BYTES_PER_TOKEN + 1
    return Usage(context.estimated_tokens, completion, estimated=True)
