"""Jobs are found in their folders and reported as `jobs show` does; a damaged one is named."""

import os
from pathlib import Path

import pytest

from compose.reports.jobs import list_jobs, place_text, queue_row, read_jobs
from streams.batch.jobs.job_folder import JobFolder, Models
from streams.batch.jobs.job_index import JobIndex
from streams.batch.queue.job_queue import Entry, JobQueue
from streams.batch.records.documents import (
    Columns,
    Named,
    Plan,
    PlannedFile,
    Shard,
    Specification,
    TaskShape,
)
from streams.batch.records.progress import Counts, ShardRecord, State
from streams.batch.records.settings import Settings
from tests.streams.batch.support import model

SHAPE = TaskShape(reference="t.py:task", name="tiny", version=1, channels=["x"], samples=2,
                  outputs=["a", "b"], threshold=0.5, tolerance=0.0)  # fmt: skip
SETTINGS = Settings(task="t.py:task", inputs=["i"], to="o")


def job(place: Path, name: str, created_us: int, state: State = "InProgress") -> JobFolder:
    """A job of two shards of 100 rows, one of which is done."""
    output = place / name
    folder = JobFolder(place / f"{name}.job")
    (folder.folder / "shards").mkdir(parents=True)
    output.mkdir()
    folder.write_specification(
        Specification(id=name, created_us=created_us, settings=SETTINGS, task=SHAPE,
                      model="1-aaaaaaaa", digest="a" * 64,
                      inputs=[Named(name="i", path="/i")], input_format="parquet",
                      columns=Columns(segment=["segment"], per_channel=False),
                      output=str(output), output_format="parquet"),
        Models(model(), b"model"),
    )  # fmt: skip
    file = PlannedFile(name="i", path="/i", sha256="b" * 64, bytes=1, modified="1", rows=200)
    shards = [Shard(file=0, start=n, stop=n + 1, first_row=100 * n, rows=100) for n in (0, 1)]
    folder.write_plan(Plan(files=[file], shards=shards))
    (output / "part-00000.parquet").write_bytes(b"12345")
    counts = Counts(succeeded=90, errors={"bad-length": 10}, labelled=50, correct=40)
    folder.write_record(
        0, ShardRecord(state="Completed", attempts=1, counts=counts, seconds=2, bytes=5)
    )
    folder.write_state(state, "the disk is full" if state == "Failed" else "")
    return folder


def test_jobs_are_listed_newest_first_with_their_progress(tmp_path: Path) -> None:
    job(tmp_path, "old", 1)
    with job(tmp_path, "new", 2).locked():
        (new, old), wrong = read_jobs(tmp_path / "state", [tmp_path])
    assert [new.manifest.job, old.manifest.job] == [
        str(tmp_path / "new.job"),
        str(tmp_path / "old.job"),
    ]
    assert (new.manifest.processed, new.manifest.total) == (100, 200)
    assert new.manifest.errors == {"bad-length": 10}
    assert (new.running, new.abandoned) == (True, False)
    assert (old.running, old.abandoned) == (False, True)
    assert wrong == []
    job(tmp_path, "failed", 3, "Failed")
    [failed], _ = read_jobs(tmp_path / "state", [tmp_path / "failed.job"])
    assert (failed.abandoned, failed.manifest.reason) == (False, "the disk is full")
    rows, _ = list_jobs(tmp_path / "state", [tmp_path])
    assert [(row.id, row.processed) for row in rows] == [(n, 100) for n in ("old", "new", "failed")]


def test_a_damaged_job_is_named_and_hides_no_other(tmp_path: Path) -> None:
    job(tmp_path, "good", 1)
    (job(tmp_path, "bad", 2).folder / "specification.json").write_text("{")
    found, [line] = read_jobs(tmp_path / "state", [tmp_path, tmp_path / "not-there"])
    assert [Path(each.manifest.job).name for each in found] == ["good.job"]
    assert "bad.job" in line
    assert "damaged" in line
    (tmp_path / "queue.sqlite").write_bytes(b"x" * 2000)
    found, wrong = read_jobs(tmp_path, [tmp_path / "good.job"])
    assert (len(found), "queue.sqlite cannot be used" in wrong[0]) == (1, True)


@pytest.mark.parametrize("known", [False, True])
def test_a_job_that_is_older_than_those_asked_for_is_not_read(tmp_path: Path, known: bool) -> None:
    """So that the answer takes as long after ten thousand jobs as after ten."""
    for at_us, name in enumerate(("old", "new", "newest")):
        made = job(tmp_path, name, at_us)
        os.utime(made.folder / "specification.json", (at_us, at_us))
        if known:
            JobIndex(tmp_path / "state").add(name, made)
            os.utime(tmp_path / "state" / "jobs" / f"{name}.json", (at_us, at_us))
    (tmp_path / "old.job" / "specification.json").write_text("{")
    os.utime(tmp_path / "old.job" / "specification.json", (0, 0))
    found, wrong = read_jobs(tmp_path / "state", [] if known else [tmp_path], 2)
    assert ([report.id for report in found], wrong) == (["newest", "new"], [])


def test_a_job_that_the_state_folder_knows_is_found_wherever_it_is_and_once(tmp_path: Path) -> None:
    state, place = tmp_path / "state", tmp_path / "elsewhere"
    place.mkdir()
    made = job(place, "night", 1)
    JobIndex(state).add("night", made)
    for places in ([], [place]):
        (found,), wrong = read_jobs(state, places)
        assert (found.id, found.manifest.job, wrong) == ("night", str(made.folder), [])


def test_a_queued_job_is_not_abandoned_and_has_its_place(tmp_path: Path) -> None:
    state = tmp_path / "state"
    for name in ("first", "second", "left"):
        job(tmp_path, name, 1, "Scheduled")
    for name in ("first", "second"):
        JobQueue(state).add(Entry(name, str(tmp_path / f"{name}.job"), SETTINGS))
    found = {report.id: report for report in read_jobs(state, [tmp_path])[0]}
    assert {name: one.abandoned for name, one in found.items()} == {
        "first": False, "second": False, "left": True,
    }  # fmt: skip
    assert [place_text(queue_row(found[name].place)) for name in ("first", "second")] == [
        "  position 1", "  position 2",
    ]  # fmt: skip
