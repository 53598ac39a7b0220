"""Twenty drawn drifts of a task, by default the built-in one: are they found and recovered from,
and does no other device become worse?

Every device replays its recordings, keeps samples, and is told a tenth of its labels. After
ORDINARY windows one run makes the version that is served when the drift begins; from then on the
devices fit input adapters and choose. The next run begins when two of the drifted devices have
alarmed three windows in a row (if only one drifts, that one), and after PATIENCE windows in any
case. SETTLED windows follow. There is no canary. Measured on held-out windows that only report.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from uuid import uuid4

import numpy as np

from benchmarks.frame import Bench
from benchmarks.gains.fleet import Device, Installation, Watch, installed, outputs_of
from benchmarks.gains.outcome import PATIENCE, Alarms, Other, Outcome, report
from benchmarks.gains.recordings import (
    AS_RECORDED,
    Draw,
    Person,
    Recording,
    Window,
    chance,
    drawn,
    latest,
    replayed,
    untold,
)
from benchmarks.support.in_process import Tensors
from benchmarks.support.study import in_two_processes, study_here
from federation.controller.fleet_evidence import TriggerRules
from federation.controller.triggers import DRIFTING
from federation.evaluation.promotion_gate import Verdict
from streams.contract.task.metrics import retrain_limit

DRAWS = 20
ORDINARY = SETTLED = 24  # windows


@dataclass
class Place:
    """What draws share: the task as installed, its people, and the version that one ordinary run
    has made; answers without drift, of that version and of the first model, and the teacher's."""

    made: Installation
    people: dict[str, Person]
    served: Tensors
    answers: dict[str, np.ndarray]
    first: dict[str, np.ndarray]
    taught: dict[str, np.ndarray]

    def devices(
        self, folder: Path
    ) -> tuple[dict[str, Device], list[tuple[str, Window, np.ndarray]]]:
        """Return devices that have seen ORDINARY windows, served by the first model; and these."""
        task, seen = self.made.task, []
        devices = {name: Device(self.made, name, folder) for name in self.people}
        streams = {n: replayed(task, p.calm, None, 0) for n, p in self.people.items()}
        for _ in range(ORDINARY):
            for name, device in devices.items():
                window = next(streams[name])
                taught = self.taught[name][window.rows]
                device.see(window, self.first[name][window.rows], taught)
                seen.append((name, window, taught))
        return devices, seen


@cache
def _place(reference: str) -> Place:
    made = installed(reference, study_here().folder)
    task = made.task
    people = {name: Person.read(task, name) for name in task.device_names("fleet")}
    first = {n: outputs_of(task, made.first, p.calm.segments) for n, p in people.items()}
    taught = {name: made.taught(person.calm) for name, person in people.items()}
    found = Place(made, people, made.first, first, first, taught)
    devices, seen = found.devices(made.folder / uuid4().hex)
    verdict, candidate = made.run(list(devices.values()), made.first, 0, latest(seen))
    if verdict.promote:
        found.served = candidate
        found.answers = {n: outputs_of(task, candidate, p.calm.segments) for n, p in people.items()}
    return found


