"""The messages of a worker: one of `events` as it arrived, those on `scores` and `windows` for a
commit's rows, and dead letters: what could not be understood, believed or scored, whole, with the
reason. Pure.

The same rows give the same messages, whether they are new or read from the store.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from streams.contract.errors import MalformedRecord
from streams.contract.events.batches import EventColumns, filled_rows
from streams.contract.events.compact import encode_taught
from streams.contract.events.json_form import decode_json, is_json
from streams.contract.events.json_items import MAX_ROWS, decode_known_labels
from streams.contract.events.labels import LabelBatch, known_label_batches
from streams.contract.events.messages import TAUGHT, Drop, Headers
from streams.contract.events.records import (
    AGAIN,
    SCHEMA_OF,
    EventBatch,
    ScoresForm,
    decode_columns,
    encode_events,
    encode_scores,
    score_schema,
)
from streams.contract.task import Task
from streams.contract.topics import DEAD_LETTERS, EVENTS, LABELS, SCORES, WINDOWS, topic_name
from streams.worker.commit.window_reports import (
    SlidingSums,
    counts_by_model,
    drift_reports,
    keys_of,
    window_reports,
)
from streams.worker.store.delta_store import DeltaStore
from streams.worker.windows.rows import DRIFT
from streams.worker.windows.tumbling import SentAgain, WindowSlice

ROWS_PER_MESSAGE = 4000  # keeps a message of `scores` under the brokers' limit
ORDER = ("device", "window", "revision", "time", "epoch", "seq")


@dataclass(frozen=True)
class Outgoing:
    """One message to send."""

    topic: str
    partition: int
    key: bytes | None
    value: bytes
    headers: Headers


def publications(
    task: Task,
    rows: pa.Table,
    form: ScoresForm = "arrow",
    store: str = "",
    sliding: SlidingSums | None = None,
) -> list[Outgoing]:
    """Return a commit's messages: scores and a report per (device, window, revision). store: its
    name; sliding: the devices' last windows, to which those of the commit are added."""
    scores, edges, order = _by_window(rows)
    longest = pc.max(pc.binary_length(scores.column("event_id"))).as_py() or 0
    messages, step = list[Outgoing](), rows_per_message(task, longest, form)
    scores_topic, windows_topic = topic_name(task.id, SCORES), topic_name(task.id, WINDOWS)
    keys = keys_of(scores, edges[:-1])
    drift = drift_reports(rows.column(DRIFT.name), order, edges)
    taught, head = Taught(scores, task.outputs), scores.schema.serialize()
    reports = window_reports(task, scores, edges, keys, store, drift, sliding=sliding)
    for i, (begin, end) in enumerate(pairwise(edges.tolist())):
        device, partition = keys.devices[i].encode(), keys.partitions[i]
        headers: Headers = [
            ("device", device),
            ("window", b"%d" % keys.starts[i]),
            ("revision", b"%d" % keys.revisions[i]),
        ]
        for part, first in enumerate(range(begin, end, step)):
            last = min(first + step, end)
            value = encode_scores(scores.slice(first, last - first), form, head)
            extra = [("schema", SCHEMA_OF[form].encode()), *headers, ("part", b"%d" % part)]
            extra += taught.header(first, last)
            messages.append(Outgoing(scores_topic, partition, device, value, extra))
        messages.append(Outgoing(windows_topic, partition, device, reports[i], headers))
    return messages


class Taught:
    """The teacher's outputs of rows of `scores`, as a device reads them."""

    def __init__(self, scores: pa.RecordBatch, outputs: int) -> None:
        teacher, self._epochs = scores.column("teacher"), scores.column("epoch")
        self._seqs = scores.column("seq").to_numpy()
        self._there = teacher.value_lengths().to_numpy() == outputs
        self._outputs = filled_rows(teacher, outputs)
        epochs = self._epochs.dictionary_encode().indices.to_numpy()
        broken = (np.diff(self._seqs) != 1) | (np.diff(epochs) != 0) | np.diff(self._there)
        self._breaks = np.flatnonzero(broken) + 1

    def header(self, begin: int, end: int) -> Headers:
        """Return the header of the rows from `begin` to before `end`; none where none has any."""
        inside = slice(*np.searchsorted(self._breaks, (begin + 1, end)))
        edges = [begin, *self._breaks[inside].tolist(), end]
        runs = [self._run(*edge) for edge in pairwise(edges) if self._there[edge[0]]]
        return [(TAUGHT, b"".join(runs))] if runs else []

    def _run(self, begin: int, end: int) -> bytes:
        epoch, first = self._epochs[begin].as_py(), int(self._seqs[begin])
        return encode_taught(epoch, first, self._outputs[begin:end])


def add_stored(sliding: SlidingSums, store: DeltaStore, partition: int) -> None:
    """Add the devices' last windows that are stored."""
    if (span_us := sliding.kept_us) and (rows := store.latest_rows(partition, span_us)).num_rows:
        scores, edges, _ = _by_window(rows)
        keys = keys_of(scores, edges[:-1])
        counts = counts_by_model(sliding.task, scores, edges)
        sliding.add(keys.devices, keys.starts, keys.revisions, counts)


