"""temporary"""

from turnkeeper.domain import TurnRef, parse_turn_id


def completion_id(ref: TurnRef) -> str:
    return f"chatcmpl-{ref.id[1:]}"


def parse_completion_id(text: str) -> TurnRef | None:
    return parse_turn_id(f"t{text[9:]}") if text.startswith("chatcmpl-") else None


def parse_conversation_id(text: str) -> str | None:
    return f"s{text[5:]}" if text.startswith("conv_") else None
