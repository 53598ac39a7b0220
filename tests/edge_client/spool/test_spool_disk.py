"""The spool on a real disk of 1 MiB that is full to the last byte."""

from pathlib import Path

import pytest

from edge_client.spool.frames import EVENTS, SpoolLimits
from edge_client.spool.queue import Spool
from edge_client.spool.writer import SpoolWriter
from edge_client.uplink.uplink import Uplink
from streams.contract.accounting import IntervalSet
from streams.contract.errors import SpoolError
from tests.edge_client.spool.test_sampling import event
from tests.edge_client.uplink.test_uplink import uplink_of
from tests.rig.made_up.tiny_task import task
from tests.rig.made_up.uplink_broker import Clock, FakeBroker
from tests.rig.processes.small_disk import fill, small_disk

__all__ = ["small_disk"]
LIMITS = SpoolLimits(file_bytes=50_000)  # and a cap far above the disk


def produce(recorder: SpoolWriter, first: int, count: int) -> int:
    """Some events, written as they come; the number of the next one."""
    for i in range(first, first + count):
        recorder.put(event(i))
        if i % 20 == 19:
            recorder.write()
    return first + count


def produce_until_full(recorder: SpoolWriter, first: int = 0) -> int:
    while recorder.error is None:
        first = produce(recorder, first, 20)
        assert first < 20_000
    assert "No space" in recorder.error
    return first


def deliver(spool: Spool, seen: IntervalSet, limit_bytes: int = 1 << 30) -> bool:
    """Send and settle one batch; each seq comes once, and its row is its own."""
    frames = spool.read(spool.position, limit_bytes)
    for frame in frames:
        if frame.kind == EVENTS:
            assert seen.add(frame.first, frame.first + frame.count - 1) == frame.count
        for entry in frame.declarations():
            lost = entry.last - entry.first + 1
            assert seen.add(entry.first, entry.last) == lost
    spool.settle(frames)
    return bool(frames)


def drain(uplink: Uplink, broker: FakeBroker, spool: Spool) -> None:
    for _ in range(100):
        uplink.step()
        broker.acknowledge()
    assert spool.account().pending == 0


def test_events_wait_in_memory_beyond_the_bound_they_are_declared_and_delivery_frees_room(
    small_disk: Path,
) -> None:
    spool = Spool(small_disk / "spool", LIMITS)
    recorder = SpoolWriter(task, spool, limit=300)
    made = produce_until_full(recorder)
    assert 1000 < spool.next_seq <= made
    too_many = recorder.waiting + 1000 - 300
    made = produce(recorder, made, 1000)
    assert recorder.error is not None
    assert recorder.waiting == 300

    seen = IntervalSet()
    deliver(spool, seen, 200_000)
    recorder.write()
    assert recorder.error is None
    assert recorder.waiting == 0
    while deliver(spool, seen):
        pass
    account = spool.account()
    assert account.produced == made == len(seen)
    assert account.dropped == {"disk-full": too_many}
    assert (account.delivered, account.pending) == (made - too_many, 0)


def test_a_disk_that_others_have_filled_does_not_keep_the_spool_from_emptying_itself(
    small_disk: Path,
) -> None:
    spool, broker, clock = Spool(small_disk / "spool", LIMITS), FakeBroker(), Clock()
    recorder = SpoolWriter(task, spool)
    uplink = uplink_of(spool, broker, clock)
    made = produce(recorder, 0, 1000)
    filler = fill(small_disk)
    for _ in range(60):
        clock.now += 0.5
        made = produce(recorder, made, 3)  # it takes whatever room there is
        recorder.write()
        uplink.step()
        broker.acknowledge(1)
        fill(small_disk)  # and somebody else's log the rest
    assert len(broker.states) > 2
    drain(uplink, broker, spool)  # with the disk as full as before
    assert len(list((small_disk / "spool").glob("*.seg"))) <= 2
    filler.unlink()
    recorder.write()
    drain(uplink, broker, spool)
    assert recorder.waiting == 0
    account = spool.account()
    assert (account.produced, account.delivered, account.dropped) == (made, made, {})
    assert list(broker.seqs) == [(0, made - 1)]


def test_a_device_starts_on_a_full_disk_and_delivers_what_it_has(small_disk: Path) -> None:
    spool = Spool(small_disk / "spool", LIMITS)
    recorder = SpoolWriter(task, spool)
    made = produce(recorder, 0, 1000)
    seen = IntervalSet()
    deliver(spool, seen, 100_000)
    fill(small_disk)
    again = Spool(small_disk / "spool", LIMITS)
    assert again.epoch == spool.epoch
    while deliver(again, seen):
        pass
    assert list(seen) == [(0, made - 1)]
    assert again.account().pending == 0
    assert len(list((small_disk / "spool").glob("*.seg"))) == 1


def test_a_device_without_a_spool_says_that_the_disk_is_full(small_disk: Path) -> None:
    fill(small_disk)
    with pytest.raises(SpoolError, match="No space left"):
        Spool(small_disk / "spool")
