"""Drift as the worker keeps it: the counts of each device's last windows. Pure.

What a window gives to count, and the report over the device's last windows, are made once, when the
window is scored, and stored with its rows (column `drift`): a segment is in no table, so nothing
could make them again. What is published is always what is stored.

Counts are kept in the smallest integers that hold them, mostly one byte a cell: a device's last
windows are most of what a worker knows of it. The counts of a restart come from the store; those of
another reference are passed over.
"""

import hashlib
from collections.abc import Mapping, Sequence

import numpy as np

from streams.contract.documents import Document, DriftReport
from streams.contract.errors import MalformedRecord
from streams.contract.task import Task
from streams.drift.detector import DriftDetector
from streams.drift.reference import Reference, observe
from streams.worker.windows.tumbling import Window


class WindowDrift(Document):
    """The store's column `drift`, on one row of each (device, window, revision).

    counts: of this revision's rows alone, one integer per cell of the reference's features in
    order; reference: which one, by the first 16 hex digits of its SHA-256; report: None in a
    snapshot of positions only.
    """

    reference: str
    counts: list[int]
    report: DriftReport | None


class DriftWatch:
    """Counts the windows of the devices whose partitions are owned."""

    def __init__(self, task: Task, reference: Reference) -> None:
        self._task = task
        self._reference = reference
        self._judge = DriftDetector(reference)
        self._name = _name(reference)
        self._devices: dict[str, dict[int, np.ndarray]] = {}  # window start -> counts

    def counts_against(self, reference: Reference) -> bool:
        return self._name == _name(reference)

    def clear(self) -> None:
        """The partitions are gone: whoever owns them next starts from the store."""
        self._devices.clear()

    def restore(self, stored: Mapping[str, Sequence[tuple[int, str]]]) -> None:
        """Take in (window start, column `drift`) of each device's last windows."""
        for device, (start, text) in ((d, pair) for d, pairs in stored.items() for pair in pairs):
            try:
                found = WindowDrift.decode(text.encode())
            except MalformedRecord:
                continue
            if found.reference == self._name and len(found.counts) == self._reference.cells:
                self._add(device, start, np.asarray(found.counts, np.int64))

    def observe(
        self, windows: Sequence[Window], segments: np.ndarray | None, outputs: np.ndarray
    ) -> list[str]:
        """Count closed windows, in their order; what the store is to keep of each.

        segments (rows, channels, samples) and outputs (rows, outputs) are of all of them, one after
        the other; segments is None where the task uploads none.
        """
        if not windows:
            return []
        owner = np.repeat(np.arange(len(windows)), [window.rows for window in windows])
        observations = observe(self._task, segments, outputs)
        counts = self._reference.count_by(observations, owner, len(windows))
        totals, numbers = [], []
        for window, own in zip(windows, counts, strict=True):
            last = self._add(window.device, window.start, own)
            totals.append(np.sum(list(last.values()), axis=0, dtype=np.int64))
            numbers.append(len(last))
        reports = self._judge.reports(np.stack(totals), numbers)
        return [
            WindowDrift.model_construct(reference=self._name, counts=own, report=report)
            .encode()
            .decode()
            for own, report in zip(counts.tolist(), reports, strict=True)
        ]

    def _add(self, device: str, start: int, counts: np.ndarray) -> dict[int, np.ndarray]:
        """The device's last windows with these counts; rows of an older one are counted no more."""
        windows = self._devices.setdefault(device, {})
        summed = counts + windows[start] if start in windows else counts
        windows[start] = summed.astype(np.min_scalar_type(int(summed.max(initial=0))))
        while len(windows) > self._reference.windows:
            del windows[min(windows)]
        return windows


def without_report(text: str) -> str:
    """A WindowDrift's text with what a restart needs alone; one that cannot be read as it is."""
    try:
        found = WindowDrift.decode(text.encode())
    except MalformedRecord:
        return text
    return found.model_copy(update={"report": None}).encode().decode()


def _name(reference: Reference) -> str:
    return hashlib.sha256(reference.encode()).hexdigest()[:16]
