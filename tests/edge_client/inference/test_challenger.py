"""Other weights answer while they are better here: the version before, or a copy; restarts too."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import torch
from torch import nn

from edge_client.inference import challenger
from edge_client.inference.challenger import LONGEST_H, Challenger, Trained
from edge_client.inference.engine import Engine
from edge_client.inference.slots import Slots
from edge_client.samples.samples import Samples
from edge_client.samples.table import HELD_OUT, NEITHER, TRAIN
from streams.contract.artifact import challenger_header
from streams.contract.documents import ChallengerState, Origin
from streams.contract.task import Task
from streams.contract.window_report import release_of
from streams.learning.learning import to_safetensors
from streams.runtime.trust import create_key
from tests.rig.made_up.models import artifact, tiny

WINDOW, HOP = tiny.window_us, 500_000
COPIES = replace(tiny, training=replace(tiny.training, personal=True))
ALONE = replace(tiny, training=replace(tiny.training, personal=True, choice="offered"))


def always(answer: int) -> nn.Module:
    """The tiny task's model, which answers one class."""
    torch.manual_seed(answer)
    model = tiny.build_model()
    last = [module for module in model.modules() if isinstance(module, nn.Linear)][-1]
    with torch.no_grad():
        last.weight.zero_()
        last.bias.copy_(torch.nn.functional.one_hot(torch.tensor(answer), 3).float())
    return model.eval()


class MadeWeights:
    """Gives what the test has made; `resumed` is what it was told after a restart."""

    def __init__(self) -> None:
        self.made: Trained | None = None
        self.resumed: list[tuple[str, str, int]] = []

    def consider(self, base: Engine, *, adapted: bool) -> Trained | None:
        made, self.made = self.made, None
        return made

    def resume(self, origin: Origin, base: str, number: int) -> None:
        self.resumed.append((origin, base, number))


