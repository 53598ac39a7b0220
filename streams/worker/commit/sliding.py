"""Sums of a device's last windows, for the reports of a task with `Sliding` windows.

They are a function of the stored rows, so that a commit that is published again has them again: of
each device the counts of its windows are kept for twice the length, by revision, and an assignment
reads them from the store. A report that comes later than `length_s` after the device's newest
window has none.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from streams.contract.task import Sliding, Task
from streams.contract.window_report import NUMBERS

ByModel = Mapping[str, Mapping[str, Any]]  # the fields of a ModelWindow


@dataclass
class SlidingSums:
    """The counts of the last windows of the devices whose partitions are owned."""

    task: Task
    _windows: dict[str, dict[tuple[int, int], ByModel]] = field(default_factory=dict)

    @property
    def length_us(self) -> int:
        """What a report covers; 0 where windows do not slide."""
        window = self.task.window
        return round(window.length_s * 1e6) if isinstance(window, Sliding) else 0

    @property
    def kept_us(self) -> int:
        return 2 * self.length_us

    def add(
        self, devices: Sequence[str], starts: Sequence[int], revisions: Sequence[int],
        models: Sequence[ByModel],
    ) -> None:  # fmt: skip
        """Add the counts of windows' revisions; one that is there already is not added again."""
        if not self.length_us:
            return
        for device, start, revision, found in zip(devices, starts, revisions, models, strict=True):
            own = self._windows.setdefault(device, {})
            own[start, revision] = found
            oldest = max(own)[0] - self.kept_us
            for old in [key for key in own if key[0] <= oldest]:
                del own[old]

    def of(self, device: str, start: int) -> dict[str, dict[str, Any]]:
        """Return the sums by version of the windows up to the one that starts at `start`."""
        own = self._windows.get(device, {})
        if not own or start <= max(own)[0] - self.length_us:
            return {}
        sums: dict[str, dict[str, Any]] = {}
        for (window, _), models in sorted(own.items(), key=lambda item: item[0]):
            if start - self.length_us < window <= start:
                for model, counts in models.items():
                    total = sums.setdefault(model, dict.fromkeys(NUMBERS, 0))
                    for name in NUMBERS:
                        total[name] += counts[name]
        return sums

    def forget(self) -> None:
        self._windows.clear()
