"""A private PostgreSQL server for tests: started from the binaries on this machine, and ended."""

import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def find_binaries() -> Path | None:
    """The folder with `initdb` and `postgres`, in the PATH or where Debian puts them."""
    on_path = shutil.which("initdb")
    folders = [Path(on_path).resolve().parent] if on_path else []
    folders += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    return next((f for f in folders if (f / "initdb").exists() and (f / "postgres").exists()), None)


@contextmanager
def run_postgres() -> Iterator[str]:
    """The URL of an empty server, on a free port and its own data; gone afterwards.

    PostgreSQL refuses to run as root: then it runs as `nobody`.
    """
    binaries = find_binaries()
    assert binaries is not None
    user = "nobody" if os.getuid() == 0 else None
    folder = Path(tempfile.mkdtemp(prefix="turnkeeper-postgres-"))
    if user:
        shutil.chown(folder, user)
    try:
        data = folder / "data"
        _call(user, binaries / "initdb", "-D", data, "-U", "test", "-A", "trust", "--no-sync")
        port = _free_port()
        settings = [f"port={port}", f"unix_socket_directories={folder}", "fsync=off"]
        options = [part for setting in settings for part in ("-c", setting)]
        process = subprocess.Popen(
            [str(binaries / "postgres"), "-D", str(data), *options],
            user=user,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd=folder,
        )
        try:
            _wait_until_ready(binaries, port, process)
            yield f"postgresql://test@127.0.0.1:{port}/postgres"
        finally:
            process.terminate()
            process.wait(30)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _call(user: str | None, *command: object) -> None:
    subprocess.run(
        [str(part) for part in command], user=user, check=True, capture_output=True, cwd="/"
    )


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait_until_ready(binaries: Path, port: int, process: "subprocess.Popen[bytes]") -> None:
    ready = [str(binaries / "pg_isready"), "-h", "127.0.0.1", "-p", str(port), "-t", "1"]
    for _ in range(300):
        if process.poll() is not None:
            raise RuntimeError("PostgreSQL ended while it was starting")
        if subprocess.run(ready, capture_output=True, check=False).returncode == 0:
            return
    raise RuntimeError("PostgreSQL did not become ready")
