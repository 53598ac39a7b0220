"""Accuracy of a device's answers by release, where the true label is known.

On held-out segments each position in the data counts once per version, with its latest answer, so
that two versions that have both seen a whole replay are compared on the same segments.
"""

import json
import threading
from pathlib import Path

from streams.contract.documents import ModelScore

KEPT = 4  # versions


class AccuracyTracker:
    """Answer counts of the latest versions; save() writes them to `path`."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._counts: dict[str, list[int]] = {}  # answers, labelled, correct
        self._held_out: dict[str, dict[int, bool]] = {}
        try:
            state = json.loads(path.read_bytes())
            self._counts = {m: [int(x) for x in c] for m, c in state["counts"].items()}
            self._held_out = {
                m: {int(p): bool(right) for p, right in places.items()}
                for m, places in state["held_out"].items()
            }
        except (FileNotFoundError, ValueError, KeyError, TypeError, AttributeError):
            self._counts, self._held_out = {}, {}

    def count(self, model: str, position_us: int, right: bool | None, held_out: bool) -> None:
        """Count one answer; `right` is None if the true label is unknown."""
        with self._lock:
            if model not in self._counts:
                self._counts[model], self._held_out[model] = [0, 0, 0], {}
                for old in list(self._counts)[1:-KEPT]:  # the first one stays for the comparison
                    del self._counts[old], self._held_out[old]
            counts = self._counts[model]
            counts[0] += 1
            if right is not None:
                counts[1] += 1
                counts[2] += right
                if held_out:
                    self._held_out[model][position_us] = right

    def scores(self) -> dict[str, ModelScore]:
        with self._lock:
            first = next(iter(self._held_out.values()), {})
            return {model: self._score(model, first) for model in self._counts}

    def _score(self, model: str, first: dict[int, bool]) -> ModelScore:
        (answers, labelled, correct), places = self._counts[model], self._held_out[model]
        both = places.keys() & first.keys()
        return ModelScore(
            answers=answers,
            labelled=labelled,
            correct=correct,
            held_out=len(places),
            held_out_correct=sum(places.values()),
            paired=len(both),
            paired_correct=sum(places[at] for at in both),
            paired_base_correct=sum(first[at] for at in both),
        )

    def save(self) -> None:
        """Write the counts to disk. A crash loses those since the last save, a few seconds: they
        are not part of the event account."""
        with self._lock:
            text = json.dumps({"counts": self._counts, "held_out": self._held_out})
        temporary = self._path.with_suffix(".tmp")
        temporary.write_text(text)
        temporary.replace(self._path)
