"""Server-sent events: the same events come out wherever the bytes are cut."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from turnkeeper.sse import KEEP_ALIVE, Event, Reader, encode_event

NASTY = (
    b"\xef\xbb\xbf: a comment\n"
    b"data: one\n\n"
    b"data: two\r\n\r\n"
    b"data: three\r\r"
    b"data\n\n"  # a field without a colon is a field without a value
    b"data:no space\n\n"
    b"data:  two spaces\n\n"
    b"event: named\r\ndata: first\r\ndata:\r\ndata: last\r\n\r\n"
    b"data: lines\ndata: two\n\n"
    b"data: with id\nid: 7\n\n"
    b'id: nul\0\ndata: {"a": "b:c"}\n\n'
    b"retry: 10\n\n"
    b"event: without data\nid: 8\n\n"
    b"dataset: x\nunknown\n: data: y\n\n"
    b"\n\n\n\r\n\r"
    b"data: \xf0\x9f\x98\x80\r\n\n"
    b"id\ndata: cleared\r\n\r\n"
    b"data: unfinished\n"
)
EVENTS = [
    Event(b"one"),
    Event(b"two"),
    Event(b"three"),
    Event(b""),
    Event(b"no space"),
    Event(b" two spaces"),
    Event(b"first\n\nlast", "named"),
    Event(b"lines\ntwo"),
    Event(b"with id", id="7"),
    Event(b'{"a": "b:c"}', id="7"),
    Event("😀".encode(), id="8"),
    Event(b"cleared"),
]


def read(*pieces: bytes) -> list[Event]:
    reader = Reader()
    return [event for piece in pieces for event in reader.feed(piece)]


def test_whole():
    assert read(NASTY) == EVENTS


@pytest.mark.parametrize("cut", range(len(NASTY) + 1))
def test_every_split_into_two(cut):
    assert read(NASTY[:cut], NASTY[cut:]) == EVENTS


def test_byte_by_byte():
    assert read(*(bytes([byte]) for byte in NASTY)) == EVENTS


def test_reads_of_nothing_change_nothing():
    assert read(*(piece for byte in NASTY for piece in (b"", bytes([byte]), b""))) == EVENTS


@given(st.lists(st.integers(0, len(NASTY)), max_size=12).map(sorted))
def test_any_split(cuts):
    edges = [0, *cuts, len(NASTY)]
    assert read(*(NASTY[a:b] for a, b in itertools.pairwise(edges))) == EVENTS


def test_an_event_is_given_as_soon_as_its_blank_line_is_there():
    reader = Reader()
    assert reader.feed(b"data: a\r\n\r") == [Event(b"a")]
    assert reader.feed(b"\ndata: b\r") == []
    assert reader.feed(b"\r") == [Event(b"b")]


def test_a_mark_is_only_a_mark_at_the_start():
    assert read(b"data: a\n\n\xef\xbb\xbfdata: b\n\n") == [Event(b"a")]
    assert read(b"\xef\xbbdata: a\n\n") == []


def test_a_lone_start_of_a_mark_is_not_kept_back_for_ever():
    assert read(b"\xef", b"\n\ndata: a\n\n") == [Event(b"a")]


def test_an_event_may_be_as_long_as_the_limit_and_no_longer():
    reader = Reader(limit=10)
    assert reader.feed(b"data: 1234") == []
    assert reader.feed(b"\n\n") == [Event(b"1234")]
    reader.feed(b"data: 1234")
    with pytest.raises(ValueError, match="10 bytes"):
        reader.feed(b"5")


def test_many_finished_events_are_under_the_limit():
    assert len(Reader(limit=10).feed(b"data: 1\n\n" * 100)) == 100


def test_keep_alive_is_no_event():
    assert read(KEEP_ALIVE, b"data: a\n\n", KEEP_ALIVE) == [Event(b"a")]


names = st.text(st.characters(exclude_characters="\r\n\0", codec="utf-8"), max_size=8).filter(
    lambda text: not text.startswith(" ")
)
written = st.tuples(
    st.binary(max_size=40).filter(lambda data: not set(data) & set(b"\r\n")), names, names
)


@given(st.lists(written, max_size=8), st.integers(1, 9))
def test_what_is_written_is_read(events, step):
    encoded = b"".join(encode_event(*event) for event in events)
    expected, last_id = [], ""
    for data, name, event_id in events:
        last_id = event_id or last_id
        expected.append(Event(data, name or "message", last_id))
    assert read(*(encoded[at : at + step] for at in range(0, len(encoded), step))) == expected
