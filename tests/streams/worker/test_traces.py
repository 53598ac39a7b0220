"""One event from the device to the store, followed by a real collector: a real agent, a real worker
and a real Kafka."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from streams.contract.events.records import EventBatch, decode_event_message
from streams.contract.events.traceparent import (
    TraceParent,
    event_trace,
    span_id,
    traceparent_of,
)
from streams.kafka.settings import BrokerSettings
from streams.runtime.key_files import create_key
from tests.edge_client.models import artifact, plain
from tests.fakes.collector import Collector, Exported, collecting, silent
from tests.streams.worker import support
from tests.streams.worker.support import Fleet, batch, device_on, encoded, fleet, stop, until

pytestmark = pytest.mark.kafka
ALL = list(range(support.PARTITIONS))
VARIABLES = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_SERVICE_NAME", "OTEL_SDK_DISABLED")


@pytest.fixture
def served(
    kafka: BrokerSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Fleet]:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    with fleet(kafka, tmp_path) as made:
        yield made


def traced(collector: Collector, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the processes that are started from now on export to `collector`."""
    for name, value in collector.environ().items():
        monkeypatch.setenv(name, value)


@contextmanager
def agent(served: Fleet) -> Iterator["subprocess.Popen[bytes]"]:
    """A real agent that answers one pass of its readings."""
    key = create_key(served.folder / "keys" / "signing.pem")
    model = served.folder / "model.twa"
    model.write_bytes(artifact(key, plain(1), task=served.task))
    command = [sys.executable, "-m", "compose.cli.main", "edge", "run"]
    command += [f"{served.folder}/task.py:task", "--device", "d0", "--state", str(served.folder)]
    command += ["--kafka", served.broker.bootstrap, "--model", str(model), "--drain", "30"]
    command += ["--speed", "0", "--passes", "1"]
    with (served.folder / "agent.log").open("ab") as log:
        process = subprocess.Popen(
            command, stderr=log, stdout=log, cwd=Path(__file__).parents[3], env={**os.environ}
        )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.wait(10)


def messages(served: Fleet) -> list[tuple[EventBatch, TraceParent | None]]:
    """The event messages on the topic with their headers."""
    found = []
    for m in served.read("events"):
        record = decode_event_message(served.task, m.key, m.value, m.headers)
        assert isinstance(record, EventBatch)
        found.append((record, traceparent_of(m.headers)))
    return found


def one(spans: list[Exported]) -> Exported:
    (found,) = spans
    return found


