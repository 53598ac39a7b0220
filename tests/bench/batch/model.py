"""HAR's model with random weights and a drift reference: signed, and as one ONNX file."""

from pathlib import Path

import numpy as np
import safetensors.numpy
import torch

from federation.bootstrap.onnx_export import export_graph
from federation.bootstrap.self_test import make_probe
from streams.contract.artifact import DRIFT, GRAPH, PROBE, WEIGHTS, Manifest, pack
from streams.contract.task import Task
from streams.drift.reference import Feature, Reference, cells_of, frozen_edges, observe
from streams.runtime.key_files import create_key
from tests.bench.edge.model import filled

SEEN = 5_000  # segments of the reference


def write_model(task: Task, folder: Path) -> None:
    """Write model.twa, signing.pub and model.onnx, which has the weights in its graph."""
    torch.manual_seed(0)
    model = task.build_model().eval()
    graph = export_graph(task, model)
    state = {name: value.numpy() for name, value in model.state_dict().items()}
    segments = np.random.default_rng(1).standard_normal((SEEN, *task.segment_shape), np.float32)
    with torch.no_grad():
        outputs = model(torch.from_numpy(segments)).numpy()
    files = {
        WEIGHTS: safetensors.numpy.save(state),
        GRAPH: graph,
        PROBE: make_probe(graph, state, segments[:64]),
        DRIFT: _reference(task, segments, outputs).encode(),
    }
    folder.mkdir(parents=True)
    manifest = Manifest(
        task=task.name, task_version=task.version, number=1, created_us=1, key="", files=[]
    )
    (folder / "model.twa").write_bytes(pack(manifest, files, create_key(folder / "signing.pem")))
    (folder / "model.onnx").write_bytes(filled(graph, state))


def _reference(task: Task, segments: np.ndarray, outputs: np.ndarray) -> Reference:
    features = []
    for (channel, kind), values in observe(task, segments, outputs).items():
        edges = frozen_edges(task, kind, values)
        cells = cells_of(np.asarray(edges), np.asarray(values, np.float64).reshape(-1))
        counts = np.bincount(cells, minlength=len(edges) + 3).tolist()
        ordered = kind != "answer"
        features.append(
            Feature(channel=channel, kind=kind, ordered=ordered, edges=list(edges), counts=counts)
        )
    return Reference(minimum=20, windows=3, independent=0.5, features=features)
