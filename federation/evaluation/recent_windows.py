"""The latest stored windows: devices' segments with the teacher's answers and true labels.

If the task uploads segments, they are in `events` and the teacher's answers in `scores`; both have
device, epoch and seq. Both topics are read backwards from their ends, `scores` first, until ROWS
rows have both, or MAX_BYTES of segments are read, or READ_S has passed. Malformed messages are
skipped: the worker has moved them to dead-letters. Devices may have learned from these segments:
they show whether a candidate does harm, not whether it is better. Where the teacher is right less
often than the candidate, of what has a true label, those rows alone count, by their labels.
"""

import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from streams.contract.errors import BrokerUnavailable, MalformedRecord
from streams.contract.events.batches import EventColumns, filled_rows
from streams.contract.events.json_form import decode_json, is_json
from streams.contract.events.json_items import PLACED
from streams.contract.events.records import decode_columns, decode_scores
from streams.contract.task import Task
from streams.contract.topics import EVENTS, SCORES, topic_name
from streams.kafka.reader import Reader, Received

log = logging.getLogger(__name__)

ROWS = 4096
MAX_BYTES = 64_000_000
READ_S = 5.0

Key = tuple[str, str, int]  # device, epoch, seq
Reference = tuple[np.ndarray, np.ndarray]  # the teacher's outputs, and the true label or NaN


@dataclass(frozen=True)
class RecentWindows:
    """Segments (n, channels, samples), the teacher's outputs (n, outputs) and true labels (n,
    label_size), NaN where unknown, float32, the latest first; devices (n,) names."""

    segments: np.ndarray
    teacher: np.ndarray
    labels: np.ndarray
    devices: np.ndarray

    def with_labels(self) -> "RecentWindows":
        """Return the rows that have a true label."""
        known = np.isfinite(self.labels).all(axis=1)
        columns = (self.segments, self.teacher, self.labels, self.devices)
        return RecentWindows(*(column[known] for column in columns))


def read(
    task: Task,
    connect: Callable[[str], Reader],
    clock: Callable[[], float] = time.monotonic,
) -> RecentWindows | None:
    """Return the latest rows; None if there are none, or no broker. `connect` takes a topic's name
    and may raise BrokerUnavailable; `clock` is in seconds."""
    if task.upload != "segment":
        return None
    until = clock() + READ_S
    try:
        teacher = _teacher(task, connect, until, clock)
        return _joined(task, teacher, connect, until, clock) if teacher else None
    except BrokerUnavailable as exc:
        log.warning("%s: the gate decides without recent windows", exc)
        return None


def _latest(
    connect: Callable[[str], Reader], topic: str, until: float, clock: Callable[[], float]
) -> Iterator[Received]:
    """Yield the topic's messages backwards, until the time is over."""
    tail = connect(topic)
    try:
        for messages in tail.read_back(max(0.0, until - clock())):
            yield from sorted(messages, key=lambda m: m.offset, reverse=True)
            if clock() >= until:
                return
    finally:
        tail.close()


def _limit(task: Task) -> int:
    channels, samples = task.segment_shape
    return max(1, min(ROWS, MAX_BYTES // (4 * channels * samples)))


def _teacher(
    task: Task, connect: Callable[[str], Reader], until: float, clock: Callable[[], float]
) -> dict[Key, Reference]:
    """Return the teacher's latest answers; leaves half of the time for the events."""
    found: dict[Key, Reference] = {}
    half = clock() + (until - clock()) / 2
    for message in _latest(connect, topic_name(task.id, SCORES), half, clock):
        for key, reference in _scores(task, message):
            found.setdefault(key, reference)
        if len(found) >= _limit(task):
            break
    return found


def _scores(task: Task, message: Received) -> Iterator[tuple[Key, Reference]]:
    try:
        rows = decode_scores(message.value, message.headers)
    except MalformedRecord:
        return
    names = ("device", "epoch", "seq", "teacher")
    columns = (rows.column(name).to_pylist() for name in names)
    labels = filled_rows(rows.column("label"), task.label_size)
    labels[rows.column("label").is_null().to_numpy(zero_copy_only=False)] = np.nan
    for device, epoch, seq, teacher, label in zip(*columns, labels, strict=True):
        outputs = np.array([np.nan if x is None else x for x in teacher], np.float32)
        if len(outputs) == task.outputs and np.isfinite(outputs).all():
            yield (device, epoch, seq), (outputs, label)


def _joined(
    task: Task,
    teacher: dict[Key, Reference],
    connect: Callable[[str], Reader],
    until: float,
    clock: Callable[[], float],
) -> RecentWindows | None:
    limit = min(_limit(task), len(teacher))
    segments = np.zeros((limit, *task.segment_shape), np.float32)
    outputs = np.zeros((limit, task.outputs), np.float32)
    labels = np.zeros((limit, task.label_size), np.float32)
    devices: list[str] = []
    placed = {
        epoch.rpartition("-")[2]: epoch for _, epoch, _ in teacher if epoch.startswith(PLACED)
    }
    for message in _latest(connect, topic_name(task.id, EVENTS), until, clock):
        for batch in _events(task, message, placed.get(str(message.partition), "")):
            known, rows = _known(task, batch, teacher)
            at = slice(len(devices), min(limit, len(devices) + len(rows)))
            count = at.stop - at.start
            segments[at] = rows[:count]
            for i, reference in enumerate(known[:count], at.start):
                outputs[i], labels[i] = reference
            devices += [batch.device] * count
        if len(devices) == limit:
            break
    n = len(devices)
    return RecentWindows(segments[:n], outputs[:n], labels[:n], np.array(devices)) if n else None


def _events(task: Task, message: Received, placed: str) -> list[EventColumns]:
    """Return the events of a message, which may be none. placed: the epoch of those that are
    counted by their place in the partition."""
    key, value, headers = message.key, message.value, dict(message.headers)
    try:
        if is_json(headers):
            return decode_json(task, key, value, placed, message.offset)
        found = decode_columns(task, key, value, headers)
    except MalformedRecord:
        return []
    return [found] if isinstance(found, EventColumns) else []


def _known(
    task: Task, batch: EventColumns, teacher: dict[Key, Reference]
) -> tuple[list[Reference], np.ndarray]:
    """Return of the rows with a teacher's answer what they are compared with, and (n, channels,
    samples). Repeated rows are taken once."""
    keys = [(batch.device, batch.epoch, seq) for seq in range(batch.first, batch.last + 1)]
    rows = [(i, teacher.pop(key)) for i, key in enumerate(keys) if key in teacher]
    chosen = np.asarray(batch.columns.segments)[[i for i, _ in rows]]
    return [reference for _, reference in rows], chosen.reshape(-1, *task.segment_shape)
