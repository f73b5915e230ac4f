"""The lives of turns: each is stored, perhaps queued, made and ended, whatever happens.

A life belongs to the server and not to whoever asked, who may come and go. It is one coroutine,
`_live`, whose ending cannot be skipped. Knows the store by its contract; how a reply is made is
`making`'s.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import msgspec

from turnkeeper.contracts import Background, BegunTurn, Store
from turnkeeper.domain import (
    Ending,
    Failure,
    Finish,
    History,
    Item,
    Options,
    Revision,
    ToolCall,
    Turn,
    TurnRef,
    TurnStatus,
    storable,
)
from turnkeeper.errors import (
    ContextTooLong,
    ProviderError,
    QueueTimeout,
    StoreDamaged,
    StoreUnavailable,
    TurnNotFound,
)
from turnkeeper.gate import Ticket
from turnkeeper.making import Maker, Work
from turnkeeper.observer import NOBODY, Lived, Observer
from turnkeeper.plans import Plan, Plans
from turnkeeper.policy import Policy
from turnkeeper.reply import Reply

log = logging.getLogger(__name__)

_SHARES = 10  # of all replies, each of which has its checkpoints at another time
_REMEMBERED = 1000  # revisions

Begin = Callable[[], Awaitable[BegunTurn | TurnRef]]


class Lives:
    """Every turn between its beginning and its end.

    Attributes:
        revisions: those that are known, by id: they never change, so none is read twice.
        stopping: no life begins any more, and what cannot be stored is given up.
    """

    def __init__(
        self,
        store: Store,
        plans: Plans,
        maker: Maker,
        policy: Policy,
        *,
        background: Background,
        now: Callable[[], int],
        on_begun: Callable[[TurnRef], None],
        observer: Observer = NOBODY,
    ) -> None:
        """`on_begun` is told of each turn as soon as it is stored, `observer` when it is over."""
        self._store = store
        self._plans = plans
        self._maker = maker
        self._policy = policy
        self._background = background
        self._now = now
        self._on_begun = on_begun
        self._observer = observer
        self.revisions: dict[str, Revision] = {}
        self.stopping = False
        self._by_ref: dict[TurnRef, _Life] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        # What the store said of turns before their own coroutines had come so far. No one else
        # looks here, so that what is left when none is on its way was of turns that were over.
        self._promoted: set[TurnRef] = set()
        self._cancelled: set[TurnRef] = set()
        self._beginning = 0
        self._strays: set[TurnRef] = set()  # that were open when last looked for, and not made
        self._gone: set[TurnRef] = set()  # that were made when last looked for, and not open
        self._ticking = False
        self._share = 0  # whose checkpoints were made last
        self._loop = asyncio.get_running_loop()

    # --- From outside --------------------------------------------------------------------------

    async def begin(
        self,
        begin: Begin,
        model: str | None,
        options: Options,
        ticket: Ticket | None = None,
    ) -> Reply | TurnRef:
        """Start a life; returns its reply once it is stored, or the turn that had been before.

        `model` and `options` are what the caller asked for; what `ticket` has reserved is
        settled, whatever happens. Raises what `begin` raises.
        """
        begun: asyncio.Future[Reply | TurnRef] = self._loop.create_future()
        life = self._live(begin, model, options, begun, ticket)
        self._spawn(life if ticket is None else _settling(life, ticket))
        return await begun

    @property
    def beginning(self) -> bool:
        """Whether one is on its way between the store and here."""
        return self._beginning > 0

    @property
    def running(self) -> int:
        """How many turns are alive and do not wait in a queue."""
        return len(self._by_ref) - self.queued

    @property
    def queued(self) -> int:
        return sum(life.waits for life in self._by_ref.values())

    def find(self, ref: TurnRef) -> Reply | None:
        """The reply of a turn that is alive."""
        life = self._by_ref.get(ref)
        return None if life is None else life.reply

    def stop_open(self, ref: TurnRef) -> None:
        """Cancel a turn that the store called open; its own coroutine may not know of it yet."""
        if ref in self._by_ref:
            self.stop(ref, TurnStatus.CANCELLED)
        else:
            self._cancelled.add(ref)

    def stop(self, ref: TurnRef, status: TurnStatus) -> None:
        """Make a turn end as `status`, unless its ending is settled already."""
        life = self._by_ref.get(ref)
        if life is None or life.settled or life.stopped_as is not None:
            return
        life.stopped_as = status
        life.task.cancel()

    async def finish(self, grace: float) -> None:
        """Let those that run finish, and interrupt them after `grace` seconds."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=grace)
        while self._tasks:
            for ref in tuple(self._by_ref):
                self.stop(ref, TurnStatus.INTERRUPTED)
            await asyncio.wait(self._tasks, timeout=0.1)

    async def settle_strays(self) -> int:
        """End turns that are open in the store, and that nobody here makes; how many they were.

        There are some when a database took a turn's beginning and its answer was lost. Only what
        was a stray the last time too is ended: it may have been on its way. And of what is made
        here, what the store has not had open twice in a row is stopped: a command beside this
        process has deleted its session.
        """
        open_turns = await self._store.list_open()
        gone = {ref for ref, life in self._by_ref.items() if not life.settled}.difference(
            open_turns
        )
        for ref in gone & self._gone:
            self.stop(ref, TurnStatus.CANCELLED)
        self._gone = gone
        strays = {ref for ref in open_turns if ref not in self._by_ref}
        settled = strays & self._strays
        self._strays = strays - settled
        for ref in settled:
            ended = await self._store.settle(ref, self._now())
            if ended.promoted is not None:
                self._give_place(ended.promoted.ref)
        return len(settled)

    # --- One life ------------------------------------------------------------------------------

    def _spawn(self, life: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(life)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _live(
        self,
        begin: Callable[[], Awaitable[BegunTurn | TurnRef]],
        model: str | None,
        options: Options,
        begun: asyncio.Future[Reply | TurnRef],
        ticket: Ticket | None,
    ) -> None:
        came = self._maker.clock()
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
        plan = self._plans.make(basis, model, options)
        reply = Reply(stored.owner, stored.turn, stored.asked)
        if plan.blueprint.on_disconnect == "cancel":
            reply.on_abandoned = lambda: self.stop(ref, TurnStatus.CANCELLED)
        life = self._by_ref[ref] = _Life(reply, plan, share=len(self._by_ref) % _SHARES)
        life.began = came
        for number in stored.ahead:
            self.stop_open(TurnRef(ref.session_id, number))
        self._on_begun(ref)
        self._keep_ticking()
        if not begun.done():
            begun.set_result(reply)
        try:
            ending = await self._play(life, stored)
        finally:
            life.settled = True
            if ticket is not None:  # before anyone is told of the end, and might begin another
                ticket.settle(*life.spent())
        await self._end(life, ending)

    def _remember(self, revision: Revision) -> None:
        if revision.id not in self.revisions:
            if len(self.revisions) >= _REMEMBERED:
                self.revisions.clear()
            self.revisions[revision.id] = revision

    async def _play(self, life: "_Life", stored: BegunTurn) -> Ending:
        """Wait for the turn's place, make the reply, and say how that ended, whatever happened."""
        ref = life.reply.turn.ref
        if ref in self._cancelled:
            self._cancelled.remove(ref)
            return Ending(TurnStatus.CANCELLED, "")
        return await self._make(life, self._prepare(life, stored))

    async def _prepare(self, life: "_Life", stored: BegunTurn) -> History:
        """What was said up to the turn, once its place has come."""
        history = stored.history
        if stored.turn.status is TurnStatus.QUEUED:
            history = await self._await_place(life)
        if stored.basis.section is not None:  # as it is now, not when the turn was queued
            life.passage = await self._background(stored.basis.section)
        return history

    async def _make(self, life: "_Life", prepared: Awaitable[History]) -> Ending:
        """Make the reply once its history is there, and say how that ended, whatever happened."""
        reply = life.reply
        status, failure = TurnStatus.FAILED, None
        try:
            history = await prepared
            life.started = self._maker.clock()
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
            items=_finished_items(life, status),
            finish=_finish(life),
            cuts=reply.cuts(),
            first_delta=None if life.first is None else int((life.first - life.began) * 1000),
        )

    def play_unkept(
        self, reply: Reply, plan: Plan, history: History, ticket: Ticket | None
    ) -> asyncio.Task[None]:
        """Make a reply of which nothing is kept; it is stopped when nobody follows it any more.

        What `ticket` has reserved is settled.
        """

        async def play() -> None:
            life = _Life(reply, plan, share=0)
            life.began = self._maker.clock()
            ending = await self._make(life, _at_once(history))
            if ticket is not None:
                ticket.settle(*life.spent())
            if ending.status is TurnStatus.INTERRUPTED and not self.stopping:
                ending = msgspec.structs.replace(ending, status=TurnStatus.CANCELLED)
            reply.end(_ended(reply.turn, ending, self._now()), ending.items)
            self._tell(life)

        def see_to_end(_: asyncio.Task[None]) -> None:
            if ticket is not None:
                ticket.settle(0, 0)
            if reply.ended is None:  # it was stopped before it had begun
                reply.lose()

        task = self._loop.create_task(play())
        task.add_done_callback(see_to_end)
        reply.on_abandoned = task.cancel
        return task

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
        for life in self._by_ref.values() if self._policy.checkpoint_seconds else ():
            if life.share != self._share or life.settled or life.checkpointing:
                continue
            if life.reply.length > life.kept:
                life.checkpointing = life.checkpointed = True
                self._spawn(self._checkpoint(life))
        if self._by_ref:
            self._keep_ticking()

    async def _checkpoint(self, life: "_Life") -> None:
        """What cannot be kept now is part of the next one: checkpoints have no gaps."""
        reply = life.reply
        ref, length, text = reply.turn.ref, reply.length, reply.since(life.kept)
        deltas, cut = reply.deltas, reply.cuts(life.cut)
        try:
            await self._store.checkpoint(ref, life.checkpoints, text, cut)
            life.kept = length
            if cut is not None:  # else the first count to be kept is from the beginning
                life.cut = deltas
            life.checkpoints += 1
        except StoreUnavailable:
            pass  # the store has said so, and that once
        finally:
            life.checkpointing = False

    # --- The end of a turn ---------------------------------------------------------------------

    async def _end(self, life: "_Life", ending: Ending) -> None:
        """Store the ending, then tell everyone. Cannot be skipped, and is tried until it holds.

        No one cancels this: `stop` leaves a settled life alone. A server that stops gives up, and
        so does one whose database is damaged in this place: then no one is told an end, and the
        next start settles the turn from its checkpoints.
        """
        reply, pause = life.reply, 0.05
        while True:
            now = max(self._now(), reply.turn.created_at)  # the clock may have been put back
            try:
                ended = await self._store.end_turn(reply.turn.ref, ending, now)
                break
            except StoreDamaged:
                self._lose(reply)
                return
            except StoreUnavailable:
                pass
            except Exception:
                log.exception("Turn %s could not be ended as it was", reply.turn.ref.id)
                ending = _plainer(ending)
            if self.stopping:
                self._lose(reply)
                return
            await asyncio.sleep(pause)
            pause = min(pause * 2, 2.0)
        self._by_ref.pop(reply.turn.ref, None)
        if ended.promoted is not None:
            self._give_place(ended.promoted.ref)
        if not ended.stored:  # it was cleared meanwhile
            ending = Ending(TurnStatus.CANCELLED, reply.text)
        reply.end(_ended(reply.turn, ending, now), ending.items)
        self._tell(life)

    def _tell(self, life: "_Life") -> None:
        """A turn is over, and everyone who waited for it knows."""
        reply = life.reply
        self._observer.turn_ended(
            Lived(
                reply.owner,
                reply.turn,
                life.began,
                life.started,
                life.first,
                self._maker.clock(),
                life.calls,
                life.shown,
                reply.text,
            )
        )

    def _lose(self, reply: Reply) -> None:
        self._by_ref.pop(reply.turn.ref, None)
        reply.lose()

    def _give_place(self, ref: TurnRef) -> None:
        life = self._by_ref.get(ref)
        if life is None or life.place is None:
            self._promoted.add(ref)  # stored, but its own coroutine has not come to wait for it
        elif not life.place.done():
            life.place.set_result(None)


