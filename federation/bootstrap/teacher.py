"""Replacement of the teacher: new weights become a signed artifact in the registry.

The drift reference is copied from the old teacher: it describes the central data and the first
device model's answers, not the teacher.
"""

import time

import numpy as np
import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from federation.registry.registry import Registry
from streams.contract.artifact import DRIFT, WEIGHTS, Artifact, Manifest, pack
from streams.contract.errors import UsageError
from streams.contract.task import Task
from streams.learning.learning import build_teacher, load_weights


def replace_teacher(
    task: Task, registry: Registry, key: Ed25519PrivateKey, weights: bytes, where: str
) -> Artifact:
    """Keep `weights` (safetensors, the state dict of the task's teacher) as the next teacher.

    UsageError, and nothing is kept, where they do not fit or cannot score a window.
    """
    before = registry.teacher()
    if before is None:
        raise UsageError(f"{registry.where} has no teacher yet: run `tidewheel prepare` first")
    _check(task, weights, where)
    manifest = Manifest(
        kind="teacher",
        task=task.name,
        task_version=task.version,
        number=before.manifest.number + 1,
        base=before.model,
        created_us=time.time_ns() // 1000,
        key="",
        files=[],
    )
    kept = {DRIFT: before.files[DRIFT]} if DRIFT in before.files else {}
    return registry.add_teacher(pack(manifest, {WEIGHTS: weights, **kept}, key))


@torch.no_grad()
def _check(task: Task, weights: bytes, where: str) -> None:
    shape = (1, 2, *task.segment_shape)
    try:
        teacher = load_weights(build_teacher(task), weights).eval()
        outputs = teacher(torch.zeros(shape), torch.ones(shape[:2], dtype=torch.bool)).numpy()
    except Exception as exc:  # safetensors, torch and the task's own code: all say "does not fit"
        text = f"{type(exc).__name__}: {exc}".splitlines()[0]
        raise UsageError(f"{where} does not fit the task's teacher: {text}") from exc
    if outputs.shape != (1, 2, task.outputs) or not np.isfinite(outputs).all():
        raise UsageError(f"{where}: the teacher gives {outputs.shape} or values not finite")
