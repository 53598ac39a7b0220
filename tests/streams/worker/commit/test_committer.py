import asyncio
import contextlib
import dataclasses
import json
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from streams.contract.errors import ProcessorFailed
from streams.contract.events.json_items import MAX_ROWS
from streams.contract.events.labels import LabelBatch
from streams.contract.events.messages import Drop
from streams.contract.events.records import EventBatch, decode_event_message
from streams.contract.task import Count, Session, Sliding, Task, Tumbling, Window
from streams.contract.topics import WINDOWS
from streams.contract.window_report import WindowReport
from streams.kafka.admin import GroupPosition
from streams.learning.teacher import Teacher
from streams.worker.commit.messages import publications
from streams.worker.commit.window_reports import SlidingSums
from streams.worker.store.tables import DROPS, LABELS, SCORES
from tests.rig.made_up.killed import Killed
from tests.rig.made_up.tiny_task import task
from tests.rig.processes.polling import until
from tests.rig.processes.workers import SECOND, batch, json_events, labels, reference
from tests.streams.worker.model import LATER, Doubler, Log, MemoryStore, committer, live

REFERENCE = reference()
WINDOWS_OF = (Tumbling(5), Session(2, longest_s=9), Count(3, longest_s=20), Sliding(15, 5))
STEPS = [f"worker-step-{n}" for n in range(1, 6)]


def scored(store: MemoryStore) -> list[tuple[str, str, int]]:
    rows = store.tables[SCORES].select(["device", "epoch", "seq"]).to_pylist()
    return [(row["device"], row["epoch"], row["seq"]) for row in rows]


def labelled(store: MemoryStore) -> list[tuple[str, str, int]]:
    rows = store.tables[LABELS].select(["device", "epoch", "number"]).to_pylist()
    return [(row["device"], row["epoch"], row["number"]) for row in rows]


def dropped(store: MemoryStore) -> list[tuple[str, str, int]]:
    return [
        (row["device"], row["epoch"], seq)
        for row in store.tables[DROPS].to_pylist()
        for seq in range(row["first"], row["last"] + 1)
    ]


@dataclasses.dataclass
class Foreign:
    """Events as JSON, which are counted by their place in Kafka."""

    device: str
    events: list[object]


@dataclasses.dataclass
class Known:
    """Labels on the topic `labels`."""

    device: str
    at: int
    count: int

    @property
    def message(self) -> tuple[bytes, bytes]:
        times = [(self.at + i) * 1_000_000 for i in range(self.count)]
        rows = [{"time_us": time, "label": i, "known_us": 5} for i, time in enumerate(times)]
        return self.device.encode(), json.dumps(rows).encode()


spans = st.tuples(st.integers(0, 30), st.integers(1, 8))
records = st.one_of(
    st.builds(
        lambda device, epoch, span, at: batch(
            device, span[0], [at + 1.3 * i for i in range(span[1])], epoch=epoch
        ),
        st.sampled_from(["d0", "d1"]),
        st.sampled_from(["e1", "e2"]),
        spans,
        st.integers(0, 40),
    ),
    st.builds(
        lambda device, span: Drop(device, "e1", span[0], span[0] + span[1] - 1, "full"),
        st.sampled_from(["d0", "d1"]),
        spans,
    ),
    st.builds(
        lambda device, span, at: labels(device, span[0], [(at, at + 2.0)] * span[1]),
        st.sampled_from(["d0", "d1"]),
        spans,
        st.integers(0, 40),
    ),
    st.builds(Known, st.sampled_from(["d0", "d1"]), st.integers(0, 40), st.integers(1, 3)),
    st.builds(
        lambda device, at, times: Foreign(
            device, json_events(batch(device, 0, [at + t for t in times]))
        ),
        st.sampled_from(["d0", "d1"]),
        st.integers(0, 40),
        st.lists(st.integers(0, 9), min_size=1, max_size=4),
    ),
    st.just(None),  # garbage
)
lives = st.tuples(
    st.lists(records, max_size=6), st.sampled_from(["", *STEPS]), st.sampled_from([0.0, LATER])
)


