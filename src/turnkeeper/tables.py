"""The tables of the TOML file: providers and deployments, of which there may be many; limits.

Whatever is wrong in one becomes a sentence that names the table and the field.
"""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import msgspec

from turnkeeper.blueprint import DEPLOYMENT_NAME, is_deployment_name, read_blueprint, wrong_fields
from turnkeeper.domain import NO_LIMITS, Blueprint, Limits
from turnkeeper.limits import Rules
from turnkeeper.settings import SETTINGS, read_http_url
from turnkeeper.validation import explain

DEFAULT_DEPLOYMENT = "default"  # what the default one is called, unless a table says otherwise

# --- Providers ---------------------------------------------------------------------------------


class ModelEntry(msgspec.Struct, frozen=True):
    """A model as a provider's table names it; None for what was left out."""

    id: str
    name: str | None = None
    context_window: int | None = None
    images: bool | None = None
    input_price: float | None = None
    output_price: float | None = None


class ProviderEntry(msgspec.Struct, frozen=True):
    """A table `[providers.NAME]`, checked.

    Attributes:
        key: what the variable `key_env` holds; None if the table names no variable.
        models: what it offers, None for what it says itself when it is asked at the start.
    """

    name: str
    base_url: str
    key_env: str | None
    key: str | None
    models: tuple[ModelEntry, ...] | None
    attempts: int
    connect_timeout: float
    first_byte_timeout: float
    between_timeout: float
    total_timeout: float

    def __repr__(self) -> str:
        return f"ProviderEntry({self.name!r}, {self.base_url!r})"


_PROVIDER_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,31}")
_VARIABLE = re.compile(r"[A-Z_][A-Z0-9_]*")
_RESERVED = frozenset({"eliza", "server"})  # the built-in one, and that of OPENAI_BASE_URL
_PER_PROVIDER = (
    "attempts",
    "connect_timeout",
    "first_byte_timeout",
    "between_timeout",
    "total_timeout",
)
Reader = Callable[[Any], Any]  # raises ValueError with what the value must be


def read_providers(
    tables: Any,
    settings: Mapping[str, Any],
    variables: Mapping[str, str],
    problems: list[str],
) -> tuple[ProviderEntry, ...]:
    """The tables as records, in the file's order; what they leave out is as in `settings`."""
    if not isinstance(tables, dict):
        problems.append("providers must be tables: [providers.NAME]")
        return ()
    entries = [
        _read_provider(name, table, settings, variables, problems) for name, table in tables.items()
    ]
    return tuple(entry for entry in entries if entry is not None)


def _read_provider(
    name: str,
    table: Any,
    settings: Mapping[str, Any],
    variables: Mapping[str, str],
    problems: list[str],
) -> ProviderEntry | None:
    where, before = f"providers.{name}", len(problems)
    if not _PROVIDER_NAME.fullmatch(name) or name in _RESERVED:
        problems.append(
            f"{where} must have a name of 1 to 32 characters of a-z 0-9 _ -, neither eliza nor"
            " server"
        )
    values = _read_table(where, table, _PROVIDER_FIELDS, ("base_url",), problems)
    key_env = values.get("key_env")
    key = variables.get(key_env) if key_env else None
    if key_env and not key:
        problems.append(f"{where}.key_env names {key_env}, and that variable is not set")
    models = None
    if isinstance(values.get("models"), list):
        models = _read_models(where, values["models"], problems)
    if len(problems) > before:
        return None
    return ProviderEntry(
        name=name,
        base_url=values["base_url"],
        key_env=key_env,
        key=key,
        models=models,
        **{setting: values.get(setting, settings[setting]) for setting in _PER_PROVIDER},
    )


