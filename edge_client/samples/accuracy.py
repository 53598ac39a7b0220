"""What a device remembers of its answers beside the events: samples, outcomes to come, and accuracy
by release, where the true label is known. It is on the recorder's thread, none of it in the loop.

On held-out segments each position in the data counts once per version, with its latest answer, so
that two versions that have both seen a whole replay are compared on the same segments. Of more than
PLACES positions a version keeps those with the smallest hash: a uniform sample, in which two
versions that have seen the same data have the same positions (bottom-k sampling: Cohen and Kaplan,
"Summarizing Data using Bottom-k Sketches", PODC 2007).

A label that comes later counts for the answer's version if the answer is one of the last OPEN
without a label, and the agent has not been started anew since; the first label of an answer counts.

The file `scoreboard.json`, replaced whole: its size is that of the sample, however long the stream.

    counts     {version: [answers, labelled, correct]}
    errors     {version: the sum of errors}
    held_out   {version: {position in us: [right, error]}}
"""

import json
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edge_client.samples.samples import Samples
from edge_client.samples.table import HELD_OUT, reports, split_of
from edge_client.spool.writer import Event, mixed
from streams.contract.documents import ModelScore
from streams.contract.task import Answered, Task
from streams.contract.task.metrics import row_errors
from streams.contract.window_metrics import RowMetric
from streams.contract.window_report import release_of

if TYPE_CHECKING:
    from edge_client.samples.labels import DelayedLabels

KEPT = 4  # versions
OPEN = 4096  # answers whose label may still come
PLACES, SPARE = 2048, 256  # held-out positions of a version; until the next sampling of them

Judged = tuple[bool, float]  # whether it is right, and for targets its error
Places = dict[int, Judged]  # by position


def sample(places: Places) -> Places:
    """Return the held-out positions that a version keeps."""
    if len(places) <= PLACES:
        return places
    return {at: places[at] for at in sorted(places, key=mixed)[:PLACES]}


class AccuracyTracker:
    """Answer counts of the latest versions, by `metric`; save() writes them to `path`, if they have
    `changed`."""

    def __init__(self, path: Path, metric: RowMetric = "accuracy") -> None:
        self._path = path
        self._metric = metric
        self._lock = threading.Lock()
        self._counts: dict[str, list[int]] = {}  # answers, labelled, correct
        self._errors: dict[str, float] = {}
        self._held_out: dict[str, Places] = {}
        self.changed = False
        try:
            state = json.loads(path.read_bytes())
            self._counts = {m: [int(x) for x in c] for m, c in state["counts"].items()}
            self._errors = {m: float(state["errors"][m]) for m in self._counts}
            self._held_out = {
                m: {int(p): (bool(right), float(error)) for p, (right, error) in places.items()}
                for m, places in state["held_out"].items()
            }
        except (FileNotFoundError, ValueError, KeyError, TypeError, AttributeError):
            self._counts, self._errors, self._held_out = {}, {}, {}

    def count(
        self,
        model: str,
        recorded_us: int,
        right: bool | None,
        held_out: bool,
        error: float = 0.0,
        *,
        again: bool = False,
    ) -> None:
        """Count one answer; `right` is None if the true label is unknown, `error` is that of a
        target, absolute or squared as the metric wants it. again: it was counted without one."""
        with self._lock:
            if again and model not in self._counts:
                return  # of a version that is not kept
            self.changed = True
            if model not in self._counts:
                self._counts[model], self._held_out[model] = [0, 0, 0], {}
                self._errors[model] = 0.0
                for old in list(self._counts)[1:-KEPT]:  # the first one stays for the comparison
                    del self._counts[old], self._held_out[old], self._errors[old]
            counts = self._counts[model]
            counts[0] += not again
            if right is not None:
                counts[1] += 1
                counts[2] += right
                self._errors[model] += error
                if held_out:
                    self._held_out[model][recorded_us] = right, error
                    if len(self._held_out[model]) > PLACES + SPARE:
                        self._held_out[model] = sample(self._held_out[model])

    def scores(self) -> dict[str, ModelScore]:
        with self._lock:
            kept = {model: sample(places) for model, places in self._held_out.items()}
            first = next(iter(kept.values()), {})
            return {model: self._score(model, kept[model], first) for model in self._counts}

    def _score(self, model: str, places: Places, first: Places) -> ModelScore:
        answers, labelled, correct = self._counts[model]
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
        """Write the counts to disk. A crash loses those since the last save: they are not part of
        the event account."""
        with self._lock:
            held_out = {model: sample(places) for model, places in self._held_out.items()}
            state = {"counts": self._counts, "errors": self._errors, "held_out": held_out}
            text, self.changed = json.dumps(state), False
        temporary = self._path.with_suffix(".tmp")
        temporary.write_text(text)
        temporary.replace(self._path)


