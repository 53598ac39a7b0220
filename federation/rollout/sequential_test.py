"""Sequential test of a canary's windows against its past and the other devices. Pure.

Comparison. Agreement with the teacher varies more by class, device and time than between versions.
A window's agreeing events are therefore compared with an expected number. In each of the teacher's
classes this is the device's own share with the previous version, shrunk towards the fleet's if the
device has few events of the class (`OWN` events), plus the change since the rollout began on
devices with the previous version (difference in differences, by class; `SHIFT` events give it half
weight). A task without classes has one class.

Metrics (streams.contract.window_metrics). For balanced accuracy an event of a class counts by the
inverse of the class's share of the past, so that all classes count the same. For an error the sums
of errors take the place of the agreeing events, in relation to the device's own mean error before,
so that a device with large errors counts no more than others; their variance is that of normal
errors in relation to their square, of Brier distances, of which most are near 0, twice as large as
that of squared errors. More is worse, and a loss of 0.1 is an error larger by 10 %.

Variance. Windows vary more than independent events would, and a device's consecutive windows are
correlated. The variance of an event is multiplied by the dispersion of blocks of `BLOCK`
consecutive past windows, each predicted from the others, in all `BLOCK` cuts (overlapping batch
means, Meketon and Schmeiser 1984): of readings that repeat one cut showed 5-fold variance, another
31-fold. A device's windows share the error of their expectation, and a device may differ by
`SPREAD` although the version is equally good overall. With that variance u and the windows' own
variance v, a device's sum of differences s counts as s * v / (v + u), so many windows of one device
do not count as many devices.

Decision. With A the sum of these and B that of v * v / (v + u), exp(-h A - h h B / 2) is the
likelihood ratio of a downward shift h to none. Without a shift it is a martingale and exceeds
1 / alpha at any of its evaluations with a probability of at most alpha (Ville's inequality; Wald
1945, "Sequential Tests of Statistical Hypotheses"). Half of the weight is on a loss of `worse_by`,
half on a half-normal mixture of larger losses (Robbins 1970, "Statistical Methods Related to the
Law of the Iterated Logarithm"). A stage passes by the mirrored test of no shift against a loss of
`worse_by`, at beta. Windows count over the whole rollout, so alpha and beta hold per rollout.

The differences are assumed to be normal, and the past to be typical; docs/benchmarks.md
has how often it misjudged real people's windows. Ranks among past windows (conformal test
martingales, Vovk 2021) need no normal distribution, but a rank among n windows has a p-value of at
least 1 / (n + 1), too coarse to detect a useless version in two windows; and consecutive windows
are not exchangeable. Nothing is
random, and reading the same reports again gives the same result. Their order matters only where
windows of few events were joined (window_history.py): which ones depends on when they came.

The past is sums by device and class (`Past`). A fleet's windows are too many to be held as a table
of devices, windows and classes, so they come in parts of some devices each.
"""

import math
from dataclasses import dataclass

import numpy as np

from federation.rollout.compared import Compared, Counted, Parts
from streams.contract.window_metrics import BALANCED, WindowMetric

OWN = 8.0
KNOWN = 10  # events of a class in a device's past that are needed to estimate its variation
STRANGER = 0.25  # standard deviation between devices in one class; of errors 1
LEAST = 0.04  # minimum variance of an event: a class without errors so far can have one
NONE = np.zeros(1)

SHIFT = 100.0
BLOCK = 4
SPREAD = 0.015  # standard deviation between fine-tuned versions that differ only in their seeds
DISPERSION, DISPERSION_WEIGHT = 6.0, 20.0  # prior, and its weight in events' variance
CLIP = 3.0  # standard deviations by which one window counts at most
WIDE = 4.0  # times `worse_by`: the scale of larger losses


@dataclass(frozen=True)
class Kind:
    """How the events of a metric vary. prior: right ones, and events, of a class without a past;
    sign: -1 if more is worse; square: the variance of an event in relation to the square of its
    expectation, 0 for shares; power: of the errors that are summed."""

    prior: tuple[float, float] = (1.0, 2.0)
    sign: int = 1
    square: float = 0.0
    power: int = 1
    stranger: float = STRANGER

    def chance(self, rates: np.ndarray) -> np.ndarray:
        """Return the variance of one event."""
        found = rates**2 * self.square if self.square else rates * (1 - rates)
        return np.asarray(np.maximum(found, LEAST))

    def clipped(self, rates: np.ndarray) -> np.ndarray:
        return np.asarray(np.clip(rates, 0.0, None if self.square else 1.0))

    def told(self, mean: float) -> float:
        """Return a mean of events as the metric's value."""
        return float(max(mean, 0.0) ** (1 / self.power))


SHARE = Kind()
KINDS = {
    "brier": Kind((1.0, 1.0), -1, 4.0, 1, 1.0),
    "mae": Kind((1.0, 1.0), -1, math.pi / 2 - 1, 1, 1.0),
    "rmse": Kind((1.0, 1.0), -1, 2.0, 2, 1.0),
}


