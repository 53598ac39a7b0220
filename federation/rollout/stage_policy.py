"""Whether a stage of a rollout passes, waits, is held or goes back: a canary's verdict. Pure.

By what the windows are evidence of (`federation.rollout.sequential_test`) over the whole rollout,
and by the devices that go back by themselves.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from federation.rollout.sequential_test import compare
from federation.rollout.window_history import HistoryWindow, WindowHistory

REFUSING = 0.1  # of the devices offered: when more refuse, the version goes back

Choice = Literal["go-on", "roll-back", "wait", "hold"]


@dataclass(frozen=True)
class StageRules:
    """alpha: the chance of going back from an equally good version, in a whole rollout; beta: of
    letting one pass that agrees less by `worse_by`. `minimum_windows` are a stage's, of all its
    devices; `max_wait_s` is wall time."""

    alpha: float = 0.05
    beta: float = 0.05
    worse_by: float = 0.05
    minimum_windows: int = 6
    max_wait_s: float = 6 * 3600.0


@dataclass(frozen=True)
class StageVerdict:
    """`reason` is a line for a person, `evidence` the figures behind it."""

    verdict: Choice
    reason: str
    evidence: dict[str, float]


def judge(
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
    """What to do with a stage of the rollout of `candidate` in place of `stable`.

    began_us, stage_began_us, now_us: wall times, as `heard_us`. canary: whether a device is offered
    the candidate. refusals: of the canary's devices that refuse it by themselves, why; offered: how
    many there are. A stage that was held may still pass or go back when more windows come.
    """
    base, tests = windows.by(stable), [w for w in windows.by(candidate) if canary(w.device)]
    others = [w for w in base if w.heard_us >= began_us and not canary(w.device)]
    past = [w for w in base if w.heard_us < began_us or canary(w.device)]
    evidence = compare(rules.worse_by, past, others, tests)
    evidence |= _accuracy(tests, past)
    stage = sum(w.heard_us >= stage_began_us for w in tests)
    evidence |= {"stage_windows": stage, "refused": len(refusals), "offered": offered}
    waited_s = (now_us - stage_began_us) / 1e6
    if refusals and len(refusals) > REFUSING * offered:
        device, why = min(refusals.items())
        reason = f"{len(refusals)} of {offered} devices refuse {candidate}: {device}: {why}"
        return StageVerdict("roll-back", reason, evidence)
    return _decide(rules, candidate, evidence, waited_s)


def _decide(
    rules: StageRules, candidate: str, evidence: dict[str, float], waited_s: float
) -> StageVerdict:
    worse, fine, stage = evidence["e_worse"], evidence["e_fine"], int(evidence["stage_windows"])
    said = (
        f"{candidate} agrees with the teacher on {evidence['agreement']:.3f} of "
        f"{evidence['events']:.0f} events from {evidence['devices']:.0f} devices, "
        f"{evidence['expected']:.3f} were expected"
        if evidence["events"]
        else f"no window by {candidate} yet"
    )
    if worse >= 1 / rules.alpha:
        reason = f"{said}: evidence {worse:.3g} that it is worse, {1 / rules.alpha:.3g} is enough"
        return StageVerdict("roll-back", reason, evidence)
    open_ = (
        f"evidence {worse:.2g} of {1 / rules.alpha:.3g} that it is worse, {fine:.2g} of "
        f"{1 / rules.beta:.3g} that it loses less than {rules.worse_by:g}; "
        f"{stage} of {rules.minimum_windows} windows"
    )
    if fine >= 1 / rules.beta and stage >= rules.minimum_windows:
        return StageVerdict("go-on", f"{said}: {open_}", evidence)
    if waited_s > rules.max_wait_s:
        return StageVerdict("hold", f"undecided after {waited_s:.0f} s: {said}; {open_}", evidence)
    return StageVerdict("wait", f"{said}; {open_}", evidence)


def _accuracy(tests: Sequence[HistoryWindow], past: Sequence[HistoryWindow]) -> dict[str, float]:
    """Where events have a true label; beside the point, but a person asks."""
    found = {}
    for name, windows in (("accuracy", tests), ("accuracy_before", past)):
        labelled = sum(window.labelled for window in windows)
        if labelled:
            found[name] = sum(window.correct for window in windows) / labelled
    return found
