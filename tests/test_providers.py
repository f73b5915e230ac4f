"""Several providers: what they offer together, under which ids, and who is asked what."""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from rig.model_server import BEFORE, Call, Hang, ModelServer, Plan, model_list
from turnkeeper.compose import open_parts
from turnkeeper.config import read_config
from turnkeeper.domain import ById
from turnkeeper.engine import Engine
from turnkeeper.errors import ConfigError, ProviderError, TurnEnded, UnknownModel
from turnkeeper.providers.completions import ListedModel
from turnkeeper.providers.faults import Timeouts
from turnkeeper.providers.openai import OpenAIProvider

NOWHERE = "http://127.0.0.1:1/v1"


@pytest.fixture
async def second_server() -> AsyncIterator[ModelServer]:
    async with ModelServer(lambda call: Plan(deltas=("second says ", call.body["model"]))) as model:
        yield model


@asynccontextmanager
async def opened(
    folder: Path, tables: Mapping[str, str], options: Mapping[str, str] = {}, **environment: str
) -> AsyncIterator[Engine]:
    text = "\n".join(f"[providers.{name}]\n{table}" for name, table in tables.items())
    (folder / "t.toml").write_text(text)
    options = {
        "config": str(folder / "t.toml"),
        "database": f"sqlite:///{folder}/t.db",
        **options,
    }
    async with open_parts(read_config(options, environment, folder)) as parts:
        yield parts.engine


def table(model: ModelServer | str, *lines: str) -> str:
    url = model if isinstance(model, str) else model.base_url
    return "\n".join([f'base_url = "{url}"', *lines])


def ids(engine: Engine) -> list[str]:
    return [model.id for model in engine.models]


async def reply_of(engine: Engine, model: str | None, session: str | None = None) -> str:
    choice = ById(session) if session else None
    taken = await engine.take_turn("local", choice, "hi", model=model)
    return await taken.reply.completed()


# --- Under which ids ---------------------------------------------------------------------------


async def test_a_model_of_two_providers_is_offered_twice(
    tmp_path: Path, model_server: ModelServer, second_server: ModelServer
) -> None:
    tables = {
        "one": table(model_server, 'models = ["same", "only-one"]'),
        "two": table(second_server, 'models = [{id = "same", name = "Same"}, "only-two"]'),
    }
    async with opened(tmp_path, tables) as engine:
        assert ids(engine) == ["same", "only-one", "two/same", "only-two"]
        assert engine.models[2].name == "Same (two)"
        assert await reply_of(engine, "same") == "You said: hi"
        assert await reply_of(engine, "one/same") == "You said: hi"
        assert await reply_of(engine, "two/same") == "second says same"
        assert await reply_of(engine, "two/only-two") == "second says only-two"
        with pytest.raises(UnknownModel):
            await reply_of(engine, "two/only-one")
    assert [call.body["model"] for call in model_server.requests] == ["same", "same"]


async def test_a_turn_names_its_model_as_it_is_listed(
    tmp_path: Path, model_server: ModelServer
) -> None:
    tables = {"one": table(model_server, 'models = ["a", "b"]')}
    async with opened(tmp_path, tables) as engine:
        reply = (await engine.take_turn("local", None, "hi", model="one/b")).reply
        await reply.completed()
        again = (await engine.take_turn("local", ById(reply.turn.ref.session_id), "hi")).reply
        await again.completed()
        assert (reply.turn.model, again.turn.model) == ("b", "b")


async def test_the_own_id_of_a_model_goes_before_that_of_another_with_its_provider(
    tmp_path: Path, model_server: ModelServer, second_server: ModelServer
) -> None:
    tables = {
        "one": table(model_server, 'models = ["two/x", "x"]'),
        "two": table(second_server, 'models = ["x", "y"]'),
    }
    async with opened(tmp_path, tables) as engine:
        assert ids(engine) == ["two/x", "x", "y"]  # two's x has no id left
        assert await reply_of(engine, "two/x") == "You said: hi"
        assert await reply_of(engine, "one/two/x") == "You said: hi"


@pytest.mark.parametrize(
    ("default", "first"), [("b", "b"), ("two/a", "two/a"), ("two/b", "b"), ("one/a", "a")]
)
async def test_model_chooses_the_default_among_all(
    tmp_path: Path, default: str, first: str
) -> None:
    tables = {
        "one": table(NOWHERE, 'models = ["a"]'),
        "two": table(NOWHERE, 'models = ["a", "b"]'),
    }
    async with opened(tmp_path, tables, {"model": default}) as engine:
        assert ids(engine)[0] == first
        assert sorted(ids(engine)) == ["a", "b", "two/a"]


