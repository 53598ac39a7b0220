"""Releases: the decisions, what devices are to serve, and how a canary does. Pure."""

from collections import defaultdict

from pydantic import BaseModel

from compose.dashboard.model.canary import Odds
from compose.dashboard.model.lineage import Lineage, lineage
from compose.dashboard.model.observed import Observed
from compose.dashboard.model.recent import SLOT_S
from compose.reports.status import release_line
from federation.rollout.stage_policy import StageRules
from streams.contract.decisions import Decision, DesiredState
from streams.contract.window_metrics import Sums, WindowMetric, added, value_of
from streams.fleet.wording import decision_text, short_runs

DECISIONS = 60
WORDS = {
    "stage": "stage",
    "served": "served by all",
    "held": "paused",
    "rolled-back": "back",
    "candidate": "candidate",
    "dropped": "dropped",
    "teacher": "teacher",
    "keys": "keys",
}


class DecisionRow(BaseModel):
    """A decision, for a person; run: the whole number of its run. odds: the
    likelihood ratios of worse and of not worse, and bounds: those at which the version goes back,
    and on; None where it was not made of windows."""

    seq: int
    at_us: int
    kind: str
    word: str
    version: str | None
    text: str
    reason: str
    key: str
    run: str
    odds_worse: float | None
    odds_fine: float | None
    bound_worse: float | None
    bound_fine: float | None


class Growth(BaseModel):
    """The metric up to at_us, of all windows since the first stage: of the canary's version, and
    of the stable one."""

    at_us: int
    canary: float | None
    others: float | None


class Releases(BaseModel):
    """Decisions are the newest first. metric: what `growth` is, for a person. odds: of the
    canary as they grow; words: what its windows show; bounds: the odds at which it goes back, and
    on, as the controller that offered it has them; versions: how they were made."""

    released: str
    desired: DesiredState
    canary: str | None
    stable: str | None
    began_us: int | None
    devices: int
    offered_devices: int
    metric: str
    lower_is_better: bool
    growth: list[Growth]
    odds: list[Odds]
    words: str
    bound_worse: float
    bound_fine: float
    decisions: list[DecisionRow]
    versions: list[Lineage]
    teacher: str | None


def releases(seen: Observed) -> Releases:
    view, desired = seen.view, seen.view.standing
    decided = [view.decisions[seq] for seq in sorted(view.decisions, reverse=True)]
    canary = desired.offered.model if desired.offered else None
    stable = desired.stable.model if desired.stable else None
    stages = [d for d in decided if d.kind == "stage" and d.model == canary]
    began_us = min((d.time_us for d in stages), default=None)
    told = (d.evidence for d in stages if "bound_worse" in d.evidence)  # not a manual one
    bounds = next(told, StageRules().bounds)
    return Releases(
        released=release_line(view),
        desired=desired,
        canary=canary,
        stable=stable,
        began_us=began_us,
        devices=len(view.devices),
        offered_devices=view.offered_count if canary else 0,
        metric=view.latest_agreement.called,
        lower_is_better=view.latest_agreement.lower_is_better,
        growth=_growth(seen, canary, stable, began_us),
        odds=list(seen.beside.canary.odds) if canary == seen.beside.canary.version else [],
        words=seen.beside.canary.words,
        bound_worse=bounds["bound_worse"],
        bound_fine=bounds["bound_fine"],
        decisions=[_row(decision) for decision in decided[:DECISIONS]],
        versions=lineage(view),
        teacher=desired.teacher.model if desired.teacher else None,
    )


def _row(decision: Decision) -> DecisionRow:
    text = decision_text(decision)
    return DecisionRow(
        seq=decision.seq,
        at_us=decision.time_us,
        kind=decision.kind,
        word=WORDS[decision.kind],
        version=decision.model,
        text=text[:1].upper() + text[1:],
        reason=short_runs(decision.reason),
        key=decision.key,
        run=decision.run,
        odds_worse=decision.evidence.get("e_worse"),
        odds_fine=decision.evidence.get("e_fine"),
        bound_worse=decision.evidence.get("bound_worse"),
        bound_fine=decision.evidence.get("bound_fine"),
    )


def _growth(
    seen: Observed, canary: str | None, stable: str | None, began_us: int | None
) -> list[Growth]:
    if canary is None or began_us is None:
        return []
    sums: defaultdict[str, Sums] = defaultdict(dict)
    metric: WindowMetric = "accuracy"
    found = []
    for number, slot in sorted(seen.beside.recent.slots.items()):
        if (number + 1) * SLOT_S * 1_000_000 <= began_us:
            continue
        for release in (canary, stable):
            part = slot.releases.get(release or "")
            if part is not None:
                metric = part.metric
                sums[release or ""] = added((sums[release or ""], part.sums))
        values = [value_of(metric, sums[name or ""]) for name in (canary, stable)]
        at_us = (number + 1) * SLOT_S * 1_000_000
        found.append(Growth(at_us=at_us, canary=values[0], others=values[1]))
    return found
