"""The registry's versions: their list, status and description, the one that a name stands for, and
whether the decision chain and every file that its decisions name are valid.

The chain is walked as everybody walks it (history.py), up to the first decision that is not valid.
A truncated end of the chain is not visible here: devices, which know a later number, refuse the
decisions that follow.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from federation.registry.manual import needed, pruned
from federation.registry.registry import TEACHER as TEACHER_FILE
from federation.registry.registry import Registry
from streams.contract.artifact import Artifact, is_quantized
from streams.contract.decisions import Decision, DesiredState, Ref
from streams.contract.errors import ArtifactError, UsageError
from streams.contract.task import Task
from streams.contract.task.metrics import metric_of
from streams.contract.weights import delta
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
    source: str | None = None  # the file that it was imported from
    held_out: float | None = None
    answers_in: str | None = None  # int8 or float32
    key: str | None = None
    problem: str | None = None


def versions(registry: Registry) -> list[Version]:
    """Return all stored versions, oldest first."""
    decisions, found = registry.decisions(), []
    for model in registry.models():
        says, size = holds(decisions, model), 0
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
                source=manifest.source,
                held_out=manifest.metrics.get(HELD_OUT),
                answers_in="int8" if is_quantized(manifest) else "float32",
                key=manifest.key,
            )
        )
    return found


def holds(decisions: Sequence[Decision], model: str) -> str:
    """Return a version's status after the last decision; "-" if it has none."""
    desired = decisions[-1].standing if decisions else DesiredState()
    if desired.stable is not None and desired.stable.model == model:
        return "stable"
    if desired.offered is not None and desired.offered.model == model:
        return f"offered in stage {desired.stage}" + (", paused" if desired.paused else "")
    if desired.candidate is not None and desired.candidate.model == model:
        return "candidate"
    if model in desired.withdrawn:
        return f"withdrawn: {desired.withdrawn[model]}"
    last = next((d for d in reversed(decisions) if d.model == model), None)
    return f"dropped: {last.reason}" if last is not None and last.kind == "dropped" else "-"


def described(registry: Registry, model: str) -> dict[str, Any]:
    """Return a version's manifest, status, and all decisions about it."""
    artifact = registry.load(model)
    decisions = registry.decisions()
    about = [describe_decision(d) for d in decisions if d.model == model]
    return {
        "model": model,
        "digest": artifact.digest,
        "holds": holds(decisions, model),
        "size": len(registry.read(model)),
        "manifest": artifact.manifest.fields(),
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


# --- audit ----------------------------------------------------------------------------------------


@dataclass
class Report:
    """One line per problem; `notes` are remarks that are not problems."""

    decisions: int = 0
    models: int = 0
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@dataclass
class Walk:
    """The result of the valid decisions: `refs` are the named artifacts, `served` maps a model to
    the first decision that released it and the keys that were active then."""

    refs: dict[str, Ref] = field(default_factory=dict)
    teachers: set[str] = field(default_factory=set)
    served: dict[str, tuple[int, frozenset[str]]] = field(default_factory=dict)
    last: DesiredState = field(default_factory=DesiredState)


def verify(registry: Registry, only: str | None = None) -> Report:
    """Verify the whole registry, or with `only` the chain and that version."""
    report = Report()
    walk = _walk(registry, report)
    kept = set(registry.models())
    wanted = sorted({*walk.refs, *kept} - walk.teachers if only is None else {only})
    for model in wanted:
        report.models += model in kept
        for problem in _model_problems(registry, model, walk, kept, report):
            report.problems.append(f"model {model}: {problem}")
    if only is None:
        report.problems += _teacher_problems(registry, walk)
        report.problems += _delta_problems(registry, kept)
        report.problems += [
            f"models/{name} is not the file of a model version"
            for name in registry.store.names("models")
            if name.removesuffix(".twa") not in kept
        ]
    return report


def _walk(registry: Registry, report: Report) -> Walk:
    walk = Walk()
    try:
        registry.history()
    except ArtifactError as exc:
        report.problems.append(str(exc))
    for decision, trust in registry.valid():
        report.decisions += 1
        walk.last = desired = decision.standing
        counting = frozenset(trust.active)
        for ref in (desired.stable, desired.offered, desired.candidate, desired.teacher):
            if ref is not None:
                walk.refs.setdefault(ref.model, ref)
        for ref in (desired.stable, desired.offered, desired.teacher):
            if ref is not None:
                walk.served.setdefault(ref.model, (decision.seq, counting))
        if desired.teacher is not None:
            walk.teachers.add(desired.teacher.model)
    if not report.decisions and not report.problems:
        report.problems.append(f"{registry.where} has no history")
    return walk


def _model_problems(
    registry: Registry,
    model: str,
    walk: Walk,
    kept: set[str],
    report: Report,
) -> Iterator[str]:
    ref = walk.refs.get(model)
    if model not in kept:
        if ref is None:
            yield "it is not in the registry, and no decision names it"
        elif model in needed(registry, walk.last):
            yield "its file is missing, and it is needed"
        elif model not in pruned(registry):
            yield "its file is missing, and `tidewheel models prune` did not remove it"
        return
    try:
        artifact = registry.verify(registry.read(model))
    except ArtifactError as exc:
        yield str(exc)
        return
    if artifact.model != model:
        yield f"its file holds {artifact.model}"
    if ref is None:
        report.notes.append(f"model {model} is in no decision")
        return
    if artifact.digest != ref.digest:
        yield "its file is not the decided artifact"
    yield from _key_problems(artifact, walk)


def _key_problems(artifact: Artifact, walk: Walk) -> Iterator[str]:
    key, desired = artifact.manifest.key, walk.last
    seq, counting = walk.served.get(artifact.model, (0, frozenset((key,))))
    if key not in counting:
        yield f"its key {key} was not trusted at decision {seq}, which released it"
    elif key in desired.revoked:
        current = [r.model for r in (desired.stable, desired.offered, desired.teacher) if r]
        if artifact.model in current:
            yield f"its key {key} is revoked: run `tidewheel keys revoke {key}` again"


def _teacher_problems(registry: Registry, walk: Walk) -> Iterator[str]:
    ref = walk.last.teacher
    try:
        artifact = registry.verify(registry.store.read(TEACHER_FILE), "teacher")
    except FileNotFoundError:
        if ref is not None:
            yield f"teacher {ref.model}: {TEACHER_FILE} is missing"
        return
    except ArtifactError as exc:
        yield f"{TEACHER_FILE}: {exc}"
        return
    if ref is not None and artifact.digest != ref.digest:
        yield f"{TEACHER_FILE} holds {artifact.model}, but {ref.model} was decided"
    yield from (f"teacher {artifact.model}: {text}" for text in _key_problems(artifact, walk))


def _delta_problems(registry: Registry, kept: set[str]) -> Iterator[str]:
    for name in registry.store.names("deltas"):
        model, _, base = name.removesuffix(".twd").partition(".from.")
        if not {model, base} <= kept:
            yield f"deltas/{name} is of a version that is not in the registry: remove it"
            continue
        try:
            files = registry.load(base).files
            data = registry.store.read(f"deltas/{name}")
            if delta.apply(data, files, list(registry.keys.values())) != registry.read(model):
                yield f"deltas/{name} does not give {model}: remove it, it is created again"
        except ArtifactError as exc:
            yield f"deltas/{name}: {exc}: remove it, it is created again"
