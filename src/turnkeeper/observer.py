"""What they are told who count, log or trace what becomes of turns.

They are told afterwards, in one call, and change nothing: an observer neither waits nor raises.
Times are seconds of a clock that nobody can set.
"""

from collections.abc import Sequence
from typing import Protocol

import msgspec

from turnkeeper.domain import Prompt, Turn
from turnkeeper.histograms import Buckets


class ProviderCall(msgspec.Struct, frozen=True):
    """One call of a model, successful or not.

    Attributes:
        model: its id at the provider.
        first: when the first of the reply came; None if nothing did.
        error: a code of `errors.py`, `cancelled`, or None.
        again: it was made because the call before had failed.
    """

    provider: str
    model: str
    began: float
    first: float | None
    ended: float
    error: str | None = None
    again: bool = False


class Lived(msgspec.Struct, frozen=True):
    """A turn that is over, and what it has lived through.

    Attributes:
        turn: as it ended; without a session if nothing of it is kept.
        began: when its message came; `started` when its place in the queue had come, if it ever
            did; `first` when the first of the reply came.
        prompt: what the model was asked last; it holds what people have said.
        text: what the reply says.
    """

    owner: str
    turn: Turn
    began: float
    started: float | None
    first: float | None
    ended: float
    calls: Sequence[ProviderCall]
    prompt: Prompt | None
    text: str


class Commits:
    """How a database's commits went: written by its driver, read by whoever wants to know.

    Attributes:
        seconds: what each took.
        transactions: how many were in each.
    """

    def __init__(self) -> None:
        self.seconds = Buckets(
            (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1, 5)
        )
        self.transactions = Buckets((1, 2, 4, 8, 16, 32, 64))

    def add(self, seconds: float, transactions: int) -> None:
        self.seconds.add(seconds)
        self.transactions.add(transactions)


class Observer(Protocol):
    """Whoever wants to know."""

    def turn_ended(self, lived: Lived) -> None: ...

    def call_ended(self, call: ProviderCall) -> None: ...

    def strays_settled(self, count: int) -> None: ...

    def sessions_expired(self, count: int) -> None: ...


class Nobody:
    """An observer that does not care."""

    def turn_ended(self, lived: Lived) -> None: ...

    def call_ended(self, call: ProviderCall) -> None: ...

    def strays_settled(self, count: int) -> None: ...

    def sessions_expired(self, count: int) -> None: ...


NOBODY: Observer = Nobody()
