"""Sessions and turns: the one place where a user's words become a reply.

What callers do is here: a turn is taken, followed, cancelled, made anew. What a turn then lives
through is in `lives`. Knows stores and providers by their contracts; does not know HTTP, SQL or
the name of any company.
"""

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial, reduce
from math import ceil
from typing import Any, TypeVar

import msgspec

from turnkeeper import prompt
from turnkeeper.contracts import (
    Admit,
    Background,
    BegunTurn,
    NewTurn,
    NewVersion,
    Store,
    StoredReply,
    TurnPage,
)
from turnkeeper.domain import (
    NO_OPTIONS,
    Basis,
    ById,
    Compacted,
    History,
    IdempotencyKey,
    Item,
    Kept,
    KeptItem,
    Message,
    MessageRef,
    Model,
    ModelChoice,
    Options,
    Sampling,
    SessionChoice,
    Turn,
    TurnRef,
    TurnStatus,
    Usage,
    check_text,
    counts_as_message,
    is_for,
    item_weight,
    texts_of,
)
from turnkeeper.errors import (
    BlankMessage,
    InvalidRequest,
    MessageTooLong,
    ServerStopping,
    SessionNotFound,
    TurnNotFound,
    UnknownModel,
)
from turnkeeper.following import SessionFollower
from turnkeeper.gate import Gate, Ticket, Unread
from turnkeeper.lives import Begin, Lives
from turnkeeper.making import Maker, Work, add_usage
from turnkeeper.observer import NOBODY, Observer
from turnkeeper.offers import Offers
from turnkeeper.plans import Plan, Plans
from turnkeeper.policy import Policy
from turnkeeper.reply import Reply, Taken
from turnkeeper.summaries import Summaries, compactable

T = TypeVar("T")

log = logging.getLogger(__name__)

_LOOKS = (0, 0, 0.05, 0.5)  # seconds after each look for a turn whose coroutine may be late


class Load(msgspec.Struct, frozen=True):
    """What goes on in an engine at one moment.

    Attributes:
        passing: replies in the making of which nothing is kept.
        resting: whether a model is left alone, for each that was called, by provider and id.
    """

    running: int
    queued: int
    resting: Mapping[tuple[str, str], bool]
    passing: int


