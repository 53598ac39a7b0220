"""Tracing is off without an endpoint, and a collector that is away costs spans, never the work."""

import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

from streams.contract.errors import UsageError
from streams.contract.events.traceparent import TraceParent, event_trace, span_id
from streams.runtime.tracing import DEFAULT_SHARE, Span, Tracing, read_tracing
from tests.fakes.collector import Collector, collecting, silent
from tests.fakes.recorded_spans import recording
from tests.streams.worker.support import until

ROOT = Path(__file__).parents[3]
OFF = """
import os, sys
from streams.runtime.tracing import read_tracing
assert read_tracing(os.environ, "service", "instance", "task") is None
print(sorted({name.partition(".")[0] for name in sys.modules} & {"opentelemetry", "requests"}))
"""


@pytest.fixture
def environ(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in ("OTEL_SERVICE_NAME", "OTEL_RESOURCE_ATTRIBUTES", "OTEL_SDK_DISABLED"):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


def span(first: int) -> Span:
    trace = event_trace("pumps", "pump-3", "e1", first)
    at = TraceParent(trace, span_id(trace, "device.deliver", first + 9))
    return Span("device.deliver", at, None, 1000, 2000, {"tidewheel.first": first}, kind="producer")


def opened(collector: Collector, environ: pytest.MonkeyPatch, **more: str) -> Tracing:
    """The tracing of this process, which exports to `collector`."""
    settings = {**collector.environ(), **more}
    for name, value in settings.items():
        environ.setenv(name, value)
    made = read_tracing(settings, "tidewheel-test", "w0", "pumps")
    assert made is not None
    return made


@pytest.mark.parametrize("variables", [{}, {"OTEL_SDK_DISABLED": "true"}])
def test_without_an_endpoint_there_is_no_tracing_and_nothing_of_opentelemetry(
    variables: dict[str, str],
) -> None:
    if variables:
        variables = {**variables, "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1"}
    told = subprocess.check_output([sys.executable, "-c", OFF], cwd=ROOT, env=variables, text=True)
    assert told == "[]\n"


@pytest.mark.parametrize("text", ["2", "-0.1", "all", "nan"])
def test_a_wrong_share_is_refused_by_name(text: str) -> None:
    environ = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1", "TIDEWHEEL_TRACE_SHARE": text}
    with pytest.raises(UsageError, match=r"TIDEWHEEL_TRACE_SHARE=.*from 0 to 1"):
        read_tracing(environ, "service", "instance", "task")


def test_without_the_extra_a_warning_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "streams.runtime.otel_exporter", None)
    environ = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1"}
    assert read_tracing(environ, "service", "instance", "task") is None
    assert "install tidewheel[trace]" in caplog.text


@pytest.fixture
def collector() -> Iterator[Collector]:
    with collecting() as made:
        yield made


def test_a_span_arrives_with_its_ids_times_attributes_and_links(
    collector: Collector, environ: pytest.MonkeyPatch
) -> None:
    tracing = opened(collector, environ, TIDEWHEEL_TRACE_SHARE="")
    assert tracing.share == DEFAULT_SHARE
    sent, parent, link = span(7), span(7).at.child("parent"), span(8).at
    other = Span("worker.store", sent.at.child("x"), parent, 5, 6, {"a": "b"}, [link], error="why")
    tracing.export(sent)
    tracing.export(other)
    tracing.close(30.0)
    first, second = sorted(collector.spans, key=lambda found: found.name)
    assert first.service == "tidewheel-test"
    assert (first.trace, first.span, first.parent) == (sent.at.trace, sent.at.span, "")
    assert (first.start_ns, first.end_ns) == (1000, 2000)
    assert first.attributes == {"tidewheel.first": 7}
    assert (second.trace, second.parent) == (sent.at.trace, parent.span)
    assert second.links == [(link.trace, link.span)]


def test_a_service_name_of_the_environment_counts(
    collector: Collector, environ: pytest.MonkeyPatch
) -> None:
    tracing = opened(collector, environ, OTEL_SERVICE_NAME="mine")
    tracing.export(span(1))
    until(lambda: collector.spans != [], "the span arrives without an end of the process")
    assert [found.service for found in collector.spans] == ["mine"]
    tracing.close()


@dataclass
class Request:
    """What the exporter's thread does with its first request."""

    begun: threading.Event = field(default_factory=threading.Event)
    ended: threading.Event = field(default_factory=threading.Event)


@pytest.fixture
def request_sent(monkeypatch: pytest.MonkeyPatch) -> Request:
    request, export = Request(), OTLPSpanExporter.export

    def watched(self: OTLPSpanExporter, spans: Any) -> Any:
        request.begun.set()
        try:
            return export(self, spans)
        finally:
            request.ended.set()

    monkeypatch.setattr(OTLPSpanExporter, "export", watched)
    return request


def test_a_collector_that_never_answers_delays_nothing(
    environ: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, request_sent: Request
) -> None:
    """All is taken, and the end has come, while the first request still waits for its answer."""
    with silent() as collector:
        patient = {"OTEL_EXPORTER_OTLP_TIMEOUT": "200", "OTEL_BSP_MAX_QUEUE_SIZE": "1000"}
        tracing = opened(collector, environ, **patient)
        tracing.export(span(0))
        until(request_sent.begun.is_set, "the collector is asked")
        for first in range(3000):  # three times what the queue holds
            tracing.export(span(first))
        assert not request_sent.ended.is_set()
        tracing.close(0.2)
        assert not request_sent.ended.is_set()
        assert "did not take the last spans" in caplog.text


def test_an_exporter_that_raises_does_not_reach_the_work(
    caplog: pytest.LogCaptureFixture,
) -> None:
    recorded, tracing = recording()
    recorded.fails = True
    tracing.export(span(1))
    assert "a span is lost: RuntimeError" in caplog.text
