"""Conversations and their items, by the official SDK against a real server."""

import asyncio
from typing import Any

import httpx
import openai
import pytest

from rig.model_server import Hang, ModelServer, Plan
from rig.server import Server
from tests.openai.conftest import MODEL

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.usefixtures("model")]


def said(text: str, role: str = "user") -> Any:
    return {"type": "message", "role": role, "content": text}


async def texts(client: openai.AsyncOpenAI, id_: str, **more: Any) -> list[str]:
    items: Any = client.conversations.items.list(id_, **more)
    return [item.content[0].text async for item in items]


# --- Conversations -----------------------------------------------------------------------------


async def test_its_life(client: openai.AsyncOpenAI) -> None:
    made = await client.conversations.create(metadata={"topic": "otters"})
    assert made.id.startswith("conv_")
    assert made.metadata == {"topic": "otters"}
    assert await client.conversations.retrieve(made.id) == made
    changed = await client.conversations.update(made.id, metadata={"topic": "seals"})
    assert changed.metadata == {"topic": "seals"}
    assert (await client.conversations.update(made.id, metadata=None)).metadata == {}
    gone = await client.conversations.delete(made.id)
    assert (gone.id, gone.deleted) == (made.id, True)
    for act in (client.conversations.retrieve, client.conversations.delete):
        with pytest.raises(openai.NotFoundError, match=r"Conversation with id .* not found"):
            await act(made.id)


async def test_the_client_without_async(sync_client: openai.OpenAI) -> None:
    def talk() -> list[Any]:
        made = sync_client.conversations.create(items=[said("one")])
        sync_client.conversations.items.create(made.id, items=[said("two", "assistant")])
        items: Any = sync_client.conversations.items.list(made.id, order="asc")
        return [item.content[0].text for item in items]

    assert await asyncio.to_thread(talk) == ["one", "two"]


async def test_it_begins_with_items(client: openai.AsyncOpenAI, model: ModelServer) -> None:
    items = [said("Be kind.", "developer"), said("one"), said("two", "assistant")]
    made = await client.conversations.create(items=items)
    assert await texts(client, made.id, order="asc") == ["Be kind.", "one", "two"]
    await client.responses.create(model=MODEL, input="three", conversation=made.id)
    shown = model.requests[-1].body["messages"][1:]
    assert [message["content"] for message in shown] == ["Be kind.", "one", "two", "three"]


async def test_it_is_a_session(client: openai.AsyncOpenAI, server: Server) -> None:
    made = await client.conversations.create(items=[said("one")], metadata={"a": "b"})
    id_ = made.id.replace("conv_", "s", 1)
    async with httpx.AsyncClient(base_url=server.url) as http:
        answer = await http.post(f"/api/chat-sessions/{id_}/messages", json={"message": "two"})
        assert answer.json()["response"] == "You said: two"
        session = (await http.get(f"/api/chat-sessions/{id_}")).json()["chat_session"]
    assert session["metadata"] == {"a": "b"}
    assert await texts(client, made.id, order="asc") == ["one", "two", "You said: two"]


async def test_lists_of_them_lead_to_the_end(client: openai.AsyncOpenAI, server: Server) -> None:
    made = [(await client.conversations.create()).id for _ in range(5)]
    async with httpx.AsyncClient(base_url=f"{server.url}/v1") as http:
        for order in ("asc", "desc"):
            for limit in (1, 2, 100):
                found, after = [], ""
                while True:
                    path = f"/conversations?order={order}&limit={limit}{after}"
                    page = (await http.get(path)).json()
                    found += [one["id"] for one in page["data"]]
                    if not page["has_more"]:
                        break
                    after = f"&after={page['last_id']}"
                here = [id_ for id_ in found if id_ in made]
                assert here == (made if order == "asc" else made[::-1])
                assert len(set(found)) == len(found)
        wrong = await http.get("/conversations?after=x")
    assert (wrong.status_code, wrong.json()["error"]["param"]) == (400, "after")


# --- Items -------------------------------------------------------------------------------------


