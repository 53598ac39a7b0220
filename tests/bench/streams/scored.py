"""What Quix Streams and Bytewax are given of ours: a message as rows, and a window's teacher."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch

from streams.contract.records import EventBatch, decode_event_message, float_rows, times_us
from streams.contract.task import Task
from streams.worker.scoring.teacher import Teacher, TeacherFailed, load_teacher
from tests.bench.streams.plan import Plan

Row = dict[str, Any]


def plan_teacher(plan: Plan) -> Teacher:
    """The teacher as the worker has it: one thread a forward pass."""
    torch.set_num_threads(1)
    folder = plan.run_folder
    return load_teacher(plan.load_task(), folder / "teacher.twa", [folder / "key.pub"])


def rows_of(
    task: Task, key: bytes | None, value: bytes | None, headers: Iterable[tuple[str, bytes]]
) -> list[Row]:
    """The events of one message, one dict each; `time` is microseconds, `segment` an array."""
    record = decode_event_message(task, key, value, headers)
    assert isinstance(record, EventBatch)
    rows: list[Row] = record.rows.drop_columns(["time", "segment"]).to_pylist()
    times = times_us(record.rows.column("time")).tolist()
    segments = float_rows(record.rows.column("segment"), int(np.prod(task.segment_shape)))
    for row, time_us, segment in zip(rows, times, segments, strict=True):
        row.update(device=record.device, epoch=record.epoch, time=time_us, segment=segment)
    return rows


def score(task: Task, teacher: Teacher, start_us: int, rows: Sequence[Row]) -> list[Row]:
    """The rows of one window with the teacher's outputs, in one call; segments are dropped."""
    segments = np.asarray([row["segment"] for row in rows], np.float32)
    outputs = teacher.score([segments.reshape(-1, *task.segment_shape)])[0]
    assert not isinstance(outputs, TeacherFailed)
    given = np.asarray([row["outputs"] for row in rows], np.float32)
    agrees = task.agrees(given, outputs).tolist()
    return [
        {
            **{name: row[name] for name in ("device", "epoch", "seq", "time", "model", "outputs")},
            "label": row["label"],
            "window": start_us,
            "teacher": teacher_outputs,
            "agrees": agreeing,
        }
        for row, teacher_outputs, agreeing in zip(rows, outputs.tolist(), agrees, strict=True)
    ]
