"""A disk that fills up, a clock that is set back, and input that goes away during a job."""

import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from streams.batch.jobs.job_queue import Entry, JobQueue
from streams.batch.progress import Manifest
from streams.batch.specification import Settings
from streams.contract.errors import TidewheelError, UsageError
from streams.runtime.failpoints import unarmed
from tests.rig.made_up.killed import once_at
from tests.rig.processes.small_disk import fill, small_disk
from tests.streams.batch.support import Submitted, good_rows, submitted, write_parquet
from tests.streams.batch.test_sinks import Sink

__all__ = ["small_disk"]
ROWS = 100


def ended_on_a_full_disk(job: Submitted, **more: Any) -> None:
    """Run a job whose disk fills up; it fails with one line that names the reason."""
    try:
        found = job.run(**more)
        state, reason = found.state, found.reason
    except TidewheelError as exc:  # not even the manifest has room
        state, reason = "Failed" if exc.exit_code == 1 else "refused", str(exc)
    assert state == "Failed"
    assert "No space left" in reason or "full" in reason, reason
    assert "\n" not in reason


def ids(job: Submitted) -> list[str]:
    return [row["id"] for row in job.rows()]


@pytest.mark.parametrize(
    ("point", "number"),
    [
        ("", 0),  # before the plan
        ("score-step-2", 1),  # the first attempt
        ("score-step-3", 2),  # a shard's file
        ("score-step-4", 2),  # its counts
        ("score-step-5", 5),  # the manifest
        ("score-step-8", 1),  # the state
    ],
)
@pytest.mark.parametrize("processes", [1, 2])
def test_a_full_disk_ends_a_job_with_one_line_and_nothing_is_lost_or_doubled(
    tmp_path: Path, small_disk: Path, point: str, number: int, processes: int
) -> None:
    rows = good_rows(ROWS)
    job = submitted(small_disk, write_parquet(tmp_path / "a.parquet", rows))
    if point:
        reached = once_at(point, lambda: fill(small_disk), number)
    else:
        fill(small_disk)
        reached = unarmed
    ended_on_a_full_disk(job, reached=reached, processes=processes)
    assert len(set(ids(job))) == len(ids(job))
    (small_disk / "filler").unlink()
    found = job.run()
    assert found.state == "Completed"
    assert ids(job) == [row["event"] for row in rows]
    assert list(small_disk.rglob(".*.tmp")) == []
    assert job.folder.log()[-1]["text"] == "Completed"


@pytest.mark.parametrize(
    ("kind", "small_disk"),
    [("delta", 1 << 20), ("duckdb", 8 << 20), ("sqlite", 1 << 20)],
    indirect=["small_disk"],
)
def test_a_table_on_a_full_disk_has_every_row_once_after_there_is_room(
    tmp_path: Path, small_disk: Path, request: pytest.FixtureRequest, kind: str
) -> None:
    rows = good_rows(ROWS)
    path = write_parquet(tmp_path / "a.parquet", rows)
    sink = Sink(kind, small_disk, request)
    job = sink.job(path, job=tmp_path / "sink.job")
    ended_on_a_full_disk(
        job, reached=once_at("score-step-5", lambda: fill(small_disk), 2), processes=1
    )
    (small_disk / "filler").unlink()
    found = job.run()
    assert found.state == "Completed", found.reason
    assert sink.ids() == [row["event"] for row in rows]


@pytest.mark.parametrize("point", ["score-step-2", "score-step-5"])
def test_a_job_whose_output_becomes_read_only_is_failed_with_one_reason(
    tmp_path: Path, small_disk: Path, point: str
) -> None:
    """Its folder is elsewhere, so that its state is written though the manifest cannot be."""
    rows, folder = good_rows(ROWS), tmp_path / "elsewhere.job"
    path = write_parquet(tmp_path / "a.parquet", rows)
    job = submitted(small_disk, path, job=folder)
    number = 5 if point == "score-step-5" else 1  # after the last shard: the manifest alone fails
    ended = job.run(reached=once_at(point, lambda: remount(small_disk, "ro"), number))
    state = job.folder.state()
    assert ended.state == state.state == "Failed"
    assert ended.reason == state.reason
    assert state.reason.count("Read-only file system") == 1
    remount(small_disk, "rw")
    assert job.run().state == "Completed"
    assert ids(job) == [row["event"] for row in rows]


def remount(disk: Path, mode: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{mode}", str(disk)], check=True)


def test_a_full_disk_is_said_before_a_job_exists(tmp_path: Path, small_disk: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", good_rows(10))
    fill(small_disk)
    with pytest.raises(UsageError, match=r"out\.job cannot be written.*No space left"):
        submitted(small_disk, path)
    (small_disk / "filler").unlink()
    assert submitted(small_disk, path).run().state == "Completed"


def test_a_job_whose_folder_is_on_a_full_disk_is_not_queued(
    tmp_path: Path, small_disk: Path
) -> None:
    fill(small_disk)
    queue, folder = JobQueue(tmp_path), small_disk / "j.job"
    with pytest.raises(UsageError, match=r"j\.job cannot be written.*No space left"):
        queue.add(Entry("j", str(folder), Settings(task="t", inputs=["i"], to="o")))
    assert queue.entries() == []


def test_a_clock_that_is_set_back_makes_no_time_negative(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = submitted(tmp_path, write_parquet(tmp_path / "a.parquet", good_rows(60)))
    real, back_ns = time.time_ns, 3600 * 10**9

    def set_back() -> None:
        monkeypatch.setattr(time, "time_ns", lambda: real() - back_ns)

    found = job.run(reached=once_at("score-step-3", set_back, 2))
    assert found.state == "Completed"
    assert found.ended_us >= found.started_us
    assert 0 < found.seconds < 60
    assert found.rows_per_s > 0
    assert job.folder.state().updated_us >= found.started_us


@pytest.mark.parametrize("point", ["score-step-2", "score-step-3", "score-step-5"])
def test_input_that_is_removed_during_a_job_fails_it_by_name_until_it_is_back(
    tmp_path: Path, point: str
) -> None:
    rows = good_rows(ROWS)
    path = write_parquet(tmp_path / "a.parquet", rows)
    data = path.read_bytes()
    job = submitted(tmp_path, path)
    found: Manifest = job.run(reached=once_at(point, path.unlink))
    assert found.state == "Failed"
    assert "a.parquet cannot be read: No such file" in found.reason
    with pytest.raises(UsageError, match=r"the input .*a\.parquet of this job is gone"):
        job.run()
    path.write_bytes(data)
    assert job.run().state == "Completed"
    assert ids(job) == [row["event"] for row in rows]
