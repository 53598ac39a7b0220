"""Which task version the events of a spool are of, so that an edited task meets none of another.

    task-versions.json   {"epoch": ..., "spans": [{"first": seq, "task": name, "version": number,
                         "columns": the text of the events' layout}, ...]}; replaced whole

A span goes from its first seq to the next span's. It begins when the spool is opened for a task
with another version or other columns than those of the last span; where the file is lost, the
events before count as the task's, of no known version. The file is written before the first event
of the new span. After a crash in between the span is empty, and the next start finds it.

Frames of different spans are never joined: each is sent as it is, with the version of its span.
"""

import logging
from collections.abc import Iterator, Sequence
from itertools import groupby, pairwise

from edge_client.spool.frames import Frame
from edge_client.spool.queue import Spool
from streams.contract.documents import Document
from streams.contract.errors import MalformedRecord, SpoolError, UsageError
from streams.contract.events.messages import task_layout
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


def span_of(task: Task, first: int = 0) -> Span:
    """Return a span of the task as it is now."""
    columns = task_layout(task).text
    return Span(first=first, task=task.name, version=task.version, columns=columns)


def begin(spool: Spool, task: Task) -> Span | None:
    """Begin the task's span; return the one before it, if it is of another version or columns and
    has events that are pending, and say so.

    Raises UsageError if those are of another task, SpoolError if the span cannot be written.
    """
    kept, pending = _read(spool), spool.next_seq > spool.settled_seq
    older = [span for span in kept if span.first < spool.next_seq]  # the others are empty
    if pending and not older:
        older = [span_of(task).model_copy(update={"version": None})]
    if pending and older[-1].task != task.name:
        raise UsageError(
            f"{spool.folder} has events of task {older[-1].task!r}, not of {task.name!r}: "
            "send them with that task file first, or remove that folder"
        )
    new = span_of(task, spool.next_seq)
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
    """The spans of a spool, read once; without any, all events are of `own`."""

    def __init__(self, spool: Spool, own: Span) -> None:
        self._spans = _read(spool) or [own]

    def runs(self, frames: Sequence[Frame]) -> Iterator[tuple[Span, list[Frame]]]:
        """Yield consecutive frames of one span, and the span; each frame by itself where the
        version is not known, and so neither whether its columns are those of the next."""
        for at, own in groupby(frames, lambda frame: self._at(frame.first)):
            span, same = self._spans[at], list(own)
            for frames_of in [same] if span.version is not None else [[each] for each in same]:
                yield span, frames_of

    def _at(self, seq: int) -> int:
        return max(0, sum(span.first <= seq for span in self._spans) - 1)


def _read(spool: Spool) -> list[Span]:
    try:
        found = _Spans.decode((spool.folder / NAME).read_bytes())
    except (FileNotFoundError, MalformedRecord):
        return []
    return found.spans if found.epoch == spool.epoch else []
