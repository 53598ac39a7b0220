"""Windows of a job that depend on the events before them: sessions, counts, a task's own.

    windows.parquet   in the job's folder: `device` and `start`, microseconds, of every window

It is written before the plan, from the times of all rows: 8 bytes of memory a row, and one more
pass over the input. Without it no row has a window yet, and `starts` returns 0.
"""

from array import array
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from streams.contract.task import Task

FILE = "windows.parquet"


class CutStarts:
    """Which window a row of a job is in; `folder` is the job's."""

    def __init__(self, folder: Path, task: Task) -> None:
        self._path, self._task = folder / FILE, task

    def write(self, rows: Iterable[tuple[str, int]]) -> None:
        """Cut the windows of all rows, given by device and time."""
        times: dict[str, array[int]] = {}
        for device, time in rows:
            times.setdefault(device, array("q")).append(time)
        names, starts = list[np.ndarray](), list[np.ndarray]()
        for number, device in enumerate(times):
            own = np.sort(np.frombuffer(times[device], np.int64))
            starts.append(np.unique(self._task.window.starts(own)))
            names.append(np.full(len(starts[-1]), number, np.int32))
        none = np.zeros(0, np.int64)
        devices = pa.DictionaryArray.from_arrays(
            np.concatenate([none.astype(np.int32), *names]), pa.array(list(times), pa.string())
        )
        found = pa.array(np.concatenate([none, *starts]))
        pq.write_table(pa.table({"device": devices, "start": found}), self._path)
        self.__dict__.pop("_found", None)

    @cached_property
    def _found(self) -> dict[str, np.ndarray] | None:
        """The starts of each device's windows, in order."""
        if not self._path.exists():
            return None
        table = pq.read_table(self._path)
        devices = table.column("device").combine_chunks().dictionary_encode()
        names, starts = devices.dictionary.to_pylist(), table.column("start").to_numpy()
        edges = np.searchsorted(devices.indices.to_numpy(), np.arange(len(names) + 1))
        return {name: starts[edges[i] : edges[i + 1]] for i, name in enumerate(names)}

    def starts(self, devices: Sequence[str | None], times: np.ndarray) -> list[int]:
        """Return the start of each row's window; any for a row without a device."""
        if self._task.aligned:
            return [int(start) for start in self._task.window.starts(times)]
        if self._found is None:
            return [0] * len(times)
        return [
            int(own[np.searchsorted(own, time, side="right") - 1]) if own is not None else 0
            for own, time in zip(
                (self._found.get(name or "") for name in devices), times.tolist(), strict=True
            )
        ]
