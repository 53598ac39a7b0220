"""Answers on the device: onnxruntime on one thread, weights swapped into the task's graph.

The graph is exported once per task version; its initializers are named by the state dict's keys,
so another model version is another set of initializers for the same graph.
"""

import numpy as np
import onnxruntime as ort
import safetensors.numpy

from streams.contract.artifact import GRAPH, WEIGHTS, Artifact
from streams.contract.errors import ArtifactError
from streams.contract.task import Task


class Engine:
    """One model version, ready to answer."""

    def __init__(self, task: Task, artifact: Artifact) -> None:
        """ArtifactError when the graph and the weights do not make a model of this task."""
        self.model = artifact.model
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        options.log_severity_level = 3  # 2 warns of every initializer that we replace
        # Optimizers fold the graph's own weights into others before ours are in: wrong answers.
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        try:
            weights = _used(artifact, safetensors.numpy.load(artifact.files[WEIGHTS]))
            # onnxruntime reads these in place: they must live as long as the session
            self._weights = {
                name: ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array))
                for name, array in weights.items()
            }
            for name, value in self._weights.items():
                options.add_initializer(name, value)
            self._session = ort.InferenceSession(
                artifact.files[GRAPH], options, providers=["CPUExecutionProvider"]
            )
            self._input = self._session.get_inputs()[0].name
            answer = self.run(np.zeros(task.segment_shape, np.float32))
        except ArtifactError:
            raise
        except Exception as exc:  # onnxruntime and safetensors raise many kinds
            text = str(exc).splitlines()[0][:200] if str(exc) else type(exc).__name__
            raise ArtifactError("not-runnable", f"{artifact.model}: {text}") from exc
        if answer.shape != (task.outputs,) or not np.isfinite(answer).all():
            raise ArtifactError("not-runnable", f"{artifact.model} answers {answer.shape}")

    def run(self, segment: np.ndarray) -> np.ndarray:
        """(channels, samples) float32 -> (outputs,) float32"""
        return np.asarray(self._session.run(None, {self._input: segment[None]})[0][0])


def _used(artifact: Artifact, weights: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The weights that the graph names. Counters of batch norm have no part in answers; floats that
    the graph does not know belong to another model."""
    graph = artifact.files[GRAPH]
    used = {name: array for name, array in weights.items() if name.encode() in graph}
    for name in weights.keys() - used.keys():
        if weights[name].dtype.kind == "f":
            raise ArtifactError("not-runnable", f"the graph has no weight {name}")
    return used
