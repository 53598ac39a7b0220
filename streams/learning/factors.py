"""Low-rank factors (streams.contract.weights.part) in a torch module."""

import copy
from collections.abc import Mapping
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from streams.contract.errors import TaskError
from streams.contract.task import OnnxFile, Task, is_under, learns
from streams.contract.weights.part import SUFFIX, Part, directions, ranks

Tensors = Mapping[str, np.ndarray]


def add_factors(model: nn.Module, factors: Tensors, base: str) -> None:
    """Put factors, by their names, beside the weights of a model, which are no parameters from then
    on. A linear layer adds what its factor answers; for others each forward pass of the model adds
    the product to the weight."""
    sums = []
    for name, factor in factors.items():
        path, _, leaf = name.removesuffix(SUFFIX).rpartition(".")
        layer, learned = model.get_submodule(path), nn.Parameter(torch.tensor(factor))
        weight = layer.get_parameter(leaf).detach()
        fixed = torch.from_numpy(
            directions(base, name.removesuffix(SUFFIX), factor.shape[1], weight[0].numel())
        )
        delattr(layer, leaf)
        setattr(layer, leaf, weight)
        layer.register_parameter(leaf + SUFFIX, learned)
        if is_linear(layer):
            layer.register_forward_hook(partial(_answer, learned, fixed))
        else:
            sums.append((layer, leaf, weight, learned, fixed))

    def add(*_: object) -> None:
        for layer, leaf, weight, learned, fixed in sums:
            setattr(layer, leaf, weight + (learned @ fixed).view_as(weight))

    if sums:
        model.register_forward_pre_hook(add)


def is_linear(layer: nn.Module) -> bool:
    """Whether a layer needs no sum of its weight and the product in memory."""
    return type(layer) is nn.Linear  # others read the weights of classes of it


def _answer(
    learned: Tensor, fixed: Tensor, _layer: object, given: tuple[Tensor], answer: Tensor
) -> Tensor:
    return answer + given[0] @ fixed.T @ learned.T


def check_factors(task: Task) -> None:
    """Raise TaskError unless each module of `Training.lora` holds a weight of which a factor is
    smaller, and that is not trained as a whole; and unless the model answers with factors as with
    the weights that they give."""
    training = task.training
    if isinstance(task.build_model, OnnxFile) or not training.lora:
        return
    where, model = f"task {task.name!r}: training.lora", task.build_model().eval()
    exact = replace(training, payload="float32")
    part = Part(exact, "", {name: t.numpy() for name, t in model.state_dict().items()})
    found = ranks(training, part.weights)
    for module in training.lora:
        if not any(is_under(name, [module]) for name in found):
            raise TaskError(f"{where} names {module!r}, which has no weight of two dimensions")
    for name, rank in found.items():
        if (columns := part.weights[name][0].size) <= rank:
            raise TaskError(
                f"{where}: rank {rank} saves nothing of {name!r}, with {columns} inputs"
            )
        if learns(name, training):
            raise TaskError(f"{where}: {name!r} is in training.train_only, too")
    seeded = torch.Generator().manual_seed(0)
    factors = {}
    for name in found:
        factor = torch.randn(part.first[name + SUFFIX].shape, generator=seeded).numpy()
        factors[name + SUFFIX] = 0.1 * factor * part.weights[name].std()
    probe = torch.randn((2, *task.segment_shape), generator=seeded)
    factored = copy.deepcopy(model)
    add_factors(factored, factors, "")
    model.load_state_dict({n: torch.from_numpy(t) for n, t in part.whole(factors).items()})
    with torch.no_grad():
        answers, expected = factored(probe), model(probe)
    if not (answers - expected).abs().max() <= 1e-3 * expected.abs().max():
        raise TaskError(f"{where}: a layer does not read its weight anew each time, or shares it")
