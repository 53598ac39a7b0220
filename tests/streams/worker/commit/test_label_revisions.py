"""Labels of stored events: whatever comes before or after whatever, twice, in place of another, and
wherever the worker crashes, the reports add up to the events with their latest labels."""

import asyncio
import contextlib
import json
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from operator import itemgetter
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs

from streams.contract.task import Task
from streams.contract.topics import WINDOWS
from streams.contract.window_report import ModelWindow, WindowReport
from streams.kafka.admin import GroupPosition
from streams.worker.commit import label_revisions
from streams.worker.commit.committer import Committer
from streams.worker.store.late_labels import Joined
from streams.worker.store.tables import LABELS, REVISED, SCORES
from tests.rig.made_up.killed import Killed
from tests.rig.made_up.tiny_task import task as tiny
from tests.rig.processes.workers import SECOND, batch, json_events, labels
from tests.streams.worker.model import LATER, Log, MemoryStore, committer

STEPS = ["worker-step-1", "worker-step-2", "worker-step-3", "late-step-1", "late-step-2"]
TARGETS = replace(tiny, classes=(), targets=("left", "right"), tolerance=0.7, metric="rmse")
Row = dict[str, Any]
Names = dict[tuple[str, int], ModelWindow]


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(label_revisions, "LEAST_S", 0.0)
    monkeypatch.setattr(label_revisions, "SHARE", 1e9)
    monkeypatch.setattr(label_revisions, "SLICE", 2)


def life(log: Log, store: MemoryStore, task: Task, *, settled: bool, crash_at: str = "") -> None:
    """A worker takes in all that there is; `settled`: until all labels are joined."""

    async def live() -> None:
        made = committer(task, log, store, crash_at=crash_at)
        at = GroupPosition(0, 0, 0, log.labels_committed)
        await made.assign(GroupPosition(0, 0, 0, log.committed), at)
        for offset in range(log.labels_committed, len(log.labels)):
            made.receive(log.incoming_label(offset), LABELS, 0.0)
        for offset in range(log.committed, len(log.messages)):
            made.receive(log.incoming(offset), offset, 0.0)
        await made.flush(LATER)
        await until_joined(made, store) if settled else await made.flush(LATER)

    asyncio.run(live())


async def until_joined(made: Committer, store: MemoryStore) -> None:
    deadline = time.monotonic() + 30
    wanted = Joined(store.last_commit(LABELS, 0), store.last_commit(SCORES, 0))
    while wanted.labels and made.late_labels.joined[0] != wanted:
        assert time.monotonic() < deadline
        await made.flush(LATER)
        await asyncio.sleep(0.002)


def published(log: Log) -> list[WindowReport]:
    """Each report once; one that came again is the same."""
    found: dict[tuple[str, int, int], bytes] = {}
    for message in log.published:
        if message.topic.endswith(WINDOWS):
            report = WindowReport.decode(message.value)
            name = report.device, report.window_us, report.revision
            assert found.setdefault(name, message.value) == message.value
    for device, start, revision in found:  # they count from 0 without a hole
        assert revision == 0 or (device, start, revision - 1) in found
    return [WindowReport.decode(value) for value in found.values()]


def added(reports: list[WindowReport]) -> Names:
    """The sums of the windows' reports."""
    total: Names = {}
    for report in reports:
        name = report.device, report.window_us
        (part,) = report.models.values()
        total[name] = total.get(name, ModelWindow(events=0, agreeing=0)) + part
    return total


def micros(moment: Any) -> int:
    return round(moment.timestamp() * SECOND)


def is_of(label: Row, event: Row) -> bool:
    """Whether a label is of an event, see docs/reference/state-folder.md."""
    own = (label["event_epoch"], label["event_seq"]) == (event["epoch"], event["seq"])
    if label["device"] != event["device"]:
        return False
    if label["event_id"] is not None:
        return bool(label["event_id"] == event["event_id"])
    if label["from"] is None:
        return own
    inside = label["from"] <= event["time"] <= label["to"]
    return bool(inside and (label["event_seq"] is None or own))


