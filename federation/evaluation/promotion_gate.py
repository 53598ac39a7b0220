"""Whether a candidate may take the place of the version that is served: pure.

Both answer the same rows, so what counts is where they differ: rows that the candidate gains (it is
right where the served version is wrong) and rows that it loses. McNemar's exact test (McNemar 1947)
says how likely as many would be if both were equally good: rows gained and lost are then tosses of
a fair coin.

But rows fall together: one person's one spell of sitting is lost or gained as a whole, and a cohort
may be no more than a few of those. So of harm the test counts devices, or spells, in place of rows:
each counts by what it gains less what it loses, d_i, and all are divided by sum d_i^2 / sum |d_i|,
which is the size of clusters of one size, and 1 where each row is a cluster.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import astuple, dataclass, field

EXACT = 1000  # rows that differ; of more, the normal approximation is within 0.001
ROUNDING = 1e-9  # a gain of exactly the margin passes, whatever its last bit


@dataclass(frozen=True)
class Paired:
    """`n` rows answered by both; `base` of them right by the served version. `base_false` and
    `false` are other rows that each version takes for these, where the rows are those of a class.
    Over clusters of rows that fall together, `down` is the sum of (lost - gained) of those that
    lose and `squares` that of all, squared; 0 where each row is one of its own.
    """

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
        """Of the served version and of the candidate: what both misses and false alarms lower."""
        found = ((self.base, self.base_false), (self.candidate, self.false))
        base, new = (2 * right / max(self.n + right + wrong, 1) for right, wrong in found)
        return base, new

    @property
    def chance_of_loss(self) -> float:
        """How likely as many lost clusters are by chance; p of McNemar's test for clusters."""
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
    """devices: their own held-out rows; held_out: people who are in no fleet; recent: stored
    windows, where right is what agrees with the teacher."""

    devices: Comparison = Comparison()
    held_out: Comparison = Comparison()
    recent: Comparison = Comparison()

    def named(self) -> Iterator[tuple[str, str, Comparison]]:
        """Each one's name among figures, in a sentence, and itself."""
        yield "devices", "on devices", self.devices
        yield "held_out", "on held-out devices", self.held_out
        yield "recent", "on recent windows", self.recent


@dataclass(frozen=True)
class GateRules:
    """margin: what has to be gained; tolerance: by how much people held out may do worse while the
    fleet gains; cohort_bound: by how much a cohort may, and all recent windows; significance: what
    is likelier than this is chance; minimum: fewer rows decide nothing."""

    margin: float
    tolerance: float = 0.01
    cohort_bound: float = 0.05
    significance: float = 0.05
    minimum: int = 20


@dataclass(frozen=True)
class Verdict:
    """The reason is a line for a person, the evidence what it rests on."""

    promote: bool
    reason: str
    evidence: Mapping[str, float] = field(default_factory=dict)


def chance(many: int, few: int) -> float:
    """How likely a fair coin shows heads `many` times or more in many + few tosses."""
    tosses = many + few
    if tosses > EXACT:
        return 0.5 * math.erfc((many - few - 1) / math.sqrt(2 * tosses))
    return sum(math.comb(tosses, heads) for heads in range(many, tosses + 1)) / (1 << tosses)


def decide(evidence: GateEvidence, rules: GateRules) -> Verdict:
    """The fleet's own rows have to gain the margin while the people held out do not lose; where too
    few rows were compared on devices, the people held out have to gain it. One of both has to gain
    it by more than chance. The teacher must not find recent windows worse, and no cohort may be
    worse, by more than a bound and more than by chance."""
    figures = _figures(evidence, rules)
    known = [told for told in evidence.named() if told[2].rows.n >= rules.minimum]
    primary = next((told for told in known if told[0] != "recent"), None)
    if primary is None:
        least = f"fewer than {rules.minimum} segments on devices or held-out devices"
        return Verdict(False, f"nothing was evaluated: {least}", figures)
    few = "" if primary[0] == "devices" else "; no device compared enough segments"
    proven = any(_proven(told[2].rows, rules) for told in known if told[0] != "recent")
    against = [*_no_gain(primary[1], primary[2].rows, rules, proven)]
    against += [
        why
        for name, title, found in known
        if name != primary[0]
        for why in _loss(name, title, found.rows, rules)
    ]
    against += _worse_cohorts(evidence, rules)
    if against:
        return Verdict(False, "; ".join(against) + few, figures)
    changes = ", ".join(_change(title, found.rows) for _, title, found in known)
    return Verdict(True, f"accuracy {changes}{few}", figures)


def _change(title: str, rows: Paired) -> str:
    return f"{title} {rows.base / rows.n:.3f} → {rows.candidate / rows.n:.3f}"


def _proven(rows: Paired, rules: GateRules) -> bool:
    """With a margin of 0 nothing has to be gained, so that chance is no objection."""
    if rules.margin <= 0:
        return True
    enough = rows.gain >= rules.margin - ROUNDING
    return enough and chance(rows.gained, rows.lost) <= rules.significance


def _no_gain(title: str, rows: Paired, rules: GateRules, proven: bool) -> Iterator[str]:
    if rows.gain < rules.margin - ROUNDING:
        yield f"{_change(title, rows)} gains less than {rules.margin:.3f}"
    elif not proven:
        told = f"{rows.gained} segments better, {rows.lost} worse"
        yield f"{_change(title, rows)} may be chance ({told})"


def _loss(name: str, title: str, rows: Paired, rules: GateRules) -> Iterator[str]:
    if name == "recent":
        if _worse(rows, rules, rules.significance):
            yield f"{_change(title, rows)} loses more than {rules.cohort_bound:.3f}"
    elif rows.gain < -rules.tolerance - ROUNDING:
        yield f"{_change(title, rows)} loses more than {rules.tolerance:.3f}"


def _worse(rows: Paired, rules: GateRules, significance: float) -> bool:
    """By more than the bound, and not by chance. A version that takes much for one class finds
    nearly all of that class: where the candidate finds less of it but has the better F1, the class
    is recognised better, and a served version with such a bias could never be replaced else."""
    beyond = rows.gain < -rules.cohort_bound - ROUNDING
    base, new = rows.f1
    return beyond and new < base and rows.chance_of_loss <= significance


def _worse_cohorts(evidence: GateEvidence, rules: GateRules) -> list[str]:
    """The worst of all cohorts that are too bad, and how many more there are. The more cohorts one
    kind of evidence has, the less likely by chance each has to be (Bonferroni): else the worst of
    many would refuse every candidate."""
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


def _figures(evidence: GateEvidence, rules: GateRules) -> dict[str, float]:
    """Flat: shares of right answers, rows, and p, the chance of as many rows gained. Of a cohort
    the gain, rows, p, the chance of as many lost, and what is gained of F1."""
    told: dict[str, float] = {}
    for name, _, comparison in evidence.named():
        rows = comparison.rows
        if name == "recent" and not rows.n:
            continue
        told |= {
            f"{name}_base": rows.base / max(rows.n, 1),
            name: rows.candidate / max(rows.n, 1),
            f"{name}_segments": float(rows.n),
            f"{name}_gained": float(rows.gained),
            f"{name}_lost": float(rows.lost),
            f"{name}_p": chance(rows.gained, rows.lost),
        }
        for cohort, part in comparison.cohorts.items():
            if part.n >= rules.minimum:
                told |= {
                    f"{name}/{cohort}": part.gain,
                    f"{name}/{cohort}/segments": float(part.n),
                    f"{name}/{cohort}/p": part.chance_of_loss,
                    f"{name}/{cohort}/f1": part.f1[1] - part.f1[0],
                }
    return told
