"""Every setting, read once: command line over environment over `.env` over TOML.

`SETTINGS` is the one list of them; the command line's options, the environment's names and
`docs/configuration.md` all follow it. Providers, of which there may be many, are tables of the
TOML file. Every wrong setting is named at once, in sentences.
"""

import os
import re
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import msgspec
from dotenv import dotenv_values

from turnkeeper.errors import ConfigError


class Setting(msgspec.Struct, frozen=True):
    """One setting.

    Attributes:
        names: environment variables that hold it, the first found wins;
            `TURNKEEPER_<NAME>` always comes before them.
        read: from its text to its value; raises ValueError with what it must be.
            secret: a key: never shown, not on the command line.
        private: may hold a password: its value is not repeated in messages.
    """

    name: str
    default: Any
    read: Callable[[str], Any]
    help: str
    names: tuple[str, ...] = ()
    secret: bool = False
    private: bool = False

    @property
    def variables(self) -> tuple[str, ...]:
        return (f"TURNKEEPER_{self.name.upper()}", *self.names)


def _text(text: str) -> str:
    if not text.strip():
        raise ValueError("must not be empty")
    if re.search("[\0\ud800-\udfff]", text):
        raise ValueError("must be text in UTF-8")
    return text


def _whole(least: int, most: int) -> Callable[[str], int]:
    def read(text: str) -> int:
        try:
            number = int(text) if text.isascii() and "_" not in text else least - 1
        except ValueError:
            number = least - 1
        if not least <= number <= most:
            raise ValueError(f"must be a whole number from {least} to {most}")
        return number

    return read


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1
    if not 0 <= seconds <= 86_400:
        raise ValueError("must be a number of seconds from 0 to 86400")
    return seconds


def _timeout(text: str) -> float:
    seconds = _seconds(text)
    if seconds == 0:
        raise ValueError("must be more than 0 seconds")
    return seconds


def _list_of(shape: str, what: str) -> Callable[[str], tuple[str, ...]]:
    def read(text: str) -> tuple[str, ...]:
        parts = tuple(part.strip() for part in text.split(",") if part.strip())
        if not all(re.fullmatch(shape, part) for part in parts):
            raise ValueError(f"must be {what}, with commas between")
        return parts

    return read


_ORIGINS = _list_of(
    r"\*|https?://(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(:[0-9]{1,5})?",
    "* or origins like https://app.example.org",
)
_HOSTS = _list_of(r"[A-Za-z0-9._-]+|[0-9A-Fa-f:.]+", "names of hosts without a port")


def _auth(text: str) -> str:
    if text == "keys":
        raise ValueError("cannot be keys yet: this version has no API keys")
    if text != "off":
        raise ValueError("must be off")
    return text


def _database(text: str) -> str:
    path = text.removeprefix("sqlite:///")
    if path != text and path.strip("/") and path != ":memory:" and "\0" not in path:
        return text
    if text.startswith(("postgresql://", "postgres://")):
        return text
    raise ValueError("must be sqlite:///FILE or postgresql://…")


def _url(text: str) -> str:
    if not re.fullmatch(r"https?://[^\s?#]+", text):
        raise ValueError("must be an http:// or https:// address without ? and #")
    return text.rstrip("/")


