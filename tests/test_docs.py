"""What the documents say is so: settings, codes, routes, modules, links, and every command.

In the README and the pages of the dialects a block marked `sh` that calls curl is run as it stands,
in order, all of a page in one shell; a `json` or `text` block right after it is what it prints. `…`
there stands for what differs from run to run, and alone on a line for any lines. A block marked
`bash` is not run.
"""

import json
import re
import shutil
import signal
import subprocess
import sys
import tomllib
import urllib.request
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, get_args

import msgspec
import pytest

from turnkeeper import errors
from turnkeeper.config import SETTINGS, ModelEntry, ProviderEntry, Setting, read_config
from turnkeeper.dialects.exchange import STATUSES
from turnkeeper.dialects.turn_stream import encode_turn
from turnkeeper.domain import Blueprint, Context, Turn, TurnRef, TurnStatus, Usage
from turnkeeper.web.app import DIALECTS

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
SOURCE = ROOT / "src" / "turnkeeper"
PAGES = [*sorted(ROOT.glob("*.md")), *sorted(DOCS.rglob("*.md"))]


def page(path: str) -> str:
    return (ROOT / path).read_text("utf-8")


def blocks(text: str) -> list[tuple[str, str]]:
    """The fenced blocks of a page: language and content."""
    return re.findall(r"^```(\w+)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def rows(text: str, first_heading: str) -> list[list[str]]:
    """The rows of the table whose first column has this heading."""
    lines = text.splitlines()
    start = next(n for n, line in enumerate(lines) if line.startswith(f"| {first_heading} |"))
    found = []
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        found.append([cell.strip() for cell in line.strip("|").split(" | ")])
    return found


# --- Settings ----------------------------------------------------------------------------------


def option_of(setting: Setting) -> str:
    return f"--{setting.name.replace('_', '-')}"


def shown(default: Any) -> str:
    if default in (None, ()):
        return "none"
    return f"`{default:g}`" if isinstance(default, float) else f"`{default}`"


def test_every_setting_is_documented_as_it_is() -> None:
    documented = [row[:4] for row in rows(page("docs/configuration.md"), "setting")]
    assert documented == [
        [
            f"`{setting.name}`",
            ", ".join(f"`{variable}`" for variable in setting.variables),
            "no option" if setting.secret else f"`{option_of(setting)}`",
            shown(setting.default),
        ]
        for setting in SETTINGS
    ]


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_no_page_names_a_variable_that_does_not_exist(path: Path) -> None:
    known = {variable for setting in SETTINGS for variable in setting.variables}
    known.add("TURNKEEPER_KEY")  # of `turnkeeper chat` alone
    named = set(re.findall(r"\b(?:TURNKEEPER|GROQ|OPENAI)_[A-Z_]*[A-Z]", path.read_text("utf-8")))
    assert named <= known


@pytest.mark.parametrize("path", ["README.md", "docs/configuration.md"])
def test_no_page_names_an_option_that_does_not_exist(path: str) -> None:
    known = {option_of(setting) for setting in SETTINGS if not setting.secret} | {"--config"}
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", page(path))) <= known


def test_the_example_files_can_be_read(tmp_path: Path) -> None:
    examples = [code for kind, code in blocks(page("docs/configuration.md")) if kind == "toml"]
    assert len(examples) == 3
    (tmp_path / "prompts").mkdir()
    (tmp_path / "prompts" / "tutor.md").write_text("You teach {subject}.")
    for example in examples:
        file = tmp_path / "turnkeeper.toml"
        file.write_text(example, "utf-8")
        config = read_config({"config": str(file)}, {"MISTRAL_API_KEY": "k"}, tmp_path)
        written = tomllib.loads(example)
        tables, prompts = written.pop("providers", {}), written.pop("deployments", {})
        for name, value in written.items():
            assert getattr(config, name) == (tuple(value) if isinstance(value, list) else value)
        assert [provider.name for provider in config.providers] == list(tables)
        assert [deployment.name for deployment in config.deployments] == list(prompts)


def test_every_field_of_a_provider_is_documented() -> None:
    text = page("docs/configuration.md")
    text = text[text.index("## Providers") :]
    documented = [cell for row in rows(text, "field") for cell in re.findall(r"`(\w+)`", row[0])]
    assert set(documented) | {"name", "key"} == set(ProviderEntry.__struct_fields__)
    text = text[text.index("table has these fields") :]
    documented = [cell for row in rows(text, "field") for cell in re.findall(r"`(\w+)`", row[0])]
    assert documented == list(ModelEntry.__struct_fields__)


def test_every_field_of_a_deployment_is_documented() -> None:
    text = page("docs/configuration.md")
    documented = {row[0].strip("`"): row[1] for row in rows(text[text.index("## Dep") :], "field")}
    defaults = msgspec.structs.asdict(Blueprint())
    assert set(documented) == {*defaults, "default", "system_message_file"}
    for name, default in defaults.items():
        if default:
            assert documented[name] == f"`{default}`"


# --- Turns, routes, modules --------------------------------------------------------------------


def test_every_code_is_documented_with_its_status() -> None:
    documented = {row[0].strip("`"): int(row[1]) for row in rows(page("docs/turns.md"), "code")}
    assert documented == STATUSES


def codes(kind: type[errors.TurnkeeperError]) -> Iterator[str]:
    if "code" in vars(kind):
        yield kind.code
    for special in kind.__subclasses__():
        yield from codes(special)


def test_every_error_of_ours_is_documented() -> None:
    named = set(re.findall(r"`(\w+)`", page("docs/turns.md")))
    assert {*codes(errors.TurnkeeperError), *get_args(errors.ProviderFault)} <= named


def test_every_state_is_documented() -> None:
    documented = [row[0].strip("`") for row in rows(page("docs/turns.md"), "state")]
    assert documented == [status.value for status in TurnStatus]


def test_the_example_of_a_turn_has_its_fields() -> None:
    [example] = [json.loads(code) for kind, code in blocks(page("docs/turns.md")) if kind == "json"]
    usage, context = Usage(18, 10, estimated=True), Context(5, 0, 93)
    ref = TurnRef(example["turn"]["session_id"], 3)
    created = 1_769_860_800_354
    turn = Turn(ref, TurnStatus.COMPLETED, "eliza", created, created + 272, usage, context=context)
    assert example == {"turn": encode_turn(turn)}


def test_every_route_is_documented_and_no_other() -> None:
    text = "".join(path.read_text("utf-8") for path in PAGES)
    prefixes = "|".join(prefix for dialect in DIALECTS for prefix in dialect.prefixes)
    route = rf"`((?:GET|POST|PUT|PATCH|DELETE|WEBSOCKET) (?:{prefixes})(?![\w-])[^`?\s]*)"
    documented = set(re.findall(route, text))
    assert documented == {f"{r.method} {r.path}" for dialect in DIALECTS for r in dialect.routes}


def test_every_module_has_its_line() -> None:
    documented = {row[0].strip("*`") for row in rows(page("docs/architecture.md"), "module")}
    modules = {file.relative_to(SOURCE) for file in SOURCE.rglob("*.py")}
    packages = {f"{file.parent}/" for file in modules if file.name == "__init__.py"} - {"./"}
    assert documented == packages | {str(f) for f in modules if f.name != "__init__.py"}


# --- Tests that are named ------------------------------------------------------------------------


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_every_test_that_a_page_names_is_there(path: Path) -> None:
    for file, name in re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", path.read_text("utf-8")):
        assert re.search(rf"^(async )?def {name}\(", page(file), re.MULTILINE), f"{file}::{name}"


def test_every_point_of_the_security_page_names_a_test() -> None:
    points = re.split(r"^## (?=\d+\. )", page("docs/security.md"), flags=re.MULTILINE)[1:]
    assert len(points) == 10
    for point in points:
        assert "`tests/" in point, point.splitlines()[0]


# --- Links -------------------------------------------------------------------------------------


def anchors(text: str) -> set[str]:
    """What the headings of a page are called in links, as GitHub does it."""
    text = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_links_lead_somewhere(path: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", path.read_text("utf-8")):
        if "://" in link:
            continue
        file, _, anchor = link.partition("#")
        there = path.parent / file if file else path
        assert there.is_file(), link
        assert not anchor or anchor in anchors(there.read_text("utf-8")), link


# --- Commands ----------------------------------------------------------------------------------

SEPARATOR = "=== next block ==="
WALKS = [
    "README.md",
    "docs/chatbot.md",
    "docs/chatsession.md",
    "docs/deployment.md",
    "docs/documents.md",
    "docs/sessions.md",
]


def walk(text: str) -> list[tuple[str, str]]:
    """A page's commands, each with what it prints."""
    found = [*blocks(text), ("", "")]
    return [
        (code, answer)
        for (kind, code), (answer_kind, answer) in pairwise(found)
        if kind == "sh" and "curl " in code and answer_kind in ("json", "text")
    ]


def pattern(answer: str) -> str:
    """What the answer must match, `…` being anything."""
    lines = [
        r"(?:.*\n)*?" if line == "…" else r"[^\n]*?".join(map(re.escape, line.split("…"))) + r"\n"
        for line in answer.strip().splitlines()
    ]
    return "".join(lines)


@pytest.mark.parametrize("path", WALKS)
def test_the_commands_of_a_page_print_what_it_says(
    path: str, server_url: str, tmp_path: Path
) -> None:
    if shutil.which("curl") is None:
        pytest.skip("needs curl (Debian: curl)")
    steps = walk(page(path))
    commands = [code for kind, code in blocks(page(path)) if kind == "sh" and "curl " in code]
    assert len(steps) == len(commands) >= 3, "a command has no answer"
    script = f"\necho; echo '{SEPARATOR}'\n".join(code for code, _ in steps)
    script = script.replace("http://127.0.0.1:5000", server_url)
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, "")
    printed = done.stdout.split(f"{SEPARATOR}\n")
    for (code, answer), output in zip(steps, printed, strict=True):
        assert re.fullmatch(pattern(answer), output.strip() + "\n"), f"{code}\n{output}"


def last_command(target: str) -> str:
    """What `make` does for a target once everything is set up, with the Python that runs this."""
    command = ["make", "-n", "--no-print-directory", target, f"BIN={Path(sys.executable).parent}"]
    done = subprocess.run(
        command, cwd=ROOT, env={"PATH": "/usr/bin:/bin"}, capture_output=True, text=True, check=True
    )
    return done.stdout.splitlines()[-1]


def test_make_run_serves_with_the_built_in_model(tmp_path: Path) -> None:
    assert ("sh", "make run\n") in blocks(page("README.md"))
    command = last_command("run")
    assert command.endswith("turnkeeper serve --model eliza")
    with subprocess.Popen(
        ["bash", "-c", command],
        cwd=tmp_path,
        env={"PATH": "/usr/bin:/bin", "PORT": "0"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            assert line.startswith("Turnkeeper is listening on http://127.0.0.1:"), line
            with urllib.request.urlopen(line.split()[4]) as answer:
                assert json.load(answer)["message"] == "Turnkeeper is running"
        finally:
            process.send_signal(signal.SIGTERM)
            assert process.wait(30) == 0


def test_make_test_runs_the_tests() -> None:
    assert ("sh", "make test\n") in blocks(page("README.md"))
    assert " -m pytest " in last_command("test")
