"""When a device's own copy is trained, and what comes of it."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edge_client.inference.challenger import Challenger
from edge_client.inference.slots import Slots
from edge_client.samples.samples import Samples
from edge_client.samples.table import HELD_OUT, TRAIN
from edge_client.training import own_weights, trainer_process
from edge_client.training.own_weights import PAUSE_MOST_S, PAUSE_S, RENEW, OwnWeights
from edge_client.training.trainer_client import Trainer
from streams.contract.task import MINIMUM_SAMPLES, Category, Task
from streams.contract.work import PERSONAL, TrainerJob, WorkReply, WorkRequest
from streams.runtime.trust import create_key
from tests.rig.made_up.documents import work_request
from tests.rig.made_up.models import TINY, artifact, plain, tiny
from tests.rig.processes.polling import SLOWEST, until

TRAINING = replace(tiny.training, personal=True, epochs=30, learning_rate=0.05)
TASK = replace(tiny, training=replace(TRAINING, choice="offered"))
ADAPTS = replace(tiny, training=replace(TRAINING, personal=False))
HOP = 500_000


class Device:
    """It serves a version and has samples, and its trainer's work is done here, without a child.
    `now` is its clock, `requests` what it asked for, `error` what the trainer answers after
    `took_s`."""

    def __init__(self, folder: Path, task: Task = TASK) -> None:
        self.folder, self.now, self.error, self.task = folder, 1000.0, "", task
        self.took_s = 0.0
        self.key = create_key(folder / "keys" / "signing.pem")
        self.requests: list[WorkRequest] = []
        self.slots = Slots(folder / "slots", task, [self.key.public_key()])
        self.slots.open()
        self.samples = Samples(task, folder / "samples.rows")
        self.own = OwnWeights(task, self.slots, self.samples, self._work, clock=lambda: self.now)
        self.other = Challenger(task, folder, self.slots, self.samples, self.own)

    def _work(self, request: WorkRequest, weights: bytes) -> tuple[WorkReply, bytes]:
        self.requests.append(request)
        self.now += self.took_s
        if self.error:
            return WorkReply(device="d0", error=self.error), b""
        rows = self.folder / "rows.rows"
        with rows.open("wb") as file:
            if request.op == "adapt":
                self.samples.write_adapter_rows(file)
            else:
                self.samples.write_training_rows(file)
        job = TrainerJob(
            device="d0", request=request, samples=str(rows), stop=str(self.folder / "trainer.stop")
        )
        return trainer_process.work(self.task, job, weights)

    def serve(self, number: int) -> str:
        return self.slots.install(artifact(self.key, plain(number), number)).model

    def see(self, count: int, first: int = 0, held_out: bool = True) -> None:
        """Segments whose label is the class of their mean."""
        noise = np.random.default_rng(first)
        for i in range(first, first + count):
            label = np.array([i % 3], np.float32)
            segment = noise.normal(2.0 * label, 0.3, TASK.segment_shape).astype(np.float32)
            split = HELD_OUT if held_out and i % 2 else TRAIN
            self.samples.add(i, HOP * i, segment, np.zeros(3, np.float32), split, label)

    def consider(self) -> None:
        """One look, and the training that it began."""
        self.other.consider()
        self.own.stop(60)
        self.other.consider()

    @property
    def answering(self) -> str:
        assert self.slots.engine is not None
        return self.other.engine_for(self.slots.engine).model


@pytest.fixture
def device(tmp_path: Path) -> Device:
    made = Device(tmp_path)
    made.serve(1)
    return made


def test_a_copy_learns_what_the_device_sees(device: Device) -> None:
    device.see(200)
    device.consider()
    assert device.answering == f"{device.slots.active}.p1"
    assert device.slots.engine is not None
    own = device.other.engine_for(device.slots.engine)
    assert own.run(np.full(TASK.segment_shape, 4.0, np.float32)).argmax() == 2


def test_a_restart_does_not_train_again_until_there_are_more_labels(device: Device) -> None:
    device.see(200)
    device.consider()
    device.samples.save()
    again = Device(device.folder)
    again.consider()
    assert again.answering == device.answering
    assert again.requests == []
    again.see(2 * RENEW, first=10_000)
    again.consider()
    assert len(again.requests) == 1
    assert again.other.state is not None
    assert again.other.state.model.endswith(".p2")


def test_another_release_is_copied_after_a_pause(device: Device) -> None:
    device.see(200)
    device.consider()
    second = device.serve(2)
    device.consider()
    assert len(device.requests) == 1
    device.now += PAUSE_S
    device.consider()
    assert device.requests[-1].base == second
    assert device.answering == f"{second}.p1"


def test_trainings_that_fail_have_growing_pauses(
    device: Device, caplog: pytest.LogCaptureFixture
) -> None:
    device.error = "memory: 900 MB are needed, 300 are free"
    device.see(200)
    tries = []
    for second in range(0, int(3 * PAUSE_MOST_S), 10):
        device.now = 2000.0 + second
        device.consider()
        if len(device.requests) > len(tries):
            tries.append(second)
    failed = f"no copy of {device.slots.active}: {device.error}; the next try is in"
    assert caplog.messages[:2] == [f"{failed} {2 * PAUSE_S:.0f} s", f"{failed} {4 * PAUSE_S:.0f} s"]
    pauses = np.diff(tries)
    assert pauses[0] == 2 * PAUSE_S
    assert (np.diff(pauses) >= 0).all()
    assert pauses.max() <= PAUSE_MOST_S + 10
    assert device.answering == device.slots.active
    assert device.own.error == f"no copy of {device.slots.active}: {device.error}"
    device.error, device.now = "", device.now + PAUSE_MOST_S
    device.consider()
    assert device.own.error is None


def test_a_long_training_that_fails_has_a_pause_after_its_end(device: Device) -> None:
    device.error, device.took_s = "memory: 900 MB are needed, 300 are free", 10 * PAUSE_S
    device.see(200)
    device.consider()
    device.now += 2 * PAUSE_S - 1
    device.consider()
    assert len(device.requests) == 1
    device.now += 1
    device.consider()
    assert len(device.requests) == 2


@pytest.mark.parametrize(
    "why", ["conditions: on battery at 12 %", "stopped: no step", "trainer: the agent is stopping"]
)
def test_a_training_that_is_held_back_or_makes_way_is_no_error(device: Device, why: str) -> None:
    device.error = why
    device.see(200)
    for _ in range(4):
        device.now += PAUSE_MOST_S
        device.consider()
    assert len(device.requests) == 4
    assert device.own.error is None


def test_the_error_of_a_version_ends_with_it(device: Device) -> None:
    device.error = "memory: 900 MB are needed, 300 are free"
    device.see(200)
    for _ in range(2):
        device.now += PAUSE_MOST_S
        device.consider()
    assert device.own.error is not None
    device.serve(2)
    device.other.consider()
    assert device.own.error is None


def test_a_trainer_with_a_tenth_of_a_core_has_its_time_before_it_is_given_up(
    device: Device,
) -> None:
    device.see(200)
    device.consider()
    [request] = device.requests
    assert request.run == PERSONAL  # its budget is processor time
    assert request.limit_s >= 10 * request.time_budget_s


def test_a_round_ends_the_devices_own_training(
    device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the real child."""
    device.see(200)
    monkeypatch.setattr(own_weights, "BUDGET_S", 600.0)
    monkeypatch.setattr(own_weights, "EPOCHS", 10_000_000)
    trainer = Trainer(TINY, "d0", device.folder, device.samples)
    copies = OwnWeights(TASK, device.slots, device.samples, trainer.work)
    assert device.slots.engine is not None
    try:
        copies.consider(device.slots.engine)
        until(lambda: trainer.busy, "the device's own training goes on")
        weights = device.slots.kept(device.slots.active).files["weights.safetensors"]
        request = work_request(time_budget_s=60.0)
        with ThreadPoolExecutor(1) as pool:
            reply, _ = pool.submit(trainer.work, request, weights).result(60 * SLOWEST)
        assert reply.error is None
        assert reply.metrics["steps"] > 0
    finally:
        trainer.stop()


