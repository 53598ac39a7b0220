"""Whether a device keeps the version that it served before a release. Pure.

Two versions have answered the same labelled segments. Each segment on which one is better is a
vote; an overlapping one counts by the share of it that is in no segment before. Whether the old
version has more votes than chance gives it is decided by the exact sign test (McNemar 1947; Dixon
and Mood 1946), one sided, at LEVEL; and its mean loss must be smaller by MARGIN. A device that
keeps continues while the test holds at BACK: one more label does not switch it to and fro. It
looks at LEAST rows, and again when its labels are a quarter more, so a device that has seen a
thousand labels has looked about twenty times; of devices with two versions that are equally good
about one in ten keeps the old one (`tests/edge_client/inference/test_choice.py`), which makes none
worse.

A loss is 0 or 1 where answers are right or wrong, the Brier distance where the task's metric knows
no threshold, or the error of a target's value. Few labels give few votes, so an adapter's evidence
has the surprise beside it, the cross-entropy of each label, in a t-test of the paired differences.
"""

import math
from dataclasses import dataclass

import numpy as np

from streams.contract.task import Task
from streams.contract.task.metrics import row_errors, window_errors, window_metric

LEVEL, BACK = 0.02, 0.2
SURPRISING = 0.05  # the chance of an adapter's smaller surprise that is enough
MARGIN = 0.02  # of a loss between 0 and 1; of an error that share of the larger one
LEAST, FEWEST = 8, 5  # rows; for an adapter
GROWTH = 1.25
ALIGNED = 0.25  # of the alignment of an adapter without labels to that of the plain inputs
COVERED = 0.8  # of a device's segments must be of classes that have labels


@dataclass(frozen=True)
class Comparison:
    """Mean losses of the old and of the offered version on `rows` segments, and the probability of
    as many votes for the old one by chance; surprise: of as much less surprise."""

    rows: int
    old: float
    offered: float
    chance: float
    scale: float = 1.0  # of the losses: 1 for shares, the larger mean for errors
    surprise: float = 1.0

    def keeps(self, *, keeping: bool) -> bool:
        """Return whether the old version should answer; `keeping`: it does now."""
        if self.rows < LEAST or self.offered - self.old <= MARGIN * self.scale:
            return False
        return self.chance <= (BACK if keeping else LEVEL)


def adapter_answers(found: Comparison, *, drifting: bool) -> bool | None:
    """Return whether the served version should answer behind an adapter, from the comparison with
    it (old) and without; None if that is open. A sensor that has drifted needs no significance: an
    alarm says already that the served version is not in its place."""
    if found.rows < FEWEST or abs(found.offered - found.old) <= MARGIN * found.scale:
        return None
    if found.old > found.offered:
        return False
    enough = found.chance <= (0.5 if drifting else BACK) or found.surprise <= SURPRISING
    return enough or None


def losses(task: Task, outputs: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return (n,) losses of answers (n, outputs) with labels (n, label_size)."""
    if not task.classes:
        return row_errors(task, outputs, labels)
    if window_metric(task) == "brier":
        return window_errors(task, outputs, labels)
    return 1.0 - task.correct(outputs, labels).astype(np.float64)


def surprises(task: Task, outputs: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return (n,) the cross-entropy of labels (n, 1) in nats; of targets the errors."""
    if not task.classes:
        return row_errors(task, outputs, labels)
    shifted = outputs - outputs.max(axis=1, keepdims=True)
    right = np.take_along_axis(shifted, labels.astype(np.int64), axis=1)[:, 0]
    return np.asarray(np.log(np.exp(shifted).sum(axis=1)) - right)


def compare(
    task: Task,
    old: np.ndarray,
    offered: np.ndarray,
    times_us: np.ndarray,
    less_surprise: np.ndarray | None = None,
) -> Comparison:
    """Return the comparison of two versions' losses (n,) on the same segments, which end at
    times_us (n,). less_surprise: (n,) how much less the old one's labels surprise it."""
    rows = len(old)
    if not rows:
        return Comparison(0, 0.0, 0.0, 1.0)
    independent = independent_share(task, times_us)
    votes = math.floor(int((offered > old).sum()) * independent)
    against = math.ceil(int((old > offered).sum()) * independent)
    means = float(old.mean()), float(offered.mean())
    scale = 1.0 if task.classes else max(means)
    by_chance = 1.0
    if less_surprise is not None and (spread := float(less_surprise.std())) > 0:
        t = float(less_surprise.mean()) / spread * math.sqrt(rows * independent)
        by_chance = math.erfc(t / math.sqrt(2)) / 2
    return Comparison(rows, *means, chance(votes, against), scale, by_chance)


def independent_share(task: Task, times_us: np.ndarray) -> float:
    """Return how much of the segments that end at times_us (n,) lies in no other one, 0 to 1."""
    if task.rate_hz is None:
        return min(1.0, task.segment.hop / task.segment.samples)
    length_us = task.segment.samples / task.rate_hz * 1e6
    gaps = np.diff(np.sort(times_us), prepend=-np.inf)
    return float(np.clip(gaps / length_us, 0.0, 1.0).mean())


def chance(votes: int, against: int) -> float:
    """Return the probability of `votes` or more of all votes, if each is as likely for either."""
    n = votes + against
    return float(sum(math.comb(n, k) for k in range(votes, n + 1)) / 2**n)


def is_time_to_look(told: int, told_then: int) -> bool:
    """Return whether there are enough more true labels than at the last look."""
    return told >= max(LEAST, math.ceil(GROWTH * told_then))
