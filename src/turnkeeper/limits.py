"""Pure: how much everyone has used of what is allowed, and whether there is room for more.

A limit holds for a *subject*: a key, a user, an end user, a session, an address, or the server as
a whole. What a turn will use is reserved when it begins and settled with what it has used when it
ends, so that many at once never take more than there is. Times are arguments: `tick` in seconds of
a clock that never goes back, for minutes; `now` in milliseconds since 1970 in UTC, for days and
months.

Minutes are sliding windows and no token buckets: a bucket that holds a minute's worth and fills
again meanwhile lets nearly two through in one minute. They move in steps of a second, so that one
costs 61 numbers at most however much is counted; what is used is free again a second late at the
worst. Days and months are those of the calendar, which are one number each and survive a restart.
"""

import math
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import Literal, NamedTuple, get_args

import msgspec

from turnkeeper.domain import NO_LIMITS, Limits, Model
from turnkeeper.errors import Overloaded, QuotaExceeded, RateLimited

Kind = Literal["key", "user", "end_user", "session", "address", "server"]
Measure = Literal["tokens_per_day", "cost_per_month"]

_MINUTE = 60
_SIZE = 50_000  # subjects of a kind that are remembered, but for those in use
_LOOKS = 32  # at subjects, for one that can be forgotten
_WATCHED = 10.0  # seconds after a refusal, for which turns are looked at before they begin
_SOON = 1.0  # seconds after which to try again where nobody knows when something ends

COST_UNIT = 1_000_000_000  # costs are whole numbers of billionths, so that sums are exact


class Subject(NamedTuple):
    """Whom a limit holds for."""

    kind: Kind
    name: str


class Party(msgspec.Struct, frozen=True):
    """A subject that a request counts for, and how much it may do."""

    subject: Subject
    limits: Limits


class Rules(msgspec.Struct, frozen=True):
    """How much each subject of a kind may do, unless it has limits of its own."""

    key: Limits = NO_LIMITS
    user: Limits = NO_LIMITS
    end_user: Limits = NO_LIMITS
    session: Limits = NO_LIMITS
    address: Limits = NO_LIMITS
    server: Limits = NO_LIMITS


class Moment(NamedTuple):
    """The time, by both clocks."""

    tick: float
    now: int


class Estimate(msgspec.Struct, frozen=True):
    """What a turn may use. Costs are in `COST_UNIT`s.

    Attributes:
        tokens, cost: of the prompt and of as long a reply as is to be expected.
        least_tokens, least_cost: without what only an unusually long reply would need.
    """

    tokens: int
    least_tokens: int
    cost: int = 0
    least_cost: int = 0


class Spent(msgspec.Struct, frozen=True):
    """How much of a day's tokens or a month's cost a subject has used.

    Attributes:
        ends_at: when that day or month is over, in ms since 1970.
    """

    subject: Subject
    measure: Measure
    ends_at: int
    amount: int


class Left(msgspec.Struct, frozen=True):
    """What a subject has left of one of its limits.

    Attributes:
        limit: which; the name of a field of `Limits`.
        reset: seconds until all of it is there again; None where no clock says.
    """

    subject: Subject
    limit: str
    allowed: float
    left: float
    reset: float | None


class Least(NamedTuple):
    """What is left of the limit that has the least left, and the seconds until all of it is.

    `left` is negative where more was used than was allowed.
    """

    allowed: int
    left: int
    reset: float


