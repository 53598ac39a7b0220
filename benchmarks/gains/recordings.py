"""Recordings that devices replay, how they drift, and what they are measured on.

Four kinds of drift are drawn: remounted as recorded (the later recordings of three people), a gain
and an offset of each channel, one axis dead, or the sensor turned.
"""

import math
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from edge_client.samples.table import HELD_OUT, reports, split_of, split_period_us
from examples.drift.har_remounted import REMOUNTED
from federation.evaluation.recent_windows import ROWS, RecentWindows
from streams.contract.task import Reading, Task
from streams.contract.task.parts import one_by_one
from streams.segments.segmentation import segments_of

SEED = 1
AFTER = (12, 36)  # windows from the release before the drift to its begin
GAIN, OFFSET = (0.5, 1.5), 0.5  # of a channel, and g or rad/s
TURN = (45.0, 180.0)  # degrees, about any axis
AS_RECORDED = "as recorded"


@dataclass(frozen=True)
class Recording:
    """A device's segments in order: first and last event times (n,), segments (n, channels,
    samples), labels (n, label_size), NaN where unknown."""

    first_us: np.ndarray
    last_us: np.ndarray
    segments: np.ndarray
    labels: np.ndarray

    @classmethod
    def of(cls, task: Task, readings: Iterable[Reading]) -> "Recording":
        found = list(segments_of(readings, task))
        unknown = np.full(task.label_size, np.nan, np.float32)
        return cls(
            np.array([first for first, *_ in found], np.int64),
            np.array([last for _, last, *_ in found], np.int64),
            np.stack([segment for _, _, segment, _ in found]).astype(np.float32),
            np.stack([unknown if label is None else label for *_, label in found]),
        )

    def __getitem__(self, rows: np.ndarray) -> "Recording":
        return Recording(
            self.first_us[rows], self.last_us[rows], self.segments[rows], self.labels[rows]
        )

    @property
    def labelled(self) -> np.ndarray:
        """(n,) bool: the rows with a label."""
        return np.asarray(~np.isnan(self.labels).any(axis=1))

    def splits(self, task: Task) -> np.ndarray:
        pairs = zip(self.first_us.tolist(), self.last_us.tolist(), strict=True)
        return np.array([split_of(task, first, last) for first, last in pairs])

    def windows(self, task: Task) -> list[np.ndarray]:
        """The rows of each window that has any, in order."""
        starts = self.first_us // task.window_us
        return [np.flatnonzero(starts == start) for start in np.unique(starts)]


@dataclass(frozen=True)
class Window:
    """A window of a stream: these rows of a recording, shifted in time by whole periods of the
    split, which changes no segment's."""

    of: Recording
    rows: np.ndarray
    shift_us: int


