"""Chat completions that are kept: in a session, or by themselves."""

import asyncio
import itertools
from collections.abc import AsyncIterator
from typing import Any

import httpx
import openai
import pytest
import pytest_asyncio

from rig.model_server import CallOf, Cut, Hang, ModelServer, Plan, Wait
from rig.server import Server
from tests.openai.conftest import MODEL, MakeClient, start_server

pytestmark = pytest.mark.asyncio(loop_scope="module")

HELLO: Any = [{"role": "user", "content": "hello"}]
_numbers = itertools.count(1)


def new_name() -> str:
    """A name that no other test has used."""
    return f"test-{next(_numbers)}"


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def http(server: Server) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=server.url) as http:
        yield http


async def said_in(http: httpx.AsyncClient, session: str) -> list[tuple[str, str]]:
    """What any dialect reads there."""
    answer = await http.get(f"/api/chat-sessions/{session}/messages?after=0")
    return [(message["role"], message["content"]) for message in answer.json()["messages"]]


def say(client: openai.AsyncOpenAI, messages: Any, **more: Any) -> Any:
    return client.chat.completions.create(model=MODEL, messages=messages, **more)


# --- By itself ---------------------------------------------------------------------------------


async def test_what_is_stored_can_be_read_changed_and_deleted(
    client: openai.AsyncOpenAI, model: ModelServer
) -> None:
    asked: Any = [{"role": "system", "content": "be brief"}, *HELLO]
    made = await say(client, asked, store=True, metadata={"a": "b"}, temperature=0.5)
    read = await client.chat.completions.retrieve(made.id)
    assert (read.id, read.created, read.model) == (made.id, made.created, made.model)
    assert (read.choices, read.usage) == (made.choices, made.usage)
    told = read.to_dict()
    assert (told["metadata"], told["temperature"]) == ({"a": "b"}, 0.5)
    messages = await client.chat.completions.messages.list(made.id)
    assert [(message.role, message.content) for message in messages.data] == [
        ("system", "be brief"),
        ("user", "hello"),
    ]
    changed = await client.chat.completions.update(made.id, metadata={"c": "d"})
    assert changed.to_dict()["metadata"] == {"c": "d"}
    deleted = await client.chat.completions.delete(made.id)
    assert (deleted.id, deleted.deleted) == (made.id, True)
    for again in (client.chat.completions.retrieve, client.chat.completions.delete):
        with pytest.raises(openai.NotFoundError):
            await again(made.id)


async def test_what_is_stored_by_itself_is_in_no_list_of_sessions(
    client: openai.AsyncOpenAI, http: httpx.AsyncClient, model: ModelServer
) -> None:
    before = (await http.get("/api/chat-sessions?limit=100")).json()
    await say(client, HELLO, store=True)
    assert (await http.get("/api/chat-sessions?limit=100")).json() == before
    listed = (await http.get("/api/sessions")).json()
    assert len(listed) == len(before["chat_sessions"])


@pytest.mark.parametrize("order", ["asc", "desc"])
async def test_lists_are_read_page_by_page_while_more_are_made(
    client: openai.AsyncOpenAI, model: ModelServer, order: Any
) -> None:
    name = new_name()
    made = [(await say(client, HELLO, store=True, metadata={"t": name})).id for _ in range(5)]
    await say(client, HELLO, store=True, metadata={"t": "another"})
    found = []
    pages = client.chat.completions.list(limit=2, order=order, metadata={"t": name})
    async for completion in pages:
        found.append(completion.id)
        if len(found) == 3:
            late = (await say(client, HELLO, store=True, metadata={"t": name})).id
    expected = [*made, late] if order == "asc" else made[::-1]
    assert found == expected


async def test_lists_are_of_a_model(client: openai.AsyncOpenAI, model: ModelServer) -> None:
    name = new_name()
    made = await say(client, HELLO, store=True, metadata={"t": name})
    page = await client.chat.completions.list(model=MODEL, metadata={"t": name})
    assert [one.id for one in page.data] == [made.id]
    page = await client.chat.completions.list(model="another", metadata={"t": name})
    assert page.data == []


async def test_only_what_was_completed_is_listed(
    client: openai.AsyncOpenAI, model: ModelServer
) -> None:
    name = new_name()
    model.script = lambda _: Plan(at={1: Cut()})
    with pytest.raises(openai.InternalServerError):
        await say(client, HELLO, store=True, metadata={"t": name})
    page = await client.chat.completions.list(metadata={"t": name})
    assert page.data == []


