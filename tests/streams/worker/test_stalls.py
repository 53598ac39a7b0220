"""Time in which a worker could not hear a device is no silence of the device: real Kafka, real
processes."""

import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from streams.kafka.settings import BrokerSettings
from tests.rig.processes.workers import (
    SECOND,
    Fleet,
    all_published,
    batch,
    decoded_windows,
    device_on,
    fleet,
    until,
)

pytestmark = pytest.mark.kafka


@pytest.fixture
def served(kafka: BrokerSettings, tmp_path: Path) -> Iterator[Fleet]:
    with fleet(kafka, tmp_path, partitions=1, source="live", idle_close_s=4.0) as made:
        yield made


def test_a_worker_that_stood_still_does_not_cut_windows_in_two(served: Fleet) -> None:
    device = device_on(0, 1)
    worker = served.start()
    served.ready("w0", [0])
    served.send(batch(device, 0, [0, 1, 2, 7.5, 8], task=served.task))
    until(lambda: served.count() == 3, "the first window is scored")  # 5 to 10 is open
    worker.send_signal(signal.SIGSTOP)
    stopped_s, idle_s = time.monotonic(), served.task.idle_close_s
    for number in range(4):
        served.send(batch(device, 5 + number, [8.5 + 0.3 * number], task=served.task))
    until(lambda: time.monotonic() > stopped_s + idle_s + 4, "it was still for long")
    served.send(batch(device, 9, [20], task=served.task))
    worker.send_signal(signal.SIGCONT)
    served.wait_until_scored()
    until(lambda: all_published(served), "all reports are published")
    reports = decoded_windows(served.read("windows"))
    assert sorted((start, revision) for _, start, revision in reports) == [
        (0, 0), (5 * SECOND, 0), (20 * SECOND, 0),
    ]  # fmt: skip
