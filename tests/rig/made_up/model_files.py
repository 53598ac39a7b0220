"""Files of models as people bring them."""

import os
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from federation.bootstrap.dataset import segments_of_device, stack
from federation.evaluation.quantization import complete
from streams.contract.task import Task
from streams.learning.learning import fit, segment_loss
from tests.rig.made_up import models

TINY = "tests/rig/made_up/tiny_task.py:task"


class Runs:
    """A pickle of it would run code."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch /tmp/tidewheel-was-run",)


def numpy_state(model: nn.Module) -> dict[str, np.ndarray]:
    return {name: value.numpy() for name, value in model.state_dict().items()}


def few(task: Task) -> Task:
    """With one device of each role, whose recordings are read soon."""
    found = {device.role: device for device in reversed(task.devices())}
    return replace(task, devices=lambda: list(found.values()))


def trained(task: Task) -> nn.Module:
    """A model that is better than the first one: it has seen the fleet's machines."""
    known = stack(task, [segments_of_device(task, name) for name in ("d0", "d1", "lab-1")])
    model = task.build_model()
    loss = segment_loss(task, model, known.segments, known.labels)
    fit(model, len(known.labels), loss, epochs=15, batch_size=32, learning_rate=3e-3, seed=1,
        optimizer="adamw")  # fmt: skip
    return model.eval()


def exported(_: Task, model: nn.Module, path: Path, batch: int | None = None) -> Path:
    """A graph as people export one: of a fixed batch, or of any."""
    graph = complete(models.exported(model), numpy_state(model))
    if batch is not None:
        for each in (*graph.graph.input, *graph.graph.output):
            each.type.tensor_type.shape.dim[0].dim_value = batch
    path.write_bytes(graph.SerializeToString())
    return path


class OneRow(nn.Module):
    """Answers one row at a time."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.model(x.view(1, 2, 20))
        return found


FORMS = {
    "onnx": exported,
    "onnx of 1 row": lambda task, model, path: exported(task, model, path, 1),
    "onnx of 4 rows": lambda task, model, path: exported(task, model, path, 4),
    "script": lambda _, model, path: jit(model, path),
    "trace": lambda _, model, path: jit(model, path, torch.zeros(3, 2, 20)),
    "trace of 1 row": lambda _, model, path: jit(OneRow(model), path, torch.zeros(1, 2, 20)),
    "frozen": lambda _, model, path: jit(model, path, change=torch.jit.freeze),
}


def jit(
    model: nn.Module, path: Path, example: torch.Tensor | None = None,
    change: Callable[[Any], Any] = lambda script: script,
) -> Path:  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch will do without it one day
        made = torch.jit.script(model) if example is None else torch.jit.trace(model, example)
        torch.jit.save(change(made), path)
    return path