def plain(task: Task, store: MemoryStore) -> Names:
    """What the stored events with their latest labels come to, one by one."""
    known, total = store.tables[LABELS].to_pylist(), Names()
    for event in store.tables[SCORES].to_pylist():
        mine = [label for label in known if is_of(label, event)]
        latest = max(mine, key=itemgetter("told", "number", "epoch"), default=event)
        part: Row = {"events": 1, "agreeing": int(event["agrees"]), "compared": 1}
        answer = np.array([event["outputs"]], np.float32)
        taught = np.array([event["teacher"]], np.float32)
        if task.classes:
            kinds = [task.classes[int(task.answers(each)[0])] for each in (answer, taught)]
            part["classes"] = {kinds[1]: {"events": 1, "agreeing": int(event["agrees"])}}
        else:
            part["error"] = float(((answer - taught) ** 2).mean())
        if latest["label"] is not None:
            label = np.array([latest["label"]], np.float32)
            right = {"correct": answer, "teacher_correct": taught}
            part |= {name: int(task.correct(each, label)[0]) for name, each in right.items()}
            part["labelled"] = 1
            if task.classes:
                part["truth"] = {task.classes[int(label[0, 0])]: {kinds[0]: 1}}
            else:
                part["label_error"] = float(((answer - label) ** 2).mean())
        name = event["device"], micros(event["window"])
        before = total.get(name, ModelWindow(events=0, agreeing=0))
        total[name] = before + ModelWindow.of_fields(part)
    return total


def same(found: Names, wanted: Names) -> None:
    assert found.keys() == wanted.keys()
    for name, part in wanted.items():
        for field, value in structs.asdict(part).items():
            other = getattr(found[name], field)
            if field == "truth":
                other = {k: {a: n for a, n in row.items() if n} for k, row in other.items()}
                other = {k: row for k, row in other.items() if row}
            close = isinstance(value, float)
            assert other == (pytest.approx(value, abs=1e-4) if close else value), (name, field)


devices, seconds = st.sampled_from(["d0", "d1"]), st.integers(0, 20)
Sent = Callable[[Log, Task], None]


def events(device: str, first: int, times: list[int]) -> Sent:
    return lambda log, task: log.append(
        batch(device, first, [at + 0.25 * i for i, at in enumerate(times)], task=task)
    )


def foreign(device: str, at: int, names: list[int]) -> Sent:
    def send(log: Log, task: Task) -> None:
        rows = json_events(batch(device, 0, [at + i for i in range(len(names))], task=task))
        named = [row | {"event_id": f"o{n}"} for row, n in zip(rows, names, strict=True)]
        log.messages.append((device.encode(), json.dumps(named).encode(), []))

    return send


def told(device: str, first: int, spans: list[tuple[int, int]], told_s: int) -> Sent:
    """By a device's queue, of spans."""

    def send(log: Log, task: Task) -> None:
        edges = [(float(begin), float(begin + length)) for begin, length in spans]
        if task.classes:  # a value for each target is what `labels` does not make
            log.append(labels(device, first, edges, told_s=told_s))

    return send


def known(device: str, named: Row, value: int, known_s: int) -> Sent:
    """On the topic `labels`."""

    def send(log: Log, task: Task) -> None:
        label = value if task.classes else [float(value), 0.5]
        row = {**named, "label": label, "known_us": known_s * SECOND}
        log.labels.append((device.encode(), json.dumps([row]).encode()))

    return send


