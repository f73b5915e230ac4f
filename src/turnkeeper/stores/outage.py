"""One line in the log when a database stops working, and one when it works again.

Every write and read fails while a disk is full, thousands in a minute; a log that says so each time
would fill what is left of it.
"""

import logging
import time
from collections.abc import Callable

log = logging.getLogger(__name__)

_PAUSE = 60.0  # seconds between two lines that say the same


class Outage:
    """Whether one kind of use of a database fails just now."""

    def __init__(self, use: str, *, tick: Callable[[], float] = time.monotonic) -> None:
        """`use` is a sentence without its end, as `SQLite cannot be written`."""
        self._use = use
        self._tick = tick
        self.lasts = False
        self._failures = 0  # since the last line
        self._said: str | None = None
        self._is_said = False  # of this outage, and not only of one shortly before
        self._said_at = 0.0

    def failed(self, error: Exception) -> None:
        """It was tried, in vain."""
        self.lasts = True
        self._failures += 1
        said, now = str(error), self._tick()
        if said == self._said and now - self._said_at < _PAUSE:
            return
        often = f" ({self._failures} times)" if self._failures > 1 else ""
        log.error("%s: %s%s", self._use, said, often)
        self._said, self._said_at, self._failures, self._is_said = said, now, 0, True

    def worked(self) -> None:
        """It was tried, and works."""
        if not self.lasts:
            return
        self.lasts = False
        if self._is_said:
            self._is_said = False
            log.warning("%s: that is over", self._use)