class Device:
    """A device on which class 0 is right in four of five segments."""

    def __init__(self, folder: Path, task: Task = tiny) -> None:
        self.folder, self.task = folder, task
        self.key = create_key(folder / "keys" / "signing.pem")
        self.now_s, self.seen = 1e9, 0
        self.samples = Samples(task, folder / "samples.rows")
        self.start()

    def start(self) -> None:
        """As after a kill, but for the samples."""
        self.slots = Slots(self.folder / "slots", self.task, [self.key.public_key()])
        self.slots.open()
        self.own = MadeWeights()
        self.other = Challenger(
            self.task, self.folder, self.slots, self.samples, self.own,
            wall=lambda: self.now_s,
        )  # fmt: skip

    @property
    def path(self) -> Path:
        return self.folder / "challenger.safetensors"

    def serve(self, number: int, answer: int, *, stable: bool = True) -> str:
        model = self.slots.install(artifact(self.key, always(answer), number)).model
        self.slots.withdraw({}, model if stable else self.slots.previous)
        return model

    def copied(self, answer: int, number: int = 1) -> None:
        """A copy of what is served has been trained."""
        weights = to_safetensors(always(answer).state_dict())
        self.own.made = Trained("copy", self.slots.active or "", number, weights, 1)

    def see(self, count: int, right: int = 0, split: int = TRAIN, at: int | None = None) -> None:
        noise = np.random.default_rng(self.seen)
        for i in range(self.seen, self.seen + count):
            label = np.array([right if i % 5 else (right + 1) % 3], np.float32)
            segment = noise.normal(0, 1, self.task.segment_shape).astype(np.float32)
            answer = np.eye(3, dtype=np.float32)[int(label[0])]
            time_us = HOP * i if at is None else at + HOP * (i % 10) + 8 * WINDOW * (i // 10)
            self.samples.add(i, time_us, segment, answer, split, label)
        self.seen += count

    @property
    def answering(self) -> str:
        assert self.slots.engine is not None
        return self.other.engine_for(self.slots.engine).model

    @property
    def state(self) -> ChallengerState:
        assert self.other.state is not None
        return self.other.state


@pytest.fixture
def device(tmp_path: Path) -> Device:
    return Device(tmp_path)


def kept_against_worse(device: Device) -> tuple[str, str]:
    first = device.serve(1, 0)
    device.see(60)
    device.other.consider()
    assert device.answering == first  # there is no version before
    second = device.serve(2, 1)
    device.other.consider()
    assert device.answering == f"{second}.k{first}"
    return first, second


def copy_that_is_better(device: Device) -> str:
    base = device.serve(1, 1)
    device.see(60)
    device.copied(0)
    device.other.consider()
    assert device.answering == f"{base}.p1"
    return base


def begun(tmp_path: Path, origin: str) -> tuple[Device, str]:
    """A device with a challenger that answers, and the version that it is better than."""
    device = Device(tmp_path, tiny if origin == "previous" else COPIES)
    if origin == "previous":
        return device, kept_against_worse(device)[1]
    return device, copy_that_is_better(device)


both = pytest.mark.parametrize("origin", ["previous", "copy"])


def test_a_version_that_is_worse_here_does_not_answer(device: Device) -> None:
    first, second = kept_against_worse(device)
    state = device.state
    assert (state.origin, state.base, state.segments) == ("previous", second, 60)
    assert (state.loss, state.base_loss) == (pytest.approx(0.2), pytest.approx(0.8))
    assert release_of(device.answering) == second  # what judges the release counts it
    assert device.slots.active == second
    assert state.text == f"keeps {first}: error 0.20 against 0.80 on 60 segments"


def test_a_copy_that_is_better_answers_and_one_that_is_not_waits(tmp_path: Path) -> None:
    device = Device(tmp_path, COPIES)
    base = copy_that_is_better(device)
    assert device.state.text == (
        f"own copy {base}.p1 answers: error 0.20 against 0.80 on 60 segments"
    )
    assert device.slots.active == base  # what is served is the release
    assert challenger_header(device.path.read_bytes())[:2] == (base, f"{base}.p1")
    assert device.path.stat().st_mode & 0o777 == 0o600
    engine = device.slots.engine
    assert engine is not None
    assert device.other.engine_for(engine).latencies is engine.latencies
    device.copied(2, number=2)
    device.other.consider()
    assert device.answering == base
    assert (device.state.model, device.state.answers) == (f"{base}.p2", False)
    device.see(400, right=2)
    device.other.consider()
    assert device.answering == f"{base}.p2"


def test_without_evidence_of_the_classes_that_are_seen_nothing_else_answers(
    device: Device,
) -> None:
    device.serve(1, 0)
    second = device.serve(2, 1)
    device.see(7)
    device.other.consider()
    assert device.answering == second
    for i in range(100, 160):  # of classes that have no label
        device.samples.add(i, i, np.zeros(tiny.segment_shape, np.float32),
                           np.array([0, 0, 1], np.float32), TRAIN, None)  # fmt: skip
    device.see(20)
    device.other.consider()
    assert (device.answering, device.other.state) == (second, None)
    device.see(400)
    device.other.consider()
    assert device.answering.startswith(f"{second}.k1-")


def test_a_canary_answers_with_what_it_is_offered(device: Device) -> None:
    first, second = kept_against_worse(device)
    third = device.serve(3, 2, stable=False)
    device.other.consider()
    assert (device.answering, device.state.answers) == (third, False)
    device.slots.withdraw({}, third)  # all devices serve it: now it is compared with what was kept
    device.other.consider()
    assert device.answering == f"{third}.k{first}"
    assert device.state.base == third
    fourth = device.serve(4, 0)
    device.other.consider()
    assert (device.answering, device.other.state) == (fourth, None)
    assert not device.path.exists()
    assert second not in device.answering


def test_another_release_ends_a_copy(tmp_path: Path) -> None:
    device = Device(tmp_path, ALONE)
    copy_that_is_better(device)
    second = device.serve(2, 1)
    assert device.answering == second  # at once, before anything is compared
    device.other.consider()
    assert (device.answering, device.other.state) == (second, None)
    assert not device.path.exists()


def test_a_copy_does_not_replace_a_version_that_was_better_than_its_base(tmp_path: Path) -> None:
    device = Device(tmp_path, COPIES)
    first, second = kept_against_worse(device)
    device.copied(2)
    device.other.consider()
    assert device.answering == f"{second}.k{first}"


@both
def test_a_restart_goes_on_with_what_answered_before_any_comparison(
    tmp_path: Path, origin: str
) -> None:
    device, base = begun(tmp_path, origin)
    answering = device.answering
    device.samples = Samples(device.task, device.folder / "other.rows")
    device.start()
    assert device.slots.stable is None  # no decision has come yet
    device.other.consider()
    assert device.answering == answering
    assert device.own.resumed == ([("copy", base, 1)] if origin == "copy" else [])


@both
def test_labels_that_may_not_choose_change_nothing(tmp_path: Path, origin: str) -> None:
    device, _ = begun(tmp_path, origin)
    answering = device.answering
    device.samples = Samples(device.task, device.folder / "other.rows")
    device.start()
    device.other.consider()
    device.see(20, right=1, split=NEITHER)
    device.other.consider()
    assert device.answering == answering
    device.see(400, right=1)
    device.other.consider()
    assert device.answering != answering


def test_a_version_that_is_kept_waits_for_labels_against_a_later_one(device: Device) -> None:
    first, _ = kept_against_worse(device)
    device.samples = Samples(device.task, device.folder / "other.rows")
    device.start()
    third = device.serve(3, 2)
    device.see(20, split=NEITHER)
    device.other.consider()
    assert (device.answering, device.state.answers) == (third, False)
    device.see(60)
    device.other.consider()
    assert device.answering == f"{third}.k{first}"


@both
@pytest.mark.parametrize("damage", ["empty", "no header", "no state", "other shapes", "cut off"])
def test_a_file_that_is_damaged_is_removed(tmp_path: Path, origin: str, damage: str) -> None:
    device, base = begun(tmp_path, origin)
    data = device.path.read_bytes()
    tensors = safetensors.numpy.load(data)
    size = int.from_bytes(data[:8], "little")
    header = data[8 : 8 + size]
    device.path.write_bytes({
        "empty": b"",
        "no header": safetensors.numpy.save(tensors),
        "no state": data[:8] + header.replace(b"origin", b"nigiro") + data[8 + size :],
        "other shapes": data[:8]
        + header.replace(b'"dtype":"F32"', b'"dtype":"I32"') + data[8 + size :],
        "cut off": data[:-1],
    }[damage])  # fmt: skip
    device.samples = Samples(device.task, device.folder / "other.rows")
    device.start()
    device.other.consider()
    assert (device.answering, device.other.state) == (base, None)
    assert not device.path.exists()


def test_a_withdrawn_version_is_never_kept(device: Device) -> None:
    first, second = kept_against_worse(device)
    device.slots.withdraw({first: "unsafe"}, second)
    device.other.consider()
    assert (device.answering, device.other.state) == (second, None)
    device.see(200)
    device.other.consider()
    assert device.answering == second
    device.start()
    device.other.consider()
    assert device.answering == second


@both
def test_it_stands_for_a_stated_time_only(tmp_path: Path, origin: str) -> None:
    device, base = begun(tmp_path, origin)
    device.now_s += 3600 * (LONGEST_H + 1)
    device.other.consider()
    assert (device.answering, device.other.state) == (base, None)
    device.see(400)
    device.other.consider()
    assert device.answering == base


@both
def test_labels_that_speak_for_the_served_version_end_it(tmp_path: Path, origin: str) -> None:
    device, base = begun(tmp_path, origin)
    device.see(400, right=1)
    device.other.consider()
    assert device.answering == base
    assert device.other.state is None or not device.state.answers


@both
def test_one_that_raises_is_given_up(tmp_path: Path, origin: str) -> None:
    device, base = begun(tmp_path, origin)
    device.other.drop("failed: no memory")
    assert (device.answering, device.other.state) == (base, None)
    assert not device.path.exists()
    device.see(400)
    device.other.consider()
    assert device.answering == base


def test_what_only_reports_does_not_choose(device: Device) -> None:
    device.serve(1, 0)
    second = device.serve(2, 1)
    device.see(60, split=HELD_OUT, at=7 * WINDOW)
    device.other.consider()
    assert device.answering == second
    device.see(60, split=HELD_OUT, at=11 * WINDOW)
    device.other.consider()
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


@both
def test_nothing_answers_that_a_restart_would_not_find(
    tmp_path: Path, origin: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = Device(tmp_path, tiny if origin == "previous" else COPIES)
    device.serve(1, 0 if origin == "previous" else 1)
    device.see(60)
    base = device.serve(2, 1)
    if origin == "copy":
        device.copied(0)

    def dies(path: Path, data: bytes, mode: int = 0) -> None:
        raise OSError("no space")

    monkeypatch.setattr(challenger, "write_atomic", dies)
    device.other.consider()
    assert device.answering == base
    monkeypatch.undo()
    device.start()
    device.slots.withdraw({}, base)
    if origin == "copy":
        device.copied(0)
    device.other.consider()
    assert device.answering != base
