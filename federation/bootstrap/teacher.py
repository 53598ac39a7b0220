"""Replacement of the teacher: new weights become a signed artifact.

The drift reference is copied from the old teacher: it describes the central data and the first
device model's answers, not the teacher.
"""

import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from torch import nn

from federation.bootstrap.onnx_export import read_graph
from federation.bootstrap.weights_file import loaded, read_weights
from federation.registry.registry import Registry
from streams.contract.artifact import DRIFT, GRAPH, WEIGHTS, Manifest, pack
from streams.contract.errors import UsageError
from streams.contract.task import OnnxFile, Task
from streams.learning.learning import PerSegment, build_teacher, to_safetensors


def next_teacher(task: Task, registry: Registry, key: Ed25519PrivateKey, path: Path) -> bytes:
    """Return the artifact of the next teacher: the weights in a file (the state dict of the task's
    teacher), or a file of ONNX in place of the task's.

    UsageError where they do not fit or cannot score a window.
    """
    before = registry.teacher()
    if before is None:
        raise UsageError(f"{registry.where} has no teacher yet: run `tidewheel prepare` first")
    teacher, files, source = _read(task, path)
    _check(task, teacher, path)
    manifest = Manifest(
        kind="teacher",
        task=task.name,
        task_version=task.version,
        number=before.manifest.number + 1,
        base=before.model,
        source=source,
        created_us=time.time_ns() // 1000,
        key="",
        files=[],
    )
    kept = {DRIFT: before.files[DRIFT]} if DRIFT in before.files else {}
    return pack(manifest, {**files, **kept}, key)


def _read(task: Task, path: Path) -> tuple[nn.Module, dict[str, bytes], str]:
    """Return the teacher of a file, its files in the artifact, and its name with its digest."""
    build = task.build_model if task.build_teacher is None else task.build_teacher
    if isinstance(build, OnnxFile):
        given = read_graph(task, replace(build, path=path))
        files = {WEIGHTS: to_safetensors({}), GRAPH: given.graph}
        return PerSegment(given), files, f"{path.name} sha256:{given.digest}"
    tensors, source = read_weights(path)
    teacher = build_teacher(task)
    if task.build_teacher is None and not all(name.startswith("model.") for name in tensors):
        tensors = {f"model.{name}": value for name, value in tensors.items()}  # the device model's
    teacher = loaded(teacher, tensors, path, "teacher")
    return teacher, {WEIGHTS: to_safetensors(teacher.state_dict())}, source


@torch.no_grad()
def _check(task: Task, teacher: nn.Module, path: Path) -> None:
    shape = (1, 2, *task.segment_shape)
    try:
        outputs = teacher(torch.zeros(shape), torch.ones(shape[:2], dtype=torch.bool)).numpy()
    except Exception as exc:  # torch and the task's own code: all say "does not fit"
        text = f"{type(exc).__name__}: {exc}".splitlines()[0]
        raise UsageError(f"{path} does not fit the task's teacher: {text}") from exc
    if outputs.shape != (1, 2, task.outputs) or not np.isfinite(outputs).all():
        raise UsageError(f"{path}: the teacher gives {outputs.shape} or values not finite")
