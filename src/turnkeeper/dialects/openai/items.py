"""Items of a request: those that are only named are looked up, all are checked."""

from collections.abc import Sequence

from turnkeeper.dialects.exchange import Parts
from turnkeeper.dialects.openai.content import Reference, not_found
from turnkeeper.dialects.openai.errors import WrongParameter
from turnkeeper.domain import Item
from turnkeeper.errors import InvalidRequest, MessageNotFound, SessionNotFound


async def resolve_items(
    parts: Parts, caller: str, items: Sequence[Item | Reference]
) -> tuple[Item, ...]:
    """The items as they are to be kept.

    Raises:
        WrongParameter: one that is named is not there, or someone else's.
    """
    found: list[Item] = []
    for item in items:
        if isinstance(item, Reference):
            try:
                listed = await parts.sessions.get_item(caller, item.ref)
            except (SessionNotFound, MessageNotFound):
                raise not_found(item.id, item.param) from None
            found.append(listed.item)
        else:
            found.append(item)
    return tuple(found)


def check_items(parts: Parts, items: Sequence[Item], param: str) -> tuple[Item, ...]:
    """The items, if they may be kept.

    Raises:
        MessageTooLong
        WrongParameter: one holds what no store can.
    """
    try:
        return parts.engine.check_items(items, param)
    except InvalidRequest as error:
        raise WrongParameter(error.sentence, param) from None
