"""What happens in a reply while it is made.

Two small languages. A provider speaks `ProviderEvent`s to the engine; a reply speaks
`ReplyEvent`s to whoever follows it. Both are closed: match them exhaustively.
"""

import msgspec

from turnkeeper.domain import Finish, Item, Turn, TurnRef, Usage

# --- From a provider ---------------------------------------------------------------------------


class TextDelta(msgspec.Struct, frozen=True):
    """The next words of the reply; never empty."""

    text: str


class RefusalDelta(msgspec.Struct, frozen=True):
    """The next words of the reply, by which the model declines; never empty."""

    text: str


class ReasoningDelta(msgspec.Struct, frozen=True):
    """The next words of what the model thinks before it replies; never empty."""

    text: str


class ToolCallDelta(msgspec.Struct, frozen=True):
    """A call of a tool, or more of its arguments.

    `index` counts the calls of a reply from 0; the first delta of each has its id and its name,
    later ones have both empty.
    """

    index: int
    call_id: str
    name: str
    arguments: str


class Finished(msgspec.Struct, frozen=True):
    """Why the model stopped."""

    reason: Finish


class UsageReport(msgspec.Struct, frozen=True):
    """The provider's own count of tokens; the last report of a call counts."""

    usage: Usage


ReplyDelta = TextDelta | RefusalDelta | ReasoningDelta | ToolCallDelta
ProviderEvent = ReplyDelta | Finished | UsageReport


# --- To a follower -----------------------------------------------------------------------------


class Started(msgspec.Struct, frozen=True):
    """The model is being called. A queued turn starts when its place in the queue comes."""

    turn: Turn


class Grew(msgspec.Struct, frozen=True):
    """`text` was added; the reply is now `end` characters (code points) long."""

    text: str
    end: int


class Ended(msgspec.Struct, frozen=True):
    """The turn is over and stored. `text` is the whole reply, or the part that was made.

    `replace` tells a follower who already has more characters than survived to start over
    from `text`. `items` is all that the reply consists of, in order, where that is more than its
    text: reasoning, a refusal, calls of tools.
    """

    turn: Turn
    text: str
    replace: bool = False
    items: tuple[Item, ...] = ()


# A follower of the text is told refusals as `Grew`, and calls of tools only at the end.
ReplyEvent = Started | Grew | RefusalDelta | ReasoningDelta | ToolCallDelta | Ended


class TurnEvent(msgspec.Struct, frozen=True):
    """What happens in one of the turns of a session that is followed as a whole."""

    turn: TurnRef
    event: ReplyEvent
