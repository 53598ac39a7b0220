"""Eviction by priority, when the spool reaches its cap.

Events with a label, and those with low confidence (the largest softmax), are kept: the fleet learns
most from them. If the task has targets, which have no softmax, only labelled events are kept.
Events that the teacher disagrees with would be as valuable, but that is known only after delivery.

A short run of other events between two kept ones stays if a separate frame for the next kept events
would cost more bytes.
"""

from collections.abc import Iterator
from itertools import groupby, pairwise

import numpy as np

from edge_client.spool.compaction import EvictionPolicy, FramePart
from edge_client.spool.frames import HEADER, MOST_EVENTS, Frame
from streams.contract.errors import MalformedRecord
from streams.contract.events.compact import Columns, decode_block, encode_block
from streams.contract.events.messages import task_layout
from streams.contract.task import Task

LOW_CONFIDENCE = 0.8
BLOCK_BYTES = 24  # of a block beside its rows, about
DECLARATION_BYTES = HEADER + 40  # about the size of a DROPS frame with one entry


def by_priority(task: Task, below: float = LOW_CONFIDENCE) -> EvictionPolicy:
    """Return the EvictionPolicy for the task's frames: keep events of high priority."""
    layout, overhead = task_layout(task), BLOCK_BYTES + HEADER + DECLARATION_BYTES

    def policy(frame: Frame) -> list[FramePart]:
        try:
            rows = decode_block(layout, frame.payload, frame.first, MOST_EVENTS)
        except MalformedRecord:  # of another version of the task: keep it
            return [FramePart(frame.count, frame.payload)]
        kept = high_priority(task, rows, below)
        row_bytes = max(1, (len(frame.payload) - BLOCK_BYTES) // frame.count)
        return list(_pieces(rows, _bridged(kept, overhead // row_bytes), frame.payload))

    return policy


def high_priority(task: Task, rows: Columns, below: float) -> np.ndarray:
    """Return (rows,) bool: the events of high priority."""
    if task.targets:
        return rows.known
    outputs = rows.outputs.astype(np.float64)
    largest = 1 / np.exp(outputs - outputs.max(axis=1, keepdims=True)).sum(axis=1)
    return np.asarray(rows.known | (largest < below))


def _bridged(kept: np.ndarray, gap: int) -> np.ndarray:
    """Return `kept` with gaps of at most `gap` events between kept ones filled."""
    filled = kept.copy()
    for before, after in pairwise(np.flatnonzero(kept)):
        if after - before - 1 <= gap:
            filled[before:after] = True
    return filled


def _pieces(rows: Columns, kept: np.ndarray, whole: bytes) -> Iterator[FramePart]:
    at = 0
    for keep, run in groupby(kept.tolist()):
        count = len(list(run))
        if count == len(kept) and keep:
            yield FramePart(count, whole)
        elif keep:
            yield FramePart(count, encode_block(rows.part(at, at + count)))
        else:
            yield FramePart(count, None)
        at += count
