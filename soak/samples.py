"""What a server holds at a moment, and whether it levels off."""

import statistics
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import msgspec

from bench.machine import memory_mib
from soak.subject import TASKS

GROWTH = 1.1  # the median of the last third of a run, to that of the third before


class Sample(msgspec.Struct, frozen=True):
    """A server at a moment: `at` in seconds since the beginning, sizes in MiB."""

    at: float
    memory: float
    descriptors: float
    tasks: float
    database: float


class Kind(msgspec.Struct, frozen=True):
    """A thing that is sampled.

    Attributes:
        field: of `Sample`.
        slack: how much it may go up and down, whatever it is: few are not counted in per cent.
    """

    field: str
    name: str
    unit: str
    slack: float


KINDS = (
    Kind("memory", "memory", "MiB", 4),
    Kind("descriptors", "open descriptors", "", 20),
    Kind("tasks", "tasks", "", 40),
    Kind("database", "database and its log", "MiB", 4),
)


def take_sample(pid: int, folder: Path, at: float) -> Sample:
    files = [folder / "turnkeeper.db", folder / "turnkeeper.db-wal"]
    size = sum(file.stat().st_size for file in files if file.exists())
    tasks = 0
    with suppress(FileNotFoundError, ValueError):  # not told yet, or just being written
        tasks = int((folder / TASKS).read_text())
    descriptors = sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir())
    return Sample(at, memory_mib([pid]), descriptors, tasks, size / (1 << 20))


class Level(msgspec.Struct, frozen=True):
    """The medians of the middle and the last third of a run, and what the last may be at most."""

    kind: Kind
    middle: float
    last: float
    allowed: float

    @property
    def holds(self) -> bool:
        return self.last <= self.allowed


def levels(samples: Sequence[Sample]) -> list[Level]:
    """Of each kind. It levels off if its last third is at most a tenth above the third before it.

    The first third does not count: caches fill, and nothing has expired yet.
    """
    third = len(samples) // 3
    found = []
    for kind in KINDS:
        values = [float(getattr(sample, kind.field)) for sample in samples]
        middle = statistics.median(values[third : 2 * third])
        last = statistics.median(values[2 * third :])
        found.append(Level(kind, middle, last, max(middle * GROWTH, middle + kind.slack)))
    return found
