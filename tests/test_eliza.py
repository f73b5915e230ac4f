"""ELIZA: the same words get the same answer, no rule is idle, no text is too much for her."""

import re
import time
from string import Formatter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from turnkeeper.domain import Message, Prompt, Reasoning, ToolCall
from turnkeeper.events import TextDelta, UsageReport
from turnkeeper.providers.eliza import Eliza, Interpreter, Rule, read_script

SCRIPT = read_script()
RULES = [rule for keyword in SCRIPT.keyword for rule in keyword.rule]
LISTS = {
    "silence": SCRIPT.silence,
    "data": SCRIPT.data,
    "foreign": SCRIPT.foreign,
    "none": SCRIPT.none,
}
MEMORIES = SCRIPT.memory
SENTENCES = [
    SCRIPT.greeting,
    *(line for lines in LISTS.values() for line in lines),
    *(line for rule in (*RULES, *MEMORIES) for line in rule.say),
]


@pytest.fixture(scope="module")
def interpreter() -> Interpreter:
    return Interpreter(SCRIPT)


def prompt_of(*messages: str) -> Prompt:
    return Prompt(model="eliza", items=tuple(Message("user", text) for text in messages))


async def events_of(prompt: Prompt) -> list:
    return [event async for events in Eliza().stream(prompt) for event in events]


def text_of(events) -> str:
    return "".join(event.text for event in events if isinstance(event, TextDelta))


# --- The provider ------------------------------------------------------------------------------


async def test_a_reply_comes_word_by_word_and_its_pieces_are_the_whole(interpreter):
    events = await events_of(prompt_of("My garden is dry."))
    words = [event.text for event in events[:-1]]
    assert "".join(words) == interpreter.answer(["My garden is dry."])
    assert all(re.fullmatch(r"\S+ ", word) for word in words[:-1])
    assert re.fullmatch(r"\S+", words[-1])


async def test_it_ends_with_an_estimate_of_its_usage():
    events = await events_of(prompt_of("one two three", "four"))
    assert isinstance(events[-1], UsageReport)
    assert events[-1].usage.prompt_tokens == 4
    assert events[-1].usage.completion_tokens == len(events) - 1
    assert events[-1].usage.estimated


async def test_without_a_message_it_greets():
    assert text_of(await events_of(prompt_of())) == SCRIPT.greeting
    only_system = Prompt("eliza", (Message("system", "I am sad"),))
    assert text_of(await events_of(only_system)) == SCRIPT.greeting


async def test_only_the_words_of_the_user_count():
    items = (
        Message("system", "You love cats."),
        Message("user", "Hello"),
        Message("assistant", "I am sad"),
        Reasoning("my mother"),
        ToolCall("1", "hello", "{}"),
        Message("user", "I walked home."),
    )
    mixed = text_of(await events_of(Prompt("eliza", items)))
    assert mixed == text_of(await events_of(prompt_of("Hello", "I walked home.")))


async def test_the_same_prompt_gets_the_same_reply():
    prompt = prompt_of("Hello", "I am tired", "I am tired")
    assert await events_of(prompt) == await events_of(prompt)


async def test_pace_is_kept_between_words():
    started = time.monotonic()
    async for _ in Eliza(pace=0.02).stream(prompt_of("Hello")):
        pass
    words = len(SCRIPT.keyword[0].rule[0].say[0].split())
    assert time.monotonic() - started >= 0.02 * (words - 1)


# --- What it says ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "answer"),
    [
        ("Nothing grows", "Really nothing? Could there be one exception?"),
        ("I think you are mean to me", "What speaks for it that I am mean to you?"),
        ("I am proud of my work", "How good to hear! What made you proud?"),
        ("I’m Your twin", "Since when are you my twin?"),
        (
            "I feel lost, but I can't tell my boss",
            "I am sorry that you are lost. What weighs most?",
        ),
        ("I need you", "It is kind of you to be so open. What would you hope to hear from me?"),
        ("I think Anna likes you", "What speaks for it that Anna likes me?"),
        ("What is it to you?", "We were speaking of you, I think, and not of me."),
        ("I believe in myself.", "What speaks for it that in yourself?"),
    ],
)
def test_words_come_back_from_the_other_side(interpreter, said, answer):
    assert interpreter.answer([said]) == answer


