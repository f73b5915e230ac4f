"""Transactions as a type, and what rows and records are to each other."""

from collections.abc import Generator, Mapping, Sequence
from typing import Any, TypeVar, assert_never

import msgspec

from turnkeeper.domain import (
    Blueprint,
    ChatConfig,
    Compaction,
    Context,
    Failure,
    Item,
    ListedItem,
    Message,
    Part,
    Reasoning,
    Revision,
    Session,
    ToolCall,
    ToolResult,
    Turn,
    TurnRef,
    TurnStatus,
    Usage,
    item_weight,
    make_title,
    split_owner,
)

T = TypeVar("T")
Row = Sequence[Any]
Rows = Sequence[Row]
Transaction = Generator[tuple[str, tuple[Any, ...]], Rows, T]


class Contended(Exception):
    """Another transaction was quicker: this one must be undone and run again."""


# Whose a row is: of an owner, or of a user, whose end users' things the user sees too. An alias is
# its owner's alone.
OF_ID = "? IN (owner, user_name) AND id = ?"
OF_ALIAS = "owner = ? AND alias = ?"

_encode_json = msgspec.json.Encoder().encode
_decode_json = msgspec.json.Decoder().decode


class _Details(msgspec.Struct, array_like=True, omit_defaults=True):
    """What an item is kept with beside its text."""

    call_id: str = ""
    name: str = ""
    custom: bool = False
    parts: tuple[Part, ...] = ()


_decode_details = msgspec.json.Decoder(_Details).decode


def encode_item(item: Item) -> tuple[str, str, str | None]:
    """An item's `kind`, `text` and `data`; a message's kind is its role."""
    match item:
        case Message(role=role, text=text, parts=parts):
            return role, text, _encode_details(_Details(parts=parts)) if parts else None
        case ToolCall(call_id=call_id, name=name, arguments=arguments, custom=custom):
            return "tool_call", arguments, _encode_details(_Details(call_id, name, custom))
        case ToolResult(call_id=call_id, output=output, custom=custom, parts=parts):
            return "tool_result", output, _encode_details(_Details(call_id, "", custom, parts))
        case Reasoning(text=text):
            return "reasoning", text, None
        case Compaction(text=text):
            return "compaction", text, None
        case _:
            assert_never(item)


def _encode_details(details: _Details) -> str:
    return _encode_json(details).decode()


def decode_item(kind: str, text: str, data: str | None) -> Item:
    if data is None:  # nearly always
        match kind:
            case "reasoning":
                return Reasoning(text)
            case "compaction":
                return Compaction(text)
            case _:
                return Message(kind, text)
    details = _decode_details(data)
    match kind:
        case "tool_call":
            return ToolCall(details.call_id, details.name, text, details.custom)
        case "tool_result":
            return ToolResult(details.call_id, text, details.custom, details.parts)
        case _:
            return Message(kind, text, details.parts)


def is_shown(item: Item) -> bool:
    """Whether prompts show it: what a model has thought, they never do."""
    return not isinstance(item, Reasoning)


def weigh_shown(items: Sequence[Item]) -> int:
    """How much these items add to what their session's prompts could show."""
    return sum([item_weight(item) for item in items if is_shown(item)])


def decode_listed(row: Row) -> ListedItem:
    """From the columns of `LISTED`."""
    turn, position, kind, text, data, status, model, at = row
    return ListedItem(
        turn,
        position,
        decode_item(kind, text, data),
        None if status is None else TurnStatus(status),
        model if kind == "assistant" else None,
        at,
    )


def decode_turn(ref: TurnRef, row: Row) -> Turn:
    status, model, created_at, finished_at, prompt, completion, estimated = row[:7]
    code, sentence, retry_after, sent, dropped, tokens, summarised = row[7:14]
    finish, cached, thought = row[14:]
    return Turn(
        ref,
        TurnStatus(status),
        model,
        created_at,
        # the clock may have been put back meanwhile
        None if finished_at is None else max(created_at, finished_at),
        None
        if prompt is None
        else Usage(prompt, completion, bool(estimated), cached or 0, thought or 0),
        None if code is None else Failure(code, sentence, retry_after),
        None if sent is None else Context(sent, dropped, tokens, bool(summarised)),
        finish,
    )


def decode_session(row: Row) -> Session:
    """From the columns of a session's statement; the flags and the JSON come as they are kept."""
    variables, metadata, section, document, config, context_documents, owner, first_words = row[14:]
    title = row[2] or make_title(first_words or "") or None
    values = (
        *row[:2],
        title,
        *row[3:9],
        bool(row[9]),
        bool(row[10]),
        *row[11:13],
        max(row[12:14]),  # the clock may have been put back since it was created
        _decode_json(variables) if variables else {},
        _decode_json(metadata) if metadata else {},
        section,
        document,
        _decode_json(config) if config else {},
        _decode_json(context_documents) if context_documents else (),
        split_owner(owner)[1],
    )
    return Session(*values)


def encode_object(values: Mapping[str, Any] | Sequence[str]) -> str:
    """Variables, metadata and config as they are kept: JSON."""
    return _encode_json(values).decode()


_decode_variables = msgspec.json.Decoder(dict[str, str]).decode


def decode_variables(text: str) -> Mapping[str, str]:
    return _decode_variables(text)


_decode_config = msgspec.json.Decoder(ChatConfig).decode


def decode_config(text: str | None) -> ChatConfig | None:
    return _decode_config(text) if text else None


_decode_blueprint = msgspec.json.Decoder(Blueprint).decode


def encode_blueprint(blueprint: Blueprint) -> str:
    return _encode_json(blueprint).decode()


def decode_revision(row: Row) -> Revision:
    id_, deployment, number, blueprint, created_at = row
    return Revision(id_, deployment, number, _decode_blueprint(blueprint), created_at)
