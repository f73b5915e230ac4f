"""`GET /metrics`: what `telemetry` has counted, in the words of Prometheus.

Everything is collected when it is asked for, from plain integers. Loaded when first asked for,
since many servers never are.
"""

from collections.abc import Iterable, Iterator
from importlib.metadata import version
from itertools import accumulate

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
)
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from turnkeeper.histograms import Buckets
from turnkeeper.web.telemetry import Telemetry

CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4.encode()


class Metrics(Collector):
    """A registry of its own, so that two servers in one process tell each their own."""

    def __init__(self, telemetry: Telemetry) -> None:
        self._telemetry = telemetry
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self)
        ProcessCollector(registry=self._registry)

    def tell(self) -> bytes:
        """All of it, as text."""
        return generate_latest(self._registry)

    def collect(self) -> Iterator[Metric]:
        yield _gauge("build_info", "The program.", [((version("turnkeeper"),), 1)], "version")
        yield from self._requests()
        yield from self._turns()
        yield from self._calls()
        yield from self._database()
        yield from self._now()

    def _requests(self) -> Iterator[Metric]:
        told = self._telemetry
        requests = [
            ((route, method, str(status)), count)
            for (route, method, status), count in told.requests.items()
        ]
        yield _counter("requests", "Requests answered.", requests, "route", "method", "status")
        yield _histogram(
            "request_seconds",
            "From a request to the end of its answer.",
            (((route,), buckets) for route, buckets in told.request_seconds.items()),
            "route",
        )
        yield _gauge("open_streams", "Event streams and WebSockets open now.", [((), told.streams)])

    def _turns(self) -> Iterator[Metric]:
        told = self._telemetry
        yield _counter("turns", "Turns that are over.", told.turns.items(), "state", "model")
        for name, help_, by_model in (
            ("turn_seconds", "From a message to the end of its turn.", told.turn_seconds),
            (
                "first_delta_seconds",
                "From a message to the first of the reply.",
                told.first_seconds,
            ),
        ):
            yield _histogram(
                name, help_, (((model,), buckets) for model, buckets in by_model.items()), "model"
            )
        yield _counter("tokens", "Tokens used.", told.tokens.items(), "model", "kind")
        yield _counter(
            "settled_strays", "Turns that nobody made, ended as interrupted.", [((), told.strays)]
        )
        yield _counter("expired_sessions", "Sessions that have expired.", [((), told.expired)])

    def _calls(self) -> Iterator[Metric]:
        told = self._telemetry
        yield _counter(
            "provider_calls",
            "Calls of models, by what came of them.",
            told.calls.items(),
            "provider",
            "outcome",
        )
        retries = [((provider,), count) for provider, count in told.retries.items()]
        yield _counter(
            "provider_retries", "Calls made because the one before had failed.", retries, "provider"
        )
        yield _gauge(
            "token_estimate_error",
            "By what part estimates of a prompt's tokens are wrong, in the mean.",
            (((model,), error) for model, error in told.token_errors().items()),
            "model",
        )

    def _database(self) -> Iterator[Metric]:
        commits = self._telemetry.commits
        if commits is None:
            return
        yield _histogram("commit_seconds", "What a commit takes.", [((), commits.seconds)])
        yield _histogram(
            "commit_transactions", "Transactions in one commit.", [((), commits.transactions)]
        )

    def _now(self) -> Iterator[Metric]:
        engine = self._telemetry.engine
        if engine is None:
            return
        load = engine.load
        yield _gauge("running_turns", "Turns that run now.", [((), load.running)])
        yield _gauge("queued_turns", "Turns that wait in their session now.", [((), load.queued)])
        yield _gauge(
            "unkept_replies", "Replies made now of which nothing is kept.", [((), load.passing)]
        )
        yield _gauge(
            "model_rests",
            "1 while a model is left alone that keeps failing.",
            ((who, int(rests)) for who, rests in load.resting.items()),
            "provider",
            "model",
        )


Labelled = Iterable[tuple[tuple[str, ...], float]]


def _counter(name: str, help_: str, values: Labelled, *labels: str) -> Metric:
    family = CounterMetricFamily(f"turnkeeper_{name}", help_, labels=labels)
    for of, value in values:
        family.add_metric(of, value)
    return family


def _gauge(name: str, help_: str, values: Labelled, *labels: str) -> Metric:
    family = GaugeMetricFamily(f"turnkeeper_{name}", help_, labels=labels)
    for of, value in values:
        family.add_metric(of, value)
    return family


def _histogram(
    name: str, help_: str, values: Iterable[tuple[tuple[str, ...], Buckets]], *labels: str
) -> Metric:
    family = HistogramMetricFamily(f"turnkeeper_{name}", help_, labels=labels)
    for of, buckets in values:
        bounds = [*map(str, buckets.bounds), "+Inf"]
        so_far = accumulate(buckets.counts)
        family.add_metric(of, list(zip(bounds, so_far, strict=True)), buckets.sum)
    return family
