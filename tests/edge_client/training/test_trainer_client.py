"""The trainer: a real child process, which may die without taking anything with it."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import safetensors.numpy

from edge_client.inference.slots import Slots
from edge_client.samples.samples import Samples
from edge_client.samples.table import HELD_OUT, TRAIN
from edge_client.training.trainer_client import Trainer
from streams.contract.task import Task, load_task
from streams.contract.weights import payload
from streams.contract.work import PERSONAL, Op, WorkReply, WorkRequest
from streams.learning.learning import to_safetensors
from streams.runtime.trust import create_key
from tests.rig.made_up.documents import work_request
from tests.rig.made_up.models import TINY, artifact, plain, tiny
from tests.rig.processes.polling import until
from tests.rig.unwrap import unwrap

TASK = f"""
import dataclasses
from streams.contract.task import load_task


def build_model():
    from torch import nn

    return nn.Sequential(
        nn.Conv1d(2, 4, 5), nn.BatchNorm1d(4), nn.ReLU(),
        nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(4, 3),
    )


task = dataclasses.replace(load_task({TINY!r}), build_model=build_model)
"""


FIT_S = 10.0  # of processor time, in which an adapter for `samples` is fitted

ENDS_IDLE = """
import atexit
import signal
import sys
import time
from pathlib import Path


def idle(*_):
    raise TimeoutError


def linger():
    Path(__file__).with_name("ended").touch()
    time.sleep(3)


if sys.argv[0].endswith("__main__.py"):  # not in the test
    signal.signal(signal.SIGUSR1, idle)
    atexit.register(linger)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The device's; most tests share its child, which takes seconds to import torch."""
    return tmp_path_factory.mktemp("device")


def written(folder: Path) -> str:
    """A task with a process name of its own, whose model has 0-d tensors: batch norm's counters."""
    path = folder / "normed.py"
    path.write_text(TASK)
    return f"{path}:task"


@pytest.fixture(scope="module")
def reference(folder: Path) -> str:
    return written(folder)


@pytest.fixture(scope="module")
def task(reference: str) -> Task:
    return load_task(reference)


@pytest.fixture(scope="module")
def samples(task: Task, folder: Path) -> Samples:
    """120 labelled segments to learn from and 40 held out; the label shifts the mean."""
    found = Samples(task, folder / "samples.rows")
    noise = np.random.default_rng(0)
    for i in range(160):
        label = np.array([i % 3], np.float32)
        segment = noise.normal(2.0 * label, 0.3, task.segment_shape).astype(np.float32)
        split = HELD_OUT if i % 4 == 3 else TRAIN
        found.add(i, i, segment, np.zeros(3, np.float32), split, label)
    return found


@contextmanager
def running(reference: str, folder: Path, samples: Samples, *more: Any) -> Iterator[Trainer]:
    made = Trainer(reference, "d0", folder, samples, *more)
    yield made
    made.stop()
    assert children(reference) == []
    assert not list(folder.glob("*.arrow"))
    assert not (folder / "trainer.stop").exists()


@pytest.fixture(scope="module")
def trainer(reference: str, samples: Samples, folder: Path) -> Iterator[Trainer]:
    with running(reference, folder, samples) as made:
        yield made


class Weather:
    """Conditions that a test changes."""

    why: str | None = None

    def against_training(self) -> str | None:
        return self.why


@pytest.fixture(scope="module")
def weights(task: Task) -> bytes:
    return to_safetensors(task.build_model().state_dict())


def request(op: Op = "train", epochs: int = 20, budget_s: float = 60.0) -> WorkRequest:
    more = {"base": "1-aaaaaaaa", "seed": 3, "time_budget_s": budget_s}
    return work_request(op, epochs=epochs, **more)


def children(reference: str) -> list[int]:
    """The trainer processes of this test's task that are alive."""
    alive = psutil.process_iter(["pid", "cmdline"])
    words = {"edge_client.training", reference}
    return [each.info["pid"] for each in alive if words <= {*(each.info["cmdline"] or ())}]


class Working(threading.Thread):
    """A request on its way while the test does something to the child."""

    def __init__(self, trainer: Trainer, weights: bytes, asked: WorkRequest) -> None:
        super().__init__()
        self._call = lambda: trainer.work(asked, weights)
        self.answer: tuple[WorkReply, bytes] | None = None
        self.start()

    def run(self) -> None:
        self.answer = self._call()

    def result(self) -> tuple[WorkReply, bytes]:
        self.join(60)
        assert self.answer is not None
        return self.answer


