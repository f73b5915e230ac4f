"""Sessions and turns: the one place where a user's words become a reply.

Knows stores and providers by their contracts; does not know HTTP, SQL or the name of any
company. The life of a turn is one coroutine, `_live`: stored, perhaps queued, made, ended. It
belongs to the engine and not to whoever asked, who may come and go.
"""

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import Any

import msgspec

from turnkeeper import prompt
from turnkeeper.contracts import Background, BegunTurn, NewTurn, NewVersion, Store
from turnkeeper.domain import (
    Basis,
    ById,
    Ending,
    Failure,
    History,
    IdempotencyKey,
    Kept,
    Message,
    MessageRef,
    Model,
    ModelChoice,
    Revision,
    Sampling,
    SessionChoice,
    Turn,
    TurnRef,
    TurnStatus,
    check_text,
    item_weight,
)
from turnkeeper.errors import (
    BlankMessage,
    ContextTooLong,
    InvalidRequest,
    MessageTooLong,
    ProviderError,
    QueueTimeout,
    ServerStopping,
    SessionNotFound,
    StoreUnavailable,
    TurnNotFound,
    UnknownModel,
)
from turnkeeper.following import SessionFollower
from turnkeeper.making import Maker, Work
from turnkeeper.offers import Offers
from turnkeeper.plans import Plan, Plans
from turnkeeper.policy import Policy
from turnkeeper.reply import Reply, Taken

log = logging.getLogger(__name__)

_SHARES = 10  # of all replies, each of which has its checkpoints at another time
_LOOKS = (0, 0, 0.05, 0.5)  # seconds after each look for a turn whose coroutine may be late
_REMEMBERED = 1000  # revisions


