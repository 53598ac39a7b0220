"""The agent's engine with torch in onnxruntime's place, for the driver: the module as the task
builds it, eager, one thread, no gradients."""

import sys
import types
from collections import deque
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from streams.contract.artifact import WEIGHTS, Artifact
from streams.contract.task import Task
from streams.learning import learning


def take_over() -> None:
    """Agents that are made from now on answer with torch, and onnxruntime is not loaded."""
    torch.set_num_threads(1)
    sys.modules["onnxruntime"] = types.ModuleType("onnxruntime")
    from edge_client.inference import slots

    slots.Engine = Engine  # type: ignore[assignment, misc]


class Engine:
    """Looks like edge_client.inference.engine.Engine."""

    def __init__(self, task: Task, artifact: Artifact) -> None:
        self.model = artifact.model
        self.latencies: deque[float] = deque(maxlen=1000)
        self._call = _eager(task, artifact.files[WEIGHTS])

    def run(self, segment: np.ndarray) -> np.ndarray:
        return np.asarray(self._call(segment)[0])


def bare_call(task: Task, weights: Path) -> Callable[[np.ndarray], np.ndarray]:
    """segment (channels, samples) -> (1, outputs)"""
    return _eager(task, weights.read_bytes())


def _eager(task: Task, weights: bytes) -> Callable[[np.ndarray], np.ndarray]:
    module = learning.load_weights(task.build_model(), weights).eval()

    def call(segment: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return np.asarray(module(torch.from_numpy(segment[None])).numpy())

    return call
