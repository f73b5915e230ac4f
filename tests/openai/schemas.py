"""What the Open Responses specification of 2026-04-24 demands, as JSON schemas.

Written from the specification, in our own words. Fields that it does not name may be there:
OpenAI's own API has more of them.
"""

from collections.abc import Mapping
from typing import Any

from jsonschema import Draft202012Validator

Schema = Mapping[str, Any]

STRING: Schema = {"type": "string"}
INTEGER: Schema = {"type": "integer"}
NUMBER: Schema = {"type": "number"}
BOOLEAN: Schema = {"type": "boolean"}
ANYTHING: Schema = {}


def exactly(*values: str) -> Schema:
    return {"enum": list(values)}


def maybe(schema: Schema) -> Schema:
    return {"anyOf": [schema, {"type": "null"}]}


def listing(schema: Schema) -> Schema:
    return {"type": "array", "items": schema}


def one_of(*schemas: Schema) -> Schema:
    return {"anyOf": list(schemas)}


def an_object(optional: Mapping[str, Schema] | None = None, /, **required: Schema) -> Schema:
    return {
        "type": "object",
        "required": list(required),
        "properties": {**required, **(optional or {})},
    }


# --- Items ---------------------------------------------------------------------------------------

STATUS = exactly("in_progress", "completed", "incomplete")
ROLE = exactly("user", "assistant", "system", "developer")

LOGPROB = an_object(token=STRING, logprob=NUMBER)
OUTPUT_TEXT = an_object(
    {"logprobs": listing(LOGPROB)},
    type=exactly("output_text"),
    text=STRING,
    annotations=listing(an_object(type=STRING)),
)
CONTENT = one_of(
    OUTPUT_TEXT,
    an_object(type=exactly("input_text", "text", "summary_text", "reasoning_text"), text=STRING),
    an_object(type=exactly("refusal"), refusal=STRING),
    an_object(
        type=exactly("input_image"),
        image_url=maybe(STRING),
        detail=exactly("low", "high", "auto"),
    ),
    an_object(type=exactly("input_file")),
)
MESSAGE = an_object(
    {"phase": exactly("commentary", "final_answer")},
    type=exactly("message"),
    id=STRING,
    status=STATUS,
    role=ROLE,
    content=listing(CONTENT),
)
FUNCTION_CALL = an_object(
    type=exactly("function_call"),
    id=STRING,
    call_id=STRING,
    name=STRING,
    arguments=STRING,
    status=STATUS,
)
FUNCTION_CALL_OUTPUT = an_object(
    type=exactly("function_call_output"),
    id=STRING,
    call_id=STRING,
    output=one_of(STRING, listing(CONTENT)),
    status=STATUS,
)
REASONING = an_object(
    {"content": listing(CONTENT), "encrypted_content": maybe(STRING)},
    type=exactly("reasoning"),
    id=STRING,
    summary=listing(CONTENT),
)
COMPACTION = an_object(
    {"created_by": STRING}, type=exactly("compaction"), id=STRING, encrypted_content=STRING
)
ITEM = one_of(MESSAGE, FUNCTION_CALL, FUNCTION_CALL_OUTPUT, REASONING, COMPACTION)

# --- Objects -------------------------------------------------------------------------------------