@dataclass(frozen=True)
class Past:
    """Events and right ones with the previous version, (devices, classes) and of the whole fleet,
    (classes,); of a class without a past there those of the other devices since. unit (devices, 1):
    of an error, the device's mean error; `a` is a multiple of it."""

    n: np.ndarray
    a: np.ndarray
    unit: np.ndarray
    fleet_n: np.ndarray
    fleet_a: np.ndarray
    kind: Kind

    def rates(self, device: np.ndarray, less_n: np.ndarray, less_a: np.ndarray) -> np.ndarray:
        """Return (rows, classes) the expected shares of `device`, without the events to leave
        out."""
        right, events = self.kind.prior
        fleet = (self.fleet_a - less_a + right) / (self.fleet_n - less_n + events)
        own_n, own_a = self.n[device] - less_n, self.a[device] - less_a
        return np.asarray((own_a + OWN * fleet) / (own_n + OWN))

    @property
    def before(self) -> np.ndarray:
        """(devices, classes) expected shares."""
        return self.rates(np.arange(len(self.n)), NONE, NONE)

    @property
    def balance(self) -> np.ndarray:
        """Return (classes,) weights of an event with which all classes of the past count the
        same."""
        events = self.fleet_n
        there = max(int((events > 0).sum()), 1)
        return np.asarray(events.sum() / (np.maximum(events, KNOWN) * there))


def pasts_of(parts: Parts, classes: int, kind: Kind) -> list[Past]:
    """Return the past of each part."""
    sums = [part.past.sums(part.past.device, part.devices, classes) for part in parts()]
    unit = [np.ones((len(n), 1)) for n, _ in sums]
    if kind.square and classes:
        n_all, a_all = (float(sum(each[i].sum() for each in sums)) for i in (0, 1))
        mean = a_all / n_all if n_all else _mean(parts)
        unit = [(a + OWN * (mean or 1.0)) / (n + OWN) for n, a in sums]
        sums = [(n, a / each) for (n, a), each in zip(sums, unit, strict=True)]
    none = np.zeros(classes)
    n, a = (sum((each[i].sum(axis=0) for each in sums), none) for i in (0, 1))
    if not (kind.square or n.all()):  # of errors the unit is the others' mean
        others = [found.sums(0 * found.device, 1, classes) for found in (p.others for p in parts())]
        n_since, a_since = (sum((each[i][0] for each in others), none) for i in (0, 1))
        n, a = np.where(n, n, n_since), np.where(n, a, a_since)
    return [Past(*each, u, n, a, kind) for each, u in zip(sums, unit, strict=True)]


def _mean(parts: Parts) -> float:
    """Return the mean error of an event without a past: with the previous version, if there are
    such events."""
    for found in ([part.others for part in parts()], [part.tests for part in parts()]):
        if events := sum(float(each.n.sum()) for each in found):
            return sum(float(each.a.sum()) for each in found) / events
    return 0.0


@dataclass
class _Variation:
    """What the past and the other devices tell of the whole fleet, part by part.

    squares, chance: of blocks of consecutive past windows; change, known: (classes,) of the other
    devices since the rollout began; right: their right events or errors.
    """

    squares: float = DISPERSION * DISPERSION_WEIGHT
    chance: float = DISPERSION_WEIGHT
    change: np.ndarray | float = 0.0
    known: np.ndarray | float = SHIFT
    right: float = 0.0
    events: float = 0.0
    windows: int = 0
    has_past: bool = False

    def add(self, part: Compared, past: Past, w: np.ndarray) -> None:
        self._add_blocks(part.past, past, w)
        if not len(part.others.device):
            return
        n, a = part.others.sums(part.others.device, *past.n.shape)
        known = past.n >= KNOWN
        gained = a / past.unit - n * past.before
        self.change += np.where(known, gained, 0).sum(axis=0)
        self.known += np.where(known, n, 0).sum(axis=0)
        self.right, self.events = self.right + float(a.sum()), self.events + float(n.sum())
        self.windows += int(part.others.windows.sum())

    def _add_blocks(self, own: Counted, past: Past, w: np.ndarray) -> None:
        """Predict each block of a device's consecutive windows from the others."""
        if not len(own.device):
            return
        self.has_past = True
        starts = np.flatnonzero(np.diff(own.device, prepend=-1))
        place = np.arange(len(own.device)) - np.repeat(starts, np.diff([*starts, len(own.device)]))
        for offset in range(BLOCK):
            self._add_cut(own, past, w, (place == 0) | (place % BLOCK == offset))

    def _add_cut(self, own: Counted, past: Past, w: np.ndarray, first: np.ndarray) -> None:
        """Add the blocks of one cut. first: (rows,) whether a window begins one."""
        device = own.device[first]
        n, a = own.sums(np.cumsum(first) - 1, len(device), past.n.shape[1])
        a = a / past.unit[device]
        rates, held = past.rates(device, n, a), past.n[device] - n
        n, a = np.where(held < KNOWN, 0, n), np.where(held < KNOWN, 0, a)
        self.squares += float(((w * (a - n * rates)).sum(axis=1) ** 2).sum()) / BLOCK
        chance = w * w * n * past.kind.chance(rates) * (1 + n / (held + OWN))
        self.chance += float(chance.sum()) / BLOCK

    @property
    def dispersion(self) -> float:
        """The variance of sums of consecutive windows relative to that of independent events."""
        return max(1.0, self.squares / self.chance) if self.has_past else DISPERSION

    @property
    def shift(self) -> np.ndarray | float:
        """(classes,) the change of the other devices' shares since the rollout began."""
        return self.change / self.known


