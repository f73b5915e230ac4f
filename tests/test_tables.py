"""Deployments in the TOML file: what a table may say, which is the default, which models it names.

Those of providers are in test_config.py.
"""

import asyncio
from pathlib import Path

import pytest

from turnkeeper.config import Config, DeploymentEntry, read_config, read_setting
from turnkeeper.domain import Blueprint, Example
from turnkeeper.errors import ConfigError
from turnkeeper.roster import check_deployments, open_roster


def read(folder: Path, toml: str, **environment: str) -> Config:
    (folder / "t.toml").write_text(toml, "utf-8")
    return read_config({"config": str(folder / "t.toml")}, environment, folder)


def problems(folder: Path, toml: str) -> list[str]:
    with pytest.raises(ConfigError) as raised:
        read(folder, toml)
    return raised.value.sentence.splitlines()


# --- What a table says -------------------------------------------------------------------------


def test_a_table_is_a_blueprint(tmp_path: Path) -> None:
    config = read(
        tmp_path,
        """
[deployments.tutor]
default = true
system_message = "You teach {subject}."
messages = [{role = "user", content = "Hi"}, {role = "assistant", content = "Hello!"}]
model = "small"
fallback_models = ["home/big"]
temperature = 1
stop = ["END"]
overflow = "error"
idle_timeout = 60
[deployments.blank]
""",
    )
    assert config.deployments == (
        DeploymentEntry(
            "tutor",
            True,
            Blueprint(
                system_message="You teach {subject}.",
                messages=(Example("user", "Hi"), Example("assistant", "Hello!")),
                model="small",
                fallback_models=("home/big",),
                temperature=1.0,
                stop=("END",),
                overflow="error",
                idle_timeout=60,
            ),
        ),
        DeploymentEntry("blank", False, Blueprint()),
    )


def test_without_a_file_there_are_no_tables(tmp_path: Path) -> None:
    assert read_config({}, {}, tmp_path).deployments == ()


@pytest.mark.parametrize(
    ("table", "sentence"),
    [
        ("temperature = 3", "tutor.temperature must be a number of at most 2"),
        ("temperature = nan", "tutor.temperature must be a number"),
        ('top_p = "most"', "tutor.top_p must be a number"),
        ("max_tokens = 0", "tutor.max_tokens must be an integer of at least 1"),
        ("system_message = 2026-01-01", "tutor.system_message must be a string"),
        ('system_message = "a\\u0000"', "tutor.system_message holds a character that cannot"),
        ('model = "a\\u0000"', "tutor.model holds a character that cannot be kept"),
        ('stop = ["a\\u0000"]', "tutor.stop holds a character that cannot be kept"),
        ('stop = "END"', "tutor.stop must be a list"),
        ('messages = [{role = "user"}]', "tutor.messages[0] needs content"),
        (
            'messages = [{role = "user", content = " "}]',
            "tutor.messages[0].content must not be blank",
        ),
        (
            'messages = [{role = "me", content = "x"}]',
            "tutor.messages[0].role must be system or user or assistant",
        ),
        ('overflow = "forget"', "tutor.overflow must be truncate or summarise or error"),
        ("colour = 1", "tutor.colour is no field of a deployment"),
        ('default = "yes"', "tutor.default must be true or false"),
        ("system_message_file = 1", "tutor.system_message_file must be the path of a file"),
        ('system_message_file = "a\\u0000"', "tutor.system_message_file names"),
        ("[deployments.Tutor]", "deployments.Tutor must have a name of 1 to 64 characters"),
        ('[deployments."a/b"]', "deployments.a/b must have a name of 1 to 64 characters"),
        ("[deployments]\nb = 1", "deployments.b must be a table"),
    ],
)
def test_what_is_wrong_in_a_table_is_named(tmp_path: Path, table: str, sentence: str) -> None:
    [said] = problems(tmp_path, f"[deployments.tutor]\n{table}\n")
    assert sentence in said


def test_everything_wrong_is_named_at_once(tmp_path: Path) -> None:
    said = problems(
        tmp_path,
        "port = -1\n[providers.acme]\n[deployments.A]\ncolour = 1\ntop_p = 0\n"
        "[deployments.b]\nstop = 1",
    )
    assert [line.split()[0] for line in said] == [
        "port",
        "providers.acme",
        "deployments.A",
        "deployments.A.colour",
        "deployments.A.top_p",
        "deployments.b.stop",
    ]


def test_deployments_that_are_no_tables_are_named(tmp_path: Path) -> None:
    assert problems(tmp_path, "deployments = 1") == [
        "deployments must be tables: [deployments.NAME]"
    ]


def test_a_command_that_needs_one_setting_does_not_mind_wrong_tables(tmp_path: Path) -> None:
    (tmp_path / "t.toml").write_text('database = "sqlite:///a.db"\n[deployments.A]\n')
    options = {"config": str(tmp_path / "t.toml")}
    assert read_setting("database", options, {}, tmp_path) == "sqlite:///a.db"


# --- A prompt in a file of its own -------------------------------------------------------------

BY_FILE = '[deployments.tutor]\nsystem_message_file = "prompts/tutor.md"\n'


def prompt_of(folder: Path, content: bytes) -> str:
    (folder / "prompts").mkdir()
    (folder / "prompts" / "tutor.md").write_bytes(content)
    return read(folder, BY_FILE).deployments[0].blueprint.system_message


def test_a_system_message_may_be_a_file_beside_the_toml(tmp_path: Path) -> None:
    assert prompt_of(tmp_path, "Teach {subject}.\n\nÜben!\n".encode()) == (
        "Teach {subject}.\n\nÜben!"
    )


