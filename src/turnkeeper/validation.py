"""What msgspec says of a value that has the wrong shape, as a sentence about the field. Pure."""

import re

_KINDS = {
    "str": "a string",
    "bool": "true or false",
    "int": "an integer",
    "float": "a number",
    "object": "an object",
    "array": "a list",
    "null": "null",
}
_EXPECTED = re.compile(r"Expected `([^`]+)`(?: of length)?(?: (<=|>=|<|>) ([\d.e+-]+))?")
_BOUNDS = {"<=": "at most", ">=": "at least", "<": "less than", ">": "more than"}


def explain(problem: str, whole: str = "The body") -> str:
    """The sentence for a `ValidationError`'s text; `whole` is what a value without a path is.

    "Expected `str`, got `int` - at `$.message`" becomes "message must be a string".
    """
    complaint, _, path = problem.partition(" - at `")
    place = path.rstrip("`").removeprefix("$").removeprefix(".") or whole
    missing = re.fullmatch(r"Object missing required field `(.*)`", complaint)
    if missing:
        return f"{place} needs {missing[1]}"
    unknown = re.fullmatch(r"Object contains unknown field `(.*)`", complaint, re.DOTALL)
    if unknown:
        return f"{place} has an unknown field {unknown[1][:100]}"
    expected = _EXPECTED.match(complaint)
    if not expected:
        return f"{place} has a value that is not known here"
    kinds = [_KINDS.get(kind, kind) for kind in expected[1].split(" | ") if kind != "null"]
    wanted = " or ".join(kinds)
    if expected[2]:
        unit = {"str": " characters", "array": " entries"}.get(expected[1], "")
        wanted = f"{wanted} of {_BOUNDS[expected[2]]} {expected[3].removesuffix('.0')}{unit}"
    if place == whole and wanted == "an object":
        wanted = "a JSON object"
    return f"{place} must be {wanted}"
