"""Resuming a run from an earlier one's checkpoint: whether it is possible, and with which settings.
Pure except for reading the file.

Settings that affect the result come from the earlier run; how long to wait, and for how many nodes,
from the new run.
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
    """Return the settings that a checkpoint stores."""
    return {name: value for name, value in asdict(settings).items() if name not in OWN}


def as_before(settings: "RunSettings", kept: Mapping[str, Value]) -> "RunSettings":
    """Return `settings` with the earlier run's values; settings that it lacks stay."""
    return replace(settings, **kept)  # type: ignore[arg-type]


def find(
    runs: Path,
    run: str,
    task: tuple[str, int],
    base: str,
    first: Mapping[str, np.ndarray],
    strategy: str,
) -> Checkpoint | str:
    """Return the newest valid checkpoint of `run`, or why it cannot be resumed.

    task: name and version; base: the served model, `first` its weights.
    """
    found = checkpoint.latest(runs, run)
    if found is None:
        return f"run {run} has no valid checkpoint"
    about = found.about
    if (about.task, about.task_version) != task:
        name, version = task
        return f"run {run} was of {about.task} version {about.task_version}, not {name} {version}"
    if about.base != base:
        return f"run {run} started from {about.base}, but {base} is served now"
    if about.strategy != strategy:
        return f"run {run} used {about.strategy}, this one uses {strategy}"
    shapes = [{n: (v.shape, v.dtype) for n, v in w.items()} for w in (found.weights, first)]
    if shapes[0] != shapes[1]:
        return f"the weights of run {run} do not fit {base}"
    return found


def unfit(settings: "RunSettings", kept: Mapping[str, Value]) -> str | None:
    """Return the first stored setting that this version lacks or that has another type."""
    have = lasting(settings)
    for name, value in kept.items():
        if name not in have or type(value) is not type(have[name]):
            return f"setting {name} = {value!r} is unknown"
    return None
