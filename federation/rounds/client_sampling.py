"""Sampling of the devices that are invited to a round, and of the nodes that get its work. Pure,
from device states on `fleet`.

A node without a recent state may be chosen: it replies with an error if it cannot train.
"""

import math
import random
from collections.abc import Collection, Mapping, Sequence

from streams.contract.documents import DeviceState
from streams.contract.task import MINIMUM_SAMPLES, Training

GOING = ("draining", "stopped")
OVER_SELECTION = 1.25
LATELY_US = 600_000_000


def unfit(state: DeviceState, base: str) -> str | None:
    """Return why a device need not get work; None if it may."""
    if state.unable is not None:
        return state.unable
    if state.samples < MINIMUM_SAMPLES:
        return f"{state.samples} samples, {MINIMUM_SAMPLES} are needed"
    if state.held_back is not None:
        return f"held back: {state.held_back}"
    if base in state.refused:
        return f"refused {base}: {state.refused[base]}"
    if state.phase in GOING:
        return state.phase
    return None


def to_invite(
    states: Sequence[DeviceState], base: str, count: int, least: int, seed: int
) -> list[str]:
    """Return the devices that a round wants: `count` (0 for all) of those that may get work. Those
    on a metered line come last, then those that were invited to a run of late (in steps of
    LATELY_US); at random otherwise. If fewer than `least` may get work, the others that are not
    about to end are wanted as well."""
    here = [s for s in states if s.phase not in GOING and s.unable is None]
    fit = [s for s in here if unfit(s, base) is None]
    found = sorted(fit if len(fit) >= least else here, key=lambda s: s.device)
    if count and count < len(found):
        random.Random(seed).shuffle(found)
        found = sorted(found, key=_burden)[:count]  # sorted is stable
    return sorted(s.device for s in found)


def _burden(state: DeviceState) -> tuple[bool, int]:
    """Return by what a device is preferred, least first. One that is in the run now stays in it."""
    last_us = 0 if state.run is not None else state.last_run_us or 0
    return state.metered, last_us // LATELY_US


def choose(
    nodes: Sequence[int],
    said: Mapping[int, DeviceState],
    base: str,
    count: int,
    seed: int,
    wanted: Collection[str] = (),
) -> list[int]:
    """Return `count` of `nodes` (0 for all) at random, preferring the `wanted` devices, and then
    those that serve `base` or have no state."""
    if not count or count >= len(nodes):
        return list(nodes)
    drawn = random.Random(seed).sample(sorted(nodes), len(nodes))

    def rank(node: int) -> tuple[bool, bool]:
        if (state := said.get(node)) is None:
            return False, False
        return bool(wanted) and state.device not in wanted, state.active != base

    return sorted(sorted(drawn, key=rank)[:count])  # sorted is stable


def to_ask(training: Training) -> int:
    """Return how many nodes to ask for `devices_per_round` updates; 0 for all."""
    return math.ceil(training.devices_per_round * OVER_SELECTION)
