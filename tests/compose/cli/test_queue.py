"""`score --detach` and `jobs run` as real processes; tests/streams/batch has order and retries."""

import json
import signal
import subprocess
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from streams.batch.jobs.job_queue import JobQueue
from tests.compose.cli.test_cli import PROGRAM, environ_in, fails, tidewheel
from tests.compose.cli.test_jobs import MANY, expected, words
from tests.rig.processes.polling import until
from tests.rig.processes.running import start
from tests.rig.unwrap import unwrap
from tests.streams.batch.support import rows_of


def queued(folder: Path, lake: Path, *more: str, kind: str = "parquet", to: str = "out") -> str:
    done = tidewheel(*words(lake, kind, to), "--detach", *more, folder=folder)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def listed(folder: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(
        tidewheel("jobs", "list", "--json", folder=folder).stdout
    )
    return found


def states(folder: Path) -> dict[str, str]:
    return {job["id"]: job["state"] for job in listed(folder)}


def run(folder: Path, *more: str, **env: str) -> list[dict[str, Any]]:
    """What a runner reports until the queue is empty."""
    done = tidewheel("jobs", "run", "--until-empty", "--json", *more, folder=folder, **env)
    assert done.returncode in (0, 1, 3), done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@contextmanager
def runner(folder: Path, name: str, *more: str, **env: str) -> Iterator["subprocess.Popen[bytes]"]:
    """A runner as a service; it is killed at the end."""
    out, err = folder / f"{name}.out", folder / f"{name}.err"
    argv = [PROGRAM, "jobs", "run", "--json", *more]
    process = start(argv, out, environ_in(folder, env), err=err, cwd=folder, session=False)
    try:
        yield process
    finally:
        process.send_signal(signal.SIGCONT)
        process.kill()
        process.wait(60)


def events(folder: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / f"{name}.out").read_text().splitlines()]


def text_of(path: Path) -> str:
    return path.read_text() if path.exists() else ""


def process_of(folder: Path) -> psutil.Process | None:
    """The process of the attempt at the job out.job, which inherits its lock."""
    lock = str(folder / "out.job" / "lock")
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            words = " ".join(process.cmdline())
            if "batch.run" in words and lock in [file.path for file in process.open_files()]:
                return process
    return None


def is_stopped(process: psutil.Process | None) -> bool:
    return process is not None and process.status() == psutil.STATUS_STOPPED


@pytest.mark.usefixtures("executed")
def test_two_runners_share_the_jobs_and_run_none_twice(tmp_path: Path, lake: Path) -> None:
    jobs = {queued(tmp_path, lake, to=f"out-{n}") for n in range(3)}
    with runner(tmp_path, "a", "--until-empty") as a, runner(tmp_path, "b", "--until-empty") as b:
        assert (a.wait(100), b.wait(100)) == (0, 0)
    begun = [e["job"] for name in "ab" for e in events(tmp_path, name) if e["kind"] == "begins"]
    assert sorted(begun) == sorted(jobs)
    for n in range(3):
        assert [row["id"] for row in rows_of(tmp_path / f"out-{n}")] == expected()


def test_sigterm_ends_jobs_after_their_shards_and_they_wait_again(
    tmp_path: Path, lake: Path
) -> None:
    identity = queued(tmp_path, lake, "--processes", "1", kind="many")
    with runner(tmp_path, "a") as first:
        until(lambda: list((tmp_path / "out").glob("part-*")), "it has begun")
        first.send_signal(signal.SIGTERM)
        assert first.wait(60) == 0
    (job,) = listed(tmp_path)
    assert (job["state"], job["queue"]["position"], job["queue"]["failures"]) == ("Scheduled", 1, 0)
    run(tmp_path)
    assert states(tmp_path) == {identity: "Completed"}
    assert [row["id"] for row in rows_of(tmp_path / "out")] == expected(MANY, 5)


def test_a_killed_runner_takes_its_processes_along_and_another_one_goes_on(
    tmp_path: Path, lake: Path
) -> None:
    identity = queued(tmp_path, lake, "--processes", "2", kind="many")
    with runner(tmp_path, "a") as first:
        until(lambda: list((tmp_path / "out").glob("part-*")), "it has begun")
        first.kill()
    assert [(e["kind"], e["job"], e["state"]) for e in run(tmp_path)] == [
        ("begins", identity, None), ("ended", identity, "Completed"),
    ]  # fmt: skip
    assert states(tmp_path) == {identity: "Completed"}
    assert [row["id"] for row in rows_of(tmp_path / "out")] == expected(MANY, 5)


