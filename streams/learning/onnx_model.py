"""A model version in onnxruntime, with its self-test: what a device answers with, and a batch job.

This is the seam to onnxruntime (OnnxSession): a graph on one thread, with weights inserted by the
names of its initializers. The graph is exported once per task version; its initializers have the
names of the state dict's keys, so a model version is a set of initializers for the same graph. In
the graph they have no values, only the name of a file that is never opened. onnxruntime's
optimizations are off: its fusion of a convolution with bias and batch norm (seen in 1.32) has kept
a graph's own weights although others were given, without a message. They would save a tenth of the
time in the HAR task.

A graph that was made elsewhere (OnnxFile) has the task's functions around it. One whose first axis
is fixed is called with as many segments, of which the last is repeated.

Self-test: the artifact's `probe.safetensors` holds `inputs` (n, channels, samples) and `outputs`
(n, outputs), float32, n >= 1: the answers of the server's onnxruntime with these weights. A model
must give the same answers, within TOLERANCE of the largest stored output; a quantized one, where a
sum that is rounded otherwise is a whole step off, within STEPS of it.
"""

from collections.abc import Mapping

import numpy as np
import onnxruntime as ort
import safetensors.numpy

from streams.contract.artifact import GRAPH, INT8, PROBE, WEIGHTS, Artifact
from streams.contract.errors import ArtifactError, line_of
from streams.contract.task import Task
from streams.contract.task.onnx_file import OnnxFile
from streams.contract.weights.payload import to_float32
from streams.learning.input_adapter import InputAdapter, taken_from


class OnnxSession:
    """A graph that answers segments; what onnxruntime raises passes through."""

    def __init__(
        self, graph: bytes, weights: Mapping[str, np.ndarray], around: object = None
    ) -> None:
        """Build the session; `weights` are those that the graph has no values of, all of them.
        around: a task's `build_model` or `build_teacher`; an OnnxFile's functions are called."""
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        options.log_severity_level = 3  # 2 warns of every initializer that we replace
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        # onnxruntime reads these in place: they must live as long as the session
        self._weights = {
            name: ort.OrtValue.ortvalue_from_numpy(np.asarray(array, order="C"))
            for name, array in weights.items()
        }
        options.add_external_initializers(list(self._weights), list(self._weights.values()))
        self._session = ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        self._inputs = [each.name for each in self._session.get_inputs()]
        self._outputs = [self._session.get_outputs()[0].name]
        self._around = around if isinstance(around, OnnxFile) else None
        first = self._session.get_inputs()[0].shape[:1]
        self.block = first[0] if first and isinstance(first[0], int) else 0  # rows a call
        if self._around is not None and self._around.after is not None:
            self._outputs = [each.name for each in self._session.get_outputs()]

    def run(self, segments: np.ndarray) -> np.ndarray:
        """Return the outputs (n, outputs) float32 of segments (n, channels, samples) float32."""
        if self._around is not None:
            return self._run_around(self._around, segments)
        answers: np.ndarray = self._session.run(self._outputs, {self._inputs[0]: segments})[0]
        return answers

    def inputs(self, segments: np.ndarray) -> dict[str, np.ndarray]:
        """Return what the graph reads of segments, by the names of its inputs."""
        if self._around is None:
            return {self._inputs[0]: segments}
        return self._around.inputs(segments, self._inputs)

    def _run_around(self, around: OnnxFile, segments: np.ndarray) -> np.ndarray:
        if self.block and len(segments) != self.block:
            starts = range(0, len(segments), self.block)
            return np.concatenate([self._padded(around, segments[at:]) for at in starts])
        found = self._session.run(self._outputs, around.inputs(segments, self._inputs))
        return around.answers(dict(zip(self._outputs, found, strict=True)))

    def _padded(self, around: OnnxFile, segments: np.ndarray) -> np.ndarray:
        """Answer the first rows of a call, or those that there are and the last one again."""
        rows = np.minimum(np.arange(self.block), len(segments) - 1)
        return self._run_around(around, segments[rows])[: len(segments)]