class OpenAnswers:
    """The last OPEN answers without a label, a ring; thread-safe."""

    def __init__(self, task: Task) -> None:
        self._lock = threading.Lock()
        self._releases: list[str] = []  # a row has the place
        self._number = 0
        self._rows = np.zeros(OPEN, np.dtype([
            ("seq", "<i8"), ("time", "<i8"), ("recorded", "<i8"), ("release", "<i8"),
            ("held_out", "?"), ("outputs", "<f4", task.outputs),
        ]))  # fmt: skip
        self._rows["seq"] = -1

    def put(self, seq: int, event: Event, release: str, held_out: bool) -> None:
        with self._lock:
            if release not in self._releases:
                self._releases.append(release)
            place = self._releases.index(release)
            row = seq, event.time_us, event.recorded_us, place, held_out, event.outputs
            self._rows[self._number % OPEN] = row
            self._number += 1

    def take(self, first_us: int, last_us: int, seq: int | None) -> tuple[np.ndarray, list[str]]:
        """Return the rows (n,) whose event time is from `first_us` to `last_us`, or that of the
        event `seq` alone, and their releases. Each is returned once."""
        with self._lock:
            rows = self._rows
            found = (rows["seq"] >= 0) & (rows["time"] >= first_us) & (rows["time"] <= last_us)
            if seq is not None:
                found &= rows["seq"] == seq
            taken = rows[found]
            rows["seq"][found] = -1
            return taken, [self._releases[place] for place in taken["release"]]


class AnswerRecorder:
    """Takes the events that are in the spool, and the labels that come later."""

    def __init__(
        self,
        task: Task,
        samples: Samples,
        scoreboard: AccuracyTracker,
        outcomes: "DelayedLabels | None",
    ) -> None:
        self.task, self.samples, self.scoreboard = task, samples, scoreboard
        self.outcomes, self._open = outcomes, OpenAnswers(task)
        samples.labelled = self.judge

    def judge(self, first_us: int, last_us: int, label: np.ndarray, seq: int | None) -> None:
        """Count a label (label_size,) of answers that were counted without one."""
        rows, releases = self._open.take(first_us, last_us, seq)
        truths = np.repeat(label.reshape(1, -1), len(rows), axis=0)
        right = self.task.correct(rows["outputs"], truths).tolist()
        errors = row_errors(self.task, rows["outputs"], truths).tolist()
        for row, *found in zip(rows, releases, right, errors, strict=True):
            release, is_right, error = found
            place, held_out = int(row["recorded"]), bool(row["held_out"])
            self.scoreboard.count(release, place, is_right, held_out, error, again=True)

    def _reports(self, time_us: int) -> bool:
        """Whether a held-out segment counts on the scoreboard: not if it may choose."""
        training = self.task.training
        chooses = training.choice == "device" or training.personal
        return not chooses or bool(reports(self.task, np.array(time_us)))

    def note(self, events: Sequence[Event], first: int) -> None:
        """Note consecutive events, of which the first one has the seq `first`."""
        judged = self._judged([event for event in events if event.truth is not None])
        for seq, event in enumerate(events, first):
            split = split_of(self.task, event.first_us, event.time_us)
            self.samples.add(seq, event.time_us, event.segment, event.outputs, split, event.label)
            right, error = (None, 0.0) if event.truth is None else next(judged)
            release = release_of(event.model)  # a copy's answers are those of its release
            reporting = split == HELD_OUT and self._reports(event.time_us)
            self.scoreboard.count(release, event.recorded_us, right, reporting, error)
            if right is None:
                self._open.put(seq, event, release, reporting)
            if self.outcomes is not None:
                answered = event.first_us, event.time_us, event.segment, event.outputs
                self.outcomes.put(Answered(*answered, seq, event.recorded_us))

    def _judged(self, events: Sequence[Event]) -> Iterator[tuple[bool, float]]:
        """Yield whether each answer is right, and for targets its error."""
        if events:
            answers = np.stack([event.outputs for event in events])
            truths = np.stack([event.truth for event in events if event.truth is not None])
            right = self.task.correct(answers, truths)
            errors = row_errors(self.task, answers, truths)
            yield from zip(right.tolist(), errors.tolist(), strict=True)