def _by_window(rows: pa.Table) -> tuple[pa.RecordBatch, np.ndarray, np.ndarray]:
    """Return the rows with the columns of `scores` in ORDER; edges, of which two successive ones
    delimit a window's revision; and from which row each one is."""
    table = rows.select(score_schema().names)
    order = pc.sort_indices(table, [(name, "ascending") for name in ORDER])
    (batch,) = table.take(order).combine_chunks().to_batches()
    changed = np.zeros(batch.num_rows - 1, bool)
    for name in ORDER[:3]:
        codes = batch.column(name).dictionary_encode().indices.to_numpy()
        changed |= codes[1:] != codes[:-1]
    edges = np.array([0, *(np.flatnonzero(changed) + 1).tolist(), batch.num_rows])
    return batch, edges, order.to_numpy()


def rows_per_message(task: Task, id_bytes: int = 0, form: ScoresForm = "arrow") -> int:
    """Return how many rows of `scores` fit into a message even if all names have 63 bytes.
    id_bytes: of the longest name of an event."""
    size = 300 + id_bytes + 12 * task.outputs + 4 * task.label_size
    if form == "json":  # twice the bytes of a name that is escaped, numbers of up to 15 digits
        size = 650 + 2 * id_bytes + 12 * task.outputs + 16 * (2 * task.outputs + task.label_size)
    return max(1, min(ROWS_PER_MESSAGE, 800_000 // size))


# --- messages of `events`, and dead letters -------------------------------------------------------

PART_BYTES = 800_000  # leaves room for the headers under the brokers' limit
HEADER_BYTES = 1_000
HEADERS = 32


@dataclass(frozen=True)
class Incoming:
    """One message of `events` or `labels` as it came."""

    partition: int
    offset: int
    key: bytes | None
    value: bytes | None
    headers: Iterable[tuple[str, bytes]]
    topic: str = EVENTS


Records = Sequence[EventColumns | Drop | LabelBatch]


def decode(task: Task, incoming: Incoming, placed: str, now_us: int = 0) -> Records:
    """Return what a message says; whatever is wrong with it is a MalformedRecord. placed: the epoch
    of what is counted by its place in Kafka; now_us: when labels became known that do not say."""
    key, value = incoming.key, incoming.value
    try:
        if incoming.topic == LABELS:
            labels = decode_known_labels(task, key, value)
            first = incoming.offset * MAX_ROWS
            return known_label_batches(task, labels, placed, first, now_us)
        headers = {name: text if text is not None else b"" for name, text in incoming.headers}
        if is_json(headers):
            return decode_json(task, key, value, placed, incoming.offset)
        return [decode_columns(task, key, value, headers)]
    except MalformedRecord:
        raise
    except Exception as exc:  # bytes from anyone: no library's surprise may end the worker
        detail = f"{type(exc).__name__}: {exc}"[:200]
        raise MalformedRecord("undecodable", detail) from exc


def sent_again(incoming: Incoming) -> SentAgain:
    """Return of which dead letter a message is the copy. JSON renews no refused events: where it is
    sent again its events have other numbers."""
    headers = dict(incoming.headers)
    letter = headers.get(AGAIN) or b""
    return SentAgain(letter, bool(letter) and not is_json(headers))


def dead_letters_of(task: Task, incoming: Incoming, error: MalformedRecord) -> list[Outgoing]:
    """The dead letters of a malformed message: one, or several parts of one too long."""
    where = incoming.topic, incoming.partition, incoming.offset
    headers = _headers(task, error.reason, str(error), *where)
    first = sorted(incoming.headers, key=lambda header: header[0] != AGAIN)
    original = [(f"original-{name}"[:200], text) for name, text in first]
    kept = [(name, (text or b"")[:HEADER_BYTES]) for name, text in original[:HEADERS]]
    key = None if incoming.key is None else incoming.key[:HEADER_BYTES]
    return _letters(task, key, incoming.value or b"", headers + kept)


def refused_letters(
    task: Task, partition: int, piece: WindowSlice, reason: str, detail: str
) -> list[Outgoing]:
    """The dead letters of events that are refused, as an events/2 message, or events/1 where they
    have names."""
    found = piece.events
    events = EventBatch(found.device, found.epoch, found.first, found.rows)
    key, value, original = encode_events(events)
    headers = _headers(task, reason, detail, EVENTS, partition, piece.message.offset)
    if letter := piece.message.again.letter:
        original = [*original, (AGAIN, letter[:HEADER_BYTES])]
    kept = [(f"original-{name}", text) for name, text in original]
    return _letters(task, key, value, headers + kept)


def _headers(
    task: Task, reason: str, detail: str, topic: str, partition: int, offset: int
) -> Headers:
    return [
        ("reason", reason.encode()),
        ("detail", detail.encode(errors="replace")[:HEADER_BYTES]),
        ("source-topic", topic_name(task.id, topic).encode()),
        ("source-partition", str(partition).encode()),
        ("source-offset", str(offset).encode()),
    ]


def _letters(task: Task, key: bytes | None, value: bytes, headers: Headers) -> list[Outgoing]:
    topic = topic_name(task.id, DEAD_LETTERS)  # which has one partition
    parts = [value[at : at + PART_BYTES] for at in range(0, max(len(value), 1), PART_BYTES)]
    if len(parts) == 1:
        return [Outgoing(topic, 0, key, value, headers)]
    return [
        Outgoing(topic, 0, key, part, [*headers, ("part", f"{i}/{len(parts)}".encode())])
        for i, part in enumerate(parts)
    ]
