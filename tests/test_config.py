"""Settings: where they come from, which goes before which, and what is said when one is wrong."""

from collections.abc import Mapping
from pathlib import Path

import pytest

from turnkeeper.compose import open_parts
from turnkeeper.config import SETTINGS, Config, ModelEntry, read_config
from turnkeeper.errors import ConfigError


def read(folder: Path, options: Mapping[str, str | None] = {}, **environment: str) -> Config:
    return read_config(options, environment, folder)


def test_the_defaults_are_a_tutorials(tmp_path: Path) -> None:
    config = read(tmp_path)
    assert (config.host, config.port, config.auth) == ("127.0.0.1", 5000, "off")
    assert config.database == "sqlite:///turnkeeper.db"


@pytest.mark.parametrize(("host", "auth"), [("localhost", "off"), ("0.0.0.0", "keys")])
def test_credentials_are_asked_for_wherever_others_can_reach(
    tmp_path: Path, host: str, auth: str
) -> None:
    assert read(tmp_path, {"host": host}).auth == auth
    assert read(tmp_path, {"host": host, "auth": "keys"}).auth == "keys"
    assert read(tmp_path, {"host": host, "auth": "off"}).auth == "off"


def test_the_admins_key_is_long_and_never_shown(tmp_path: Path) -> None:
    key = "secret-" * 5
    assert key not in repr(read(tmp_path, TURNKEEPER_ADMIN_KEY=key))
    with pytest.raises(ConfigError, match="32 to 512 characters") as error:
        read(tmp_path, TURNKEEPER_ADMIN_KEY="too short")
    assert "too short" not in error.value.sentence


def test_every_setting_is_a_field_and_every_field_a_setting() -> None:
    names = tuple(setting.name for setting in SETTINGS)
    assert (*names, "providers", "deployments", "limits", "has_file") == Config.__struct_fields__


def test_command_line_before_environment_before_dotenv_before_toml(tmp_path: Path) -> None:
    toml = tmp_path / "t.toml"
    toml.write_text('port = 1\nmodel = "toml"\ngrace = 1.5\ncors = ["http://a", "http://b"]\n')
    (tmp_path / ".env").write_text("PORT=2\nTURNKEEPER_MODEL=dotenv\nTURNKEEPER_QUEUE_LIMIT=2\n")
    config = read(tmp_path, {"config": str(toml), "attempts": "4"}, PORT="3")
    assert config.port == 3
    assert config.model == "dotenv"
    assert config.queue_limit == 2
    assert config.attempts == 4
    assert config.grace == 1.5
    assert config.cors == ("http://a", "http://b")
    assert read(tmp_path, {"config": str(toml), "port": "4"}, PORT="3").port == 4


def test_our_own_name_of_a_variable_goes_before_the_common_one(tmp_path: Path) -> None:
    assert read(tmp_path, TURNKEEPER_PORT="7", PORT="8").port == 7


def test_the_public_address_has_no_slash_at_its_end(tmp_path: Path) -> None:
    assert read(tmp_path).public_url is None
    config = read(tmp_path, TURNKEEPER_PUBLIC_URL="https://a.example.org/chat/")
    assert config.public_url == "https://a.example.org/chat"


def test_an_empty_variable_is_none(tmp_path: Path) -> None:
    assert read(tmp_path, PORT="", OPENAI_BASE_URL="").port == 5000


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("port", "99999"),
        ("port", "-1"),
        ("port", "5000.0"),
        ("grace", "nan"),
        ("grace", "-1"),
        ("grace", "inf"),
        ("connect_timeout", "ten"),
        ("auth", "on"),
        ("database", "mysql://x"),
        ("openai_base_url", "ftp://x"),
        ("context_window", "10"),
        ("attempts", "0"),
        ("port", "٣"),
        ("port", "1_0"),
        ("host", ""),
        ("model", " "),
        ("system_message", "\udcff"),
        ("database", "sqlite:///"),
        ("database", "sqlite:////"),
        ("database", "sqlite:///:memory:"),
        ("database", "sqlite:///a\0b"),
        ("openai_base_url", "http://a b/v1"),
        ("openai_base_url", "http://a/v1?x=1"),
        ("public_url", "chat.example.org"),
        ("public_url", "https://a/?x=1"),
        ("connect_timeout", "0"),
        ("cors", "javascript:"),
        ("cors", "http://a/"),
        ("cors_routes", "api/*"),
        ("cors_routes", "/api*"),
        ("cors_routes", "/api/*/messages"),
        ("hosts", "a b"),
    ],
)
def test_a_wrong_value_is_named_with_what_it_must_be(tmp_path: Path, name: str, value: str) -> None:
    with pytest.raises(ConfigError, match=rf"^--{name.replace('_', '-')} (must|cannot)"):
        read(tmp_path, {name: value})


