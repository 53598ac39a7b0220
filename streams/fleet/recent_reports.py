"""Recognizes windows' reports that come again, in memory that grows with the fleet alone."""

from collections.abc import Mapping

import numpy as np

RECENT = 32  # reports of each device: a worker repeats at most its last commit
REVISIONS = 64  # later ones of a window count as this one
NONE, LARGEST = np.iinfo(np.int64).min, 2**63


class RecentReports:
    """The last `kept` reports of each device, by window and revision."""

    def __init__(self, kept: int = RECENT) -> None:
        self._kept = kept
        self._row: dict[str, int] = {}
        self._names = np.full((16, kept), NONE)
        self._next = np.zeros(16, np.int64)

    def is_new(self, device: str, window_us: int, revision: int) -> bool:
        """Return whether the report was not among the device's last ones, and remember it."""
        return self._add(device, (window_us * REVISIONS + min(revision, REVISIONS - 1)) % LARGEST)

    def _add(self, device: str, name: int) -> bool:
        row = self._row.setdefault(device, len(self._row))
        if row == len(self._next):
            self._names = np.concatenate([self._names, np.full_like(self._names, NONE)])
            self._next = np.concatenate([self._next, np.zeros_like(self._next)])
        if (self._names[row] == name).any():
            return False
        self._names[row, self._next[row] % self._kept] = name
        self._next[row] += 1
        return True

    def dump(self) -> dict[str, list[int]]:
        """Return each device's reports, the oldest first."""
        return {
            device: [int(x) for x in np.roll(self._names[row], -self._next[row]) if x != NONE]
            for device, row in self._row.items()
        }

    @classmethod
    def load(cls, found: Mapping[str, list[int]]) -> "RecentReports":
        made = cls()
        for device, names in found.items():
            for name in names:
                made._add(device, name)
        return made
