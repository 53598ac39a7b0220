"""Accuracy of a device's answers by release, where the true label is known.

On held-out segments each position in the data counts once per version, with its latest answer, so
that two versions that have both seen a whole replay are compared on the same segments.
"""

import json
import threading
from pathlib import Path

from streams.contract.documents import ModelScore, RowMetric

KEPT = 4  # versions

Judged = tuple[bool, float]  # whether it is right, and for targets its error


class AccuracyTracker:
    """Answer counts of the latest versions, by `metric`; save() writes them to `path`."""

    def __init__(self, path: Path, metric: RowMetric = "accuracy") -> None:
        self._path = path
        self._metric = metric
        self._lock = threading.Lock()
        self._counts: dict[str, list[int]] = {}  # answers, labelled, correct
        self._errors: dict[str, float] = {}
        self._held_out: dict[str, dict[int, Judged]] = {}
        try:
            state = json.loads(path.read_bytes())
            self._counts = {m: [int(x) for x in c] for m, c in state["counts"].items()}
            self._errors = {m: float(state.get("errors", {}).get(m, 0.0)) for m in self._counts}
            self._held_out = {
                m: {int(p): _judged(found) for p, found in places.items()}
                for m, places in state["held_out"].items()
            }
        except (FileNotFoundError, ValueError, KeyError, TypeError, AttributeError):
            self._counts, self._errors, self._held_out = {}, {}, {}

    def count(
        self,
        model: str,
        position_us: int,
        right: bool | None,
        held_out: bool,
        error: float = 0.0,
    ) -> None:
        """Count one answer; `right` is None if the true label is unknown, `error` is that of a
        target, absolute or squared as the metric wants it."""
        with self._lock:
            if model not in self._counts:
                self._counts[model], self._held_out[model] = [0, 0, 0], {}
                self._errors[model] = 0.0
                for old in list(self._counts)[1:-KEPT]:  # the first one stays for the comparison
                    del self._counts[old], self._held_out[old], self._errors[old]
            counts = self._counts[model]
            counts[0] += 1
            if right is not None:
                counts[1] += 1
                counts[2] += right
                self._errors[model] += error
                if held_out:
                    self._held_out[model][position_us] = right, error

    def scores(self) -> dict[str, ModelScore]:
        with self._lock:
            first = next(iter(self._held_out.values()), {})
            return {model: self._score(model, first) for model in self._counts}

    def _score(self, model: str, first: dict[int, Judged]) -> ModelScore:
        (answers, labelled, correct), places = self._counts[model], self._held_out[model]
        both = places.keys() & first.keys()
        held, new, old = places.values(), [places[at] for at in both], [first[at] for at in both]
        return ModelScore(
            metric=self._metric,
            answers=answers,
            labelled=labelled,
            correct=correct,
            error=self._errors[model],
            held_out=len(places),
            held_out_correct=sum(right for right, _ in held),
            held_out_error=sum(error for _, error in held),
            paired=len(both),
            paired_correct=sum(right for right, _ in new),
            paired_error=sum(error for _, error in new),
            paired_base_correct=sum(right for right, _ in old),
            paired_base_error=sum(error for _, error in old),
        )

    def save(self) -> None:
        """Write the counts to disk. A crash loses those since the last save, a few seconds: they
        are not part of the event account."""
        with self._lock:
            state = {"counts": self._counts, "errors": self._errors, "held_out": self._held_out}
            text = json.dumps(state)
        temporary = self._path.with_suffix(".tmp")
        temporary.write_text(text)
        temporary.replace(self._path)


def _judged(found: object) -> Judged:
    """Return an entry of the file; 0.1.0 wrote whether the answer is right alone."""
    if isinstance(found, list):
        return bool(found[0]), float(found[1])
    return bool(found), 0.0
