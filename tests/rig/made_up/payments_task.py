"""A task of irregular events with categories: payments, of which few are refused."""

import random
from collections.abc import Iterator
from typing import TYPE_CHECKING

from tidewheel import Category, Device, Reading, Segment, Task, Time, Tumbling

if TYPE_CHECKING:
    import torch

BEGAN_US = 1_700_000_000_000_000
MERCHANT, WAY = Category("merchant", size=50), Category("way", names=("card", "cash"))


def readings(device: str) -> Iterator[Reading]:
    dice, now_us = random.Random(device), BEGAN_US
    for _ in range(400):
        now_us += int(dice.expovariate(1 / 600) * 1e6)
        amount, shop = dice.lognormvariate(3, 1), f"shop {dice.randrange(30)}"
        way = dice.choice(("card", "cash", "voucher"))
        yield Reading(now_us, (amount, shop, way), float(amount > 60 or way == "voucher"))  # type: ignore[arg-type]


def build_model() -> "torch.nn.Module":
    import torch
    from torch import nn

    class Payments(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.shops, self.ways = nn.Embedding(MERCHANT.size, 3), nn.Embedding(WAY.size, 2)
            self.head = nn.Linear(9, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            now = x[:, :, -1]
            shop, way = self.shops(now[:, 1].long()), self.ways(now[:, 2].long())
            parts = (torch.log1p(now[:, :1].abs()), now[:, 3:], shop, way)
            found: torch.Tensor = self.head(torch.cat(parts, dim=1))
            return found

    torch.manual_seed(0)
    return Payments()


task = Task(
    name="payments", version=1, rate_hz=None, segment=Segment(samples=1, hop=1),
    channels=("amount", MERCHANT, WAY, Time("hour"), Time("weekday"), Time("since")),
    classes=("paid", "refused"), metric="average_precision", window=Tumbling(3600),
    build_model=build_model, readings=readings,
    devices=lambda: [Device("p0", "pilot"), *(Device(f"d{n}", "fleet") for n in range(3))],
)  # fmt: skip
