"""What tests share: real databases, a real server process, a real model server."""

import os
from collections.abc import AsyncIterator, Generator, Iterator
from pathlib import Path

import pytest

from rig.model_server import ModelServer
from rig.postgres import find_binaries, run_postgres
from rig.server import Server


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """In CI a test that would be skipped fails instead, with what it needs."""
    report = yield
    if report.skipped and os.environ.get("CI"):
        report.outcome = "failed"
        report.longrepr = f"nothing is skipped in CI: {report.longrepr}"
    return report


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    """A private PostgreSQL server."""
    if find_binaries() is None:
        pytest.skip("needs PostgreSQL's server binaries (Debian: postgresql)")
    with run_postgres() as url:
        yield url


@pytest.fixture
async def model_server() -> AsyncIterator[ModelServer]:
    async with ModelServer() as server:
        yield server


@pytest.fixture
def server_url(tmp_path: Path) -> Iterator[str]:
    """A running Turnkeeper with the built-in model."""
    with Server(tmp_path, "--model", "eliza") as server:
        yield server.url
