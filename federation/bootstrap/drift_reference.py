"""The drift reference from central data: the file `drift.json` of artifacts."""

from collections.abc import Iterator, Sequence

import numpy as np

from federation.bootstrap.dataset import Segments
from streams.contract.task import Task
from streams.drift.detector import stability_index
from streams.drift.reference import (
    EFFECT,
    MARGIN,
    WINDOWS,
    Feature,
    Reference,
    frozen_edges,
    minimum_segments,
    observe,
)


def make_reference(
    task: Task, devices: Sequence[Segments], answers: Sequence[np.ndarray]
) -> Reference:
    """Return the reference of all devices' segments and the first model's answers, (n, outputs)
    each.

    The effect thresholds are MARGIN times the largest PSI of one of these devices against the
    others over any WINDOWS windows, at least EFFECT.
    """
    seen = [observe(task, d.segments, a) for d, a in zip(devices, answers, strict=True)]
    features = []
    for channel, kind in seen[0] if seen else ():
        values = np.concatenate([one[channel, kind] for one in seen])
        edges = frozen_edges(task, kind, values).tolist()
        ordered = kind != "answer" or not task.classes
        nothing = [0] * (len(edges) + 3)
        features.append(
            Feature(channel=channel, kind=kind, ordered=ordered, edges=edges, counts=nothing)
        )
    independent = task.segment.hop / task.segment.samples
    empty = Reference(minimum=minimum_segments(task), independent=independent, features=features)
    own = [empty.count(one) for one in seen]
    total = np.sum([np.zeros(empty.cells, np.int64), *own], axis=0)
    highest = np.zeros(len(features))
    for device, answer, mine in zip(devices, answers, own, strict=True):
        for counts in accumulated(task, empty, device, answer):
            highest = np.maximum(highest, _indices(empty, total - mine, counts))
    frozen = [
        feature.model_copy(
            update={
                "counts": counts.tolist(),
                "effect": max(EFFECT, MARGIN * float(index)),
            }
        )
        for feature, counts, index in zip(features, empty.split(total), highest, strict=True)
    ]
    return empty.model_copy(update={"features": frozen})


def accumulated(
    task: Task, reference: Reference, device: Segments, answers: np.ndarray
) -> Iterator[np.ndarray]:
    """Yield the counts of every WINDOWS consecutive windows of a recording with enough segments."""
    starts = np.array([task.window_start(int(time)) for time in device.times], np.int64)
    windows = [
        reference.count(observe(task, device.segments[rows], answers[rows]))
        for rows in (starts == start for start in np.unique(starts))
    ]
    sizes = np.unique(starts, return_counts=True)[1]
    for end in range(1, len(windows) + 1):
        begin = max(0, end - WINDOWS)
        if sizes[begin:end].sum() >= reference.minimum:
            yield np.sum(windows[begin:end], axis=0)


def _indices(reference: Reference, others: np.ndarray, counts: np.ndarray) -> list[float]:
    pairs = zip(reference.split(others), reference.split(counts), strict=True)
    return [float(stability_index(a, b)) if a.any() and b.any() else 0.0 for a, b in pairs]