def test_training_gives_other_weights_of_the_same_form(trainer: Trainer, weights: bytes) -> None:
    reply, body = trainer.work(request(), weights)
    assert reply.error is None
    assert (reply.device, reply.base, reply.samples) == ("d0", "1-aaaaaaaa", 120)
    assert reply.metrics["evaluated"] == 40
    assert 0 <= reply.metrics["correct"] <= 40
    assert (reply.metrics["steps"], reply.metrics["true_labels"]) == (160, 120)
    sent, found = safetensors.numpy.load(weights), payload.unpack(body)
    assert set(found) == set(sent)
    for name, tensor in sent.items():
        assert (found[name].shape, found[name].dtype) == (tensor.shape, tensor.dtype), name
        assert np.isfinite(found[name]).all()
    assert found["1.num_batches_tracked"].shape == ()
    assert any(not np.array_equal(found[name], sent[name]) for name in sent)


def test_one_child_of_low_priority_serves_all_requests_and_the_end_stops_a_training(
    samples: Samples, weights: bytes, tmp_path: Path
) -> None:
    own = written(tmp_path)
    with running(own, tmp_path, samples) as trainer:
        assert children(own) == []  # on demand
        trainer.prepare()
        until(lambda: children(own), "the child runs")
        [child] = children(own)
        trainer.work(request("evaluate"), weights)
        trainer.work(request("evaluate"), weights)
        assert children(own) == [child]
        assert os.getpriority(os.PRIO_PROCESS, child) == 10
        working = Working(trainer, weights, request(epochs=1_000_000))
        until(lambda: trainer.busy, "the request is on its way")
    working.result()


def test_a_candidate_is_compared_with_the_version_served_where_that_is_the_runs_base(
    reference: str, samples: Samples, weights: bytes, tmp_path: Path
) -> None:
    trainer = Trainer(reference, "d0", tmp_path, samples, served={"1-aaaaaaaa": weights}.get)
    try:
        trained = trainer.work(request(), weights)[1]
        reply, _ = trainer.work(request("evaluate"), trained)
        other = request("evaluate").replace(base="2-bbbbbbbb")
        alone, _ = trainer.work(other, trained)
    finally:
        trainer.stop()
    metrics = reply.metrics
    assert metrics["evaluated"] == 40
    assert metrics["gained"] > 10
    assert metrics["correct"] == metrics["base_correct"] + metrics["gained"] - metrics["lost"]
    assert sum(metrics[f"class-{n}-evaluated"] for n in range(3)) == 40
    assert alone.metrics == {name: metrics[name] for name in ("evaluated", "correct")}


def test_a_part_of_a_model_is_filled_in_from_the_base_or_refused(
    samples: Samples, weights: bytes, tmp_path: Path
) -> None:
    path, only = tmp_path / "head.py", 'dataclasses.replace(task.training, train_only=("5",))'
    path.write_text(f"{TASK}\ntask = dataclasses.replace(task, training={only})\n")
    trainer = Trainer(f"{path}:task", "d0", tmp_path, samples, served={"1-aaaaaaaa": weights}.get)
    whole = payload.unpack(weights)
    part = payload.pack({name: whole.pop(name) for name in ("5.weight", "5.bias")})
    try:
        replies = {}
        for op in ("train", "evaluate"):
            asked = request(op).replace(part=True)  # type: ignore[arg-type]
            replies[op] = trainer.work(asked, part)[0]
            other = asked.replace(base="2-bbbbbbbb")
            reply, nothing = trainer.work(other, part)
            said = "base: 2-bbbbbbbb, of which a part was sent, is not on this device"
            assert (reply.error, nothing) == (said, b"")
    finally:
        trainer.stop()
    assert [reply.error for reply in replies.values()] == [None, None]
    assert replies["train"].samples == 120
    assert replies["evaluate"].metrics["gained"] == replies["evaluate"].metrics["lost"] == 0


def test_what_a_device_has_is_handed_over_verified_or_not_at_all(tmp_path: Path) -> None:
    key = create_key(tmp_path / "signing.pem")
    slots = Slots(tmp_path / "slots", tiny, [key.public_key()])
    served = slots.weights_of
    assert served("") is None
    slots.install(artifact(key, plain(1)))
    before = unwrap(slots.active)
    slots.install(artifact(key, plain(0), 2))
    model = unwrap(slots.active)
    assert served(before) != served(model)
    assert served(before) is not None
    found = unwrap(served(model))
    assert set(safetensors.numpy.load(found)) == set(plain(0).state_dict())
    assert served("2-bbbbbbbb") is None
    path = tmp_path / "slots" / f"{model}.twa"
    path.write_bytes(path.read_bytes()[:-1])
    assert served(model) is None


