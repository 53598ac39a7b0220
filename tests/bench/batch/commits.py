"""What it costs to commit a shard, for each sink: its steps after the rows are scored."""

import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from streams.batch.jobs.job import Job, submit
from streams.batch.jobs.submission import Request, specify
from streams.batch.sources.inputs import Wanted
from streams.batch.sources.plan import Cutter
from streams.contract.artifact import unpack
from streams.contract.task import load_task
from streams.contract.topics import TopicSpec
from streams.kafka.admin import ensure_topics
from streams.kafka.settings import BrokerSettings
from streams.runtime.failpoints import unarmed
from streams.runtime.key_files import load_public_key
from tests.bench.batch.stage import GROUP, TASK, Stage, write_rows
from tests.bench.kafka import real_kafka
from tests.bench.report import Cell, Figure, Results, Table
from tests.postgresql import postgresql

SHARDS = 6
SINKS = {
    "Parquet": "c-parquet", "JSON Lines": "c.jsonl", "CSV": "c.csv", "Delta": "c.delta",
    "DuckDB": "c.duckdb", "SQLite": "c.sqlite", "PostgreSQL": "", "Kafka": "kafka:bench-batch",
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
        kafka = stack.enter_context(real_kafka(stage.folder / "kafka"))
        ensure_topics(kafka.settings, [TopicSpec("bench-batch", 1, "delete", -1)])
        server = stack.enter_context(postgresql())
        for name, to in SINKS.items():
            output = server.uri if name == "PostgreSQL" else to
            if ":" not in output:
                output = str(stage.folder / to)
            steps = _steps(stage, source, output, kafka.settings)
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


def _steps(stage: Stage, source: Path, to: str, broker: BrokerSettings) -> _Clock:
    task = load_task(TASK)
    data = (stage.models / "model.twa").read_bytes()
    key = load_public_key(stage.models / "signing.pub")
    artifact = unpack(data, [key], task=task.name, task_version=task.version)
    stage.runs += 1
    folder = stage.folder / f"commit-{stage.runs}.job"
    request = Request(TASK, [str(source)], to, Wanted(id="event"), job=folder)
    submit(request.folder, specify(task, artifact, request, lambda: broker), data, unarmed)
    clock = _Clock()
    job = Job(
        request.folder, task, reached=clock, broker=lambda: broker,
        cutter=lambda specification, check: Cutter(
            specification.input_format, check, shard_rows=GROUP
        ),
    )  # fmt: skip
    found = job.run()
    if found.state != "Completed":
        raise SystemExit(f"{to}: {found.reason}")
    return clock