@settings(max_examples=150, deadline=None)
@given(
    st.lists(lives, min_size=1, max_size=5), st.sampled_from([0, 2]), st.sampled_from(WINDOWS_OF),
    st.sampled_from([16_000, 3]),
)  # fmt: skip
def test_every_event_is_accounted_once_over_any_crashes(
    history: list[tuple[list[EventBatch | Drop | LabelBatch | Foreign | Known | None], str, float]],
    fails_on: int,
    window: Window,
    flush_rows: int,
) -> None:
    """Lives of a worker, each ended at a numbered step; the last one goes to the end.
    Flushes of three rows leave windows to the next one."""
    of, log, store = dataclasses.replace(task, window=window), Log(), MemoryStore()
    events: set[tuple[str, str, int]] = set()
    drops: set[tuple[str, str, int]] = set()
    told: set[tuple[str, str, int]] = set()
    placed: dict[int, set[tuple[str, str, int]]] = {}

    def nothing_open_is_passed(offset: int) -> None:
        done = set(scored(store)) | set(dropped(store)) | set(labelled(store))
        assert {name for at, names in placed.items() if at < offset for name in names} <= done

    log.on_commit = nothing_open_is_passed
    for sent, crash_at, now_s in [*history, ([], "", LATER)]:
        for record in sent:
            if record is None:
                log.messages.append((b"x", b"garbage", []))
                continue
            if isinstance(record, Known):
                at = len(log.labels) * MAX_ROWS
                log.labels.append(record.message)
                told |= {(record.device, "kafka-0-0", at + i) for i in range(record.count)}
                continue
            if isinstance(record, Foreign):
                at, device = len(log.messages), record.device
                log.messages.append((device.encode(), json.dumps(record.events).encode(), []))
                seqs = range(at * MAX_ROWS, at * MAX_ROWS + len(record.events))
                placed[at] = {(device, "kafka-0-0", seq) for seq in seqs}
                events |= placed[at]
                continue
            at, seqs = len(log.messages), range(record.first, record.last + 1)
            log.append(record)
            placed[at] = {(record.device, record.epoch, seq) for seq in seqs}
            of_labels = told if isinstance(record, LabelBatch) else events
            target = drops if isinstance(record, Drop) else of_labels
            target |= placed[at]

        options = {"fails_on": fails_on, "crash_at": crash_at, "reference": REFERENCE}
        options["flush_rows"] = flush_rows
        with contextlib.suppress(Killed):
            live(log, store, now_s, now_s, of=of, **options)

    assert log.committed == len(log.messages)
    assert log.labels_committed == len(log.labels)
    assert max(Counter(scored(store)).values(), default=0) <= 1
    assert max(Counter(dropped(store)).values(), default=0) <= 1
    assert max(Counter(labelled(store)).values(), default=0) <= 1
    assert set(labelled(store)) == told
    assert set(scored(store)) | set(dropped(store)) == events | drops
    assert set(scored(store)) <= events
    if not fails_on:
        assert set(scored(store)) == events
    check_publications(of, log, store)


def check_publications(of: Task, log: Log, store: MemoryStore) -> None:
    """Every row stored was published, and whatever was published twice is the same."""
    sums = SlidingSums(of)
    wanted = {
        (m.topic, m.key, json.dumps([(n, v.hex()) for n, v in m.headers]), m.value)
        for commit in range(1, store.versions.get((SCORES, 0), 0) + 1)
        for m in publications(of, store.rows_of(0, commit), store=store.name, sliding=sums)
    }
    found = {
        (m.topic, m.key, json.dumps([(n, v.hex()) for n, v in m.headers]), m.value)
        for m in log.published
        if not m.topic.endswith("dead-letters")
    }
    assert found == wanted
    reports = [WindowReport.decode(value) for topic, _, _, value in found if "windows" in topic]
    names = [(r.device, r.window_us, r.revision) for r in reports]
    assert len(names) == len(set(names))
    for device, start, revision in names:  # revisions count from 0 without a hole
        assert revision == 0 or (device, start, revision - 1) in names


