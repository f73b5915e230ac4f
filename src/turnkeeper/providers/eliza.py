"""ELIZA: a partner in conversation who needs no key, no network and no money.

In the tradition of J. Weizenbaum's DOCTOR ("ELIZA", Communications of the ACM 9(1), 1966): the
weightiest keyword of a message chooses rules, a rule's pattern takes the sentence apart, and one
of its templates makes an answer of the parts. What was said earlier is kept in mind, to come back
to when no keyword is there. The script is `eliza.toml`, beside this module.

The same prompt always gets the same reply. Of a prompt only the user's messages count, and of
those only so much that no text, however long or strange, costs more than a moment.
"""

import asyncio
import tomllib
from collections.abc import AsyncIterator, Sequence
from importlib import resources

import msgspec

from turnkeeper.domain import Message, Model, Prompt, Usage
from turnkeeper.events import ProviderEvent, TextDelta, UsageReport

_LOOKED_AT = 1000  # characters of a message that are read
_REMEMBERED = 50  # earlier messages that are read again: what was said, and what was answered
# Without a keyword, every so many messages, something from earlier comes back. In 1966 it was four.
_COMES_BACK = 2
_CLAUSE_LENGTH = 24  # words of a clause that are read; the work of `_fit` is bounded by it
_MARKS = ".,;:!?…()[]{}<>\"'“”‘„«»*_~`—–-"
_CLAUSE_ENDS = ".,;:!?…)—–"
_END = "$"  # stands after the last word wherever words are turned round


# --- The script as written ---------------------------------------------------------------------


