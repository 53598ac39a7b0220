"""Inference on the device: onnxruntime on one thread, with weights inserted into the task's graph.

The graph is exported once per task version; its initializers have the names of the state dict's
keys, so a model version is a set of initializers for the same graph.

Self-test: the artifact's `probe.safetensors` holds `inputs` (n, channels, samples) and `outputs`
(n, outputs), float32, n >= 1: the answers of the server's onnxruntime with these weights. An engine
must give the same answers, within TOLERANCE of the largest stored output.
"""

from collections import deque

import numpy as np
import onnxruntime as ort
import safetensors.numpy

from streams.contract.artifact import GRAPH, PROBE, WEIGHTS, Artifact
from streams.contract.errors import ArtifactError
from streams.contract.payload import to_float32
from streams.contract.task import Task

# Of the largest stored output. Other processors and onnxruntime versions sum in another order: in
# the built-in task's model torch, onnxruntime and float64 differ by 2e-7. 500 times that leaves
# room for deeper models, and is below the change by a round of training.
TOLERANCE = 1e-4


class Engine:
    """One model version, ready to answer; `latencies` (seconds) are those of its last answers."""

    def __init__(self, task: Task, artifact: Artifact, weights: bytes | None = None) -> None:
        """Build and test the engine; raise ArtifactError if it does not fit the task.

        `weights` (safetensors) replace the artifact's; they are not tested with its probe.
        """
        self.model = artifact.model
        self.latencies: deque[float] = deque(maxlen=1000)
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        options.log_severity_level = 3  # 2 warns of every initializer that we replace
        # Optimizers fold the graph's own weights into others before ours are in: wrong answers.
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        try:
            tensors = to_float32(safetensors.numpy.load(weights or artifact.files[WEIGHTS]))
            # onnxruntime reads these in place: they must live as long as the session
            self._weights = {
                name: ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array))
                for name, array in _used(artifact, tensors).items()
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
            if weights is None:
                self._test(task, artifact)
        except ArtifactError:
            raise
        except Exception as exc:  # onnxruntime and safetensors raise many kinds
            text = str(exc).splitlines()[0][:200] if str(exc) else type(exc).__name__
            raise ArtifactError("not-runnable", f"{artifact.model}: {text}") from exc

    def run(self, segment: np.ndarray) -> np.ndarray:
        """Return the outputs (outputs,) float32 of a segment (channels, samples) float32."""
        answer: np.ndarray = self._session.run(self._outputs, {self._input: segment[None]})[0][0]
        return answer

    def _test(self, task: Task, artifact: Artifact) -> None:
        inputs, stored = read_probe(artifact, task)
        off = float(np.abs(np.stack([self.run(x) for x in inputs]) - stored).max())
        allowed = TOLERANCE * float(np.abs(stored).max())
        if not off <= allowed:  # also for NaN
            raise ArtifactError(
                "self-test", f"{self.model} answers the probe {off:.2g} off, {allowed:.2g} allowed"
            )


def read_probe(artifact: Artifact, task: Task) -> tuple[np.ndarray, np.ndarray]:
    """Return the probe: inputs (n, channels, samples) and outputs (n, outputs) float32; raise
    ArtifactError if it is missing or invalid."""
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
    """Return the weights that the graph uses. Batch norm counters are unused; a float tensor that
    the graph lacks belongs to another model and raises ArtifactError."""
    graph = artifact.files[GRAPH]
    used = {name: array for name, array in weights.items() if name.encode() in graph}
    for name in weights.keys() - used.keys():
        if weights[name].dtype.kind == "f":
            raise ArtifactError("not-runnable", f"the graph has no weight {name}")
    return used
