"""Plain questions, asked one after the other on one connection: what each takes to be answered."""

import json
import statistics
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection
from typing import Any

from bench.servers import BenchError

MAKERS = 16  # connections that sessions are made on at once


class Asker:
    """A connection to a server of this machine; closed by whoever made it."""

    def __init__(self, port: int) -> None:
        self._connection = HTTPConnection("127.0.0.1", port, timeout=60)

    def ask(self, method: str, path: str, body: Any = None) -> Any:
        """The JSON of a successful answer."""
        self._connection.request(method, path, None if body is None else json.dumps(body))
        response = self._connection.getresponse()
        text = response.read()
        if response.status >= 300:
            raise BenchError(f"{method} {path} was answered with {response.status}: {text!r}")
        return json.loads(text) if text else None

    def milliseconds(self, method: str, paths: Sequence[str]) -> float:
        """The median over the paths, each asked once."""
        took = []
        for path in paths:
            begun = time.perf_counter()
            self.ask(method, path)
            took.append(time.perf_counter() - begun)
        return statistics.median(took) * 1000

    def close(self) -> None:
        self._connection.close()


def make_sessions(port: int, count: int) -> None:
    """Make so many sessions with a title and nothing else."""

    def make(share: int) -> None:
        asker = Asker(port)
        for number in range(share):
            asker.ask("POST", "/api/chat-sessions", {"title": f"Session {number}"})
        asker.close()

    shares = [count // MAKERS + (number < count % MAKERS) for number in range(MAKERS)]
    with ThreadPoolExecutor(MAKERS) as pool:
        list(pool.map(make, shares))