def test_a_long_garbage_message_is_parked_in_parts() -> None:
    log, store = Log(), MemoryStore()
    log.messages.append((None, bytes(1_000_000), [(f"h{i}", bytes(5000)) for i in range(100)]))

    live(log, store, LATER)
    assert b"".join(m.value for m in log.published) == bytes(1_000_000)
    for letter in log.published:
        size = len(letter.value) + sum(len(n) + len(v) for n, v in letter.headers)
        assert size < 1_000_000


def test_a_window_the_teacher_fails_on_is_parked_and_counted() -> None:
    log, store = Log(), MemoryStore()
    log.append(batch("d0", 0, [1, 2, 6]))

    live(log, store, LATER, fails_on=2)
    (letter,) = [m for m in log.published if m.topic == "tiny.v1.dead-letters"]
    fields = dict(letter.headers)
    assert fields["reason"] == b"teacher-failed"
    headers = [(n[9:], v) for n, v in letter.headers if n.startswith("original-")]
    record = decode_event_message(task, letter.key, letter.value, headers)
    assert record.rows.equals(batch("d0", 0, [1, 2, 6]).rows.slice(0, 2))  # type: ignore[union-attr]
    assert scored(store) == [("d0", "e1", 2)]
    assert dropped(store) == [("d0", "e1", 0), ("d0", "e1", 1)]
    assert log.committed == 1


