"""Rows in a file: the samples that a device remembers, and the rows of a training.

    a line of JSON   {"columns": [[name, type, [length, ...]], ...], ...}, types as numpy's, little
                     endian, and what else is said of the rows
    rows             each row's values in the order of the columns, aligned as numpy does it

In memory they are arrays of numpy with the columns as fields. They are written a few hundred rows
at a time, because a complete copy would double the memory of a device's samples.
"""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np

ROWS = 256

Fields = list[tuple[str, str, tuple[int, ...]]]  # name, type, shape


def row_type(fields: Fields) -> np.dtype[np.void]:
    return np.dtype(fields, align=True)


def rows_of(columns: dict[str, np.ndarray]) -> np.ndarray:
    """Return columns (rows, ...) as rows."""
    fields = [(name, each.dtype.str, each.shape[1:]) for name, each in columns.items()]
    rows = np.empty(len(next(iter(columns.values()))), row_type(fields))
    for name, values in columns.items():
        rows[name] = values
    return rows


def parts(count: int) -> Iterator[slice]:
    """Yield the parts in which so many rows are written: at least one, which may be empty."""
    return (slice(at, at + ROWS) for at in range(0, max(1, count), ROWS))


def write_stream(file: IO[bytes], chunks: Iterable[np.ndarray], metadata: dict[str, Any]) -> None:
    """Write the chunks, at least one, and what is said of them."""
    for number, rows in enumerate(chunks):
        if not number:
            head = {"columns": _fields(rows.dtype), **metadata}
            file.write(json.dumps(head).encode() + b"\n")
        file.write(rows.tobytes())


def read_rows(path: Path, rows: np.ndarray) -> tuple[int, dict[str, Any]]:
    """Fill `rows` with the last ones that fit; return their number and the metadata.

    Raises ValueError or OSError if the file is invalid; then the content of `rows` is undefined.
    """
    with path.open("rb") as file:
        kind, count, metadata = _opened(file, path)
        if kind != rows.dtype:
            raise ValueError(f"{path} has other columns")
        file.seek(max(0, count - len(rows)) * kind.itemsize, 1)
        view: Any = rows.view(np.uint8)
        return file.readinto(view) // kind.itemsize, metadata


def read_all(path: Path) -> np.ndarray:
    """Return all rows, by the names of the columns; ValueError or OSError as above."""
    with path.open("rb") as file:
        kind, _, _ = _opened(file, path)
        return np.frombuffer(file.read(), kind)


def _opened(file: IO[bytes], path: Path) -> tuple[np.dtype[np.void], int, dict[str, Any]]:
    """Read the line of JSON; return the type and the number of the rows, and the metadata."""
    try:
        metadata = dict(json.loads(file.readline()))
        fields = metadata.pop("columns")
        kind = row_type([(name, of, tuple(shape)) for name, of, shape in fields])
    except (KeyError, TypeError) as exc:
        raise ValueError(f"{path} is not a file of rows: {exc}") from exc
    begin = file.tell()
    count, rest = divmod(file.seek(0, 2) - begin, kind.itemsize)
    file.seek(begin)
    if rest:
        raise ValueError(f"{path} ends within a row")
    return kind, count, metadata


def _fields(kind: np.dtype[np.void]) -> Fields:
    found = ((name, kind[name]) for name in kind.names or ())
    return [(name, each.base.str, each.shape) for name, each in found]
