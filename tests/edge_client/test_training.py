"""What leaves the trainer: whole weights, differences in float16, or an update cut to length."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edge_client import training
from edge_client.handoff import Job, WorkRequest
from edge_client.samples import Samples
from edge_client.splits import HELD_OUT, TRAIN
from streams.contract import payload
from streams.contract.clipping import length
from streams.contract.payload import Payload
from streams.contract.task import Privacy, Task, load_task
from tests.edge_client.models import TINY, with_batch_norm


@pytest.fixture(scope="module")
def task() -> Task:
    return replace(load_task(TINY), build_model=lambda: with_batch_norm(0).train())


def work(task: Task, folder: Path, kind: Payload = "float32") -> tuple[dict[str, np.ndarray], ...]:
    """What was received, and what came back, both as weights."""
    samples, noise = Samples(task, folder / "samples.arrow"), np.random.default_rng(0)
    for i in range(80):
        label = np.array([i % task.outputs], np.float32)
        segment = noise.normal(2.0 * label, 0.3, task.segment_shape).astype(np.float32)
        answer = np.zeros(task.outputs, np.float32)
        samples.add(i, segment, answer, HELD_OUT if i % 4 == 3 else TRAIN, label)
    rows = folder / "rows.arrow"
    with rows.open("wb") as file:
        samples.write_training_rows(file)
    request = WorkRequest(
        op="train", run="7", round=1, task=task.name, task_version=1, base="1-a", epochs=5,
        batch_size=16, learning_rate=0.05, payload=kind,
    )  # fmt: skip
    job = Job(device="d0", request=request, samples=str(rows), stop=str(folder / "stop"))
    first = {name: tensor.numpy() for name, tensor in task.build_model().state_dict().items()}
    sent = payload.rounded(first, kind)
    reply, block = training.work(task, job, payload.down(first, kind))
    assert reply.error is None
    return sent, payload.completed(payload.unpack(block), sent), payload.unpack(block)


def test_in_float32_the_weights_come_back_whole(task: Task, tmp_path: Path) -> None:
    sent, weights, block = work(task, tmp_path)
    assert {t.dtype for t in block.values()} == {np.dtype("float32"), np.dtype("int64")}
    assert length(weights, sent) > 0.1


def test_in_float16_a_difference_comes_back(task: Task, tmp_path: Path) -> None:
    sent, weights, block = work(task, tmp_path, "float16")
    assert {t.dtype for t in block.values()} == {np.dtype("float16"), np.dtype("int64")}
    assert length(weights, sent) > 0.1
    assert {n: t.dtype for n, t in weights.items()} == {n: t.dtype for n, t in sent.items()}


def test_a_private_update_is_cut_on_the_device_and_has_no_statistics(
    task: Task, tmp_path: Path
) -> None:
    privacy = Privacy(clip=0.05, noise_multiplier=1.0)
    made = replace(task, training=replace(task.training, privacy=privacy))
    sent, weights, _ = work(made, tmp_path)
    assert length(weights, sent) == pytest.approx(0.05, rel=1e-3)
    for name, tensor in sent.items():
        if "running" in name or "num_batches" in name:
            np.testing.assert_array_equal(weights[name], tensor)
