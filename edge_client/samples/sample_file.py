"""The file of samples: columns in an Arrow IPC stream.

It is written and read a few hundred rows at a time, because a complete copy in memory would double
the memory of a device's samples.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa

from streams.runtime.disk import replacing

ROWS = 256

Columns = dict[str, np.ndarray]  # each (rows, ...)


def write_rows(path: Path, chunks: Iterable[Columns], metadata: dict[str, Any]) -> None:
    """Replace `path` with the chunks, at least one; OSError keeps the old file."""
    with replacing(path, mode=0o600) as file:
        write_stream(file, chunks, metadata)


def write_stream(file: IO[bytes], chunks: Iterable[Columns], metadata: dict[str, Any]) -> None:
    """Write the chunks, at least one, as a stream."""
    text = {name: json.dumps(value) for name, value in metadata.items()}
    writer = None
    for columns in chunks:
        arrays = {name: _array(values) for name, values in columns.items()}
        batch = pa.RecordBatch.from_pydict(arrays, metadata=text)
        writer = writer or pa.ipc.new_stream(pa.PythonFile(file, mode="w"), batch.schema)
        writer.write_batch(batch)
    if writer is not None:
        writer.close()


def read_rows(path: Path, columns: Columns) -> tuple[int, dict[str, Any]]:
    """Fill `columns` with the last rows that fit; return their number and the metadata.

    Raises ValueError or OSError if the file is invalid; then the content of `columns` is undefined.
    """
    capacity = len(next(iter(columns.values())))
    try:
        with pa.ipc.open_stream(path) as reader:
            skipped = _rows(path) - capacity
            at = 0
            for batch in reader:
                whole = batch.slice(max(0, skipped))
                skipped -= batch.num_rows
                for name, array in columns.items():
                    array[at : at + whole.num_rows] = values_of(whole.column(name), array.shape[1:])
                at += whole.num_rows
            metadata = {
                k.decode(): json.loads(v) for k, v in (reader.schema.metadata or {}).items()
            }
    except (pa.ArrowException, KeyError, TypeError) as exc:
        raise ValueError(f"{path} is not a file of samples: {exc}") from exc
    return at, metadata


def values_of(column: pa.Array, shape: tuple[int, ...]) -> np.ndarray:
    """Return a column as (rows, *shape)."""
    flat = column.flatten() if shape else column
    return np.asarray(flat.to_numpy(zero_copy_only=False)).reshape(len(column), *shape)


def _rows(path: Path) -> int:
    with pa.ipc.open_stream(path) as reader:
        return sum(batch.num_rows for batch in reader)


def _array(values: np.ndarray) -> pa.Array:
    """Return (n,) as a plain column, (n, ...) as a column of fixed-size lists."""
    if values.ndim == 1:
        return pa.array(values)
    width = int(np.prod(values.shape[1:]))
    return pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), width)
