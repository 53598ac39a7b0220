"""SGD and AdamW by torch's own functions for one step.

A `torch.optim.Optimizer` imports `torch._dynamo` when it is made: a second of a core and 70 MB in
every trainer of a device, for compiled steps that nothing here uses. The functions behind it need
neither, and compute the same, bit for bit: as the fused SGD does, which reads and writes a large
model once a step, not four times.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw
from torch.optim.sgd import sgd

Step = Callable[[float], None]  # one step with this learning rate

MOMENTUM, SGD_DECAY = 0.9, 1e-4
ADAMW_DECAY, BETAS, EPS = 0.01, (0.9, 0.999), 1e-8  # torch's own


def step_of(name: str, parameters: Sequence[nn.Parameter]) -> Step:
    """Return the steps of "sgd" (with momentum) or "adamw" on these parameters' gradients;
    parameters without one stay as they are. ValueError for another name."""
    if name == "sgd":
        return _sgd(parameters)
    if name == "adamw":
        return adam(parameters, ADAMW_DECAY)
    raise ValueError(f"unknown optimizer {name!r}: use sgd or adamw")


def _sgd(parameters: Sequence[nn.Parameter]) -> Step:
    momenta: dict[int, Tensor] = {}

    @torch.no_grad()
    def step(rate: float) -> None:
        moved, weights, gradients = _with_gradients(parameters)
        for at, weight in zip(moved, weights, strict=True):
            if at not in momenta:
                momenta[at] = torch.zeros_like(weight, memory_format=torch.preserve_format)
        before: list[Tensor | None] = [momenta[at] for at in moved]
        sgd(
            weights, gradients, before, has_sparse_grad=False, foreach=False, fused=True,
            weight_decay=SGD_DECAY, momentum=MOMENTUM, lr=rate, dampening=0.0, nesterov=False,
            maximize=False,
        )  # fmt: skip

    return step


def adam(parameters: Sequence[Tensor], decay: float = 0.0) -> Step:
    """Return the steps of Adam; with a `decay` those of AdamW."""
    state: dict[int, tuple[Tensor, Tensor, Tensor]] = {}  # mean, mean of squares, steps

    @torch.no_grad()
    def step(rate: float) -> None:
        moved, weights, gradients = _with_gradients(parameters)
        for at, weight in zip(moved, weights, strict=True):
            if at not in state:
                zeros = torch.zeros_like(weight, memory_format=torch.preserve_format)
                state[at] = zeros, zeros.clone(), torch.tensor(0.0)
        means, squares, steps = ([state[at][part] for at in moved] for part in range(3))
        adamw(
            weights, gradients, means, squares, [], steps, foreach=False, fused=False,
            amsgrad=False, beta1=BETAS[0], beta2=BETAS[1], lr=rate, weight_decay=decay,
            eps=EPS, maximize=False,
        )  # fmt: skip

    return step


def _with_gradients(
    parameters: Sequence[Tensor],
) -> tuple[list[int], list[Tensor], list[Tensor]]:
    """Return the numbers of the parameters that have a gradient, these, and their gradients."""
    moved = [at for at, parameter in enumerate(parameters) if parameter.grad is not None]
    gradients = [grad for parameter in parameters if (grad := parameter.grad) is not None]
    return moved, [parameters[at] for at in moved], gradients
