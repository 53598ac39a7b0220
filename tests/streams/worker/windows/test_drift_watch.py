"""Drift as the worker reports it: over the last windows, from what is stored."""

import asyncio
import dataclasses
from pathlib import Path

import numpy as np
import pytest

from streams.contract.task import Task
from streams.contract.window_report import DriftReport, WindowReport
from streams.kafka.admin import GroupPosition
from streams.learning.drift_detector import compare
from streams.learning.drift_reference import Feature, Reference
from streams.worker.store.delta_store import SCORES, DeltaStore
from streams.worker.windows.drift_watch import (
    CELLS,
    HISTOGRAMS,
    DriftWatch,
    Histograms,
    WindowDrift,
)
from streams.worker.windows.rows import outputs_of, segments_of
from streams.worker.windows.tumbling import Message, Window, split
from tests.rig.made_up.killed import Killed
from tests.rig.made_up.tiny_task import task
from tests.rig.processes.workers import SECOND, batch, events, reference
from tests.streams.worker.model import LATER, Log, MemoryStore, committer
from tests.streams.worker.model import live as life

EVERY = 0.25  # seconds: twenty events in a window of five


def times(window: int, n: int = 20) -> list[float]:
    return [5 * window + EVERY * i for i in range(n)]


async def live(log: Log, store: object, most: int | None = None, **options: object) -> None:
    """The life of a process that takes these messages one by one."""
    made = committer(task, log, store, reference=reference(), **options)  # type: ignore[arg-type]
    await made.assign(GroupPosition(0, 0, 0, None))
    for offset in range(log.committed, len(log.messages))[:most]:
        made.receive(log.incoming(offset), offset, 0.0)
        await made.flush(LATER)


def reports(log: Log) -> dict[tuple[int, int], WindowReport]:
    """The reports by window number and revision; what came twice is the same."""
    found: dict[tuple[int, int], WindowReport] = {}
    for message in log.published:
        if message.topic == "tiny.v1.windows":
            report = WindowReport.decode(message.value)
            name = report.window_us // (5 * SECOND), report.revision
            assert found.setdefault(name, report) == report
    return {name: report.replace(store="") for name, report in found.items()}


def drift_of(report: WindowReport) -> DriftReport:
    assert report.drift is not None
    return report.drift


def history(shifted_from: int = 99, windows: int = 6) -> Log:
    log = Log()
    for i in range(windows):
        shift = 3.0 if i >= shifted_from else 0.0
        log.append(batch("d0", 20 * i, times(i), shift=shift))
    return log


def test_a_report_sums_the_last_windows_of_its_device() -> None:
    log = history()
    log.append(batch("d1", 0, times(0, 5)))
    asyncio.run(live(log, MemoryStore()))
    by_device = [WindowReport.decode(m.value) for m in log.published if "windows" in m.topic]
    sizes = [(drift_of(r).windows, drift_of(r).segments) for r in by_device]
    assert sizes == [(1, 20), (2, 40), (3, 60), (3, 60), (3, 60), (3, 60), (1, 5)]
    assert [drift_of(r).decided for r in by_device] == [True] * 6 + [False]
    assert not any(drift_of(r).alarm for r in by_device)


def test_a_channel_that_moves_alarms_and_is_named() -> None:
    log = history(shifted_from=3)
    asyncio.run(live(log, MemoryStore()))
    found = reports(log)
    assert not drift_of(found[2, 0]).alarm
    moved = drift_of(found[5, 0])
    assert moved.alarm
    assert moved.worst in ("x", "y")
    assert {(c.channel, c.kind) for c in moved.channels if c.alarm} == {
        ("x", "mean"),
        ("y", "mean"),
    }
    assert moved.share == pytest.approx(2 / 3)  # the predictions have not


def test_a_report_has_the_histograms_of_the_features_that_have_moved_most() -> None:
    """They are what the last windows' counts in the store add up to."""
    log, store = history(shifted_from=3), MemoryStore()
    asyncio.run(live(log, store))
    found, against = drift_of(reports(log)[5, 0]), reference()
    assert [(h.channel, h.kind) for h in found.histograms] == [
        (c.channel, c.kind) for c in found.channels[:HISTOGRAMS]
    ]
    stored = [text for text in store.tables[SCORES].column("drift").to_pylist() if text]
    counts = np.sum([WindowDrift.decode(text.encode()).counts for text in stored[-3:]], axis=0)
    parts = dict(
        zip(((f.channel, f.kind) for f in against.features), against.split(counts), strict=True)
    )
    whole = {(f.channel, f.kind): f for f in against.features}
    for histogram in found.histograms:
        name = histogram.channel, histogram.kind
        assert histogram.counts == parts[name].tolist()
        assert histogram.reference == whole[name].counts
        assert histogram.edges == pytest.approx(whole[name].edges, rel=1e-5)
        assert histogram.ordered == whole[name].ordered
    assert len(found.encode()) < 4000  # a report is stored with every window


