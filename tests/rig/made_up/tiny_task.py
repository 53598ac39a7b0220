"""A small made-up task: which of three vibrations a machine makes, from two channels.

Each class is a sine wave of its own frequency; every machine is mounted a little differently, so
that its waves have an offset and an amplitude of their own. Machines in the field turn slower than
the pilot: the first model confuses their classes, the teacher has seen both, and what a few devices
learn holds for all the others.
"""

import zlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from tidewheel import Device, Reading, Segment, Task, Training, Tumbling

if TYPE_CHECKING:
    import torch

RATE_HZ = 20
HERTZ = (1.0, 2.5, 5.0)
SPELL_S = 8  # how long a machine stays in one class
MINUTES = 8


def devices() -> list[Device]:
    """One pilot, three in the lab, six in the fleet and three held out."""
    lab = [Device(f"lab-{n}", "lab") for n in range(3)]
    fleet = [Device(f"d{n}", "fleet") for n in range(6)]
    held_out = [Device(f"held-{n}", "held-out") for n in range(3)]
    return [Device("pilot-0", "pilot"), *lab, *fleet, *held_out]


def readings(device: str) -> Iterator[Reading]:
    """The same eight minutes at every call; times from 0."""
    noise = np.random.default_rng(zlib.crc32(device.encode()))
    speed = 1.0 if device in ("pilot-0", "lab-0") else noise.normal(0.6, 0.03)
    offset = noise.normal(0, 0.3, 2)
    gain = noise.uniform(0.6, 1.4, 2)
    size = SPELL_S * RATE_HZ
    for spell, label in enumerate(noise.integers(0, len(HERTZ), MINUTES * 60 // SPELL_S)):
        phase = noise.uniform(0, 2 * np.pi)
        angle = phase + 2 * np.pi * speed * HERTZ[label] * np.arange(size) / RATE_HZ
        wave = gain * np.stack([np.sin(angle), np.cos(angle)], axis=1) + offset
        values = wave + noise.normal(0, 0.35, (size, 2))
        for i, row in enumerate(values.tolist(), spell * size):
            yield Reading(i * 1_000_000 // RATE_HZ, row, float(label))


def build_model() -> "torch.nn.Module":
    """A very small CNN over one segment."""
    from torch import nn

    return nn.Sequential(
        nn.Conv1d(2, 8, 5, padding=2), nn.ReLU(),
        nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(8, 3),
    )  # fmt: skip


def build_teacher() -> "torch.nn.Module":
    """A larger CNN per segment that takes each segment's offset away first."""
    import torch
    from torch import nn

    class Teacher(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.features = nn.Sequential(
                nn.Conv1d(2, 24, 7, padding=3), nn.ReLU(),
                nn.Conv1d(24, 24, 5, padding=2), nn.ReLU(), nn.AdaptiveAvgPool1d(1),
            )  # fmt: skip
            self.head = nn.Linear(24, 3)

        def forward(self, windows: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            inside = windows[mask]  # (segments in all, channels, samples)
            found = self.features(inside - inside.mean(dim=2, keepdim=True))
            outputs = windows.new_zeros(*mask.shape, 3)
            outputs[mask] = self.head(found.flatten(1))
            return outputs

    return Teacher()


task = Task(
    name="tiny", version=1,
    channels=("x", "y"), rate_hz=RATE_HZ,
    segment=Segment(samples=20, hop=10),
    classes=("slow", "middle", "fast"),
    build_model=build_model, build_teacher=build_teacher,
    readings=readings, devices=devices,
    window=Tumbling(5), lateness_s=1, idle_close_s=2, upload="segment",
    training=Training(
        learning_rate=0.03, epochs=4, label_share=0.3, central_epochs=15
    ),
)  # fmt: skip
