"""The behaviours that the Open Responses specification's own suite is said to look at, one by one.

From the specification, with schemas of our own (`schemas.py`): of that suite nothing is known here
but the names of its tests, and nothing is claimed about it. What is about WebSockets is from
OpenAI's guide to WebSocket mode too.
"""

import asyncio
import base64
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import pytest

from rig.model_server import Call, CallOf, ModelServer, Plan, echo
from rig.server import Server
from tests.openai.conftest import MODEL
from tests.openai.schemas import COMPACTED, ERROR, RESPONSE, TERMINAL, check, check_event
from tests.openai.sockets import open_socket, text_of

pytestmark = pytest.mark.asyncio(loop_scope="module")

Behaviour = Callable[[Server, ModelServer], Awaitable[None]]

WEATHER = {
    "type": "function",
    "name": "get_weather",
    "description": "Get the current weather for a place",
    "parameters": {"type": "object", "properties": {"place": {"type": "string"}}},
}
PICTURE = "data:image/png;base64," + base64.b64encode(b"not really a picture").decode()


def act(call: Call) -> Plan:
    """A model that calls whatever tool it is offered, and otherwise says what it was told."""
    if call.body.get("tools"):
        return Plan(deltas=(), tool_calls=(CallOf("get_weather", ('{"place":', '"Rome"}')),))
    return echo(call)


@pytest.fixture
def model(shared_model: ModelServer) -> ModelServer:
    shared_model.script = act
    shared_model.requests.clear()
    return shared_model


async def post(server: Server, path: str, **body: Any) -> httpx.Response:
    async with httpx.AsyncClient(base_url=f"{server.url}/v1", timeout=30) as client:
        return await client.post(path, json=body, headers={"Authorization": "Bearer none"})


async def create(server: Server, **body: Any) -> Any:
    """A response, completed and with something in it."""
    answer = await post(server, "/responses", model=MODEL, **body)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "application/json"
    response = answer.json()
    check(response, RESPONSE)
    assert response["status"] == "completed"
    assert response["completed_at"] >= response["created_at"]
    assert response["output"]
    assert response["text"]["verbosity"] == "medium"
    return response


def asked(model: ModelServer, word: str) -> list[dict[str, Any]]:
    """The messages that the model was last shown that hold `word`."""
    bodies = [call.body["messages"] for call in model.requests if word in str(call.body)]
    messages: list[dict[str, Any]] = bodies[-1]
    return messages


# --- Over HTTP -----------------------------------------------------------------------------------


async def basic_response(server: Server, _: ModelServer) -> None:
    hello = {"type": "message", "role": "user", "content": "Say hello in exactly 3 words."}
    response = await create(server, input=[hello])
    assert text_of(response) == "You said: Say hello in exactly 3 words."
    assert response["usage"]["total_tokens"] > 0


async def assistant_phase(server: Server, model: ModelServer) -> None:
    """History may say which of the assistant's messages were comments, and which the answer."""
    items = [
        {"type": "message", "role": "assistant", "phase": phase, "content": text}
        for phase, text in (("commentary", "Looking it up."), ("final_answer", "It is four."))
    ]
    question = {"type": "message", "role": "user", "content": "Only the number, phased."}
    await create(server, input=[*items, question])
    texts = [message["content"] for message in asked(model, "phased")]
    assert texts[-3:] == ["Looking it up.", "It is four.", "Only the number, phased."]


async def response_output_phase_schema(server: Server, _: ModelServer) -> None:
    """The schema by which all of these are checked knows such messages in an output too."""
    response = await create(server, input="anything")
    [message] = response["output"]
    for phase in ("commentary", "final_answer"):
        check({**response, "output": [{**message, "phase": phase}]}, RESPONSE)
    with pytest.raises(AssertionError):
        check({**response, "output": [{**message, "phase": "other"}]}, RESPONSE)


