"""The store's upkeep: at its turn, past what fails, and to its end."""

import threading
from pathlib import Path

import pytest

from streams.contract.errors import TidewheelError
from streams.worker.metrics import Metrics
from streams.worker.store import delta_store
from streams.worker.store.delta_store import Maintenance
from tests.rig.processes.workers import until


class Kept:
    """Stands for the store: what was kept up, and what fails."""

    def __init__(self) -> None:
        self.partitions: list[int] = []
        self.failures: list[Exception] = []
        self.begun = threading.Event()
        self.may_end = threading.Event()
        self.may_end.set()

    def __call__(self, _folder: Path) -> "Kept":
        return self

    def keep_up(self, partition: int, _keep_days: float | None) -> None:
        if self.failures:
            raise self.failures.pop()
        self.begun.set()
        assert self.may_end.wait(30)
        self.partitions.append(partition)


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch) -> Kept:
    made = Kept()
    monkeypatch.setattr(delta_store, "DeltaStore", made)
    return made


def test_it_comes_at_every_so_many_commits_and_goes_on_past_failures(kept: Kept) -> None:
    thread = Maintenance(Path("store"), 3, Metrics())
    thread.start()
    kept.failures = [OSError("no space left"), ValueError("a defect"), TidewheelError("meanwhile")]
    for commit in range(1, 16):
        thread.committed(commit % 2, commit)
    until(lambda: kept.partitions == [0, 1], "the failures are behind it")
    assert thread.stop(30)


def test_it_is_waited_for_as_long_as_is_said(kept: Kept) -> None:
    thread = Maintenance(Path("store"), 1, Metrics())
    kept.may_end.clear()
    thread.start()
    thread.committed(5, 1)
    thread.committed(6, 1)
    assert kept.begun.wait(30)
    assert not thread.stop(0.1)
    kept.may_end.set()
    assert thread.stop(30)
    assert kept.partitions == [5]  # what had not begun does not begin any more
