"""What the model is shown: what the blueprint puts in front, and as much history as fits.

Pure. Sizes are weights (`domain.item_weight`: about bytes), since a provider counts in tokens
of its own: how many bytes make one of a model's is learned, in `counts.py`.
"""

from collections.abc import Sequence
from operator import itemgetter

import msgspec

from turnkeeper.domain import (
    AS_IT_IS,
    ITEM_OVERHEAD,
    NO_OPTIONS,
    Blueprint,
    Context,
    History,
    Item,
    KeptItem,
    Message,
    Model,
    Options,
    OutlineEntry,
    Passage,
    Place,
    Prompt,
    Sampling,
    ToolCall,
    ToolResult,
    item_weight,
)
from turnkeeper.errors import ContextTooLong

_LARGEST_REPLY = 4096  # tokens kept free for the reply, unless the window is small


def capacity(window: int, blueprint: Blueprint, frame_weight: int, bytes_per_token: float) -> int:
    """The weight of items that fit into a model's window beside what every prompt begins with.

    The reply is left as many tokens as the blueprint allows it, but not more than half of the
    window; if it says nothing, a quarter of a small window, else 4,096.
    """
    window = min(window, blueprint.context_window or window)
    reserve = reply_room(window, blueprint.max_tokens)
    return int((window - reserve) * bytes_per_token) - frame_weight


