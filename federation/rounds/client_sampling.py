"""Who takes part in a round: pure, from what devices say of themselves on `fleet`.

A device that said nothing of late, or that has not yet told which Flower node it is, is taken
along: what it cannot do it answers.
"""

import math
import random
from collections.abc import Mapping, Sequence

from streams.contract.documents import DeviceState
from streams.contract.task import Training

GOING = ("draining", "stopped")


def unfit(state: DeviceState, base: str, training: Training) -> str | None:
    """Why a device need not be asked; None when it may."""
    if state.samples < training.minimum_samples:
        return f"{state.samples} samples, {training.minimum_samples} are needed"
    if state.held_back is not None:
        return f"held back: {state.held_back}"
    if base in state.refused:
        return f"refused {base}: {state.refused[base]}"
    if state.phase in GOING:
        return state.phase
    return None


def choose(
    nodes: Sequence[int], said: Mapping[int, DeviceState], base: str, count: int, seed: int
) -> list[int]:
    """`count` of `nodes`, 0 for all: at random, those that serve `base` or said nothing first."""
    if not count or count >= len(nodes):
        return list(nodes)
    drawn = random.Random(seed).sample(sorted(nodes), len(nodes))
    behind = {node for node in nodes if node in said and said[node].active != base}
    return sorted(sorted(drawn, key=behind.__contains__)[:count])  # sorted is stable


def to_ask(training: Training) -> int:
    """How many nodes to ask for `devices_per_round` updates; 0 for all."""
    return math.ceil(training.devices_per_round * training.over_selection)
