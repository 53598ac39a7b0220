"""Models that a user brings to a fleet that serves one: its next candidate, its next teacher.

A candidate:

    1 read the file, check that it fits the task; the gate compares it with the served version on
      the held-out devices' segments
    2 store it, signed, with the file's name and digest
    3 decide: it waits for its canary

Killed before 3 no device is offered anything, and the command can be run again; a version that was
stored without a decision is removed by `models prune`.

Of a teacher new weights become a signed artifact. The drift reference is copied from the old
teacher: it describes the central data and the first device model's answers, not the teacher.
"""

import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import safetensors.numpy
import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from torch import nn

from federation.bootstrap.comparison import of_teacher
from federation.bootstrap.dataset import group, segments_of_device
from federation.bootstrap.first_models import loaded, read_weights
from federation.bootstrap.onnx_export import read_graph
from federation.evaluation.accuracy import HeldOut
from federation.evaluation.evidence import CandidateEvaluation
from federation.evaluation.promotion_gate import Verdict
from federation.evaluation.quantization import Quantizer
from federation.registry.manual import propose
from federation.registry.publisher import announce, read_announced
from federation.registry.registry import CALIBRATION, HELD_OUT, Registry
from streams.contract.artifact import DRIFT, GRAPH, LEARNED, WEIGHTS, Artifact, Manifest, pack
from streams.contract.errors import TaskError, UsageError
from streams.contract.task import OnnxFile, Task
from streams.contract.task.metrics import gain, metric_of, named
from streams.contract.weights import payload
from streams.contract.window_metrics import digits
from streams.kafka.producer import Producer
from streams.kafka.settings import BrokerSettings
from streams.learning.learning import (
    PerSegment,
    build_model,
    build_teacher,
    load_weights,
    to_safetensors,
)

Tensors = dict[str, np.ndarray]


def import_candidate(
    task: Task,
    registry: Registry,
    key: Ed25519PrivateKey,
    path: Path,
    failpoint: Callable[[str], None] = lambda _name: None,
) -> tuple[Verdict, str | None]:
    """Return the gate's verdict, and the candidate's name if it passed; raise UsageError, or
    TaskError for a graph that is not sound, and nothing is kept."""
    base = registry.serving()
    if base is None:
        raise UsageError(
            f"{registry.where} serves no model yet: name the file as Task.first_model, or with "
            "tidewheel prepare --from FILE"
        )
    weights, graph, source = _read(task, path)
    held_out, audit = HeldOut.decode(registry.central(HELD_OUT), task).audited(task)
    quantizer = Quantizer.of(task, registry.central(CALIBRATION), base.files)
    evaluation = CandidateEvaluation(
        task, base, held_out, audit=audit, graph=graph, quantizer=quantizer
    )
    first = payload.to_float32(safetensors.numpy.load(base.files[WEIGHTS]))
    weights = payload.round_candidate(weights, first, task.training.payload)
    verdict = evaluation.decide(first, weights, {}, task.margin)
    failpoint("import-step-1")
    if not verdict.promote:
        return verdict, None
    manifest = Manifest(
        task=task.name, task_version=task.version, number=registry.next_number(), base=base.model,
        source=source, created_us=time.time_ns() // 1000, metrics=dict(verdict.evidence), key="",
        files=[],
    )  # fmt: skip
    files = {
        **base.files,
        WEIGHTS: payload.to_safetensors(weights, task.training.payload),
        GRAPH: base.files[GRAPH] if graph is None else graph,
    }
    files.pop(LEARNED, None)
    artifact = registry.add(pack(manifest, quantizer.release(files, weights), key))
    failpoint("import-step-2")
    reason = f"{path.name} was imported: {verdict.reason}"
    propose(registry, key, artifact, reason, verdict.evidence)
    return verdict, artifact.model


