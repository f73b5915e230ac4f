"""What they are told who count, log or trace what becomes of turns.

They are told afterwards, in one call, and change nothing: an observer neither waits nor raises.
Times are seconds of a clock that nobody can set.
"""

from collections.abc import Sequence
from typing import Protocol

import msgspec

from turnkeeper.domain import Prompt, Turn


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