class _Course:
    """The course of one draw."""

    def __init__(self, shared: Place, draw: Draw) -> None:
        self.shared, self.made, self.draw = shared, shared.made, draw
        self.task, made, people = shared.made.task, shared.made, shared.people
        names = list(people)
        self.moved = {n: people[n].moved(draw, names.index(n)) for n in draw.who}
        moved = self.moved.items()
        self.lasting = {n: self.moved.get(n, person.calm) for n, person in people.items()}
        self.old = {n: outputs_of(self.task, shared.served, each.segments) for n, each in moved}
        self.taught = {n: made.taught(each) for n, each in moved}
        self.begin = ORDINARY + draw.after
        self.devices, self.seen = shared.devices(made.folder / uuid4().hex)
        now_us = max(device.now_us for device in self.devices.values())
        served = made.release(shared.served, 2, now_us)
        for device in self.devices.values():
            device.serve(served)
        self.streams = {
            name: replayed(self.task, person.calm, self.moved.get(name), self.begin)
            for name, person in people.items()
        }
        self.watches = {name: Watch(made.reference) for name in names}
        for name in names:
            for _ in range(ORDINARY):
                window = next(self.streams[name])
                answers = shared.first[name][window.rows]
                self.watches[name].see(made.counted(window.of.segments[window.rows], answers))

    def outcome(self) -> Outcome:
        alarms, run = self._until_the_run()
        at_the_run = self._drifted(self._answers(self.moved))
        verdict, candidate = self._released()
        offered = {n: outputs_of(self.task, candidate, m.segments) for n, m in self.moved.items()}
        way = "all" if verdict.evidence.get("step", 1.0) == 1.0 else "half"
        states = [device.challenger.state for device in self.devices.values()]
        return Outcome(
            self.draw, alarms, run, self._before(), self._drifted({}), self._drifted(offered),
            at_the_run, self._drifted(self._answers(self.moved)),
            way if verdict.promote else f"{way}, refused: {verdict.reason}",
            list(self._others(self._answers(self.shared.people))),
            sum(state is not None and state.answers for state in states),
        )  # fmt: skip

    def _answers(self, among: Iterable[str]) -> dict[str, np.ndarray]:
        """Return what devices would answer now to all that they measure in the end."""
        return {n: self.devices[n].answers(self.lasting[n].segments) for n in among}

    def _until_the_run(self) -> tuple[Alarms, int]:
        """Return the alarms, and the windows from the drift's begin to the run."""
        rules, alarms = TriggerRules(retrain_limit(self.task)), Alarms()
        needed = min(DRIFTING, len(self.draw.who))
        for number in range(ORDINARY, self.begin + PATIENCE):
            since = max(0, number - self.begin + 1)
            for name in self.devices:
                window, answers, taught = self._next(name)
                self.seen.append((name, window, taught))
                counts = self.made.counted(window.of.segments[window.rows], answers)
                alarms.note(self.watches[name].see(counts), since if name in self.draw.who else 0)
            lasting = sum(self.watches[n].in_a_row >= rules.drift_windows for n in self.draw.who)
            if since and lasting >= needed:
                return alarms, since
        return alarms, PATIENCE

    def _next(self, name: str) -> tuple[Window, np.ndarray, np.ndarray]:
        """Let a device see its next window; return it with the answers and the teacher's."""
        window, device = next(self.streams[name]), self.devices[name]
        after = window.of is self.moved.get(name)
        answers = device.answers(window.of.segments[window.rows])
        taught = (self.taught if after else self.shared.taught)[name][window.rows]
        device.see(window, answers, taught)
        device.look()
        return window, answers, taught

    def _released(self) -> tuple[Verdict, Tensors]:
        """Run on what the devices keep; return the verdict and the candidate, after the SETTLED
        windows, in which it is served if the verdict is so."""
        devices, seed = list(self.devices.values()), 1 + self.draw.number
        verdict, candidate = self.made.run(devices, self.shared.served, seed, latest(self.seen))
        release = self.made.release(candidate, 3, max(device.now_us for device in devices))
        for device in devices:
            if verdict.promote:
                device.serve(release)
        for _ in range(SETTLED):
            for name in self.devices:
                self._next(name)
        return verdict, candidate

    def _before(self) -> float:
        """Of people whose later recordings are other ones on all held-out segments: the first has
        one reporting window."""
        wide = self.draw.how == AS_RECORDED
        return _share(
            self._right(name, self.shared.people[name].calm, self.shared.answers[name], wide=wide)
            for name in self.draw.who
        )

    def _drifted(self, answering: Mapping[str, np.ndarray]) -> float:
        """The share that is right after the drift; the version before answers where no other
        does."""
        return _share(
            self._right(name, moved, answering.get(name, self.old[name]))
            for name, moved in self.moved.items()
        )

    def _others(self, answering: Mapping[str, np.ndarray]) -> Iterator[Other]:
        for name, person in self.shared.people.items():
            if name in self.moved:
                continue
            old = self.shared.answers[name]
            was, now = (
                self._right(name, person.calm, each) for each in (old, answering.get(name, old))
            )
            lost, won = int((was & ~now).sum()), int((now & ~was).sum())
            yield Other(float(now.mean() - was.mean()), chance(won, lost))

    def _right(
        self, name: str, recording: Recording, outputs: np.ndarray, *, wide: bool = False
    ) -> np.ndarray:
        rows = untold(self.task, name, recording, reporting=not wide)
        return self.task.correct(outputs[rows], recording.labels[rows])


def _share(right: Iterator[np.ndarray]) -> float:
    return float(np.concatenate(list(right)).mean())


def _of_draw(reference: str, number: int) -> Outcome:
    shared = _place(reference)
    return _Course(shared, drawn(number, list(shared.people))).outcome()


def drifts(bench: Bench) -> None:
    reference = bench.asked.task
    fleet = installed(reference, bench.folder / "prepared").task.device_names("fleet")
    jobs = [(reference, number) for number in range(1, bench.size(DRAWS, 1) + 1)]
    found = in_two_processes(bench.folder, bench.quick, _of_draw, jobs)
    text = (
        f"{len(fleet)} devices; percent right of those that drifted, on segments that only report. "
        "Alarm and run: windows from the drift. Worst other: points of a device without drift."
    )
    report(bench, text, found)
