"""What happens in a reply while it is made.

Two small languages. A provider speaks `ProviderEvent`s to the engine; a reply speaks
`ReplyEvent`s to whoever follows it. Both are closed: match them exhaustively.
"""

import msgspec

from turnkeeper.domain import Turn, TurnRef, Usage

# --- From a provider ---------------------------------------------------------------------------


class TextDelta(msgspec.Struct, frozen=True):
    """The next words of the reply; never empty."""

    text: str


class UsageReport(msgspec.Struct, frozen=True):
    """The provider's own count of tokens; the last report of a call counts."""

    usage: Usage


ProviderEvent = TextDelta | UsageReport


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
    from `text`.
    """

    turn: Turn
    text: str
    replace: bool = False


ReplyEvent = Started | Grew | Ended


class TurnEvent(msgspec.Struct, frozen=True):
    """What happens in one of the turns of a session that is followed as a whole."""

    turn: TurnRef
    event: ReplyEvent
