"""Digits under line cameras: a convolutional network of two million parameters, trained elsewhere.

    python -m examples.digits.pretrain
    tidewheel up examples/digits/task.py:task --devices 6 --speed 20 --until-closed

A reading is a line of eight pixels, eight lines are an image. The cameras stand in poor light, each
in its own; the network has only seen clean images. Its weights come from a file; devices answer in
int8 and fine-tune the head, a thousandth of the weights, and only the head travels in rounds.

The 1,797 images (E. Alpaydin, C. Kaynak: Optical Recognition of Handwritten Digits, UCI Machine
Learning Repository, 1998, CC BY 4.0) are in scikit-learn's package, which is fetched once.
"""

import gzip
import zlib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from streams.runtime.files import cache_folder
from streams.tasks.download import member_of
from tidewheel import Device, Readings, Segment, Task, Training, Tumbling

if TYPE_CHECKING:
    import torch

PACKAGE, MEMBER = "scikit-learn==1.9.1", "sklearn/datasets/data/digits.csv.gz"
SHA256 = "09f66e6debdee2cd2b5ae59e0d6abbb73fc2b0e0185d2e1957e9ebb51e23aa22"
SIDE, LINE_US = 8, 125_000
ROLES = {"pilot": 3, "lab": 4, "fleet": 10, "held-out": 5}
CAMERAS = sum(ROLES.values())
WEIGHTS = Path(__file__).with_name("digits.safetensors")


@cache
def images() -> np.ndarray:
    """(1797, 65): the pixels, 0 to 16, and the digit."""
    path = cache_folder() / "digits.npy"
    if not path.exists():
        data = member_of(PACKAGE, MEMBER, SHA256, wheel=True, instead=path.name)
        rows = np.loadtxt(gzip.decompress(data).decode().splitlines(), delimiter=",")
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, rows.astype(np.float32))
    found: np.ndarray = np.load(path)
    return found


def devices() -> list[Device]:
    roles = [role for role, count in ROLES.items() for _ in range(count)]
    return [Device(f"camera-{n:02}", role) for n, role in enumerate(roles)]  # type: ignore[arg-type]


def readings(device: str) -> Iterator[Readings]:
    """Every CAMERAS-th image, again and again for ten minutes, as this camera sees it."""
    dice = np.random.default_rng(zlib.crc32(device.encode()))
    gain, dark = dice.uniform(0.3, 0.5), dice.uniform(0.35, 0.5)
    own = images()[int(device[-2:]) :: CAMERAS]
    for n in range(600):
        row = own[dice.integers(len(own))]
        seen = gain * row[:-1].reshape(SIDE, SIDE) / 16 + dark + dice.normal(0, 0.06, (SIDE, SIDE))
        times = (n * SIDE + np.arange(SIDE)) * LINE_US
        yield Readings(times, seen.astype(np.float32), float(row[-1]))


def build_model() -> "torch.nn.Module":
    """2,076,938 parameters: (batch, 8 pixels, 8 lines) -> (batch, 10)."""
    from torch import nn

    def block(inside: int, outside: int) -> list[nn.Module]:
        return [nn.Conv2d(inside, outside, 3, padding=1), nn.ReLU()]

    class Digits(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.features = nn.Sequential(
                *block(1, 64), *block(64, 128), nn.MaxPool2d(2),
                *block(128, 256), *block(256, 512), nn.MaxPool2d(2),
                nn.Flatten(), nn.Linear(2048, 256), nn.ReLU(),
            )  # fmt: skip
            self.head = nn.Linear(256, 10)

        def forward(self, segments: "torch.Tensor") -> "torch.Tensor":
            found: torch.Tensor = self.head(self.features(segments.transpose(1, 2).unsqueeze(1)))
            return found

    return Digits()


task = Task(
    name="digits", version=1,
    channels=tuple(f"x{n}" for n in range(SIDE)), rate_hz=SIDE,
    segment=Segment(samples=SIDE, hop=SIDE),
    classes=tuple("0123456789"),
    build_model=build_model, first_model=WEIGHTS, quantize="int8",
    readings=readings, devices=devices,
    window=Tumbling(20), lateness_s=2, idle_close_s=4,
    may_trade_classes=True,  # in poor light nearly everything looks like an 8 to the first version
    training=Training(train_only=("head",), payload="float16", learning_rate=0.05, label_share=0.3,
                      central_epochs=3),
)  # fmt: skip
