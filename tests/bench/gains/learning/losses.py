"""Losses for `streams.learning.learning.fit` and the control variates of SCAFFOLD."""

from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from streams.contract.task import Task
from streams.learning.learning import loss_per_row
from tests.bench.gains.learning.grounds import Rows

LossOf = Callable[[Tensor, torch.Generator], Tensor]
Tensors = dict[str, np.ndarray]
MOMENTUM = 0.9  # of fit's "sgd"
TEMPERATURE = 2.0


class Variates:
    """SCAFFOLD's control variates: c_i of each device, and c, their mean by the devices' weights.
    A device adds c - c_i to its gradients; by the same weights these corrections sum to zero."""

    def __init__(self, like: Mapping[str, np.ndarray], sizes: Mapping[str, float]) -> None:
        total = sum(sizes.values())
        self._share = {name: size / total for name, size in sizes.items()}
        self._of = {name: {n: np.zeros_like(v) for n, v in like.items()} for name in sizes}
        self._next: dict[str, Tensors] = {}
        self._mean: Tensors = {n: np.zeros_like(v) for n, v in like.items()}

    def correction(self, name: str) -> Tensors:
        return {n: mean - self._of[name][n] for n, mean in self._mean.items()}

    def learned(self, name: str, sent: Tensors, trained: Tensors, steps: int, rate: float) -> None:
        """Option II: c_i becomes c_i - c + (sent - trained) / (how far gradients of one are
        carried); it counts from the next round on."""
        far = reach(steps, rate)
        self._next[name] = {
            n: ((sent[n] - trained[n]) / far - correction).astype(correction.dtype)
            for n, correction in self.correction(name).items()
        }

    def end_round(self) -> None:
        self._of |= self._next
        self._next = {}
        for n, mean in self._mean.items():
            parts = [share * self._of[name][n] for name, share in self._share.items()]
            self._mean[n] = np.sum(parts, axis=0).astype(mean.dtype)


def reach(steps: int, rate: float) -> float:
    """Return how far `steps` steps of gradient 1 go with momentum: `steps * rate` without it."""
    return rate * sum((1 - MOMENTUM ** (k + 1)) / (1 - MOMENTUM) for k in range(steps))


def steered(plain: LossOf, model: nn.Module, correction: Mapping[str, np.ndarray]) -> LossOf:
    """Return a loss whose gradient is that of `plain` plus `correction`, by parameter."""
    by_name = {n: torch.from_numpy(value) for n, value in correction.items()}
    pairs = [(p, by_name[n]) for n, p in model.named_parameters()]

    def loss_of(rows: Tensor, generator: torch.Generator) -> Tensor:
        extra = torch.stack([(p * direction).sum() for p, direction in pairs]).sum()
        return plain(rows, generator) + extra

    return loss_of


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
