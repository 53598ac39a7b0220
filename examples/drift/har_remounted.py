"""The built-in task as a scenario: everybody's first recording, and later the other ones.

Three people of the fleet (9, 10, 16) wear the phone otherwise in their later recordings: acc-y is
turned round. Nothing is altered, the recordings are replayed as they are. The first model knows
three people who wear it as the fleet does at first; the teacher fourteen more, and people mirrored
left to right, as if each phone were worn at the other side of the body as well.

What is set so that all of it happens in minutes, for the reader to judge: who is in the fleet and
who is known to first model and teacher (PILOT, FLEET, the lab); `retrain=0.0`, so that drift
and not low agreement starts the run; `label_share=0.4`, `learning_rate=0.005`, 4 rounds; 30 times
real time; recordings that repeat. Drawn scenarios will replace this one.

Nobody is held out: all who could be wear the phone as ever, and what three people's phones have to
say costs them more than the gate allows (sitting). The fleet's own held-out segments decide.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from streams.tasks import hapt, har
from tidewheel import Device, Reading, Training

if TYPE_CHECKING:
    import torch

FLEET = (4, 6, 9, 10, 16, 19)
REMOUNTED = ("person-09", "person-10", "person-16")
AFTER_S = 720  # of event time, everybody's later recordings follow
LASTS_S = 14_400
REPEATED_S = 120  # or a multiple: held-out segments stay held out
PILOT = (1, 5, 7)


def devices() -> list[Device]:
    """Six in the fleet, three pilots, fourteen in the lab."""
    role = dict.fromkeys(FLEET, "fleet") | dict.fromkeys(PILOT, "pilot")
    known = [n for n in range(1, 31) if n not in har.ROLES["held-out"]]
    return [Device(f"person-{n:02d}", role.get(n, "lab")) for n in known]  # type: ignore[arg-type]


def readings(device: str) -> Iterator[Reading]:
    """In the fleet: the first recording again and again, from AFTER_S on the others, until
    LASTS_S; times from 0. All were told to do the same in the same order: one begins 30 s after
    the other, or everybody would hold out the same activities."""
    number = int(device.rsplit("-", 1)[1])
    if number not in FLEET:
        yield from har.readings(device)
        return
    rows = hapt.person(number)
    first = rows["recording"] == rows["recording"][0]
    late_s = FLEET.index(number) * 30 % REPEATED_S
    yield from _repeated(rows[first], late_s, AFTER_S)
    yield from _repeated(rows[~first], AFTER_S + late_s, LASTS_S)


def _repeated(rows: np.ndarray, begin_s: int, end_s: int) -> Iterator[Reading]:
    """The rows again and again until the end, recordings 10 s apart."""
    begin_us, end_us, period_us = (second * 1_000_000 for second in (begin_s, end_s, REPEATED_S))
    at_us = begin_us
    while True:
        for i, part, row, label in hapt.read(rows):
            at_us = begin_us + i * 20_000 + (part - int(rows["recording"][0])) * 10_000_000
            if at_us >= end_us:
                return
            yield Reading(at_us, row, label)
        begin_us += ((at_us - begin_us) // period_us + 1) * period_us


def either_side(batch: "torch.Tensor", generator: "torch.Generator") -> "torch.Tensor":
    """Turn each segment a little, and mirror half of them left to right: of turning rates, which
    are no vectors, the other two axes change their signs."""
    import torch

    side = torch.randint(0, 2, (len(batch), 1), generator=generator) * 2.0 - 1
    signs = torch.ones(len(batch), len(hapt.CHANNELS))
    signs[:, [hapt.CHANNELS.index(name) for name in ("acc-y", "gyro-x", "gyro-z")]] = side
    return har.rotate(batch, generator) * signs[:, :, None]


task = replace(
    har.task,
    name="har-remounted",
    readings=readings, devices=devices, augment=either_side,
    retrain=0.0,  # drift alone is to be the cause
    training=Training(
        learning_rate=0.005, payload="float16", central_epochs=12, label_share=0.4, rounds=4
    ),
)  # fmt: skip
