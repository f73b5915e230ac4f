"""Turnkeeper with a clock that a test can put forward and back while it runs.

`python rig/clock.py FILE serve …` is `turnkeeper serve …`, at the time of the machine and as many
seconds more as FILE says. Only the time of day: what measures how long something takes goes on.
"""

import sys
import time
from pathlib import Path
from typing import Any

from turnkeeper.cli import main

_NANO = 1_000_000_000


def _shift(file: Path) -> None:
    read_ns = time.time_ns
    system: Any = time

    def shifted_ns() -> int:
        return read_ns() + int(file.read_text() or "0") * _NANO

    system.time_ns = shifted_ns
    system.time = lambda: shifted_ns() / _NANO


if __name__ == "__main__":
    _shift(Path(sys.argv.pop(1)))
    main()
