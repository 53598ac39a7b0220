from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from compose.preflight import try_models
from federation.bootstrap.onnx_export import export_graph
from federation.evaluation.quantization import run_graph
from streams.contract.errors import TaskError
from streams.contract.task import Task, load_task
from streams.learning.learning import predict


def probe(task: Task, n: int) -> np.ndarray:
    return np.random.default_rng(n).normal(0, 2, (n, *task.segment_shape)).astype(np.float32)


def with_batch_norm() -> nn.Module:
    return nn.Sequential(
        nn.Conv1d(2, 4, 3), nn.BatchNorm1d(4), nn.ReLU(), nn.AdaptiveMaxPool1d(1), nn.Flatten(),
        nn.Dropout(0.5), nn.Linear(4, 3),
    )  # fmt: skip


@pytest.mark.parametrize("kind", ["tiny", "har", "batch-norm"])
def test_the_graph_answers_as_torch_with_its_own_and_with_other_weights(
    tiny: Task, kind: str
) -> None:
    torch.manual_seed(0)
    task = load_task("streams.tasks.har:task") if kind == "har" else tiny
    build = with_batch_norm if kind == "batch-norm" else task.build_model
    model, other = build(), build()
    graph = export_graph(task, model)
    own = {name: value.numpy() for name, value in model.state_dict().items()}
    for n in (1, 7):
        np.testing.assert_allclose(
            run_graph(graph, probe(task, n), own), predict(model, probe(task, n)), atol=1e-4
        )
    for value in other.buffers():  # batch norm's statistics travel with the weights
        if value.is_floating_point():
            value.mul_(1.5).add_(0.1)
    weights = {name: value.numpy() for name, value in other.state_dict().items()}
    np.testing.assert_allclose(
        run_graph(graph, probe(task, 5), weights), predict(other, probe(task, 5)), atol=1e-4
    )


class Branching(nn.Module):
    """Python that looks at the data, which no graph can hold."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(40, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.layer(x.flatten(1))
        return out if float(x.sum()) > 0 else -out


class Amounts(nn.Module):
    """What takes a logarithm answers NaN to some numbers, as of no amount."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(40, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.layer(torch.log(x.flatten(1) + 0.1))
        return found


def test_a_model_that_takes_logarithms_is_exported_and_checked(tiny: Task) -> None:
    task = replace(tiny, name="amounts", build_model=Amounts)
    torch.manual_seed(0)
    model = Amounts()
    weights = {name: value.numpy() for name, value in model.state_dict().items()}
    graph, amounts = export_graph(task, model), np.abs(probe(task, 3))
    found = run_graph(graph, amounts, weights)
    np.testing.assert_allclose(found, predict(model, amounts), atol=1e-4)
    assert np.isfinite(found).all()
    report = try_models(task)  # two steps on made-up segments
    assert report.parameters == 123


def test_a_model_that_has_no_graph_is_named(tiny: Task) -> None:
    with pytest.raises(TaskError, match="task 'tiny': build_model cannot be exported to ONNX"):
        export_graph(tiny, Branching())
