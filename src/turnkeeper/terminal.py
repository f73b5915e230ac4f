"""`turnkeeper chat`: a conversation in the terminal, or one message through a pipe.

There is one way of talking, over HTTP: to the server that `--url` names, to the one that runs on
this machine on the same database, or else to one that is opened here, in this process. Knows
nothing of engines, stores or providers.
"""

import asyncio
import logging
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
from prompt_toolkit import PromptSession
from prompt_toolkit.completion import WordCompleter
from prompt_toolkit.history import FileHistory, History, InMemoryHistory
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from rich.console import Console
from rich.table import Table
from rich.text import Text

from turnkeeper.client import (
    Client,
    ClientError,
    Event,
    Finished,
    Lost,
    Model,
    Refusal,
    Session,
    Started,
    Taken,
    Unreachable,
    Words,
)
from turnkeeper.compose import find_server, open_server
from turnkeeper.config import Config
from turnkeeper.errors import ConfigError
from turnkeeper.screen import ReplyView, printable, unechoed

_START_SECONDS = 5.0  # how long to wait for a server that has the database but does not listen yet
_LOOK_SECONDS = 0.05
_TICK_SECONDS = 0.1


class Wish(msgspec.Struct, frozen=True):
    """What the command line asks for, beside the settings.

    Attributes:
        url: of the server; None for one on this machine.
        session: its id; None for a new one.
        model: to ask for with every message; None for the session's own.
        key: for a server that asks for one.
    """

    url: str | None
    session: str | None
    model: str | None
    key: str | None = None


class Exchange(msgspec.Struct):
    """A message and what came of it.

    Attributes:
        status: the turn's final state; `refused`, `unreachable` or `left` if none is known.
        problem: a sentence, unless the reply is complete.
        taken: whether the server has the message.
    """

    message: str
    session: str | None
    model: str = ""
    reply: str = ""
    status: str = ""
    problem: str = ""
    taken: bool = False
    stopped: bool = False
    wrong: bool = False  # it could never have been taken: what was asked for is not there


# --- Where the server is -------------------------------------------------------------------------


class Home:
    """Finds the server to talk to; opens one if this machine runs none on the database."""

    def __init__(self, config: Config, url: str | None, stack: AsyncExitStack) -> None:
        """`stack` closes what is opened here."""
        self._config = config
        self._url = url
        self._stack = stack

    async def locate(self) -> str:
        """The server's address.

        Raises:
            Unreachable: there is none, and none can be opened.
        """
        if self._url is not None:
            return self._url
        found = await self._find()
        if found is not None:
            return found
        try:
            self._url = await self._stack.enter_async_context(open_server(self._config))
        except ConfigError as error:
            raise Unreachable(error.sentence) from error
        return self._url

    async def _find(self) -> str | None:
        """The address of the server that runs already; one that is starting is waited for."""
        deadline = asyncio.get_running_loop().time() + _START_SECONDS
        while (found := find_server(self._config.database)) == "":
            if asyncio.get_running_loop().time() > deadline:
                raise Unreachable("The server of this database has not begun to listen")
            await asyncio.sleep(_LOOK_SECONDS)
        return found


# --- Ctrl-C ---------------------------------------------------------------------------------------


class Interrupts:
    """What Ctrl-C does: the act that was begun last and is not over."""

    def __init__(self, act: Callable[[], object]) -> None:
        self._acts = [act]
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGINT, self._interrupt)

    def _interrupt(self) -> None:
        self._acts[-1]()

    @contextmanager
    def do(self, act: Callable[[], object]) -> Iterator[None]:
        self._acts.append(act)
        try:
            yield
        finally:
            self._acts.pop()


# --- One message ---------------------------------------------------------------------------------


