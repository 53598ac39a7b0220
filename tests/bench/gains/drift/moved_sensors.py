"""Drawn drifts of the task `pedestrians`, and the drift detector on data that did not set it.

A window is a day. A street is closed: counts times a factor of CLOSED, rounded. A sensor is moved:
its counts are another fleet sensor's from then on. Labels come by themselves, an hour later, so no
teacher is asked. Figures are RMSE of the log count, which is what the task's gate decides by; see
outcome.py for what counts. Before: the BEFORE days right before the drift; old and new: the SETTLED
days after the run, which nothing was trained on: each hour is answered before its truth is known.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from itertools import takewhile

import numpy as np

from federation.controller.fleet_evidence import TriggerRules
from streams.contract.task import Reading
from streams.contract.task.metrics import retrain_limit
from streams.tasks.pedestrians import YEAR
from tests.bench.federation.study import FULL, Size, Study, in_two_processes, study_here
from tests.bench.federation.trainees import Tensors
from tests.bench.gains.drift.draws import SEED, Draw
from tests.bench.gains.drift.judge import judge
from tests.bench.gains.drift.outcome import PATIENCE, Alarms, Other, Outcome, by_kind, goals, table
from tests.bench.gains.drift.streets import (
    A_STREET_CLOSED,
    AFTER,
    Hours,
    closed,
    drawn,
    moved,
    readings,
)
from tests.bench.gains.fleet import (
    Device,
    Installation,
    Recording,
    Watch,
    Window,
    installed,
    outputs_of,
    worse_by_chance,
)
from tests.bench.report import Results

PEDESTRIANS = "streams.tasks.pedestrians:task"
DRAWS, QUICK_DRAWS = 20, 2
ORDINARY = 28  # days that every sensor has seen when the run before the drift begins
BEFORE = SETTLED = 28  # days
DAYS = ORDINARY + AFTER[1] + PATIENCE + SETTLED  # of the year, from BEGIN_US on
BEGIN_US = int(np.datetime64(f"{YEAR}-01-01", "us").astype(np.int64))


@dataclass
class Street:
    """What the sensors count, and the version that one ordinary run has made."""

    made: Installation
    readings: dict[str, list[Reading]]
    calm: dict[str, Recording]
    served: Tensors
    answers: dict[str, np.ndarray]  # of the served version, without drift

    def day(self, number: int) -> int:
        """The time at which a day begins, from the year's begin."""
        return BEGIN_US + number * self.made.task.window_us

    def rows(self, recording: Recording, first_day: int, days: int = 1) -> np.ndarray:
        """The rows whose segments begin in these days."""
        begin, end = self.day(first_day), self.day(first_day + days)
        return np.flatnonzero((recording.first_us >= begin) & (recording.first_us < end))

    def hours(self, name: str) -> Hours:
        return {reading.time_us: float(reading.values[0]) for reading in self.readings[name]}

    def drifted(self, draw: Draw, name: str) -> Recording:
        """What a sensor counts in a draw, before the drift and after it."""
        names = list(self.readings)
        dice = np.random.default_rng([SEED, draw.number, names.index(name)])
        own, from_us = self.hours(name), self.day(ORDINARY + draw.after)
        if draw.how == A_STREET_CLOSED:
            hours = closed(own, from_us, dice)
        else:
            other = str(dice.choice([each for each in names if each != name]))
            hours = moved(own, self.hours(other), from_us)
        like = [reading for each in self.readings.values() for reading in each]
        return Recording.of(self.made.task, readings(hours, like))


@cache
def street(size: Size) -> Street:
    study = study_here(size)
    made = installed(PEDESTRIANS, study.folder)
    task = made.task
    end_us = BEGIN_US + DAYS * task.window_us
    found = {
        name: list(takewhile(lambda reading: reading.time_us < end_us, task.readings(name)))
        for name in task.device_names("fleet")
    }
    calm = {name: Recording.of(task, each) for name, each in found.items()}
    first = {n: outputs_of(task, made.first, each.segments) for n, each in calm.items()}
    shared = Street(made, found, calm, made.first, first)
    devices = {name: Device(task, name, made.folder) for name in calm}
    for number in range(ORDINARY):
        for name, device in devices.items():
            rows = shared.rows(calm[name], number)
            if len(rows):
                device.see(Window(calm[name], rows, 0), first[name][rows], None)
    verdict, candidate = made.run(list(devices.values()), made.first, 0, None)
    study.say(f"moved sensors: the run before them: {verdict.promote}, {verdict.reason}")
    if verdict.promote:
        shared.served = candidate
        shared.answers = {n: outputs_of(task, candidate, r.segments) for n, r in calm.items()}
    return shared


def of_draw(size: Size, number: int) -> Outcome:
    """One draw, in a process of the pool."""
    shared = street(size)
    found = _Course(shared, drawn(number, list(shared.calm))).outcome()
    study_here(size).say(f"moved sensors {found}")
    return found


