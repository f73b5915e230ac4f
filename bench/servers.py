"""Processes of a run: the model server, the three servers, the load generator. All are ended."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec

from bench.floor import ModelAnswer
from bench.load import Failure, Job, Outcome, Progress, Report, Target
from bench.machine import family, on_core, two_cores

BIN = Path(sys.executable).parent
ROOT = Path(__file__).parent.parent
# What the reader of this has in the environment (a proxy, a DATABASE_URL) is not part of a run.
ENVIRONMENT = {"PATH": os.environ.get("PATH", os.defpath), "PYTHONPATH": str(ROOT)}
MODEL_SERVER = [sys.executable, "-m", "rig.model_server"]
THREADS = 32


class BenchError(Exception):
    """A sentence on why there are no figures."""


class Server(msgspec.Struct, frozen=True):
    """A server that is up. `start_seconds` is from its exec to its first answer of 200."""

    name: str
    port: int
    pids: list[int]
    start_seconds: float


class ModelServer(msgspec.Struct, frozen=True):
    """The model server: its base URL, the reply it always gives, and itself as a target."""

    url: str
    port: int
    reply: str


class Place:
    """Where a run happens: two cores and a directory of its own, on the disk of the checkout."""

    def __init__(self, directory: Path, say: Callable[[str], None]) -> None:
        self.server_core, self.load_core = two_cores()
        self.directory = directory
        self.say = say
        os.sched_setaffinity(0, {self.load_core})

    @contextmanager
    def model_server(
        self,
        deltas: int,
        first_delay: float = 0,
        delta_delay: float = 0,
        stamped: bool = False,
        one_write: bool = False,
    ) -> Iterator[ModelServer]:
        command = [*MODEL_SERVER, "--port=0", f"--deltas={deltas}"]
        command += [f"--first-delay={first_delay}", f"--delta-delay={delta_delay}"]
        command += ["--stamped"] * stamped + ["--one-write"] * one_write
        pipes = {"stdout": subprocess.PIPE, "env": ENVIRONMENT}
        with (
            (self.directory / "model_server.log").open("wb") as log,
            self.process(command, self.load_core, stderr=log, **pipes) as process,
        ):
            assert process.stdout
            line = process.stdout.readline().decode()
            url = line.strip().removeprefix("listening on ")
            if url == line.strip():
                raise BenchError(f"The model server did not start.{last_words(log.name)}")
            port = int(url.rsplit(":", 1)[1].split("/")[0])
            yield ModelServer(url, port, ask(port))

    @contextmanager
    def server(
        self,
        name: str,
        model_url: str,
        environment: dict[str, str] | None = None,
        prepare: Callable[[Path], None] = lambda _: None,
    ) -> Iterator[Server]:
        """One that `recipe` knows, on the servers' core, with nothing stored but what `prepare`
        puts into its folder."""
        port = free_port()
        with TemporaryDirectory(dir=self.directory, prefix=name) as kept:
            prepare(Path(kept))
            command, variables, ready = recipe(name, port, model_url, Path(kept))
            variables = ENVIRONMENT | variables | (environment or {})
            log_name = self.directory / f"{name}.log"
            options = {"stderr": subprocess.STDOUT, "env": variables, "cwd": kept}
            begun = time.perf_counter()
            with (
                log_name.open("wb") as log,
                self.process(command, self.server_core, stdout=log, **options) as process,
            ):
                while not answers(port, ready):
                    if process.poll() is not None or time.perf_counter() - begun > 30:
                        raise BenchError(f"The server {name} did not start.{last_words(log_name)}")
                    time.sleep(0.002)
                took = time.perf_counter() - begun
                yield Server(name, port, family(process.pid), took)

    def load(self, job: Job, total: int = 0, of: str = "turns") -> Outcome:
        """Runs the job in a load generator of its own, telling how far of the total it is."""
        command = [sys.executable, "-m", "bench.load"]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "env": ENVIRONMENT}
        with self.process(command, self.load_core, **pipes) as process:
            assert process.stdin
            assert process.stdout
            with closing(process.stdin) as jobs:
                jobs.write(msgspec.json.encode(job))
            told = 0
            for line in process.stdout:
                match msgspec.json.decode(line, type=Report):
                    case Progress(done):
                        if total and done != told:
                            told = done
                            self.say(f"    {done:,} of {total:,} {of}")
                    case Failure(sentence):
                        raise BenchError(sentence)
                    case Outcome() as outcome:
                        return outcome
        raise BenchError("The load generator ended without a result.")

    @contextmanager
    def process(
        self, command: list[str], core: int, **options: object
    ) -> Iterator["subprocess.Popen[bytes]"]:
        """A process on one core, in a session of its own so that Ctrl-C reaches only us."""
        with on_core(core):
            process = subprocess.Popen(command, start_new_session=True, **options)  # type: ignore[call-overload]
        try:
            yield process
        finally:
            end(process)


def recipe(
    name: str, port: int, model_url: str, kept: Path
) -> tuple[list[str], dict[str, str], str]:
    """How a server is started: its command, its environment, and the path that shows it is up."""
    match name:
        case "floor" | "detached":
            command = [sys.executable, "-m", f"bench.{name}", model_url, str(port)]
            return command, {}, "/health/ready"
        case "flask":
            command = [str(BIN / "gunicorn"), "bench.flask_program:app", f"--bind=127.0.0.1:{port}"]
            command += ["--workers=1", "--worker-class=gthread", f"--threads={THREADS}"]
            return command, {"MODEL_URL": model_url}, "/api/models"
        case "turnkeeper":
            command = [str(BIN / "turnkeeper"), "serve", f"--port={port}", "--model=bench-model"]
            command += [f"--database=sqlite:///{kept}/bench.db"]
            variables = {"OPENAI_BASE_URL": model_url, "OPENAI_API_KEY": "x"}
            return command, variables, "/health/ready"
    raise BenchError(f"There is no server called {name}.")


def target(server: Server, model: ModelServer) -> Target:
    return Target(server.port, server.pids, model.reply)


def free_port() -> int:
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def answers(port: int, path: str) -> bool:
    with closing(HTTPConnection("127.0.0.1", port, timeout=5)) as connection:
        try:
            connection.request("GET", path)
            return connection.getresponse().status == 200
        except (OSError, HTTPException):
            return False


def ask(port: int) -> str:
    """What the model server says when asked directly, in one piece."""
    body = b'{"model": "bench-model", "messages": [{"role": "user", "content": "What is it?"}]}'
    headers = {"Content-Type": "application/json", "Authorization": "Bearer x"}
    with closing(HTTPConnection("127.0.0.1", port, timeout=30)) as connection:
        connection.request("POST", "/v1/chat/completions", body, headers)
        answer = connection.getresponse().read()
    try:
        return msgspec.json.decode(answer, type=ModelAnswer).choices[0].message.content
    except msgspec.MsgspecError as error:
        raise BenchError(f"The model server's answer cannot be read: {error}") from error


def last_words(log: str | Path) -> str:
    """The end of a server's log, for the sentence on why it is not there."""
    lines = Path(log).read_text(errors="replace").strip().splitlines()[-8:]
    return "".join(f"\n  {line}" for line in lines)


def end(process: "subprocess.Popen[bytes]") -> None:
    """Ends the process, politely first, and whatever it has started."""
    if process.poll() is not None:
        return
    pids = family(process.pid)
    process.terminate()
    try:
        process.wait(timeout=10)
    except subprocess.TimeoutExpired:
        for pid in pids:
            kill(pid)
        process.wait()


def kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return