class Rule(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A pattern and what to say, one after the other, to a clause that it fits.

    In `when`, `*` is any number of words, `+` at least one, `@name` one word of a family. In
    `say`, `{4}` is what the fourth place of the pattern stood for, seen from the other side
    ("my" is "your"). `example` is a message that reaches this rule, for readers and tests.
    """

    when: str
    say: tuple[str, ...]
    example: str


class Keyword(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Words that lead to these rules. The highest `rank` in a message goes first."""

    words: tuple[str, ...]
    rule: tuple[Rule, ...]
    rank: int = 0


class Script(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """All that `eliza.toml` says; it explains the fields itself."""

    greeting: str
    silence: tuple[str, ...]
    data: tuple[str, ...]
    foreign: tuple[str, ...]
    none: tuple[str, ...]
    breaks: frozenset[str]
    contractions: dict[str, str]
    reflections: dict[str, str]
    families: dict[str, frozenset[str]]
    memory: tuple[Rule, ...]
    keyword: tuple[Keyword, ...]


def read_script() -> Script:
    """The script that comes with the package."""
    text = resources.files(__package__).joinpath("eliza.toml").read_text(encoding="utf-8")
    return msgspec.convert(tomllib.loads(text), Script)


# --- The script at work ------------------------------------------------------------------------

Place = frozenset[str] | int  # one of these words, or a gap of at least so many words
Pattern = tuple[Place, ...]


class Answer(msgspec.Struct, frozen=True):
    """What may be said to a message: any of `say`, with `parts` in its places."""

    say: tuple[str, ...]
    parts: tuple[str, ...] = ()


class _ReadyRule(msgspec.Struct, frozen=True):
    pattern: Pattern
    say: tuple[str, ...]


class _ReadyKeyword(msgspec.Struct, frozen=True):
    rank: int
    rules: tuple[_ReadyRule, ...]


class Interpreter:
    """Makes answers from a script. Pure: the same messages give the same answer."""

    def __init__(self, script: Script) -> None:
        self._script = script
        self._keywords: dict[str, list[_ReadyKeyword]] = {}
        for keyword in script.keyword:
            rules = tuple(_ReadyRule(self._parse(rule.when), rule.say) for rule in keyword.rule)
            ready = _ReadyKeyword(keyword.rank, rules)
            for word in self._spell_out(keyword.words):
                self._keywords.setdefault(word, []).append(ready)
        self._memory = [_ReadyRule(self._parse(rule.when), rule.say) for rule in script.memory]

    def _spell_out(self, words: Sequence[str]) -> list[str]:
        return [each for word in words for each in self._words_of(word)]

    def _words_of(self, word: str) -> frozenset[str]:
        return self._script.families[word[1:]] if word[0] == "@" else frozenset((word,))

    def _parse(self, when: str) -> Pattern:
        gaps = {"*": 0, "+": 1}
        return tuple(gaps[each] if each in gaps else self._words_of(each) for each in when.split())

    def answer(self, messages: Sequence[str]) -> str:
        """What to say after the user's `messages`, of which the last is to be answered.

        A rule that answered before moves on to its next template. Messages too long ago to be
        read again count as if they had met the same rule, so that it goes on moving.
        """
        if not messages:
            return self._script.greeting
        *earlier, newest = messages
        recent = earlier[-_REMEMBERED:]
        long_ago = len(earlier) - len(recent)
        found = self.read(newest)
        before = [self.read(each) for each in recent]
        used = long_ago + sum(each.say is found.say for each in before)
        if found.say is self._script.none:
            kept, brought_up = self._kept_in_mind(recent, before, long_ago)
            if kept and _is_time_to_come_back(len(earlier)):
                found, used = kept[0], brought_up
            else:
                used -= brought_up
        reply = found.say[used % len(found.say)].format("", *found.parts)
        return reply[0].upper() + reply[1:]

    def _kept_in_mind(
        self, messages: Sequence[str], answers: Sequence[Answer], number: int
    ) -> tuple[list[Answer], int]:
        """What is left to come back to after `messages`, oldest first, and how often it was done.

        They were read as these `answers`, and `number` more messages stood before them. Nothing
        is brought up twice: the more is forgotten, the sooner the rest would have had its turn.
        """
        kept: list[Answer] = []
        known: set[Answer] = set()
        brought_up = 0
        for place, (message, answer) in enumerate(zip(messages, answers, strict=True), number):
            if answer.say is self._script.none:
                if kept and _is_time_to_come_back(place):
                    del kept[0]
                    brought_up += 1
            elif (memory := self.remember(message)) and memory not in known:
                known.add(memory)
                kept.append(memory)
        return kept, brought_up

    def remember(self, message: str) -> Answer | None:
        """What to say when coming back to this message, if there is something to come back to."""
        for clause in self._split(message.strip()[:_LOOKED_AT]):
            for rule in self._memory:
                if (answer := self._apply(rule, clause)) is not None:
                    return answer
        return None

    def read(self, message: str) -> Answer:
        """The answers that suit one message, whatever it holds."""
        message = message.strip()
        text = message[:_LOOKED_AT]
        if message[:1] + message[-1:] in ("{}", "[]"):
            return Answer(self._script.data)
        if not any(map(str.isalnum, text)):
            return Answer(self._script.silence)
        if _is_foreign(text):
            return Answer(self._script.foreign)
        return self._recognise(self._split(text)) or Answer(self._script.none)

    def _split(self, text: str) -> list[list[str]]:
        """The clauses of `text`, each a list of words as they were written, none of them empty."""
        clauses: list[list[str]] = [[]]
        for line in text.replace("’", "'").splitlines():
            for raw in line.split():
                words = self._expand(raw.strip(_MARKS))
                if words and words[0].lower() in self._script.breaks:
                    clauses.append([])
                else:
                    clauses[-1] += words
                if raw[-1] in _CLAUSE_ENDS:
                    clauses.append([])
            clauses.append([])
        return [clause[:_CLAUSE_LENGTH] for clause in clauses if clause]

    def _expand(self, word: str) -> list[str]:
        return self._script.contractions.get(word.lower(), word).split()

    def _recognise(self, clauses: list[list[str]]) -> Answer | None:
        """The answer of the first rule that fits, weightiest keywords first."""
        hits = [
            (keyword, clause)
            for clause in clauses
            for word in clause
            for keyword in self._keywords.get(word.lower(), ())
        ]
        for keyword, clause in sorted(hits, key=lambda hit: -hit[0].rank):
            for rule in keyword.rules:
                if (answer := self._apply(rule, clause)) is not None:
                    return answer
        return None

    def _apply(self, rule: _ReadyRule, clause: list[str]) -> Answer | None:
        """The answers of a rule to a clause, if it fits."""
        lowered = [word.lower() for word in clause]
        if (spans := _fit(rule.pattern, lowered)) is None:
            return None
        parts = (
            # Words that the script names are shown as it spells them: "Nothing" is "nothing".
            self._turn_round((clause if isinstance(place, int) else lowered)[start:end])
            for place, (start, end) in zip(rule.pattern, spans, strict=True)
        )
        return Answer(rule.say, tuple(parts))

    def _turn_round(self, words: list[str]) -> str:
        """`words` as the other of the two would say them."""
        left = [*words, _END]
        said = []
        while left:
            size = 2 if " ".join(left[:2]).lower() in self._script.reflections else 1
            phrase = " ".join(left[:size])
            said.append(self._script.reflections.get(phrase.lower(), phrase))
            del left[:size]
        return " ".join(said).removesuffix(_END).rstrip()


def _is_time_to_come_back(place: int) -> bool:
    """Whether the message at this place, from 0, may be answered with something from earlier."""
    return place % _COMES_BACK == _COMES_BACK - 1


def _is_foreign(text: str) -> bool:
    """Whether `text` has letters, but none that an English word is made of."""
    letters = [each for each in text if each.isalpha()]
    return bool(letters) and not any(map(str.isascii, letters))


def _fit(pattern: Pattern, words: list[str], at: int = 0) -> list[tuple[int, int]] | None:
    """Where in `words` each place of `pattern` lies, earlier gaps as short as they can be.

    None if it does not fit all the words from `at` on.
    """
    if not pattern:
        return [] if at == len(words) else None
    place, *rest = pattern
    if isinstance(place, int):
        ends = range(at + place, len(words) + 1)
    else:
        ends = range(at + 1, at + 2 if at < len(words) and words[at] in place else 0)
    for end in ends:
        if (spans := _fit(tuple(rest), words, end)) is not None:
            return [(at, end), *spans]
    return None


# --- The provider ------------------------------------------------------------------------------


class Eliza:
    """A `Provider` with one model, spoken word by word with `pace` seconds between the words."""

    name = "eliza"
    attempts = 1

    def __init__(self, pace: float = 0.0) -> None:
        self._pace = pace
        self._interpreter = Interpreter(read_script())

    @property
    def models(self) -> Sequence[Model]:
        return (Model(id="eliza", name="ELIZA", context_window=8192),)

    async def stream(self, prompt: Prompt) -> AsyncIterator[Sequence[ProviderEvent]]:
        """One word a time, with the space after it; a count of words in place of tokens."""
        messages = [
            item.text for item in prompt.items if isinstance(item, Message) and item.role == "user"
        ]
        *words, last = self._interpreter.answer(messages).split(" ")
        for word in words:
            yield (TextDelta(f"{word} "),)
            await asyncio.sleep(self._pace)
        yield (TextDelta(last),)
        asked = sum(len(message.split()) for message in messages)
        yield (UsageReport(Usage(asked, len(words) + 1, estimated=True)),)

    async def close(self) -> None:
        """Nothing was opened."""
