"""What leaves the trainer: whole weights, differences in float16, or an update cut to length."""

import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from edge_client.ipc import send_frame
from edge_client.samples.samples import Samples
from edge_client.samples.table import HELD_OUT, TRAIN
from edge_client.training import local_layers, trainer_process
from federation.evaluation import device_metrics
from federation.evaluation.paired import Paired
from streams.contract.task import Privacy, Task, load_task, travels
from streams.contract.task.channels import example
from streams.contract.weights import payload
from streams.contract.weights.payload import Payload
from streams.contract.work import OWN, PART, PERSONAL, TrainerJob, WorkReply
from streams.learning.updates import clipped, update_norm
from tests.rig.made_up.documents import work_request
from tests.rig.made_up.models import TINY, with_batch_norm
from tests.rig.made_up.payments_task import task as payments
from tests.rig.unwrap import unwrap


@pytest.fixture(scope="module")
def task() -> Task:
    return replace(load_task(TINY), build_model=lambda: with_batch_norm(0).train())


def work(
    task: Task, folder: Path, kind: Payload = "float32", run: str = "7"
) -> tuple[dict[str, np.ndarray], ...]:
    """What was received, and what came back as weights and as it came."""
    samples, noise = Samples(task, folder / "samples.rows"), np.random.default_rng(0)
    for i in range(80):
        label = np.array([i % task.outputs], np.float32)
        segment = noise.normal(2.0 * label, 0.3, task.segment_shape).astype(np.float32)
        answer = np.zeros(task.outputs, np.float32)
        samples.add(i, i, segment, answer, HELD_OUT if i % 4 == 3 else TRAIN, label)
    rows = folder / "rows.rows"
    with rows.open("wb") as file:
        samples.write_training_rows(file)
    first = {name: tensor.numpy() for name, tensor in task.build_model().state_dict().items()}
    base = folder / "base.safetensors"
    base.write_bytes(payload.to_safetensors(first, kind))
    mine = run == PERSONAL
    first = {n: tensor for n, tensor in first.items() if mine or travels(n, task.training)}
    request = work_request(run=run, epochs=5, payload=kind, part=not mine)
    job = TrainerJob(
        device="d0", request=request, samples=str(rows), stop=str(folder / "stop"),
        own=str(folder / OWN), served=str(base),
    )  # fmt: skip
    sent = payload.round_weights(first, kind)
    reply, block = trainer_process.work(task, job, payload.encode_weights(first, kind))
    assert reply.error is None
    return sent, payload.restore_update(payload.unpack(block), sent), payload.unpack(block)


