"""OpenAI's chat completions as bytes: what is sent, and what is made of what comes back.

Pure: knows the dialect and its many variants, not how the bytes travel.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from typing import Any

import msgspec

from turnkeeper import sse
from turnkeeper.domain import (
    AS_IT_IS,
    NO_OPTIONS,
    ChosenTool,
    Compaction,
    Finish,
    ImagePart,
    Item,
    JsonFormat,
    Message,
    Options,
    Part,
    Prompt,
    Reasoning,
    RefusalPart,
    Sampling,
    TextPart,
    Tool,
    ToolCall,
    ToolResult,
    Usage,
    storable,
)
from turnkeeper.errors import ProviderError
from turnkeeper.events import (
    Finished,
    ProviderEvent,
    ReasoningDelta,
    RefusalDelta,
    TextDelta,
    ToolCallDelta,
    UsageReport,
)
from turnkeeper.providers.faults import Words, parse_json

_MOST_TOKENS = 2**53  # a count from here on is none, and no database holds it
_MODEL_ID = 200  # characters of a model's id at most


# --- What is sent ------------------------------------------------------------------------------


def encode_request(prompt: Prompt, max_tokens: str = "max_tokens") -> bytes:
    """The body of a call: a stream is asked for, with a count of tokens at its end.

    `max_tokens` is what the endpoint calls the limit of a reply.
    """
    body = {
        "model": prompt.model,
        "messages": _chat_messages(prompt.items),
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    if prompt.sampling is not AS_IT_IS:
        body |= _sampling(prompt.sampling, max_tokens)
    if prompt.options is not NO_OPTIONS:
        body = {**prompt.options.extra, **body, **_wishes(prompt.options)}
    return msgspec.json.encode(body)


def _sampling(sampling: Sampling, max_tokens: str) -> dict[str, Any]:
    """Only what was said: models differ in what they take."""
    wanted = {
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        max_tokens: sampling.max_tokens,
        "stop": list(sampling.stop) or None,
    }
    return _said(wanted)


def _said(fields: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}


def _wishes(options: Options) -> dict[str, Any]:
    tools = [_tool(tool) for tool in options.tools]
    choice = options.tool_choice
    if isinstance(choice, ChosenTool):
        wanted: Any = {"type": "function", "function": {"name": choice.name}}
    else:
        wanted = choice
    return _said(
        {
            "tools": tools or None,
            "tool_choice": wanted if tools else None,
            "parallel_tool_calls": options.parallel_tool_calls if tools else None,
            "response_format": _reply_format(options.reply_format),
            "reasoning_effort": options.reasoning_effort,
        }
    )


# What a tool that takes one string is offered to the model as.
ONE_STRING = {
    "type": "object",
    "properties": {"input": {"type": "string"}},
    "required": ["input"],
    "additionalProperties": False,
}


def _tool(tool: Tool) -> dict[str, Any]:
    function = {
        "name": tool.name,
        "description": tool.description,
        "parameters": ONE_STRING if tool.custom else tool.parameters,
        "strict": tool.strict,
    }
    return {"type": "function", "function": _said(function)}


def _reply_format(wanted: JsonFormat | None) -> dict[str, Any] | None:
    if wanted is None:
        return None
    if wanted.schema is None:
        return {"type": "json_object"}
    schema = {
        "name": wanted.name or "reply",
        "description": wanted.description,
        "schema": wanted.schema,
        "strict": wanted.strict,
    }
    return {"type": "json_schema", "json_schema": _said(schema)}


def _chat_messages(items: Sequence[Item]) -> list[dict[str, Any]]:
    """The items as messages; calls of tools join the assistant's words that stand before them."""
    messages: list[dict[str, Any]] = []
    for item in items:
        match item:
            case Message():
                messages.append(_chat_message(item))
            case ToolCall():
                _calls_of_last(messages).append(_tool_call(item))
            case ToolResult(call_id=call_id):
                content = _content(item.output, item.parts)
                messages.append({"role": "tool", "tool_call_id": call_id, "content": content})
            case Compaction(text=text):
                messages.append({"role": "system", "content": _TOLD + text})
            case Reasoning():
                pass
    return messages


