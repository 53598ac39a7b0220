"""Step 1 of a commit: score closed windows and number their reports.

All calls come from the flush's thread, one flush at a time; only `offer` is thread-safe.
"""

import logging
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from streams.contract.task import Task
from streams.learning.teacher import Teacher, TeacherFailed
from streams.worker.scoring.drift_watch import DriftWatch
from streams.worker.scoring.rows import ScoredWindow, outputs_of, segments_of
from streams.worker.windows.partition import StorePosition
from streams.worker.windows.task_versions import TaskVersions
from streams.worker.windows.tumbling import Window

RECENT = 50_000  # windows whose number of reports is cached

WindowKeys = Sequence[tuple[str, int]]  # (device, window start)

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class VersionBatch:
    """The scored windows of one version of the task; teacher: the model's name."""

    task: Task
    teacher: str
    scored: Sequence[ScoredWindow]


@dataclass
class Batch:
    """Scored windows by version of the task, and failed windows with the reason."""

    versions: list[VersionBatch] = field(default_factory=list)
    failed: list[tuple[Window, str]] = field(default_factory=list)

    @property
    def scored(self) -> list[ScoredWindow]:
        return [one for version in self.versions for one in version.scored]


@dataclass
class Answers:
    """What a VersionScorer makes of windows: outputs and drift of the `kept` ones, in order."""

    kept: list[Window] = field(default_factory=list)
    outputs: list[np.ndarray | None] = field(default_factory=list)
    drift: Sequence[str | None] = ()
    failed: list[tuple[Window, str]] = field(default_factory=list)


class VersionScorer:
    """Teacher and drift of one version of the task."""

    def __init__(self, task: Task, teacher: Teacher) -> None:
        self.task = task
        self.drift: DriftWatch | None = None
        self.use(teacher)

    def use(self, teacher: Teacher) -> None:
        self.teacher, reference = teacher, teacher.reference
        if reference is None:
            self.drift = None
        elif self.drift is None or not self.drift.counts_against(reference):
            self.drift = DriftWatch(self.task, reference)

    def score(self, windows: Sequence[Window]) -> Answers:
        """Score windows of this version in one call of the teacher."""
        made = Answers()
        segments = segments_of(self.task, windows) if self.task.upload == "segment" else None
        results: Sequence[np.ndarray | TeacherFailed | None] = [None] * len(windows)
        if segments is not None:
            results = self.teacher.score(segments)
        for window, result in zip(windows, results, strict=True):
            if isinstance(result, TeacherFailed):
                made.failed.append((window, str(result)))
            else:
                made.kept.append(window)
                made.outputs.append(result)
        made.drift = [None] * len(made.kept)
        if self.drift is not None:
            if made.failed and segments is not None:
                segments = segments_of(self.task, made.kept)
            made.drift = self.drift.observe(made.kept, segments, outputs_of(self.task, made.kept))
        return made


class BatchScorer:
    """Scores closed windows, updates the devices' drift and numbers the windows' reports."""

    def __init__(
        self,
        versions: TaskVersions,
        teachers: Sequence[Teacher],
        reports_in_store: Callable[[int, WindowKeys], dict[tuple[str, int], int]],
    ) -> None:
        """teachers: of the versions, in their order."""
        self._reports_in_store = reports_in_store
        self._offered: Teacher | None = None
        self._scorers = {
            task.version: VersionScorer(task, teacher)
            for task, teacher in zip(versions.all, teachers, strict=True)
        }
        self._current = self._scorers[versions.current.version]
        self._reports: OrderedDict[tuple[str, int], int] = OrderedDict()

    @property
    def teacher(self) -> str:
        """The name of the current version's."""
        return self._current.teacher.name

    def offer(self, teacher: Teacher) -> None:
        """Use another teacher of the current version from the next commit on."""
        self._offered = teacher

    def take_offer(self) -> bool:
        """Switch to the offered teacher, between two commits; return whether it changed."""
        offered, self._offered = self._offered, None
        if offered is None or offered.name == self.teacher:
            return False
        log.info("teacher changed: %s -> %s", self.teacher, offered.name)
        self._current.use(offered)
        return True

    def restore(self, position: StorePosition) -> None:
        """Load the drift counts of an assigned partition's devices."""
        for scorer in self._scorers.values():
            if scorer.drift is not None:
                scorer.drift.restore(position.drift)
        position.drift.clear()

    def clear(self) -> None:
        """Forget all state, when the partitions are revoked."""
        self._reports.clear()
        for scorer in self._scorers.values():
            if scorer.drift is not None:
                scorer.drift.clear()

    def score(self, windows: Sequence[Window], positions: Mapping[int, StorePosition]) -> Batch:
        """Score all windows, in one call of the teacher for each version of the task."""
        batch = Batch()
        for version, scorer in self._scorers.items():
            answers = scorer.score([w for w in windows if w.task.version == version])
            revisions = self._revisions(answers.kept, positions)
            scored = [
                ScoredWindow(
                    window,
                    output,
                    revisions[window.device, window.start],
                    positions[window.partition].commit + 1,
                    text,
                )
                for window, output, text in zip(
                    answers.kept, answers.outputs, answers.drift, strict=True
                )
            ]
            batch.versions.append(VersionBatch(scorer.task, scorer.teacher.name, scored))
            batch.failed += answers.failed
        return batch

    def _revisions(
        self, windows: Iterable[Window], positions: Mapping[int, StorePosition]
    ) -> dict[tuple[str, int], int]:
        """Return how many reports each window has."""
        found: dict[tuple[str, int], int] = {}
        unknown: dict[int, list[tuple[str, int]]] = {}
        for window in windows:
            key = window.device, window.start
            if key in self._reports:
                found[key] = self._reports[key]
            elif window.start > positions[window.partition].newest.get(window.device, -1):
                found[key] = 0
            else:
                unknown.setdefault(window.partition, []).append(key)
        for partition, keys in unknown.items():
            found.update(self._reports_in_store(partition, keys))
        return found

    def sealed(
        self, scored: Iterable[ScoredWindow], positions: Mapping[int, StorePosition]
    ) -> None:
        """Count the reports of these windows, after they were stored and published."""
        for one in scored:
            device, start = one.window.device, one.window.start
            self._reports[device, start] = one.revision + 1
            self._reports.move_to_end((device, start))
            newest = positions[one.window.partition].newest
            newest[device] = max(newest.get(device, -1), start)
        while len(self._reports) > RECENT:
            self._reports.popitem(last=False)
