"""The words of Turnkeeper as records: sessions, items, turns, models, documents.

Frozen, made of plain values, without I/O. Times are integers: milliseconds since 1970 in UTC.
Ids are made here and nowhere else; DESIGN: "made by the server, unguessable, one format".
"""

import re
from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Annotated, Any, Literal, get_args

import msgspec
from msgspec import UNSET, Meta, UnsetType

from turnkeeper.errors import InvalidRequest, SessionNotFound
from turnkeeper.histograms import Spread

# --- Ids ---------------------------------------------------------------------------------------

_DIGITS = "0123456789abcdefghijklmnopqrstuv"
_DIGIT_PAIRS = [a + b for a in _DIGITS for b in _DIGITS]
_SESSION_ID = re.compile(r"s[0-9a-v]{26}")
_TURN_ID = re.compile(r"t([0-9a-v]{26})_([1-9][0-9]{0,8})")
_KEY_ID = re.compile(r"k[0-9a-v]{10}")
_DOCUMENT_ID = re.compile(r"d[0-9a-v]{26}")
_SECTION_ID = re.compile(r"c[0-9a-v]{26}")
_MESSAGE_ID = re.compile(r"m([0-9a-v]{26})_([1-9][0-9]{0,8})_(0|[1-9][0-9]{0,8})")


def make_session_id(microseconds: int, random: int) -> str:
    """An id for a session created `microseconds` after 1970: `s` and 26 digits in base 32.

    They are 54 bits of time and the 76 bits of `random` that make the id unguessable. The time
    in front keeps sessions made together close together in the database, and puts ids in order
    of creation.
    """
    return "s" + _timed_digits(microseconds, random)


def _timed_digits(microseconds: int, random: int) -> str:
    number = (microseconds & ((1 << 54) - 1)) << 76 | random
    return "".join([_DIGIT_PAIRS[number >> shift & 1023] for shift in range(120, -10, -10)])


def is_session_id(text: str) -> bool:
    """Whether `text` has the form of an id that only the server makes."""
    return _SESSION_ID.fullmatch(text) is not None


def make_document_id(microseconds: int, random: int) -> str:
    """An id for a document: `d` and 26 digits, made like those of a session."""
    return "d" + _timed_digits(microseconds, random)


def is_document_id(text: str) -> bool:
    return _DOCUMENT_ID.fullmatch(text) is not None


def make_section_id(microseconds: int, random: int) -> str:
    """An id for a section of a document: `c` and 26 digits, made like those of a session."""
    return "c" + _timed_digits(microseconds, random)


def is_section_id(text: str) -> bool:
    return _SECTION_ID.fullmatch(text) is not None


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


class MessageRef(msgspec.Struct, frozen=True):
    """Where a message lives: its session, the number of its turn, its position there."""

    session_id: str
    turn: int
    position: int

    @property
    def id(self) -> str:
        return f"m{self.session_id[1:]}_{self.turn}_{self.position}"


def parse_message_id(text: str) -> MessageRef | None:
    """The message that `text` names, or None when it has not the form of a message's id."""
    match = _MESSAGE_ID.fullmatch(text)
    return MessageRef("s" + match[1], int(match[2]), int(match[3])) if match else None


def make_revision_id(random: int) -> str:
    """An id for a revision: `r` and 26 digits in base 32, of 130 bits of `random`."""
    return "r" + "".join([_DIGIT_PAIRS[random >> shift & 1023] for shift in range(120, -10, -10)])


def make_key_id(random: int) -> str:
    """An id for an API key, which is no secret: `k` and 10 digits in base 32, of 50 bits."""
    return "k" + "".join([_DIGIT_PAIRS[random >> shift & 1023] for shift in range(40, -10, -10)])


def is_key_id(text: str) -> bool:
    return _KEY_ID.fullmatch(text) is not None


# --- Which session a caller means --------------------------------------------------------------

