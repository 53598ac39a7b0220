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
consecutive past windows, each predicted from the others (batch means). A device's windows share
the error of their expectation, and a device may differ by `SPREAD` although the version is equally
good overall. With that variance u and the windows' own variance v, a device's sum of differences s
counts as s * v / (v + u), so many windows of one device do not count as many devices.

Decision. With A the sum of these and B that of v * v / (v + u), exp(-h A - h h B / 2) is the
likelihood ratio of a downward shift h to none. Without a shift it is a martingale and exceeds
1 / alpha at any of its evaluations with a probability of at most alpha (Ville's inequality; Wald
1945, "Sequential Tests of Statistical Hypotheses"). Half of the weight is on a loss of `worse_by`,
half on a half-normal mixture of larger losses (Robbins 1970, "Statistical Methods Related to the
Law of the Iterated Logarithm"). A stage passes by the mirrored test of no shift against a loss of
`worse_by`, at beta. Windows count over the whole rollout, so alpha and beta hold per rollout.

The differences are assumed to be normal, and the past to be typical; tests.bench.release.rollouts
measures this on real data. Ranks among past windows (conformal test martingales, Vovk 2021) need no
normal distribution, but a rank among n windows has a p-value of at least 1 / (n + 1), too coarse to
detect a useless version in two windows; and consecutive windows are not exchangeable. Nothing is
random, and the order of arrival does not matter: reading the same reports again gives the same
result.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from federation.rollout.window_history import HistoryWindow
from streams.contract.window_metrics import BALANCED, WindowMetric

OWN = 8.0
SHIFT = 100.0
KNOWN = 10  # events of a class in a device's past that are needed to estimate its variation
BLOCK = 4
SPREAD = 0.015  # standard deviation between fine-tuned versions that differ only in their seeds
STRANGER = 0.25  # standard deviation between devices in one class; of errors 1
DISPERSION, DISPERSION_WEIGHT = 6.0, 20.0  # prior, and its weight in events' variance
LEAST = 0.04  # minimum variance of an event: a class without errors so far can have one
CLIP = 3.0  # standard deviations by which one window counts at most
WIDE = 4.0  # times `worse_by`: the scale of larger losses
NONE = np.zeros(1)


@dataclass(frozen=True)
class _Kind:
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


SHARE = _Kind()
KINDS = {
    "brier": _Kind((1.0, 1.0), -1, 4.0, 1, 1.0),
    "mae": _Kind((1.0, 1.0), -1, math.pi / 2 - 1, 1, 1.0),
    "rmse": _Kind((1.0, 1.0), -1, 2.0, 2, 1.0),
}


@dataclass(frozen=True)
class _Counted:
    """Windows as arrays: devices (n,), events and agreeing ones (n, classes)."""

    device: np.ndarray
    n: np.ndarray
    a: np.ndarray


def _counted(
    windows: Sequence[HistoryWindow], devices: Sequence[str], classes: Sequence[str]
) -> _Counted:
    rows = {name: i for i, name in enumerate(devices)}
    columns = {name: i for i, name in enumerate(classes)}
    n = np.zeros((len(windows), len(classes)))
    a = np.zeros_like(n)
    found = [(i, columns[c], *sums) for i, w in enumerate(windows) for c, sums in w.counts]
    if found:
        at, column, events, agreeing = np.array(found).T
        cells = at.astype(np.int64), column.astype(np.int64)
        n[cells], a[cells] = events, agreeing
    return _Counted(np.array([rows[w.device] for w in windows], np.int64), n, a)


@dataclass(frozen=True)
class _Past:
    """Events and agreeing ones by device and class with the previous version, (devices,
    classes)."""

    n: np.ndarray
    a: np.ndarray
    kind: _Kind

    @classmethod
    def of(cls, counted: _Counted, devices: int, kind: _Kind) -> "_Past":
        n = np.zeros((devices, counted.n.shape[1]))
        a = np.zeros_like(n)
        np.add.at(n, counted.device, counted.n)
        np.add.at(a, counted.device, counted.a)
        return cls(n, a, kind)

    def rates(self, device: np.ndarray, less_n: np.ndarray, less_a: np.ndarray) -> np.ndarray:
        """Return (rows, classes) the expected shares of `device`, without the events to leave
        out."""
        right, events = self.kind.prior
        fleet = (self.a.sum(axis=0) - less_a + right) / (self.n.sum(axis=0) - less_n + events)
        own_n, own_a = self.n[device] - less_n, self.a[device] - less_a
        return np.asarray((own_a + OWN * fleet) / (own_n + OWN))

    @property
    def balance(self) -> np.ndarray:
        """Return (classes,) weights of an event with which all classes count the same."""
        events = self.n.sum(axis=0)
        return np.asarray(events.sum() / (np.maximum(events, KNOWN) * max(len(events), 1)))


def _dispersion(past: _Past, counted: _Counted, w: np.ndarray) -> float:
    """Return the variance of sums of consecutive windows relative to that of independent events."""
    if not len(counted.device):
        return DISPERSION
    starts = np.flatnonzero(np.diff(counted.device, prepend=-1))  # sorted by device and time
    begun = np.repeat(starts, np.diff([*starts, len(counted.device)]))
    firsts = np.flatnonzero((np.arange(len(begun)) - begun) % BLOCK == 0)
    n, a = np.add.reduceat(counted.n, firsts), np.add.reduceat(counted.a, firsts)
    rates, own = past.rates(counted.device[firsts], n, a), past.n[counted.device[firsts]] - n
    n, a = np.where(own < KNOWN, 0, n), np.where(own < KNOWN, 0, a)
    squares = float(((w * (a - n * rates)).sum(axis=1) ** 2).sum())
    chance = float((w * w * n * past.kind.chance(rates) * (1 + n / (own + OWN))).sum())
    weighted = DISPERSION * DISPERSION_WEIGHT + squares
    return max(1.0, weighted / (DISPERSION_WEIGHT + chance))


def _shift(past: _Past, others: _Counted) -> np.ndarray:
    """Return (classes,) the change of the other devices' agreement since the rollout began."""
    rates, known = past.rates(others.device, NONE, NONE), past.n[others.device] >= KNOWN
    n, a = np.where(known, others.n, 0), np.where(known, others.a, 0)
    return np.asarray((a - n * rates).sum(axis=0) / (n.sum(axis=0) + SHIFT))


def compare(
    worse_by: float,
    own: Sequence[HistoryWindow],
    now: Sequence[HistoryWindow],
    tests: Sequence[HistoryWindow],
    metric: WindowMetric = "accuracy",
) -> dict[str, float]:
    """Return the figures of an evaluation: expected and found values, and likelihood ratios."""
    kind = KINDS.get(metric, SHARE)
    everything = [*own, *now, *tests]
    devices = sorted({window.device for window in everything})
    classes = sorted({name for window in everything for name, _ in window.counts})
    counted = [_counted(w, devices, classes) for w in (own, now, tests)]
    unit = _units(counted, len(devices)) if kind.square else np.ones((len(devices), 1))
    earlier, others, seen = (replace(each, a=each.a / unit[each.device]) for each in counted)
    past = _Past.of(earlier, len(devices), kind)
    w = past.balance if metric == BALANCED else np.ones(len(classes))
    dispersion = _dispersion(past, earlier, w)
    before = past.rates(np.arange(len(devices)), NONE, NONE)  # (devices, classes)
    chance = w * w * dispersion * kind.chance(before)
    rates = kind.clipped(before + _shift(past, others))[seen.device]  # (windows, classes)
    variance = (seen.n * chance[seen.device]).sum(axis=1)
    limit = CLIP * np.sqrt(variance)
    lost = kind.sign * (w * (seen.n * rates - seen.a)).sum(axis=1)
    lost = np.clip(lost, -limit, limit)
    n = _Past.of(seen, len(devices), kind).n
    loss, v = _sums(lost, seen, devices), _sums(variance, seen, devices)
    size = _sums((w * seen.n).sum(axis=1), seen, devices)
    held = past.n + OWN
    u = (size * SPREAD * kind.power) ** 2 + (n**2 * chance * past.n / held**2).sum(axis=1)
    u += ((w * n * OWN / held * kind.stranger * kind.power) ** 2).sum(axis=1)
    weight = np.divide(v, v + u, out=np.zeros_like(v), where=v > 0)
    total, each = max(float((w * seen.n).sum()), 1e-9), w * unit[seen.device]
    worse = (1 + worse_by) ** kind.power - 1 if kind.square else worse_by
    return {
        "windows": float(len(tests)),
        "devices": float((n.sum(axis=1) > 0).sum()),
        "events": float(seen.n.sum()),
        "value": kind.told(float((each * seen.a).sum()) / total),
        "expected": kind.told(float((each * seen.n * rates).sum()) / total),
        "others": kind.told(float(counted[1].a.sum()) / max(float(others.n.sum()), 1)),
        "others_windows": float(len(now)),
        "dispersion": dispersion,
        **_evidence(worse, float(loss @ weight), float(v @ weight), float(size @ weight)),
    }


def _units(parts: Sequence[_Counted], devices: int) -> np.ndarray:
    """Return (devices, 1) the mean error of an event in the past, the first part; shrunk towards
    the fleet's, or everything's if there is no past."""
    past = _Past.of(parts[0], devices, SHARE)
    fleet = _mean(parts[:1]) or _mean(parts) or 1.0
    own = (past.a + OWN * fleet) / (past.n + OWN)
    return np.asarray(own if past.n.shape[1] else np.ones((devices, 1)))


def _mean(parts: Sequence[_Counted]) -> float:
    """Return the mean error of an event; 0 without any."""
    return sum(float(p.a.sum()) for p in parts) / max(sum(float(p.n.sum()) for p in parts), 1.0)


def _sums(values: np.ndarray, windows: _Counted, devices: Sequence[str]) -> np.ndarray:
    """Return (devices,) the sums of (windows,) values."""
    found = np.zeros(len(devices))
    np.add.at(found, windows.device, values)
    return found


def _evidence(worse_by: float, loss: float, variance: float, size: float) -> dict[str, float]:
    """Return likelihood ratios for a weighted loss, its variance, and what it is a share of."""
    if not variance:
        return {"e_worse": 1.0, "e_fine": 1.0}
    h = worse_by * size / variance  # the shift that makes `worse_by` of all
    point = math.exp(min(h * loss - h * h * variance / 2, 600))
    beyond = _half_normal(loss, variance, WIDE * h)
    gain = worse_by * size - loss
    fine = math.exp(min(h * gain - h * h * variance / 2, 600))
    return {"e_worse": (point + beyond) / 2, "e_fine": fine}


def _half_normal(loss: float, variance: float, scale: float) -> float:
    """Return exp(h loss - h h variance / 2), averaged over a half-normal h with that scale."""
    wide = 1 + scale * scale * variance
    z = loss * scale / math.sqrt(wide)
    return math.erfc(-z / math.sqrt(2)) / math.sqrt(wide) * math.exp(min(z * z / 2, 600))
