"""What is asked of `POST /v1/chat/completions`, read and checked. Pure.

Three kinds of parameters: those we know, which are in `Options`; those that only the provider
need know, which go to it as they are, with whatever has been invented since; and those that
change what the answer is in a way that we cannot honour, which are refused.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, assert_never

import msgspec
from msgspec import Meta

from turnkeeper.dialects.openai.completions.messages import (
    AnyMessage,
    Conversation,
    read_conversation,
)
from turnkeeper.dialects.openai.content import custom_tool
from turnkeeper.dialects.openai.errors import WrongParameter
from turnkeeper.dialects.openai.parameters import check_metadata, decode_body, unsupported
from turnkeeper.domain import (
    NO_OPTIONS,
    ChosenTool,
    JsonFormat,
    Options,
    Sampling,
    Tool,
)

# --- Tools -------------------------------------------------------------------------------------


class FunctionDefinition(msgspec.Struct):
    name: Annotated[str, Meta(min_length=1, max_length=128)]
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class FunctionTool(msgspec.Struct, tag_field="type", tag="function"):
    function: FunctionDefinition


class CustomDefinition(msgspec.Struct):
    name: Annotated[str, Meta(min_length=1, max_length=128)]
    description: str | None = None
    format: dict[str, Any] | None = None


class CustomTool(msgspec.Struct, tag_field="type", tag="custom"):
    custom: CustomDefinition


class Named(msgspec.Struct):
    name: str


class FunctionChoice(msgspec.Struct, tag_field="type", tag="function"):
    function: Named


class CustomChoice(msgspec.Struct, tag_field="type", tag="custom"):
    custom: Named


class AllowedTools(msgspec.Struct):
    mode: Literal["auto", "required"]
    tools: list[FunctionChoice | CustomChoice]


class AllowedChoice(msgspec.Struct, tag_field="type", tag="allowed_tools"):
    allowed_tools: AllowedTools


AnyChoice = str | FunctionChoice | CustomChoice | AllowedChoice
_WORDS: Mapping[str, Literal["none", "auto", "required"]] = {
    "none": "none",
    "auto": "auto",
    "required": "required",
}

# --- The form of the reply ---------------------------------------------------------------------


class TextFormat(msgspec.Struct, tag_field="type", tag="text"):
    pass


class ObjectFormat(msgspec.Struct, tag_field="type", tag="json_object"):
    pass


class Schema(msgspec.Struct):
    name: str
    description: str | None = None
    schema: dict[str, Any] | None = None
    strict: bool | None = None


class SchemaFormat(msgspec.Struct, tag_field="type", tag="json_schema"):
    json_schema: Schema


# --- The request -------------------------------------------------------------------------------


class StreamOptions(msgspec.Struct):
    include_usage: bool | None = None


Penalty = Annotated[float, Meta(ge=-2, le=2)]
MaxTokens = Annotated[int, Meta(ge=1, le=10_000_000)]


class UsualRequest(msgspec.Struct):
    """What is nearly always all that is asked."""

    messages: Annotated[list[AnyMessage], Meta(min_length=1)]
    model: Annotated[str, Meta(min_length=1)]
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    store: bool | None = None
    metadata: dict[str, Any] | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    max_tokens: MaxTokens | None = None
    max_completion_tokens: MaxTokens | None = None
    stop: str | Annotated[list[str], Meta(max_length=4)] | None = None
    tools: Annotated[list[FunctionTool | CustomTool], Meta(max_length=256)] | None = None
    tool_choice: AnyChoice | None = None
    parallel_tool_calls: bool | None = None
    response_format: TextFormat | ObjectFormat | SchemaFormat | None = None
    reasoning_effort: str | None = None
    user: str | None = None
    safety_identifier: str | None = None


class StrictRequest(UsualRequest, forbid_unknown_fields=True):
    """The same, and nothing else."""


class ForProvider(msgspec.Struct):
    """What only the provider need know, where its form is known."""

    frequency_penalty: Penalty | None = None
    presence_penalty: Penalty | None = None
    logit_bias: dict[str, float] | None = None
    seed: int | None = None
    service_tier: str | None = None
    verbosity: str | None = None
    prediction: dict[str, Any] | None = None
    prompt_cache_key: str | None = None
    prompt_cache_options: dict[str, Any] | None = None
    prompt_cache_retention: str | None = None


class Refused(msgspec.Struct):
    """What would change what the answer is."""

    n: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    modalities: list[str] | None = None
    audio: Any = None
    web_search_options: Any = None
    moderation: Any = None
    functions: Any = None
    function_call: Any = None


_strict_request = msgspec.json.Decoder(StrictRequest)
_usual_request = msgspec.json.Decoder(UsualRequest)
_for_provider = msgspec.json.Decoder(ForProvider)
_refused = msgspec.json.Decoder(Refused)
_fields = msgspec.json.Decoder(dict[str, msgspec.Raw])

_KNOWN = frozenset(UsualRequest.__struct_fields__) | frozenset(Refused.__struct_fields__)
# What a stored completion need not tell again, or tells elsewhere.
_NOT_ECHOED = frozenset({"messages", "model", "metadata", "store", "stream", "stream_options"})


class Wanted(msgspec.Struct, frozen=True):
    """What is asked, in our words.

    Attributes:
        session_id: what the client calls the session that it is a turn of; None for none.
        store: whether it is to be kept; None where nothing is said.
        user: for which of an application's own users it is, as that calls them.
        custom: the names of tools that take one string.
        body: as it was sent.
    """

    model: str
    conversation: Conversation
    options: Options
    session_id: str | None
    store: bool | None
    metadata: Mapping[str, str]
    stream: bool
    include_usage: bool
    user: str | None
    custom: frozenset[str]
    body: bytes

    @property
    def is_kept(self) -> bool:
        """Whether a turn is made of it."""
        return self.store is True or (self.session_id is not None and self.store is None)

    def echo(self) -> dict[str, msgspec.Raw]:
        """The parameters as they were sent, for whoever asks for the completion later."""
        sent = _fields.decode(self.body)
        return {name: value for name, value in sent.items() if name not in _NOT_ECHOED}


def decode_wanted(body: bytes) -> Wanted:
    """Raises WrongParameter where it cannot be done as it is asked."""
    extra: Mapping[str, Any] = {}
    try:
        request: UsualRequest = decode_body(_strict_request, body)
    except WrongParameter:  # what is wrong with it, if anything is, comes again
        request = decode_body(_usual_request, body)
        extra = _read_others(body)
    if request.metadata:
        check_metadata(request.metadata)
    tools, choice = _decode_tools(request)
    metadata = request.metadata or {}
    limit = request.max_completion_tokens or request.max_tokens
    stop = (request.stop,) if isinstance(request.stop, str) else tuple(request.stop or ())
    options = Options(
        Sampling(request.temperature, request.top_p, limit, stop),
        None,
        tools,
        choice,
        request.parallel_tool_calls,
        _decode_format(request.response_format),
        request.reasoning_effort,
        None,
        extra,
    )
    streaming = request.stream_options
    return Wanted(
        model=request.model,
        conversation=read_conversation(request.messages),
        options=NO_OPTIONS if options == NO_OPTIONS else options,  # which many things know
        session_id=metadata.get("session_id"),
        store=request.store,
        metadata=metadata,
        stream=request.stream is True,
        include_usage=streaming is not None and streaming.include_usage is True,
        user=request.safety_identifier or request.user,
        custom=frozenset([tool.name for tool in tools if tool.custom]),
        body=body,
    )


def _read_others(body: bytes) -> Mapping[str, Any]:
    """What goes to the provider as it is: what has been invented since is among it.

    Raises:
        WrongParameter: something is of the wrong type, or cannot be done.
    """
    _refuse_what_cannot_be(decode_body(_refused, body))
    decode_body(_for_provider, body)
    sent = msgspec.json.decode(body, type=dict[str, Any])
    return {name: value for name, value in sent.items() if name not in _KNOWN and value is not None}


def _refuse_what_cannot_be(request: Refused) -> None:
    """What is asked for and would be missing, or in a form that its reader does not expect."""
    if request.n is not None and request.n != 1:
        raise unsupported("n", "n must be 1: one reply is made")
    if request.logprobs:
        raise unsupported("logprobs", "Log probabilities are not kept: leave logprobs out")
    if request.top_logprobs:
        raise unsupported("top_logprobs", "Log probabilities are not kept: leave it out")
    if request.modalities is not None and request.modalities != ["text"]:
        raise unsupported("modalities", 'Replies are text: modalities must be ["text"]')
    for name, instead in _GONE.items():
        if getattr(request, name) is not None:
            raise unsupported(name, instead)


_GONE = {
    "audio": "Replies are text: leave audio out",
    "web_search_options": "No model searches the web from here: leave web_search_options out",
    "moderation": "Nothing is moderated here: leave moderation out",
    "functions": "functions are not read any more: send tools",
    "function_call": "function_call is not read any more: send tool_choice",
}

# --- Tools and the form of the reply, in our words ----------------------------------------------


def _decode_tools(
    request: UsualRequest,
) -> tuple[tuple[Tool, ...], Literal["auto", "none", "required"] | ChosenTool | None]:
    if request.tools is None and request.tool_choice is None:  # nearly always
        return (), None
    tools = tuple([_decode_tool(tool) for tool in request.tools or ()])
    names = {tool.name for tool in tools}
    choice = request.tool_choice
    match choice:
        case None:
            return tools, None
        case str():
            word = _WORDS.get(choice)
            if word is None:
                raise WrongParameter("tool_choice must be none, auto, required or a tool", _CHOICE)
            if word == "required" and not tools:
                raise WrongParameter("tool_choice asks for a tool, and there are none", _CHOICE)
            return tools, word
        case FunctionChoice() | CustomChoice():
            return tools, ChosenTool(_check_name(_name_of(choice), names))
        case AllowedChoice(allowed_tools=allowed):
            wanted = {_check_name(_name_of(tool), names) for tool in allowed.tools}
            return tuple([tool for tool in tools if tool.name in wanted]), allowed.mode
        case _:
            assert_never(choice)


_CHOICE = "tool_choice"


def _decode_tool(tool: FunctionTool | CustomTool) -> Tool:
    match tool:
        case FunctionTool(function=function):
            return Tool(function.name, function.description, function.parameters, function.strict)
        case CustomTool(custom=custom):
            return custom_tool(custom.name, custom.description, custom.format)
        case _:
            assert_never(tool)


def _name_of(choice: FunctionChoice | CustomChoice) -> str:
    return choice.function.name if isinstance(choice, FunctionChoice) else choice.custom.name


def _check_name(name: str, names: set[str]) -> str:
    if name not in names:
        raise WrongParameter(f"There is no tool {name[:100]} to choose", _CHOICE)
    return name


def _decode_format(
    wanted: TextFormat | ObjectFormat | SchemaFormat | None,
) -> JsonFormat | None:
    match wanted:
        case None | TextFormat():
            return None
        case ObjectFormat():
            return JsonFormat()
        case SchemaFormat(json_schema=schema):
            return JsonFormat(schema.name, schema.description, schema.schema or {}, schema.strict)
        case _:
            assert_never(wanted)