async def test_messages_are_read_page_by_page(
    client: openai.AsyncOpenAI, model: ModelServer
) -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    image = {"type": "image_url", "image_url": {"url": "https://example.org/a.png"}}
    asked: Any = [
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": "two", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "three"},
        {"role": "user", "content": [{"type": "text", "text": "four"}, image]},
    ]
    made = await say(client, asked, store=True)
    found = [one async for one in client.chat.completions.messages.list(made.id, limit=3)]
    assert [message.content for message in found] == ["one", "two", "three", None]
    assert [message.tool_calls and message.tool_calls[0].to_dict() for message in found] == [
        None,
        call,
        None,
        None,
    ]
    assert [part.to_dict() for part in found[3].content_parts or ()] == asked[3]["content"]
    back = client.chat.completions.messages.list(made.id, limit=3, order="desc")
    assert [one.id async for one in back] == [message.id for message in found][::-1]
    read = await client.chat.completions.retrieve(made.id)
    assert read.choices[0].message.content == "You said: four"


async def test_a_reply_of_calls_and_thoughts_is_kept_whole(
    client: openai.AsyncOpenAI, model: ModelServer
) -> None:
    plan = Plan(
        deltas=("Let me see.",),
        reasoning=("Hm.",),
        tool_calls=(CallOf("f", ('{"a":', "1}")),),
        finish_reason="tool_calls",
    )
    model.script = lambda _: plan
    made = await say(client, HELLO, store=True)
    read = await client.chat.completions.retrieve(made.id)
    assert read.choices == made.choices
    assert read.choices[0].finish_reason == "tool_calls"


@pytest.mark.parametrize(
    ("query", "param"),
    [
        ("limit=0", "limit"),
        ("limit=101", "limit"),
        ("limit=x", "limit"),
        ("order=up", "order"),
        ("after=chatcmpl-x", "after"),
    ],
)
async def test_a_wrong_query_is_told(
    client: openai.AsyncOpenAI, query: str, param: str, model: ModelServer
) -> None:
    made = await say(client, HELLO, store=True)
    for path in ("/chat/completions", f"/chat/completions/{made.id}/messages"):
        with pytest.raises(openai.BadRequestError) as refused:
            await client.get(f"{path}?{query}", cast_to=object)
        assert refused.value.param == param


async def test_what_has_no_end_to_answer_is_refused(
    client: openai.AsyncOpenAI, model: ModelServer
) -> None:
    asked: Any = [*HELLO, {"role": "assistant", "content": "hi"}]
    for kept in ({"store": True}, {"metadata": {"session_id": new_name()}}):
        with pytest.raises(openai.BadRequestError) as refused:
            await say(client, asked, **kept)
        assert refused.value.param == "messages"
    assert (await say(client, asked)).choices  # what is not kept may be gone on with


# --- In a session ------------------------------------------------------------------------------


async def talk(client: openai.AsyncOpenAI, session: str, words: list[str], **more: Any) -> Any:
    """A conversation as clients have it: all of it is sent each time."""
    messages: Any = []
    for text in words:
        messages.append({"role": "user", "content": text})
        made = await say(client, messages, metadata={"session_id": session}, **more)
        messages.append(made.choices[0].message.to_dict())
    return messages


async def test_a_session_holds_each_message_once(
    client: openai.AsyncOpenAI, http: httpx.AsyncClient, model: ModelServer
) -> None:
    alias = new_name()
    await talk(client, alias, ["one", "two", "three"])
    assert await said_in(http, alias) == [
        ("user", "one"),
        ("assistant", "You said: one"),
        ("user", "two"),
        ("assistant", "You said: two"),
        ("user", "three"),
        ("assistant", "You said: three"),
    ]
    shown = [message["content"] for message in model.requests[-1].body["messages"]]
    assert shown[-3:] == ["two", "You said: two", "three"]
    assert len(shown) == 6  # the system message of the deployment is the first


async def test_a_session_is_named_as_any_dialect_does(
    client: openai.AsyncOpenAI, http: httpx.AsyncClient, model: ModelServer
) -> None:
    begun = await http.post("/api/chat", json={"message": "one"})
    session = begun.headers["session-id"]
    for name in (session, f"conv_{session[1:]}"):
        await say(client, HELLO, metadata={"session_id": name})
    assert len(await said_in(http, session)) == 6
    unknown = f"conv_{'0' * 26}"
    with pytest.raises(openai.NotFoundError):
        await say(client, HELLO, metadata={"session_id": unknown})


