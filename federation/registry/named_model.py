"""A model as people name it: an artifact's file, a version of the registry, the served one, the
best one by a metric, the teacher, or what a device answers with."""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from federation.registry.catalog import held_out
from federation.registry.registry import Registry
from streams.contract.artifact import Artifact, challenger_header, files_of, unpack
from streams.contract.errors import ArtifactError, MalformedRecord, UsageError
from streams.contract.task import Task
from streams.contract.task.metrics import metric_of
from streams.contract.window_metrics import ERRORS

SERVED, BEST, TEACHER = "served", "best:", "teacher"
AUDIT = "audit_"  # of metrics on held-out segments that decide nothing
PARTS = ("_base", "audit_segments")  # of the version before, and no metric
CHALLENGER = ".safetensors"  # suffix of what a device answers with in place of a version


class NamedModel(NamedTuple):
    """A verified model and its bytes; `weights` are those of a personal model of it."""

    artifact: Artifact
    data: bytes
    weights: bytes | None = None


def named_model(
    task: Task,
    name: str,
    keys: Callable[[], Sequence[Ed25519PublicKey]],
    registry: Callable[[], Registry],
    option: str = "model",
) -> NamedModel:
    """Return the named model; raise UsageError if there is none. keys: those that a file may be
    signed with; option: what the name was given as."""
    path = Path(name)
    weights = None
    try:
        if path.is_file() and path.suffix == CHALLENGER:
            weights = path.read_bytes()
            name, _, _ = challenger_header(weights)
        elif path.is_file():
            data = path.read_bytes()
            kind = TEACHER if files_of(data)[0].kind == TEACHER else "model"
            found = unpack(data, keys(), task=task.name, task_version=task.version, kind=kind)
            return NamedModel(found, data)
        elif path.suffix in (".twa", CHALLENGER):
            raise UsageError(f"{option} {name}: there is no such file")
        return _registered(task, name, registry(), option)._replace(weights=weights)
    except (ArtifactError, MalformedRecord, OSError) as exc:
        raise UsageError(f"{option} {name}: {exc}") from exc


def _registered(task: Task, name: str, known: Registry, option: str) -> NamedModel:
    if name == TEACHER:
        data = known.read_teacher()
        return NamedModel(known.verify(data, kind="teacher"), data)
    if name == SERVED:
        serving = known.serving()
        if serving is None:
            raise UsageError(
                f"no model is served in {known.where}: tidewheel prepare, or name a {option}"
            )
        name = serving.model
    elif name.startswith(BEST):
        name = best_model(known, task, name.removeprefix(BEST))
    data = known.read(name)
    return NamedModel(known.checked(data, name), data)


def best_model(registry: Registry, task: Task, metric: str) -> str:
    """Return the version whose metric is the best, of equal ones the newest. The task's metric is
    the promotion gate's on held-out devices, any other one the audit's; of errors the smallest is
    the best. Withdrawn versions are left out. Raise UsageError if no version has the metric."""
    own = metric_of(task)
    lowest = not own.greater_is_better if metric == own.name else metric in ERRORS
    withdrawn = registry.desired().withdrawn
    found: dict[str, float] = {}
    known = {own.name}
    for model in registry.models():  # the oldest first
        try:
            metrics = registry.load(model).manifest.metrics
        except ArtifactError:
            continue
        known |= {name.removeprefix(AUDIT) for name in metrics if _of_audit(name)}
        value = held_out(metrics) if metric == own.name else _audited(metrics, metric)
        if value is not None and math.isfinite(value) and model not in withdrawn:
            found[model] = -value if lowest else value
    if not found:
        raise UsageError(
            f"best:{metric}: no version in {registry.where} has it; known: "
            f"{', '.join(sorted(known))}"
        )
    return _last_of_best(found)


def _audited(metrics: Mapping[str, float], metric: str) -> float | None:
    return metrics.get(AUDIT + metric) if _of_audit(AUDIT + metric) else None


def _of_audit(name: str) -> bool:
    return name.startswith(AUDIT) and not name.endswith(PARTS)


def _last_of_best(values: Mapping[str, float]) -> str:
    best = max(values.values())
    return [model for model, value in values.items() if value == best][-1]
