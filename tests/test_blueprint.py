"""Blueprints: what can be one, what a session's prompt begins with, how two differ."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from turnkeeper.blueprint import (
    diff_blueprints,
    fill_in,
    find_deployment,
    is_deployment_name,
    plain_blueprint,
    read_blueprint,
    sampling_of,
)
from turnkeeper.domain import Blueprint, Example, Message, Sampling
from turnkeeper.errors import DeploymentNotFound, InvalidRequest

# --- Names -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a", "0", "default", "trips-2", "a_b", "x" * 64])
def test_a_name_is_a_part_of_a_url(name: str) -> None:
    assert is_deployment_name(name)
    assert find_deployment(name) == name


@pytest.mark.parametrize(
    "name", ["", "-a", "_a", "A", "a b", "a/b", "ä", "a\n", "x" * 65, "٣", "a\0", "{a}", "\ud800"]
)
def test_what_can_be_no_name_is_not_looked_for(name: str) -> None:
    assert not is_deployment_name(name)
    with pytest.raises(DeploymentNotFound):
        find_deployment(name)


# --- Reading -----------------------------------------------------------------------------------

EVERYTHING = {
    "system_message": "You plan trips to {country}.",
    "messages": [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi"}],
    "model": "m",
    "fallback_models": ["n", "o"],
    "temperature": 0.5,
    "top_p": 1.0,
    "max_tokens": 100,
    "stop": ["END"],
    "context_window": 4096,
    "overflow": "error",
    "unused_variables": "ignore",
    "on_disconnect": "cancel",
    "concurrency": "interrupt",
    "idle_timeout": 60,
    "max_age": 3600,
}


def test_everything_that_is_said_is_read_and_shown_again() -> None:
    assert set(EVERYTHING) == set(Blueprint.__struct_fields__)
    blueprint = read_blueprint(EVERYTHING)
    assert json.loads(json.dumps(plain_blueprint(blueprint))) == EVERYTHING
    assert sampling_of(blueprint) == Sampling(0.5, 1.0, 100, ("END",))


def test_everything_may_be_left_out_and_is_shown_all_the_same() -> None:
    blueprint = read_blueprint({})
    assert blueprint == Blueprint()
    assert set(plain_blueprint(blueprint)) == set(EVERYTHING)
    assert read_blueprint(plain_blueprint(blueprint)) == blueprint


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ([], "The deployment must be a JSON object"),
        (None, "The deployment must be a JSON object"),
        ({"colour": "blue"}, "The deployment has an unknown field colour"),
        ({"system_message": None}, "system_message must be a string"),
        ({"system_message": "\ud800"}, "system_message holds a character that cannot be kept"),
        ({"messages": {}}, "messages must be a list"),
        ({"messages": [{"role": "user"}]}, "messages[0] needs content"),
        ({"messages": [{"role": "user", "content": "\n"}]}, "messages[0].content must not be"),
        ({"messages": [{"role": "user", "content": "\0"}]}, "messages[0].content holds a"),
        (
            {"messages": [{"role": "tool", "content": "x"}]},
            "messages[0].role must be system or user or assistant",
        ),
        ({"messages": [{"role": "user", "content": "x", "n": 1}]}, "messages[0] has an unknown"),
        ({"model": ""}, "model must be a string of at least 1 characters"),
        ({"fallback_models": ["m"] * 17}, "fallback_models must be a list of at most 16 entries"),
        ({"fallback_models": ["\0"]}, "fallback_models holds a character"),
        ({"temperature": -1}, "temperature must be a number of at least 0"),
        ({"temperature": 2.5}, "temperature must be a number of at most 2"),
        ({"temperature": "hot"}, "temperature must be a number"),
        ({"temperature": True}, "temperature must be a number"),
        ({"top_p": 0}, "top_p must be a number of more than 0"),
        ({"max_tokens": 0}, "max_tokens must be an integer of at least 1"),
        ({"max_tokens": 1.5}, "max_tokens must be an integer"),
        ({"stop": "END"}, "stop must be a list"),
        ({"stop": list("abcde")}, "stop must be a list of at most 4 entries"),
        ({"stop": [""]}, "stop[0] must be a string of at least 1 characters"),
        ({"context_window": 255}, "context_window must be an integer of at least 256"),
        ({"overflow": "burst"}, "overflow must be truncate or summarise or error"),
        ({"unused_variables": "x"}, "unused_variables must be tell or ignore"),
        ({"on_disconnect": "x"}, "on_disconnect must be continue or cancel"),
        ({"concurrency": "x"}, "concurrency must be queue or reject or interrupt"),
        ({"idle_timeout": 0}, "idle_timeout must be an integer of at least 1"),
    ],
)
def test_what_is_wrong_is_named(values: Any, sentence: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        read_blueprint(values)
    assert refused.value.sentence.startswith(sentence)


# --- Telling two apart -------------------------------------------------------------------------


def test_two_blueprints_differ_in_fields() -> None:
    before = read_blueprint({"system_message": "a", "temperature": 1, "stop": ["x"]})
    after = read_blueprint({"system_message": "b", "temperature": 1.0, "model": "m"})
    assert diff_blueprints(before, after) == {
        "system_message": ("a", "b"),
        "model": (None, "m"),
        "stop": (("x",), ()),
    }
    assert diff_blueprints(before, before) == {}


# --- Filling in --------------------------------------------------------------------------------


def filled(text: str, variables: dict[str, str]) -> str:
    """The system message alone, told nothing that it does not name."""
    blueprint = Blueprint(text, unused_variables="ignore")
    return "".join(message.text for message in fill_in(blueprint, variables))


@pytest.mark.parametrize(
    ("text", "variables", "expected"),
    [
        ("to {country}", {"country": "France"}, "to France"),
        ("to { country }", {"country": "France"}, "to France"),
        ("to {\ncountry\t}", {"country": "France"}, "to France"),
        ("{a}{a}", {"a": "x"}, "xx"),
        ("{a} {b}", {"a": "{b}", "b": "{a}"}, "{b} {a}"),
        ("{b}", {"a": "x"}, "{b}"),
        ("{A}", {"a": "x"}, "{A}"),
        ("{{a}}", {"a": "x"}, "{x}"),
        ("{{{a}", {"a": "x"}, "{{x"),
        ("{a", {"a": "x"}, "{a"),
        ("a}", {"a": "x"}, "a}"),
        ("{}", {"": "x"}, "x"),
        ("{a b}", {"a b": "x"}, "x"),
        ("{ a }", {" a ": "exact", "a": "x"}, "exact"),
        ("{näme 🎓}", {"näme 🎓": "ü\n\\1"}, "ü\n\\1"),
        ("{a.b!r:>10}", {"a": "x"}, "{a.b!r:>10}"),
        ('{"key": 1}', {"key": "x"}, '{"key": 1}'),
        ("$a %(a)s \\g<0>", {"a": "x"}, "$a %(a)s \\g<0>"),
        ("{a}!", {"a": ""}, "!"),
        ("{a}", {}, "{a}"),
    ],
)
def test_a_placeholder_is_replaced_once_or_stays(
    text: str, variables: dict[str, str], expected: str
) -> None:
    assert filled(text, variables) == expected


def test_examples_have_placeholders_too() -> None:
    blueprint = Blueprint("", (Example("user", "In {x}?"), Example("assistant", "Yes, { x }.")))
    assert fill_in(blueprint, {"x": "Rome"}) == (
        Message("user", "In Rome?"),
        Message("assistant", "Yes, Rome."),
    )


def test_a_variable_that_nothing_names_is_told_after_the_system_message() -> None:
    blueprint = Blueprint("You plan trips.", (Example("user", "With {who}"),))
    assert fill_in(blueprint, {"country": "France", "who": "Ann", "days": "3"}) == (
        Message("system", "You plan trips.\n\ncountry: France\ndays: 3"),
        Message("user", "With Ann"),
    )
    assert fill_in(Blueprint(), {"country": "France"}) == (Message("system", "country: France"),)


def test_or_it_is_ignored() -> None:
    blueprint = Blueprint("You plan trips.", unused_variables="ignore")
    assert fill_in(blueprint, {"country": "France"}) == (Message("system", "You plan trips."),)


def test_nothing_to_say_is_no_message() -> None:
    assert fill_in(Blueprint(), {}) == ()


ANY = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
NAMES = st.text("abc {}\n🎓", min_size=1, max_size=4)
PIECES = st.one_of(ANY, st.sampled_from(["{a}", "{ b }", "{c", "}", "{{a}}", "{\\1}"]))


@given(st.dictionaries(NAMES, st.text("abc {}\\1\n🎓", max_size=8), max_size=4))
def test_values_are_data(variables: dict[str, str]) -> None:
    """Between two marks stands exactly the value, whatever it looks like."""
    for name, value in variables.items():
        if not {"{", "}"} & set(name):
            assert filled(f"<<{{{name}}}>>", variables) == f"<<{value}>>"


@given(st.lists(PIECES).map("".join), st.dictionaries(st.sampled_from("abc"), st.just("{a}{b}")))
def test_no_value_is_ever_expanded_again(text: str, variables: dict[str, str]) -> None:
    """Filling in harmless marks and then putting the values for them gives the same."""
    marks = {name: f"\x01{name}\x02" for name in variables}
    marked = filled(text.replace("\x01", "").replace("\x02", ""), marks)
    for name, value in variables.items():
        marked = marked.replace(marks[name], value)
    assert filled(text.replace("\x01", "").replace("\x02", ""), variables) == marked


@given(st.dictionaries(ANY.filter(str.strip), ANY, max_size=5))
def test_what_is_told_is_a_line_for_each_variable(variables: dict[str, str]) -> None:
    """No value can pose as a line of another variable's."""
    frame = fill_in(Blueprint("Be brief."), variables)
    told = frame[0].text.removeprefix("Be brief.").splitlines()
    assert len(told) == (len(variables) + 2 if variables else 0)
