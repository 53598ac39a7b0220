"""Audit of a registry: verifies the decision chain and every file that its decisions name.

The chain is walked as everybody walks it (history.py), up to the first decision that is not valid.
A truncated end of the chain is not visible here: devices, which know a later number, refuse the
decisions that follow.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

from federation.registry.manual import needed, pruned
from federation.registry.registry import TEACHER, Registry
from streams.contract.artifact import Artifact
from streams.contract.decisions import DesiredState, Ref
from streams.contract.errors import ArtifactError
from streams.contract.weights import delta


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
        artifact = registry.verify(registry.store.read(TEACHER), "teacher")
    except FileNotFoundError:
        if ref is not None:
            yield f"teacher {ref.model}: {TEACHER} is missing"
        return
    except ArtifactError as exc:
        yield f"{TEACHER}: {exc}"
        return
    if ref is not None and artifact.digest != ref.digest:
        yield f"{TEACHER} holds {artifact.model}, but {ref.model} was decided"
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
