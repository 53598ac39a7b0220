"""A model that a user brings: the next candidate of a fleet that serves one already.

    1 read the file, check that it fits the task; the gate compares it with the served version on
      the held-out devices' segments
    2 store it, signed, with the file's name and digest
    3 decide: it waits for its canary

Killed before 3 no device is offered anything, and the command can be run again; a version that was
stored without a decision is removed by `models prune`.
"""

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import safetensors.numpy
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from federation.bootstrap.onnx_export import read_graph
from federation.bootstrap.weights_file import loaded, read_weights
from federation.evaluation.accuracy import HeldOut
from federation.evaluation.evidence import CandidateEvaluation
from federation.evaluation.promotion_gate import Verdict
from federation.evaluation.quantization import Quantizer
from federation.registry.manual import propose
from federation.registry.registry import CALIBRATION, HELD_OUT, Registry
from streams.contract.artifact import GRAPH, LEARNED, WEIGHTS, Manifest, pack
from streams.contract.errors import UsageError
from streams.contract.task import OnnxFile, Task
from streams.contract.weights import payload
from streams.learning.learning import build_model

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