async def test_a_session_may_be_named_by_a_header(
    client: openai.AsyncOpenAI, http: httpx.AsyncClient, model: ModelServer
) -> None:
    here, there = new_name(), new_name()
    for _ in range(2):
        await say(client, HELLO, extra_headers={"Session-Id": here})
    assert len(await said_in(http, here)) == 4
    kept = {"Session-Id": here, "Idempotency-Key": new_name()}
    await say(client, HELLO, extra_headers=kept, metadata={"session_id": here})
    with pytest.raises(openai.BadRequestError, match="another session"):
        await say(client, HELLO, extra_headers=kept, metadata={"session_id": there})
    with pytest.raises(openai.UnprocessableEntityError):  # the key stands for the other session
        await say(client, HELLO, extra_headers=kept | {"Session-Id": there})
    assert len(await said_in(http, here)) == 6


async def test_the_system_message_is_for_one_turn(
    client: openai.AsyncOpenAI, http: httpx.AsyncClient, model: ModelServer
) -> None:
    alias = new_name()
    orders: Any = [
        {"role": "system", "content": "be brief"},
        {"role": "developer", "content": "and kind"},
    ]
    await say(client, [*orders, *HELLO], metadata={"session_id": alias})
    sent = model.requests[-1].body["messages"]
    assert sent == [{"role": "system", "content": "be brief\n\nand kind"}, *HELLO]
    assert await said_in(http, alias) == [("user", "hello"), ("assistant", "You said: hello")]
    await say(client, HELLO, metadata={"session_id": alias})
    assert "be brief" not in str(model.requests[-1].body)


async def test_a_history_that_nobody_has_yet_is_kept(
    client: openai.AsyncOpenAI, http: httpx.AsyncClient, model: ModelServer
) -> None:
    """A conversation that goes on here, or begins with examples, loses nothing."""
    alias = new_name()
    asked: Any = [
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": "two"},
        {"role": "user", "content": "three"},
    ]
    made = await say(client, asked, metadata={"session_id": alias})
    expected = [("user", "one"), ("assistant", "two"), ("user", "three")]
    assert await said_in(http, alias) == [*expected, ("assistant", "You said: three")]
    read = await client.chat.completions.retrieve(made.id)
    assert read.choices[0].message.content == "You said: three"


async def test_the_results_of_tools_are_new(client: openai.AsyncOpenAI, model: ModelServer) -> None:
    alias = new_name()
    calls = (CallOf("f", id="c1"), CallOf("f", id="c2"))
    model.script = lambda call: (
        Plan(deltas=(), tool_calls=calls, finish_reason="tool_calls")
        if call.body["messages"][-1]["role"] == "user"
        else Plan(deltas=("done",))
    )
    tool: Any = {"type": "function", "function": {"name": "f"}}
    made = await say(client, HELLO, tools=[tool], metadata={"session_id": alias})
    message = made.choices[0].message.to_dict()
    results: Any = [
        {"role": "tool", "tool_call_id": "c1", "content": "1"},
        {"role": "tool", "tool_call_id": "c2", "content": "2"},
    ]
    made = await say(
        client, [*HELLO, message, *results], tools=[tool], metadata={"session_id": alias}
    )
    assert made.choices[0].message.content == "done"
    shown = model.requests[-1].body["messages"]
    assert [(one["role"], one.get("tool_call_id")) for one in shown[-4:]] == [
        ("user", None),
        ("assistant", None),
        ("tool", "c1"),
        ("tool", "c2"),
    ]


async def test_a_session_is_read_and_left_as_it_is_with_store_false(
    client: openai.AsyncOpenAI, http: httpx.AsyncClient, model: ModelServer
) -> None:
    alias = new_name()
    messages = await talk(client, alias, ["one"])
    before = await said_in(http, alias)
    asked = [*messages, {"role": "user", "content": "aside"}]
    made = await say(client, asked, store=False, metadata={"session_id": alias})
    assert made.choices[0].message.content == "You said: aside"
    assert [message["content"] for message in model.requests[-1].body["messages"]][1:] == [
        "one",
        "You said: one",
        "aside",
    ]
    assert await said_in(http, alias) == before