ALIAS_LENGTH = 128
_ALIAS_CHARACTERS = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._:-")


class ById(msgspec.Struct, frozen=True):
    """A session by the id the server gave it: it exists, or the caller is wrong."""

    id: str


class ByAlias(msgspec.Struct, frozen=True):
    """A session by the id its client chose. With `create`, one nobody used yet makes a session."""

    alias: str
    create: bool = False


SessionChoice = ById | ByAlias


def choose_session(text: str) -> SessionChoice:
    """Which session a caller means who may name new ones: an id of ours, else an alias.

    Raises:
        InvalidRequest: neither could be.
    """
    if is_session_id(text):
        return ById(text)
    if _is_alias(text):
        return ByAlias(text, create=True)
    raise InvalidRequest(
        f"session_id must be 1 to {ALIAS_LENGTH} characters of A-Z a-z 0-9 . _ : -"
    )


def find_session(text: str) -> SessionChoice:
    """Which session a caller means that must be there: an id of ours, else an alias.

    Raises:
        SessionNotFound: neither could be, so nobody need look.
    """
    if is_session_id(text):
        return ById(text)
    if _is_alias(text):
        return ByAlias(text)
    raise SessionNotFound("Session not found")


def _is_alias(text: str) -> bool:
    return 0 < len(text) <= ALIAS_LENGTH and _ALIAS_CHARACTERS.issuperset(text)


# --- Items: what a session keeps, in order -----------------------------------------------------


class TextPart(msgspec.Struct, frozen=True, tag="text"):
    text: str


class ImagePart(msgspec.Struct, frozen=True, tag="image"):
    """A picture by its address or as a data URI: passed on as it is, never fetched by us."""

    url: str
    detail: str | None = None


class RefusalPart(msgspec.Struct, frozen=True, tag="refusal"):
    """Words by which a model declines to answer, where its provider tells them apart."""

    text: str


Part = TextPart | ImagePart | RefusalPart


class Message(msgspec.Struct, frozen=True, tag="message", omit_defaults=True):
    """Words of one speaker. `role` is `user`, `assistant`, `system` or `developer`.

    `parts` is what it consists of, in order, where that is more than `text`, which is then all
    the words among them.
    """

    role: str
    text: str
    parts: tuple[Part, ...] = ()


class ToolCall(msgspec.Struct, frozen=True, tag="tool_call", omit_defaults=True):
    """The model asks for a function; `arguments` is the JSON text it wrote, kept exactly.

    Where the tool is `custom`, they are the one string that it takes.
    """

    call_id: str
    name: str
    arguments: str
    custom: bool = False


class ToolResult(msgspec.Struct, frozen=True, tag="tool_result", omit_defaults=True):
    """What the client's function gave back for the call of the same `call_id`.

    `parts` as in a `Message`.
    """

    call_id: str
    output: str
    custom: bool = False
    parts: tuple[Part, ...] = ()


class Reasoning(msgspec.Struct, frozen=True, tag="reasoning"):
    """What the model thought aloud before its reply; shown to clients, not to the model again."""

    text: str


class Compaction(msgspec.Struct, frozen=True, tag="compaction"):
    """What a model has told of a conversation, in whose place its client has put it."""

    text: str


Item = Message | ToolCall | ToolResult | Reasoning | Compaction


class KeptItem(msgspec.Struct, frozen=True):
    """An item in its place, order in a session being (turn, position); and its `item_weight`."""

    turn: int
    position: int
    item: Item
    weight: int


def divide(items: Sequence[KeptItem]) -> tuple[Sequence[KeptItem], Sequence[KeptItem]]:
    """The items of a turn: what it answers, which may hold older replies, and its own reply."""
    place = len(items)
    while place and _is_made(items[place - 1].item):
        place -= 1
    return items[:place], items[place:]


def _is_made(item: Item) -> bool:
    """Whether it may be of a model's making, and not of a client's alone."""
    if isinstance(item, Message):
        return item.role == "assistant"
    return isinstance(item, Reasoning | ToolCall)


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


