"""A conversation as chat completions write it, to items and back. Pure.

Their messages and our items are not one to one: a message of the assistant's may hold words and
calls of tools, which are items of their own here.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, assert_never

import msgspec

from turnkeeper.dialects.openai.content import make_message
from turnkeeper.dialects.openai.parameters import unsupported
from turnkeeper.domain import (
    Compaction,
    ImagePart,
    Item,
    Message,
    Part,
    Reasoning,
    RefusalPart,
    TextPart,
    ToolCall,
    ToolResult,
    check_text,
)

# --- As they are written -----------------------------------------------------------------------


class Text(msgspec.Struct, tag_field="type", tag="text"):
    text: str


class ImageAddress(msgspec.Struct):
    url: str
    detail: Literal["auto", "low", "high", "original"] | None = None


class Image(msgspec.Struct, tag_field="type", tag="image_url"):
    image_url: ImageAddress


class Refusal(msgspec.Struct, tag_field="type", tag="refusal"):
    refusal: str


class Audio(msgspec.Struct, tag_field="type", tag="input_audio"):
    """Read to be refused: no provider is sent any."""


class File(msgspec.Struct, tag_field="type", tag="file"):
    """As `Audio`."""


AnyPart = Text | Image | Refusal | Audio | File
Content = str | list[AnyPart]


class Function(msgspec.Struct):
    name: str
    arguments: str


class FunctionCall(msgspec.Struct, tag_field="type", tag="function"):
    id: str
    function: Function


class Custom(msgspec.Struct):
    name: str
    input: str


class CustomCall(msgspec.Struct, tag_field="type", tag="custom"):
    id: str
    custom: Custom


class SystemMessage(msgspec.Struct, tag_field="role", tag="system"):
    content: Content


class DeveloperMessage(msgspec.Struct, tag_field="role", tag="developer"):
    content: Content


class UserMessage(msgspec.Struct, tag_field="role", tag="user"):
    content: Content


class AssistantMessage(msgspec.Struct, tag_field="role", tag="assistant"):
    content: Content | None = None
    refusal: str | None = None
    tool_calls: list[FunctionCall | CustomCall] | None = None
    function_call: Any = None
    audio: Any = None


class ToolMessage(msgspec.Struct, tag_field="role", tag="tool"):
    content: Content
    tool_call_id: str


class FunctionMessage(msgspec.Struct, tag_field="role", tag="function"):
    """What was before tools were."""


AnyMessage = (
    SystemMessage
    | DeveloperMessage
    | UserMessage
    | AssistantMessage
    | ToolMessage
    | FunctionMessage
)

# --- To items ----------------------------------------------------------------------------------


class Conversation(msgspec.Struct, frozen=True):
    """What a client has sent of a conversation. What nobody asks for is not made.

    Attributes:
        start: where what is new begins: behind the last of the assistant's messages.
    """

    messages: Sequence[AnyMessage]
    start: int

    @property
    def has_history(self) -> bool:
        """Whether something was answered before."""
        return self.start > 0

    def items(self) -> tuple[Item, ...]:
        """All of it, in order; as the others, it raises WrongParameter."""
        return self._decode(0, with_orders=True)

    def said(self) -> tuple[Item, ...]:
        """All but what the system and the developer say."""
        return self._decode(0, with_orders=False)

    def new(self) -> tuple[Item, ...]:
        """Of that, what is to be answered."""
        return self._decode(self.start, with_orders=False)

    def instructions(self) -> str | None:
        """What the system and the developer say, in one text; None if nothing."""
        orders = [
            _message("system", message.content, number).text
            for number, message in enumerate(self.messages)
            if isinstance(message, _ORDERS)
        ]
        return "\n\n".join(orders) if orders else None

    def _decode(self, start: int, *, with_orders: bool) -> tuple[Item, ...]:
        items: list[Item] = []
        for number in range(start, len(self.messages)):
            message = self.messages[number]
            if type(message) is UserMessage and type(message.content) is str:  # most are
                items.append(Message("user", message.content))
            elif with_orders or not isinstance(message, _ORDERS):
                items += self._decode_message(message, number)
        return tuple(items)

    def _decode_message(self, message: AnyMessage, number: int) -> Sequence[Item]:
        match message:
            case UserMessage(content=content):
                return (_message("user", content, number),)
            case AssistantMessage():
                return list(_decode_assistant(message, number))
            case SystemMessage(content=content):
                return (_message("system", content, number),)
            case DeveloperMessage(content=content):
                return (_message("developer", content, number),)
            case ToolMessage(content=content, tool_call_id=id_):
                result = _message("tool", content, number)
                return (ToolResult(id_, result.text, self._is_custom(id_), result.parts),)
            case FunctionMessage():
                raise unsupported(
                    f"messages[{number}].role",
                    "Messages of functions are not read any more: send the result of a tool",
                )
            case _:
                assert_never(message)

    def _is_custom(self, call_id: str) -> bool:
        """Whether a call is one of a custom tool, whose result is of another kind too."""
        return any(
            isinstance(call, CustomCall) and call.id == call_id
            for message in self.messages
            if isinstance(message, AssistantMessage)
            for call in message.tool_calls or ()
        )


_ORDERS = (SystemMessage, DeveloperMessage)


def read_conversation(messages: Sequence[AnyMessage]) -> Conversation:
    start = len(messages)
    while start and type(messages[start - 1]) is not AssistantMessage:
        start -= 1
    return Conversation(messages, start)


def _message(role: str, content: Content, number: int) -> Message:
    if isinstance(content, str):
        return Message(role, content)
    return make_message(role, _decode_parts(content, number))


def _decode_assistant(message: AssistantMessage, number: int) -> Iterator[Item]:
    if message.function_call is not None:
        raise unsupported(
            f"messages[{number}].function_call",
            "Calls of functions are not read any more: send tool_calls",
        )
    if message.audio is not None:
        raise unsupported(f"messages[{number}].audio", "Audio cannot be sent to a model")
    said = _message("assistant", message.content or "", number)
    if message.refusal:
        words = said.parts or ((TextPart(said.text),) if said.text else ())
        said = make_message("assistant", (*words, RefusalPart(message.refusal)))
    if said.text:
        yield said
    for call in message.tool_calls or ():
        match call:
            case FunctionCall(id=id_, function=function):
                yield ToolCall(id_, function.name, function.arguments)
            case CustomCall(id=id_, custom=called):
                yield ToolCall(id_, called.name, called.input, custom=True)
            case _:
                assert_never(call)


def _decode_parts(content: Sequence[AnyPart], number: int) -> Sequence[Part]:
    parts: list[Part] = []
    for place, part in enumerate(content):
        match part:
            case Text(text=text):
                parts.append(TextPart(text))
            case Image(image_url=image):
                url = check_text(image.url, f"messages[{number}].content[{place}].image_url.url")
                parts.append(ImagePart(url, image.detail))
            case Refusal(refusal=refusal):
                parts.append(RefusalPart(refusal))
            case Audio() | File():
                raise unsupported(
                    f"messages[{number}].content[{place}].type",
                    "Audio and files cannot be sent to a model: text and images can",
                )
            case _:
                assert_never(part)
    return parts


# --- From items --------------------------------------------------------------------------------


def encode_messages(items: Sequence[Item]) -> list[dict[str, Any]]:
    """The items as messages; the assistant's calls join the words that stand before them."""
    messages: list[dict[str, Any]] = []
    for item in items:
        match item:
            case ToolCall():
                last = messages[-1] if messages else {}
                if last.get("role") != "assistant":
                    messages.append({"role": "assistant", "content": None})
                messages[-1].setdefault("tool_calls", []).append(encode_call(item))
            case Message():
                messages.append(_encode_message(item))
            case ToolResult(call_id=id_, output=output, parts=parts):
                message = {"role": "tool", "tool_call_id": id_, **_encode_content(output, parts)}
                messages.append(message)
            case Compaction(text=text):
                messages.append({"role": "system", "content": text})
            case Reasoning():
                pass
            case _:
                assert_never(item)
    return messages


