"""The promotion gate: whether a candidate may replace the served version. Pure.

Both versions answer the same rows, in the task's metric: accuracy by its rows, any other one as a
whole (paired.py).
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from federation.evaluation.paired import Paired, Valued
from streams.contract.task.metrics import NO_THRESHOLD, named
from streams.contract.window_metrics import digits

ROUNDING = 1e-9  # so that a gain of exactly the margin passes

Rows = Paired | Valued
RECALL = "recall of "
CLASS = "class "  # how the name of a class as a cohort begins


@dataclass(frozen=True)
class Comparison:
    """One kind of evidence; cohorts by name, as `class walking` or `group north`. reference: what
    judged it, if not what usually does."""

    rows: Rows = field(default_factory=Paired)
    cohorts: Mapping[str, Rows] = field(default_factory=dict)
    reference: str = ""


@dataclass(frozen=True)
class GateEvidence:
    """devices: their own held-out rows; held_out: people in no fleet; recent: stored windows, where
    an answer is right if it agrees with the teacher, or with the label if that teacher is wrong
    more often than the candidate."""

    devices: Comparison = Comparison()
    held_out: Comparison = Comparison()
    recent: Comparison = Comparison()

    def named(self) -> Iterator[tuple[str, str, Comparison]]:
        """Yield each comparison with its name in metrics and in sentences."""
        yield "devices", "on devices", self.devices
        yield "held_out", "on held-out devices", self.held_out
        yield "recent", f"on recent windows{self.recent.reference}", self.recent


@dataclass(frozen=True)
class GateRules:
    """margin: the required gain in `metric`; tolerance: the allowed loss on held-out people while
    the fleet gains; cohort_bound: the allowed loss of a cohort, and of recent windows;
    significance: a higher p counts as chance; trades_classes: whether a class may fall on held-out
    devices, within the bound, though its F1 does not rise; minimum: the number of rows below
    which nothing is decided."""

    margin: float
    metric: str = "accuracy"
    tolerance: float = 0.01
    cohort_bound: float = 0.05
    significance: float = 0.05
    trades_classes: bool = False
    minimum: int = 20


@dataclass(frozen=True)
class Verdict:
    """The decision; the reason is a line for a person, the evidence its metrics."""

    promote: bool
    reason: str
    evidence: Mapping[str, float] = field(default_factory=dict)


def decide(evidence: GateEvidence, rules: GateRules) -> Verdict:
    """Return the verdict.

    The fleet's own rows must gain the margin while held-out people lose at most the tolerance. If
    too few rows were compared on devices, held-out people must gain the margin. At least one of
    both must gain it significantly. Recent windows and cohorts must not lose more than the bound
    significantly, a class on held-out devices nothing.
    """
    metrics = _metrics(evidence, rules)
    known = [part for part in evidence.named() if part[2].rows.n >= rules.minimum]
    primary = next((part for part in known if part[0] != "recent"), None)
    if primary is None:
        least = f"fewer than {rules.minimum} segments on devices or held-out devices"
        return Verdict(False, f"nothing was evaluated: {least}", metrics)
    few = (
        ""
        if primary[0] == "devices"
        else f"; no device compared {rules.minimum} of its own segments"
    )
    proven = any(_proven(part[2].rows, rules) for part in known if part[0] != "recent")
    against = [*_no_gain(primary[1], primary[2].rows, rules, proven)]
    against += [
        why
        for name, title, found in known
        if name != primary[0]
        for why in _loss(name, title, found.rows, rules)
    ]
    against += _worse_cohorts(evidence, rules)
    fallen = _fallen_classes(evidence, rules)
    if not rules.trades_classes:
        worse = [why for why, better in fallen if not better]
        against += [f"{why} (Task.may_trade_classes allows it)" for why in worse[:1]]
    if against:
        name = "" if rules.metric == "accuracy" else f"{named(rules.metric)} "
        return Verdict(False, name + "; ".join(against) + few, metrics)
    changes = ", ".join(_change(title, found.rows) for _, title, found in known)
    changes = "; ".join([changes, *(why for why, _ in fallen)])
    return Verdict(True, f"{named(rules.metric)} {changes}{few}", metrics)


def _change(title: str, rows: Rows) -> str:
    return f"{title} {digits(rows.before)} → {digits(rows.after)}"


def _proven(rows: Rows, rules: GateRules) -> bool:
    """Return whether the gain is significant; a margin of 0 requires no gain, so anything is."""
    if rules.margin <= 0:
        return True
    enough = rows.gain >= rules.margin - ROUNDING
    return enough and rows.chance_of_gain <= rules.significance


def _no_gain(title: str, rows: Rows, rules: GateRules, proven: bool) -> Iterator[str]:
    if rows.gain < rules.margin - ROUNDING:
        yield f"{_change(title, rows)} gains less than {rules.margin:.3f}"
    elif not proven:
        yield f"{_change(title, rows)} may be chance ({rows.counts})"


def _loss(name: str, title: str, rows: Rows, rules: GateRules) -> Iterator[str]:
    if name == "recent":
        if _worse(rows, rules, rules.significance):
            yield f"{_change(title, rows)} loses more than {rules.cohort_bound:.3f}"
    elif rows.gain < -rules.tolerance - ROUNDING:
        yield f"{_change(title, rows)} loses more than {rules.tolerance:.3f}"


def _worse(rows: Rows, rules: GateRules, significance: float) -> bool:
    """Return whether the loss exceeds the bound significantly, and F1 falls where rows have it."""
    beyond = rows.gain < -rules.cohort_bound - ROUNDING
    return beyond and not rows.recognizes_better and rows.chance_of_loss <= significance


def _cohorts(found: Comparison, rules: GateRules) -> dict[str, Rows]:
    """Return the cohorts that decide something. Classes are cohorts by what is answered, which says
    nothing where the metric has no threshold."""
    return {
        f"{RECALL}{c}" if c.startswith(CLASS) else c: rows
        for c, rows in found.cohorts.items()
        if rows.n >= rules.minimum and not (c.startswith(CLASS) and rules.metric in NO_THRESHOLD)
    }


def _worse_cohorts(evidence: GateEvidence, rules: GateRules) -> list[str]:
    """Return the worst failing cohort and the number of others. The significance is divided by the
    number of cohorts (Bonferroni), because otherwise one of many cohorts would refuse every
    candidate."""
    found = []
    for _, title, comparison in evidence.named():
        cohorts = _cohorts(comparison, rules)
        found += [
            (rows.gain, f"{cohort} {_change(title, rows)}")
            for cohort, rows in cohorts.items()
            if _worse(rows, rules, rules.significance / len(cohorts))
        ]
    if not found:
        return []
    more = f", as {len(found) - 1} more do" if len(found) > 1 else ""
    return [f"{min(found)[1]} loses more than {rules.cohort_bound:.3f}{more}"]


def _fallen_classes(evidence: GateEvidence, rules: GateRules) -> list[tuple[str, bool]]:
    """Return the classes that fall on held-out devices beyond chance, by however much; and whether
    their F1 rises all the same: the served version had taken much else for them."""
    cohorts = _cohorts(evidence.held_out, rules)
    return [
        (
            f"{cohort} {_change('on held-out devices', rows)} falls beyond chance",
            rows.recognizes_better,
        )
        for cohort, rows in cohorts.items()
        if cohort.startswith(RECALL) and rows.chance_of_loss <= rules.significance / len(cohorts)
    ]


def _metrics(evidence: GateEvidence, rules: GateRules) -> dict[str, float]:
    """Return flat metrics: the metric before and after, rows, and p of such a gain. Of a cohort
    the gain, rows, p of such a loss, and the gain of F1."""
    found: dict[str, float] = {}
    for name, _, comparison in evidence.named():
        rows = comparison.rows
        if name == "recent" and not rows.n:
            continue
        found |= {
            f"{name}_base": rows.before,
            name: rows.after,
            f"{name}_segments": float(rows.n),
            f"{name}_p": rows.chance_of_gain,
        }
        if isinstance(rows, Paired):
            found |= {f"{name}_gained": float(rows.gained), f"{name}_lost": float(rows.lost)}
        else:
            found |= {f"{name}_gain": rows.gain, f"{name}_units": float(rows.units)}
        for cohort, part in comparison.cohorts.items():
            if part.n >= rules.minimum:
                found |= {
                    f"{name}/{cohort}": part.gain,
                    f"{name}/{cohort}/segments": float(part.n),
                    f"{name}/{cohort}/p": part.chance_of_loss,
                }
                if isinstance(part, Paired):
                    found[f"{name}/{cohort}/f1"] = part.f1[1] - part.f1[0]
    return found
