"""Batch jobs in this process: the tiny task, a signed model, inputs, and what a job wrote."""

import csv
import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from deltalake import write_deltalake

from streams.batch.jobs.job import Job
from streams.batch.jobs.job_folder import JobFolder, Models
from streams.batch.jobs.submission import folder_of, specify
from streams.batch.progress import Manifest
from streams.batch.specification import Settings
from streams.contract.artifact import Artifact, unpack
from streams.contract.task import Task
from tests.rig.made_up.models import TINY, artifact, plain, segments, tiny

KEY = Ed25519PrivateKey.generate()
WIDTH = 40  # 2 channels, 20 samples


@cache
def model_bytes() -> bytes:
    return artifact(KEY, plain(1))


@cache
def model() -> Artifact:
    return unpack(model_bytes(), [KEY.public_key()], task="tiny", task_version=1)


def good_rows(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Rows that have an answer, with an event, a label and a site."""
    numbers = segments(count, seed).reshape(count, WIDTH)
    return [
        {
            "event": f"{seed}-{i}",
            "segment": [float(x) for x in row],
            "label": tiny.classes[i % 3],
            "site": i / 2,
        }
        for i, row in enumerate(numbers)
    ]


SCHEMA = pa.schema(
    [
        ("event", pa.string()),
        ("segment", pa.list_(pa.float32())),
        ("label", pa.string()),
        ("site", pa.float64()),
    ]
)


def write_parquet(path: Path, rows: list[dict[str, Any]], group: int = 10) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows, SCHEMA), path, row_group_size=group)
    return path


def write_csv(path: Path, rows: list[dict[str, Any]]) -> Path:
    """Segments and other lists as JSON text; null is an empty cell."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]) if rows else ["event", "segment"])
        writer.writeheader()
        for row in rows:
            cells = {n: json.dumps(v) if isinstance(v, list) else v for n, v in row.items()}
            writer.writerow(cells)
    return path


def write_bedrock(path: Path, rows: list[dict[str, Any]]) -> Path:
    return write_lines(path, [{"recordId": row["event"], "modelInput": row} for row in rows])


def write_delta(path: Path, rows: list[dict[str, Any]]) -> Path:
    """Two files, by the column `day`."""
    days = [i * 2 // max(len(rows), 1) for i in range(len(rows))]
    table = pa.Table.from_pylist(rows, SCHEMA).append_column("day", pa.array(days, pa.int32()))
    write_deltalake(str(path), table, partition_by=["day"])
    return path


def write_lines(path: Path, rows: Iterable[dict[str, Any] | bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows]
    path.write_bytes(b"".join(line + b"\n" for line in lines))
    return path


WRITE: dict[str, Any] = {
    "parquet": write_parquet, "csv": write_csv, "jsonl": write_lines, "delta": write_delta,
    "bedrock": write_bedrock,
}  # fmt: skip


SMALL = {"shard_rows": 20, "shard_bytes": 2000}


@dataclass
class Submitted:
    """A job that was submitted in a folder of its own."""

    folder: JobFolder
    output: Path

    def run(self, **more: Any) -> Manifest:
        """Run it, with other settings or parts of Job."""
        found = self.folder.specification().settings
        asked = {"processes": 1, **{n: more.pop(n) for n in ASKED & more.keys()}}
        quick = {"shard_sizes": SMALL, "pause_s": (0.02, 0.2)}
        more = {**quick, "settings": found.changed(**asked), **more}
        return Job(self.folder, more.pop("task", tiny), **more).run()

    def begun(self) -> bool:
        """Whether two shards are done: when a job is asked to stop."""
        return len(list(self.output.glob("part-*"))) > 1

    def rows(self) -> list[dict[str, Any]]:
        return rows_of(self.output)


ASKED = {"timeout", "processes", "max_errors"}


def models() -> Models:
    return Models(model(), model_bytes())


def asked(place: Path, *inputs: Path | str, to: str = "out", **more: Any) -> Settings:
    """What a job is asked for; its output is in `place`, and its folder too."""
    options = {"id": "event", "label_column": "label", "keep": ["site"], **more}
    output = to if ":" in to else str(place / to)
    if ":" in to:
        options.setdefault("job", place / "sink.job")
    return Settings.of({"task": TINY, "inputs": list(inputs), "to": output, **options})


def submitted(
    place: Path, *inputs: Path | str, to: str = "out",
    using: Models | None = None, task: Task = tiny, **more: Any,
) -> Submitted:  # fmt: skip
    """A job with the options of Settings."""
    settings, using = asked(place, *inputs, to=to, **more), using or models()
    folder = folder_of(settings)
    folder.submit(specify(task, settings, using), using)
    return Submitted(folder, place / to)


def rows_of(output: Path) -> list[dict[str, Any]]:
    """All output rows, in the order of the shards."""
    found: list[dict[str, Any]] = []
    for part in sorted([*output.glob("part-*"), *output.glob("*.jsonl.out")]):
        if part.suffix == ".csv":
            with part.open(newline="") as file:
                found += list(csv.DictReader(file))
        elif part.suffix == ".parquet":
            found += pq.read_table(part).to_pylist()
        else:
            found += [json.loads(line) for line in part.read_bytes().splitlines()]
    return found
