"""What other frameworks are given of ours: a message as pieces of windows, and the teacher.

A piece is the events of one message that are in one window, as Arrow: no framework is handed single
rows, as the worker is not.
"""

import pickle
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from typing import Self

import numpy as np
import pyarrow as pa
import torch

from streams.contract.events.batches import encode_batch, times_us
from streams.contract.events.records import EventBatch, decode_event_message
from streams.contract.task import Task
from streams.learning.teacher import Teacher, load_teacher
from streams.worker.settings import default_threads
from tests.bench.streams.feed.plan import Plan


@dataclass(frozen=True)
class Piece:
    """Events of one device in one window (its start, us), in the order of their seqs."""

    device: str
    epoch: str
    window: int
    newest: int  # event time, us
    rows: pa.RecordBatch

    def encode(self) -> bytes:
        """Return the piece as bytes, the rows as an Arrow IPC stream."""
        fields = (self.device, self.epoch, self.window, self.newest, encode_batch(self.rows))
        return pickle.dumps(fields, pickle.HIGHEST_PROTOCOL)

    @classmethod
    def decode(cls, data: bytes) -> Self:
        device, epoch, window, newest, rows = pickle.loads(data)
        with pa.ipc.open_stream(pa.py_buffer(rows)) as reader:  # it was checked when it came
            return cls(device, epoch, window, newest, reader.read_next_batch())

    def since(self, seq: int) -> Self | None:
        """Return the events from `seq` on; None if there are none."""
        seqs = self.rows.column("seq").to_numpy()
        if seqs[0] >= seq:
            return self
        rows = self.rows.slice(int(np.searchsorted(seqs, seq)))
        cls = type(self)
        return cls(self.device, self.epoch, self.window, self.newest, rows) if len(rows) else None

    @property
    def next_seq(self) -> int:
        return int(self.rows.column("seq")[-1].as_py()) + 1


def pieces_of(
    task: Task, key: bytes | None, value: bytes | None, headers: Iterable[tuple[str, bytes]]
) -> list[Piece]:
    """Return the events of one message, a piece a window, decoded as the worker does it."""
    record = decode_event_message(task, key, value, headers)
    assert isinstance(record, EventBatch)
    times = times_us(record.rows.column("time"))
    windows = times // task.window_us
    edges = [0, *(np.flatnonzero(np.diff(windows)) + 1).tolist(), len(times)]
    return [
        Piece(
            record.device,
            record.epoch,
            int(windows[a]) * task.window_us,
            int(times[b - 1]),
            record.rows.slice(a, b - a),
        )
        for a, b in pairwise(edges)
    ]


def plan_teacher(plan: Plan, threads: int | None = None) -> Teacher:
    """Return the teacher as the worker has it: on as many threads, one thread a forward pass."""
    torch.set_num_threads(1)
    folder = plan.run_folder
    keys = [folder / "key.pub"]
    return load_teacher(
        plan.load_task(), folder / "teacher.twa", keys, threads or default_threads()
    )
