"""The part of a model that a round carries, against the version that the round begins from.

A tensor that devices train and share travels as it is. In place of a weight in the modules of
`Training.lora` a low-rank factor travels, under the weight's name and SUFFIX: of a weight of n
rows, the other dimensions taken as m columns, B (n, rank), which begins at zero. The weight is then
that of the base plus B A (LoRA: Hu et al. 2021, arXiv 2106.09685). A (rank, m) does not travel: its
entries are 1 and -1 over the root of the rank, by a hash of the base's and the weight's name, so
that each version has other directions and all sides have the same. A-transposed A is the identity
on average, so a step of a weight is on average the one without factors, at the same learning rate.

A stays as it is, because then a weight is linear in what is averaged (FFA-LoRA: Sun et al. 2024,
arXiv 2403.12313): the mean of the factors and half of the way to them are those of the products,
and half of the bytes are sent. Where A learns, the product of two means is not the mean of the
products. Norms, medians, clip and noise are of the factors.

Products are sums of outer products, one number at a time in float32, so that they are the same bits
on every machine: a delta of a release has factors in place of the weights.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from streams.contract.task.parts import Training, is_under, travels
from streams.contract.weights import payload

SUFFIX = "_lora"
BLOCK = 1 << 20  # numbers of a product that are in memory

Tensors = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Part:
    """base: the version's name; weights: all of its tensors, float32."""

    training: Training
    base: str
    weights: Tensors

    @cached_property
    def first(self) -> dict[str, np.ndarray]:
        """What travels, as the base has it."""
        # Sorted, because safetensors changes the order, and sums would differ in the last bits.
        found = {n: self.weights[n] for n in sorted(self.weights) if travels(n, self.training)}
        return found | {
            name + SUFFIX: np.zeros((len(self.weights[name]), rank), np.float32)
            for name, rank in sorted(ranks(self.training, self.weights).items())
        }

    @property
    def is_all(self) -> bool:
        """Whether it is all of the model."""
        return self.first.keys() >= self.weights.keys()

    def whole(self, learned: Tensors) -> dict[str, np.ndarray]:
        """Return the weights of a version with what was learned, as it is released."""
        found = {**self.weights, **merged(self.weights, learned, self.base)}
        rest = {name: tensor for name, tensor in found.items() if name not in learned}
        return found | payload.round_weights(rest, self.training.payload)


def ranks(training: Training, weights: Tensors) -> dict[str, int]:
    """Return the weights that get a factor, of two or more dimensions, with its rank."""
    found = {}
    for name, weight in weights.items():
        modules = [module for module in training.lora if is_under(name, [module])]
        if modules and name.endswith("weight") and weight.ndim > 1:
            found[name] = training.lora[max(modules, key=len)]
    return found


def merged(weights: Tensors, learned: Tensors, base: str) -> dict[str, np.ndarray]:
    """Return the tensors that were learned, of factors the weights that they give; raise ValueError
    for factors that do not fit."""
    found = {}
    for name, tensor in learned.items():
        if name.endswith(SUFFIX):
            name = name.removesuffix(SUFFIX)
            tensor = _moved(weights[name], tensor, base, name)
        found[name] = tensor
    return found


def directions(base: str, name: str, rank: int, columns: int) -> np.ndarray:
    """Return A (rank, columns) of a weight."""
    return np.stack([_direction(base, name, rank, k, columns) for k in range(rank)])


def _direction(base: str, name: str, rank: int, k: int, columns: int) -> np.ndarray:
    drawn = hashlib.shake_256(f"{base} {name} {k}".encode()).digest(-(-columns // 8))
    bits = np.unpackbits(np.frombuffer(drawn, np.uint8), count=columns)
    signs = 2 * bits.astype(np.float32) - 1
    return np.asarray(signs / np.sqrt(np.float32(rank)))


def _moved(weight: np.ndarray, factor: np.ndarray, base: str, name: str) -> np.ndarray:
    rows = len(weight)
    columns = weight.size // max(rows, 1)
    if factor.ndim != 2 or len(factor) != rows or factor.shape[1] > columns:
        raise ValueError(f"a factor {factor.shape} does not fit {name} {weight.shape}")
    found, rank = weight.reshape(rows, columns).copy(), factor.shape[1]
    for at in range(0, rows if factor.any() else 0, size := max(1, BLOCK // max(columns, 1))):
        steps = factor[at : at + size].astype(np.float32)
        product = np.zeros((len(steps), columns), np.float32)
        for k in range(rank):
            product += np.multiply.outer(steps[:, k], _direction(base, name, rank, k, columns))
        part = found[at : at + size]
        np.add(part, product, out=part, where=product != 0)  # -0.0 + 0.0 is 0.0
    return found.reshape(weight.shape)