async def test_a_turn_of_a_session_is_a_completion_too(
    client: openai.AsyncOpenAI, http: httpx.AsyncClient, model: ModelServer
) -> None:
    """Deleting that forgets its parameters; what was said stays in the session."""
    alias = new_name()
    made = await say(client, HELLO, metadata={"session_id": alias, "a": "b"})
    read = await client.chat.completions.retrieve(made.id)
    assert read.choices == made.choices
    assert read.to_dict()["metadata"] == {"session_id": alias, "a": "b"}
    page = await client.chat.completions.list(metadata={"session_id": alias})
    assert page.data == []
    await client.chat.completions.delete(made.id)
    with pytest.raises(openai.NotFoundError):
        await client.chat.completions.retrieve(made.id)
    assert len(await said_in(http, alias)) == 2


async def test_turns_of_other_dialects_are_no_completions(
    client: openai.AsyncOpenAI, http: httpx.AsyncClient, model: ModelServer
) -> None:
    turn = (await http.post("/api/chat", json={"message": "one"})).headers["turn-id"]
    with pytest.raises(openai.NotFoundError):
        await client.chat.completions.retrieve(f"chatcmpl-{turn[1:]}")


async def test_many_clients_in_one_session(
    client: openai.AsyncOpenAI, http: httpx.AsyncClient, model: ModelServer
) -> None:
    alias = new_name()
    ask = [
        say(client, [{"role": "user", "content": f"n{number}"}], metadata={"session_id": alias})
        for number in range(20)
    ]
    made = await asyncio.gather(*ask)
    assert {one.choices[0].message.content for one in made} == {
        f"You said: n{number}" for number in range(20)
    }
    said = await said_in(http, alias)
    assert len(said) == 40
    for (_, words), (_, reply) in zip(said[::2], said[1::2], strict=True):
        assert reply == f"You said: {words}"


@pytest.mark.parametrize("name", ["user", "safety_identifier"])
async def test_an_application_says_for_whom_it_asks(
    client: openai.AsyncOpenAI, http: httpx.AsyncClient, model: ModelServer, name: str
) -> None:
    """Two users of one application may call their sessions alike, and neither sees the other's."""
    alias, path = new_name(), "/api/chat-sessions"
    for who in ("ann", "bob"):
        await say(client, HELLO, metadata={"session_id": alias}, extra_body={name: who})
    found = [
        (await http.get(f"{path}/{alias}", headers={"X-End-User": who})).json()["chat_session"]
        for who in ("ann", "bob")
    ]
    assert found[0]["id"] != found[1]["id"]
    assert [one["message_count"] for one in found] == [2, 2]


# --- Once --------------------------------------------------------------------------------------


async def test_under_a_key_it_is_done_once(
    client: openai.AsyncOpenAI, http: httpx.AsyncClient, model: ModelServer
) -> None:
    alias = new_name()
    more: Any = {
        "metadata": {"session_id": alias},
        "extra_headers": {"Idempotency-Key": new_name()},
    }
    first = await say(client, HELLO, **more)
    create = client.chat.completions.with_raw_response.create
    again = await create(model=MODEL, messages=HELLO, **more)
    assert again.headers["idempotent-replayed"] == "true"
    assert again.parse() == first
    stream = await say(client, HELLO, stream=True, **more)
    chunks = [chunk async for chunk in stream]
    assert chunks[0].id == first.id
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "You said: hello"
    assert len(model.requests) == 1
    assert len(await said_in(http, alias)) == 2
    with pytest.raises(openai.UnprocessableEntityError):
        await say(client, [{"role": "user", "content": "other"}], **more)


async def test_a_history_of_replies_is_not_the_reply_when_it_is_told_again(
    client: openai.AsyncOpenAI, model: ModelServer
) -> None:
    asked: Any = [*HELLO, {"role": "assistant", "content": "hi"}, *HELLO]
    more: Any = {"store": True, "extra_headers": {"Idempotency-Key": new_name()}}
    first = await say(client, asked, **more)
    assert (await say(client, asked, **more)) == first
    chunks = [chunk async for chunk in await say(client, asked, stream=True, **more)]
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "You said: hello"


