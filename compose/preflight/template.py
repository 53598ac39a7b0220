"""The task file that `tidewheel new` writes."""

CLASSES = """    classes=("low", "high"),  # a reading's label is an index into these"""
TARGETS = """    targets=("level",),  # a reading's label is one number for each of these
    tolerance=0.2,  # an answer that is off by no more counts as right"""

TEMPLATE = '''"""The task {name}: what a fleet learns. `tidewheel check {file}:task` looks at it."""

import math
import random

from tidewheel import Device, Reading, Segment, Task


def devices():
    """Who there is. pilot: trains the first model; lab: trains the larger teacher; fleet: your
    devices; held-out: never trained on, candidates are judged by them."""
    return [
        Device("pilot-1", "pilot"),
        Device("lab-1", "lab"),
        *(Device(f"device-{{n}}", "fleet") for n in range(1, 4)),
        Device("held-out-1", "held-out"),
    ]


def readings(device):
    """One Reading after the other: time in microseconds, a value for each channel, and the label
    where it is known (else None). Replace this with your data: a CSV file, a database, a sensor."""
    draw = random.Random(device)
    gain, offset = (1.0, 0.0) if device == "pilot-1" else (0.6, 0.5)  # so there is much to learn
    level = 0.0
    for i in range(6000):
        level = 0.98 * level + draw.gauss(0, 0.2)
        x = gain * level + offset + draw.gauss(0, 0.1)
        y = math.sin(i / 20) + draw.gauss(0, 0.1)
        yield Reading(i * 100_000, (x, y), {label})


def build_model():
    """(batch, channels, samples) -> (batch, outputs). Import torch here: devices have none."""
    from torch import nn

    return nn.Sequential(
        nn.Conv1d(2, 32, 5),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(32 * 16, {outputs}),  # a filter of 5 has 16 places in 20 readings
    )


task = Task(
    name="{name}",
    version=1,
    channels=("x", "y"),
    rate_hz=10,  # readings a second; None where they come at no fixed rate
    segment=Segment(samples=20, hop=10),  # the model sees 20 readings, a new segment every 10
{kind}
    build_model=build_model,
    readings=readings,
    source="recorded",  # "live" for a sensor: times are then dates, and nothing is repeated
    devices=devices,
    window_s=10,  # events of 10 s of event time are scored together by the teacher
    lateness_s=2,
    upload="segment",  # "prediction": raw data never leaves the device
)
'''


def render(name: str, kind: str) -> str:
    """The file's text; `kind` is "classification" or "regression"."""
    targets = kind == "regression"
    return TEMPLATE.format(
        name=name,
        file=f"{name.replace('-', '_')}.py",
        kind=TARGETS if targets else CLASSES,
        label="level" if targets else "int(level > 0)",
        outputs=1 if targets else 2,
    )
