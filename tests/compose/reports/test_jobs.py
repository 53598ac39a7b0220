"""Jobs are found in their folders and reported as `jobs show` does; a damaged one is named."""

import os
from pathlib import Path

from compose.reports.jobs import read_jobs
from streams.batch.jobs.job_folder import JobFolder, JobIndex, Models
from streams.batch.jobs.job_queue import Entry, JobQueue
from streams.batch.records.progress import Counts, ShardRecord, State
from streams.batch.records.specification import (
    Columns,
    Named,
    Plan,
    PlannedFile,
    Settings,
    Shard,
    Specification,
    TaskShape,
)
from tests.streams.batch.support import model

SHAPE = TaskShape(reference="t.py:task", name="tiny", version=1, channels=["x"], samples=2,
                  outputs=["a", "b"], threshold=0.5, tolerance=0.0)  # fmt: skip
SETTINGS = Settings(task="t.py:task", inputs=["i"], to="o")


def job(place: Path, name: str, created_us: int, state: State = "InProgress") -> JobFolder:
    """A job of two shards of 100 rows, one of which is done; the state folder `place` knows it."""
    output = place / name
    folder = JobFolder(place / f"{name}.job")
    (folder.folder / "shards").mkdir(parents=True)
    output.mkdir()
    folder.submit(
        Specification(id=name, created_us=created_us, settings=SETTINGS, task=SHAPE,
                      model="1-aaaaaaaa", digest="a" * 64,
                      inputs=[Named(name="i", path="/i")], input_format="parquet",
                      columns=Columns(segment=["segment"], per_channel=False),
                      output=str(output), output_format="parquet"),
        Models(model(), b"model"),
    )  # fmt: skip
    file = PlannedFile(name="i", path="/i", crc32c="b" * 8, bytes=1, modified="1", rows=200)
    shards = [Shard(file=0, start=n, stop=n + 1, first_row=100 * n, rows=100) for n in (0, 1)]
    folder.write_plan(Plan(files=[file], shards=shards))
    (output / "part-00000.parquet").write_bytes(b"12345")
    counts = Counts(succeeded=90, errors={"bad-length": 10}, labelled=50, correct=40)
    folder.write_record(
        0, ShardRecord(state="Completed", attempts=1, counts=counts, seconds=2, bytes=5)
    )
    folder.write_state(state, "the disk is full" if state == "Failed" else "")
    JobIndex(place).add(name, folder)
    return folder


def test_jobs_are_listed_newest_first_with_their_progress(tmp_path: Path) -> None:
    job(tmp_path, "old", 1)
    with job(tmp_path, "new", 2).locked():
        (new, old), wrong = read_jobs(tmp_path)
    assert [(row.id, row.job) for row in (new, old)] == [
        (name, str(tmp_path / f"{name}.job")) for name in ("new", "old")
    ]
    assert (new.processed, new.total, new.accuracy) == (100, 200, 0.8)
    assert new.errors == {"bad-length": 10}
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
    assert "damaged" in line
    assert "1-a.json of the queue cannot be read" in queue


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