def test_weights_that_do_not_fit_are_an_error_in_the_reply(
    trainer: Trainer, weights: bytes
) -> None:
    other = safetensors.numpy.load(weights)
    other["0.weight"] = np.zeros((4, 2, 9), np.float32)
    for body in (b"", b"not safetensors", safetensors.numpy.save(other)):
        reply, nothing = trainer.work(request(), body)
        assert reply.error is not None
        assert "\n" not in reply.error
        assert nothing == b""
    assert trainer.work(request(), weights)[0].error is None


@pytest.mark.parametrize(
    ("by", "says"),
    [
        (signal.SIGKILL, "was killed (SIGKILL), perhaps for want of memory"),
        (signal.SIGTERM, "was killed (SIGTERM)"),
        (signal.SIGRTMIN + 1, f"was killed (signal {signal.SIGRTMIN + 1})"),
    ],
)
def test_a_child_killed_at_work_is_an_error_and_the_next_request_has_a_new_one(
    trainer: Trainer, weights: bytes, reference: str, by: signal.Signals, says: str
) -> None:
    trainer.work(request("evaluate"), weights)  # the imports are done
    [child] = children(reference)
    working = Working(trainer, weights, request(epochs=1_000_000))
    until(lambda: trainer.busy, "the request is on its way")
    os.kill(child, by)
    reply, body = working.result()
    assert reply.error == f"trainer: its process {says}"
    assert body == b""
    assert trainer.work(request(), weights)[0].error is None
    assert children(reference) != [child]


def test_a_request_to_a_child_that_ended_idle_is_for_a_new_one_however_long_it_takes_to_exit(
    samples: Samples, weights: bytes, tmp_path: Path
) -> None:
    """A signal is its timeout, and it needs three seconds for its exit."""
    reference = written(tmp_path)
    with (tmp_path / "normed.py").open("a") as file:
        file.write(ENDS_IDLE)
    with running(reference, tmp_path, samples) as trainer:
        trainer.work(request("evaluate"), weights)
        [child] = children(reference)
        os.kill(child, signal.SIGUSR1)
        until((tmp_path / "ended").exists, "it has closed its socket")
        assert children(reference) == [child]
        assert trainer.work(request("evaluate"), weights)[0].error is None
        assert children(reference) not in ([], [child])


def test_an_agent_that_stops_does_not_wait_for_a_training_without_processor_time(
    samples: Samples, weights: bytes, tmp_path: Path
) -> None:
    reference = written(tmp_path)
    trainer = Trainer(reference, "d0", tmp_path, samples)
    trainer.work(request("evaluate"), weights)  # the imports are done
    [child] = children(reference)
    working = Working(trainer, weights, request(epochs=1_000_000, budget_s=600.0))
    until(lambda: trainer.busy, "the request is on its way")
    os.kill(child, signal.SIGSTOP)
    trainer.stop(wait_s=0.5)
    reply, _ = working.result()
    assert reply.error is not None
    assert children(reference) == []


def test_an_adapter_is_fitted_by_a_trainer_that_waits_for_a_core_longer_than_its_budget(
    trainer: Trainer, weights: bytes, reference: str
) -> None:
    """As on a busy machine: the fit gives way to all others, so its budget is processor time."""
    asked = request("evaluate", budget_s=FIT_S).replace(op="adapt", run=PERSONAL)
    trainer.work(request("evaluate"), weights)  # the imports are done
    [child] = children(reference)
    before = busy_s(child)
    working = Working(trainer, weights, asked)
    until(lambda: busy_s(child) > before + 0.1, "it fits", pause_s=0.01)
    os.kill(child, signal.SIGSTOP)
    time.sleep(1.2 * FIT_S)  # without a core
    assert trainer.busy
    os.kill(child, signal.SIGCONT)
    reply, body = working.result()
    assert reply.error is None
    assert body


def test_a_round_does_not_wait_for_a_personal_training_that_hangs(
    samples: Samples, weights: bytes, tmp_path: Path
) -> None:
    reference = written(tmp_path)
    with running(reference, tmp_path, samples) as trainer:
        trainer.yields_s = 1.0
        trainer.work(request("evaluate"), weights)
        own = Working(trainer, weights, request(epochs=10_000).replace(run=PERSONAL, limit_s=600.0))
        until(lambda: trainer.busy, "it trains for itself")
        for child in children(reference):
            os.kill(child, signal.SIGSTOP)
        assert trainer.work(request("evaluate"), weights)[0].error is None
        says = "trainer: its process was killed, as it did not stop in time"
        assert own.result()[0].error == says


