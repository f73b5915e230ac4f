"""The gate: what everyone may do holds here, whichever way a request or a turn comes.

Where requests come in they say who asks; whoever begins a turn need not know, and cannot forget
it. Knows the store by its contract, and what is counted by `limits`; does not know HTTP.
"""

from collections.abc import Callable, Sequence
from contextvars import ContextVar
from functools import lru_cache
from ipaddress import IPv6Address

import msgspec

from turnkeeper.contracts import Quota, Store
from turnkeeper.domain import NO_LIMITS, Caller, Limits, split_owner
from turnkeeper.errors import MessageTooLong, StoreUnavailable
from turnkeeper.limits import (
    Estimate,
    Kind,
    Least,
    Ledger,
    Left,
    Moment,
    Party,
    Reservation,
    Rules,
    Subject,
    merge,
)

_BATCH = 200  # subjects that are kept in one transaction
_KNOWN = 10_000  # callers, of whom it is remembered whom their requests count for
_MERGED = 1000  # limits of keys, of which it is remembered what they come to


class Asker(msgspec.Struct, frozen=True):
    """For whom a request counts.

    Attributes:
        parties: those who have limits.
        end_user: the owner, if that is an end user.
        has_own: whether its key has limits of its own.
        session: the id of the only session that there is for the caller; None for all.
    """

    parties: tuple[Party, ...] = ()
    end_user: str | None = None
    session: str | None = None
    has_own: bool = False


NO_ONE = Asker()


class Unread(Exception):
    """What a subject has used of days and months must be read before its turn may begin."""

    def __init__(self, subject: Subject) -> None:
        super().__init__(subject)
        self.subject = subject


