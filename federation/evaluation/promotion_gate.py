"""The promotion gate: whether a candidate may replace the served version. Pure.

Both versions answer the same rows, so only differences count: rows that the candidate gains (right
where the served version is wrong) and rows that it loses. McNemar's exact test (McNemar 1947) gives
the probability of so many if both were equally good: gained and lost rows are then coin tosses.

Rows are correlated: a person's period of sitting is gained or lost as a whole, and a cohort may
have only a few of them. For losses the test therefore counts clusters (devices or periods) instead
of rows: cluster i counts by d_i, its gained minus lost rows, divided by sum d_i^2 / sum |d_i|. This
is the cluster size if all are equal, and 1 if each row is a cluster.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import astuple, dataclass, field

EXACT = 1000  # differing rows; for more, the normal approximation is within 0.001
ROUNDING = 1e-9  # so that a gain of exactly the margin passes


@dataclass(frozen=True)
class Paired:
    """`n` rows answered by both versions; `base` of them right by the served version. For the rows
    of a class, `base_false` and `false` are other rows that each version predicts as this class.
    For clusters of correlated rows, `down` is the sum of (lost - gained) over losing clusters and
    `squares` the sum of (gained - lost)^2 over all; both are 0 if each row is its own cluster."""

    n: int = 0
    base: int = 0
    gained: int = 0
    lost: int = 0
    base_false: int = 0
    false: int = 0
    down: int = 0
    squares: int = 0

    @property
    def candidate(self) -> int:
        return self.base + self.gained - self.lost

    @property
    def gain(self) -> float:
        return (self.gained - self.lost) / self.n if self.n else 0.0

    @property
    def f1(self) -> tuple[float, float]:
        """The F1 scores of the served version and of the candidate."""
        found = ((self.base, self.base_false), (self.candidate, self.false))
        base, new = (2 * right / max(self.n + right + wrong, 1) for right, wrong in found)
        return base, new

    @property
    def chance_of_loss(self) -> float:
        """The probability of so many lost clusters by chance: p of McNemar's test for clusters."""
        if not self.squares:
            return chance(self.lost, self.gained)
        up = self.gained - self.lost + self.down
        alike = self.squares / (up + self.down)
        return chance(round(self.down / alike), round(up / alike))

    def __add__(self, other: "Paired") -> "Paired":
        return Paired(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))


@dataclass(frozen=True)
class Comparison:
    """One kind of evidence; cohorts by name, as `class walking` or `group north`."""

    rows: Paired = Paired()
    cohorts: Mapping[str, Paired] = field(default_factory=dict)


@dataclass(frozen=True)
class GateEvidence:
    """devices: their own held-out rows; held_out: people in no fleet; recent: stored windows, where
    an answer is right if it agrees with the teacher."""

    devices: Comparison = Comparison()
    held_out: Comparison = Comparison()
    recent: Comparison = Comparison()

    def named(self) -> Iterator[tuple[str, str, Comparison]]:
        """Yield each comparison with its name in metrics and in sentences."""
        yield "devices", "on devices", self.devices
        yield "held_out", "on held-out devices", self.held_out
        yield "recent", "on recent windows", self.recent


@dataclass(frozen=True)
class GateRules:
    """margin: the required gain; tolerance: the allowed loss on held-out people while the fleet
    gains; cohort_bound: the allowed loss of a cohort, and of recent windows; significance: a higher
    p counts as chance; minimum: the number of rows below which nothing is decided."""

    margin: float
    tolerance: float = 0.01
    cohort_bound: float = 0.05
    significance: float = 0.05
    minimum: int = 20


@dataclass(frozen=True)
class Verdict:
    """The decision; the reason is a line for a person, the evidence its metrics."""

    promote: bool
    reason: str
    evidence: Mapping[str, float] = field(default_factory=dict)


def chance(many: int, few: int) -> float:
    """Return the probability that a fair coin shows heads `many` times or more in many + few
    tosses."""
    tosses = many + few
    if tosses > EXACT:
        return 0.5 * math.erfc((many - few - 1) / math.sqrt(2 * tosses))
    return sum(math.comb(tosses, heads) for heads in range(many, tosses + 1)) / (1 << tosses)


