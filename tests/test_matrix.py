"""A session belongs to no dialect: made through one, it is used through every other.

A dialect is here what its clients do with it, in a few functions; what it has no call for is
None. To add a dialect is to add a `Speaker` to `SPEAKERS`.
"""

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import aiohttp
import pytest
import pytest_asyncio

from rig.model_server import ModelServer
from tests.test_process import server_of

pytestmark = pytest.mark.asyncio(loop_scope="module")

Http = aiohttp.ClientSession


@dataclass(frozen=True)
class Made:
    """A session in which `one` was said: its id, and what the dialect that made it calls it."""

    id: str
    name: str


@dataclass(frozen=True, kw_only=True)
class Speaker:
    """How a dialect's client makes a session, talks, reads, clears and ends.

    Attributes:
        say: the reply to a message.
        read: what was said, in order, or how many messages there are where no more is told.
    """

    name: str
    make: Callable[[Http], Awaitable[Made]] | None = None
    say: Callable[[Http, str, str], Awaitable[str]] | None = None
    read: Callable[[Http, str], Awaitable[list[str] | int]] | None = None
    clear: Callable[[Http, str], Awaitable[None]] | None = None
    end: Callable[[Http, str], Awaitable[None]] | None = None


async def ask(http: Http, method: str, path: str, body: Any = None) -> tuple[Any, Any]:
    """Body and headers of an answer that must be a success."""
    async with http.request(method, path, json=body) as response:
        text = await response.text()
        assert response.status < 300, (method, path, response.status, text)
        return (await response.json() if text else None), response.headers


# --- chatbot -----------------------------------------------------------------------------------


async def chatbot_make(http: Http) -> Made:
    answer, headers = await ask(http, "POST", "/api/chat", {"message": "one"})
    return Made(headers["session-id"], answer["session_id"])


async def chatbot_make_alias(http: Http) -> Made:
    body = {"message": "one", "session_id": "mine"}
    answer, headers = await ask(http, "POST", "/api/chat", body)
    return Made(headers["session-id"], answer["session_id"])


async def chatbot_say(http: Http, session: str, text: str) -> str:
    body = {"message": text, "session_id": session}
    return (await ask(http, "POST", "/api/chat", body))[0]["response"]


async def chatbot_read(http: Http, session: str) -> int:
    """By whichever name: only one session is there."""
    listed, _ = await ask(http, "GET", "/api/sessions")
    return sum(entry["message_count"] for entry in listed)


async def chatbot_clear(http: Http, session: str) -> None:
    await ask(http, "POST", "/api/clear", {"session_id": session})


# --- native, documents -------------------------------------------------------------------------

SESSIONS = "/api/chat-sessions"


async def native_make(http: Http) -> Made:
    messages = [
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": "You said: one"},
    ]
    answer, _ = await ask(http, "POST", SESSIONS, {"messages": messages})
    id_ = answer["chat_session"]["id"]
    return Made(id_, id_)


async def native_read(http: Http, session: str) -> list[str]:
    answer, _ = await ask(http, "GET", f"{SESSIONS}/{session}/messages?after=0")
    return [message["content"] for message in answer["messages"]]


async def native_end(http: Http, session: str) -> None:
    await ask(http, "DELETE", f"{SESSIONS}/{session}")


async def documents_make(http: Http) -> Made:
    """The chat of a section."""
    body = {"title": "Report", "sections": [{"title": "Aims", "content": "To know."}]}
    document = (await ask(http, "POST", "/api/documents", body))[0]["document"]
    path = f"/api/documents/{document['id']}/sections/{document['sections'][0]['id']}/chat"
    id_ = (await ask(http, "POST", path))[0]["chat_session"]["id"]
    await documents_say(http, id_, "one")
    return Made(id_, id_)


async def documents_say(http: Http, session: str, text: str) -> str:
    body = {"message": text}
    return (await ask(http, "POST", f"{SESSIONS}/{session}/messages", body))[0]["response"]


