"""Labels that come when their events are stored, as revisions of the windows' reports.

A look (streams.worker.store.late_labels) runs on another thread than the flushes, for at most SHARE
of the time, or with pauses of MOST_S. A flush first takes up to SLICE of the events that a look has
found through these steps:

    1  number the reports of the windows, and commit to `revised` the events with the label that
       counts now, each report's text, and up to where labels and events have been joined
    2  publish the reports to `windows` and wait for the broker's acknowledgements

What a restart does after a crash at the end of each step, or before:

    0  nothing is stored: the same is found again
    1  the assignment publishes the reports of the partition's last commit to `revised`
    2  as after 1; the reports are there twice, with the same content and key

The acknowledgement of a label waits for none of this: it is in the store, and where a look ended is
too. Another owner's commit to `revised` is the fence, as for any table.
"""

import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa

from streams.contract.errors import TidewheelError
from streams.contract.events.batches import filled_rows, float_rows, times_us
from streams.contract.task import Task
from streams.contract.topics import WINDOWS, topic_name
from streams.runtime.failpoints import Failpoint, unarmed
from streams.worker.commit.messages import Outgoing
from streams.worker.commit.window_reports import keys_of, window_reports
from streams.worker.commit.work import Broker, Positions, publish_all
from streams.worker.store.delta_store import DeltaStore
from streams.worker.store.late_labels import Found, Joined, look
from streams.worker.store.tables import LABELS, REVISED, SCORES, revised_schema
from streams.worker.windows.partition import StorePosition
from streams.worker.windows.rows import DAY_US, ScoredWindow

SHARE = 0.1  # of the time, at most, for looks
LEAST_S, MOST_S = 0.3, 60.0  # between two; more where a look takes longer
LABELS_AT_ONCE = 100_000  # in a look, about
VALUES = 2_000_000  # of the outputs of their events: a look has fewer labels of long outputs
SLICE = 4_000  # events, about, that one flush takes of what a look found

Numbers = Mapping[tuple[str, int], int]  # of reports, by device and window
Call = Callable[..., Awaitable[Any]]

log = logging.getLogger(__name__)


