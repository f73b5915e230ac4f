"""Items as clients send them and as they are told of them ↔ what a session keeps. Pure.

Fields that are known to OpenAI's own clients are taken and, where nothing here has a use for them,
let go: so whatever was given as an output can be sent back as an input. Others are refused, and so
is content that no session can keep.
"""

import base64
import binascii
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from typing import Any, Literal

import msgspec
from msgspec import UNSET, UnsetType

from turnkeeper.dialects.openai.errors import WrongParameter
from turnkeeper.dialects.openai.ids import item_id, parse_item_id
from turnkeeper.dialects.openai.parameters import decode_at, unsupported
from turnkeeper.domain import (
    Compaction,
    ImagePart,
    Item,
    Message,
    MessageRef,
    Part,
    Reasoning,
    RefusalPart,
    TextPart,
    Tool,
    ToolCall,
    ToolResult,
    TurnStatus,
)

# --- Content -----------------------------------------------------------------------------------


class _Known(msgspec.Struct, forbid_unknown_fields=True, tag_field="type"):
    """A part or item by its `type`."""


class _InputText(_Known, tag="input_text"):
    text: str
    prompt_cache_breakpoint: Any = None


class _Text(_Known, tag="text"):
    text: str


class _OutputText(_Known, tag="output_text"):
    text: str
    annotations: Any = None
    logprobs: Any = None
    parsed: Any = None  # the Python SDK's own, which it sends back


class _Refusal(_Known, tag="refusal"):
    refusal: str


class _InputImage(_Known, tag="input_image"):
    image_url: str | None = None
    file_id: str | None = None
    detail: Literal["low", "high", "auto", "original"] | None = None
    prompt_cache_breakpoint: Any = None


class _InputFile(_Known, tag="input_file"):
    file_data: Any = None
    file_id: Any = None
    file_url: Any = None
    filename: Any = None
    detail: Any = None
    prompt_cache_breakpoint: Any = None


_Content = _InputText | _Text | _OutputText | _Refusal | _InputImage | _InputFile
_Status = Literal["in_progress", "completed", "incomplete"] | None


def make_message(role: str, parts: Sequence[Part]) -> Message:
    """A message of these parts; a single text needs none."""
    text = "".join([part.text for part in parts if not isinstance(part, ImagePart)])
    is_plain = all(isinstance(part, TextPart) for part in parts) and len(parts) == 1
    return Message(role, text, () if is_plain else tuple(parts))


def _decode_parts(content: str | Sequence[_Content], path: str) -> tuple[Part, ...]:
    if isinstance(content, str):
        return (TextPart(content),)
    return tuple(_decode_part(part, f"{path}[{n}]") for n, part in enumerate(content))


def _decode_part(part: _Content, path: str) -> Part:
    match part:
        case _InputText(text=text) | _Text(text=text) | _OutputText(text=text):
            return TextPart(text)
        case _Refusal(refusal=refusal):
            return RefusalPart(refusal)
        case _InputImage(image_url=str(url), detail=detail):
            return ImagePart(url, detail)
        case _InputImage(file_id=None):
            raise WrongParameter(
                "An image needs an image_url", f"{path}.image_url", "missing_required_parameter"
            )
        case _InputImage():
            raise unsupported(
                f"{path}.file_id", "There are no files here: give the image as an image_url"
            )
        case _InputFile():
            raise unsupported(
                f"{path}.type", "Files cannot be given to a model here: text and images can"
            )


def encode_parts(role: str, item: Message) -> list[dict[str, Any]]:
    """The content of a message; what was given as a string has become a part."""
    parts: tuple[Part, ...] = item.parts or (TextPart(item.text),)
    return [_encode_part(part, is_output=role == "assistant") for part in parts]


def _encode_part(part: Part, *, is_output: bool) -> dict[str, Any]:
    match part:
        case TextPart(text=text):
            return output_text(text) if is_output else {"type": "input_text", "text": text}
        case RefusalPart(text=text):
            return {"type": "refusal", "refusal": text}
        case ImagePart(url=url, detail=detail):
            return {
                "type": "input_image",
                "detail": detail or "auto",
                "image_url": url,
                "file_id": None,
            }


