"""`turnkeeper chat` in a terminal of its own, to be typed into and read."""

import asyncio
import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from collections.abc import Mapping
from pathlib import Path
from typing import Self

# The new process has no terminal of its own yet, which Ctrl-C needs: it takes the one it is given.
_START = (
    "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0);"
    " os.execv(sys.executable, [sys.executable, '-m', 'turnkeeper', 'chat', *sys.argv[1:]])"
)
_ESCAPES = re.compile(
    r"\x1b\[[0-9;?]*[ -/]*[@-~]"
    r"|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)"
    r"|\x1b[@-Z\\^_>=]"
    r"|\x1b(?:\[[0-9;?]*|\][^\x07\x1b]*)?$"  # of which the end has not come yet
)
PROMPT = "›"


class Terminal:
    """A screen of 80 columns and 24 rows with a conversation on it."""

    def __init__(self, folder: Path, *options: str, env: Mapping[str, str] | None = None) -> None:
        self.folder = folder
        self.options = options
        self.env = {
            "PATH": os.environ["PATH"],
            "HOME": str(folder),
            "TERM": "xterm-256color",
            "PROMPT_TOOLKIT_NO_CPR": "1",
            **(env or {}),
        }
        self.output = b""
        self._seen = 0  # how much of `text` was waited for

    async def __aenter__(self) -> Self:
        self._start()
        self._changed = asyncio.Event()
        asyncio.get_running_loop().add_reader(self._fd, self._read)
        return self

    def _start(self) -> None:
        self._fd, theirs = pty.openpty()
        fcntl.ioctl(self._fd, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
        self.process = subprocess.Popen(
            [sys.executable, "-c", _START, *self.options],
            cwd=self.folder,
            env=self.env,
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
        )
        os.close(theirs)

    async def __aexit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        await asyncio.to_thread(self.process.wait)
        asyncio.get_running_loop().remove_reader(self._fd)
        os.close(self._fd)

    def _read(self) -> None:
        try:
            data = os.read(self._fd, 65536)
        except OSError:  # the other side is closed
            data = b""
        if not data:
            asyncio.get_running_loop().remove_reader(self._fd)
        self.output += data
        self._changed.set()

    @property
    def text(self) -> str:
        """Everything that was ever shown, without what only moves and colours."""
        return _ESCAPES.sub("", self.output.decode("utf-8", "ignore")).replace("\r", "")

    def type(self, keys: str) -> None:
        os.write(self._fd, keys.encode())

    async def shows(self, text: str, seconds: float = 20) -> str:
        """Wait until `text` is shown after all that was waited for before; what came until then.

        Raises:
            TimeoutError: it did not come; the message is what did.
        """
        try:
            async with asyncio.timeout(seconds):
                while (found := self.text.find(text, self._seen)) < 0:
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError as error:
            raise TimeoutError(f"no {text!r} in {self.text[self._seen :]!r}") from error
        before, self._seen = self.text[self._seen : found], found + len(text)
        return before

    async def say(self, line: str) -> None:
        """Wait for the prompt and type a line."""
        await self.shows(PROMPT)
        self.type(f"{line}\r")

    async def wait(self, seconds: float = 20) -> int:
        """The exit code, once it has ended."""
        return await asyncio.to_thread(self.process.wait, seconds)
