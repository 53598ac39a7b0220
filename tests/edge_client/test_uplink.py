"""The uplink on a fake broker: order, bounds, settlement, outages and the wedged producer."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from edge_client.recorder import Event, Recorder
from edge_client.spool import Spool, SpoolLimits
from edge_client.uplink import IN_FLIGHT, STALL_S, Uplink
from streams.contract.accounting import IntervalSet
from streams.contract.documents import DeviceState
from streams.contract.errors import BrokerUnavailable
from streams.contract.records import Drop, EventBatch, Headers, decode_event_message
from tests.fakes.tiny_task import task

Done = Callable[[Exception | None], None]


class FakeBroker:
    """Holds what was sent until it is told to acknowledge it; implements Sender."""

    def __init__(self) -> None:
        self.waiting: list[tuple[tuple[bytes, bytes, Headers], Done]] = []
        self.taken: list[EventBatch | Drop] = []
        self.states: list[DeviceState] = []
        self.closed = 0
        self.down = False

    def send(self, topic: str, key: bytes, value: bytes, headers: Headers, done: Done) -> None:
        if self.down:
            raise BrokerUnavailable("no broker")
        if topic.endswith(".fleet"):
            self.states.append(DeviceState.decode(value))
            done(None)
            return
        self.waiting.append(((key, value, headers), done))

    def acknowledge(self, count: int | None = None) -> None:
        ready = self.waiting[:count]
        self.waiting = self.waiting[len(ready) :]
        for (key, value, headers), done in ready:
            self.taken.append(decode_event_message(task, key, value, headers))
            done(None)

    def close(self, timeout_s: float) -> None:
        self.closed += 1

    @property
    def seqs(self) -> IntervalSet:
        return IntervalSet((batch.first, batch.last) for batch in self.taken)


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    return Spool(tmp_path, SpoolLimits(file_bytes=3000, total_bytes=60_000))


def fill(spool: Spool, count: int) -> None:
    recorder = Recorder(task, spool)
    for i in range(count):
        segment = np.full(task.segment_shape, i, np.float32)
        recorder.put(Event(1_000_000 * i, "1-aaaaaaaa", np.zeros(3, np.float32), None, segment))
        recorder.write()


def uplink_of(spool: Spool, broker: FakeBroker, clock: Clock, reachable: bool = True) -> Uplink:
    def state() -> DeviceState:
        account = spool.account()
        return DeviceState(
            device="d0",
            task=task.name,
            time_us=0,
            epoch=spool.epoch,
            active="1-aaaaaaaa",
            produced=account.produced,
            delivered=account.delivered,
            pending=account.pending,
        )

    return Uplink(task, "d0", spool, lambda: broker, lambda: reachable, state, clock=clock)


def test_events_arrive_in_order_and_are_settled_only_when_acknowledged(spool: Spool) -> None:
    broker, clock = FakeBroker(), Clock()
    uplink = uplink_of(spool, broker, clock)
    fill(spool, 30)
    uplink.step()
    assert spool.account().delivered == 0
    broker.acknowledge()
    uplink.step()
    assert spool.account().delivered == 30
    firsts = [batch.first for batch in broker.taken]
    assert firsts == sorted(firsts)
    assert list(broker.seqs) == [(0, 29)]


def test_what_is_on_the_way_is_bounded(spool: Spool) -> None:
    broker, clock = FakeBroker(), Clock()
    uplink = uplink_of(spool, broker, clock)
    for _ in range(3 * IN_FLIGHT):
        fill(spool, 1)
        uplink.step()
    assert len(broker.waiting) == IN_FLIGHT


def test_events_stay_when_the_broker_is_down_and_go_when_it_is_back(spool: Spool) -> None:
    broker, clock = FakeBroker(), Clock()
    uplink = uplink_of(spool, broker, clock)
    broker.down = True
    fill(spool, 10)
    with pytest.raises(BrokerUnavailable):
        uplink.step()
    assert spool.account().pending == 10
    broker.down = False
    uplink.step()
    broker.acknowledge()
    uplink.step()
    assert spool.account().pending == 0


def test_a_restart_sends_again_what_was_not_settled(spool: Spool, tmp_path: Path) -> None:
    broker, clock = FakeBroker(), Clock()
    uplink = uplink_of(spool, broker, clock)
    for _ in range(5):
        fill(spool, 1)
        uplink.step()
    broker.acknowledge(2)
    uplink.step()
    delivered = spool.account().delivered
    spool.sync_position()
    again = Spool(tmp_path, SpoolLimits(file_bytes=3000, total_bytes=60_000))
    assert again.account().delivered == delivered == 2
    second = FakeBroker()
    uplink_of(again, second, clock).step()
    second.acknowledge()
    assert list(second.seqs) == [(2, 4)]


def test_a_producer_that_never_acknowledges_is_replaced(spool: Spool) -> None:
    broker, clock = FakeBroker(), Clock()
    uplink = uplink_of(spool, broker, clock)
    fill(spool, 4)
    uplink.step()
    clock.now += STALL_S + 1
    with pytest.raises(BrokerUnavailable, match="a new producer"):
        uplink.step()
    assert spool.account().pending == 4


def test_a_silent_broker_is_waited_for_without_a_new_producer(spool: Spool) -> None:
    broker, clock = FakeBroker(), Clock()
    uplink = uplink_of(spool, broker, clock, reachable=False)
    fill(spool, 4)
    uplink.step()
    clock.now += STALL_S + 1
    uplink.step()
    assert len(broker.waiting) == 1


def test_declared_drops_travel_and_close_the_account(spool: Spool) -> None:
    broker, clock = FakeBroker(), Clock()
    uplink = uplink_of(spool, broker, clock)
    uplink.step()
    fill(spool, 400)  # over the cap of 60,000 bytes
    while spool.account().pending:
        uplink.step()
        broker.acknowledge()
    account = spool.account()
    drops = [batch for batch in broker.taken if isinstance(batch, Drop)]
    assert {drop.reason for drop in drops} == {"spool-full"}
    assert account.dropped["spool-full"] == sum(d.last - d.first + 1 for d in drops) > 0
    assert account.balanced
    assert list(broker.seqs) == [(0, 399)]


def test_the_state_is_sent_about_once_a_second(spool: Spool) -> None:
    broker, clock = FakeBroker(), Clock()
    uplink = uplink_of(spool, broker, clock)
    for _ in range(25):
        uplink.step()
        clock.now += 0.1
    assert len(broker.states) == 3
