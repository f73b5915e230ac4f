"""A server and a model that the tests of a module share, and OpenAI's clients of it.

Every answer that a client gets is checked strictly against its own types, whatever the test is
about: the clients themselves take anything.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import httpx
import openai
import pytest
import pytest_asyncio

from rig.model_server import ModelServer, echo
from rig.server import Server
from tests.openai.types import check_answer

MODEL = "scripted"

MakeClient = Callable[..., openai.AsyncOpenAI]


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def shared_model() -> AsyncIterator[ModelServer]:
    async with ModelServer() as model:
        yield model


@pytest.fixture
def model(shared_model: ModelServer) -> ModelServer:
    """It echoes until a test says otherwise, and remembers the calls of this test alone."""
    shared_model.script = echo
    shared_model.requests.clear()
    return shared_model


def start_server(model: ModelServer, folder: Path, *options: str, **env: str) -> Server:
    provider = {
        "OPENAI_BASE_URL": model.base_url,
        "OPENAI_API_KEY": "secret",
        "TURNKEEPER_ATTEMPTS": "1",
    }
    return Server(folder, "--model", MODEL, *options, env=provider | env)


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def server(
    shared_model: ModelServer, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Server]:
    server = start_server(shared_model, tmp_path_factory.mktemp("server"))
    await asyncio.to_thread(server.start)
    yield server
    server.kill()


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def make_client() -> AsyncIterator[MakeClient]:
    """Clients of a server, with whatever else the SDK is told; closed at the end."""
    clients: list[openai.AsyncOpenAI] = []

    def make(server: Server, **options: object) -> openai.AsyncOpenAI:
        http = openai.DefaultAsyncHttpxClient(event_hooks={"response": [_check]})
        client = openai.AsyncOpenAI(
            base_url=f"{server.url}/v1", api_key="none", http_client=http, **options
        )
        clients.append(client)
        return client

    yield make
    for client in clients:
        await client.close()


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def client(server: Server, make_client: MakeClient) -> openai.AsyncOpenAI:
    """It sends nothing again by itself."""
    return make_client(server, max_retries=0)


@pytest.fixture(scope="module")
def sync_client(server: Server) -> Iterator[openai.OpenAI]:
    http = openai.DefaultHttpxClient(event_hooks={"response": [_check_now]})
    with openai.OpenAI(
        base_url=f"{server.url}/v1", api_key="none", max_retries=0, http_client=http
    ) as client:
        yield client


async def _check(response: httpx.Response) -> None:
    if not _is_stream(response):
        await response.aread()
        check_answer(response)


def _check_now(response: httpx.Response) -> None:
    if not _is_stream(response):
        response.read()
        check_answer(response)


def _is_stream(response: httpx.Response) -> bool:
    return response.headers["content-type"].startswith("text/event-stream")
