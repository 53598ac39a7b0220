"""What gives way when the spool is full or old, and what is declared of it."""

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edge_client.spool.compaction import FramePart, compact
from edge_client.spool.eviction import by_priority
from edge_client.spool.frames import DROPS, EVENTS, Frame, SpoolPosition, list_files
from edge_client.spool.limits import NEVER_SET_S, SpoolLimits
from edge_client.spool.queue import Spool
from edge_client.spool.writer import Event, SpoolWriter
from streams.contract.accounting import IntervalSet
from streams.contract.events.compact import Columns, decode_block, encode_block
from streams.contract.events.messages import event_columns, task_layout
from streams.contract.task import Task
from tests.fakes.tiny_task import task
from tests.fakes.uplink_broker import Clock

HOUR_S = 3600.0
SURE, UNSURE = np.array([9, 0, 0], np.float32), np.array([1, 0.9, 0.8], np.float32)


def event(i: int, *, sure: bool = True, label: float | None = None) -> Event:
    truth = None if label is None else np.array([label], np.float32)
    segment = np.full(task.segment_shape, i, np.float32)
    return Event(1000 * i, "1-aaaaaaaa", SURE if sure else UNSURE, truth, segment, mark_us=1000 * i)


def decoded(payload: bytes, first: int = 0) -> Columns:
    return decode_block(task_layout(task), payload, first, 1000)


def drained(spool: Spool) -> tuple[IntervalSet, dict[str, IntervalSet]]:
    """Deliver everything; which seqs arrived, and which were declared by reason."""
    events, drops = IntervalSet(), dict[str, IntervalSet]()
    while frames := spool.read(spool.position, 1 << 30):
        for frame in frames:
            if frame.kind == EVENTS:
                rows = decoded(frame.payload)
                assert rows.times.tolist() == [1000 * (frame.first + i) for i in range(frame.count)]
                assert events.add(frame.first, frame.first + frame.count - 1) == frame.count
            for entry in frame.declarations():
                drops.setdefault(entry.reason, IntervalSet()).add(entry.first, entry.last)
        spool.settle(frames)
    account = spool.account()
    assert account.balanced
    assert (account.pending, account.delivered) == (0, len(events))
    assert account.dropped == {reason: len(found) for reason, found in drops.items()}
    assert len(events) + sum(map(len, drops.values())) == account.produced
    return events, drops


def frame_of(events: list[Event], of: Task = task) -> Frame:
    rows = event_columns(
        of,
        first=0,
        times=np.array([e.time_us for e in events]),
        model=[e.model for e in events],
        outputs=np.stack([e.outputs for e in events]),
        labels=[e.label for e in events],
        segments=np.stack([e.segment for e in events]) if of.upload == "segment" else None,
    )
    return Frame(EVENTS, 0, len(events), 0, encode_block(rows), SpoolPosition(0, 0))


def test_what_is_kept_of_a_frame_is_the_same_rows() -> None:
    wanted = range(20, 28)
    frame = frame_of([event(i, sure=i not in wanted, label=1.0 if i == 40 else None)
                      for i in range(60)])  # fmt: skip
    pieces = by_priority(task)(frame)
    assert [(p.count, p.payload is None) for p in pieces] == [
        (20, True), (8, False), (12, True), (1, False), (19, True),
    ]  # fmt: skip
    whole = decoded(frame.payload)
    assert pieces[1].payload is not None
    assert pieces[3].payload is not None
    assert pieces[1].payload == encode_block(whole.part(20, 28))
    assert pieces[3].payload == encode_block(whole.part(40, 41))


def test_a_short_run_between_two_that_are_kept_stays_where_a_frame_costs_more() -> None:
    private = replace(task, upload="prediction")
    frame = frame_of([event(i, sure=i % 3 > 0) for i in range(60)], private)
    pieces = by_priority(private)(frame)
    assert [(p.count, p.payload is None) for p in pieces] == [(58, False), (2, True)]


