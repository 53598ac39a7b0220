"""A device's own normalization: without labels, and served only where labels show that it helps."""

from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from edge_client.samples.samples import RECENT
from edge_client.samples.splits import HELD_OUT, TRAIN
from edge_client.training.normalization import normalized
from edge_client.training.personalization import LEAST, PAUSE_S, RENEW_SEEN
from streams.contract.task import Task
from streams.learning import learning
from streams.learning.clipping import is_statistic
from tests.edge_client.training.personal_device import PersonalDevice
from tests.rig.made_up.models import tiny, with_batch_norm

TASK = replace(
    tiny, build_model=lambda: with_batch_norm(0), training=replace(tiny.training, adapt_norm=True)
)
PLAIN = replace(tiny, training=TASK.training)
Tensors = dict[str, np.ndarray]


def stream(count: int, seed: int, *, otherwise: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Segments whose label is the class of their mean; `otherwise`: another gain and offset."""
    noise = np.random.default_rng(seed)
    labels = (np.arange(count) % 3).astype(np.float32)[:, None]
    segments = noise.normal(2.0 * labels[:, :, None], 0.3, (count, *TASK.segment_shape))
    return (0.3 * segments + 4.0 if otherwise else segments).astype(np.float32), labels


@cache
def weights() -> Tensors:
    """Of a model that is right on the stream as it is."""
    segments, labels = stream(300, 0)
    model = with_batch_norm(0)
    learning.fit(
        model, len(labels), learning.segment_loss(TASK, model, segments, labels),
        epochs=30, batch_size=32, learning_rate=0.01, seed=0, optimizer="adamw",
    )  # fmt: skip
    return {name: tensor.numpy().copy() for name, tensor in model.state_dict().items()}


def accuracy(found: Tensors, *, otherwise: bool) -> float:
    segments, labels = stream(300, 1, otherwise=otherwise)
    model = learning.load_state(TASK.build_model(), found)
    return float(TASK.correct(learning.predict(model, segments), labels).mean())


def test_statistics_of_a_device_undo_another_gain_and_offset() -> None:
    assert accuracy(weights(), otherwise=False) > 0.95
    assert accuracy(weights(), otherwise=True) < 0.5
    segments, labels = stream(200, 2, otherwise=True)
    found, share = normalized(TASK, weights(), segments, labels, np.arange(200) < 20)
    assert share == 1.0
    assert accuracy(found, otherwise=True) > 0.9
    same = [n for n in found if not is_statistic(n) and (found[n] == weights()[n]).all()]
    assert {*same} == {n for n in weights() if not is_statistic(n)}


def test_where_the_served_statistics_do_as_well_they_stay() -> None:
    segments, labels = stream(200, 3)
    found, share = normalized(TASK, weights(), segments, labels, np.arange(200) < 20)
    assert share == 0.0
    assert all((found[name] == value).all() for name, value in weights().items())


def test_no_label_proves_nothing() -> None:
    segments, labels = stream(200, 4, otherwise=True)
    _, share = normalized(TASK, weights(), segments, labels, np.zeros(200, np.bool_))
    assert share == 0.0


# --- on a device ---------------------------------------------------------------------------------


class Device(PersonalDevice):
    def __init__(self, folder: Path, its: Task = TASK) -> None:
        super().__init__(folder, its)
        self.seen = 0
        model = learning.load_state(TASK.build_model(), weights()) if its is TASK else None
        self.serve(1, (model or its.build_model()).eval())

    def see(self, count: int, *, otherwise: bool, told: int = 3) -> None:
        """Every `told`-th segment has a label."""
        assert self.slots.engine is not None
        segments, labels = stream(count, self.seen, otherwise=otherwise)
        for i, (segment, label) in enumerate(zip(segments, labels, strict=True)):
            answer = self.personal.engine_for(self.slots.engine).run(segment)
            at, known = self.seen + i, label if i // 3 % told == 0 else None
            self.samples.add(i, at, segment, answer, HELD_OUT if i % 4 == 3 else TRAIN, known)
        self.seen += count


def test_a_device_that_senses_otherwise_answers_with_its_own_statistics(tmp_path: Path) -> None:
    device = Device(tmp_path)
    device.see(RECENT, otherwise=True)
    device.consider()
    assert device.answering.endswith(".p1")
    assert [request.op for request in device.requests] == ["normalize"]
    state = device.personal.state
    assert state is not None
    assert state.correct > state.base_correct


def test_statistics_follow_a_drift_and_its_end(tmp_path: Path) -> None:
    device = Device(tmp_path)
    device.see(RECENT, otherwise=False)
    device.consider()
    for otherwise, ending in ((True, ".p2"), (False, "")):
        device.see(max(RECENT, RENEW_SEEN), otherwise=otherwise)
        device.now += PAUSE_S
        device.consider()
        assert (
            device.answering.endswith(ending) if ending else device.answering == device.slots.active
        )
    assert len(device.requests) == 3


def test_without_enough_segments_or_labels_nothing_changes(tmp_path: Path) -> None:
    device = Device(tmp_path)
    device.see(LEAST - 1, otherwise=True)
    device.consider()
    assert device.requests == []
    device.see(RECENT, otherwise=True, told=1000)
    device.consider()
    assert len(device.requests) == 1
    assert device.answering == device.slots.active


def test_a_model_without_batch_norm_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    device = Device(tmp_path, PLAIN)
    device.see(RECENT, otherwise=True)
    device.consider()
    assert device.requests == []
    assert "no batch norm" in caplog.text
