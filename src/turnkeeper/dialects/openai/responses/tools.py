"""Tools and which of them the model is to call. Pure.

Functions and custom tools are run by the client. What a server would have to run (searches,
shells and so on, of which coding agents send a dozen) is told back and left out of what the model
sees, unless the model is to call just that.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from turnkeeper.dialects.openai.content import custom_tool
from turnkeeper.dialects.openai.errors import WrongParameter
from turnkeeper.dialects.openai.parameters import decode_at, unsupported
from turnkeeper.domain import ChosenTool, Tool

Choice = Literal["auto", "none", "required"] | ChosenTool | None

_Name = Annotated[str, Meta(min_length=1, max_length=128)]


class _Function(msgspec.Struct, forbid_unknown_fields=True):
    type: str
    name: _Name
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None
    allowed_callers: Any = None
    defer_loading: Any = None
    output_schema: Any = None


class _Custom(msgspec.Struct, forbid_unknown_fields=True):
    type: str
    name: _Name
    description: str | None = None
    format: dict[str, Any] | None = None
    allowed_callers: Any = None
    defer_loading: Any = None


class _Kind(msgspec.Struct):
    type: str


_any = msgspec.json.Decoder(dict[str, Any])
_kind = msgspec.json.Decoder(_Kind)
_function = msgspec.json.Decoder(_Function)
_custom = msgspec.json.Decoder(_Custom)


def decode_tools(
    given: Sequence[msgspec.Raw], path: str
) -> tuple[tuple[Tool, ...], list[Mapping[str, Any]]]:
    """The tools that the model may be shown, and all of them as the response tells of them.

    Raises:
        WrongParameter: one is not as it should be, or two are called alike.
    """
    shown: dict[str, Tool] = {}
    told: list[Mapping[str, Any]] = []
    for number, raw in enumerate(given):
        place = f"{path}[{number}]"
        tool, echo = _decode_tool(raw, place)
        told.append(echo)
        if tool is None:
            continue
        if tool.name in shown:
            raise WrongParameter(f"There are two tools called {tool.name}", f"{place}.name")
        shown[tool.name] = tool
    return tuple(shown.values()), told


def _decode_tool(raw: msgspec.Raw, place: str) -> tuple[Tool | None, Mapping[str, Any]]:
    kind = decode_at(_kind, raw, place).type
    as_given = decode_at(_any, raw, place)
    if kind == "function":
        function = decode_at(_function, raw, place)
        tool = Tool(function.name, function.description, function.parameters, function.strict)
        return tool, {"description": None, "parameters": None, "strict": None} | as_given
    if kind == "custom":
        custom = decode_at(_custom, raw, place)
        tool = custom_tool(custom.name, custom.description, custom.format)
        return tool, {"format": {"type": "text"}} | as_given
    return None, as_given


def choose_tool(
    given: str | Mapping[str, Any] | None, tools: tuple[Tool, ...]
) -> tuple[tuple[Tool, ...], Choice]:
    """The tools that the model is shown, and what it is to do with them.

    Raises:
        WrongParameter: it is to call one that is not among them.
    """
    match given:
        case None:
            return tools, None
        case "none" | "auto":
            return tools, given if tools else None
        case "required":
            return _needed(tools), "required"
        case {"type": "function" | "custom" as kind, "name": str(name)}:
            _check_named(kind, name, tools, "tool_choice.name")
            return tools, ChosenTool(name)
        case {"type": "allowed_tools", "mode": "auto" | "required" as mode, "tools": list(named)}:
            allowed = _allowed(named, tools)
            return (_needed(allowed), "required") if mode == "required" else (allowed, "auto")
        case {"type": "function" | "custom" | "allowed_tools"} | str():
            raise WrongParameter("tool_choice is none of the forms it may have", "tool_choice")
        case {"type": str(kind)}:
            raise unsupported(
                "tool_choice",
                f"Tools of the type {kind[:100]} are not run here: none can be chosen",
            )
        case _:
            raise WrongParameter("tool_choice is none of the forms it may have", "tool_choice")


def _needed(tools: tuple[Tool, ...]) -> tuple[Tool, ...]:
    if not tools:
        raise unsupported("tool_choice", "It demands a tool, and there is none that can be called")
    return tools


def _allowed(named: Iterable[Any], tools: tuple[Tool, ...]) -> tuple[Tool, ...]:
    """Those of the tools that are named; what the model is not shown anyway is passed over."""
    names: set[str] = set()
    for number, entry in enumerate(named):
        match entry:
            case {"type": "function" | "custom" as kind, "name": str(name)}:
                _check_named(kind, name, tools, f"tool_choice.tools[{number}].name")
                names.add(name)
            case {"type": str()}:
                pass
            case _:
                raise WrongParameter("A tool has a type", f"tool_choice.tools[{number}].type")
    return tuple(tool for tool in tools if tool.name in names)


def _check_named(kind: str, name: str, tools: tuple[Tool, ...], param: str) -> None:
    if not any(tool.name == name and tool.custom == (kind == "custom") for tool in tools):
        raise WrongParameter(f"There is no {kind} tool {name[:100]} among the tools", param)
