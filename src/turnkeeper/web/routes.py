"""From a path to what is served there."""

import re
from collections.abc import Collection, Iterable
from typing import Generic, TypeVar

T = TypeVar("T")


class RouteMap(Generic[T]):
    """Paths, some with variables in braces (`/api/turns/{turn_id}`), each with its `T`.

    A path without variables goes before one with them; a variable is one non-empty segment, or
    all that is left of the path where its name ends in an asterisk.
    """

    def __init__(
        self, routes: Iterable[tuple[str, T]], any_case: Collection[str] = frozenset()
    ) -> None:
        """Paths in `any_case`, which have no variables, match however their letters are written."""
        self._folded: dict[str, T] = {}
        self._plain: dict[str, T] = {}
        self._patterns: list[tuple[re.Pattern[str], T]] = []
        for path, target in routes:
            if "{" in path:
                self._patterns.append((_pattern(path), target))
                continue
            self._plain[path] = target
            if path in any_case:
                self._folded[path.lower()] = target

    def find(self, path: str) -> tuple[T, dict[str, str]] | None:
        """What is served at `path`, and the values of its variables; None if nothing is."""
        target = self._plain.get(path)
        if target is None and self._folded:
            target = self._folded.get(path.lower())
        if target is not None:
            return target, {}
        for pattern, target in self._patterns:
            match = pattern.fullmatch(path)
            if match is not None:
                return target, match.groupdict()
        return None


def _pattern(path: str) -> re.Pattern[str]:
    parts = re.split(r"{(\w+\*?)}", path)  # text and names in turn
    literal, names = map(re.escape, parts[::2]), parts[1::2]
    variables = [_variable(name) for name in names]
    return re.compile("".join(a + b for a, b in zip(literal, [*variables, ""], strict=True)))


def _variable(name: str) -> str:
    return f"(?P<{name[:-1]}>.+)" if name.endswith("*") else f"(?P<{name}>[^/]+)"
