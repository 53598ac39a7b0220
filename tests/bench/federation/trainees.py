"""Devices without their processes: each trains by `trainer_process.work`, as the trainer of an
agent does, on rows that are written as an agent writes them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edge_client.samples.sample_file import write_stream
from edge_client.samples.splits import HELD_OUT, TRAIN
from edge_client.training import trainer_process
from federation.admission.update import Update
from streams.contract.task import Task
from streams.contract.weights import payload
from streams.contract.work import TrainerJob, WorkRequest
from streams.learning import learning
from tests.bench.federation.people import Person

BASE = "1"  # the version that all work is said to begin from
Tensors = dict[str, np.ndarray]


class Trainees:
    """One device for each person; `labelled` are the rows whose label it knows, by name."""

    def __init__(
        self,
        task: Task,
        people: Sequence[Person],
        labelled: Mapping[str, np.ndarray],
        folder: Path,
    ) -> None:
        self.task, self.people, self.labelled = task, people, labelled
        self.names = [person.name for person in people]
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        for person in people:
            self._write(person, labelled[person.name])

    def train(
        self, name: str, weights: Tensors, seed: int, task: Task | None = None, **changes: Any
    ) -> Update:
        """What device `name` answers to `weights`; `changes` are of the request, a `task` one with
        other settings."""
        task = task or self.task
        t = task.training
        request = WorkRequest(
            op="train", run="bench", round=1, task=task.name, task_version=task.version, base=BASE,
            epochs=t.epochs, batch_size=t.batch_size, learning_rate=t.learning_rate, seed=seed,
            time_budget_s=3600.0, payload=t.payload,
        ).model_copy(update=changes)  # fmt: skip
        path = self._path(name)
        job = TrainerJob(
            device=name, request=request, samples=str(path), stop=str(self._stop),
            scaffold=str(path.with_suffix(".scaffold")),
        )  # fmt: skip
        reply, block = trainer_process.work(
            task, job, payload.encode_weights(weights, request.payload)
        )
        if reply.error is not None:
            raise RuntimeError(f"{name}: {reply.error}")
        received = payload.round_weights(weights, request.payload)
        trained = payload.restore_update(payload.unpack(block), received)
        return Update(name, task.name, task.version, BASE, reply.samples, trained, reply.metrics)

    def pooled(self) -> tuple[np.ndarray, np.ndarray]:
        """All rows to learn from, of all devices: segments and labels."""
        rows = [(p, self.labelled[p.name] & (p.split == TRAIN)) for p in self.people]
        segments = np.concatenate([person.segments[keep] for person, keep in rows])
        return segments, np.concatenate([person.labels[keep] for person, keep in rows])

    def _path(self, name: str) -> Path:
        return self._folder / f"{name}.rows"

    @property
    def _stop(self) -> Path:
        return self._folder / "trainer.stop"

    def _write(self, person: Person, labelled: np.ndarray) -> None:
        columns = {
            "segment": person.segments[labelled],
            "label": person.labels[labelled],
            "weight": np.ones(labelled.sum(), np.float32),
            "held_out": person.split[labelled] == HELD_OUT,
            "true": np.ones(labelled.sum(), np.bool_),
        }
        with self._path(person.name).open("wb") as file:
            write_stream(file, [columns], {})


def right(task: Task, weights: Tensors, person: Person) -> np.ndarray:
    """(n,) bool: which of the person's held-out segments a model answers correctly."""
    held_out = person.split == HELD_OUT
    return _right(task, weights, person.segments[held_out], person.labels[held_out])


def answers(task: Task, weights: Tensors, person: Person) -> np.ndarray:
    """(n,) classes that a model answers to all of a person's segments."""
    model = learning.load_state(task.build_model(), weights)
    return np.asarray(task.answers(learning.predict(model, person.segments)))


def own_share(task: Task, models: Mapping[str, Tensors], people: Sequence[Person]) -> float:
    """Percent of all people's held-out segments that each one's model answers correctly."""
    found = [right(task, models[person.name], person) for person in people]
    return 100 * float(np.concatenate(found).mean())


def share(task: Task, weights: Tensors, people: Sequence[Person]) -> float:
    """Percent of all segments of people that one model answers correctly."""
    segments = np.concatenate([person.segments for person in people])
    labels = np.concatenate([person.labels for person in people])
    return 100 * float(_right(task, weights, segments, labels).mean())


def _right(task: Task, weights: Tensors, segments: np.ndarray, labels: np.ndarray) -> np.ndarray:
    model = learning.load_state(task.build_model(), weights)
    return task.correct(learning.predict(model, segments), labels)
