"""A module with low-rank factors answers as the version that they make."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from streams.contract.errors import TaskError
from streams.contract.task import Training
from streams.contract.weights.part import SUFFIX, Part
from streams.learning.factors import add_factors, check_factors
from tests.rig.made_up.tiny_task import task

LAYERS = {
    "linear": (lambda: nn.Linear(6, 4), (3, 6)),
    "convolution": (lambda: nn.Conv1d(2, 4, 3), (3, 2, 9)),
    "groups": (lambda: nn.Conv2d(4, 4, 3, groups=2), (3, 4, 5, 5)),
    "attention": (lambda: nn.TransformerEncoderLayer(8, 2, 16, 0.0, batch_first=True), (3, 5, 8)),
}


@pytest.mark.parametrize("layer", LAYERS)
def test_a_model_with_factors_answers_as_the_version_that_they_make(layer: str) -> None:
    torch.manual_seed(1)
    build, shape = LAYERS[layer]
    model, probe = nn.Sequential(build()), torch.randn(shape)
    state = {name: t.numpy().copy() for name, t in model.state_dict().items()}
    part = Part(Training(lora={"": 2}), "1-a", state)
    noise = np.random.default_rng(0)
    factors = {n: noise.normal(0, 1, t.shape).astype(np.float32) for n, t in part.first.items()}
    assert len(factors) == (4 if layer == "attention" else 1)
    whole = {name: torch.from_numpy(t) for name, t in part.whole(factors).items()}
    expected = torch.func.functional_call(model, whole, probe)
    add_factors(model, factors, "1-a")
    for _ in range(2):
        torch.testing.assert_close(model(probe), expected, rtol=1e-4, atol=1e-4)
    assert {n for n, p in model.named_parameters() if n.endswith(SUFFIX)} == factors.keys()
    model(probe).sum().backward()
    assert all(model.get_parameter(name).grad is not None for name in factors)


def deep() -> nn.Module:
    """Fifty layers: what is larger by a half in each is infinite in the last."""
    layers = [each for _ in range(50) for each in (nn.Linear(40, 40), nn.Tanh(), nn.LayerNorm(40))]
    return nn.Sequential(nn.Flatten(), *layers, nn.Linear(40, 3))


@pytest.mark.parametrize("build", [task.build_model, deep])
@pytest.mark.parametrize("payload", ["float32", "float16"])
def test_factors_of_any_layers_are_sound(build: Any, payload: Any) -> None:
    training = Training(lora={"": 3}, payload=payload)
    check_factors(replace(task, build_model=build, training=training))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lora": {"head": 2}}, r"lora names 'head', which has no weight of two dimensions"),
        ({"lora": {"4": 8}}, r"rank 8 saves nothing of '4.weight', with 8 inputs"),
        ({"lora": {"4": 2}, "train_only": ("4",)}, r"'4.weight' is in training.train_only, too"),
        ({"lora": {"4": 2}, "shared": ("4",)}, r"training.lora and training.shared: give one"),
        ({"lora": {"4": 0}}, r"training.lora must be a whole number from 1, not 0"),
        ({"lora": ("4",)}, r"training.lora must be ranks by names of modules"),
    ],
)
def test_factors_that_cannot_be_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(TaskError, match=message):
        check_factors(replace(task, training=Training(**settings)))  # type: ignore[arg-type]


class Kept(nn.Linear):
    """Reads its weight by another name."""

    def __init__(self) -> None:
        super().__init__(40, 3)
        self.kept = self.weight.detach()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.kept.T


def tied() -> nn.Module:
    model = nn.Sequential(nn.Flatten(), nn.Linear(40, 40), nn.Linear(40, 40), nn.Linear(40, 3))
    model[2].weight = model[1].weight
    return model


@pytest.mark.parametrize("build", [tied, lambda: nn.Sequential(nn.Flatten(), Kept())])
def test_factors_of_layers_that_would_not_learn_are_refused(build: Any) -> None:
    check_factors(replace(task, build_model=build))
    with pytest.raises(TaskError, match="does not read its weight anew each time, or shares it"):
        check_factors(replace(task, build_model=build, training=Training(lora={"1": 2})))
