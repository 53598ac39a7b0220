"""What a metered line gets: the choice itself, and that the spool's account closes around it."""

from pathlib import Path

import numpy as np
import pytest

from edge_client.spool.frames import DROPS, EVENTS
from edge_client.spool.queue import Spool
from edge_client.spool.writer import HOLD_S, Event, SpoolWriter, sampled
from streams.contract.accounting import IntervalSet
from tests.rig.made_up.tiny_task import task
from tests.rig.made_up.uplink_broker import Clock


def event(i: int) -> Event:
    zeros = np.zeros(task.segment_shape, np.float32)
    return Event(1000 * i, "1-aaaaaaaa", np.zeros(3, np.float32), None, zeros, mark_us=1000 * i)


def covered(spool: Spool) -> IntervalSet:
    """The seqs that the frames speak of; each is spoken of once."""
    found = IntervalSet()
    for frame in spool.read(spool.position, 1 << 30):
        parts = [(frame.first, frame.first + frame.count - 1)]
        if frame.kind == DROPS:
            parts = [(d.first, d.last) for d in frame.declarations()]
        for first, last in parts:
            assert found.add(first, last) == last - first + 1
    return found


@pytest.mark.parametrize("share", [0.0, 0.01, 0.1, 0.5, 1.0])
def test_a_sample_has_its_share_and_a_larger_one_contains_it(share: float) -> None:
    chosen = {seq for seq in range(20_000) if sampled(seq, share)}
    assert len(chosen) == pytest.approx(20_000 * share, abs=200)
    assert chosen <= {seq for seq in range(20_000) if sampled(seq, min(1.0, share * 1.5))}


SHARE = 0.3
SENT = [seq for seq in range(400) if sampled(seq, SHARE)]


def test_a_run_that_is_held_back_is_declared_before_the_event_behind_it(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    recorder = SpoolWriter(task, spool, share=SHARE)
    for i in range(100):
        recorder.put(event(i))
    recorder.write(last=True)
    frames = spool.read(spool.position, 1 << 30)
    sent = [seq for f in frames if f.kind == EVENTS for seq in range(f.first, f.first + f.count)]
    assert sent == [seq for seq in SENT if seq < 100]
    assert list(covered(spool)) == [(0, 99)]
    assert {d.reason for f in frames for d in f.declarations()} == {"metered"}
    assert all(f.mark == 1000 * (f.first + f.count - 1) for f in frames)
    assert spool.mark == 99_000


def test_a_run_is_declared_after_a_while_though_nothing_is_sent(tmp_path: Path) -> None:
    spool, clock = Spool(tmp_path), Clock()
    recorder = SpoolWriter(task, spool, share=0.0, clock=clock)
    for i in range(10):
        recorder.put(event(i))
        recorder.write()
    assert spool.next_seq == 0
    clock.now += HOLD_S
    recorder.write()
    assert spool.next_seq == 10
    assert [f.count for f in spool.read(spool.position, 1 << 30)] == [10]