def test_the_weightiest_word_decides(interpreter):
    assert "sad" in interpreter.answer(["Hello, I think I am sad about it."])


def test_ten_turns_read_without_a_repeated_reply(interpreter):
    said = [
        "Hello",
        "I had a long day",
        "My boss was angry with me",
        "because I forgot a meeting",
        "I always forget things",
        "I don't know",
        "It rained, too",
        "Nothing grows",
        "Yes",
        "Thank you",
    ]
    replies = [interpreter.answer(said[: turn + 1]) for turn in range(len(said))]
    assert len(set(replies)) == len(said)


TWENTY_TURNS = """\
Hello
My sister is moving to Norway next month
We grew up in the same room
I think she is brave
It snows there a lot
I am a bit afraid of the winter
Yes
Mountains, mostly
Because the flights are so expensive
Maybe in spring
Nothing will be the same
Do you have a sister?
You are a good listener
Anyway, it rained all day
I made soup
Lentils and lemon
I can't sleep lately
What should one do?
The moon was out
Thank you, goodbye""".splitlines()


def conversation(interpreter: Interpreter, said: list[str]) -> list[str]:
    return [interpreter.answer(said[: turn + 1]) for turn in range(len(said))]


def test_twenty_turns_stay_pleasant(interpreter):
    replies = conversation(interpreter, TWENTY_TURNS)
    assert len(replies) == len(set(replies)) == 20
    assert all(re.fullmatch(r"[A-Z].{8,}[.?!]", reply) for reply in replies)
    assert replies[7] == (
        "Earlier you said that your sister is moving to Norway next month."
        " Does that have something to do with this?"
    )
    assert replies[13].startswith("You also said that you are a bit afraid of the winter.")


def test_one_tale_of_twenty_turns_in_which_hardly_a_word_is_known(interpreter):
    said = ["My cello is out of tune", *(f"zebra {number}" for number in range(19))]
    replies = conversation(interpreter, said)
    assert sum("cello" in reply for reply in replies[1:]) == 1
    assert len(set(replies[:13])) == 13  # then all that can be said to nothing has been said


@pytest.mark.parametrize(
    ("said", "memory"),
    [
        ("I lost my keys", "You told me that you lost your keys."),
        ("Well, I think my mother hates me", "You told me that you think your mother hates you."),
        ("My boss was angry with me", "Earlier you said that your boss was angry with you."),
        ("I'm new in town", "A while ago you told me that you are new in town."),
        ("I wanna dance", "Earlier you spoke of something else: that you want to dance."),
        ("It happened to MY Brother", "Earlier you mentioned your brother."),
    ],
)
def test_earlier_words_come_back_when_no_rule_fits(interpreter, said, memory):
    assert memory in interpreter.answer([said, "zebra"])
    assert memory not in interpreter.answer([said, "yes", "zebra"]), "only now and then"
    assert memory in interpreter.answer([said, "yes", "zebra", "zebra"])


def test_a_message_that_a_rule_fits_is_answered_itself(interpreter):
    assert "keys" not in interpreter.answer(["I lost my keys", "Yes"])


def test_what_came_back_does_so_once_however_long_the_talk(interpreter):
    said = []
    for number in range(100):
        said += [
            f"My uncle is {number} years old",
            *["zebra"] * (number % 4),
            *["yes"] * (number % 3),
        ]
    replies = [interpreter.answer(said[: turn + 1]) for turn in range(len(said))]
    came_back = [
        re.search(r"your uncle is \d+", reply)[0]
        for text, reply in zip(said, replies, strict=True)
        if text == "zebra" and "your uncle is" in reply
    ]
    assert len(came_back) == len(set(came_back)) > 50


@pytest.mark.parametrize("rule", MEMORIES, ids=lambda rule: rule.example)
def test_every_memory_can_be_reached_and_told_in_all_its_ways(interpreter, rule):
    memory = interpreter.remember(rule.example)
    assert memory.say is rule.say
    assert not any("{" in line.format("", *memory.parts) for line in memory.say)


