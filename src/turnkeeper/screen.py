"""A reply on the screen while it is made: Markdown, printed block by block.

A block that is complete is printed for good and scrolls away like any output. Only the last one,
which may still change, is drawn again and again, and of it no more than the screen holds: what
has left the screen is never touched again, so that no reply is too long.
"""

import re
import termios
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Self

from markdown_it import MarkdownIt
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.live import Live
from rich.markdown import Markdown
from rich.segment import Segment
from rich.spinner import Spinner
from rich.text import Text

_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_DRAWN_AS_MARKDOWN = (
    8000  # characters of an unfinished block; of a longer one only the end is shown
)

_parser = MarkdownIt().enable("table").enable("strikethrough")  # as rich reads it


def printable(text: str) -> str:
    """`text` without what a terminal obeys: only we move its cursor, or set its clipboard."""
    return _CONTROLS.sub("", text)


def split_blocks(text: str) -> tuple[str, str]:
    """The blocks of a growing Markdown text that will not change any more, and the rest.

    A last line without its end decides nothing: `2` may become the next item of a list.
    """
    whole = text[: text.rfind("\n") + 1]
    starts = [token.map[0] for token in _parser.parse(whole) if token.level == 0 and token.map]
    if not starts:
        return "", text
    settled = "".join(whole.splitlines(keepends=True)[: starts[-1]])
    return settled, text[len(settled) :]


class ReplyView:
    """Shows one reply. `tick` it some ten times a second: only then anything is drawn."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._pending = ""
        self._printed = False
        self._waiting = Spinner("dots", style="dim")
        self._live = Live(
            self._waiting,
            console=console,
            auto_refresh=False,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
        )

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Print what is left, whatever happened."""
        self._live.update(Text(""), refresh=True)
        self._live.stop()
        self._print(self._pending)

    def add(self, text: str) -> None:
        self._pending += printable(text)

    def replace(self, text: str) -> None:
        """What was shown so far does not count; this does."""
        self.note("The server has kept only this of the reply:")
        self._pending = printable(text)

    def note(self, sentence: str) -> None:
        """A sentence of ours, between the words of the reply."""
        self._console.print(Text(printable(sentence), style="dim"))

    def tick(self) -> None:
        settled, self._pending = split_blocks(self._pending)
        self._print(settled)
        drawn = _Tail(self._pending) if self._pending.strip() else self._waiting
        self._live.update(drawn, refresh=True)

    def _print(self, text: str) -> None:
        if not text.strip():
            return
        if self._printed:
            self._console.print()
        self._printed = True
        self._console.print(_markdown(text))


class _Tail:
    """The end of an unfinished block: as many lines as the screen has, but two."""

    def __init__(self, text: str) -> None:
        self._text = text

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        shown: RenderableType = _markdown(self._text)
        if len(self._text) > _DRAWN_AS_MARKDOWN:
            shown = Text(self._text[-_DRAWN_AS_MARKDOWN:])
        lines = console.render_lines(shown, options.update(height=None), pad=False)
        for line in lines[-max(options.size.height - 2, 1) :]:
            yield from line
            yield Segment.line()


def _markdown(text: str) -> Markdown:
    return Markdown(text, hyperlinks=False)  # a link's address is shown, not hidden behind it


@contextmanager
def unechoed(fd: int) -> Iterator[None]:
    """Keys that are pressed meanwhile are kept for the next prompt and not shown."""
    before = termios.tcgetattr(fd)
    quiet = termios.tcgetattr(fd)
    quiet[3] &= ~termios.ECHO
    termios.tcsetattr(fd, termios.TCSANOW, quiet)
    try:
        yield
    finally:
        termios.tcsetattr(fd, termios.TCSANOW, before)
