"""What the model is shown: the deployment's system message and as much history as fits.

Pure. Sizes are weights (`domain.item_weight`: about bytes), since a provider counts in tokens
of its own: `BYTES_PER_TOKEN` turns one into the other, on the safe side for English and for
Chinese.
"""

from collections.abc import Sequence
from itertools import groupby

from turnkeeper.domain import (
    Context,
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


def choose(model: Model, system: str, newest: Sequence[Item]) -> ModelChoice:
    """The choice of `model` for a turn over the items `newest`.

    Raises:
        ContextTooLong: they alone do not fit, so nothing may be stored.
    """
    room = capacity(model, system)
    weight = sum(map(item_weight, newest))
    if weight > room:
        raise ContextTooLong(
            f"The message needs about {weight // BYTES_PER_TOKEN} tokens and {model.id} has room"
            f" for {max(room, 0) // BYTES_PER_TOKEN}"
        )
    return ModelChoice(model.id, room)


def fit(
    model: Model, system: str, history: Sequence[KeptItem], total_weight: int, message_count: int
) -> tuple[Prompt, Context]:
    """The prompt for the newest turn of `history`.

    `total_weight` and `message_count` are those of the whole session, of which `history` is
    the newest part. A session that overflows the window is cut to three quarters of it at once
    and grows again: what is dropped is a multiple of a quarter, so that the prompt's beginning
    stays the same for many turns and providers can cache it. Turns go whole, and the newest
    always stays.
    """
    turns = [list(items) for _, items in groupby(history, key=lambda kept: kept.turn)]
    first = _first_sent(turns, capacity(model, system), total_weight)
    items = [kept.item for turn in turns[first:] for kept in turn]
    while items and isinstance(items[0], ToolResult):
        del items[0]  # its call went with the turn before: never one without the other
    frame = [Message("system", system)] if system else []
    prompt = Prompt(model.id, (*frame, *items))
    context = Context(
        messages_sent=len(items),
        messages_dropped=max(message_count - sum(map(_is_message, items)), 0),
        estimated_tokens=sum(map(item_weight, prompt.items)) // BYTES_PER_TOKEN,
    )
    return prompt, context


def _is_message(item: Item) -> bool:
    return isinstance(item, Message)


def _first_sent(turns: Sequence[Sequence[KeptItem]], room: int, total_weight: int) -> int:
    """The index of the oldest turn that is sent."""
    excess = total_weight - room
    if excess <= 0:
        return 0
    quarter = max(room // 4, 1)
    dropped = -(-excess // quarter) * quarter
    weights = [sum(item_weight(kept.item) for kept in turn) for turn in turns]
    before = total_weight - sum(weights)
    for index, weight in enumerate(weights):
        whole = turns[index][0].position == 0  # else the store read only its end
        if before >= dropped and whole:
            return index
        before += weight
    return len(turns) - 1
