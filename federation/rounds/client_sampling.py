"""Sampling of the nodes that get work in a round. Pure, from device states on `fleet`.

A device without a recent state, or that does not know its Flower node yet, may be chosen: it
replies with an error if it cannot train.
"""

import math
import random
from collections.abc import Mapping, Sequence

from streams.contract.documents import DeviceState
from streams.contract.task import Training

GOING = ("draining", "stopped")


def unfit(state: DeviceState, base: str, training: Training) -> str | None:
    """Return why a device need not get work; None if it may."""
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
    """Return `count` of `nodes` (0 for all) at random, preferring those that serve `base` or have
    no state."""
    if not count or count >= len(nodes):
        return list(nodes)
    drawn = random.Random(seed).sample(sorted(nodes), len(nodes))
    behind = {node for node in nodes if node in said and said[node].active != base}
    return sorted(sorted(drawn, key=behind.__contains__)[:count])  # sorted is stable


def to_ask(training: Training) -> int:
    """Return how many nodes to ask for `devices_per_round` updates; 0 for all."""
    return math.ceil(training.devices_per_round * training.over_selection)