class Gate:
    """Counts requests, streams and turns, and refuses what is more than someone may.

    Attributes:
        counts_streams: whether the server has a limit of its own on open streams.
    """

    def __init__(
        self, store: Store, rules: Rules, *, now: Callable[[], int], tick: Callable[[], float]
    ) -> None:
        """`now` is the time in ms since 1970; `tick` are seconds that nobody can set."""
        self._store = store
        self._rules = rules
        self._now = now
        self._tick = tick
        self._ledger = Ledger()
        self._asker: ContextVar[Asker] = ContextVar("asker", default=NO_ONE)
        self._merge = lru_cache(_MERGED)(merge)
        # Whom callers' requests count for, by who they are, with the limits of their keys.
        self._known: dict[tuple[str | None, ...], tuple[Limits, tuple[Party, ...]]] = {}
        self._is_open = rules == Rules()  # to all who have no limits of their own
        self._server = _parties(("server", "", rules.server))
        kinds = [getattr(rules, kind) for kind in Rules.__struct_fields__]
        self._has_lengths = any(limits.message_length is not None for limits in kinds)
        self._has_sessions = any(limits.sessions is not None for limits in kinds)
        self.counts_streams = rules.server.open_streams is not None

    @property
    def moment(self) -> Moment:
        return Moment(self._tick(), self._now())

    # --- Who asks ------------------------------------------------------------------------------

    def at(self, address: str) -> tuple[Party, ...]:
        """Whom a request counts for that comes from an address, before anyone knows more.

        Of IPv6 that is the network of 64 bits: a single customer has all the addresses in one.
        """
        limits = self._rules.address
        if limits is NO_LIMITS:
            return ()
        return _parties(("address", _network(address), limits))

    def of(self, caller: Caller) -> tuple[Party, ...]:
        """Whom a request of the caller's counts for, beside its address."""
        if self._is_open and caller.limits is NO_LIMITS:
            return ()
        who = (caller.name, caller.key, caller.end_user, caller.session)
        known = self._known.get(who)
        if known is not None and known[0] is caller.limits:
            return known[1]
        parties = self._make_parties(caller)
        if len(self._known) >= _KNOWN:
            self._known.clear()
        self._known[who] = (caller.limits, parties)
        return parties

    def _make_parties(self, caller: Caller) -> tuple[Party, ...]:
        rules, user = self._rules, caller.name
        key_limits = rules.key
        if caller.limits is not NO_LIMITS:
            key_limits = self._merge(caller.limits, rules.key)
        end_user = None if caller.end_user is None else caller.owner
        return _parties(
            ("key", caller.key, key_limits),
            ("user", user or None, rules.user),
            ("end_user", end_user, rules.end_user),
            ("session", caller.session, rules.session),
        )

    def note(self, caller: Caller, parties: tuple[Party, ...]) -> None:
        """From now on whatever is begun in this task counts for these."""
        end_user = None if caller.end_user is None else caller.owner
        own = caller.limits is not NO_LIMITS
        self._asker.set(Asker(parties, end_user, caller.session, own))

    # --- Requests and streams ------------------------------------------------------------------

    def count_request(self, parties: Sequence[Party]) -> None:
        """One request more. Raises RateLimited: there may be no more just now."""
        self._ledger.count_request(parties, self._tick())

    def may_repeat(self, parties: Sequence[Party]) -> bool:
        """Whether one that was refused may be looked at, since it may only repeat another."""
        return self._ledger.count_replay(parties, self._tick())

    def open_stream(self, parties: Sequence[Party]) -> Callable[[], None]:
        """One stream more is open; what is returned is to be called when it no longer is.

        Raises:
            RateLimited, Overloaded: there may be no more just now.
        """
        opened = self._ledger.open_stream((*parties, *self._server), self._tick())
        return lambda: self._ledger.close_stream(opened)

    def left(self, parties: Sequence[Party] | None = None) -> list[Left]:
        """What these have left of their limits; by default, those whom this request counts for."""
        if parties is None:
            parties = self._asker.get().parties
        return self._ledger.left(parties, self.moment)

    def least(self, parties: Sequence[Party]) -> tuple[Least | None, Least | None]:
        """The least that is left to any of these of requests, and of tokens."""
        return self._ledger.least(parties, self.moment)

    # --- Turns ---------------------------------------------------------------------------------

    def check_length(self, length: int, owner: str | None = None) -> None:
        """See that a message of so many characters is none too long for the asker, or its `owner`.

        Raises:
            MessageTooLong: it is.
        """
        if not (self._has_lengths or self._asker.get().has_own):
            return
        parties = self._asker.get().parties if owner is None else self._parties_of(owner)
        limits = [party.limits.message_length for party in parties]
        limits.append(self._rules.session.message_length)
        allowed = min([limit for limit in limits if limit is not None], default=length)
        if length > allowed:
            raise MessageTooLong(f"The message has {length} characters; {allowed} are allowed")

    def quotas(self, owner: str) -> tuple[Quota, ...]:
        """How many sessions there may be where `owner` makes one now."""
        if not (self._has_sessions or self._asker.get().has_own):
            return ()
        user, _ = split_owner(owner)
        allowed: dict[str, int] = {}
        for party in self._parties_of(owner):
            kind, sessions = party.subject.kind, party.limits.sessions
            if sessions is not None:
                name = user if kind == "user" else owner
                allowed[name] = min(allowed.get(name, sessions), sessions)
        return tuple([Quota(name, allowed[name]) for name in sorted(allowed)])

    def _parties_of(self, owner: str) -> tuple[Party, ...]:
        """Those of the asker, who may act for an end user that only a body has named."""
        asker, limits = self._asker.get(), self._rules.end_user
        if limits is NO_LIMITS or owner == asker.end_user or split_owner(owner)[1] is None:
            return asker.parties
        return (*asker.parties, *_parties(("end_user", owner, limits)))

    @property
    def has_asker(self) -> bool:
        """Whether there may be limits to what is begun now."""
        return not self._is_open or bool(self._asker.get().parties)

    async def ticket(self, owner: str, *, keyed: bool = False) -> "Ticket":
        """What a turn of `owner`'s is admitted by.

        One that is `keyed` may be a turn that has begun before, and is not refused here.

        Raises:
            RateLimited, QuotaExceeded, Overloaded: it can be seen already that it is not admitted.
            StoreUnavailable: nobody can tell what was used.
        """
        asker = self._asker.get()
        parties = (*self._parties_of(owner), *self._server)
        for subject in self._ledger.unknown(parties):
            await self.read(subject)
        if not keyed and self._ledger.has_refused(self._tick()):  # else the store asks in time
            self._ledger.check_turn(parties, self.moment)
        session = self._rules.session
        is_counted = session is NO_LIMITS or asker.session is not None
        return Ticket(self, parties, None if is_counted else session)

    def check_known(self, parties: Sequence[Party]) -> None:
        """Raises Unread: of one of them it must be read what it has used."""
        for subject in self._ledger.unknown(parties):
            raise Unread(subject)

    async def read(self, subject: Subject) -> None:
        """Read what a subject has used of days and months, unless it is known."""
        spent = await self._store.get_spent(subject)
        self._ledger.learn(subject, spent, self.moment)

    def reserve(self, parties: Sequence[Party], estimate: Estimate) -> Reservation:
        """Raises as `Ledger.reserve`."""
        return self._ledger.reserve(parties, estimate, self.moment)

    def settle(self, reservation: Reservation, tokens: int, cost: int) -> None:
        self._ledger.settle(reservation, tokens, cost, self.moment)

    # --- By the clock --------------------------------------------------------------------------

    async def keep(self) -> None:
        """Keep what has been used of days and months since the last time, if it can be kept."""
        while news := self._ledger.take_news(self._now(), _BATCH):
            try:
                await self._store.keep_spent(news)
            except BaseException as error:
                self._ledger.kept(failed=True)
                if isinstance(error, StoreUnavailable):
                    return  # the store has said so; the next time, then
                raise
            self._ledger.kept()

    def forget(self) -> None:
        """Drop those who were not seen for a minute."""
        self._ledger.forget(self._tick())


