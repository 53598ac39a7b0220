"""What becomes of devices whose teacher is wrong: of too few people, on one class, on all."""

from collections.abc import Mapping
from functools import cache
from typing import NamedTuple

import numpy as np
from torch import nn

from edge_client.samples.splits import HELD_OUT
from federation.bootstrap.dataset import segments_of_device
from federation.bootstrap.initial_model import fit_teacher, group
from streams.learning.teacher import Teacher
from tests.bench.federation.study import FULL, TASK, Size, Study, in_two_processes, study_here
from tests.bench.gains.fleet import (
    Device,
    Installation,
    Recording,
    Window,
    installed,
    is_revealed,
    latest,
    outputs_of,
    worse_by_chance,
)
from tests.bench.machine import watched
from tests.bench.report import Cell, Figure, Goal, Results, Table

AS_INSTALLED, ONE_PERSON = "as installed", "of one person"
ONE_CLASS, OTHER_TASK = "wrong on sitting", "another task's"
TEACHERS = (AS_INSTALLED, ONE_PERSON, ONE_CLASS, OTHER_TASK)
SIZES = (6, 15)  # devices; six are those of `make demo`
SETTLED = 24  # windows after a release in which a device may choose
WORSE = 0.01
LEVEL = 0.05


class Outcome(NamedTuple):
    """Percent right before and with what answers after the release; of the devices the change of
    the one that is worst off in points, how many are worse by more than a point, and how many of
    those beyond chance; how many keep the version before; what a label of the teacher weighs; and
    whether the gate let the candidate pass."""

    before: float
    after: float
    worst: float
    worse: int
    beyond: int
    keep: int
    weight: float
    passed: bool


class Seen(NamedTuple):
    """A device's recording and what the first model and each teacher answer to it."""

    recording: Recording
    first: np.ndarray
    taught: Mapping[str, np.ndarray]


@cache
def _fleet(size: Size) -> tuple[Installation, dict[str, Seen]]:
    made = installed(TASK, study_here(size).folder)
    task, found = made.task, {}
    few = Teacher(task, _of_one_person(made), "few")
    sitting, standing = (task.classes.index(name) for name in ("sitting", "standing"))
    for name in task.device_names("fleet"):
        recording = Recording.of(task, task.readings(name))
        right = made.taught(recording)
        taught = {
            AS_INSTALLED: right,
            ONE_PERSON: _answers(made, few, recording),
            ONE_CLASS: _confused(right, sitting, standing),
            OTHER_TASK: np.roll(right, 1, axis=1),
        }
        found[name] = Seen(recording, outputs_of(task, made.first, recording.segments), taught)
    return made, found


def _of_one_person(made: Installation) -> nn.Module:
    """A teacher as `prepare` trains it, on the first pilot alone."""
    task = made.task
    (name, *_) = task.device_names("pilot")
    return fit_teacher(task, group(task, [segments_of_device(task, name)]), 1)


def _answers(made: Installation, teacher: Teacher, recording: Recording) -> np.ndarray:
    found = np.zeros((len(recording.last_us), made.task.outputs), np.float32)
    windows = recording.windows(made.task)
    for rows, outputs in zip(
        windows, teacher.score([recording.segments[rows] for rows in windows]), strict=True
    ):
        assert isinstance(outputs, np.ndarray), outputs
        found[rows] = outputs
    return found


def _confused(outputs: np.ndarray, one: int, other: int) -> np.ndarray:
    """Outputs (n, classes) of a teacher that answers `other` where it is `one`."""
    found, rows = outputs.copy(), outputs.argmax(axis=1) == one
    found[np.ix_(rows, [one, other])] = outputs[np.ix_(rows, [other, one])]
    return found


def of_teacher(size: Size, count: int, kind: str, seed: int) -> Outcome:
    """A run with one teacher and one draw of who is told which label, in a process of the pool."""
    made, seen = _fleet(size)
    course = _Course(made, dict(list(seen.items())[:count]), kind, seed)
    found = course.outcome()
    study_here(size).say(f"teachers, {count} devices, {kind}, seed {seed}: {found}")
    return found