@pytest.mark.timeout(120)
def test_one_event_is_followed_from_the_device_to_the_store(
    served: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    with collecting() as collector:
        traced(collector, monkeypatch)
        worker = served.start()
        served.ready("w0", ALL)
        with agent(served) as process:
            assert process.wait(60) == 0, (served.folder / "agent.log").read_text()
        sent = messages(served)
        count = sum(events.rows.num_rows for events, _ in sent)
        until(lambda: len(served.scored()) == count, f"{count} events are scored")
        assert stop(worker) == 0

    events, at = sent[len(sent) // 2]
    seq = events.first + events.rows.num_rows // 2  # any event
    trace = event_trace(served.task.name, "d0", events.epoch, events.first)
    assert at == TraceParent(trace, span_id(trace, "device.deliver", events.last))
    spans = collector.of(trace)
    delivered = one(spans["device.deliver"])
    assert (delivered.service, delivered.parent) == ("tidewheel-edge", "")
    assert delivered.span == at.span
    assert delivered.attributes["tidewheel.count"] == events.rows.num_rows
    for name in ("worker.score", "worker.store"):
        found = one([s for s in spans[name] if _has(s, seq)])
        assert (found.service, found.parent) == ("tidewheel-worker", at.span)
        assert found.attributes["tidewheel.epoch"] == events.epoch
        assert found.start_ns >= delivered.start_ns
    published = {m.trace for m in map(_traceparent, served.read("scores")) if m is not None}
    assert published == {m.trace for m in map(_traceparent, served.read("windows")) if m}
    assert published <= {at.trace for _, at in sent if at is not None}
    stored = {s.span for s in collector.spans if s.name == "worker.store"}
    assert {s.parent for s in collector.spans if s.name == "worker.publish"} <= stored


def _has(span: Exported, seq: int) -> bool:
    return bool(span.attributes["tidewheel.first"] <= seq <= span.attributes["tidewheel.last"])


def _traceparent(message: object) -> TraceParent | None:
    return traceparent_of(message.headers)  # type: ignore[attr-defined]


def send_traced(served: Fleet, events: EventBatch) -> TraceParent:
    """Send a message as a device that traces."""
    trace = event_trace(served.task.name, events.device, events.epoch, events.first)
    at = TraceParent(trace, span_id(trace, "device.deliver", events.last))
    key, value, headers = encoded(events)
    served.producer.put(f"{served.task.name}.events", key, value, [*headers, at.header])
    return at


@pytest.mark.parametrize("step", [1, 2])
def test_a_worker_that_is_killed_and_started_again_gives_the_same_ids(
    served: Fleet, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    device = device_on(0)
    with collecting() as collector:
        traced(collector, monkeypatch)
        worker = served.start(failpoint=f"worker-step-{step}:1")
        served.ready("w0", ALL)
        at = send_traced(served, batch(device, 0, [1, 2, 3], task=served.task))
        until(lambda: worker.poll() is not None, "the worker is killed")
        assert worker.returncode == -signal.SIGKILL
        again = served.start()
        until(lambda: len(served.scored()) == 3, "the events are scored")
        last = "worker.publish" if step == 1 else "worker.skip"
        until(lambda: last in collector.of(at.trace), f"{last} arrives")
        assert stop(again) == 0
    spans = collector.of(at.trace)
    if step == 1:
        assert one(spans["worker.score"]).span == at.child("worker.score", 0, 0).span
        assert one(spans["worker.store"]).span == at.child("worker.store", 0, 0).span
        assert one(spans["worker.publish"]).parent == at.child("worker.store", 0, 0).span
        return
    skipped = one(spans["worker.skip"])  # the first worker died before it could export
    assert (skipped.span, skipped.parent) == (at.child("worker.skip", 0, 0).span, at.span)
    assert skipped.attributes["tidewheel.known"] == 3


@pytest.mark.timeout(120)
def test_a_collector_that_never_answers_delays_neither_device_nor_worker(
    served: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    with silent() as collector:
        traced(collector, monkeypatch)
        worker = served.start()
        served.ready("w0", ALL)
        with agent(served) as process:
            assert process.wait(60) == 0, (served.folder / "agent.log").read_text()
        count = sum(events.rows.num_rows for events, _ in messages(served))
        assert count > 500
        until(lambda: len(served.scored()) == count, f"{count} events are scored")
        assert stop(worker) == 0  # within 30 s, which OpenTelemetry's own shutdown takes
    assert "did not take the last spans in 2 s" in served.log("w0")
    assert "did not take the last spans in 2 s" in (served.folder / "agent.log").read_text()


def test_without_an_endpoint_nothing_of_opentelemetry_is_loaded_and_no_header_is_written(
    served: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = "\nprint('loaded', sorted(m for m in sys.modules if m.startswith('opentelemetry')))\n"
    monkeypatch.setattr(support, "START", support.START + loaded)
    worker = served.start()
    served.ready("w0", ALL)
    send_traced(served, batch(device_on(0), 0, [1, 2, 3], task=served.task))
    until(lambda: len(served.read("windows")) == 1, "the window is published")
    assert stop(worker) == 0
    assert "loaded []" in served.log("w0")
    for topic in ("scores", "windows"):
        assert [_traceparent(message) for message in served.read(topic)] == [None]