_TOLD = "What was said in this conversation before, in short:\n"
# Newer names that only their inventor's endpoint knows.
_ROLES = {"developer": "system"}


def _chat_message(message: Message) -> dict[str, Any]:
    role = _ROLES.get(message.role, message.role)
    match message.parts:
        case (RefusalPart(text=refusal),):
            return {"role": role, "content": None, "refusal": refusal}
        case _:
            return {"role": role, "content": _content(message.text, message.parts)}


def _content(text: str, parts: tuple[Part, ...]) -> Any:
    return [_part(part) for part in parts] if parts else text


def _part(part: Part) -> dict[str, Any]:
    match part:
        case TextPart(text=text) | RefusalPart(text=text):
            return {"type": "text", "text": text}
        case ImagePart(url=url, detail=detail):
            return {"type": "image_url", "image_url": _said({"url": url, "detail": detail})}


def _calls_of_last(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Where a call goes: to the last message, if that is the assistant's, or one made for it."""
    if not messages or messages[-1]["role"] != "assistant":
        messages.append({"role": "assistant", "content": None})
    calls: list[dict[str, Any]] = messages[-1].setdefault("tool_calls", [])
    return calls


def _tool_call(call: ToolCall) -> dict[str, Any]:
    arguments = call.arguments
    if call.custom:
        arguments = msgspec.json.encode({"input": arguments}).decode()
    function = {"name": call.name, "arguments": arguments}
    return {"id": call.call_id, "type": "function", "function": function}


# --- What comes back ---------------------------------------------------------------------------


class _Delta(msgspec.Struct, gc=False):
    """What has come; of reasoning, providers have two names."""

    content: Any = None  # text, as a rule
    refusal: Any = None
    reasoning_content: Any = None
    reasoning: Any = None
    tool_calls: Any = None

    @property
    def is_plain(self) -> bool:
        return (
            self.refusal is None
            and self.reasoning_content is None
            and self.reasoning is None
            and self.tool_calls is None
        )


class _Choice(msgspec.Struct, gc=False):
    index: int = 0
    delta: _Delta | None = None
    finish_reason: str | None = None


class _Chunk(msgspec.Struct, gc=False):
    choices: list[_Choice] | None = None
    usage: Any = None
    error: Any = None


_decode_json = msgspec.json.Decoder(_Chunk).decode
_decode_many = msgspec.json.Decoder(list[_Chunk]).decode

_DONE = b"\n\ndata: [DONE]"


def _decode_plain(data: bytes) -> tuple[list[_Chunk], bool] | None:
    """The chunks in `data`, and whether `[DONE]` follows, if it is nothing but plain events.

    Plain are whole events of one `data:` line each, as providers send them: put together they
    are one JSON array, decoded at once. JSON holds no line ends, so nothing else can look like
    the seam between two. None for all that is not so simple, which is then read with care.
    """
    if not (data.startswith(b"data: {") and data.endswith(b"\n\n")):
        return None
    body = data[6:-2]
    done = body.endswith(_DONE)
    if done:
        body = body[: -len(_DONE)]
    try:
        chunks = _decode_many(b"[%b]" % body.replace(b"\n\ndata: ", b","))
    except (ValueError, RecursionError):
        return None
    return None if any(chunk.error is not None for chunk in chunks) else (chunks, done)


def _decode_chunk(data: bytes) -> _Chunk | None:
    """The chunk in `data`, if it is one.

    msgspec refuses JSON with bad UTF-8 and with the escape of a lone surrogate, which some
    models do write; the standard library does not. Neither may fail a turn.
    """
    try:
        return _decode_json(data)
    except (ValueError, RecursionError):
        if not data:  # some keep a connection alive with events of nothing
            return _Chunk()
        with suppress(ValueError, RecursionError):
            return msgspec.convert(json.loads(data.decode("utf-8", "replace")), _Chunk)
        return None


class IncomingReply:
    """From the bytes of one stream to events, and to the verdict on it.

    Attributes:
        done: `[DONE]` was read.
        over: nothing more needs to be read: done, or something is wrong.
    """

    def __init__(self, words: "Words") -> None:
        self._words = words
        self._reader = sse.Reader()
        self._fault: ProviderError | None = None
        self._finished = False  # the model said why it stopped: the text is whole
        self._has_events = False
        self._has_words = False
        self._calls: dict[int, int] = {}  # from their numbers at the provider to ours
        self.done = False
        self.over = False

    def feed(self, data: bytes) -> list[ProviderEvent]:
        """What these bytes say; a fault among them comes out of `check`, after what preceded it."""
        texts: list[str] = []
        events: list[ProviderEvent] = []
        usage: Any = None
        for chunk in self._chunks(data):
            if chunk.choices:
                self._take(chunk.choices, texts, events)
            usage = chunk.usage or usage
        self._put_text(texts, events)
        report = _usage_report(usage) if usage is not None else None
        if report is not None:
            events.append(report)
        return events

    def _put_text(self, texts: list[str], events: list[ProviderEvent]) -> None:
        """What was said up to here is one event, before whatever else comes."""
        if texts:
            self._has_words = True
            events.append(TextDelta(storable("".join(texts))))
            texts.clear()

    def lose(self, fault: ProviderError) -> None:
        """The connection is gone. That matters unless the model had said that it was finished."""
        if not self._finished:
            self._fail(fault)

    def check(self) -> None:
        """Return if this was a whole reply.

        Raises:
            ProviderError: it was not.
        """
        if self._fault is not None:
            raise self._fault
        if not self._has_events:
            raise self._words.fault("provider_malformed", "answered with no event stream")
        if not (self.done or self._finished):
            raise self._words.fault("provider_cut_off", "ended its reply in the middle")
        if not self._has_words:
            raise self._words.fault("provider_empty_reply", "replied without a word")

    def _fail(self, fault: ProviderError) -> None:
        self._fault = fault
        self.over = True

    def _chunks(self, data: bytes) -> Iterable[_Chunk]:
        plain = _decode_plain(data) if self._reader.at_rest else None
        if plain is None:
            return self._read_chunks(data)
        chunks, done = plain
        self._has_events = True
        self.done = self.over = done
        return chunks

    def _read_chunks(self, data: bytes) -> Iterator[_Chunk]:
        for event in self._read(data):
            chunk = self._decode(event)
            if chunk is None:
                return
            yield chunk

    def _read(self, data: bytes) -> list[sse.Event]:
        try:
            return self._reader.feed(data)
        except ValueError:
            self._fail(self._words.fault("provider_malformed", "sent an event without an end"))
            return []

    def _decode(self, event: sse.Event) -> _Chunk | None:
        """The chunk in an event; None when the stream is over with it."""
        self._has_events = True
        data = event.data
        if data == b"[DONE]":
            self.done = self.over = True
            return None
        chunk = _decode_chunk(data)
        if chunk is None:
            self._fail(self._words.fault("provider_malformed", "sent what is no chunk of JSON"))
            return None
        if chunk.error is not None or event.name == "error":
            self._fail(self._words.reported(parse_json(data)))
            return None
        return chunk

    def _take(self, choices: list[_Choice], texts: list[str], events: list[ProviderEvent]) -> None:
        for choice in choices:
            if choice.index != 0:  # one was asked for
                continue
            delta = choice.delta
            if delta is not None:
                if not delta.is_plain:
                    self._take_more(delta, texts, events)
                if text := _text_of(delta.content):
                    texts.append(text)
            if choice.finish_reason is not None:
                self._finished = True
                self._put_text(texts, events)
                events.append(Finished(_FINISHES.get(choice.finish_reason, "stop")))

    def _take_more(self, delta: _Delta, texts: list[str], events: list[ProviderEvent]) -> None:
        """What a delta has beside text. A model thinks before it speaks, and calls after that."""
        thought = _text_of(delta.reasoning_content) or _text_of(delta.reasoning)
        if thought:
            self._put_text(texts, events)
            events.append(ReasoningDelta(storable(thought)))
        if refusal := _text_of(delta.refusal):
            self._put_text(texts, events)
            self._has_words = True
            events.append(RefusalDelta(storable(refusal)))
        calls = delta.tool_calls if isinstance(delta.tool_calls, list) else []
        if calls and (text := _text_of(delta.content)):
            texts.append(text)
            delta.content = None
        for call in calls:
            event = self._call(call)
            if event is not None:
                self._put_text(texts, events)
                self._has_words = True
                events.append(event)

    def _call(self, call: Any) -> ToolCallDelta | None:
        """A piece of a call. Some providers number none of them, and send each whole."""
        if not isinstance(call, dict):
            return None
        function = call.get("function")
        function = function if isinstance(function, dict) else {}
        name, arguments = function.get("name"), function.get("arguments")
        text = storable(arguments) if isinstance(arguments, str) else ""
        given = call.get("index")
        number = given if isinstance(given, int) else len(self._calls)
        if number in self._calls:
            return ToolCallDelta(self._calls[number], "", "", text) if text else None
        if not (isinstance(name, str) and name):
            return None
        index = self._calls[number] = len(self._calls)
        id_ = call.get("id")
        call_id = storable(id_) if isinstance(id_, str) and id_ else f"call_{index}"
        return ToolCallDelta(index, call_id, storable(name), text)


_FINISHES: dict[str, Finish] = {
    "stop": "stop",
    "length": "length",
    "tool_calls": "tool_calls",
    "function_call": "tool_calls",
    "content_filter": "content_filter",
}


def _usage_report(usage: Any) -> UsageReport | None:
    """The provider's count, if it is one: what is no sensible number is no report."""
    if not isinstance(usage, dict):
        return None
    prompt, completion = _count(usage.get("prompt_tokens")), _count(usage.get("completion_tokens"))
    if prompt is None or completion is None:
        return None
    cached = _detail(usage, "prompt_tokens_details", "cached_tokens")
    thought = _detail(usage, "completion_tokens_details", "reasoning_tokens")
    return UsageReport(Usage(prompt, completion, False, min(cached, prompt), thought))


def _detail(usage: dict[str, Any], group: str, name: str) -> int:
    details = usage.get(group)
    return (_count(details.get(name)) or 0) if isinstance(details, dict) else 0


def _count(number: Any) -> int | None:
    if number is None:
        return 0
    return number if isinstance(number, int) and 0 <= number < _MOST_TOKENS else None


def _text_of(content: Any) -> str:
    """A delta's text; some send a list of parts."""
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else []
    texts = [part.get("text") for part in parts if isinstance(part, dict)]
    return "".join(text for text in texts if isinstance(text, str))


# --- What is offered --------------------------------------------------------------------------


class ListedModel(msgspec.Struct, frozen=True):
    """A model as its endpoint lists it. `context_window` where the list says so."""

    id: str
    context_window: int | None = None


class _ListEntry(msgspec.Struct):
    """OpenAI's own list has only ids; the windows are Groq's, OpenRouter's and vLLM's."""

    id: str
    context_window: Any = None
    context_length: Any = None
    max_model_len: Any = None

    @property
    def window(self) -> int | None:
        for tokens in (self.context_window, self.context_length, self.max_model_len):
            if type(tokens) is int and tokens >= _LEAST_WINDOW:
                return tokens
        return None


NO_SUCH_PAGE = frozenset({404, 405, 501})
_LEAST_WINDOW = 256  # tokens; what claims less means something else


class _List(msgspec.Struct):
    data: list[_ListEntry]


_decode_list = msgspec.json.Decoder(_List | list[_ListEntry]).decode  # some send the bare array


def decode_models(body: bytes) -> Sequence[ListedModel] | None:
    """The models in an answer, None if it is no list of them."""
    try:
        value = _decode_list(body)
    except (ValueError, RecursionError):
        return None
    models: dict[str, ListedModel] = {}
    for entry in value.data if isinstance(value, _List) else value:
        if 0 < len(entry.id) <= _MODEL_ID and entry.id.isprintable():
            models.setdefault(entry.id, ListedModel(entry.id, entry.window))
    return tuple(models.values())
