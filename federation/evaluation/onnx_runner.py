"""Running a model's ONNX graph with any weights, as devices do, without torch."""

from collections.abc import Mapping

import numpy as np
import onnx

from streams.learning.onnx_session import OnnxSession

INPUT, OUTPUT = "segments", "outputs"
BATCH = 1024


def run_graph(
    graph: bytes, segments: np.ndarray, weights: Mapping[str, np.ndarray] | None = None
) -> np.ndarray:
    """Return outputs (n, outputs) float32 of segments (n, channels, samples); `weights` replace
    those of the graph by name.

    Weights that the graph does not use, such as batch norm counters, are ignored.
    """
    names = {tensor.name for tensor in onnx.load_from_string(graph).graph.initializer}
    given = weights or {}
    session = OnnxSession(graph, {name: given[name] for name in given if name in names})
    parts = [
        session.run(segments[at : at + BATCH]) for at in range(0, max(len(segments), 1), BATCH)
    ]
    return np.concatenate(parts).astype(np.float32, copy=False)
