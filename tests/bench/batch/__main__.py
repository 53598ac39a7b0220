"""`python -m tests.bench.batch [--quick] [--only PART] [--ray PYTHON]`."""

import subprocess
from functools import partial
from pathlib import Path

from streams.contract.task import load_task
from tests.bench.batch.commits import commits
from tests.bench.batch.jobs import memory, resumed
from tests.bench.batch.model import write_model
from tests.bench.batch.stage import TASK, Stage, write_rows
from tests.bench.batch.throughput import throughput
from tests.bench.command import arguments, command_line, measure, working_folder
from tests.bench.pages import begin, finish

NAME = "batch"
PACKAGES = ("onnxruntime", "numpy", "pyarrow", "deltalake", "duckdb")
PARTS = {f.__name__: f for f in (throughput, memory, resumed, commits)}
ROWS, QUICK_ROWS, REPEATS = 1_000_000, 200_000, 3


def main() -> None:
    parser = arguments(NAME, PARTS)
    parser.add_argument("--ray", type=Path, help="a Python that has Ray Data")
    asked = parser.parse_args()
    ray = asked.ray.absolute() if asked.ray is not None and asked.ray.exists() else None
    rows, repeats, patience_s = (QUICK_ROWS, 1, 20) if asked.quick else (ROWS, REPEATS, 120)
    with working_folder() as folder:
        stage = Stage(folder, rows, repeats, ray, patience_s=patience_s)
        results = begin(NAME, command_line(NAME), "", PACKAGES)
        write_model(load_task(TASK), stage.models)
        write_rows(stage.source, rows)
        parts = {name: partial(part, stage) for name, part in PARTS.items()}
        measure(NAME, results, parts, asked, highest=lambda: stage.highest_load)
    results.facts["size"] = f"{rows:,} rows"
    results.facts["Ray"] = _version(ray) if ray is not None else "not installed"
    finish(NAME, results, whole=not (asked.quick or asked.only))


def _version(python: Path) -> str:
    code = "import importlib.metadata as m; print(m.version('ray'))"
    return subprocess.run([python, "-c", code], capture_output=True, text=True).stdout.strip()


if __name__ == "__main__":
    main()
