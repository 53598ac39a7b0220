"""Scored events as rows for the store and `scores`. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from streams.contract.events.batches import TIMESTAMP, filled_rows, float_rows
from streams.contract.events.records import score_schema
from streams.contract.task import Task
from streams.worker.windows.tumbling import Window

DAY_US = 86_400_000_000
LONG_S = 3600  # of windows
DAY = pa.field("day", pa.date32(), nullable=False)
DRIFT = pa.field("drift", pa.string())
VERSION = pa.field("task_version", pa.int32())


@dataclass(frozen=True)
class ScoredWindow:
    """A closed window with the teacher's outputs, its revision and commit number.

    teacher is (rows, outputs); None if the task uploads no segments. drift is the JSON of a
    drift_watch.WindowDrift; None without a reference.
    """

    window: Window
    teacher: np.ndarray | None
    revision: int
    commit: int
    drift: str | None = None


def store_schema() -> pa.Schema:
    """Return the columns of the store's table `scores`: those of the topic, the window's day,
    a WindowDrift on one row of each (device, window, revision), and the version of the task that
    the event is of, null in rows of 0.1.0."""
    return score_schema().append(DAY).append(DRIFT).append(VERSION)


def segments_of(task: Task, windows: Sequence[Window]) -> np.ndarray:
    """Return the windows' segments (rows, channels, samples) float32, in the order of pieces."""
    channels, samples = task.segment_shape
    pieces = [piece for window in windows for piece in window.pieces]
    width = channels * samples
    parts = [float_rows(piece.events.rows.column("segment"), width) for piece in pieces]
    return np.concatenate([np.zeros((0, width), np.float32), *parts]).reshape(-1, channels, samples)


def outputs_of(task: Task, windows: Sequence[Window]) -> np.ndarray:
    """Return the devices' answers (rows, outputs) float32, in the same order."""
    columns = [p.events.rows.column("outputs") for window in windows for p in window.pieces]
    parts = [float_rows(column, task.outputs) for column in columns]
    return np.concatenate([np.zeros((0, task.outputs), np.float32), *parts])


def score_rows(task: Task, teacher_model: str, scored: Sequence[ScoredWindow]) -> pa.Table:
    """Return the rows of all windows, which are of one version of the task, in the order of the
    windows and their pieces."""
    pieces = [piece for one in scored for piece in one.window.pieces]
    counts = [piece.rows for piece in pieces]
    windows = [one for one in scored for _ in one.window.pieces]
    events = pa.concat_batches([p.events.rows.drop_columns(["segment"]) for p in pieces])
    repeat = np.repeat(np.arange(len(pieces)), counts)
    starts = np.array([piece.window for piece in pieces])[repeat]
    drift: list[str | None] = []
    for one in scored:  # on the first row of each window
        drift += [one.drift, *[None] * (one.window.rows - 1)]
    outputs = float_rows(events.column("outputs"), task.outputs)
    correct = task.correct(outputs, filled_rows(events.column("label"), task.label_size))
    known = events.column("label").is_valid().to_numpy(zero_copy_only=False)
    columns = {
        "device": _texts([p.events.device for p in pieces], repeat),
        "epoch": _texts([p.events.epoch for p in pieces], repeat),
        "window": pa.array(starts, TIMESTAMP),
        "day": pa.array(_days(task, starts)),
        "drift": pa.array(drift, pa.string()),
        VERSION.name: pa.array(np.full(len(outputs), task.version, np.int32)),
        "revision": pa.array(np.array([w.revision for w in windows], np.int32)[repeat]),
        "partition": pa.array(np.array([w.window.partition for w in windows], np.int32)[repeat]),
        "commit": pa.array(np.array([w.commit for w in windows], np.int64)[repeat]),
        "outputs": events.column("outputs").cast(pa.list_(pa.float32())),
        "label": events.column("label").cast(pa.list_(pa.float32())),
        "correct": pa.array(correct, mask=~known),
        **_teacher_columns(task, teacher_model, scored, outputs),
    }
    schema = store_schema()
    arrays = [columns[name] if name in columns else events.column(name) for name in schema.names]
    return pa.Table.from_arrays(arrays, schema=schema)


def _days(task: Task, starts: np.ndarray) -> np.ndarray:
    """Return (n,) days by which rows are partitioned, of windows' starts, microseconds. Rows of
    long windows are few a day, and a file a day makes a year of them slow: they have their month's
    first day."""
    days = starts.astype("datetime64[us]").astype("datetime64[D]")
    if task.window_s < LONG_S:
        return np.asarray(days)
    return np.asarray(days.astype("datetime64[M]").astype("datetime64[D]"))


def _teacher_columns(
    task: Task, teacher_model: str, scored: Sequence[ScoredWindow], outputs: np.ndarray
) -> dict[str, pa.Array]:
    n = len(outputs)
    given = [one.teacher for one in scored if one.teacher is not None]
    if not given:  # nothing to compare
        empty = pa.ListArray.from_arrays(np.zeros(n + 1, np.int32), pa.array([], pa.float32()))
        names = pa.array([""] * n, pa.string())
        return {"teacher": empty, "teacher_model": names, "agrees": pa.nulls(n, pa.bool_())}
    teacher = np.concatenate(given)
    offsets = np.arange(0, teacher.size + 1, task.outputs, dtype=np.int32)
    return {
        "teacher": pa.ListArray.from_arrays(offsets, pa.array(teacher.reshape(-1))),
        "teacher_model": pa.array([teacher_model] * n, pa.string()),
        "agrees": pa.array(task.agrees(outputs, teacher)),
    }


def _texts(texts: list[str], repeat: np.ndarray) -> pa.Array:
    return pa.array(texts, pa.string()).take(pa.array(repeat))
