"""What Bytewax gets of ours, and what it does with closed windows.

A piece is the events of one message that are in one window, as Arrow: no framework is handed single
rows, as the worker is not. The short job scores many windows a call and writes a Parquet file. The
whole job commits to a Delta table, publishes scores and a report of each window, and waits for the
broker. Drift, revisions and the fence of the worker's commit are left out.
"""

import json
import os
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Self

import confluent_kafka
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from deltalake import write_deltalake

from benchmarks.support.backlog import Plan
from benchmarks.support.processes import peak_bytes
from streams.contract.events.batches import TIMESTAMP, encode_batch, float_rows, times_us
from streams.contract.events.records import EventBatch, decode_event_message
from streams.contract.task import Task
from streams.contract.topics import SCORES, WINDOWS, topic_name
from streams.learning.teacher import Teacher, TeacherFailed, load_teacher
from streams.worker.settings import default_threads


class Meter:
    """The clock of a contender, in its own process: from its first message to its last row."""

    def __init__(self) -> None:
        self._began: float | None = None
        self._cpu_s = self.wall_s = self.cpu_s = 0.0

    def begin(self) -> None:
        """Start the clock, if it does not run."""
        if self._began is None:
            self._began, self._cpu_s = time.perf_counter(), time.process_time()

    def lap(self) -> None:
        """Note that everything so far is done."""
        assert self._began is not None
        self.wall_s = time.perf_counter() - self._began
        self.cpu_s = time.process_time() - self._cpu_s

    def report(self, rows: int) -> None:
        """Print the measure up to the last lap."""
        found = {"rows": rows, "wall_s": self.wall_s, "cpu_s": self.cpu_s}
        print(json.dumps({**found, "peak": peak_bytes(os.getpid())}), flush=True)


@dataclass(frozen=True)
class Piece:
    """Events of one device in one window (its start, us), in the order of their seqs; `newest` is
    the last one's event time."""

    device: str
    epoch: str
    window: int
    newest: int
    rows: pa.RecordBatch

    def since(self, seq: int) -> Self | None:
        """Return the events from `seq` on; None if there are none."""
        rows = self.rows.slice(int(np.searchsorted(self.rows.column("seq").to_numpy(), seq)))
        cls = type(self)
        return cls(self.device, self.epoch, self.window, self.newest, rows) if len(rows) else None

    @property
    def next_seq(self) -> int:
        return int(self.rows.column("seq")[-1].as_py()) + 1


Window = Sequence[Piece]  # all of one device and window


def pieces_of(
    task: Task, key: bytes | None, value: bytes | None, headers: Iterable[tuple[str, bytes]]
) -> list[Piece]:
    """Return the events of one message, decoded as the worker does it."""
    record = decode_event_message(task, key, value, headers)
    assert isinstance(record, EventBatch)
    times = times_us(record.rows.column("time"))
    windows = times // task.window_us
    edges = [0, *(np.flatnonzero(np.diff(windows)) + 1).tolist(), len(times)]
    return [
        Piece(
            record.device, record.epoch, int(windows[a]) * task.window_us, int(times[b - 1]),
            record.rows.slice(a, b - a),
        )
        for a, b in pairwise(edges)
    ]  # fmt: skip


def teacher_of(plan: Plan) -> Teacher:
    """Return the teacher as the worker has it: on as many threads, one thread a forward pass."""
    torch.set_num_threads(1)
    return load_teacher(plan.load_task(), plan.teacher, [plan.key], default_threads())


class Outlet:
    """Takes closed windows; the clock stops at the last of them."""

    def __init__(self, plan: Plan, folder: Path, meter: Meter, *, whole: bool) -> None:
        self._task, self._teacher, self._meter = plan.load_task(), teacher_of(plan), meter
        self._folder, self._batches, self.rows = folder / "rows", 0, 0
        self._folder.mkdir(parents=True)
        self._producer = None
        if whole:
            self._producer = confluent_kafka.Producer({"bootstrap.servers": plan.bootstrap})

    def put(self, windows: Sequence[Window]) -> None:
        """Score the windows together, store their rows, and publish them in the whole job."""
        found = _scored(self._task, self._teacher, windows)
        if self._producer is None:
            pq.write_table(found, self._folder / f"{self._batches:06d}.parquet")
        else:
            write_deltalake(self._folder, found, mode="append")
            self._publish(self._producer, windows, found)
        self._batches += 1
        self.rows += found.num_rows
        self._meter.lap()

    def report(self) -> None:
        self._meter.report(self.rows)

    def _publish(
        self, producer: "confluent_kafka.Producer", windows: Sequence[Window], found: pa.Table
    ) -> None:
        scores, reports = (topic_name(self._task.id, name) for name in (SCORES, WINDOWS))
        (rows,) = found.combine_chunks().to_batches()
        agrees, begin = rows.column("agrees").to_numpy(zero_copy_only=False), 0
        for window in windows:
            end = begin + sum(len(piece.rows) for piece in window)
            key = window[0].device
            report = {"device": key, "window": window[0].window, "rows": end - begin}
            report["agree"] = int(agrees[begin:end].sum())
            producer.produce(scores, encode_batch(rows.slice(begin, end - begin)), key)
            producer.produce(reports, json.dumps(report).encode(), key)
            producer.poll(0)
            begin = end
        producer.flush()


def _scored(task: Task, teacher: Teacher, windows: Sequence[Window]) -> pa.Table:
    """Return the rows of the windows in their order, with the teacher's outputs."""
    width = int(np.prod(task.segment_shape))
    segments = [
        np.concatenate([float_rows(piece.rows.column("segment"), width) for piece in window])
        for window in windows
    ]
    results = teacher.score([one.reshape(-1, *task.segment_shape) for one in segments])
    given = np.concatenate([one for one in results if not isinstance(one, TeacherFailed)])
    pieces = [piece for window in windows for piece in window]
    counts = [len(piece.rows) for piece in pieces]
    assert len(given) == sum(counts)
    of = np.repeat(np.arange(len(pieces)), counts)
    events = pa.concat_batches([piece.rows.drop_columns(["segment"]) for piece in pieces])
    answers = float_rows(events.column("outputs"), task.outputs)
    floats = pa.list_(pa.float32())
    outputs = pa.FixedSizeListArray.from_arrays(pa.array(given.ravel()), task.outputs)
    return pa.table({
        "device": pa.array([piece.device for piece in pieces]).take(pa.array(of)),
        "epoch": pa.array([piece.epoch for piece in pieces]).take(pa.array(of)),
        "window": pa.array(np.array([piece.window for piece in pieces])[of], TIMESTAMP),
        **{name: events.column(name) for name in ("seq", "time", "model")},
        "outputs": events.column("outputs").cast(floats),
        "label": events.column("label").cast(floats),
        "teacher": outputs.cast(floats),
        "agrees": pa.array(task.agrees(answers, given)),
    })  # fmt: skip
