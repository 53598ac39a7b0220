"""What a user looks at next: the last clicks of a session in, five of fifty items out.

    tidewheel up examples/recommendation/task.py:task --devices 8 --speed 200 --until-closed

A reading is a click, a segment the last three of a session, the label the next one, which is known
when it comes: `outcomes` reads it from the next segment.

The data is made. Fifty items are ten groups of five in a ring, as the parts of a series. A session
is a Markov chain: with probability 0.5 the next item is the next one of the ring, with 0.3 any of
the group, with 0.2 any of a group that the user likes. What a user likes is a Dirichlet
distribution over the groups, concentration 0.4: each knows some groups, all together know all. No
model finds much more than a group: five items have 0.86 of the next clicks. Pilots like the first
three groups only.
"""

import zlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

import tidewheel as tw

if TYPE_CHECKING:
    import torch

GROUPS, MEMBERS, CLICKS = 10, 5, 3
ITEMS = tuple(f"{chr(ord('a') + n // MEMBERS)}{n % MEMBERS + 1}" for n in range(GROUPS * MEMBERS))
ITEM = tw.Category("item", names=ITEMS)  # their indices are 1, 2, ...: 0 is an unknown item
ROLES = {"pilot": 2, "lab": 6, "fleet": 12, "held-out": 4}
BEGAN_US, SECOND_US, PAUSE_S = 1_767_225_600_000_000, 1_000_000, 1800
SESSIONS, SESSION, BETWEEN_S = 80, 12, 20.0  # of a user; clicks; seconds from click to click


def devices() -> list[tw.Device]:
    return [tw.Device(f"{role}-{n}", role) for role, count in ROLES.items() for n in range(count)]  # type: ignore[arg-type]


def sessions(user: str) -> Iterator[list[tuple[int, int]]]:
    """Yield sessions: the time and the item of each click."""
    dice, time_us = np.random.default_rng(zlib.crc32(user.encode())), BEGAN_US
    groups = 3 if user.startswith("pilot") else GROUPS
    likes = dice.dirichlet([0.4] * groups)
    for _ in range(SESSIONS):
        clicks, item = list[tuple[int, int]](), 0
        for n in range(1 + dice.poisson(SESSION)):
            group, chance = item // MEMBERS, dice.random()
            if n and chance < 0.5:
                item = group * MEMBERS + (item + 1) % MEMBERS
            else:
                group = group if n and chance < 0.8 else int(dice.choice(groups, p=likes))
                item = group * MEMBERS + int(dice.integers(MEMBERS))
            time_us += 1 + round(min(dice.exponential(BETWEEN_S), PAUSE_S) * SECOND_US)
            clicks.append((time_us, item))
        yield clicks
        time_us += round(dice.uniform(2, 10) * PAUSE_S * SECOND_US)


def readings(user: str) -> Iterator[tw.Reading]:
    for clicks in sessions(user):
        for n, (time_us, item) in enumerate(clicks):
            then = float(clicks[n + 1][1]) if n + 1 < len(clicks) else None
            yield tw.Reading(time_us, (ITEMS[item],), then)  # type: ignore[arg-type]


def outcomes(_user: str, answered: Iterator[tw.Answered]) -> Iterator[tw.Outcome]:
    before = None
    for now in answered:
        if before is not None and now.last_us - before.last_us <= PAUSE_S * SECOND_US:
            item = float(now.segment[0, -1]) - 1  # (channels, clicks)
            yield tw.Outcome(before.first_us, before.last_us, item, seq=before.seq)
        before = now


def build_model() -> "torch.nn.Module":
    """(batch, 2, 3 clicks) -> (batch, 50), 7,394 parameters."""
    import torch
    from torch import nn

    class Next(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.items = nn.Embedding(ITEM.size, 16)
            self.head = nn.Sequential(nn.Linear(CLICKS * 17, 64), nn.ReLU(), nn.Linear(64, 50))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            clicks = torch.cat((self.items(x[:, 0].long()), x[:, 1, :, None] / 10), dim=2)
            found: torch.Tensor = self.head(clicks.flatten(1))
            return found

    return Next()


task = tw.Task(
    name="recommendation", version=1, channels=(ITEM, tw.Time("since")), rate_hz=None,
    segment=tw.Segment(samples=CLICKS, hop=1, label_share=0.0, max_gap_s=PAUSE_S),
    classes=ITEMS, metric="top_5", retrain=0.7, build_model=build_model, readings=readings,
    outcomes=outcomes, devices=devices, window=tw.Session(PAUSE_S, longest_s=14_400), lateness_s=60,
    training=tw.Training(optimizer="adamw", learning_rate=0.01, label_share=0.0),
)  # fmt: skip
