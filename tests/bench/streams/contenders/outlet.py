"""What other frameworks do with closed windows: score many a call, store, and publish.

The short job writes a Parquet file a batch. The whole job is as the worker has it: a commit to a
Delta table, then the scores and a report of each window on the task's topics, waiting for the
broker. Drift, revisions and the fence of the worker's commit are left out.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import confluent_kafka
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from deltalake import write_deltalake

from streams.contract.events.batches import TIMESTAMP, encode_batch, float_rows
from streams.contract.task import Task
from streams.contract.topics import SCORES, WINDOWS, topic_name
from streams.learning.teacher import Teacher, TeacherFailed
from tests.bench.meter import Meter
from tests.bench.streams.contenders.pieces import Piece, plan_teacher
from tests.bench.streams.feed.plan import Plan

Window = Sequence[Piece]  # all of one device and window


class Outlet:
    """Takes closed windows; the clock stops at the last of them."""

    def __init__(self, plan: Plan, folder: Path, meter: Meter, *, whole: bool) -> None:
        self._task, self._teacher, self._meter = plan.load_task(), plan_teacher(plan), meter
        self._folder, self._batches = folder / "rows", 0
        self._publisher = Publisher(self._task, plan.bootstrap) if whole else None
        self.rows = 0
        self._folder.mkdir(parents=True)

    def put(self, windows: Sequence[Window]) -> None:
        """Score the windows together, store their rows, and publish them in the whole job."""
        found = scored(self._task, self._teacher, windows)
        if self._publisher is None:
            pq.write_table(found, self._folder / f"{self._batches:06d}.parquet")
        else:
            write_deltalake(self._folder, found, mode="append")
            self._publisher.publish(windows, found)
        self._batches += 1
        self.rows += found.num_rows
        self._meter.lap()

    def tell(self) -> None:
        """Print the measure up to the last windows."""
        self._meter.tell(self.rows)


class Publisher:
    """Publishes the rows and a report of each window."""

    def __init__(self, task: Task, bootstrap: str) -> None:
        self._scores, self._windows = topic_name(task.name, SCORES), topic_name(task.name, WINDOWS)
        self._producer = confluent_kafka.Producer({"bootstrap.servers": bootstrap})

    def publish(self, windows: Sequence[Window], found: pa.Table) -> None:
        """Return when the broker has everything."""
        (rows,) = found.combine_chunks().to_batches()
        agrees = rows.column("agrees").to_numpy(zero_copy_only=False)
        begin = 0
        for window in windows:
            end = begin + sum(len(piece.rows) for piece in window)
            key = window[0].device
            report = {"device": key, "window": window[0].window, "rows": end - begin}
            report["agree"] = int(agrees[begin:end].sum())
            self._producer.produce(self._scores, encode_batch(rows.slice(begin, end - begin)), key)
            self._producer.produce(self._windows, json.dumps(report).encode(), key)
            self._producer.poll(0)
            begin = end
        self._producer.flush()


def scored(task: Task, teacher: Teacher, windows: Sequence[Window]) -> pa.Table:
    """Return the rows of the windows in their order, with the teacher's outputs."""
    width = int(np.prod(task.segment_shape))
    segments = [
        np.concatenate([float_rows(piece.rows.column("segment"), width) for piece in window])
        for window in windows
    ]
    results = teacher.score([one.reshape(-1, *task.segment_shape) for one in segments])
    outputs = [one for one in results if not isinstance(one, TeacherFailed)]
    assert len(outputs) == len(windows)
    given = np.concatenate(outputs)
    pieces = [piece for window in windows for piece in window]
    counts = [len(piece.rows) for piece in pieces]
    events = pa.concat_batches([piece.rows.drop_columns(["segment"]) for piece in pieces])
    answers = float_rows(events.column("outputs"), task.outputs)
    columns = {
        "device": _repeated([piece.device for piece in pieces], counts),
        "epoch": _repeated([piece.epoch for piece in pieces], counts),
        "window": pa.array(np.repeat([piece.window for piece in pieces], counts), TIMESTAMP),
        **{name: events.column(name) for name in ("seq", "time", "model")},
        "outputs": events.column("outputs").cast(pa.list_(pa.float32())),
        "label": events.column("label").cast(pa.list_(pa.float32())),
        "teacher": pa.FixedSizeListArray.from_arrays(
            pa.array(given.ravel(), pa.float32()), task.outputs
        ).cast(pa.list_(pa.float32())),
        "agrees": pa.array(task.agrees(answers, given)),
    }
    return pa.table(columns)


def _repeated(texts: Sequence[str], counts: Sequence[int]) -> pa.Array:
    return pa.array(texts, pa.string()).take(pa.array(np.repeat(np.arange(len(counts)), counts)))
