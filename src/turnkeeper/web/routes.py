"""From a path to what is served there."""

import re
from collections.abc import Iterable
from typing import Generic, TypeVar

T = TypeVar("T")


class RouteMap(Generic[T]):
    """Paths, some with variables in braces (`/api/turns/{turn_id}`), each with its `T`.

    A path without variables goes before one with them; a variable is one non-empty segment.
    """

    def __init__(self, routes: Iterable[tuple[str, T]]) -> None:
        self._plain: dict[str, T] = {}
        self._patterns: list[tuple[re.Pattern[str], T]] = []
        for path, target in routes:
            if "{" in path:
                self._patterns.append((_pattern(path), target))
            else:
                self._plain[path] = target

    def find(self, path: str) -> tuple[T, dict[str, str]] | None:
        """What is served at `path`, and the values of its variables; None if nothing is."""
        target = self._plain.get(path)
        if target is not None:
            return target, {}
        for pattern, target in self._patterns:
            match = pattern.fullmatch(path)
            if match is not None:
                return target, match.groupdict()
        return None


def _pattern(path: str) -> re.Pattern[str]:
    parts = re.split(r"{(\w+)}", path)  # text and names in turn
    literal, names = map(re.escape, parts[::2]), parts[1::2]
    variables = [f"(?P<{name}>[^/]+)" for name in names]
    return re.compile("".join(a + b for a, b in zip(literal, [*variables, ""], strict=True)))
