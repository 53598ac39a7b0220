"""Step 1 of a commit: the models evaluate closed windows, then drift is observed and the windows'
reports are numbered. With `Task.answer_by="worker"` the fleet's models first answer the events that
came without an answer.

An evaluation depends on its windows alone. It runs on a separate thread, so that the evaluation of
the next flush can run while this flush is stored and published. All calls come from the flush, one
flush at a time; only `offer` is thread-safe.
"""

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, cast

import numpy as np

from streams.contract.decisions import DesiredState
from streams.contract.events.compact import UNANSWERED
from streams.contract.task import Task
from streams.learning.teacher import Teacher, TeacherFailed
from streams.worker.windows.drift_watch import DriftWatch
from streams.worker.windows.partition import StorePosition
from streams.worker.windows.rows import ScoredWindow, outputs_of, segments_of
from streams.worker.windows.tumbling import Window, WindowSlice

if TYPE_CHECKING:  # a worker has no onnxruntime where devices answer
    from streams.learning.onnx_model import OnnxModel

ROWS_PER_PASS = 1024

log = logging.getLogger(__name__)


class DeviceModels:
    """The versions that are served: the one that its device would serve (`DesiredState.target`)
    answers an event. The answer is stored with the scored window: after a crash before that another
    version may answer."""

    def __init__(self, task: Task) -> None:
        self._task = task
        self._offered: tuple[DesiredState, Mapping[str, OnnxModel]] = DesiredState(), {}

    @property
    def known(self) -> Mapping[str, "OnnxModel"]:
        """The versions that are loaded, by name."""
        return self._offered[1]

    def offer(self, standing: DesiredState, models: Mapping[str, "OnnxModel"]) -> None:
        """Use these versions from the next commit on."""
        if models.keys() != self.known.keys():
            log.info("events without an answer are answered by %s", ", ".join(models))
        self._offered = standing, models

    def answer(self, windows: Sequence[Window]) -> tuple[list[Window], list[tuple[Window, str]]]:
        """Return windows with their answers, and those that no version can answer with the
        reason."""
        standing, models = self._offered
        answered, failed = list[Window](), list[tuple[Window, str]]()
        for window in windows:
            if not any(piece.events.columns.models == UNANSWERED for piece in window.pieces):
                answered.append(window)
                continue
            wanted = standing.target(self._task.name, window.device), standing.stable
            loaded = (models[ref.model] for ref in wanted if ref and ref.model in models)
            model = next(loaded, None)
            try:
                if model is None:
                    raise ValueError("no version is served")
                pieces = tuple(self._answered(piece, model) for piece in window.pieces)
                answered.append(replace(window, pieces=pieces))
            except Exception as exc:  # onnxruntime raises many kinds, by what the segments are
                failed.append((window, f"no answer: {type(exc).__name__}: {exc}"[:300]))
        return answered, failed

    def _answered(self, piece: WindowSlice, model: "OnnxModel") -> WindowSlice:
        columns = piece.events.columns
        if columns.models != UNANSWERED:
            return piece
        if columns.segments is None:
            raise ValueError("the events have no segments")
        segments = np.asarray(columns.segments, np.float32).reshape(-1, *self._task.segment_shape)
        parts = [
            model.run(segments[at : at + ROWS_PER_PASS])
            for at in range(0, len(segments), ROWS_PER_PASS)
        ]
        columns = columns._replace(outputs=np.concatenate(parts), models=model.model)
        return replace(piece, events=replace(piece.events, columns=columns))


RECENT = 50_000  # windows whose number of reports is cached

WindowKeys = Sequence[tuple[str, int]]  # (device, window start)

log = logging.getLogger(__name__)


@dataclass
class Evaluation:
    """Closed windows, with the answers of the fleet's models where they had none, and what the
    teacher of this name says of each; failed windows with the reason."""

    teacher: str
    windows: list[Window]
    failed: list[tuple[Window, str]]
    segments: list[np.ndarray] | None  # None if the task uploads none
    outputs: Sequence[np.ndarray | None]
    took_s: float


@dataclass
class Batch:
    """Scored windows, by the teacher of this name, and failed windows with the reason."""

    teacher: str
    scored: list[ScoredWindow] = field(default_factory=list)
    failed: list[tuple[Window, str]] = field(default_factory=list)
    took_s: float = 0.0


