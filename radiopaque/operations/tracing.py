"""Traces to an operator's own OpenTelemetry collector, over OTLP; needs the extra ``otel``.

Parties are different organisations: each sends its own traces to its own collector, and no trace
context crosses between them. The first digits of a session's id, which all have, join them.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

import radiopaque
from radiopaque.certificates import PeerIdentity
from radiopaque.errors import ConfigError
from radiopaque.telemetry import traces
from radiopaque.transport.admission import Call
from radiopaque.transport.observer import OK, Observer

if TYPE_CHECKING:
    from opentelemetry.sdk.trace.export import SpanExporter

_DELAY_MILLISECONDS: Final = 1000
_FLUSH_MILLISECONDS: Final = 3000


class Tracing(Observer):
    """Every call of a server as a trace."""

    def ended(self, method: str, call: Call, outcome: str) -> None:
        about, counters = call.about, call.counters
        traces.add(
            method,
            int(call.began * 1e9),
            time.time_ns(),
            method=method,
            peer=str(call.peer),
            outcome=outcome,
            model=about.get("model", ""),
            model_version=about.get("version", ""),
            session=bytes.fromhex(about.get("session", "")),
            received_bytes=counters.received_bytes,
            sent_bytes=counters.sent_bytes,
        )

    def refused(self, method: str, outcome: str, peer: str) -> None:
        now = time.time_ns()
        traces.add(method, now, now, method=method, outcome=outcome)


def start(
    collector: str, own: PeerIdentity, exporter: SpanExporter | None = None
) -> Callable[[], None]:
    """Send this process's traces to ``collector``, an OTLP address over HTTP.

    Returns what sends the last ones and ends it; a collector that does not answer holds nobody up.
    ``exporter`` takes the place of the one over HTTP. Raises ConfigError without the extra.
    """
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.trace import Status, StatusCode
    except ImportError as error:
        raise ConfigError(
            "`traces` needs OpenTelemetry: pip install 'radiopaque[otel]', or leave it out"
        ) from error
    resource = Resource(
        {
            "service.name": f"radiopaque-{own.role}",
            "service.instance.id": own.name,
            "service.version": radiopaque.__version__,
        }
    )
    # not the library's global provider: other code in this process keeps its own
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    provider.add_span_processor(
        BatchSpanProcessor(
            exporter or OTLPSpanExporter(endpoint=collector, timeout=5),
            schedule_delay_millis=_DELAY_MILLISECONDS,
        )
    )
    tracer = provider.get_tracer("radiopaque", radiopaque.__version__)

    def sink(name: str, begin: int, end: int, fields: dict[str, object]) -> None:
        span = tracer.start_span(name, start_time=begin)
        for key, value in fields.items():
            if isinstance(value, str | int | float):
                span.set_attribute(f"radiopaque.{key}", value)
        if fields.get("outcome") != OK:
            span.set_status(Status(StatusCode.ERROR))
        span.end(end)

    def stop() -> None:
        traces.start(None)
        provider.force_flush(_FLUSH_MILLISECONDS)
        provider.shutdown()

    traces.start(sink)
    return stop
