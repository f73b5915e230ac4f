"""What the server counts of itself: requests, turns, calls of models. Told when they are over.

Plain integers in dictionaries, since this is on the path of every request and every turn; they
are put into words when someone asks (`metrics`). Each dictionary is as large as what its keys are
bounded by: routes by their patterns, models by what is offered, states and codes by the program.
"""

import time
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from functools import partial
from types import MappingProxyType
from typing import Any

from turnkeeper.counts import Counts
from turnkeeper.dialects.exchange import Answer, EventStream, Outcome, Upgrade
from turnkeeper.domain import Message
from turnkeeper.engine import Engine
from turnkeeper.histograms import Buckets
from turnkeeper.observer import Commits, Lived, ProviderCall
from turnkeeper.web.request import Request

# In seconds: an answer from the database, to a turn that a model takes minutes for.
REQUEST_BOUNDS = (
    0.001,
    0.0025,
    0.005,
    0.01,
    0.025,
    0.05,
    0.1,
    0.25,
    0.5,
    1,
    2.5,
    5,
    10,
    30,
    60,
    300,
)
TURN_BOUNDS = (0.05, 0.1, 0.25, 0.5, 1, 2, 3, 5, 7.5, 10, 15, 20, 30, 45, 60, 120, 300, 600)
FIRST_BOUNDS = (0.025, 0.05, 0.1, 0.15, 0.25, 0.35, 0.5, 0.75, 1, 1.5, 2, 3, 5, 7.5, 10, 20, 60)

METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "WEBSOCKET"})

# Of the request that is served; a turn that it begins inherits it, whoever waits for that turn.
_REQUEST: ContextVar[bytes] = ContextVar("request", default=b"")

_PARENT: ContextVar[Mapping[str, str]] = ContextVar("parent", default=MappingProxyType({}))
_TRACE_HEADERS = ("traceparent", "tracestate")

Line = dict[str, Any]
Write = Callable[[Line], None]
Trace = Callable[[Lived, Mapping[str, str]], None]


