"""Messages of `events` as rows: one for each event, and one for each message that is none.

Drops and labels are no rows. An event that came before, in this job's range, is left out: devices
send again what no acknowledgement came for.
"""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from streams.batch.records.documents import PlannedFile, Selection, Shard
from streams.batch.records.rows import RowProblem, Rows, as_segments, batch_rows
from streams.contract.errors import MalformedRecord, TidewheelError
from streams.contract.events.batches import TIMESTAMP, float_rows, times_us
from streams.contract.events.records import EventBatch, decode_event_message
from streams.contract.task import Task

if TYPE_CHECKING:
    from streams.kafka.reader import Received

FIELDS = [("device", pa.string()), ("epoch", pa.string()), ("seq", pa.int64()), ("time", TIMESTAMP)]
OURS = tuple(name for name, _ in FIELDS)

Repeats = Sequence[tuple[int, int, int]]  # offset, and the first and the last seq that came before


def event_of(task: Task, message: "Received") -> EventBatch | RowProblem | None:
    """Return the events of a message, None if it has none, or what is wrong with it."""
    try:
        found = decode_event_message(task, message.key, message.value, message.headers)
    except MalformedRecord as exc:
        return RowProblem("undecodable", f"{exc}"[:200])
    return found if isinstance(found, EventBatch) else None


def chosen_times(times: np.ndarray, selection: Selection) -> np.ndarray:
    """Return which event times (n,) are selected."""
    low = -(2**62) if selection.from_us is None else selection.from_us
    high = 2**62 if selection.to_us is None else selection.to_us
    return (times >= low) & (times < high)


def add_message(digest: "hashlib._Hash", message: "Received") -> None:
    """Add a message to the hash of its range."""
    parts = [message.key, message.value, *(v for n, w in message.headers for v in (n.encode(), w))]
    digest.update(message.offset.to_bytes(8, "little"))
    for part in parts:
        digest.update(len(part or b"").to_bytes(8, "little") + (part or b""))


@dataclass
class _Part:
    """Rows that are being gathered."""

    numbers: list[np.ndarray] = field(default_factory=list)
    segments: list[np.ndarray] = field(default_factory=list)
    labels: list[np.ndarray] = field(default_factory=list)
    device: list[str | None] = field(default_factory=list)
    epoch: list[str | None] = field(default_factory=list)
    seq: list[int | None] = field(default_factory=list)
    time: list[int | None] = field(default_factory=list)
    ids: list[str | None] = field(default_factory=list)
    problems: dict[int, RowProblem] = field(default_factory=dict)
    excluded: int = 0

    def __len__(self) -> int:
        return len(self.seq)

    def add_events(
        self, task: Task, events: EventBatch, numbers: np.ndarray, at: np.ndarray
    ) -> None:
        rows = events.rows.take(pa.array(at))
        width = int(np.prod(task.segment_shape))
        n, seqs = len(at), rows.column("seq").to_pylist()
        self.numbers.append(numbers[at])
        self.segments.append(as_segments(float_rows(rows.column("segment"), width), task))
        self.labels.append(_labels(rows.column("label"), task.label_size))
        self.device += [events.device] * n
        self.epoch += [events.epoch] * n
        self.seq += seqs
        self.time += times_us(rows.column("time")).tolist()
        self.ids += [f"{events.device}/{events.epoch}/{seq}" for seq in seqs]

    def add_problem(self, task: Task, problem: RowProblem, number: int, name: str) -> None:
        self.problems[len(self)] = problem
        self.numbers.append(np.array([number]))
        self.segments.append(np.zeros((1, *task.segment_shape), np.float32))
        self.labels.append(np.full((1, task.label_size), np.nan, np.float32))
        self.device.append(None)
        self.epoch.append(None)
        self.seq.append(None)
        self.time.append(None)
        self.ids.append(name)

    def rows(self, task: Task) -> Rows:
        none = np.zeros((0, *task.segment_shape), np.float32)
        return Rows(
            np.concatenate([np.zeros(0, np.int64), *self.numbers]),
            np.concatenate([none, *self.segments]),
            labels=np.concatenate([np.zeros((0, task.label_size), np.float32), *self.labels]),
            ids=self.ids,
            kept={
                "device": pa.array(self.device, pa.string()),
                "epoch": pa.array(self.epoch, pa.string()),
                "seq": pa.array(self.seq, pa.int64()),
                "time": pa.array(self.time, pa.int64()).cast(TIMESTAMP),
            },
            problems=self.problems,
            excluded=self.excluded,
        )


def event_rows(
    task: Task,
    found: "Iterable[Received]",
    file: PlannedFile,
    shard: Shard,
    selection: Selection,
) -> Iterator[Rows]:
    """Yield the rows of a shard in batches; raise TidewheelError if its messages are not those of
    the plan."""
    digest, part, number = hashlib.sha256(), _Part(), shard.first_row
    repeats: dict[int, list[tuple[int, int]]] = {}
    for offset, first, last in shard.repeats:
        repeats.setdefault(offset, []).append((first, last))
    for message in found:
        add_message(digest, message)
        events = event_of(task, message)
        if isinstance(events, RowProblem):
            part.add_problem(task, events, number, f"{file.name}:{message.offset}")
            number += 1
        elif events is not None:
            numbers = np.arange(number, number + events.rows.num_rows)
            chosen = chosen_times(times_us(events.rows.column("time")), selection)
            for first, last in repeats.get(message.offset, []):
                chosen[first - events.first : last - events.first + 1] = False
            part.add_events(task, events, numbers, np.flatnonzero(chosen))
            part.excluded += int((~chosen).sum())
            number += len(chosen)
        if len(part) >= batch_rows(task):
            yield part.rows(task)
            part = _Part()
    yield part.rows(task)
    if digest.hexdigest() != shard.sha256:
        raise TidewheelError(
            f"{file.name} has other messages from offset {shard.start} to {shard.stop - 1} than "
            "when the job began: start another job"
        )


def _labels(column: pa.Array, size: int) -> np.ndarray:
    """Return labels (n, size), NaN where there is none."""
    found = np.full((len(column), size), np.nan, np.float32)
    known = np.asarray(column.is_valid()).astype(bool)
    if known.any():
        found[known] = float_rows(column.filter(pa.array(known)), size)
    return found