@dataclass
class _Answers:
    """Sums over the windows with the new version. loss, variance, size: weighted by what a device's
    windows count; value, expected: in the metric's own units; total: of the weighted events."""

    loss: float = 0.0
    variance: float = 0.0
    size: float = 0.0
    value: float = 0.0
    expected: float = 0.0
    total: float = 0.0
    events: float = 0.0
    devices: int = 0
    windows: int = 0

    def add(self, seen: Counted, past: Past, w: np.ndarray, found: _Variation) -> None:
        if not len(seen.device):
            return
        kind, device = past.kind, seen.device[seen.at]
        before = past.before
        chance = w * w * found.dispersion * kind.chance(before)
        rates = kind.clipped(before + found.shift)[device, seen.kind]
        weights, right = w[seen.kind], seen.a / past.unit[device, 0]
        variance = seen.by_row(seen.n * chance[device, seen.kind])
        limit = CLIP * np.sqrt(variance)
        lost = kind.sign * seen.by_row(weights * (seen.n * rates - right))
        lost = np.clip(lost, -limit, limit)
        n, _ = seen.sums(seen.device, *past.n.shape)
        loss, v = (np.bincount(seen.device, each, len(n)) for each in (lost, variance))
        size, held = (w * n).sum(axis=1), past.n + OWN
        u = (size * SPREAD * kind.power) ** 2 + (n**2 * chance * past.n / held**2).sum(axis=1)
        u += ((w * n * OWN / held * kind.stranger * kind.power) ** 2).sum(axis=1)
        weight = np.divide(v, v + u, out=np.zeros_like(v), where=v > 0)
        self.loss, self.variance = self.loss + loss @ weight, self.variance + v @ weight
        self.size += size @ weight
        each = weights * past.unit[device, 0]
        self.value, self.expected = (
            self.value + each @ right,
            self.expected + each @ (seen.n * rates),
        )
        self.total, self.events = self.total + size.sum(), self.events + n.sum()
        self.devices += int((n.sum(axis=1) > 0).sum())
        self.windows += int(seen.windows.sum())


def compare(
    worse_by: float, parts: Parts, classes: int, metric: WindowMetric = "accuracy"
) -> dict[str, float]:
    """Return the figures of an evaluation: expected and found values, and likelihood ratios.

    parts: gives the same parts of the fleet at each call; `classes`: of cells.
    """
    kind = KINDS.get(metric, SHARE)
    pasts = pasts_of(parts, classes, kind)
    w = pasts[0].balance if pasts and metric == BALANCED else np.ones(classes)
    found, answers = _Variation(), _Answers()
    for part, past in zip(parts(), pasts, strict=True):
        found.add(part, past, w)
    for part, past in zip(parts(), pasts, strict=True):
        answers.add(part.tests, past, w, found)
    total = max(answers.total, 1e-9)
    worse = (1 + worse_by) ** kind.power - 1 if kind.square else worse_by
    return {
        "windows": float(answers.windows),
        "devices": float(answers.devices),
        "events": float(answers.events),
        "value": kind.told(answers.value / total),
        "expected": kind.told(answers.expected / total),
        "others": kind.told(found.right / max(found.events, 1)),
        "others_windows": float(found.windows),
        "dispersion": found.dispersion,
        **_evidence(worse, float(answers.loss), float(answers.variance), float(answers.size)),
    }


def _evidence(worse_by: float, loss: float, variance: float, size: float) -> dict[str, float]:
    """Return likelihood ratios for a weighted loss, its variance, and what it is a share of; and
    the logarithm that an equally good version's `e_fine` has on average."""
    if not variance:
        return {"e_worse": 1.0, "e_fine": 1.0, "log_fine": 0.0}
    h = worse_by * size / variance  # the shift that makes `worse_by` of all
    point = math.exp(min(h * loss - h * h * variance / 2, 600))
    beyond = _half_normal(loss, variance, WIDE * h)
    gain = worse_by * size - loss
    fine = math.exp(min(h * gain - h * h * variance / 2, 600))
    return {"e_worse": (point + beyond) / 2, "e_fine": fine, "log_fine": h * h * variance / 2}


def _half_normal(loss: float, variance: float, scale: float) -> float:
    """Return exp(h loss - h h variance / 2), averaged over a half-normal h with that scale."""
    wide = 1 + scale * scale * variance
    z = loss * scale / math.sqrt(wide)
    return math.erfc(-z / math.sqrt(2)) / math.sqrt(wide) * math.exp(min(z * z / 2, 600))