class Place(msgspec.Struct, frozen=True, order=True):
    """Where an item stands in its session."""

    turn: int
    position: int


class Summary(msgspec.Struct, frozen=True):
    """What a model has told of a session, from its beginning up to and with the `last` place."""

    last: Place
    text: str


ITEM_OVERHEAD = 16  # bytes a provider's framing of one item costs, about four tokens
IMAGE_WEIGHT = 4096  # bytes that a picture counts for: about a thousand tokens, as most models do


def item_weight(item: Item) -> int:
    """How much room an item takes in a prompt: its UTF-8 bytes and a little for its framing."""
    match item:
        case Message(text=text, parts=()) | Reasoning(text=text) | Compaction(text=text):
            return len(text.encode()) + ITEM_OVERHEAD
        case Message(text=text, parts=parts) | ToolResult(output=text, parts=parts):
            images = sum(isinstance(part, ImagePart) for part in parts)
            return len(text.encode()) + images * IMAGE_WEIGHT + ITEM_OVERHEAD
        case ToolCall(name=name, arguments=arguments):
            return len(name.encode()) + len(arguments.encode()) + ITEM_OVERHEAD


def counts_as_message(item: Item) -> bool:
    """The seeds count user and assistant messages with text, nothing else."""
    return isinstance(item, Message) and item.role in ("user", "assistant") and item.text != ""


def texts_of(item: Item) -> list[str]:
    """Every text that an item is kept with."""
    match item:
        case Message(role=role, text=text, parts=parts):
            return [role, text, *map(_text_of_part, parts)]
        case ToolCall(call_id=call_id, name=name, arguments=arguments):
            return [call_id, name, arguments]
        case ToolResult(call_id=call_id, output=output, parts=parts):
            return [call_id, output, *map(_text_of_part, parts)]
        case Reasoning(text=text) | Compaction(text=text):
            return [text]


def _text_of_part(part: Part) -> str:
    """A picture is no text: its data URI may be long, and is of no other letters."""
    return "" if isinstance(part, ImagePart) else part.text


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
    """Tokens of one turn. `estimated` when the provider did not count them itself.

    Of the prompt's, `cached_tokens` were remembered by the provider; of the reply's,
    `reasoning_tokens` were thought and not said; 0 where it does not say.
    """

    prompt_tokens: int
    completion_tokens: int
    estimated: bool = False
    cached_tokens: int = 0
    reasoning_tokens: int = 0

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
    summarised: bool = False  # a summary stood for what was dropped


# Why a model stopped: it was done, had said as much as it may, calls tools, or was filtered.
Finish = Literal["stop", "length", "tool_calls", "content_filter"]


class Turn(msgspec.Struct, frozen=True):
    """One user message and the reply to it, as stored.

    `finish` is why the model stopped; None before that, and where it did not say.
    """

    ref: TurnRef
    status: TurnStatus
    model: str
    created_at: int
    finished_at: int | None = None
    usage: Usage | None = None
    failure: Failure | None = None
    context: Context | None = None
    finish: Finish | None = None


class Ending(msgspec.Struct, frozen=True):
    """How a turn ends: everything `end_turn` writes beside the turn's place and the time.

    Attributes:
        checkpointed: some of the text was kept while it was made, and can go now.
        model: the one that made the reply, if another than was asked first; None if not.
        items: all that the reply consists of, in order, where that is more than its text.
        finish: why the model stopped.
        cuts: how the reply came in pieces (`reply.Reply.cuts`), where someone counted them.
        first_delta: ms from the message to the first word; None if there was none.
    """

    status: TurnStatus
    text: str
    usage: Usage | None = None
    failure: Failure | None = None
    context: Context | None = None
    checkpointed: bool = False
    model: str | None = None
    items: tuple[Item, ...] = ()
    finish: Finish | None = None
    cuts: str | None = None
    first_delta: int | None = None


