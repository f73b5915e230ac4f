"""Reading parameters: what is wrong with one is told by its path, `input[0].content`. Pure."""

import re
from typing import Any, TypeVar

import msgspec

from turnkeeper.dialects.openai.errors import WrongParameter
from turnkeeper.validation import explain

T = TypeVar("T")


def decode_body(decoder: msgspec.json.Decoder[T], body: bytes) -> T:
    """A request's JSON object.

    Raises:
        WrongParameter: it is none, or one of its parameters is wrong: `param` says which.
    """
    return decode_at(decoder, body, "")


def decode_at(decoder: msgspec.json.Decoder[T], body: bytes | msgspec.Raw, path: str) -> T:
    """The JSON that stands at `path` of a request; empty for its whole body. Raises as above."""
    try:
        if isinstance(body, bytes) and not body.isascii():
            body.decode()  # msgspec does not look into what it skips
        return decoder.decode(body)
    except msgspec.ValidationError as error:
        raise wrong(str(error), path) from error
    except UnicodeDecodeError as error:
        raise _no_json("it is not UTF-8") from error
    except msgspec.DecodeError as error:
        raise _no_json(str(error)) from error
    except RecursionError as error:
        raise WrongParameter("The body is nested too deeply", path or None) from error


def _no_json(why: str) -> WrongParameter:
    return WrongParameter(f"The body is not valid JSON: {why}", None, "invalid_json")


_UNKNOWN = re.compile(r"Object contains unknown field `(.*)`", re.DOTALL)
_MISSING = re.compile(r"Object missing required field `(.*)`", re.DOTALL)


def wrong(problem: str, path: str = "") -> WrongParameter:
    """What msgspec says of a value at `path`, as an error about the parameter it is about."""
    complaint, _, inner = problem.partition(" - at `")
    param = _join(path, inner.rstrip("`").removeprefix("$").removeprefix("."))
    unknown, missing = _UNKNOWN.match(complaint), _MISSING.match(complaint)
    if unknown:
        param = _join(param, unknown[1][:100])
        return WrongParameter(f"Unknown parameter: '{param}'.", param, "unknown_parameter")
    if missing:
        param = _join(param, missing[1])
        return WrongParameter(
            f"Missing required parameter: '{param}'.", param, "missing_required_parameter"
        )
    sentence = explain(f"{complaint} - at `$.{param}`" if param else complaint)
    is_type = complaint.startswith("Expected") and ", got" in complaint
    return WrongParameter(sentence, param or None, "invalid_type" if is_type else "invalid_value")


def _join(path: str, inner: str) -> str:
    return f"{path}.{inner}" if path and inner and not inner.startswith("[") else path + inner


def unsupported(param: str, sentence: str) -> WrongParameter:
    """Of a parameter that cannot be honoured, and that it would be wrong to ignore."""
    return WrongParameter(sentence, param, "unsupported_parameter")


def check_metadata(metadata: Any) -> None:
    """Raises WrongParameter unless it is what `metadata` may be: 16 pairs, of 64 and 512."""
    if len(metadata) > 16:
        raise WrongParameter("metadata must have at most 16 pairs", "metadata")
    for name, value in metadata.items():
        if len(name) > 64:
            raise WrongParameter(
                "The names in metadata must have at most 64 characters", f"metadata.{name[:64]}"
            )
        if not isinstance(value, str) or len(value) > 512:
            raise WrongParameter(
                "The values in metadata must be strings of at most 512 characters",
                f"metadata.{name}",
            )
