"""What is measured: HAR's model on made-up readings of HAR's shape.

The readings are sums of sines with noise, rounded to the steps of the phone's sensors: 1/720 g and
0.0175 degrees a second. They compress about as people's do, which noise would not.

The noise is Python's: a device has no use for numpy.random, which takes 8 MB and would be measured
as its own.
"""

import dataclasses
import functools
import random
from collections.abc import Iterator

import numpy as np

from streams.tasks import har
from tidewheel import Device, Reading

SEGMENTS = 251  # a pass; odd, so that whoever takes turns on them gets each in the end
STEPS = np.array([1 / 720] * 3 + [np.pi / 180 * 0.0175] * 3)


@functools.cache
def recording() -> tuple[np.ndarray, np.ndarray]:
    """The values (n, 6) and labels (n,) of a pass; a new activity each 10 s."""
    hop, samples = har.task.segment.hop, har.task.segment.samples
    n = hop * (SEGMENTS - 1) + samples
    dice = random.Random(0)
    spell = int(10 * har.task.rate_hz)
    labels = np.repeat([dice.randrange(6) for _ in range(n // spell + 1)], spell)[:n]
    at = np.arange(n) / har.task.rate_hz
    hertz = np.array([[dice.uniform(0.5, 3.0) for _ in range(6)] for _ in range(6)])
    gain = np.array([[dice.uniform(0.05, 0.6) for _ in range(6)] for _ in range(6)])
    noise = np.fromiter((dice.gauss(0, 0.05) for _ in range(6 * n)), np.float64, 6 * n)
    wave = gain[labels] * np.sin(2 * np.pi * hertz[labels] * at[:, None])
    values = wave + noise.reshape(n, 6) + np.array([1.0, 0, 0, 0, 0, 0])
    return np.round(values / STEPS) * STEPS, labels.astype(np.float64)


def readings(_device: str) -> Iterator[Reading]:
    """Made as they are asked for: a sensor's readings take no memory either."""
    values, labels = recording()
    step_us = round(1e6 / har.task.rate_hz)
    for i, row in enumerate(values):
        yield Reading(i * step_us, row.tolist(), float(labels[i]))


def devices() -> list[Device]:
    return [Device("bench", "fleet")]


segments = dataclasses.replace(
    har.task, name="bench-edge", readings=readings, devices=devices, upload="segment"
)
predictions = dataclasses.replace(segments, name="bench-edge-predictions", upload="prediction")
# with topics of their own, whose size is what is measured
wire_segments = dataclasses.replace(segments, name="bench-wire")
wire_predictions = dataclasses.replace(predictions, name="bench-wire-predictions")

HOP_S = segments.segment.hop / segments.rate_hz  # event time from one segment to the next
TASKS = {
    "segment": "tests/bench/edge/tasks.py:segments",
    "prediction": "tests/bench/edge/tasks.py:predictions",
}
WIRE_TASKS = {
    "segment": "tests/bench/edge/tasks.py:wire_segments",
    "prediction": "tests/bench/edge/tasks.py:wire_predictions",
}