def replayed(task: Task, calm: Recording, moved: Recording | None, after: int) -> Iterator[Window]:
    """Yield windows of `calm` again and again; from the one with the number `after` on those of
    `moved`, which begin where those of `calm` would have gone on if they are of the same times."""
    windows, period = calm.windows(task), _period_us(task, calm)
    number = 0
    while moved is None or number < after:
        again, at = divmod(number, len(windows))
        yield Window(calm, windows[at], again * period)
        number += 1
    altered = np.array_equal(moved.first_us, calm.first_us)
    begin = 0 if altered else -(-after // len(windows)) * period
    number = after if altered else 0
    windows, period = moved.windows(task), _period_us(task, moved)
    while True:
        again, at = divmod(number, len(windows))
        yield Window(moved, windows[at], begin + again * period)
        number += 1


def _period_us(task: Task, recording: Recording) -> int:
    whole = split_period_us(task)
    return -(-(int(recording.last_us[-1]) + 1) // whole) * whole


def is_revealed(task: Task, device: str, recording: Recording) -> np.ndarray:
    """(n,) bool: the segments whose true label a replay reveals to the device, as
    edge_client.inference.loop has it: the same ones in each pass."""
    limit = task.training.label_share * 2**32
    digests = [zlib.crc32(f"{device}/{at}".encode()) for at in recording.last_us.tolist()]
    return np.array(digests) < limit


def untold(task: Task, device: str, recording: Recording, *, reporting: bool) -> np.ndarray:
    """(n,) bool: the labelled held-out segments whose label the device is never told; with
    `reporting` only those of windows by which nothing else is decided."""
    held = recording.splits(task) == HELD_OUT
    if reporting:
        held &= reports(task, recording.last_us)
    return np.asarray(held & recording.labelled & ~is_revealed(task, device, recording))


def latest(parts: Sequence[tuple[str, Window, np.ndarray]]) -> RecentWindows:
    """Return the latest windows of all devices with the teacher's answers, as the gate reads them
    from the topics; `parts` are in the order of time."""
    chosen, count = [], 0
    for part in reversed(parts):
        if count + len(part[1].rows) > ROWS:
            break
        chosen.append(part)
        count += len(part[1].rows)
    return RecentWindows(
        np.concatenate([window.of.segments[window.rows] for _, window, _ in chosen]),
        np.concatenate([taught for *_, taught in chosen]),
        np.full((count, 1), np.nan, np.float32),  # the teacher judges: it is right more often
        np.concatenate([np.full(len(window.rows), name) for name, window, _ in chosen]),
    )


def chance(better: int, worse: int) -> float:
    """Return McNemar's exact test, two-sided: the probability of so uneven a split of the differing
    rows if each was as likely for either. Of errors it is the sign test."""
    n, most = better + worse, max(better, worse)
    return float(min(1.0, 2 * sum(math.comb(n, k) for k in range(most, n + 1)) / 2**n))


def _gain_and_offset(segments: np.ndarray, dice: np.random.Generator) -> np.ndarray:
    gains = dice.uniform(*GAIN, (segments.shape[1], 1))
    return np.asarray(segments * gains + dice.uniform(-OFFSET, OFFSET, (segments.shape[1], 1)))


def _one_axis_dead(segments: np.ndarray, dice: np.random.Generator) -> np.ndarray:
    found = segments.copy()
    found[:, dice.integers(segments.shape[1])] = 0.0
    return found


def _new_place(segments: np.ndarray, dice: np.random.Generator) -> np.ndarray:
    """Turn both vectors of the sensor by one rotation (Rodrigues)."""
    x, y, z = (axis := dice.normal(size=3)) / np.linalg.norm(axis)
    angle = np.radians(dice.uniform(*TURN))
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    turn = np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross
    return np.concatenate([turn @ part for part in np.split(segments, 2, axis=1)], axis=1)


ALTERED: Mapping[str, Callable[[np.ndarray, np.random.Generator], np.ndarray]] = {
    "gain and offset": _gain_and_offset, "one axis dead": _one_axis_dead, "a new place": _new_place,
}  # fmt: skip


@dataclass(frozen=True)
class Draw:
    number: int
    how: str
    who: tuple[str, ...]
    after: int


def drawn(number: int, fleet: Sequence[str]) -> Draw:
    """Drifts as recorded are of people who have one, and are drawn again where that would be more
    people than there are."""
    dice = np.random.default_rng([SEED, number])
    count, after = int(dice.integers(1, len(fleet) // 3 + 1)), int(dice.integers(*AFTER))
    recorded = [name for name in fleet if name in REMOUNTED]
    how = str(dice.choice([AS_RECORDED, *ALTERED]))
    if how == AS_RECORDED and count > len(recorded):
        how = str(dice.choice(list(ALTERED)))
    among = recorded if how == AS_RECORDED else list(fleet)
    who = sorted(str(name) for name in dice.choice(among, count, replace=False))
    return Draw(number, how, tuple(who), after)


@dataclass(frozen=True)
class Person:
    """A person's recordings without drift, and the later ones of those who were remounted."""

    calm: Recording
    later: Recording | None

    @classmethod
    def read(cls, task: Task, name: str) -> "Person":
        whole = Recording.of(task, one_by_one(task.readings(name)))
        if name not in REMOUNTED:
            return cls(whole, None)
        apart = np.flatnonzero(np.diff(whole.first_us) > 5_000_000)[0] + 1  # recordings are 10 s
        rows = np.arange(len(whole.first_us))
        return cls(whole[rows[:apart]], whole[rows[apart:]])

    def moved(self, draw: Draw, at: int) -> Recording:
        """Return what the device measures after the drift; `at`: its place in the fleet."""
        if draw.how == AS_RECORDED:
            assert self.later is not None
            return self.later
        dice, calm = np.random.default_rng([SEED, draw.number, at]), self.calm
        segments = ALTERED[draw.how](calm.segments, dice).astype(np.float32)
        return Recording(calm.first_us, calm.last_us, segments, calm.labels)
