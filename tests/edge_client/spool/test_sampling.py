"""What a metered line gets: the choice itself, and that the spool's account closes around it."""

import errno
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


def test_what_was_held_back_and_not_declared_at_a_crash_was_never_produced(tmp_path: Path) -> None:
    recorder, last = SpoolWriter(task, Spool(tmp_path), share=SHARE), SENT[3]
    for i in range(SENT[4]):  # those after the fourth that is sent are held back
        recorder.put(event(i))
    recorder.write()
    again = Spool(tmp_path)
    assert (again.next_seq, again.mark) == (last + 1, 1000 * last)
    recorder = SpoolWriter(task, again, share=SHARE)
    for i in range(last + 1, 60):
        recorder.put(event(i))
    recorder.write(last=True)
    assert list(covered(again)) == [(0, 59)]
    assert again.mark == 59_000


def test_a_disk_that_fails_at_any_write_leaves_no_hole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool = Spool(tmp_path)
    recorder = SpoolWriter(task, spool, limit=20, share=SHARE)
    write, noise, failed = spool._write, np.random.default_rng(1), 0

    def now_and_then(*arguments: object) -> None:
        nonlocal failed
        if noise.random() < 0.6:
            failed += 1
            raise OSError(errno.ENOSPC, "no space left on device")
        write(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(spool, "_write", now_and_then)
    for i in range(400):
        recorder.put(event(i))
        if i % 7 == 0:
            recorder.write()
    while recorder.waiting or recorder.error or spool.next_seq < 400:
        recorder.write(last=True)
    assert failed > 20
    assert spool.next_seq == 400
    assert list(covered(spool)) == [(0, 399)]
    sent = [f for f in spool.read(spool.position, 1 << 30) if f.kind == EVENTS]
    assert {s for f in sent for s in range(f.first, f.first + f.count)} <= set(SENT)
