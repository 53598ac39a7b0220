"""A task's recordings as arrays: labelled segments, windows for a teacher, and the drift reference:
the file `drift.json` of artifacts."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from federation.evaluation.accuracy import HeldOut
from streams.contract.errors import TaskError
from streams.contract.task import Task
from streams.learning.drift_detector import stability_index
from streams.learning.drift_reference import (
    EFFECT,
    MARGIN,
    WINDOWS,
    Feature,
    Reference,
    frozen_edges,
    minimum_segments,
    observe,
)
from streams.segments.segmentation import segments_of
from streams.segments.survey import TaskReadings


@dataclass(frozen=True)
class Segments:
    """One device's segments in order: first times (n,) us, segments (n, channels, samples), labels
    (n, label_size), NaN where unknown."""

    times: np.ndarray
    segments: np.ndarray
    labels: np.ndarray


@dataclass(frozen=True)
class TeacherWindows:
    """Windows (n, longest, channels, samples), mask (n, longest) bool, labels (n, longest,
    label_size), NaN where unknown."""

    windows: np.ndarray
    mask: np.ndarray
    labels: np.ndarray


def segments_of_device(task: Task, device: str) -> Segments:
    """Return all segments of a device; TaskError where its readings fail."""
    times, segments, labels = [], [], []
    readings = TaskReadings(task, device)
    try:
        for first, _last, segment, label in segments_of(readings, task):
            times.append(first)
            segments.append(segment)
            labels.append(np.full(task.label_size, np.nan) if label is None else label)
    except TaskError as exc:
        raise TaskError(f"{device}: {exc}") from exc
    except (TypeError, ValueError) as exc:
        raise TaskError(f"{device}: reading {readings.count} cannot be used: {exc}") from exc
    return Segments(
        np.array(times, np.int64),
        np.array(segments, np.float32).reshape(-1, *task.segment_shape),
        np.array(labels, np.float32).reshape(-1, task.label_size),
    )


def stack(task: Task, devices: Sequence[Segments]) -> HeldOut:
    """Return the labelled segments of all devices."""
    known = [~np.isnan(device.labels).any(axis=1) for device in devices]
    segments = [d.segments[k] for d, k in zip(devices, known, strict=True)]
    labels = [d.labels[k] for d, k in zip(devices, known, strict=True)]
    empty = np.zeros((0, *task.segment_shape), np.float32)
    return HeldOut(
        np.concatenate([empty, *segments]),
        np.concatenate([np.zeros((0, task.label_size), np.float32), *labels]),
    )


def group(task: Task, devices: Sequence[Segments]) -> TeacherWindows:
    """Return the devices' windows, as the stream closes them, padded to the longest one. Windows
    without a labelled segment are omitted."""
    parts: list[tuple[Segments, np.ndarray]] = []
    for device in devices:
        starts = task.window.starts(device.times)
        for start in np.unique(starts):
            rows = np.flatnonzero(starts == start)
            if not np.isnan(device.labels[rows]).any(axis=1).all():
                parts.append((device, rows))
    longest = max((len(rows) for _, rows in parts), default=0)
    n = len(parts)
    windows = np.zeros((n, longest, *task.segment_shape), np.float32)
    mask = np.zeros((n, longest), np.bool_)
    labels = np.full((n, longest, task.label_size), np.nan, np.float32)
    for i, (device, rows) in enumerate(parts):
        windows[i, : len(rows)] = device.segments[rows]
        mask[i, : len(rows)] = True
        labels[i, : len(rows)] = device.labels[rows]
    return TeacherWindows(windows, mask, labels)


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
        ordered = kind != "category" and (kind != "answer" or not task.classes)
        nothing = [0] * (len(edges) + 3)
        features.append(
            Feature(channel=channel, kind=kind, ordered=ordered, edges=edges, counts=nothing)
        )
    independent = task.segment.hop / task.segment.samples
    times = [device.times for device in devices if len(device.times)]
    means = [len(each) / len(np.unique(task.window.starts(each))) for each in times]
    least = minimum_segments(task, min(means, default=0.0))
    empty = Reference(minimum=least, independent=independent, features=features)
    own = [empty.count(one) for one in seen]
    total = np.sum([np.zeros(empty.cells, np.int64), *own], axis=0)
    highest = np.zeros(len(features))
    for device, answer, mine in zip(devices, answers, own, strict=True):
        for counts in accumulated(task, empty, device, answer):
            highest = np.maximum(highest, _indices(empty, total - mine, counts))
    frozen = [
        feature.replace(counts=counts.tolist(), effect=max(EFFECT, MARGIN * float(index)))
        for feature, counts, index in zip(features, empty.split(total), highest, strict=True)
    ]
    return empty.replace(features=frozen)


def accumulated(
    task: Task, reference: Reference, device: Segments, answers: np.ndarray
) -> Iterator[np.ndarray]:
    """Yield the counts of every WINDOWS consecutive windows of a recording with enough segments."""
    starts = task.window.starts(device.times)
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