async def documents_read(http: Http, session: str) -> list[str]:
    answer, _ = await ask(http, "GET", f"{SESSIONS}/{session}")
    return [message["content"] for message in answer["chat_session"]["messages"]]


async def documents_clear(http: Http, session: str) -> None:
    await ask(http, "POST", f"{SESSIONS}/{session}/clear")


# --- chatsession -------------------------------------------------------------------------------


async def chatsession_make(http: Http) -> Made:
    answer, _ = await ask(http, "POST", "/session/create", {"ini_message": "one"})
    return Made(answer["session_id"], answer["session_id"])


async def chatsession_say(http: Http, session: str, text: str) -> str:
    body = {"session_id": session, "msg_text": text}
    return (await ask(http, "POST", "/session/send", body))[0]["msg_text"]


async def chatsession_end(http: Http, session: str) -> None:
    await ask(http, "DELETE", f"/session/end?session_id={session}")


# --- deployment --------------------------------------------------------------------------------

BASE = "/deployments/default"


async def deployment_make(http: Http) -> Made:
    answer, _ = await ask(http, "POST", f"{BASE}/create-chat-session")
    await deployment_say(http, answer["chat_session_id"], "one")
    return Made(answer["chat_session_id"], answer["chat_session_id"])


async def deployment_say(http: Http, session: str, text: str) -> str:
    body = {"chat_session_id": session, "user_message": text}
    return (await ask(http, "POST", f"{BASE}/invoke", body))[0]["message"]


async def deployment_read(http: Http, session: str) -> list[str]:
    answer, _ = await ask(http, "GET", f"{BASE}/chat-session/{session}")
    return [message["content"] for message in answer["data"]["messages"]]


async def deployment_end(http: Http, session: str) -> None:
    await ask(http, "DELETE", f"{BASE}/chat-session/{session}")


# --- openai ------------------------------------------------------------------------------------


def conversation_of(session: str) -> str:
    """A session's id as this dialect has it; it takes other dialects' as they are."""
    return session.replace("s", "conv_", 1) if len(session) == 27 else session


async def conversations_make(http: Http) -> Made:
    answer, _ = await ask(http, "POST", "/v1/conversations")
    id_ = answer["id"]
    await responses_say(http, id_, "one")
    return Made(id_.replace("conv_", "s", 1), id_.replace("conv_", "s", 1))


async def responses_make(http: Http) -> Made:
    """A chain of responses."""
    _, headers = await ask(http, "POST", "/v1/responses", {"input": "one"})
    return Made(headers["session-id"], headers["session-id"])


async def responses_say(http: Http, session: str, text: str) -> str:
    body = {"input": text, "conversation": conversation_of(session)}
    answer, _ = await ask(http, "POST", "/v1/responses", body)
    return str(answer["output"][0]["content"][0]["text"])


async def completions_make(http: Http) -> Made:
    messages = [{"role": "user", "content": "one"}]
    body = {"model": "scripted", "messages": messages, "metadata": {"session_id": "this"}}
    _, headers = await ask(http, "POST", "/v1/chat/completions", body)
    return Made(headers["session-id"], "this")


async def completions_say(http: Http, session: str, text: str) -> str:
    messages = [{"role": "user", "content": text}]
    body = {"model": "scripted", "messages": messages, "metadata": {"session_id": session}}
    answer, _ = await ask(http, "POST", "/v1/chat/completions", body)
    return str(answer["choices"][0]["message"]["content"])


async def conversations_read(http: Http, session: str) -> list[str]:
    path = f"/v1/conversations/{conversation_of(session)}/items?order=asc"
    answer, _ = await ask(http, "GET", path)
    return [item["content"][0]["text"] for item in answer["data"]]


async def conversations_end(http: Http, session: str) -> None:
    await ask(http, "DELETE", f"/v1/conversations/{conversation_of(session)}")


