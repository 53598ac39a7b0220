"""Which task version the events of a spool are of, so that an edited task meets none of another.

    task-versions.json   {"epoch": ..., "spans": [{"first": seq, "task": name, "version": number,
                         "schema": digest of the columns}, ...]}; replaced whole

A span goes from its first seq to the next span's. It begins when the spool is opened for a task
with another version or other columns than those of the last span; where the file is missing, as
with 0.1.0, the events before have no known version. The file is written before the first event of
the new span. After a crash in between the span is empty, and the next start finds it.

Frames of different spans are never joined: each is sent as it is, with the version of its span.
"""

import hashlib
import logging
from collections.abc import Iterator, Sequence
from itertools import groupby, pairwise

import pyarrow as pa

from edge_client.spool.frames import Frame
from edge_client.spool.queue import Spool
from streams.contract.documents import Document
from streams.contract.errors import MalformedRecord, SpoolError, UsageError
from streams.contract.events.batches import own_columns
from streams.contract.task import Task
from streams.runtime.disk import write_atomic

NAME = "task-versions.json"

log = logging.getLogger(__name__)


class Span(Document):
    """Consecutive events of one task version and the same columns; None: not known."""

    first: int
    task: str
    version: int | None = None
    columns: str = ""


class _Spans(Document):
    epoch: str
    spans: list[Span]


def begin(spool: Spool, task: Task, schema: pa.Schema) -> Span | None:
    """Begin the task's span; return the one before it, if it is of another version or columns and
    has events that are pending, and say so.

    Raises UsageError if those are of another task, SpoolError if the span cannot be written.
    """
    kept, pending = _read(spool), spool.next_seq > spool.settled_seq
    older = [span for span in kept if span.first < spool.next_seq]  # the others are empty
    if pending and not older:
        older = [Span(first=0, task=task.name)]
    if pending and older[-1].task != task.name:
        raise UsageError(
            f"{spool.folder} has events of task {older[-1].task!r}, not of {task.name!r}: "
            "send them with that task file first, or remove that folder"
        )
    new = Span(
        first=spool.next_seq, task=task.name, version=task.version, columns=_digest(schema)
    )  # fmt: skip
    same = older and older[-1].model_copy(update={"first": new.first}) == new
    spans = older if same else [*older, new]
    spans = [one for one, after in pairwise(spans) if after.first > spool.settled_seq] + spans[-1:]
    if spans != kept:
        _write(spool, spans)
    if len(spans) < 2:
        return None
    version = "?" if spans[-2].version is None else spans[-2].version
    log.warning(
        "%s has pending events of version %s of the task, or with other columns: "
        "they are sent as they are", spool.folder, version,
    )  # fmt: skip
    return spans[-2]


def _write(spool: Spool, spans: list[Span]) -> None:
    path = spool.folder / NAME
    try:
        write_atomic(path, _Spans(epoch=spool.epoch, spans=spans).encode(), mode=0o600)
    except OSError as exc:
        raise SpoolError(f"{path} cannot be written: {exc}: free some disk") from exc


class Versions:
    """The spans of a spool, read once."""

    def __init__(self, spool: Spool) -> None:
        self._spans = _read(spool)

    def runs(self, frames: Sequence[Frame]) -> Iterator[tuple[int | None, list[Frame]]]:
        """Yield consecutive frames with the same columns, and the version of their events."""
        for at, span in groupby(frames, lambda frame: self._at(frame.first)):
            version = self._spans[at].version if at >= 0 else None
            if version is not None:
                yield version, list(span)
                continue
            for _, same in groupby(span, lambda frame: own_columns(frame.payload)):
                yield None, list(same)

    def _at(self, seq: int) -> int:
        return sum(span.first <= seq for span in self._spans) - 1


def _read(spool: Spool) -> list[Span]:
    try:
        found = _Spans.decode((spool.folder / NAME).read_bytes())
    except (FileNotFoundError, MalformedRecord):
        return []
    return found.spans if found.epoch == spool.epoch else []


def _digest(schema: pa.Schema) -> str:
    return hashlib.sha256(schema.serialize().to_pybytes()).hexdigest()[:16]