# Of the largest stored output. Other processors and onnxruntime versions sum in another order: in
# the built-in task's model torch, onnxruntime and float64 differ by 2e-7. 500 times that leaves
# room for deeper models, and is below the change by a round of training.
TOLERANCE = 1e-4
STEPS = 0.05
BYTES = "int8/graph"  # no module of torch has a slash in its name


class OnnxModel:
    """One model version, ready to answer."""

    def __init__(self, task: Task, artifact: Artifact, weights: bytes | None = None) -> None:
        """Build and test the model; raise ArtifactError if it does not fit the task.

        `weights` (safetensors) replace the artifact's, or are an input adapter before them; they
        are not tested with its probe.
        """
        self.model = artifact.model
        self.adapter: InputAdapter | None = None
        try:
            given = {} if weights is None else safetensors.numpy.load(weights)
            self.adapter, given = taken_from(given, len(task.channels))
            graph, tensors = _answering(artifact, given)
            self._session = OnnxSession(graph, tensors, task.build_model)
            answer = self.run(np.zeros((1, *task.segment_shape), np.float32))[0]
            if answer.shape != (task.outputs,) or not np.isfinite(answer).all():
                raise ArtifactError("not-runnable", f"{self.model} answers {answer.shape}")
            if weights is None:
                self._test(task, artifact)
        except ArtifactError:
            raise
        except Exception as exc:  # onnxruntime and safetensors raise many kinds
            text = line_of(exc)[:200]
            raise ArtifactError("not-runnable", f"{artifact.model}: {text}") from exc

    def run(self, segments: np.ndarray) -> np.ndarray:
        """Return the outputs (n, outputs) float32 of segments (n, channels, samples) float32."""
        if self.adapter is not None:
            segments = self.adapter.apply(segments)
        return self._session.run(segments)

    def _test(self, task: Task, artifact: Artifact) -> None:
        inputs, stored = read_probe(artifact, task)
        found = np.concatenate([self.run(x[None]) for x in inputs])
        off = float(np.abs(found - stored).max())
        share = STEPS if INT8 in artifact.files else TOLERANCE
        allowed = share * float(np.abs(stored).max())
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


def answering(artifact: Artifact) -> bytes:
    """Return what a version answers with as safetensors: a challenger's `weights`."""
    return artifact.files[INT8 if INT8 in artifact.files else WEIGHTS]


def int8_file(graph: bytes) -> bytes:
    """Return the file of a quantized graph."""
    return safetensors.numpy.save({BYTES: np.frombuffer(graph, np.uint8)})


def int8_graph(file: bytes) -> bytes:
    return safetensors.numpy.load(file)[BYTES].tobytes()


def _answering(
    artifact: Artifact, given: dict[str, np.ndarray]
) -> tuple[bytes, dict[str, np.ndarray]]:
    """Return the graph that answers, and its weights: those given, or the artifact's."""
    given = given or safetensors.numpy.load(answering(artifact))
    if BYTES in given:
        return given[BYTES].tobytes(), {}
    return artifact.files[GRAPH], _used(artifact, to_float32(given))


def _used(artifact: Artifact, weights: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the weights that the graph uses. Batch norm counters are unused; a float tensor that
    the graph lacks belongs to another model and raises ArtifactError."""
    graph = artifact.files[GRAPH]
    used = {name: array for name, array in weights.items() if _as_in_graph(name) in graph}
    for name in weights.keys() - used.keys():
        if weights[name].dtype.kind == "f":
            raise ArtifactError("not-runnable", f"the graph has no weight {name}")
    return used


def _as_in_graph(name: str) -> bytes:
    """Return a name as protobuf has it: after its length, so that it is no part of another one."""
    text = name.encode()
    length, size = bytearray(), len(text)
    while size > 127:
        length.append(size & 127 | 128)
        size >>= 7
    return bytes([*length, size]) + text
