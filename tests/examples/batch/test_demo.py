"""`make demo-batch`, on the tiny task."""

import os
import subprocess
import sys
from pathlib import Path

import duckdb

from tests.compose.cli.test_cli import ROOT, TINY


def test_the_demo_kills_a_job_resumes_it_and_has_every_segment_in_both_outputs(
    tmp_path: Path, first_models: Path
) -> None:
    environ = {k: v for k, v in os.environ.items() if not k.startswith("TIDEWHEEL_")}
    environ |= {"TIDEWHEEL_CACHE": str(first_models), "COLUMNS": "120"}
    done = subprocess.run(
        [sys.executable, "-m", "examples.batch.demo", "--task", TINY, "--state", tmp_path / "demo",
         "--demo", tmp_path / "none"],
        cwd=ROOT, env=environ, capture_output=True, text=True, timeout=200, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "InProgress, but no process works on it" in done.stdout
    assert "are in both outputs, each once" in done.stdout
    assert "## Input" in (tmp_path / "demo" / "scores.job" / "report.md").read_text()
    with duckdb.connect(str(tmp_path / "demo" / "scores.duckdb"), read_only=True) as connection:
        ((rows,),) = connection.execute("SELECT count(*) FROM scores").fetchall()
    assert rows > 1000
