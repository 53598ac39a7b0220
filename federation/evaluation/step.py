"""How far a run's candidate goes from the served weights: the whole way to what was learned, or a
part of it (`Training.interpolation`). Pure.

A part is the rule: it keeps most of what the served version knows and the learned weights have
forgotten. The whole way is taken if it is shown to be better, on the devices or on held-out ones,
and if no more is lost by it on any device. On devices the test exchanges both candidates on whole
devices at random (Fisher 1935), because their rows fail together; fewer than five devices prove
nothing. A device counts with as many rows as at the gate.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from federation.evaluation import device_metrics, valued
from federation.evaluation.device_metrics import DeviceResult
from federation.evaluation.promotion_gate import Rows
from streams.contract.task import Task
from streams.contract.task.metrics import gain, metric_of

LEVEL = 0.05


@dataclass(frozen=True)
class Step:
    """`whole`: whether the learned weights are the candidate. `gain`: what they gain beyond those
    of a part of the way, on `devices` devices that compared both, and how likely such a gain is by
    chance, there and on held-out devices. `harm`: the fleet's loss by the devices that lose, with a
    part and with all."""

    whole: bool
    devices: int
    gain: float
    chance: float
    held_out_chance: float
    harm: tuple[float, float]

    def metrics(self, share: float) -> dict[str, float]:
        return {
            "step": 1.0 if self.whole else share,
            "step_devices": float(self.devices),
            "step_gain": self.gain,
            "step_p": self.chance,
            "step_held_out_p": self.held_out_chance,
            "step_harm_part": self.harm[0],
            "step_harm_whole": self.harm[1],
        }


def choose(
    task: Task,
    part: Mapping[str, DeviceResult],
    whole: Mapping[str, DeviceResult],
    held_out: Rows,
) -> Step:
    """Return how far the candidate goes. part, whole: the devices' comparisons of the served
    version with either; held_out: the part of the way compared with all of it there."""
    names = sorted(part.keys() & whole.keys())
    most = device_metrics.most_rows(whole)
    rows = np.array([min(whole[name].rows.n, most) for name in names], np.float64)
    share = rows / max(rows.sum(), 1.0)
    gains = [np.array([_gain(task, of[name]) for name in names]) for of in (part, whole)]
    differences = share * (gains[1] - gains[0])
    found = float(differences.sum())
    chance = valued.chance_by_units(differences)
    harm = tuple(float((share * np.maximum(-each, 0.0)).sum()) for each in gains)
    better = chance <= LEVEL or (held_out.n > 0 and held_out.chance_of_gain <= LEVEL)
    careful = harm[1] <= harm[0] + valued.NEAR
    return Step(
        better and careful and found >= 0, len(names), found, chance,
        held_out.chance_of_gain if held_out.n else 1.0, (harm[0], harm[1]),
    )  # fmt: skip


def _gain(task: Task, found: DeviceResult) -> float:
    if found.value is None:
        return found.rows.gain
    return float(gain(metric_of(task), *found.value))