def test_a_gpu_that_fails_ends_the_worker_and_refuses_no_event() -> None:
    class Lost(nn.Module):
        def forward(self, windows: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            raise torch.AcceleratorError("CUDA error: unspecified launch failure")

    log, store = Log(), MemoryStore()
    log.append(batch("d0", 0, [1, 2, 6]))

    with pytest.raises(ProcessorFailed, match="unspecified launch failure"):
        live(log, store, LATER, teacher=Teacher(task, Lost(), "1-x"))
    assert (log.published, scored(store), dropped(store), log.committed) == ([], [], [], 0)


def test_a_broker_that_is_away_delays_the_commit_and_loses_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    log, store = Log(), MemoryStore()
    log.append(batch("d0", 0, [1]))
    waits: list[float] = []

    async def sleep(wait_s: float) -> None:
        waits.extend([wait_s] if wait_s else [])

    log.away = 3
    monkeypatch.setattr("streams.worker.commit.committer.asyncio.sleep", sleep)
    live(log, store, LATER)
    assert waits == [0.5, 1.0, 2.0]
    assert len(log.published) == 2
    assert log.committed == 1


def test_memory_is_bounded_by_closing_windows_early() -> None:
    log, store = Log(), MemoryStore()
    for i in range(11):
        log.append(batch(f"d{i}", 100 * i, [1.0] * 100))

    async def relieved() -> None:
        made = committer(task, log, store, buffer_bytes=150_000)
        await made.assign(GroupPosition(0, 0, 0, None))
        for offset in range(11):
            made.receive(log.incoming(offset), offset, 0.0)
        assert made.full
        await made.flush(0.0)
        assert not made.full

    asyncio.run(relieved())
    assert len(scored(store)) == 600
    assert log.committed == 6


def test_a_task_that_uploads_predictions_only_is_stored_without_a_verdict() -> None:
    quiet = dataclasses.replace(task, upload="prediction")
    log, store = Log(), MemoryStore()
    log.append(batch("d0", 0, [1, 2, 3], task=quiet))

    live(log, store, LATER, of=quiet)
    for row in store.tables[SCORES].to_pylist():
        assert (row["teacher"], row["teacher_model"], row["agrees"]) == ([], "", None)
    (report,) = [
        WindowReport.decode(m.value) for m in log.published if m.topic == "tiny.v1.windows"
    ]
    part = report.models["1-aaaaaaaa"]
    assert (part.compared, part.labelled) == (0, 1)  # neither agreement nor a lack of it
    [label] = [row["label"] for row in store.tables[SCORES].to_pylist() if row["label"]]
    name, judged = task.classes[int(label[0])], report.judgement("1-aaaaaaaa")
    assert (part.classes, judged.taught) == ({}, {})
    assert (judged.by_labels, judged.sums) == (True, {name: (1, part.correct)})


def test_labels_that_come_while_their_window_is_open_are_in_its_report() -> None:
    log, store = Log(), MemoryStore()
    log.append(batch("d0", 1, [1, 2, 7, 8]))
    log.append(labels("d0", 0, [(7, 8)], classes=[2]))
    live(log, store, LATER)
    log.append(labels("d0", 1, [(1, 2)], classes=[2]))  # whose window is reported
    live(log, store, LATER)
    found = [
        WindowReport.decode(sent.value) for sent in log.published if sent.topic.endswith(WINDOWS)
    ]
    truth = {
        report.window_us // SECOND: report.models["1-aaaaaaaa"].truth
        for report in found  # some twice
        if report.revision == 0
    }
    assert {name: sum(counts.values()) for name, counts in truth[5].items()} == {"fast": 2}
    assert truth[0].get("fast") is None
    assert (len(labelled(store)), len(truth)) == (2, 2)


def test_a_flush_is_wanted_once_as_many_rows_came_as_one_takes() -> None:
    log, store = Log(), MemoryStore()

    async def work() -> list[bool]:
        made, seen = committer(task, log, store, flush_rows=6), []
        await made.assign(GroupPosition(0, 0, 0, None))
        for offset in range(4):
            log.append(batch("d0", 3 * offset, [3.0 * offset, 1 + 3.0 * offset, 2 + 3.0 * offset]))
            made.receive(log.incoming(offset), offset, 0.0)
            seen.append(made.wanted.is_set())
            if offset == 2:  # also where no window was due
                await made.flush(0.0)
                seen.append(made.wanted.is_set())
        return seen

    assert asyncio.run(work()) == [False, True, True, False, False]


class Patient(MemoryStore):
    """Stores rows once the teacher has been asked so many times in all."""

    def __init__(self, asked: "Asked", times: int) -> None:
        super().__init__()
        self._asked, self._times = asked, times

    def commit(self, table: str, *given: Any, **more: Any) -> None:
        until(lambda: len(self._asked.windows) >= self._times, "the teacher is asked meanwhile")
        super().commit(table, *given, **more)


class Asked(Doubler):
    """Notes the rows of each call."""

    def __init__(self, name: str) -> None:
        super().__init__(task, name=name)
        self.windows: list[int] = []

    def score(self, windows: Sequence[np.ndarray]) -> list[Any]:
        self.windows.append(sum(map(len, windows)))
        return super().score(windows)


@pytest.mark.parametrize("meanwhile", ["nothing", "another teacher", "a rebalance"])
def test_the_next_flush_is_evaluated_while_this_one_is_stored(meanwhile: str) -> None:
    """Two flushes of three rows, the second of which is given up by a rebalance, and evaluated once
    more by another teacher."""
    teacher, other = Asked("1-teacher"), Asked("2-teacher")
    log, store = Log(), Patient(teacher, times=2)
    for first in (0, 3):
        log.append(batch("d0", first, [10.0 * first, 10.0 * first + 1, 10.0 * first + 2]))

    async def work() -> None:
        made = committer(task, log, store, teacher=teacher, flush_rows=3)

        async def own() -> None:
            await made.assign(GroupPosition(0, 0, 0, log.committed))
            for offset in range(log.committed, 2):
                made.receive(log.incoming(offset), offset, 0.0)

        await own()
        assert await made.flush(LATER) == 3
        assert made.behind
        assert teacher.windows == [3, 3]
        assert len(scored(store)) == 3
        if meanwhile == "another teacher":
            made.scorer.offer(other)
        if meanwhile == "a rebalance":
            made.revoke_all()
            assert not made.behind
            await own()
        assert await made.flush(LATER) == 3
        assert not made.behind

    asyncio.run(work())
    assert scored(store) == [("d0", "e1", seq) for seq in range(6)]
    assert log.committed == 2
    assert other.windows == ([3] if meanwhile == "another teacher" else [])
    named = store.tables[SCORES].column("teacher_model").to_pylist()
    assert named[3:] == [other.name if other.windows else teacher.name] * 3