class Telemetry:
    """Counts, and has lines logged; an `observer.Observer` of everything.

    Attributes:
        requests: how many, by route, method and status.
        request_seconds: by route.
        turns: that are over, by state and model; `turn_seconds` and `first_seconds` by model.
        tokens: by model and kind.
        calls: of models, by provider and outcome; `retries` of them by provider.
        streams: that are open now.
    """

    def __init__(
        self,
        write: Write | None = None,
        *,
        with_content: bool = False,
        trace: Trace | None = None,
    ) -> None:
        """`write` takes lines of the log; `with_content` they hold what people say.

        `trace` is told of each turn with the headers of the request that say what it is part of.
        """
        self._write = write
        self._trace = trace
        self._with_content = with_content
        self.requests: Counter[tuple[str, str, int]] = Counter()
        self.request_seconds: defaultdict[str, Buckets] = _buckets(REQUEST_BOUNDS)
        self.turns: Counter[tuple[str, str]] = Counter()
        self.turn_seconds: defaultdict[str, Buckets] = _buckets(TURN_BOUNDS)
        self.first_seconds: defaultdict[str, Buckets] = _buckets(FIRST_BOUNDS)
        self.tokens: Counter[tuple[str, str]] = Counter()
        self.calls: Counter[tuple[str, str]] = Counter()
        self.retries: Counter[str] = Counter()
        self.streams = 0
        self.strays = 0
        self.expired = 0
        self.engine: Engine | None = None
        self.counts: Counts | None = None
        self.commits: Commits | None = None

    def watch(self, engine: Engine, counts: Counts, commits: Commits) -> None:
        """Tell of these too, as they are when someone asks."""
        self.engine, self.counts, self.commits = engine, counts, commits

    # --- Requests --------------------------------------------------------------------------------

    def request_began(self, request: Request) -> float:
        """When that was, for `request_ended`. What the request does is known by its id."""
        if self._write is not None:
            _REQUEST.set(request.id)
        if self._trace is not None:
            named = {name: request.headers.get(name.encode()) for name in _TRACE_HEADERS}
            _PARENT.set({name: value.decode("latin-1") for name, value in named.items() if value})
        return time.monotonic()

    def answering(self, outcome: Outcome) -> None:
        if isinstance(outcome, EventStream | Upgrade):
            self.streams += 1

    def request_ended(self, request: Request, outcome: Outcome | None, began: float) -> None:
        """An outcome of None is that the client went away before there was one."""
        if isinstance(outcome, EventStream | Upgrade):
            self.streams -= 1
        seconds = time.monotonic() - began
        method = request.method if request.method in METHODS else "other"
        status = _status(outcome)
        self.requests[request.route, method, status] += 1
        self.request_seconds[request.route].add(seconds)
        if self._write is not None:
            line = {
                "event": "request",
                "request_id": request.id.decode(),
                "method": method,
                "route": request.route,
                "status": status,
                "seconds": int(seconds * 1e4) / 1e4,
            }
            if request.caller is not None and request.caller.name:
                line["user"] = request.caller.owner
            turn = _turn_of(outcome)
            if turn:
                line["turn"] = turn
            self._write(line)

    # --- Turns -----------------------------------------------------------------------------------

    def turn_ended(self, lived: Lived) -> None:
        turn, usage = lived.turn, lived.turn.usage
        model = turn.model
        self.turns[turn.status.value, model] += 1
        self.turn_seconds[model].add(lived.ended - lived.began)
        if lived.first is not None:
            self.first_seconds[model].add(lived.first - lived.began)
        if usage is not None:
            self.tokens[model, "prompt"] += usage.prompt_tokens
            self.tokens[model, "completion"] += usage.completion_tokens
        if self._write is not None:
            self._write(self._line(lived))
        if self._trace is not None:
            self._trace(lived, _PARENT.get())

    def _line(self, lived: Lived) -> Line:
        turn, usage = lived.turn, lived.turn.usage
        line: Line = {
            "event": "turn",
            "turn": turn.ref.id,
            "session": turn.ref.session_id,
            "user": lived.owner,
            "model": turn.model,
            "state": turn.status.value,
            "seconds": int((lived.ended - lived.began) * 1e4) / 1e4,
        }
        request = _REQUEST.get()
        if request:
            line["request_id"] = request.decode()
        if lived.started is not None:
            line["queued_seconds"] = int((lived.started - lived.began) * 1e4) / 1e4
        if lived.first is not None:
            line["first_delta_seconds"] = int((lived.first - lived.began) * 1e4) / 1e4
        if usage is not None:
            line["prompt_tokens"] = usage.prompt_tokens
            line["completion_tokens"] = usage.completion_tokens
        if len(lived.calls) > 1:
            line["calls"] = len(lived.calls)
        if turn.failure is not None:
            line["error"] = turn.failure.code
        if self._with_content:
            line["message"] = _last_words(lived)
            line["reply"] = lived.text
        return line

    def call_ended(self, call: ProviderCall) -> None:
        self.calls[call.provider, call.error or "ok"] += 1
        if call.again:
            self.retries[call.provider] += 1

    # --- What runs by the clock ------------------------------------------------------------------

    def strays_settled(self, count: int) -> None:
        self.strays += count

    def sessions_expired(self, count: int) -> None:
        self.expired += count

    def token_errors(self) -> Mapping[str, float]:
        """By what part estimates of prompts are wrong in the mean, for each model with any."""
        models = () if self.engine is None else (model.id for model in self.engine.models)
        counts = self.counts
        return {} if counts is None else {model: counts.error(model) for model in models}


def _buckets(bounds: tuple[float, ...]) -> defaultdict[str, Buckets]:
    return defaultdict(partial(Buckets, bounds))


def _status(outcome: Outcome | None) -> int:
    if isinstance(outcome, Answer):
        return outcome.status
    if outcome is None:
        return 499  # as nginx has it
    return 101 if isinstance(outcome, Upgrade) else 200


def _turn_of(outcome: Outcome | None) -> str:
    if outcome is None or isinstance(outcome, Upgrade):
        return ""
    for name, value in outcome.headers:
        if name == b"turn-id":
            return value.decode()
    return ""


def _last_words(lived: Lived) -> str | None:
    """The newest message of the user's that the model was shown."""
    items = () if lived.prompt is None else lived.prompt.items
    said = (
        item.text for item in reversed(items) if isinstance(item, Message) and item.role == "user"
    )
    return next(said, None)
