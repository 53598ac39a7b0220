"""Batch jobs in this process: the tiny task, a signed model, inputs, and what a job wrote."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from streams.batch.documents import Manifest, Specification
from streams.batch.job import Job, submit
from streams.batch.job_folder import JobFolder
from streams.batch.plan import Cutter
from streams.batch.submission import Request, specify
from streams.contract.artifact import Artifact, unpack
from streams.runtime.failpoints import unarmed
from tests.edge_client.models import TINY, artifact, plain, segments, tiny

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


def write_arrow(path: Path, rows: list[dict[str, Any]], batch: int = 10) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with pa.ipc.new_file(str(path), SCHEMA) as writer:
        writer.write_table(pa.Table.from_pylist(rows, SCHEMA), max_chunksize=batch)
    return path


def write_lines(path: Path, rows: Iterable[dict[str, Any] | bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows]
    path.write_bytes(b"".join(line + b"\n" for line in lines))
    return path


def small(rows: int = 20, size: int = 2000, line: int = 5000) -> Any:
    """A cutter of small shards."""

    def cutter(specification: Specification, check: Any) -> Cutter:
        return Cutter(specification.input_format, check, rows, size, line)

    return cutter


@dataclass
class Submitted:
    """A job that was submitted in a folder of its own."""

    folder: JobFolder
    output: Path

    def run(self, **more: Any) -> Manifest:
        return Job(self.folder, tiny, **{"cutter": small(), **more}).run()

    def rows(self) -> list[dict[str, Any]]:
        return rows_of(self.output)


def submitted(place: Path, *inputs: Path, to: str = "out", **more: Any) -> Submitted:
    names = [str(path) for path in inputs]
    options = {"id": "event", "label": "label", "keep": ["site"], **more}
    request = Request(TINY, names, place / to, **options)
    submit(request.folder, specify(tiny, model(), request), model_bytes(), unarmed)
    return Submitted(request.folder, place / to)


def rows_of(output: Path) -> list[dict[str, Any]]:
    """All output rows, in the order of the shards."""
    found: list[dict[str, Any]] = []
    for part in sorted(output.glob("part-*")):
        if part.suffix == ".parquet":
            found += pq.read_table(part).to_pylist()
        else:
            found += [json.loads(line) for line in part.read_bytes().splitlines()]
    return found
