"""The seam to onnxruntime: a graph on one thread, with weights inserted by the names of its
initializers.

The graph is exported once per task version; its initializers have the names of the state dict's
keys, so a model version is a set of initializers for the same graph. In the graph they have no
values, only the name of a file that is never opened. onnxruntime's optimizations are off: its
fusion of a convolution with bias and batch norm (seen in 1.32) has kept a graph's own weights
although others were given, without a message. They would save a tenth of the time in the HAR task.

A graph that was made elsewhere (OnnxFile) has the task's functions around it. One whose first axis
is fixed is called with as many segments, of which the last is repeated.
"""

from collections.abc import Mapping

import numpy as np
import onnxruntime as ort

from streams.contract.task.onnx_file import OnnxFile


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
