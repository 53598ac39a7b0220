"""A fleet in one process: devices that keep samples, a run, and a device's choice. What decides is
the product's own code."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import safetensors.numpy
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from benchmarks.gains.recordings import Recording, Window, is_revealed
from benchmarks.support.in_process import BASE, Tensors, round_seed, rounds
from edge_client.inference.challenger import Challenger, Trained
from edge_client.inference.slots import Slots
from edge_client.samples.samples import Samples
from edge_client.training import trainer_process
from edge_client.training.own_weights import OwnWeights
from federation.admission import Update
from federation.bootstrap.initial_model import prepare
from federation.evaluation import device_metrics
from federation.evaluation.accuracy import HeldOut
from federation.evaluation.evidence import CandidateEvaluation, Results
from federation.evaluation.promotion_gate import Verdict
from federation.evaluation.quantization import renew_probe
from federation.evaluation.recent_windows import RecentWindows
from federation.registry.registry import HELD_OUT, Registry
from federation.rounds import strategies
from federation.rounds.fleet_reports import teacher_shares
from streams.contract.artifact import GRAPH, PROBE, WEIGHTS, Artifact, pack
from streams.contract.documents import DeviceState
from streams.contract.task import MINIMUM_SAMPLES, Task, load_task
from streams.contract.weights import payload
from streams.contract.weights.part import Part
from streams.contract.work import TrainerJob, WorkReply, WorkRequest
from streams.learning import learning
from streams.learning.drift_detector import compare
from streams.learning.drift_reference import Reference, observe
from streams.learning.teacher import Teacher, teacher_of
from streams.runtime.files import cache_folder
from streams.runtime.trust import create_key


class Device:
    """What a device keeps of its stream, and what answers on it: the product's slots, challenger
    and trainer, without its processes. Its clock is the event time of the last window."""

    def __init__(self, made: "Installation", name: str, folder: Path) -> None:
        self.name, self.now_us = name, 0
        self._task, self._made, self._folder = made.task, made, folder / name
        task, path = made.task, self._folder / "samples.rows"
        self.samples = Samples(task, path, dice=random.Random(name), wall=self._now_s)
        self.slots = Slots(self._folder / "slots", task, [made.key.public_key()])
        self._own = OwnWeights(
            task, self.slots, self.samples, self._work, clock=self._now_s, wall=self._now_s
        )
        self.challenger = Challenger(
            task, self._folder, self.slots, self.samples, self._own, wall=self._now_s
        )

    def _now_s(self) -> float:
        return self.now_us / 1e6

    def serve(self, model: bytes) -> None:
        """Serve a release, which all devices do."""
        self.slots.withdraw({}, self.slots.install(model).model)

    def answers(self, segments: np.ndarray) -> np.ndarray:
        """Return what the device answers now, (n, outputs)."""
        assert self.slots.engine is not None
        return self.challenger.engine_for(self.slots.engine).answers(segments)

    def look(self) -> None:
        """As the agent's keeper does, and wait for the training that it begins."""
        self.challenger.consider()
        self._own.stop(600.0)
        self.challenger.consider()

    def trained(self) -> Trained | None:
        """Return what the device trains now, whether or not it would answer with it."""
        assert self.slots.engine is not None
        self._own.consider(self.slots.engine)
        self._own.stop(600.0)
        return self._own.consider(self.slots.engine)

    def _work(self, request: WorkRequest, weights: bytes) -> tuple[WorkReply, bytes]:
        rows = self._folder / "own.rows"
        with rows.open("wb") as file:
            if request.op == "adapt":
                self.samples.write_adapter_rows(file)
            else:
                self.samples.write_training_rows(file)
        request = request.replace(time_budget_s=600.0)
        stop = str(self._folder / "trainer.stop")
        job = TrainerJob(device=self.name, request=request, samples=str(rows), stop=stop)
        return trainer_process.work(self._task, job, weights)

    def see(self, window: Window, answers: np.ndarray, teacher: np.ndarray | None) -> None:
        """Take a window's segments, with the device's answers and the teacher's, (rows, outputs);
        labels are those that the replay reveals, or all if the task's outcomes bring them."""
        task, part = self._task, window.of[window.rows]
        told = part.labelled
        if task.outcomes is None:
            told = told & is_revealed(task, self.name, part)
        splits, last_us = part.splits(task), part.last_us + window.shift_us
        self.now_us = int(last_us[-1])
        first = self.samples.added
        for i, time_us in enumerate(last_us.tolist()):
            label = part.labels[i] if told[i] else None
            self.samples.add(
                first + i, time_us, part.segments[i], answers[i], int(splits[i]), label
            )
        if teacher is not None:
            self.samples.teach(np.arange(first, self.samples.added), teacher)

    def state(self) -> DeviceState:
        return DeviceState(
            device=self.name, task=self._task.name, time_us=self.now_us, epoch="", active="",
            produced=0, delivered=0, pending=0, teacher_record=self.samples.teacher_record(),
        )  # fmt: skip