class _Course:
    """The course of one draw."""

    def __init__(self, shared: Street, draw: Draw) -> None:
        self.shared, self.made, self.draw = shared, shared.made, draw
        self.begin = ORDINARY + draw.after
        self.recordings = shared.calm | {name: shared.drifted(draw, name) for name in draw.who}
        self.old = shared.answers | self._answers(shared.served, draw.who)
        self.devices = {n: Device(self.made.task, n, self.made.folder) for n in self.recordings}

    def outcome(self) -> Outcome:
        alarms, run = self._until_the_run()
        served, draw = self.shared.served, self.draw
        devices = list(self.devices.values())
        verdict, candidate = self.made.run(devices, served, 1 + draw.number, None)
        new, end = self._answers(candidate, self.recordings), self.begin + run
        answering = self._chosen(candidate, new, end) if verdict.promote else self.old
        before = self._rmse(self.old, self.begin - BEFORE, BEFORE)
        old, offered, now = (self._rmse(each, end, SETTLED) for each in (self.old, new, answering))
        way = "all" if verdict.evidence.get("step", 1.0) == 1.0 else "half"
        return Outcome(
            draw, alarms, run, before, old, offered, now,
            way if verdict.promote else f"{way}, refused: {verdict.reason}",
            [self._other(n, answering[n], end) for n in self.recordings if n not in draw.who],
            sum(device.keeps for device in devices), 1.0, -1.0,
        )  # fmt: skip

    def _answers(self, weights: Tensors, names: Iterable[str]) -> dict[str, np.ndarray]:
        task = self.made.task
        return {n: outputs_of(task, weights, self.recordings[n].segments) for n in names}

    def _until_the_run(self) -> tuple[Alarms, int]:
        """As in drifts.py."""
        rules, alarms = TriggerRules(retrain_limit(self.made.task)), Alarms()
        watches = {name: Watch(self.made.reference) for name in self.recordings}
        needed = min(rules.drift_devices or 1, len(self.draw.who))
        for number in range(self.begin + PATIENCE):
            since = max(0, number - self.begin + 1)
            for name, recording in self.recordings.items():
                rows = self.shared.rows(recording, number)
                if not len(rows):
                    continue
                answers = self.old[name][rows]
                self.devices[name].see(Window(recording, rows, 0), answers, None)
                alarmed = watches[name].see(self.made.counted(recording.segments[rows], answers))
                if number >= ORDINARY:
                    alarms.note(alarmed, since if name in self.draw.who else 0)
            lasting = sum(watches[n].in_a_row >= rules.drift_windows for n in self.draw.who)
            if since and lasting >= needed:
                return alarms, since
        return alarms, PATIENCE

    def _chosen(
        self, candidate: Tensors, new: Mapping[str, np.ndarray], first_day: int
    ) -> dict[str, np.ndarray]:
        """What answers, while a release is served from `first_day` on and each device may choose:
        each day's choice is by the days before."""
        made_us = self.shared.day(first_day)
        answering = {name: each.copy() for name, each in new.items()}
        for device in self.devices.values():
            device.is_offered()
        for number in range(first_day, first_day + SETTLED):
            for name, device in self.devices.items():
                device.look(self.shared.served, candidate, made_us)
                rows = self.shared.rows(self.recordings[name], number)
                if device.keeps:
                    answering[name][rows] = self.old[name][rows]
                if len(rows):
                    window = Window(self.recordings[name], rows, 0)
                    device.see(window, answering[name][rows], None)
        return answering

    def _rmse(self, answers: Mapping[str, np.ndarray], first_day: int, days: int) -> float:
        """Of all sensors that drifted together."""
        found = [self._errors(name, answers[name], first_day, days) for name in self.draw.who]
        return float(np.sqrt(np.square(np.concatenate(found)).mean()))

    def _other(self, name: str, answers: np.ndarray, end: int) -> Other:
        was, now = (self._errors(name, each, end, SETTLED) for each in (self.old[name], answers))
        if not len(was):
            return Other(name, 0.0, 1.0)
        gain = math.sqrt(np.square(was).mean()) - math.sqrt(np.square(now).mean())
        return Other(name, gain, worse_by_chance(int((now < was).sum()), int((now > was).sum())))

    def _errors(self, name: str, answers: np.ndarray, first_day: int, days: int) -> np.ndarray:
        recording = self.recordings[name]
        rows = self.shared.rows(recording, first_day, days)
        rows = rows[recording.labelled[rows]]
        return np.asarray(np.abs(answers[rows, 0] - recording.labels[rows, 0]), np.float64)


def moved_sensors(study: Study, results: Results) -> None:
    """A row for each draw, all against the goals, and the detector on other data than its own."""
    count = DRAWS if study.size == FULL else QUICK_DRAWS
    made = installed(PEDESTRIANS, study.folder / "prepared")  # once, and not in both processes
    jobs = [(study.size, number) for number in range(1, count + 1)]
    found = in_two_processes(study.folder, of_draw, jobs)
    results.tables += [
        table("Moved sensors", _TEXT, found, 1.0),
        by_kind("Moved sensors by kind", found, 1.0),
    ]
    results.goals += goals("moved sensors", found)
    judge(made, study, results)


_TEXT = (
    "Task `pedestrians`, 12 sensors of the fleet; a window is a day, figures are RMSE of the log "
    "count: before, in the 28 days before the drift; old and new, in the 28 days after the run."
)
