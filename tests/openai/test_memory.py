"""What a WebSocket remembers of responses that are stored nowhere."""

from turnkeeper.dialects.openai.responses.memory import Context, Memory, size_of
from turnkeeper.domain import (
    Compaction,
    ImagePart,
    Message,
    Reasoning,
    TextPart,
    ToolCall,
    ToolResult,
    TurnRef,
)


def ref(number: int) -> TurnRef:
    return TurnRef("s" + "0" * 26, number)


def said(length: int) -> Context:
    return Context((Message("user", "x" * length),))


def test_the_newest_of_each_lane_is_remembered() -> None:
    memory = Memory()
    for number, lane in enumerate(("a", None, "a", "b")):
        memory.remember(lane, ref(number), said(number))
    assert memory.find(ref(0)) is None
    assert [memory.find(ref(number)) for number in (1, 2, 3)] == [said(1), said(2), said(3)]


def test_a_lane_forgets_its_own_alone() -> None:
    memory = Memory()
    memory.remember("a", ref(1), said(1))
    memory.forget("b", ref(1))
    assert memory.find(ref(1)) == said(1)
    memory.forget("a", ref(1))
    memory.forget("a", ref(1))
    assert memory.find(ref(1)) is None


def test_the_oldest_go_where_there_is_no_room() -> None:
    each = size_of(said(1000).items)
    memory = Memory(limit=2 * each)
    for number, lane in enumerate("abc"):
        memory.remember(lane, ref(number), said(1000))
    assert [memory.find(ref(number)) is None for number in range(3)] == [True, False, False]


def test_what_is_larger_than_all_room_is_not_remembered() -> None:
    memory = Memory(limit=1000)
    memory.remember("a", ref(1), said(10))
    memory.remember("a", ref(2), said(1000))
    assert memory.find(ref(1)) is None
    assert memory.find(ref(2)) is None
    memory.remember("a", ref(3), said(10))  # and it has taken up none
    assert memory.find(ref(3)) == said(10)


def test_pictures_count_for_what_they_take_in_memory() -> None:
    picture = ImagePart("data:image/png;base64," + "A" * 100_000)
    items = (
        Message("user", "look", (TextPart("look"), picture)),
        ToolCall("c", "f", "x" * 1000),
        ToolResult("c", "x" * 1000),
        Reasoning("x" * 1000),
        Compaction("x" * 1000),
    )
    assert 104_000 < size_of(items) < 108_000