async def test_a_default_that_nobody_offers_is_refused(tmp_path: Path) -> None:
    tables = {"one": table(NOWHERE, 'models = ["a"]'), "two": table(NOWHERE)}
    with pytest.raises(ConfigError, match="model b is offered by no provider; two could not be"):
        async with opened(tmp_path, tables, {"model": "b"}):
            pass
    with pytest.raises(ConfigError, match="model two/b is offered by no provider"):
        async with opened(tmp_path, tables, {"model": "two/b"}, GROQ_API_KEY="k"):
            pass


# --- Beside the environment's ------------------------------------------------------------------


async def test_the_environments_provider_comes_first(tmp_path: Path) -> None:
    tables = {"one": table(NOWHERE, 'models = ["a", "llama-3.1-8b-instant"]')}
    async with opened(tmp_path, tables, GROQ_API_KEY="k") as engine:
        assert ids(engine)[0] == "llama-3.3-70b-versatile"
        assert ids(engine)[-2:] == ["a", "one/llama-3.1-8b-instant"]
    async with opened(tmp_path, tables, {"model": "a"}, GROQ_API_KEY="k") as engine:
        assert ids(engine)[:2] == ["a", "llama-3.3-70b-versatile"]
    async with opened(tmp_path, tables, {"model": "brand-new"}, GROQ_API_KEY="k") as engine:
        assert ids(engine)[0] == "brand-new"
    async with opened(tmp_path, tables, {"model": "eliza"}, GROQ_API_KEY="k") as engine:
        assert ids(engine) == ["eliza", "a", "llama-3.1-8b-instant"]
    async with opened(tmp_path, tables, {"model": "a"}, OPENAI_BASE_URL=NOWHERE) as engine:
        assert ids(engine) == ["a", "one/a", "llama-3.1-8b-instant"]


@pytest.mark.parametrize(("name", "key_env"), [("groq", "MINE"), ("fast", "GROQ_API_KEY")])
async def test_a_table_takes_the_place_of_groq_by_its_name_or_its_key(
    tmp_path: Path, name: str, key_env: str
) -> None:
    tables = {name: table(NOWHERE, 'models = ["a"]', f'key_env = "{key_env}"')}
    async with opened(tmp_path, tables, GROQ_API_KEY="k", MINE="m") as engine:
        assert ids(engine) == ["a"]


# --- Asked for their models --------------------------------------------------------------------


async def test_a_provider_is_asked_what_it_offers(
    tmp_path: Path, model_server: ModelServer
) -> None:
    model_server.listing = Plan(
        body=model_list(
            "plain",
            "gpt-4o",
            {"id": "groqs", "context_window": 1000},
            {"id": "routers", "context_length": 2000, "pricing": {}},
            {"id": "vllms", "max_model_len": 3000},
            {"id": "odd", "context_window": "many", "max_model_len": 1},
            "plain",
            "",
            "line\nbreak",
        )
    )
    tables = {"acme": table(model_server, 'models = "list"', 'key_env = "ACME_KEY"')}
    async with opened(tmp_path, tables, ACME_KEY="k") as engine:
        assert {model.id: model.context_window for model in engine.models} == {
            "plain": 32_768,
            "gpt-4o": 128_000,
            "groqs": 1000,
            "routers": 2000,
            "vllms": 3000,
            "odd": 32_768,
        }
    assert [headers["authorization"] for headers in model_server.list_headers] == ["Bearer k"]


async def test_a_window_is_the_tables_before_the_settings_before_the_lists(
    tmp_path: Path, model_server: ModelServer
) -> None:
    model_server.listing = Plan(body=model_list({"id": "b", "context_window": 1000}))
    tables = {
        "one": table(NOWHERE, 'models = [{id = "a", context_window = 500}]'),
        "two": table(model_server),
    }
    async with opened(tmp_path, tables, {"context_window": "700"}) as engine:
        assert [model.context_window for model in engine.models] == [500, 700]


