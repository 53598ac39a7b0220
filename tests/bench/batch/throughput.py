"""Rows a second of a job beside what others do with the same rows, in turn; and the first row."""

import sys
from pathlib import Path

from tests.bench.batch.stage import Run, Stage, rows_in
from tests.bench.report import Cell, Figure, Goal, Results, Table

OURS, LOOP, RAY = "tidewheel score", "a loop of pyarrow and onnxruntime", "Ray Data, map_batches"


def throughput(stage: Stage, results: Results) -> None:
    found: dict[str, list[Run]] = {OURS: [], LOOP: []}
    if stage.ray is not None:
        found[RAY] = []
    for _ in range(stage.repeats):
        for name, runs in found.items():
            runs.append(_once(stage, name))
    rate = {name: [stage.rows / run.seconds for run in runs] for name, runs in found.items()}
    rows: list[list[Cell]] = [
        [name, Figure.of(rate[name]), Figure.of([run.seconds for run in runs]),
         Figure.of([run.peak_bytes / 1e6 for run in runs]), len(runs)]
        for name, runs in found.items()
    ]  # fmt: skip
    text = (
        f"{stage.rows:,} rows of Parquet, 768 float32 each, into Parquet, in {stage.processes} "
        "processes; from the start of the command to its end. Memory is that of all processes."
    )
    columns = ["", "rows/s", "seconds", "memory MB", "runs"]
    results.tables.append(Table("Throughput", text, columns, rows))
    first = Figure.of([run.first_s for run in found[OURS]])
    text = "From the start of the command until its first file of rows has its name."
    results.tables.append(
        Table("First rows", text, ["", "seconds", "runs"], [[OURS, first, stage.repeats]])
    )
    loop = Figure.ratio(rate[OURS], rate[LOOP])
    results.goals.append(Goal(f"rows/s, to {LOOP}", loop, at_least=0.9))
    if RAY in rate:
        ratio = Figure.ratio(rate[OURS], rate[RAY])
        results.goals.append(Goal(f"rows/s, to {RAY}", ratio, at_least=1.5))
    results.goals.append(Goal("from start to the first rows, s", first))


def _once(stage: Stage, name: str) -> Run:
    output = stage.place(name.partition(" ")[0].strip(",").lower())
    commands = {
        OURS: lambda: stage.score(stage.source, output),
        LOOP: lambda: stage.contender("loop", Path(sys.executable), output),
        RAY: lambda: stage.contender("ray_data", stage.ray or Path(), output),
    }
    home = {"HOME": str(stage.folder), "RAY_USAGE_STATS_ENABLED": "0"} if name == RAY else None
    run = stage.run(commands[name](), output, environ=home)
    if (there := rows_in(output)) != stage.rows:
        raise SystemExit(f"{name} wrote {there:,} of {stage.rows:,} rows")
    stage.clear(output)
    return run
