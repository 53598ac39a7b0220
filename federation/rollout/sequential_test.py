"""What a canary's windows are evidence of, against its own past and the others. Pure.

What is compared. Agreement with the teacher differs by class, by device, and with the time, more
than any two versions do. So a window's agreeing events are compared with those expected: in each
class that the teacher found in it, the device's own share with the version before, drawn towards
the fleet's where the device has seen little of the class (`OWN` events), and moved by what has
changed since the rollout began on the devices that still answer with the version before (a
difference in differences, by classes; `SHIFT` events before half of it is believed). A task
without classes has one class.

How surprising it is. Windows vary more than their events' chance, and a device's consecutive ones
go together: the variance of an event is multiplied by the dispersion of blocks of `BLOCK`
consecutive windows of the past, each expected from the others (batch means). A device's windows
share the error of what was expected of it, and may differ by `SPREAD` though the version is
equally good on the whole; with that variance u beside the windows' own v a device's sum of
differences s counts as s * v / (v + u), so that many windows of one device are not many devices.

When it is enough. With A the sum of these, and B that of v * v / (v + u), exp(-h A - h h B / 2) is
the likelihood ratio of a shift h downwards to none, a martingale while there is none: above
1 / alpha at any look, however many there are, with a chance of at most alpha (Ville's inequality;
Wald 1945, "Sequential Tests of Statistical Hypotheses"). Half is put on a loss of `worse_by`, half
on a half-normal mixture for losses beyond (Robbins 1970, "Statistical Methods Related to the Law
of the Iterated Logarithm"). A stage passes by the mirrored test, that of no shift against a loss of
`worse_by`, at beta. Windows count over the whole rollout, so that alpha and beta are a rollout's.

The differences are taken for normal, and the past for typical; tests.bench.release.rollouts says
what comes of that on real data. Ranks among the past's windows (conformal test martingales, Vovk
2021) need no normal distribution, but a rank among n windows has a p-value of 1 / (n + 1) at the
least, too coarse for two windows of a useless version to tell; and consecutive windows, which go
together, are not exchangeable. Nothing here is random, and the order of arrival changes nothing: a
controller that reads the same reports again comes to the same finding.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from federation.rollout.window_history import HistoryWindow

OWN = 8.0
SHIFT = 100.0
KNOWN = 10  # events of a class in a device's past, fewer say nothing of how it varies
BLOCK = 4
SPREAD = 0.015  # standard deviation, of fine-tuned versions that differ in their seeds alone
STRANGER = 0.25  # standard deviation between devices in one class
DISPERSION, DISPERSION_WEIGHT = 6.0, 20.0  # before there is a past, and events' variance it weighs
LEAST = 0.04  # variance of an event: a class in which nothing failed yet can fail
CLIP = 3.0  # standard deviations by which one window counts at most
WIDE = 4.0  # times `worse_by`: the scale of losses beyond
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
    """Events and agreeing ones by device and class with the version before, (devices, classes)."""

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
        """(rows, classes): the shares expected of `device`, without what is to be left out."""
        fleet = (self.a.sum(axis=0) - less_a + 1) / (self.n.sum(axis=0) - less_n + 2)
        own_n, own_a = self.n[device] - less_n, self.a[device] - less_a
        return np.asarray((own_a + OWN * fleet) / (own_n + OWN))


def _chance(rates: np.ndarray) -> np.ndarray:
    """The variance of one event."""
    return np.asarray(np.maximum(rates * (1 - rates), LEAST))


def _dispersion(past: _Past, counted: _Counted) -> float:
    """How many times events' own variance the sums of consecutive windows have."""
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
    """(classes,): by how much the others agree more now than they did."""
    rates, known = past.rates(others.device, NONE, NONE), past.n[others.device] >= KNOWN
    n, a = np.where(known, others.n, 0), np.where(known, others.a, 0)
    return np.asarray((a - n * rates).sum(axis=0) / (n.sum(axis=0) + SHIFT))


def compare(
    worse_by: float,
    own: Sequence[HistoryWindow],
    now: Sequence[HistoryWindow],
    tests: Sequence[HistoryWindow],
) -> dict[str, float]:
    """The figures of a finding: agreement expected and found, and what they are evidence of."""
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
    """(windows,) to (devices,)."""
    found = np.zeros(len(devices))
    np.add.at(found, windows.device, values)
    return found


def _evidence(worse_by: float, loss: float, variance: float, events: float) -> dict[str, float]:
    """Likelihood ratios from a weighted loss in events, its variance and the events behind it."""
    if not variance:
        return {"e_worse": 1.0, "e_fine": 1.0}
    h = worse_by * events / variance  # the shift that makes `worse_by` of the events
    point = math.exp(min(h * loss - h * h * variance / 2, 600))
    beyond = _half_normal(loss, variance, WIDE * h)
    gain = worse_by * events - loss
    fine = math.exp(min(h * gain - h * h * variance / 2, 600))
    return {"e_worse": (point + beyond) / 2, "e_fine": fine}


def _half_normal(loss: float, variance: float, scale: float) -> float:
    """exp(h loss - h h variance / 2), h over the positive half of a normal with that scale."""
    wide = 1 + scale * scale * variance
    z = loss * scale / math.sqrt(wide)
    return math.erfc(-z / math.sqrt(2)) / math.sqrt(wide) * math.exp(min(z * z / 2, 600))