class Talk:
    """One message on its way to its reply.

    Ctrl-C stops the reply, and the server is told; a second one stops the waiting for that.
    """

    def __init__(
        self,
        client: Client,
        interrupts: "Interrupts",
        exchange: Exchange,
        show: Callable[[Event], None],
    ) -> None:
        """`show` gets every event once it is in `exchange`."""
        self._interrupts = interrupts
        self._client = client
        self._exchange = exchange
        self._show = show
        self._turn_id = ""
        self._hearing: asyncio.Task[None] | None = None
        self._stopping: asyncio.Task[None] | None = None

    async def run(self, model: str | None) -> None:
        """Returns once `exchange` says how it ended."""
        self._hearing = asyncio.create_task(self._hear(model))
        try:
            with self._interrupts.do(self._interrupt):
                await asyncio.wait([self._hearing])
        finally:
            self._hearing.cancel()
            if self._stopping is not None:
                self._stopping.cancel()
        if self._hearing.cancelled():
            self._exchange.status = "left"
            self._exchange.problem = "Not waited for; the reply may go on at the server."
        else:
            self._hearing.result()

    async def _hear(self, model: str | None) -> None:
        exchange = self._exchange
        try:
            async for event in self._client.take_turn(exchange.message, exchange.session, model):
                self._note(event)
                self._show(event)
        except Refusal as refusal:
            exchange.status, exchange.problem = "refused", _ended(refusal.sentence)
            too_long = refusal.code == "context_length_exceeded"
            exchange.wrong = refusal.status in (400, 401, 403, 404) and not too_long
        except ClientError as error:
            exchange.status, exchange.problem = "unreachable", _ended(error.sentence)
            exchange.wrong = not exchange.taken

    def _note(self, event: Event) -> None:
        exchange = self._exchange
        match event:
            case Words(text=text):
                exchange.reply += text
            case Taken(turn_id=turn_id, session_id=session_id):
                exchange.session, exchange.taken, self._turn_id = session_id, True, turn_id
                if exchange.stopped:
                    self._tell()
            case Started(model=model):
                exchange.model = model
            case Finished(status=status, text=text, error=error):
                exchange.status = status
                exchange.problem = _PROBLEMS.get(status, "") or _ended(error or "")
                exchange.reply = exchange.reply if text is None else text
            case Lost():
                pass

    def _interrupt(self) -> None:
        if self._exchange.stopped and self._hearing is not None:
            self._hearing.cancel()
        self._exchange.stopped = True
        if self._turn_id:
            self._tell()

    def _tell(self) -> None:
        if self._stopping is None:
            self._stopping = asyncio.create_task(self._cancel_turn())

    async def _cancel_turn(self) -> None:
        try:
            await self._client.cancel_turn(self._turn_id)
        except ClientError:
            if self._hearing is not None:
                self._hearing.cancel()


_PROBLEMS = {
    "cancelled": "Stopped.",
    "interrupted": "The server stopped before the reply was complete.",
}


def _ended(sentence: str) -> str:
    """With a full stop: the wire's sentences have none."""
    return sentence if not sentence or sentence.endswith((".", "!", "?")) else f"{sentence}."


# --- Beginning -----------------------------------------------------------------------------------


def run(config: Config, wish: Wish) -> int:
    """Talk until the end; the program's exit code."""
    logging.basicConfig(format="turnkeeper: %(message)s", level=logging.ERROR)
    main = _Main(config, wish)
    try:
        interactive = sys.stdin.isatty() and sys.stdout.isatty()
        return asyncio.run(main.run(None if interactive else _read_message()))
    except ClientError as error:
        return _fail(error.sentence, 2)
    except KeyboardInterrupt:
        return 130
    except asyncio.CancelledError:
        return 128 + main.ended_by