def output_text(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


# --- Items, on the way in ------------------------------------------------------------------------


class Reference(msgspec.Struct, frozen=True):
    """An item that is to stand here again; `param` is the path of its `id`."""

    id: str
    ref: MessageRef
    param: str


class _MessageItem(_Known, tag="message"):
    role: Literal["user", "assistant", "system", "developer"]
    content: str | list[_Content]
    id: str | None = None
    status: _Status = None
    phase: Any = None
    created_by: Any = None


class _FunctionCall(_Known, tag="function_call"):
    call_id: str
    name: str
    arguments: str
    id: str | None = None
    status: _Status = None
    caller: Any = None
    namespace: Any = None
    created_by: Any = None
    parsed_arguments: Any = None  # the Python SDK's own, which it sends back


class _FunctionCallOutput(_Known, tag="function_call_output"):
    call_id: str
    output: str | list[_Content]
    id: str | None = None
    status: _Status = None
    caller: Any = None
    name: Any = None
    namespace: Any = None
    created_by: Any = None


class _CustomCall(_Known, tag="custom_tool_call"):
    call_id: str
    name: str
    input: str
    id: str | None = None
    status: _Status = None
    caller: Any = None
    namespace: Any = None
    created_by: Any = None


class _CustomCallOutput(_Known, tag="custom_tool_call_output"):
    call_id: str
    output: str | list[_Content]
    id: str | None = None
    status: _Status = None
    caller: Any = None
    created_by: Any = None


class _Thought(msgspec.Struct, frozen=True):
    text: str


class _ReasoningItem(_Known, tag="reasoning"):
    summary: list[_Thought] = []
    content: list[_Thought] | None = None
    id: str | None = None
    encrypted_content: str | None = None
    status: _Status = None


class _CompactionItem(_Known, tag="compaction"):
    encrypted_content: str
    id: str | None = None
    created_by: Any = None


class _ItemReference(_Known, tag="item_reference"):
    id: str


_Item = (
    _MessageItem
    | _FunctionCall
    | _FunctionCallOutput
    | _CustomCall
    | _CustomCallOutput
    | _ReasoningItem
    | _CompactionItem
    | _ItemReference
)
_item: msgspec.json.Decoder[_Item] = msgspec.json.Decoder(_Item)
# Messages need not say that they are any, and neither need references.
_message: msgspec.json.Decoder[_Item] = msgspec.json.Decoder(_MessageItem)
_reference: msgspec.json.Decoder[_Item] = msgspec.json.Decoder(_ItemReference)


class _Kind(msgspec.Struct, frozen=True):
    type: str | UnsetType | None = UNSET
    role: msgspec.Raw | UnsetType = UNSET


_kind = msgspec.json.Decoder(_Kind)
_KINDS = frozenset(cls.__struct_config__.tag for cls in _Known.__subclasses__())


def decode_items(given: Sequence[msgspec.Raw], path: str) -> tuple[Item | Reference, ...]:
    """The items that stand in a list at `path` of a request.

    Raises:
        WrongParameter: one is not as it should be, or of a kind that no session keeps.
    """
    return tuple(_decode_item(raw, f"{path}[{n}]") for n, raw in enumerate(given))


def _decode_item(raw: msgspec.Raw, path: str) -> Item | Reference:
    kind = decode_at(_kind, raw, path)
    if isinstance(kind.type, str):
        if kind.type not in _KINDS:
            raise unsupported(f"{path}.type", f"Items of the type {kind.type[:100]} cannot be kept")
        return _convert(decode_at(_item, raw, path), path)
    decoder = _reference if kind.role is UNSET else _message
    if kind.type is None:
        raw = _without_type(raw)
    return _convert(decode_at(decoder, raw, path), path)


def _without_type(raw: msgspec.Raw) -> msgspec.Raw:
    fields = msgspec.json.decode(raw, type=dict[str, msgspec.Raw])
    del fields["type"]
    return msgspec.Raw(msgspec.json.encode(fields))


def _convert(item: _Item, path: str) -> Item | Reference:  # noqa: PLR0911, one for each kind
    match item:
        case _MessageItem(role=role, content=content):
            return make_message(role, _decode_parts(content, f"{path}.content"))
        case _FunctionCall(call_id=call_id, name=name, arguments=arguments):
            return ToolCall(call_id, name, arguments)
        case _CustomCall(call_id=call_id, name=name, input=given):
            return ToolCall(call_id, name, given, custom=True)
        case _FunctionCallOutput():
            return _decode_result(item, path, custom=False)
        case _CustomCallOutput():
            return _decode_result(item, path, custom=True)
        case _ReasoningItem(summary=summary, content=content):
            return Reasoning("\n\n".join([thought.text for thought in content or summary]))
        case _CompactionItem(encrypted_content=sealed):
            return Compaction(unseal(sealed, f"{path}.encrypted_content"))
        case _ItemReference(id=id_):
            ref = parse_item_id(id_)
            if ref is None:
                raise not_found(id_, f"{path}.id")
            return Reference(id_, ref, f"{path}.id")


def not_found(id_: str, param: str) -> WrongParameter:
    return WrongParameter(f"Item with id '{id_[:100]}' not found.", param)


def _decode_result(
    item: _FunctionCallOutput | _CustomCallOutput, path: str, *, custom: bool
) -> ToolResult:
    parts = _decode_parts(item.output, f"{path}.output")
    message = make_message("tool", parts)
    # Whether it came as a string or as one text makes no difference to any model.
    return ToolResult(item.call_id, message.text, custom, message.parts)


# --- Items, on the way out -----------------------------------------------------------------------

Status = Literal["in_progress", "completed", "incomplete"]


def item_status(status: TurnStatus | None) -> Status:
    """How an item stands whose turn stands so; None is an item of no turn."""
    match status:
        case None | TurnStatus.COMPLETED:
            return "completed"
        case TurnStatus.QUEUED | TurnStatus.RUNNING:
            return "in_progress"
        case TurnStatus.FAILED | TurnStatus.CANCELLED | TurnStatus.INTERRUPTED:
            return "incomplete"


def encode_item(place: MessageRef, item: Item, status: Status) -> dict[str, Any]:
    """An item as a client is told of it, with the id that its place gives it."""
    id_ = item_id(place, item)
    match item:
        case Message(role=role):
            return {
                "id": id_,
                "type": "message",
                "status": status,
                "role": role,
                "content": encode_parts(role, item),
            }
        case ToolCall(call_id=call_id, name=name, arguments=arguments, custom=custom):
            return encode_call(id_, call_id, name, arguments, status, custom=custom)
        case ToolResult(call_id=call_id, output=output, custom=custom, parts=parts):
            return {
                "id": id_,
                "type": "custom_tool_call_output" if custom else "function_call_output",
                "call_id": call_id,
                "output": [_encode_part(p, is_output=False) for p in parts] if parts else output,
                "status": status,
            }
        case Reasoning(text=text):
            return encode_reasoning(id_, text, status)
        case Compaction(text=text):
            return {"id": id_, "type": "compaction", "encrypted_content": seal(text)}


def encode_call(
    id_: str, call_id: str, name: str, arguments: str, status: Status, *, custom: bool
) -> dict[str, Any]:
    return {
        "id": id_,
        "type": "custom_tool_call" if custom else "function_call",
        "status": status,
        "call_id": call_id,
        "name": name,
        "input" if custom else "arguments": arguments,
    }


def encode_reasoning(id_: str, text: str, status: Status) -> dict[str, Any]:
    return {
        "id": id_,
        "type": "reasoning",
        "summary": [],
        "content": [{"type": "reasoning_text", "text": text}] if text else [],
        "encrypted_content": None,
        "status": status,
    }


# --- Compactions: opaque to clients, which only keep them and send them back ---------------------

_DIGEST = 8  # bytes: enough to tell a slip of the pen; it keeps nobody out, for it hides nothing


def seal(text: str) -> str:
    told = text.encode()
    digest = blake2b(told, digest_size=_DIGEST).digest()
    return base64.urlsafe_b64encode(digest + told).decode()


def unseal(sealed: str, param: str) -> str:
    """Raises WrongParameter if it is none that was given out."""
    try:
        opened = base64.urlsafe_b64decode(sealed.encode("ascii"))
        digest, told = opened[:_DIGEST], opened[_DIGEST:]
        if blake2b(told, digest_size=_DIGEST).digest() == digest:
            return told.decode()
    except (ValueError, binascii.Error):
        pass
    raise WrongParameter("This is no encrypted_content that was given out here", param)


# --- Tools and forms -----------------------------------------------------------------------------


def custom_tool(name: str, description: str | None, form: Mapping[str, Any] | None) -> Tool:
    """A tool that takes any string; a grammar is told to the model, which nobody can hold to it."""
    if form is not None and form.get("type") == "grammar":
        told = f"The input must follow this {form.get('syntax')} grammar:\n{form.get('definition')}"
        description = f"{description}\n\n{told}" if description else told
    return Tool(name, description, custom=True)
