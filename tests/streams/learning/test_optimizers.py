"""Our steps are those of torch's optimizers, and cost none of their imports."""

import subprocess
import sys
from collections.abc import Iterator

import pytest
import torch
from torch import nn

from streams.learning.optimizers import step_of

RATES = (0.1, 0.05, 0.2, 0.0, 0.1)


def model() -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(nn.Conv1d(2, 3, 3), nn.BatchNorm1d(3), nn.Flatten(), nn.Linear(18, 2))


def theirs(name: str, parameters: list[nn.Parameter], fused: bool) -> torch.optim.Optimizer:
    if name == "adamw":
        return torch.optim.AdamW(parameters, lr=1.0, weight_decay=0.01)
    return torch.optim.SGD(parameters, lr=1.0, momentum=0.9, weight_decay=1e-4, fused=fused)


def both(name: str, without: set[int], *, fused: bool) -> Iterator[tuple[nn.Module, nn.Module]]:
    """Our model and torch's after each step, with rates that change; one parameter has no gradient
    in the steps `without`."""
    one, other = model(), model()
    step = step_of(name, list(one.parameters()))
    optimizer = theirs(name, list(other.parameters()), fused)
    for number, rate in enumerate(RATES):
        x = torch.randn(8, 2, 8, generator=torch.Generator().manual_seed(number))
        for each in (one, other):
            for parameter in each.parameters():
                parameter.grad = None
            each(x).square().mean().backward()
            if number in without:
                each[0].weight.grad = None
        step(rate)
        optimizer.param_groups[0]["lr"] = rate
        optimizer.step()
        yield one, other


@pytest.mark.parametrize(("name", "without"), [("sgd", {3}), ("adamw", {0, 3})])
def test_steps_are_those_of_torch_bit_for_bit(name: str, without: set[int]) -> None:
    for one, other in both(name, without, fused=True):
        for ours, their in zip(one.parameters(), other.parameters(), strict=True):
            assert torch.equal(ours, their)


def test_a_first_gradient_that_comes_late_begins_a_momentum() -> None:
    """torch's own fused steps fail there, its others round at other places."""
    for one, other in both("sgd", {0, 3}, fused=False):
        for ours, their in zip(one.parameters(), other.parameters(), strict=True):
            assert torch.allclose(ours, their, rtol=1e-6, atol=1e-7)


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown optimizer 'adam': use sgd or adamw"):
        step_of("adam", [])


def test_a_training_imports_no_compiler() -> None:
    code = """
import sys, numpy, torch
from edge_client.training.adapter_fit import Fitter
from streams.contract.work import TrainerJob
from streams.learning.learning import fit
from tests.rig.made_up.documents import work_request
from tests.rig.made_up.tiny_task import task
model = torch.nn.Linear(2, 1)
for name in ("sgd", "adamw"):
    fit(model, 4, lambda batch, _: model(torch.ones(len(batch), 2)).mean(), epochs=1, batch_size=2,
        learning_rate=0.1, seed=1, optimizer=name)
job = TrainerJob(device="d0", request=work_request("adapt"), samples="", stop="/none")
segments, labels = numpy.ones((4, *task.segment_shape), "f4"), numpy.ones((4, 1), "f4")
Fitter(task, task.build_model(), job).fit(segments, labels)
assert "torch._dynamo" not in sys.modules, "it is imported"
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