class _Course:
    """Devices see their recordings, a run learns from them, and they choose."""

    def __init__(self, made: Installation, fleet: dict[str, Seen], kind: str, seed: int) -> None:
        self._made, self._fleet, self._kind, self._seed = made, fleet, kind, seed
        folder = made.folder
        self._devices = {n: Device(made.task, f"{n}-{seed}", folder) for n in fleet}

    def outcome(self) -> Outcome:
        made, devices = self._made, list(self._devices.values())
        shown = [part for name in self._fleet for part in self._show(name, self._fleet[name].first)]
        weight = float(np.mean([device.samples.trust() for device in devices]))
        verdict, candidate = made.run(devices, made.first, self._seed, latest(shown))
        answers = {n: seen.first for n, seen in self._fleet.items()}
        if verdict.promote:
            answers |= {
                name: outputs_of(made.task, candidate, self._fleet[name].recording.segments)
                for name in self._offered(candidate)
            }
        both = {name: self._right(name, answers[name]) for name in self._fleet}
        changes = [float(new.mean() - old.mean()) for old, new in both.values()]
        beyond = sum(
            new.mean() - old.mean() < -WORSE
            and worse_by_chance(int((new & ~old).sum()), int((old & ~new).sum())) <= LEVEL
            for old, new in both.values()
        )
        before, after = (np.concatenate([each[i] for each in both.values()]).mean() for i in (0, 1))
        return Outcome(
            100 * float(before), 100 * float(after), 100 * min(changes),
            sum(change < -WORSE for change in changes), beyond,
            sum(device.keeps for device in devices), weight, verdict.promote,
        )  # fmt: skip

    def _show(self, name: str, answers: np.ndarray) -> list[tuple[str, Window, np.ndarray]]:
        """One pass of the recording."""
        seen, device, parts = self._fleet[name], self._devices[name], []
        taught = seen.taught[self._kind]
        for rows in seen.recording.windows(self._made.task):
            window = Window(seen.recording, rows, 0)
            device.see(window, answers[rows], taught[rows])
            parts.append((name, window, taught[rows]))
        return parts

    def _offered(self, candidate: dict[str, np.ndarray]) -> list[str]:
        """The devices that serve the candidate: each has looked at its labels once."""
        for device in self._devices.values():
            device.is_offered()
            device.look(self._made.first, candidate, device.now_us)
        return [name for name, device in self._devices.items() if not device.keeps]

    def _right(self, name: str, outputs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Which of the held-out segments whose label nobody was told are right: by the first model
        and by what answers now."""
        task, seen = self._made.task, self._fleet[name]
        told = is_revealed(task, self._devices[name].name, seen.recording)
        rows = (seen.recording.splits(task) == HELD_OUT) & seen.recording.labelled & ~told
        old, new = (
            task.correct(each[rows], seen.recording.labels[rows]) for each in (seen.first, outputs)
        )
        return old, new


def teachers(study: Study, results: Results) -> None:
    """A table for a fleet of six and one for a fleet of fifteen."""
    seeds = study.size.seeds if study.size == FULL else study.size.seeds[:1]
    installed(TASK, study.folder / "prepared")  # once, and not in both processes
    jobs = [(study.size, n, kind, seed) for n in SIZES for kind in TEACHERS for seed in seeds]
    with watched() as load:
        done = in_two_processes(study.folder, of_teacher, jobs)
    for count in SIZES:
        rows: list[list[Cell]] = []
        for kind in TEACHERS:
            found = [
                one for (_, n, k, _), one in zip(jobs, done, strict=True) if (n, k) == (count, kind)
            ]
            figures = [Figure.of([float(one[at]) for one in found]) for at in range(7)]
            rows.append([kind, len(found), *figures, sum(not one.passed for one in found)])
            results.goals.append(
                Goal(
                    f"{count} devices, teacher {kind}: worse by more than a point",
                    figures[3],
                    at_most=0,
                )
            )
        text = (
            f"{count} devices of the built-in task, each with one pass of its recording, the true "
            "labels that a replay tells it (one in ten) and this teacher's; a run of the task's "
            "rounds, the gate, and a look of each device at what it is offered. Percent right on "
            "held-out segments whose label nobody was told; the median of the seeds, the least "
            "and the most. Worst: the change of the device that is worst off, in points. Worse: "
            "devices that lose more than a point; beyond chance: by McNemar's exact test at "
            f"{LEVEL}. Keep: devices that keep the first version. Weight: of a label of the "
            f"teacher, beside a true one. Others' load: {load.others:.0%}."
        )
        columns = ["teacher", "seeds", "before", "after", "worst", "worse", "beyond chance", "keep",
                   "weight", "refused"]  # fmt: skip
        results.tables.append(Table(f"Worse teachers, {count} devices", text, columns, rows))