def decide(evidence: GateEvidence, rules: GateRules) -> Verdict:
    """Return the verdict.

    The fleet's own rows must gain the margin while held-out people lose at most the tolerance. If
    too few rows were compared on devices, held-out people must gain the margin. At least one of
    both must gain it significantly. Recent windows and cohorts must not lose more than the bound
    significantly.
    """
    metrics = _metrics(evidence, rules)
    known = [part for part in evidence.named() if part[2].rows.n >= rules.minimum]
    primary = next((part for part in known if part[0] != "recent"), None)
    if primary is None:
        least = f"fewer than {rules.minimum} segments on devices or held-out devices"
        return Verdict(False, f"nothing was evaluated: {least}", metrics)
    few = "" if primary[0] == "devices" else "; no device compared enough segments"
    proven = any(_proven(part[2].rows, rules) for part in known if part[0] != "recent")
    against = [*_no_gain(primary[1], primary[2].rows, rules, proven)]
    against += [
        why
        for name, title, found in known
        if name != primary[0]
        for why in _loss(name, title, found.rows, rules)
    ]
    against += _worse_cohorts(evidence, rules)
    if against:
        return Verdict(False, "; ".join(against) + few, metrics)
    changes = ", ".join(_change(title, found.rows) for _, title, found in known)
    return Verdict(True, f"accuracy {changes}{few}", metrics)


def _change(title: str, rows: Paired) -> str:
    return f"{title} {rows.base / rows.n:.3f} → {rows.candidate / rows.n:.3f}"


def _proven(rows: Paired, rules: GateRules) -> bool:
    """Return whether the gain is significant; a margin of 0 requires no gain, so anything is."""
    if rules.margin <= 0:
        return True
    enough = rows.gain >= rules.margin - ROUNDING
    return enough and chance(rows.gained, rows.lost) <= rules.significance


def _no_gain(title: str, rows: Paired, rules: GateRules, proven: bool) -> Iterator[str]:
    if rows.gain < rules.margin - ROUNDING:
        yield f"{_change(title, rows)} gains less than {rules.margin:.3f}"
    elif not proven:
        counts = f"{rows.gained} segments better, {rows.lost} worse"
        yield f"{_change(title, rows)} may be chance ({counts})"


def _loss(name: str, title: str, rows: Paired, rules: GateRules) -> Iterator[str]:
    if name == "recent":
        if _worse(rows, rules, rules.significance):
            yield f"{_change(title, rows)} loses more than {rules.cohort_bound:.3f}"
    elif rows.gain < -rules.tolerance - ROUNDING:
        yield f"{_change(title, rows)} loses more than {rules.tolerance:.3f}"


def _worse(rows: Paired, rules: GateRules, significance: float) -> bool:
    """Return whether the loss exceeds the bound significantly and F1 falls. A version that
    over-predicts a class finds nearly all of its rows; a candidate that finds fewer with a better
    F1 recognizes the class better and is not worse."""
    beyond = rows.gain < -rules.cohort_bound - ROUNDING
    base, new = rows.f1
    return beyond and new < base and rows.chance_of_loss <= significance


def _worse_cohorts(evidence: GateEvidence, rules: GateRules) -> list[str]:
    """Return the worst failing cohort and the number of others. The significance is divided by the
    number of cohorts (Bonferroni), because otherwise one of many cohorts would refuse every
    candidate."""
    found = []
    for _, title, comparison in evidence.named():
        cohorts = {c: rows for c, rows in comparison.cohorts.items() if rows.n >= rules.minimum}
        found += [
            (rows.gain, f"{cohort} {_change(title, rows)}")
            for cohort, rows in cohorts.items()
            if _worse(rows, rules, rules.significance / len(cohorts))
        ]
    if not found:
        return []
    more = f", as {len(found) - 1} more do" if len(found) > 1 else ""
    return [f"{min(found)[1]} loses more than {rules.cohort_bound:.3f}{more}"]


def _metrics(evidence: GateEvidence, rules: GateRules) -> dict[str, float]:
    """Return flat metrics: shares of right answers, rows, and p of so many gained rows. Of a cohort
    the gain, rows, p of so many lost, and the gain of F1."""
    found: dict[str, float] = {}
    for name, _, comparison in evidence.named():
        rows = comparison.rows
        if name == "recent" and not rows.n:
            continue
        found |= {
            f"{name}_base": rows.base / max(rows.n, 1),
            name: rows.candidate / max(rows.n, 1),
            f"{name}_segments": float(rows.n),
            f"{name}_gained": float(rows.gained),
            f"{name}_lost": float(rows.lost),
            f"{name}_p": chance(rows.gained, rows.lost),
        }
        for cohort, part in comparison.cohorts.items():
            if part.n >= rules.minimum:
                found |= {
                    f"{name}/{cohort}": part.gain,
                    f"{name}/{cohort}/segments": float(part.n),
                    f"{name}/{cohort}/p": part.chance_of_loss,
                    f"{name}/{cohort}/f1": part.f1[1] - part.f1[0],
                }
    return found
