"""Traces by OpenTelemetry: a span for each turn, with the calls of models inside.

Spans are made when the turn is over, from what is known of it by then; a thread of the SDK, which
nobody waits for, sends them to the collector. They hold no word of what is said. Needs the packages
of the extra `otel`, which are loaded only here and only if traces are asked for.
"""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from turnkeeper.errors import ConfigError
from turnkeeper.observer import Lived, ProviderCall

if TYPE_CHECKING:
    from opentelemetry.context import Context

_LAST_SECONDS = 2.0  # that the end waits for what is still to be sent


@contextmanager
def open_traces(endpoint: str) -> Iterator["Traces"]:
    """Send traces to a collector by OTLP over HTTP: `endpoint` is its address for traces.

    Raises:
        ConfigError: the packages are not there.
    """
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import (  # noqa: PLC0415
            OTLPSpanExporter,
        )
        from opentelemetry.sdk.resources import Resource  # noqa: PLC0415
        from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
        from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415
    except ImportError as error:
        raise ConfigError(
            "Traces need packages that are not installed: pip install 'turnkeeper[otel]'"
        ) from error
    attributes = {"service.name": "turnkeeper", "service.version": version("turnkeeper")}
    provider = TracerProvider(resource=Resource.create(attributes), shutdown_on_exit=False)
    exporter = OTLPSpanExporter(endpoint, timeout=_LAST_SECONDS)
    provider.add_span_processor(BatchSpanProcessor(exporter))
    try:
        yield Traces(provider)
    finally:
        provider.shutdown()


class Traces:
    """Makes spans."""

    def __init__(self, provider: Any) -> None:
        from opentelemetry import trace  # noqa: PLC0415
        from opentelemetry.trace.propagation.tracecontext import (  # noqa: PLC0415
            TraceContextTextMapPropagator,
        )

        self._trace = trace
        self._tracer = provider.get_tracer("turnkeeper")
        self._propagator = TraceContextTextMapPropagator()

    def turn_ended(self, lived: Lived, parent: Mapping[str, str]) -> None:
        """`parent` are the headers `traceparent` and `tracestate` of the request that began it."""
        # What was measured by a clock without a date, as dates.
        offset = time.time_ns() - int(time.monotonic() * 1e9)
        turn, usage = lived.turn, lived.turn.usage
        attributes: dict[str, Any] = {
            "gen_ai.operation.name": "chat",
            "gen_ai.request.model": turn.model,
            "gen_ai.conversation.id": turn.ref.session_id,
            "turnkeeper.turn.id": turn.ref.id,
            "turnkeeper.turn.state": turn.status.value,
            "user.id": lived.owner,
        }
        if usage is not None:
            attributes["gen_ai.usage.input_tokens"] = usage.prompt_tokens
            attributes["gen_ai.usage.output_tokens"] = usage.completion_tokens
        if turn.failure is not None:
            attributes["error.type"] = turn.failure.code
        context = self._propagator.extract(parent)
        span = self._tracer.start_span(
            "turn", context, attributes=attributes, start_time=_at(lived.began, offset)
        )
        if lived.started is not None:
            span.add_event("started", timestamp=_at(lived.started, offset))
        if lived.first is not None:
            span.add_event("first delta", timestamp=_at(lived.first, offset))
        if turn.failure is not None:
            span.set_status(self._trace.StatusCode.ERROR, turn.failure.code)
        inside = self._trace.set_span_in_context(span, context)
        for call in lived.calls:
            self._call(call, inside, offset)
        span.end(_at(lived.ended, offset))

    def _call(self, call: ProviderCall, inside: "Context", offset: int) -> None:
        attributes = {
            "gen_ai.operation.name": "chat",
            "gen_ai.provider.name": call.provider,
            "gen_ai.request.model": call.model,
        }
        if call.error is not None:
            attributes["error.type"] = call.error
        span = self._tracer.start_span(
            f"chat {call.model}",
            inside,
            kind=self._trace.SpanKind.CLIENT,
            attributes=attributes,
            start_time=_at(call.began, offset),
        )
        if call.first is not None:
            span.add_event("first delta", timestamp=_at(call.first, offset))
        if call.error is not None:
            span.set_status(self._trace.StatusCode.ERROR, call.error)
        span.end(_at(call.ended, offset))


def _at(seconds: float, offset: int) -> int:
    return int(seconds * 1e9) + offset