async def test_items_of_every_kind(client: openai.AsyncOpenAI) -> None:
    made = await client.conversations.create()
    items: Any = [
        {"role": "user", "content": [{"type": "input_text", "text": "look"}, IMAGE]},
        {"type": "reasoning", "id": "rs_1", "summary": [{"type": "summary_text", "text": "Hm."}]},
        {"type": "function_call", "call_id": "c1", "name": "f", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c1", "output": [TEXT, IMAGE]},
        {"type": "custom_tool_call", "call_id": "c2", "name": "g", "input": "ls"},
        {"type": "custom_tool_call_output", "call_id": "c2", "output": "none"},
        {
            "type": "message",
            "role": "assistant",
            "id": "msg_1",
            "status": "completed",
            "content": [{"type": "refusal", "refusal": "No."}],
        },
    ]
    added = await client.conversations.items.create(made.id, items=items)
    kinds = [item.get("type", "message") for item in items]
    assert [item.type for item in added.data] == kinds
    listed = await client.conversations.items.list(made.id, order="asc")
    assert listed.data == added.data
    for item in listed.data:
        assert item.id is not None
        assert await client.conversations.items.retrieve(item.id, conversation_id=made.id) == item
    message: Any = listed.data[0]
    assert message.content[1].to_dict() == IMAGE | {"file_id": None}
    again = await client.conversations.create(items=listed.to_dict()["data"])
    copies = await client.conversations.items.list(again.id, order="asc")
    assert [item.type for item in copies.data] == kinds


TEXT: Any = {"type": "input_text", "text": "here"}
IMAGE: Any = {"type": "input_image", "image_url": "data:image/png;base64,AA==", "detail": "high"}


async def test_pages_lead_to_the_end_with_items_added_meanwhile(
    client: openai.AsyncOpenAI,
) -> None:
    made = await client.conversations.create(items=[said(f"{n}") for n in range(20)])
    await client.conversations.items.create(made.id, items=[said(f"{n}") for n in range(20, 33)])
    for limit in (1, 5, 33, 100):
        asc = await texts(client, made.id, order="asc", limit=limit)
        assert asc == [f"{n}" for n in range(33)]
        assert await texts(client, made.id, order="desc", limit=limit) == asc[::-1]
    assert await texts(client, made.id) == asc[::-1]

    for order, expected in (("asc", [*range(33), *range(100, 103)]), ("desc", range(32, -1, -1))):
        found, number = [], 0
        items: Any = client.conversations.items.list(made.id, order=order, limit=10)  # type: ignore[arg-type]
        async for item in items:
            if len(found) % 10 == 5 and order == "asc" and number < 3:
                more = [said(f"{100 + number}")]
                await client.conversations.items.create(made.id, items=more)
                number += 1
            if len(found) == 5 and order == "desc":
                await client.conversations.items.create(made.id, items=[said("newer")])
            found.append(item.content[0].text)
        if order == "desc":
            found = [text for text in found if int(text) < 100]
        assert found == [f"{n}" for n in expected]


async def test_an_item_is_deleted(client: openai.AsyncOpenAI, model: ModelServer) -> None:
    made = await client.conversations.create(items=[said("one"), said("two", "assistant")])
    first, second = (await client.conversations.items.list(made.id, order="asc")).data
    assert first.id is not None
    left = await client.conversations.items.delete(first.id, conversation_id=made.id)
    assert left.id == made.id
    assert (await client.conversations.items.list(made.id)).data == [second]
    for act in (client.conversations.items.retrieve, client.conversations.items.delete):
        with pytest.raises(openai.NotFoundError, match=r"Item with id .* not found"):
            await act(first.id, conversation_id=made.id)
    await client.responses.create(model=MODEL, input="three", conversation=made.id)
    shown = model.requests[-1].body["messages"][1:]
    assert [message["content"] for message in shown] == ["two", "three"]


async def test_an_item_of_another_conversation(client: openai.AsyncOpenAI) -> None:
    one = await client.conversations.create(items=[said("one")])
    other = await client.conversations.create()
    [item] = (await client.conversations.items.list(one.id)).data
    for id_ in (str(item.id), "msg_x", "x"):
        with pytest.raises(openai.NotFoundError):
            await client.conversations.items.retrieve(id_, conversation_id=other.id)
    with pytest.raises(openai.BadRequestError) as caught:
        await client.conversations.items.list(other.id, after=str(item.id))
    assert caught.value.param == "after"


async def test_what_a_turn_is_made_of_stays_while_it_runs(
    client: openai.AsyncOpenAI, model: ModelServer
) -> None:
    model.script = lambda _: Plan(at={1: Hang()})
    made = await client.conversations.create()
    running = await client.responses.create(
        model=MODEL, input="one", conversation=made.id, background=True
    )
    [item] = (await client.conversations.items.list(made.id)).data
    assert item.status == "in_progress"  # type: ignore[union-attr]
    with pytest.raises(openai.BadRequestError) as caught:
        await client.conversations.items.delete(str(item.id), conversation_id=made.id)
    assert caught.value.code == "conversation_locked"
    await client.responses.cancel(running.id)


async def test_what_is_wrong_is_named(client: openai.AsyncOpenAI) -> None:
    made = await client.conversations.create()
    for wrong, param in (
        ({"items": [said("a")] * 21}, "items"),
        ({"items": [{"type": "x"}]}, "items[0].type"),
        ({"items": "a"}, "items"),
    ):
        for act in (
            client.conversations.create,
            lambda items: client.conversations.items.create(made.id, items=items),
        ):
            with pytest.raises(openai.BadRequestError) as caught:
                await act(items=wrong["items"])  # type: ignore[operator]
            assert caught.value.param == param
    for metadata in ({"a": 1}, {"a" * 65: ""}, {str(n): "" for n in range(17)}):
        with pytest.raises(openai.BadRequestError):
            await client.conversations.create(metadata=metadata)  # type: ignore[arg-type]
    with pytest.raises(openai.BadRequestError) as caught:
        await client.conversations.create(extra_body={"name": "x"})
    assert caught.value.code == "unknown_parameter"


async def test_under_a_key_it_is_made_once(client: openai.AsyncOpenAI) -> None:
    key = {"Idempotency-Key": "a conversation"}
    made = await client.conversations.create(items=[said("one")], extra_headers=key)
    again = await client.conversations.create(items=[said("one")], extra_headers=key)
    assert again == made
    key = {"Idempotency-Key": "some items"}
    for _ in range(2):
        added = await client.conversations.items.create(
            made.id, items=[said("two")], extra_headers=key
        )
        assert len(added.data) == 1
    assert await texts(client, made.id, order="asc") == ["one", "two"]
