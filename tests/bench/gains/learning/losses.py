"""Losses for `streams.learning.learning.fit`."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from streams.contract.task import Task
from streams.learning.learning import loss_per_row
from tests.bench.gains.learning.grounds import Rows

LossOf = Callable[[Tensor, torch.Generator], Tensor]
TEMPERATURE = 2.0


def log_shares(labels: np.ndarray, classes: int) -> Tensor:
    """Return the log of each class' share (classes,) of labels (n, 1); -inf without labels."""
    counts = np.bincount(labels[:, 0].astype(np.int64), minlength=classes)
    return torch.log(torch.from_numpy(counts / counts.sum())).float()


class Shifted(nn.Module):
    """A model whose outputs are shifted while it trains. A shift of -inf leaves a class out."""

    def __init__(self, model: nn.Module, shift: Tensor) -> None:
        super().__init__()
        self.model, self.shift = model, shift

    def forward(self, batch: Tensor) -> Tensor:
        outputs: Tensor = self.model(batch) + self.shift
        return outputs


def distilled(task: Task, model: nn.Module, given: Rows) -> LossOf:
    """Return the mean loss: cross-entropy where the label is true, elsewhere the divergence from
    the teacher's outputs at TEMPERATURE, times its square."""
    assert given.soft is not None
    x, y, s = (torch.from_numpy(each) for each in (given.x, given.y, given.soft))
    w = torch.ones(len(y)) if given.weight is None else torch.from_numpy(given.weight)
    by_teacher = ~s.isnan().any(dim=1)
    aims = F.softmax(torch.nan_to_num(s) / TEMPERATURE, dim=1)

    def loss_of(rows: Tensor, generator: torch.Generator) -> Tensor:
        batch = x[rows]
        if task.augment is not None:
            batch = task.augment(batch, generator)
        outputs = model(batch)
        answers = F.log_softmax(outputs / TEMPERATURE, dim=1)
        far = TEMPERATURE**2 * F.kl_div(answers, aims[rows], reduction="none").sum(dim=1)
        losses = torch.where(by_teacher[rows], far, loss_per_row(task, outputs, y[rows]))
        return (losses * w[rows]).sum() / w[rows].sum().clamp(min=1e-6)

    return loss_of