def outputs_of(task: Task, weights: Tensors, segments: np.ndarray) -> np.ndarray:
    return learning.predict(learning.load_state(learning.build_model(task), weights), segments)


@dataclass(frozen=True)
class Installation:
    """What `tidewheel prepare` makes of a task: the first model, the teacher and the reference."""

    task: Task
    artifact: Artifact
    first: Tensors
    teacher: Teacher
    reference: Reference
    held_out: HeldOut
    audit: HeldOut
    folder: Path
    key: Ed25519PrivateKey

    def release(self, weights: Tensors, number: int, now_us: int) -> bytes:
        """Return a signed artifact with other weights, as a run publishes it."""
        manifest = self.artifact.manifest.replace(
            number=number, base=self.artifact.model, created_us=now_us
        )
        files = {
            **self.artifact.files,
            WEIGHTS: payload.to_safetensors(weights, self.task.training.payload),
            PROBE: renew_probe(self.artifact.files, self.artifact.files[GRAPH], weights),
        }
        return pack(manifest, files, self.key)

    def taught(self, recording: Recording, teacher: Teacher | None = None) -> np.ndarray:
        """(n, outputs) answers of the teacher, window by window."""
        found = np.zeros((len(recording.last_us), self.task.outputs), np.float32)
        windows = recording.windows(self.task)
        scored = (teacher or self.teacher).score([recording.segments[rows] for rows in windows])
        for rows, outputs in zip(windows, scored, strict=True):
            assert isinstance(outputs, np.ndarray), outputs
            found[rows] = outputs
        return found

    def counted(self, segments: np.ndarray, answers: np.ndarray) -> np.ndarray:
        """The drift detector's counts of a window's segments."""
        return self.reference.count(observe(self.task, segments, answers))

    def run(
        self, devices: Sequence[Device], served: Tensors, seed: int, recent: RecentWindows | None
    ) -> tuple[Verdict, Tensors]:
        """Run from the served weights on what the devices keep: the task's rounds, admission and
        aggregation, how far the candidate goes, and the gate's verdict about it."""
        task, training = self.task, self.task.training
        known = teacher_shares(task, [device.state() for device in devices])
        for device in devices:
            device.samples.hear_of_teacher(known)
        trainees, run = Trainees(task, devices, self.folder), uuid4().hex
        able = [d.name for d in devices if d.samples.trainable() >= MINIMUM_SAMPLES]
        aggregator = strategies.make(training.strategy)
        *_, learned = rounds(
            task, able, served, training.rounds, aggregator,
            lambda name, weights, number: trainees.train(name, weights, run, number, seed),
        )  # fmt: skip
        learned = payload.round_candidate(learned, served, training.payload)
        metrics = trainees.compared(served, learned)
        evaluation = CandidateEvaluation(
            task, self.artifact, self.held_out, lambda: recent, self.audit
        )

        def results(prefix: str) -> Results:
            read = {n: device_metrics.read(task, each, prefix) for n, each in metrics.items()}
            return {name: found for name, found in read.items() if found is not None}

        carried = Part(training, self.artifact.model, served)
        verdict, candidate = evaluation.judge(carried, learned, results, task.margin)
        return verdict, carried.whole(candidate)


