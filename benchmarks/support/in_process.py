"""Federated rounds without Flower's processes: a task's people in memory, and the server's intake
and aggregation."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np

from edge_client.samples.table import HELD_OUT, NEITHER, TRAIN, split_of
from federation.admission import Update
from federation.rounds.aggregator import Aggregator
from federation.rounds.collector import Reply
from federation.rounds.event_log import EventLog
from federation.rounds.update_intake import UpdateIntake
from streams.contract.task import Role, Task
from streams.contract.weights import payload
from streams.learning import learning
from streams.learning.input_adapter import InputAdapter
from streams.segments.segmentation import segments_of

BASE = "1"  # the version that all work begins from
Tensors = dict[str, np.ndarray]
Answering = Callable[[str, Tensors, int], Update]  # device, weights sent out, round


@dataclass(frozen=True)
class Person:
    """Segments (n, channels, samples) and labels (n, label_size) float32; split (n,) as
    edge_client.samples.table has it; last_us (n,), the times at which segments end."""

    name: str
    segments: np.ndarray
    labels: np.ndarray
    split: np.ndarray
    last_us: np.ndarray

    def seen_by(self, adapter: InputAdapter | None) -> "Person":
        """Return what a model reads behind an adapter."""
        return self if adapter is None else replace(self, segments=adapter.apply(self.segments))

    @property
    def classes(self) -> np.ndarray:
        """(n,) class indices."""
        return self.labels[:, 0].astype(np.int64)


def read_people(task: Task, *roles: Role) -> list[Person]:
    """Return the labelled segments of the people with these roles, in the task's order."""
    return [_read(task, name) for name in task.device_names(*roles)]


def _read(task: Task, name: str) -> Person:
    cut = [found for found in segments_of(task.readings(name), task) if found[3] is not None]
    return Person(
        name,
        np.stack([segment for _, _, segment, _ in cut]),
        np.stack([label for *_, label in cut]),  # type: ignore[misc]
        np.array([split_of(task, first, last) for first, last, _, _ in cut]),
        np.array([last for _, last, *_ in cut]),
    )


def every_label(person: Person, _dice: np.random.Generator) -> np.ndarray:
    return np.asarray(person.split != NEITHER)


def five_a_class(person: Person, dice: np.random.Generator) -> np.ndarray:
    """Of each class five segments to learn from and five that are held out, at most."""
    chosen = np.zeros(len(person.labels), np.bool_)
    for part in (TRAIN, HELD_OUT):
        for kind in np.unique(person.classes):
            rows = np.flatnonzero((person.split == part) & (person.classes == kind))
            chosen[dice.permutation(rows)[:5]] = True
    return chosen


def half_of_classes(person: Person, dice: np.random.Generator) -> np.ndarray:
    """All segments of half of the classes, of other ones on each device."""
    kinds = np.unique(person.classes)
    known = dice.permutation(kinds)[: len(kinds) // 2]
    return np.asarray((person.split != NEITHER) & np.isin(person.classes, known))


class Silent:
    """A run's event log that keeps nothing."""

    def publish(self, kind: str, **_fields: Any) -> None:
        """Leave it."""


def round_seed(seed: int, number: int) -> int:
    """As federation.rounds.run has it."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{number}".encode()).digest()[:4])


def rounds(
    task: Task,
    names: Sequence[str],
    weights: Tensors,
    count: int,
    aggregator: Aggregator,
    answer: Answering,
) -> Iterator[Tensors]:
    """Yield the weights after each round; those before where too few updates were admitted."""
    intake = UpdateIntake(task, cast(EventLog, Silent()), clip=aggregator.clip)
    for number in range(1, count + 1):
        about = {"round": number, "rounds": count, "base": BASE}
        sent = payload.round_weights(weights, task.training.payload)
        asked = intake.begin_round(range(len(names)), sent, about)
        answers = [
            Reply(node, names[node], answer(names[node], sent, number), round=number)
            for node in asked
        ]
        updates = intake.admit(answers, {}, about)
        if len(updates) >= aggregator.least:
            weights = aggregator.aggregate(updates, weights)
        yield weights


def right(task: Task, weights: Tensors, person: Person) -> np.ndarray:
    """(n,) bool: which of the person's held-out segments a model answers correctly."""
    held_out = person.split == HELD_OUT
    return _right(task, weights, person.segments[held_out], person.labels[held_out])


def share(task: Task, weights: Tensors, people: Sequence[Person]) -> float:
    """Return the percent of all segments of people that a model answers correctly."""
    segments = np.concatenate([person.segments for person in people])
    labels = np.concatenate([person.labels for person in people])
    return 100 * float(_right(task, weights, segments, labels).mean())


def _right(task: Task, weights: Tensors, segments: np.ndarray, labels: np.ndarray) -> np.ndarray:
    model = learning.load_state(learning.build_model(task), weights)
    return task.correct(learning.predict(model, segments), labels)
