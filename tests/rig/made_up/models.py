"""Signed artifacts with real ONNX graphs for the tests of what a device runs."""

from pathlib import Path

import numpy as np
import onnx
import safetensors.numpy
import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from federation.bootstrap.onnx_export import export_graph
from federation.evaluation.quantization import make_probe
from streams.contract.artifact import GRAPH, PROBE, WEIGHTS, Manifest, pack
from streams.contract.task import Task, load_task

TINY = f"{Path(__file__).parents[1] / 'made_up' / 'tiny_task.py'}:task"
tiny = load_task(TINY)


def plain(seed: int) -> nn.Module:
    """The tiny task's own model with random weights."""
    torch.manual_seed(seed)
    return tiny.build_model().eval()


def with_batch_norm(seed: int) -> nn.Module:
    """A convolution that has a bias, then batch norm with statistics of its own."""
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Conv1d(2, 4, 5, bias=True), nn.BatchNorm1d(4), nn.ReLU(),
        nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(4, 3),
    )  # fmt: skip
    with torch.no_grad():
        for name, value in model.named_buffers():
            if value.is_floating_point():
                value.copy_(torch.rand_like(value) + (0.5 if name.endswith("var") else 0.0))
    return model.eval()


def hanging(graph: bytes, most: float = 1000.0) -> bytes:
    """The same graph, which counts for ever once a value of the segment is above `most`."""
    model = onnx.load_from_string(graph)
    inside = model.graph
    answer = inside.output[0].name
    for node in inside.node:
        node.output[:] = ["answer" if name == answer else name for name in node.output]
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["go"], ["go_on"]),
            helper.make_node("Identity", ["before"], ["after"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("turn", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("before", TensorProto.FLOAT, []),
        ],
        [
            helper.make_tensor_value_info("go_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("after", TensorProto.FLOAT, []),
        ],
    )
    numbers = {"most": np.float32(most), "turns": np.int64(2**62), "nothing": np.float32(0)}
    inside.initializer.extend(
        numpy_helper.from_array(np.array(value), name) for name, value in numbers.items()
    )
    inside.node.extend(
        [
            helper.make_node("ReduceMax", [inside.input[0].name], ["largest"], keepdims=0),
            helper.make_node("Greater", ["largest", "most"], ["far"]),
            helper.make_node("Loop", ["turns", "far", "nothing"], ["still_nothing"], body=body),
            helper.make_node("Add", ["answer", "still_nothing"], [answer]),
        ]
    )
    return bytes(model.SerializeToString())


def segments(count: int, seed: int = 0) -> np.ndarray:
    """(count, channels, samples)"""
    noise = np.random.default_rng(seed)
    return noise.normal(0, 2, (count, *tiny.segment_shape)).astype(np.float32)


_exported: dict[str, bytes] = {}  # by the layers: an export takes torch a second


def exported(model: nn.Module) -> bytes:
    """The graph of a model, with the weights of the first one that had the same layers."""
    layers = repr(model)
    if layers not in _exported:
        _exported[layers] = export_graph(tiny, model)
    return _exported[layers]


def artifact(
    key: Ed25519PrivateKey,
    model: nn.Module,
    number: int = 1,
    *,
    graph: bytes | None = None,
    task: Task = tiny,
    kind: str = "model",
    lacking: tuple[str, ...] = (),
    probe: bytes | None = None,
) -> bytes:
    """A model version; `graph` is one exported before, for the same layers. Its probe holds the
    model's answers, unless one is given, also where some tensors are `lacking`."""
    manifest = Manifest(
        kind=kind, task=task.name, task_version=task.version, number=number,
        created_us=number, key="", files=[],
    )  # fmt: skip
    graph = graph or exported(model)
    state = {name: value.numpy() for name, value in model.state_dict().items()}
    if probe is None:
        probe = make_probe(graph, state, segments(8))
    kept = {name: value for name, value in state.items() if name not in lacking}
    files = {WEIGHTS: safetensors.numpy.save(kept), GRAPH: graph, PROBE: probe}
    return pack(manifest, files, key)
