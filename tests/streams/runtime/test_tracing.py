"""Tracing is off without an endpoint, and a collector that is away costs spans, never the work."""

import subprocess
import sys
from pathlib import Path

import pytest

from streams.contract.events.messages import sampled_parent
from streams.runtime.tracing import NOTHING, OFF, Tracing, open_tracing
from tests.rig.servers.collector import Collector, collecting, silent

ROOT = Path(__file__).parents[3]
SENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
OTHER = "00-0af7651916cd43dd8448eb211c80319d-b7ad6b7169203332-01"
OFF_TEXT = """
import os, sys
from streams.runtime.tracing import OFF, open_tracing
assert open_tracing(os.environ, "service", "instance", "task") is OFF
print(sorted({name.partition(".")[0] for name in sys.modules} & {"opentelemetry", "requests"}))
"""


def opened(collector: Collector, environ: pytest.MonkeyPatch, **more: str) -> Tracing:
    """The tracing of this process, which exports to `collector`."""
    for name in ("OTEL_SERVICE_NAME", "OTEL_RESOURCE_ATTRIBUTES", "OTEL_SDK_DISABLED"):
        environ.delenv(name, raising=False)
    settings = {**collector.environ(), **more}
    for name, value in settings.items():
        environ.setenv(name, value)
    return open_tracing(settings, "tidewheel-test", "w0", "pumps")


@pytest.mark.parametrize("variables", [{}, {"OTEL_SDK_DISABLED": "true"}])
def test_without_an_endpoint_there_is_no_tracing_and_nothing_of_opentelemetry(
    variables: dict[str, str],
) -> None:
    if variables:
        variables = {**variables, "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1"}
    command = [sys.executable, "-c", OFF_TEXT]
    assert subprocess.check_output(command, cwd=ROOT, env=variables, text=True) == "[]\n"
    span = OFF.begin("run", {"device": "d0"}, SENT)
    span.note("step")
    span.end("why")
    assert (span, span.headers, span.text) == (NOTHING, [], "")


def test_without_the_extra_a_warning_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    environ = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1"}
    assert open_tracing(environ, "service", "instance", "task") is OFF
    assert "install tidewheel[trace]" in caplog.text


def test_a_span_arrives_with_its_parent_attributes_and_links(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with collecting() as collector:
        tracing = opened(collector, monkeypatch, OTEL_TRACES_SAMPLER="")
        span = tracing.begin("worker.window", {"device": "d0"}, SENT, [OTHER], "CONSUMER", 1000)
        span.end("why", {"rows": 3})
        unsampled = tracing.begin("worker.window", {}, SENT[:-1] + "0")
        tracing.close(30.0)
    assert unsampled is NOTHING
    (found,) = collector.spans
    assert (found.service, found.start_ns) == ("tidewheel-test", 1000)
    assert span.headers == [("traceparent", f"00-{found.trace}-{found.span}-01".encode())]
    assert (found.trace, found.parent) == (SENT[3:35], SENT[36:52])
    assert found.links == [(OTHER[3:35], OTHER[36:52])]
    assert found.attributes == {"tidewheel.device": "d0", "tidewheel.rows": 3}


@pytest.mark.parametrize(
    ("share", "traced"), [({}, range(10, 200)), ({"OTEL_TRACES_SAMPLER": "always_off"}, range(1))]
)
def test_the_share_is_of_traces_unless_opentelemetrys_own_variable_says_otherwise(
    share: dict[str, str], traced: range, monkeypatch: pytest.MonkeyPatch
) -> None:
    with collecting() as collector:
        tracing = opened(collector, monkeypatch, **{"OTEL_TRACES_SAMPLER": "", **share})
        spans = [tracing.begin("device.deliver", {}) for _ in range(5000)]
        tracing.close(30.0)
    assert sum(span is not NOTHING for span in spans) in traced


@pytest.mark.parametrize(
    "headers",
    [
        [], [("traceparent", None)], [("other", SENT.encode())],
        [("traceparent", SENT.encode())] * 2, [("traceparent", SENT[:-1].encode() + b"0")],
        [("traceparent", SENT.upper().encode())], [("traceparent", b"\xff" * 55)],
        [("traceparent", b"00-" + b"0" * 32 + SENT[35:].encode())],
    ],
)  # fmt: skip
def test_what_is_no_sampled_header_is_not_followed(
    headers: list[tuple[str, bytes | None]],
) -> None:
    assert sampled_parent(headers) == ""
    assert sampled_parent([("device", b"d0"), ("traceparent", SENT.encode())]) == SENT


def test_a_collector_that_never_answers_delays_nothing(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with silent() as collector:
        patient = {"OTEL_EXPORTER_OTLP_TIMEOUT": "200", "OTEL_BSP_MAX_QUEUE_SIZE": "1000"}
        tracing = opened(collector, monkeypatch, **patient)
        for _ in range(3000):  # three times what the queue holds
            tracing.begin("device.deliver", {}).end()
        tracing.close(0.2)
    assert "did not take the last spans" in caplog.text