def _read_models(where: str, values: list[Any], problems: list[str]) -> tuple[ModelEntry, ...]:
    entries: dict[str, ModelEntry] = {}
    for number, value in enumerate(values, start=1):
        place = f"{where}.models[{number}]"
        table = {"id": value} if isinstance(value, str) else value
        if not isinstance(table, dict):
            problems.append(f"{place} must be a model's id or a table")
            continue
        fields = _read_table(place, table, _MODEL_FIELDS, ("id",), problems)
        if "id" not in fields:
            continue
        if fields["id"] in entries:
            problems.append(f"{place} names {fields['id']} a second time")
        entries[fields["id"]] = ModelEntry(**fields)
    return tuple(entries.values())


def _read_table(
    where: str,
    table: Any,
    fields: Mapping[str, Reader],
    required: tuple[str, ...],
    problems: list[str],
) -> dict[str, Any]:
    """The fields that could be read; every other one becomes a problem. No value is shown that
    might be a key in the wrong place."""
    if not isinstance(table, dict):
        problems.append(f"{where} must be a table")
        return {}
    problems.extend(f"{where} needs {name}" for name in required if name not in table)
    values: dict[str, Any] = {}
    for name, value in table.items():
        if name not in fields:
            hint = "; a key is named by its variable, with key_env" if "key" in name else ""
            problems.append(f"{where} has an unknown setting {name}{hint}")
            continue
        try:
            values[name] = fields[name](value)
        except ValueError as error:
            problems.append(f"{where}.{name} {error}")
    return values


def _of_text(read: Callable[[str], Any]) -> Reader:
    """A setting's reader for a number in TOML."""

    def read_number(value: Any) -> Any:
        number = isinstance(value, int | float) and not isinstance(value, bool)
        try:
            return read(str(value) if number else "")
        except ValueError as error:
            raise ValueError(f"{error}, not {value!r}") from None

    return read_number


def _base_url(value: Any) -> str:
    try:
        url = read_http_url(value)
        parts = urlsplit(url)
        is_plain = bool(parts.hostname) and not (parts.username or parts.query or parts.fragment)
        is_plain = is_plain and (parts.port is None or parts.port > 0)
    except (ValueError, TypeError):
        is_plain = False
    if not is_plain:
        raise ValueError(
            "must be an address as https://api.example.org/v1, without a user, a password,"
            " a question mark or a #"
        )
    return url


def _variable(value: Any) -> str:
    if not (isinstance(value, str) and _VARIABLE.fullmatch(value)):
        raise ValueError(
            "must be the name of a variable, in capital letters; the key itself has no place"
            " in the file"
        )
    return value


def _model_list(value: Any) -> Any:
    if value == "list" or (isinstance(value, list) and value):
        return value
    raise ValueError('must be a list of models with one at least, or "list" to ask for it')


def _model_text(value: Any) -> str:
    if not (isinstance(value, str) and value.isprintable() and 0 < len(value) <= 200):
        raise ValueError("must be a text of 1 to 200 characters")
    return value


def _truth(value: Any) -> bool:
    if value is True or value is False:
        return value
    raise ValueError(f"must be true or false, not {value!r}")


def _price(value: Any) -> float:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not (number and 0 <= value < 1e9):
        raise ValueError(f"must be the price of a million tokens, not {value!r}")
    return float(value)


_READERS = {setting.name: setting.read for setting in SETTINGS}
_PROVIDER_FIELDS: Mapping[str, Reader] = {
    "base_url": _base_url,
    "key_env": _variable,
    "models": _model_list,
    **{name: _of_text(_READERS[name]) for name in _PER_PROVIDER},
}
_MODEL_FIELDS: Mapping[str, Reader] = {
    "id": _model_text,
    "name": _model_text,
    "context_window": _of_text(_READERS["context_window"]),
    "images": _truth,
    "input_price": _price,
    "output_price": _price,
}


# --- Deployments -------------------------------------------------------------------------------


class DeploymentEntry(msgspec.Struct, frozen=True):
    """A table `[deployments.NAME]`, checked; `default` is whether the file calls it so."""

    name: str
    default: bool
    blueprint: Blueprint


