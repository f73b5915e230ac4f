"""What is asked of `POST /v1/responses`, read and checked. Pure.

Every parameter that OpenAI's own clients know is known; another is refused, so that a slip of the
pen is not lost. A known one is honoured; or told back as it came, where nothing depends on it
here; or refused, where the answer would not be what was asked for.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from turnkeeper.dialects.openai.content import Reference, decode_items
from turnkeeper.dialects.openai.errors import WrongParameter
from turnkeeper.dialects.openai.ids import find_conversation, parse_response_id
from turnkeeper.dialects.openai.parameters import check_metadata, decode_body, unsupported
from turnkeeper.dialects.openai.responses.tools import choose_tool, decode_tools
from turnkeeper.domain import (
    NO_OPTIONS,
    ImagePart,
    Item,
    JsonFormat,
    MaxTokens,
    Message,
    Options,
    Sampling,
    SessionChoice,
    Temperature,
    TurnRef,
)
from turnkeeper.errors import SessionNotFound

# --- The body ----------------------------------------------------------------------------------


class _Strict(msgspec.Struct, forbid_unknown_fields=True):
    """An object of the request, whose every field is known."""


class Conversation(_Strict):
    id: str


class Prompt(_Strict):
    """A deployment by its name, a revision of it by its id or number, and its variables."""

    id: str
    version: str | int | None = None
    variables: dict[str, str | dict[str, Any]] | None = None


class _TextFormat(_Strict, tag_field="type", tag="text"):
    pass


class _ObjectFormat(_Strict, tag_field="type", tag="json_object"):
    pass


class _SchemaFormat(_Strict, tag_field="type", tag="json_schema"):
    name: Annotated[str, Meta(pattern="^[a-zA-Z0-9_-]{1,64}$")]
    schema: dict[str, Any]
    description: str | None = None
    strict: bool | None = None


class TextConfig(_Strict):
    format: _TextFormat | _ObjectFormat | _SchemaFormat | None = None
    verbosity: Literal["low", "medium", "high"] | None = None


class ReasoningConfig(_Strict):
    effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = None
    summary: Literal["auto", "concise", "detailed"] | None = None
    generate_summary: Literal["auto", "concise", "detailed"] | None = None
    context: Literal["auto", "current_turn", "all_turns"] | None = None
    mode: str | None = None


class StreamOptions(_Strict):
    include_obfuscation: bool | None = None


class ContextManagement(_Strict):
    type: str
    compact_threshold: Annotated[int, Meta(ge=1)] | None = None


_Include = Literal[
    "file_search_call.results",
    "web_search_call.results",
    "web_search_call.action.sources",
    "message.input_image.image_url",
    "computer_call_output.output.image_url",
    "code_interpreter_call.outputs",
    "reasoning.encrypted_content",
    "message.output_text.logprobs",
]
_Tier = Literal["auto", "default", "flex", "scale", "priority", "fast"]
_Penalty = Annotated[float, Meta(ge=-2, le=2)]


class CreateRequest(_Strict):
    """All of it, as it came."""

    input: str | list[msgspec.Raw] | None = None
    model: str | None = None
    instructions: str | None = None
    previous_response_id: str | None = None
    conversation: str | Conversation | None = None
    prompt: Prompt | None = None
    store: bool | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    background: bool | None = None
    metadata: dict[str, Any] | None = None
    tools: list[msgspec.Raw] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    max_tool_calls: Annotated[int, Meta(ge=1)] | None = None
    text: TextConfig | None = None
    temperature: Temperature | None = None
    top_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    presence_penalty: _Penalty | None = None
    frequency_penalty: _Penalty | None = None
    max_output_tokens: MaxTokens | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    truncation: Literal["auto", "disabled"] | None = None
    context_management: list[ContextManagement] | None = None
    include: list[_Include] | None = None
    reasoning: ReasoningConfig | None = None
    service_tier: _Tier | None = None
    safety_identifier: Annotated[str, Meta(max_length=64)] | None = None
    user: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_options: dict[str, Any] | None = None
    prompt_cache_retention: Literal["in_memory", "in-memory", "24h"] | None = None
    moderation: dict[str, Any] | None = None


_request = msgspec.json.Decoder(CreateRequest)

# --- What is wanted ----------------------------------------------------------------------------


class Template(msgspec.Struct, frozen=True):
    """A deployment's prompt that is to be used, filled in with variables."""

    deployment: str
    version: str | None
    variables: Mapping[str, str]


