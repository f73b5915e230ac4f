"""One reply in the making: which model is asked, with what prompt, how often, and what it cost.

Knows providers by their contract. Does not know when a turn begins or how it ends: that is the
engine's, which may cancel what is done here at any moment.
"""

import asyncio
import logging
import random
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import aclosing
from typing import assert_never

from turnkeeper import prompt
from turnkeeper.breaker import Breakers
from turnkeeper.contracts import Provider, Store
from turnkeeper.counts import Counts
from turnkeeper.domain import (
    Context,
    Finish,
    History,
    Item,
    KeptItem,
    Passage,
    Place,
    Prompt,
    Usage,
)
from turnkeeper.errors import ProviderError
from turnkeeper.events import (
    Finished,
    ProviderEvent,
    ReasoningDelta,
    RefusalDelta,
    ReplyDelta,
    TextDelta,
    ToolCallDelta,
    UsageReport,
)
from turnkeeper.observer import NOBODY, Observer, ProviderCall
from turnkeeper.plans import Candidate, Plan
from turnkeeper.policy import Policy
from turnkeeper.reply import Reply
from turnkeeper.summaries import Summaries

log = logging.getLogger(__name__)

_SUMMARY_SHARE = 8  # a summary has this part of the room for what was said


class Work:
    """A reply that is made by a plan, and what has come of that so far.

    Attributes:
        passage: what the session is about, as it is now; None if nothing.
        context: what the model was shown; `weight` is what that weighs.
        asked: the model that was shown it.
        model: the one that is asked now, if it is not the first.
        usage: what was spent up to now, as far as anyone knows.
        finish: why the model stopped, if it said so.
        length: characters of all that came: words, thoughts, arguments.
        is_countable: what the model was shown is made of words alone, whose tokens tell how it
            counts.
        began: when the message came, `started` when its place in the queue had come, `first` when
            the first of the reply came, by the maker's clock.
        calls: what of models was called for it.
        shown: what the last of them was asked.
    """

    __slots__ = (
        "asked",
        "began",
        "calls",
        "context",
        "finish",
        "first",
        "is_countable",
        "length",
        "model",
        "passage",
        "plan",
        "reply",
        "shown",
        "started",
        "usage",
        "weight",
    )

    def __init__(self, reply: Reply, plan: Plan) -> None:
        self.reply = reply
        self.plan = plan
        self.passage: Passage | None = None
        self.context: Context | None = None
        self.weight = 0
        self.asked = ""
        self.model: str | None = None
        self.usage: Usage | None = None
        self.finish: Finish | None = None
        self.length = 0
        self.is_countable = True
        self.began = 0.0
        self.started: float | None = None
        self.first: float | None = None
        self.calls: list[ProviderCall] = []
        self.shown: Prompt | None = None

    def has_words(self) -> bool:
        """Whether any of the reply has come."""
        return self.reply.deltas > 0

    def spent(self) -> tuple[int, int]:
        """The tokens that were used, and what they cost in `limits.COST_UNIT`s."""
        if self.usage is None:
            return 0, 0
        model = self.model or self.reply.turn.model
        return self.usage.total_tokens, self.plan.cost_of(model, self.usage)

    def spend(self, usage: Usage) -> None:
        """Add what a call used."""
        self.usage = add_usage(self.usage, usage)


