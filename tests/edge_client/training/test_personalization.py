"""A device's own copy: served only while it is better."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edge_client.inference.engine import Engine
from edge_client.samples.splits import HELD_OUT, TRAIN
from edge_client.training import personalization
from edge_client.training.personalization import (
    EVIDENCE,
    PAUSE_S,
    RENEW,
    Personalization,
)
from edge_client.training.trainer_client import Trainer
from streams.contract.artifact import personal_header
from streams.contract.errors import ArtifactError
from tests.edge_client.training.personal_device import PersonalDevice
from tests.rig.made_up.documents import work_request
from tests.rig.made_up.models import TINY, tiny
from tests.rig.processes.workers import until

TASK = replace(tiny, training=replace(tiny.training, personal=True, epochs=30, learning_rate=0.05))


class Device(PersonalDevice):
    def see(self, count: int, first: int = 0, held_out: bool = True) -> None:
        """Segments whose label is the class of their mean."""
        noise = np.random.default_rng(first)
        for i in range(first, first + count):
            label = np.array([i % 3], np.float32)
            segment = noise.normal(2.0 * label, 0.3, TASK.segment_shape).astype(np.float32)
            split = HELD_OUT if held_out and i % 2 else TRAIN
            self.samples.add(i, i, segment, np.zeros(3, np.float32), split, label)

    @property
    def path(self) -> Path:
        return self.folder / "personal.safetensors"


@pytest.fixture
def device(tmp_path: Path) -> Device:
    made = Device(tmp_path, TASK)
    made.serve(1)
    return made


def test_a_copy_that_is_better_answers_and_says_so(device: Device) -> None:
    base = device.slots.active
    device.see(200)
    device.consider()
    assert device.answering == f"{base}.p1"
    state = device.personal.state
    assert state is not None
    assert (state.model, state.base, state.serving) == (f"{base}.p1", base, True)
    assert state.held_out == 100
    assert state.correct > state.base_correct
    assert device.slots.active == base  # what is served is the release
    assert personal_header(device.path.read_bytes()) == (base, 1)
    assert device.path.stat().st_mode & 0o777 == 0o600
    engine = device.slots.engine
    assert engine is not None
    own = device.personal.engine_for(engine)
    assert own.latencies is engine.latencies
    segment = np.full(TASK.segment_shape, 4.0, np.float32)
    assert own.run(segment).argmax() == 2


def test_a_copy_that_is_not_better_any_more_stops_answering(device: Device) -> None:
    device.see(200)
    device.consider()
    assert device.answering.endswith(".p1")
    segments, _ = device.samples.held_out(1000)
    assert device.slots.engine is not None
    for i in range(1, 200, 2):  # the truth turns out to be what the release answers
        at = (i - 1) // 2
        told = device.slots.engine.run(segments[at]).argmax()
        device.samples.label(i, i, np.array([told], np.float32))
    device.see(1, first=1001)  # one more held-out label: looked at again
    device.personal.consider()
    assert device.answering == device.slots.active
    assert device.personal.state is not None
    assert not device.personal.state.serving


def test_without_held_out_evidence_no_copy_answers(device: Device) -> None:
    device.see(100, held_out=False)
    device.see(2 * (EVIDENCE - 1), first=1000)
    device.consider()
    assert device.path.exists()
    assert device.personal.state is not None
    assert device.personal.state.held_out == EVIDENCE - 1
    assert device.answering == device.slots.active
    device.see(2, first=2000)
    device.personal.consider()
    assert device.answering.endswith(".p1")


def test_labels_of_other_classes_than_most_segments_have_choose_no_copy(device: Device) -> None:
    """By its answers nearly all that the device sees is of class 0, which nobody labels."""
    device.see(200)
    first = {i: i % 3 for i in range(200)}
    for row, kind in first.items():
        if kind == 0:
            device.samples._table.true[row] = np.nan
    device.consider()
    state = device.personal.state
    assert state is not None
    assert (state.held_out, state.serving) == (67, False)
    assert state.correct > state.base_correct
    assert device.answering == device.slots.active
    device.samples.label(0, 3, np.array([0], np.float32))  # two of them are held out
    device.personal.consider()
    assert device.answering.endswith(".p1")


def test_a_restart_finds_its_copy_and_does_not_train_again(device: Device) -> None:
    device.see(200)
    device.consider()
    device.samples.save()
    again = Device(device.folder, TASK)
    again.consider()
    assert again.answering == device.answering
    assert again.requests == []
    again.see(2 * RENEW, first=10_000)
    again.consider()
    assert len(again.requests) == 1  # so many labels are worth another
    assert again.answering.endswith(".p2")


def test_another_release_ends_the_copy_and_is_copied_after_a_pause(device: Device) -> None:
    device.see(200)
    device.consider()
    device.serve(2)
    assert device.answering == device.slots.active  # at once, before anybody looks
    device.consider()
    assert device.answering == device.slots.active
    assert not device.path.exists()
    assert len(device.requests) == 1
    device.now += PAUSE_S
    device.consider()
    assert device.answering == f"{device.slots.active}.p1"


def test_a_copy_that_fails_gives_its_place_to_its_version(device: Device) -> None:
    device.see(200)
    device.consider()
    device.personal.drop("failed: no kernel")
    assert device.answering == device.slots.active
    assert device.personal.state is None
    assert not device.path.exists()


@pytest.mark.parametrize("data", [b"garbage", b"\x05" + bytes(7) + b"[[[[["])
def test_a_broken_copy_is_removed_and_made_anew(device: Device, data: bytes) -> None:
    with pytest.raises(ArtifactError):
        personal_header(data)
    device.path.write_bytes(data)
    device.see(200)
    device.consider()
    assert device.answering.endswith(".p1")


def test_a_round_ends_the_devices_own_training(
    device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the real child."""
    device.see(200)
    monkeypatch.setattr(personalization, "BUDGET_S", 600.0)
    monkeypatch.setattr(personalization, "EPOCHS", 10_000_000)
    trainer = Trainer(TINY, "d0", device.folder, device.samples)
    personal = Personalization(
        TASK, "d0", device.folder, device.slots, device.samples, trainer.work
    )
    try:
        personal.consider()
        until(lambda: trainer.busy, "the device's own training goes on")
        weights = device.slots.artifact().files["weights.safetensors"]
        request = work_request(time_budget_s=60.0)
        with ThreadPoolExecutor(1) as pool:
            reply, _ = pool.submit(trainer.work, request, weights).result(60)
        assert reply.error is None
        assert reply.metrics["steps"] > 0
    finally:
        trainer.stop()


def test_a_device_with_too_few_samples_starts_no_trainer_until_there_are_enough(
    device: Device,
) -> None:
    few = TASK.training.minimum_samples - 1
    device.see(few, held_out=False)
    for _ in range(3):
        device.consider()
        device.now += PAUSE_S
    assert device.requests == []
    device.see(1, first=few, held_out=False)
    device.consider()
    assert device.path.exists()


def test_a_task_that_does_not_ask_for_it_has_no_copies(device: Device) -> None:
    device.see(200)
    plain_task = Personalization(
        tiny, "d0", device.folder, device.slots, device.samples, device._work
    )
    plain_task.consider()
    assert device.requests == []
    assert isinstance(device.slots.engine, Engine)
    assert plain_task.engine_for(device.slots.engine) is device.slots.engine
