"""A signed model of HAR's with random weights, and the same graph as one ONNX file:
`python -m benchmarks.support.model_files TASK FOLDER`.
"""

import sys
from pathlib import Path

import numpy as np
import safetensors.numpy
import torch

from federation.bootstrap.onnx_export import export_graph
from federation.evaluation.quantization import complete, make_probe
from streams.contract.artifact import GRAPH, PROBE, WEIGHTS, Manifest, pack
from streams.contract.task import Task, load_task
from streams.learning.learning import build_model
from streams.runtime.trust import create_key


def write_model(task: Task, folder: Path) -> None:
    """Write model.twa, signing.pem and .pub, model.onnx with the weights in its graph, and
    model.safetensors."""
    torch.manual_seed(0)
    model = build_model(task).eval()
    graph = export_graph(task, model)
    state = {name: value.numpy() for name, value in model.state_dict().items()}
    segments = np.random.default_rng(1).standard_normal((64, *task.segment_shape), np.float32)
    files = {
        WEIGHTS: safetensors.numpy.save(state),
        GRAPH: graph,
        PROBE: make_probe(graph, state, segments),
    }
    folder.mkdir(parents=True)
    manifest = Manifest(
        task=task.name, task_version=task.version, number=1, created_us=1, key="", files=[]
    )
    (folder / "model.twa").write_bytes(pack(manifest, files, create_key(folder / "signing.pem")))
    (folder / "model.safetensors").write_bytes(files[WEIGHTS])
    (folder / "model.onnx").write_bytes(complete(graph, state).SerializeToString())


if __name__ == "__main__":
    write_model(load_task(sys.argv[1]), Path(sys.argv[2]))
