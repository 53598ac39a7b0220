"""What a device remembers of its answers beside the events: samples, scores, outcomes to come.

On the recorder's thread: the loop itself does nothing of it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from edge_client.samples.accuracy import AccuracyTracker
from edge_client.samples.delayed_labels import DelayedLabels
from edge_client.samples.samples import Samples
from edge_client.samples.splits import HELD_OUT, reports, split_of
from edge_client.spool.writer import Event
from streams.contract.documents import release_of
from streams.contract.task import Answered, Task
from streams.contract.task.metrics import row_errors


@dataclass(frozen=True)
class AnswerRecorder:
    """Takes the events that are in the spool."""

    task: Task
    samples: Samples
    scoreboard: AccuracyTracker
    outcomes: DelayedLabels | None

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
