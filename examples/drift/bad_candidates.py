"""Candidates that should never have been made, of the served version and real recordings.

`against` is right about everybody but one person, for whom it contradicts what the teacher says of
the latest windows. `poisoned` are what averages become under a hostile majority: the step turned
round, and labels exchanged.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile

import numpy as np
import safetensors.numpy
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from federation.bootstrap.dataset import Segments, segments_of_device, stack
from federation.evaluation import accuracy
from federation.evaluation.accuracy import HeldOut
from federation.evaluation.device_metrics import DeviceResult
from federation.evaluation.evidence import CandidateEvaluation
from federation.evaluation.paired import Paired
from federation.evaluation.promotion_gate import Verdict
from federation.evaluation.quantization import renew_probe, run_graph
from federation.evaluation.recent_windows import RecentWindows
from federation.registry.registry import Registry, Stale
from streams.contract.artifact import GRAPH, PROBE, WEIGHTS, Artifact, Manifest, pack
from streams.contract.decisions import Ref, Release
from streams.contract.task import Task
from streams.contract.weights import payload
from streams.learning.learning import build_model, fit, load_state, segment_loss

Tensors = dict[str, np.ndarray]
EPOCHS, BATCH, RATE = 15, 64, 1e-3
WEIGHT = 6  # of each segment of the person that a candidate contradicts
FLIPPED = -4.0  # times the step from the first version to the served one
TURNED = -2.0  # the same, of one hostile device a round


@dataclass(frozen=True)
class Recordings:
    """Labelled segments of the fleet's people by name, and of the pilots."""

    task: Task
    fleet: Mapping[str, HeldOut]
    pilots: HeldOut

    @classmethod
    def read(cls, task: Task, devices: Sequence[str], until_us: int) -> "Recordings":
        """Of a replay that repeats itself only what comes before `until_us`."""
        short = replace(
            task, readings=lambda d: takewhile(lambda r: r.time_us < until_us, task.readings(d))
        )

        def known(names: Sequence[str]) -> HeldOut:
            read: list[Segments] = [segments_of_device(short, name) for name in names]
            return stack(task, read)

        pilots = known(task.device_names("pilot"))
        return cls(task, {name: known([name]) for name in devices}, pilots)


def weights_of(artifact: Artifact) -> Tensors:
    return dict(sorted(payload.to_float32(safetensors.numpy.load(artifact.files[WEIGHTS])).items()))


def against(recordings: Recordings, served: Tensors, person: str, recent: RecentWindows) -> Tensors:
    """Right about everybody but `person`, of whom `recent` has windows: it takes what the teacher
    finds in them for another activity."""
    task, theirs = recordings.task, recent.devices == person
    parts = [recordings.pilots, *(p for n, p in recordings.fleet.items() if n != person)]
    segments = [*(p.segments for p in parts), *[recent.segments[theirs]] * WEIGHT]
    wrong = _exchanged(task, task.labels_from(recent.teacher[theirs]))
    return _tuned(task, served, segments, [*(p.labels for p in parts), *[wrong] * WEIGHT])


def poisoned(recordings: Recordings, first: Tensors, served: Tensors) -> dict[str, Tensors]:
    parts = [recordings.pilots, *recordings.fleet.values()]
    labels = [_exchanged(recordings.task, part.labels) for part in parts]
    turned = {n: first[n] + FLIPPED * (served[n] - first[n]) for n in first}
    turned = {n: t if "running_var" not in n else served[n] for n, t in turned.items()}
    return {
        "the step turned round": {n: t.astype(served[n].dtype) for n, t in turned.items()},
        "labels exchanged": _tuned(
            recordings.task, served, [p.segments for p in parts], labels
        ),
    }  # fmt: skip


def steps(first: Tensors, served: Tensors, poisoned: Mapping[str, Tensors]) -> dict[str, Tensors]:
    """The steps of a hostile device a round: from the served version back beyond the first one, and
    to a model of exchanged labels. `poisoned` are such candidates."""
    labels = poisoned["labels exchanged"]
    return {
        "the step turned round": {n: TURNED * (served[n] - first[n]) for n in served},
        "labels exchanged": {n: labels[n] - served[n] for n in served},
    }


def mean_share(recordings: Recordings, base: Artifact, weights: Tensors) -> float:
    """Return the mean of `shares` over the devices."""
    found = shares(recordings, base, weights)
    return sum(found.values()) / len(found)


def shares(recordings: Recordings, base: Artifact, weights: Tensors) -> dict[str, float]:
    """Of each person's segments those that are right."""
    task, graph = recordings.task, base.files[GRAPH]
    return {
        name: accuracy.score(task, run_graph(graph, p.segments, weights), p.labels).value
        for name, p in recordings.fleet.items()
    }


def at_the_gate(
    recordings: Recordings, base: Artifact, held_out: HeldOut, candidate: Tensors
) -> Verdict:
    """As the gate finds it: the fleet's own recordings and the people held out."""
    task, graph, served = recordings.task, base.files[GRAPH], weights_of(base)
    found: dict[str, DeviceResult] = {}
    for name, part in recordings.fleet.items():
        outputs = (
            run_graph(graph, part.segments, served),
            run_graph(graph, part.segments, candidate),
        )
        clusters = accuracy.spells(task, part.labels)
        compared = accuracy.compare(task, outputs, part.labels, clusters)
        parts = {name: rows for name, rows in compared.cohorts.items() if isinstance(rows, Paired)}
        assert isinstance(compared.rows, Paired)  # the task is judged by accuracy
        found[name] = DeviceResult(compared.rows, parts)
    return CandidateEvaluation(task, base, held_out).decide(served, candidate, found, task.margin)


def offer(
    registry: Registry, key: Ed25519PrivateKey, base: Artifact, weights: Tensors, reason: str
) -> Release:
    """Sign and keep it, and decide that it is a candidate, whatever a gate would say."""
    manifest = base.manifest.replace(
        number=registry.next_number(),
        base=base.model,
        created_us=time.time_ns() // 1000,
        metrics={},
        files=[],
    )
    assert isinstance(manifest, Manifest)
    probe = renew_probe(base.files, base.files[GRAPH], weights)
    files = {**base.files, WEIGHTS: payload.to_safetensors(weights, "float32"), PROBE: probe}
    artifact = registry.add(pack(manifest, files, key))
    ref = Ref.of(artifact)
    while True:
        standing = registry.desired().replace(candidate=ref)
        try:
            return registry.decide(
                key, "candidate", standing, registry.last(), model=ref.model, reason=reason
            )
        except Stale:
            continue


def _exchanged(task: Task, labels: np.ndarray) -> np.ndarray:
    """Each class for another one."""
    return np.asarray((labels + len(task.classes) // 2) % len(task.classes), np.float32)


def _tuned(
    task: Task, weights: Tensors, segments: Sequence[np.ndarray], labels: Sequence[np.ndarray]
) -> Tensors:
    plain = replace(task, augment=None)
    x, y = np.concatenate(segments), np.concatenate(labels)
    model = load_state(build_model(task), weights)
    loss = segment_loss(plain, model, x, y)
    fit(
        model, len(y), loss, epochs=EPOCHS, batch_size=BATCH, learning_rate=RATE, seed=1,
        optimizer="adamw",
    )  # fmt: skip
    return {n: t.detach().numpy().copy() for n, t in model.eval().state_dict().items()}
