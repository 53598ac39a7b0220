"""Running a model's ONNX graph with any weights, as devices do, without torch; and the self-test in
a model's artifact: stored inputs and the model's answers.

`probe.safetensors` has `inputs` (n, channels, samples) and `outputs` (n, outputs), both float32.
The inputs are central segments, and each version takes them from its base; a device answers them
before it serves the version (edge_client.inference.engine).
"""

from collections.abc import Mapping

import numpy as np
import onnx
import safetensors.numpy

from streams.contract.artifact import PROBE
from streams.learning.onnx_session import OnnxSession

INPUT, OUTPUT = "segments", "outputs"
BATCH = 1024
PROBES = 8


def run_graph(
    graph: bytes,
    segments: np.ndarray,
    weights: Mapping[str, np.ndarray] | None = None,
    around: object = None,
) -> np.ndarray:
    """Return outputs (n, outputs) float32 of segments (n, channels, samples); `weights` replace
    those of the graph by name. around: the task's `build_model`, see OnnxSession.

    Weights that the graph does not use, such as batch norm counters, are ignored.
    """
    session = OnnxSession(graph, known_to(graph, weights or {}), around)
    parts = [
        session.run(segments[at : at + BATCH]) for at in range(0, max(len(segments), 1), BATCH)
    ]
    return np.concatenate(parts).astype(np.float32, copy=False)


def known_to(graph: bytes, weights: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return those of the weights that a graph uses."""
    names = {tensor.name for tensor in onnx.load_from_string(graph).graph.initializer}
    return {name: value for name, value in weights.items() if name in names}


def embeddings(graph: bytes) -> set[str]:
    """Return the weights of which a graph takes rows by an index."""
    model = onnx.load_from_string(graph).graph
    taken = {node.input[0] for node in model.node if node.op_type == "Gather"}
    return taken & {tensor.name for tensor in model.initializer}


# --- self-test ------------------------------------------------------------------------------------


def make_probe(
    graph: bytes, weights: Mapping[str, np.ndarray], segments: np.ndarray, around: object = None
) -> bytes:
    """Return the probe with at most PROBES of the segments (n, channels, samples), evenly
    spaced."""
    rows = np.unique(np.linspace(0, len(segments) - 1, PROBES).astype(np.int64))
    inputs = np.ascontiguousarray(segments[rows], np.float32)
    outputs = run_graph(graph, inputs, weights, around)
    return safetensors.numpy.save({"inputs": inputs, "outputs": outputs})


def renew_probe(
    files: Mapping[str, bytes],
    graph: bytes,
    weights: Mapping[str, np.ndarray],
    around: object = None,
) -> bytes:
    """Return the probe of a version's files with the answers of another graph or other weights."""
    inputs = safetensors.numpy.load(files[PROBE])["inputs"]
    return make_probe(graph, weights, inputs, around)
