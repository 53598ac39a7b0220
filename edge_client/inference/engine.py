"""Inference on the device: one segment at a time, answered by one model version."""

from collections import deque

import numpy as np

from streams.contract.artifact import Artifact
from streams.contract.task import Task
from streams.learning.input_adapter import InputAdapter
from streams.learning.onnx_model import OnnxModel


class Engine:
    """One model version, ready to answer; `latencies` (seconds) are those of its last answers."""

    def __init__(self, task: Task, artifact: Artifact, weights: bytes | None = None) -> None:
        """Build and test the engine; raise ArtifactError if it does not fit the task.

        `weights` (safetensors) replace the artifact's, or are an input adapter before them; they
        are not tested with its probe.
        """
        self.model = artifact.model
        self.created_us = artifact.manifest.created_us
        self.latencies: deque[float] = deque(maxlen=1000)
        self._model = OnnxModel(task, artifact, weights)

    @property
    def adapter(self) -> InputAdapter | None:
        """What is applied to segments before the graph."""
        return self._model.adapter

    def latency_us(self) -> tuple[float, float]:
        """Return p50 and p99 of the last answers in us, 0 before the first one. Not by
        numpy.percentile, which imports numpy.ma."""
        took = np.sort(list(self.latencies) or [0.0]) * 1e6
        p50, p99 = np.interp((0.5, 0.99), np.linspace(0, 1, len(took)), took)
        return float(p50), float(p99)

    def run(self, segment: np.ndarray) -> np.ndarray:
        """Return the outputs (outputs,) float32 of a segment (channels, samples) float32."""
        answer: np.ndarray = self._model.run(segment[None])[0]
        return answer

    def answers(self, segments: np.ndarray) -> np.ndarray:
        """Return the outputs (n, outputs) of segments, one at a time as for events."""
        return np.stack([self.run(segment) for segment in segments])