def reply_room(window: int, max_tokens: int | None) -> int:
    """The tokens of a window that are kept free for the reply."""
    if max_tokens is not None:
        return min(max_tokens, window // 2)
    return min(_LARGEST_REPLY, window // 4)


def weigh(items: Sequence[Item]) -> int:
    return sum([item_weight(item) for item in items])


def check_room(
    model: Model, room: int, weight: int, bytes_per_token: float, what: str = "message"
) -> None:
    """See that items of `weight` fit into the `room` that a model has for them.

    Raises:
        ContextTooLong: they do not, so nothing may be stored.
    """
    if weight > room:
        needed, free = int(weight / bytes_per_token), int(max(room, 0) / bytes_per_token)
        raise ContextTooLong(
            f"The {what} needs about {needed} tokens and {model.id} has room for {free}"
        )


def after(last: Place, items: tuple[KeptItem, ...]) -> tuple[KeptItem, ...]:
    """Those of the items that stand behind a place."""
    place = (last.turn, last.position)
    return tuple(kept for kept in items if (kept.turn, kept.position) > place)


def turns_of(items: Sequence[Item]) -> list[tuple[Item, ...]]:
    """Items that follow each other, as turns: one begins where a client speaks after a model."""
    turns: list[list[Item]] = []
    has_answer = True
    for item in items:
        is_asked = isinstance(item, Message) and item.role != "assistant"
        if (is_asked and has_answer) or not turns:
            turns.append([])
        turns[-1].append(item)
        has_answer = not is_asked
    return [tuple(turn) for turn in turns]


def words_of_client(items: Sequence[KeptItem], room: int) -> tuple[Item, ...]:
    """What the client itself has said, in order: as many of the newest as have room.

    Rules for the model go before what a user says.
    """
    said = [kept for kept in items if isinstance(kept.item, Message)]
    rules = [kept for kept in said if _role(kept) in ("system", "developer")]
    words = [kept for kept in said if _role(kept) == "user"]
    chosen = []
    for kept in (*reversed(rules), *reversed(words)):
        room -= kept.weight
        if room < 0:
            break
        chosen.append(kept)
    chosen.sort(key=lambda kept: (kept.turn, kept.position))
    return tuple(kept.item for kept in chosen)


def _role(kept: KeptItem) -> str:
    return kept.item.role if isinstance(kept.item, Message) else ""


class Shown(msgspec.Struct, frozen=True):
    """What a model is shown of a session: the prompt, what is said of it, and all its weight."""

    prompt: Prompt
    context: Context
    weight: int
    has_images: bool = False


def fit(history: History, room: int) -> tuple[KeptItem, ...]:
    """What is shown of `history` to a model with a `capacity` of `room`.

    A session that overflows the window is cut to three quarters of it at once and grows again:
    what is dropped is a multiple of a quarter, so that the prompt's beginning stays the same for
    many turns and providers can cache it. Turns go whole, and the newest always stays.
    """
    return history.items if history.total_weight <= room else _newest_that_fit(history, room)


def show(
    model: str,
    history: History,
    sent: tuple[KeptItem, ...],
    bytes_per_token: float,
    *,
    frame: tuple[Item, ...] = (),
    frame_weight: int = 0,
    sampling: Sampling = AS_IT_IS,
    options: Options = NO_OPTIONS,
    summarised: bool = False,
) -> Shown:
    """The prompt for the newest turn of `history`, of which `sent` is shown.

    `frame` is what every prompt of the session begins with.
    """
    weight, dropped = _weight(sent), 0
    if weight < history.total_weight:
        dropped = history.message_count - sum(map(_is_message, sent))
    weight += frame_weight
    items = [kept.item for kept in sent]
    if not all(type(item) is Message for item in items):
        items = pair(items)
    has_images = any(item.parts for item in items if isinstance(item, Message | ToolResult))
    prompt = Prompt(model, (*frame, *items), sampling, options)
    context = Context(
        messages_sent=len(sent),
        messages_dropped=dropped,
        estimated_tokens=int(weight / bytes_per_token),
        summarised=summarised,
    )
    return Shown(prompt, context, weight, has_images)


def pair(items: Sequence[Item]) -> list[Item]:
    """The items, each call of a tool right before its result, without those that have no other.

    No model takes a conversation with one of them alone, nor with something said between them. A
    call may wait for its result for ever, or until somebody has said something else; and there
    are models that give every call the same id. Calls whose results come together stay together.
    """
    paired: list[Item] = []
    waiting: dict[str, tuple[int, ToolCall]] = {}  # calls, and where they stand
    answered: list[tuple[int, ToolCall]] = []
    results: list[ToolResult] = []
    for place, item in enumerate(items):
        if isinstance(item, ToolResult):
            if item.call_id in waiting:
                answered.append(waiting.pop(item.call_id))
                results.append(item)
            continue
        if results:
            paired += [*_in_order(answered), *results]
            answered, results = [], []
        if isinstance(item, ToolCall):
            waiting[item.call_id] = place, item
        else:
            paired.append(item)
    return [*paired, *_in_order(answered), *results]


def _in_order(calls: list[tuple[int, ToolCall]]) -> list[ToolCall]:
    return [call for _, call in sorted(calls, key=itemgetter(0))]


# --- What is put before the history ------------------------------------------------------------


def weigh_options(options: Options) -> int:
    """What the tools and the form of the reply take of the room: their JSON, about."""
    if not options.tools and options.reply_format is None:
        return 0
    return len(msgspec.json.encode((options.tools, options.reply_format)))


def with_system(frame: tuple[Item, ...], text: str) -> tuple[Item, ...]:
    """`frame` with `text` for its system message."""
    match frame:
        case (Message(role="system"), *rest):
            frame = tuple(rest)
        case _:
            pass
    return (Message("system", text), *frame) if text else frame


def put_in_front(frame: tuple[Item, ...], text: str) -> tuple[Item, ...]:
    """`frame` with `text` at the end of its system message, which it gets if it has none.

    One message, since many models take no second one of the system's.
    """
    match frame:
        case (Message(role="system", text=system), *rest):
            return (Message("system", f"{system}\n\n{text}"), *rest)
        case _:
            return (Message("system", text), *frame)


def with_summary(frame: tuple[Item, ...], summary: str, size: int) -> tuple[Item, ...]:
    """`frame` with a summary of what is not shown, of which `size` bytes are put in at most."""
    return put_in_front(frame, _TOLD + cut_end(summary, size - len(_TOLD)))


_TOLD = "Summary of this conversation's beginning, of which only the rest follows:\n"


def allowance(room: int, history: History, *, keep_all: bool) -> int:
    """The weight that something before the history may have: at most half of the `room`.

    The newest turn fits beside it; with `keep_all` the whole session does.
    """
    kept = history.total_weight
    if not keep_all and history.items:
        newest = history.items[-1].turn
        kept = sum([item.weight for item in history.items if item.turn == newest])
    return min(room // 2, room - kept) - ITEM_OVERHEAD


def describe_passage(passage: Passage, budget: int) -> str:
    """A section amid its document as a text of at most `budget` bytes; "" if that is too small.

    The outline has a third of it, and more if the section leaves some; it is cut around the
    section, and the section's text in the middle.
    """
    title, here = _one_line(passage.document), _one_line(passage.here.title)
    head = f"This conversation is about a section of a document.\nDocument: {title}\n"
    middle = f"\nSection: {here}\nText of the section:\n"
    left = budget - len((head + middle + _OUTLINE).encode())
    if left < _LEAST:
        return ""
    content = passage.content
    size = len(content.encode()) if len(content) <= left else left  # it may be very long
    outline = _outline(passage, max(left // 3, left - size))
    shown = cut_middle(content, left - len(outline.encode()))
    return f"{head}{_OUTLINE}{outline}{middle}{shown}"


_OUTLINE = "Outline:\n"
_LEAST = 64  # bytes of an outline and a text that say something


def cut_end(text: str, size: int) -> str:
    """The beginning of `text`, of at most `size` bytes."""
    return text.encode()[: max(size, 0)].decode(errors="ignore")


def cut_middle(text: str, budget: int) -> str:
    """`text`, or if it has more than `budget` bytes its beginning and end with a mark between."""
    if len(text) <= budget and len(text.encode()) <= budget:
        return text
    mark = f"\n[… {len(text)} characters in all, cut here …]\n"
    half = (budget - len(mark.encode())) // 2
    if half <= 0:
        return ""
    start, end = text[:half].encode()[:half], text[-half:].encode()[-half:]
    return start.decode(errors="ignore") + mark + end.decode(errors="ignore")


def _outline(passage: Passage, budget: int) -> str:
    """A line for each section with a title, as many around this one as have room."""
    lines = [f"{_outline_line(passage.here)} (this section)\n"]
    budget -= len(lines[0].encode()) + 2 * len(_cut(1_000_000_000).encode())
    if budget < 0:
        return ""
    before, after = list(passage.before), list(passage.after)[::-1]
    skipped_before, skipped_after = passage.more_before, passage.more_after
    while before or after:  # the nearest first, on both sides in turn
        for side in (before, after):
            if not side:
                continue
            line = f"{_outline_line(side[-1])}\n" if side[-1].title.strip() else ""
            budget -= len(line.encode())
            if budget < 0:
                skipped_before += len(before)
                skipped_after += len(after)
                return _cut(skipped_before) + "".join(lines) + _cut(skipped_after)
            side.pop()
            lines = [line, *lines] if side is before else [*lines, line]
    return _cut(skipped_before) + "".join(lines) + _cut(skipped_after)


def _cut(skipped: int) -> str:
    return f"[… {skipped} more …]\n" if skipped else ""


def _outline_line(entry: OutlineEntry) -> str:
    return f"{'  ' * (entry.level - 1)}- {_one_line(entry.title)}"


def _one_line(title: str) -> str:
    return " ".join(title.split()) or "(no title)"


# --- Fitting -----------------------------------------------------------------------------------


def _is_message(kept: KeptItem) -> bool:
    """Whether it is one of those that `History.message_count` counts."""
    return isinstance(kept.item, Message) and kept.item.role in ("user", "assistant")


def _newest_that_fit(history: History, room: int) -> tuple[KeptItem, ...]:
    """The part that is sent of a history that overflows `room`."""
    items = history.items
    quarter = max(room // 4, 1)
    dropped = -(-(history.total_weight - room) // quarter) * quarter
    unread = history.total_weight - _weight(items)
    sent = items[_turn_after(items, dropped - unread, _exchanges(items)) :]
    if _weight(sent) > room:  # one long chain of calls: its beginning has to go
        sent = items[_turn_after(items, dropped - unread, _turns(items)) :]
    return sent


def _weight(items: Sequence[KeptItem]) -> int:
    return sum([kept.weight for kept in items])


def _turn_after(items: Sequence[KeptItem], dropped: int, starts: Sequence[int]) -> int:
    """The first of the `starts` before which `dropped` lies; the last if none is."""
    before, last = 0, 0
    for start in starts:
        before += _weight(items[last:start])
        last = start
        if before >= dropped:
            break
    return last


def _turns(items: Sequence[KeptItem]) -> list[int]:
    """Where turns begin; the newest stays with the one before if it has that one's results."""
    starts = [index for index, kept in enumerate(items) if kept.position == 0]
    if len(starts) > 1 and isinstance(items[starts[-1]].item, ToolResult):
        starts.pop()
    return starts


def _exchanges(items: Sequence[KeptItem]) -> list[int]:
    """Where turns begin that do not go on with the one before: no result goes without its call."""
    return [
        index
        for index, kept in enumerate(items)
        if kept.position == 0 and not (index and isinstance(kept.item, ToolResult))
    ]