def test_a_feature_of_many_cells_has_distances_alone() -> None:
    wide = Feature(
        channel="x", kind="mean", edges=[float(n) for n in range(CELLS)], counts=[1] * (CELLS + 3)
    )
    narrow = Feature(channel="y", kind="mean", edges=[0.0, 1.0], counts=[1] * 5)
    both = Reference(independent=1.0, features=[wide, narrow])
    counts = np.arange(both.cells)
    names = [(c.channel, c.kind) for c in compare(both, counts, windows=1).channels]
    found = Histograms(both).fields(counts, names)
    assert [(h["channel"], h["counts"]) for h in found] == [("y", counts[-5:].tolist())]


def test_late_rows_count_in_their_window_and_not_at_all_when_it_is_long_gone() -> None:
    log = history(windows=5)
    log.append(batch("d0", 200, [22.1, 22.2]))  # window 4
    log.append(batch("d0", 300, [0.1]))  # window 0
    asyncio.run(live(log, MemoryStore()))
    found = reports(log)
    assert (found[4, 0].late, found[4, 1].late) == (False, True)
    assert (drift_of(found[4, 1]).windows, drift_of(found[4, 1]).segments) == (3, 62)
    assert (drift_of(found[0, 1]).windows, drift_of(found[0, 1]).segments) == (3, 62)


@pytest.mark.parametrize("step", [f"worker-step-{n}" for n in range(1, 6)])
@pytest.mark.parametrize("kind", ["memory", "delta"])
def test_a_restart_changes_no_report(step: str, kind: str, tmp_path: Path) -> None:
    undisturbed, log = history(shifted_from=3), history(shifted_from=3)
    asyncio.run(live(undisturbed, MemoryStore()))
    memory = MemoryStore()

    def store() -> object:
        return memory if kind == "memory" else DeltaStore(tmp_path)

    while log.committed < len(log.messages):  # a crash at every second window
        with pytest.raises(Killed):
            asyncio.run(live(log, store(), crash_at=step))
        if log.committed < len(log.messages):
            asyncio.run(live(log, store(), most=1))
    asyncio.run(live(log, store()))
    assert reports(log) == reports(undisturbed)
    assert len(reports(log)) == 6


def test_without_a_reference_there_is_no_drift() -> None:
    log, store = Log(), MemoryStore()
    log.append(batch("d0", 0, times(0)))

    life(log, store, LATER)
    assert reports(log)[0, 0].drift is None
    assert set(store.tables[SCORES].column("drift").to_pylist()) == {None}


def one(watch: DriftWatch, window: Window, of: Task = task) -> str:
    segments = segments_of(of, [window]) if of.upload == "segment" else None
    (text,) = watch.observe([window], segments, outputs_of(of, [window]))
    return text


def test_counts_of_another_reference_are_not_added() -> None:
    window = Window(0, "d0", 0, tuple(split(task, Message(0, None), events("d0", 0, times(0)))))
    text = one(DriftWatch(task, reference()), window)
    same, other = DriftWatch(task, reference()), DriftWatch(task, reference(minimum=21))
    for watch in (same, other):
        watch.restore({"d0": [(-5 * SECOND, text), (-10 * SECOND, "garbage")]})
    assert WindowDrift.decode(one(same, window).encode()).report.windows == 2
    assert WindowDrift.decode(one(other, window).encode()).report.windows == 1
    same.clear()
    assert WindowDrift.decode(one(same, window).encode()).report.windows == 1


def test_a_task_that_uploads_no_segments_watches_its_predictions() -> None:
    quiet = dataclasses.replace(task, upload="prediction")
    seen = events("d0", 0, times(0), task=quiet)
    window = Window(0, "d0", 0, tuple(split(quiet, Message(0, None), seen)))
    found = WindowDrift.decode(one(DriftWatch(quiet, reference()), window, quiet).encode()).report
    assert [c.channel for c in found.channels] == ["predictions"]
    assert found.decided