def test_stop_takes_a_waiting_job_from_the_queue_and_ends_a_running_one(
    tmp_path: Path, lake: Path
) -> None:
    identity = queued(tmp_path, lake, "--processes", "1", kind="many")
    assert states(tmp_path) == {identity: "Scheduled"}
    assert not (tmp_path / "out").exists()
    assert "taken from the queue" in tidewheel("jobs", "stop", identity, folder=tmp_path).stdout
    assert states(tmp_path) == {identity: "Stopped"}
    assert run(tmp_path) == []
    assert tidewheel("jobs", "resume", identity, "--detach", folder=tmp_path).returncode == 0
    point = "score-step-5:1:stop"  # it is held there until it has been asked
    with runner(tmp_path, "a", "--until-empty", TIDEWHEEL_FAILPOINT=point) as first:
        until(lambda: is_stopped(process_of(tmp_path)), "it is in its work")
        stopped = tidewheel("jobs", "stop", "out.job", folder=tmp_path)
        assert "stops after its current shards" in stopped.stdout
        unwrap(process_of(tmp_path)).resume()
        assert first.wait(60) == 0
    assert states(tmp_path) == {identity: "Stopped"}
    assert 0 < len(rows_of(tmp_path / "out")) < 5 * MANY


@pytest.mark.parametrize("point", ["score-step-1:1", ""])
def test_a_submission_that_is_killed_is_run_if_it_is_in_the_queue(
    tmp_path: Path, lake: Path, point: str
) -> None:
    if point:
        command = [*words(lake), "--detach"]
        done = tidewheel(*command, folder=tmp_path, TIDEWHEEL_FAILPOINT=point)
        assert done.returncode == -signal.SIGKILL
    else:  # before its specification was written
        queued(tmp_path, lake)
        (tmp_path / "out.job" / "specification.json").unlink()
    run(tmp_path)
    assert [row["id"] for row in rows_of(tmp_path / "out")] == expected()


def test_wrong_calls_of_the_runner_are_one_line(tmp_path: Path, lake: Path) -> None:
    (tmp_path / ".tidewheel" / "queue").mkdir(parents=True)
    (tmp_path / ".tidewheel" / "queue" / "1-a.json").write_bytes(b"no job")
    fails(tidewheel("jobs", "run", folder=tmp_path), 1, "1-a.json cannot be read")
    (tmp_path / "file").write_text("")
    for state in ("file", "file/state", "/proc/nope"):
        for more in ([], ["--until-empty"]):
            done = tidewheel("jobs", "run", "--state", state, *more, folder=tmp_path)
            fails(done, 2, f"the state folder {state} cannot be written", "--state")


def test_a_runner_may_start_before_the_first_job_is_queued(tmp_path: Path, lake: Path) -> None:
    assert run(tmp_path) == []
    with runner(tmp_path, "service"):
        identity = queued(tmp_path, lake)
        until(lambda: states(tmp_path)[identity] == "Completed", "the job is done")


def test_a_runner_tells_prometheus_what_waits_runs_and_ended(tmp_path: Path, lake: Path) -> None:
    good = queued(tmp_path, lake)
    queued(tmp_path, lake, "--max-errors", "0", kind="many", to="other")
    (tmp_path / "other.job" / "model.twa").write_bytes(b"another")
    with runner(tmp_path, "r", "--metrics-port", "0"):
        until(lambda: "metrics on 127.0.0.1:" in text_of(tmp_path / "r.err"), "metrics are served")
        port = int(text_of(tmp_path / "r.err").partition("127.0.0.1:")[2].split()[0])

        def scraped(path: str = "metrics") -> str:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/{path}", timeout=10) as answer:
                text: str = answer.read().decode()
            return text

        until(lambda: not JobQueue(tmp_path / ".tidewheel").entries(), "both are over")
        until(lambda: 'ended_total{state="Failed"} 1.0' in scraped(), "the failed one is counted")
        found = scraped()
        assert scraped("ready") == "yes\n"
    assert states(tmp_path)[good] == "Completed"
    for line in (
        'tidewheel_jobs_ended_total{state="Completed"} 1.0',
        'tidewheel_jobs_ended_total{state="Expired"} 0.0',
        "tidewheel_jobs_retried_total 0.0",
        "tidewheel_jobs_waiting 0.0",
        "tidewheel_jobs_running 0.0",
        "tidewheel_jobs_oldest_wait_seconds 0.0",
        "tidewheel_schedules_held_up 0.0",
    ):
        assert line in found.splitlines()
