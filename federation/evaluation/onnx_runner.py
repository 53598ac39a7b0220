"""Running a model's ONNX graph with any weights, as devices do, without torch."""

from collections.abc import Mapping

import numpy as np
import onnx
import onnxruntime

INPUT, OUTPUT = "segments", "outputs"
BATCH = 1024


def run_graph(
    graph: bytes, segments: np.ndarray, weights: Mapping[str, np.ndarray] | None = None
) -> np.ndarray:
    """Return outputs (n, outputs) float32 of segments (n, channels, samples); `weights` replace
    those of the graph by name.

    Weights that the graph does not use, such as batch norm counters, are ignored. onnxruntime's
    optimizations are off, as on devices: its fusion of a convolution with bias and batch norm (seen
    in 1.32) keeps the graph's own weights although others were given, and answers wrongly without a
    message. They would save a tenth of the time in the HAR task.
    """
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    names = {tensor.name for tensor in onnx.load_from_string(graph).graph.initializer}
    held = [  # the session reads these while it is built: they must outlive it
        (name, onnxruntime.OrtValue.ortvalue_from_numpy(np.asarray(value, order="C")))
        for name, value in (weights or {}).items()
        if name in names
    ]
    for name, value in held:
        options.add_initializer(name, value)
    session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    parts = [
        session.run([OUTPUT], {INPUT: segments[at : at + BATCH]})[0]
        for at in range(0, max(len(segments), 1), BATCH)
    ]
    return np.concatenate(parts).astype(np.float32, copy=False)