class Wanted(msgspec.Struct, frozen=True):
    """A response that is asked for.

    Attributes:
        items: what is to be answered; references still stand for what they name.
        remembered: what stands before that, where no store has it.
        session: the conversation that it is to be in, and `previous` the response that it comes
            behind, if it names either.
        user: which of an application's own users it is for.
        echo: what the response tells of the request, where that differs from the ordinary.
    """

    items: tuple[Item | Reference, ...]
    model: str | None
    options: Options
    session: SessionChoice | None = None
    previous: TurnRef | None = None
    template: Template | None = None
    store: bool = True
    stream: bool = False
    background: bool = False
    user: str | None = None
    echo: Mapping[str, Any] = {}
    remembered: tuple[Item, ...] = ()


def decode_wanted(body: bytes) -> Wanted:
    """The response that a request's body asks for.

    Raises:
        WrongParameter: it cannot be; `param` says what of it.
        SessionNotFound: there can be no such conversation.
    """
    return make_wanted(decode_body(_request, body))


def make_wanted(request: CreateRequest) -> Wanted:
    """As `decode_wanted`, from a body that has been read."""
    _refuse_what_cannot_be(request)
    items = _decode_input(request)
    options, echo = _decode_options(request)
    return Wanted(
        items,
        request.model,
        options,
        session=_find_conversation(request.conversation),
        previous=_find_previous(request.previous_response_id),
        template=None if request.prompt is None else _decode_template(request.prompt),
        store=request.store is not False,
        stream=request.stream is True,
        background=request.background is True,
        user=request.safety_identifier or request.user,
        echo=echo | _echo_of(request),
    )


def _refuse_what_cannot_be(request: CreateRequest) -> None:
    if request.conversation is not None and request.previous_response_id is not None:
        raise WrongParameter(
            "previous_response_id and conversation exclude each other",
            "previous_response_id",
            "mutually_exclusive_parameters",
        )
    if request.background and request.store is False:
        raise unsupported("background", "What is made in the background has to be stored")
    if request.top_logprobs:
        raise unsupported("top_logprobs", "Log probabilities are not told: leave top_logprobs out")
    if "message.output_text.logprobs" in (request.include or ()):
        raise unsupported("include", "Log probabilities are not told")
    if request.moderation is not None:
        raise unsupported("moderation", "Nothing is moderated here: leave moderation out")
    for number, entry in enumerate(request.context_management or ()):
        if entry.type != "compaction":
            raise unsupported(f"context_management[{number}].type", "It can only be compaction")
    if request.metadata is not None:
        check_metadata(request.metadata)


def _decode_input(request: CreateRequest) -> tuple[Item | Reference, ...]:
    given = request.input
    if not given and not isinstance(given, str):
        if request.prompt or request.conversation or request.previous_response_id:
            return ()
        raise WrongParameter(
            "One of input, previous_response_id, prompt or conversation must be given",
            "input",
            "missing_required_parameter",
        )
    if isinstance(given, str):
        if not given.strip():
            raise WrongParameter("input must not be blank", "input")
        return (Message("user", given),)
    items = decode_items(given, "input")
    for number, item in enumerate(items):
        if isinstance(item, Message) and item.role == "user" and _is_blank(item):
            raise WrongParameter(
                f"input[{number}].content must not be blank", f"input[{number}].content"
            )
    return items


def _is_blank(message: Message) -> bool:
    return not message.text.strip() and not any(isinstance(p, ImagePart) for p in message.parts)


def _find_conversation(given: str | Conversation | None) -> SessionChoice | None:
    if given is None:
        return None
    id_ = given if isinstance(given, str) else given.id
    try:
        return find_conversation(id_)
    except SessionNotFound:
        raise SessionNotFound(f"Conversation with id '{id_[:100]}' not found.") from None


def _find_previous(id_: str | None) -> TurnRef | None:
    if id_ is None:
        return None
    ref = parse_response_id(id_)
    if ref is None:
        raise no_previous(id_)
    return ref


def no_previous(id_: str) -> WrongParameter:
    return WrongParameter(
        f"Previous response with id '{id_[:100]}' not found.",
        "previous_response_id",
        "previous_response_not_found",
    )


