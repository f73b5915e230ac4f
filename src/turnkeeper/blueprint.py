"""Blueprints: reading one, filling in the variables of a session, telling two apart. Pure.

A variable stands in single braces, `{country}`, spaces inside tolerated. Its value is data: it is
put in once, and braces in it mean nothing.
"""

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any, get_args, get_type_hints

import msgspec

from turnkeeper.domain import AS_IT_IS, Blueprint, Example, Message, Sampling, check_text
from turnkeeper.errors import DeploymentNotFound, InvalidRequest
from turnkeeper.validation import explain

_DEPLOYMENT_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
DEPLOYMENT_NAME = "1 to 64 characters of a-z 0-9 _ -, the first a letter or a digit"


def is_deployment_name(text: str) -> bool:
    """Whether a deployment may be called so: it is a part of its base URL."""
    return _DEPLOYMENT_NAME.fullmatch(text) is not None


def find_deployment(text: str) -> str:
    """The name of a deployment that must be there.

    Raises:
        DeploymentNotFound: none can be called so, so nobody need look.
    """
    if not is_deployment_name(text):
        raise DeploymentNotFound("Deployment not found")
    return text


# --- Reading -----------------------------------------------------------------------------------


def read_blueprint(values: Any) -> Blueprint:
    """The blueprint that plain values describe, as JSON or TOML give them.

    Raises:
        InvalidRequest: a field is unknown, or its value cannot be.
    """
    try:
        blueprint = msgspec.convert(values, Blueprint)
    except msgspec.ValidationError as error:
        raise InvalidRequest(_list_choices(explain(str(error), "The deployment"))) from error
    check_text(blueprint.system_message, "system_message")
    for number, example in enumerate(blueprint.messages):
        if not example.content.strip():
            raise InvalidRequest(f"messages[{number}].content must not be blank")
        check_text(example.content, f"messages[{number}].content")
    check_text(blueprint.model or "", "model")
    for name, texts in (("fallback_models", blueprint.fallback_models), ("stop", blueprint.stop)):
        check_text("".join(texts), name)
    return blueprint


def wrong_fields(values: Mapping[str, Any]) -> Iterator[str]:
    """A sentence for each field that is unknown or cannot be; it begins with the field's name.

    `read_blueprint` names the first only. What has no wrong field can be read.
    """
    for name, value in values.items():
        if name not in _FIELDS:
            yield f"{name[:100]} is no field of a deployment"
            continue
        try:
            read_blueprint({name: value})
        except InvalidRequest as error:
            yield error.sentence


def _list_choices(sentence: str) -> str:
    """With the values that a field may have, if the sentence is about one that has few."""
    name, _, rest = sentence.partition(" has a value")
    hints = get_type_hints(Example) | get_type_hints(Blueprint)
    hint = hints.get(name.rpartition(".")[2]) if rest else None
    return f"{name} must be {' or '.join(get_args(hint))}" if hint else sentence


def plain_blueprint(blueprint: Blueprint) -> dict[str, Any]:
    """Every field of a blueprint, those left out too, as plain values."""
    return {name: msgspec.to_builtins(getattr(blueprint, name)) for name in _FIELDS}


_FIELDS = Blueprint.__struct_fields__


def diff_blueprints(before: Blueprint, after: Blueprint) -> dict[str, tuple[Any, Any]]:
    """The fields in which two blueprints differ, each as it was and as it is."""
    old, new = plain_blueprint(before), plain_blueprint(after)
    return {name: (old[name], new[name]) for name in _FIELDS if old[name] != new[name]}


def sampling_of(blueprint: Blueprint) -> Sampling:
    """How the blueprint has words chosen; `AS_IT_IS` itself if it says nothing."""
    asked = (blueprint.temperature, blueprint.top_p, blueprint.max_tokens, blueprint.stop)
    return Sampling(*asked) if asked != (None, None, None, ()) else AS_IT_IS


# --- Filling in --------------------------------------------------------------------------------

_PLACEHOLDER = re.compile(r"\{([^{}]*)\}")


def fill_in(blueprint: Blueprint, variables: Mapping[str, str]) -> tuple[Message, ...]:
    """What every prompt of a session begins with: the system message and the examples.

    A placeholder without a value stays as it is written. A variable that no placeholder names is
    told in a line after the system message, unless the blueprint ignores such.
    """
    used: set[str] = set()
    system = _fill_in(blueprint.system_message, variables, used)
    examples = [
        Message(example.role, _fill_in(example.content, variables, used))
        for example in blueprint.messages
    ]
    unused = [name for name in variables if name not in used]
    if unused and blueprint.unused_variables == "tell":
        lines = "\n".join(f"{_one_line(name)}: {_one_line(variables[name])}" for name in unused)
        system = f"{system}\n\n{lines}" if system else lines
    return (Message("system", system), *examples) if system else tuple(examples)


def placeholders(blueprint: Blueprint) -> tuple[str, ...]:
    """The names of the variables that stand in a blueprint, each once, in order."""
    texts = (blueprint.system_message, *(example.content for example in blueprint.messages))
    names = (match[1].strip() for text in texts for match in _PLACEHOLDER.finditer(text))
    return tuple(dict.fromkeys(name for name in names if name))


def _fill_in(text: str, variables: Mapping[str, str], used: set[str]) -> str:
    """All at once, so that no value is ever searched for placeholders."""

    def value(match: re.Match[str]) -> str:
        name = match[1] if match[1] in variables else match[1].strip()
        if name not in variables:
            return match[0]
        used.add(name)
        return variables[name]

    return _PLACEHOLDER.sub(value, text) if variables else text


def _one_line(text: str) -> str:
    """The text, or if it has several lines the JSON of it: it cannot pose as another variable."""
    if len(f"{text}.".splitlines()) == 1:
        return text
    return _LINE_END.sub(lambda end: f"\\u{ord(end[0]):04x}", json.dumps(text, ensure_ascii=False))


_LINE_END = re.compile("[\x85\u2028\u2029]")  # those that JSON may leave as they are