async def streaming_response(server: Server, _: ModelServer) -> None:
    count = {"type": "message", "role": "user", "content": "Count from 1 to 5."}
    answer = await post(server, "/responses", model=MODEL, input=[count], stream=True)
    assert answer.headers["content-type"].startswith("text/event-stream")
    events = read_events(answer.text)
    numbers = [event["sequence_number"] for event in events]
    assert numbers == list(range(len(events)))
    assert [event["type"] in TERMINAL for event in events] == [False] * numbers[-1] + [True]
    last = events[-1]["response"]
    assert last["status"] == "completed"
    deltas = [e["delta"] for e in events if e["type"] == "response.output_text.delta"]
    assert "".join(deltas) == text_of(last) == "You said: Count from 1 to 5."


def read_events(stream: str) -> list[Any]:
    """The events of a stream, each as it must be; `event` is the type that the data has too."""
    events = []
    for block in stream.strip().split("\n\n"):
        lines = [line for line in block.split("\n") if not line.startswith(":")]
        fields = dict(line.split(": ", 1) for line in lines)
        assert "id" not in fields
        if fields == {"data": "[DONE]"}:
            continue
        event = httpx.Response(200, content=fields["data"]).json()
        assert fields["event"] == event["type"]
        check_event(event)
        events.append(event)
    return events


async def system_prompt(server: Server, model: ModelServer) -> None:
    rule = {"type": "message", "role": "system", "content": "You are a pirate."}
    hello = {"type": "message", "role": "user", "content": "Say hello, pirate."}
    await create(server, input=[rule, hello])
    shown = [(m["role"], m["content"]) for m in asked(model, "hello, pirate")]
    assert shown[-2:] == [("system", "You are a pirate."), ("user", "Say hello, pirate.")]


async def tool_calling(server: Server, _: ModelServer) -> None:
    question = {"type": "message", "role": "user", "content": "What is the weather in Rome?"}
    response = await create(server, input=[question], tools=[WEATHER])
    [call] = response["output"]
    assert (call["type"], call["name"]) == ("function_call", "get_weather")
    assert call["arguments"] == '{"place":"Rome"}'


async def image_input(server: Server, model: ModelServer) -> None:
    content = [
        {"type": "input_text", "text": "What is in this picture?"},
        {"type": "input_image", "image_url": PICTURE},
    ]
    await create(server, input=[{"type": "message", "role": "user", "content": content}])
    text, image = asked(model, "in this picture")[-1]["content"]
    assert text["text"] == "What is in this picture?"
    assert image["image_url"]["url"] == PICTURE


async def multi_turn(server: Server, model: ModelServer) -> None:
    said = (
        ("user", "My name is Alice."),
        ("assistant", "Hello Alice!"),
        ("user", "What is my name?"),
    )
    await create(server, input=[{"type": "message", "role": r, "content": t} for r, t in said])
    assert [(m["role"], m["content"]) for m in asked(model, "Alice")][-3:] == list(said)


async def compact_response(server: Server, _: ModelServer) -> None:
    said = [
        {"type": "message", "role": "user", "content": "We launch on Tuesday."},
        {"type": "message", "role": "assistant", "content": "Understood."},
    ]
    answer = await post(
        server, "/responses/compact", model=MODEL, input=said, prompt_cache_key="a-test"
    )
    assert answer.status_code == 200, answer.text
    compacted = answer.json()
    check(compacted, COMPACTED)
    assert compacted["output"][-1]["type"] == "compaction"


async def compact_missing_model(server: Server, _: ModelServer) -> None:
    answer = await post(server, "/responses/compact", input="Compact this.")
    assert answer.status_code == 400
    check(answer.json(), ERROR)
    assert answer.json()["error"]["param"] == "model"


# --- Over a WebSocket ----------------------------------------------------------------------------


async def websocket_response(server: Server, _: ModelServer) -> None:
    count = {"type": "message", "role": "user", "content": "Count from 1 to 3."}
    async with open_socket(server, additional_headers={"Authorization": "Bearer none"}) as socket:
        response = await socket.respond(input=[count])
    check(response, RESPONSE)
    assert text_of(response) == "You said: Count from 1 to 3."
    assert response["completed_at"] is not None


