"""The soak's task: is a short signal above or below zero?

The teacher is right about nine of ten. A made-up device's answers are right as often as its version
is good (`QUALITY`), so a rollout's outcome is known.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from tidewheel import Device, Reading, Segment, Task, Tumbling

if TYPE_CHECKING:
    import torch

SAMPLES = 4


def devices() -> list[Device]:
    """Of no use here: the soak makes its own."""
    return [Device("pilot-0", "pilot"), Device("device-00000", "fleet")]


def readings(_device: str) -> Iterator[Reading]:
    """Of no use here."""
    yield Reading(0, [1.0], 1.0)


def build_model() -> "torch.nn.Module":
    from torch import nn

    return nn.Sequential(nn.Flatten(), nn.Linear(SAMPLES, 2))


def build_teacher() -> "torch.nn.Module":
    """The sign of the mean; `weight` says how sure."""
    import torch
    from torch import nn

    class Teacher(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.tensor([-4.0, 4.0]))

        def forward(self, windows: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            mean = windows.mean(dim=(2, 3)) * mask  # (windows, segments)
            return mean[..., None] * self.weight

    return Teacher()


task = Task(
    name="soak", version=1,
    channels=("x",), rate_hz=None,
    segment=Segment(samples=SAMPLES, hop=SAMPLES),
    classes=("below", "above"),
    build_model=build_model, build_teacher=build_teacher,
    readings=readings, devices=devices,
    window=Tumbling(6 * 3600), lateness_s=3600, idle_close_s=6,
    upload="segment", source="recorded",
)  # fmt: skip
