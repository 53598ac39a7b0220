"""The files that a device is started with: HAR's model with random weights, signed."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import safetensors.numpy
import torch

from federation.bootstrap.onnx_export import export_graph
from federation.bootstrap.self_test import make_probe
from streams.contract.artifact import GRAPH, PROBE, WEIGHTS, Manifest, pack
from streams.contract.task import Task
from streams.learning import learning
from streams.runtime.key_files import create_key
from streams.segments.segmentation import segments_of
from tests.bench.edge.answers.driver import WEIGHTS_FILE


def write_models(tasks: Sequence[Task], folder: Path) -> None:
    """A folder by each task's name, with one model in all: model.twa, signing.pub, model.onnx (the
    weights in the graph) and model.safetensors."""
    torch.manual_seed(0)
    task = tasks[0]
    model = task.build_model().eval()
    graph = export_graph(task, model)
    state = {name: value.numpy() for name, value in model.state_dict().items()}
    segments = np.stack([segment for _, _, segment, _ in segments_of(task.readings("x"), task)])
    files = {
        WEIGHTS: safetensors.numpy.save(state),
        GRAPH: graph,
        PROBE: make_probe(graph, state, segments),
    }
    for task in tasks:
        place = folder / task.name
        place.mkdir(parents=True)
        manifest = Manifest(
            kind="model", task=task.name, task_version=task.version, number=1,
            created_us=1, key="", files=[],
        )  # fmt: skip
        key = create_key(place / "signing.pem")
        (place / "model.twa").write_bytes(pack(manifest, files, key))
        (place / "model.onnx").write_bytes(filled(graph, state))
        (place / WEIGHTS_FILE).write_bytes(learning.to_safetensors(model.state_dict()))


def filled(graph: bytes, state: dict[str, np.ndarray]) -> bytes:
    """The graph with these weights as its own."""
    found = onnx.load_from_string(graph)
    for tensor in found.graph.initializer:
        if tensor.name in state:
            tensor.CopyFrom(onnx.numpy_helper.from_array(state[tensor.name], tensor.name))
    return bytes(found.SerializeToString())