def _encode_message(message: Message) -> dict[str, Any]:
    content = _encode_content(message.text, message.parts)
    return {"role": message.role, **content}


def _encode_content(text: str, parts: Sequence[Part]) -> dict[str, Any]:
    """As it is where it is one text, else as `content_parts`; a refusal is by itself."""
    if not parts:
        return {"content": text}
    words, refusal = _split(parts)
    said = [part for part in parts if not isinstance(part, RefusalPart)]
    if any(isinstance(part, ImagePart) for part in said) or len(said) > 1:
        content: dict[str, Any] = {
            "content": None,
            "content_parts": [_encode_part(part) for part in said],
        }
    else:
        content = {"content": words}
    return content if refusal is None else {**content, "refusal": refusal}


def _split(parts: Sequence[Part]) -> tuple[str | None, str | None]:
    """The words among them, and those that refuse."""
    words = [part.text for part in parts if isinstance(part, TextPart)]
    refused = [part.text for part in parts if isinstance(part, RefusalPart)]
    return "".join(words) or None, "".join(refused) or None


def _encode_part(part: TextPart | ImagePart) -> dict[str, Any]:
    match part:
        case TextPart(text=text):
            return {"type": "text", "text": text}
        case ImagePart(url=url, detail=detail):
            image = {"url": url} if detail is None else {"url": url, "detail": detail}
            return {"type": "image_url", "image_url": image}


def encode_call(call: ToolCall) -> dict[str, Any]:
    """A call of a tool, whole."""
    if call.custom:
        called: Mapping[str, str] = {"name": call.name, "input": call.arguments}
        return {"id": call.call_id, "type": "custom", "custom": called}
    function = {"name": call.name, "arguments": call.arguments}
    return {"id": call.call_id, "type": "function", "function": function}


def encode_reply(text: str, items: Sequence[Item]) -> dict[str, Any]:
    """A reply as the message of a completion; `items` where it is more than its text."""
    message: dict[str, Any] = {"role": "assistant", "content": text, "refusal": None}
    if not items:
        return message
    calls = [encode_call(item) for item in items if isinstance(item, ToolCall)]
    thoughts = [item.text for item in items if isinstance(item, Reasoning)]
    message["content"] = None
    for item in items:
        if isinstance(item, Message):
            words, refusal = _split(item.parts or (TextPart(item.text),))
            message |= {"content": words, "refusal": refusal}
    if calls:
        message["tool_calls"] = calls
    if thoughts:
        message["reasoning_content"] = "".join(thoughts)
    return message