USAGE = an_object(
    input_tokens=INTEGER,
    output_tokens=INTEGER,
    total_tokens=INTEGER,
    input_tokens_details=an_object(cached_tokens=INTEGER),
    output_tokens_details=an_object(reasoning_tokens=INTEGER),
)
FORMAT = one_of(
    an_object(type=exactly("text", "json_object")),
    an_object(
        type=exactly("json_schema"),
        name=STRING,
        description=maybe(STRING),
        schema=ANYTHING,
        strict=BOOLEAN,
    ),
)
TOOL = an_object(
    type=exactly("function"),
    name=STRING,
    description=maybe(STRING),
    parameters=maybe(an_object()),
    strict=maybe(BOOLEAN),
)
TOOL_CHOICE = one_of(
    exactly("auto", "none", "required"),
    an_object(type=exactly("function"), name=STRING),
    an_object(
        type=exactly("allowed_tools"), tools=listing(an_object()), mode=exactly("auto", "required")
    ),
)
RESPONSE = an_object(
    id=STRING,
    object=exactly("response"),
    created_at=INTEGER,
    completed_at=maybe(INTEGER),
    status=exactly("queued", "in_progress", "completed", "failed", "incomplete", "cancelled"),
    incomplete_details=maybe(an_object(reason=STRING)),
    model=STRING,
    previous_response_id=maybe(STRING),
    instructions=maybe(STRING),
    output=listing(ITEM),
    error=maybe(an_object(code=STRING, message=STRING)),
    tools=listing(TOOL),
    tool_choice=TOOL_CHOICE,
    truncation=exactly("auto", "disabled"),
    parallel_tool_calls=BOOLEAN,
    text=an_object({"verbosity": exactly("low", "medium", "high")}, format=FORMAT),
    top_p=NUMBER,
    presence_penalty=NUMBER,
    frequency_penalty=NUMBER,
    top_logprobs=INTEGER,
    temperature=NUMBER,
    reasoning=maybe(an_object(effort=maybe(STRING), summary=maybe(STRING))),
    usage=maybe(USAGE),
    max_output_tokens=maybe(INTEGER),
    max_tool_calls=maybe(INTEGER),
    store=BOOLEAN,
    background=BOOLEAN,
    service_tier=STRING,
    metadata=an_object(),
    safety_identifier=maybe(STRING),
    prompt_cache_key=maybe(STRING),
)
COMPACTED = an_object(
    id=STRING,
    object=exactly("response.compaction"),
    output=listing(ITEM),
    created_at=INTEGER,
    usage=USAGE,
)
ERROR = an_object(
    error=an_object(type=STRING, code=maybe(STRING), message=STRING, param=maybe(STRING))
)

# --- Events --------------------------------------------------------------------------------------

_IN_ITEM = {"item_id": STRING, "output_index": INTEGER}
_IN_CONTENT = {**_IN_ITEM, "content_index": INTEGER}
_OF_RESPONSE = {"response": RESPONSE}
_OF_ITEM = {"output_index": INTEGER, "item": ITEM}
_DELTA = {"delta": STRING}

EVENTS: Mapping[str, Mapping[str, Schema]] = {
    "response.created": _OF_RESPONSE,
    "response.queued": _OF_RESPONSE,
    "response.in_progress": _OF_RESPONSE,
    "response.completed": _OF_RESPONSE,
    "response.failed": _OF_RESPONSE,
    "response.incomplete": _OF_RESPONSE,
    "response.output_item.added": _OF_ITEM,
    "response.output_item.done": _OF_ITEM,
    "response.content_part.added": {**_IN_CONTENT, "part": CONTENT},
    "response.content_part.done": {**_IN_CONTENT, "part": CONTENT},
    "response.output_text.delta": {**_IN_CONTENT, **_DELTA},
    "response.output_text.done": {**_IN_CONTENT, "text": STRING},
    "response.refusal.delta": {**_IN_CONTENT, **_DELTA},
    "response.refusal.done": {**_IN_CONTENT, "refusal": STRING},
    "response.function_call_arguments.delta": {**_IN_ITEM, **_DELTA},
    "response.function_call_arguments.done": {**_IN_ITEM, "arguments": STRING},
}
TERMINAL = ("response.completed", "response.failed", "response.incomplete")

# A message of a WebSocket that is no event of a response.
SOCKET_ERROR = an_object(
    type=exactly("error"),
    status=INTEGER,
    error=an_object({"type": STRING, "param": maybe(STRING)}, code=STRING, message=STRING),
)


def check(value: Any, schema: Schema) -> None:
    """Raises what is wrong with it, with the place where."""
    errors = sorted(Draft202012Validator(schema).iter_errors(value), key=lambda e: list(e.path))
    assert not errors, "\n".join(f"{e.json_path}: {e.message[:300]}" for e in errors)


def check_event(event: Any) -> None:
    """Raises unless it is one of the events that the specification names, as it has them."""
    fields = EVENTS.get(event["type"])
    assert fields is not None, f"the specification has no event {event['type']}"
    check(event, an_object(type=STRING, sequence_number=INTEGER, **fields))
