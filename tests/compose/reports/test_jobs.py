"""Jobs are found in their folders and reported as `jobs show` does; a damaged one is named."""

import os
from pathlib import Path

import pytest

from compose.reports.jobs import Place, read_jobs
from streams.batch.jobs.job_folder import JobFolder, JobIndex
from streams.batch.jobs.job_queue import Entry, JobQueue
from streams.batch.progress import State
from streams.batch.specification import Settings
from streams.runtime.files import write_atomic
from tests.rig.made_up.killed import Killed, killed_at
from tests.streams.batch.support import good_rows, rows_of, submitted, write_parquet

SETTINGS = Settings(task="t.py:task", inputs=["i"], to="o")


def job(place: Path, name: str, created_us: int, state: State = "InProgress") -> JobFolder:
    """A job of two shards, one of which is done; the state folder `place` knows it by its name."""
    rows = good_rows(40)
    rows[3]["segment"] = [0.0]
    found = submitted(place, write_parquet(place / f"{name}.parquet", rows), to=name)
    with pytest.raises(Killed):
        found.run(reached=killed_at("score-step-5"))
    specification = found.folder.specification().replace(id=name, created_us=created_us)
    write_atomic(found.folder.folder / "specification.json", specification.encode())
    found.folder.write_state(state, "the disk is full" if state == "Failed" else "")
    JobIndex(place).add(name, found.folder)
    return found.folder


def test_jobs_are_listed_newest_first_with_their_progress(tmp_path: Path) -> None:
    job(tmp_path, "old", 1)
    with job(tmp_path, "new", 2).locked():
        (new, old), wrong = read_jobs(tmp_path)
    assert [(row.id, row.job) for row in (new, old)] == [
        (name, str(tmp_path / f"{name}.job")) for name in ("new", "old")
    ]
    assert (new.processed, new.total, new.errors) == (20, 40, {"wrong-width": 1})
    assert new.accuracy == sum(row["correct"] or 0 for row in rows_of(tmp_path / "new")) / 19
    assert (new.running, new.abandoned) == (True, False)
    assert (old.running, old.abandoned) == (False, True)
    assert wrong == []
    job(tmp_path, "failed", 3, "Failed")
    failed = read_jobs(tmp_path)[0][0]
    assert (failed.abandoned, failed.reason) == (False, "the disk is full")


def test_a_damaged_job_is_named_and_hides_no_other(tmp_path: Path) -> None:
    job(tmp_path, "good", 1)
    (job(tmp_path, "bad", 2).folder / "specification.json").write_text("{")
    (tmp_path / "queue").mkdir()
    (tmp_path / "queue" / "1-a.json").write_bytes(b"x")
    [found], [queue, line] = read_jobs(tmp_path)
    assert found.id == "good"
    assert "bad.job" in line
    assert "specification.json cannot be read" in line
    assert "1-a.json cannot be read" in queue


@pytest.mark.parametrize(
    ("attempts", "said"),
    [
        (0, "position 1"),
        (1, "position 1, 1 attempt: no disk"),
        (2, "position 1, 2 attempts: no disk"),
    ],
)
def test_a_job_that_waits_again_has_its_number_of_attempts(attempts: int, said: str) -> None:
    place = Place(
        position=1, attempts=attempts, failures=attempts, next_try_us=None, expires_us=None,
        reason="no disk" if attempts else "",
    )  # fmt: skip
    assert str(place) == said


def test_a_job_that_is_older_than_those_asked_for_is_not_read(tmp_path: Path) -> None:
    """So that the answer takes as long after ten thousand jobs as after ten."""
    for at_us, name in enumerate(("old", "new", "newest")):
        job(tmp_path, name, at_us)
        os.utime(tmp_path / "jobs" / name, (at_us, at_us), follow_symlinks=False)
    (tmp_path / "old.job" / "specification.json").write_text("{")
    found, wrong = read_jobs(tmp_path, 2)
    assert ([row.id for row in found], wrong) == (["newest", "new"], [])


def test_a_queued_job_is_not_abandoned_and_has_its_place(tmp_path: Path) -> None:
    for name in ("first", "second", "left"):
        job(tmp_path, name, 1, "Scheduled")
    for name in ("first", "second", "unsubmitted"):
        JobQueue(tmp_path).add(Entry(name, str(tmp_path / f"{name}.job"), SETTINGS))
    found = {row.id: row for row in read_jobs(tmp_path)[0]}
    assert {name: one.abandoned for name, one in found.items()} == {
        "first": False, "second": False, "left": True, "unsubmitted": False,
    }  # fmt: skip
    assert [str(found[name].queue) for name in ("first", "second")] == ["position 1", "position 2"]