def read_deployments(
    tables: Any, settings: Mapping[str, Any], folder: Path, problems: list[str]
) -> tuple[DeploymentEntry, ...]:
    """The tables as records, in the file's order; `folder` is where the file lies."""
    if not isinstance(tables, dict):
        problems.append("deployments must be tables: [deployments.NAME]")
        return ()
    entries = [
        _read_deployment(name, table, settings, folder, problems) for name, table in tables.items()
    ]
    defaults = [
        f"deployments.{name}"
        for name, table in tables.items()
        if isinstance(table, dict) and table.get("default") is True
    ]
    if len(defaults) > 1:
        problems.append(f"{' and '.join(defaults)} cannot all be the default: only one can")
    return tuple(entry for entry in entries if entry is not None)


def _read_deployment(
    name: str, table: Any, settings: Mapping[str, Any], folder: Path, problems: list[str]
) -> DeploymentEntry | None:
    where = f"deployments.{name}"
    wrong: list[str] = []
    if not is_deployment_name(name):
        wrong.append(f"{where} must have a name of {DEPLOYMENT_NAME}")
    if not isinstance(table, dict):
        problems.extend([*wrong, f"{where} must be a table"])
        return None
    fields = dict(table)
    default = fields.pop("default", False)
    if not isinstance(default, bool):
        wrong.append(f"{where}.default must be true or false")
    try:
        _read_message_file(fields, folder)
    except ValueError as error:
        wrong.append(f"{where}.system_message_file {error}")
    if name == DEFAULT_DEPLOYMENT:
        fields.setdefault("system_message", settings["system_message"])
    wrong.extend(f"{where}.{sentence}" for sentence in wrong_fields(fields))
    problems.extend(wrong)
    return None if wrong else DeploymentEntry(name, default, read_blueprint(fields))


def _read_message_file(fields: dict[str, Any], folder: Path) -> None:
    """Put the text of the file, if one is named, in the place of its name.

    The line break that editors put at the end of a file is none of its text.

    Raises:
        ValueError: with what is wrong.
    """
    file = fields.pop("system_message_file", None)
    if file is None:
        return
    if "system_message" in fields:
        raise ValueError("and system_message cannot both be given")
    if not isinstance(file, str):
        raise ValueError("must be the path of a file")  # noqa: TRY004  as every reader here
    path = folder / file
    try:
        fields["system_message"] = path.read_text("utf-8-sig").removesuffix("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"names {path}, which is not text in UTF-8") from error
    except (OSError, ValueError) as error:
        raise ValueError(f"names {path}, which cannot be read: {error}") from error


# --- Limits ------------------------------------------------------------------------------------

_LIMITED = ("key", "user", "end_user", "session", "address")
_OWNERS = ("key", "user", "end_user")  # who may have sessions


def read_limits(tables: Any, problems: list[str]) -> Rules:
    """The tables `[limits.user]` and the like as rules."""
    if not isinstance(tables, dict):
        problems.append("limits must be tables: [limits.user]")
        return Rules()
    rules: dict[str, Limits] = {}
    for kind, table in tables.items():
        if kind in _LIMITED:
            rules[kind] = _read_limits(kind, table, problems)
        else:
            problems.append(f"limits.{kind} is not known: limits are of {', '.join(_LIMITED)}")
    return Rules(**rules)


def _read_limits(kind: str, table: Any, problems: list[str]) -> Limits:
    where = f"limits.{kind}"
    if not isinstance(table, dict):
        problems.append(f"{where} must be a table")
        return NO_LIMITS
    read: dict[str, Any] = {}
    for name, value in table.items():
        if name == "sessions" and kind not in _OWNERS:
            problems.append(f"{where}.sessions means nothing: sessions belong to users")
            continue
        try:
            read[name] = getattr(msgspec.convert({name: value}, Limits), name)
        except msgspec.ValidationError as error:
            sentence = explain(str(error), where)
            is_whole = sentence.startswith(where)
            problems.append(sentence if is_whole else f"{where}.{sentence}")
    return Limits(**read) if read else NO_LIMITS
