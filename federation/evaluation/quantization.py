"""What a release consists of, and with `Task.quantize` its graph in int8.

The graph is quantized by onnxruntime's own tools: statically, on segments of the pilots that
`prepare` has left in the registry, weights by channel and to 7 bits of their 8, so that sums do not
saturate on any processor. Batch norms are folded before. The trained weights stay as they are:
devices that train get them, too. Held-out devices' and recent windows' segments at the gate, the
self-test, canaries and batch jobs are answered by the quantized graph.

`run_graph` answers by a model's ONNX graph with any weights, as devices do, without torch. The
self-test in a model's artifact are stored inputs and the model's answers: `probe.safetensors` has
`inputs` (n, channels, samples) and `outputs` (n, outputs), both float32. The inputs are central
segments, and each version takes them from its base; a device answers them before it serves the
version (edge_client.inference.engine).
"""

import contextlib
import logging
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx
import safetensors.numpy
from onnxruntime import quantization
from onnxruntime.quantization.shape_inference import quant_pre_process

from federation.admission import digest
from streams.contract.artifact import GRAPH, INT8, PROBE, WEIGHTS
from streams.contract.errors import TaskError
from streams.contract.task import Task
from streams.contract.weights import payload
from streams.learning.onnx_model import OnnxSession, int8_file, int8_graph

INPUT, OUTPUT = "segments", "outputs"
ROWS = 1024
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
    parts = [session.run(segments[at : at + ROWS]) for at in range(0, max(len(segments), 1), ROWS)]
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


SEGMENTS = 256  # of the pilots, at most
BATCH = 32
WORTH = 0.9  # of the float bytes: a graph that does not get smaller has nothing to quantize

Tensors = Mapping[str, np.ndarray]
Graph = tuple[bytes, Tensors]  # and its weights


@dataclass(frozen=True)
class Quantizer:
    """Makes the int8 graphs of a task, each once. known: files of those that exist, by the graph
    and the digest of the weights; None for a version that answers in float."""

    task: Task
    segments: np.ndarray
    known: dict[tuple[bytes, str], bytes | None] = field(default_factory=dict)

    @classmethod
    def of(
        cls, task: Task, calibration: bytes | None, base: Mapping[str, bytes] | None = None
    ) -> "Quantizer":
        """calibration: the registry's; base: files of the version that is served."""
        none = np.zeros((0, *task.segment_shape), np.float32)
        found = cls(task, safetensors.numpy.load(calibration)["segments"] if calibration else none)
        if base is not None:
            weights = payload.to_float32(safetensors.numpy.load(base[WEIGHTS]))
            found.known[base[GRAPH], digest(weights)] = base.get(INT8)
        return found

    def int8(self, graph: bytes, weights: Tensors) -> bytes | None:
        """Return the file of the graph in int8 with these weights; None for a version in float."""
        if not self.task.quantize and not any(self.known.values()):
            return None
        version = graph, digest(weights)
        if version not in self.known:
            self.known[version] = (
                _quantized(self.task, graph, weights, self.segments) if self.task.quantize else None
            )
        return self.known[version]

    def answering(self, graph: bytes, weights: Tensors) -> Graph:
        """Return what devices run of a version with these weights."""
        int8 = self.int8(graph, weights)
        return (graph, weights) if int8 is None else (int8_graph(int8), {})

    def release(self, files: Mapping[str, bytes], weights: Tensors) -> dict[str, bytes]:
        """Return the files of a version: those given, which have the graph, the weights and a
        self-test, with the int8 graph and what it answers to the self-test."""
        found = {name: data for name, data in files.items() if name != INT8}
        if (int8 := self.int8(files[GRAPH], weights)) is not None:
            found[INT8] = int8
        answering = self.answering(files[GRAPH], weights)
        return {**found, PROBE: renew_probe(files, *answering, self.task.build_model)}


def complete(graph: bytes, weights: Tensors) -> onnx.ModelProto:
    """Return a graph with the values of its weights."""
    model = onnx.load_from_string(graph)
    for tensor in model.graph.initializer:
        if tensor.name in weights:
            tensor.CopyFrom(onnx.numpy_helper.from_array(weights[tensor.name], tensor.name))
    return model


def _quantized(task: Task, graph: bytes, weights: Tensors, segments: np.ndarray) -> bytes:
    where = f"task {task.name!r}: the model cannot be quantized"
    if not len(segments):
        raise TaskError(f"{where}: the registry has no segments of pilots; run `tidewheel prepare`")
    with tempfile.TemporaryDirectory() as folder, _quiet():
        whole, folded, made = (Path(folder) / name for name in ("whole", "folded", "int8"))
        onnx.save(complete(graph, weights), whole)
        try:
            # A convolution without a bias is exported with one that is computed: the second pass
            # folds what the first makes constant, and with it batch norm into the convolution.
            for given in (whole, folded):
                quant_pre_process(given, folded, skip_symbolic_shape=True)
            quantization.quantize_static(
                folded, made, _Reader(task, graph, weights, segments),
                quant_format=quantization.QuantFormat.QOperator, per_channel=True,
                reduce_range=True, activation_type=quantization.QuantType.QUInt8,
                weight_type=quantization.QuantType.QInt8,
            )  # fmt: skip
        except Exception as exc:  # whatever its passes raise
            text = (str(exc).strip() or type(exc).__name__).splitlines()[0][:200]
            raise TaskError(f"{where}: {text}") from exc
        found = made.read_bytes()
    size = len(graph) + sum(each.nbytes for each in weights.values())
    if len(found) >= WORTH * size:
        raise TaskError(f"{where}: {len(found):,} bytes in int8, {size:,} in float")
    return int8_file(found)


class _Reader(quantization.CalibrationDataReader):  # type: ignore[misc]  # untyped
    """Gives the quantizer what the graph reads of segments, BATCH at a time."""

    def __init__(self, task: Task, graph: bytes, weights: Tensors, segments: np.ndarray) -> None:
        session = OnnxSession(graph, known_to(graph, weights), task.build_model)
        size = session.block or BATCH
        rows = (np.minimum(np.arange(at, at + size), len(segments) - 1)
                for at in range(0, len(segments), size))  # fmt: skip
        self._fed = (session.inputs(segments[each]) for each in rows)

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self._fed, None)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Suppress what the tools log about every tensor that they leave in float."""
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        yield
    finally:
        root.setLevel(level)
