"""The training loop is repeatable, learns, and stops when told."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from streams.learning import learning
from tests.rig.made_up.tiny_task import task


def data(n: int = 90) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    labels = np.arange(n) % 3
    t = np.arange(20) / 20
    waves = np.sin(2 * np.pi * np.array([1, 3, 6])[labels][:, None] * t)
    segments = np.stack([waves, waves], axis=1) + rng.normal(0, 0.1, (n, 2, 20))
    return segments.astype(np.float32), labels[:, None].astype(np.float32)


def fitted(seed: int, **kwargs: object) -> tuple[torch.nn.Module, learning.Fit]:
    torch.manual_seed(3)
    model = task.build_model()
    segments, labels = data()
    loss = learning.segment_loss(task, model, segments, labels)
    options = {"epochs": 20, "batch_size": 16, "learning_rate": 0.05, **kwargs}
    return model, learning.fit(model, len(segments), loss, seed=seed, **options)  # type: ignore[arg-type]


def test_the_same_seed_gives_the_same_weights() -> None:
    first, second, other = fitted(1)[0], fitted(1)[0], fitted(2)[0]
    weights = [learning.to_safetensors(m.state_dict()) for m in (first, second, other)]
    assert weights[0] == weights[1] != weights[2]


def test_it_learns() -> None:
    segments, labels = data()
    torch.manual_seed(3)
    before = task.correct(learning.predict(task.build_model(), segments), labels).mean()
    after = task.correct(learning.predict(fitted(1)[0], segments), labels).mean()
    assert after > max(before, 0.8)


def test_it_stops_between_two_steps() -> None:
    asked: list[int] = []

    def stop() -> bool:
        asked.append(1)
        return len(asked) > 5

    _, how = fitted(1, should_stop=stop)
    assert (how.steps, how.stopped) == (5, True)


def test_rows_of_weight_zero_change_nothing() -> None:
    segments, labels = data()
    wrong = np.concatenate([labels, (labels + 1) % 3])
    twice = np.concatenate([segments, segments])
    weights = np.concatenate([np.ones(len(labels)), np.zeros(len(labels))])
    model = task.build_model()
    loss = learning.segment_loss(task, model, twice, wrong, weights)
    learning.fit(model, len(twice), loss, epochs=20, batch_size=32, learning_rate=0.05, seed=1)
    assert task.correct(learning.predict(model, segments), labels).mean() > 0.8


@pytest.mark.parametrize("at_once", [1, 3, 16, 100])
def test_a_batch_in_parts_gives_the_same_step(at_once: int) -> None:
    segments, labels = data()
    weights = np.random.default_rng(1).uniform(0, 1, len(labels)).astype(np.float32)
    made = replace(task, training=replace(task.training, class_weights=(1.0, 2.0, 0.5)))
    found = []
    for parts in (None, at_once):
        torch.manual_seed(3)
        model = task.build_model()
        loss = learning.segment_loss(made, model, segments, labels, weights)
        fit = learning.fit(
            model, len(segments), loss, epochs=2, batch_size=16, learning_rate=0.05, seed=0,
            proximal=0.1, at_once=parts,
        )  # fmt: skip
        found.append((fit.loss, [p.detach().numpy() for p in model.parameters()]))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-4)
    for whole, split in zip(found[0][1], found[1][1], strict=True):
        np.testing.assert_allclose(whole, split, atol=1e-5)


def test_weights_survive_the_journey_as_safetensors() -> None:
    model, _ = fitted(1)
    again = learning.load_weights(task.build_model(), learning.to_safetensors(model.state_dict()))
    segments, _ = data()
    assert np.array_equal(learning.predict(model, segments), learning.predict(again, segments))


def distance(one: torch.nn.Module, other: torch.nn.Module) -> float:
    pairs = zip(one.parameters(), other.parameters(), strict=True)
    return sum(float((a - b).detach().square().sum()) for a, b in pairs) ** 0.5


def fresh() -> torch.nn.Module:
    torch.manual_seed(3)
    return task.build_model()


def test_the_proximal_term_holds_the_weights_near_those_received() -> None:
    free, held, bound = (fitted(1, proximal=mu)[0] for mu in (0.0, 1.0, 20.0))
    assert distance(free, fresh()) > distance(held, fresh()) > distance(bound, fresh()) > 0
    plain, again = fitted(1)[0], fitted(1, proximal=0.0)[0]
    assert distance(plain, again) == 0


def test_the_proximal_gradient_is_mu_times_the_distance() -> None:
    """Two steps on a constant loss: the first has no distance to go back over."""
    model = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.ones_(model.weight)

    def loss(rows: torch.Tensor, _: torch.Generator) -> torch.Tensor:
        return model.weight.sum() * 1.0

    options = {"epochs": 2, "batch_size": 1, "learning_rate": 0.1, "seed": 0}
    learning.fit(model, 1, loss, proximal=0.5, **options)  # type: ignore[arg-type]
    first = 1 - 0.1 * (1 + 1e-4)  # SGD's weight decay is 1e-4
    gradient = 1 + 0.5 * (first - 1) + 1e-4 * first
    momentum = 0.9 * (1 + 1e-4) + gradient
    assert abs(float(model.weight.detach()) - (first - 0.1 * momentum)) < 1e-6


def with_batch_norm() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Conv1d(2, 4, 3), torch.nn.BatchNorm1d(4), torch.nn.ReLU(),
        torch.nn.AdaptiveAvgPool1d(1), torch.nn.Flatten(), torch.nn.Linear(4, 3),
    )  # fmt: skip


def test_only_the_modules_that_are_named_learn_and_keep_statistics() -> None:
    model = with_batch_norm()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    segments, labels = data()
    loss = learning.segment_loss(task, model, segments, labels)
    options = {"epochs": 2, "batch_size": 16, "learning_rate": 0.05, "seed": 1}
    how = learning.fit(model, len(segments), loss, train_only=("5",), **options)  # type: ignore[arg-type]
    changed = {n for n, value in model.state_dict().items() if not torch.equal(value, before[n])}
    assert changed == {"5.weight", "5.bias"}
    assert how.steps == 12
    learning.fit(model, len(segments), loss, train_only=("1", "5"), **options)  # type: ignore[arg-type]
    changed = {n for n, value in model.state_dict().items() if not torch.equal(value, before[n])}
    assert "0.weight" not in changed
    assert {"1.running_mean", "1.weight"} <= changed


def test_a_layer_whose_statistics_are_kept_trains_as_it_answers() -> None:
    model, outputs = with_batch_norm(), []
    before = {name: value.clone() for name, value in model.state_dict().items()}
    segments, labels = data()
    x, y = torch.from_numpy(segments), torch.from_numpy(labels[:, 0]).long()

    def loss(rows: torch.Tensor, _: torch.Generator) -> torch.Tensor:
        trained = model(x[rows])
        answering = with_batch_norm().eval()
        answering.load_state_dict(model.state_dict())
        outputs.append((trained.detach(), answering(x[rows]).detach()))
        return torch.nn.functional.cross_entropy(trained, y[rows])

    options = {"epochs": 2, "batch_size": 16, "learning_rate": 0.05, "seed": 1}
    learning.fit(model, len(segments), loss, keep_statistics=True, **options)  # type: ignore[arg-type]
    assert len(outputs) == 12
    assert all(torch.equal(trained, answered) for trained, answered in outputs)
    changed = {n for n, value in model.state_dict().items() if not torch.equal(value, before[n])}
    assert changed == set(dict(model.named_parameters()))


def test_the_rows_of_a_class_count_by_its_weight() -> None:
    labels = torch.tensor([[0.0], [1.0], [1.0], [2.0]])
    segments = np.zeros((4, 2, 20), np.float32)
    outputs = torch.tensor([[0.0, 1.0, 2.0]]).repeat(4, 1)

    class Fixed(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return outputs[: len(x)]

    weighted = replace(task, training=replace(task.training, class_weights=(1.0, 5.0, 0.5)))
    each = torch.nn.functional.cross_entropy(outputs, labels[:, 0].long(), reduction="none")
    for made, weights in ((task, [1.0] * 4), (weighted, [1.0, 5.0, 5.0, 0.5])):
        loss = learning.segment_loss(made, Fixed(), segments, labels.numpy())
        counts = torch.tensor(weights)
        wanted = float((each * counts).sum() / counts.sum())
        found = float(loss(torch.arange(4), torch.Generator()))
        assert found == pytest.approx(wanted, rel=1e-6)


def test_a_teacher_of_segments_does_not_count_padding() -> None:
    """Its batch norm sees the segments that exist, in training too."""
    norm = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(4, momentum=1.0), nn.Linear(4, 2))
    teacher = learning.PerSegment(norm)
    windows, mask = torch.zeros(3, 5, 2, 2), torch.zeros(3, 5, dtype=torch.bool)
    windows[0, :4], mask[0, :4] = 7.0 + torch.rand(4, 2, 2), True
    teacher.train()
    answer = teacher(windows, mask)
    assert answer.shape == (3, 5, 2)
    assert norm[1].running_mean.min() > 6.9
    assert not answer[~mask].any()
    alone = norm(windows[0, :4])
    assert torch.equal(answer[0, :4], alone)
