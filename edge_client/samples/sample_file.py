"""Rows in a file: the samples that a device remembers, and the rows of a training.

    a line of JSON   {"columns": [[name, type, [length, ...]], ...], ...}, types as numpy's, little
                     endian, and what else is said of the rows
    rows             each row's values in the order of the columns, without padding

It is written and read a few hundred rows at a time, because a complete copy in memory would double
the memory of a device's samples.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Any

import numpy as np

from streams.runtime.disk import replacing

ROWS = 256

Columns = dict[str, np.ndarray]  # each (rows, ...)


def write_rows(path: Path, chunks: Iterable[Columns], metadata: dict[str, Any]) -> None:
    """Replace `path` with the chunks, at least one; OSError keeps the old file."""
    with replacing(path, mode=0o600) as file:
        write_stream(file, chunks, metadata)


def write_stream(file: IO[bytes], chunks: Iterable[Columns], metadata: dict[str, Any]) -> None:
    """Write the chunks, at least one, and what is said of them."""
    kind: np.dtype[np.void] | None = None
    for columns in chunks:
        if kind is None:
            fields = _fields(columns)
            file.write(json.dumps({"columns": fields, **metadata}).encode() + b"\n")
            kind = _row(fields)
        rows = np.empty(len(next(iter(columns.values()))), kind)
        for name, values in columns.items():
            rows[name] = values
        file.write(rows.tobytes())


def read_rows(path: Path, columns: Columns) -> tuple[int, dict[str, Any]]:
    """Fill `columns` with the last rows that fit; return their number and the metadata.

    Raises ValueError or OSError if the file is invalid; then the content of `columns` is undefined.
    """
    capacity = len(next(iter(columns.values())))
    with path.open("rb") as file:
        metadata, count = _opened(file, path)
        if metadata.pop("columns") != _fields(columns):
            raise ValueError(f"{path} has other columns")
        kind, at = _row(_fields(columns)), 0
        file.seek(max(0, count - capacity) * kind.itemsize, 1)
        while len(rows := np.frombuffer(file.read(ROWS * kind.itemsize), kind)):
            for name, array in columns.items():
                array[at : at + len(rows)] = rows[name]
            at += len(rows)
    return at, metadata


def read_all(path: Path) -> np.ndarray:
    """Return all rows, by the names of the columns; ValueError or OSError as above."""
    with path.open("rb") as file:
        metadata, _ = _opened(file, path)
        return np.frombuffer(file.read(), _row(metadata["columns"]))


def _opened(file: IO[bytes], path: Path) -> tuple[dict[str, Any], int]:
    """Read the line of JSON; return it and the number of rows."""
    try:
        metadata = dict(json.loads(file.readline()))
        size = _row(metadata["columns"]).itemsize
    except (KeyError, TypeError) as exc:
        raise ValueError(f"{path} is not a file of rows: {exc}") from exc
    begin = file.tell()
    count, rest = divmod(file.seek(0, 2) - begin, size)
    file.seek(begin)
    if rest:
        raise ValueError(f"{path} ends within a row")
    return metadata, count


def _fields(columns: Columns) -> list[list[Any]]:
    return [[name, each.dtype.str, [*each.shape[1:]]] for name, each in columns.items()]


def _row(fields: Iterable[list[Any]]) -> np.dtype[np.void]:
    return np.dtype([(name, kind, tuple(shape)) for name, kind, shape in fields])
