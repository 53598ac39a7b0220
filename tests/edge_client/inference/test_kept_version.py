"""A device keeps the version before while the served one is worse for it, through restarts."""

from pathlib import Path

import numpy as np
import pytest
import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from torch import nn

from edge_client.inference import kept_version
from edge_client.inference.engine import Engine
from edge_client.inference.kept_version import KEEP_H, KeptVersion
from edge_client.inference.slots import Slots
from edge_client.samples.samples import Samples
from edge_client.samples.splits import HELD_OUT, NEITHER, TRAIN
from streams.contract.documents import release_of
from streams.contract.task import Task
from streams.runtime.key_files import create_key, load_public_key
from tests.rig.made_up.models import artifact, tiny

WINDOW = tiny.window_us


def always(answer: int) -> nn.Module:
    """The tiny task's model, which answers one class."""
    torch.manual_seed(answer)
    model = tiny.build_model()
    last = [module for module in model.modules() if isinstance(module, nn.Linear)][-1]
    with torch.no_grad():
        last.weight.zero_()
        last.bias.copy_(torch.nn.functional.one_hot(torch.tensor(answer), 3).float())
    return model.eval()


class NoOther:
    """No personal model."""

    def __init__(self) -> None:
        self.dropped: list[str] = []

    def engine_for(self, base: Engine) -> Engine:
        return base

    def drop(self, reason: str) -> None:
        self.dropped.append(reason)


class Device:
    """A device on which class 0 is right in four of five segments."""

    def __init__(self, folder: Path, key: Ed25519PrivateKey, task: Task = tiny) -> None:
        self.folder, self.key, self.task = folder, key, task
        self.now_s, self.seen = 1e9, 0
        self.samples = Samples(task, folder / "samples.rows")
        self.start()

    def start(self) -> None:
        """As after a kill, but for the samples."""
        trusted = [load_public_key(self.folder / "keys" / "signing.pub")]
        self.slots, self.other = Slots(self.folder / "slots", self.task, trusted), NoOther()
        self.slots.open()
        self.kept = KeptVersion(
            self.task, self.folder, self.slots, self.samples, self.other, wall=lambda: self.now_s
        )

    def serve(self, number: int, answer: int, *, stable: bool = True) -> str:
        model = self.slots.install(artifact(self.key, always(answer), number)).model
        self.slots.withdraw({}, model if stable else self.slots.previous)
        return model

    def see(self, count: int, right: int = 0, split: int = TRAIN, at: int | None = None) -> None:
        noise = np.random.default_rng(self.seen)
        for i in range(self.seen, self.seen + count):
            label = np.array([right if i % 5 else (right + 1) % 3], np.float32)
            segment = noise.normal(0, 1, self.task.segment_shape).astype(np.float32)
            answer = np.eye(3, dtype=np.float32)[int(label[0])]
            self.samples.add(i, i if at is None else at + i, segment, answer, split, label)
        self.seen += count

    @property
    def answering(self) -> str:
        assert self.slots.engine is not None
        return self.kept.engine_for(self.slots.engine).model


@pytest.fixture
def device(tmp_path: Path) -> Device:
    return Device(tmp_path, create_key(tmp_path / "keys" / "signing.pem"))


def kept_against_worse(device: Device) -> tuple[str, str]:
    first = device.serve(1, 0)
    device.see(60)
    device.kept.consider()
    assert device.answering == first  # there is no version before
    second = device.serve(2, 1)
    device.kept.consider()
    assert device.answering == f"{second}.k{first}"
    return first, second


def test_a_version_that_is_worse_here_does_not_answer(device: Device) -> None:
    first, second = kept_against_worse(device)
    state = device.kept.told
    assert state is not None
    assert (state.model, state.against, state.segments) == (first, second, 60)
    assert (state.loss, state.offered_loss) == (pytest.approx(0.2), pytest.approx(0.8))
    assert release_of(device.answering) == second  # what judges the release counts it
    assert device.slots.active == second
    assert "keeps 1-" in state.text
    assert "error 0.20 against 0.80 on 60 segments" in state.text


def test_a_version_that_is_better_answers(device: Device) -> None:
    device.serve(1, 1)
    device.see(60)
    second = device.serve(2, 0)
    device.kept.consider()
    assert (device.answering, device.kept.state) == (second, None)


def test_nothing_is_kept_without_labels_or_with_labels_of_few_classes(device: Device) -> None:
    device.serve(1, 0)
    second = device.serve(2, 1)
    device.see(7)
    device.kept.consider()
    assert device.answering == second
    for i in range(100, 160):  # of classes that have no label
        device.samples.add(i, i, np.zeros(tiny.segment_shape, np.float32),
                           np.array([0, 0, 1], np.float32), TRAIN, None)  # fmt: skip
    device.see(20)
    device.kept.consider()
    assert (device.answering, device.kept.state) == (second, None)
    device.see(400)
    device.kept.consider()
    assert device.answering.startswith(f"{second}.k1-")