class _Life(Work):
    """A turn between `begin_turn` and `end_turn`, as its coroutine and `stop` see it."""

    __slots__ = (
        "checkpointed",
        "checkpointing",
        "checkpoints",
        "cut",
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
        self.cut = 0  # the deltas whose lengths they have, where someone counts them
        self.checkpointing = False
        self.checkpointed = False  # at least one was tried

    @property
    def waits(self) -> bool:
        """Whether it is in the queue."""
        return self.place is not None and not self.place.done()


async def _settling(life: Coroutine[Any, Any, None], ticket: Ticket) -> None:
    """A life that may never begin, or find that an earlier one had."""
    try:
        await life
    finally:
        ticket.settle(0, 0)


def _plainer(ending: Ending) -> Ending:
    """The ending without what may have been too odd to store, the text last of all."""
    if ending.usage is not None or ending.context is not None or ending.cuts is not None:
        return msgspec.structs.replace(ending, usage=None, context=None, cuts=None)
    failure = Failure("internal_error", "The server failed to store this reply")
    return Ending(TurnStatus.FAILED, "", None, failure, None, ending.checkpointed)


async def _at_once(history: History) -> History:
    return history


def _finished_items(life: _Life, status: TurnStatus) -> tuple[Item, ...]:
    """What the reply consists of, if more than text; of a custom tool's arguments, its string."""
    items = life.reply.items(with_calls=status is TurnStatus.COMPLETED)
    custom = {tool.name for tool in life.plan.options.tools if tool.custom}
    if not custom:
        return items
    return tuple(
        _as_custom(item) if isinstance(item, ToolCall) and item.name in custom else item
        for item in items
    )


def _as_custom(call: ToolCall) -> ToolCall:
    """A custom tool is offered as a function with one string; some models write it bare."""
    try:
        text = msgspec.json.decode(call.arguments, type=_Input).input
    except (ValueError, RecursionError):
        text = call.arguments
    return ToolCall(call.call_id, call.name, storable(text), custom=True)


class _Input(msgspec.Struct):
    input: str


def _finish(life: _Life) -> Finish | None:
    """Some providers say that a model has just stopped when it calls tools."""
    if life.finish == "stop" and life.reply.calls_tools:
        return "tool_calls"
    return life.finish


def _ended(turn: Turn, ending: Ending, now: int) -> Turn:
    return msgspec.structs.replace(
        turn,
        status=ending.status,
        model=ending.model or turn.model,
        finished_at=now,
        usage=ending.usage,
        failure=ending.failure,
        context=ending.context,
        finish=ending.finish,
    )
