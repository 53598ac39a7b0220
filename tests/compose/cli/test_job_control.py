"""Many processes, a time, errors, and what `tidewheel jobs` does with jobs: as real processes."""

import json
import shutil
import signal
import subprocess
from contextlib import suppress
from pathlib import Path

import psutil

from tests.compose.cli.test_cli import PROGRAM, environ_in, fails, tidewheel
from tests.compose.cli.test_jobs import MANY, expected, words
from tests.rig.processes.polling import until
from tests.rig.processes.running import start
from tests.streams.batch.support import rows_of


def begun(tmp_path: Path, lake: Path, *more: str, **env: str) -> "subprocess.Popen[bytes]":
    """A job of many shards; all of them take half a second."""
    return start(
        [PROGRAM, *words(lake, "many"), *more], tmp_path / "stdout", environ_in(tmp_path, env),
        err=tmp_path / "stderr", cwd=tmp_path, session=False,
    )  # fmt: skip


def has_scored(tmp_path: Path) -> None:
    """Wait for a second shard: the first one counts then, its input has been hashed."""
    parts = (tmp_path / "out").glob
    until(lambda: len(list(parts("part-*"))) > 1, "a shard is scored", pause_s=0.005)


def ids(tmp_path: Path) -> list[str]:
    return [row["id"] for row in rows_of(tmp_path / "out")]


def workers_of(process: int) -> list[psutil.Process]:
    """The children of a process that score."""
    found = psutil.Process(process).children()
    return [each for each in found if "streams.batch.jobs.scoring" in " ".join(each.cmdline())]


def open_by(process: psutil.Process) -> set[str]:
    """The files that a process at work has open; it closes some meanwhile."""
    found = set()
    for entry in Path(f"/proc/{process.pid}/fd").iterdir():
        with suppress(FileNotFoundError):
            found.add(str(entry.readlink()))
    return found


def test_a_killed_worker_costs_its_shards_attempt_and_nothing_else(
    tmp_path: Path, lake: Path
) -> None:
    process = begun(tmp_path, lake, "--processes", "2", "--json")
    until(lambda: len(workers_of(process.pid)) == 2, "both workers start", pause_s=0.005)
    victims = workers_of(process.pid)
    victims[0].suspend()  # with its shard: the job can't end before it is killed
    has_scored(tmp_path)
    lock = str(tmp_path / "out.job" / "lock")  # the folder is held until they are gone
    assert all(lock in open_by(victim) for victim in victims)
    victims[0].kill()
    assert process.wait(120) == 0, (tmp_path / "stderr").read_text()
    manifest = json.loads((tmp_path / "stdout").read_text())
    assert manifest["attempts"] == MANY + 1
    assert ids(tmp_path) == expected(MANY, 5)
    until(lambda: not any(victim.is_running() for victim in victims), "its workers end")


def test_a_job_whose_time_is_over_is_whole_as_far_as_it_is_and_exits_with_3(
    tmp_path: Path, lake: Path
) -> None:
    done = tidewheel(*words(lake, "many"), "--timeout", "0.000001", folder=tmp_path)
    assert done.returncode == 3
    assert done.stdout.startswith("PartiallyCompleted: 0 of ")
    assert "time of 1e-06 s was over" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    resume = ["jobs", "resume", "out.job", "--timeout", "0.4", "--processes", "1"]
    while (code := tidewheel(*resume, folder=tmp_path).returncode) == 3:
        found = ids(tmp_path)
        assert found == expected(MANY, 5)[: len(found)]
        state = json.loads((tmp_path / "out" / "_manifest.json").read_text())
        assert (state["state"], state["processed"]) == ("PartiallyCompleted", len(found))
    assert code == 0
    assert ids(tmp_path) == expected(MANY, 5)