def test_a_canary_answers_with_what_it_is_offered(device: Device) -> None:
    first, second = kept_against_worse(device)
    third = device.serve(3, 2, stable=False)
    device.kept.consider()
    assert (device.answering, device.kept.told) == (third, None)
    device.slots.withdraw({}, third)  # all devices serve it: now it is compared with what was kept
    device.kept.consider()
    assert device.answering == f"{third}.k{first}"
    assert device.kept.state is not None
    assert device.kept.state.against == third
    fourth = device.serve(4, 0)
    device.kept.consider()
    assert (device.answering, device.kept.state) == (fourth, None)
    assert not (device.folder / "kept.twa").exists()
    assert second not in device.answering


def test_a_restart_goes_on_with_the_kept_version_before_any_comparison(device: Device) -> None:
    first, second = kept_against_worse(device)
    device.samples = Samples(tiny, device.folder / "other.arrow")
    device.start()
    assert device.slots.stable is None  # no decision has come yet
    device.kept.consider()
    assert device.answering == f"{second}.k{first}"


@pytest.mark.parametrize("name", ["kept.json", "kept.twa"])
def test_files_that_are_damaged_end_it(device: Device, name: str) -> None:
    _, second = kept_against_worse(device)
    (device.folder / name).write_bytes(b"{}")
    device.start()
    device.kept.consider()
    assert (device.answering, device.kept.state) == (second, None)
    assert not list(device.folder.glob("kept.*"))


def test_a_withdrawn_version_is_never_kept(device: Device) -> None:
    first, second = kept_against_worse(device)
    device.slots.withdraw({first: "unsafe"}, second)
    device.kept.consider()
    assert (device.answering, device.kept.state) == (second, None)
    device.see(200)
    device.kept.consider()
    assert device.answering == second
    device.start()
    device.kept.consider()
    assert device.answering == second


def test_it_is_kept_for_a_stated_time_only(device: Device) -> None:
    _, second = kept_against_worse(device)
    device.now_s += 3600 * (KEEP_H + 1)
    device.kept.consider()
    assert (device.answering, device.kept.state) == (second, None)
    device.see(400)
    device.kept.consider()
    assert device.answering == second


def test_labels_that_speak_for_the_served_version_end_it(device: Device) -> None:
    _, second = kept_against_worse(device)
    device.see(400, right=1)
    device.kept.consider()
    assert (device.answering, device.kept.state) == (second, None)


def test_a_kept_version_that_raises_is_given_up(
    device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, second = kept_against_worse(device)
    device.kept.drop("failed: no memory")
    assert (device.answering, device.other.dropped) == (second, [])
    device.see(400)
    device.kept.consider()
    assert device.answering == second
    device.kept.drop("failed again")
    assert device.other.dropped == ["failed again"]


def test_what_only_reports_does_not_choose(device: Device) -> None:
    device.serve(1, 0)
    second = device.serve(2, 1)
    device.see(60, split=HELD_OUT, at=7 * WINDOW)
    device.kept.consider()
    assert device.answering == second
    assert len(device.samples.held_out(100)[0]) == 0  # nor does it choose a personal model
    device.see(60, split=HELD_OUT, at=11 * WINDOW)
    device.kept.consider()
    assert device.answering != second


def test_what_a_version_may_have_been_trained_on_does_not_choose(device: Device) -> None:
    device.see(10)
    device.see(6, split=HELD_OUT)
    device.see(4, split=NEITHER)
    later_us = int(device.samples._wall() * 1e6) + 10**9
    assert len(device.samples.choosing(100, 1)[0]) == 16
    assert len(device.samples.choosing(100, later_us)[0]) == 6
    device.samples._wall = lambda: later_us / 1e6 + 1
    device.see(5)
    assert len(device.samples.choosing(100, later_us)[0]) == 11
    device.seen = 0
    device.see(10, at=1000)  # the first ones again: they were known before
    assert len(device.samples.choosing(100, later_us)[0]) == 11


def test_a_crash_between_two_files_is_nothing_lost(
    device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = device.serve(1, 0)
    device.see(60)
    second = device.serve(2, 1)
    real = kept_version.write_atomic

    def dies(path: Path, data: bytes) -> None:
        if path.name == "kept.json":
            raise OSError("no space")
        real(path, data)

    monkeypatch.setattr(kept_version, "write_atomic", dies)
    device.kept.consider()
    assert (device.answering, (device.folder / "kept.twa").exists()) == (second, True)
    monkeypatch.setattr(kept_version, "write_atomic", real)
    device.start()
    device.slots.withdraw({}, second)
    device.kept.consider()
    assert device.answering == f"{second}.k{first}"
