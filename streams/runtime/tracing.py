"""Spans of what a process does, exported where OTEL_EXPORTER_OTLP_ENDPOINT is set.

Without that variable tracing is off: `read_tracing` returns None, no OpenTelemetry is imported, and
no message gets a header. Exporting is beside the work: `Tracing.export` only puts the span into a
bounded queue in memory, from which a thread of OpenTelemetry sends. A collector that is slow or
away costs spans, never the work, and the end of the process waits for it at most CLOSE_S.

    TIDEWHEEL_TRACE_SHARE   the share of the messages of `events` that are traced

The default share is small because a worker takes thousands of messages a second and makes three
spans for each that is traced, at about 60 us of a core; on a small fleet one in a hundred is still
one every few minutes.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from streams.contract.errors import UsageError
from streams.contract.events.traceparent import TraceParent, is_sampled

ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"
DISABLED = "OTEL_SDK_DISABLED"
SHARE = "TIDEWHEEL_TRACE_SHARE"
DEFAULT_SHARE = 0.01
CLOSE_S = 2.0  # of the end of a process

Value = str | int | float | bool
Kind = Literal["internal", "producer", "consumer"]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Span:
    """Something that has ended: `at` are its own ids; times are the wall clock's, nanoseconds.

    error: why it failed, "" for success.
    """

    name: str
    at: TraceParent
    parent: TraceParent | None
    start_ns: int
    end_ns: int
    attributes: Mapping[str, Value] = field(default_factory=dict)
    links: Sequence[TraceParent] = ()
    kind: Kind = "internal"
    error: str = ""


class SpanExporter(Protocol):
    """Where spans go; neither call raises because of a collector."""

    def put(self, span: Span) -> None:
        """Take a span without waiting."""
        ...

    def close(self, timeout_s: float) -> bool:
        """Send what waits, for at most `timeout_s`; return whether that was enough."""
        ...


@dataclass(frozen=True)
class Tracing:
    """The tracing of a process; share: 0 to 1, of the messages of `events`."""

    exporter: SpanExporter
    share: float = DEFAULT_SHARE

    def samples(self, trace: str) -> bool:
        """Return whether this trace of an event message is exported."""
        return is_sampled(trace, self.share)

    def export(self, span: Span) -> None:
        """Take a span; never waits and never raises, because it is called between steps that must
        not fail."""
        try:
            self.exporter.put(span)
        except Exception as exc:
            log.warning("a span is lost: %s: %s", type(exc).__name__, exc)

    def close(self, timeout_s: float = CLOSE_S) -> None:
        """Send the waiting spans, for at most `timeout_s`."""
        if not self.exporter.close(timeout_s):
            log.warning("the collector of traces did not take the last spans in %.0f s", timeout_s)


def read_tracing(
    environ: Mapping[str, str], service: str, instance: str, task: str
) -> Tracing | None:
    """Return the tracing that the environment asks for; None if it is off.

    `service` and `instance` name the process in all its spans. Without the packages of the extra
    `trace` tracing is off, with a warning: the variable is often set for many programs at once.
    Raises UsageError for a wrong share.
    """
    if not environ.get(ENDPOINT) or environ.get(DISABLED, "").lower() == "true":
        return None
    share = _share(environ.get(SHARE) or str(DEFAULT_SHARE))
    try:
        from streams.runtime.otel_exporter import OtelExporter
    except ImportError as exc:
        log.warning(
            "%s is set, but there are no traces: %s; install tidewheel[trace]", ENDPOINT, exc
        )
        return None
    about = {"service.instance.id": instance, "tidewheel.task": task}
    if not environ.get("OTEL_SERVICE_NAME"):
        about["service.name"] = service
    log.info("traces of %s go to %s", service, environ[ENDPOINT])
    return Tracing(OtelExporter(about), share)


def _share(text: str) -> float:
    try:
        share = float(text)
    except ValueError:
        share = -1.0
    if not 0.0 <= share <= 1.0:
        raise UsageError(f"{SHARE}={text!r}: give a number from 0 to 1")
    return share
