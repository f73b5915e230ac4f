"""The one list of settings, and how each is read from its text. Pure.

The command line's options, the environment's names and `docs/configuration.md` all follow it.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from ipaddress import ip_address
from typing import Any

import msgspec


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
_ROUTES = _list_of(
    r"/([A-Za-z0-9._~-]+/)*(\*|[A-Za-z0-9._~-]*)",
    "paths like /api/chat, or /api/* for all that begin with /api/",
)
_HOSTS = _list_of(r"[A-Za-z0-9._-]+|[0-9A-Fa-f:.]+", "names of hosts without a port")


def _addresses(text: str) -> tuple[str, ...]:
    try:
        return tuple(str(ip_address(part.strip())) for part in text.split(",") if part.strip())
    except ValueError:
        raise ValueError("must be IP addresses, with commas between") from None


def _auth(text: str) -> str:
    if text not in ("keys", "off"):
        raise ValueError("must be keys or off")
    return text


def _durability(text: str) -> str:
    if text not in ("power", "process"):
        raise ValueError("must be power or process")
    return text


def _one_of(*words: str) -> Callable[[str], str]:
    def read(text: str) -> str:
        if text not in words:
            raise ValueError(f"must be {', '.join(words[:-1])} or {words[-1]}")
        return text

    return read


def _key(text: str) -> str:
    if not re.fullmatch(r"[!-~]{32,512}", text):
        raise ValueError("must be 32 to 512 characters of ASCII without spaces")
    return text


_PUBLIC = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA")
_SHARED = ("HS256", "HS384", "HS512")


def _algorithms(text: str) -> tuple[str, ...]:
    names = tuple(part.strip() for part in text.split(",") if part.strip())
    if not names or not set(names) <= {*_PUBLIC, *_SHARED}:
        raise ValueError(f"must be some of {', '.join((*_PUBLIC, *_SHARED))}")
    return names


def _pem(text: str) -> str:
    """A file has real line breaks; in an environment they may be written as two characters."""
    pem = text.replace("\\n", "\n").strip()
    if not re.fullmatch(
        r"-----BEGIN (RSA )?PUBLIC KEY-----\s.+-----END (RSA )?PUBLIC KEY-----", pem, re.DOTALL
    ):
        raise ValueError("must be a public key in PEM, from BEGIN PUBLIC KEY to END PUBLIC KEY")
    return pem


def wrong_jwt(values: Mapping[str, Any]) -> Iterator[str]:
    """What is wrong with the settings for an identity provider's tokens as a whole."""
    keys = [name for name in ("jwt_jwks_url", "jwt_public_key", "jwt_secret") if values[name]]
    about = ("jwt_issuer", "jwt_audience", "jwt_algorithms", "jwt_scope_claim")
    if not keys:
        given = [name for name in about if values[name]]
        if given:
            yield f"{given[0]} needs jwt_jwks_url, jwt_public_key or jwt_secret"
        return
    if len(keys) > 1:
        yield f"{' and '.join(keys)} exclude each other"
    missing = [name for name in ("jwt_issuer", "jwt_audience") if not values[name]]
    if missing:
        yield f"{keys[0]} needs {' and '.join(missing)}"
    allowed = _SHARED if keys == ["jwt_secret"] else _PUBLIC
    for name in values["jwt_algorithms"]:
        if name not in allowed:
            yield f"jwt_algorithms must not have {name} with {keys[0]}"


def _database(text: str) -> str:
    path = text.removeprefix("sqlite:///")
    if path != text and path.strip("/") and path != ":memory:" and "\0" not in path:
        return text
    if text.startswith(("postgresql://", "postgres://")):
        return text
    raise ValueError("must be sqlite:///FILE or postgresql://…")


