"""An untrained teacher's artifact with a reference for drift: as fast as a trained one."""

from pathlib import Path

import numpy as np

from streams.contract.artifact import DRIFT, WEIGHTS, Manifest, pack
from streams.contract.drift import Feature, Histogram, Reference, frozen_edges, observe
from streams.contract.learning import build_teacher, to_safetensors
from streams.contract.signing import create_key
from streams.contract.task import Task

SEGMENTS = 2000  # that the reference is made of


def write_teacher(task: Task, folder: Path) -> tuple[Path, Path]:
    """The artifact and the public key that signed it."""
    folder.mkdir(parents=True, exist_ok=True)
    key = create_key(folder / "key.pem")
    manifest = Manifest(
        kind="teacher",
        task=task.name,
        task_version=task.version,
        number=1,
        created_us=1,
        key="",
        files=[],
    )
    weights = to_safetensors(build_teacher(task).state_dict())
    files = {WEIGHTS: weights, DRIFT: reference(task).encode()}
    (folder / "teacher.twa").write_bytes(pack(manifest, files, key))
    return folder / "teacher.twa", folder / "key.pub"


def reference(task: Task) -> Reference:
    """A reference of the shape that the pilot makes, from values as the backlog has them."""
    noise = np.random.default_rng(0)
    segments = noise.normal(size=(SEGMENTS, *task.segment_shape)).astype(np.float32)
    outputs = noise.normal(size=(SEGMENTS, task.outputs))
    features = []
    for (channel, kind), values in observe(task, segments, outputs).items():
        edges = frozen_edges(task, kind, values)
        counts = Histogram.empty(edges).add(values).counts.tolist()
        ordered = kind != "answer" or not task.classes
        features.append(
            Feature(
                channel=channel, kind=kind, ordered=ordered, edges=edges.tolist(), counts=counts
            )
        )
    return Reference(independent=task.segment.hop / task.segment.samples, features=features)
