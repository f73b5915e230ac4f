"""The words of Turnkeeper as records: sessions, items, turns, models.

Frozen, made of plain values, without I/O. Times are integers: milliseconds since 1970 in UTC.
Ids are made here and nowhere else; DESIGN: "made by the server, unguessable, one format".
"""

import re
from enum import StrEnum

import msgspec

from turnkeeper.errors import InvalidRequest

# --- Ids ---------------------------------------------------------------------------------------

_DIGITS = "0123456789abcdefghijklmnopqrstuv"
_DIGIT_PAIRS = [a + b for a in _DIGITS for b in _DIGITS]
_SESSION_ID = re.compile(r"s[0-9a-v]{26}")
_TURN_ID = re.compile(r"t([0-9a-v]{26})_([1-9][0-9]{0,8})")


def make_session_id(microseconds: int, random: int) -> str:
    """An id for a session created `microseconds` after 1970: `s` and 26 digits in base 32.

    They are 54 bits of time and the 76 bits of `random` that make the id unguessable. The time
    in front keeps sessions made together close together in the database, and puts ids in order
    of creation.
    """
    number = (microseconds & ((1 << 54) - 1)) << 76 | random
    return "s" + "".join([_DIGIT_PAIRS[number >> shift & 1023] for shift in range(120, -10, -10)])


def is_session_id(text: str) -> bool:
    """Whether `text` has the form of an id that only the server makes."""
    return _SESSION_ID.fullmatch(text) is not None


class TurnRef(msgspec.Struct, frozen=True):
    """Where a turn lives: its session and its number there, counted from 1, never used again."""

    session_id: str
    number: int

    @property
    def id(self) -> str:
        """The turn's id, as unguessable as its session's: every row is reached from it."""
        return f"t{self.session_id[1:]}_{self.number}"


def parse_turn_id(text: str) -> TurnRef | None:
    """The turn that `text` names, or None when it has not the form of a turn's id."""
    match = _TURN_ID.fullmatch(text)
    return TurnRef("s" + match[1], int(match[2])) if match else None


# --- Items: what a session keeps, in order -----------------------------------------------------


class Message(msgspec.Struct, frozen=True, tag="message"):
    """Words of one speaker. `role` is `user`, `assistant` or `system`."""

    role: str
    text: str


class ToolCall(msgspec.Struct, frozen=True, tag="tool_call"):
    """The model asks for a function; `arguments` is the JSON text it wrote, kept exactly."""

    call_id: str
    name: str
    arguments: str


class ToolResult(msgspec.Struct, frozen=True, tag="tool_result"):
    """What the client's function gave back for the call of the same `call_id`."""

    call_id: str
    output: str


class Reasoning(msgspec.Struct, frozen=True, tag="reasoning"):
    """What the model thought aloud before its reply; shown to clients, not to the model again."""

    text: str


Item = Message | ToolCall | ToolResult | Reasoning


class KeptItem(msgspec.Struct, frozen=True):
    """An item in its place, order in a session being (turn, position); and its `item_weight`."""

    turn: int
    position: int
    item: Item
    weight: int


class History(msgspec.Struct, frozen=True):
    """The newest part of a session, up to and with the items of one turn.

    Attributes:
        items: in order; as many as were asked for.
        total_weight: of all items that the turn's prompt could show, these included.
        message_count: how many messages of the session it could show, up to the turn's own.
    """

    items: tuple[KeptItem, ...]
    total_weight: int
    message_count: int


ITEM_OVERHEAD = 16  # bytes a provider's framing of one item costs, about four tokens


def item_weight(item: Item) -> int:
    """How much room an item takes in a prompt: its UTF-8 bytes and a little for its framing."""
    match item:
        case Message(text=text) | Reasoning(text=text) | ToolResult(output=text):
            return len(text.encode()) + ITEM_OVERHEAD
        case ToolCall(name=name, arguments=arguments):
            return len(name.encode()) + len(arguments.encode()) + ITEM_OVERHEAD


_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")


def check_text(text: str, name: str) -> str:
    """`text` itself, if every store can hold it.

    Raises:
        InvalidRequest: it holds U+0000 or a lone surrogate. `name` says which field it was.
    """
    if _UNSTORABLE.search(text):
        raise InvalidRequest(
            f"{name} holds a character that cannot be kept (U+0000 or half a pair)"
        )
    return text


def storable(text: str) -> str:
    """`text` with whatever no store can hold replaced by U+FFFD: for what a provider sends."""
    return _UNSTORABLE.sub("\ufffd", text)


# --- Turns -------------------------------------------------------------------------------------


class TurnStatus(StrEnum):
    QUEUED = "queued"
    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"
    INTERRUPTED = "interrupted"

    @property
    def terminal(self) -> bool:
        return self not in (TurnStatus.QUEUED, TurnStatus.RUNNING)


class Usage(msgspec.Struct, frozen=True):
    """Tokens of one turn. `estimated` when the provider did not count them itself."""

    prompt_tokens: int
    completion_tokens: int
    estimated: bool = False

    @property
    def total_tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens


class Failure(msgspec.Struct, frozen=True):
    """Why a turn failed: a code of `errors.py` and the sentence the caller was told."""

    code: str
    sentence: str
    retry_after: float | None = None


class Context(msgspec.Struct, frozen=True):
    """What of the session the model was shown."""

    messages_sent: int
    messages_dropped: int
    estimated_tokens: int


class Turn(msgspec.Struct, frozen=True):
    """One user message and the reply to it, as stored."""

    ref: TurnRef
    status: TurnStatus
    model: str
    created_at: int
    finished_at: int | None = None
    usage: Usage | None = None
    failure: Failure | None = None
    context: Context | None = None


class Ending(msgspec.Struct, frozen=True):
    """How a turn ends: everything `end_turn` writes beside the turn's place and the time.

    `checkpointed` says that some of the text was kept while it was made, and can go now.
    """

    status: TurnStatus
    text: str
    usage: Usage | None = None
    failure: Failure | None = None
    context: Context | None = None
    checkpointed: bool = False


# --- Sessions and models -----------------------------------------------------------------------


class SessionSummary(msgspec.Struct, frozen=True):
    """A session in a list. `alias` is the id its client chose, if it chose one."""

    id: str
    alias: str | None
    message_count: int


class Session(msgspec.Struct, frozen=True):
    """A session itself, without what was said in it.

    Attributes:
        model: the one last asked for; None for the server's default.
        open_turns: how many of its turns are queued or running.
    """

    id: str
    alias: str | None
    model: str | None
    message_count: int
    open_turns: int
    created_at: int
    updated_at: int


class ListedItem(msgspec.Struct, frozen=True):
    """An item as someone reads it back: in its place, with how its turn stands.

    `at` is when its turn was stored, for a reply when it ended. Both are None for an item that
    belongs to no turn.
    """

    turn: int
    position: int
    item: Item
    status: TurnStatus | None
    at: int | None


class Model(msgspec.Struct, frozen=True):
    """A model callers may choose.

    Attributes:
        context_window: tokens, prompt and reply together.
        images: whether it is said to understand them; None when nobody said.
        input_price, output_price: of a million tokens, in whatever currency they were given.
    """

    id: str
    name: str
    context_window: int
    images: bool | None = None
    input_price: float | None = None
    output_price: float | None = None


class ModelChoice(msgspec.Struct, frozen=True):
    """The model of a turn, and how much history it can be shown (in `item_weight`s)."""

    model: str
    history_weight: int


class Prompt(msgspec.Struct, frozen=True):
    """What a model is asked: its id and the items it is shown, in order."""

    model: str
    items: tuple[Item, ...]
