"""The tiny task learned by six devices in a few rounds, by each strategy, with torch and without
Flower's processes; then again with one of the six hostile."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch

from federation.admission.admission import NORM_FACTOR, Round, admit
from federation.admission.update import Update
from federation.aggregation import strategies
from federation.bootstrap.dataset import segments_of_device, stack
from federation.evaluation.accuracy import HeldOut
from streams.contract.task import STRATEGIES
from streams.learning import learning
from streams.learning.clipping import update_norm
from tests.fakes.tiny_task import task

ROWS, ROUNDS = 200, 3
Tensors = dict[str, np.ndarray]


def rows(device: str) -> HeldOut:
    whole = stack(task, [segments_of_device(task, device)])
    return HeldOut(whole.segments[:ROWS], whole.labels[:ROWS])


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """The arrays are tiny, and other tests run beside this one."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def data() -> dict[str, HeldOut]:
    return {device: rows(device) for device in task.device_names("fleet", "held-out")}


def model_of(weights: Tensors) -> torch.nn.Module:
    model = task.build_model()
    model.load_state_dict({name: torch.from_numpy(value) for name, value in weights.items()})
    return model


def weights_of(model: torch.nn.Module) -> Tensors:
    return {name: value.detach().numpy().copy() for name, value in model.state_dict().items()}


def trained(name: str, weights: Tensors, data: HeldOut, seed: int, proximal: float) -> Update:
    model = model_of(weights)
    loss = learning.segment_loss(task, model, data.segments, data.labels)
    learning.fit(
        model, len(data.labels), loss, epochs=4, batch_size=32, learning_rate=0.05, seed=seed,
        proximal=proximal,
    )  # fmt: skip
    return Update(name, task.name, 1, "1", len(data.labels), weights_of(model))


def hostile(updates: list[Update], weights: Tensors) -> Update:
    """The first one's, the other way, as far as admission allows."""
    norms = [update_norm(update.weights, weights) for update in updates]
    far = 0.99 * NORM_FACTOR * float(np.median(norms)) / norms[0]
    away = {n: before - far * (updates[0].weights[n] - before) for n, before in weights.items()}
    found = replace(updates[0], samples=2048, weights=away)
    expected = Round(task.name, 1, "1", weights, norms=[*norms[1:], update_norm(away, weights)])
    assert admit(found, expected) is None
    assert admit(replace(found, weights=doubled(away, weights)), expected) is not None
    return found


def doubled(weights: Tensors, before: Tensors) -> Tensors:
    return {n: before[n] + 2 * (weights[n] - before[n]) for n in weights}


def held_out_share(weights: Tensors, data: dict[str, HeldOut]) -> float:
    parts = [data[device] for device in task.device_names("held-out")]
    model = model_of(weights).eval()
    right = [task.correct(learning.predict(model, p.segments), p.labels).mean() for p in parts]
    return float(np.mean(right))


def learn(strategy: str, data: dict[str, HeldOut], attacked: bool) -> tuple[float, float]:
    """The share of correct answers on the people held out, before and after the rounds."""
    torch.manual_seed(0)
    weights = weights_of(task.build_model())
    before = held_out_share(weights, data)
    aggregator = strategies.make(strategy, 0.05)
    proximal = 0.1 if strategy == "fedprox" else 0.0
    names = task.device_names("fleet")
    for number in range(ROUNDS):
        updates = [trained(n, weights, data[n], number, proximal) for n in names]
        if attacked:
            updates[0] = hostile(updates, weights)
        weights = aggregator.aggregate(updates, weights)
    return before, held_out_share(weights, data)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_strategy_learns(strategy: str, data: dict[str, HeldOut]) -> None:
    before, after = learn(strategy, data, attacked=False)
    assert after > before + 0.3


@pytest.mark.parametrize("strategy", ["median", "trimmed-mean", "krum", "multi-krum"])
def test_a_robust_one_learns_in_spite_of_a_hostile_device(
    strategy: str, data: dict[str, HeldOut]
) -> None:
    before, after = learn(strategy, data, attacked=True)
    assert after > before + 0.3


def test_which_the_mean_does_not(data: dict[str, HeldOut]) -> None:
    before, after = learn("fedavg", data, attacked=True)
    assert after < before + 0.3