async def test_a_stream_is_attached_to_while_it_is_made(
    client: openai.AsyncOpenAI, model: ModelServer
) -> None:
    gate = asyncio.Event()
    model.script = lambda _: Plan(at={1: Wait(gate)})
    more: Any = {"store": True, "extra_headers": {"Idempotency-Key": new_name()}}
    first = await say(client, HELLO, stream=True, **more)
    begun = [await anext(first), await anext(first)]
    second = await say(client, HELLO, stream=True, **more)
    gate.set()
    texts = [
        "".join([chunk.choices[0].delta.content or "" async for chunk in stream])
        for stream in (first, second)
    ]
    assert (begun[1].choices[0].delta.content or "") + texts[0] == texts[1] == "Hello there"
    assert len(model.requests) == 1


async def test_an_outage_stores_one_turn_however_often_the_sdk_would_ask(
    server: Server, make_client: MakeClient, http: httpx.AsyncClient, model: ModelServer
) -> None:
    """SDKs send again what is answered with 500; here that would say the same thing twice."""
    client, alias = make_client(server, max_retries=2), new_name()
    model.script = lambda _: Plan(status=500, body={"error": {"message": "out of order"}})
    with pytest.raises(openai.InternalServerError) as failed:
        await say(client, HELLO, metadata={"session_id": alias})
    assert failed.value.response.headers["x-should-retry"] == "false"
    assert failed.value.response.headers["turn-id"]
    assert len(model.requests) == 1
    assert await said_in(http, alias) == [("user", "hello")]


async def test_an_outage_under_a_key_stores_one_turn_too(
    server: Server, make_client: MakeClient, http: httpx.AsyncClient, model: ModelServer
) -> None:
    client, alias = make_client(server, max_retries=1), new_name()
    model.script = lambda _: Plan(status=500, body={"error": {"message": "out of order"}})
    with pytest.raises(openai.InternalServerError) as failed:
        await say(
            client,
            HELLO,
            metadata={"session_id": alias},
            extra_headers={"Idempotency-Key": new_name()},
        )
    assert "x-should-retry" not in failed.value.response.headers
    assert failed.value.response.headers["idempotent-replayed"] == "true"
    assert len(model.requests) == 1
    assert await said_in(http, alias) == [("user", "hello")]


async def test_a_client_that_hangs_up_stops_nothing(
    client: openai.AsyncOpenAI, http: httpx.AsyncClient, model: ModelServer
) -> None:
    gate, alias = asyncio.Event(), new_name()
    model.script = lambda _: Plan(at={1: Wait(gate)})
    raw = await client.chat.completions.with_raw_response.create(
        model=MODEL, messages=HELLO, stream=True, metadata={"session_id": alias}
    )
    turn = raw.headers["turn-id"]
    stream = raw.parse()
    await anext(stream)
    await stream.close()
    gate.set()
    async with http.stream("GET", f"/api/turns/{turn}/events") as events:
        await events.aread()
    assert await said_in(http, alias) == [("user", "hello"), ("assistant", "Hello there")]


async def test_a_cancelled_turn_ends_its_stream_with_an_error(
    client: openai.AsyncOpenAI, http: httpx.AsyncClient, model: ModelServer
) -> None:
    model.script = lambda _: Plan(at={1: Hang()})
    raw = await client.chat.completions.with_raw_response.create(
        model=MODEL, messages=HELLO, stream=True, metadata={"session_id": new_name()}
    )
    stream = raw.parse()
    await anext(stream)
    await http.post(f"/api/turns/{raw.headers['turn-id']}/cancel")
    with pytest.raises(openai.APIError) as ended:
        async for _ in stream:
            pass
    assert ended.value.code == "turn_cancelled"


async def test_what_was_kept_is_there_after_a_restart(
    shared_model: ModelServer, make_client: MakeClient, model: ModelServer, tmp_path_factory: Any
) -> None:
    server = start_server(shared_model, tmp_path_factory.mktemp("restarted"))
    await asyncio.to_thread(server.start)
    try:
        plan = Plan(
            deltas=("one ", "two"), tool_calls=(CallOf("f", ("{", "}")),), reasoning=("hm",)
        )
        model.script = lambda _: plan
        more: Any = {"store": True, "extra_headers": {"Idempotency-Key": "k"}}
        made = await say(make_client(server), HELLO, **more)
        await asyncio.to_thread(server.stop)
        await asyncio.to_thread(server.start)
        client = make_client(server)
        assert await say(client, HELLO, **more) == made
        read = await client.chat.completions.retrieve(made.id)
        assert read.choices == made.choices
    finally:
        server.kill()
