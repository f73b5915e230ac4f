"""How a turn is to be made: from what its session is based on, and the models there are. Pure."""

from typing import Literal

import msgspec

from turnkeeper import prompt
from turnkeeper.blueprint import fill_in, sampling_of
from turnkeeper.counts import Counts
from turnkeeper.domain import (
    AS_IT_IS,
    NO_OPTIONS,
    Basis,
    Blueprint,
    ChatConfig,
    Item,
    ModelChoice,
    Options,
    Sampling,
    Usage,
)
from turnkeeper.limits import Estimate, cost_of
from turnkeeper.offers import Offer, Offers

_REMEMBERED = 1000  # plans, of sessions without variables


class Candidate(msgspec.Struct, frozen=True):
    """A model that may make the reply.

    Attributes:
        room: the weight of items that its prompts have room for. A fallback has not more than
            the first, for which the session is read.
        whole_room: the same with what every prompt begins with.
        bytes_per_token: by which both were made of its window.
        reply_tokens: that its reply may have, or is expected to.
    """

    offer: Offer
    room: int
    whole_room: int
    bytes_per_token: float
    reply_tokens: int


class Plan(msgspec.Struct, frozen=True):
    """How the turns of a session are made.

    Attributes:
        candidates: one at least; each is asked if the one before cannot make a reply.
        frame: what every prompt begins with.
        frame_weight: of that, and of what the options send along.
        overflow: what happens when the session no longer fits; see `Blueprint`.
        options: what the caller asks of this turn alone.
    """

    candidates: tuple[Candidate, ...]
    frame: tuple[Item, ...]
    frame_weight: int
    sampling: Sampling
    blueprint: Blueprint
    overflow: Literal["truncate", "summarise", "error"]
    options: Options = NO_OPTIONS

    def choose(self, weight: int, total_weight: int) -> ModelChoice:
        """The model for a turn over items of `weight`; its session has `total_weight` with them.

        Raises:
            ContextTooLong: they alone do not fit; or the whole session does not, and the
                blueprint says not to leave anything out.
        """
        first = self.candidates[0]
        is_all_wanted = self.overflow == "error"
        wanted = total_weight if is_all_wanted else weight
        prompt.check_room(first.offer.model, first.room, wanted, first.bytes_per_token)
        return ModelChoice(first.offer.model.id, first.room)

    def estimate(self, total_weight: int, *, cut: bool = True) -> Estimate:
        """What a turn may use in a session of `total_weight`, as far as it can be told before.

        The prompt is as long as there is room for, or if it is not `cut` as the session is.

        A reply of as many tokens as the caller lets it have is to be reckoned with; one of as many
        as are kept free for it, only if there is room.
        """
        first = self.candidates[0]
        weight = (min(total_weight, first.room) if cut else total_weight) + self.frame_weight
        prompt_tokens = int(weight / first.bytes_per_token) + 1
        reply_tokens = first.reply_tokens
        least = reply_tokens if self.sampling.max_tokens is not None else 0
        model = first.offer.model
        return Estimate(
            prompt_tokens + reply_tokens,
            prompt_tokens + least,
            cost_of(model, prompt_tokens, reply_tokens),
            cost_of(model, prompt_tokens, least),
        )

    def cost_of(self, model: str | None, usage: Usage) -> int:
        """What a reply by one of the candidates has cost, in `limits.COST_UNIT`s."""
        for candidate in self.candidates:
            if candidate.offer.model.id == model:
                return cost_of(candidate.offer.model, usage.prompt_tokens, usage.completion_tokens)
        return 0

    def able(self, total_weight: int) -> tuple[Candidate, ...]:
        """The candidates to ask about a session of `total_weight`, for which `choose` was asked.

        Where nothing may be left out, those to fall back on that have no room for all of it
        are passed over.
        """
        if self.overflow != "error":
            return self.candidates
        first, *others = self.candidates
        return (first, *(other for other in others if other.room >= total_weight))

    def weigh(self, frame: tuple[Item, ...]) -> int:
        """What a prompt weighs that begins with `frame`, before anything is said."""
        if frame is self.frame:
            return self.frame_weight
        return prompt.weigh(frame) + prompt.weigh_options(self.options)

    def refit(self, refused: Candidate, sent: int, counts: Counts) -> Candidate:
        """The candidate with less room, after it has refused a prompt of weight `sent`."""
        fitted = _with_limit(self.blueprint, self.sampling)
        smaller = _candidate(refused.offer, fitted, self.frame_weight, counts)
        least = min(smaller.room, refused.room, sent * 9 // 10 - self.frame_weight)
        return msgspec.structs.replace(smaller, room=least)


class Plans:
    """Makes plans, and remembers those that many sessions share."""

    def __init__(self, offers: Offers, counts: Counts) -> None:
        self.offers = offers
        self.counts = counts
        self._version = counts.version
        self._shared: dict[tuple[str, str | None], Plan] = {}

    def make(self, basis: Basis, model: str | None = None, options: Options = NO_OPTIONS) -> Plan:
        """The plan for a session; `model` and `options` go before what it has itself."""
        wanted = model or basis.model
        if basis.variables or basis.config is not None or options is not NO_OPTIONS:
            return self._make(basis, wanted, options)
        if self._version != self.counts.version:  # what fits into a window has changed
            self._version = self.counts.version
            self._shared.clear()
        key = (basis.revision.id, wanted)
        plan = self._shared.get(key)
        if plan is None:
            if len(self._shared) >= _REMEMBERED:
                self._shared.clear()
            plan = self._shared[key] = self._make(basis, wanted, NO_OPTIONS)
        return plan

    def _make(self, basis: Basis, wanted: str | None, options: Options) -> Plan:
        blueprint = basis.revision.blueprint
        frame: tuple[Item, ...] = ()
        sampling = AS_IT_IS
        if not options.alone:
            frame, sampling = fill_in(blueprint, basis.variables), sampling_of(blueprint)
        if basis.config is not None:
            instructions = instructions_of(basis.config)
            frame = prompt.put_in_front(frame, instructions) if instructions else frame
            sampling = _override(sampling, Sampling(basis.config.temperature))
        if options.frame is not None:
            frame = options.frame
        if options.instructions is not None:
            frame = prompt.with_system(frame, options.instructions)
        weight = prompt.weigh(frame) + prompt.weigh_options(options)
        sampling = _override(sampling, options.sampling)
        fitted = _with_limit(blueprint, sampling)
        first, *others = [
            _candidate(offer, fitted, weight, self.counts)
            for offer in self._candidates(blueprint, wanted)
        ]
        # No more of a session is read than the first has room for.
        candidates = [
            msgspec.structs.replace(other, room=min(other.room, first.room)) for other in others
        ]
        overflow = options.overflow or blueprint.overflow
        return Plan((first, *candidates), frame, weight, sampling, blueprint, overflow, options)

    def _candidates(self, blueprint: Blueprint, wanted: str | None) -> list[Offer]:
        """The first of the wanted model, the blueprint's and the server's; then those to fall
        back on. A model that is not offered any more is passed over."""
        by_id = self.offers.by_id
        first = by_id.get(wanted or "") or by_id.get(blueprint.model or "")
        others = [by_id[id_] for id_ in dict.fromkeys(blueprint.fallback_models) if id_ in by_id]
        if first is None:
            first = others[0] if blueprint.model and others else self.offers.listed[0]
        return [first, *(offer for offer in others if offer is not first)]


def _with_limit(blueprint: Blueprint, sampling: Sampling) -> Blueprint:
    return msgspec.structs.replace(blueprint, max_tokens=sampling.max_tokens)


def _candidate(offer: Offer, blueprint: Blueprint, frame_weight: int, counts: Counts) -> Candidate:
    model = offer.model
    rate, window = counts.bytes_per_token(model.id), counts.window(model.id, model.context_window)
    room = prompt.capacity(window, blueprint, frame_weight, rate)
    reply_tokens = prompt.reply_room(min(window, blueprint.context_window or window), None)
    if blueprint.max_tokens is not None:
        reply_tokens = min(window, blueprint.max_tokens)
    return Candidate(offer, room, room + frame_weight, rate, reply_tokens)


def instructions_of(config: ChatConfig) -> str:
    return (config.instructions or config.detailed_instructions or "").strip()


def _override(sampling: Sampling, over: Sampling) -> Sampling:
    if over is AS_IT_IS:
        return sampling
    return Sampling(
        sampling.temperature if over.temperature is None else over.temperature,
        sampling.top_p if over.top_p is None else over.top_p,
        sampling.max_tokens if over.max_tokens is None else over.max_tokens,
        over.stop or sampling.stop,
    )
