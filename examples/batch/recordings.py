"""The readings of a task's fleet, as a Parquet file a device."""

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from streams.contract.task import Task


def write_recordings(task: Task, folder: Path) -> int:
    """Write the readings of each device with the role fleet into a file: device, time in
    microseconds, a column a channel, label. Return how many there are."""
    fields = [("device", pa.string()), ("time", pa.int64())]
    fields += [(channel, pa.float32()) for channel in task.channels]
    labels = pa.string() if task.classes else pa.list_(pa.float32())
    schema = pa.schema([*fields, ("label", labels)])
    folder.mkdir(parents=True, exist_ok=True)
    written = 0
    for device in task.device_names("fleet"):
        rows = list(_rows(task, device))
        columns = list(zip(*rows, strict=True)) or [()] * len(schema)
        arrays = [
            pa.array(values, kind) for values, kind in zip(columns, schema.types, strict=True)
        ]
        pq.write_table(pa.table(arrays, schema=schema), folder / f"{device}.parquet")
        written += len(rows)
    return written


def _rows(task: Task, device: str) -> Iterator[tuple[object, ...]]:
    for reading in task.readings(device):
        label: object = reading.label
        if task.classes and isinstance(reading.label, int | float):
            label = task.classes[int(reading.label)]
        elif isinstance(reading.label, int | float):
            label = [reading.label]
        yield (device, reading.time_us, *reading.values, label)
