"""`python -m examples.batch.demo`: every recording of the fleet is scored offline.

1 the readings of all devices of the fleet are written to Parquet
2 a job scores them with the first model into Parquet, and is killed in the middle
3 it is resumed, and writes a report
4 another job scores them into DuckDB, with the served model of `make demo` if it is there

Exits 0 only when every segment is in both outputs once.
"""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import duckdb
import typer

from compose.launcher.state_dir import StateDir
from compose.reports.terminal import say
from examples.batch.recordings import write_recordings
from streams.contract.errors import ProcessFailed
from streams.contract.task import load_task
from tidewheel import read_output

TASK = "streams/tasks/har.py:task"
KILLED_AT = "score-step-4:3"  # the third shard is written and not yet counted


def main(
    state: Annotated[Path, typer.Option(help="A folder for all of it.")] = Path(
        ".tidewheel/demo-batch"
    ),
    task: Annotated[str, typer.Option(help="The task.")] = TASK,
    demo: Annotated[Path, typer.Option(help="The state folder of `make demo`.")] = Path(
        ".tidewheel/demo"
    ),
) -> None:
    """Score the fleet's recordings with the first model, and with the served one if it is there."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # the command that runs ends as well
    out = state / "scores"
    tidewheel("prepare", task, "--state", state)
    source = state / "recordings"
    count = write_recordings(load_task(task), source)
    say(f"\n1 {count:,} readings of the fleet are in {source}")
    words: list[str | Path] = ["score", task, source, "--as", "readings", "--label-column", "label"]
    code = tidewheel(*words, "--to", out, "--state", state, "--processes", "1", failpoint=KILLED_AT)
    if code != -signal.SIGKILL:
        raise ProcessFailed(f"the job was to be killed at {KILLED_AT}, and exits with {code}")
    say("\n2 the job was killed in the middle:")
    tidewheel("jobs", "list", f"{out}.job", "--state", state)
    say("\n3 it goes on:")
    tidewheel("jobs", "resume", f"{out}.job", "--state", state)
    served = demo if StateDir(demo).public_key.exists() else state
    say(f"\n4 into DuckDB, with the served model of {served}:")
    tidewheel(*words, "--to", state / "scores.duckdb", "--state", served)
    _compare(out, state / "scores.duckdb")
    say(f"\nthe report is {out}.job/report.md, the manifest {out / '_manifest.json'}")


def _compare(folder: Path, database: Path) -> None:
    """Raise ProcessFailed unless both outputs have the same segments once."""
    ids = read_output(folder).to_table(columns=["id"]).column("id").to_pylist()
    with duckdb.connect(str(database), read_only=True) as connection:
        others = [row[0] for row in connection.execute("SELECT id FROM scores").fetchall()]
    if len(set(ids)) != len(ids) or sorted(ids) != sorted(others):
        raise ProcessFailed(f"{folder} has {len(ids):,} rows, {database} {len(others):,}")
    say(f"\n{len(ids):,} segments are in both outputs, each once")


def tidewheel(*words: str | Path, failpoint: str = "") -> int:
    """Run a command; raise ProcessFailed if it fails, unless it was to be killed."""
    environ = {**os.environ, **({"TIDEWHEEL_FAILPOINT": failpoint} if failpoint else {})}
    command = [sys.executable, "-m", "compose.cli.main", *map(str, words)]
    code = subprocess.run(command, env=environ, check=False).returncode
    if code and not failpoint:
        raise ProcessFailed(f"tidewheel {words[0]} exits with {code}")
    return code


if __name__ == "__main__":
    try:
        typer.run(main)
    except ProcessFailed as exc:
        sys.exit(f"demo-batch: {exc}")
