"""`turnkeeper deployments`: publishing and looking back, beside a server and without one."""

import asyncio
import json
import os
import pty
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from rig.server import Server
from tests.test_upkeep import empty_database, failure, turnkeeper
from turnkeeper import compose
from turnkeeper.domain import Blueprint, Revision, make_revision_id
from turnkeeper.stores.sqlite import open_sqlite
from turnkeeper.stores.store import SqlStore

NOW = 1_700_000_000_000

FIRST = '''
system_message = """
You are a tutor
for {country}.
"""
temperature = 0.3
messages = [{role = "user", content = "2 + 2?"}, {role = "assistant", content = "4"}]
'''
SECOND = {
    "system_message": "You are a patient tutor\nfor {country}.\n",
    "temperature": 0.3,
    "model": "small",
    "messages": [{"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "4"}],
}


@pytest.fixture
async def folder(tmp_path: Path) -> Path:
    """One with a database that has no deployment, two files to publish, and no server."""
    await SqlStore(open_sqlite(tmp_path / "turnkeeper.db")).close()
    (tmp_path / "first.toml").write_text(FIRST)
    (tmp_path / "second.json").write_text(json.dumps(SECOND))
    return tmp_path


def deployments(folder: Path, *arguments: str, **env: str) -> str:
    return turnkeeper(folder, "deployments", *arguments, **env).stdout


def refused(folder: Path, *arguments: str, code: int = 1) -> str:
    return failure(folder, "deployments", *arguments, code=code)


def as_json(folder: Path, *arguments: str) -> Any:
    return json.loads(deployments(folder, *arguments, "--json"))


def publish_both(folder: Path) -> None:
    deployments(folder, "publish", "tutor", "first.toml")
    deployments(folder, "publish", "tutor", "second.json")


def words(line: str) -> list[str]:
    """The words of a line, but for ids and times."""
    return re.sub(r"r[0-9a-v]{26}|[0-9-]{10} [0-9:]{5}", "", line).split()


# --- Publishing --------------------------------------------------------------------------------


def test_publishing_makes_a_deployment_and_then_new_states(folder: Path) -> None:
    said = deployments(folder, "publish", "tutor", "first.toml")
    assert words(said) == ["Published", "tutor", "state", "1"]
    assert "state 2" in deployments(folder, "publish", "tutor", "second.json")
    [state] = [each["state"] for each in as_json(folder, "list")]
    assert state["number"] == 2
    assert state["blueprint"]["model"] == "small"
    assert [each["number"] for each in as_json(folder, "states", "tutor")] == [2, 1]


def test_publishing_the_same_again_changes_nothing(folder: Path) -> None:
    deployments(folder, "publish", "tutor", "first.toml")
    before = as_json(folder, "show", "tutor")
    assert deployments(folder, "publish", "tutor", "first.toml").startswith("Nothing changed: ")
    assert as_json(folder, "show", "tutor") == before


def test_a_file_may_come_from_standard_input(folder: Path) -> None:
    for number, name in enumerate(("first.toml", "second.json"), 1):
        done = subprocess.run(
            [sys.executable, "-m", "turnkeeper", "deployments", "publish", "tutor", "-"],
            cwd=folder,
            env={"PATH": os.environ["PATH"]},
            input=(folder / name).read_bytes(),
            capture_output=True,
            check=True,
        )
        assert f"state {number}".encode() in done.stdout


@pytest.mark.parametrize(
    ("content", "sentences"),
    [
        (b"temperature = 9", ["x: temperature must be a number of at most 2"]),
        (b'{"colour": 1, "stop": 1}', ["x: colour is no field", "x: stop must be a list"]),
        (b"temperature = ", ["x cannot be read as TOML"]),
        (b'{"temperature"', ["x cannot be read as JSON"]),
        (b"[1, 2]", ["x cannot be read as TOML"]),
        (b"\xff", ["x cannot be read as TOML"]),
        (b'{"a":' * 100_000, ["x cannot be read as JSON"]),
        (b'"\\u001b[31m" = 1', ["x: \ufffd[31m is no field"]),
    ],
)
def test_what_is_wrong_in_a_file_is_named(
    folder: Path, content: bytes, sentences: list[str]
) -> None:
    (folder / "x").write_bytes(content)
    done = subprocess.run(
        [sys.executable, "-m", "turnkeeper", "deployments", "publish", "tutor", "x"],
        cwd=folder,
        env={"PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, "")
    for line, sentence in zip(done.stderr.splitlines(), sentences, strict=True):
        assert line.startswith(f"turnkeeper: {sentence}")
    assert as_json(folder, "list") == []


def test_a_name_must_fit_into_an_address(folder: Path) -> None:
    said = refused(folder, "publish", "My Tutor", "first.toml", code=2)
    assert "NAME must be 1 to 64 characters of a-z 0-9 _ -" in said
    assert "nofile" in refused(folder, "publish", "tutor", "nofile", code=2)


# --- Looking -----------------------------------------------------------------------------------


def test_deployments_are_listed_by_name(folder: Path) -> None:
    done = turnkeeper(folder, "deployments", "list")
    assert (done.stdout, done.stderr) == ("", "There are no deployments\n")
    publish_both(folder)
    deployments(folder, "publish", "a", "first.toml")
    lines = deployments(folder, "list").splitlines()
    assert [words(line) for line in lines] == [
        ["a", "state", "1", "default", "model"],
        ["tutor", "state", "2", "small"],
    ]
    assert len({line.index("state") for line in lines}) == 1


def test_a_deployment_is_shown_with_its_prompt(folder: Path) -> None:
    publish_both(folder)
    title, _, shown = deployments(folder, "show", "tutor").partition("\n")
    assert words(title) == ["tutor", "state", "2"]
    assert (
        shown
        == """\
model = "small"
temperature = 0.3

system_message
You are a patient tutor
for {country}.


user
2 + 2?

assistant
4
"""
    )
    assert "patient" not in deployments(folder, "show", "tutor", "--state", "1")
    whole = as_json(folder, "show", "tutor")
    assert (whole["name"], whole["source"], whole["state"]["number"]) == ("tutor", "api", 2)
    blueprint = whole["state"]["blueprint"]
    assert blueprint | SECOND == blueprint
    assert tuple(blueprint) == Blueprint.__struct_fields__
    first = as_json(folder, "states", "tutor")[1]["id"]
    assert as_json(folder, "show", "tutor", "--state", first)["state"]["id"] == first


def test_what_would_steer_the_terminal_is_not_shown(folder: Path) -> None:
    (folder / "x").write_text('{"system_message": "a\\u001b[31m", "model": "m\\u001b[31m"}')
    deployments(folder, "publish", "tutor", "x")
    (folder / "x").write_text('{"system_message": "b\\u001b[31m", "model": "n\\u001b[31m"}')
    deployments(folder, "publish", "tutor", "x")
    for command in (("list",), ("show", "tutor"), ("diff", "tutor")):
        assert "\x1b" not in deployments(folder, *command)
    assert as_json(folder, "show", "tutor")["state"]["blueprint"]["model"] == "n\x1b[31m"


def test_the_current_state_is_marked(folder: Path) -> None:
    publish_both(folder)
    lines = deployments(folder, "states", "tutor").splitlines()
    assert [words(line) for line in lines] == [["state", "2", "current"], ["state", "1"]]


def test_a_diff_has_texts_line_by_line_and_settings_field_by_field(folder: Path) -> None:
    publish_both(folder)
    old, new, *lines = deployments(folder, "diff", "tutor").splitlines()
    assert words(old) == ["---", "tutor", "state", "1"]
    assert words(new) == ["+++", "tutor", "state", "2"]
    assert lines == [
        "@@ -1,5 +1,5 @@",
        " [system_message]",
        "-You are a tutor",
        "+You are a patient tutor",
        " for {country}.",
        " ",
        " ",
        "-model = not set",
        '+model = "small"',
    ]
    assert "+You are a tutor" in deployments(folder, "diff", "tutor", "2", "1")
    assert deployments(folder, "diff", "tutor", "1") == deployments(folder, "diff", "tutor")
    assert "Nothing differs" in deployments(folder, "diff", "tutor", "2", "2")


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({"system_message": "a"}, {"system_message": "a\n"}),
        ({"system_message": "a\u2028b"}, {"system_message": "a\nb"}),
        (
            {"system_message": "a"},
            {"messages": [{"role": "system", "content": "a"}]},
        ),
    ],
)
def test_a_diff_shows_every_difference(folder: Path, before: Any, after: Any) -> None:
    for blueprint in (before, after):
        (folder / "x").write_text(json.dumps(blueprint))
        deployments(folder, "publish", "tutor", "x")
    lines = deployments(folder, "diff", "tutor").split("\n")[2:]
    assert any(line.startswith("+") for line in lines)


def pieces(terminal: int) -> Iterator[bytes]:
    with suppress(OSError):  # Linux's word for: nobody writes any more
        while piece := os.read(terminal, 4096):
            yield piece


def test_a_diff_is_coloured_in_a_terminal_only(folder: Path) -> None:
    publish_both(folder)
    leader, follower = pty.openpty()
    subprocess.run(
        [sys.executable, "-m", "turnkeeper", "deployments", "diff", "tutor"],
        cwd=folder,
        env={"PATH": os.environ["PATH"], "TERM": "xterm-256color"},
        stdin=subprocess.DEVNULL,
        stdout=follower,
        check=True,
    )
    os.close(follower)
    shown = b"".join(pieces(leader)).decode()
    os.close(leader)
    assert "\x1b[32m+You are a patient tutor\x1b[0m" in shown
    assert "\x1b" not in deployments(folder, "diff", "tutor")


# --- Going back, and deleting ------------------------------------------------------------------


@pytest.mark.parametrize("by_number", [True, False])
def test_an_earlier_state_is_published_again(folder: Path, by_number: bool) -> None:
    publish_both(folder)
    first = as_json(folder, "states", "tutor")[-1]
    said = deployments(folder, "rollback", "tutor", "1" if by_number else first["id"])
    assert said.startswith("Published tutor  state ")
    now = as_json(folder, "show", "tutor")["state"]
    assert now["blueprint"] == first["blueprint"]
    assert len(as_json(folder, "states", "tutor")) >= 2


def test_what_is_not_there_is_a_sentence(folder: Path) -> None:
    for command in ("show", "states", "diff"):
        assert "eployment" in refused(folder, command, "tutor")
    assert "eployment" in refused(folder, "rollback", "tutor", "1")
    assert "eployment" in refused(folder, "delete", "tutor", "--yes")
    deployments(folder, "publish", "tutor", "first.toml")
    assert "no state before 1" in refused(folder, "diff", "tutor")
    assert "no state 9" in refused(folder, "show", "tutor", "--state", "9")
    assert "no state 9" in refused(folder, "diff", "tutor", "9")
    assert "no state 9" in refused(folder, "rollback", "tutor", "9")


def test_deleting_asks(folder: Path) -> None:
    publish_both(folder)
    assert "--yes" in refused(folder, "delete", "tutor", code=2)
    assert len(as_json(folder, "list")) == 1
    assert deployments(folder, "delete", "tutor", "--yes").endswith("\nDeleted\n")
    assert as_json(folder, "list") == []


async def test_what_the_configuration_defines_is_only_looked_at(folder: Path) -> None:
    store = SqlStore(open_sqlite(folder / "turnkeeper.db"))
    for number in (1, 2):
        blueprint = Blueprint(system_message=f"Hi {number}.")
        revision = Revision(make_revision_id(number), "tutor", 0, blueprint, NOW)
        await store.publish_revision("tutor", revision, "file", new=None)
    await store.close()
    assert deployments(folder, "list").rstrip().endswith("configuration")
    assert "+Hi 2." in deployments(folder, "diff", "tutor")
    before = as_json(folder, "states", "tutor")
    for command in (
        ("publish", "tutor", "first.toml"),
        ("rollback", "tutor", "1"),
        ("delete", "tutor", "--yes"),
    ):
        assert "onfiguration" in refused(folder, *command)
    assert as_json(folder, "states", "tutor") == before


# --- Beside a server ---------------------------------------------------------------------------


def test_a_server_may_be_running(tmp_path: Path) -> None:
    (tmp_path / "first.toml").write_text(FIRST)
    with Server(tmp_path, "--model", "eliza") as server:
        deployments(tmp_path, "publish", "tutor", "first.toml")
        assert "tutor" in [each["name"] for each in as_json(tmp_path, "list")]
        deployments(tmp_path, "delete", "tutor", "--yes")
        assert len(server.log) == 1


async def test_postgres_has_deployments_too(postgres_url: str, tmp_path: Path) -> None:
    env = {"DATABASE_URL": await empty_database(postgres_url)}
    await (await compose.open_store(env["DATABASE_URL"])).close()
    (tmp_path / "first.toml").write_text(FIRST)
    for command in (
        ("publish", "tutor", "first.toml"),
        ("list",),
        ("show", "tutor"),
        ("rollback", "tutor", "1"),
        ("delete", "tutor", "--yes"),
    ):
        assert "tutor" in await asyncio.to_thread(deployments, tmp_path, *command, **env)


COMMANDS = [
    ("list",),
    ("show", "x"),
    ("states", "x"),
    ("diff", "x"),
    ("publish", "x", "first.toml"),
    ("rollback", "x", "1"),
    ("delete", "x", "--yes"),
]


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_no_command_makes_a_database(tmp_path: Path, command: tuple[str, ...]) -> None:
    (tmp_path / "first.toml").write_text(FIRST)
    assert "There is no database" in refused(tmp_path, *command, code=2)
    assert [path.name for path in tmp_path.iterdir()] == ["first.toml"]
