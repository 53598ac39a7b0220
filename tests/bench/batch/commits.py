"""What it costs to commit a shard, for each sink: its steps after the rows are scored."""

import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from streams.batch.jobs.job import Job, submit
from streams.batch.jobs.job_folder import Models
from streams.batch.jobs.submission import folder_of, specify
from streams.batch.records.settings import Settings
from streams.batch.sources.plan import Cutter
from streams.contract.artifact import unpack
from streams.contract.task import load_task
from streams.runtime.failpoints import unarmed
from streams.runtime.key_files import load_public_key
from tests.bench.batch.stage import GROUP, TASK, Stage, write_rows
from tests.bench.report import Cell, Figure, Results, Table
from tests.postgresql import postgresql

SHARDS = 6
SINKS = {
    "Parquet": "c-parquet", "JSON Lines": "c.jsonl", "CSV": "c.csv", "Delta": "c.delta",
    "DuckDB": "c.duckdb", "SQLite": "c.sqlite", "PostgreSQL": "",
}  # fmt: skip


@dataclass
class _Clock:
    """When the numbered steps of a job were reached."""

    at: dict[str, list[float]] = field(default_factory=dict)

    def __call__(self, point: str) -> None:
        self.at.setdefault(point, []).append(time.monotonic())

    def between(self, first: str, last: str) -> list[float]:
        return [b - a for a, b in zip(self.at[first], self.at[last], strict=True)]


def commits(stage: Stage, results: Results) -> None:
    source = stage.folder / "few.parquet"
    write_rows(source, SHARDS * GROUP)
    rows: list[list[Cell]] = []
    with ExitStack() as stack:
        server = stack.enter_context(postgresql())
        for name, to in SINKS.items():
            output = server.uri if name == "PostgreSQL" else to
            if ":" not in output:
                output = str(stage.folder / to)
            steps = _steps(stage, source, output)
            loads = "score-step-6" in steps.at
            written = steps.between("score-step-4", "score-step-5")
            found = steps.between("score-step-5", "score-step-7") if loads else written
            rows.append([name, Figure.of([1000 * one for one in found]), len(found)])
    text = (
        f"Milliseconds a shard of {GROUP:,} rows. Of a folder of files: its record, after its file "
        "was written, synced and renamed. Of a table or topic: its rows loaded with its row of the "
        "ledger, and its record. PostgreSQL runs with fsync=off."
    )
    results.tables.append(Table("A shard's commit", text, ["sink", "ms", "shards"], rows))


def _steps(stage: Stage, source: Path, to: str) -> _Clock:
    task = load_task(TASK)
    data = (stage.models / "model.twa").read_bytes()
    key = load_public_key(stage.models / "signing.pub")
    artifact = unpack(data, [key], task=task.name, task_version=task.version)
    stage.runs += 1
    folder = stage.folder / f"commit-{stage.runs}.job"
    asked = {"task": TASK, "inputs": [str(source)], "to": to, "id": "event", "job": folder}
    settings, models = Settings.of({**asked, "processes": 1}), Models(artifact, data)
    submit(folder_of(settings), specify(task, settings, models), models, unarmed)
    clock = _Clock()
    job = Job(
        folder_of(settings), task, reached=clock,
        cutter=lambda specification, check: Cutter(
            specification.input_format, check, shard_rows=GROUP
        ),
    )  # fmt: skip
    found = job.run()
    if found.state != "Completed":
        raise SystemExit(f"{to}: {found.reason}")
    return clock
