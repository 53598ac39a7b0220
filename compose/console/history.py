"""What the console shows beside the view of the fleet, of the same messages. Pure.

Bounded: of each device WINDOWS windows and its last report with a drift reference; SLOTS slots of
SLOT_S and of DAY_SLOT_S with VERSIONS versions each; the newest LETTERS messages of `dead-letters`,
of LETTER_BYTES together.
"""

import math
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from streams.contract.topics import DEAD_LETTERS, topic_name
from streams.contract.window_metrics import value_of
from streams.contract.window_report import DriftReport, WindowReport
from streams.fleet.agreement import Agreement
from streams.fleet.refused import LETTERS
from streams.fleet.view import FleetView
from streams.kafka.reader import Received

WINDOWS = 60
SLOT_S, DAY_SLOT_S, SLOTS, VERSIONS = 10, 240, 360, 8
LETTER_BYTES = 1 << 24
ROW = np.dtype([
    ("at_us", "i8"), ("window_us", "i8"), ("end_us", "i8"), ("revision", "i4"), ("events", "i8"),
    ("version", "S32"), ("value", "f4"), ("by_labels", "?"), ("labelled", "i8"), ("correct", "i8"),
    ("drifted", "f4"), ("alarm", "?"),
])  # fmt: skip


class Window(NamedTuple):
    """One report of a device; at_us: when it came, window_us and end_us: of the window. value: its
    metric; None without a judged event. by_labels: whether true labels judge it. drifted: the share
    of channels that have; None without a reference."""

    at_us: int
    window_us: int
    end_us: int
    revision: int
    events: int
    version: str
    value: float | None
    by_labels: bool
    labelled: int
    correct: int
    drifted: float | None
    alarm: bool


@dataclass
class Slot:
    """A while of the fleet. The samples are None where none was taken."""

    windows: int = 0
    events: int = 0
    versions: dict[str, Agreement] = field(default_factory=dict)
    produced_per_s: float | None = None
    pending: int | None = None


@dataclass
class History:
    """A view, and the recent past beside it. slots: by their length, and by their number, seconds
    since 1970 over that length."""

    view: FleetView
    slots: dict[int, dict[int, Slot]] = field(default_factory=lambda: {SLOT_S: {}, DAY_SLOT_S: {}})
    letters: deque[Received] = field(default_factory=lambda: deque(maxlen=LETTERS))
    _windows: dict[str, np.ndarray] = field(default_factory=dict)  # newest last, then end_us > 0
    _drift: dict[str, bytes] = field(default_factory=dict)

    def absorb(self, message: Received) -> None:
        """Take one message in; the view counts those that cannot be read."""
        found = self.view.absorb(message)
        if isinstance(found, WindowReport):
            self.add(found, message)
        elif message.topic == topic_name(self.view.task, DEAD_LETTERS):
            self.letters.append(message)
            while sum(len(each.value or b"") for each in self.letters) > LETTER_BYTES:
                self.letters.popleft()

    def add(self, report: WindowReport, message: Received) -> None:
        """Take a report in that comes for the first time, also one that the view knows from its
        snapshot; one of labels alone counts in its window, if that is still there."""
        at_us = message.time_ms * 1000 or report.end_us
        for slot in self._now(at_us / 1e6):
            slot.windows += report.revision == 0
            slot.events += report.events
            for version, part in report.by_release.items():
                if version in slot.versions or len(slot.versions) < VERSIONS:
                    slot.versions.setdefault(version, Agreement()).add(report, part)
        if (rows := self._windows.get(report.device)) is None:
            rows = self._windows[report.device] = np.zeros(WINDOWS, ROW)
        if not report.events:
            place = np.flatnonzero((rows["window_us"] == report.window_us) & (rows["at_us"] > 0))
            for name in ("labelled", "correct"):
                new = sum(getattr(part, name) for part in report.models.values())
                rows[name][place[-1:]] += new
            return
        rows[:-1] = rows[1:]
        rows[-1] = _row(report, at_us)
        if report.drift is not None:
            self._drift[report.device] = message.value or b""

    def _now(self, at_s: float) -> Iterator[Slot]:
        for slot_s, slots in self.slots.items():
            slot = slots.setdefault(int(at_s // slot_s), Slot())
            if len(slots) > SLOTS:
                del slots[min(slots)]
            yield slot

    def sample(self, now_s: float, produced_per_s: float, pending: int) -> None:
        """Note what cannot be made again from the topics."""
        for slot in self._now(now_s):
            slot.produced_per_s, slot.pending = produced_per_s, pending

    def windows_per_s(self, now_s: float) -> float:
        """Return how many windows were reported a second, in the last whole slots of a minute."""
        last, slots = int(now_s // SLOT_S), self.slots[SLOT_S]
        numbers = range(last - 60 // SLOT_S, last + 1)
        return sum(slots[n].windows for n in numbers if n in slots) / (60 + now_s % SLOT_S)

    def windows(self, device: str) -> list[Window]:
        """Return the device's last windows, in the order in which they came."""
        rows = self._windows.get(device, np.zeros(0, ROW))
        found = [Window(*row) for row in rows[rows["at_us"] > 0].tolist()]
        return [
            w._replace(
                version=w.version.decode(errors="replace"),  # type: ignore[attr-defined]
                value=_known(w.value),
                drifted=_known(w.drifted),
            )
            for w in found
        ]

    def drift(self, device: str) -> DriftReport | None:
        """Return that of the device's last report with a reference, histograms included."""
        value = self._drift.get(device)
        return None if value is None else WindowReport.decode(value).drift

    @property
    def bytes(self) -> int:
        return sum(rows.nbytes for rows in self._windows.values())


def _known(value: float | None) -> float | None:
    return None if value is None or math.isnan(value) else value


def _row(report: WindowReport, at_us: int) -> tuple[object, ...]:
    parts, drift = report.by_release, report.drift
    version = max(parts, key=lambda name: parts[name].events, default="")
    told = report.judgement(version)
    value = value_of(report.metric, told.sums)
    return (
        at_us,
        report.window_us,
        report.end_us,
        min(report.revision, 2**31 - 1),
        report.events,
        version.encode(),
        np.nan if value is None else value,
        told.by_labels,
        sum(part.labelled for part in parts.values()),
        sum(part.correct for part in parts.values()),
        np.nan if drift is None else drift.share,
        drift is not None and drift.alarm,
    )
