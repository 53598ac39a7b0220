"""From the loop's memory to the spool: nothing waits, nothing is lost unseen."""

import errno
import sys
from pathlib import Path

import numpy as np
import pytest

from edge_client.spool.frames import EVENTS, Frame
from edge_client.spool.queue import Spool
from edge_client.spool.writer import Event, SpoolWriter
from streams.contract.events.compact import Columns, decode_block
from streams.contract.events.messages import task_layout
from streams.contract.task import OnnxFile
from tests.rig.made_up.tiny_task import task
from tests.rig.processes.polling import until


def decoded(frame: Frame) -> Columns:
    return decode_block(task_layout(task), frame.payload, frame.first, 1000)


def event(i: int, label: float | None = None) -> Event:
    segment = np.full(task.segment_shape, i, np.float32)
    truth = None if label is None else np.array([label], np.float32)
    return Event(
        1000 * i, "1-aaaaaaaa", np.array([i, 0, 1], np.float32), truth, segment, mark_us=1000 * i
    )


def test_events_are_written_as_batches_with_their_seqs(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    recorder = SpoolWriter(task, spool)
    for i in range(1200):
        recorder.put(event(i, label=1.0 if i % 2 else None))
    recorder.write()
    frames = spool.read(spool.position, 1 << 30)
    rows = [decoded(f) for f in frames]
    assert [f.first for f in frames] == [0, 512, 1024]
    assert [t for r in rows for t in r.times.tolist()] == list(range(0, 1_200_000, 1000))
    assert rows[0].known[:3].tolist() == [False, True, False]
    assert rows[0].labels[1].tolist() == [1.0]
    assert spool.mark == 1_199_000


def test_a_frame_has_each_events_own_model_segment_and_outputs(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    recorder = SpoolWriter(task, spool)
    for frame in (["1-aaaaaaaa"] * 3, ["1-aaaaaaaa", "2-bbbbbbbb", "1-aaaaaaaa"]):
        given = [event(i)._replace(model=model) for i, model in enumerate(frame)]
        for one in given:
            recorder.put(one)
        recorder.write()
        rows = decoded(spool.read(spool.position, 1 << 30)[-1])
        assert list(rows.names) == frame
        assert rows.outputs.tolist() == [one.outputs.tolist() for one in given]
        assert rows.segments is not None
        assert rows.segments.tolist() == [one.segment.ravel().tolist() for one in given]


def test_views_of_what_a_task_computes_are_written_as_their_values(tmp_path: Path) -> None:
    """An `after` that turns the graph's outputs round, and segments that are no block of memory."""
    around = OnnxFile("m.onnx", after=lambda outputs: outputs["y"][:, ::-1])
    outputs = around.answers({"y": np.array([[1.0, 2.0, 3.0]])})[0]
    given = event(7)._replace(outputs=outputs, segment=np.asfortranarray(event(7).segment, "f8"))
    spool = Spool(tmp_path)
    recorder = SpoolWriter(task, spool)
    recorder.put(event(6))
    recorder.put(given)
    recorder.write()
    rows = decoded(spool.read(spool.position, 1 << 30)[-1])
    assert rows.outputs[1].tolist() == [3.0, 2.0, 1.0]
    assert rows.segments is not None
    assert rows.segments[1].tolist() == given.segment.ravel().tolist()


def test_an_event_is_written_at_once_and_those_that_follow_it_together(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    recorder = SpoolWriter(task, spool)
    recorder.start()
    recorder.put(event(0))
    until(lambda: spool.next_seq == 1, "the first event is written")
    for i in range(1, 10):
        recorder.put(event(i))
    recorder.stop()
    assert [frame.count for frame in spool.read(spool.position, 1 << 30)] == [1, 9]


def test_a_write_that_does_not_come_back_bounds_what_waits_for_it(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    recorder = SpoolWriter(task, spool, limit=50)
    for i in range(80):  # nobody writes
        recorder.put(event(i))
    assert recorder.waiting == 50
    recorder.write()
    frames = spool.read(spool.position, 1 << 30)
    assert frames[0].declarations() == [(0, 29, "queue-full")]  # no disk was full
    assert sum(f.count for f in frames if f.kind == EVENTS) == 50
    assert frames[-1].mark == 79_000


def test_a_loop_that_is_faster_than_the_writer_loses_nothing_unseen(tmp_path: Path) -> None:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        spool = Spool(tmp_path)
        recorder = SpoolWriter(task, spool, limit=20)
        recorder.start()
        for i in range(20_000):
            recorder.put(event(i))
        recorder.stop()
    finally:
        sys.setswitchinterval(before)
    frames = spool.read(spool.position, 1 << 30)
    times = [t for f in frames if f.kind == EVENTS for t in decoded(f).times.tolist()]
    declared = [d for frame in frames if frame.kind != EVENTS for d in frame.declarations()]
    lost = [last - first + 1 for first, last, _ in declared]
    assert times == sorted(set(times))
    assert sum(lost) > 0
    assert len(times) + sum(lost) == spool.next_seq == 20_000
    assert times[-1] == 19_999_000


def test_a_source_that_can_wait_is_told_at_half_of_the_limit_while_the_disk_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool = Spool(tmp_path)
    recorder = SpoolWriter(task, spool, limit=50)
    for i in range(24):
        recorder.put(event(i))
    assert not recorder.full
    recorder.put(event(24))
    assert recorder.full

    def broken(*_args: object, **_named: object) -> int:
        raise OSError(errno.ENOSPC, "no space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(spool, "_write", broken)
        recorder.write()
        assert recorder.waiting == 25
        assert not recorder.full  # it would wait for ever
    recorder.write()
    assert not recorder.full
    assert spool.next_seq == 25