async def websocket_sequential_responses(server: Server, _: ModelServer) -> None:
    async with open_socket(server) as socket:
        first = await socket.respond(store=False, input="first")
        second = await socket.respond(store=False, input="second")
    assert (text_of(first), text_of(second)) == ("You said: first", "You said: second")
    assert first["id"] != second["id"]


async def websocket_continuation(server: Server, model: ModelServer) -> None:
    async with open_socket(server) as socket:
        first = await socket.respond(store=False, input="The code word is cobalt.")
        second = await socket.respond(
            store=False, previous_response_id=first["id"], input="What is it, if not zinc?"
        )
    assert second["previous_response_id"] == first["id"]
    assert [m["content"] for m in asked(model, "if not zinc")][-3:] == [
        "The code word is cobalt.",
        "You said: The code word is cobalt.",
        "What is it, if not zinc?",
    ]


async def websocket_reconnect_store_false_recovery(server: Server, _: ModelServer) -> None:
    """What no one has stored ends with its connection; the new one is as good as any."""
    async with open_socket(server) as socket:
        first = await socket.respond(store=False, input="The code word is copper.")
    async with open_socket(server) as socket:
        error = await socket.fail(store=False, previous_response_id=first["id"], input="And?")
        assert error["code"] == "previous_response_not_found"
        again = await socket.respond(store=False, input="Say: recovered")
    assert text_of(again) == "You said: Say: recovered"


async def websocket_previous_response_not_found(server: Server, _: ModelServer) -> None:
    async with open_socket(server) as socket:
        error = await socket.fail(
            store=False, previous_response_id="resp_missing_1", input="This fails."
        )
    assert error["code"] == "previous_response_not_found"
    assert error["param"] == "previous_response_id"


async def websocket_failed_continuation_evicts_cache(server: Server, _: ModelServer) -> None:
    async with open_socket(server) as socket:
        first = await socket.respond(store=False, input="The code word is ember.")
        result = {"type": "function_call_output", "call_id": "call_unknown", "output": "?"}
        orphan = {"previous_response_id": first["id"], "input": [result]}
        error = await socket.fail(store=False, **orphan)
        assert "call_unknown" in error["message"]
        error = await socket.fail(store=False, previous_response_id=first["id"], input="Stale?")
    assert error["code"] == "previous_response_not_found"


async def websocket_compact_new_chain(server: Server, model: ModelServer) -> None:
    said = [
        {"role": "user", "content": [{"type": "input_text", "text": "The code word is slate."}]},
        {"role": "assistant", "content": [{"type": "output_text", "text": "OK."}]},
    ]
    answer = await post(
        server,
        "/responses/compact",
        model=MODEL,
        input=[{"type": "message", **message} for message in said],
    )
    more = {"type": "message", "role": "user", "content": "Go on from slate."}
    async with open_socket(server) as socket:
        response = await socket.respond(
            store=False, input=[*answer.json()["output"], more], tools=[]
        )
    assert text_of(response) == "You said: Go on from slate."
    shown = asked(model, "Go on from slate")
    assert [m["role"] for m in shown][-3:] == ["user", "system", "user"]
    assert "The code word is slate." in shown[-2]["content"]  # what was told of it


BEHAVIOURS: tuple[Behaviour, ...] = (
    basic_response,
    assistant_phase,
    response_output_phase_schema,
    streaming_response,
    system_prompt,
    tool_calling,
    image_input,
    multi_turn,
    compact_response,
    compact_missing_model,
    websocket_response,
    websocket_sequential_responses,
    websocket_continuation,
    websocket_reconnect_store_false_recovery,
    websocket_previous_response_not_found,
    websocket_failed_continuation_evicts_cache,
    websocket_compact_new_chain,
)


@pytest.mark.parametrize("behaviour", BEHAVIOURS, ids=lambda behaviour: behaviour.__name__)
async def test_what_the_specification_demands(
    server: Server, model: ModelServer, behaviour: Behaviour
) -> None:
    await behaviour(server, model)


async def test_all_of_it_at_once(server: Server, model: ModelServer) -> None:
    """A suite may well begin all its tests in the same moment."""
    await asyncio.gather(*(behaviour(server, model) for behaviour in BEHAVIOURS))