SPEAKERS = (
    Speaker(
        name="chatbot",
        make=chatbot_make,
        say=chatbot_say,
        read=chatbot_read,
        clear=chatbot_clear,
    ),
    Speaker(name="chatbot-alias", make=chatbot_make_alias),
    Speaker(name="native", make=native_make, read=native_read, end=native_end),
    Speaker(
        name="documents",
        make=documents_make,
        say=documents_say,
        read=documents_read,
        clear=documents_clear,
    ),
    Speaker(name="chatsession", make=chatsession_make, say=chatsession_say, end=chatsession_end),
    Speaker(
        name="deployment",
        make=deployment_make,
        say=deployment_say,
        read=deployment_read,
        end=deployment_end,
    ),
    Speaker(
        name="conversations",
        make=conversations_make,
        read=conversations_read,
        end=conversations_end,
    ),
    Speaker(name="responses", make=responses_make, say=responses_say),
    Speaker(name="completions", make=completions_make, say=completions_say),
)

# --- The matrix --------------------------------------------------------------------------------

makers = pytest.mark.parametrize(
    "maker", [speaker for speaker in SPEAKERS if speaker.make], ids=lambda s: s.name
)
names = pytest.mark.parametrize("name", ["id", "name"])


def others(act: str) -> pytest.MarkDecorator:
    """Every dialect that has a call for this."""
    able = [speaker for speaker in SPEAKERS if getattr(speaker, act)]
    return pytest.mark.parametrize("other", able, ids=lambda s: s.name)


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def model_server() -> AsyncIterator[ModelServer]:
    async with ModelServer() as model:
        yield model


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def site(
    model_server: ModelServer, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Http]:
    with server_of(model_server, tmp_path_factory.mktemp("matrix")) as server:
        async with aiohttp.ClientSession(server.url) as http:
            yield http


@pytest_asyncio.fixture(loop_scope="module")
async def http(site: Http) -> AsyncIterator[Http]:
    """A server without any session."""
    yield site
    sessions = (await ask(site, "GET", f"{SESSIONS}?archived=any"))[0]["chat_sessions"]
    for session in sessions:
        await ask(site, "DELETE", f"{SESSIONS}/{session['id']}")


async def made_by(maker: Speaker, http: Http, name: str) -> str:
    assert maker.make is not None
    return str(getattr(await maker.make(http), name))


async def read_everywhere(http: Http, session: str) -> list[list[str] | int]:
    return [await speaker.read(http, session) for speaker in SPEAKERS if speaker.read]


def agree(readings: list[list[str] | int], said: list[str]) -> bool:
    return all(reading in (said, len(said)) for reading in readings)


@makers
@others("say")
@names
async def test_it_is_continued(
    maker: Speaker, other: Speaker, name: str, http: Http, model_server: ModelServer
) -> None:
    session = await made_by(maker, http, name)
    assert other.say is not None
    assert await other.say(http, session, "two") == "You said: two"
    shown = [message["content"] for message in model_server.requests[-1].body["messages"]]
    assert shown[-3:] == ["one", "You said: one", "two"]
    said = ["one", "You said: one", "two", "You said: two"]
    assert agree(await read_everywhere(http, session), said)


@makers
@others("clear")
@names
async def test_it_is_cleared(maker: Speaker, other: Speaker, name: str, http: Http) -> None:
    session = await made_by(maker, http, name)
    assert other.clear is not None
    await other.clear(http, session)
    assert agree(await read_everywhere(http, session), [])


@makers
@others("end")
@names
async def test_it_is_ended(maker: Speaker, other: Speaker, name: str, http: Http) -> None:
    session = await made_by(maker, http, name)
    assert other.end is not None
    await other.end(http, session)
    async with http.get(f"{SESSIONS}/{session}") as response:
        assert response.status == 404
    assert (await ask(http, "GET", f"{SESSIONS}?archived=any"))[0]["chat_sessions"] == []