def revised_rows(
    task: Task, found: Found, numbers: Numbers, commit: int, store: str, now_us: int
) -> pa.Table:
    """Return the rows of `revised` for what a look found, by device and window. numbers: of the
    reports of the windows (device, start), which are one each; now_us: when they are stored."""
    schema, n = revised_schema(), found.rows.num_rows
    if not n:
        return schema.empty_table()
    (rows,) = found.rows.combine_chunks().to_batches()
    names = windows_in(found)
    new = np.array([True, *(a != b for a, b in pairwise(names))])
    owner, firsts = np.cumsum(new) - 1, np.flatnonzero(new)
    revision = np.array([numbers[names[first]] for first in firsts], np.int32)[owner]
    each, told, changes = _changes(task, rows)
    changes = changes.append_column("commit", pa.array(np.full(len(each), commit)))
    changes = changes.append_column("partition", pa.array(np.full(len(each), found.partition)))
    changes = changes.append_column("revision", pa.array(revision[each]))
    edges = np.searchsorted(owner[each], np.arange(len(firsts) + 1))
    keys = keys_of(changes, edges[:-1])
    reports: list[bytes | None] = [None] * n
    texts = window_reports(task, changes, edges, keys, store, told=told)
    for first, text in zip(firsts.tolist(), texts, strict=True):
        reports[first] = text
    own = {name: rows.column(name) for name in rows.schema.names}
    made = own | {
        "revision": pa.array(revision),
        "report": pa.array(reports, pa.binary()),
        "partition": pa.array(np.full(n, found.partition)),
        "commit": pa.array(np.full(n, commit)),
        "day": pa.array(np.full(n, now_us // DAY_US, np.int32)),
    }
    return pa.table([made[field.name].cast(field.type) for field in schema], schema)


def _changes(task: Task, rows: pa.RecordBatch) -> tuple[np.ndarray, np.ndarray, pa.RecordBatch]:
    """Return the rows with the label that counts now, and after each the row again with the one
    that counted before: the place in `rows`, 1 or -1, and its columns."""
    replaced = np.flatnonzero(rows.column("before").is_valid().to_numpy(zero_copy_only=False))
    each = np.concatenate([np.arange(rows.num_rows), replaced])
    order = np.argsort(each, kind="stable")
    each, told = each[order], np.repeat([1, -1], [rows.num_rows, len(replaced)])[order]
    before = rows.column("before").take(pa.array(replaced))
    labels = pa.concat_arrays([rows.column("label"), before]).take(pa.array(order))
    found = rows.take(pa.array(each))
    outputs = float_rows(found.column("outputs"), task.outputs)
    right = task.correct(outputs, filled_rows(labels, task.label_size))
    found = found.set_column(found.schema.get_field_index("label"), "label", labels)
    return each, told, found.append_column("correct", pa.array(right))


def windows_in(found: Found) -> list[tuple[str, int]]:
    """Return the window (device, start) of each row."""
    starts = times_us(found.rows.column("window").combine_chunks()).tolist()
    return list(zip(found.rows.column("device").to_pylist(), starts, strict=True))


def reports_of(task: Task, partition: int, rows: pa.Table) -> list[Outgoing]:
    """Return the messages on `windows` of rows of `revised`."""
    topic, found = topic_name(task.id, WINDOWS), rows.filter(rows.column("report").is_valid())
    starts = times_us(found.column("window").combine_chunks()).tolist()
    columns = [found.column(name).to_pylist() for name in ("device", "revision", "report")]
    return [
        Outgoing(
            topic, partition, device.encode(), report,
            [("device", device.encode()), ("window", b"%d" % start), ("revision", b"%d" % number)],
        )
        for start, device, number, report in zip(starts, *columns, strict=True)
    ]  # fmt: skip


def pause_s(took_s: float) -> float:
    """Return how long no look begins after one that took so long, maybe because the machine is
    busy."""
    return max(LEAST_S, took_s, min(took_s / SHARE, MOST_S))


class LabelRevisions:
    """The looks at the partitions of one worker: one at a time, and the next one when flushes have
    taken what the last one found. call: runs on the thread to which `store` belongs. joined: up to
    where each partition's labels and events are joined and reported."""

    def __init__(
        self,
        task: Task,
        store: DeltaStore,
        broker: Broker,
        call: Call,
        now_us: Callable[[], int],
        failpoint: Failpoint = unarmed,
    ) -> None:
        self._task, self._store, self._broker, self._call = task, store, broker, call
        self._now_us, self._failpoint = now_us, failpoint
        self._thread = ThreadPoolExecutor(1, "labels")
        self._own: DeltaStore | None = None  # of the thread
        self.joined: dict[int, Joined] = {}
        self._looking: Future[list[Found]] | None = None
        self._slices: list[Found] = []  # that no flush has taken yet
        self._last = 0  # the partition of the last look
        self._reported: dict[tuple[str, int], int] = {}  # since it began
        self._next_s = 0.0

    async def assigned(self, partition: int, position: StorePosition) -> None:
        """Publish the partition's last commit again; go on where a look ended by then."""
        if commit := position.commits[REVISED]:
            rows = await self._call(self._store.revised, partition, commit)
            await publish_all(self._broker, reports_of(self._task, partition, rows))
        names = _marks(partition, Joined())
        marks = [await self._call(self._store.mark, REVISED, name) for name in names]
        self.joined[partition] = Joined(*marks)

    def waiting(self, positions: Positions) -> int:
        """Return how many commits of labels no look has joined yet."""
        return sum(positions[p].commits[LABELS] - since.labels for p, since in self.joined.items())

    def forget(self) -> None:
        """What a look still finds is another owner's."""
        self.joined.clear()
        self._looking, self._slices = None, []

    def reported(self, scored: Sequence[ScoredWindow]) -> None:
        """Note reports of windows, which a look may not have seen."""
        if self._looking is not None or self._slices:
            self._reported |= {(s.window.device, s.window.start): s.revision + 1 for s in scored}

    async def revise(self, positions: Positions) -> Numbers:
        """Take a part of what a look has found through the steps; return the windows' last
        reports. Begin another look when it is due."""
        if self._looking is not None and self._looking.done():
            ended, self._looking = self._looking, None
            try:
                self._slices = ended.result()
            except TidewheelError as exc:
                log.warning("%s; trying again", exc)
        if self._slices:
            return await self._revise(positions, self._slices.pop(0))
        if self._looking is None and time.monotonic() >= self._next_s:
            self._begin(positions)
        return {}

    def _begin(self, positions: Positions) -> None:
        """Begin a look at the next partition in which something is new."""
        new = {
            partition: joined
            for partition, joined in self.joined.items()
            if (commits := positions[partition].commits)[LABELS]
            and joined != Joined(commits[LABELS], commits[SCORES])
        }
        if new:
            self._last = min(new, key=lambda partition: (partition <= self._last, partition))
            self._reported = {}
            self._looking = self._thread.submit(self._look, self._last, new[self._last])

    def _look(self, partition: int, since: Joined) -> list[Found]:
        began, most = time.monotonic(), max(1, min(LABELS_AT_ONCE, VALUES // self._task.outputs))
        try:
            store = self._own = self._own or self._store.twin()
            found = look(store, partition, since, most)
            return [] if found is None else _slices(found, since)
        finally:
            now = time.monotonic()
            self._next_s = now + pause_s(now - began)

    async def _revise(self, positions: Positions, found: Found) -> Numbers:
        partition, joined, numbers = found.partition, found.joined, found.numbers
        before, self.joined[partition] = self.joined[partition], joined
        if not numbers and before.labels == joined.labels:
            return {}
        now = {name: max(number, self._reported.get(name, 0)) for name, number in numbers.items()}
        position = positions[partition]
        commit, marks = position.commits[REVISED] + 1, _marks(partition, joined)
        given = self._task, found, now, commit, self._store.name, self._now_us()
        rows = await self._call(revised_rows, *given)
        await self._call(self._store.commit, REVISED, rows, {partition: commit}, marks)  # step 1
        position.commits[REVISED] = commit
        self._failpoint("late-step-1")
        messages = await self._call(reports_of, self._task, partition, rows)
        await publish_all(self._broker, messages)  # step 2
        self._failpoint("late-step-2")
        return now


def _slices(found: Found, since: Joined) -> list[Found]:
    """Return what a look found in parts of whole windows and about SLICE events; only with the last
    one all is joined."""
    names = windows_in(found)
    ends = [end for end, (a, b) in enumerate(pairwise(names), 1) if a != b]
    cuts = [0]
    for end in ends:
        if end - cuts[-1] >= SLICE:
            cuts.append(end)
    parts = []
    for begin, end in pairwise([*cuts, len(names)]):
        numbers = {name: found.numbers[name] for name in names[begin:end]}
        joined = found.joined if end == len(names) else since
        rows = found.rows.slice(begin, end - begin)
        parts.append(Found(found.partition, joined, rows, numbers))
    return parts


def _marks(partition: int, joined: Joined) -> dict[str, int]:
    """Return what a commit to `revised` says of where a look ended."""
    return {
        f"joined/labels/{partition}": joined.labels,
        f"joined/events/{partition}": joined.events,
    }