def test_stop_ends_a_job_from_another_process_and_resume_goes_on(
    tmp_path: Path, lake: Path
) -> None:
    process = begun(tmp_path, lake, "--processes", "1")
    has_scored(tmp_path)
    process.send_signal(signal.SIGSTOP)  # it would be done before the command has started
    identity = json.loads((tmp_path / "out.job" / "specification.json").read_text())["id"]
    stopped = tidewheel("jobs", "stop", identity, folder=tmp_path)
    assert stopped.returncode == 0, stopped.stderr
    process.send_signal(signal.SIGCONT)
    assert process.wait(60) == 130
    assert 0 < len(ids(tmp_path)) < MANY * 5
    fails(tidewheel("jobs", "stop", identity, folder=tmp_path), 2, "no process works on")
    assert tidewheel("jobs", "resume", identity, folder=tmp_path).returncode == 0
    assert ids(tmp_path) == expected(MANY, 5)


def test_list_shows_all_jobs_and_logs_what_happened_to_one(tmp_path: Path, lake: Path) -> None:
    assert tidewheel("jobs", "list", folder=tmp_path).stdout.startswith("no jobs")
    tidewheel(*words(lake), folder=tmp_path, TIDEWHEEL_FAILPOINT="score-step-4:1")
    tidewheel(*words(lake, to="other"), "--max-errors", "1", folder=tmp_path)
    found = json.loads(tidewheel("jobs", "list", "--json", folder=tmp_path).stdout)
    states = [(Path(job["output"]).name, job["state"], job["running"]) for job in found]
    assert states == [("out", "InProgress", False), ("other", "Failed", False)]
    old, new = tidewheel("jobs", "list", folder=tmp_path).stdout.splitlines()
    assert old.endswith("out.job  interrupted: resume it")
    assert new.endswith("other.job")
    tidewheel("jobs", "resume", "out.job", folder=tmp_path)
    shown = tidewheel("jobs", "list", "out.job", "--json", folder=tmp_path).stdout
    lines = [line["text"] for line in json.loads(shown)["log"]]
    assert lines[0] == "Validating"
    assert lines[-1] == "Completed"
    assert "shard 0: attempt 2" in lines
    assert "Failed: " in tidewheel("jobs", "list", found[1]["id"], folder=tmp_path).stdout


def test_a_job_whose_output_is_gone_says_so(tmp_path: Path, lake: Path) -> None:
    """Also where a file of it is: how many rows are there is not known."""
    tidewheel(*words(lake), folder=tmp_path)
    [before] = json.loads(tidewheel("jobs", "list", "--json", folder=tmp_path).stdout)
    assert before["processed"] == before["total"]
    for gone in (next((tmp_path / "out").glob("part-*")), tmp_path / "out"):
        gone.rename(tmp_path / f"{gone.name}-elsewhere")
        [row] = json.loads(tidewheel("jobs", "list", "--json", folder=tmp_path).stdout)
        assert (row["state"], row["processed"], row["total"]) == ("Completed", None, row["total"])
        [line] = tidewheel("jobs", "list", folder=tmp_path).stdout.splitlines()
        assert f"? of {row['total']:,} rows" in line
        assert line.endswith("its output was moved, changed or deleted")
        shown = tidewheel("jobs", "list", "out.job", folder=tmp_path).stdout
        assert shown.startswith("Completed, but its output was moved, changed or deleted: ")


def test_a_job_in_the_folder_of_a_removed_one_is_listed_once(tmp_path: Path, lake: Path) -> None:
    for _ in range(2):
        shutil.rmtree(tmp_path / "out.job", ignore_errors=True)
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
        assert tidewheel(*words(lake), folder=tmp_path).returncode == 0
    links = tmp_path / ".tidewheel" / "jobs"
    assert len(list(links.iterdir())) == 2
    [row] = json.loads(tidewheel("jobs", "list", "--json", folder=tmp_path).stdout)
    assert [link.name for link in links.iterdir()] == [row["id"]]


def test_a_job_whose_folder_is_removed_is_forgotten_and_its_output_stays(
    tmp_path: Path, lake: Path
) -> None:
    tidewheel(*words(lake), folder=tmp_path)
    shutil.rmtree(tmp_path / "out.job")
    assert json.loads(tidewheel("jobs", "list", "--json", folder=tmp_path).stdout) == []
    assert list((tmp_path / ".tidewheel" / "jobs").iterdir()) == []
    assert ids(tmp_path) == expected()
