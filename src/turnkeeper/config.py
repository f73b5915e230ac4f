"""Every setting, read once: command line over environment over `.env` over TOML.

`SETTINGS` is the one list of them; the command line's options, the environment's names and
`docs/configuration.md` all follow it. Every wrong setting is named at once, in sentences.
"""

import os
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec
from dotenv import dotenv_values

from turnkeeper.errors import ConfigError


class Setting(msgspec.Struct, frozen=True):
    """One setting.

    Attributes:
        names: environment variables that hold it, the first found wins;
            `TURNKEEPER_<NAME>` always comes before them.
        read: from its text to its value; raises ValueError with what it must be.
        secret: never shown, not on the command line.
    """

    name: str
    default: Any
    read: Callable[[str], Any]
    help: str
    names: tuple[str, ...] = ()
    secret: bool = False

    @property
    def variables(self) -> tuple[str, ...]:
        return (f"TURNKEEPER_{self.name.upper()}", *self.names)


def _text(text: str) -> str:
    return text


def _whole(least: int, most: int) -> Callable[[str], int]:
    def read(text: str) -> int:
        try:
            number = int(text)
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


def _list(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def _auth(text: str) -> str:
    if text == "keys":
        raise ValueError("cannot be keys yet: this version has no API keys")
    if text != "off":
        raise ValueError("must be off")
    return text


def _database(text: str) -> str:
    if not text.startswith(("sqlite:///", "postgresql://", "postgres://")):
        raise ValueError("must be sqlite:///FILE or postgresql://…")
    return text


def _url(text: str) -> str:
    if not text.startswith(("http://", "https://")):
        raise ValueError("must begin with http:// or https://")
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
        _list,
        "Origins of web pages that may use the server, separated by commas; `*` for any."
        " Default: any port of localhost.",
    ),
    Setting(
        "hosts",
        (),
        _list,
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
    Setting("connect_timeout", 10.0, _seconds, "Seconds for connecting to the model's server."),
    Setting("first_byte_timeout", 60.0, _seconds, "Seconds for the model to begin its reply."),
    Setting("between_timeout", 60.0, _seconds, "Seconds of silence within a reply."),
    Setting("total_timeout", 600.0, _seconds, "Seconds for one reply in all."),
    Setting(
        "grace",
        10.0,
        _seconds,
        "Seconds that running turns have to finish when the server is told to stop.",
    ),
)


class Config(msgspec.Struct, frozen=True):
    """All settings, checked. The names are those of `SETTINGS`."""

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
    body_limit: int
    queue_limit: int
    attempts: int
    connect_timeout: float
    first_byte_timeout: float
    between_timeout: float
    total_timeout: float
    grace: float

    def __repr__(self) -> str:
        shown = {s.name: getattr(self, s.name) for s in SETTINGS if not s.secret}
        return f"Config({shown})"


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
    toml = _read_toml(options.get("config"), problems)
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
    if problems:
        raise ConfigError("\n".join(problems))
    return Config(**values)


def read_url(text: str) -> str:
    """The address of a server to talk to, as `--url` gives it.

    Raises:
        ConfigError: it is none.
    """
    try:
        return _url(text)
    except ValueError as error:
        raise ConfigError(f"--url {error}, not {text!r}") from error


def _read_dotenv(path: Path, problems: list[str]) -> Mapping[str, str]:
    try:
        return {name: value for name, value in dotenv_values(path).items() if value is not None}
    except (OSError, UnicodeDecodeError) as error:
        problems.append(f"{path} cannot be read: {error}")
        return {}


def _read_toml(path: str | None, problems: list[str]) -> Mapping[str, str]:
    """The file's settings as the texts that the environment would have for them."""
    if path is None:
        return {}
    try:
        toml = tomllib.loads(Path(path).read_text("utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        problems.append(f"config {path} cannot be read: {error}")
        return {}
    settings = {setting.name: setting for setting in SETTINGS}
    texts: dict[str, str] = {}
    for name, value in toml.items():
        if name not in settings:
            problems.append(f"config {path} has an unknown setting {name}")
        elif isinstance(settings[name].default, tuple) and _is_list_of_texts(value):
            texts[name] = ",".join(value)
        elif isinstance(value, str | int | float):
            texts[name] = str(value)
        else:
            problems.append(f"{name} in {path} must be a plain value")
    return texts


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
        shown = "" if setting.secret else f", not {text!r}"
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