def _decode_template(prompt: Prompt) -> Template:
    variables: dict[str, str] = {}
    for name, value in (prompt.variables or {}).items():
        match value:
            case str(text) | {"type": "input_text", "text": str(text)}:
                variables[name] = text
            case _:
                raise unsupported(
                    f"prompt.variables.{name}", "The value of a variable must be text"
                )
    version = prompt.version
    return Template(prompt.id, None if version is None else str(version), variables)


# --- How it is to be made ------------------------------------------------------------------------


def _decode_options(request: CreateRequest) -> tuple[Options, dict[str, Any]]:
    """The options, and what the response tells of the tools among them."""
    given, told = decode_tools(request.tools or (), "tools")
    tools, choice = choose_tool(request.tool_choice, given)
    echo: dict[str, Any] = {"tools": told} if told else {}
    if request.tool_choice is not None:
        echo["tool_choice"] = request.tool_choice
    options = Options(
        sampling=Sampling(request.temperature, request.top_p or None, request.max_output_tokens),
        instructions=request.instructions,
        tools=tools,
        tool_choice=choice,
        parallel_tool_calls=request.parallel_tool_calls if tools else None,
        reply_format=None if request.text is None else _decode_format(request.text.format),
        reasoning_effort=None if request.reasoning is None else request.reasoning.effort,
        overflow=_overflow_of(request),
        extra=_extra_of(request),
    )
    return (NO_OPTIONS if options == NO_OPTIONS else options), echo


def _decode_format(
    given: _TextFormat | _ObjectFormat | _SchemaFormat | None,
) -> JsonFormat | None:
    match given:
        case None | _TextFormat():
            return None
        case _ObjectFormat():
            return JsonFormat()
        case _SchemaFormat():
            return JsonFormat(given.name, given.description, given.schema, given.strict)


def _overflow_of(
    request: CreateRequest,
) -> Literal["truncate", "summarise", "error"] | None:
    if request.context_management:
        return "summarise"
    if request.truncation is None:
        return None
    return "truncate" if request.truncation == "auto" else "error"


def _extra_of(request: CreateRequest) -> Mapping[str, Any]:
    """What only the provider need know, where it is not as it would be without."""
    given = {
        "presence_penalty": request.presence_penalty or None,
        "frequency_penalty": request.frequency_penalty or None,
        "verbosity": request.text and request.text.verbosity,
    }
    if given["verbosity"] == "medium":
        given["verbosity"] = None
    return {name: value for name, value in given.items() if value is not None}


# --- What the response tells of it ---------------------------------------------------------------

_AS_IT_CAME = (
    "instructions",
    "previous_response_id",
    "background",
    "store",
    "metadata",
    "parallel_tool_calls",
    "max_tool_calls",
    "temperature",
    "top_p",
    "presence_penalty",
    "frequency_penalty",
    "max_output_tokens",
    "truncation",
    "safety_identifier",
    "user",
    "prompt_cache_key",
)


def _echo_of(request: CreateRequest) -> dict[str, Any]:
    echo = {name: value for name in _AS_IT_CAME if (value := getattr(request, name)) is not None}
    if request.text is not None:
        echo["text"] = _echo_text(request.text)
    if request.reasoning is not None:
        echo["reasoning"] = {
            "effort": request.reasoning.effort,
            "summary": request.reasoning.summary,
        } | {
            name: value
            for name in ("context", "generate_summary", "mode")
            if (value := getattr(request.reasoning, name)) is not None
        }
    if request.prompt is not None:
        echo["prompt"] = _echo_prompt(request.prompt)
    if request.prompt_cache_options is not None:
        usual = {"mode": "implicit", "ttl": "30m"}
        echo["prompt_cache_options"] = usual | request.prompt_cache_options
    if request.prompt_cache_retention is not None:
        echo["prompt_cache_retention"] = request.prompt_cache_retention.replace("-", "_")
    return echo


def _echo_text(text: TextConfig) -> dict[str, Any]:
    form: Any = {"type": "text"}
    match text.format:
        case _ObjectFormat():
            form = {"type": "json_object"}
        case _SchemaFormat(name=name, schema=schema, description=description, strict=strict):
            form = {
                "type": "json_schema",
                "name": name,
                "schema": schema,
                "description": description,
                "strict": strict or False,
            }
        case _:
            pass
    return {"format": form, "verbosity": text.verbosity or "medium"}


def _echo_prompt(prompt: Prompt) -> dict[str, Any]:
    version = None if prompt.version is None else str(prompt.version)
    return {"id": prompt.id, "version": version, "variables": prompt.variables}
