"""What the kernel knows: cores, CPU clocks of processes, memory, the speed of the disk. Linux."""

import os
import platform
import resource
import sqlite3
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path


def two_cores() -> tuple[int, int]:
    """The core for the server under test and the core for everything else.

    Two threads of one core would slow each other down, so they are taken only if there is no
    other choice.
    """
    if not hasattr(os, "sched_setaffinity"):
        raise SystemExit("The benchmark pins processes to cores, which needs Linux.")
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        raise SystemExit("The benchmark needs two cores: one for the server, one for the load.")
    first, *others = cores
    siblings = Path(f"/sys/devices/system/cpu/cpu{first}/topology/thread_siblings_list")
    shared = threads(siblings.read_text()) if siblings.exists() else set()
    return next((core for core in others if core not in shared), others[0]), first


def threads(listed: str) -> set[int]:
    """The numbers in the kernel's notation for them: "0,64" or "0-1"."""
    found: set[int] = set()
    for part in listed.strip().split(","):
        low, _, high = part.partition("-")
        found.update(range(int(low), int(high or low) + 1))
    return found


@contextmanager
def on_core(core: int) -> Iterator[None]:
    """Processes started inside inherit the core from their first instruction on."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def family(pid: int) -> list[int]:
    """The process and all its descendants: a gunicorn server is its master and its workers."""
    pids = [pid]
    for parent in pids:  # grows while it is walked
        for children in Path(f"/proc/{parent}/task").glob("*/children"):
            pids.extend(int(child) for child in children.read_text().split())
    return pids


def cpu_seconds(pids: list[int]) -> float:
    """User and system time of the processes, ended threads included.

    /proc/PID/stat counts in ticks of 10 ms; the process's CPU clock counts nanoseconds. Its id is
    made from the pid as clock_getcpuclockid(3) does it.
    """
    return sum(time.clock_gettime((~pid << 3) | 2) for pid in pids)


def memory_mib(pids: list[int]) -> float:
    """Resident memory of the processes, pages shared between them counted once."""
    kib = 0
    for pid in pids:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:" if len(pids) > 1 else "Rss:"):
                kib += int(line.split()[1])
    return kib / 1024


def allow_open_files() -> None:
    """As many open files as the machine permits, for us and for the processes we start."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def open_files() -> int:
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def fsync_ms(directory: Path, times: int = 200) -> float:
    """Median time of appending 4 KiB to a file in the directory and having it on the disk."""
    path = directory / "fsync"
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    taken = []
    try:
        for _ in range(times):
            begun = time.perf_counter()
            os.write(descriptor, b"x" * 4096)
            os.fdatasync(descriptor)
            taken.append(time.perf_counter() - begun)
    finally:
        os.close(descriptor)
        path.unlink()
    return statistics.median(taken) * 1e3


def description() -> str:
    """One line on where the figures come from."""
    names = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ]
    return (
        f"{names[0] if names else platform.machine()}, {os.cpu_count()} cores, "
        f"Linux {platform.release().split('-')[0]}, Python {platform.python_version()}, "
        f"SQLite {sqlite3.sqlite_version}, {datetime.now(UTC):%Y-%m-%d}"
    )