class _Main:
    """The program in its loop: with its server, its client, and an end when it is told to end."""

    def __init__(self, config: Config, wish: Wish) -> None:
        self._config = config
        self._wish = wish
        self.ended_by = 0

    async def run(self, message: str | None) -> int:
        """Say one message, or without one have a conversation; the exit code."""
        loop, task = asyncio.get_running_loop(), asyncio.current_task()

        def end(number: int) -> None:
            self.ended_by = number
            if task is not None:
                task.cancel()

        for number in (signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(number, end, number)
        interrupts = Interrupts(lambda: end(signal.SIGINT))
        async with self._open_client() as client:
            models = await _known_models(client, self._wish.model)
            if message is None:
                return await Terminal(client, interrupts, self._wish, models).run()
            return await answer(client, interrupts, self._wish, message)

    @asynccontextmanager
    async def _open_client(self) -> AsyncIterator[Client]:
        # The client first, so that it is closed before our own server, which would wait for it.
        async with AsyncExitStack() as stack:
            home = Home(self._config, self._wish.url, stack)
            async with aiohttp.ClientSession() as http:
                yield Client(http, home.locate, key=self._wish.key)


async def _known_models(client: Client, wanted: str | None) -> list[Model]:
    """What the server offers.

    Raises:
        ClientError: there is no server, or it offers no model, or not the wanted one.
    """
    models = await client.list_models()
    known = [model.id for model in models]
    if not known:
        raise ClientError("The server offers no model")
    if wanted is not None and wanted not in known:
        raise ClientError(f"The server has no model {wanted}; it has {', '.join(known)}")
    return models


def _fail(sentences: str, code: int) -> int:
    for sentence in sentences.splitlines():
        print(f"turnkeeper: {_ended(printable(sentence))}", file=sys.stderr)  # noqa: T201
    return code


# --- Through a pipe ------------------------------------------------------------------------------


def _read_message() -> str:
    """Standard input without its last line end, as `$(…)` would have it.

    Raises:
        ClientError: there is nothing, or it is not text.
    """
    try:
        message = sys.stdin.buffer.read().decode("utf-8").rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise ClientError("Standard input is not UTF-8") from error
    if not message.strip():
        raise ClientError("Standard input holds no message")
    return message


async def answer(client: Client, interrupts: Interrupts, wish: Wish, message: str) -> int:
    """Say one message, print the reply as it is made and nothing else; the exit code."""
    exchange = Exchange(message, wish.session)
    shown = printable if sys.stdout.isatty() else str

    heard = False

    def show(event: Event) -> None:
        nonlocal heard
        if isinstance(event, Words):
            heard = True
            _write(shown(event.text))

    await Talk(client, interrupts, exchange, show).run(wish.model)
    if heard:
        _write("\n")
    if exchange.status == "completed":
        return 0
    code = 130 if exchange.stopped else 2 if exchange.wrong else 1
    return _fail(exchange.problem, code)


def _write(text: str) -> None:
    sys.stdout.buffer.write(text.encode("utf-8"))
    sys.stdout.flush()


# --- In a terminal -------------------------------------------------------------------------------

_PROMPT = "› "


class Terminal:
    """A conversation with commands. Knows what was said in this run, and no more."""

    def __init__(
        self, client: Client, interrupts: Interrupts, wish: Wish, models: Sequence[Model]
    ) -> None:
        self._client = client
        self._interrupts = interrupts
        self._session = wish.session
        self._model = wish.model
        self._models = models
        self._said: list[Exchange] = []
        self._listed: list[str] = []  # ids of sessions, as the last /sessions numbered them
        self._quitting = False
        self._console = Console(highlight=False)
        self._commands: dict[str, tuple[str, str, Callable[[str], Coroutine[Any, Any, None]]]] = {
            "/new": ("", "begin a new session", self._new),
            "/sessions": ("", "list the sessions", self._sessions),
            "/switch": ("SESSION", "go on in another session: its number or its id", self._switch),
            "/clear": ("", "remove all messages of this session from the server", self._clear),
            "/model": ("[MODEL]", "list the models, or ask this one from now on", self._choose),
            "/retry": ("", "send the last message again if its reply failed", self._retry),
            "/export": ("FILE", "write what was said since the start, as Markdown", self._export),
            "/help": ("", "show this", self._help),
            "/quit": ("", "leave; so does Ctrl-D", self._quit),
        }

    async def run(self) -> int:
        model = self._model or (self._models[0].id if self._session is None else "its own model")
        self._tell(f"Talking to {model} at {self._client.url}. /help lists the commands.")
        prompt = self._make_prompt()
        with self._interrupts.do(lambda: None):  # at the prompt, Ctrl-C is a key
            while not self._quitting:
                try:
                    line = await prompt.prompt_async(_PROMPT, handle_sigint=False)
                except EOFError:
                    break
                await self._obey(line)
        return 0

    def _make_prompt(self) -> PromptSession[str]:
        return PromptSession(
            history=open_history(os.environ),
            completer=WordCompleter(list(self._commands), sentence=True),
            complete_while_typing=False,
            key_bindings=_keys(),
            multiline=True,
            prompt_continuation="  ",
        )

    async def _obey(self, line: str) -> None:
        """Do what the line commands, or say it."""
        text = line.strip()
        if not text:
            return
        name, _, argument = text.partition(" ")
        if not name.startswith("/"):
            await self._say(line)
        elif name.startswith("//"):
            await self._say(text[1:])
        elif name not in self._commands:
            self._tell(f"There is no command {name}. /help lists them; // begins a message with /.")
        else:
            _, _, act = self._commands[name]
            await self._act(act(argument.strip()))

    async def _act(self, command: Coroutine[Any, Any, None]) -> None:
        """Do a command; Ctrl-C gives it up."""
        acting = asyncio.create_task(command)
        try:
            with self._interrupts.do(acting.cancel):
                await asyncio.wait([acting])
        finally:
            acting.cancel()
        if acting.cancelled():
            self._tell("Not waited for.")
        elif isinstance(error := acting.exception(), ClientError):
            self._tell(_ended(error.sentence))
        else:
            acting.result()

    async def _say(self, message: str) -> None:
        exchange = Exchange(message, self._session)
        self._said.append(exchange)
        with unechoed(sys.stdin.fileno()), ReplyView(self._console) as view, _ticking(view):
            await Talk(self._client, self._interrupts, exchange, _shown_by(view)).run(self._model)
        self._session = exchange.session
        if exchange.problem:
            again = "" if exchange.status == "cancelled" else " /retry sends the message again."
            self._tell(exchange.problem + again)

    def _tell(self, sentence: str) -> None:
        self._console.print(Text(printable(sentence), style="dim"))

    # --- Commands --------------------------------------------------------------------------------

    async def _new(self, _: str) -> None:
        self._session = None
        self._tell("A new session begins with your next message.")

    async def _sessions(self, _: str) -> None:
        sessions = await self._client.list_sessions()
        self._listed = [session.id for session in sessions]
        if sessions:
            self._console.print(self._table_of(sessions))
        else:
            self._tell("There is no session with messages yet.")

    def _table_of(self, sessions: Sequence[Session]) -> Table:
        table = Table(box=None, header_style="dim")
        for heading in ("", "session", "messages"):
            table.add_column(heading, justify="left" if heading == "session" else "right")
        for number, session in enumerate(sessions, 1):
            style = "bold" if session.id == self._session else ""
            name = Text(printable(session.id), style=style)
            table.add_row(str(number), name, str(session.message_count))
        return table

    async def _switch(self, wanted: str) -> None:
        known = [session.id for session in await self._client.list_sessions()]
        numbered = dict(enumerate(self._listed or known, 1))
        if wanted.isdecimal() and wanted not in known:
            wanted = numbered.get(int(wanted), wanted)
        if wanted not in known:
            self._tell("There is no such session. /sessions lists them.")
            return
        self._session = wanted
        self._tell(f"Now in session {wanted}. Its earlier messages are known to the model.")

    async def _clear(self, _: str) -> None:
        if self._session is not None:
            await self._client.clear_session(self._session)
        self._said = [each for each in self._said if each.session != self._session]
        self._tell("The session is empty now.")

    async def _choose(self, wanted: str) -> None:
        self._models = await self._client.list_models()
        if not wanted:
            for model in self._models:
                mark = "*" if model.id == self._model else " "
                self._console.print(Text(printable(f"{mark} {model.id}  ({model.name})")))
        elif wanted not in [model.id for model in self._models]:
            self._tell(f"The server has no model {wanted}. /model lists them.")
        else:
            self._model = wanted
            self._tell(f"From now on {wanted} is asked.")

    async def _retry(self, _: str) -> None:
        here = [each for each in self._said if each.session == self._session]
        if not here or here[-1].status == "completed":
            self._tell("No message of this session failed; there is nothing to send again.")
            return
        self._tell(f"Again: {here[-1].message}")
        await self._say(here[-1].message)

    async def _export(self, file: str) -> None:
        if not file:
            self._tell("Say which file: /export FILE")
            return
        self._tell(write_new(file, encode_conversation(self._said)))

    async def _help(self, _: str) -> None:
        table = Table(box=None, show_header=False)
        for name, (argument, does, _act) in self._commands.items():
            table.add_row(Text(f"{name} {argument}".rstrip()), Text(does))
        table.add_row(Text("//…"), Text("say something that begins with /"))
        table.add_row(Text("Alt-Enter"), Text("begin a new line within a message"))
        table.add_row(Text("Ctrl-C"), Text("stop the reply; at an empty prompt, leave"))
        self._console.print(table)

    async def _quit(self, _: str) -> None:
        self._quitting = True


def _shown_by(view: ReplyView) -> Callable[[Event], None]:
    def show(event: Event) -> None:
        match event:
            case Words(text=text):
                view.add(text)
            case Lost():
                view.note("The connection was lost; trying again.")
            case Finished(text=str(text)):
                view.replace(text)
            case _:
                pass

    return show


@contextmanager
def _ticking(view: ReplyView) -> Iterator[None]:
    async def tick() -> None:
        while True:
            view.tick()
            await asyncio.sleep(_TICK_SECONDS)

    ticking = asyncio.create_task(tick())
    try:
        yield
    finally:
        ticking.cancel()


def _keys() -> KeyBindings:
    keys = KeyBindings()

    @keys.add("enter")
    @keys.add("c-j")  # what Enter is if it was pressed while the reply was made
    def _(event: KeyPressEvent) -> None:
        event.current_buffer.validate_and_handle()

    @keys.add("escape", "enter")
    def _(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    @keys.add("c-c")
    def _(event: KeyPressEvent) -> None:
        if event.current_buffer.text:
            event.current_buffer.reset()
        else:
            event.app.exit(exception=EOFError)

    return keys


def open_history(environment: Mapping[str, str]) -> History:
    """What was typed in earlier runs, kept where only this user can read it; else of this run."""
    try:
        state = environment.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
        file = Path(state) / "turnkeeper" / "history"
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.close(os.open(file, os.O_CREAT | os.O_RDWR, 0o600))
        file.chmod(0o600)
    except (OSError, RuntimeError):  # no home, or none that can be written
        return InMemoryHistory()
    return FileHistory(str(file))


def write_new(file: str, text: str) -> str:
    """Write a file that is not there yet; a sentence about how that went."""
    path = Path(os.path.expanduser(file))  # noqa: PTH111  pathlib raises for an unknown ~user
    try:
        with path.open("x", encoding="utf-8") as opened:
            opened.write(text)
    except FileExistsError:
        return f"{path} is there already; say another name."
    except OSError as error:
        return f"{path} cannot be written: {error.strerror}."
    return f"What was said since the start is in {path}."


def encode_conversation(said: Sequence[Exchange]) -> str:
    """What was said, as Markdown; a heading for each session and each speaker."""
    parts = ["# A conversation"]
    session = None
    for exchange in said:
        if exchange.session != session:
            session = exchange.session
            parts.append(f"## Session {session}")
        parts.append(f"### You\n\n{exchange.message}")
        if exchange.reply:
            parts.append(f"### {exchange.model}\n\n{exchange.reply}")
        if exchange.problem:
            parts.append(f"*{exchange.problem}*")
    return "\n\n".join(parts) + "\n"
