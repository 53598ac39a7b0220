"""The self-test in a model's artifact: stored inputs and the model's answers.

`probe.safetensors` has `inputs` (n, channels, samples) and `outputs` (n, outputs), both float32.
The inputs are central segments, and each version takes them from its base; a device answers them
before it serves the version (edge_client.inference.engine).
"""

from collections.abc import Mapping

import numpy as np
import safetensors.numpy

from federation.evaluation.onnx_runner import run_graph
from streams.contract.artifact import GRAPH, PROBE, Artifact

PROBES = 8


def make_probe(graph: bytes, weights: Mapping[str, np.ndarray], segments: np.ndarray) -> bytes:
    """Return the probe with at most PROBES of the segments (n, channels, samples), evenly
    spaced."""
    rows = np.unique(np.linspace(0, len(segments) - 1, PROBES).astype(np.int64))
    inputs = np.ascontiguousarray(segments[rows], np.float32)
    outputs = run_graph(graph, inputs, weights)
    return safetensors.numpy.save({"inputs": inputs, "outputs": outputs})


def renew_probe(base: Artifact, weights: Mapping[str, np.ndarray]) -> bytes:
    """Return the probe with the base's inputs and the graph's answers with other weights."""
    inputs = safetensors.numpy.load(base.files[PROBE])["inputs"]
    return make_probe(base.files[GRAPH], weights, inputs)
