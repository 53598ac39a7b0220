"""The policy of a rollout's stage: pass, wait, hold or go back. Pure.

It uses the likelihood ratios of `federation.rollout.sequential_test` over the whole rollout, and
the devices that refuse the version.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

from federation.rollout.compared import Comparison
from federation.rollout.sequential_test import compare
from federation.rollout.window_history import WindowHistory
from streams.contract.task import Task
from streams.contract.task.metrics import window_metric
from streams.contract.window_metrics import ERRORS, WindowMetric, digits, named
from streams.fleet.wording import listed

ENDED = ("source ended", "draining", "stopped")  # phases without further answers
SETTLED_S = 60.0  # after the stage began: by then what was answered before is scored
REFUSING = 0.1  # of the devices offered: when more refuse, the version goes back
LABELS_SHARE = 0.25  # of the evidence against a version, where few events have a label
LONGEST = 10  # windows of the greatest length for which a stage waits at least

Choice = Literal["go-on", "roll-back", "wait", "hold"]


@dataclass(frozen=True)
class StageRules:
    """alpha: nominal probability of rolling back an equally good version in a whole rollout; beta:
    of passing one that is worse by `worse_by` in `metric`: of a share the difference, of an error
    the share of the expected one; None: 0.05, of an error 0.1. With 0.03 at most 0.05 of the
    simulated ones pass (benchmarks/rollouts.py). `minimum_windows`: of a stage, over all devices;
    `max_wait_s`: wall time."""

    alpha: float = 0.05
    beta: float = 0.03
    worse_by: float | None = None
    minimum_windows: int = 6
    max_wait_s: float = 6 * 3600.0
    metric: WindowMetric = "accuracy"

    def of_task(self, task: Task) -> "StageRules":
        """Return the rules in a task's metric, with time for some of its windows."""
        max_wait_s = max(self.max_wait_s, LONGEST * task.window.longest_s)
        return replace(self, metric=window_metric(task), max_wait_s=max_wait_s)

    @property
    def bounds(self) -> dict[str, float]:
        """The likelihood ratios at which a version goes back, and on, as evidence has them."""
        return {"bound_worse": 1 / self.alpha, "bound_fine": 1 / self.beta}

    @property
    def loss(self) -> float:
        if self.worse_by is not None:
            return self.worse_by
        return 0.1 if self.metric in ERRORS else 0.05


@dataclass(frozen=True)
class StageVerdict:
    """`reason` is a line for a person, `evidence` its metrics."""

    verdict: Choice
    reason: str
    evidence: dict[str, float]


def evaluate(
    rules: StageRules,
    windows: WindowHistory,
    candidate: str,
    stable: str,
    began_us: int,
    stage_began_us: int,
    now_us: int,
    canary: Callable[[str], bool],
    refusals: Mapping[str, str],
    offered: int,
) -> StageVerdict:
    """Evaluate a stage of the rollout of `candidate` in place of `stable`.

    began_us, stage_began_us, now_us: wall times, as `heard_us`. canary: whether a device is offered
    the candidate. refusals: the canary's devices that refuse it themselves, with the reason;
    offered: the number of the canary's devices. A held stage may still pass or go back when more
    windows come.
    """
    seen = Comparison(windows, candidate, stable, began_us, stage_began_us, canary)
    evidence = _evidence(rules, seen) | seen.told()
    evidence |= {"refused": len(refusals), "offered": offered, **rules.bounds}
    waited_s = (now_us - stage_began_us) / 1e6
    if refusals and len(refusals) > REFUSING * offered:
        device, why = min(refusals.items())
        reason = f"{len(refusals)} of {offered} devices refuse {candidate}: {device}: {why}"
        return StageVerdict("roll-back", reason, evidence)
    return _decide(rules, candidate, evidence, waited_s)


