"""Scored events as rows for the store and `scores`. Pure."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from streams.contract.events.batches import TIMESTAMP, fields_of
from streams.contract.events.compact import Columns
from streams.contract.events.records import score_schema
from streams.contract.task import Task
from streams.worker.windows.tumbling import Window, WindowSlice

DAY_US = 86_400_000_000
LONG_US = 3_600_000_000  # of windows
DAY = pa.field("day", pa.date32(), nullable=False)
DRIFT = pa.field("drift", pa.string())


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


def stored_columns(kinds: Mapping[str, pa.DataType], optional: Collection[str] = ()) -> pa.Schema:
    """Return the columns of a table of the store: these, and where and when it got a row."""
    return fields_of({**kinds, "partition": pa.int32(), "commit": pa.int64()}, optional).append(DAY)


def store_schema() -> pa.Schema:
    """Return the columns of the store's table `scores`: those of the topic, the window's day, and
    a WindowDrift on one row of each (device, window, revision)."""
    return score_schema().append(DAY).append(DRIFT)


def segments_of(task: Task, windows: Sequence[Window]) -> list[np.ndarray]:
    """Return each window's segments (rows, channels, samples) float32, in the order of its pieces;
    those of a window of one piece are the message's own."""
    found = []
    for window in windows:
        parts = [_segments(piece) for piece in window.pieces]
        own = parts[0] if len(parts) == 1 else np.concatenate(parts)
        found.append(np.asarray(own, np.float32).reshape(-1, *task.segment_shape))
    return found


def _segments(piece: WindowSlice) -> np.ndarray:
    segments = piece.events.columns.segments
    if segments is None:
        raise ValueError(f"events of {piece.events.device} have no segments")
    return segments


def outputs_of(task: Task, windows: Sequence[Window]) -> np.ndarray:
    """Return the devices' answers (rows, outputs) float32, in the order of the windows' pieces."""
    parts = [piece.events.columns.outputs for window in windows for piece in window.pieces]
    return np.concatenate([np.zeros((0, task.outputs), np.float32), *parts])


def score_rows(task: Task, teacher_model: str, scored: Sequence[ScoredWindow]) -> pa.Table:
    """Return the rows of all windows, in the order of the windows and their pieces."""
    pieces = [piece for one in scored for piece in one.window.pieces]
    events = [piece.events.columns for piece in pieces]
    counts = np.array([piece.rows for piece in pieces])
    windows = [one for one in scored for _ in one.window.pieces]
    owner = np.repeat(np.arange(len(pieces)), counts)
    starts = np.array([piece.window for piece in pieces])[owner]
    places = np.cumsum(counts) - counts
    firsts = np.array([own.first for own in events]) - places
    drift: list[str | None] = [None] * len(owner)
    place = 0
    for one in scored:  # on the first row of each window
        drift[place] = one.drift
        place += one.window.rows
    outputs = np.concatenate([own.outputs for own in events])
    labels = np.concatenate([own.labels for own in events])
    known = np.concatenate([own.known for own in events])  # which events have a label
    columns = {
        "device": _texts([p.events.device for p in pieces], owner),
        "epoch": _texts([p.events.epoch for p in pieces], owner),
        "seq": pa.array(firsts[owner] + np.arange(len(owner))),
        "event_id": _ids(pieces),
        "time": pa.array(np.concatenate([own.times for own in events])).view(TIMESTAMP),
        "model": _models(events, owner),
        "window": pa.array(starts, TIMESTAMP),
        "day": pa.array(days_of(task, starts)),
        "drift": pa.array(drift, pa.string()),
        "revision": pa.array(np.array([w.revision for w in windows], np.int32)[owner]),
        "partition": pa.array(np.array([w.window.partition for w in windows], np.int32)[owner]),
        "commit": pa.array(np.array([w.commit for w in windows], np.int64)[owner]),
        "outputs": _lists(outputs, np.full(len(outputs), True)),
        "label": _lists(labels, known),
        "correct": pa.array(task.correct(outputs, labels), mask=~known),
        **_teacher_columns(task, teacher_model, scored, outputs),
    }
    schema = store_schema()
    return pa.Table.from_arrays([columns[name] for name in schema.names], schema=schema)


def _ids(pieces: Sequence[WindowSlice]) -> pa.Array:
    """Return the producer's name of each event; devices give none."""
    if all(piece.events.ids is None for piece in pieces):
        return pa.nulls(sum(piece.rows for piece in pieces), pa.string())
    parts = [
        pa.nulls(piece.rows, pa.string())
        if piece.events.ids is None
        else pa.array(piece.events.ids, pa.string())
        for piece in pieces
    ]
    return pa.concat_arrays(parts)


def _models(events: Sequence[Columns], owner: np.ndarray) -> pa.Array:
    """Return the model of each event; most messages have one for all rows."""
    if all(isinstance(own.models, str) for own in events):
        return _texts([str(own.models) for own in events], owner)
    every: list[str] = []
    for own in events:
        models = own.models
        every += [models] * len(own.times) if isinstance(models, str) else models
    return pa.array(every, pa.string())


def _lists(values: np.ndarray, held: np.ndarray) -> pa.Array:
    """Return (rows, size) float32 as lists; null where not `held`."""
    offsets = np.zeros(len(values) + 1, np.int32)
    np.cumsum(held * values.shape[1], out=offsets[1:])
    flat = pa.array(np.ascontiguousarray(values[held]).reshape(-1))
    mask = None if held.all() else pa.array(~held)
    return pa.ListArray.from_arrays(pa.array(offsets), flat, mask=mask)


def days_of(task: Task, starts: np.ndarray) -> np.ndarray:
    """Return (n,) days by which rows are partitioned, of windows' starts, microseconds. Rows of
    long windows are few a day, and a file a day makes a year of them slow: they have their month's
    first day."""
    days = starts.astype("datetime64[us]").astype("datetime64[D]")
    if task.window_us < LONG_US:
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
    return {
        "teacher": _lists(teacher, np.full(n, True)),
        "teacher_model": pa.array([teacher_model] * n, pa.string()),
        "agrees": pa.array(task.agrees(outputs, teacher)),
    }


def _texts(texts: list[str], repeat: np.ndarray) -> pa.Array:
    return pa.array(texts, pa.string()).take(pa.array(repeat))
