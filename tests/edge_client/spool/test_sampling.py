"""What a metered line gets: the choice itself, and that the spool's account closes around it."""

import errno
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edge_client.spool.frames import DROPS, EVENTS
from edge_client.spool.queue import Spool
from edge_client.spool.sampling import HOLD_S, Sampling, confidence, sampled
from edge_client.spool.writer import Event, SpoolWriter
from streams.contract.accounting import IntervalSet
from tests.fakes.tiny_task import task
from tests.fakes.uplink_broker import Clock

SURE, UNSURE = np.array([9, 0, 0], np.float32), np.array([1, 0, 0], np.float32)
regression = replace(task, classes=(), targets=("a", "b", "c"))


def event(i: int, outputs: np.ndarray = SURE, label: float | None = None) -> Event:
    truth = None if label is None else np.array([label], np.float32)
    return Event(
        1000 * i,
        "1-aaaaaaaa",
        outputs,
        truth,
        np.zeros(task.segment_shape, np.float32),
        mark_us=1000 * i,
    )


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


def test_uncertain_and_labelled_answers_are_sent() -> None:
    sampling = Sampling("uncertain", uncertain_below=0.8)
    assert confidence(UNSURE) < 0.8 < confidence(SURE)
    assert sampling.sends(task, 0, UNSURE, labelled=False)
    assert sampling.sends(task, 0, SURE, labelled=True)
    assert not any(sampling.sends(task, seq, SURE, labelled=False) for seq in range(100))


def test_targets_have_no_softmax_so_labels_and_a_share_are_sent() -> None:
    sampling = Sampling("uncertain", share=0.1)
    sent = {seq for seq in range(1000) if sampling.sends(regression, seq, UNSURE, labelled=False)}
    assert sent == {seq for seq in range(1000) if sampled(seq, 0.1)}
    assert all(sampling.sends(regression, seq, SURE, labelled=True) for seq in range(100))


@pytest.mark.parametrize("mode", ["everything", "nothing"])
def test_everything_and_nothing_keep_every_event(mode: str) -> None:
    sampling = Sampling(mode)  # type: ignore[arg-type]
    assert all(sampling.sends(task, seq, SURE, labelled=False) for seq in range(100))


def test_a_run_that_is_held_back_is_declared_before_the_event_behind_it(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    recorder = SpoolWriter(task, spool, sampling=Sampling("uncertain"))
    for i in range(10):
        recorder.put(event(i, UNSURE if i in (4, 5) else SURE))
    recorder.write(last=True)
    frames = spool.read(spool.position, 1 << 30)
    assert [(f.kind, f.first, f.count, f.mark) for f in frames] == [
        (DROPS, 0, 4, 3000),
        (EVENTS, 4, 2, 5000),
        (DROPS, 6, 4, 9000),
    ]
    assert {d.reason for f in frames if f.kind == DROPS for d in f.declarations()} == {"metered"}
    assert spool.mark == 9000


def test_a_run_is_declared_after_a_while_though_nothing_is_sent(tmp_path: Path) -> None:
    spool, clock = Spool(tmp_path), Clock()
    recorder = SpoolWriter(task, spool, sampling=Sampling("uncertain"), clock=clock)
    for i in range(10):
        recorder.put(event(i))
        recorder.write()
    assert spool.next_seq == 0
    clock.now += HOLD_S
    recorder.write()
    assert spool.next_seq == 10
    assert [f.count for f in spool.read(spool.position, 1 << 30)] == [10]


def test_what_was_held_back_and_not_declared_at_a_crash_was_never_produced(tmp_path: Path) -> None:
    recorder = SpoolWriter(task, Spool(tmp_path), sampling=Sampling("uncertain"))
    for i in range(10):
        recorder.put(event(i, UNSURE if i == 4 else SURE))
    recorder.write()
    again = Spool(tmp_path)
    assert (again.next_seq, again.mark) == (5, 4000)
    recorder = SpoolWriter(task, again, sampling=Sampling("uncertain"))
    for i in range(5, 10):
        recorder.put(event(i, UNSURE if i == 9 else SURE))
    recorder.write(last=True)
    assert list(covered(again)) == [(0, 9)]
    assert again.mark == 9000


def test_a_disk_that_fails_at_any_write_leaves_no_hole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool = Spool(tmp_path)
    recorder = SpoolWriter(task, spool, limit=20, sampling=Sampling("sampled", share=0.3))
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
    assert all(sampled(s, 0.3) for f in sent for s in range(f.first, f.first + f.count))