@pytest.mark.parametrize("text", ["", "What is your name?", "zebra", "{}", "мой", "My, oh my!"])
def test_not_everything_is_remembered(interpreter, text):
    assert interpreter.remember(text) is None


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.example)
def test_a_rule_goes_through_all_its_answers(interpreter, rule):
    count = len(rule.say)
    replies = [interpreter.answer([rule.example] * (turn + 1)) for turn in range(count)]
    assert len(set(replies)) == count


def test_a_long_conversation_does_not_get_stuck(interpreter):
    replies = [interpreter.answer(["zebra"] * turns) for turns in range(200, 200 + 12)]
    assert len(set(replies)) == 12


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("", "silence"),
        (" \n\t ", "silence"),
        ("...?!", "silence"),
        ("😀", "silence"),
        ('{"name": "test", "n": [1, 2]}', "data"),
        ("[" * 100_000 + "]" * 100_000, "data"),
        ("Привет, как дела?", "foreign"),
        ("今日はいい天気ですね。", "foreign"),
        ("مرحبا", "foreign"),
        ("42", "none"),
        ("naïveté über alles", "none"),
    ],
)
def test_odd_messages_have_answers_of_their_own(interpreter, text, kind):
    assert interpreter.read(text).say is LISTS[kind]


# --- The script --------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.example)
def test_every_rule_can_be_reached(interpreter, rule):
    assert interpreter.read(rule.example).say is rule.say


def test_every_word_of_every_keyword_gets_an_answer(interpreter):
    for keyword in SCRIPT.keyword:
        for word in keyword.words:
            for spelling in SCRIPT.families[word[1:]] if word[0] == "@" else [word]:
                assert interpreter.answer([spelling])


@pytest.mark.parametrize("rule", [*RULES, *MEMORIES], ids=lambda rule: rule.example)
def test_an_answer_shows_only_parts_that_are_there(rule: Rule):
    places = ["", *rule.when.split()]
    for line in rule.say:
        used = {int(field) for _, field, _, _ in Formatter().parse(line) if field}
        assert all(places[number] == "+" or places[number][0] == "@" for number in used)


def test_no_pattern_has_so_many_gaps_that_fitting_takes_long():
    assert all(sum(rule.when.count(gap) for gap in "*+") <= 3 for rule in (*RULES, *MEMORIES))


def test_sentences_are_whole_and_none_stands_twice():
    assert all(re.search(r"[.?!]$", line) and "  " not in line for line in SENTENCES)
    assert len(set(SENTENCES)) == len(SENTENCES)


def test_words_of_the_script_are_in_small_letters_and_within_what_is_looked_up():
    keys = [*SCRIPT.contractions, *SCRIPT.reflections, *SCRIPT.breaks]
    words = [word for family in SCRIPT.families.values() for word in family]
    assert all(key == key.lower() for key in keys + words)
    assert all(len(key.split()) <= 2 for key in SCRIPT.reflections)
    assert all(len(word.split()) == 1 for word in words)


# --- Hostile input -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "i am " * 1_000_000,
        "x" * 5_000_000,
        "my i you i me " * 300_000,
        "(" * 1_000_000,
        "\n" * 1_000_000 + "i",
        "i " * 500 + "you",
        "a" + "\u0301" * 1_000_000,
        "my x is y i am " * 100_000,
        "{0} {99} {} %s \\ $ my $ you $",
    ],
    ids=range(9),
)
def test_no_text_takes_long(interpreter, text):
    started = time.perf_counter()
    reply = interpreter.answer([text] * 60)
    assert time.perf_counter() - started < 1
    assert len(reply) < 1200


@given(st.lists(st.text(max_size=80), max_size=4))
def test_nothing_raises(texts):
    assert Interpreter(SCRIPT).answer(texts)


@given(
    st.lists(
        st.sampled_from(
            [
                "i",
                "you",
                "my",
                "is",
                "want",
                "to",
                "mother",
                "am",
                "are",
                "me",
                "{0}",
                "$",
                ",",
                "I'm",
            ]
        ),
        max_size=40,
    )
)
def test_nothing_raises_on_words_it_knows(words):
    assert Interpreter(SCRIPT).answer([" ".join(words)]).strip()
    assert Interpreter(SCRIPT).answer([" ".join(words), "zebra"]).strip()