@pytest.mark.parametrize("text", ["port = [", "port = 1\nport = 2", "unheard_of = 1"])
def test_a_wrong_file_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "t.toml").write_text(text)
    with pytest.raises(ConfigError, match=r"^config "):
        read(tmp_path, {"config": str(tmp_path / "t.toml")})
    with pytest.raises(ConfigError, match="cannot be read"):
        read(tmp_path, {"config": str(tmp_path / "missing.toml")})


@pytest.mark.parametrize(
    "text",
    [
        "hosts = [1]",
        "port = [5000]",
        "model = {name = 1}",
        "grace = 2026-01-01",
        "system_message = true",
    ],
)
def test_a_value_of_a_wrong_kind_in_a_file_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "t.toml").write_text(text)
    with pytest.raises(ConfigError, match="must be a plain value"):
        read(tmp_path, {"config": str(tmp_path / "t.toml")})


def test_a_dotenv_file_that_is_no_text_is_named(tmp_path: Path) -> None:
    (tmp_path / ".env").write_bytes(b"PORT=\xff\xfe")
    with pytest.raises(ConfigError, match="cannot be read"):
        read(tmp_path)


async def test_a_system_message_that_fills_the_window_is_refused(tmp_path: Path) -> None:
    options = {
        "database": f"sqlite:///{tmp_path}/t.db",
        "context_window": "300",
        "system_message": "x" * 1000,
    }
    with pytest.raises(ConfigError, match="leaves no room"):
        async with open_parts(read(tmp_path, options, GROQ_API_KEY="k")):
            pass


# --- Providers ---------------------------------------------------------------------------------


def read_table(folder: Path, table: str, **environment: str) -> Config:
    (folder / "t.toml").write_text(f"attempts = 7\ngrace = 2\n[providers.acme]\n{table}\n")
    return read(folder, {"config": str(folder / "t.toml")}, **environment)


URL = 'base_url = "http://127.0.0.1:9/v1"'


def test_a_table_leaves_out_what_is_as_in_the_settings(tmp_path: Path) -> None:
    config = read_table(tmp_path, f"{URL}\ntotal_timeout = 90", TURNKEEPER_BETWEEN_TIMEOUT="8")
    [acme] = config.providers
    assert (acme.name, acme.base_url) == ("acme", "http://127.0.0.1:9/v1")
    assert (acme.attempts, acme.total_timeout, acme.between_timeout) == (7, 90, 8)
    assert (acme.key_env, acme.key, acme.models) == (None, None, None)


def test_models_are_ids_or_tables(tmp_path: Path) -> None:
    models = """models = ["plain", {id = "full", name = "Full", context_window = 4096, \
images = true, input_price = 0.1, output_price = 2}]""".replace("\\\n", "")
    [acme] = read_table(tmp_path, f"{URL}\n{models}").providers
    assert acme.models == (
        ModelEntry("plain"),
        ModelEntry("full", "Full", 4096, True, 0.1, 2.0),
    )


