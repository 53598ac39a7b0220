"""The evidence for the promotion gate: from devices, held-out people, and the teacher; and how far
a run's candidate goes from the served weights: the whole way to what was learned, or a part of it
(`updates.SHARE`).

A part is the rule: it keeps most of what the served version knows and the learned weights have
forgotten. The whole way is taken if it is shown to be better, on the devices or on held-out ones,
and if no more is lost by it on any device. On devices the test exchanges both candidates on whole
devices at random (Fisher 1935), because their rows fail together; fewer than five devices prove
nothing. A device counts with as many rows as at the gate.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from federation.admission import Tensors, Weights
from federation.evaluation import accuracy, device_metrics, paired, promotion_gate
from federation.evaluation.accuracy import HeldOut, Score
from federation.evaluation.device_metrics import DeviceResult
from federation.evaluation.promotion_gate import Comparison, GateEvidence, GateRules, Rows, Verdict
from federation.evaluation.quantization import Quantizer, run_graph
from federation.evaluation.recent_windows import RecentWindows
from streams.contract.artifact import GRAPH, Artifact
from streams.contract.task import Task
from streams.contract.task.metrics import gain, measured, metric_of
from streams.contract.weights import payload
from streams.contract.weights.part import Part
from streams.contract.window_report import JUDGING
from streams.contract.work import PART
from streams.learning.updates import SHARE, interpolated

Results = Mapping[str, DeviceResult]  # by device


@dataclass(frozen=True)
class CandidateEvaluation:
    """Evaluation of candidates against `base`, the served version.

    held_out: what the gate decides by; recent: reads the stored windows, None if there are none;
    audit: further held-out segments, which decide nothing: they measure what the gate lets pass.
    graph: of a candidate that was made elsewhere; None: the base's. With a `quantizer` versions are
    judged as they answer; a device's own comparison is of the weights that it trains, in float.
    """

    task: Task
    base: Artifact
    held_out: HeldOut
    recent: Callable[[], RecentWindows | None] | None = None
    audit: HeldOut | None = None
    graph: bytes | None = None
    quantizer: Quantizer | None = None

    def central(self, weights: Tensors) -> Score:
        """Return the task's metric on held-out people."""
        if not len(self.held_out.labels):
            return Score()
        outputs = self._outputs(self.held_out.segments, weights)
        return accuracy.score(self.task, outputs, self.held_out.labels)

    def judge(
        self, carried: Part, learned: Tensors, results: Callable[[str], Results], margin: float
    ) -> tuple[Verdict, Tensors]:
        """Return the gate's verdict, and what it is about of the weights that were `carried`: the
        learned ones, or those at a part of the way to them.

        results: the devices' comparisons by the prefix of their metrics.
        """
        kind, whole, of_part = self.task.training.payload, results(""), results(PART)
        between = interpolated(carried.first, learned, SHARE)
        part = payload.round_candidate(between, carried.first, kind)
        either = carried.whole(part), carried.whole(learned)
        chosen = choose_step(self.task, of_part, whole, self._on_held_out(*either).rows)
        candidate, devices = (learned, whole) if chosen.whole else (part, of_part)
        verdict = self.decide(dict(carried.weights), either[chosen.whole], devices, margin)
        way = "; half of what was learned is applied, since all of it is not shown to be better"
        return replace(
            verdict,
            reason=verdict.reason + ("" if chosen.whole else way),
            evidence={**verdict.evidence, **chosen.metrics(SHARE)},
        ), candidate

    def decide(
        self,
        first: Tensors,
        candidate: Tensors,
        devices: Results,
        margin: float,
    ) -> Verdict:
        """Return the gate's verdict. first: the served weights; devices: their comparisons, of
        which no device's counts with many more rows than the others'."""
        counted = device_metrics.limited(devices)
        limited = sum(counted[name] is not each for name, each in devices.items())
        evidence = GateEvidence(
            device_metrics.pool(self.task, counted),
            self._on_held_out(first, candidate),
            self._on_recent(first, candidate),
        )
        verdict = promotion_gate.decide(evidence, self._rules(margin))
        more = {"devices_limited": float(limited), **self._audited(first, candidate)}
        return replace(verdict, evidence={**verdict.evidence, **more})

    def _rules(self, margin: float) -> GateRules:
        trades = self.task.may_trade_classes
        return GateRules(margin, metric_of(self.task).name, trades_classes=trades)

    def _audited(self, first: Tensors, candidate: Tensors) -> dict[str, float]:
        """Return the audit's metrics, which no rule reads."""
        if self.audit is None or not len(self.audit.labels):
            return {}
        labels = self.audit.labels
        found = {"audit_segments": float(len(labels))}
        for suffix, weights, graph in (("_base", first, None), ("", candidate, self.graph)):
            outputs = self._outputs(self.audit.segments, weights, graph)
            found[f"audit{suffix}"] = accuracy.score(self.task, outputs, labels).value
            for name, value in measured(self.task, outputs, labels).items():
                found[f"audit_{name}{suffix}"] = value
        return found

    def _on_held_out(self, first: Tensors, candidate: Tensors) -> Comparison:
        segments, labels = self.held_out.segments, self.held_out.labels
        if not len(labels):
            return Comparison()
        clusters = accuracy.spells(self.task, labels)
        return self._compared(first, candidate, segments, labels, clusters)

    def _on_recent(self, first: Tensors, candidate: Tensors) -> Comparison:
        found = self.recent() if self.recent is not None else None
        if found is None:
            return Comparison()
        labelled = found.with_labels()
        if self._knows_better(labelled, candidate):
            found, labels, by = labelled, labelled.labels, " by true labels"
        else:
            labels, by = self.task.labels_from(found.teacher), ""
        groups = self._groups(found.devices)
        clusters = np.unique(found.devices, return_inverse=True)[1]
        compared = self._compared(first, candidate, found.segments, labels, clusters, groups)
        return replace(compared, reference=by)

    def _knows_better(self, found: RecentWindows, candidate: Tensors) -> bool:
        """Return whether a candidate is right on labelled rows at least as often as the teacher."""
        if len(found.labels) < JUDGING:
            return False
        answers = self._outputs(found.segments, candidate, self.graph), found.teacher
        right, taught = (self.task.correct(each, found.labels).sum() for each in answers)
        return bool(right >= taught)

    def _compared(
        self,
        first: Tensors,
        candidate: Tensors,
        segments: np.ndarray,
        labels: np.ndarray,
        clusters: np.ndarray,
        groups: Mapping[str, np.ndarray] | None = None,
    ) -> Comparison:
        outputs = self._outputs(segments, first), self._outputs(segments, candidate, self.graph)
        return accuracy.compare(self.task, outputs, labels, clusters, groups)

    def _groups(self, devices: np.ndarray) -> dict[str, np.ndarray]:
        """Return (n,) bool by group: the rows of its devices."""
        members: dict[str, list[str]] = {}
        for device in self.task.devices():
            if device.group:
                members.setdefault(device.group, []).append(device.name)
        return {group: np.isin(devices, names) for group, names in members.items()}

    def _outputs(
        self, segments: np.ndarray, weights: Tensors, graph: bytes | None = None
    ) -> np.ndarray:
        graph = self.base.files[GRAPH] if graph is None else graph
        version: tuple[bytes, Weights] = graph, weights
        if self.quantizer is not None:
            version = self.quantizer.answering(graph, weights)
        return run_graph(version[0], segments, version[1], self.task.build_model)


