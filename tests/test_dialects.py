"""The pure halves of the dialects: what a body means, whatever is in it."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from turnkeeper.dialects.chatsession import decode_opening
from turnkeeper.dialects.deployment import decode_variables
from turnkeeper.dialects.exchange import is_empty
from turnkeeper.errors import InvalidRequest

TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=10)
FLOATS = st.floats(allow_nan=False, allow_infinity=False)
SCALARS = st.none() | st.booleans() | st.integers() | FLOATS | TEXT
JSON = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)
KEYS = TEXT.filter(str.strip)


def means(text: str, value: Any) -> bool:
    """Whether a model reads `value` in the text: a string as it is, else its JSON."""
    return text == value if isinstance(value, str) else json.loads(text) == value


def is_said(value: Any) -> bool:
    return bool(value.strip()) if isinstance(value, str) else value is not None


@given(JSON, st.sampled_from([None, 1]), st.booleans())
def test_an_opening_is_any_json_in_its_wrapper(
    value: Any, indent: int | None, is_ascii: bool
) -> None:
    body = json.dumps({"ini_message": value}, indent=indent, ensure_ascii=is_ascii).encode()
    if not is_said(value):
        with pytest.raises(InvalidRequest):
            decode_opening(body)
    else:
        assert means(decode_opening(body).text, value)


@given(JSON.filter(lambda value: not isinstance(value, dict)))
def test_or_any_json_without_it(value: Any) -> None:
    body = json.dumps(value, indent=1).encode()
    if not is_said(value) or value == []:
        with pytest.raises(InvalidRequest):
            decode_opening(body)
    else:
        assert means(decode_opening(body).text, value)


@given(st.dictionaries(TEXT, JSON, min_size=1).filter(lambda d: not d.keys() & {"ini_message"}))
def test_or_an_object_without_it(value: dict[str, Any]) -> None:
    body = json.dumps(value).encode()
    if value.keys() == {"stream"}:
        with pytest.raises(InvalidRequest):
            decode_opening(body)
    else:
        opening = decode_opening(body)
        assert means(opening.text, value)
        assert opening.stream is (value.get("stream") is True)


@given(st.binary(max_size=30))
def test_bytes_that_mean_nothing_are_refused(body: bytes) -> None:
    for decode in (decode_opening, decode_variables):
        try:
            decode(body)
        except InvalidRequest:
            continue
        json.loads(body.strip() or b"[]")


@given(st.lists(st.tuples(KEYS, JSON)))
def test_variables_are_texts_by_their_keys_and_the_last_wins(pairs: list[tuple[str, Any]]) -> None:
    body = json.dumps([{"key": key, "value": value} for key, value in pairs]).encode()
    variables = decode_variables(body)
    assert variables.keys() == dict(pairs).keys()
    assert all(means(variables[key], value) for key, value in dict(pairs).items())


@pytest.mark.parametrize("body", [b"", b" \n", b"{}", b"[]", b"null", b" { } ", b"[\n]\t"])
def test_a_body_may_say_nothing(body: bytes) -> None:
    assert is_empty(body)


@pytest.mark.parametrize("body", [b"0", b'""', b"[null]", b"{]", b"[[]]", b"nul l", b"}{", b"{"])
def test_and_what_looks_like_it_is_something_else(body: bytes) -> None:
    assert not is_empty(body)