def test_what_this_task_cannot_read_is_kept() -> None:
    frame = Frame(EVENTS, 0, 3, 0, b"no block", SpoolPosition(0, 0))
    assert by_priority(task)(frame) == [FramePart(3, b"no block")]


def test_a_task_with_targets_keeps_the_labelled() -> None:
    aims = replace(task, classes=(), targets=("a", "b", "c"))
    rows = event_columns(
        aims,
        first=0,
        times=np.arange(20),
        model="1-aaaaaaaa",
        outputs=np.stack([UNSURE] * 20),
        labels=[None] * 10 + [np.ones(3, np.float32)] * 10,
        segments=np.zeros((20, *task.segment_shape), np.float32),
    )
    pieces = by_priority(aims)(Frame(EVENTS, 0, 20, 0, encode_block(rows), SpoolPosition(0, 0)))
    assert [(p.count, p.payload is None) for p in pieces] == [(10, True), (10, False)]


def test_drops_that_stand_together_become_one_frame(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    spool.append(2, b"ab", mark=1)
    spool.declare_lost(3, "metered", mark=2)
    spool.append(2, b"cd", mark=3)
    spool.append(1, b"e", mark=4)
    file = list_files(tmp_path)[0]

    def thin(frame: Frame) -> list[FramePart]:
        return [FramePart(frame.count, frame.payload if frame.payload == b"e" else None)]

    content = compact(file.frames(), thin, "spool-full")
    file.replace(content)
    frames = list(file.frames())
    assert [(f.kind, f.first, f.count, f.mark) for f in frames] == [
        (DROPS, 0, 7, 3),
        (EVENTS, 7, 1, 4),
    ]
    assert frames[0].declarations() == [
        (0, 1, "spool-full"), (2, 4, "metered"), (5, 6, "spool-full"),
    ]  # fmt: skip


@pytest.mark.parametrize("order", ["oldest", "newest"])
def test_at_the_cap_labelled_and_unsure_events_outlive_the_rest(tmp_path: Path, order: str) -> None:
    limits = SpoolLimits(file_bytes=20_000, total_bytes=100_000, drop=order)  # type: ignore[arg-type]
    spool = Spool(tmp_path, limits, policy=by_priority(task))
    recorder = SpoolWriter(task, spool)
    precious = IntervalSet()
    for i in range(700):
        unsure, label = i % 50 in (10, 11, 12, 13), 1.0 if i % 97 == 0 else None
        if unsure or label is not None:
            precious.add(i)
        recorder.put(event(i, sure=not unsure, label=label))
        if i % 25 == 24:
            recorder.write()
            assert sum(f.stat().st_size for f in tmp_path.glob("*.seg")) < 100_000
    events, drops = drained(spool)
    assert set(drops) == {"spool-full"}
    assert all(seq in events for first, last in precious for seq in range(first, last + 1))
    assert 100 < len(drops["spool-full"]) < 650
    middle = [first for first, last in drops["spool-full"]][len(list(drops["spool-full"])) // 2]
    assert middle < 350 if order == "oldest" else middle > 350


@pytest.mark.parametrize(("order", "gone"), [("oldest", (1, 2)), ("newest", (8, 9))])
def test_when_all_is_thinned_whole_files_go_in_the_order_that_is_set(
    tmp_path: Path, order: str, gone: tuple[int, int]
) -> None:
    limits = SpoolLimits(file_bytes=100, total_bytes=1000, drop=order)  # type: ignore[arg-type]
    spool = Spool(tmp_path, limits)
    for i in range(11):
        spool.append(1, b"x" * 60, mark=i)
    declared = [d for f in spool.read(spool.position, 1 << 30) for d in f.declarations()]
    lost = {seq for d in declared for seq in range(d.first, d.last + 1)}
    assert lost
    assert (gone[0] in lost) or (gone[1] in lost)
    assert lost <= set(gone) | {gone[0] + 1, gone[0] - 1}


def test_a_thinned_file_keeps_its_time_and_what_a_crash_left_of_another_is_removed(
    tmp_path: Path,
) -> None:
    spool = Spool(tmp_path)
    spool.append(5, b"x" * 100, mark=1)
    file = list_files(tmp_path)[0]
    os.utime(file.path, (10**9, 10**9))
    file.replace(b"")
    assert file.written_s == 10**9
    left = tmp_path / "0000000000000000-0000000000000000.tmp"
    left.write_bytes(b"half")
    Spool(tmp_path)
    assert not left.exists()


class Aging:
    """A spool with an age limit of eight hours and a clock."""

    def __init__(self, folder: Path) -> None:
        self.clock = Clock()
        self.clock.now = NEVER_SET_S + 1000 * HOUR_S
        self.folder = folder
        limits = SpoolLimits(file_bytes=300, age_s=8 * HOUR_S)
        self.spool = Spool(folder, limits, clock=self.clock)

    def append(self, count: int = 1) -> None:
        for _ in range(count):
            self.spool.append(1, b"x" * 60, mark=0)
            newest = max(self.folder.glob("*.seg"))
            os.utime(newest, (self.clock.now, self.clock.now))

    def lost(self) -> dict[str, int]:
        while frames := self.spool.read(self.spool.position, 1 << 30):
            self.spool.settle(frames)
        assert self.spool.account().pending == 0
        return self.spool.account().dropped


def test_what_is_too_old_is_declared_with_its_reason(tmp_path: Path) -> None:
    device = Aging(tmp_path)
    device.append(9)  # three to a file; the first file is where the reader is
    device.clock.now += 5 * HOUR_S
    device.append(3)
    device.clock.now += 4 * HOUR_S
    device.spool.expire()
    assert device.lost() == {"spool-age": 6}


def test_a_newest_file_that_is_seldom_written_is_closed_so_that_it_can_go(tmp_path: Path) -> None:
    device = Aging(tmp_path)
    device.append(4)
    for _ in range(30):
        device.clock.now += HOUR_S / 2
        device.spool.expire()
    device.append()
    assert device.lost() == {"spool-age": 1}


def test_events_that_come_slowly_live_no_longer_than_an_eighth_beyond_the_limit(
    tmp_path: Path,
) -> None:
    device = Aging(tmp_path)
    device.append(3)
    for _ in range(40):
        device.append()
        device.clock.now += HOUR_S / 2
        device.spool.expire()
        account = device.spool.account()
        assert account.balanced
    alive = [f for f in device.spool.read(device.spool.position, 1 << 30) if f.kind == EVENTS]
    assert 3 + 16 <= len(alive) <= 3 + 16 + 4  # the first file is where the reader is


def test_what_the_reader_has_begun_does_not_age(tmp_path: Path) -> None:
    device = Aging(tmp_path)
    device.append(12)
    device.spool.read(device.spool.position, 1 << 30)
    device.clock.now += 100 * HOUR_S
    device.spool.expire()
    assert device.lost() == {}


def test_a_clock_that_is_set_back_drops_nothing(tmp_path: Path) -> None:
    device = Aging(tmp_path)
    device.append(6)
    device.clock.now -= 500 * HOUR_S
    device.spool.expire()
    device.append(6)
    device.spool.expire()
    device.clock.now += 500 * HOUR_S  # and mended: what was written meanwhile looks 500 hours old
    device.append()
    device.spool.expire()
    assert device.lost() == {}


def test_the_time_of_a_clock_that_was_never_set_tells_no_age(tmp_path: Path) -> None:
    device = Aging(tmp_path)
    device.clock.now = 5 * HOUR_S
    device.append(9)
    device.spool.expire()
    device.clock.now = NEVER_SET_S + 9000 * HOUR_S
    device.append()
    device.spool.expire()
    assert device.lost() == {}


def test_the_recorder_looks_for_what_is_too_old_about_once_a_minute(tmp_path: Path) -> None:
    clock, looked = Clock(), []

    class Watched(Spool):
        def expire(self) -> None:
            looked.append(clock.now)

    recorder = SpoolWriter(task, Watched(tmp_path), clock=clock)
    for _ in range(300):
        clock.now += 1.0
        recorder.write()
    assert len(looked) == 5
