"""The uplink on a fake broker: order, bounds, settlement, outages and the wedged producer."""

import contextlib
import threading
from pathlib import Path

import numpy as np
import pytest

from edge_client.spool.frames import SpoolLimits
from edge_client.spool.queue import Spool
from edge_client.spool.writer import Event, SpoolWriter
from edge_client.uplink.messages import of_events
from edge_client.uplink.pacing import BURST_S
from edge_client.uplink.uplink import HANG_S, IN_FLIGHT, STALL_S, Uplink
from streams.contract.accounting import IntervalSet
from streams.contract.documents import DeviceState
from streams.contract.errors import BrokerUnavailable
from streams.contract.events.messages import Drop, task_layout
from tests.rig.made_up.documents import device_state
from tests.rig.made_up.killed import Killed, killed_at
from tests.rig.made_up.tiny_task import task
from tests.rig.made_up.uplink_broker import Clock, FakeBroker
from tests.rig.processes.polling import until


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    return Spool(tmp_path, SpoolLimits(file_bytes=3000, total_bytes=60_000))


def fill(spool: Spool, count: int, share: float = 1.0) -> None:
    recorder = SpoolWriter(task, spool, share=share)
    for i in range(count):
        segment = np.full(task.segment_shape, i, np.float32)
        recorder.put(Event(1_000_000 * i, "1-aaaaaaaa", np.zeros(3, np.float32), None, segment))
        recorder.write()
    recorder.write(last=True)


def uplink_of(
    spool: Spool,
    broker: FakeBroker,
    clock: Clock,
    *,
    bytes_per_s: int | None = None,
    dies_at: str = "",
) -> Uplink:
    def state() -> DeviceState:
        account = vars(spool.account())
        names = ("produced", "delivered", "pending", "dropped")
        return device_state(epoch=spool.epoch, **{name: account[name] for name in names})

    return Uplink(
        task.id,
        "d0",
        spool,
        of_events(task_layout(task), "d0", spool),
        lambda: broker,
        state,
        bytes_per_s=bytes_per_s,
        clock=clock,
        failpoint=killed_at(dies_at),
    )


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


