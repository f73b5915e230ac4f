"""The log: one JSON object a line, or text for people, written by a thread of its own.

Nobody who has something to say waits for the place where it goes: a line is put in a queue, and a
thread words what has gathered and writes it. Where that place takes nothing, as a full pipe, the
queue fills, further lines are dropped, and how many they were is told once it takes lines again.
Knows nothing of what is said.
"""

import logging
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, Literal

import msgspec

Format = Literal["auto", "json", "text"]
Level = Literal["debug", "info", "warning", "error"]
Line = dict[str, Any]
Render = Callable[[Sequence[Line]], bytes]

_GATHER_SECONDS = 0.1  # for which lines are gathered that nobody has to see at once
_MOST = 20_000  # lines that wait
_LAST_SECONDS = 2.0  # that the end waits for what is still to be written


@contextmanager
def open_logs(format_: Format, level: Level, file: int | None = None) -> Iterator["Logs"]:
    """Have everything that is logged written to a file descriptor: standard error, if None.

    `auto` is text on a terminal, else JSON. What other packages log is only written if it is a
    warning or worse.
    """
    file = sys.stderr.fileno() if file is None else file
    is_terminal = os.isatty(file)
    as_text = format_ == "text" or (format_ == "auto" and is_terminal)
    logs = Logs(file, _text_renderer(colours=is_terminal) if as_text else _as_json, level)
    root, ours = logging.getLogger(), logging.getLogger("turnkeeper")
    before = root.handlers[:], root.level, ours.level
    root.handlers[:] = [_Handler(logs)]
    root.setLevel(logging.WARNING)
    ours.setLevel(level.upper())
    try:
        yield logs
    finally:
        root.handlers[:] = before[0]
        root.setLevel(before[1])
        ours.setLevel(before[2])
        logs.close()


class Logs:
    """A queue of lines, and the thread that writes them."""

    def __init__(self, file: int, render: Render, level: Level) -> None:
        self._file = file
        self._render = render
        self._tells_all = level in ("debug", "info")
        self._waiting: deque[tuple[float, str, Line]] = deque()
        self._dropped = 0
        self._is_awake = False
        self._wake = threading.Event()
        self._hurry = threading.Event()
        self._closing = False
        self._second, self._moment = 0, ""
        self._thread = threading.Thread(target=self._work, name="turnkeeper-log", daemon=True)
        self._thread.start()

    @property
    def write(self) -> Callable[[Line], None] | None:
        """Takes lines of what goes its usual way; None if none of these are wanted."""
        return self._put if self._tells_all else None

    def _put(self, line: Line) -> None:
        self.put("info", line)

    def put(self, level: str, line: Line) -> None:
        """Have a line, which is no longer the caller's, written soon."""
        if len(self._waiting) >= _MOST:
            self._dropped += 1
            return
        self._waiting.append((time.time(), level, line))
        if not self._is_awake:
            self._is_awake = True
            self._wake.set()

    def hurry(self) -> None:
        """Write what waits without gathering more."""
        self._hurry.set()

    def close(self) -> None:
        """Write what waits, for a moment."""
        self._closing = True
        self._hurry.set()
        self._wake.set()
        self._thread.join(_LAST_SECONDS)

    def _work(self) -> None:
        while not self._closing:
            self._wake.wait()
            self._hurry.wait(_GATHER_SECONDS)
            self._wake.clear()
            self._hurry.clear()
            self._is_awake = False  # from here on a new line wakes us again
            self._write_waiting()
        self._write_waiting()

    def _write_waiting(self) -> None:
        while self._waiting:
            count = min(len(self._waiting), 500)
            lines = [self._whole(*self._waiting.popleft()) for _ in range(count)]
            if self._dropped:
                dropped, self._dropped = self._dropped, 0
                line = {"event": f"{dropped} lines of the log were dropped: nobody took them"}
                lines.append(self._whole(time.time(), "warning", line))
            if not self._send(self._render(lines)):
                return

    def _whole(self, at: float, level: str, line: Line) -> Line:
        second = int(at)
        if second != self._second:  # many lines have the same
            self._second = second
            self._moment = datetime.fromtimestamp(second, UTC).strftime("%Y-%m-%dT%H:%M:%S")
        line["time"] = f"{self._moment}.{int((at - second) * 1000):03}Z"
        line["level"] = level
        return line

    def _send(self, data: bytes) -> bool:
        """Past Python's own buffers, whose locks a blocked writer would take into the end."""
        try:
            while data:
                data = data[os.write(self._file, data) :]
        except OSError:  # nobody reads it any more
            return False
        return True


class _Handler(logging.Handler):
    """What is logged by way of the standard library, as lines."""

    def __init__(self, logs: Logs) -> None:
        super().__init__()
        self._logs = logs
        self._formatter = logging.Formatter()

    def emit(self, record: logging.LogRecord) -> None:
        try:
            line: Line = {"event": record.getMessage(), "logger": record.name}
            if record.exc_info:
                line["exception"] = self._formatter.formatException(record.exc_info)
            self._logs.put(record.levelname.lower(), line)
            if record.levelno >= logging.WARNING:
                self._logs.hurry()
        except Exception:
            self.handleError(record)


_as_json = msgspec.json.Encoder(enc_hook=str).encode_lines


def _text_renderer(*, colours: bool) -> Render:
    from structlog import dev  # noqa: PLC0415  where no person reads, it is not needed

    console = dev.ConsoleRenderer(
        colors=colours, exception_formatter=dev.plain_traceback, timestamp_key="time"
    )

    def render(lines: Sequence[Line]) -> bytes:
        return b"".join(f"{console(None, '', line)}\n".encode("utf-8", "replace") for line in lines)

    return render