def test_what_a_device_trains_for_itself_lets_all_other_processes_go_first(
    trainer: Trainer, weights: bytes, reference: str
) -> None:
    group = Path("/proc/self/autogroup")
    if not group.exists():
        pytest.skip("sessions do not share the cores here")
    before = group.read_text()
    for run, nice in ((PERSONAL, "nice 19"), ("7", "nice 0"), (PERSONAL, "nice 19")):
        trainer.work(request("evaluate").replace(run=run), weights)
        [child] = children(reference)
        assert Path(f"/proc/{child}/autogroup").read_text().strip().endswith(nice)
    assert group.read_text() == before


AGENT = """
import sys
from pathlib import Path
from edge_client.samples.samples import Samples
from edge_client.training.trainer_client import Trainer
from streams.contract.task import load_task
from tests.edge_client.training.test_trainer_client import request

folder, reference = Path(sys.argv[1]), sys.argv[2]
samples = Samples(load_task(reference), folder / "samples.rows")
weights = (folder / "weights").read_bytes()
Trainer(reference, "d0", folder, samples).work(request(epochs=10**6, budget_s=600.0), weights)
"""


def test_a_training_ends_with_its_agent(
    samples: Samples, weights: bytes, folder: Path, tmp_path: Path
) -> None:
    reference = written(tmp_path)
    samples.save()
    shutil.copy(folder / "samples.rows", tmp_path / "samples.rows")
    (tmp_path / "weights").write_bytes(weights)
    command = [sys.executable, "-c", AGENT, str(tmp_path), reference]
    agent = subprocess.Popen(command, start_new_session=True)
    until(lambda: any(busy_s(child) > 4.0 for child in children(reference)), "it trains")
    os.killpg(agent.pid, signal.SIGKILL)
    agent.wait()
    until(lambda: children(reference) == [], "the training has ended", 15)


def busy_s(child: int) -> float:
    with contextlib.suppress(psutil.Error):
        return sum(psutil.Process(child).cpu_times()[:2])
    return 0.0


def test_the_time_budget_ends_a_training(trainer: Trainer, weights: bytes) -> None:
    trainer.work(request(), weights)  # the first training imports more of torch
    began = time.monotonic()
    reply, body = trainer.work(request(epochs=1_000_000, budget_s=1.0), weights)
    assert time.monotonic() - began < 30
    assert reply.error is None
    assert body
    assert reply.metrics["steps"] > 0


def test_a_training_that_diverges_is_told_by_its_weights_not_by_a_broken_reply(
    trainer: Trainer, weights: bytes
) -> None:
    """JSON has no NaN; admission refuses the weights, and the child goes on."""
    asked = request().replace(learning_rate=1e30)
    reply, body = trainer.work(asked, weights)
    assert reply.error is None
    assert "loss" not in reply.metrics
    found = payload.unpack(body)
    assert not all(np.isfinite(tensor).all() for tensor in found.values())


def test_a_training_without_a_step_is_an_error_in_the_reply(
    trainer: Trainer, weights: bytes
) -> None:
    reply, body = trainer.work(request(budget_s=1e-9), weights)
    assert reply.error is not None
    assert reply.error.startswith("stopped: ")
    assert body == b""


@pytest.mark.usefixtures("executed")
def test_the_child_ends_when_the_agents_side_is_closed(reference: str) -> None:
    """So that a killed agent leaves no trainer behind."""
    ours, theirs = socket.socketpair()
    with theirs:
        argv = [
            sys.executable,
            "-m",
            "edge_client.training",
            reference,
            str(theirs.fileno()),
        ]
        child = subprocess.Popen(argv, pass_fds=[theirs.fileno()])
    try:
        ours.close()
        assert child.wait(60) == 0
    finally:
        child.kill()
        child.wait()


def test_a_device_that_should_not_train_says_why_and_evaluates_all_the_same(
    samples: Samples, weights: bytes, tmp_path: Path
) -> None:
    weather, own = Weather(), written(tmp_path)
    with running(own, tmp_path, samples, weather) as trainer:
        weather.why = "on battery at 12%, below 30%"
        reply, body = trainer.work(request(), weights)
        assert (reply.error, body) == ("conditions: on battery at 12%, below 30%", b"")
        assert trainer.held_back == weather.why
        trainer.prepare()
        assert children(own) == []
        reply, _ = trainer.work(request("evaluate"), weights)
        assert (reply.error, reply.samples) == (None, 40)
        weather.why = None
        working = Working(trainer, weights, request(epochs=1_000_000))
        until(lambda: trainer.busy, "the request is on its way")
        weather.why = "91 degrees Celsius, above 80"  # it gets too hot: it ends with what it has
        until(lambda: trainer.watch() is None and not trainer.busy, "the training has ended")
        reply, _ = working.result()
        assert reply.error is None or reply.error.startswith("stopped: no step")
        assert trainer.held_back == weather.why
