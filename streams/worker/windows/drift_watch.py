"""Drift per device: the histogram counts of its last windows. Pure.

A window's counts, and the report over the device's last windows, are computed once, when the window
is scored, and stored with its rows (column `drift`), because segments are not stored. The published
report is always the stored one.

Counts use the smallest sufficient integer type, mostly one byte per cell, because they are most of
a worker's memory per device. A restart restores them from the store, except those of another
reference.
"""

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from msgspec import structs

from streams.contract.documents import Document, encoded
from streams.contract.errors import MalformedRecord
from streams.contract.task import Task
from streams.contract.window_report import DriftReport, FeatureHistogram
from streams.learning.drift_detector import DriftDetector
from streams.learning.drift_reference import Reference, observe
from streams.worker.windows.tumbling import Window

HISTOGRAMS = 4  # features in a report
CELLS = 64  # of a feature; one with more has its distances alone
DIGITS = 6  # of an edge
WRITTEN = re.compile(  # what `WindowDrift.encode` makes
    r'\{"reference":"[0-9a-f]+","counts":\[[0-9,]*\],"report":(?P<report>\{.*\})\}', re.DOTALL
)


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
        self._devices: dict[str, History] = {}

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
        self, windows: Sequence[Window], segments: Sequence[np.ndarray] | None, outputs: np.ndarray
    ) -> list[str]:
        """Count closed windows in order; return the column `drift` of each.

        segments are those of each window (rows, channels, samples), None if the task uploads none;
        outputs (rows, outputs) are those of all windows, concatenated.
        """
        if not windows:
            return []
        owner = np.repeat(np.arange(len(windows)), [window.rows for window in windows])
        observations = observe(self._task, segments, outputs)
        counts = self._reference.count_by(observations, owner, len(windows))
        totals, numbers = np.empty((len(windows), self._reference.cells), np.int64), []
        for i, (window, own) in enumerate(zip(windows, counts, strict=True)):
            last = self._add(window.device, window.start, own)
            last.counts.sum(axis=0, out=totals[i])
            numbers.append(len(last.starts))
        texts = self._reports(totals, numbers)
        return [
            encoded({"reference": self._name, "counts": own, "report": report}).decode()
            for own, report in zip(counts.tolist(), texts, strict=True)
        ]

    def _reports(self, totals: np.ndarray, numbers: Sequence[int]) -> list[dict[str, Any]]:
        """Return the fields of the reports of (windows, cells) counts, with their histograms."""
        reports = self._detector.fields(totals, numbers)
        for report, counts in zip(reports, totals, strict=True):
            worst = ((each["channel"], each["kind"]) for each in report["channels"])
            report["histograms"] = self._histograms.fields(counts, worst)
        return reports

    def _add(self, device: str, start: int, counts: np.ndarray) -> "History":
        """Add counts and return the device's last windows; older windows are discarded."""
        if device not in self._devices:
            self._devices[device] = History(len(counts))
        history = self._devices[device]
        history.add(start, counts, self._reference.windows)
        return history


class History:
    """The counts of one device's last windows."""

    __slots__ = ("counts", "starts")

    def __init__(self, cells: int) -> None:
        self.starts: list[int] = []
        self.counts = np.zeros((0, cells), np.uint8)  # a row for each of `starts`

    def add(self, start: int, counts: np.ndarray, most: int) -> None:
        """Add the counts of a window, and discard all but the last `most` ones."""
        if start in self.starts:
            row = self.starts.index(start)
            counts = counts + self.counts[row]
        elif len(self.starts) < most:
            row = len(self.starts)
            self.starts.append(start)
            self.counts = np.concatenate(
                [self.counts, np.zeros_like(self.counts, shape=(1, len(counts)))]
            )
        else:
            row = min(range(most), key=self.starts.__getitem__)
            if start < self.starts[row]:
                return
            self.starts[row] = start
        self._widen(int(counts.max(initial=0)))
        self.counts[row] = counts

    def _widen(self, largest: int) -> None:
        if largest > np.iinfo(self.counts.dtype).max:
            self.counts = self.counts.astype(np.min_scalar_type(largest))


def report_text(text: str) -> bytes:
    """Return the JSON of a WindowDrift's report. What a worker wrote is cut out of its text as it
    is; anything else must be valid, or MalformedRecord is raised."""
    written = WRITTEN.fullmatch(text)
    if written is not None:
        return written["report"].encode()
    report = WindowDrift.decode(text.encode()).report
    return b"null" if report is None else report.encode()


def without_report(text: str) -> str:
    """Return the JSON of a WindowDrift without its report; invalid text stays unchanged."""
    try:
        found = WindowDrift.decode(text.encode())
    except MalformedRecord:
        return text
    return found.replace(report=None).encode().decode()


def _name(reference: Reference) -> str:
    return hashlib.sha256(reference.encode()).hexdigest()[:16]


class Histograms:
    """Chooses the histograms of reports, of the features that have drifted most, with what they are
    compared with beside them."""

    def __init__(self, reference: Reference) -> None:
        self._found: dict[tuple[str, str], tuple[int, int, dict[str, Any]]] = {}
        start = 0
        for feature in reference.features:
            end = start + len(feature.counts)
            if len(feature.counts) <= CELLS:
                template = FeatureHistogram(
                    channel=feature.channel,
                    kind=feature.kind,
                    ordered=feature.ordered,
                    edges=[float(f"{edge:.{DIGITS}g}") for edge in feature.edges],
                    reference=feature.counts,
                    counts=[],
                )
                self._found[feature.channel, feature.kind] = start, end, structs.asdict(template)
            start = end

    def fields(self, counts: np.ndarray, worst: Iterable[tuple[str, str]]) -> list[dict[str, Any]]:
        """Return the fields of FeatureHistogram of the first HISTOGRAMS features of `worst`,
        channels and kinds, that have at most CELLS cells; counts: (cells,), of the comparison."""
        chosen: list[dict[str, Any]] = []
        for name in worst:
            found = self._found.get(name)
            if found is None:
                continue
            start, end, template = found
            chosen.append({**template, "counts": counts[start:end].tolist()})
            if len(chosen) == HISTOGRAMS:
                break
        return chosen
