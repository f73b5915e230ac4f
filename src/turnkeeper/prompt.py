"""What the model is shown: what the blueprint puts in front, and as much history as fits.

Pure. Sizes are weights (`domain.item_weight`: about bytes), since a provider counts in tokens
of its own: `BYTES_PER_TOKEN` turns one into the other, on the safe side for English and for
Chinese.
"""

from collections.abc import Sequence

from turnkeeper.domain import (
    AS_IT_IS,
    Blueprint,
    Context,
    History,
    Item,
    KeptItem,
    Message,
    Model,
    Prompt,
    Sampling,
    ToolResult,
    item_weight,
)
from turnkeeper.errors import ContextTooLong

BYTES_PER_TOKEN = 3
_LARGEST_REPLY = 4096  # tokens kept free for the reply, unless the window is small


def capacity(model: Model, blueprint: Blueprint, frame_weight: int) -> int:
    """The weight of items that fit into the model's window beside what every prompt begins with.

    The reply is left as many tokens as the blueprint allows it, but not more than half of the
    window; if it says nothing, a quarter of a small window, else 4,096.
    """
    window = min(model.context_window, blueprint.context_window or model.context_window)
    reserve = min(_LARGEST_REPLY, window // 4)
    if blueprint.max_tokens is not None:
        reserve = min(blueprint.max_tokens, window // 2)
    return (window - reserve) * BYTES_PER_TOKEN - frame_weight


def weigh(items: Sequence[Item]) -> int:
    return sum([item_weight(item) for item in items])


def check_room(model: Model, room: int, weight: int, what: str = "message") -> None:
    """See that items of `weight` fit into the `room` that a model has for them.

    Raises:
        ContextTooLong: they do not, so nothing may be stored.
    """
    if weight > room:
        raise ContextTooLong(
            f"The {what} needs about {weight // BYTES_PER_TOKEN} tokens and {model.id} has room"
            f" for {max(room, 0) // BYTES_PER_TOKEN}"
        )


def fit(
    model: str,
    room: int,
    history: History,
    *,
    frame: tuple[Item, ...] = (),
    frame_weight: int = 0,
    sampling: Sampling = AS_IT_IS,
) -> tuple[Prompt, Context]:
    """The prompt for the newest turn of `history`, for a `model` with a `capacity` of `room`.

    `frame` is what every prompt of the session begins with. A session that overflows the window
    is cut to three quarters of it at once and grows again: what is dropped is a multiple of a
    quarter, so that the prompt's beginning stays the same for many turns and providers can cache
    it. Turns go whole, and the newest always stays.
    """
    sent, dropped = history.items, 0
    if history.total_weight > room:
        sent = _newest_that_fit(history, room)
        dropped = history.message_count - sum(map(_is_message, sent))
    prompt = Prompt(model, (*frame, *[kept.item for kept in sent]), sampling)
    context = Context(
        messages_sent=len(sent),
        messages_dropped=dropped,
        estimated_tokens=(_weight(sent) + frame_weight) // BYTES_PER_TOKEN,
    )
    return prompt, context


def _is_message(kept: KeptItem) -> bool:
    """Whether it is one of those that `History.message_count` counts."""
    return isinstance(kept.item, Message) and kept.item.role != "system"


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
