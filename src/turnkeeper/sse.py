"""Server-sent events, read and written. Pure: bytes in, values out; does not know who sends them.

Reading follows the HTML standard ("Interpreting an event stream") and survives any cut of the
bytes. It is on the path of every streamed token, so the common case, a whole event of one
`data:` line, has a way of its own.
"""

import msgspec

KEEP_ALIVE = b": keep-alive\n\n"

_BOM = b"\xef\xbb\xbf"
_BLANK_LINE = b"\n\n"
_LIMIT = 8 * 1024 * 1024


class Event(msgspec.Struct, frozen=True, gc=False):
    """One event. `id` is the last event id the stream has given so far, not always its own."""

    data: bytes
    name: str = "message"
    id: str = ""


class Reader:
    """Makes events of the bytes of one stream.

    What never ends with a blank line is never an event. `limit` is the most bytes that one
    unfinished event may hold.
    """

    def __init__(self, limit: int = _LIMIT) -> None:
        self._limit = limit
        self._rest = bytearray()  # what is not yet an event, with line ends as \n
        self._opened = False  # until then a byte order mark may come, and this much of it has:
        self._opening = b""
        self._after_cr = False  # the last byte was \r: a \n now belongs to the same line end
        self._last_id = ""

    @property
    def at_rest(self) -> bool:
        """Whether nothing is kept of what was fed: the next byte begins an event."""
        return not (self._rest or self._opening or self._after_cr)

    def feed(self, data: bytes) -> list[Event]:
        """The events that `data` completes, in order.

        Raises:
            ValueError: an unfinished event has grown over the limit. The reader is then useless.
        """
        if not self._opened:
            data = self._strip_mark(data)
        if self._after_cr or b"\r" in data:
            data = self._unify_line_ends(data)
        if self._rest or not data.endswith(_BLANK_LINE):
            data = self._take_whole(data)
        return self._read_blocks(data) if data else []

    def _strip_mark(self, data: bytes) -> bytes:
        """`data` without a byte order mark before it; nothing while it may be the start of one."""
        data = self._opening + data
        if len(data) < len(_BOM) and _BOM.startswith(data):
            self._opening = data
            return b""
        self._opened = True
        return data.removeprefix(_BOM)

    def _unify_line_ends(self, data: bytes) -> bytes:
        r"""`data` with \r\n and \r as \n. A \r counts at once: a \n to come may be late."""
        if not data:
            return data
        if self._after_cr:
            data = data.removeprefix(b"\n")
        self._after_cr = data.endswith(b"\r")
        return data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")

    def _take_whole(self, data: bytes) -> bytes:
        """What was kept and `data`, up to the last blank line; the rest is kept."""
        seam = max(len(self._rest) - 1, 0)  # a blank line may lie across it, none before it
        self._rest += data
        end = self._rest.rfind(_BLANK_LINE, seam)
        whole = bytes(self._rest[: end + 2]) if end >= 0 else b""
        del self._rest[: len(whole)]
        if len(self._rest) > self._limit:
            raise ValueError(f"an event of the stream is longer than {self._limit} bytes")
        return whole

    def _read_blocks(self, data: bytes) -> list[Event]:
        events = []
        for block in data[:-2].split(_BLANK_LINE):
            if block.startswith(b"data: ") and b"\n" not in block:
                events.append(Event(block[6:], "message", self._last_id))
            elif (event := self._read_block(block)) is not None:
                events.append(event)
        return events

    def _read_block(self, block: bytes) -> Event | None:
        """The event that these lines make, if they hold data."""
        data: list[bytes] = []
        name = b""
        for line in block.split(b"\n"):
            field, _, value = line.partition(b":")
            value = value.removeprefix(b" ")
            if field == b"data":
                data.append(value)
            elif field == b"event":
                name = value
            elif field == b"id" and b"\0" not in value:
                self._last_id = _text(value)
        if not data:
            return None
        return Event(b"\n".join(data), _text(name) or "message", self._last_id)


def _text(value: bytes) -> str:
    return value.decode("utf-8", "replace")


def encode_event(data: bytes, name: str = "", event_id: str = "") -> bytes:
    """One event. None of the three may hold a line end, which JSON and our own names never do."""
    if not name and not event_id:
        return b"data: %b\n\n" % data
    name_line = f"event: {name}\n" if name else ""
    id_line = f"id: {event_id}\n" if event_id else ""
    return b"%bdata: %b\n\n" % ((name_line + id_line).encode(), data)
