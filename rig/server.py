"""A real Turnkeeper process on a real port, to be talked to, stopped and killed."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

TURNKEEPER = ("-m", "turnkeeper")


class Server:
    """`turnkeeper serve` in a folder of its own; `start` again after it has ended.

    `under` are the words of another program that starts it, in front of its own.

    Attributes:
        program: what stands in place of `-m turnkeeper`. May be changed between two starts, as
            `env` may.
        log: all it has said, every time it ran.
        url: where it listened last.
    """

    def __init__(
        self,
        folder: Path,
        *options: str,
        env: Mapping[str, str] | None = None,
        under: Sequence[str] = (),
        program: Sequence[str] = TURNKEEPER,
    ) -> None:
        self.folder = folder
        self.options = options
        self.under = under
        self.program = program
        self.env = {
            "PATH": os.environ["PATH"],
            "PORT": "0",
            "PYTHONFAULTHANDLER": "1",
            "TURNKEEPER_LOG_LEVEL": "warning",
            **(env or {}),
        }
        self.log: list[str] = []
        self.url = ""
        self._process: subprocess.Popen[str] | None = None

    def start(self) -> "Server":
        """Start it; returns once it answers.

        Raises:
            RuntimeError: it ended instead; the message holds what it said.
        """
        self._process = subprocess.Popen(
            [*self.under, sys.executable, *self.program, "serve", *self.options],
            cwd=self.folder,
            env=self.env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self.log.append(line)
            if line.startswith("Turnkeeper is listening on "):
                self.url = line.split()[4]
                self._reading = threading.Thread(
                    target=self._read_on, args=[self._process.stdout], daemon=True
                )
                self._reading.start()
                return self
        self._process.stdout.close()
        self._process.wait()
        raise RuntimeError(f"ended with {self._process.returncode}: {''.join(self.log)}")

    def _read_on(self, output: IO[str]) -> None:
        with output:
            self.log.extend(output)

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def wait(self, seconds: float = 30) -> int:
        """Its exit code, once it has ended and all it said is in `log`."""
        assert self._process is not None
        code = self._process.wait(seconds)
        self._reading.join(seconds)
        return code

    def stop(self) -> int:
        """SIGTERM, and its exit code."""
        self.signal(signal.SIGTERM)
        return self.wait()

    def kill(self) -> None:
        """SIGKILL: no goodbye."""
        self.signal(signal.SIGKILL)
        self.wait()

    def __enter__(self) -> "Server":
        return self if self.running else self.start()

    def __exit__(self, *_: object) -> None:
        if self.running:
            self.kill()
