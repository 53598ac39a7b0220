"""Drift per device: the histogram counts of its last windows. Pure.

A window's counts, and the report over the device's last windows, are computed once, when the window
is scored, and stored with its rows (column `drift`), because segments are not stored. The published
report is always the stored one.

Counts use the smallest sufficient integer type, mostly one byte per cell, because they are most of
a worker's memory per device. A restart restores them from the store, except those of another
reference.
"""

import hashlib
from collections.abc import Mapping, Sequence

import numpy as np

from streams.contract.documents import Document
from streams.contract.errors import MalformedRecord
from streams.contract.task import Task
from streams.contract.window_report import DriftReport
from streams.drift.detector import DriftDetector
from streams.drift.histograms import Histograms
from streams.drift.reference import Reference, observe
from streams.worker.windows.tumbling import Window


class WindowDrift(Document):
    """The store's column `drift`, on one row of each (device, window, revision).

    counts: of this revision's rows only, one integer per cell, in the order of the reference's
    features; reference: the first 16 hex digits of its SHA-256; report: None only in a snapshot of
    positions.
    """

    reference: str
    counts: list[int]
    report: DriftReport | None


class DriftWatch:
    """Counts windows of the devices whose partitions are owned."""

    def __init__(self, task: Task, reference: Reference) -> None:
        self._task = task
        self._reference = reference
        self._detector = DriftDetector(reference)
        self._histograms = Histograms(reference)
        self._name = _name(reference)
        self._devices: dict[str, dict[int, np.ndarray]] = {}  # window start -> counts

    def counts_against(self, reference: Reference) -> bool:
        return self._name == _name(reference)

    def clear(self) -> None:
        self._devices.clear()

    def restore(self, stored: Mapping[str, Sequence[tuple[int, str]]]) -> None:
        """Add the stored (window start, column `drift`) of each device's last windows."""
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
        """Count closed windows in order; return the column `drift` of each.

        segments (rows, channels, samples) and outputs (rows, outputs) are those of all windows,
        concatenated; segments is None if the task uploads none.
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
        reports = self._reports(np.stack(totals), numbers)
        return [
            WindowDrift.model_construct(reference=self._name, counts=own, report=report)
            .encode()
            .decode()
            for own, report in zip(counts.tolist(), reports, strict=True)
        ]

    def _reports(self, totals: np.ndarray, numbers: Sequence[int]) -> list[DriftReport]:
        """Return the reports of (windows, cells) counts, with their histograms."""
        reports = self._detector.reports(totals, numbers)
        return [
            report.model_copy(update={"histograms": self._histograms.of(counts, report.channels)})
            for report, counts in zip(reports, totals, strict=True)
        ]

    def _add(self, device: str, start: int, counts: np.ndarray) -> dict[int, np.ndarray]:
        """Add counts and return the device's last windows; older windows are discarded."""
        windows = self._devices.setdefault(device, {})
        summed = counts + windows[start] if start in windows else counts
        windows[start] = summed.astype(np.min_scalar_type(int(summed.max(initial=0))))
        while len(windows) > self._reference.windows:
            del windows[min(windows)]
        return windows


def without_report(text: str) -> str:
    """Return the JSON of a WindowDrift without its report; invalid text stays unchanged."""
    try:
        found = WindowDrift.decode(text.encode())
    except MalformedRecord:
        return text
    return found.model_copy(update={"report": None}).encode().decode()


def _name(reference: Reference) -> str:
    return hashlib.sha256(reference.encode()).hexdigest()[:16]
