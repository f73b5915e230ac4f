"""What the model is shown: the deployment's system message and as much history as fits.

Pure. Sizes are weights (`domain.item_weight`: about bytes), since a provider counts in tokens
of its own: `BYTES_PER_TOKEN` turns one into the other, on the safe side for English and for
Chinese.
"""

from collections.abc import Sequence

from turnkeeper.domain import (
    Context,
    History,
    Item,
    KeptItem,
    Message,
    Model,
    ModelChoice,
    Prompt,
    ToolResult,
    item_weight,
)
from turnkeeper.errors import ContextTooLong

BYTES_PER_TOKEN = 3
_LARGEST_REPLY = 4096  # tokens kept free for the reply, unless the window is small


def capacity(model: Model, system: str) -> int:
    """The weight of items that fit into the model's window beside the system message.

    A quarter of a small window, else 4,096 tokens, is left to the reply.
    """
    reserve = min(_LARGEST_REPLY, model.context_window // 4)
    room = (model.context_window - reserve) * BYTES_PER_TOKEN
    return room - item_weight(Message("system", system))


def choose(model: Model, room: int, newest: Sequence[Item]) -> ModelChoice:
    """The choice of `model`, which has a `capacity` of `room`, for a turn over `newest`.

    Raises:
        ContextTooLong: they alone do not fit, so nothing may be stored.
    """
    weight = sum([item_weight(item) for item in newest])
    if weight > room:
        raise ContextTooLong(
            f"The message needs about {weight // BYTES_PER_TOKEN} tokens and {model.id} has room"
            f" for {max(room, 0) // BYTES_PER_TOKEN}"
        )
    return ModelChoice(model.id, room)


def fit(model: str, system: str, room: int, history: History) -> tuple[Prompt, Context]:
    """The prompt for the newest turn of `history`, for a `model` with a `capacity` of `room`.

    A session that overflows the window is cut to three quarters of it at once
    and grows again: what is dropped is a multiple of a quarter, so that the prompt's beginning
    stays the same for many turns and providers can cache it. Turns go whole, and the newest
    always stays.
    """
    sent, dropped = history.items, 0
    if history.total_weight > room:
        sent = _newest_that_fit(history, room)
        dropped = history.message_count - sum(map(_is_message, sent))
    frame = (Message("system", system),) if system else ()
    prompt = Prompt(model, (*frame, *[kept.item for kept in sent]))
    weight = _weight(sent) + sum([item_weight(item) for item in frame])
    context = Context(
        messages_sent=len(sent),
        messages_dropped=dropped,
        estimated_tokens=weight // BYTES_PER_TOKEN,
    )
    return prompt, context


def _is_message(kept: KeptItem) -> bool:
    return isinstance(kept.item, Message)


def _newest_that_fit(history: History, room: int) -> tuple[KeptItem, ...]:
    """The part that is sent of a history that overflows `room`."""
    items = history.items
    quarter = max(room // 4, 1)
    dropped = -(-(history.total_weight - room) // quarter) * quarter
    unread = history.total_weight - _weight(items)
    sent = items[_turn_after(items, dropped - unread) :]
    calls = next((i for i, kept in enumerate(sent) if not isinstance(kept.item, ToolResult)), 0)
    return sent[calls:]  # no result whose call went with the turn before


def _weight(items: Sequence[KeptItem]) -> int:
    return sum([kept.weight for kept in items])


def _turn_after(items: Sequence[KeptItem], dropped: int) -> int:
    """Where the oldest whole turn begins before which `dropped` lies; the newest if none does."""
    before, newest = 0, 0
    for index, kept in enumerate(items):
        if kept.position == 0:
            newest = index
            if before >= dropped:
                break
        before += kept.weight
    return newest
