"""The seam to onnxruntime: a graph on one thread, with weights inserted by the names of its
initializers.

The graph is exported once per task version; its initializers have the names of the state dict's
keys, so a model version is a set of initializers for the same graph. onnxruntime's optimizations
are off: its fusion of a convolution with bias and batch norm (seen in 1.32) keeps the graph's own
weights although others were given, and answers wrongly without a message. They would save a tenth
of the time in the HAR task.
"""

from collections.abc import Mapping

import numpy as np
import onnxruntime as ort


class OnnxSession:
    """A graph that answers segments; what onnxruntime raises passes through."""

    def __init__(self, graph: bytes, weights: Mapping[str, np.ndarray]) -> None:
        """Build the session; `weights` replace those of the graph and must all be in it."""
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
        for name, value in self._weights.items():
            options.add_initializer(name, value)
        self._session = ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        self._input = self._session.get_inputs()[0].name
        self._outputs = [self._session.get_outputs()[0].name]

    def run(self, segments: np.ndarray) -> np.ndarray:
        """Return the outputs (n, outputs) float32 of segments (n, channels, samples) float32."""
        answers: np.ndarray = self._session.run(self._outputs, {self._input: segments})[0]
        return answers
