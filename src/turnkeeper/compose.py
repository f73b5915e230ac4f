"""Opens every part in order and closes it in reverse: the only page where the parts meet."""

import asyncio
import gc
import logging
import resource
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import uvicorn

from turnkeeper.accounts import ADMIN, Accounts
from turnkeeper.callers import LoginRules
from turnkeeper.clock import Rising
from turnkeeper.config import LOOPBACK, Config
from turnkeeper.contracts import AccountStore, DocumentStore, Durability, Issuer, Store
from turnkeeper.counts import Counts
from turnkeeper.deployments import Deployments
from turnkeeper.dialects.exchange import Parts
from turnkeeper.domain import (
    Limits,
    make_document_id,
    make_revision_id,
    make_section_id,
    make_session_id,
)
from turnkeeper.engine import Engine
from turnkeeper.errors import ConfigError, StoreUnavailable
from turnkeeper.gate import Gate
from turnkeeper.keeper import Keeper, keep_books
from turnkeeper.library import Library
from turnkeeper.limits import Rules
from turnkeeper.observer import Observer
from turnkeeper.plans import Plans
from turnkeeper.policy import Policy
from turnkeeper.randomness import Randomness
from turnkeeper.roster import check_deployments, open_roster
from turnkeeper.sessions import Sessions
from turnkeeper.stores import sqlite, upkeep
from turnkeeper.stores.accounts import SqlAccounts
from turnkeeper.stores.documents import SqlDocuments
from turnkeeper.stores.sqlite import (
    inspect_sqlite,
    open_sqlite,
    read_address,
    visit_sqlite,
    write_address,
)
from turnkeeper.stores.store import Driver, SqlStore
from turnkeeper.stores.usage import SqlUsage
from turnkeeper.traces import open_traces
from turnkeeper.usage import UsageBook
from turnkeeper.web.app import Web
from turnkeeper.web.frames import PING_SECONDS, PONG_SECONDS, Frames
from turnkeeper.web.origins import Origins
from turnkeeper.web.protocol import Patience, Protocol
from turnkeeper.web.telemetry import Telemetry, Write

if TYPE_CHECKING:
    from turnkeeper.issuer import JwtIssuer

log = logging.getLogger(__name__)


OpenDriver = Callable[[str, Durability], Awaitable[Driver]]


async def serve(
    config: Config,
    announce: Callable[[str, str], None],
    *,
    opening: OpenDriver | None = None,
    write: Write | None = None,
) -> None:
    """Serve until told to stop.

    `announce` gets the address and the default model's id once requests are answered.
    `opening` opens the database in the place of `open_driver`. `write` logs a line for each
    request and turn.

    Raises:
        ConfigError: the server cannot start as it is configured.
    """
    _allow_open_files()
    with _open_telemetry(config, write) as telemetry, bind(config.host, config.port) as listener:
        listener.listen(2048)
        async with open_parts(config, opening, telemetry) as parts:
            web = _web(parts, config, telemetry)
            _calm_collector()

            def listening() -> None:
                _publish(config.database, _address(listener))
                announce(_address(listener), parts.engine.models[0].id)

            await _Server(web, parts.engine, config.grace, _patience(config)).serve_on(
                listener, listening
            )


@asynccontextmanager
async def open_server(config: Config) -> AsyncIterator[str]:
    """A server beside other things in this loop, and its address; it leaves signals alone.

    Once the context is left, what still ran is stored as interrupted.

    Raises:
        ConfigError: the server cannot start as it is configured.
    """
    with bind(config.host, config.port) as listener:
        listener.listen(2048)
        telemetry = Telemetry()
        async with open_parts(config, telemetry=telemetry) as parts:
            web = _web(parts, config, telemetry)
            server = _Guest(web, parts.engine, 0, _patience(config))
            listening = asyncio.Event()
            serving = asyncio.create_task(server.serve_on(listener, listening.set))
            try:
                await listening.wait()
                _publish(config.database, _address(listener))
                yield _address(listener)
            finally:
                await parts.engine.drain(0)
                await web.hang_up()
                server.should_exit = True
                await serving


@contextmanager
def _open_telemetry(config: Config, write: Write | None) -> Iterator[Telemetry]:
    with_content = config.log_content == "on"
    if config.traces is None:
        yield Telemetry(write, with_content=with_content)
        return
    with open_traces(config.traces) as traces:
        yield Telemetry(write, with_content=with_content, trace=traces.turn_ended)


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