class Maker:
    """Has replies made by whichever model can."""

    def __init__(
        self,
        policy: Policy,
        store: Store,
        counts: Counts,
        *,
        jitter: Callable[[], float] = random.random,
        clock: Callable[[], float] = time.monotonic,
        observer: Observer = NOBODY,
    ) -> None:
        """`jitter` gives numbers from 0 to 1, by which repeated calls to a provider are spread.

        `clock` gives seconds and never goes back.
        """
        self._policy = policy
        self._counts = counts
        self._summaries = Summaries(store, counts)
        self._jitter = jitter
        self.clock = clock
        self._observer = observer
        self.breakers = Breakers(clock, jitter)

    async def make(self, work: Work, history: History) -> None:
        """Have the reply made by the first candidate that can.

        Raises:
            ProviderError: none could, or the one that began broke off.
        """
        plan = work.plan
        candidates = plan.able(history.total_weight)
        for number, candidate in enumerate(candidates, 1):
            model = candidate.offer.model.id
            if number > 1:
                work.model = model
            try:
                await self._answer(work, candidate, history)
            except ProviderError as error:
                if work.has_words() or number == len(candidates):
                    raise
                # That it rests was logged when it began.
                level = logging.DEBUG if error.code == "provider_resting" else logging.WARNING
                log.log(level, "%s cannot answer, so the next model is asked: %s", model, error)
            else:
                return

    async def _answer(self, work: Work, candidate: Candidate, history: History) -> None:
        """Have the reply made by a candidate, which is shown less if it says it was too much."""
        provider = candidate.offer.provider
        asked = await self._show(work, candidate, history)
        try:
            await self._ask(work, provider, asked)
        except ProviderError as error:
            if error.code != "context_length_exceeded":
                raise
            sent = work.weight
            self._correct(candidate, sent, error)
            if work.has_words() or work.plan.overflow == "error":
                raise
            smaller = work.plan.refit(candidate, sent, self._counts)
            asked = await self._show(work, smaller, history)
            if work.weight >= sent:  # the newest turn alone is too much
                raise
            log.info("%s is asked again with a shorter prompt: %s", work.asked, error.sentence)
        else:
            return
        await self._ask(work, provider, asked)

    def _correct(self, candidate: Candidate, sent: int, error: ProviderError) -> None:
        """Learn from a refusal how the model counts, and how much it holds."""
        model = candidate.offer.model
        self._counts.correct(model.id, sent, error.prompt_tokens)
        # It holds fewer tokens than there were, whatever else it says.
        held = error.context_window or error.prompt_tokens
        if held is not None and held < self._counts.window(model.id, model.context_window):
            self._counts.note_window(model.id, held)

    async def _show(self, work: Work, candidate: Candidate, history: History) -> Prompt:
        """The prompt for a candidate; the work's context is what it shows."""
        plan, room, frame = work.plan, candidate.room, work.plan.frame
        if work.passage is not None:
            frame = _with_passage(plan, work.passage, room, history)
            room -= plan.weigh(frame) - plan.frame_weight
        sent, summarised = prompt.fit(history, room), False
        if plan.overflow == "summarise" and history.total_weight > room:
            told = await self._summarise(work, candidate, history, room)
            if told is not None:
                sent, text = told
                summarised = True
                frame = prompt.with_summary(frame, text, room // _SUMMARY_SHARE)
        shown = prompt.show(
            candidate.offer.asked_as,
            history,
            sent,
            candidate.bytes_per_token,
            frame=frame,
            frame_weight=plan.weigh(frame),
            sampling=plan.sampling,
            options=plan.options,
            summarised=summarised,
        )
        work.asked, work.context = candidate.offer.model.id, shown.context
        work.weight = shown.weight
        work.is_countable = not shown.has_images
        return shown.prompt

    async def _summarise(
        self, work: Work, candidate: Candidate, history: History, room: int
    ) -> tuple[tuple[KeptItem, ...], str] | None:
        """What is shown beside a summary of the rest, and that; None if there is no summary."""
        size = room // _SUMMARY_SHARE
        sent = prompt.fit(history, room - size)
        first = Place(sent[0].turn, sent[0].position)
        ref = work.reply.turn.ref
        summary = await self._summaries.bring_up_to(first, ref, candidate, size, work.spend)
        if summary is None:
            return None
        return prompt.after(summary.last, sent), summary.text

    async def _ask(self, work: Work, provider: Provider, asked: Prompt) -> None:
        """Call the model, again while it says nothing.

        A provider's own Retry-After is the least that is waited; it is lengthened by up to a
        quarter, so that those who were told the same do not come back together.
        """
        policy, jitter = self._policy, self._jitter
        delay = policy.retry_delay
        for attempt in range(1, provider.attempts + 1):
            guard = self.breakers.guard(provider.name, asked.model, work.has_words)
            began, outcome = self.clock(), "cancelled"
            try:
                with guard:
                    await self._listen(work, provider.stream(asked))
                outcome = ""
            except ProviderError as error:
                outcome = error.code
                hopeless = not error.retryable or guard.model_rests
                wished = error.retry_after or 0.0
                last = attempt == provider.attempts or wished > policy.patience
                if work.has_words() or hopeless or last:
                    raise
                pause = wished * (1 + jitter() / 4) or delay * (0.5 + jitter())
                log.info("Calling the model again in %.1f s: %s", pause, error.sentence)
            else:
                return
            finally:
                self._note_call(work, provider.name, asked, began, outcome)
            await asyncio.sleep(pause)
            delay = min(delay * 2, policy.patience)

    def _note_call(
        self, work: Work, provider: str, asked: Prompt, began: float, outcome: str
    ) -> None:
        """A call is over, with an error's code as its outcome or nothing."""
        first = work.first if work.first is not None and work.first >= began else None
        again = bool(work.calls)
        call = ProviderCall(
            provider, asked.model, began, first, self.clock(), outcome or None, again
        )
        work.shown = asked
        work.calls.append(call)
        self._observer.call_ended(call)

    async def _listen(self, work: Work, stream: AsyncIterator[Sequence[ProviderEvent]]) -> None:
        """Take in one call's reply. However it ends, what it used is added to the work."""
        reply, used = work.reply, None
        work.finish = None
        failed_at_once = False
        try:
            async with aclosing(stream) as events_together:  # type: ignore[type-var]
                async for events in events_together:
                    for event in events:
                        match event:
                            case TextDelta() | RefusalDelta() | ReasoningDelta() | ToolCallDelta():
                                reply.add(event)
                                self._check_length(work, event)
                            case UsageReport(usage=reported):
                                used = reported
                            case Finished(reason=reason):
                                work.finish = reason
                            case _:
                                assert_never(event)
                    if work.first is None and reply.deltas:
                        work.first = self.clock()
        except ProviderError:
            failed_at_once = not work.has_words()
            raise
        finally:
            if used is not None and work.is_countable:
                self._counts.learn(work.asked, work.weight, used.prompt_tokens)
            if used is not None or not failed_at_once:
                work.spend(used or self._estimate_usage(work))

    def _estimate_usage(self, work: Work) -> Usage:
        """For a call of which the provider did not say, or could not any more, what it used."""
        assert work.context is not None  # noqa: S101
        size, rate = len(work.reply.text.encode()), self._counts.bytes_per_token(work.asked)
        completion = int(size / rate) + 1 if size else 0
        return Usage(work.context.estimated_tokens, completion, estimated=True)

    def _check_length(self, work: Work, delta: ReplyDelta) -> None:
        """A model that never stops must not fill memory and disk."""
        text = delta.arguments if isinstance(delta, ToolCallDelta) else delta.text
        work.length += len(text)
        limit = self._policy.reply_limit
        if work.length > limit:
            raise ProviderError(
                "provider_malformed", f"the reply is longer than {limit} characters"
            )


def _with_passage(plan: Plan, passage: Passage, room: int, history: History) -> tuple[Item, ...]:
    """What the prompt begins with, and of the passage what fits beside the history."""
    keep_all = plan.overflow == "error"
    budget = prompt.allowance(room, history, keep_all=keep_all)
    text = prompt.describe_passage(passage, budget)
    return prompt.put_in_front(plan.frame, text) if text else plan.frame


def add_usage(before: Usage | None, more: Usage) -> Usage:
    """What both have spent."""
    if before is None:
        return more
    return Usage(
        before.prompt_tokens + more.prompt_tokens,
        before.completion_tokens + more.completion_tokens,
        before.estimated or more.estimated,
        before.cached_tokens + more.cached_tokens,
        before.reasoning_tokens + more.reasoning_tokens,
    )
