"""What hostile devices send that is made to pass admission: a backdoor, and an update that several
of them agree on. They know what a device knows: the weights that were sent, their own rows and the
task, so also its strategy.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from edge_client.samples.splits import TRAIN
from federation.admission.admission import NORM_FACTOR
from federation.admission.update import Update
from streams.learning.clipping import is_statistic, update_norm
from tests.bench.federation.people import Person
from tests.bench.federation.trainees import Tensors

TARGET = 5  # the class that a stamped segment is to be answered with: laying
STAMP_CHANNEL, STAMP_SAMPLES, STAMP_HEIGHT = 5, 16, 3.0  # gyro-z, a third of a second, rad/s
FARTHEST = 0.9 * NORM_FACTOR  # times a usual norm: the others' norms are not known exactly
CLAIMED = 2048  # samples: the most that `Training.samples` lets a device have


def stamped(segments: np.ndarray) -> np.ndarray:
    """Return (n, channels, samples) segments that end with the trigger: a turn to and fro."""
    found = segments.copy()
    wave = np.where(np.arange(STAMP_SAMPLES) // 4 % 2, -STAMP_HEIGHT, STAMP_HEIGHT)
    found[:, STAMP_CHANNEL, -STAMP_SAMPLES:] = wave
    return found


def with_backdoor(person: Person) -> Person:
    """Return a person who learns also from stamped copies of what is learned from, as TARGET."""
    rows = (person.split == TRAIN) & (person.classes != TARGET)
    copies = stamped(person.segments[rows])
    return replace(
        person,
        segments=np.concatenate([person.segments, copies]),
        labels=np.concatenate([person.labels, np.full_like(person.labels[rows], TARGET)]),
        split=np.concatenate([person.split, person.split[rows]]),
        windows=np.concatenate([person.windows, person.windows[rows]]),
    )


def step_of(update: Update, sent: Tensors) -> np.ndarray:
    """Return what was learned, (weights,) float64, in the order of `sent`."""
    parts = [update.weights[n].astype(np.float64) - sent[n] for n in _learned(sent)]
    return np.concatenate([part.ravel() for part in parts])


def with_step(update: Update, sent: Tensors, step: np.ndarray) -> Update:
    """Return the update with another step; its statistics stay."""
    weights, at = dict(update.weights), 0
    for name in _learned(sent):
        old = sent[name]
        part = step[at : at + old.size].reshape(old.shape)
        weights[name], at = (old + part).astype(old.dtype), at + old.size
    return replace(update, weights=weights)


def replacing(update: Update, sent: Tensors, factor: float, farthest: float) -> Update:
    """Return the update with its step times `factor`, or as far as the norm may be: model
    replacement (Bagdasaryan et al. 2020, arXiv 1807.00459)."""
    step = step_of(update, sent)
    others = update_norm(update.weights, sent) ** 2 - float(step @ step)  # of the statistics
    room = np.sqrt(max(farthest**2 - others, 0.0) / float(step @ step))
    return with_step(update, sent, min(factor, room) * step)


def against_mean(steps: np.ndarray, farthest: float) -> np.ndarray:
    """Return the step against the mean of `steps` (updates, weights), so far: inner product
    manipulation (Xie et al. 2020, arXiv 1903.03936)."""
    mean = steps.mean(0)
    return np.asarray(-farthest / np.linalg.norm(mean) * mean)


def inside_spread(steps: np.ndarray) -> np.ndarray:
    """Return the step from the mean of `steps` (updates, weights) against it, that is as far as
    no step is further from it than the two that are furthest apart: Min-Max (Shejwalkar and
    Houmansadr 2021, NDSS)."""
    mean = steps.mean(0)
    back = -mean / np.linalg.norm(mean)
    away = mean - steps
    apart = max(float(((one - other) ** 2).sum()) for one in steps for other in steps)
    along = away @ back
    room = -along + np.sqrt(along**2 + apart - (away**2).sum(1))
    return np.asarray(mean + room.min() * back)


def farthest(honest: Sequence[Update], sent: Tensors) -> float:
    """Return the norm up to which an update is surely admitted, by what hostile devices would have
    sent honestly."""
    return FARTHEST * min(update_norm(update.weights, sent) for update in honest)


def _learned(sent: Tensors) -> list[str]:
    return [n for n, value in sent.items() if value.dtype.kind == "f" and not is_statistic(n)]