@cache
def installed(reference: str, folder: Path) -> Installation:
    """Prepare a task; what was trained for it before is used again, as ever."""
    task, folder = load_task(reference), folder / reference.replace(":", ".")
    key = create_key(folder / "keys" / "signing.pem")
    registry = Registry(folder / "registry", task.name, task.version, [key.public_key()])
    prepare(reference, task, registry, key, cache_folder())
    artifact, teacher = registry.serving(), registry.teacher()
    assert artifact is not None
    assert teacher is not None
    scoring = teacher_of(task, teacher, str(folder))
    assert scoring.reference is not None
    first = payload.to_float32(safetensors.numpy.load(artifact.files[WEIGHTS]))
    held_out, audit = HeldOut.decode(registry.central(HELD_OUT), task).audited(task)
    return Installation(
        task, artifact, dict(sorted(first.items())), scoring, scoring.reference, held_out, audit,
        folder, key,
    )  # fmt: skip


class Trainees:
    """Trainers of devices that keep samples."""

    def __init__(self, task: Task, devices: Sequence[Device], folder: Path) -> None:
        self._task, self._folder = task, folder
        self._names = [device.name for device in devices]
        for device in devices:
            with self._path(device.name).open("wb") as file:
                device.samples.write_training_rows(file)

    def train(self, name: str, weights: Tensors, run: str, number: int, seed: int) -> Update:
        """Return what a device answers to the weights of a round."""
        task, way = self._task, self._task.training.payload
        reply, block = self._work(
            name, payload.encode_weights(weights, way), op="train", run=run, round=number,
            seed=round_seed(seed, number),
        )  # fmt: skip
        if reply.error is not None:
            raise RuntimeError(f"{name}: {reply.error}")
        trained = payload.restore_update(payload.unpack(block), payload.round_weights(weights, way))
        return Update(name, task.name, task.version, BASE, reply.samples, trained, reply.metrics)

    def compared(self, served: Tensors, learned: Tensors) -> Mapping[str, Mapping[str, float]]:
        """Return what each device reports of the learned weights beside the served ones."""
        t, path = self._task.training, self._path("served").with_suffix(".safetensors")
        safetensors.numpy.save_file(served, path)
        block = payload.encode_weights(learned, t.payload)
        return {
            name: self._work(
                name, block, served=str(path), op="evaluate", run="bench", round=t.rounds
            )[0].metrics
            for name in self._names
        }

    def _work(
        self, name: str, block: bytes, served: str = "", **of_request: Any
    ) -> tuple[WorkReply, bytes]:
        task, path = self._task, self._path(name)
        t = task.training
        request = WorkRequest(
            task=task.name, task_version=task.version, base=BASE, epochs=t.epochs,
            batch_size=t.batch_size, learning_rate=t.learning_rate, time_budget_s=3600.0,
            payload=t.payload, **of_request,
        )  # fmt: skip
        job = TrainerJob(
            device=name, request=request, samples=str(path), served=served,
            stop=str(self._folder / "trainer.stop"),
        )  # fmt: skip
        return trainer_process.work(task, job, block)

    def _path(self, name: str) -> Path:
        return self._folder / f"{name}.rows"


class Watch:
    """A worker's watch over one device: the counts of its last windows against the reference."""

    def __init__(self, reference: Reference) -> None:
        self._reference = reference
        self._last: list[np.ndarray] = []
        self.in_a_row = 0  # alarms

    def see(self, counts: np.ndarray) -> bool | None:
        """Take a window's counts; return whether it alarms, None if nothing is decided."""
        self._last = [*self._last, counts][-self._reference.windows :]
        report = compare(self._reference, np.sum(self._last, axis=0), windows=len(self._last))
        if not report.decided:
            return None
        self.in_a_row = self.in_a_row + 1 if report.alarm else 0
        return report.alarm
