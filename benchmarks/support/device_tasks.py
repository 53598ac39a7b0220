"""HAR's model on made-up readings of HAR's shape: what a device is measured with.

The readings are sums of sines with noise, rounded to the steps of the phone's sensors, so they
compress about as people's do. The noise is Python's: numpy.random would count as 8 MB of a device.
"""

import dataclasses
import functools
import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from streams.tasks import har
from tidewheel import Device, Reading

SEGMENTS = 251  # a pass; odd, so that each segment comes to each of two that take turns
STEPS = np.array([1 / 720] * 3 + [np.pi / 180 * 0.0175] * 3)
HOP_S = har.task.segment.hop / (har.task.rate_hz or 1.0)  # event time between two segments
DEVICE = "bench"
RATES = {"one a message": 1.0, "50 a second": 50.0}  # events a second, a partition each


@functools.cache
def recording() -> tuple[np.ndarray, np.ndarray]:
    """Return the values (n, 6) and labels (n,) of a pass; a new activity each 10 s."""
    hop, samples, rate = har.task.segment.hop, har.task.segment.samples, har.task.rate_hz or 1.0
    n = hop * (SEGMENTS - 1) + samples
    dice = random.Random(0)
    spell = int(10 * rate)
    labels = np.repeat([dice.randrange(6) for _ in range(n // spell + 1)], spell)[:n]
    at = np.arange(n) / rate
    hertz = np.array([[dice.uniform(0.5, 3.0) for _ in range(6)] for _ in range(6)])
    gain = np.array([[dice.uniform(0.05, 0.6) for _ in range(6)] for _ in range(6)])
    noise = np.fromiter((dice.gauss(0, 0.05) for _ in range(6 * n)), np.float64, 6 * n)
    wave = gain[labels] * np.sin(2 * np.pi * hertz[labels] * at[:, None])
    values = wave + noise.reshape(n, 6) + np.array([1.0, 0, 0, 0, 0, 0])
    return np.round(values / STEPS) * STEPS, labels.astype(np.float64)


def readings(_device: str) -> Iterator[Reading]:
    values, labels = recording()
    step_us = round(1e6 / (har.task.rate_hz or 1.0))
    for i, row in enumerate(values):
        yield Reading(i * step_us, row.tolist(), float(labels[i]))


def devices() -> list[Device]:
    return [Device(DEVICE, "fleet")]


segments = dataclasses.replace(
    har.task, name="bench-segments", readings=readings, devices=devices, upload="segment"
)
predictions = dataclasses.replace(segments, name="bench-predictions", upload="prediction")
quiet = dataclasses.replace(  # HAR, of which nothing starts a run or an adapter
    har.task, retrain=0.0, training=dataclasses.replace(har.task.training, choice="offered")
)
TASKS = {
    name: f"{Path(__file__).relative_to(Path(__file__).parents[2])}:{name}"
    for name in ("segments", "predictions", "quiet")
}
