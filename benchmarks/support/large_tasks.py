"""HAR with networks of the size that people bring: 5.2 and 25 million parameters."""

from dataclasses import replace
from typing import TYPE_CHECKING

from streams.contract.task import load_task

if TYPE_CHECKING:
    from torch import nn

har = load_task("streams.tasks.har:task")
training = replace(har.training, central_epochs=1, learning_rate=0.002)


def dense(first: int, second: int) -> "nn.Module":
    from torch import nn

    inputs, outputs = har.segment_shape[0] * har.segment_shape[1], har.outputs
    return nn.Sequential(
        nn.Flatten(), nn.Linear(inputs, first), nn.ReLU(), nn.Linear(first, second), nn.ReLU(),
        nn.Linear(second, outputs),
    )  # fmt: skip


def five() -> "nn.Module":
    """5,201,446 parameters"""
    return dense(2000, 1828)


def twenty_five() -> "nn.Module":
    """25 million"""
    return dense(5600, 3690)


task = replace(har, name="large", build_model=five, training=training)
larger = replace(har, name="larger", build_model=twenty_five, training=training)
