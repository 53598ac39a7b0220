"""`python -m tests.bench.batch [--quick] [--only NAME] [--ray PYTHON]`."""

import argparse
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from streams.contract.task import load_task
from tests.bench.batch.commits import commits
from tests.bench.batch.jobs import memory, resumed
from tests.bench.batch.model import write_model
from tests.bench.batch.stage import TASK, Stage, write_rows
from tests.bench.batch.throughput import throughput
from tests.bench.machine import load_fact
from tests.bench.pages import begin, finish, keep

PACKAGES = ("onnxruntime", "numpy", "pyarrow", "deltalake", "duckdb")
SUBJECTS = {f.__name__: f for f in (throughput, memory, resumed, commits)}
ROWS, QUICK_ROWS, REPEATS = 1_000_000, 200_000, 3


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.batch")
    parser.add_argument("--quick", action="store_true", help="fewer rows, once; writes no page")
    parser.add_argument("--only", action="append", choices=list(SUBJECTS), help="may be repeated")
    parser.add_argument("--ray", type=Path, help="a Python that has Ray Data")
    asked = parser.parse_args()
    ray = asked.ray.absolute() if asked.ray is not None and asked.ray.exists() else None
    command = shlex.join(["python", "-m", "tests.bench.batch", *sys.argv[1:]])
    folder = Path(tempfile.mkdtemp(prefix="tidewheel-bench-"))
    rows, repeats = (QUICK_ROWS, 1) if asked.quick else (ROWS, REPEATS)
    stage = Stage(folder, rows, repeats, ray, patience_s=20 if asked.quick else 120)
    results = begin("batch", command, "", PACKAGES)
    try:
        write_model(load_task(TASK), stage.models)
        write_rows(stage.source, rows)
        for name in asked.only or SUBJECTS:
            began = time.monotonic()
            SUBJECTS[name](stage, results)
            print(f"{name}: {time.monotonic() - began:.0f} s", file=sys.stderr)  # noqa: T201
            keep("batch", results)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    results.facts["size"] = f"{rows:,} rows"
    results.facts["Ray"] = _version(ray) if ray is not None else "not installed"
    results.facts["other load"] = load_fact(stage.highest_load)
    finish("batch", results, whole=not (asked.quick or asked.only))


def _version(python: Path) -> str:
    code = "import importlib.metadata as m; print(m.version('ray'))"
    return subprocess.run([python, "-c", code], capture_output=True, text=True).stdout.strip()


if __name__ == "__main__":
    main()
