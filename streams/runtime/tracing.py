"""Spans of what a process does, exported where OTEL_EXPORTER_OTLP_ENDPOINT is set.

Without that variable tracing is off: nothing of OpenTelemetry is imported, no message gets a
header, and a span is NOTHING. Exporting is beside the work: spans wait in OpenTelemetry's bounded
queue, from which a thread sends. A collector that is slow or away costs spans, never the work, and
the end of the process waits for it at most CLOSE_S. All settings are OpenTelemetry's own variables;
without OTEL_TRACES_SAMPLER one message in a hundred is traced, and every federated run.

A header `traceparent` is that of the W3C recommendation Trace Context. One that is not sampled is
not written, to save bytes on the line, and is not followed.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

from streams.contract.events.messages import TRACEPARENT, Headers

ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"
SHARE = 0.01  # of messages: a worker takes thousands a second, and a span is 60 us of a core
CLOSE_S = 2.0  # of the end of a process

Kind = Literal["INTERNAL", "PRODUCER", "CONSUMER"]
About = Mapping[str, str | float | bool]  # attributes, without their prefix

log = logging.getLogger(__name__)


class Span:
    """Something that began; NOTHING does nothing. No call raises because of a collector."""

    def __init__(self, span: Any = None, text: str = "") -> None:
        self._span, self.text = span, text  # "" if it is not sampled

    @property
    def headers(self) -> Headers:
        """The headers of a message that belongs to this span."""
        return [(TRACEPARENT, self.text.encode())] if self.text else []

    def note(self, event: str) -> None:
        """Note that a step of it is over."""
        if self._span is not None:
            self._span.add_event(event)

    def end(self, error: str = "", about: About | None = None) -> None:
        """End it; error: why it failed, "" for success."""
        if self._span is None:
            return
        self._span.set_attributes(_attributes(about or {}))
        if error:
            from opentelemetry.trace import Status, StatusCode

            self._span.set_status(Status(StatusCode.ERROR, error))
        self._span.end()


NOTHING = Span()


class Tracing:
    """The tracing of a process; OFF makes no spans."""

    def __init__(self, tracer: Any = None, shut_down: Callable[[], None] = lambda: None) -> None:
        self._tracer, self._shut_down = tracer, shut_down

    @property
    def on(self) -> bool:
        return self._tracer is not None

    def begin(
        self,
        name: str,
        about: About,
        parent: str = "",
        links: Iterable[str] = (),
        kind: Kind = "INTERNAL",
        start_ns: int | None = None,
    ) -> Span:
        """Begin a span; parent and links are texts of headers. NOTHING unless it is sampled."""
        if self._tracer is None:
            return NOTHING
        from opentelemetry import trace

        linked = [trace.Link(_context(text)[1]) for text in links]
        span = self._tracer.start_span(
            name,
            context=_context(parent)[0] if parent else None,
            kind=trace.SpanKind[kind],
            links=linked,
            start_time=start_ns or time.time_ns(),
            attributes=_attributes(about),
        )
        if not span.is_recording():
            return NOTHING
        at = span.get_span_context()
        return Span(span, f"00-{at.trace_id:032x}-{at.span_id:016x}-01")

    def close(self, timeout_s: float = CLOSE_S) -> None:
        """Send the waiting spans, for at most `timeout_s`. OpenTelemetry's own shutdown waits up to
        30 s for a collector that does not answer, so it runs on a thread that may be left."""
        ending = threading.Thread(target=self._shut_down, name="traces", daemon=True)
        ending.start()
        ending.join(timeout_s)
        if ending.is_alive():
            log.warning("the collector of traces did not take the last spans in %.0f s", timeout_s)


OFF = Tracing()


def _attributes(about: About) -> dict[str, str | float | bool]:
    return {f"tidewheel.{name}": value for name, value in about.items()}


def _context(text: str) -> tuple[Any, Any]:
    """Return the context and the span that a header names."""
    from opentelemetry import trace
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    found = TraceContextTextMapPropagator().extract({TRACEPARENT: text})
    return found, trace.get_current_span(found).get_span_context()


def open_tracing(
    environ: Mapping[str, str], service: str, instance: str, task: str, share: float = SHARE
) -> Tracing:
    """Return the tracing that the environment asks for; OFF if it does not.

    `service` and `instance` name the process in all its spans. Without the packages of the extra
    `trace` tracing is off, with a warning: the variable is often set for many programs at once.
    """
    if not environ.get(ENDPOINT) or environ.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return OFF
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider, sampling
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as exc:
        log.warning("%s is set, but no traces: %s; install tidewheel[trace]", ENDPOINT, exc)
        return OFF
    about = {"service.instance.id": instance, "tidewheel.task": task}
    if not environ.get("OTEL_SERVICE_NAME"):
        about["service.name"] = service
    own = sampling.ParentBased(sampling.TraceIdRatioBased(share))
    provider = TracerProvider(
        None if environ.get("OTEL_TRACES_SAMPLER") else own,
        Resource.create(about),
        shutdown_on_exit=False,
    )
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    log.info("traces of %s go to %s", service, environ[ENDPOINT])
    return Tracing(provider.get_tracer("tidewheel"), provider.shutdown)
