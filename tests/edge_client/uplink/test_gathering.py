"""A device that gathers: fewer messages, none of them late, nothing kept back at the end."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edge_client.spool.limits import SpoolLimits
from edge_client.spool.queue import Spool
from edge_client.spool.writer import Event, SpoolWriter
from edge_client.uplink.messages import of_events
from edge_client.uplink.pacing import FULL_ROWS, check
from edge_client.uplink.uplink import Uplink
from streams.contract.errors import UsageError
from streams.contract.events.messages import Drop, task_layout
from streams.contract.events.records import EventBatch
from tests.rig.made_up.tiny_task import task
from tests.rig.made_up.uplink_broker import Clock, FakeBroker
from tests.rig.processes.workers import until

GATHER_S = 4.0


class Device:
    """A spool with an uplink that gathers, on a clock that the test moves."""

    def __init__(self, folder: Path) -> None:
        self.broker, self.clock = FakeBroker(), Clock()
        self.spool = Spool(folder, SpoolLimits(file_bytes=100_000, total_bytes=10_000_000))
        self.uplink = Uplink(
            task.id, "d0", self.spool, of_events(task_layout(task), "d0", self.spool),
            lambda: self.broker, lambda: True, gather_s=GATHER_S, clock=self.clock,
        )  # fmt: skip

    def answers(self, count: int) -> None:
        """Answer so many segments, each in a frame of its own."""
        writer = SpoolWriter(task, self.spool)
        for _ in range(count):
            at_us = 1_000_000 * (self.spool.next_seq + 1)
            segment = np.zeros(task.segment_shape, np.float32)
            writer.put(Event(at_us, "1-aaaaaaaa", np.zeros(3, np.float32), None, segment))
            writer.write(last=True)

    def look(self) -> list[EventBatch | Drop]:
        """Return what has come to the broker with one look of the uplink, acknowledged."""
        before = len(self.broker.taken)
        self.uplink.step()
        self.broker.acknowledge()
        self.uplink.step()
        return self.broker.taken[before:]


@pytest.fixture
def device(tmp_path: Path) -> Device:
    return Device(tmp_path)


def test_no_event_waits_longer_although_more_come(device: Device) -> None:
    waits = dict[int, float]()
    for _ in range(60):
        device.answers(1)
        waits[device.spool.next_seq - 1] = device.clock.now
        for one in device.look():
            assert isinstance(one, EventBatch)
            assert device.clock.now - waits[one.first] <= GATHER_S + 0.25
        device.clock.now += 0.25


def test_a_full_message_does_not_wait(device: Device) -> None:
    device.answers(FULL_ROWS - 1)
    assert device.look() == []
    device.answers(1)
    assert sum(one.last - one.first + 1 for one in device.look()) == FULL_ROWS


def test_at_the_end_nothing_waits(device: Device) -> None:
    device.answers(3)
    assert device.look() == []
    device.uplink.start()
    with ThreadPoolExecutor(1) as other:
        drained = other.submit(device.uplink.stop, 30.0)  # on a clock that stands
        until(lambda: bool(device.broker.waiting), "what waited is sent")
        device.broker.acknowledge()
        assert drained.result()
    assert list(device.broker.seqs) == [(0, 2)]


def test_a_device_may_not_gather_until_workers_believe_it_silent() -> None:
    patient = replace(task, idle_close_s=60.0)
    check(patient, 30.0)
    with pytest.raises(UsageError, match=r"--gather 31: at most 30, half of idle_close_s"):
        check(patient, 31.0)