def _evidence(rules: StageRules, seen: Comparison) -> dict[str, float]:
    """Return the evidence by the true labels where enough events have one (`has_labels`), else by
    the teacher and the events with a label. A likelihood ratio is a fair bet against the version,
    and so is a mean of two, however they depend on each other (Vovk and Wang 2021, "E-values"): one
    with LABELS_SHARE counts against the version, so that labels show soon what a teacher that errs
    itself shows late. If the candidate is right at least as often as the teacher then, the labels
    can decide alone, and unless they show a loss the teacher's disagreement does not count."""

    def by(comparison: Comparison) -> dict[str, float]:
        classes = len(comparison.history.classes)
        found = compare(rules.loss, comparison.parts, classes, rules.metric)
        return found | {"by_labels": float(comparison.by_labels)}

    labelled = replace(seen, by_labels=True)
    if seen.has_labels:
        return by(labelled)
    usual = by(seen)
    if not (seen.teacher_is_weaker or seen.labels_compare):
        return usual
    true = by(labelled)
    loss = true["expected"] - true["value"]
    lost = (-loss if rules.metric in ERRORS else loss) > 0
    if seen.teacher_is_weaker and not lost:
        clearer = max(true, usual, key=lambda found: found["e_fine"])
        return clearer | {"e_worse": true["e_worse"]}
    worse = max(usual, true, key=lambda found: found["e_worse"])
    fine = worse if seen.teacher_is_weaker else usual
    mean = (1 - LABELS_SHARE) * usual["e_worse"] + LABELS_SHARE * true["e_worse"]
    shown = worse if mean >= rules.bounds["bound_worse"] else fine
    return shown | {"e_worse": mean, "e_fine": fine["e_fine"]}


def without_hope(verdict: StageVerdict, phases: Mapping[str, str], waited_s: float) -> StageVerdict:
    """Return a hold instead of a wait if no more windows can come: all devices of the canary have
    ended (`phases` by device), and their last windows have had their time to be scored. If windows
    come all the same, a held stage goes on."""
    ended = all(phase in ENDED for phase in phases.values())
    if verdict.verdict != "wait" or not phases or not ended or waited_s < SETTLED_S:
        return verdict
    who = listed(sorted(phases))
    found = verdict.reason.removeprefix("canary continues: ")
    why = f"canary undecided: the readings of {who} have ended, no more windows can come; {found}"
    return replace(verdict, verdict="hold", reason=why)


def _decide(
    rules: StageRules, candidate: str, evidence: dict[str, float], waited_s: float
) -> StageVerdict:
    worse, fine, stage = evidence["e_worse"], evidence["e_fine"], int(evidence["stage_windows"])
    found = _found(candidate, evidence, rules)
    if worse >= evidence["bound_worse"]:
        return StageVerdict("roll-back", f"canary failed: {found}", evidence)
    if fine >= evidence["bound_fine"] and stage >= rules.minimum_windows:
        return StageVerdict("go-on", f"canary passed: {found}", evidence)
    found += _lacking(evidence)
    if waited_s > rules.max_wait_s:
        reason = f"canary undecided after {waited_s / 3600:.1f} h: {found}"
        return StageVerdict("hold", reason, evidence)
    return StageVerdict("wait", f"canary continues: {found}", evidence)


def _found(candidate: str, evidence: dict[str, float], rules: StageRules) -> str:
    """Return what the windows show, for a person; the likelihood ratios are in the evidence."""
    if not evidence["events"]:
        return f"no window answered by {candidate} yet"
    devices, windows = int(evidence["devices"]), int(evidence["windows"])
    by_labels = bool(evidence["by_labels"])
    return (
        f"{devices} device{'s' * (devices != 1)}, {windows} window{'s' * (windows != 1)}, "
        f"{named(rules.metric, by_labels=by_labels)} {digits(evidence['value'])} "
        f"({digits(evidence['expected'])} expected)"
    )


def _lacking(evidence: dict[str, float]) -> str:
    """Return, for a person, how far the windows are from what shows that a version is as good."""
    share = evidence["log_fine"] / math.log(evidence["bound_fine"])
    return f"; about {share:.0%} of the windows that a decision takes" if share < 1 else ""
