"""The registry's versions: their list, status and description, and the one that a name stands
for."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from federation.registry.registry import Registry
from streams.contract.artifact import Artifact
from streams.contract.decisions import Decision, DesiredState
from streams.contract.errors import ArtifactError, UsageError
from streams.contract.task import Task
from streams.contract.task.metrics import metric_of
from streams.contract.window_metrics import ERRORS

SERVED, BEST, TEACHER = "served", "best:", "teacher"
AUDIT = "audit_"  # of metrics on held-out segments that decide nothing
PARTS = ("_base", "audit_segments")  # of the version before, and no metric
HELD_OUT = "held_out"  # by which the gate decides


@dataclass(frozen=True)
class Version:
    """One stored version; `held_out` is the task's metric on the segments of held-out devices by
    which the gate decides. `problem` is the reason why the artifact cannot be read; then only
    model, status and size are known."""

    model: str
    holds: str
    size: int
    created_us: int | None = None
    base: str | None = None
    run: str | None = None
    round: int | None = None
    held_out: float | None = None
    key: str | None = None
    problem: str | None = None


def versions(registry: Registry) -> list[Version]:
    """Return all stored versions, oldest first."""
    desired, found = registry.desired(), []
    for model in registry.models():
        says, size = holds(desired, model), 0
        try:
            size = len(registry.read(model))
            manifest = registry.load(model).manifest
        except ArtifactError as exc:
            found.append(Version(model, says, size, problem=str(exc)))
            continue
        found.append(
            Version(
                model,
                says,
                size,
                created_us=manifest.created_us,
                base=manifest.base,
                run=manifest.run,
                round=manifest.round,
                held_out=manifest.metrics.get(HELD_OUT),
                key=manifest.key,
            )
        )
    return found


def holds(desired: DesiredState, model: str) -> str:
    """Return a version's status after the last decision; "-" if it has none."""
    if desired.stable is not None and desired.stable.model == model:
        return "stable"
    if desired.offered is not None and desired.offered.model == model:
        return f"offered in stage {desired.stage}" + (", paused" if desired.paused else "")
    if desired.candidate is not None and desired.candidate.model == model:
        return "candidate"
    if model in desired.withdrawn:
        return f"withdrawn: {desired.withdrawn[model]}"
    return "-"


def described(registry: Registry, model: str) -> dict[str, Any]:
    """Return a version's manifest, status, and all decisions about it."""
    artifact = registry.load(model)
    about = [describe_decision(d) for d in registry.decisions() if d.model == model]
    return {
        "model": model,
        "digest": artifact.digest,
        "holds": holds(registry.desired(), model),
        "size": len(registry.read(model)),
        "manifest": artifact.manifest.model_dump(),
        "decisions": about,
    }


def describe_decision(decision: Decision) -> dict[str, Any]:
    """Return a decision as JSON; `share` is the share of the fleet that `model` is offered to."""
    fields = ("seq", "time_us", "kind", "model", "reason", "evidence", "run", "key")
    found = {name: getattr(decision, name) for name in fields}
    return {**found, "share": decision.standing.share, "stage": decision.standing.stage}


# --- by name -------------------------------------------------------------------------------------


def named(registry: Registry, task: Task, name: str) -> tuple[Artifact, bytes]:
    """Return a verified version and its bytes: by its name, the served one, the best one by a
    metric, or the teacher."""
    if name == TEACHER:
        data = registry.read_teacher()
        return registry.verify(data, kind="teacher"), data
    if name == SERVED:
        serving = registry.serving()
        if serving is None:
            raise UsageError(
                f"no model is served in {registry.where}: tidewheel prepare, or name a --model"
            )
        name = serving.model
    elif name.startswith(BEST):
        name = best_model(registry, task, name.removeprefix(BEST))
    data = registry.read(name)
    return registry.checked(data, name), data


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
        value = metrics.get(HELD_OUT) if metric == own.name else _audited(metrics, metric)
        if value is not None and math.isfinite(value) and model not in withdrawn:
            found[model] = -value if lowest else value
    if not found:
        raise UsageError(
            f"best:{metric}: no version in {registry.where} has it; known: "
            f"{', '.join(sorted(known))}"
        )
    best = max(found.values())
    return [model for model, value in found.items() if value == best][-1]


def _audited(metrics: Mapping[str, float], metric: str) -> float | None:
    return metrics.get(AUDIT + metric) if _of_audit(AUDIT + metric) else None


def _of_audit(name: str) -> bool:
    return name.startswith(AUDIT) and not name.endswith(PARTS)