def rows_file(task: Task, folder: Path, count: int = 32) -> Path:
    """Labelled segments of the first two classes; every fourth is held out."""
    samples, noise = Samples(task, folder / "samples.rows"), np.random.default_rng(0)
    for i in range(count):
        segment = noise.normal(0, 1, task.segment_shape).astype(np.float32)
        answer, label = np.zeros(task.outputs, np.float32), np.array([i // 4 % 2], np.float32)
        samples.add(i, i, segment, answer, HELD_OUT if i % 4 == 3 else TRAIN, label)
    path = folder / "rows.rows"
    with path.open("wb") as file:
        samples.write_training_rows(file)
    return path


def always(index: int, output: float = 1.0) -> dict[str, np.ndarray]:
    """The weights of a model that answers one class to everything."""
    tensors = {n: np.zeros_like(t) for n, t in with_batch_norm(0).state_dict().items()}
    return {
        **{n: np.asarray(t) for n, t in tensors.items()},
        "5.bias": (output * np.eye(3)[index]).astype(np.float32),
    }


def compared(
    task: Task, folder: Path, served: bool = True, output: float = 1.0, kind: Payload = "float32"
) -> dict[str, float]:
    """What a device that serves a model of class 0 finds for one of class 2."""
    base = folder / "base.safetensors"
    base.write_bytes(safetensors.numpy.save(always(0)))
    request = work_request("evaluate", payload=kind)
    job = TrainerJob(
        device="d0", request=request, samples=str(rows_file(task, folder)), stop="",
        served=str(base) if served else "",
    )  # fmt: skip
    reply, block = trainer_process.work(task, job, payload.encode_weights(always(2, output), kind))
    assert (reply.error, reply.samples, block) == (None, 8, b"")
    return reply.metrics


def test_a_candidate_is_compared_with_the_version_served_row_by_row(
    task: Task, tmp_path: Path
) -> None:
    metrics = compared(task, tmp_path)
    assert {name: value for name, value in metrics.items() if not name.startswith(PART)} == {
        "evaluated": 8, "correct": 0, "base_correct": 4, "gained": 0, "lost": 4,
        "class-0-evaluated": 4, "class-0-correct": 0, "class-0-base_correct": 4,
        "class-0-gained": 0, "class-0-lost": 4, "class-0-base_false": 4, "class-0-false": 0,
        "class-1-evaluated": 4, "class-1-correct": 0, "class-1-base_correct": 0,
        "class-1-gained": 0, "class-1-lost": 0, "class-1-base_false": 0, "class-1-false": 0,
        "class-2-evaluated": 0, "class-2-correct": 0, "class-2-base_correct": 0,
        "class-2-gained": 0, "class-2-lost": 0, "class-2-base_false": 0, "class-2-false": 8,
    }  # fmt: skip
    found = unwrap(device_metrics.read(task, metrics))
    assert found.rows == Paired(8, 4, 0, 4)


@pytest.mark.parametrize("kind", ["float32", "float16"])
def test_a_part_of_the_way_is_compared_too_as_it_would_be_released(
    task: Task, tmp_path: Path, kind: Payload
) -> None:
    """Halfway to a model that is twice as sure of class 2 answers so; to one that is half as sure
    answers as the served one does."""
    for output, rows in ((2.0, Paired(8, 4, 0, 4)), (0.5, Paired(8, 4, 0, 0))):
        metrics = compared(task, tmp_path, output=output, kind=kind)
        assert unwrap(device_metrics.read(task, metrics)).rows == Paired(8, 4, 0, 4)
        assert unwrap(device_metrics.read(task, metrics, PART)).rows == rows


def test_another_metric_than_accuracy_is_told_of_both_versions(task: Task, tmp_path: Path) -> None:
    made = replace(task, metric="macro_f1")
    metrics = compared(made, tmp_path)
    assert metrics["metric_base"] == pytest.approx(1 / 3)  # class 0 of 8 rows, 4 of which it is
    assert metrics["metric"] == 0.0
    alone = compared(made, tmp_path, served=False)
    assert alone == {"evaluated": 8, "correct": 0, "metric": 0.0}


def test_answers_that_name_several_classes_are_counted_and_not_by_class(
    task: Task, tmp_path: Path
) -> None:
    made = replace(task, metric="top_2")
    metrics = compared(made, tmp_path)
    assert {name: value for name, value in metrics.items() if not name.startswith(PART)} == {
        "evaluated": 8, "correct": 4, "base_correct": 8, "gained": 0, "lost": 4,
    }  # fmt: skip
    assert unwrap(device_metrics.read(made, metrics)).rows == Paired(8, 8, 0, 4)


def test_a_private_device_keeps_for_itself_which_classes_it_has(task: Task, tmp_path: Path) -> None:
    privacy = Privacy(clip=0.05, noise_multiplier=1.0)
    made = replace(task, training=replace(task.training, privacy=privacy))
    metrics = compared(made, tmp_path)
    compared_rows = {"evaluated", "correct", "base_correct", "gained", "lost"}
    assert set(metrics) == compared_rows | {PART + name for name in compared_rows}
    assert device_metrics.read(made, metrics) is not None


@pytest.mark.parametrize("kind", ["float32", "float16"])
def test_weights_come_back_whole_or_as_a_difference_in_float16(
    task: Task, tmp_path: Path, kind: Payload
) -> None:
    sent, weights, block = work(task, tmp_path, kind)
    assert {t.dtype for t in block.values()} == {np.dtype(kind), np.dtype("int64")}
    assert update_norm(weights, sent) > 0.1
    assert {n: t.dtype for n, t in weights.items()} == {n: t.dtype for n, t in sent.items()}


def test_a_private_update_is_cut_on_the_device_and_has_no_statistics(
    task: Task, tmp_path: Path
) -> None:
    privacy = Privacy(clip=0.05, noise_multiplier=1.0)
    made = replace(task, training=replace(task.training, privacy=privacy))
    sent, weights, _ = work(made, tmp_path)
    assert update_norm(weights, sent) == pytest.approx(0.05, rel=1e-3)
    for name, tensor in sent.items():
        if "running" in name or "num_batches" in name:
            np.testing.assert_array_equal(weights[name], tensor)


def test_a_private_update_is_trained_with_the_statistics_that_stay(
    task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is trained differs from what is sent by the clip alone; a copy of one's own, which is
    not sent, learns statistics too."""
    privacy = Privacy(clip=1e3, noise_multiplier=1.0)
    made = replace(task, training=replace(task.training, privacy=privacy))
    given: list[dict[str, np.ndarray]] = []

    def seen(trained: dict[str, np.ndarray], received: dict[str, np.ndarray], clip: float):  # type: ignore[no-untyped-def]
        given.append(trained)
        return clipped(trained, received, clip)

    monkeypatch.setattr(trainer_process, "clipped", seen)
    sent, weights, _ = work(made, tmp_path)
    assert update_norm(weights, sent) > 0.1
    for name, tensor in given[0].items():
        np.testing.assert_array_equal(weights[name], tensor)
    _, own, _ = work(made, tmp_path, run=PERSONAL)
    assert not np.array_equal(own["1.running_mean"], sent["1.running_mean"])


HEAD = {"5.weight", "5.bias"}  # of with_batch_norm


def test_the_head_of_a_shared_body_stays_on_the_device_and_goes_on_learning(
    task: Task, tmp_path: Path
) -> None:
    made = replace(task, training=replace(task.training, shared=("0", "1")))
    base, heads = made.build_model().state_dict(), []
    for _ in range(2):
        sent, weights, _ = work(made, tmp_path)
        assert set(weights) == set(sent) == set(base) - HEAD
        assert not np.array_equal(weights["0.weight"], sent["0.weight"])
        heads.append(safetensors.numpy.load((tmp_path / OWN).read_bytes()))
    assert set(heads[0]) == HEAD
    first = {name: base[name].numpy() for name in HEAD}
    assert update_norm(heads[1], first) > 1.2 * update_norm(heads[0], first)
    assert (tmp_path / OWN).stat().st_mode & 0o077 == 0


def test_a_copy_of_ones_own_begins_with_ones_own_head_and_is_not_cut(
    task: Task, tmp_path: Path
) -> None:
    privacy = Privacy(clip=1e-3, noise_multiplier=1.0)
    training_ = replace(task.training, shared=("0", "1"), privacy=privacy)
    made = replace(task, training=training_)
    work(made, tmp_path)
    head = safetensors.numpy.load((tmp_path / OWN).read_bytes())
    sent, weights, _ = work(made, tmp_path, run=PERSONAL)
    assert update_norm(weights, sent) > update_norm(head, {n: sent[n] for n in HEAD}) > 0.1
    after = safetensors.numpy.load((tmp_path / OWN).read_bytes())
    assert all(np.array_equal(after[name], head[name]) for name in HEAD)


def test_a_head_that_cannot_be_written_hinders_no_training(task: Task, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    made = replace(task, training=replace(task.training, shared=("0", "1")))
    trained = {name: tensor.numpy() for name, tensor in task.build_model().state_dict().items()}
    local_layers.save(made, tmp_path / "file" / OWN, trained)
    assert local_layers.read(made, tmp_path / "file" / OWN, trained) == {}


def test_a_trainer_whose_agent_is_gone_when_it_has_worked_ends_without_a_word() -> None:
    job = TrainerJob(device="d0", request=work_request(), samples="gone", stop="")
    ours, theirs = socket.socketpair()
    with ours, theirs:
        send_frame(ours, job.encode(), b"")
        ours.shutdown(socket.SHUT_RD)  # it can't be answered
        done = subprocess.run(
            [sys.executable, "-m", "edge_client.training", TINY, str(theirs.fileno())],
            pass_fds=[theirs.fileno()], capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


# --- memory ---------------------------------------------------------------------------------------

WIDE = """
from dataclasses import replace
from tidewheel import Segment, load_task

def build_model():
    from torch import nn
    return nn.Sequential(
        nn.Conv1d(2, 64, 5, padding=2), nn.ReLU(), nn.Conv1d(64, 64, 5, padding=2), nn.ReLU(),
        nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(64, 3),
    )

tiny = load_task("{tiny}")
training = replace(tiny.training, memory_mb={memory_mb}, batch_size=256)
task = replace(
    tiny, build_model=build_model, segment=Segment(samples=2000, hop=2000), training=training
)
"""

TRAINED = """
import sys
from pathlib import Path
import safetensors.numpy
from edge_client.training import trainer_process
from streams.contract.task import load_task
from streams.contract.work import TrainerJob

task, job, weights = load_task(sys.argv[1]), TrainerJob.decode(sys.argv[2].encode()), sys.argv[3]
reply, _ = trainer_process.work(task, job, Path(weights).read_bytes())
assert reply.error is None, reply.error
print(reply.encode().decode())
"""


def test_the_trainer_stays_within_its_memory_and_says_what_it_took(tmp_path: Path) -> None:
    used = {}
    for memory_mb in (0, 600):
        folder = tmp_path / str(memory_mb)
        folder.mkdir()
        (folder / "wide.py").write_text(WIDE.format(tiny=TINY, memory_mb=memory_mb))
        reference = f"{folder / 'wide.py'}:task"
        task = load_task(reference)
        weights = {n: t.numpy() for n, t in task.build_model().state_dict().items()}
        (folder / "weights").write_bytes(payload.encode_weights(weights, "float32"))
        request = work_request(epochs=1, batch_size=256)
        job = TrainerJob(
            device="d0", request=request, samples=str(rows_file(task, folder, 344)),
            stop=str(folder / "stop"),
        )  # fmt: skip
        words = [reference, job.encode().decode(), str(folder / "weights")]
        done = subprocess.run(
            [sys.executable, "-c", TRAINED, *words], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        used[memory_mb] = WorkReply.decode(done.stdout.encode()).metrics["memory_mb"]
    assert used[600] < 600 < used[0], used


def test_a_model_of_which_not_one_row_fits_is_not_trained(task: Task, tmp_path: Path) -> None:
    small = replace(task, training=replace(task.training, memory_mb=1))
    job = TrainerJob(
        device="d0", request=work_request(), samples=str(rows_file(task, tmp_path)), stop=""
    )
    reply, block = trainer_process.work(small, job, payload.encode_weights(always(2), "float32"))
    assert (reply.error, block) == ("memory: not one row fits into 1 MB beside the model", b"")
    job = job.replace(request=work_request("evaluate"))
    reply, _ = trainer_process.work(small, job, payload.encode_weights(always(2), "float32"))
    assert (reply.error, reply.samples) == (None, 8)  # row by row


def test_too_few_samples_are_an_error_in_the_reply(task: Task, tmp_path: Path) -> None:
    rows = rows_file(task, tmp_path, 41)
    job = TrainerJob(device="d0", request=work_request(), samples=str(rows), stop="")
    reply, body = trainer_process.work(task, job, payload.encode_weights(always(2), "float32"))
    wanted = "too-few-samples: 31 samples with a label that counts, 32 are needed"
    assert (reply.error, body) == (wanted, b"")


def test_rows_of_an_embedding_that_no_sample_used_are_those_that_came(tmp_path: Path) -> None:
    """Weight decay would move them, and the device's update would have all rows."""
    samples, used = Samples(payments, tmp_path / "samples.rows"), range(1, 6)
    for i in range(60):
        segment = example(payments.channels, 1, 1, seed=i)[0]
        segment[1] = used[i % len(used)]
        answer, label = np.zeros(2, np.float32), np.array([i % 2], np.float32)
        samples.add(i, i, segment, answer, HELD_OUT if i % 4 == 3 else TRAIN, label)
    rows = tmp_path / "rows.rows"
    with rows.open("wb") as file:
        samples.write_training_rows(file)
    first = {name: tensor.numpy() for name, tensor in payments.build_model().state_dict().items()}  # type: ignore[operator]
    job = TrainerJob(
        device="d0", request=work_request(epochs=3, payload="float16"), samples=str(rows),
        stop=str(tmp_path / "stop"), own=str(tmp_path / OWN), served="",
    )  # fmt: skip
    block = payload.encode_weights(first, "float16")
    reply, body = trainer_process.work(payments, job, block)
    assert reply.error is None
    moved = payload.unpack(body)["shops.weight"].any(axis=1)
    assert set(np.flatnonzero(moved)) == set(used)