SETTINGS: tuple[Setting, ...] = (
    Setting(
        "host",
        "127.0.0.1",
        _text,
        "Address to listen on. Anything but loopback needs `auth`.",
        names=("HOST",),
    ),
    Setting("port", 5000, _whole(0, 65535), "Port; 0 takes a free one.", names=("PORT",)),
    Setting(
        "model",
        None,
        _text,
        "The default model. `eliza` is built in and needs no key.",
    ),
    Setting(
        "database",
        "sqlite:///turnkeeper.db",
        _database,
        "Where sessions are kept: `sqlite:///FILE` or `postgresql://…`.",
        names=("DATABASE_URL",),
        private=True,
    ),
    Setting(
        "auth",
        None,
        _auth,
        "`off`: no credentials are asked for, everything belongs to the user `local`."
        " That is the default on loopback and must be said elsewhere.",
    ),
    Setting(
        "cors",
        (),
        _ORIGINS,
        "Origins of web pages that may use the server, separated by commas; `*` for any."
        " Default: any port of localhost.",
    ),
    Setting(
        "hosts",
        (),
        _HOSTS,
        "Names that requests may call this server, beside those of loopback and `host`.",
    ),
    Setting(
        "groq_api_key",
        None,
        _text,
        "Key for Groq; alone, it is enough to start.",
        names=("GROQ_API_KEY",),
        secret=True,
    ),
    Setting(
        "openai_api_key",
        None,
        _text,
        "Key for OpenAI, or for `openai_base_url`.",
        names=("OPENAI_API_KEY",),
        secret=True,
    ),
    Setting(
        "openai_base_url",
        None,
        _url,
        "Any OpenAI-compatible endpoint, as `http://localhost:11434/v1`; then say `model` too.",
        names=("OPENAI_BASE_URL",),
        private=True,
    ),
    Setting(
        "system_message",
        "You are a helpful AI assistant.",
        _text,
        "What every conversation begins with.",
    ),
    Setting(
        "context_window",
        None,
        _whole(256, 100_000_000),
        "Tokens of prompt and reply together that the models can hold."
        " Default: what is known of the model, else 32768.",
    ),
    Setting("message_limit", 100_000, _whole(1, 100_000_000), "Characters of one message."),
    Setting(
        "reply_limit",
        1_000_000,
        _whole(1, 100_000_000),
        "Characters of one reply; a longer one is broken off, and its turn fails.",
    ),
    Setting("body_limit", 4_194_304, _whole(1024, 1_073_741_824), "Bytes of one request's body."),
    Setting(
        "queue_limit",
        32,
        _whole(0, 100_000),
        "Messages that may wait in one session while a reply is made.",
    ),
    Setting(
        "attempts", 3, _whole(1, 20), "Calls to the model for one reply, before its first word."
    ),
    Setting("connect_timeout", 10.0, _timeout, "Seconds for connecting to the model's server."),
    Setting("first_byte_timeout", 60.0, _timeout, "Seconds for the model to begin its reply."),
    Setting("between_timeout", 60.0, _timeout, "Seconds of silence within a reply."),
    Setting("total_timeout", 600.0, _timeout, "Seconds for one reply in all."),
    Setting(
        "grace",
        10.0,
        _seconds,
        "Seconds that running turns have to finish when the server is told to stop.",
    ),
)


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


class Config(msgspec.Struct, frozen=True):
    """All settings, checked. The names are those of `SETTINGS`; `providers` are the tables."""

    host: str
    port: int
    model: str | None
    database: str
    auth: str
    cors: tuple[str, ...]
    hosts: tuple[str, ...]
    groq_api_key: str | None
    openai_api_key: str | None
    openai_base_url: str | None
    system_message: str
    context_window: int | None
    message_limit: int
    reply_limit: int
    body_limit: int
    queue_limit: int
    attempts: int
    connect_timeout: float
    first_byte_timeout: float
    between_timeout: float
    total_timeout: float
    grace: float
    providers: tuple[ProviderEntry, ...] = ()

    def __repr__(self) -> str:
        shown = {s.name: getattr(self, s.name) for s in SETTINGS if not (s.secret or s.private)}
        return f"Config({shown}, {self.providers})"


def shown_database(url: str) -> str:
    """The database's URL without user, password or parameters."""
    if url.startswith("sqlite:"):
        return url
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})