class Engine:
    """Takes turns, lets them be followed and cancelled, and ends every one of them."""

    def __init__(
        self,
        store: Store,
        offers: Offers,
        plans: Plans,
        policy: Policy,
        *,
        background: Background,
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
        self._maker = Maker(policy, jitter=jitter)
        self._background = background
        self._now = now
        self._new_id = new_id
        self._offers = offers.by_id
        self.models: Sequence[Model] = [offer.model for offer in offers.listed]
        self._plans = plans
        self._revisions: dict[str, Revision] = {}  # never changed, so never read twice
        self._lives: dict[TurnRef, _Life] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        self._passing: set[asyncio.Task[Any]] = set()  # of which nothing is kept
        # What the store said of turns before their own coroutines had come so far. No one else
        # looks here, so that what is left when none is on its way was of turns that were over.
        self._promoted: set[TurnRef] = set()
        self._cancelled: set[TurnRef] = set()
        self._beginning = 0
        self._watchers: dict[str, set[SessionFollower]] = {}  # by the session they follow
        self._strays: set[TurnRef] = set()  # that were open when last looked for, and not made
        self._ticking = False
        self._share = 0  # whose checkpoints were made last
        self.stopping = False
        self._loop = asyncio.get_running_loop()

    # --- What callers do -----------------------------------------------------------------------

    async def take_turn(
        self,
        owner: str,
        session: SessionChoice | None,
        text: str,
        *,
        model: str | None = None,
        sampling: Sampling | None = None,
        scope: str | None = None,
        kept: Kept | None = None,
        key: IdempotencyKey | None = None,
    ) -> Taken:
        """Store a message and have it answered. Returns once the message is durable.

        `session` None makes a new one. `model` None keeps the session's; `sampling` holds for
        this turn only, `kept` from this turn on. With `scope` the session must be of that
        deployment. Under a `key` that has begun a turn before, it is that turn.

        Raises:
            BlankMessage, MessageTooLong, InvalidRequest, UnknownModel, SessionNotFound,
            ContextTooLong, QueueFull, SessionBusy, KeyReused, ServerStopping, StoreUnavailable:
                nothing was stored.
            TurnNotFound: the turn of that key is gone.
        """
        message = self.check_message(text)
        weight = item_weight(message)
        asked = self.check_model(model)

        def choose(basis: Basis, total_weight: int) -> ModelChoice:
            return self._plans.make(basis, asked, sampling).choose(weight, total_weight)

        new = NewTurn(
            owner=owner,
            session=session,
            new_id=self._new_id(),
            deployment=self._policy.deployment,
            scope=scope,
            items=(message,),
            model=asked,
            choose=choose,
            queue_limit=self._policy.queue_limit,
            revisions=self._revisions,
            now=self._now(),
            kept=kept,
            key=key,
        )
        return await self._begin(owner, lambda: self._store.begin_turn(new), asked, sampling)

    async def answer_anew(
        self,
        owner: str,
        session: SessionChoice,
        *,
        model: str | None = None,
        key: IdempotencyKey | None = None,
    ) -> Taken:
        """Have the newest message of a session answered once more, in the old reply's place.

        With a `key` as for `take_turn`.

        Raises:
            MessageNotFound: there is no message.
            SessionBusy: a turn of the session is queued or running.
            UnknownModel, SessionNotFound, ContextTooLong, KeyReused, ServerStopping,
            StoreUnavailable.
        """
        return await self._begin_version(self._version(owner, session, model, key))

    async def retry_turn(
        self,
        owner: str,
        ref: TurnRef,
        *,
        model: str | None = None,
        key: IdempotencyKey | None = None,
    ) -> Taken:
        """Have the words of a turn that ended without a whole reply answered after all.

        The new turn takes its place if it is the newest, else it comes at the end.

        Raises:
            TurnNotFound: no such turn, or someone else's.
            NotRetryable: it is not over, was completed, or its words were answered anew.
            And as `answer_anew`.
        """
        version = self._version(owner, ById(ref.session_id), model, key)
        version = msgspec.structs.replace(version, retried=ref.number)
        try:
            return await self._begin_version(version)
        except SessionNotFound:
            raise TurnNotFound("Turn not found") from None

    async def edit_message(
        self,
        owner: str,
        session: SessionChoice,
        message: MessageRef,
        text: str,
        *,
        model: str | None = None,
        key: IdempotencyKey | None = None,
    ) -> Taken:
        """Put other words in the place of a message, and have them answered.

        What followed it stays as a version.

        Raises:
            MessageNotFound: there is no such message of the user's in what is listed.
            BlankMessage, MessageTooLong, InvalidRequest, and as for `answer_anew`.
        """
        words = self.check_message(text)
        version = self._version(owner, session, model, key, weight=item_weight(words))
        version = msgspec.structs.replace(version, message=message, words=words)
        return await self._begin_version(version)

    def _version(
        self,
        owner: str,
        session: SessionChoice,
        model: str | None,
        key: IdempotencyKey | None,
        *,
        weight: int = 0,
    ) -> NewVersion:
        """A turn over the newest words of a session, or others of that `weight`."""
        asked = self.check_model(model)

        def choose(basis: Basis, total_weight: int) -> ModelChoice:
            return self._plans.make(basis, asked).choose(weight, total_weight)

        return NewVersion(
            owner=owner,
            session=session,
            message=None,
            words=None,
            model=asked,
            choose=choose,
            revisions=self._revisions,
            now=self._now(),
            key=key,
        )

    async def _begin_version(self, new: NewVersion) -> Taken:
        def begin() -> Awaitable[BegunTurn | TurnRef]:
            return self._store.begin_version(new)

        return await self._begin(new.owner, begin, new.model, None)

    async def generate(self, owner: str, deployment: str, variables: Mapping[str, str]) -> str:
        """One reply to a deployment's prompt alone, of which nothing is kept.

        Raises:
            DeploymentNotFound: there is no such deployment.
            InvalidRequest: its prompt is empty.
            ContextTooLong, ServerStopping, StoreUnavailable, ProviderError.
        """
        self._check_open()
        found = await self._store.get_deployment(deployment)
        plan = self._plans.make(Basis(found.revision, variables, None))
        if not plan.frame:
            raise InvalidRequest("The deployment has no prompt to generate from")
        first = plan.candidates[0]
        room = first.room + plan.frame_weight
        prompt.check_room(first.offer.model, room, plan.frame_weight, "prompt")
        turn = Turn(TurnRef("", 0), TurnStatus.RUNNING, first.offer.model.id, self._now())
        work = Work(Reply(owner, turn), _as_question(plan))
        task = self._loop.create_task(self._maker.make(work, History((), 0, 0)))
        self._passing.add(task)
        task.add_done_callback(self._passing.discard)
        try:
            await task
        except asyncio.CancelledError:
            if not self.stopping:
                raise
            raise ServerStopping("The server is stopping; try again in a moment") from None
        return work.reply.text

    async def follow_turn(self, owner: str, ref: TurnRef) -> Reply:
        """A turn's reply: live while it is made here, else as the store has it.

        Raises:
            TurnNotFound: no such turn, or someone else's.
        """
        for pause in _LOOKS:
            life = self._lives.get(ref)
            if life is not None and life.reply.owner == owner:
                return life.reply
            # Before the look in the store: what begins meanwhile would be there, and not here.
            may_begin = self._beginning > 0
            stored = await self._store.get_turn(owner, ref)
            if stored.turn.status.terminal or not may_begin:
                break
            await asyncio.sleep(pause)
        return Reply.stored(owner, _as_ended(stored.turn), stored.text)

    async def follow_session(
        self, owner: str, session: SessionChoice, after: tuple[int, int | None] | None
    ) -> SessionFollower:
        """Every turn of a session in order, whoever begins it, until the follower is closed.

        `after` is a turn's number and how many characters of its reply are known, None for all of
        it; without it, it begins with the turn that runs, or else the next one.

        Raises:
            SessionNotFound: no such session, or someone else's.
            ServerStopping, StoreUnavailable.
        """
        self._check_open()
        found = await self._store.get_session(owner, session)
        place = await self._store.next_turn(owner, found.id, 0)
        self._check_open()
        follower = SessionFollower(
            found.id,
            lambda number: self._store.next_turn(owner, found.id, number),
            lambda ref: self.follow_turn(owner, ref),
            partial(self._forget_watcher, found.id),
        )
        if after is not None and after[1] is not None:
            follower.resume(after[0], after[1])
        elif after is not None:
            follower.start_behind(after[0])
        else:
            follower.start_behind(place.newest if place.running is None else place.running - 1)
        self._watchers.setdefault(found.id, set()).add(follower)
        return follower

    def _forget_watcher(self, session_id: str, follower: SessionFollower) -> None:
        watchers = self._watchers.get(session_id, set())
        watchers.discard(follower)
        if not watchers:
            self._watchers.pop(session_id, None)

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

    def stop_gone(self, gone: Sequence[TurnRef]) -> None:
        """Stop turns that were open when their session was cleared or deleted."""
        for ref in gone:
            self._stop_open(ref)

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
        if self._tasks or self._passing:
            await asyncio.wait(self._tasks | self._passing, timeout=grace)
        for task in self._passing:
            task.cancel()
        while self._tasks:
            for ref in tuple(self._lives):
                self._stop(ref, TurnStatus.INTERRUPTED)
            await asyncio.wait(self._tasks, timeout=0.1)
        for watchers in self._watchers.values():
            for follower in watchers:
                follower.end()

    async def settle_strays(self) -> int:
        """End turns that are open in the store, and that nobody here makes; how many they were.

        There are some when a database took a turn's beginning and its answer was lost. Only what
        was a stray the last time too is ended: it may have been on its way.
        """
        open_turns = await self._store.list_open()
        strays = {ref for ref in open_turns if ref not in self._lives}
        settled = strays & self._strays
        self._strays = strays - settled
        for ref in settled:
            ended = await self._store.settle(ref, self._now())
            if ended.promoted is not None:
                self._give_place(ended.promoted.ref)
        return len(settled)

    # --- What is asked of a message ------------------------------------------------------------

    def check_message(self, text: str) -> Message:
        """A message of the user's.

        Raises:
            BlankMessage, MessageTooLong, InvalidRequest: it can be none.
        """
        if not text.strip():
            raise BlankMessage("No message provided")
        if len(text) > self._policy.message_limit:
            raise MessageTooLong(
                f"The message has {len(text)} characters; {self._policy.message_limit} are allowed"
            )
        return Message("user", check_text(text, "message"))

    def check_model(self, model: str | None) -> str | None:
        """The id that a model is listed by; None for None.

        Raises:
            UnknownModel: it is not offered.
        """
        if model is None:
            return None
        if model not in self._offers:
            raise UnknownModel(f"Unknown model: {model[:100]}")
        return self._offers[model].model.id

    def _check_open(self) -> None:
        if self.stopping:
            raise ServerStopping("The server is stopping; try again in a moment")

    # --- The life of a turn --------------------------------------------------------------------

    def _spawn(self, life: Any) -> None:
        task = self._loop.create_task(life)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _begin(
        self,
        owner: str,
        begin: Callable[[], Awaitable[BegunTurn | TurnRef]],
        model: str | None,
        sampling: Sampling | None,
    ) -> Taken:
        """Start the life of a turn; returns once it is stored, or was once before."""
        self._check_open()
        begun: asyncio.Future[Reply | TurnRef] = self._loop.create_future()
        self._spawn(self._live(owner, begin, model, sampling, begun))
        found = await begun
        if isinstance(found, TurnRef):
            return Taken(await self.follow_turn(owner, found), repeated=True)
        return Taken(found)

    async def _live(
        self,
        owner: str,
        begin: Callable[[], Awaitable[BegunTurn | TurnRef]],
        model: str | None,
        sampling: Sampling | None,
        begun: asyncio.Future[Reply | TurnRef],
    ) -> None:
        self._beginning += 1
        try:
            stored = await begin()
        except Exception as error:
            if not begun.done():
                begun.set_exception(error)
            return
        finally:
            self._beginning -= 1
        if isinstance(stored, TurnRef):
            if not begun.done():
                begun.set_result(stored)
            return
        ref, basis = stored.turn.ref, stored.basis
        self._remember(basis.revision)
        plan = self._plans.make(basis, model, sampling)
        reply = Reply(owner, stored.turn)
        if plan.blueprint.on_disconnect == "cancel":
            reply.on_abandoned = lambda: self._stop(ref, TurnStatus.CANCELLED)
        life = self._lives[ref] = _Life(reply, plan, share=len(self._lives) % _SHARES)
        for number in stored.ahead:
            self._stop_open(TurnRef(ref.session_id, number))
        for follower in self._watchers.get(ref.session_id, ()):
            follower.nudge()
        self._keep_ticking()
        if not begun.done():
            begun.set_result(reply)
        try:
            ending = await self._play(life, stored)
        finally:
            life.settled = True
        await self._end(life, ending)

    def _remember(self, revision: Revision) -> None:
        if revision.id not in self._revisions:
            if len(self._revisions) >= _REMEMBERED:
                self._revisions.clear()
            self._revisions[revision.id] = revision

    async def _play(self, life: "_Life", stored: BegunTurn) -> Ending:
        """Wait for the turn's place, make the reply, and say how that ended, whatever happened."""
        reply, history = life.reply, stored.history
        status, failure = TurnStatus.FAILED, None
        try:
            if reply.turn.ref in self._cancelled:
                self._cancelled.remove(reply.turn.ref)
                return Ending(TurnStatus.CANCELLED, "")
            if stored.turn.status is TurnStatus.QUEUED:
                history = await self._await_place(life)
            if stored.basis.section is not None:  # as it is now, not when the turn was queued
                life.passage = await self._background(stored.basis.section)
            await self._maker.make(life, history)
            status = TurnStatus.COMPLETED
        except asyncio.CancelledError:
            status = life.stopped_as or TurnStatus.INTERRUPTED
        except (ProviderError, StoreUnavailable, ContextTooLong, QueueTimeout) as error:
            failure = Failure(error.code, error.sentence, error.retry_after)
        except TurnNotFound:
            return Ending(TurnStatus.CANCELLED, "")
        except Exception:
            log.exception("Turn %s failed through a fault of our own", reply.turn.ref.id)
            failure = Failure("internal_error", "The server failed to make this reply")
        return Ending(
            status,
            reply.text,
            life.usage,
            failure,
            life.context,
            checkpointed=life.checkpointed,
            model=life.model,
        )

    async def _await_place(self, life: "_Life") -> History:
        ref, plan = life.reply.turn.ref, life.plan
        if ref in self._promoted:
            self._promoted.remove(ref)
        else:
            life.place = self._loop.create_future()
            try:
                async with asyncio.timeout(self._policy.queue_timeout):
                    await life.place
            except TimeoutError:
                raise QueueTimeout("The message waited too long for those before it") from None
        first = plan.candidates[0]
        turn, history = await self._store.get_history(ref, first.room)
        plan.choose(0, history.total_weight)
        life.reply.start(turn)
        return history

    # --- Checkpoints ---------------------------------------------------------------------------

    def _keep_ticking(self) -> None:
        if not self._ticking:
            self._ticking = True
            pause = self._policy.checkpoint_seconds or 1.0
            self._loop.call_later(pause / _SHARES, self._tick)

    def _tick(self) -> None:
        """Keep what a share of the replies have grown by since the last time, in one commit or few.

        All of them at once would hold up everything else.
        """
        self._ticking = False
        self._share = (self._share + 1) % _SHARES
        if not self._beginning:
            self._promoted.clear()
            self._cancelled.clear()
        for life in self._lives.values() if self._policy.checkpoint_seconds else ():
            if life.share != self._share or life.settled or life.checkpointing:
                continue
            if life.reply.length > life.kept:
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

    def _stop_open(self, ref: TurnRef) -> None:
        """Cancel a turn that the store called open; its own coroutine may not know of it yet."""
        if ref in self._lives:
            self._stop(ref, TurnStatus.CANCELLED)
        else:
            self._cancelled.add(ref)

    def _stop(self, ref: TurnRef, status: TurnStatus) -> None:
        """Make a turn end as `status`, unless its ending is settled already."""
        life = self._lives.get(ref)
        if life is None or life.settled or life.stopped_as is not None:
            return
        life.stopped_as = status
        life.task.cancel()


class _Life(Work):
    """A turn between `begin_turn` and `end_turn`, as its coroutine and `_stop` see it."""

    __slots__ = (
        "checkpointed",
        "checkpointing",
        "checkpoints",
        "kept",
        "place",
        "settled",
        "share",
        "stopped_as",
        "task",
    )

    def __init__(self, reply: Reply, plan: Plan, share: int) -> None:
        super().__init__(reply, plan)
        self.share = share  # when its checkpoints are made
        task = asyncio.current_task()
        assert task is not None  # noqa: S101
        self.task = task
        self.place: asyncio.Future[None] | None = None  # while it waits in the queue
        self.stopped_as: TurnStatus | None = None
        self.settled = False
        self.checkpoints = 0  # how many hold the first `kept` characters of the reply
        self.kept = 0
        self.checkpointing = False
        self.checkpointed = False  # at least one was tried


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
        model=ending.model or turn.model,
        finished_at=now,
        usage=ending.usage,
        failure=ending.failure,
        context=ending.context,
    )


def _as_question(plan: Plan) -> Plan:
    """A prompt in which nobody asks anything is the question itself: many models need one."""
    if len(plan.frame) > 1:
        return plan
    [only] = plan.frame
    assert isinstance(only, Message)  # noqa: S101
    return msgspec.structs.replace(plan, frame=(Message("user", only.text),))
