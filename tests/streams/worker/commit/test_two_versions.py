"""A worker that scores two versions of a task, which differ in what a model answers."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace

import pytest

from streams.contract.errors import UsageError
from streams.contract.events.messages import TASK_VERSION
from streams.contract.events.records import encode_events
from streams.worker.commit.committer import Committer
from streams.worker.commit.publications import publications
from streams.worker.store.tables import DROPS, SCORES
from streams.worker.windows.task_versions import TaskVersions
from tests.rig.made_up.tiny_task import task as old
from tests.rig.processes.workers import batch
from tests.streams.worker.model import Doubler, Log, MemoryStore

new = replace(old, version=old.version + 1, classes=(*old.classes, "stopped"), window_s=10.0)
TEACHERS = (Doubler(new, name="1-new"), Doubler(old, name="1-old"))
LATER = 1e9


async def resume(log: Log, store: MemoryStore, versions: TaskVersions) -> Committer:
    teachers = TEACHERS[: len(versions.all)]
    made = Committer(versions, teachers, store, log, now_us=lambda: 0)  # type: ignore[arg-type]
    await made.assign(0)
    for offset in range(log.committed, len(log.messages)):
        made.receive(log.incoming(offset), offset, 0.0)
    return made


def changed(times_s: Sequence[float]) -> Log:
    """A device's events: half of them are of the old version, at the same times as the others."""
    log, step = Log(), len(times_s)
    for first, of in ((0, old), (step, new)):
        events = batch("d0", first, [*times_s], task=of)
        log.messages.append(encode_events(events, of.version))
    return log


def reports(store: MemoryStore) -> list[tuple[int, str, int, int]]:
    found = store.tables[SCORES].select(["task_version", "teacher_model", "revision", "seq"])
    return [tuple(row.values()) for row in found.to_pylist()]


def test_events_of_a_window_are_reported_by_version_each_with_its_teacher() -> None:
    log, store = changed([1, 2]), MemoryStore()
    made = asyncio.run(resume(log, store, TaskVersions(new, old)))
    asyncio.run(made.flush(LATER))
    asyncio.run(made.flush(LATER))
    assert sorted(reports(store)) == [
        (1, "1-old", 0, 0), (1, "1-old", 0, 1), (2, "1-new", 1, 2), (2, "1-new", 1, 3),
    ]  # fmt: skip
    topics = [(m.topic.rpartition(".")[2], dict(m.headers)[TASK_VERSION]) for m in log.published]
    assert sorted(topics) == [
        ("scores", b"1"), ("scores", b"2"), ("windows", b"1"), ("windows", b"2"),
    ]  # fmt: skip
    assert log.committed == 2


def test_events_are_believed_as_their_own_version_says() -> None:
    """The old version is of recordings, whose times may be any; the new one of sensors."""
    log, store = changed([100_000, 100_001]), MemoryStore()
    live = replace(new, source="live")
    made = asyncio.run(resume(log, store, TaskVersions(live, old)))
    asyncio.run(made.flush(LATER))
    assert [row[0] for row in reports(store)] == [old.version, old.version]
    (drop,) = store.tables[DROPS].to_pylist()
    assert (drop["first"], drop["last"], drop["reason"]) == (2, 3, "from-the-future")


def test_a_worker_of_one_version_starts_after_rows_of_the_other(
    caplog: pytest.LogCaptureFixture,
) -> None:
    log, store = changed([1, 2]), MemoryStore()
    made = asyncio.run(resume(log, store, TaskVersions(new, old)))
    asyncio.run(made.flush(LATER))
    rows = store.rows_of(0, 1)
    assert rows.column("task_version").unique().to_pylist() == [1]
    assert len(publications(TaskVersions(old), rows)) == 2
    assert publications(TaskVersions(new), rows) == []
    assert "2 rows of the last commit are of version 1 of task tiny" in caplog.text


def test_what_is_no_other_version_of_the_task_is_refused() -> None:
    with pytest.raises(UsageError, match="both files are version 1 of task tiny"):
        TaskVersions(old, old)
    with pytest.raises(UsageError, match="pumps is another task than tiny"):
        TaskVersions(old, replace(new, name="pumps"))