def cost_of(model: Model, prompt_tokens: int, reply_tokens: int) -> int:
    """What tokens cost by a model's prices, rounded up; nothing where it has none."""
    price = prompt_tokens * (model.input_price or 0) + reply_tokens * (model.output_price or 0)
    return math.ceil(price * (COST_UNIT // 1_000_000))


def merge(own: Limits, default: Limits) -> Limits:
    """The limits of someone's own, and the default where it has none."""
    fields = Limits.__struct_fields__
    theirs = {name: getattr(own, name) for name in fields if getattr(own, name) is not None}
    return msgspec.structs.replace(default, **theirs)


# --- What is counted ---------------------------------------------------------------------------


class Window:
    """How much was added within the last minute."""

    __slots__ = ("_steps", "_total")

    def __init__(self) -> None:
        self._steps: list[list[int]] = []  # a second, and what was added in it; in order
        self._total = 0

    def add(self, amount: int, tick: float) -> None:
        second = int(tick)
        if self._steps and self._steps[-1][0] == second:
            self._steps[-1][1] += amount
        else:
            self._steps.append([second, amount])
        self._total += amount

    def used(self, tick: float) -> int:
        steps, gone = self._steps, int(tick) - _MINUTE - 1
        while steps and steps[0][0] <= gone:
            self._total -= steps.pop(0)[1]
        return self._total

    def wait(self, amount: int, tick: float) -> float:
        """Seconds until so much less is used; until nothing is, if there is not so much."""
        for second, added in self._steps:
            amount -= added
            if amount <= 0:
                return max(0.0, second + _MINUTE + 1 - tick)
        return self.reset(tick)

    def reset(self, tick: float) -> float:
        """Seconds until nothing is used."""
        if not self.used(tick):
            return 0.0
        return max(0.0, self._steps[-1][0] + _MINUTE + 1 - tick)


class Tally:
    """How much was added since a day or a month began."""

    __slots__ = ("amount", "ends_at", "kept", "measure")

    def __init__(self, measure: Measure) -> None:
        self.measure = measure
        self.amount = 0
        self.ends_at = 0
        self.kept = False  # somewhere else, or was once

    def add(self, amount: int, now: int) -> None:
        self.amount = self.used(now) + amount

    def used(self, now: int) -> int:
        if now >= self.ends_at:
            self.amount = 0
            self.ends_at = _ENDS[self.measure](now)
        return self.amount

    def wait(self, now: int) -> float:
        """Seconds until it begins anew."""
        self.used(now)
        return (self.ends_at - now) / 1000


def _end_of_day(now: int) -> int:
    day = 86_400_000
    return now - now % day + day


def _end_of_month(now: int) -> int:
    first = datetime.fromtimestamp(now / 1000, UTC).replace(day=1, hour=0, minute=0, second=0)
    following = (first + timedelta(days=32)).replace(day=1, microsecond=0)
    return int(following.timestamp()) * 1000


_ENDS: dict[Measure, Callable[[int], int]] = {
    "tokens_per_day": _end_of_day,
    "cost_per_month": _end_of_month,
}


class Counters:
    """What one subject has used and reserved."""

    __slots__ = (
        "cost",
        "day",
        "held_cost",
        "held_tokens",
        "known",
        "month",
        "replays",
        "requests",
        "seen",
        "streams",
        "tokens",
        "turns",
    )

    def __init__(self, tick: float) -> None:
        self.requests = Window()
        self.replays = Window()
        self.tokens = Window()
        self.day = Tally("tokens_per_day")
        self.month = Tally("cost_per_month")
        self.held_tokens = 0  # reserved by turns that are not over
        self.held_cost = 0
        self.turns = 0
        self.streams = 0
        self.seen = tick
        self.known = False  # whether what an earlier process has kept was added

    @property
    def in_use(self) -> bool:
        return bool(self.turns or self.streams or self.held_tokens or self.held_cost)


class Reservation:
    """What one turn holds of its subjects' limits until it is settled."""

    __slots__ = ("held",)

    def __init__(self, held: list[tuple[Party, Counters, int, int]]) -> None:
        self.held = held  # tokens and cost, for each of them


# --- The books ---------------------------------------------------------------------------------


class Ledger:
    """Counts for everyone. What asks for more than there is changes nothing.

    Subjects that were not seen for a minute are forgotten, once what they have used of days and
    months is kept elsewhere; so are the longest unseen where there are more than `size` of a kind.
    """

    def __init__(self, size: int = _SIZE) -> None:
        self._size = size
        # The latest seen last. A shelf for each kind: whoever has many addresses has no users go.
        self._shelves: dict[Kind, OrderedDict[str, Counters]] = {
            kind: OrderedDict() for kind in get_args(Kind)
        }
        self._news: set[Subject] = set()  # whose days or months have changed since they were kept
        self._being_kept: set[Subject] = set()
        self._refused_at = -math.inf  # when a turn was refused last

    def __len__(self) -> int:
        return sum(len(shelf) for shelf in self._shelves.values())

    # --- Requests and streams ------------------------------------------------------------------

    def count_request(self, parties: Sequence[Party], tick: float) -> None:
        """One request more.

        Raises:
            RateLimited: there have been as many as are allowed.
        """
        counted = self._limited(parties, "requests_per_minute", tick)
        for _, counters, limit in counted:
            if counters.requests.used(tick) >= limit:
                raise _worst(_refuse_requests(counted, tick))
        for _, counters, _ in counted:
            counters.requests.add(1, tick)

    def count_replay(self, parties: Sequence[Party], tick: float) -> bool:
        """Whether one request more may be looked at that might only repeat an earlier one.

        As many may as are allowed of others.
        """
        counted = self._limited(parties, "requests_per_minute", tick)
        if any(counters.replays.used(tick) >= limit for _, counters, limit in counted):
            return False
        for _, counters, _ in counted:
            counters.replays.add(1, tick)
        return True

    def open_stream(self, parties: Sequence[Party], tick: float) -> Sequence[Counters]:
        """One stream more is open, until `close_stream` is told what this returns.

        Raises:
            RateLimited, Overloaded: as many are open as are allowed.
        """
        counted = self._limited(parties, "open_streams", tick)
        for party, counters, limit in counted:
            if counters.streams >= limit:
                raise _crowded(party.subject, "streams open at once", limit)
        for _, counters, _ in counted:
            counters.streams += 1
        return [counters for _, counters, _ in counted]

    @staticmethod
    def close_stream(opened: Sequence[Counters]) -> None:
        for counters in opened:
            counters.streams -= 1

    def _limited(
        self, parties: Sequence[Party], limit: str, tick: float
    ) -> list[tuple[Party, Counters, int]]:
        """Those who have a limit of this name, and it."""
        return [
            (party, self._find(party.subject, tick), allowed)
            for party in parties
            if (allowed := getattr(party.limits, limit)) is not None
        ]

    # --- Turns ---------------------------------------------------------------------------------

    def unknown(self, parties: Sequence[Party]) -> list[Subject]:
        """Those whose days and months count, and of which nobody has said what they have used."""
        return [
            party.subject
            for party in parties
            if _outlasts(party.limits)
            and not ((found := self._look(party.subject)) and found.known)
        ]

    def learn(self, subject: Subject, spent: Iterable[Spent], moment: Moment) -> None:
        """What an unknown subject had used before; of one that is known, nothing is changed."""
        counters = self._find(subject, moment.tick)
        if counters.known:
            return
        counters.known = True
        for past in spent:
            tally = counters.day if past.measure == "tokens_per_day" else counters.month
            if past.ends_at > moment.now:
                tally.amount, tally.ends_at = past.amount, past.ends_at

    def check_turn(self, parties: Sequence[Party], moment: Moment) -> None:
        """See whether a turn of no size could begin.

        Raises:
            RateLimited, QuotaExceeded, Overloaded: it could not.
        """
        self._weigh(parties, _NOTHING, moment)

    def has_refused(self, tick: float) -> bool:
        """Whether a turn was refused within the last seconds: then the next may be too."""
        return tick - self._refused_at < _WATCHED

    def reserve(self, parties: Sequence[Party], estimate: Estimate, moment: Moment) -> Reservation:
        """Room for a turn, until it is settled.

        Where a turn needs more than a whole limit only in case its reply is long, it gets all.

        Raises:
            RateLimited, QuotaExceeded, Overloaded: there is not so much left.
        """
        held = self._weigh(parties, estimate, moment)
        for party, counters, tokens, cost in held:
            counters.turns += 1
            counters.held_tokens += tokens
            counters.held_cost += cost
            self._note(party)
        return Reservation(held)

    def settle(self, reservation: Reservation, tokens: int, cost: int, moment: Moment) -> None:
        """A turn is over and has used so much. A second time, nothing happens."""
        held, reservation.held = reservation.held, []
        for party, counters, held_tokens, held_cost in held:
            self._find(party.subject, moment.tick)
            counters.turns -= 1
            counters.held_tokens -= held_tokens
            counters.held_cost -= held_cost
            limits = party.limits
            if limits.tokens_per_minute is not None and tokens:
                counters.tokens.add(tokens, moment.tick)
            if limits.tokens_per_day is not None:
                counters.day.add(tokens, moment.now)
            if limits.cost_per_month is not None:
                counters.month.add(cost, moment.now)
            self._note(party)

    def _weigh(
        self, parties: Sequence[Party], estimate: Estimate, moment: Moment
    ) -> list[tuple[Party, Counters, int, int]]:
        """What would be held for each, if there is room for it."""
        held = []
        refusals: list[RateLimited] = []
        for party in parties:
            counters = self._find(party.subject, moment.tick)
            tokens, cost = _shares(party.limits, estimate)
            if not _has_room(party.limits, counters, tokens, cost, moment):
                refusals += _refuse_turn(party, counters, tokens, cost, moment)
            held.append((party, counters, tokens, cost))
        if refusals:
            self._refused_at = moment.tick
            raise _worst(refusals)
        return held

    def _note(self, party: Party) -> None:
        if _outlasts(party.limits):
            self._news.add(party.subject)

    # --- What is left --------------------------------------------------------------------------

    def left(self, parties: Sequence[Party], moment: Moment) -> list[Left]:
        """What there is left of every limit that is counted here."""
        found: list[Left] = []
        for party in parties:
            counters = self._find(party.subject, moment.tick)
            for name, use in _USES.items():
                allowed = getattr(party.limits, name)
                if allowed is not None:
                    used, reset = use(counters, moment)
                    found.append(Left(party.subject, name, allowed, max(0, allowed - used), reset))
        return found

    def least(self, parties: Sequence[Party], moment: Moment) -> tuple[Least | None, Least | None]:
        """The least that is left of requests, and that of tokens; None where there is no limit."""
        requests: Least | None = None
        tokens: Least | None = None
        tick, now = moment
        for party in parties:
            limits, counters = party.limits, self._find(party.subject, tick)
            allowed = limits.requests_per_minute
            if allowed is not None:
                left = allowed - counters.requests.used(tick)
                if requests is None or left < requests.left:
                    requests = Least(allowed, left, counters.requests.reset(tick))
            allowed = limits.tokens_per_minute
            if allowed is not None:
                left = allowed - counters.tokens.used(tick) - counters.held_tokens
                if tokens is None or left < tokens.left:
                    tokens = Least(allowed, left, counters.tokens.reset(tick))
            allowed = limits.tokens_per_day
            if allowed is not None:
                left = allowed - counters.day.used(now) - counters.held_tokens
                if tokens is None or left < tokens.left:
                    tokens = Least(allowed, left, counters.day.wait(now))
        return requests, tokens

    # --- Remembering and forgetting ------------------------------------------------------------

    def take_news(self, now: int, most: int) -> list[Spent]:
        """What has changed of days and months since it was last kept, of `most` subjects.

        What turns have reserved counts as used, in case this process does not see their end.
        `kept` is to follow.
        """
        news: list[Spent] = []
        for _ in range(min(most, len(self._news))):
            subject = self._news.pop()
            self._being_kept.add(subject)
            counters = self._look(subject)
            assert counters is not None  # noqa: S101  no one is forgotten who is in the news
            for tally, held in (
                (counters.day, counters.held_tokens),
                (counters.month, counters.held_cost),
            ):
                amount = tally.used(now) + held
                if amount or tally.kept:
                    tally.kept = True
                    news.append(Spent(subject, tally.measure, tally.ends_at, amount))
        return news

    def kept(self, *, failed: bool = False) -> None:
        """What was taken last is kept now, or could not be."""
        if failed:
            self._news |= self._being_kept
        self._being_kept.clear()

    def forget(self, tick: float) -> int:
        """Drop those that nothing has been heard of for a minute; how many they were."""
        dropped = 0
        for kind, shelf in self._shelves.items():
            old: list[str] = []
            for name, counters in shelf.items():
                if counters.seen > tick - _MINUTE - 1:
                    break
                old.append(name)
            for name in old:
                if self._is_done_with(Subject(kind, name), shelf[name]):
                    del shelf[name]
                    dropped += 1
        return dropped

    def _look(self, subject: Subject) -> Counters | None:
        return self._shelves[subject[0]].get(subject[1])

    def _find(self, subject: Subject, tick: float) -> Counters:
        kind, name = subject
        shelf = self._shelves[kind]
        counters = shelf.get(name)
        if counters is None:
            if len(shelf) >= self._size:
                self._make_room(kind, shelf)
            counters = shelf[name] = Counters(tick)
        else:
            shelf.move_to_end(name)
            counters.seen = tick
        return counters

    def _make_room(self, kind: Kind, shelf: OrderedDict[str, Counters]) -> None:
        """Drop the longest unseen of those that can be; look at a few, lest this takes long."""
        for name in list(islice(shelf, _LOOKS)):
            if self._is_done_with(Subject(kind, name), shelf[name]):
                del shelf[name]
                return
            shelf.move_to_end(name)

    def _is_done_with(self, subject: Subject, counters: Counters) -> bool:
        unkept = subject in self._news or subject in self._being_kept
        return not (counters.in_use or unkept)


_NOTHING = Estimate(1, 1)


def _outlasts(limits: Limits) -> bool:
    """Whether any of what is counted is to be known after a restart."""
    return limits.tokens_per_day is not None or limits.cost_per_month is not None


def _units(cost: float) -> int:
    return int(cost * COST_UNIT)


def _shares(limits: Limits, estimate: Estimate) -> tuple[int, int]:
    """The tokens and the cost that a turn reserves of its limits."""
    tokens = cost = 0
    smallest, day, month = limits.tokens_per_minute, limits.tokens_per_day, limits.cost_per_month
    if smallest is None or (day is not None and day < smallest):
        smallest = day
    if smallest is not None:
        tokens = estimate.tokens
        if tokens > smallest:
            tokens = min(tokens, max(estimate.least_tokens, smallest))
    if month is not None:
        cost = estimate.cost
        if cost > month * COST_UNIT:
            cost = min(cost, max(estimate.least_cost, _units(month)))
    return tokens, cost


def _has_room(limits: Limits, counters: Counters, tokens: int, cost: int, moment: Moment) -> bool:
    """Whether nothing speaks against a turn; what does if not, `_refuse_turn` says."""
    turns, minute = limits.running_turns, limits.tokens_per_minute
    day, month = limits.tokens_per_day, limits.cost_per_month
    tokens += counters.held_tokens
    if turns is not None and counters.turns >= turns:
        return False
    if minute is not None and counters.tokens.used(moment.tick) + tokens > minute:
        return False
    if day is not None and counters.day.used(moment.now) + tokens > day:
        return False
    if month is None:
        return True
    used = counters.month.used(moment.now)
    # At the very end also what costs nothing is refused.
    return used + max(1, counters.held_cost + cost) <= month * COST_UNIT


# What has been used of each limit, and in how many seconds it is there again.
_USES: dict[str, Callable[[Counters, Moment], tuple[float, float | None]]] = {
    "requests_per_minute": lambda counters, moment: (
        counters.requests.used(moment.tick),
        counters.requests.reset(moment.tick),
    ),
    "tokens_per_minute": lambda counters, moment: (
        counters.tokens.used(moment.tick) + counters.held_tokens,
        counters.tokens.reset(moment.tick),
    ),
    "tokens_per_day": lambda counters, moment: (
        counters.day.used(moment.now) + counters.held_tokens,
        counters.day.wait(moment.now),
    ),
    "cost_per_month": lambda counters, moment: (
        (counters.month.used(moment.now) + counters.held_cost) / COST_UNIT,
        counters.month.wait(moment.now),
    ),
    "running_turns": lambda counters, _: (counters.turns, None),
    "open_streams": lambda counters, _: (counters.streams, None),
}


# --- Refusals ----------------------------------------------------------------------------------

_NAMES: dict[Kind, str] = {
    "key": "This API key",
    "user": "This user",
    "end_user": "This end user",
    "session": "This session",
    "address": "This address",
    "server": "This server",
}


def _worst(refusals: Iterable[RateLimited]) -> RateLimited:
    """The one after which it takes longest until trying again makes sense; never is longest."""
    return max(refusals, key=lambda refusal: refusal.retry_after or math.inf)


def _refuse_requests(
    counted: Sequence[tuple[Party, Counters, int]], tick: float
) -> Iterator[RateLimited]:
    for party, counters, limit in counted:
        requests = counters.requests
        if requests.used(tick) >= limit:
            wait = requests.wait(requests.used(tick) - limit + 1, tick)
            yield _used_up(party.subject, f"{limit} requests per minute", wait if limit else None)


def _refuse_turn(
    party: Party, counters: Counters, tokens: int, cost: int, moment: Moment
) -> Iterator[RateLimited]:
    """What speaks against a turn that would hold so much."""
    limits, subject = party.limits, party.subject
    turns, minute = limits.running_turns, limits.tokens_per_minute
    day, month = limits.tokens_per_day, limits.cost_per_month
    if turns is not None and counters.turns >= turns:
        yield _crowded(subject, "turns running at once", turns)
    held = counters.held_tokens  # by running turns, and free again nobody knows when
    if minute is not None:
        over = counters.tokens.used(moment.tick) + tokens - minute
        if over + held > 0:
            wait = counters.tokens.wait(over, moment.tick) if over > 0 else _SOON
            yield _lacking(subject, tokens, f"{minute} tokens per minute", minute, wait)
    if day is not None:
        over = counters.day.used(moment.now) + tokens - day
        if over + held > 0:
            wait = counters.day.wait(moment.now) if over > 0 else _SOON
            yield _lacking(subject, tokens, f"{day} tokens per day", day, wait)
    if month is not None:
        used, allowed = counters.month.used(moment.now), _units(month)
        if used + max(1, counters.held_cost + cost) > allowed:
            yield QuotaExceeded(
                f"{_NAMES[subject.kind]} has used up the cost of {month:g} that it may have in a"
                " month",
                _SOON if used + cost <= allowed else counters.month.wait(moment.now),
            )


def _used_up(subject: Subject, what: str, wait: float | None) -> RateLimited:
    then = "" if wait is None else f"; try again in {math.ceil(wait)} s"
    return RateLimited(f"{_NAMES[subject.kind]} has used up its {what}{then}", wait)


def _lacking(subject: Subject, tokens: int, what: str, limit: int, wait: float) -> RateLimited:
    """Not enough tokens are left, or there will never be."""
    if tokens > limit:
        return RateLimited(
            f"This turn needs about {tokens} tokens, and {_NAMES[subject.kind].lower()} has {what}",
            None,
        )
    if tokens <= 1:
        return _used_up(subject, what, wait)
    return RateLimited(
        f"{_NAMES[subject.kind]} has not enough left of its {what} for this turn, which may need"
        f" {tokens}; try again in {math.ceil(wait)} s",
        wait,
    )


def _crowded(subject: Subject, what: str, limit: int) -> RateLimited:
    if subject.kind == "server":
        return Overloaded("The server has as much to do as it can; try again in a moment", _SOON)
    wait = _SOON if limit else None
    return RateLimited(f"{_NAMES[subject.kind]} has {limit} {what}, which is all it may", wait)
