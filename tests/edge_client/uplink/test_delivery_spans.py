"""The trace of a device's messages: the same ids however often a message is sent, and a span for
each that the broker has."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edge_client.spool.limits import SpoolLimits
from edge_client.spool.queue import Spool
from edge_client.spool.writer import Event, SpoolWriter
from edge_client.uplink.delivery_spans import DeliverySpans
from edge_client.uplink.uplink import Uplink
from streams.contract.events.messages import Headers
from streams.contract.events.traceparent import event_trace, is_sampled, traceparent_of
from streams.runtime.tracing import Tracing
from tests.fakes.recorded_spans import RecordedSpans, recording
from tests.fakes.tiny_task import task
from tests.fakes.uplink_broker import Clock, FakeBroker

SECOND = 1_000_000_000


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    return Spool(tmp_path, SpoolLimits(file_bytes=3000, total_bytes=60_000))


class WallClock:
    now = 1_000 * SECOND

    def __call__(self) -> int:
        return self.now


def fill(spool: Spool, count: int) -> None:
    recorder = SpoolWriter(task, spool)
    for i in range(count):
        segment = np.full(task.segment_shape, i, np.float32)
        recorder.put(Event(1_000_000 * i, "1-aaaaaaaa", np.zeros(3, np.float32), None, segment))
    recorder.write(last=True)


def uplink_of(
    spool: Spool, broker: FakeBroker, tracing: Tracing | None, now: WallClock | None = None
) -> Uplink:
    spans = None
    if tracing is not None:
        spans = DeliverySpans(tracing, task, "d0", spool, now or WallClock())
    return Uplink(
        task, "d0", spool, lambda: broker, lambda: True, None, spans=spans, clock=Clock()
    )  # fmt: skip


def headers(broker: FakeBroker) -> list[Headers]:
    return [message[2] for message, _ in broker.waiting]


def test_a_message_has_a_header_and_a_span_when_the_broker_has_it(spool: Spool) -> None:
    broker, now, (recorded, tracing) = FakeBroker(), WallClock(), recording()
    uplink = uplink_of(spool, broker, tracing, now)
    fill(spool, 5)
    broker.down = True
    uplink._spans.look()  # as each step begins, with or without a broker
    now.now += 60 * SECOND
    broker.down = False
    uplink.step()
    at = traceparent_of(headers(broker)[0])
    assert at is not None
    assert at.trace == event_trace("tiny", "d0", spool.epoch, 0)
    assert recorded.spans == []
    now.now += SECOND
    broker.acknowledge()
    (span,) = recorded.spans
    assert (span.name, span.at, span.parent) == ("device.deliver", at, None)
    assert (span.end_ns - span.start_ns) // SECOND == 61
    assert span.attributes == {
        "tidewheel.device": "d0",
        "tidewheel.epoch": spool.epoch,
        "tidewheel.first": 0,
        "tidewheel.last": 4,
        "tidewheel.count": 5,
        "tidewheel.waited_ms": 60_000,
    }


def test_what_is_sent_again_has_the_same_ids(spool: Spool) -> None:
    first, second, (recorded, tracing) = FakeBroker(), FakeBroker(), recording()
    fill(spool, 5)
    uplink_of(spool, first, tracing).step()  # and the process is killed
    uplink = uplink_of(spool, second, tracing)
    uplink.step()
    assert headers(first) == headers(second)
    first.acknowledge()
    second.acknowledge()
    assert recorded.spans[0].at == recorded.spans[1].at


def test_a_message_of_more_events_is_another_span_of_the_same_trace(spool: Spool) -> None:
    first, second, (recorded, tracing) = FakeBroker(), FakeBroker(), recording()
    fill(spool, 5)
    uplink_of(spool, first, tracing).step()
    fill(spool, 3)
    uplink_of(spool, second, tracing).step()  # joins all eight
    first.acknowledge()
    second.acknowledge()
    one, other = recorded.spans
    assert one.at.trace == other.at.trace
    assert one.at.span != other.at.span
    assert other.attributes["tidewheel.last"] == 7


def test_declared_drops_have_no_trace(spool: Spool) -> None:
    broker, (recorded, tracing) = FakeBroker(), recording()
    spool.declare_lost(3, "disk-full")
    uplink_of(spool, broker, tracing).step()
    assert traceparent_of(headers(broker)[0]) is None
    broker.acknowledge()
    assert recorded.spans == []


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_only_the_share_has_headers_and_spans(spool: Spool, share: float) -> None:
    broker, (recorded, tracing) = FakeBroker(), recording(share)
    uplink = uplink_of(spool, broker, tracing)
    for _ in range(20):
        fill(spool, 1)
        uplink.step()
    traces = [event_trace("tiny", "d0", spool.epoch, first) for first in range(20)]
    found = [traceparent_of(each) for each in headers(broker)]
    assert [at is not None for at in found] == [is_sampled(trace, share) for trace in traces]
    broker.acknowledge()
    assert [span.at for span in recorded.spans] == [at for at in found if at is not None]
    assert (len(recorded.spans) > 0) == (share > 0)


def test_without_tracing_a_message_is_as_it_was(spool: Spool) -> None:
    broker = FakeBroker()
    fill(spool, 5)
    uplink_of(spool, broker, None).step()
    (found,) = headers(broker)
    assert [name for name, _ in found] == ["e2"]


def test_an_exporter_that_raises_loses_no_event(spool: Spool) -> None:
    broker, recorded = FakeBroker(), RecordedSpans()
    recorded.fails = True
    uplink = uplink_of(spool, broker, replace(recording()[1], exporter=recorded))
    fill(spool, 5)
    uplink.step()
    broker.acknowledge()
    uplink.step()
    assert spool.account().pending == 0