# --- how far the candidate goes -------------------------------------------------------------------

LEVEL = 0.05


@dataclass(frozen=True)
class Step:
    """`whole`: whether the learned weights are the candidate. `gain`: what they gain beyond those
    of a part of the way, on `devices` devices that compared both, and how likely such a gain is by
    chance, there and on held-out devices. `harm`: the fleet's loss by the devices that lose, with a
    part and with all."""

    whole: bool
    devices: int
    gain: float
    chance: float
    held_out_chance: float
    harm: tuple[float, float]

    def metrics(self, share: float) -> dict[str, float]:
        return {
            "step": 1.0 if self.whole else share,
            "step_devices": float(self.devices),
            "step_gain": self.gain,
            "step_p": self.chance,
            "step_held_out_p": self.held_out_chance,
            "step_harm_part": self.harm[0],
            "step_harm_whole": self.harm[1],
        }


def choose_step(
    task: Task,
    part: Mapping[str, DeviceResult],
    whole: Mapping[str, DeviceResult],
    held_out: Rows,
) -> Step:
    """Return how far the candidate goes. part, whole: the devices' comparisons of the served
    version with either; held_out: the part of the way compared with all of it there."""
    names = sorted(part.keys() & whole.keys())
    if whole and not names:  # no device has compared a part of the way
        return Step(True, 0, 0.0, 1.0, 1.0, (0.0, 0.0))
    most = device_metrics.most_rows(whole)
    rows = np.array([min(whole[name].rows.n, most) for name in names], np.float64)
    share = rows / max(rows.sum(), 1.0)
    gains = [np.array([_gain(task, of[name]) for name in names]) for of in (part, whole)]
    differences = share * (gains[1] - gains[0])
    found = float(differences.sum())
    chance = paired.chance_by_units(differences)
    harm = tuple(float((share * np.maximum(-each, 0.0)).sum()) for each in gains)
    better = chance <= LEVEL or (held_out.n > 0 and held_out.chance_of_gain <= LEVEL)
    careful = harm[1] <= harm[0] + paired.NEAR
    return Step(
        better and careful and found >= 0, len(names), found, chance,
        held_out.chance_of_gain if held_out.n else 1.0, (harm[0], harm[1]),
    )  # fmt: skip


def _gain(task: Task, found: DeviceResult) -> float:
    if found.value is None:
        return found.rows.gain
    return float(gain(metric_of(task), *found.value))
