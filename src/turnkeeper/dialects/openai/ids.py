"""Ids as OpenAI's clients know them: ours, dressed. Pure.

A conversation is a session, a response or a chat completion a turn, an item what stands at a
place in a session. Only the first letter of our own id is changed, so that nothing need be looked
up, and what one dialect names can be asked for in another.
"""

from turnkeeper.domain import (
    ById,
    Compaction,
    Item,
    Message,
    MessageRef,
    Reasoning,
    SessionChoice,
    ToolCall,
    ToolResult,
    TurnRef,
    find_session,
    is_session_id,
    parse_message_id,
    parse_turn_id,
)

_CONVERSATION = "conv_"
_RESPONSE = "resp_"
_COMPLETION = "chatcmpl-"
# An item's place decides which it is, so each may be asked for under any of these.
_ITEMS = frozenset({"msg", "fc", "fco", "rs", "ctc", "ctco", "cmp"})


def conversation_id(session_id: str) -> str:
    return _CONVERSATION + session_id[1:]


def parse_conversation_id(text: str) -> str | None:
    """The session that a conversation is, or None when it has not the form of a conversation's."""
    id_ = _undress(text, _CONVERSATION, "s")
    return id_ if id_ is not None and is_session_id(id_) else None


def find_conversation(text: str) -> SessionChoice:
    """Which session a caller means: a conversation's id, or what any dialect calls one.

    Raises:
        SessionNotFound: it can be none.
    """
    id_ = parse_conversation_id(text)
    return find_session(text) if id_ is None else ById(id_)


def response_id(ref: TurnRef) -> str:
    return _RESPONSE + ref.id[1:]


def parse_response_id(text: str) -> TurnRef | None:
    return parse_turn_id(_undress(text, _RESPONSE, "t") or "")


def completion_id(ref: TurnRef) -> str:
    return _COMPLETION + ref.id[1:]


def parse_completion_id(text: str) -> TurnRef | None:
    return parse_turn_id(_undress(text, _COMPLETION, "t") or "")


def item_id(ref: MessageRef, item: Item) -> str:
    return f"{prefix_of(item)}_{ref.id[1:]}"


def prefix_of(item: Item) -> str:
    match item:
        case Message():
            return "msg"
        case ToolCall(custom=custom):
            return "ctc" if custom else "fc"
        case ToolResult(custom=custom):
            return "ctco" if custom else "fco"
        case Reasoning():
            return "rs"
        case Compaction():
            return "cmp"


def parse_item_id(text: str) -> MessageRef | None:
    prefix, _, rest = text.partition("_")
    return parse_message_id("m" + rest) if prefix in _ITEMS else None


def _undress(text: str, prefix: str, letter: str) -> str | None:
    return letter + text[len(prefix) :] if text.startswith(prefix) else None
