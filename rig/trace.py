"""What a process did to a SQLite database and to its sockets, as strace wrote it down.

The lines of strace are in the order in which it saw calls begin and end, and it sees a call begin
before that call has any effect. So what a program did because a call had ended stands after that
end, in whichever thread: the order of lines is all that is needed to say what came first.
"""

import codecs
import os
import re
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

_CALLS = (
    "openat,unlink,unlinkat,rename,ftruncate,pwrite64,pwritev,fdatasync,fsync,"
    "write,writev,sendto,sendmsg"
)
_LONGEST = 1 << 24  # bytes of one call's data that are written down: all of them

# What a traced process must have in its environment: no way into the kernel but by these calls.
ENVIRONMENT = {"UV_USE_IO_URING": "0"}


def strace(output: Path, *options: str) -> tuple[str, ...]:
    """The words to put before a command, so that what it does is written to `output`.

    The command stays the child of whoever starts it; strace is its grandchild (`-D`).
    """
    what = ("-f", "-y", "-x", "-s", str(_LONGEST), "--seccomp-bpf", "-e", f"trace={_CALLS}")
    return ("strace", "-D", *what, *options, "-o", str(output), "--")


# --- What happened -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Made:
    """A file was opened, and made if it was not there."""

    path: Path


@dataclass(frozen=True)
class Wrote:
    """Bytes are in a file, as far as other programs can see."""

    path: Path
    offset: int
    data: bytes


@dataclass(frozen=True)
class Resized:
    """A file was cut off, or made longer, to be of this size."""

    path: Path
    size: int


@dataclass(frozen=True)
class Removed:
    """A name is gone from its folder."""

    path: Path


@dataclass(frozen=True)
class Synced:
    """The system says that a file or folder is on the disk.

    Attributes:
        covers: how many of the happenings before this had ended when it was asked for that; of
            later ones it says nothing.
    """

    path: Path
    covers: int


@dataclass(frozen=True)
class Sent:
    """Bytes may have left on a socket: the call had begun."""

    socket: str
    data: bytes


Happening = Made | Wrote | Resized | Removed | Synced | Sent


# --- Reading it --------------------------------------------------------------------------------

_LINE = re.compile(rb"(\d+) +(\w+)\((.*)\) += (-?\d+)([^\n]*)", re.DOTALL)
_BEGUN = re.compile(rb"(\d+) +(\w+)\((.*) <unfinished \.\.\.>", re.DOTALL)
_ENDED = re.compile(rb"(\d+) +<\.\.\. (\w+) resumed>(.*)\) += (-?\d+)([^\n]*)", re.DOTALL)
_FILE = re.compile(rb"\d*<([^>]*)>")  # after a number, which for a new one stands before
_TEXT = re.compile(rb'"((?:[^"\\]|\\.)*)"', re.DOTALL)
_SENDS = (b"write", b"writev", b"sendto", b"sendmsg")


def read_trace(lines: Iterable[bytes], database: Path) -> Iterator[Happening]:
    """What happened to sockets, to the database and its log, and to their folder, in order."""
    reader = _Reader(database)
    for line in lines:
        yield from reader.feed(line)


def read_trace_file(output: Path, database: Path, pid: int) -> list[Happening]:
    """The same of a file that strace writes, once the process has ended and all is written."""
    ended = b"%d +++ " % pid
    for _ in range(600):
        lines = output.read_bytes().splitlines()
        if any(line.replace(b"  ", b" ").startswith(ended) for line in lines[-50:]):
            return list(read_trace(lines, database))
        time.sleep(0.05)
    raise RuntimeError("strace did not write the end of the process")


class _Reader:
    """Keeps calls that have begun until they end, and counts what has happened."""

    def __init__(self, database: Path) -> None:
        self._folder = database.parent
        names = (database.name + suffix for suffix in ("", "-wal", "-journal"))
        self._files = {self._folder, *(self._folder / name for name in names)}
        self._happened = 0
        self._begun: dict[bytes, tuple[bytes, int]] = {}  # by thread: arguments, and when

    def feed(self, line: bytes) -> list[Happening]:
        found = self._read(line)
        self._happened += len(found)
        return found

    def _read(self, line: bytes) -> list[Happening]:
        if whole := _LINE.fullmatch(line):
            _, call, arguments, returned, rest = whole.groups()
            begun = self._happened
            return self._begin(call, arguments) + self._end(
                call, arguments, int(returned), rest, begun
            )
        if half := _BEGUN.fullmatch(line):
            thread, call, arguments = half.groups()
            self._begun[thread] = arguments, self._happened
            return self._begin(call, arguments)
        if half := _ENDED.fullmatch(line):
            thread, call, arguments, returned, rest = half.groups()
            before, begun = self._begun.pop(thread, (b"", self._happened))
            return self._end(call, before + arguments, int(returned), rest, begun)
        return []

    def _begin(self, call: bytes, arguments: bytes) -> list[Happening]:
        file = _FILE.match(arguments)
        if call in _SENDS and file and file[1].startswith((b"socket:", b"TCP:", b"TCPv6:")):
            return [Sent(file[1].decode(), b"".join(_texts(arguments)))]
        return []

    def _end(
        self, call: bytes, arguments: bytes, returned: int, rest: bytes, begun: int
    ) -> list[Happening]:
        """What a call has done; nothing if it failed."""
        path = self._path(call, arguments, rest) if returned >= 0 else None
        happening = path and _effect(path, call, arguments, returned, begun)
        return [happening] if happening else []

    def _path(self, call: bytes, arguments: bytes, rest: bytes) -> Path | None:
        """Which of the files, or that it is the folder, a call is about."""
        if call in (b"unlink", b"unlinkat", b"rename"):
            name = _texts(arguments)[0]
        else:
            match = _FILE.search(rest) if call == b"openat" else _FILE.match(arguments)
            name = match[1] if match else b""
        path = self._folder / os.fsdecode(codecs.escape_decode(name)[0])
        return path if path in self._files else None


def _effect(
    path: Path, call: bytes, arguments: bytes, returned: int, begun: int
) -> Happening | None:
    match call:
        case b"openat":
            return Made(path) if b"O_CREAT" in arguments else None
        case b"pwrite64":
            return Wrote(path, _last_number(arguments), b"".join(_texts(arguments))[:returned])
        case b"ftruncate":
            return Resized(path, _last_number(arguments))
        case b"fdatasync" | b"fsync":
            return Synced(path, begun)
        case b"unlink" | b"unlinkat":
            return Removed(path)
    raise ValueError(f"{call.decode()} on {path}: what it does is not known here")


def _last_number(arguments: bytes) -> int:
    return int(arguments.rpartition(b", ")[2])


def _texts(arguments: bytes) -> list[bytes]:
    return [codecs.escape_decode(text)[0] for text in _TEXT.findall(arguments)]
