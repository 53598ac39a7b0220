"""The fleet's models in a worker: with `Task.answer_by="worker"` events may come without an answer,
and the version answers that their device would serve (`DesiredState.target`).

The answer is computed when a window is scored and stored with it: after a crash before that another
version may answer.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from streams.contract.decisions import DesiredState
from streams.contract.events.compact import UNANSWERED
from streams.contract.task import Task
from streams.worker.windows.tumbling import Window, WindowSlice

if TYPE_CHECKING:  # a worker has no onnxruntime where devices answer
    from streams.learning.onnx_model import OnnxModel

ROWS_PER_PASS = 1024

log = logging.getLogger(__name__)


class DeviceModels:
    """The versions that are served. `offer` is called on another thread than the rest."""

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