def test_a_device_with_too_few_samples_starts_no_trainer_until_there_are_enough(
    device: Device,
) -> None:
    few = MINIMUM_SAMPLES - 1
    device.see(few, held_out=False)
    for _ in range(3):
        device.consider()
        device.now += PAUSE_S
    assert device.requests == []
    device.see(1, first=few, held_out=False)
    device.consider()
    assert len(device.requests) == 1


def test_a_task_that_does_not_ask_for_it_has_no_copies(device: Device) -> None:
    device.see(200)
    offered = replace(tiny, training=replace(tiny.training, choice="offered"))
    plain_task = Challenger(offered, device.folder, device.slots, device.samples, device.own)
    plain_task.consider()
    assert device.requests == []
    assert device.slots.engine is not None
    assert plain_task.engine_for(device.slots.engine) is device.slots.engine


@pytest.mark.parametrize(
    ("task", "torch", "why"),
    [
        (ADAPTS, False, "torch is not installed"),
        (
            replace(ADAPTS, channels=("x", Category("gear", size=9))),
            True,
            "categories, or too many",
        ),
        (ADAPTS, True, None),
        (TASK, False, None),  # has no adapter to miss
    ],
)
def test_a_device_that_cannot_adapt_says_why_and_trains_nothing(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    task: Task,
    torch: bool,
    why: str | None,
) -> None:
    caplog.set_level("INFO")
    if not torch:
        monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    device = Device(tmp_path, task)
    device.serve(1)
    said = [text for text in caplog.messages if text.startswith("no input adapters: ")]
    assert len(said) == (why is not None)
    assert why is None or why in said[0]
    device.see(200)
    device.consider()
    assert bool(device.requests) == (why is None and torch)