def read_http_url(text: str) -> str:
    """The address of a server without a slash at its end; raises ValueError as a setting does."""
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
        "`keys`: everyone is asked for credentials. `off`: nobody is, and everything belongs to"
        " the user `local`. Default: `off` on loopback, `keys` elsewhere.",
    ),
    Setting(
        "admin_key",
        None,
        _key,
        "An API key of the user `admin`, who is made at the start: for where there is no shell.",
        secret=True,
    ),
    Setting(
        "login_idle",
        604_800,
        _whole(60, 31_536_000),
        "Seconds after which a login ends that was not used.",
    ),
    Setting(
        "login_lifetime",
        2_592_000,
        _whole(60, 31_536_000),
        "Seconds after which a login ends in any case.",
    ),
    Setting("jwt_issuer", None, _text, "Who makes the JWTs that let people in: their `iss`."),
    Setting("jwt_audience", None, _text, "What their `aud` must be or hold."),
    Setting(
        "jwt_jwks_url",
        None,
        read_http_url,
        "Where the issuer's public keys are (JWKS).",
    ),
    Setting(
        "jwt_public_key", None, _pem, "The issuer's public key in PEM, if it is always the same."
    ),
    Setting("jwt_secret", None, _key, "The secret shared with the issuer, for HS256.", secret=True),
    Setting(
        "jwt_algorithms",
        (),
        _algorithms,
        "How JWTs may be signed, with commas between. Default: RS256, ES256 and EdDSA, with"
        " `jwt_secret` HS256.",
    ),
    Setting("jwt_user_claim", "sub", _text, "The claim that holds the user's name."),
    Setting(
        "jwt_scope_claim",
        None,
        _text,
        "The claim that holds scopes, as `scope` or `realm_access.roles`. Default: all of them have"
        " `chat`, `documents` and `read`.",
    ),
    Setting(
        "cors",
        (),
        _ORIGINS,
        "Origins of web pages that may use the server, separated by commas; `*` for any."
        " Default: any port of localhost.",
    ),
    Setting(
        "cors_routes",
        (),
        _ROUTES,
        "Paths that web pages of other origins may use, as `/api/*`, separated by commas."
        " Default: all.",
    ),
    Setting(
        "hosts",
        (),
        _HOSTS,
        "Names that requests may call this server, beside those of loopback and `host`.",
    ),
    Setting(
        "public_url",
        None,
        read_http_url,
        "The address that clients use, when a proxy stands in front; base URLs are told with it.",
    ),
    Setting(
        "proxies",
        (),
        _addresses,
        "IP addresses of proxies in front, which are believed when they say where a request"
        " comes from (`X-Forwarded-For`).",
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
        read_http_url,
        "Any OpenAI-compatible endpoint, as `http://localhost:11434/v1`; then say `model` too.",
        names=("OPENAI_BASE_URL",),
        private=True,
    ),
    Setting(
        "system_message",
        "You are a helpful AI assistant.",
        _text,
        "What conversations begin with, unless their deployment says otherwise.",
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
        "header_timeout",
        10.0,
        _timeout,
        "Seconds in which the head of a request must come whole.",
    ),
    Setting(
        "body_timeout",
        30.0,
        _timeout,
        "Seconds in which the body of a request must go on, by 500 bytes for each second.",
    ),
    Setting(
        "socket_lifetime",
        3600.0,
        _timeout,
        "Seconds that a WebSocket may be open; its client then opens another.",
    ),
    Setting(
        "queue_limit",
        32,
        _whole(0, 100_000),
        "Messages that may wait in one session while a reply is made.",
    ),
    Setting(
        "max_turns",
        None,
        _whole(1, 10_000_000),
        "Turns that may run or wait at once in the whole server; what is beyond is refused with"
        " 503. Default: any number.",
    ),
    Setting(
        "max_streams",
        None,
        _whole(1, 10_000_000),
        "Streams that may be open at once in the whole server, in the same way."
        " Default: any number.",
    ),
    Setting("queue_timeout", 300.0, _timeout, "Seconds that a message may wait there."),
    Setting(
        "attempts", 3, _whole(1, 20), "Calls to the model for one reply, before its first word."
    ),
    Setting("connect_timeout", 10.0, _timeout, "Seconds for connecting to the model's server."),
    Setting("first_byte_timeout", 60.0, _timeout, "Seconds for the model to begin its reply."),
    Setting("between_timeout", 60.0, _timeout, "Seconds of silence within a reply."),
    Setting("total_timeout", 600.0, _timeout, "Seconds for one reply in all."),
    Setting(
        "durability",
        "power",
        _durability,
        "What an acknowledged turn survives: a loss of `power`, or only that of the `process`,"
        " which spares waiting for the disk.",
    ),
    Setting(
        "checkpoint_seconds",
        1.0,
        _seconds,
        "How often what replies have grown by is kept, against a crash; 0 for never.",
    ),
    Setting(
        "grace",
        10.0,
        _seconds,
        "Seconds that running turns have to finish when the server is told to stop.",
    ),
    Setting(
        "log_format",
        "auto",
        _one_of("auto", "json", "text"),
        "How the log is written: a JSON object a line, or text for people; `auto` is text on a"
        " terminal.",
    ),
    Setting(
        "log_level",
        "info",
        _one_of("debug", "info", "warning", "error"),
        "What is logged; `info` is a line for each request and each turn.",
    ),
    Setting(
        "log_content",
        "off",
        _one_of("on", "off"),
        "`on`: the log holds what people say, and the replies.",
    ),
    Setting(
        "traces",
        None,
        read_http_url,
        "Where traces are sent: a collector's address for OTLP over HTTP, as"
        " `http://localhost:4318/v1/traces`. Needs `turnkeeper[otel]`.",
        private=True,
    ),
)
