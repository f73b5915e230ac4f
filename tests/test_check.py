"""`turnkeeper check`: what it says of a configuration, and what it leaves alone."""

import asyncio
import os
import socket
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from rig.model_server import BEFORE, Hang, ModelServer, Plan, model_list
from rig.server import Server
from turnkeeper.stores.migrations import newest_migration


async def checked(folder: Path, *options: str, **environment: str) -> tuple[int, str, str]:
    """Exit code, what it prints, and what it says on standard error."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "turnkeeper", "check", *options),
        cwd=folder,
        env={"PATH": os.environ["PATH"], "PORT": "0", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    output, errors = await process.communicate()
    assert process.returncode is not None
    return process.returncode, output.decode(), errors.decode()


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


async def test_it_says_what_a_file_amounts_to(tmp_path: Path, model_server: ModelServer) -> None:
    model_server.listing = Plan(body=model_list("small", {"id": "big", "context_window": 9000}))
    (tmp_path / "t.toml").write_text(f"""
model = "acme/small"
[providers.acme]
base_url = "{model_server.base_url}"
key_env = "ACME_KEY"
models = [
    {{id = "small", context_window = 4096, images = true, input_price = 0.1, output_price = 2}},
    {{id = "other", images = false}},
]
[providers.bee]
base_url = "{model_server.base_url}"
models = "list"
[providers.gone]
base_url = "http://127.0.0.1:1/v1"
""")
    before = files(tmp_path)
    code, said, errors = await checked(tmp_path, "--config", "t.toml", ACME_KEY="s3cret")
    assert (code, errors) == (0, "")
    assert "s3cret" not in said
    assert files(tmp_path) == before
    lines = [" ".join(line.split()) for line in said.splitlines()]
    milliseconds = [line.rpartition("in ")[2] for line in lines if "answers in" in line]
    assert lines == [
        "Address http://127.0.0.1:0, which takes a free port",
        "Access off: nobody is asked for credentials, everything belongs to local",
        "Database sqlite:///turnkeeper.db: nothing there yet; the first start makes it",
        "Default small",
        "",
        f"acme: {model_server.base_url}, key of ACME_KEY, answers in {milliseconds[0]}",
        "small 4,096 tokens, images, 0.1 a million in, 2 a million out",
        "other 32,768 tokens, no images, not in the provider's own list",
        "",
        f"bee: {model_server.base_url}, no key, answers in {milliseconds[1]}",
        "bee/small 32,768 tokens",
        "big 9,000 tokens",
        "",
        "gone: http://127.0.0.1:1/v1, no key, no answer: gone could not be reached",
        "offers nothing",
        "",
        "deployments:",
        "default /deployments/default, the default, model small",
        "",
        "Ready to serve.",
    ]
    assert {headers.get("authorization") for headers in model_server.list_headers} == {
        "Bearer s3cret",
        None,
    }


DEPLOYMENTS = """
public_url = "https://chat.example.org"
[deployments.tutor]
default = true
system_message = "You teach {subject} to { name }, who likes {subject}."
messages = [{role = "user", content = "{question}"}]
fallback_models = ["eliza"]
[deployments.support]
model = "eliza"
"""


async def test_deployments_are_said_with_what_stands_in_them(tmp_path: Path) -> None:
    (tmp_path / "t.toml").write_text(DEPLOYMENTS)
    code, said, _ = await checked(tmp_path, "--model", "eliza", "--config", "t.toml")
    assert code == 0
    assert "\nPublic     https://chat.example.org\n" in said
    assert said.endswith(
        """
deployments:
  tutor    /deployments/tutor, the default, model eliza, else eliza, 1 message, \
variables {subject} {name} {question}
  support  /deployments/support, model eliza

