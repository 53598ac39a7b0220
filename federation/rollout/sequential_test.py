"""Sequential test of a canary's windows against its past and the other devices. Pure.

Comparison. Agreement with the teacher varies more by class, device and time than between versions.
A window's agreeing events are therefore compared with an expected number. In each of the teacher's
classes this is the device's own share with the previous version, shrunk towards the fleet's if the
device has few events of the class (`OWN` events), plus the change since the rollout began on
devices with the previous version (difference in differences, by class; `SHIFT` events give it half
weight). A task without classes has one class.

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
from dataclasses import dataclass

import numpy as np

from federation.rollout.window_history import HistoryWindow

OWN = 8.0
SHIFT = 100.0
KNOWN = 10  # events of a class in a device's past that are needed to estimate its variation
BLOCK = 4
SPREAD = 0.015  # standard deviation between fine-tuned versions that differ only in their seeds
STRANGER = 0.25  # standard deviation between devices in one class
DISPERSION, DISPERSION_WEIGHT = 6.0, 20.0  # prior, and its weight in events' variance
LEAST = 0.04  # minimum variance of an event: a class without errors so far can have one
CLIP = 3.0  # standard deviations by which one window counts at most
WIDE = 4.0  # times `worse_by`: the scale of larger losses
NONE = np.zeros(1)


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
        n[at, column], a[at, column] = events, agreeing
    return _Counted(np.array([rows[w.device] for w in windows], np.int64), n, a)


@dataclass(frozen=True)
class _Past:
    """Events and agreeing ones by device and class with the previous version, (devices,
    classes)."""

    n: np.ndarray
    a: np.ndarray

    @classmethod
    def of(cls, counted: _Counted, devices: int) -> "_Past":
        n = np.zeros((devices, counted.n.shape[1]))
        a = np.zeros_like(n)
        np.add.at(n, counted.device, counted.n)
        np.add.at(a, counted.device, counted.a)
        return cls(n, a)

    def rates(self, device: np.ndarray, less_n: np.ndarray, less_a: np.ndarray) -> np.ndarray:
        """Return (rows, classes) the expected shares of `device`, without the events to leave
        out."""
        fleet = (self.a.sum(axis=0) - less_a + 1) / (self.n.sum(axis=0) - less_n + 2)
        own_n, own_a = self.n[device] - less_n, self.a[device] - less_a
        return np.asarray((own_a + OWN * fleet) / (own_n + OWN))


def _chance(rates: np.ndarray) -> np.ndarray:
    """Return the variance of one event."""
    return np.asarray(np.maximum(rates * (1 - rates), LEAST))


def _dispersion(past: _Past, counted: _Counted) -> float:
    """Return the variance of sums of consecutive windows relative to that of independent events."""
    if not len(counted.device):
        return DISPERSION
    starts = np.flatnonzero(np.diff(counted.device, prepend=-1))  # sorted by device and time
    begun = np.repeat(starts, np.diff([*starts, len(counted.device)]))
    firsts = np.flatnonzero((np.arange(len(begun)) - begun) % BLOCK == 0)
    n, a = np.add.reduceat(counted.n, firsts), np.add.reduceat(counted.a, firsts)
    rates, own = past.rates(counted.device[firsts], n, a), past.n[counted.device[firsts]] - n
    n, a = np.where(own < KNOWN, 0, n), np.where(own < KNOWN, 0, a)
    squares = float(((a - n * rates).sum(axis=1) ** 2).sum())
    chance = float((n * _chance(rates) * (1 + n / (own + OWN))).sum())
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
) -> dict[str, float]:
    """Return the metrics of an evaluation: expected and found agreement, and likelihood ratios."""
    everything = [*own, *now, *tests]
    devices = sorted({window.device for window in everything})
    classes = sorted({name for window in everything for name, _ in window.counts})
    earlier, others, seen = (_counted(w, devices, classes) for w in (own, now, tests))
    past = _Past.of(earlier, len(devices))
    dispersion = _dispersion(past, earlier)
    before = past.rates(np.arange(len(devices)), NONE, NONE)  # (devices, classes)
    chance = dispersion * _chance(before)
    rates = np.clip(before + _shift(past, others), 0.0, 1.0)[seen.device]  # (windows, classes)
    variance = (seen.n * chance[seen.device]).sum(axis=1)
    limit = CLIP * np.sqrt(variance)
    lost = np.clip((seen.n * rates - seen.a).sum(axis=1), -limit, limit)
    n = _Past.of(seen, len(devices)).n
    events, loss, v = n.sum(axis=1), _sums(lost, seen, devices), _sums(variance, seen, devices)
    held = past.n + OWN
    u = (events * SPREAD) ** 2 + (n**2 * chance * past.n / held**2).sum(axis=1)
    u += ((n * OWN / held * STRANGER) ** 2).sum(axis=1)
    weight = np.divide(v, v + u, out=np.zeros_like(v), where=v > 0)
    total = float(events.sum())
    return {
        "windows": float(len(tests)),
        "devices": float((events > 0).sum()),
        "events": total,
        "agreement": float(seen.a.sum()) / max(total, 1),
        "expected": float((seen.n * rates).sum()) / max(total, 1),
        "others": float(others.a.sum()) / max(float(others.n.sum()), 1),
        "others_windows": float(len(now)),
        "dispersion": dispersion,
        **_evidence(worse_by, float(loss @ weight), float(v @ weight), float(events @ weight)),
    }


def _sums(values: np.ndarray, windows: _Counted, devices: Sequence[str]) -> np.ndarray:
    """Return (devices,) the sums of (windows,) values."""
    found = np.zeros(len(devices))
    np.add.at(found, windows.device, values)
    return found


def _evidence(worse_by: float, loss: float, variance: float, events: float) -> dict[str, float]:
    """Return likelihood ratios for a weighted loss in events, its variance and the number of
    events."""
    if not variance:
        return {"e_worse": 1.0, "e_fine": 1.0}
    h = worse_by * events / variance  # the shift that makes `worse_by` of the events
    point = math.exp(min(h * loss - h * h * variance / 2, 600))
    beyond = _half_normal(loss, variance, WIDE * h)
    gain = worse_by * events - loss
    fine = math.exp(min(h * gain - h * h * variance / 2, 600))
    return {"e_worse": (point + beyond) / 2, "e_fine": fine}


def _half_normal(loss: float, variance: float, scale: float) -> float:
    """Return exp(h loss - h h variance / 2), averaged over a half-normal h with that scale."""
    wide = 1 + scale * scale * variance
    z = loss * scale / math.sqrt(wide)
    return math.erfc(-z / math.sqrt(2)) / math.sqrt(wide) * math.exp(min(z * z / 2, 600))
