"""Opens every part in order and closes it in reverse: the only page where the parts meet."""

import asyncio
import gc
import logging
import secrets
import signal
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import uvicorn

from turnkeeper.config import LOOPBACK, Config
from turnkeeper.contracts import Provider, Store
from turnkeeper.domain import Model, make_session_id
from turnkeeper.engine import Engine, Policy
from turnkeeper.errors import ConfigError
from turnkeeper.prompt import capacity
from turnkeeper.providers import catalog
from turnkeeper.providers.eliza import Eliza
from turnkeeper.providers.openai import OpenAIProvider, Timeouts
from turnkeeper.stores.sql import SqlStore
from turnkeeper.stores.sqlite import open_sqlite, read_address, write_address
from turnkeeper.web.app import Web
from turnkeeper.web.origins import Origins

log = logging.getLogger(__name__)

ELIZA_PACE = 0.03  # seconds a word: so that one sees it stream


async def serve(config: Config, announce: Callable[[str, str], None]) -> None:
    """Serve until told to stop.

    `announce` gets the address and the default model's id once requests are answered.

    Raises:
        ConfigError: the server cannot start as it is configured.
    """
    listener = _listen(config.host, config.port)
    with listener:
        async with open_engine(config) as engine:
            web = Web(engine, _origins(config), config.body_limit)
            _calm_collector()

            def listening() -> None:
                _publish(config.database, _address(listener))
                announce(_address(listener), engine.models[0].id)

            await _Server(web, engine, config.grace).serve_on(listener, listening)


@asynccontextmanager
async def open_server(config: Config) -> AsyncIterator[str]:
    """A server beside other things in this loop, and its address; it leaves signals alone.

    Once the context is left, what still ran is stored as interrupted.

    Raises:
        ConfigError: the server cannot start as it is configured.
    """
    with _listen(config.host, config.port) as listener:
        async with open_engine(config) as engine:
            server = _Guest(Web(engine, _origins(config), config.body_limit), engine, 0)
            listening = asyncio.Event()
            serving = asyncio.create_task(server.serve_on(listener, listening.set))
            try:
                await listening.wait()
                _publish(config.database, _address(listener))
                yield _address(listener)
            finally:
                await engine.drain(0)
                server.should_exit = True
                await serving


def find_server(database: str) -> str | None:
    """The address of the server that this machine runs on a database.

    Empty if it does not listen yet; None if there is none, or the database is no SQLite file.
    """
    path = _sqlite_path(database)
    return None if path is None else read_address(path)


def _publish(database: str, address: str) -> None:
    path = _sqlite_path(database)
    if path is not None:
        write_address(path, address)


def _sqlite_path(database: str) -> Path | None:
    prefix = "sqlite:///"
    return Path(database.removeprefix(prefix)) if database.startswith(prefix) else None