Ready to serve.
""".replace("\\\n", "")
    )


async def test_a_model_that_a_deployment_does_not_get_is_a_problem(tmp_path: Path) -> None:
    (tmp_path / "t.toml").write_text(f'{DEPLOYMENTS}[deployments.a]\nmodel = "huge"\n')
    options = ("--model", "eliza", "--config", "t.toml")
    code, said, _ = await checked(tmp_path, *options)
    assert code == 2
    assert "Problem: The deployment a names the model huge, which no provider offers.\n" in said
    with (tmp_path / "t.toml").open("a") as file:
        file.write('[providers.gone]\nbase_url = "http://127.0.0.1:1/v1"\n')
    code, said, _ = await checked(tmp_path, *options)
    assert code == 0
    assert "  Warning: The deployment a names the model huge, which is not offered: gone" in said


async def test_many_variables_are_cut(tmp_path: Path) -> None:
    prompt = "".join(f"{{v{number}}}" for number in range(12))
    (tmp_path / "t.toml").write_text(f'system_message = "{prompt}"')
    _, said, _ = await checked(tmp_path, "--model", "eliza", "--config", "t.toml")
    assert "{v8} {v9} and 2 more\n" in said


async def test_providers_are_asked_side_by_side(tmp_path: Path, model_server: ModelServer) -> None:
    model_server.listing = Plan(at={BEFORE: Hang()}, body={})
    (tmp_path / "t.toml").write_text(
        "".join(
            f'[providers.p{n}]\nbase_url = "{model_server.base_url}"\nmodels = ["m"]\n'
            for n in range(5)
        )
    )
    checking = asyncio.create_task(
        checked(tmp_path, "--config", "t.toml", TURNKEEPER_FIRST_BYTE_TIMEOUT="2")
    )
    await model_server.wait_until(lambda: model_server.open_calls == 5)
    code, said, _ = await checking
    assert code == 2
    assert said.count("did not list its models within 2 seconds") == 6  # the default's once more


async def test_the_built_in_model_needs_nothing(tmp_path: Path) -> None:
    code, said, _ = await checked(tmp_path, "--model", "eliza")
    assert code == 0
    assert "eliza: built in\n" in said
    assert said.endswith("Ready to serve.\n")


async def test_a_refused_key_is_a_problem(tmp_path: Path, model_server: ModelServer) -> None:
    model_server.listing = Plan(status=401, body={"error": {"message": "bad key s3cret"}})
    env = {"OPENAI_BASE_URL": model_server.base_url, "OPENAI_API_KEY": "s3cret"}
    code, said, errors = await checked(tmp_path, "--model", "scripted", **env)
    assert code == 2
    assert "Problem: The default model cannot answer: the model server refused the key" in said
    assert said.endswith("The server cannot serve like this.\n")
    assert "s3cret" not in said + errors


async def test_a_provider_without_a_list_is_none(tmp_path: Path, model_server: ModelServer) -> None:
    model_server.listing = Plan(status=404, body={})
    env = {"OPENAI_BASE_URL": model_server.base_url}
    code, said, _ = await checked(tmp_path, "--model", "scripted", **env)
    assert code == 0
    assert "without a list of its models" in said


async def test_long_lists_are_cut(tmp_path: Path, model_server: ModelServer) -> None:
    model_server.listing = Plan(body=model_list(*(f"m{n}" for n in range(100))))
    (tmp_path / "t.toml").write_text(f'[providers.p]\nbase_url = "{model_server.base_url}"\n')
    _, said, _ = await checked(tmp_path, "--config", "t.toml")
    assert "  and 70 more\n" in said


async def test_wrong_settings_are_named_as_by_serve(tmp_path: Path) -> None:
    (tmp_path / "t.toml").write_text("colour = 1\n[providers.acme]\nattempts = 0\n")
    code, said, errors = await checked(tmp_path, "--config", "t.toml", "--grace", "soon")
    assert (code, said) == (2, "")
    assert len(errors.splitlines()) == 4
    code, _, errors = await checked(tmp_path)
    assert code == 2
    assert "--model eliza" in errors


# --- Address -----------------------------------------------------------------------------------


async def test_a_port_in_use_is_said_and_no_problem(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        code, said, _ = await checked(tmp_path, "--model", "eliza", "--port", port)
    assert code == 0
    assert f"http://127.0.0.1:{port}, in use at the moment\n" in said


async def test_an_address_of_another_machine_is_a_problem(tmp_path: Path) -> None:
    options = ("--model", "eliza", "--auth", "off", "--host", "192.0.2.1")
    code, said, _ = await checked(tmp_path, *options)
    assert code == 2
    assert "of 192.0.2.1 cannot be used" in said


# --- Database ----------------------------------------------------------------------------------

UP_TO_DATE = f"schema {newest_migration()}, up to date"


async def test_a_database_is_looked_at_while_it_is_served_and_after_a_crash(tmp_path: Path) -> None:
    server = Server(tmp_path, "--model", "eliza")
    for _ in range(2):
        await asyncio.to_thread(server.start)
        assert UP_TO_DATE in (await checked(tmp_path, "--model", "eliza"))[1]
        server.kill()
        before = files(tmp_path)
        code, said, _ = await checked(tmp_path, "--model", "eliza")
        assert code == 0
        assert UP_TO_DATE in said
        after = files(tmp_path)
        assert after.keys() == before.keys()
        assert after["turnkeeper.db"] == before["turnkeeper.db"]
        assert after["turnkeeper.db-wal"] == before["turnkeeper.db-wal"]


async def test_a_database_at_rest_is_left_as_it_is(tmp_path: Path) -> None:
    with Server(tmp_path, "--model", "eliza") as server:
        server.stop()
    before = files(tmp_path)
    code, said, _ = await checked(tmp_path, "--model", "eliza")
    assert code == 0
    assert UP_TO_DATE in said
    assert files(tmp_path) == before


def make_database(path: Path, *statements: str) -> None:
    connection = sqlite3.connect(path)
    for statement in statements:
        connection.execute(statement)
    connection.commit()
    connection.close()


MIGRATIONS = "CREATE TABLE turnkeeper_migrations (number BIGINT NOT NULL PRIMARY KEY, name TEXT)"


@pytest.mark.parametrize(
    ("statements", "code", "sentence"),
    [
        ([], 0, "the next start brings it to"),
        ([MIGRATIONS], 0, "schema 0; the next start brings it to"),
        (["CREATE TABLE recipes (name TEXT)"], 2, "is not Turnkeeper's"),
        (
            [MIGRATIONS, "INSERT INTO turnkeeper_migrations VALUES (9999, 'x')"],
            2,
            "was made by a newer Turnkeeper",
        ),
    ],
)
async def test_whose_a_database_is(
    tmp_path: Path, statements: list[str], code: int, sentence: str
) -> None:
    make_database(tmp_path / "turnkeeper.db", *statements)
    before = files(tmp_path)
    found, said, _ = await checked(tmp_path, "--model", "eliza")
    assert found == code
    assert sentence in said
    assert files(tmp_path) == before


async def test_a_database_that_cannot_be_is_a_problem(tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("Dear Sir, " * 100)
    for path in ("letter.txt", "no/such/folder/t.db"):
        code, said, _ = await checked(
            tmp_path, "--model", "eliza", "--database", f"sqlite:///{path}"
        )
        assert code == 2
        assert f"Problem: The database {path} cannot be" in said


async def test_a_postgres_database_is_looked_at(postgres_url: str, tmp_path: Path) -> None:
    options = ("--model", "eliza", "--database", postgres_url)
    for _ in range(2):  # the first has made nothing
        code, said, _ = await checked(tmp_path, *options)
        assert code == 0
        if UP_TO_DATE not in said:
            assert "nothing there yet" in said
    with Server(tmp_path, *options):
        assert UP_TO_DATE in (await checked(tmp_path, *options))[1]


async def test_a_postgres_that_is_not_there_is_a_problem_without_the_password(
    tmp_path: Path,
) -> None:
    url = "postgresql://me:hunter2@127.0.0.1:1/db"
    code, said, errors = await checked(tmp_path, "--model", "eliza", "--database", url)
    assert code == 2
    assert "postgresql://127.0.0.1:1/db: cannot be used" in said
    assert "hunter2" not in said + errors
