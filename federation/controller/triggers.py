"""When a run starts: pure, from windows and device states.

Causes, tried in this order:

    manual     a user requested it (`tidewheel train`)
    drift      the inputs of enough devices have drifted, in several consecutive reports: of two,
               in a large fleet of SHARE: there some always do, by chance or alone
    windows    the served model's metric in windows (streams.contract.window_metrics) is beyond the
               limit in several consecutive checks: too little agreement with the teacher, or too
               large errors; against true labels where no teacher is asked
    weak       so it is on enough single devices, which the fleet's mean may hide: of `min_devices`,
               in a large fleet of SHARE
    schedule   a stated time has passed

A lasting condition causes one run. Drift is relative to a fixed reference and persists after a
model has learned the new data, so a device's drift counts again only after a report without it. A
metric beyond its limit counts again once it was clearly within, or another model is served, or
after `again_s`, because a run may have learned too little. Any run, whoever started it, answers all
current causes, unless nothing of it is served: it ends without a candidate, the gate refuses it, or
the rollout takes back what it made. Then they count again.

Budgets delay a cause but do not remove it: one run at a time, `runs_per_day`, `min_interval_s`,
which is twice as long with each run of which nothing is served for the reason of the one before. A
manual request is only limited by the first one. Times are wall-clock seconds, so that
budgets outlive the controller's process.
"""

import math
import re
from dataclasses import dataclass

from federation.controller.fleet_evidence import FleetEvidence, TriggerRules
from streams.contract.window_metrics import ERRORS, digits, named_of
from streams.fleet.wording import listed

DAY_S = 86_400.0
DRIFTING = 2  # devices whose inputs drift start a run
SHARE = 0.05  # of all devices, where that is more
RETRY_S = 10.0  # after a run that could not be started


@dataclass(frozen=True)
class RunsSoFar:
    """The runs so far: `starts_s` of at least those of the last day and the last one, in any order;
    `failed_s`, when one could not be started, and why (`failure`); how many of the last were
    `refused` for one `reason`."""

    running: bool = False
    starts_s: tuple[float, ...] = ()
    failed_s: float | None = None
    failure: str = ""
    refused: int = 0
    reason: str = ""

    @property
    def began_s(self) -> float | None:
        return max(self.starts_s, default=None)


@dataclass(frozen=True)
class TriggerDecision:
    """cause: why a run should start, for a person, None without a cause. held_back: the budget that
    forbids it now; a run starts if there is a cause and this is None. soon: there may be a cause
    soon, and no budget forbids it."""

    cause: str | None = None
    held_back: str | None = None
    soon: bool = False

    @property
    def start(self) -> bool:
        return self.cause is not None and self.held_back is None


def decide(
    rules: TriggerRules, evidence: FleetEvidence, runs: RunsSoFar, now_s: float, since_s: float
) -> TriggerDecision:
    """Return whether a run should start now.

    since_s: when the controller started, from which a schedule counts before the first run.
    """
    asked = evidence.asked
    cause = asked if asked is not None else _cause(rules, evidence, runs, now_s, since_s)
    if cause is None:
        likely = evidence.is_soon_bad and not runs.running
        return TriggerDecision(soon=likely and _budget(rules, runs, now_s) is None)
    if runs.running:
        return TriggerDecision(cause, "a run is active")
    if runs.failed_s is not None and now_s - runs.failed_s < RETRY_S:
        why = f"the last attempt failed less than {RETRY_S:.0f} s ago ({runs.failure})"
        return TriggerDecision(cause, why)
    return TriggerDecision(cause, None if asked is not None else _budget(rules, runs, now_s))


def _cause(
    rules: TriggerRules, evidence: FleetEvidence, runs: RunsSoFar, now_s: float, since_s: float
) -> str | None:
    drifting, weak = evidence.drifting, evidence.new_weak(now_s)
    enough, moved = evidence.is_enough, len(drifting)
    share = math.ceil(SHARE * evidence.fleet)
    if enough and moved >= max(DRIFTING, share):
        return (
            f"the inputs of {moved} devices drift ({listed(sorted(drifting))}), at least "
            f"{min(drifting.values())} windows in a row"
        )
    beyond = "above" if rules.metric in ERRORS else "below"
    if evidence.is_newly_bad(now_s):
        return (
            f"{evidence.called} of {evidence.served} is {digits(evidence.value)} in "
            f"{evidence.events} events from {evidence.devices} devices, {beyond} "
            f"{digits(rules.limit)} (Task.retrain)"
        )
    if enough and len(weak) >= max(rules.min_devices, share):
        values = [one.value for one in weak.values()]
        worst, who = (max if rules.metric in ERRORS else min)(values), listed(sorted(weak))
        called = named_of(rules.metric, [one.by_labels for one in weak.values()])
        return (
            f"{called} of {evidence.served} is {digits(worst)} at worst on {len(weak)} "
            f"devices ({who}), each {beyond} {digits(rules.weak_limit)} (Task.retrain is "
            f"{digits(rules.limit)})"
        )
    last = since_s if runs.began_s is None else runs.began_s
    if rules.schedule_s is not None and now_s - last >= rules.schedule_s:
        due = f"a run is due every {rules.schedule_s:.0f} s (--schedule)"
        return f"{now_s - last:.0f} s have passed, {due}"
    return None


def _budget(rules: TriggerRules, runs: RunsSoFar, now_s: float) -> str | None:
    """Return the first exhausted budget, in words that do not change with time: it is logged
    once."""
    today = sum(now_s - start < DAY_S for start in runs.starts_s)
    if rules.runs_per_day is not None and today >= rules.runs_per_day:
        allowed = f"{rules.runs_per_day} are allowed (--runs-per-day)"
        return f"{today} runs began in the last 24 hours, {allowed}"
    wait_s = min(rules.min_interval_s * 2.0 ** max(runs.refused - 1, 0), DAY_S)
    if runs.began_s is None or now_s - runs.began_s >= wait_s:
        return None
    if runs.refused < 2:
        return f"the last run began less than {wait_s:.0f} s ago (--min-interval)"
    return (
        f"the last {runs.refused} runs had no result for one reason ({runs.reason}), so the next "
        f"one begins {wait_s:.0f} s after the last; what the reason names, more labels, another "
        "teacher or another Task.retrain may change it"
    )


def kind_of(reason: str) -> str:
    """Return the gate's reason without its figures."""
    return " ".join(re.sub(r"[-+]?[0-9][0-9.,]*", "", reason).split())