class Compacted(msgspec.Struct, frozen=True):
    """What can stand in the place of a conversation, and what it cost to have it told."""

    items: tuple[Item, ...]
    usage: Usage


# --- Requests that are sent again ----------------------------------------------------------------


class IdempotencyKey(msgspec.Struct, frozen=True):
    """An owner's own name for a request: sent again under it, it is not done again.

    `request` tells requests apart.
    """

    owner: str
    key: str
    request: str


# --- Deployments -------------------------------------------------------------------------------

Temperature = Annotated[float, Meta(ge=0, le=2)]
TopP = Annotated[float, Meta(gt=0, le=1)]
MaxTokens = Annotated[int, Meta(ge=1, le=10_000_000)]
StopText = Annotated[str, Meta(min_length=1, max_length=200)]
ModelId = Annotated[str, Meta(min_length=1, max_length=200)]
Seconds = Annotated[int, Meta(ge=1, le=3_153_600_000)]  # a century at most


class Sampling(msgspec.Struct, frozen=True):
    """How a model is to choose its words; None is as the model does by itself."""

    temperature: float | None = None
    top_p: float | None = None
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()


AS_IT_IS = Sampling()


class Tool(msgspec.Struct, frozen=True):
    """A function that the model may call and the client runs.

    Attributes:
        parameters: a JSON schema of its arguments, as the client gave it.
        strict: whether the model must keep to that; None is as the provider does by itself.
        custom: it takes one string, of whatever form, and no schema.
    """

    name: str
    description: str | None = None
    parameters: Mapping[str, Any] | None = None
    strict: bool | None = None
    custom: bool = False


class ChosenTool(msgspec.Struct, frozen=True):
    """The one tool that the model is to call."""

    name: str


class JsonFormat(msgspec.Struct, frozen=True):
    """The reply is to be JSON: of that `schema`, or any object where there is none."""

    name: str | None = None
    description: str | None = None
    schema: Mapping[str, Any] | None = None
    strict: bool | None = None


class Options(msgspec.Struct, frozen=True):
    """What a caller asks of one turn beside its words. It goes before what the session has.

    Attributes:
        instructions: in place of the system message of what prompts begin with; None leaves it.
        tool_choice: None is as the model does by itself.
        reply_format: None for plain text.
        reasoning_effort: as the provider names it.
        overflow: as in a `Blueprint`; None leaves that.
        extra: what else the provider is sent, as it is, by its own names.
        alone: the model is shown what is asked and nothing of the blueprint's, nor its sampling.
        frame: in place of what the session's prompts begin with; None leaves that.
    """

    sampling: Sampling = AS_IT_IS
    instructions: str | None = None
    tools: tuple[Tool, ...] = ()
    tool_choice: Literal["auto", "none", "required"] | ChosenTool | None = None
    parallel_tool_calls: bool | None = None
    reply_format: JsonFormat | None = None
    reasoning_effort: str | None = None
    overflow: Literal["truncate", "summarise", "error"] | None = None
    extra: Mapping[str, Any] = {}
    alone: bool = False
    frame: tuple[Message, ...] | None = None


NO_OPTIONS = Options()