def test_how_an_editor_ends_its_lines_is_no_part_of_the_text(tmp_path: Path) -> None:
    assert prompt_of(tmp_path, b"\xef\xbb\xbfTeach.\r\nBriefly.\r\n\r\n") == "Teach.\nBriefly.\n"


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    [said] = problems(tmp_path, BY_FILE)
    assert said.startswith("deployments.tutor.system_message_file names ")
    assert "prompts/tutor.md, which cannot be read" in said


@pytest.mark.parametrize("content", [b"\xff\xfe", None], ids=["not UTF-8", "a folder"])
def test_a_file_that_is_no_text_is_named(tmp_path: Path, content: bytes | None) -> None:
    (tmp_path / "prompts").mkdir()
    if content is None:
        (tmp_path / "prompts" / "tutor.md").mkdir()
    else:
        (tmp_path / "prompts" / "tutor.md").write_bytes(content)
    [said] = problems(tmp_path, BY_FILE)
    assert said.startswith("deployments.tutor.system_message_file names ")


def test_a_text_and_a_file_are_one_too_many(tmp_path: Path) -> None:
    assert problems(tmp_path, f'{BY_FILE}system_message = ""') == [
        "deployments.tutor.system_message_file and system_message cannot both be given"
    ]


# --- The default -------------------------------------------------------------------------------


def all_of(folder: Path, toml: str) -> list[tuple[str, bool, str]]:
    return [
        (entry.name, entry.default, entry.blueprint.system_message)
        for entry in read(folder, f'system_message = "Hi."\n{toml}').all_deployments()
    ]


def test_without_a_table_the_default_has_the_settings_prompt(tmp_path: Path) -> None:
    assert all_of(tmp_path, "") == [("default", True, "Hi.")]
    entry = DeploymentEntry("default", True, Blueprint(system_message="Hi."))
    assert read(tmp_path, 'system_message = "Hi."').all_deployments() == (entry,)
    assert all_of(tmp_path, "[deployments.a]") == [("default", True, "Hi."), ("a", False, "")]


def test_a_table_called_default_is_the_default(tmp_path: Path) -> None:
    tables = '[deployments.a]\n[deployments.default]\nsystem_message = "Yes?"'
    assert all_of(tmp_path, tables) == [("default", True, "Yes?"), ("a", False, "")]


def test_a_table_that_says_so_is_the_default(tmp_path: Path) -> None:
    tables = "[deployments.default]\n[deployments.a]\n[deployments.b]\ndefault = true"
    assert all_of(tmp_path, tables) == [
        ("b", True, ""),
        ("default", False, "Hi."),
        ("a", False, ""),
    ]


@pytest.mark.parametrize(
    ("table", "text"),
    [("", "Hi."), ("temperature = 1", "Hi."), ('system_message = ""', "")],
)
def test_a_table_called_default_has_the_settings_prompt_if_it_gives_none(
    tmp_path: Path, table: str, text: str
) -> None:
    assert all_of(tmp_path, f"[deployments.default]\n{table}") == [("default", True, text)]


def test_only_one_can_be_the_default(tmp_path: Path) -> None:
    said = problems(tmp_path, "[deployments.a]\ndefault = true\n[deployments.b]\ndefault = true")
    assert said == ["deployments.a and deployments.b cannot all be the default: only one can"]


# --- Models ------------------------------------------------------------------------------------

PROVIDERS = """
[providers.acme]
base_url = "http://127.0.0.1:1/v1"
models = ["small", {id = "tiny", context_window = 300}]
"""
AWAY = """
[providers.gone]
base_url = "http://127.0.0.1:1/v1"
"""


def checked(folder: Path, toml: str) -> list[str]:
    config = read(folder, PROVIDERS + toml)

    async def check() -> list[str]:
        async with open_roster(config) as roster:
            offers, absences = roster.make_offers(), roster.absences()
            return check_deployments(config.all_deployments(), offers, absences)

    return asyncio.run(check())


def test_a_deployment_may_name_whatever_is_offered(tmp_path: Path) -> None:
    tables = '[deployments.a]\nmodel = "acme/tiny"\nfallback_models = ["small", "tiny"]'
    assert checked(tmp_path, tables) == []
    assert checked(tmp_path, "") == []


def test_a_model_that_nobody_offers_is_an_error(tmp_path: Path) -> None:
    tables = """
[deployments.a]
model = "huge"
[deployments.b]
fallback_models = ["small", "other/small"]
"""
    with pytest.raises(ConfigError) as raised:
        checked(tmp_path, tables)
    assert raised.value.sentence.splitlines() == [
        "The deployment a names the model huge, which no provider offers",
        "The deployment b names the model other/small, which no provider offers",
    ]


def test_it_is_a_warning_while_a_provider_is_away(tmp_path: Path) -> None:
    assert checked(tmp_path, f'{AWAY}[deployments.a]\nmodel = "huge"') == [
        "The deployment a names the model huge, which is not offered: gone could not be reached"
    ]


@pytest.mark.parametrize(
    "table",
    [
        f'model = "tiny"\nsystem_message = "{"x" * 700}"',
        f'fallback_models = ["tiny"]\nmessages = [{{role = "user", content = "{"x" * 700}"}}]',
        f'context_window = 300\nsystem_message = "{"x" * 700}"',
    ],
    ids=["its model", "a fallback", "its own window"],
)
def test_a_prompt_that_fills_a_window_is_an_error(tmp_path: Path, table: str) -> None:
    for away in ("", AWAY):
        with pytest.raises(ConfigError, match=r"^The deployment a leaves no room"):
            checked(tmp_path, f"{away}[deployments.a]\n{table}")
    assert checked(tmp_path, f"[deployments.a]\n{table.replace('x' * 600, '')}") == []
