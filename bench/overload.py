"""Three times what a server can do: what becomes of those it admits, and of the others.

`python -m bench.overload` starts a model that takes half a second for a reply and a Turnkeeper
whose `max_turns` are 32, so that it can do 64 turns a second. Requests come at fixed times, however
long the answers take: at half of that, at three times as much, and at half again at once.
"""

import asyncio
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import aiohttp

from rig.server import Server

MAX_TURNS, MODEL_SECONDS = 32, 0.5
CAPACITY = MAX_TURNS / MODEL_SECONDS
PHASES = (("half", 0.5, 5.0), ("three times", 3.0, 10.0), ("half, at once after it", 0.5, 5.0))

Answered = list[tuple[int, float]]  # statuses and seconds


@contextmanager
def model() -> Iterator[str]:
    """The address of a model that takes its time."""
    options = ["--deltas", "20", "--first-delay", str(MODEL_SECONDS)]
    command = [sys.executable, "-m", "rig.model_server", *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield next(word for word in process.stdout.readline().split() if "http" in word)
        finally:
            process.terminate()


async def ask(http: aiohttp.ClientSession, answered: Answered) -> None:
    begun = time.perf_counter()
    async with http.post("/api/chat", json={"message": "hello"}) as answer:
        await answer.read()
        answered.append((answer.status, time.perf_counter() - begun))


async def offer(http: aiohttp.ClientSession, rate: float, seconds: float) -> Answered:
    """What is answered to so many requests a second."""
    answered: Answered = []
    begun, asked = time.perf_counter(), list[asyncio.Task[None]]()
    for number in range(int(rate * seconds)):
        await asyncio.sleep(begun + number / rate - time.perf_counter())
        asked.append(asyncio.create_task(ask(http, answered)))
    await asyncio.gather(*asked)
    return answered


def told(seconds: list[float]) -> str:
    if not seconds:
        return f"{'-':>17}"
    ordered = sorted(seconds)
    median, late = statistics.median(ordered), ordered[int(len(ordered) * 0.99)]
    return f"{median * 1000:7.1f} {late * 1000:7.1f}"


def cpu(pid: int) -> float:
    """Seconds of CPU that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def measure(server: Server) -> None:
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(server.url, connector=connector) as http:
        await offer(http, 50, 1)
        print(f"{'':24} turns/s  admitted ms p50, p99    503      ms p50, p99   CPU")
        for name, times, seconds in PHASES:
            before = cpu(server.pid)
            answered = await offer(http, CAPACITY * times, seconds)
            used = cpu(server.pid) - before
            turns = [took for status, took in answered if status == 200]
            refused = [took for status, took in answered if status == 503]
            assert len(turns) + len(refused) == len(answered)
            share = len(refused) / len(answered)
            print(
                f"{name:24}{len(turns) / seconds:8.0f} {told(turns):>21} {share:6.0%}"
                f" {told(refused):>17} {used / seconds:5.0%}"
            )


def main() -> None:
    with tempfile.TemporaryDirectory(dir=".") as folder, model() as url:
        env = {"OPENAI_BASE_URL": url, "OPENAI_API_KEY": "none"}
        options = ("--model", "bench-model", "--max-turns", str(MAX_TURNS))
        with Server(Path(folder), *options, env=env) as server:
            asyncio.run(measure(server))


if __name__ == "__main__":
    main()