def _allow_open_files() -> None:
    """Raise the soft limit on open files to the hard one: a stream holds two sockets.

    Most systems start a process with 1,024, which is 500 streams; the limit is that low for
    programs that call select(2), and nothing here does.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(ValueError, OSError):  # macOS calls the hard limit infinite and takes less
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _calm_collector() -> None:
    """Spare what will live as long as the process, and look for cycles less often.

    A turn makes hundreds of objects and hardly a cycle: by default 6 % of its time went there.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)


@asynccontextmanager
async def open_parts(
    config: Config, opening: OpenDriver | None = None, telemetry: Telemetry | None = None
) -> AsyncIterator[Parts]:
    """The engine and its siblings over store and providers, with everything abandoned settled."""
    telemetry = telemetry or Telemetry()
    async with open_roster(config) as roster:
        offers = roster.make_offers()
        absences = tuple(roster.absences())
        for absence in absences:
            log.warning("Nothing is offered of a provider until the next start: %s", absence)
        for warning in check_deployments(config.all_deployments(), offers, absences):
            log.warning("%s", warning)
        issuer = _open_issuer(config)
        driver = await (opening or open_driver)(config.database, config.durability)
        store, documents = SqlStore(driver), SqlDocuments(driver)
        try:
            with _starting():
                settled = await store.settle_abandoned(_now())
                accounts = await _open_accounts(SqlAccounts(driver), config, issuer)
                counts = Counts(await store.list_counts())
                plans = Plans(offers, counts)
                usage = UsageBook(SqlUsage(driver), now=_now)
                parts = await _assemble(
                    store, documents, plans, accounts, config, usage=usage, observer=telemetry
                )
                telemetry.watch(parts.engine, counts, driver.commits)
            if settled:
                log.warning("%d turns that a crash had left were settled as interrupted", settled)
            settle_strays = parts.engine.settle_strays
            keeper = Keeper(store, counts, settle_strays, usage.keep, observer=telemetry, now=_now)
            keeping = {
                asyncio.create_task(keeper.run()),
                asyncio.create_task(keep_books(parts.gate)),
            }
            if accounts is not None:
                keeping.add(asyncio.create_task(accounts.run(asyncio.sleep)))
            try:
                yield parts
            finally:
                for task in keeping:
                    task.cancel()
                await asyncio.wait(keeping)
                await parts.engine.drain(0)
                await parts.gate.keep()
                await keeper.keep_counts()
                await usage.keep()
                if accounts is not None:
                    await accounts.keep_uses()
                    accounts.close()
        finally:
            if issuer is not None:
                await issuer.close()
            await store.close()


@contextmanager
def _starting() -> Iterator[None]:
    """A database that fails now keeps the server from starting."""
    try:
        yield
    except StoreUnavailable as error:
        raise ConfigError(f"The database cannot be written: {error.__cause__ or error}") from error


