"""Documents over HTTP, where one exchange does not show it: races, chats, what models are shown."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from rig.model_server import HEAD, Hang, ModelServer, Plan, Wait
from rig.server import Server
from tests.test_matrix import chatsession_say, deployment_say
from tests.test_plans import running
from tests.test_process import server_of
from tests.test_sessions_api import SESSIONS, Api, database, rows_of
from turnkeeper.blueprint import read_blueprint
from turnkeeper.dialects.documents import DIALECT
from turnkeeper.dialects.exchange import Answer, Call, Parts
from turnkeeper.domain import ById, SectionChange, SectionDraft
from turnkeeper.errors import InvalidRequest, TurnkeeperError
from turnkeeper.sessions import SessionRequest

__all__ = ["database"]  # a fixture

DOCUMENTS = "/api/documents"
PLAIN = "You are a helpful AI assistant."  # the server's own system message
BASE = {"title": "Report", "sections": [
    {"title": "Aims", "content": "To know."}, {"title": "Method", "level": 2, "content": "We ask."}
]}  # fmt: skip


large_bodies = pytest.mark.filterwarnings("ignore:Sending a large body")


@pytest.fixture
async def server(tmp_path: Path, model_server: ModelServer, database: str) -> AsyncIterator[Server]:
    options = ("--database", database, "--attempts", "1")
    with server_of(model_server, tmp_path, *options) as server:
        yield server


@pytest.fixture
async def api(server: Server) -> AsyncIterator[Api]:
    async with aiohttp.ClientSession(server.url) as http:
        api = Api(http)
        yield api
        for stream in api.streams:
            stream.response.close()


async def make(api: Api, body: Any = BASE) -> tuple[str, list[str]]:
    """The path of a new document, and those of its sections."""
    document = (await api.do("POST", DOCUMENTS, body))["document"]
    path = f"{DOCUMENTS}/{document['id']}"
    return path, [f"{path}/sections/{section['id']}" for section in document["sections"]]


async def chat_of(api: Api, section: str) -> str:
    return (await api.do("POST", f"{section}/chat"))["chat_session"]["id"]


def shown(model: ModelServer, number: int = -1) -> str:
    """The system message of a call."""
    first = model.requests[number].body["messages"][0]
    assert first["role"] == "system", first
    return first["content"]


# --- The race ----------------------------------------------------------------------------------


async def test_fifty_who_ask_at_once_get_one_chat(api: Api) -> None:
    _, [section, _] = await make(api)
    answers = await asyncio.gather(*[api.do("POST", f"{section}/chat") for _ in range(50)])
    assert len({answer["chat_session"]["id"] for answer in answers}) == 1
    told = [answer["message"] for answer in answers if "message" in answer]
    assert told == ["Chat session created successfully"]
    sessions = (await api.get(f"{SESSIONS}?archived=any"))["chat_sessions"]
    assert len(sessions) == 1

    await api.do("DELETE", f"{SESSIONS}/{sessions[0]['id']}")
    again = await asyncio.gather(*[api.do("POST", f"{section}/chat") for _ in range(50)])
    assert len({answer["chat_session"]["id"] for answer in again}) == 1
    assert len((await api.get(f"{SESSIONS}?archived=any"))["chat_sessions"]) == 1


# --- What the model sees -----------------------------------------------------------------------


async def test_the_model_sees_the_section_as_it_is_at_the_time_of_the_turn(
    api: Api, model_server: ModelServer
) -> None:
    path, [aims, _] = await make(api)
    session = await chat_of(api, aims)
    await api.say(session, "one")
    assert shown(model_server).endswith(
        "Document: Report\nOutline:\n- Aims (this section)\n  - Method\n\n"
        "Section: Aims\nText of the section:\nTo know."
    )
    await api.do("PUT", aims, {"content": "To know more.", "position": 1})
    await api.do("PUT", path, {"title": "The report"})
    await api.say(session, "two")
    assert shown(model_server).endswith(
        "Document: The report\nOutline:\n  - Method\n- Aims (this section)\n\n"
        "Section: Aims\nText of the section:\nTo know more."
    )
    said = [message["content"] for message in model_server.requests[-1].body["messages"][1:]]
    assert said == ["one", "You said: one", "two"]


async def test_a_message_that_waits_sees_what_is_written_when_its_place_comes(
    api: Api, model_server: ModelServer
) -> None:
    _, [aims, _] = await make(api)
    session = await chat_of(api, aims)
    gate = asyncio.Event()
    model_server.script = lambda _: Plan(at={HEAD: Wait(gate)})
    first = asyncio.create_task(api.say(session, "one"))
    await model_server.wait_for_calls(1)
    second = await api.stream(session, "two")
    await api.do("POST", f"{aims}/replace", {"content": "Written meanwhile."})
    gate.set()
    await asyncio.gather(first, second.read_all())
    assert "To know." in shown(model_server, 0)
    assert shown(model_server, 1).endswith("Written meanwhile.")


@pytest.mark.parametrize("how", ["chatbot", "chatsession", "deployment", "regenerate", "edit"])
async def test_every_dialect_shows_it(api: Api, model_server: ModelServer, how: str) -> None:
    _, [aims, _] = await make(api)
    session = await chat_of(api, aims)
    path = f"{SESSIONS}/{session}/messages"
    config = {"temperature": 0.25, "instructions": "Be brief."}
    await api.do("POST", path, {"message": "one", "config": config})
    await api.do("PUT", aims, {"content": "Edited."})
    match how:
        case "chatbot":
            await api.do("POST", "/api/chat", {"message": "two", "session_id": session})
        case "chatsession":
            await chatsession_say(api.http, session, "two")
        case "deployment":
            await deployment_say(api.http, session, "two")
        case "regenerate":
            await api.regenerate(session)
        case _:
            await api.edit(session, await api.asked(session, 0), "other")
    assert shown(model_server).startswith(f"{PLAIN}\n\nBe brief.\n\nThis conversation is about")
    assert shown(model_server).endswith("Edited.")
    assert model_server.requests[-1].body["temperature"] == 0.25


async def test_a_session_without_a_section_shows_none(api: Api, model_server: ModelServer) -> None:
    session = await api.make()
    await api.say(session, "one")
    assert shown(model_server) == PLAIN


async def test_a_fork_shows_no_section(api: Api, model_server: ModelServer) -> None:
    _, [aims, _] = await make(api)
    session = await chat_of(api, aims)
    await api.say(session, "one")
    fork = (await api.do("POST", f"{SESSIONS}/{session}/fork"))["chat_session"]["id"]
    await api.say(fork, "two")
    assert shown(model_server) == PLAIN


# --- Config ------------------------------------------------------------------------------------


async def test_a_config_is_kept_shown_and_makes_another_tag(
    api: Api, model_server: ModelServer
) -> None:
    session = await api.make()
    path = f"{SESSIONS}/{session}/messages"
    config = {"temperature": 1, "detailedInstructions": "In verse.", "model": "scripted", "x": [1]}
    await api.do("POST", path, {"message": "one", "config": config, "context_documents": ["a"]})
    tag = await api.tag(session)
    body = model_server.requests[-1].body
    assert (body["temperature"], body["messages"][0]["content"]) == (1, f"{PLAIN}\n\nIn verse.")
    read = await api.read(session)
    assert (read["config"], read["context_documents"]) == (config, ["a"])
    assert read["model"] == "scripted"

    await api.do("POST", path, {"message": "two", "config": {}, "context_documents": []})
    body = model_server.requests[-1].body
    assert "temperature" not in body
    assert shown(model_server) == PLAIN
    read = await api.read(session)
    assert (read["config"], read["context_documents"]) == ({}, [])
    assert (await api.ask("GET", f"{SESSIONS}/{session}", If_None_Match=tag))[0] == 200


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        ({"config": {"x": "y" * 17_000}}, "config must have at most 16384 bytes of JSON"),
        ({"context_documents": ["y" * 17_000]}, "context_documents must have at most 16384 bytes"),
        ({"config": {"instructions": "a\0b"}}, "config.instructions holds a character"),
        ({"config": {"temperature": True}}, "config.temperature must be a number"),
        ({"config": {"detailedInstructions": []}}, "config.detailedInstructions must be a string"),
        ({"config": {"model": ""}}, "config.model must be a string of at least 1"),
    ],
)
async def test_what_cannot_be_kept_is_refused_and_nothing_stored(
    api: Api, body: Any, sentence: str
) -> None:
    session = await api.make()
    path = f"{SESSIONS}/{session}/messages"
    status, answer, _ = await api.ask("POST", path, {"message": "x", **body})
    assert (status, answer["code"]) == (400, "invalid_request")
    assert answer["error"].startswith(sentence)
    assert (await api.read(session))["message_count"] == 0


async def test_a_config_may_not_be_nested_too_deeply(api: Api) -> None:
    session = await api.make()
    deep: Any = {}
    for _ in range(100):
        deep = {"a": deep}
    path = f"{SESSIONS}/{session}/messages"
    status, answer, _ = await api.ask("POST", path, {"message": "x", "config": deep})
    assert (status, answer["error"]) == (400, "config must have at most 100 levels")


# --- Large documents ---------------------------------------------------------------------------


@large_bodies
async def test_thousands_of_sections_and_texts_of_a_megabyte(
    api: Api, model_server: ModelServer
) -> None:
    sections = [{"title": f"Section {n}", "content": f"text {n}"} for n in range(2500)]
    path, paths = await make(api, {"title": "Long", "sections": sections})
    large = "BEGIN" + "x" * 1_200_000 + "END"
    for section in (paths[7], paths[1500], paths[1501]):
        await api.do("PUT", section, {"content": large})
    document = (await api.get(path))["document"]
    assert [section["title"] for section in document["sections"]] == [s["title"] for s in sections]
    assert document["sections"][1500]["content"] == large
    assert document["sections"][8]["content"] == "text 8"
    session = await chat_of(api, paths[1500])
    await api.say(session, "one")
    text = shown(model_server)
    assert len(text) < 100_000
    assert "BEGINx" in text
    assert text.endswith("xEND")
    assert "- Section 1499\n- Section 1500 (this section)\n- Section 1501\n" in text
    await api.do("DELETE", path)
    assert (await api.get(DOCUMENTS))["documents"] == []


async def test_a_small_window_shows_what_fits_and_always_the_newest_message(
    tmp_path: Path, model_server: ModelServer
) -> None:
    async with running(tmp_path, model_server) as parts:  # `small` has 1000 tokens
        sections = [SectionDraft(title="Aims", content="BEGIN" + "x" * 9000 + "END")]
        document, [section] = (await parts.library.create("ann", "Report", sections)).thing
        opened = await parts.library.open_chat("ann", document.id, section.id)
        for text in ("short", "long " * 400, "short again"):
            choice = ById(opened.session_id)
            reply = (await parts.engine.take_turn("ann", choice, text, model="small")).reply
            await reply.completed()
            messages = model_server.requests[-1].body["messages"]
            assert messages[-1]["content"] == text
            assert sum(len(m["content"].encode()) for m in messages) <= 750 * 3
            assert reply.turn.context is not None
            assert reply.turn.context.estimated_tokens <= 750
        assert "BEGIN" in shown(model_server, 0)
        assert len(shown(model_server, 0).encode()) <= 750 * 3 // 2


async def test_where_nothing_may_be_left_out_the_section_gets_what_is_left(
    tmp_path: Path, model_server: ModelServer
) -> None:
    async with running(tmp_path, model_server) as parts:
        blueprint = read_blueprint({"model": "small", "overflow": "error"})
        await parts.deployments.create("whole", blueprint)
        section = SectionDraft(title="Aims", content="BEGIN" + "x" * 9000 + "END")
        document, [made] = (await parts.library.create("ann", "Report", [section])).thing
        request = SessionRequest(deployment="whole")
        new = parts.sessions.draft("ann", request, section=made.id)
        chat = await parts.library._store.open_chat("ann", document.id, new)
        for number in range(3):
            text = f"{number}" + "y" * 300
            taken = await parts.engine.take_turn("ann", ById(chat.session_id), text)
            await taken.reply.completed()
            assert len(model_server.requests[-1].body["messages"]) == 2 * number + 2
        assert len(shown(model_server, 0)) > len(shown(model_server)) > 200


# --- Someone else ------------------------------------------------------------------------------


@pytest.fixture
async def parts(tmp_path: Path, model_server: ModelServer) -> AsyncIterator[Parts]:
    async with running(tmp_path, model_server) as parts:
        yield parts


async def call(parts: Parts, caller: str, route: str, body: Any = None, **path: str) -> Any:
    """Status and body of what `caller` gets of a route of the dialect, beneath HTTP."""
    method, _, pattern = route.partition(" ")
    [handler] = [r.handler for r in DIALECT.routes if (r.method, r.path) == (method, pattern)]
    written = b"" if body is None else json.dumps(body).encode()
    asked = Call(caller, route, written, path, {}, {}, "", asyncio.Future)
    try:
        answer = await handler(parts, asked)
    except TurnkeeperError as error:
        answer = DIALECT.encode_error(error)
    assert isinstance(answer, Answer)
    return answer.status, json.loads(answer.body)


SECTION = f"{DOCUMENTS}/{{doc_id}}/sections/{{section_id}}"
BODIES = {"PUT": {"title": "x"}, "POST": {"content": "x"}}


async def test_someone_elses_document_is_denied_for_a_chat_and_else_not_there(
    parts: Parts,
) -> None:
    document, [section] = (await parts.library.create("ann", "Report", [SectionDraft()])).thing
    path = {"doc_id": document.id, "section_id": section.id}
    for route in DIALECT.routes:
        if "{doc_id}" not in route.path:
            continue
        name = f"{route.method} {route.path}"
        found = await call(parts, "bob", name, BODIES.get(route.method), **path)
        if route.path.endswith("/chat"):
            assert found == (403, {"error": "Access denied"})
        else:
            assert found == (404, {"error": "Document not found"})
    missing = path | {"section_id": "c" + 26 * "0"}
    assert (await call(parts, "bob", f"POST {SECTION}/chat", **missing))[0] == 403
    assert await call(parts, "bob", "GET /api/documents") == (200, {"documents": []})
    assert (await parts.library.get("ann", document.id)).version == 0

    mine, _ = (await parts.library.create("bob", "Mine", [])).thing
    found = await call(parts, "bob", f"POST {SECTION}/chat", **(path | {"doc_id": mine.id}))
    assert found == (404, {"error": "Section not found"})


async def test_a_fault_of_ours_is_told_as_seed_003_has_it(parts: Parts) -> None:
    found = await call(parts, "ann", f"POST {SECTION}/chat")  # no path: a bug
    assert found == (500, {"error": "Failed to create chat session"})


async def test_what_cannot_be_kept_of_a_document_is_refused(parts: Parts) -> None:
    create = parts.library.create
    for title, sections in (
        ("x" * 1001, []),
        ("a\0", []),
        ("fine", [SectionDraft(title="x" * 1001)]),
        ("fine", [SectionDraft(content="a\0")]),
        ("fine", 10_001 * [SectionDraft()]),
    ):
        with pytest.raises(InvalidRequest):
            await create("ann", title, sections)
    assert await parts.library.list("ann") == []
    document, [section] = (
        await create("ann", " Ünïcode 🎈\n", [SectionDraft(title="x" * 1000)])
    ).thing
    assert (await parts.library.get("ann", document.id)).title == " Ünïcode 🎈\n"
    for change in (SectionChange(title="x" * 1001), SectionChange(content="\ud800")):
        with pytest.raises(InvalidRequest):
            await parts.library.change_section("ann", document.id, section.id, change)


# --- Deleting ----------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["document", "section"])
async def test_deleting_stops_what_runs_and_leaves_no_row(
    api: Api, model_server: ModelServer, database: str, what: str
) -> None:
    path, [aims, method] = await make(api)
    session = await chat_of(api, aims)
    kept = await chat_of(api, method)
    await api.say(session, "one")
    await api.do("POST", f"{SESSIONS}/{session}/messages", {"message": "x", "config": {"a": 1}})
    model_server.script = lambda _: Plan(deltas=("Once ", "upon"), at={1: Hang()})
    streams = [await api.stream(session, f"message {number}") for number in range(2)]
    await streams[0].read_until(5)
    await asyncio.sleep(1.2)  # a checkpoint is made
    assert (await rows_of(database, session))["checkpoints"]

    await api.do("DELETE", path if what == "document" else aims)
    await asyncio.gather(*(stream.read_all() for stream in streams))
    assert [stream.last[0] for stream in streams] == 2 * ["turn.cancelled"]
    await model_server.wait_for_disconnects(1)
    assert not any((await rows_of(database, session)).values())
    status, answer, _ = await api.ask("GET", f"{SESSIONS}/{session}")
    assert (status, answer) == (404, {"error": "Chat session not found"})
    assert (await api.ask("GET", f"{SESSIONS}/{kept}"))[0] == (404 if what == "document" else 200)


async def test_a_session_deleted_elsewhere_is_made_anew(api: Api) -> None:
    _, [aims, _] = await make(api)
    first = await chat_of(api, aims)
    await api.do("DELETE", f"/session/end?session_id={first}")
    second = await api.do("POST", f"{aims}/chat")
    assert second["message"] == "Chat session created successfully"
    assert second["chat_session"]["id"] != first
    section = (await api.get(aims))["section"]
    assert section["chat_session_id"] == second["chat_session"]["id"]


# --- Editors -----------------------------------------------------------------------------------


async def test_two_editors_of_one_section_lose_nothing(api: Api) -> None:
    _, [aims, _] = await make(api)
    _, _, headers = await api.ask("GET", aims)
    saved = await asyncio.gather(
        *[api.ask("PUT", aims, {"content": who}, If_Match=headers["etag"]) for who in ("a", "b")]
    )
    assert sorted(status for status, _, _ in saved) == [200, 412]
    [won] = [answer["section"]["content"] for status, answer, _ in saved if status == 200]
    assert (await api.get(aims))["section"]["content"] == won
    over = await asyncio.gather(*[api.do("PUT", aims, {"content": who}) for who in ("c", "d")])
    now = (await api.get(aims))["section"]["content"]
    assert {answer["old_content"] for answer in over} | {now} == {won, "c", "d"}


@large_bodies
async def test_a_document_read_while_sections_go_is_still_json(api: Api) -> None:
    sections = [{"content": "x" * 300_000} for _ in range(12)]
    path, paths = await make(api, {"title": "Big", "sections": sections})

    async def delete_all() -> None:
        for section in paths[::-1]:
            await api.do("DELETE", section)

    read, _ = await asyncio.gather(api.get(path), delete_all())
    assert len(read["document"]["sections"]) <= 12
    assert (await api.get(path))["document"]["sections"] == []