names = st.one_of(
    st.integers(0, 3).map(lambda n: {"event_id": f"o{n}"}),
    st.integers(0, 12).map(lambda n: {"epoch": "e1", "seq": n}),
    st.integers(0, 80).map(lambda n: {"time_us": n * SECOND // 4}),
)
sents = st.one_of(
    st.builds(events, devices, st.integers(0, 10), st.lists(seconds, min_size=1, max_size=5)),
    st.builds(foreign, devices, seconds, st.lists(st.integers(0, 3), min_size=1, max_size=3)),
    st.builds(
        told,
        devices,
        st.integers(0, 9),
        st.lists(st.tuples(seconds, st.integers(0, 6)), min_size=1, max_size=3),
        st.integers(0, 3),
    ),
    st.builds(known, devices, names, st.integers(0, 2), st.integers(0, 3)),
)
lives = st.tuples(st.lists(sents, max_size=5), st.booleans(), st.sampled_from(["", "", *STEPS]))


@settings(max_examples=60, deadline=None)
@given(st.lists(lives, min_size=1, max_size=5), st.sampled_from([tiny, TARGETS]))
def test_reports_add_up_to_the_events_with_their_latest_labels(
    history: list[tuple[list[Sent], bool, str]], task: Task
) -> None:
    """Lives of a worker, most of them ended at a step; the last one goes to the end."""
    log, store = Log(), MemoryStore()
    for sent, settled, crash_at in [*history, ([], True, "")]:
        for send in sent:
            send(log, task)
        settled |= "late" in crash_at  # a look takes its time
        with contextlib.suppress(Killed):
            life(log, store, task, settled=settled, crash_at=crash_at)
    same(added(published(log)), plain(task, store))


@pytest.fixture
def reported() -> tuple[Log, MemoryStore]:
    """Six events of d0 in two windows, which are reported; every third has a label."""
    log, store = Log(), MemoryStore()
    log.append(batch("d0", 0, [1, 2, 3, 6, 7, 8]))
    life(log, store, tiny, settled=True)
    return log, store


def late(log: Log) -> list[WindowReport]:
    return [report for report in published(log) if not report.events]


def test_a_label_that_comes_twice_says_the_same_or_was_known_before_adds_nothing(
    reported: tuple[Log, MemoryStore],
) -> None:
    log, store = reported
    for _ in range(2):
        known("d0", {"epoch": "e1", "seq": 1}, 2, 9)(log, tiny)
        known("d0", {"epoch": "e1", "seq": 3}, 0, 9)(log, tiny)  # which came with the event
        life(log, store, tiny, settled=True)
    known("d0", {"epoch": "e1", "seq": 1}, 0, 8)(log, tiny)  # known before the other one
    life(log, store, tiny, settled=True)
    (report,) = late(log)
    assert (report.window_us, report.revision, report.late, report.drift) == (0, 1, False, None)
    (part,) = report.models.values()
    assert (part.events, part.compared, part.classes, part.labelled) == (0, 0, {}, 1)
    assert sum(sum(row.values()) for row in part.truth.values()) == 1


def test_how_many_commits_of_labels_wait_is_a_metric_also_of_the_next_worker(
    reported: tuple[Log, MemoryStore],
) -> None:
    log, store = reported
    for seq in (1, 2):
        known("d0", {"epoch": "e1", "seq": seq}, 2, 9)(log, tiny)

    def waiting(made: Committer) -> float | None:
        return made.metrics.registry.get_sample_value("tidewheel_waiting_labels")

    async def live() -> None:
        for first in (True, False):
            made = committer(tiny, log, store)
            at = GroupPosition(0, 0, 0, log.labels_committed)
            await made.assign(GroupPosition(0, 0, 0, log.committed), at)
            if first:
                for offset in range(log.labels_committed, len(log.labels)):
                    made.receive(log.incoming_label(offset), LABELS, 0.0)
            await made.flush(LATER)
            assert waiting(made) == 1  # both labels are in it
        await until_joined(made, store)
        await made.flush(LATER)
        assert waiting(made) == 0

    asyncio.run(live())


def test_a_look_that_others_slowed_does_not_delay_the_next_tenfold(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.undo()
    assert [label_revisions.pause_s(s) for s in (0.01, 1.0, 20.0, 90.0)] == [0.3, 10.0, 60.0, 90.0]


def test_a_label_that_replaces_another_counts_in_its_place(
    reported: tuple[Log, MemoryStore],
) -> None:
    log, store = reported
    for value, known_s in ((2, 9), (0, 10)):
        known("d0", {"epoch": "e1", "seq": 1}, value, known_s)(log, tiny)
        life(log, store, tiny, settled=True)
    assert [report.revision for report in late(log)] == [1, 2]
    (part,) = late(log)[1].models.values()
    assert part.labelled == 0  # one less and one more
    same(added(published(log)), plain(tiny, store))


@pytest.mark.parametrize("step", ["worker-step-4", "worker-step-5", "late-step-1", "late-step-2"])
def test_a_label_that_a_life_has_stored_is_reported_by_the_next(
    reported: tuple[Log, MemoryStore], step: str
) -> None:
    log, store = reported
    known("d0", {"epoch": "e1", "seq": 1}, 2, 9)(log, tiny)
    with pytest.raises(Killed):
        life(log, store, tiny, settled="late" in step, crash_at=step)
    life(log, store, tiny, settled=True)
    assert [(report.window_us, report.revision) for report in late(log)] == [(0, 1)]
    same(added(published(log)), plain(tiny, store))


def test_many_labels_of_no_event_are_looked_at_once(
    reported: tuple[Log, MemoryStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also by the next worker; and an event that comes later finds its label in the store."""
    log, store = reported
    looks = Counter[Joined]()
    monkeypatch.setattr(label_revisions, "LABELS_AT_ONCE", 10)
    real = label_revisions.look

    def counted(of: Any, partition: int, since: Joined, most: int) -> Any:
        looks[since] += (found := real(of, partition, since, most)) is not None
        return found

    monkeypatch.setattr(label_revisions, "look", counted)
    for n in range(5):
        for i in range(7):
            known("d0", {"event_id": f"never-{n}-{i}"}, 1, 9)(log, tiny)
        life(log, store, tiny, settled=False)
    known("d0", {"epoch": "e1", "seq": 6}, 1, 9)(log, tiny)
    life(log, store, tiny, settled=True)
    assert (late(log), store.tables[REVISED].num_rows) == ([], 0)
    before = looks.total()
    life(log, store, tiny, settled=True)
    assert looks.total() == before
    log.append(batch("d0", 6, [9]))  # whose own label differs
    life(log, store, tiny, settled=True)
    assert len(late(log)) == 1
    same(added(published(log)), plain(tiny, store))


def test_late_rows_that_are_reported_during_a_look_have_numbers_of_their_own(
    reported: tuple[Log, MemoryStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    log, store = reported
    looked, go_on = threading.Event(), threading.Event()

    real = label_revisions.look

    def slow(*given: Any) -> Any:
        found = real(*given)
        looked.set()
        assert go_on.wait(30)
        return found

    async def live() -> None:
        made = committer(tiny, log, store)
        await made.assign(GroupPosition(0, 0, 0, log.committed), GroupPosition(0, 0, 0, 0))
        made.receive(log.incoming_label(0), LABELS, 0.0)
        await made.flush(LATER)  # the label is stored
        while not looked.is_set():
            await made.flush(LATER)
        log.append(batch("d0", 6, [4]))
        made.receive(log.incoming(1), 1, 0.0)
        await made.flush(2 * LATER)
        go_on.set()
        await until_joined(made, store)

    known("d0", {"epoch": "e1", "seq": 1}, 2, 9)(log, tiny)
    monkeypatch.setattr(label_revisions, "look", slow)
    asyncio.run(live())
    mine = [(r.revision, r.events) for r in published(log) if r.window_us == 0]
    assert sorted(mine) == [(0, 3), (1, 1), (2, 0)]
    same(added(published(log)), plain(tiny, store))