def read_config(
    options: Mapping[str, str | None],
    environment: Mapping[str, str] = os.environ,
    folder: Path = Path(),
) -> Config:
    """The settings in force; `options` are those of the command line, `config` among them.

    Raises:
        ConfigError: every wrong setting, a sentence each.
    """
    problems: list[str] = []
    dotenv = _read_dotenv(folder / ".env", problems)
    tables, toml = _read_toml(options.get("config"), problems)
    values = {
        setting.name: _value(setting, options, (environment, dotenv), toml, problems)
        for setting in SETTINGS
    }
    if values["auth"] is None and values["host"] in LOOPBACK:
        values["auth"] = "off"
    if values["auth"] is None and not problems:
        problems.append(
            f"host {values['host']} can be reached from other machines, and this version asks"
            " for no credentials: say --auth off to serve everyone who can reach it"
        )
    variables = {**dotenv, **{name: text for name, text in environment.items() if text}}
    providers = _read_providers(tables, values, variables, problems)
    if problems:
        raise ConfigError("\n".join(problems))
    return Config(**values, providers=providers)


def read_setting(
    name: str,
    options: Mapping[str, str | None],
    environment: Mapping[str, str] = os.environ,
    folder: Path = Path(),
) -> Any:
    """One setting, for a command that needs no other: of the rest, none has to be right.

    Raises:
        ConfigError: it is wrong, or a file that might hold it cannot be read.
    """
    problems: list[str] = []
    dotenv = _read_dotenv(folder / ".env", problems)
    _, toml = _read_toml(options.get("config"), problems)
    setting = next(setting for setting in SETTINGS if setting.name == name)
    value = _value(setting, options, (environment, dotenv), toml, problems)
    if problems:
        raise ConfigError("\n".join(problems))
    return value


def read_url(text: str) -> str:
    """The address of a server to talk to, as `--url` gives it.

    Raises:
        ConfigError: it is none.
    """
    try:
        return _url(text)
    except ValueError as error:
        raise ConfigError(f"--url {error}") from error


def _read_dotenv(path: Path, problems: list[str]) -> Mapping[str, str]:
    try:
        return {name: value for name, value in dotenv_values(path).items() if value is not None}
    except (OSError, UnicodeDecodeError) as error:
        problems.append(f"{path} cannot be read: {error}")
        return {}


def _read_toml(path: str | None, problems: list[str]) -> tuple[Any, Mapping[str, str]]:
    """The tables of providers, and the settings as the environment would have them: as texts."""
    if path is None:
        return {}, {}
    try:
        toml = tomllib.loads(Path(path).read_text("utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError) as error:
        problems.append(f"config {path} cannot be read: {error}")
        return {}, {}
    tables = toml.pop("providers", {})
    settings = {setting.name: setting for setting in SETTINGS}
    texts: dict[str, str] = {}
    for name, value in toml.items():
        if name not in settings:
            problems.append(f"config {path} has an unknown setting {name}")
        elif isinstance(settings[name].default, tuple) and _is_list_of_texts(value):
            texts[name] = ",".join(value)
        elif isinstance(value, str | int | float) and not isinstance(value, bool):
            texts[name] = str(value)
        else:
            problems.append(f"{name} in {path} must be a plain value")
    return tables, texts


def _is_list_of_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(part, str) for part in value)


def _value(
    setting: Setting,
    options: Mapping[str, str | None],
    environments: tuple[Mapping[str, str], ...],
    toml: Mapping[str, str],
    problems: list[str],
) -> Any:
    """The first of a setting's sources that has it, read; the default if none has."""
    found = _find(setting, options, environments, toml)
    if found is None:
        return setting.default
    source, text = found
    try:
        return setting.read(text)
    except ValueError as error:
        shown = "" if setting.secret or setting.private else f", not {text!r}"
        problems.append(f"{source} {error}{shown}")
        return setting.default


def _find(
    setting: Setting,
    options: Mapping[str, str | None],
    environments: tuple[Mapping[str, str], ...],
    toml: Mapping[str, str],
) -> tuple[str, str] | None:
    """Where the setting is given, and as what; an empty variable counts as not given."""
    option = options.get(setting.name)
    if option is not None:
        return f"--{setting.name.replace('_', '-')}", option
    for environment in environments:
        for variable in setting.variables:
            if environment.get(variable):
                return variable, environment[variable]
    if setting.name in toml:
        return setting.name, toml[setting.name]
    return None


# --- Providers ---------------------------------------------------------------------------------

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


def _read_providers(
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
        url = _url(value)
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