class Engine:
    """Takes turns, lets them be followed and cancelled, and ends every one of them."""

    def __init__(
        self,
        store: Store,
        offers: Offers,
        plans: Plans,
        policy: Policy,
        gate: Gate,
        *,
        background: Background,
        now: Callable[[], int],
        new_id: Callable[[], str],
        jitter: Callable[[], float] = random.random,
        observer: Observer = NOBODY,
    ) -> None:
        """`offers` has one at least.

        `now` gives milliseconds since 1970, `new_id` an unguessable session id.
        `jitter` gives numbers from 0 to 1, by which repeated calls to a provider are spread.
        `observer` is told of turns that are over.
        """
        self._store = store
        self._policy = policy
        self._gate = gate
        self._maker = Maker(policy, store, plans.counts, jitter=jitter, observer=observer)
        self._summaries = Summaries(store, plans.counts)
        self._now = now
        self._new_id = new_id
        self._offers = offers.by_id
        self.models: Sequence[Model] = [offer.model for offer in offers.listed]
        self._plans = plans
        self._lives = Lives(
            store,
            plans,
            self._maker,
            policy,
            background=background,
            now=now,
            on_begun=self._tell_watchers,
            observer=observer,
        )
        self._passing: set[asyncio.Task[Any]] = set()  # of which nothing is kept
        self._watchers: dict[str, set[SessionFollower]] = {}  # by the session they follow
        self._loop = asyncio.get_running_loop()

    @property
    def stopping(self) -> bool:
        """Whether no more turns are taken."""
        return self._lives.stopping

    @property
    def load(self) -> Load:
        """What goes on just now."""
        return Load(
            self._lives.running,
            self._lives.queued,
            self._maker.breakers.resting,
            len(self._passing),
        )

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
            ContextTooLong, QueueFull, SessionBusy, KeyReused, ServerStopping, StoreUnavailable,
            RateLimited, QuotaExceeded, Overloaded:
                nothing was stored.
            TurnNotFound: the turn of that key is gone.
        """
        message = self.check_message(text)
        return await self.take_items(
            owner,
            session,
            (message,),
            model=model,
            options=NO_OPTIONS if sampling is None else Options(sampling),
            scope=scope,
            kept=kept,
            key=key,
        )

    async def take_items(
        self,
        owner: str,
        session: SessionChoice | None,
        items: tuple[Item, ...],
        *,
        model: str | None = None,
        options: Options = NO_OPTIONS,
        scope: str | None = None,
        kept: Kept | None = None,
        after: TurnRef | None = None,
        data: str | None = None,
        bare: bool = False,
        key: IdempotencyKey | None = None,
    ) -> Taken:
        """As `take_turn`, for any items, also none, that `check_item` has passed.

        `options` hold for this turn only. With `after` it must come right behind that turn.
        `data` is kept with the turn for the dialect that gave it. A session that has to be made
        is `bare` if it stays out of lists.

        Raises:
            NotNewest: something was said since the turn that it is to come `after`.
            TurnNotFound: there is no such turn; or the turn of that key is gone.
            And as `take_turn`.
        """
        weight = prompt.weigh(items)
        asked = self.check_model(model)
        ticket = await self._ticket(owner, _longest(items), key)

        def choose(basis: Basis, total_weight: int) -> ModelChoice:
            return self._plans.make(basis, asked, options).choose(weight, total_weight)

        new = NewTurn(
            owner=owner,
            session=session,
            new_id=self._new_id(),
            deployment=self._policy.deployment,
            scope=scope,
            items=items,
            model=asked,
            choose=choose,
            queue_limit=self._policy.queue_limit,
            revisions=self._lives.revisions,
            now=self._now(),
            kept=kept,
            key=key,
            after=after,
            data=data,
            bare=bare,
            admit=self._admission(ticket, asked, options),
            quotas=() if ticket is None else self._gate.quotas(owner),
        )

        def begin() -> Awaitable[BegunTurn | TurnRef]:
            return self._store.begin_turn(new)

        return await self._begin(owner, begin, asked, options, ticket)

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
        return await self._begin_version(version, len(text))

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
            revisions=self._lives.revisions,
            now=self._now(),
            key=key,
        )

    async def _begin_version(self, new: NewVersion, length: int = 0) -> Taken:
        """`length` is that of the words it brings with it."""
        ticket = await self._ticket(new.owner, length, new.key)
        new = msgspec.structs.replace(new, admit=self._admission(ticket, new.model, NO_OPTIONS))

        def begin() -> Awaitable[BegunTurn | TurnRef]:
            return self._store.begin_version(new)

        return await self._begin(new.owner, begin, new.model, NO_OPTIONS, ticket)

    async def _ticket(self, owner: str, length: int, key: IdempotencyKey | None) -> Ticket | None:
        """What a turn over a message of `length` is admitted by; None if that needs nothing."""
        if not self._gate.has_asker:
            return None
        self._gate.check_length(length, owner)
        return await self._gate.ticket(owner, keyed=key is not None)

    def _admission(
        self, ticket: Ticket | None, model: str | None, options: Options
    ) -> Admit | None:
        if ticket is None:
            return None

        def admit(session_id: str, basis: Basis, total_weight: int) -> None:
            plan = self._plans.make(basis, model, options)
            ticket.reserve(session_id, plan.estimate(total_weight))

        return admit

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
        rate = first.bytes_per_token
        prompt.check_room(first.offer.model, room, plan.frame_weight, rate, "prompt")
        turn = Turn(TurnRef("", 0), TurnStatus.RUNNING, first.offer.model.id, self._now())
        work = Work(Reply(owner, turn), _as_question(plan))
        ticket = await self._ticket(owner, 0, None)
        if ticket is not None:
            ticket.reserve(None, plan.estimate(0))
        making = self._maker.make(work, History((), 0, 0))
        try:
            await self._pass(self._loop.create_task(making))
        finally:
            if ticket is not None:
                ticket.settle(*work.spent())
        return work.reply.text

    async def answer_unkept(
        self,
        owner: str,
        items: tuple[Item, ...],
        *,
        model: str | None = None,
        options: Options = NO_OPTIONS,
        before: TurnRef | SessionChoice | None = None,
        said: tuple[Item, ...] = (),
        verbatim: bool = False,
    ) -> Reply:
        """Have items answered, and keep nothing of it; it stops when nobody follows any more.

        They stand behind what was said in the session `before`, or up to that turn, and behind
        what else was `said` since. With
        `verbatim` the model is shown nothing else, also if that seems too much for it.

        Raises:
            UnknownModel, SessionNotFound, TurnNotFound, ContextTooLong, ServerStopping,
            StoreUnavailable.
        """
        self._check_open()
        asked = self.check_model(model)
        if verbatim:
            options = msgspec.structs.replace(options, alone=True)
        plan = self._plans.make(await self._basis(owner, before), asked, options)
        first, weight = plan.candidates[0], prompt.weigh(items)
        history = History((), 0, 0)
        if before is not None:
            history = await self._store.read_history(owner, before, first.room)
        for earlier in prompt.turns_of(said):
            history = _behind(history, earlier)
        if not verbatim:
            plan.choose(weight, history.total_weight + weight)
        ref = TurnRef(self._new_id(), 1)
        turn = Turn(ref, TurnStatus.RUNNING, first.offer.model.id, self._now())
        reply = Reply(owner, turn, len(items))
        ticket = await self._ticket(owner, _longest(items), None)
        if ticket is not None:
            total_weight = history.total_weight + weight
            ticket.reserve(None, plan.estimate(total_weight, cut=not verbatim))
        history = _behind(history, items)
        self._note_passing(self._lives.play_unkept(reply, plan, history, ticket))
        return reply

    async def compact(
        self,
        owner: str,
        items: tuple[Item, ...],
        *,
        model: str | None = None,
        wish: str = "",
        before: TurnRef | None = None,
    ) -> Compacted:
        """Have a model tell of items, and of what was said up to the turn `before` them.

        Nothing is kept. `wish` is what the caller asks of what is told.

        Raises:
            UnknownModel, TurnNotFound, ContextTooLong, ServerStopping, StoreUnavailable,
            ProviderError, and what a `gate.Ticket` refuses.
        """
        self._check_open()
        plan = self._plans.make(await self._basis(owner, before), self.check_model(model))
        first = plan.candidates[0]
        history = History((), 0, 0)
        if before is not None:
            history = await self._store.read_history(owner, before, compactable(first))
        history = _behind(history, items)
        ticket = await self._ticket(owner, _longest(items), None)
        if ticket is not None:
            ticket.reserve(None, plan.estimate(history.total_weight, cut=False))
        calls = [Usage(0, 0)]
        telling = self._summaries.compact(history, first, wish, calls.append)
        try:
            made = await self._pass(self._loop.create_task(telling))
        finally:
            used = reduce(add_usage, calls)
            if ticket is not None:
                ticket.settle(used.total_tokens, plan.cost_of(first.offer.model.id, used))
        return Compacted(made, used)

    async def count_tokens(
        self,
        owner: str,
        items: tuple[Item, ...],
        *,
        model: str | None = None,
        options: Options = NO_OPTIONS,
        before: TurnRef | SessionChoice | None = None,
    ) -> int:
        """How many tokens a prompt of these items has behind what was said `before`, about.

        It is as near as what the provider has reported of this model's prompts up to now.

        Raises:
            UnknownModel, SessionNotFound, TurnNotFound, StoreUnavailable.
        """
        asked = self.check_model(model)
        plan = self._plans.make(await self._basis(owner, before), asked, options)
        weight = plan.frame_weight + prompt.weigh(items)
        if before is not None:
            weight += (await self._store.read_history(owner, before, 0)).total_weight
        rate = self._plans.counts.likely_bytes_per_token(plan.candidates[0].offer.model.id)
        return ceil(weight / rate)

    async def unasked_turn(self, owner: str, *, model: str | None = None) -> Turn:
        """A turn that is over without that any model was asked; nothing of it is kept.

        Its ref names nothing that can be asked for.

        Raises:
            UnknownModel, StoreUnavailable.
        """
        plan = self._plans.make(await self._basis(owner, None), self.check_model(model))
        return Turn(
            TurnRef(self._new_id(), 1),
            TurnStatus.COMPLETED,
            plan.candidates[0].offer.model.id,
            created_at=self._now(),
            finished_at=self._now(),
            usage=Usage(0, 0),
        )

    async def _pass(self, task: asyncio.Task[T]) -> T:
        """What a task makes of which nothing is kept; the server's stopping ends it.

        Raises:
            ServerStopping, and what it raises.
        """
        self._note_passing(task)
        try:
            return await task
        except asyncio.CancelledError:
            if not self.stopping:
                raise
            raise ServerStopping("The server is stopping; try again in a moment") from None

    async def _basis(self, owner: str, session: TurnRef | SessionChoice | None) -> Basis:
        """What a turn in a session is made on, or in a new one."""
        if session is None:
            found = await self._store.get_deployment(self._policy.deployment)
            return Basis(found.revision, {}, None)
        if isinstance(session, TurnRef):
            session = ById(session.session_id)
        return await self._store.get_basis(owner, session)

    def _note_passing(self, task: asyncio.Task[Any]) -> None:
        self._passing.add(task)
        task.add_done_callback(self._passing.discard)

    async def read_turn(self, owner: str, ref: TurnRef) -> StoredReply:
        """A turn as the store has it, with all that was said in it.

        Raises:
            TurnNotFound: no such turn, or someone else's.
        """
        return await self._store.get_turn(owner, ref)

    async def page_turns(
        self, owner: str, *, after: TurnRef | None, limit: int, newest_first: bool
    ) -> TurnPage:
        """The owner's turns in bare sessions; see `Store.page_turns`."""
        return await self._store.page_turns(
            owner, after=after, limit=limit, newest_first=newest_first
        )

    async def set_turn_data(self, owner: str, ref: TurnRef, data: str) -> None:
        """Keep something else with a turn for its dialect. Raises TurnNotFound."""
        await self._store.set_turn_data(owner, ref, data, self._now())

    async def delete_turn(self, owner: str, ref: TurnRef, *, keep_items: bool) -> None:
        """Remove what is kept with a turn, and unless `keep_items` what was said in it.

        A turn that is not over is stopped first.

        Raises:
            TurnNotFound: no such turn, someone else's, or nothing is kept with it.
        """
        await self.cancel_turn(owner, ref)
        await self._store.delete_turn(owner, ref, self._now(), keep_items=keep_items)

    async def follow_turn(self, owner: str, ref: TurnRef) -> Reply:
        """A turn's reply: live while it is made here, else as the store has it.

        Raises:
            TurnNotFound: no such turn, or someone else's.
        """
        for pause in _LOOKS:
            reply = self._lives.find(ref)
            if reply is not None and is_for(owner, reply.owner):
                return reply
            # Before the look in the store: what begins meanwhile would be there, and not here.
            may_begin = self._lives.beginning
            stored = await self._store.get_turn(owner, ref)
            if stored.turn.status.terminal or not may_begin:
                break
            await asyncio.sleep(pause)
        return Reply.stored(owner, _as_ended(stored.turn), stored.text, stored.items, stored.cuts)

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

    def _tell_watchers(self, ref: TurnRef) -> None:
        for follower in self._watchers.get(ref.session_id, ()):
            follower.nudge()

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
        self._lives.stop(ref, TurnStatus.CANCELLED)
        return (await reply.wait()).turn

    def stop_gone(self, gone: Sequence[TurnRef]) -> None:
        """Stop turns that were open when their session was cleared or deleted."""
        for ref in gone:
            self._lives.stop_open(ref)

    async def was_made(self, key: IdempotencyKey) -> bool:
        """Whether something was begun or made under a key, for the same request."""
        return await self._store.was_made(key)

    async def ready(self) -> bool:
        """Whether turns are taken just now.

        Raises:
            StoreUnavailable: no, since the database cannot be read.
        """
        await self._store.ping()
        return not self.stopping

    async def drain(self, grace: float) -> None:
        """Take no more turns; let those that run finish, and interrupt them after `grace` s."""
        self._lives.stopping = True
        await asyncio.gather(self._lives.finish(grace), self._finish_passing(grace))
        for watchers in self._watchers.values():
            for follower in watchers:
                follower.end()

    async def _finish_passing(self, grace: float) -> None:
        if self._passing:
            await asyncio.wait(self._passing, timeout=grace)
        for task in self._passing:
            task.cancel()

    async def settle_strays(self) -> int:
        """End turns that are open in the store and that nobody makes; see `Lives`."""
        return await self._lives.settle_strays()

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
        self._gate.check_length(len(text))
        return Message("user", check_text(text, "message"))

    def check_items(self, items: Sequence[Item], name: str = "input") -> tuple[Item, ...]:
        """Items as they may be kept. `name` says which field they were in.

        Raises:
            MessageTooLong, InvalidRequest: one of them cannot.
        """
        limit = self._policy.message_limit
        for item in items:
            for text in texts_of(item):
                if len(text) > limit:
                    raise MessageTooLong(
                        f"A message has {len(text)} characters; {limit} are allowed"
                    )
                check_text(text, name)
        self._gate.check_length(_longest(items))
        return tuple(items)

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

    async def _begin(
        self,
        owner: str,
        begin: Begin,
        model: str | None,
        options: Options,
        ticket: Ticket | None,
    ) -> Taken:
        """Start the life of a turn; returns once it is stored, or was once before."""
        self._check_open()
        while True:
            try:
                found = await self._lives.begin(begin, model, options, ticket)
                break
            except Unread as unread:
                await self._gate.read(unread.subject)
        if isinstance(found, TurnRef):
            return Taken(await self.follow_turn(owner, found), repeated=True)
        return Taken(found)


def _longest(items: Sequence[Item]) -> int:
    """The characters of the longest text in them."""
    return max([len(text) for item in items for text in texts_of(item)], default=0)


def _behind(history: History, items: tuple[Item, ...]) -> History:
    """The history with items that come after it, as one turn."""
    number = history.items[-1].turn + 1 if history.items else 1
    kept = [
        KeptItem(number, position, item, item_weight(item)) for position, item in enumerate(items)
    ]
    messages = sum(counts_as_message(item) for item in items)
    return History(
        (*history.items, *kept),
        history.total_weight + prompt.weigh(items),
        history.message_count + messages,
    )


def _as_ended(turn: Turn) -> Turn:
    """A turn that no one is making any more is over, though its end could not be stored yet."""
    if turn.status.terminal:
        return turn
    return msgspec.structs.replace(turn, status=TurnStatus.INTERRUPTED)


def _as_question(plan: Plan) -> Plan:
    """A prompt in which nobody asks anything is the question itself: many models need one."""
    if len(plan.frame) > 1:
        return plan
    [only] = plan.frame
    assert isinstance(only, Message)  # noqa: S101
    return msgspec.structs.replace(plan, frame=(Message("user", only.text),))