def _read(task: Task, path: Path) -> tuple[Tensors, bytes | None, str]:
    """Return a file's weights, its graph where it is one, and its name with its digest."""
    if isinstance(task.build_model, OnnxFile):
        given = read_graph(task, replace(task.build_model, path=path))
        return {}, given.graph, f"{path.name} sha256:{given.digest}"
    tensors, source = read_weights(path)
    model = loaded(build_model(task), tensors, path)
    return {name: value.numpy() for name, value in model.state_dict().items()}, None, source


# --- the teacher ----------------------------------------------------------------------------------


def import_teacher(
    task: Task, registry: Registry, key: Ed25519PrivateKey, path: Path, broker: BrokerSettings
) -> list[str]:
    """Store, offer and announce the file as the next teacher; return that, and how good it is, in
    lines for a person. Raises as `next_teacher`."""
    data = next_teacher(task, registry, key, path)
    measured = beside_the_teacher(task, registry, data)
    with closing(Producer(broker)) as producer:  # fails before anything is stored
        artifact = registry.add_teacher(data)
        registry.offer_teacher(key, "manual")
        announced = read_announced(broker, task.id)
        announce(producer, registry, announced, most=broker.artifact_bytes)
    return [f"teacher {artifact.model} is offered to the workers", *measured]


def beside_the_teacher(task: Task, registry: Registry, data: bytes) -> list[str]:
    """Return the metric of the present teacher and of the next one, an artifact's bytes, on the
    recordings of held-out devices, in a line; and a warning if it is worse."""
    before, metric = registry.teacher(), metric_of(task)
    assert before is not None
    where = f"{named(metric.name)} on held-out devices"
    try:
        held = [segments_of_device(task, name) for name in task.device_names("held-out")]
        windows = group(task, held)
        old = of_teacher(task, _teacher_in(task, before), windows)
        new = of_teacher(task, _teacher_in(task, registry.verify(data, "teacher")), windows)
    except TaskError as exc:  # as where the recordings are on another machine
        return [f"{where}: not measured: {exc}"]
    if old is None or new is None:
        return [f"{where}: not measured, there are no readings with labels for which it is defined"]
    lines = [f"{where} {digits(old)} → {digits(new)}"]
    if gain(metric, old, new) < 0:
        lines.append(
            f"warning: it is worse than {before.model} there, and where events have no true label "
            "it starts runs and judges versions"
        )
    return lines


def _teacher_in(task: Task, artifact: Artifact) -> nn.Module:
    teacher = build_teacher(task, artifact.files.get(GRAPH))
    return load_weights(teacher, artifact.files[WEIGHTS]).eval()


def next_teacher(task: Task, registry: Registry, key: Ed25519PrivateKey, path: Path) -> bytes:
    """Return the artifact of the next teacher: the weights in a file (the state dict of the task's
    teacher), or a file of ONNX in place of the task's.

    UsageError where they do not fit or cannot score a window.
    """
    before = registry.teacher()
    if before is None:
        raise UsageError(f"{registry.where} has no teacher yet: run `tidewheel prepare` first")
    teacher, files, source = _read_teacher(task, path)
    _check_teacher(task, teacher, path)
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


def _read_teacher(task: Task, path: Path) -> tuple[nn.Module, dict[str, bytes], str]:
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
def _check_teacher(task: Task, teacher: nn.Module, path: Path) -> None:
    shape = (1, 2, *task.segment_shape)
    try:
        outputs = teacher(torch.zeros(shape), torch.ones(shape[:2], dtype=torch.bool)).numpy()
    except Exception as exc:  # torch and the task's own code: all say "does not fit"
        text = f"{type(exc).__name__}: {exc}".splitlines()[0]
        raise UsageError(f"{path} does not fit the task's teacher: {text}") from exc
    if outputs.shape != (1, 2, task.outputs) or not np.isfinite(outputs).all():
        raise UsageError(f"{path}: the teacher gives {outputs.shape} or values not finite")
