"""The training loop is repeatable, learns, and stops when told."""

import numpy as np
import torch

from streams.contract import learning
from tests.fakes.tiny_task import task


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


def test_weights_survive_the_journey_as_safetensors() -> None:
    model, _ = fitted(1)
    again = learning.load_weights(task.build_model(), learning.to_safetensors(model.state_dict()))
    segments, _ = data()
    assert np.array_equal(learning.predict(model, segments), learning.predict(again, segments))
