"""Human activity recognition from a phone at the waist: the built-in task."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from streams.contract.task import Device, Reading, Segment, Task, Training, Tumbling
from streams.tasks import hapt

if TYPE_CHECKING:
    import torch

ROLES = {"pilot": (5, 7), "lab": (1, 3, 11, 13, 15, 17), "held-out": (2, 8, 14, 20, 22, 26, 29)}


def devices() -> list[Device]:
    """Return the devices: two pilots and six more in the lab, seven held out, fifteen fleet."""
    role = {number: name for name, numbers in ROLES.items() for number in numbers}
    return [Device(f"person-{n:02d}", role.get(n, "fleet")) for n in range(1, 31)]  # type: ignore[arg-type]


def readings(device: str) -> Iterator[Reading]:
    """Yield a person's recordings one after the other, 10 s apart; times start at 0."""
    for i, part, values, label in hapt.read(hapt.person(int(device.rsplit("-", 1)[1]))):
        yield Reading(i * 20_000 + part * 10_000_000, values, label)


def build_model() -> "torch.nn.Module":
    """Return a small 1-D CNN over one segment: (batch, 6, 128) -> (batch, 6), 16,102 parameters."""
    from torch import nn

    layers: list[nn.Module] = []
    for before, after, width in ((6, 32, 5), (32, 48, 5), (48, 48, 3)):
        conv = nn.Conv1d(before, after, width, stride=2, padding=width // 2, bias=False)
        layers += [conv, nn.BatchNorm1d(after), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(48, 6))


def build_teacher() -> "torch.nn.Module":
    """Return a larger CNN, applied to each segment of a window; batch norm, mean, max pooling."""
    import torch
    from torch import nn

    layers: list[nn.Module] = []
    for before, after in ((6, 40), (40, 64), (64, 80), (80, 96)):
        conv = nn.Conv1d(before, after, 5, padding=2, bias=False)
        layers += [conv, nn.BatchNorm1d(after), nn.ReLU(), nn.MaxPool1d(2)]

    class HarTeacher(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.features = nn.Sequential(*layers)
            self.head = nn.Sequential(nn.Dropout(0.3), nn.Linear(192, 6))

        def forward(self, windows: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            found = self.features(windows[mask])  # (segments in all, 96, samples / 16)
            pooled = torch.cat((found.mean(dim=2), found.amax(dim=2)), dim=1)
            outputs = windows.new_zeros(*mask.shape, 6)
            outputs[mask] = self.head(pooled)
            return outputs

    return HarTeacher()


def rotate(batch: "torch.Tensor", generator: "torch.Generator") -> "torch.Tensor":
    """Rotate each segment by a small random angle: a phone is never worn twice the same way."""
    import torch

    angles = torch.randn(len(batch), 3, generator=generator) * 0.14  # about 8 degrees
    skew = torch.zeros(len(batch), 3, 3)
    skew[:, 0, 1], skew[:, 0, 2], skew[:, 1, 2] = -angles[:, 2], angles[:, 1], -angles[:, 0]
    turn = torch.matrix_exp(skew - skew.transpose(1, 2))  # (batch, 3, 3)
    return torch.cat((turn @ batch[:, :3], turn @ batch[:, 3:]), dim=1)


task = Task(
    name="har", version=1,
    channels=hapt.CHANNELS, rate_hz=50,
    segment=Segment(samples=128, hop=64),
    classes=("walking", "upstairs", "downstairs", "sitting", "standing", "laying"),
    build_model=build_model, build_teacher=build_teacher, augment=rotate,
    readings=readings, devices=devices,
    window=Tumbling(30), lateness_s=5, idle_close_s=6, upload="segment",
    training=Training(payload="float16", central_epochs=10),
)  # fmt: skip
