"""A disk that loses power: of what was written since the last sync, anything may be there.

Files are replayed from a trace. What a sync covers stays. Of the rest a disk may have kept all or
nothing, some sectors and not others; a new file may have lost its name, and one that was removed
may be back.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from rig.trace import Happening, Made, Removed, Resized, Sent, Synced, Wrote

SECTOR = 512  # what a disk writes whole or not at all

Fate = Callable[[], bool]  # whether the next thing that was not synced is on the disk


@dataclass
class _File:
    """A file: what is sure to be in it, and what was done to it since, with when."""

    sure: bytearray = field(default_factory=bytearray)
    unsure: list[tuple[int, Wrote | Resized]] = field(default_factory=list)

    def sync(self, covers: int) -> None:
        for when, change in self.unsure:
            if when < covers:
                _change(self.sure, change)
        self.unsure = [(when, change) for when, change in self.unsure if when >= covers]


@dataclass
class _Folder:
    """Names, as they are sure to be, and what was done to them since."""

    sure: dict[str, _File] = field(default_factory=dict)
    now: dict[str, _File] = field(default_factory=dict)
    unsure: list[tuple[int, str, _File | None]] = field(default_factory=list)

    def name(self, when: int, name: str, file: _File | None) -> None:
        self.unsure.append((when, name, file))
        _name(self.now, name, file)

    def sync(self, covers: int) -> None:
        for when, name, file in self.unsure:
            if when < covers:
                _name(self.sure, name, file)
        self.unsure = [entry for entry in self.unsure if entry[0] >= covers]


class Disk:
    """The files of one folder, at first those in `found`. Feed it every happening in order."""

    def __init__(self, folder: Path, found: Mapping[str, bytes] | None = None) -> None:
        self._folder = folder
        files = {name: _File(bytearray(content)) for name, content in (found or {}).items()}
        self._names = _Folder(files, dict(files))
        self._count = 0

    def feed(self, happening: Happening) -> None:
        when, self._count = self._count, self._count + 1
        match happening:
            case Made(path):
                if path.name not in self._names.now:
                    self._names.name(when, path.name, _File())
            case Removed(path):
                self._names.name(when, path.name, None)
            case Wrote(path) | Resized(path):
                self._names.now[path.name].unsure.append((when, happening))
            case Synced(path, covers):
                if path == self._folder:
                    self._names.sync(covers)
                elif path.name in self._names.now:
                    self._names.now[path.name].sync(covers)
            case Sent():
                pass

    def after_power_loss(self, fate: Fate) -> dict[str, bytes]:
        """What is found when the power is back: each name with what is in its file."""
        names = dict(self._names.sure)
        for _, name, file in self._names.unsure:
            if fate():
                _name(names, name, file)
        return {name: _content(file, fate) for name, file in names.items()}


def _name(names: dict[str, _File], name: str, file: _File | None) -> None:
    if file is None:
        names.pop(name, None)
    else:
        names[name] = file


def _content(file: _File, fate: Fate) -> bytes:
    found = bytearray(file.sure)
    for _, change in file.unsure:
        for part in _parts(change):
            if fate():
                _change(found, part)
    return bytes(found)


def _parts(change: Wrote | Resized) -> list[Wrote | Resized]:
    """What of a change may be there without the rest: it is torn between sectors."""
    if isinstance(change, Resized):
        return [change]
    parts: list[Wrote | Resized] = []
    start, end = change.offset, change.offset + len(change.data)
    while start < end:
        stop = min(end, (start // SECTOR + 1) * SECTOR)
        data = change.data[start - change.offset : stop - change.offset]
        parts.append(Wrote(change.path, start, data))
        start = stop
    return parts


def _change(content: bytearray, change: Wrote | Resized) -> None:
    size = change.size if isinstance(change, Resized) else change.offset + len(change.data)
    if size > len(content):
        content.extend(bytes(size - len(content)))
    if isinstance(change, Resized):
        del content[size:]
    else:
        content[change.offset : size] = change.data
