"""The tasks that are measured besides `streams.tasks.har:task`. Their values are made up.

trivial   HAR's messages with a teacher that costs next to nothing: what is left is the worker
scaling   small rows, 16 a window, for up to 10,000 devices; no window closes by silence
"""

import dataclasses
from typing import TYPE_CHECKING

from streams.tasks import har
from tidewheel import Segment, Task

if TYPE_CHECKING:
    import torch

HAR = "streams.tasks.har:task"
TRIVIAL = "tests/bench/streams/feed/tasks.py:trivial"  # a path, as a user names a task of his own
SCALING = "tests/bench/streams/feed/tasks.py:scaling"


def linear_teacher(task: Task) -> "torch.nn.Module":
    """One linear layer for each segment."""
    from torch import nn

    from streams.learning.learning import PerSegment

    channels, samples = task.segment_shape
    return PerSegment(nn.Sequential(nn.Flatten(), nn.Linear(channels * samples, task.outputs)))


def trivial_teacher() -> "torch.nn.Module":
    return linear_teacher(trivial)


def scaling_teacher() -> "torch.nn.Module":
    return linear_teacher(scaling)


trivial = dataclasses.replace(har.task, name="trivial", build_teacher=trivial_teacher)
scaling = dataclasses.replace(
    har.task,
    name="scaling",
    channels=("x", "y"),
    segment=Segment(samples=20, hop=20),
    build_teacher=scaling_teacher,
    window_s=30,
    lateness_s=0,
    idle_close_s=3600,
)