def _calm_collector() -> None:
    """Spare what will live as long as the process, and look for cycles less often.

    A turn makes hundreds of objects and hardly a cycle: by default 6 % of its time went there.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)


@asynccontextmanager
async def open_engine(config: Config) -> AsyncIterator[Engine]:
    """The engine over its store and providers, with everything abandoned settled."""
    provider, policy = _provider(config), _policy(config)
    _check_room(provider.models, policy.system_message)
    store = await open_store(config.database)
    try:
        settled = await store.settle_abandoned(_now())
        if settled:
            log.warning("%d turns that a crash had left were settled as interrupted", settled)
        engine = Engine(store, [provider], policy, now=_now, new_id=_new_id)
        try:
            yield engine
        finally:
            await engine.drain(0)
    finally:
        await store.close()
        await provider.close()


async def open_store(url: str) -> Store:
    """The store at a database URL, locked and migrated."""
    path = _sqlite_path(url)
    if path is not None:
        return SqlStore(open_sqlite(path))
    # Here, so that those who use SQLite need not carry asyncpg in memory.
    from turnkeeper.stores.postgres import open_postgres  # noqa: PLC0415

    return SqlStore(await open_postgres(url))


def _provider(config: Config) -> Provider:
    """The one provider that the settings name."""
    if config.model == "eliza":
        return Eliza(ELIZA_PACE)
    timeouts = Timeouts(
        connect=config.connect_timeout,
        first_byte=config.first_byte_timeout,
        between=config.between_timeout,
        total=config.total_timeout,
    )
    if config.openai_base_url:
        if config.model is None:
            raise ConfigError(
                "OPENAI_BASE_URL is set, so say which model to ask for there with --model"
            )
        name, url, key = "the model server", config.openai_base_url, config.openai_api_key
        known: tuple[Model, ...] = ()
    elif config.groq_api_key:
        name, url, key, known = "Groq", catalog.GROQ_URL, config.groq_api_key, catalog.GROQ_MODELS
    elif config.openai_api_key:
        name, url, key = "OpenAI", catalog.OPENAI_URL, config.openai_api_key
        known = catalog.OPENAI_MODELS
    else:
        raise ConfigError(
            "No model provider is configured: set GROQ_API_KEY, OPENAI_API_KEY or"
            " OPENAI_BASE_URL, or say --model eliza, which needs nothing"
        )
    return OpenAIProvider(name, url, key, _models(config, known), timeouts)


def _models(config: Config, known: tuple[Model, ...]) -> list[Model]:
    """The models to offer, the default first."""
    models = [model for model in known if model.id != config.model]
    if config.model is not None:
        models.insert(0, catalog.model_named(config.model))
    if config.context_window is None:
        return models
    return [Model(model.id, model.name, config.context_window) for model in models]


def _policy(config: Config) -> Policy:
    return Policy(
        system_message=config.system_message,
        message_limit=config.message_limit,
        queue_limit=config.queue_limit,
        attempts=config.attempts,
    )


def _check_room(models: Sequence[Model], system_message: str) -> None:
    for model in models:
        if capacity(model, system_message) <= 0:
            raise ConfigError(f"The system_message leaves no room for a conversation in {model.id}")


def _origins(config: Config) -> Origins:
    return Origins(
        hosts=frozenset({config.host.lower(), *(host.lower() for host in config.hosts)}),
        any_address=config.host not in LOOPBACK,
        allowed=config.cors,
    )


def _now() -> int:
    return time.time_ns() // 1_000_000


def _new_id() -> str:
    return make_session_id(time.time_ns() // 1000, secrets.randbits(76))


# --- Listening ---------------------------------------------------------------------------------


def _listen(host: str, port: int) -> socket.socket:
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except OSError as error:
        raise ConfigError(f"The address {host} is not known here: {error.strerror}") from error
    listener = socket.socket(family)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(address)
    except OSError as error:
        listener.close()
        raise ConfigError(f"Port {port} of {host} cannot be used: {error.strerror}") from error
    listener.listen(2048)
    return listener


def _address(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


class _Server(uvicorn.Server):
    """uvicorn, told to stop by us: it would wait for open streams before it ended their turns."""

    def __init__(self, web: Web, engine: Engine, grace: float) -> None:
        super().__init__(
            uvicorn.Config(
                web,
                loop="none",
                http="httptools",
                ws="none",
                lifespan="off",
                access_log=False,
                log_config=None,
                server_header=False,
                proxy_headers=False,
                timeout_keep_alive=65,  # longer than the usual proxy keeps its own end
                timeout_graceful_shutdown=5,
                backlog=2048,
            )
        )
        self._engine = engine
        self._grace = grace
        self._announce: Callable[[], None] = lambda: None
        self._stopping: asyncio.Task[None] | None = None
        self._hurry = asyncio.Event()

    async def serve_on(self, listener: socket.socket, announce: Callable[[], None]) -> None:
        self._announce = announce
        await self.serve([listener])

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._announce()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._stop)
        yield

    def _stop(self) -> None:
        """On the first signal, drain; on the second, hurry."""
        if self._stopping is None:
            self._stopping = asyncio.get_running_loop().create_task(self._drain())
        else:
            self._hurry.set()

    async def _drain(self) -> None:
        """Answer requests while turns finish; then end what is left, streams with an event."""
        drained = asyncio.ensure_future(self._engine.drain(self._grace))
        hurried = asyncio.ensure_future(self._hurry.wait())
        await asyncio.wait({drained, hurried}, return_when=asyncio.FIRST_COMPLETED)
        hurried.cancel()
        if not drained.done():
            drained.cancel()
            await self._engine.drain(0)
        self.should_exit = True


class _Guest(_Server):
    """A server in a program that has other things to do, and signals of its own."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield
