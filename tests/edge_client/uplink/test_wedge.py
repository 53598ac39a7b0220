"""The uplink and a producer that is stuck, on a real broker behind a proxy that swallows answers.

The library gives up a batch after `delivery_timeout_ms`. If that batch had been sent before, an
idempotent producer sends nothing more, and says nothing: not an error either. Ours never give up;
these do soon, to show what else the uplink has against it.
"""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from edge_client.spool.queue import Spool
from edge_client.spool.writer import Event, SpoolWriter
from edge_client.uplink.uplink import Uplink
from streams.contract.documents import DeviceState
from streams.contract.events.records import EventBatch, decode_event_message
from streams.contract.task import Task
from streams.contract.topics import EVENTS, FLEET, topic_name, topic_specs
from streams.kafka.admin import ensure_topics, probe
from streams.kafka.producer import Producer
from streams.kafka.reader import Reader
from streams.kafka.settings import BrokerSettings
from tests.fakes.proxy import Proxy
from tests.fakes.tiny_task import task as tiny
from tests.secure_node import SecureNode

pytestmark = pytest.mark.kafka


class Impatient(Producer):
    """Gives up a batch after two seconds."""

    OPTIONS: ClassVar[dict[str, Any]] = {
        **Producer.OPTIONS, "request_timeout_ms": 700, "delivery_timeout_ms": 2000,
    }  # fmt: skip


class Bench:
    """A device's uplink behind the proxy."""

    def __init__(self, task: Task, broker: BrokerSettings, folder: Path, stall_s: float) -> None:
        self.task, self.broker = task, broker
        self.spool = Spool(folder)
        self.connected = self.told = 0
        self.uplink = Uplink(
            task, "d0", self.spool, self._connect, lambda: probe(broker), self._state,
            stall_s=stall_s,
        )  # fmt: skip

    def _connect(self) -> Producer:
        self.connected += 1
        return Impatient(self.broker)

    def _state(self) -> DeviceState:
        self.told += 1
        account = self.spool.account()
        return DeviceState(
            device="d0", task=self.task.name, time_us=0, epoch=self.spool.epoch, active="",
            produced=account.produced, delivered=account.delivered, pending=account.pending,
        )  # fmt: skip

    def fill(self, count: int) -> None:
        recorder = SpoolWriter(self.task, self.spool)
        for _ in range(count):
            zeros = np.zeros(self.task.segment_shape, np.float32)
            recorder.put(Event(0, "1-aaaaaaaa", np.zeros(3, np.float32), None, zeros))
            recorder.write()

    def delivered(self, count: int) -> Callable[[], bool]:
        return lambda: self.spool.account().delivered == count

    def seqs(self, reader: Reader) -> list[int]:
        """All that the topic has, in its order."""
        found: list[int] = []
        for m in reader.read_to_end():
            batch = decode_event_message(self.task, m.key, m.value, m.headers)
            assert isinstance(batch, EventBatch)
            found += range(batch.first, batch.last + 1)
        return found

    def check(self, node: SecureNode, count: int) -> None:
        """Every event is on the topic, in order but for repetitions, and settled once."""
        reader = Reader(node.settings("plain"), [topic_name(self.task.name, EVENTS)], key="d0")
        assert list(dict.fromkeys(self.seqs(reader))) == list(range(count))
        reader.close()
        account = self.spool.account()
        assert (account.produced, account.delivered, account.pending) == (count, count, 0)


def until(condition: Callable[[], object], what: str, timeout_s: float = 40.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {timeout_s:.0f} s: {what}"
        time.sleep(0.05)


@pytest.fixture
def proxy(secure_node: SecureNode) -> Iterator[Proxy]:
    made = Proxy(secure_node.proxy_port, secure_node.ports["proxied"])
    yield made
    made.close()


def bench(name: str, node: SecureNode, folder: Path, stall_s: float) -> Bench:
    task = replace(tiny, name=name)
    ensure_topics(node.settings("plain"), topic_specs(name, 1))
    through = node.settings("proxied", bootstrap=f"127.0.0.1:{node.proxy_port}")
    return Bench(task, through, folder, stall_s)


# The library's own warning at the end of a producer that is stuck.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_producer_that_sends_nothing_ever_again_is_replaced(
    secure_node: SecureNode, proxy: Proxy, tmp_path: Path
) -> None:
    device = bench("stuck", secure_node, tmp_path, stall_s=math.inf)
    device.uplink.start()
    device.fill(5)
    until(device.delivered(5), "the line works")

    proxy.swallowing = True
    until(lambda: proxy.swallowed, "the answer to a heartbeat is swallowed")
    told = device.told
    until(lambda: device.told > told, "that heartbeat is given up")
    proxy.swallowing = False
    device.fill(20)

    other = Producer(device.broker)  # through the same proxy, to the same broker
    took_s = -time.monotonic()
    while took_s + time.monotonic() < 6.0:  # three times the time to give up
        other.put(topic_name(device.task.name, FLEET), b"other", b"{}")
    other.close()
    assert device.spool.account().delivered == 5  # nothing moves, nobody says so
    assert (device.connected, device.uplink.connected) == (1, True)

    device.uplink._stall_s = 2.0
    until(device.delivered(25), "the watchdog brings another producer")
    assert device.connected == 2
    device.uplink.stop(5.0)
    device.check(secure_node, 25)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_events_whose_answers_are_lost_come_again_in_order_and_are_settled_once(
    secure_node: SecureNode, proxy: Proxy, tmp_path: Path
) -> None:
    device = bench("unheard", secure_node, tmp_path, stall_s=1.0)
    device.uplink.start()
    device.fill(5)
    until(device.delivered(5), "the line works")
    proxy.swallowing = True
    device.fill(20)
    until(lambda: device.connected >= 3, "producers that hear nothing are replaced")
    assert device.spool.account().delivered == 5
    device.fill(20)
    proxy.swallowing = False
    until(device.delivered(45), "delivery goes on")
    device.uplink.stop(5.0)
    reader = Reader(secure_node.settings("plain"), [topic_name("unheard", EVENTS)], key="d0")
    assert len(device.seqs(reader)) > 45  # what was sent and not heard of came twice
    reader.close()
    device.check(secure_node, 45)
