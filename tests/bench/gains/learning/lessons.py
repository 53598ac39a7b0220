"""The built-in task's people with few labels of their own and a teacher for the rest."""

from dataclasses import replace

import numpy as np

from edge_client.samples import trust
from edge_client.samples.splits import NEITHER, TRAIN
from federation.evaluation.teacher_record import shares
from streams.contract.documents import DeviceState
from streams.contract.task import Task
from tests.bench.federation.people import Person
from tests.bench.gains.fleet import Installation, Recording, outputs_of
from tests.bench.gains.learning.grounds import People, Rows


def taught(ground: People, made: Installation) -> People:
    """Return the fleet with the teacher's labels on all other rows that a device learns from."""
    rows = {}
    for person in ground.study.fleet:
        outputs, true = _answers(made, person), ground.rows[person.name]
        others = np.flatnonzero((person.split == TRAIN) & ~ground.labelled[person.name])
        soft = np.concatenate([np.full((len(true), made.task.outputs), np.nan), outputs[others]])
        labels = made.task.answers(outputs[others])[:, None]
        rows[person.name] = Rows(
            np.concatenate([true.x, person.segments[others]]),
            np.concatenate([true.y, labels]).astype(np.float32),
            soft.astype(np.float32),
            np.ones(len(soft), np.float32),
        )
    return replace(ground, rows=rows)


def weighed(ground: People, made: Installation) -> People:
    """Return a taught fleet whose teacher's labels weigh by class as the product weighs them, by
    what each device and all of them know of the teacher; those that weigh nothing are left out."""
    task, states, known = made.task, [], {}
    for person in ground.study.fleet:
        of = ground.labelled[person.name] & (person.split != NEITHER)
        outputs, true = _answers(made, person)[of], person.labels[of]
        answers = outputs_of(task, ground.first, person.segments[of])
        known[person.name] = outputs, answers, true
        states.append(_state(task, person.name, trust.record(task, outputs, true)))
    fleet, rows = shares(task, states), {}
    for name, both in known.items():
        some, by_class = ground.rows[name], trust.by_class(task, *both, fleet)
        assert some.soft is not None
        by_teacher = ~np.isnan(some.soft).any(axis=1)
        weight = np.ones(len(some), np.float32)
        weight[by_teacher] = by_class[trust.kinds(task, some.soft[by_teacher])]
        keep = weight > 0
        rows[name] = Rows(some.x[keep], some.y[keep], some.soft[keep], weight[keep])
    return replace(ground, rows=rows)


def _answers(made: Installation, person: Person) -> np.ndarray:
    """Return the teacher's outputs (n, outputs) for a person's segments."""
    recording = Recording.of(made.task, made.task.readings(person.name))
    return np.asarray(made.taught(recording)[recording.labelled])


def _state(task: Task, name: str, record: trust.Record) -> DeviceState:
    return DeviceState(
        device=name, task=task.name, time_us=0, epoch="", active="", produced=0, delivered=0,
        pending=0, teacher_record=record,
    )  # fmt: skip