def test_a_key_comes_from_the_environment_before_the_dotenv_file(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("ACME_KEY=from-dotenv\n")
    table = f'{URL}\nkey_env = "ACME_KEY"'
    assert read_table(tmp_path, table).providers[0].key == "from-dotenv"
    assert read_table(tmp_path, table, ACME_KEY="from-env").providers[0].key == "from-env"
    assert read_table(tmp_path, table, ACME_KEY="").providers[0].key == "from-dotenv"


@pytest.mark.parametrize(
    ("table", "sentence"),
    [
        ("", "acme needs base_url"),
        ('base_url = "ftp://x"', "acme.base_url must be an address"),
        ("base_url = 5", "acme.base_url must be an address"),
        ('base_url = "http://me:pw@x/v1"', "acme.base_url must be an address"),
        ('base_url = "http://x/v1?a=b"', "acme.base_url must be an address"),
        ('base_url = "http://x:port/v1"', "acme.base_url must be an address"),
        (f'{URL}\nkey_env = "MISSING"', "acme.key_env names MISSING, and that variable is not"),
        (f'{URL}\nkey_env = "s3cret"', "acme.key_env must be the name of a variable"),
        (f'{URL}\nkey = "s3cret"', "acme has an unknown setting key; a key is named"),
        (f"{URL}\ncolour = 1", "acme has an unknown setting colour"),
        (f"{URL}\nattempts = 0", "acme.attempts must be a whole number from 1 to 20, not 0"),
        (f'{URL}\nattempts = "3"', "acme.attempts must be a whole number"),
        (f"{URL}\nattempts = true", "acme.attempts must be a whole number"),
        (f"{URL}\nconnect_timeout = -1", "acme.connect_timeout must be a number of seconds"),
        (f"{URL}\nmodels = []", "acme.models must be a list of models"),
        (f'{URL}\nmodels = "all"', "acme.models must be a list of models"),
        (f"{URL}\nmodels = [1]", "acme.models[1] must be a model's id or a table"),
        (f'{URL}\nmodels = ["a", ""]', "acme.models[2].id must be a text"),
        (f'{URL}\nmodels = ["a", "a"]', "acme.models[2] names a a second time"),
        (f"{URL}\nmodels = [{{}}]", "acme.models[1] needs id"),
        (f'{URL}\nmodels = [{{id = "a", window = 1}}]', "models[1] has an unknown setting window"),
        (f'{URL}\nmodels = [{{id = "a", context_window = 9}}]', "models[1].context_window must"),
        (f'{URL}\nmodels = [{{id = "a", images = 1}}]', "models[1].images must be true or false"),
        (f'{URL}\nmodels = [{{id = "a", input_price = -1}}]', "models[1].input_price must be"),
        (f'{URL}\nmodels = [{{id = "a", output_price = nan}}]', "models[1].output_price must be"),
        (f"{URL}\n[providers.Acme]\n{URL}", "providers.Acme must have a name"),
        (f"{URL}\n[providers.eliza]\n{URL}", "providers.eliza must have a name"),
        (f"{URL}\n[providers.server]\n{URL}", "providers.server must have a name"),
        (f'{URL}\n[providers."a/b"]\n{URL}', "providers.a/b must have a name"),
        (f"{URL}\n[providers]\nb = 1", "providers.b must be a table"),
    ],
)
def test_what_is_wrong_in_a_table_is_named(tmp_path: Path, table: str, sentence: str) -> None:
    with pytest.raises(ConfigError) as raised:
        read_table(tmp_path, table)
    assert sentence in raised.value.sentence
    assert "s3cret" not in raised.value.sentence


def test_providers_that_are_no_tables_are_named(tmp_path: Path) -> None:
    (tmp_path / "t.toml").write_text("providers = 1")
    with pytest.raises(ConfigError, match="providers must be tables"):
        read(tmp_path, {"config": str(tmp_path / "t.toml")})


def test_tables_and_settings_are_named_together(tmp_path: Path) -> None:
    table = f'{URL}\nattempts = 0\nmodels = ["a", 3]\n[providers.bee]'
    with pytest.raises(ConfigError) as raised:
        read_table(tmp_path, table, PORT="http")
    assert len(raised.value.sentence.splitlines()) == 4


def test_no_key_of_a_table_is_shown(tmp_path: Path) -> None:
    config = read_table(tmp_path, f'{URL}\nkey_env = "ACME_KEY"', ACME_KEY="s3cret")
    assert config.providers[0].key == "s3cret"
    assert "s3cret" not in repr(config) + repr(config.providers)


# --- What is offered ---------------------------------------------------------------------------


def test_no_secret_is_shown(tmp_path: Path) -> None:
    database = "postgresql://me:s3cret@host/db"
    config = read(tmp_path, {"database": database}, GROQ_API_KEY="s3cret", OPENAI_API_KEY="s3cret")
    assert "s3cret" not in repr(config)
    assert "s3cret" not in str(config)
    with pytest.raises(ConfigError) as wrong:
        read(tmp_path, {"database": "mysql://me:s3cret@host"}, OPENAI_BASE_URL="ftp://s3cret@x")
    assert "s3cret" not in wrong.value.sentence


@pytest.mark.parametrize(
    ("environment", "first", "many"),
    [
        ({"GROQ_API_KEY": "k"}, "llama-3.3-70b-versatile", True),
        ({"OPENAI_API_KEY": "k"}, "gpt-4o-mini", True),
        (
            {"GROQ_API_KEY": "k", "TURNKEEPER_MODEL": "llama-3.1-8b-instant"},
            "llama-3.1-8b-instant",
            True,
        ),
        ({"OPENAI_BASE_URL": "http://127.0.0.1:9/v1", "TURNKEEPER_MODEL": "mine"}, "mine", False),
        ({"TURNKEEPER_MODEL": "eliza"}, "eliza", False),
        ({"GROQ_API_KEY": "k", "TURNKEEPER_MODEL": "eliza"}, "eliza", False),
    ],
)
async def test_a_provider_is_found_by_what_is_set(
    tmp_path: Path, environment: dict[str, str], first: str, many: bool
) -> None:
    config = read(tmp_path, {"database": f"sqlite:///{tmp_path}/t.db"}, **environment)
    async with open_parts(config) as parts:
        engine = parts.engine
        assert engine.models[0].id == first
        assert (len(engine.models) > 1) is many
        assert len({model.id for model in engine.models}) == len(engine.models)


async def test_a_context_window_holds_for_all_models(tmp_path: Path) -> None:
    options = {"database": f"sqlite:///{tmp_path}/t.db", "context_window": "4096"}
    async with open_parts(read(tmp_path, options, GROQ_API_KEY="k")) as parts:
        engine = parts.engine
        assert {model.context_window for model in engine.models} == {4096}
