"""Every setting, read once: command line over environment over `.env` over TOML.

`settings.SETTINGS` is the one list of them; what there may be many of, providers and deployments,
are `tables` of the TOML file. Every wrong setting is named at once, in sentences.
"""

import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import msgspec
from dotenv import dotenv_values

from turnkeeper.contracts import Durability
from turnkeeper.domain import Blueprint
from turnkeeper.errors import ConfigError
from turnkeeper.limits import Rules
from turnkeeper.logs import Format, Level
from turnkeeper.settings import SETTINGS, Setting, read_http_url, wrong_jwt
from turnkeeper.tables import (
    DEFAULT_DEPLOYMENT,
    DeploymentEntry,
    ModelEntry,
    ProviderEntry,
    read_deployments,
    read_limits,
    read_providers,
)

__all__ = [
    "LOOPBACK",
    "SETTINGS",
    "Config",
    "DeploymentEntry",
    "ModelEntry",
    "ProviderEntry",
    "Setting",
    "read_config",
    "read_setting",
    "read_url",
    "shown_database",
]


class Config(msgspec.Struct, frozen=True):
    """All settings, checked. The names are those of `SETTINGS`; the last are the tables."""

    host: str
    port: int
    model: str | None
    database: str
    auth: str
    admin_key: str | None
    login_idle: int
    login_lifetime: int
    jwt_issuer: str | None
    jwt_audience: str | None
    jwt_jwks_url: str | None
    jwt_public_key: str | None
    jwt_secret: str | None
    jwt_algorithms: tuple[str, ...]
    jwt_user_claim: str
    jwt_scope_claim: str | None
    cors: tuple[str, ...]
    cors_routes: tuple[str, ...]
    hosts: tuple[str, ...]
    public_url: str | None
    proxies: tuple[str, ...]
    groq_api_key: str | None
    openai_api_key: str | None
    openai_base_url: str | None
    system_message: str
    context_window: int | None
    message_limit: int
    reply_limit: int
    body_limit: int
    header_timeout: float
    body_timeout: float
    socket_lifetime: float
    queue_limit: int
    max_turns: int | None
    max_streams: int | None
    queue_timeout: float
    attempts: int
    connect_timeout: float
    first_byte_timeout: float
    between_timeout: float
    total_timeout: float
    durability: Durability
    checkpoint_seconds: float
    grace: float
    log_format: Format
    log_level: Level
    log_content: str
    traces: str | None
    providers: tuple[ProviderEntry, ...] = ()
    deployments: tuple[DeploymentEntry, ...] = ()
    limits: Rules = Rules()
    has_file: bool = False  # whether a file was read, which then defines all its deployments

    def __repr__(self) -> str:
        shown = {s.name: getattr(self, s.name) for s in SETTINGS if not (s.secret or s.private)}
        return f"Config({shown}, {self.providers}, {self.deployments})"

    def all_deployments(self) -> tuple[DeploymentEntry, ...]:
        """The deployments that the server has from its configuration, the default first.

        One is the default, whatever the file says: the table that says so, else the one called
        `default`, else one of that name with the setting `system_message` and nothing else.
        """
        tables = self.deployments
        blank = DeploymentEntry(
            DEFAULT_DEPLOYMENT, True, Blueprint(system_message=self.system_message)
        )
        marked = (table for table in tables if table.default)
        called = (table for table in tables if table.name == DEFAULT_DEPLOYMENT)
        default = next(marked, None) or next(called, blank)
        rest = (table for table in tables if table is not default)
        return (msgspec.structs.replace(default, default=True), *rest)


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
    file = _read_toml(options.get("config"), problems)
    values = {
        setting.name: _value(setting, options, (environment, dotenv), file.texts, problems)
        for setting in SETTINGS
    }
    if values["auth"] is None:
        values["auth"] = "off" if values["host"] in LOOPBACK else "keys"
    problems.extend(wrong_jwt(values))
    variables = {**dotenv, **{name: text for name, text in environment.items() if text}}
    providers = read_providers(file.providers, values, variables, problems)
    deployments = read_deployments(file.deployments, values, file.folder, problems)
    limits = read_limits(file.limits, problems)
    if problems:
        raise ConfigError("\n".join(problems))
    has_file = options.get("config") is not None
    return Config(
        **values, providers=providers, deployments=deployments, limits=limits, has_file=has_file
    )


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
    file = _read_toml(options.get("config"), problems)
    setting = next(setting for setting in SETTINGS if setting.name == name)
    value = _value(setting, options, (environment, dotenv), file.texts, problems)
    if problems:
        raise ConfigError("\n".join(problems))
    return value


def read_url(text: str) -> str:
    """The address of a server to talk to, as `--url` gives it.

    Raises:
        ConfigError: it is none.
    """
    try:
        return read_http_url(text)
    except ValueError as error:
        raise ConfigError(f"--url {error}") from error


def _read_dotenv(path: Path, problems: list[str]) -> Mapping[str, str]:
    try:
        return {name: value for name, value in dotenv_values(path).items() if value is not None}
    except (OSError, UnicodeDecodeError) as error:
        problems.append(f"{path} cannot be read: {error}")
        return {}


class _File(msgspec.Struct, frozen=True):
    """What the TOML file holds: its tables, and the settings as texts, as an environment has them.

    `folder` is where it lies.
    """

    texts: Mapping[str, str]
    providers: Any
    deployments: Any
    limits: Any
    folder: Path


def _read_toml(path: str | None, problems: list[str]) -> _File:
    nothing = _File({}, {}, {}, {}, Path())
    if path is None:
        return nothing
    try:
        toml = tomllib.loads(Path(path).read_text("utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError) as error:
        problems.append(f"config {path} cannot be read: {error}")
        return nothing
    providers, deployments = toml.pop("providers", {}), toml.pop("deployments", {})
    limits = toml.pop("limits", {})
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
    return _File(texts, providers, deployments, limits, Path(path).parent)


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
