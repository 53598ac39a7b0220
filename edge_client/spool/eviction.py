"""Which events outlive others when the spool is at its cap.

Kept are events with a label, and those whose confidence, the largest softmax, is below a
threshold: they are what the fleet learns most from. Where the task has targets, which have no
softmax, only the labelled are. The events that the teacher disagrees with are worth as much, but
that is known only after an event was delivered; low confidence is what of it can be known before.

A run of other events between two that are kept stays when a frame of its own for what follows would
cost more bytes than the run.
"""

from collections.abc import Iterator
from itertools import groupby, pairwise

import numpy as np
import pyarrow as pa

from edge_client.spool.compaction import EvictionPolicy, FramePart
from edge_client.spool.frames import HEADER, Frame
from streams.contract.errors import MalformedRecord
from streams.contract.records import decode_batch, encode_batch, event_schema, float_rows
from streams.contract.task import Task

LOW_CONFIDENCE = 0.8
DECLARATION_BYTES = HEADER + 40  # a DROPS frame of one entry, about


def by_priority(task: Task, below: float = LOW_CONFIDENCE) -> EvictionPolicy:
    """What thins the frames that the recorder of this task writes."""
    schema = event_schema(task)
    empty = encode_batch(pa.RecordBatch.from_pylist([], schema=schema))
    overhead = len(empty) + HEADER + DECLARATION_BYTES

    def thin(frame: Frame) -> list[FramePart]:
        try:
            rows = decode_batch(frame.payload, schema)
        except MalformedRecord:  # of another version of the task: not ours to judge
            return [FramePart(frame.count, frame.payload)]
        kept = high_priority(task, rows, below)
        row_bytes = max(1, (len(frame.payload) - len(empty)) // frame.count)
        return list(_pieces(rows, _bridged(kept, overhead // row_bytes), frame.payload))

    return thin


def high_priority(task: Task, rows: pa.RecordBatch, below: float) -> np.ndarray:
    """(rows,) bool: which events are of high priority."""
    labelled = np.asarray(rows.column("label").is_valid().to_numpy(zero_copy_only=False))
    if task.targets:
        return labelled
    outputs = float_rows(rows.column("outputs"), task.outputs).astype(np.float64)
    largest = 1 / np.exp(outputs - outputs.max(axis=1, keepdims=True)).sum(axis=1)
    return np.asarray(labelled | (largest < below))


def _bridged(kept: np.ndarray, gap: int) -> np.ndarray:
    """`kept` with the runs of at most `gap` others filled that lie between two that are kept."""
    places = np.flatnonzero(kept)
    filled = kept.copy()
    for before, after in pairwise(places):
        if after - before - 1 <= gap:
            filled[before:after] = True
    return filled


def _pieces(rows: pa.RecordBatch, kept: np.ndarray, whole: bytes) -> Iterator[FramePart]:
    at = 0
    for keep, run in groupby(kept.tolist()):
        count = len(list(run))
        if count == len(kept) and keep:
            yield FramePart(count, whole)
        elif keep:
            yield FramePart(count, encode_batch(rows.slice(at, count)))
        else:
            yield FramePart(count, None)
        at += count
