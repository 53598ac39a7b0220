"""Who drifts, when and how, in the built-in task: kinds of drift, and a seeded generator."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from examples.drift.har_remounted import REMOUNTED
from streams.contract.task import Task
from tests.bench.gains.fleet import Recording

SEED = 1
AFTER = (12, 36)  # windows from the release before the drift to its begin
GAIN, OFFSET = (0.5, 1.5), 0.5  # of a channel, and g or rad/s
TURN = (45.0, 180.0)  # degrees, about any axis

Drift = Callable[[Recording, np.random.Generator], Recording]


def gain_and_offset(recording: Recording, dice: np.random.Generator) -> Recording:
    channels = recording.segments.shape[1]
    gains = dice.uniform(*GAIN, (channels, 1))
    offsets = dice.uniform(-OFFSET, OFFSET, (channels, 1))
    return _altered(recording, recording.segments * gains + offsets)


def one_axis_dead(recording: Recording, dice: np.random.Generator) -> Recording:
    """One channel is 0 from now on."""
    segments = recording.segments.copy()
    segments[:, dice.integers(segments.shape[1])] = 0.0
    return _altered(recording, segments)


def new_place(recording: Recording, dice: np.random.Generator) -> Recording:
    """The sensor is turned: both of its vectors by one rotation."""
    turn = rotation(dice)
    parts = np.split(recording.segments, 2, axis=1)
    return _altered(recording, np.concatenate([turn @ part for part in parts], axis=1))


def rotation(dice: np.random.Generator) -> np.ndarray:
    """(3, 3), about an axis that is drawn, by an angle of TURN (Rodrigues)."""
    x, y, z = (axis := dice.normal(size=3)) / np.linalg.norm(axis)
    angle = np.radians(dice.uniform(*TURN))
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.asarray(np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross)


def _altered(recording: Recording, segments: np.ndarray) -> Recording:
    return Recording(
        recording.first_us, recording.last_us, segments.astype(np.float32), recording.labels
    )


AS_RECORDED = "remounted as recorded"
ALTERED: Mapping[str, Drift] = {
    "gain and offset": gain_and_offset, "one axis dead": one_axis_dead, "a new place": new_place,
}  # fmt: skip


@dataclass(frozen=True)
class Draw:
    """`after`: windows from the release before the drift to its begin."""

    number: int
    how: str
    who: tuple[str, ...]
    after: int


def drawn(number: int, fleet: Sequence[str]) -> Draw:
    """Return draw `number`; drifts as recorded are of people whose recordings have one, and are
    drawn again where that would be more people than there are."""
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
    """A person's recordings without drift, and the later ones of those who wore it otherwise."""

    calm: Recording
    later: Recording | None

    @classmethod
    def read(cls, task: Task, name: str) -> "Person":
        whole = Recording.of(task, task.readings(name))
        if name not in REMOUNTED:
            return cls(whole, None)
        apart = np.flatnonzero(np.diff(whole.first_us) > 5_000_000)[0] + 1  # recordings are 10 s
        rows = np.arange(len(whole.first_us))
        return cls(whole[rows[:apart]], whole[rows[apart:]])

    def moved(self, draw: Draw, at: int) -> Recording:
        """What the person's device measures after the drift; `at`: its place in the fleet."""
        if draw.how == AS_RECORDED:
            assert self.later is not None
            return self.later
        return ALTERED[draw.how](self.calm, np.random.default_rng([SEED, draw.number, at]))
