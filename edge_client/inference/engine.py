"""Answers on the device: onnxruntime on one thread, weights swapped into the task's graph.

The graph is exported once per task version; its initializers are named by the state dict's keys,
so another model version is another set of initializers for the same graph.

Self-test: the artifact's `probe.safetensors` holds `inputs` (n, channels, samples) and `outputs`
(n, outputs), float32, n at least 1: what the server's onnxruntime answered with these weights. An
engine must answer the same, to TOLERANCE of the largest stored output.
"""

from collections import deque

import numpy as np
import onnxruntime as ort
import safetensors.numpy

from streams.contract.artifact import GRAPH, PROBE, WEIGHTS, Artifact
from streams.contract.errors import ArtifactError
from streams.contract.payload import to_float32
from streams.contract.task import Task

# Of the largest stored output. Another processor, or another onnxruntime, sums in another order:
# by that torch, onnxruntime and float64 differ by 2e-7 in the built-in task's model. 500 times that
# leaves room for deeper models, and is below what a round of training changes.
TOLERANCE = 1e-4


class Engine:
    """One model version, ready to answer. `latencies` are those of its latest answers, seconds."""

    def __init__(self, task: Task, artifact: Artifact, own: bytes | None = None) -> None:
        """ArtifactError when the graph and the weights do not make a model of this task. `own` are
        other weights (safetensors) for the artifact's graph: the stored probe is not theirs."""
        self.model = artifact.model
        self.latencies: deque[float] = deque(maxlen=1000)
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        options.log_severity_level = 3  # 2 warns of every initializer that we replace
        # Optimizers fold the graph's own weights into others before ours are in: wrong answers.
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        try:
            tensors = to_float32(safetensors.numpy.load(own or artifact.files[WEIGHTS]))
            weights = _used(artifact, tensors)
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
            self._outputs = [self._session.get_outputs()[0].name]
            answer = self.run(np.zeros(task.segment_shape, np.float32))
            if answer.shape != (task.outputs,) or not np.isfinite(answer).all():
                raise ArtifactError("not-runnable", f"{self.model} answers {answer.shape}")
            if own is None:
                self._test(task, artifact)
        except ArtifactError:
            raise
        except Exception as exc:  # onnxruntime and safetensors raise many kinds
            text = str(exc).splitlines()[0][:200] if str(exc) else type(exc).__name__
            raise ArtifactError("not-runnable", f"{artifact.model}: {text}") from exc

    def run(self, segment: np.ndarray) -> np.ndarray:
        """(channels, samples) float32 -> (outputs,) float32"""
        answer: np.ndarray = self._session.run(self._outputs, {self._input: segment[None]})[0][0]
        return answer

    def _test(self, task: Task, artifact: Artifact) -> None:
        inputs, stored = read_probe(artifact, task)
        off = float(np.abs(np.stack([self.run(x) for x in inputs]) - stored).max())
        allowed = TOLERANCE * float(np.abs(stored).max())
        if not off <= allowed:  # also where it is no number
            raise ArtifactError(
                "self-test", f"{self.model} answers the probe {off:.2g} off, {allowed:.2g} allowed"
            )


def read_probe(artifact: Artifact, task: Task) -> tuple[np.ndarray, np.ndarray]:
    """(n, channels, samples) and (n, outputs) float32; ArtifactError where there is none."""
    try:
        tensors = safetensors.numpy.load(artifact.files[PROBE])
        inputs, outputs = tensors["inputs"], tensors["outputs"]
    except KeyError as exc:
        raise ArtifactError("self-test", f"{artifact.model} has no probe: {exc}") from exc
    except Exception as exc:  # safetensors' own errors derive from Exception alone
        raise ArtifactError("self-test", f"the probe of {artifact.model}: {exc}"[:200]) from exc
    n = len(inputs) if inputs.ndim else 0
    shapes = inputs.shape == (n, *task.segment_shape) and outputs.shape == (n, task.outputs)
    types = inputs.dtype == outputs.dtype == np.float32
    if not (n and shapes and types and np.isfinite(inputs).all() and np.isfinite(outputs).all()):
        found = f"{inputs.dtype}{inputs.shape} to {outputs.dtype}{outputs.shape}"
        raise ArtifactError("self-test", f"the probe of {artifact.model} does not fit: {found}")
    return inputs, outputs


def _used(artifact: Artifact, weights: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The weights that the graph names. Counters of batch norm have no part in answers; floats that
    the graph does not know belong to another model."""
    graph = artifact.files[GRAPH]
    used = {name: array for name, array in weights.items() if name.encode() in graph}
    for name in weights.keys() - used.keys():
        if weights[name].dtype.kind == "f":
            raise ArtifactError("not-runnable", f"the graph has no weight {name}")
    return used
