"""Sessions over HTTP, where one exchange does not show it: paging, tags, versions, forks, ends."""

import asyncio
import itertools
import json
import sqlite3
from collections.abc import AsyncIterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import aiohttp
import asyncpg
import pytest

from rig.model_server import Hang, ModelServer, Plan, Wait
from rig.server import Server
from tests.test_process import Stream, server_of
from turnkeeper.dialects.documents import or_failed
from turnkeeper.dialects.exchange import Answer
from turnkeeper.errors import SessionNotFound

SESSIONS = "/api/chat-sessions"


class Api:
    """A client of one server; every call but `ask` expects success."""

    def __init__(self, http: aiohttp.ClientSession) -> None:
        self.http = http
        self.streams: list[Stream] = []

    async def ask(
        self, method: str, path: str, body: Any = None, **headers: str
    ) -> tuple[int, Any, Any]:
        """Status, body and headers of an answer; `_` in a header's name is a dash."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        async with self.http.request(method, path, json=body, headers=named) as response:
            text = await response.text()
            return response.status, json.loads(text) if text else None, response.headers

    async def do(self, method: str, path: str, body: Any = None) -> Any:
        status, answer, _ = await self.ask(method, path, body)
        assert status < 300, (status, answer)
        return answer

    async def get(self, path: str) -> Any:
        return await self.do("GET", path)

    async def make(self, **body: Any) -> str:
        return (await self.do("POST", SESSIONS, body))["chat_session"]["id"]

    async def say(self, session: str, message: str) -> Any:
        """The reply, as a message."""
        path = f"{SESSIONS}/{session}/messages"
        return (await self.do("POST", path, {"message": message}))["message"]

    async def read(self, session: str) -> Any:
        return (await self.get(f"{SESSIONS}/{session}"))["chat_session"]

    async def said(self, session: str) -> list[str]:
        return [message["content"] for message in (await self.read(session))["messages"]]

    async def asked(self, session: str, number: int) -> str:
        """The id of the message at this place, counted from 0."""
        return (await self.read(session))["messages"][number]["id"]

    async def edit(self, session: str, message: str, words: str) -> Any:
        path = f"{SESSIONS}/{session}/messages/{message}/edit"
        return (await self.do("POST", path, {"message": words}))["message"]

    async def regenerate(self, session: str) -> Any:
        return (await self.do("POST", f"{SESSIONS}/{session}/regenerate"))["message"]

    async def versions(self, session: str, message: str) -> Any:
        path = f"{SESSIONS}/{session}/messages/{message}/versions"
        return (await self.get(path))["versions"]

    async def select(self, session: str, message: str, number: int) -> None:
        path = f"{SESSIONS}/{session}/messages/{message}/versions/{number}/select"
        await self.do("POST", path)

    async def tag(self, session: str) -> str:
        _, _, headers = await self.ask("GET", f"{SESSIONS}/{session}")
        return headers["etag"]

    async def stream(self, session: str, message: str) -> Stream:
        body = {"message": message, "stream": True}
        response = await self.http.post(f"{SESSIONS}/{session}/messages", json=body)
        self.streams.append(Stream(response))
        return self.streams[-1]


@pytest.fixture(params=["sqlite", "postgres"])
async def database(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an empty database, of either kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'turnkeeper.db'}"
    url = request.getfixturevalue("postgres_url")
    name = f"sessions_{next(_numbers)}"
    connection = await asyncpg.connect(url)
    await connection.execute(f"CREATE DATABASE {name}")
    await connection.close()
    return f"{url.rpartition('/')[0]}/{name}"


_numbers = itertools.count(1)


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


# --- Making one --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["absent", "No name", "\0", "\ud800"])
async def test_a_session_of_a_deployment_that_cannot_be_is_refused(api: Api, name: str) -> None:
    status, body, _ = await api.ask("POST", SESSIONS, {"deployment": name})
    assert status == (400 if name == "\ud800" else 404), body


# --- Paging ------------------------------------------------------------------------------------


async def test_every_message_is_read_once_in_both_directions_while_others_come(api: Api) -> None:
    before = [f"message {number}" for number in range(25)]
    session = await api.make(messages=[{"role": "user", "content": text} for text in before])
    path = f"{SESSIONS}/{session}/messages"

    page = await api.get(f"{path}?limit=4")
    read = [message["content"] for message in page["messages"]]
    while page["next"]:
        await api.say(session, "meanwhile")
        page = await api.get(f"{path}?limit=4&before={page['next']}")
        read = [message["content"] for message in page["messages"]] + read
    assert read == before

    page, read = await api.get(f"{path}?limit=4&after=0"), []
    for _ in range(2):
        read += [message["content"] for message in page["messages"]]
        await api.say(session, "later")
        page = await api.get(f"{path}?limit=4&after={page['next']}")
    while page["next"]:
        read += [message["content"] for message in page["messages"]]
        page = await api.get(f"{path}?limit=4&after={page['next']}")
    read += [message["content"] for message in page["messages"]]
    meanwhile, later = ["meanwhile", "You said: meanwhile"], ["later", "You said: later"]
    assert read == before + 6 * meanwhile + 2 * later


async def test_every_session_is_listed_once_newest_first_while_others_come(api: Api) -> None:
    made = [await api.make(title=f"Session {number}") for number in range(25)]
    page, read = await api.get(f"{SESSIONS}?limit=4"), list[str]()
    while page["next"]:
        read += [session["id"] for session in page["chat_sessions"]]
        await api.make()
        page = await api.get(f"{SESSIONS}?limit=4&after={page['next']}")
    read += [session["id"] for session in page["chat_sessions"]]
    assert read == made[::-1]


async def test_a_long_session_is_read_in_pages_of_about_a_megabyte(
    api: Api, model_server: ModelServer
) -> None:
    long = [{"role": "user", "content": f"{number} {'x' * 60_000}"} for number in range(5)]
    session = await api.make(messages=long)
    for _ in range(8):
        await api.say(session, "y" * 60_000)
    read = await api.read(session)
    assert 16 <= len(read["messages"]) <= 18
    assert read["message_count"] == 21
    older = await api.get(f"{SESSIONS}/{session}/messages?before={read['next']}")
    assert len(older["messages"]) + len(read["messages"]) == 21


async def test_head_tells_no_length_that_get_does_not_have(api: Api) -> None:
    session = await api.make()
    turn = (await api.say(session, "hi"))["turn_id"]
    for path in (f"/chat-session/{session}", f"/api/turns/{turn}/events"):
        async with api.http.head(path) as head, api.http.get(path) as get:
            assert head.status == get.status == 200
            assert head.headers["content-type"] == get.headers["content-type"]
            assert head.headers.get("cache-control") == get.headers.get("cache-control")
            assert "content-length" not in head.headers


async def test_of_messages_sent_at_once_each_answer_holds_its_own_turn(api: Api) -> None:
    session = await api.make()
    path = f"{SESSIONS}/{session}/messages"
    texts = [f"message {number}" for number in range(8)]
    answers = await asyncio.gather(*(api.do("POST", path, {"message": text}) for text in texts))
    for text, answer in zip(texts, answers, strict=True):
        said = answer["chat_session"]["messages"]
        assert [message["content"] for message in said] == [text, f"You said: {text}"]
        assert answer["message"] == said[1]
        assert {message["turn_id"] for message in said} == {said[1]["turn_id"]}
    first = [answer for answer in answers if answer["chat_session"]["next"] is None]
    assert len(first) == 1
    assert (await api.read(session))["message_count"] == 16


# --- Tags --------------------------------------------------------------------------------------


async def is_unchanged(api: Api, session: str, tag: str) -> bool:
    status, body, headers = await api.ask("GET", f"{SESSIONS}/{session}", If_None_Match=tag)
    assert (status == 304) == (body is None) == (headers["etag"] == tag)
    assert status == 200 or "content-length" not in headers
    return status == 304


async def test_a_tag_changes_with_the_session_and_not_otherwise(
    api: Api, model_server: ModelServer
) -> None:
    session = await api.make()
    path = f"{SESSIONS}/{session}"
    gate = asyncio.Event()
    tags = [await api.tag(session)]

    async def changed() -> None:
        assert not await is_unchanged(api, session, tags[-1])
        tags.append(await api.tag(session))
        assert await is_unchanged(api, session, tags[-1])

    model_server.script = lambda _: Plan(at={0: Wait(gate)})
    reply = await api.stream(session, "Hello")
    await changed()  # a turn has started
    gate.set()
    await reply.read_all()
    await changed()  # and ended
    await api.do("PATCH", path, {"title": "Renamed"})
    await changed()
    await api.do("PATCH", path, {"metadata": {"a": 1}})
    await changed()
    answer = await api.regenerate(session)
    await changed()
    await api.select(session, answer["id"], 1)
    await changed()

    await api.read(session)
    await api.get(f"{path}/messages")
    await api.versions(session, answer["id"])
    await api.do("POST", f"{path}/fork")
    assert (await api.ask("PATCH", path, {"title": "x" * 201}))[0] == 400
    assert (await api.ask("PATCH", path, {"title": "x"}, If_Match='"other"'))[0] == 412
    assert (await api.ask("POST", f"{path}/messages", {"message": " "}))[0] == 400
    assert await is_unchanged(api, session, tags[-1])

    await api.do("POST", f"{path}/clear")
    await changed()
    assert len(set(tags)) == len(tags)


async def test_of_many_changes_to_the_same_state_one_is_made(api: Api) -> None:
    session = await api.make()
    tag = await api.tag(session)
    answers = await asyncio.gather(
        *(
            api.ask("PATCH", f"{SESSIONS}/{session}", {"title": f"Title {n}"}, If_Match=tag)
            for n in range(20)
        )
    )
    assert sorted(status for status, _, _ in answers) == [200, *19 * [412]]
    [made] = [body for status, body, _ in answers if status == 200]
    assert (await api.read(session))["title"] == made["chat_session"]["title"]


async def test_a_session_that_has_changed_is_not_deleted_with_its_old_tag(api: Api) -> None:
    session = await api.make()
    path, old = f"{SESSIONS}/{session}", await api.tag(session)
    await api.say(session, "Hello")
    assert (await api.ask("DELETE", path, If_Match=old))[0] == 412
    assert await api.said(session) == ["Hello", "You said: Hello"]
    assert (await api.ask("DELETE", path, If_Match=await api.tag(session)))[0] == 204
    assert (await api.ask("GET", path))[0] == 404


async def test_a_tag_does_not_outlive_its_session(api: Api) -> None:
    for _ in range(2):
        await api.do("POST", "/api/chat", {"message": "Hello", "session_id": "mine"})
        tag = await api.tag("mine")
        await api.do("DELETE", f"{SESSIONS}/mine")
    await api.do("POST", "/api/chat", {"message": "Hello", "session_id": "mine"})
    assert not await is_unchanged(api, "mine", tag)


# --- Versions ----------------------------------------------------------------------------------


def prompt_of(model: ModelServer) -> list[str]:
    """What the model was shown last, but for the system message."""
    messages = model.requests[-1].body["messages"]
    return [message["content"] for message in messages if message["role"] != "system"]


async def test_an_edit_in_the_middle_keeps_the_old_tail(
    api: Api, model_server: ModelServer
) -> None:
    session = await api.make()
    for text in ("one", "two", "three"):
        await api.say(session, text)
    old = await api.said(session)
    two = await api.asked(session, 2)
    edited = await api.edit(session, two, "zwei")
    new = ["one", "You said: one", "zwei", "You said: zwei"]
    assert await api.said(session) == new
    assert prompt_of(model_server) == new[:3]
    assert (await api.read(session))["message_count"] == 4
    assert [v["message"]["content"] for v in await api.versions(session, two)] == ["two", "zwei"]

    await api.select(session, two, 1)
    assert await api.said(session) == old
    assert (await api.read(session))["message_count"] == 6
    await api.say(session, "four")
    assert prompt_of(model_server) == [*old, "four"]
    selected = [version["selected"] for version in await api.versions(session, two)]
    assert selected == [True, False]

    zwei = (await api.versions(session, two))[1]["message"]["id"]
    await api.select(session, zwei, 2)
    assert await api.said(session) == new
    assert edited["content"] == "You said: zwei"


async def test_versions_within_versions_come_back_whole(api: Api) -> None:
    session = await api.make()
    for text in ("one", "two", "three"):
        await api.say(session, text)
    inner_old = await api.said(session)
    await api.edit(session, await api.asked(session, 4), "drei")
    inner_new = await api.said(session)
    two = await api.asked(session, 2)
    await api.edit(session, two, "zwei")
    outer_new = await api.said(session)
    assert outer_new == ["one", "You said: one", "zwei", "You said: zwei"]

    await api.select(session, two, 1)
    assert await api.said(session) == inner_new
    three = await api.asked(session, 4)
    await api.select(session, three, 1)
    assert await api.said(session) == inner_old
    await api.select(session, two, 2)
    assert await api.said(session) == outer_new
    await api.select(session, two, 1)
    assert await api.said(session) == inner_old


async def test_a_version_within_one_that_is_not_selected_cannot_be(api: Api) -> None:
    session = await api.make()
    await api.say(session, "one")
    reply = await api.say(session, "two")
    await api.regenerate(session)
    await api.edit(session, await api.asked(session, 0), "eins")
    path = f"{SESSIONS}/{session}/messages/{reply['id']}/versions/1/select"
    status, body, _ = await api.ask("POST", path)
    assert (status, body["code"]) == (404, "message_not_found")


async def test_the_model_sees_only_the_selected_replies(
    api: Api, model_server: ModelServer
) -> None:
    session = await api.make()
    model_server.script = lambda call: Plan(deltas=(f"Reply {call.number}",))
    first = await api.say(session, "Hello")
    for _ in range(3):
        await api.regenerate(session)
        assert prompt_of(model_server) == ["Hello"]
    versions = await api.versions(session, first["id"])
    assert [v["message"]["content"] for v in versions] == [f"Reply {n}" for n in range(1, 5)]
    assert [v["selected"] for v in versions] == [False, False, False, True]
    await api.select(session, first["id"], 1)
    await api.say(session, "And now?")
    assert prompt_of(model_server) == ["Hello", "Reply 1", "And now?"]
    assert await api.said(session) == ["Hello", "Reply 1", "And now?", "Reply 5"]


async def test_a_busy_session_is_neither_answered_anew_nor_edited(
    api: Api, model_server: ModelServer
) -> None:
    session = await api.make()
    reply = await api.say(session, "Hello")
    model_server.script = lambda _: Plan(at={0: Hang()})
    running = await api.stream(session, "And?")
    message = await api.asked(session, 0)
    for path in (
        "regenerate",
        f"messages/{message}/edit",
        f"messages/{reply['id']}/versions/1/select",
    ):
        body = {"message": "Hi"} if path.endswith("edit") else None
        status, refused, headers = await api.ask("POST", f"{SESSIONS}/{session}/{path}", body)
        assert (status, refused["code"]) == (409, "session_busy")
        assert refused["busy_turn_id"] == running.turn_id
        assert headers["x-should-retry"] == "false"
    assert (await api.read(session))["running_turn_id"] == running.turn_id


async def test_a_conversation_that_was_brought_along_is_answered_anew(
    api: Api, model_server: ModelServer
) -> None:
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello"},
    ]
    session = await api.make(messages=messages)
    old = await api.asked(session, 1)
    reply = await api.regenerate(session)
    assert reply["content"] == "You said: Hi"
    assert await api.said(session) == ["Hi", "You said: Hi"]
    shown = [message["content"] for message in model_server.requests[-1].body["messages"]]
    assert shown[-2:] == ["Be brief.", "Hi"]
    await api.select(session, old, 1)
    assert await api.said(session) == ["Hi", "Hello"]


# --- Forks -------------------------------------------------------------------------------------


async def test_a_fork_and_its_origin_do_not_touch_each_other(
    api: Api, model_server: ModelServer
) -> None:
    origin = await api.make(metadata={"a": 1}, variables={"who": "Ann"})
    await api.say(origin, "one")
    at = (await api.say(origin, "two"))["id"]
    await api.say(origin, "three")
    path = f"{SESSIONS}/{origin}/fork"
    fork = (await api.do("POST", path, {"at": at}))["chat_session"]["id"]
    shared = ["one", "You said: one", "two", "You said: two"]
    assert await api.said(fork) == shared
    await api.say(fork, "vier")
    assert prompt_of(model_server) == [*shared, "vier"]
    await api.do("PATCH", f"{SESSIONS}/{fork}", {"title": "A fork", "metadata": {}})
    await api.edit(fork, await api.asked(fork, 0), "eins")
    assert await api.said(origin) == [*shared, "three", "You said: three"]
    assert (await api.read(origin))["metadata"] == {"a": 1}
    await api.do("DELETE", f"{SESSIONS}/{origin}")
    assert await api.said(fork) == ["eins", "You said: eins"]
    assert (await api.read(fork))["variables"] == {"who": "Ann"}


async def test_a_fork_leaves_out_the_turn_that_runs(api: Api, model_server: ModelServer) -> None:
    origin = await api.make()
    await api.say(origin, "one")
    model_server.script = lambda _: Plan(at={0: Hang()})
    await api.stream(origin, "two")
    fork = (await api.do("POST", f"{SESSIONS}/{origin}/fork"))["chat_session"]["id"]
    assert await api.said(fork) == ["one", "You said: one"]
    assert (await api.read(fork))["running_turn_id"] is None


# --- Ends --------------------------------------------------------------------------------------


COLUMNS = {
    "sqlite": """
        SELECT t.name, c.name FROM sqlite_master t, pragma_table_info(t.name) c
        WHERE t.type = 'table'
        """,
    "postgresql": """
        SELECT table_name, column_name FROM information_schema.columns
        WHERE table_schema = 'public'
        """,
}


async def rows_of(database: str, session: str) -> dict[str, int]:
    """In every table that there is for sessions, how many rows this one has."""
    kind = database.partition(":")[0]
    if kind == "sqlite":
        with closing(sqlite3.connect(database.removeprefix("sqlite:///"))) as file:
            counts = counts_of(file.execute(COLUMNS[kind]).fetchall(), session)
            return {table: file.execute(sql).fetchone()[0] for table, sql in counts.items()}
    connection = await asyncpg.connect(database)
    try:
        counts = counts_of(await connection.fetch(COLUMNS[kind]), session)
        return {table: await connection.fetchval(sql) for table, sql in counts.items()}
    finally:
        await connection.close()


def counts_of(columns: Sequence[Sequence[str]], session: str) -> dict[str, str]:
    return {
        table: f"SELECT COUNT(*) FROM {table} WHERE {column} = '{session}'"
        for table, column in columns
        if column == "session_id" or (table, column) == ("sessions", "id")
    }


async def test_deleting_a_session_cancels_its_turns_and_leaves_no_row(
    api: Api, model_server: ModelServer, database: str
) -> None:
    session = await api.make(metadata={"a": 1})
    await api.say(session, "one")
    await api.regenerate(session)
    model_server.script = lambda _: Plan(deltas=("Once ", "upon"), at={1: Hang()})
    streams = [await api.stream(session, f"message {number}") for number in range(3)]
    await streams[0].read_until(5)
    await asyncio.sleep(1.2)  # a checkpoint is made
    before = await rows_of(database, session)
    kept = ("sessions", "session_data", "turns", "items", "hidden_items", "checkpoints")
    assert all(before[table] for table in kept), before

    await api.do("DELETE", f"{SESSIONS}/{session}")
    await asyncio.gather(*(stream.read_all() for stream in streams))
    assert [stream.last[0] for stream in streams] == 3 * ["turn.cancelled"]
    assert [stream.last[1]["response"] for stream in streams] == ["Once ", "", ""]
    await model_server.wait_for_disconnects(1)
    assert not any((await rows_of(database, session)).values())
    for path in (f"{SESSIONS}/{session}", f"/api/turns/{streams[0].turn_id}"):
        assert (await api.ask("GET", path))[0] == 404


async def test_clearing_cancels_what_runs_and_a_waiting_caller_hears_it(
    api: Api, model_server: ModelServer
) -> None:
    session = await api.make(title="Kept")
    model_server.script = lambda _: Plan(at={0: Hang()})
    path = f"{SESSIONS}/{session}/messages"
    waiting = asyncio.create_task(api.ask("POST", path, {"message": "Hello"}))
    await model_server.wait_for_calls(1)
    await api.do("POST", f"{SESSIONS}/{session}/clear")
    status, body, headers = await waiting
    assert (status, body["code"]) == (409, "turn_cancelled")
    assert headers["session-id"] == session
    model_server.script = lambda _: Plan()
    await api.say(session, "Again")
    read = await api.read(session)
    assert (read["title"], read["message_count"]) == ("Kept", 2)


# --- Titles, metadata --------------------------------------------------------------------------

WORDS = "The quick brown fox jumps over the lazy dog and runs into the deep dark wood"


@pytest.mark.parametrize(
    ("message", "title"),
    [
        ("Hello", "Hello"),
        (WORDS, "The quick brown fox jumps over the lazy dog and runs into…"),
        ("x" * 200, "x" * 59 + "…"),
        ("🙂" * 100, "🙂" * 59 + "…"),
        ("  two\n\nlines\tand a tab ", "two lines and a tab"),
        ("y" * 60, "y" * 60),
        ("\n" * 1_000 + "Hello", "Hello"),
    ],
)
async def test_a_title_is_made_of_the_first_message(api: Api, message: str, title: str) -> None:
    said = await api.make()
    await api.say(said, message)
    await api.say(said, "Something else")
    brought = await api.make(
        messages=[
            {"role": "assistant", "content": "How can I help?"},
            {"role": "user", "content": message},
        ]
    )
    assert (await api.read(said))["title"] == title
    assert (await api.read(brought))["title"] == title
    assert len(title) <= 60


async def test_a_given_title_stays(api: Api) -> None:
    session = await api.make(title="Mine", messages=[{"role": "user", "content": "Hello"}])
    await api.say(session, "And?")
    assert (await api.read(session))["title"] == "Mine"


@pytest.mark.parametrize(
    ("metadata", "problem"),
    [
        ({"a": "x" * 16_376}, None),
        ({"a": "x" * 16_377}, "metadata must have at most 16384 bytes of JSON"),
        ({"a": [[[0]] * 10]}, None),
        ({"a": json.loads("[" * 100 + "]" * 100)}, "metadata must have at most 100 levels"),
        ({"a": json.loads("[" * 900 + "]" * 900)}, "metadata must have at most 100 levels"),
    ],
)
async def test_metadata_has_a_limit(api: Api, metadata: Any, problem: str | None) -> None:
    session = await api.make()
    for method, path in (("POST", SESSIONS), ("PATCH", f"{SESSIONS}/{session}")):
        status, body, _ = await api.ask(method, path, {"metadata": metadata})
        assert (status, body.get("error")) == ((400 if problem else status), problem)
        if not problem:
            assert body["chat_session"]["metadata"] == metadata


async def test_sessions_are_found_by_their_titles_in_any_case(api: Api) -> None:
    for title in ("Straße nach Jena", "ÜBER uns", "Other"):
        await api.make(title=title)
    for part, found in (("STRASSE", 1), ("über", 1), ("e", 3), ("%", 0), ("", 3)):
        answer = await api.get(f"{SESSIONS}?q={part.replace('%', '%25')}")
        assert len(answer["chat_sessions"]) == found, part


# --- Faults of our own -------------------------------------------------------------------------


async def test_a_fault_of_our_own_is_answered_in_the_seeds_words() -> None:
    async def breaks(*_: Any) -> Answer:
        raise ZeroDivisionError("secret")

    async def refuses(*_: Any) -> Answer:
        raise SessionNotFound("Session not found")

    nothing: Any = None
    answer = await or_failed(breaks, "Failed to get chat session")(nothing, nothing)
    assert isinstance(answer, Answer)
    assert (answer.status, answer.body) == (500, b'{"error":"Failed to get chat session"}')
    with pytest.raises(SessionNotFound):
        await or_failed(refuses, "Failed to get chat session")(nothing, nothing)
