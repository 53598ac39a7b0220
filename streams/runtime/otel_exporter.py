"""Spans to a collector by OTLP over HTTP; the only module that imports OpenTelemetry.

The endpoint, headers, certificates, compression, timeouts and the queue are OpenTelemetry's own
settings, read from the environment (OTEL_EXPORTER_OTLP_*, OTEL_BSP_*).

Spans are made as finished `ReadableSpan`s instead of by a tracer, because their ids are computed
(traceparent.py) and a span may begin in one thread and end in another.
"""

import threading
from collections.abc import Mapping

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import Link, SpanContext, SpanKind, Status, StatusCode, TraceFlags

from streams.contract.events.traceparent import TraceParent
from streams.runtime.tracing import Span

_SCOPE = InstrumentationScope("tidewheel")
_KINDS = {
    "internal": SpanKind.INTERNAL,
    "producer": SpanKind.PRODUCER,
    "consumer": SpanKind.CONSUMER,
}


class OtelExporter:
    """A tracing.SpanExporter; `about` are attributes of the process."""

    def __init__(self, about: Mapping[str, str]) -> None:
        self._resource = Resource.create(dict(about))
        self._processor = BatchSpanProcessor(OTLPSpanExporter())

    def put(self, span: Span) -> None:
        self._processor.on_end(
            ReadableSpan(
                span.name,
                context=_context(span.at),
                parent=None if span.parent is None else _context(span.parent, remote=True),
                resource=self._resource,
                attributes=dict(span.attributes),
                links=[Link(_context(link, remote=True)) for link in span.links],
                kind=_KINDS[span.kind],
                status=Status(StatusCode.ERROR, span.error) if span.error else Status(),
                start_time=span.start_ns,
                end_time=span.end_ns,
                instrumentation_scope=_SCOPE,
            )
        )

    def close(self, timeout_s: float) -> bool:
        """The processor's own shutdown waits up to 30 s for a collector that does not answer, so it
        runs on a thread that may be left behind."""
        ending = threading.Thread(target=self._processor.shutdown, name="traces", daemon=True)
        ending.start()
        ending.join(timeout_s)
        return not ending.is_alive()


def _context(at: TraceParent, *, remote: bool = False) -> SpanContext:
    flags = TraceFlags(TraceFlags.SAMPLED if at.sampled else TraceFlags.DEFAULT)
    return SpanContext(int(at.trace, 16), int(at.span, 16), is_remote=remote, trace_flags=flags)