async def test_one_that_cannot_be_asked_offers_nothing_and_is_named(
    tmp_path: Path, model_server: ModelServer, caplog: pytest.LogCaptureFixture
) -> None:
    model_server.listing = Plan(status=404, body={})
    tables = {
        "here": table(model_server, 'models = ["a"]'),
        "gone": table(NOWHERE),
        "mute": table(model_server),
    }
    async with opened(tmp_path, tables) as engine:
        assert ids(engine) == ["a"]
    assert "gone could not be reached" in caplog.text
    assert "mute answers, but lists no models" in caplog.text


async def test_if_it_is_the_only_one_nothing_starts(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No provider offers a model; gone could not be reached"):
        async with opened(tmp_path, {"gone": table(NOWHERE)}):
            pass


async def test_one_that_is_slow_to_say_is_not_waited_for(
    tmp_path: Path, model_server: ModelServer
) -> None:
    model_server.listing = Plan(at={BEFORE: Hang()}, body={})
    with pytest.raises(ConfigError, match=r"slow did not list its models within 0\.05 seconds"):
        async with opened(tmp_path, {"slow": table(model_server, "first_byte_timeout = 0.05")}):
            pass
    await model_server.wait_for_disconnects(1)


async def listed_by(model: ModelServer) -> Any:
    provider = OpenAIProvider("acme", model.base_url, "s3cret", [], Timeouts())
    try:
        return await provider.list_models(5)
    finally:
        await provider.close()


@pytest.mark.parametrize(
    ("listing", "ids"),
    [
        (Plan(body=model_list("a")), ["a"]),
        (Plan(body=[{"id": "a"}]), ["a"]),  # a bare array
        (Plan(body=model_list()), []),
        (Plan(body={"models": []}), None),
        (Plan(body=b"<html>"), None),
        (Plan(body=b"[" * 10_000), None),
        (Plan(status=404, body={}), None),
        (Plan(status=405, body={}), None),
    ],
)
async def test_what_a_list_is(model_server: ModelServer, listing: Plan, ids: Any) -> None:
    model_server.listing = listing
    found = await listed_by(model_server)
    assert found == (None if ids is None else tuple(map(ListedModel, ids)))


@pytest.mark.parametrize(
    ("listing", "sentence"),
    [
        (Plan(status=401, body={"error": {"message": "no s3cret"}}), "acme refused the key (st"),
        (Plan(status=302, body={}, headers={"location": "/"}), "acme answered with a redirect"),
        (Plan(status=500, body=b""), "acme failed"),
        (Plan(raw=[b"SSH-2.0\r\n\r\n"]), "acme answered with what is not HTTP"),
        (Plan(raw=[b""]), "acme closed the connection"),
        (Plan(raw=[b"HTTP/1.1 200 OK\r\ncontent-length: 99\r\n\r\n{"]), "acme broke off"),
    ],
)
async def test_what_is_no_answer(model_server: ModelServer, listing: Plan, sentence: str) -> None:
    model_server.listing = listing
    with pytest.raises(ProviderError) as raised:
        await listed_by(model_server)
    assert raised.value.sentence.startswith(sentence)
    assert "s3cret" not in raised.value.sentence


# --- How often they are called -----------------------------------------------------------------


async def test_each_provider_has_its_own_attempts_and_key(
    tmp_path: Path, model_server: ModelServer, second_server: ModelServer
) -> None:
    def fail(call: Call) -> Plan:
        return Plan(status=503, body={}, headers={"retry-after-ms": "1"})

    model_server.script = second_server.script = fail
    tables = {
        "one": table(model_server, 'models = ["a"]', "attempts = 1", 'key_env = "ONE"'),
        "two": table(second_server, 'models = ["b"]', "attempts = 4"),
    }
    async with opened(tmp_path, tables, ONE="k1") as engine:
        for model in "ab":
            with pytest.raises(TurnEnded):
                await reply_of(engine, model)
    assert (model_server.calls, second_server.calls) == (1, 4)
    assert model_server.requests[0].headers["authorization"] == "Bearer k1"
    assert "authorization" not in second_server.requests[0].headers


async def test_each_provider_has_its_own_patience(
    tmp_path: Path, model_server: ModelServer
) -> None:
    model_server.script = lambda _: Plan(at={BEFORE: Hang()})
    lines = ('models = ["a"]', "attempts = 1", "first_byte_timeout = 0.05")
    async with opened(tmp_path, {"one": table(model_server, *lines)}) as engine:
        with pytest.raises(TurnEnded, match=r"did not begin its reply within 0\.05 seconds"):
            await reply_of(engine, "a")