class BatchScorer:
    """Scores closed windows, updates the devices' drift and numbers the windows' reports."""

    def __init__(
        self,
        task: Task,
        teacher: Teacher,
        models: DeviceModels,
        reports_in_store: Callable[[int, WindowKeys], dict[tuple[str, int], int]],
    ) -> None:
        self._task, self._models, self._reports_in_store = task, models, reports_in_store
        self._thread = ThreadPoolExecutor(1, "evaluate")
        self._ahead: tuple[list[Window], asyncio.Future[Evaluation]] | None = None
        self._offered: Teacher | None = None
        self._drift: DriftWatch | None = None
        self._reports: OrderedDict[tuple[str, int], int] = OrderedDict()
        self._use(teacher)

    def _use(self, teacher: Teacher) -> None:
        self._teacher, reference = teacher, teacher.reference
        if reference is None:
            self._drift = None
        elif self._drift is None or not self._drift.counts_against(reference):
            self._drift = DriftWatch(self._task, reference)

    @property
    def teacher(self) -> str:
        """The teacher's name."""
        return self._teacher.name

    def offer(self, teacher: Teacher) -> None:
        """Use another teacher from the next commit on."""
        self._offered = teacher

    def take_offer(self) -> bool:
        """Switch to the offered teacher, between two commits; return whether it changed."""
        offered, self._offered = self._offered, None
        if offered is None or offered.name == self.teacher:
            return False
        log.info("teacher changed: %s -> %s", self.teacher, offered.name)
        self._use(offered)
        return True

    def restore(self, position: StorePosition) -> None:
        """Load the drift counts of an assigned partition's devices."""
        if self._drift is not None:
            self._drift.restore(position.drift)
        position.drift.clear()

    def clear(self) -> None:
        """Forget all state, when the partitions are revoked."""
        self._ahead = None
        self._reports.clear()
        if self._drift is not None:
            self._drift.clear()

    @property
    def ahead(self) -> list[Window]:
        """The windows of the next flush, if their evaluation has begun."""
        return self._ahead[0] if self._ahead else []

    def look_ahead(self, windows: list[Window]) -> None:
        """Begin the evaluation of the next flush's windows."""
        self._ahead = windows, self._begin(windows)

    async def evaluate(self, windows: list[Window]) -> Evaluation:
        """Return the evaluation of a flush's windows, which is made again if it began with
        another teacher."""
        ahead, self._ahead = self._ahead, None
        if ahead is not None and ahead[0] is windows:
            found = await ahead[1]
            if found.teacher == self.teacher:
                return found
        return await self._begin(windows)

    def _begin(self, windows: list[Window]) -> "asyncio.Future[Evaluation]":
        return asyncio.get_running_loop().run_in_executor(self._thread, self._evaluate, windows)

    def _evaluate(self, windows: Sequence[Window]) -> Evaluation:
        """Answer events that have no answer, and score all windows in one call of the teacher."""
        began, teacher = time.monotonic(), self._teacher
        answered, failed = self._models.answer(windows)
        if self._task.upload != "segment":
            nothing = [None] * len(answered)
            took_s = time.monotonic() - began
            return Evaluation(teacher.name, answered, failed, None, nothing, took_s)
        segments = segments_of(self._task, answered)
        results = teacher.score(segments)
        kept = [i for i, found in enumerate(results) if not isinstance(found, TeacherFailed)]
        for window, found in zip(answered, results, strict=True):
            if isinstance(found, TeacherFailed):
                failed.append((window, str(found)))
        return Evaluation(
            teacher.name,
            [answered[i] for i in kept],
            failed,
            [segments[i] for i in kept],
            [cast(np.ndarray, results[i]) for i in kept],
            time.monotonic() - began,
        )

    def report(self, found: Evaluation, positions: Mapping[int, StorePosition]) -> Batch:
        """Observe the drift of evaluated windows and number their reports."""
        began, windows = time.monotonic(), found.windows
        batch = Batch(found.teacher, failed=found.failed)
        drift: Sequence[str | None] = [None] * len(windows)
        if self._drift is not None:
            answers = outputs_of(self._task, windows)
            drift = self._drift.observe(windows, found.segments, answers)
        revisions = self._revisions(windows, positions)
        for window, output, text in zip(windows, found.outputs, drift, strict=True):
            revision = revisions[window.device, window.start]
            commit = positions[window.partition].commit + 1
            batch.scored.append(ScoredWindow(window, output, revision, commit, text))
        batch.took_s = found.took_s + time.monotonic() - began
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
            self.reported((device, start), one.revision)
            newest = positions[one.window.partition].newest
            newest[device] = max(newest.get(device, -1), start)

    def reported(self, window: tuple[str, int], revision: int) -> None:
        """Note the last report of a window (device, start)."""
        self._reports[window] = revision + 1
        self._reports.move_to_end(window)
        if len(self._reports) > RECENT:
            self._reports.popitem(last=False)
