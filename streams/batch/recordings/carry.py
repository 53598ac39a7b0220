"""What a shard of readings needs of the shards before it.

Shards are scored apart from each other, but segments span them. While the input is cut, its
readings are cut into segments too, without a model: that tells how many segments end in each shard,
and which readings are pending at its start, which are kept as Arrow in the job's folder:

    carry/<shard>.arrow     device, time (microseconds), values, label; absent where none is pending
"""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pyarrow as pa

from streams.batch.recordings.cutting import Cutting
from streams.batch.records.documents import Columns, InputFormat, Plan, PlannedFile, Shard
from streams.batch.records.rows import Rows
from streams.contract.task import Reading, Task
from streams.runtime.disk import replacing
from streams.segments.segmentation import Segmenter

SCHEMA = pa.schema(
    [
        ("device", pa.string()),
        ("time", pa.int64()),
        ("values", pa.list_(pa.float32())),
        ("label", pa.list_(pa.float32())),
    ]
)


def carry_path(folder: Path, shard: int) -> Path:
    return folder / "carry" / f"{shard:05}.arrow"


def plan_readings(
    plan: Plan,
    task: Task,
    kind: InputFormat,
    columns: Columns,
    folder: Path,
    check: Callable[[], None],
    max_bytes: int,
) -> Plan:
    """Return a plan of readings as one of segments, and write what its shards carry."""
    cutting = Cutting(task, columns)
    shards, ended = [], [0] * len(plan.files)
    for number, shard in enumerate(plan.shards):
        check()
        _write(carry_path(folder, number), cutting.segmenters)
        file = plan.files[shard.file]
        rows = sum(len(part) + part.excluded for part in cutting.rows(kind, file, shard, max_bytes))
        ended[shard.file] += rows
        shards.append(shard.model_copy(update={"rows": rows, "readings": shard.rows}))
    files = [
        file.model_copy(update={"rows": rows}) for file, rows in zip(plan.files, ended, strict=True)
    ]
    return Plan(files=files, shards=shards)


def read_readings(
    task: Task,
    kind: InputFormat,
    file: PlannedFile,
    shard: Shard,
    columns: Columns,
    path: Path,
    max_bytes: int,
) -> Iterator[Rows]:
    """Yield the segments that end in a shard; `path` has what it carries."""
    cutting = Cutting(task, columns)
    for device, reading in carried(path):
        cutting.take(device, reading)
    return cutting.rows(kind, file, shard, max_bytes)


def carried(path: Path) -> Iterator[tuple[str, Reading]]:
    """Yield device and reading of what is pending at a shard's start."""
    if not path.exists():
        return
    with pa.OSFile(str(path)) as source:
        for row in pa.ipc.open_file(source).read_all().to_pylist():
            yield row["device"], Reading(row["time"], row["values"], row["label"])


def _write(path: Path, segmenters: Mapping[str, Segmenter]) -> None:
    rows = [
        {"device": device, "time": one.time_us, "values": one.values, "label": one.label}
        for device, segmenter in segmenters.items()
        for one in segmenter.pending
    ]
    if not rows:
        path.unlink(missing_ok=True)
        return
    with replacing(path) as file, pa.ipc.new_file(file, SCHEMA) as writer:
        writer.write_table(pa.Table.from_pylist(rows, SCHEMA))
