"""The past with which a canary's windows are compared: sums by device and class. Pure.

`federation.rollout.sequential_test` says what they are for. A fleet's windows are too many to be
held as a table of devices, windows and classes, so they come in parts of some devices each.
"""

import math
from dataclasses import dataclass

import numpy as np

from federation.rollout.compared import Parts

OWN = 8.0
KNOWN = 10  # events of a class in a device's past that are needed to estimate its variation
STRANGER = 0.25  # standard deviation between devices in one class; of errors 1
LEAST = 0.04  # minimum variance of an event: a class without errors so far can have one
NONE = np.zeros(1)


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
    (classes,). unit (devices, 1): of an error, the device's mean error; `a` is a multiple of it."""

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
    return [Past(*each, u, n, a, kind) for each, u in zip(sums, unit, strict=True)]


def _mean(parts: Parts) -> float:
    """Return the mean error of an event without a past."""
    found = [each for part in parts() for each in (part.others, part.tests)]
    return sum(float(c.a.sum()) for c in found) / max(sum(float(c.n.sum()) for c in found), 1.0)
