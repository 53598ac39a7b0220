"""The task's people in memory: labelled segments, split as a device splits them, and how many of
the labels a device has."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from edge_client.samples.splits import HELD_OUT, NEITHER, TRAIN, split_of
from streams.contract.task import Role, Task
from streams.segments.segmentation import segments_of


@dataclass(frozen=True)
class Person:
    """Segments (n, channels, samples) and labels (n, label_size) float32; split (n,) as
    edge_client.samples.splits has it; windows (n,), the number of the one in which a segment
    begins."""

    name: str
    segments: np.ndarray
    labels: np.ndarray
    split: np.ndarray
    windows: np.ndarray

    @property
    def classes(self) -> np.ndarray:
        """(n,) class indices."""
        return self.labels[:, 0].astype(np.int64)


Labels = Callable[[Person, np.random.Generator], np.ndarray]  # (n,) bool: which rows have a label


def read_people(task: Task, *roles: Role) -> list[Person]:
    """The labelled segments of the people with these roles, in the task's order."""
    return [_read(task, name) for name in task.device_names(*roles)]


def _read(task: Task, name: str) -> Person:
    cut = [found for found in segments_of(task.readings(name), task) if found[3] is not None]
    return Person(
        name,
        np.stack([segment for _, _, segment, _ in cut]),
        np.stack([label for *_, label in cut]),  # type: ignore[misc]
        np.array([split_of(task, first, last) for first, last, _, _ in cut]),
        np.array([first // task.window_us for first, *_ in cut]),
    )


def every_label(person: Person, _dice: np.random.Generator) -> np.ndarray:
    return np.asarray(person.split != NEITHER)


def five_a_class(person: Person, dice: np.random.Generator) -> np.ndarray:
    """Of each class five segments to learn from and five that are held out, where there are so
    many."""
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


SETTINGS: Mapping[str, Labels] = {
    "all labels": every_label,
    "five labels a class": five_a_class,
    "labels of 3 of 6 classes": half_of_classes,
}