class Example(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A message prepared in a blueprint, which every prompt begins with."""

    role: Literal["system", "user", "assistant"]
    content: str


class Blueprint(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What a deployment makes sessions of: its prompt, its model and its settings.

    Attributes:
        system_message: what every prompt begins with; `{name}` stands for a variable.
        messages: examples that follow it, with variables too.
        model: None for the server's default model.
        fallback_models: asked in order where the one before cannot make a reply.
        context_window: tokens of prompt and reply, where fewer than the model holds are wanted.
        overflow: what happens when a session no longer fits: its oldest turns are left out of
            the prompt, a summary of them takes their place, or the message is refused.
        unused_variables: whether a variable that no placeholder names is told to the model.
        on_disconnect: what becomes of a turn when the last client that waits for it goes away.
        concurrency: what happens to a message while a reply is made in its session.
        idle_timeout: seconds without a change after which a session is deleted; None for never.
        max_age: seconds from its creation after which it is deleted; None for never.
    """

    system_message: str = ""
    messages: Annotated[tuple[Example, ...], Meta(max_length=1000)] = ()
    model: ModelId | None = None
    fallback_models: Annotated[tuple[ModelId, ...], Meta(max_length=16)] = ()
    temperature: Temperature | None = None
    top_p: TopP | None = None
    max_tokens: MaxTokens | None = None
    stop: Annotated[tuple[StopText, ...], Meta(max_length=4)] = ()
    context_window: Annotated[int, Meta(ge=256, le=100_000_000)] | None = None
    overflow: Literal["truncate", "summarise", "error"] = "truncate"
    unused_variables: Literal["tell", "ignore"] = "tell"
    on_disconnect: Literal["continue", "cancel"] = "continue"
    concurrency: Literal["queue", "reject", "interrupt"] = "queue"
    idle_timeout: Seconds | None = None
    max_age: Seconds | None = None


class Revision(msgspec.Struct, frozen=True):
    """A blueprint as it was published, never changed again: seed 004's engine state.

    `number` counts the revisions of a deployment from 1.
    """

    id: str
    deployment: str
    number: int
    blueprint: Blueprint
    created_at: int


class Deployment(msgspec.Struct, frozen=True):
    """A name that sessions are made under, and the revision that new ones get.

    `source` is `file` when the configuration defines it, and then nothing else may change it.
    """

    name: str
    revision: Revision
    source: Literal["file", "api"]
    created_at: int
    updated_at: int


class ChatConfig(msgspec.Struct, frozen=True):
    """What of a session's `config` acts on its turns; its other keys are its client's own.

    `instructions` are added to the system message; `detailed_instructions` are the same by
    another name, where there are no `instructions`.
    """

    model: ModelId | None = None
    temperature: Temperature | None = None
    instructions: str | None = None
    detailed_instructions: str | None = msgspec.field(default=None, name="detailedInstructions")


class Kept(msgspec.Struct, frozen=True):
    """What the sender of a message wants kept with its session; None leaves a thing as it is."""

    config: Mapping[str, Any] | None
    context_documents: Sequence[str] | None


class Basis(msgspec.Struct, frozen=True):
    """What a session's turns are made on: all that was fixed when it was made, and its model.

    Attributes:
        section: the id of the section whose chat it is; None for any other session.
        config: None if it has none.
    """

    revision: Revision
    variables: Mapping[str, str]
    model: str | None
    section: str | None = None
    config: ChatConfig | None = None


# --- Sessions ----------------------------------------------------------------------------------


class SessionSummary(msgspec.Struct, frozen=True):
    """A session in a list. `alias` is the id its client chose, if it chose one."""

    id: str
    alias: str | None
    message_count: int


class Session(msgspec.Struct, frozen=True):
    """A session itself, without what was said in it.

    Attributes:
        title: its own, or one made of its first message; None before there is one.
        model: the one last asked for; None for its deployment's.
        revision: the id of the revision it was made with.
        running: the number of the turn that runs; None if none does.
        open_turns: how many of its turns are queued or running.
        version: another one after every change to the session or what was said in it.
        section, document: the section whose chat it is, and the document that is in.
        config, context_documents: what its client keeps with it.
        end_user: the one it belongs to, if an application made it for one.
    """

    id: str
    alias: str | None
    title: str | None
    model: str | None
    deployment: str
    revision: str
    message_count: int
    running: int | None
    open_turns: int
    pinned: bool
    archived: bool
    version: int
    created_at: int
    updated_at: int
    variables: Mapping[str, str]
    metadata: Mapping[str, Any]
    section: str | None
    document: str | None
    config: Mapping[str, Any]
    context_documents: Sequence[str]
    end_user: str | None = None

    @property
    def stamp(self) -> str:
        """Another one after every change, and another than that of any other session."""
        return make_stamp(self.id, self.version)


def make_stamp(id_: str, version: int) -> str:
    return f"{id_}.{version}"


class SessionChange(msgspec.Struct, frozen=True):
    """What to change of a session: UNSET leaves a thing as it is, None takes it away.

    Without a title of its own a session has one that is made of its first message.
    """

    title: str | UnsetType | None = UNSET
    model: str | UnsetType | None = UNSET
    metadata: Mapping[str, Any] | UnsetType = UNSET
    pinned: bool | UnsetType = UNSET
    archived: bool | UnsetType = UNSET


class SessionFilter(msgspec.Struct, frozen=True):
    """Which sessions are wanted in a list; None for either kind, `title` for a part of it."""

    archived: bool | None = None
    pinned: bool | None = None
    deployment: str | None = None
    title: str | None = None


TITLE_LENGTH = 60


def make_title(text: str) -> str:
    """A title for a session that begins with these words: at most 60 characters, cut at a word."""
    words = " ".join(text.lstrip()[: 8 * TITLE_LENGTH].split())
    if len(words) <= TITLE_LENGTH:
        return words
    cut = words.rfind(" ", 0, TITLE_LENGTH)
    return words[: cut if cut > 0 else TITLE_LENGTH - 1].rstrip() + "…"


class ListedItem(msgspec.Struct, frozen=True):
    """An item as someone reads it back: in its place, with how its turn stands.

    Attributes:
        status: None for an item that belongs to no turn.
        model: which made it; None for all but a turn's reply.
        at: when it was stored.
    """

    turn: int
    position: int
    item: Item
    status: TurnStatus | None
    model: str | None
    at: int


class Version(msgspec.Struct, frozen=True):
    """One of several messages that were, at one time or another, said at the same place.

    `message` is None for a reply that has no word, or none yet.
    """

    turn: int
    selected: bool
    message: ListedItem | None


# --- Documents ---------------------------------------------------------------------------------

SectionType = Literal["header", "text", "reference"]
Level = Annotated[int, Meta(ge=1, le=9)]


class Document(msgspec.Struct, frozen=True):
    """A document without its sections. `version` counts changes, those of its sections too."""

    id: str
    owner: str
    title: str
    sections: int
    version: int
    created_at: int
    updated_at: int

    @property
    def stamp(self) -> str:
        """Another one after every change to the document or to anything in it."""
        return make_stamp(self.id, self.version)


class SectionDraft(msgspec.Struct, frozen=True):
    """A section as its author writes it."""

    type: SectionType = "text"
    level: Level = 1
    title: str = ""
    content: str = ""


class Section(msgspec.Struct, frozen=True):
    """A section of a document.

    Attributes:
        session_id: its chat, which may have been deleted since; None before there was one.
        version: counts changes to what is written.
    """

    id: str
    document_id: str
    type: SectionType
    level: int
    title: str
    session_id: str | None
    version: int
    created_at: int
    updated_at: int
    content: str

    @property
    def stamp(self) -> str:
        """Another one after every change to what is written."""
        return make_stamp(self.id, self.version)


class SectionSize(msgspec.Struct, frozen=True):
    """A section's id, and the bytes of its text."""

    id: str
    size: int


class SectionChange(msgspec.Struct, frozen=True):
    """What to change of a section: UNSET leaves a thing as it is.

    `position` counts from 0 among the document's sections; what is beyond the end is the end.
    """

    title: str | UnsetType = UNSET
    content: str | UnsetType = UNSET
    type: SectionType | UnsetType = UNSET
    level: int | UnsetType = UNSET
    position: int | UnsetType = UNSET


class OutlineEntry(msgspec.Struct, frozen=True):
    """A section in its document's outline. Levels count from 1."""

    level: int
    title: str


class Passage(msgspec.Struct, frozen=True):
    """A section amid its document, as a model is to see it.

    Attributes:
        document: the document's title.
        here: the section itself.
        before, after: its neighbours in the outline, in order; not all, if there are many.
        more_before, more_after: how many sections there are beyond these.
    """

    document: str
    here: OutlineEntry
    content: str
    before: Sequence[OutlineEntry] = ()
    after: Sequence[OutlineEntry] = ()
    more_before: int = 0
    more_after: int = 0


# --- Models and prompts ------------------------------------------------------------------------


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


class TokenCount(msgspec.Struct, frozen=True):
    """What was learned of how a model counts.

    Attributes:
        bytes_per_token: in the mean, of `item_weight`s; `deviation` is how far reports stray.
        error: by what part of what was reported our guesses were wrong, in the mean.
        reports: how many it was learned from.
    """

    model: str
    bytes_per_token: float
    deviation: float
    error: float
    reports: int


class ModelChoice(msgspec.Struct, frozen=True):
    """The model of a turn, and how much history it can be shown (in `item_weight`s)."""

    model: str
    history_weight: int


class Prompt(msgspec.Struct, frozen=True):
    """What a model is asked: its id, the items it is shown in order, how to choose its words.

    Of the `options` the provider obeys the tools, the form of the reply, and what is extra; the
    rest is in the other attributes.
    """

    model: str
    items: tuple[Item, ...]
    sampling: Sampling = AS_IT_IS
    options: Options = NO_OPTIONS


# --- Users -------------------------------------------------------------------------------------

Role = Literal["user", "admin"]
USER_NAME = "1 to 128 characters of letters, digits and . _ - @ + | :"
_USER_NAME = re.compile(r"[A-Za-z0-9._@+|:-]{1,128}")  # `/` stands before an end user's


def is_user_name(text: str) -> bool:
    return _USER_NAME.fullmatch(text) is not None


class User(msgspec.Struct, frozen=True):
    """Who may come in. An admin also sees to deployments; what users say is theirs alone.

    Attributes:
        has_password: whether there is one to log in with. The password is never kept, and its
            hash stays in the store.
    """

    name: str
    role: Role
    disabled: bool
    has_password: bool
    created_at: int


class Login(msgspec.Struct, frozen=True):
    """A user who has given the password, in one browser; `hash` is that of its token."""

    hash: str
    user: str
    created_at: int
    seen_at: int


Scope = Literal["chat", "documents", "read", "admin"]
ALL_SCOPES: frozenset[Scope] = frozenset(get_args(Scope))
USER_SCOPES = ALL_SCOPES - {"admin"}


def scopes_of(role: Role) -> frozenset[Scope]:
    """What someone in this role may do at most."""
    return ALL_SCOPES if role == "admin" else USER_SCOPES


Count = Annotated[int, Meta(ge=0, le=1_000_000_000_000)]


class Limits(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """How much someone may do; None is as much as anyone may.

    Attributes:
        requests_per_minute: of any kind.
        tokens_per_minute, tokens_per_day: of prompts and replies together.
        cost_per_month: in the currency of the models' prices.
        running_turns: queued or running at once.
        open_streams: at once.
        sessions: that are kept at once.
        message_length: characters of one message.
    """

    requests_per_minute: Count | None = None
    tokens_per_minute: Count | None = None
    tokens_per_day: Count | None = None
    cost_per_month: Annotated[float, Meta(ge=0, le=1e12)] | None = None
    running_turns: Count | None = None
    open_streams: Count | None = None
    sessions: Count | None = None
    message_length: Count | None = None


NO_LIMITS = Limits()


class Key(msgspec.Struct, frozen=True):
    """An API key as it is kept: without its secret, which nobody can read again.

    Attributes:
        scopes: what it may do, as far as its user may.
        limits: its own, which go before what all keys have.
        expires_at: None for never.
        used_at: when it was last used, to the minute; None for never.
        old_until: until when the secret before its last rotation is good; None if there is none.
    """

    id: str
    user: str
    name: str
    created_at: int
    scopes: frozenset[Scope] = ALL_SCOPES
    limits: Limits = NO_LIMITS
    expires_at: int | None = None
    used_at: int | None = None
    old_until: int | None = None


class SessionToken(msgspec.Struct, frozen=True):
    """What is good for one session alone, and may be given to a browser.

    Attributes:
        user: who made it.
        key: the id of the key it was made with, and does not outlive; None if with none.
    """

    session_id: str
    user: str
    key: str | None
    expires_at: int


class Identity(msgspec.Struct, frozen=True):
    """Who an outside identity provider says that someone is, and until when."""

    name: str
    scopes: frozenset[Scope]
    expires_at: int


class Caller(msgspec.Struct, frozen=True):
    """Who a request is from, and what for.

    Attributes:
        is_admin: an admin, by credentials that have the scope `admin`.
        key: the id of the API key that was shown, or that a session token was made with.
        end_user: for which of its own users an application acts.
        session: the id of the only session that there is for the caller; None for all.
        limits: those of the key, which go before what all keys have.
        role: the user's, whatever the credentials may do.
        expires_at: until when the credentials are good; None if that is not known.
    """

    name: str
    is_admin: bool
    key: str | None = None
    scopes: frozenset[Scope] = ALL_SCOPES
    end_user: str | None = None
    session: str | None = None
    limits: Limits = NO_LIMITS
    role: Role = "user"
    expires_at: int | None = None

    @property
    def owner(self) -> str:
        """Whose the things are that the caller makes and sees."""
        return make_owner(self.name, self.end_user)


# --- Owners ------------------------------------------------------------------------------------

END_USER_LENGTH = 256


def check_end_user(text: str) -> str:
    """`text` itself, if an application may call one of its users so.

    Raises:
        InvalidRequest
    """
    if not (0 < len(text) <= END_USER_LENGTH and text.isprintable() and text == text.strip()):
        raise InvalidRequest(
            f"The name of an end user has 1 to {END_USER_LENGTH} characters that can be printed,"
            " without spaces around it"
        )
    return text


def make_owner(user: str, end_user: str | None = None) -> str:
    """Whose a thing is: a user's, or that of one of the users that an application has: `user/name`.

    What names an owner sees what is that owner's; a user's name, also what is its end users'.
    """
    return user if end_user is None else f"{user}/{end_user}"


def split_owner(owner: str) -> tuple[str, str | None]:
    """The user and the end user, if there is one, of an owner."""
    user, slash, end_user = owner.partition("/")
    return user, end_user if slash else None


def is_for(owner: str, of: str) -> bool:
    """Whether `owner` may see what belongs to the owner `of`."""
    return of == owner or of.partition("/")[0] == owner


# --- What was used -----------------------------------------------------------------------------


class Sums(msgspec.Struct, frozen=True):
    """What some requests, and turns that have ended, have used together.

    Attributes:
        duration: ms that those that were completed took, together; `durations` how they are
            spread.
        first_delta: ms that it took until the first word, together; `first_deltas` how they are
            spread.
    """

    requests: int = 0
    completed: int = 0
    failed: int = 0
    cancelled: int = 0
    interrupted: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    duration: int = 0
    first_delta: int = 0
    durations: Spread = Spread()
    first_deltas: Spread = Spread()

    def __add__(self, other: "Sums") -> "Sums":
        return Sums(
            self.requests + other.requests,
            self.completed + other.completed,
            self.failed + other.failed,
            self.cancelled + other.cancelled,
            self.interrupted + other.interrupted,
            self.prompt_tokens + other.prompt_tokens,
            self.completion_tokens + other.completion_tokens,
            self.duration + other.duration,
            self.first_delta + other.first_delta,
            self.durations + other.durations,
            self.first_deltas + other.first_deltas,
        )