def test_what_is_on_the_way_is_bounded_in_bytes_too(
    spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edge_client.uplink.uplink.IN_FLIGHT_BYTES", 2_000)
    broker, clock = FakeBroker(), Clock()
    uplink = uplink_of(spool, broker, clock)
    for _ in range(20):
        fill(spool, 1)
        uplink.step()
    waiting = sum(len(value) for (_, value, _), _ in broker.waiting)
    assert 1_600 < waiting < 2_400
    while spool.account().pending:
        broker.acknowledge()
        uplink.step()
    assert list(broker.seqs) == [(0, 19)]


def test_a_message_that_the_broker_refuses_stays_and_what_follows_it_waits(spool: Spool) -> None:
    broker, clock = FakeBroker(), Clock()
    uplink = uplink_of(spool, broker, clock)
    for _ in range(3):
        fill(spool, 4)
        uplink.step()
    assert len(broker.waiting) == 3
    broker.acknowledge(1)
    broker.refuse(1)
    broker.acknowledge(1)  # after the refused one: not to be settled before it
    with pytest.raises(BrokerUnavailable, match="a batch was not taken: too large"):
        uplink.step()
    assert (spool.account().delivered, spool.account().pending) == (4, 8)
    again = uplink_of(spool, broker, clock)
    again.step()
    broker.acknowledge()
    again.step()
    assert (spool.account().delivered, spool.account().pending) == (12, 0)
    assert list(broker.seqs) == [(0, 11)]


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


@pytest.mark.parametrize("step", [1, 2, 3, 4])
def test_killed_at_a_step_of_sending_nothing_is_lost(tmp_path: Path, step: int) -> None:
    brokers, spools = (FakeBroker(), FakeBroker()), []
    limits = SpoolLimits(file_bytes=3000, total_bytes=60_000)
    for broker, dies_at in zip(brokers, (f"uplink-step-{step}", ""), strict=True):
        spools.append(Spool(tmp_path, limits))
        uplink = uplink_of(spools[-1], broker, Clock(), dies_at=dies_at)
        fill(spools[-1], 40)
        with pytest.raises(Killed) if dies_at else contextlib.nullcontext():
            while spools[-1].account().pending:
                uplink.step()
                broker.acknowledge()
    taken = IntervalSet([*brokers[0].seqs, *brokers[1].seqs])
    account = spools[-1].account()
    assert list(taken) == [(0, 79)]
    assert (account.produced, account.delivered, account.dropped) == (80, 80, {})


def test_a_producer_that_never_acknowledges_is_replaced(spool: Spool) -> None:
    broker, clock = FakeBroker(), Clock()
    uplink = uplink_of(spool, broker, clock)
    fill(spool, 4)
    uplink.step()
    clock.now += STALL_S + 1
    with pytest.raises(BrokerUnavailable, match="replacing the producer"):
        uplink.step()
    assert spool.account().pending == 4


def test_a_producer_that_never_acknowledges_a_state_is_replaced_on_an_idle_device(
    spool: Spool,
) -> None:
    broker, clock = FakeBroker(), Clock()
    uplink = uplink_of(spool, broker, clock)
    broker.forgets = True
    uplink.start()
    until(lambda: len(broker.states) == 1, "a state is sent")
    clock.now += STALL_S - 1
    uplink.report()
    broker.forgets = False
    clock.now += 2
    until(lambda: broker.closed == 1 and len(broker.states) == 2, "another producer sends it")
    uplink.stop(0.0)
    uplink.join(60)
    assert len(broker.states) == 3  # the last one


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


def test_a_limit_holds_over_a_burst_of_any_size(spool: Spool) -> None:
    broker, clock = FakeBroker(), Clock()
    rate = 1000
    uplink = uplink_of(spool, broker, clock, bytes_per_s=rate)
    fill(spool, 300)
    began = clock.now
    largest = 0
    while spool.account().pending:
        uplink.step()
        largest = max([largest, *broker.sizes])
        assert sum(broker.sizes) <= rate * (clock.now - began + BURST_S) + largest
        broker.acknowledge()
        clock.now += 0.25
        assert clock.now < began + 600
    assert sum(broker.sizes) > 5 * rate  # there was something to hold up
    assert sum(broker.sizes) > 0.8 * rate * (clock.now - began)  # and it was not held up for long
    assert list(broker.seqs) == [(0, 299)]
    assert len(broker.states) > 2


def test_neighbouring_declarations_travel_as_one(spool: Spool) -> None:
    broker, clock = FakeBroker(), Clock()
    for _ in range(50):
        spool.declare_lost(10, "metered")
    uplink = uplink_of(spool, broker, clock)
    uplink.step()
    broker.acknowledge()
    uplink.step()
    assert [(d.first, d.last) for d in broker.taken] == [(0, 499)]
    assert spool.account().dropped == {"metered": 500}


def test_a_thread_that_does_not_come_back_hangs_and_one_that_waits_does_not(spool: Spool) -> None:
    broker, clock, waits, goes_on = FakeBroker(), Clock(), threading.Event(), threading.Event()
    uplink = uplink_of(spool, broker, clock)

    def connects() -> FakeBroker:
        waits.set()
        assert goes_on.wait(60)
        return broker

    uplink._connect = connects  # type: ignore[method-assign]
    clock.now += 2 * HANG_S
    assert not uplink.hangs  # it has not been started
    uplink.start()
    assert waits.wait(60)
    assert not uplink.hangs
    clock.now += HANG_S + 1
    assert uplink.hangs
    goes_on.set()
    until(lambda: not uplink.hangs, "it has come back")
    uplink.stop(0.0)
    uplink.join(60)
    clock.now += 2 * HANG_S
    assert not uplink.hangs  # it has ended


def test_what_is_written_is_sent_without_waiting_for_the_next_look(
    spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edge_client.uplink.uplink.POLL_S", 300.0)
    broker = FakeBroker()
    uplink = uplink_of(spool, broker, Clock())
    uplink.start()
    for count in range(1, 4):
        fill(spool, 1)
        until(lambda count=count: len(broker.waiting) == count, "it is on its way")  # type: ignore[misc]
    uplink.stop(0.0)
    assert not uplink.is_alive()


def test_the_state_goes_when_it_is_asked_for_and_the_position_is_kept_with_it(
    spool: Spool, tmp_path: Path
) -> None:
    broker, clock = FakeBroker(), Clock()
    uplink = uplink_of(spool, broker, clock)
    fill(spool, 3)
    uplink.step()
    broker.acknowledge()
    uplink.step()
    assert len(broker.states) == 1
    uplink.report()
    uplink.step()
    assert [state.delivered for state in broker.states] == [0, 3]
    assert Spool(tmp_path).account().delivered == 3


def test_an_end_in_an_outage_keeps_what_was_acknowledged(spool: Spool, tmp_path: Path) -> None:
    broker = FakeBroker()
    uplink = uplink_of(spool, broker, Clock())
    uplink.start()
    fill(spool, 2)

    def delivered() -> bool:
        broker.acknowledge()
        return spool.account().delivered == 2

    until(delivered, "what is sent is settled")
    broker.down = True
    fill(spool, 1)
    until(lambda: not uplink.connected, "the broker is away")
    uplink.stop(0.0)
    assert Spool(tmp_path).account().delivered == 2


def test_each_reason_of_an_outage_is_logged_once(
    spool: Spool, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(spool, 1)
    answers = ["absent", "absent", "it refuses the user", "absent", None, *["absent"] * 99]
    broker, left = FakeBroker(), iter(answers)

    def connect() -> FakeBroker:
        if (why := next(left)) is not None:
            raise BrokerUnavailable(why)
        return broker

    def tried(times: int) -> None:
        until(lambda: len(answers) - left.__length_hint__() >= times, f"{times} attempts")

    uplink = uplink_of(spool, broker, Clock())
    monkeypatch.setattr(uplink, "_connect", connect)
    uplink.start()
    tried(5)
    until(lambda: broker.waiting, "it is connected")
    broker.refuse(1)  # and is not
    tried(8)
    uplink.stop(0.0)
    said = [line.partition(";")[0] for line in caplog.messages if "wait in the spool" in line]
    lost = "a batch was not taken: too large"
    assert said == ["absent", "it refuses the user", lost, "absent"]