async def _assemble(
    store: Store,
    documents: DocumentStore,
    plans: Plans,
    accounts: Accounts | None,
    config: Config,
    *,
    usage: UsageBook,
    observer: Observer,
) -> Parts:
    entries, offers, random = config.all_deployments(), plans.offers, Randomness()
    default = entries[0].name
    microseconds = Rising(lambda: time.time_ns() // 1000)

    def new_id(make: Callable[[int, int], str] = make_session_id) -> str:
        return make(microseconds(), random.bits(76))

    deployments = Deployments(
        store, offers, plans, default, now=_now, new_id=lambda: make_revision_id(random.bits(130))
    )
    blueprints = {entry.name: entry.blueprint for entry in entries}
    await deployments.adopt(blueprints, complete=config.has_file)
    gate = Gate(store, _rules(config), now=_now, tick=time.monotonic)
    engine = Engine(
        store,
        offers,
        plans,
        _policy(config, default),
        gate,
        background=documents.get_passage,
        now=_now,
        new_id=new_id,
        observer=observer,
    )
    sessions = Sessions(store, engine, plans, default, gate, now=_now, new_id=new_id)
    library = Library(
        documents,
        sessions,
        engine,
        now=_now,
        new_document_id=lambda: new_id(make_document_id),
        new_section_id=lambda: new_id(make_section_id),
    )
    return Parts(engine, sessions, deployments, library, usage, gate, accounts)


def _open_issuer(config: Config) -> "JwtIssuer | None":
    """Whose tokens let people in beside our own keys; None for nobody's.

    Raises:
        ConfigError: the key is none.
    """
    if config.auth == "off" or config.jwt_issuer is None or config.jwt_audience is None:
        return None
    # Here, so that those who have no such provider need not carry cryptography in memory.
    from turnkeeper import issuer  # noqa: PLC0415

    usual = ("HS256",) if config.jwt_secret else ("RS256", "ES256", "EdDSA")
    algorithms = config.jwt_algorithms or usual
    rules = issuer.IssuerRules(
        config.jwt_issuer,
        config.jwt_audience,
        algorithms,
        config.jwt_user_claim,
        config.jwt_scope_claim,
    )
    keys: issuer.Keys
    if config.jwt_jwks_url is not None:
        keys = issuer.FetchedKeys(config.jwt_jwks_url)
    else:
        keys = issuer.StaticKey(config.jwt_public_key or config.jwt_secret or "", algorithms)
    return issuer.JwtIssuer(rules, keys, now=_now)


async def _open_accounts(
    store: AccountStore, config: Config, issuer: Issuer | None
) -> Accounts | None:
    """What credentials are looked up in; None where nobody is asked for any.

    Raises:
        ConfigError: nobody could come in.
    """
    if config.auth == "off":
        return None
    rules = LoginRules(config.login_idle * 1000, config.login_lifetime * 1000)
    accounts = Accounts(store, now=_now, rules=rules, issuer=issuer)
    await accounts.set_admin_key(config.admin_key)
    if issuer is None and not await accounts.can_anyone_enter():
        raise ConfigError(NOBODY_CAN_ENTER)
    if config.admin_key is not None:
        disabled = {user.name for user in await accounts.list_users() if user.disabled}
        if ADMIN in disabled:
            log.warning("The user admin is disabled, so the key of admin_key opens nothing")
    return accounts


NOBODY_CAN_ENTER = (
    "Credentials are asked for (auth is keys), and nobody has any: make a user with"
    " `turnkeeper users create NAME`, or set TURNKEEPER_ADMIN_KEY; or say --auth off to serve"
    " everyone who can reach the server"
)


async def open_store(url: str) -> Store:
    """The store at a database URL, locked and migrated."""
    return SqlStore(await open_driver(url))


async def open_driver(url: str, durability: Durability = "power") -> Driver:
    """The database at a URL, locked and migrated: what any store may be had on."""
    path = _sqlite_path(url)
    if path is not None:
        return open_sqlite(path, durability)
    # Here, so that those who use SQLite need not carry asyncpg in memory.
    from turnkeeper.stores.postgres import open_postgres  # noqa: PLC0415

    return await open_postgres(url, durability)


def _policy(config: Config, deployment: str) -> Policy:
    return Policy(
        deployment=deployment,
        message_limit=config.message_limit,
        reply_limit=config.reply_limit,
        queue_limit=config.queue_limit,
        queue_timeout=config.queue_timeout,
        checkpoint_seconds=config.checkpoint_seconds,
    )


def _rules(config: Config) -> Rules:
    server = Limits(running_turns=config.max_turns, open_streams=config.max_streams)
    return msgspec.structs.replace(config.limits, server=server)


def _web(parts: Parts, config: Config, telemetry: Telemetry) -> Web:
    return Web(
        parts,
        _origins(config),
        config.body_limit,
        config.public_url,
        telemetry=telemetry,
        proxies=frozenset(config.proxies),
        socket_lifetime=config.socket_lifetime,
    )


def _patience(config: Config) -> Patience:
    return Patience(config.header_timeout, config.body_timeout)


def _origins(config: Config) -> Origins:
    return Origins(
        hosts=frozenset({config.host.lower(), *(host.lower() for host in config.hosts)}),
        any_address=config.host not in LOOPBACK,
        allowed=config.cors,
        guarded=config.auth == "off",
        routes=config.cors_routes,
    )


def _now() -> int:
    return time.time_ns() // 1_000_000


# --- Commands, beside a server or without one --------------------------------------------------


@asynccontextmanager
async def visit_store(url: str) -> AsyncIterator[Store]:
    """The store at a database URL for a command: not locked, not migrated, nothing settled."""
    async with _visit_driver(url) as driver:
        yield SqlStore(driver)


@asynccontextmanager
async def visit_accounts(url: str, *, make: bool = False) -> AsyncIterator[Accounts]:
    """Users and keys for a command, as `visit_store`; `make` a database that is not there."""
    if make and await inspect_database(url) is None:
        await (await open_driver(url)).close()
    async with _visit_driver(url) as driver:
        accounts = Accounts(SqlAccounts(driver), now=_now)
        try:
            yield accounts
        finally:
            accounts.close()


async def inspect_database(url: str) -> int | None:
    """The number of the newest migration there; None if there has been none of ours."""
    path = _sqlite_path(url)
    if path is not None:
        return await asyncio.to_thread(inspect_sqlite, path)
    from turnkeeper.stores.postgres import inspect_postgres  # noqa: PLC0415

    return await inspect_postgres(url)


@asynccontextmanager
async def _visit_driver(url: str) -> AsyncIterator[Driver]:
    path = _sqlite_path(url)
    driver: Driver
    if path is not None:
        driver = visit_sqlite(path)
    else:
        from turnkeeper.stores.postgres import visit_postgres  # noqa: PLC0415

        driver = await visit_postgres(url)
    try:
        yield driver
    finally:
        await driver.close()


@asynccontextmanager
async def without_server(url: str) -> AsyncIterator[bool]:
    """Whether no server has the database; if so, none can start until this is left."""
    path = _sqlite_path(url)
    if path is not None:
        with sqlite.without_server(path) as alone:
            yield alone
    else:
        from turnkeeper.stores import postgres  # noqa: PLC0415

        async with postgres.without_server(url) as alone:
            yield alone


def back_up(url: str, target: Path, *, force: bool, progress: upkeep.Progress) -> upkeep.Backup:
    """Copy a SQLite database to a file; see `stores.upkeep.back_up`.

    Raises:
        ConfigError: it is PostgreSQL; or what `stores.upkeep.back_up` says.
    """
    path = _sqlite_path(url)
    if path is None:
        raise ConfigError("The database is PostgreSQL: its own pg_dump makes backups of it")
    return upkeep.back_up(path, target, force=force, progress=progress)


async def vacuum(url: str) -> tuple[int, int]:
    """Give the space of deleted rows back; the database's bytes before and after."""
    path = _sqlite_path(url)
    if path is not None:
        return upkeep.vacuum(path)
    from turnkeeper.stores.postgres import vacuum_postgres  # noqa: PLC0415

    return await vacuum_postgres(url)


# --- Listening ---------------------------------------------------------------------------------


_PATIENCE = 120  # seconds that a client may take nothing of what waits for it


def bind(host: str, port: int) -> socket.socket:
    """A socket on that address, which does not listen yet.

    Raises:
        ConfigError: it cannot be had; the `OSError` is its cause.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise ConfigError(f"The address {host} is not known here: {error}") from error
    # `localhost` is two addresses: the one that people type
    family, _, _, _, address = min(found, key=lambda info: info[0] != socket.AF_INET)
    listener = socket.socket(family)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if sys.platform == "linux":  # its connections inherit this; others have no such limit
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _PATIENCE * 1000)
    try:
        listener.bind(address)
    except OSError as error:
        listener.close()
        raise ConfigError(f"Port {port} of {host} cannot be used: {error.strerror}") from error
    return listener


def _address(listener: socket.socket) -> str:
    return shown_address(*listener.getsockname()[:2])


def shown_address(host: str, port: int) -> str:
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


class _Server(uvicorn.Server):
    """uvicorn, told to stop by us: it would wait for open streams before it ended their turns."""

    def __init__(self, web: Web, engine: Engine, grace: float, patience: Patience) -> None:
        protocol: Any = partial(Protocol, patience=patience)  # uvicorn only ever calls it
        frames: Any = partial(Frames, patience=patience.body)
        super().__init__(
            uvicorn.Config(
                web,
                loop="none",
                http=protocol,
                ws=frames,
                ws_max_size=web.body_limit,
                ws_ping_interval=PING_SECONDS,
                ws_ping_timeout=PONG_SECONDS,
                ws_per_message_deflate=False,
                lifespan="off",
                access_log=False,
                log_config=None,
                server_header=False,
                proxy_headers=False,
                timeout_keep_alive=65,  # longer than the usual proxy keeps its own end
                timeout_graceful_shutdown=2,
                backlog=2048,
            )
        )
        self._web = web
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
        try:
            await asyncio.wait({drained, hurried}, return_when=asyncio.FIRST_COMPLETED)
            hurried.cancel()
            if not drained.done():
                drained.cancel()
                await self._engine.drain(0)
            await self._web.hang_up()
        finally:
            # From here on clients are cut off on purpose, which uvicorn would log as errors.
            logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
            self.should_exit = True


class _Guest(_Server):
    """A server in a program that has other things to do, and signals of its own."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield
