"""A device mends its own sensor: the drift, the adapter and its evidence, restarts, the end."""

import shutil
import uuid
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from edge_client.inference import challenger
from edge_client.inference.challenger import Challenger
from edge_client.inference.drift_watch import DriftWatch
from edge_client.inference.slots import Slots
from edge_client.samples.samples import Samples
from edge_client.samples.table import TRAIN, read_all, split_of
from edge_client.training import trainer_process
from edge_client.training.own_weights import DRIFT_PAUSE_S, OwnWeights
from federation.bootstrap.dataset import Segments, make_reference
from streams.contract.artifact import DRIFT, files_of, pack
from streams.contract.documents import ChallengerState
from streams.contract.task import Task
from streams.contract.window_report import release_of
from streams.contract.work import TrainerJob, WorkReply, WorkRequest
from streams.learning import learning
from streams.runtime.trust import create_key
from tests.rig.made_up.killed import Killed
from tests.rig.made_up.models import artifact, exported, tiny

HOP = 500_000
SEGMENT_S = DRIFT_PAUSE_S / 10  # a training in each window of ten, during a drift
LEVELS = np.array([[0, 0], [3, 0], [0, 3]], np.float32)  # of the two channels, by class
Sensor = Callable[[np.ndarray], np.ndarray]


def with_norm() -> nn.Module:
    return nn.Sequential(
        nn.Conv1d(2, 8, 3), nn.BatchNorm1d(8), nn.ReLU(), nn.AdaptiveAvgPool1d(1), nn.Flatten(),
        nn.Linear(8, 3),
    )  # fmt: skip


def right(segments: np.ndarray) -> np.ndarray:
    return segments


def changed(segments: np.ndarray) -> np.ndarray:
    """The axes exchanged, each with another gain and offset."""
    return np.stack([0.5 * segments[:, 1] + 2, 1.3 * segments[:, 0] - 1], axis=1)


