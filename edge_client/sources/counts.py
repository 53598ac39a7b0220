"""What became of readings that made no event, and what is irregular of those that did."""

import threading
from collections import Counter

from edge_client.samples import delayed_labels, labels
from streams.segments import segmentation

# No event is missing for these: produced + skipped = readings, where one reading is the example.
IRREGULAR = segmentation.IRREGULAR | {
    delayed_labels.OVERFLOW, delayed_labels.UNFIT, labels.OVERFLOW,
}  # fmt: skip


class ReadingCounts:
    """Counts by reason since the start; sources and outcomes have threads of their own."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._lock = threading.Lock()

    def skip(self, reason: str, _time_us: int) -> None:
        with self._lock:
            self._counts[reason] += 1

    def skipped(self) -> dict[str, int]:
        """Return the readings and answers that made no event."""
        return {why: n for why, n in self._all().items() if why not in IRREGULAR}

    def irregular(self) -> dict[str, int]:
        """Return the readings that are answered although something is wrong with them, and the
        labels that were not used."""
        return {why: n for why, n in self._all().items() if why in IRREGULAR}

    def _all(self) -> dict[str, int]:
        with self._lock:
            return dict(sorted(self._counts.items()))


def counted(counts: dict[str, int]) -> str:
    """Return counts by reason for a person: "gap 3, width 1"."""
    return ", ".join(f"{why} {n:,}" for why, n in counts.items())
