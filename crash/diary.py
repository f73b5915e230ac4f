"""What the clients did and what they were told: the evidence that the books are held against."""

import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

# What is asserted. A table of the report has a line for each.
WHOLE = "every acknowledged reply is stored, whole and to the letter"
KEPT = "every message whose turn a client knows of is stored"
ONE_TURN = "no key has two turns"
ONCE = "no message is stored twice, no session made twice"
ORDER = "messages stand in the order in which a client sent them"
OVER = "every turn is over"
SOON = "every turn is over 5 s after the start"
PARTIAL = "no reply is shorter than what a client had seen a second before"
RIGHT = "all text, stored or streamed, is the model's to the letter"
FINAL = "a turn that is over stays as it is, and is told as it is"
NUMBERS = "the turns of a session are numbered without gaps"
SUMS = "the sums of a session are those of its items"
LEFTOVERS = "nothing is left of checkpoints"
FILE = "the file passes SQLite's integrity check"
HTTP = "over HTTP the same is told as stands in the file"
REPLAY = "a key that is used again gets the same answer"
ANSWERS = "no answer is an error that nothing explains"

_OF_CLIENTS = (WHOLE, KEPT, ONE_TURN, ONCE, ORDER, PARTIAL, REPLAY, FINAL, HTTP, ANSWERS)
_OF_THE_FILE = (OVER, SOON, RIGHT, NUMBERS, SUMS, LEFTOVERS, FILE)
PROMISES = (*_OF_CLIENTS, *_OF_THE_FILE)


class Broken(msgspec.Struct, frozen=True):
    """A promise that was not kept, and what shows it."""

    promise: str
    evidence: str


class Ledger:
    """How often each promise was looked at, and where it was broken."""

    def __init__(self) -> None:
        self.checked: Counter[str] = Counter()
        self.broken: list[Broken] = []

    def expect(self, promise: str, holds: bool, evidence: str) -> None:
        self.checked[promise] += 1
        if not holds:
            self.broken.append(Broken(promise, evidence))


class Ending(msgspec.Struct, frozen=True):
    """What a client was told of a turn that is over; `text` None if nothing was said of it."""

    turn_id: str
    status: str
    text: str | None


@dataclass(eq=False)
class Ask:
    """One message that a client sent with a key of its own, and all it came to know of it.

    To have a turn tried again is an ask too, of the same message.

    Attributes:
        before: what the same client had said in the same room before, and knew to be stored.
        sightings: when a client had how many characters of the reply.
        left: the client went away for good, and does not know how it ended.
    """

    key: str
    message: str
    path: str
    body: Mapping[str, Any]
    reply_key: str
    before: "Ask | None" = None
    attempts: int = 0
    hang_ups: int = 0
    replays: int = 0
    left: bool = False
    turn_ids: set[str] = field(default_factory=set)
    sightings: list[tuple[float, int]] = field(default_factory=list)
    endings: list[Ending] = field(default_factory=list)

    @property
    def turn_id(self) -> str | None:
        return next(iter(self.turn_ids), None)

    def reply_in(self, answer: Any) -> str:
        """The text of the reply in an answer of 200."""
        reply = answer[self.reply_key]
        return reply if isinstance(reply, str) else str(reply["content"])

    def see(self, length: int) -> None:
        """Note that a client has so many characters of the reply now."""
        self.sightings.append((time.monotonic(), length))

    def seen_before(self, moment: float) -> int:
        """How many characters a client had at that moment."""
        return max((length for at, length in self.sightings if at <= moment), default=0)


@dataclass(eq=False)
class Diary:
    """Everything that the clients of a run have to say."""

    ledger: Ledger = field(default_factory=Ledger)
    asks: list[Ask] = field(default_factory=list)
    sessions: dict[str, set[str]] = field(default_factory=dict)  # by the key they were made with
    losses: int = 0  # connections that broke under a request, or could not be made
