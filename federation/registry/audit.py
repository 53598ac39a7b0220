"""Audit of a registry: verifies the whole decision chain and every file that it names.

The walk tracks which keys were trusted at each decision: the key of the first one and the `given`
keys that devices were started with, then what each valid decision says. An altered decision changes
nothing of that, and breaks the chain at the next one too. A truncated end of the chain is not
visible here: devices, which know a later number, refuse the decisions that follow.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from federation.registry.manual import needed, pruned
from federation.registry.registry import TEACHER, Registry
from streams.contract.artifact import Artifact, unpack
from streams.contract.decisions import ZERO, Decision, Ref, Release, Trust
from streams.contract.errors import ArtifactError, MalformedRecord
from streams.contract.signing import key_id
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
    """The result of the valid decisions so far: `refs` are the named artifacts, `served` maps a
    model to the first decision that released it and the keys that were active then."""

    trust: Trust
    refs: dict[str, Ref] = field(default_factory=dict)
    teachers: set[str] = field(default_factory=set)
    served: dict[str, tuple[int, frozenset[str]]] = field(default_factory=dict)
    last: Decision | None = None


def verify(
    registry: Registry, given: Mapping[str, Ed25519PublicKey], only: str | None = None
) -> Report:
    """Verify the whole registry, or with `only` the chain and that version. `registry.trusted` must
    contain the key of the first decision."""
    report = Report()
    walk = _walk(registry, given, report)
    known = {**registry.keys, **walk.trust.known}
    kept = set(registry.models())
    wanted = sorted({*walk.refs, *kept} - walk.teachers if only is None else {only})
    for model in wanted:
        report.models += model in kept
        for problem in _model_problems(registry, model, walk, known, kept, report):
            report.problems.append(f"model {model}: {problem}")
    if only is None:
        report.problems += _teacher_problems(registry, walk, known)
        report.problems += _delta_problems(registry, known, kept)
        report.problems += [
            f"models/{name} is not the file of a model version"
            for name in registry.store.names("models")
            if name.removesuffix(".twa") not in kept
        ]
    return report


def _walk(registry: Registry, given: Mapping[str, Ed25519PublicKey], report: Report) -> Walk:
    trusted = {key_id(key): key for key in registry.trusted}
    walk, expected, prev = Walk(Trust.at_first(given)), 1, ZERO
    for name in registry.store.names("history"):
        try:
            release = Release.decode(registry.store.read(f"history/{name}"))
            decision = release.decision
        except (MalformedRecord, OSError) as exc:
            report.problems.append(f"history/{name} cannot be read: {exc}")
            expected, prev = expected + 1, ""
            continue
        if decision.seq == 1 and decision.key in trusted:
            walk.trust = Trust.at_first({**given, decision.key: trusted[decision.key]})
        found = list(_decision_problems(registry, name, release, walk, expected, prev))
        report.problems += [f"decision {decision.seq}: {text}" for text in found]
        report.decisions += 1
        expected, prev = decision.seq + 1, release.digest
        if not found:
            _take(walk, decision)
    if not report.decisions:
        report.problems.append(f"{registry.where} has no history")
    return walk


def _decision_problems(
    registry: Registry, name: str, release: Release, walk: Walk, expected: int, prev: str
) -> Iterator[str]:
    decision = release.decision
    if name != f"{decision.seq:08d}.json":
        yield f"its file is history/{name}"
    if decision.seq != expected:
        yield f"decision {expected} is missing before it"
    elif prev and decision.prev != prev:
        yield "it does not follow the decision before it"
    if decision.key in walk.trust.revoked:
        yield f"its key {decision.key} was revoked before"
    elif decision.key not in walk.trust.active:
        yield f"its key {decision.key} was not trusted then"
    else:
        try:
            release.verified(walk.trust.known, registry.task)
            walk.trust.after(decision)
        except ArtifactError as exc:
            yield str(exc)
    if decision.task_version != registry.task_version:
        yield f"it is about version {decision.task_version} of the task"


def _take(walk: Walk, decision: Decision) -> None:
    desired = decision.standing
    walk.trust = walk.trust.after(decision)
    counting = frozenset(walk.trust.active)
    for ref in (desired.stable, desired.offered, desired.candidate, desired.teacher):
        if ref is not None:
            walk.refs.setdefault(ref.model, ref)
    for ref in (desired.stable, desired.offered, desired.teacher):
        if ref is not None:
            walk.served.setdefault(ref.model, (decision.seq, counting))
    if desired.teacher is not None:
        walk.teachers.add(desired.teacher.model)
    walk.last = decision


def _model_problems(
    registry: Registry,
    model: str,
    walk: Walk,
    known: Mapping[str, Ed25519PublicKey],
    kept: set[str],
    report: Report,
) -> Iterator[str]:
    ref = walk.refs.get(model)
    if model not in kept:
        if ref is None:
            yield "it is not in the registry, and no decision names it"
        elif model in needed(registry, walk.last.standing if walk.last else None):
            yield "its file is missing, and it is needed"
        elif model not in pruned(registry):
            yield "its file is missing, and `tidewheel models prune` did not remove it"
        return
    try:
        artifact = _unpacked(registry, registry.read(model), known, "model")
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
    key, desired = artifact.manifest.key, walk.last.standing if walk.last else None
    seq, counting = walk.served.get(artifact.model, (0, frozenset((key,))))
    if key not in counting:
        yield f"its key {key} was not trusted at decision {seq}, which released it"
    elif desired and key in walk.trust.revoked:
        current = [r.model for r in (desired.stable, desired.offered, desired.teacher) if r]
        if artifact.model in current:
            yield f"its key {key} is revoked: run `tidewheel keys revoke {key}` again"


def _teacher_problems(
    registry: Registry, walk: Walk, known: Mapping[str, Ed25519PublicKey]
) -> Iterator[str]:
    ref = walk.last.standing.teacher if walk.last else None
    try:
        artifact = _unpacked(registry, registry.store.read(TEACHER), known, "teacher")
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


def _delta_problems(
    registry: Registry, known: Mapping[str, Ed25519PublicKey], kept: set[str]
) -> Iterator[str]:
    for name in registry.store.names("deltas"):
        model, _, base = name.removesuffix(".twd").partition(".from.")
        if not {model, base} <= kept:
            yield f"deltas/{name} is of a version that is not in the registry: remove it"
            continue
        try:
            files = _unpacked(registry, registry.read(base), known, "model").files
            data = registry.store.read(f"deltas/{name}")
            if delta.apply(data, files, list(known.values())) != registry.read(model):
                yield f"deltas/{name} does not give {model}: remove it, it is created again"
        except ArtifactError as exc:
            yield f"deltas/{name}: {exc}: remove it, it is created again"


def _unpacked(
    registry: Registry, data: bytes, known: Mapping[str, Ed25519PublicKey], kind: str
) -> Artifact:
    version = registry.task_version
    return unpack(data, list(known.values()), task=registry.task, task_version=version, kind=kind)
