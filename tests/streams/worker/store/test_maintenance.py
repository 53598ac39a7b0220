"""The store's upkeep: at its turn, past what fails, and to its end."""

import threading
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest
from deltalake import DeltaTable

from streams.contract.errors import TidewheelError
from streams.worker.metrics import Metrics
from streams.worker.store import maintenance
from streams.worker.store.delta_store import DeltaStore
from streams.worker.store.maintenance import Maintenance
from streams.worker.store.tables import SCORES
from tests.rig.processes.workers import batch, until
from tests.streams.worker.model import LATER, Log, live

DAY_S = 86_400.0


class Kept:
    """Stands for the store: what was kept up, and what fails."""

    def __init__(self) -> None:
        self.asked: list[int] = []
        self.partitions: list[int] = []
        self.failures: list[Exception] = []
        self.begun = threading.Event()
        self.may_end = threading.Event()
        self.may_end.set()

    def __call__(self, _folder: Path) -> "Kept":
        return self

    def keep_up(self, partition: int, _keep_days: float | None) -> None:
        self.asked.append(partition)
        if self.failures:
            raise self.failures.pop()
        self.begun.set()
        assert self.may_end.wait(30)
        self.partitions.append(partition)

    def until_asked(self, partitions: Sequence[int]) -> None:
        until(lambda: self.asked == partitions, f"maintenance of {partitions}")


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch) -> Kept:
    made = Kept()
    monkeypatch.setattr(maintenance, "DeltaStore", made)
    return made


def test_it_comes_at_every_so_many_commits_and_goes_on_past_failures(kept: Kept) -> None:
    thread = Maintenance(Path("store"), 3, Metrics())
    thread.start()
    kept.failures = [OSError("no space left"), ValueError("a defect"), TidewheelError("meanwhile")]
    for commit in range(1, 9):
        thread.committed(0, commit, 1)
        thread.committed(1, commit, 1)
        kept.until_asked([0, 1] * (commit // 3))
    thread.committed(0, 9, 1)
    kept.until_asked([0, 1, 0, 1, 0])
    until(lambda: kept.partitions == [1, 0], "the failures are behind it")
    assert thread.stop(30)


def test_a_worker_that_begins_counts_the_commits_before(kept: Kept) -> None:
    thread = Maintenance(Path("store"), 256, Metrics())
    thread.start()
    thread.committed(0, 255, 1)
    thread.committed(1, 256, 1)
    kept.until_asked([1])
    assert thread.stop(30)


def test_commits_of_many_files_make_it_due_although_no_other_commit_follows(kept: Kept) -> None:
    thread = Maintenance(Path("store"), 256, Metrics())
    thread.start()
    thread.committed(0, 1, 200)
    thread.committed(0, 2, 56)
    kept.until_asked([0])
    assert thread.stop(30)


def test_a_partition_that_waits_is_not_scheduled_again(kept: Kept) -> None:
    thread = Maintenance(Path("store"), 256, Metrics())
    kept.may_end.clear()
    thread.start()
    thread.committed(0, 1, 300)
    assert kept.begun.wait(30)
    for commit in (2, 3, 4):  # the first of them may come too late for what has begun
        thread.committed(0, commit, 300)
    thread.committed(1, 1, 300)
    kept.may_end.set()
    kept.until_asked([0, 0, 1])
    assert thread.stop(30)


def test_it_takes_half_of_the_time_at_most(kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    thread, rests = Maintenance(Path("store"), 1, Metrics()), list[float]()
    times = iter([10.0, 12.0])
    monkeypatch.setattr(maintenance, "time", SimpleNamespace(monotonic=lambda: next(times)))
    monkeypatch.setattr(thread._ending, "wait", rests.append)
    thread.start()
    thread.committed(0, 1, 1)
    until(lambda: rests == [2.0], "a rest as long as the work")
    assert thread.stop(30)


def test_it_is_waited_for_as_long_as_is_said(kept: Kept) -> None:
    thread = Maintenance(Path("store"), 1, Metrics())
    kept.may_end.clear()
    thread.start()
    thread.committed(5, 1, 1)
    thread.committed(6, 1, 1)
    assert kept.begun.wait(30)
    assert not thread.stop(0.1)
    kept.may_end.set()
    assert thread.stop(30)
    assert kept.partitions == [5]  # what had not begun does not begin any more


def test_a_commit_knows_how_many_files_it_has_added(tmp_path: Path) -> None:
    log, added = Log(), list[tuple[int, int, int]]()
    store = DeltaStore(tmp_path)
    log.append(batch("d0", 0, [DAY_S * day for day in (0, 0.1, 3, 200)]))
    log.append(batch("d1", 0, [DAY_S * day for day in (3, 4)]))
    live(log, store, LATER, committed=lambda *given: added.append(given))
    assert added == [(0, 1, len(DeltaTable(tmp_path / SCORES).file_uris()))] == [(0, 1, 4)]
