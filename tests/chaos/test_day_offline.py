"""A device that was a day without a network, on a real Kafka: when it is back, its whole day is
scored once, while another device's present goes on in the same partition."""

import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from edge_client.spool.queue import Spool
from edge_client.spool.writer import Event, SpoolWriter
from edge_client.uplink.heartbeat import StateOnly
from edge_client.uplink.messages import of_events
from edge_client.uplink.uplink import Uplink
from streams.contract.documents import DeviceState
from streams.contract.events.messages import task_layout
from streams.kafka.admin import probe
from streams.kafka.producer import Producer
from streams.kafka.settings import BrokerSettings
from tests.rig.processes.workers import SECOND, Fleet, batch, decoded_windows, fleet, until

MINUTES = 24 * 60
AWAY, PRESENT = "away", "present"


@pytest.fixture
def served(kafka: BrokerSettings, tmp_path: Path) -> Iterator[Fleet]:
    """With one partition for both devices, and a live source: times are held against the clock."""
    with fleet(kafka, tmp_path, partitions=1, source="live") as made:
        yield made


def spooled_day(served: Fleet, folder: Path) -> Spool:
    """An event a minute, the last one now."""
    spool, now_us = Spool(folder), time.time_ns() // 1000
    recorder = SpoolWriter(served.task, spool)
    for minute in range(MINUTES):
        at_us = now_us - (MINUTES - 1 - minute) * 60 * SECOND
        zeros = np.zeros(served.task.segment_shape, np.float32)
        recorder.put(Event(at_us, "1-aaaaaaaa", np.zeros(3, np.float32), None, zeros))
        recorder.write()
    assert spool.account().pending == MINUTES
    return spool


def uplink_of(served: Fleet, spool: Spool) -> Uplink:
    def state() -> DeviceState:
        account = spool.account()
        return DeviceState(
            device=AWAY, task=served.task.name, time_us=0, epoch=spool.epoch, active="",
            produced=account.produced, delivered=account.delivered, pending=account.pending,
        )  # fmt: skip

    broker, messages = served.broker, of_events(task_layout(served.task), AWAY, spool)
    return Uplink(
        served.task.id, AWAY, spool, messages, lambda: Producer(broker), lambda: probe(broker),
        StateOnly(state),
    )  # fmt: skip


@pytest.mark.kafka
@pytest.mark.timeout(180)
def test_a_day_offline_is_scored_once_when_the_device_is_back(
    served: Fleet, tmp_path: Path
) -> None:
    served.start()
    served.ready("w0", [0])
    now_s = time.time()
    served.send(batch(PRESENT, 0, [now_s + i for i in range(12)], task=served.task))
    until(lambda: len(served.scored()) >= 5, "the present is scored")

    spool = spooled_day(served, tmp_path / "spool")
    uplink = uplink_of(served, spool)
    uplink.start()
    try:
        until(lambda: spool.account().delivered == MINUTES, "the day is delivered")
        served.send(batch(PRESENT, 12, [now_s + i for i in range(12, 24)], task=served.task))
    finally:
        uplink.stop(10.0)
        uplink.join(20)
    served.sent[AWAY, spool.epoch] = set(range(MINUTES))
    served.wait_until_scored()
    windows = decoded_windows(served.read("windows"))
    days = [reports[0] for (device, *_), reports in windows.items() if device == AWAY]
    assert sum(report.events for report in days) == MINUTES
    assert not any(report.late for report in days)
    assert served.read("dead-letters") == []