class Ticket:
    """One turn's way through the gate: it reserves when it begins, and settles when it ends."""

    __slots__ = ("_gate", "_parties", "_reservation", "_session")

    def __init__(self, gate: Gate, parties: tuple[Party, ...], session: Limits | None) -> None:
        """`session` are the limits of the turn's session, unless it is among the parties."""
        self._gate = gate
        self._parties = parties
        self._session = session
        self._reservation: Reservation | None = None

    def reserve(self, session_id: str | None, estimate: Estimate) -> None:
        """Room for the turn, whose session is known now; None if it has none.

        A second time, it is in place of the first.

        Raises:
            RateLimited, QuotaExceeded, Overloaded: there is not enough left.
            Unread: the session was not seen lately.
        """
        self._release()
        parties = self._parties
        if self._session is not None and session_id is not None:
            session = _parties(("session", session_id, self._session))
            self._gate.check_known(session)
            parties = (*parties, *session)
        self._reservation = self._gate.reserve(parties, estimate)

    def settle(self, tokens: int, cost: int) -> None:
        """The turn has ended and used so much; nothing if it never began. Once is enough."""
        self._release(tokens, cost)

    def _release(self, tokens: int = 0, cost: int = 0) -> None:
        reservation, self._reservation = self._reservation, None
        if reservation is not None:
            self._gate.settle(reservation, tokens, cost)


def _parties(*named: tuple[Kind, str | None, Limits]) -> tuple[Party, ...]:
    """Those of them who are there and have any limit."""
    return tuple(
        [
            Party(Subject(kind, name), limits)
            for kind, name, limits in named
            if name is not None and limits is not NO_LIMITS and limits != NO_LIMITS
        ]
    )


def _network(address: str) -> str:
    if ":" not in address:
        return address
    try:
        return str(IPv6Address(int(IPv6Address(address.partition("%")[0])) >> 64 << 64))
    except ValueError:
        return address
