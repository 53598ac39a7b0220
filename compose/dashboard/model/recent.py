"""What windows have told lately: of each device its last ones, of the fleet the last hour, and the
last day with fewer points. Pure.

Bounded: KEPT windows of each device in columns, SLOTS slots of SLOT_S and of DAY_SLOT_S, RELEASES
in each, NAMES of versions.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from compose.dashboard.model.histograms import Kept, histograms_of
from streams.contract.window_metrics import value_of
from streams.contract.window_report import DriftReport, WindowReport
from streams.fleet.agreement import Agreement

KEPT, CHANNELS = 60, 12
SLOT_S, DAY_SLOT_S, SLOTS, RELEASES = 10, 240, 360, 8
NAMES, OTHER = 4096, "other"
ROW = np.dtype(
    [
        ("at_us", "i8"), ("window_us", "i8"), ("end_us", "i8"), ("events", "i4"),
        ("labelled", "i4"), ("correct", "i4"), ("value", "f4"), ("share", "f4"), ("release", "i4"),
        ("revision", "i2"), ("alarm", "?"),
    ]
)  # fmt: skip


@dataclass(frozen=True)
class Window:
    """One report of a device; at_us: when it came, window_us and end_us: of the window. value: what
    windows tell; None without a judged event. drifted: the share of channels that have; None
    without a reference."""

    at_us: int
    window_us: int
    end_us: int
    revision: int
    events: int
    release: str
    value: float | None
    labelled: int
    correct: int
    drifted: float | None
    alarm: bool


@dataclass(frozen=True)
class Channel:
    """How far a channel is from the reference, PSI in nats, and from where on it counts."""

    channel: str
    kind: str
    psi: float
    threshold: float
    alarm: bool


@dataclass
class Slot:
    """A while of the fleet. The samples are None where none was taken."""

    windows: int = 0
    events: int = 0
    releases: dict[str, Agreement] = field(default_factory=dict)
    produced_per_s: float | None = None
    pending: int | None = None
    lag: int | None = None


class RecentWindows:
    """Takes each report once: repeated ones are the caller's to leave out."""

    def __init__(self, kept: int = KEPT) -> None:
        self._kept = kept
        self._row: dict[str, int] = {}
        self._windows = np.zeros((16, kept), ROW)
        self._count = np.zeros(16, np.int64)
        self._releases: dict[str, int] = {}
        self._channels: dict[str, tuple[Channel, ...]] = {}
        self._histograms: dict[str, tuple[Kept, ...]] = {}
        # by the length of a slot, and by its number: seconds since 1970 over that length
        self.histories: dict[int, dict[int, Slot]] = {SLOT_S: {}, DAY_SLOT_S: {}}

    def add(self, report: WindowReport, at_us: int) -> None:
        self._fleet(report, at_us)
        row = self._row.setdefault(report.device, len(self._row))
        if row == len(self._count):
            self._windows = np.concatenate([self._windows, np.zeros_like(self._windows)])
            self._count = np.concatenate([self._count, np.zeros_like(self._count)])
        self._windows[row, self._count[row] % self._kept] = self._columns(report, at_us)
        self._count[row] += 1
        if report.drift is not None:
            self._channels[report.device] = channels_of(report.drift)
            self._histograms[report.device] = histograms_of(report.drift)

    def _columns(self, report: WindowReport, at_us: int) -> tuple[object, ...]:
        parts = report.by_release
        release = max(parts, key=lambda name: parts[name].events, default="")
        value = value_of(report.metric, report.sums(release)) if release else None
        drift = report.drift
        return (
            at_us,
            report.window_us,
            report.end_us,
            min(report.events, 2**31 - 1),
            min(sum(p.labelled for p in parts.values()), 2**31 - 1),
            min(sum(p.correct for p in parts.values()), 2**31 - 1),
            np.nan if value is None else value,
            np.nan if drift is None else drift.share,
            self._number_of(release),
            min(report.revision, 2**15 - 1),
            drift is not None and drift.alarm,
        )

    def _number_of(self, release: str) -> int:
        """Return a version's number; those after the first NAMES, which devices may make up, have
        one together."""
        if release not in self._releases and len(self._releases) >= NAMES:
            release = OTHER
        return self._releases.setdefault(release, len(self._releases))

    @property
    def slots(self) -> dict[int, Slot]:
        """Those of the last hour."""
        return self.histories[SLOT_S]

    def _fleet(self, report: WindowReport, at_us: int) -> None:
        for slot in self._slots(at_us / 1e6):
            slot.windows += report.revision == 0
            slot.events += report.events
            for release, part in report.by_release.items():
                if release in slot.releases or len(slot.releases) < RELEASES:
                    slot.releases.setdefault(release, Agreement()).add(report, release, part)

    def _slots(self, at_s: float) -> Iterator[Slot]:
        for slot_s, slots in self.histories.items():
            slot = slots.setdefault(int(at_s // slot_s), Slot())
            if len(slots) > SLOTS:
                del slots[min(slots)]
            yield slot

    def sample(self, now_s: float, produced_per_s: float, pending: int, lag: int | None) -> None:
        """Note what cannot be made again from the topics."""
        for slot in self._slots(now_s):
            slot.produced_per_s, slot.pending, slot.lag = produced_per_s, pending, lag

    def windows_per_s(self, now_s: float, over_s: int = 60) -> float:
        """Return how many windows were reported a second, in the last whole slots."""
        last = int(now_s // SLOT_S)
        numbers = range(last - over_s // SLOT_S, last + 1)
        found = sum(self.slots[n].windows for n in numbers if n in self.slots)
        return found / (over_s + now_s % SLOT_S)

    def of(self, device: str) -> list[Window]:
        """Return the device's last windows, the oldest first."""
        if (row := self._row.get(device)) is None:
            return []
        count = int(self._count[row])
        order = [n % self._kept for n in range(max(0, count - self._kept), count)]
        names = list(self._releases)
        return [_window(self._windows[row, n], names) for n in order]

    def last(self, device: str) -> Window | None:
        """Return its last window; None before the first."""
        if (row := self._row.get(device)) is None:
            return None
        latest = self._windows[row, (self._count[row] - 1) % self._kept]
        return _window(latest, list(self._releases))

    def trend(self, device: str, count: int) -> list[float]:
        """Return the values of its last windows that have one, at most `count`, oldest first."""
        if (row := self._row.get(device)) is None:
            return []
        order = np.arange(max(0, self._count[row] - count), self._count[row]) % self._kept
        values = self._windows["value"][row, order]
        return [round(float(value), 4) for value in values[~np.isnan(values)]]

    def channels(self, device: str) -> Sequence[Channel]:
        """Return the channels of its last report with a reference, the worst first."""
        return self._channels.get(device, ())

    def histograms(self, device: str) -> Sequence[Kept]:
        """Return those of its last report with a reference, the worst first."""
        return self._histograms.get(device, ())

    @property
    def bytes(self) -> int:
        return self._windows.nbytes + self._count.nbytes


def channels_of(drift: DriftReport) -> tuple[Channel, ...]:
    found = sorted(drift.channels, key=lambda c: c.psi / max(c.threshold, 1e-9), reverse=True)
    return tuple(
        Channel(c.channel[:80], c.kind[:20], c.psi, c.threshold, c.alarm) for c in found[:CHANNELS]
    )


def _window(row: np.void, releases: Sequence[str]) -> Window:
    value, share = float(row["value"]), float(row["share"])
    return Window(
        at_us=int(row["at_us"]),
        window_us=int(row["window_us"]),
        end_us=int(row["end_us"]),
        revision=int(row["revision"]),
        events=int(row["events"]),
        release=releases[int(row["release"])],
        value=None if np.isnan(value) else value,
        labelled=int(row["labelled"]),
        correct=int(row["correct"]),
        drifted=None if np.isnan(share) else share,
        alarm=bool(row["alarm"]),
    )
