"""How many bytes of each model's prompts make a token: learned from what providers report. Pure.

Every provider counts in tokens of its own, and counts only afterwards. What it reported of the
calls before is the best guess at the next one; a guess that is too low wastes some of the window,
one that is too high has the call refused, so the guess keeps below the mean.
"""

from collections.abc import Iterable, Sequence
from typing import Final

from turnkeeper.domain import TokenCount

BYTES_PER_TOKEN: Final = 3.0  # of a model that nothing is known of: safe for English and Chinese

_LEAST, _MOST = 1.0, 8.0
_ABSURD_BELOW, _ABSURD_ABOVE = 0.5, 12.0  # what no tokenizer does: the report is of something else
_TINY = 512  # bytes of a prompt that is mostly the framing of its messages
_STEP = 0.125  # guesses move in these, so that plans and the prompt's beginning stay as they are
_DECAY = 1 / 16  # the share of the newest report, once there are many
_REFUSED = 0.8  # what is left of a guess by which a prompt was too long, if no one said by how much
_LEAST_WINDOW = 256


class Counts:
    """What was learned of models, by the ids that they are listed by.

    Attributes:
        version: another one whenever a guess or a window has changed.
        changed: whether anything was learned since `take_news`.
    """

    def __init__(self, known: Iterable[TokenCount] = ()) -> None:
        self.version = 0
        self.changed = False
        self._learned = {count.model: _Learned(count) for count in known}
        self._windows: dict[str, int] = {}

    def bytes_per_token(self, model: str) -> float:
        """The guess for a model's next prompt: rather too low than too high."""
        learned = self._learned.get(model)
        return BYTES_PER_TOKEN if learned is None else learned.guess

    def likely_bytes_per_token(self, model: str) -> float:
        """The mean of what was reported: for a count that nothing depends on."""
        learned = self._learned.get(model)
        return BYTES_PER_TOKEN if learned is None else learned.mean

    def error(self, model: str) -> float:
        """By what part of what was reported the guesses at a model are wrong, in the mean.

        0 if nothing is known.
        """
        learned = self._learned.get(model)
        return 0.0 if learned is None else learned.error

    def learn(self, model: str, weight: int, tokens: int) -> None:
        """Take in that a prompt of this weight had so many tokens; nothing if that cannot be."""
        if weight < _TINY or not _ABSURD_BELOW <= weight / max(tokens, 1) <= _ABSURD_ABOVE:
            return
        if self._of(model).learn(weight / tokens):
            self.version += 1
        self.changed = True

    def correct(self, model: str, weight: int, tokens: int | None) -> None:
        """Take in that a prompt of this weight was too long; `tokens` if the provider counted them.

        From then on the guess is not higher than what was counted, or a fifth lower than it was.
        """
        learned = self._of(model)
        found = learned.guess * _REFUSED
        if tokens and weight / tokens < learned.guess:
            found = weight / tokens
        learned.restart(found)
        self.version += 1
        self.changed = True

    def window(self, model: str, configured: int) -> int:
        """The tokens that a model holds, as it is configured, or fewer if it has said so."""
        return min(configured, self._windows.get(model, configured))

    def note_window(self, model: str, window: int) -> None:
        """Take in what a provider says its model holds. It is forgotten with the process."""
        if window >= _LEAST_WINDOW:
            self._windows[model] = window
            self.version += 1

    def take_news(self) -> Sequence[TokenCount]:
        """All that is known of every model if anything was learned since the last call."""
        if not self.changed:
            return ()
        self.changed = False
        return [learned.count(model) for model, learned in self._learned.items()]

    def _of(self, model: str) -> "_Learned":
        learned = self._learned.get(model)
        if learned is None:
            unknown = TokenCount(model, BYTES_PER_TOKEN, 0.0, 0.0, 0)
            learned = self._learned[model] = _Learned(unknown)
        return learned


class _Learned:
    """What was learned of one model: bytes of a token in the mean, and how far reports stray."""

    __slots__ = ("deviation", "error", "guess", "mean", "reports")

    def __init__(self, count: TokenCount) -> None:
        self.mean = count.bytes_per_token
        self.deviation = count.deviation
        self.error = count.error
        self.reports = count.reports
        self.guess = _quantise(self.mean - self.deviation)

    def learn(self, found: float) -> bool:
        """Whether the guess is another one now."""
        self.reports += 1
        share = max(_DECAY, 1 / (self.reports + 1))  # the first guess counts as a report
        self.error += share * (abs(found / self.guess - 1) - self.error)
        off = found - self.mean
        self.mean += share * off
        self.deviation += share * (abs(off) - self.deviation)
        careful = self.mean - self.deviation
        # Down at once, up only by two steps: between two values it would go to and fro.
        if self.guess <= careful < self.guess + 2 * _STEP:
            return False
        before, self.guess = self.guess, _quantise(careful)
        return self.guess != before

    def restart(self, found: float) -> None:
        self.mean = min(max(found, _LEAST), _MOST)
        self.deviation = 0.0
        self.guess = _quantise(self.mean)

    def count(self, model: str) -> TokenCount:
        return TokenCount(model, self.mean, self.deviation, self.error, self.reports)


def _quantise(bytes_: float) -> float:
    return min(max(bytes_ // _STEP * _STEP, _LEAST), _MOST)
