"""Whether a run can go on from an earlier one's checkpoint, and with which settings: pure but for
reading the file.

Settings that the result depends on are the earlier run's; how long to wait, and for how many, is
the new run's own.
"""

from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from federation.rounds import checkpoint
from federation.rounds.checkpoint import Checkpoint

if TYPE_CHECKING:
    from federation.rounds.settings import RunSettings

OWN = {"run", "runs", "resume", "minimum_nodes", "node_wait_s", "round_deadline_s"}

Value = bool | int | float | str


def lasting(settings: "RunSettings") -> dict[str, Value]:
    """What a checkpoint keeps of a run's settings."""
    return {name: value for name, value in asdict(settings).items() if name not in OWN}


def as_before(settings: "RunSettings", kept: Mapping[str, Value]) -> "RunSettings":
    """`settings` with what the earlier run was told; one that it did not know stays."""
    return replace(settings, **kept)  # type: ignore[arg-type]


def find(
    runs: Path,
    run: str,
    task: tuple[str, int],
    base: str,
    first: Mapping[str, np.ndarray],
    strategy: str,
) -> Checkpoint | str:
    """The newest sound checkpoint of `run`, or why it cannot be gone on from.

    task: name and version; base: the model that is served, `first` its weights.
    """
    found = checkpoint.latest(runs, run)
    if found is None:
        return f"there is no sound checkpoint of run {run}"
    about = found.about
    if (about.task, about.task_version) != task:
        name, version = task
        return f"run {run} was of {about.task} version {about.task_version}, not {name} {version}"
    if about.base != base:
        return f"run {run} began from {about.base}, {base} is served by now"
    if about.strategy != strategy:
        return f"run {run} was by {about.strategy}, this one is by {strategy}"
    shapes = [{n: (v.shape, v.dtype) for n, v in w.items()} for w in (found.weights, first)]
    if shapes[0] != shapes[1]:
        return f"the weights of run {run} are not those of {base}"
    return found


def unfit(settings: "RunSettings", kept: Mapping[str, Value]) -> str | None:
    """The first kept setting that a run has not, or has of another type."""
    have = lasting(settings)
    for name, value in kept.items():
        if name not in have or type(value) is not type(have[name]):
            return f"setting {name} = {value!r} is unknown"
    return None