def drawn(count: int, first: int, classes: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """Segments (n, channels, samples) and labels (n, 1) by turns of five; `first` is the number of
    the first one."""
    noise, label = np.random.default_rng(first), np.arange(first, first + count) // 5 % classes
    values = noise.normal(LEVELS[label][:, :, None], 0.4, (count, *tiny.segment_shape))
    return values.astype(np.float32), label[:, None].astype(np.float32)


@cache
def made(norm: bool) -> tuple[Task, nn.Module, bytes]:
    """A task whose model is right, and its reference."""
    task = replace(tiny, build_model=with_norm) if norm else tiny
    torch.manual_seed(1)
    model, (segments, labels) = task.build_model(), drawn(600, 0)
    learning.fit(
        model, 600, learning.segment_loss(task, model, segments, labels), epochs=20,
        batch_size=32, learning_rate=0.05, seed=1,
    )  # fmt: skip
    outputs = learning.predict(model, segments)
    assert task.correct(outputs, labels).mean() > 0.98
    halves = [slice(0, 300), slice(300, 600)]
    known = [Segments(HOP * np.arange(300), segments[half], labels[half]) for half in halves]
    reference = make_reference(task, known, [outputs[half] for half in halves])
    return task, model, reference.encode()


class Device:
    """What an agent has of it, with the trainer's work done here; time goes by in windows."""

    def __init__(self, folder: Path, *, norm: bool = True, after: "Device | None" = None) -> None:
        """A new device, or one that continues `after` a saved one, in a copy of its folder."""
        self.task, self.model, self.reference = made(norm)
        self.requests: list[WorkRequest] = []
        self.seen, self.sensor, self.classes = 0, right, 3
        if after is not None:
            self.folder, self.key = folder / "copy", after.key
            self.seen, self.sensor = after.seen, after.sensor
            shutil.copytree(after.folder, self.folder)
            self.start()
            self.other.consider()
            return
        self.folder, self.key = folder, create_key(folder / "keys" / "signing.pem")
        self.start()
        self.serve(1)

    def start(self) -> None:
        """As after a kill."""
        self.slots = Slots(self.folder / "slots", self.task, [self.key.public_key()])
        self.slots.open()
        self.samples = Samples(self.task, self.folder / "samples.rows")
        self.own = OwnWeights(
            self.task, self.slots, self.samples, self._work, clock=lambda: self.seen * SEGMENT_S
        )
        self.other = Challenger(self.task, self.folder, self.slots, self.samples, self.own)

    def serve(self, number: int) -> str:
        data = artifact(self.key, self.model, number, graph=exported(self.model), task=self.task)
        manifest, files = files_of(data)
        drift = {DRIFT: self.reference} if self.reference else {}
        whole = pack(manifest, files | drift, self.key)
        model = self.slots.install(whole).model
        self.slots.withdraw({}, model)
        return model

    def _work(self, request: WorkRequest, weights: bytes) -> tuple[WorkReply, bytes]:
        self.requests.append(request)
        rows = self.folder / f"{uuid.uuid4().hex}.rows"  # what a kill has left may still write
        with rows.open("wb") as file:
            self.samples.write_adapter_rows(file)
        stop = str(self.folder / "trainer.stop")
        job = TrainerJob(device="d0", request=request, samples=str(rows), stop=stop)
        return trainer_process.work(self.task, job, weights)

    def windows(self, count: int, *, told: float = 1.0, every: int = 1) -> None:
        """Live through so many, with this share of labels told; look after `every` so many."""
        dice = np.random.default_rng(self.seen)
        for number in range(1, count + 1):
            segments, labels = drawn(10, self.seen, self.classes)
            for segment, label in zip(self.sensor(segments), labels, strict=True):
                last = HOP * self.seen
                split = split_of(self.task, last - 950_000, last)
                known = label if dice.random() < told else None
                self.samples.add(self.seen, last, segment, self.answer(segment), split, known)
                self.seen += 1
            if number % every == 0:
                self.look()

    def look(self) -> None:
        self.other.consider()
        self.own.stop(60)
        self.other.consider()

    def answer(self, segment: np.ndarray) -> np.ndarray:
        assert self.slots.engine is not None
        return self.other.engine_for(self.slots.engine).run(segment)

    def accuracy(self) -> float:
        """Of segments that the device has not seen."""
        segments, labels = drawn(120, 99, self.classes)
        outputs = np.stack([self.answer(segment) for segment in self.sensor(segments)])
        return float(self.task.correct(outputs, labels).mean())

    @property
    def answering(self) -> str:
        assert self.slots.engine is not None
        return self.other.engine_for(self.slots.engine).model

    @property
    def state(self) -> ChallengerState:
        assert self.other.state is not None
        return self.other.state


def mended(folder: Path, *, norm: bool = True) -> Device:
    """One whose sensor has drifted, and which has saved that."""
    device = Device(folder, norm=norm)
    device.windows(14, every=14)
    assert device.answering == device.slots.active
    device.sensor = changed
    assert device.accuracy() < 0.7
    device.windows(16)
    assert len(device.requests) < 10  # each with half as many labels again
    device.samples.save()
    return device


@pytest.fixture(scope="session")
def before(tmp_path_factory: pytest.TempPathFactory) -> Device:
    return mended(tmp_path_factory.mktemp("device"))


@pytest.fixture
def drifted(before: Device, tmp_path: Path) -> Device:
    return Device(tmp_path, after=before)


@pytest.mark.parametrize("norm", [True, False], ids=["batch norm", "none"])
def test_a_device_whose_sensor_has_changed_answers_as_before(
    before: Device, tmp_path: Path, norm: bool
) -> None:
    device = before if norm else mended(tmp_path, norm=False)
    assert device.samples.drifting
    assert device.accuracy() > 0.95
    assert device.answering.startswith(f"{device.slots.active}.a")
    assert release_of(device.answering) == device.slots.active
    assert device.state.loss < device.state.base_loss
    assert device.state.text.startswith(f"input adapter {device.answering} answers: error 0.0")


def test_labels_show_what_the_inputs_do_not(tmp_path: Path) -> None:
    device = Device(tmp_path)
    device.windows(14, every=14)
    device.sensor = lambda segments: segments[:, ::-1].copy()  # each channel as before
    assert device.accuracy() < 0.7
    device.windows(20)
    assert device.samples.drifting == "labels"
    assert device.accuracy() > 0.95
    device.windows(40)
    assert device.samples.drifting == ""
    assert device.accuracy() > 0.95


@pytest.mark.parametrize("released", [True, False])
def test_a_release_that_is_worse_here_is_no_drift(tmp_path: Path, released: bool) -> None:
    device = Device(tmp_path)
    watch = DriftWatch(device.task, device.slots, device.samples)
    for window in range(40):
        if window == 20 and released:
            device.serve(2)
        segments, labels = drawn(10, device.seen)
        for segment, label in zip(segments, labels, strict=True):
            answer = np.eye(3, dtype=np.float32)[int(label[0] + (window >= 20)) % 3]
            device.samples.add(device.seen, HOP * device.seen, segment, answer, TRAIN, label)
            device.seen += 1
        assert device.slots.engine is not None
        watch.look(device.slots.engine)
    assert device.samples.drifting == ("" if released else "labels")


def test_nothing_answers_for_a_sensor_that_is_as_it_was(tmp_path: Path) -> None:
    device = Device(tmp_path)
    device.windows(40)
    assert not device.samples.drifting
    assert [request.op for request in device.requests][:1] == ["adapt"]
    assert device.answering == device.slots.active


def test_without_a_label_the_inputs_decide_and_it_is_said(tmp_path: Path) -> None:
    device = Device(tmp_path)
    device.sensor = right
    device.windows(14, told=0.0)
    device.sensor = lambda segments: 2.0 * segments + 3.0
    assert device.accuracy() < 0.7
    device.windows(40, told=0.0)
    assert device.accuracy() > 0.9
    assert (
        device.state.text
        == f"input adapter {device.answering} answers: without labels, by its inputs"
    )
    assert device.state.segments == 0


@pytest.mark.parametrize("told", [0.0, 1.0], ids=["no label", "all labels"])
def test_one_class_for_an_hour_is_not_folded_into_others(tmp_path: Path, told: float) -> None:
    device = Device(tmp_path)
    device.windows(14, told=told, every=14)
    device.classes = 1
    device.windows(60, told=told)
    assert device.accuracy() == 1.0
    device.classes = 3
    assert device.accuracy() > 0.95


def test_it_ends_when_the_sensor_is_put_right(drifted: Device) -> None:
    device = drifted
    device.sensor = right
    assert device.accuracy() < 0.7
    device.windows(30)
    assert device.accuracy() > 0.95
    assert device.answering == device.slots.active
    device.windows(60)
    assert not device.samples.drifting


def test_a_restart_and_a_release_find_what_answered(before: Device, drifted: Device) -> None:
    device = drifted
    assert (device.answering, device.samples.drifting) == (before.answering, "inputs")
    assert device.requests == []
    assert device.accuracy() > 0.95
    second = device.serve(2)
    device.other.consider()  # at once, before another is fitted
    assert device.answering.startswith(f"{second}.a")
    assert device.accuracy() > 0.95
    device.own.stop(60)
    device.requests = []
    device.slots.withdraw({}, "1-aaaaaaaa")  # a canary: it is about the sensor
    device.look()
    assert device.answering.startswith(f"{second}.a")
    assert device.requests == []
    device.slots.withdraw({}, second)
    device.look()
    assert device.answering.startswith(f"{second}.a")


def test_a_canary_answers_behind_the_adapter_that_stood_before(tmp_path: Path) -> None:
    """Else what it is offered would be compared with what an adapter has made of the stable one."""
    device = Device(tmp_path)
    device.reference = b""  # nothing is known of drift: labels call for it
    first, device.sensor = device.serve(2), changed
    device.windows(20)
    assert (device.samples.drifting, device.answering) == ("", device.state.model)
    second = device.serve(3)
    device.slots.withdraw({}, first)  # all devices serve the first one
    device.requests = []
    device.windows(2)
    assert device.answering.startswith(f"{second}.a")
    assert device.accuracy() > 0.95
    assert device.requests == []
    assert device.state.text.endswith(f" segments with {first}")  # with which it was compared


def test_a_round_trains_behind_it(drifted: Device) -> None:
    device, path = drifted, drifted.folder / "round.rows"

    def right_in_a_round() -> float:
        with path.open("wb") as file:
            device.samples.write_training_rows(file)
        rows = read_all(path)
        outputs = learning.predict(device.model, rows["segment"].copy())
        return float(device.task.correct(outputs, rows["label"]).mean())

    assert right_in_a_round() > 0.85  # what came before the alarm is as it was
    device.samples.behind = None
    assert right_in_a_round() < 0.75


@pytest.mark.parametrize(
    "step", ["while it is fitted", "before it is stored", "after it is stored"]
)
def test_killed_at_each_step_a_device_mends_itself_all_the_same(
    drifted: Device, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = drifted
    (device.folder / "challenger.safetensors").unlink()
    device.start()
    write = challenger.write_atomic

    def dies(path: Path, data: bytes, mode: int = 0) -> None:
        if step == "after it is stored":
            write(path, data, mode=mode)
        raise Killed

    if step == "while it is fitted":
        device.own.consider(device.slots.engine)  # type: ignore[arg-type]
    else:
        monkeypatch.setattr(challenger, "write_atomic", dies)
        with pytest.raises(Killed):
            device.look()
        monkeypatch.undo()
    device.start()
    device.other.consider()
    assert device.answering.startswith(f"{device.slots.active}.a") == (step == "after it is stored")
    device.look()
    assert device.accuracy() > 0.95
