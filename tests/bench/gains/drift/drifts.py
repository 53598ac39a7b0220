"""Twenty drawn drifts of the built-in task: are they found out and recovered from, and is nobody
else worse off? See draws.py for what is drawn and outcome.py for what counts."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

from edge_client.samples.splits import HELD_OUT
from federation.controller.fleet_evidence import TriggerRules
from federation.evaluation.promotion_gate import Verdict
from streams.contract.task.metrics import retrain_limit
from tests.bench.federation.study import FULL, TASK, Size, Study, in_two_processes, study_here
from tests.bench.federation.trainees import Tensors
from tests.bench.gains.drift.draws import AFTER, AS_RECORDED, Draw, Person, drawn
from tests.bench.gains.drift.outcome import PATIENCE, Alarms, Other, Outcome, by_kind, goals, table
from tests.bench.gains.fleet import (
    Device,
    Installation,
    Recording,
    Watch,
    Window,
    installed,
    is_revealed,
    latest,
    outputs_of,
    replayed,
    reporting,
    worse_by_chance,
)
from tests.bench.report import Cell, Figure, Results, Table

DRAWS, QUICK_DRAWS = 20, 1
ORDINARY = 24  # windows that every device has seen when the run before the drift begins
SETTLED = 24  # windows after the release in which a device may choose


@dataclass
class Place:
    """Everything that draws share: the task as it is installed, its people, and the version that
    one ordinary run on what they do without drift has made."""

    made: Installation
    people: dict[str, Person]
    served: Tensors
    answers: dict[str, np.ndarray]  # of the served version, without drift
    taught: dict[str, np.ndarray]
    first: dict[str, np.ndarray]  # answers of the first model

    def devices(self) -> tuple[dict[str, Device], list[tuple[str, Window, np.ndarray]]]:
        """Devices that have seen ORDINARY windows, served by the first model; and all of these."""
        task, seen = self.made.task, []
        devices = {name: Device(task, name, self.made.folder) for name in self.people}
        streams = {n: replayed(task, p.calm, None, 0) for n, p in self.people.items()}
        for _ in range(ORDINARY):
            for name, device in devices.items():
                window = next(streams[name])
                taught = self.taught[name][window.rows]
                device.see(window, self.first[name][window.rows], taught)
                seen.append((name, window, taught))
        return devices, seen


@cache
def place(size: Size) -> Place:
    study = study_here(size)
    made = installed(TASK, study.folder)
    task = made.task
    people = {name: Person.read(task, name) for name in task.device_names("fleet")}
    calm = {name: person.calm for name, person in people.items()}
    first = {n: outputs_of(task, made.first, each.segments) for n, each in calm.items()}
    taught = {name: made.taught(each) for name, each in calm.items()}
    found = Place(made, people, made.first, first, taught, first)
    devices, seen = found.devices()
    verdict, candidate = made.run(list(devices.values()), made.first, 0, latest(seen))
    study.say(f"drifts: the run before them: {verdict.promote}, {verdict.reason}")
    if verdict.promote:
        found.served = candidate
        found.answers = {n: outputs_of(task, candidate, each.segments) for n, each in calm.items()}
    return found


def of_draw(size: Size, number: int) -> Outcome:
    """One draw, in a process of the pool."""
    shared = place(size)
    draw = drawn(number, list(shared.people))
    found = _Course(shared, draw).outcome()
    study_here(size).say(f"drifts {found}")
    return found


def of_control(size: Size) -> list[Other]:
    shared = place(size)
    return _Course(shared, Draw(0, "nobody", (), sum(AFTER) // 2)).control()


class _Course:
    """The course of one draw."""

    def __init__(self, shared: Place, draw: Draw) -> None:
        self.shared, self.made, self.draw = shared, shared.made, draw
        self.task, made = shared.made.task, shared.made
        names = list(shared.people)
        self.moved = {n: shared.people[n].moved(draw, names.index(n)) for n in draw.who}
        moved = self.moved.items()
        self.old = {n: outputs_of(self.task, shared.served, each.segments) for n, each in moved}
        self.taught = {n: made.taught(each) for n, each in moved}
        self.begin = ORDINARY + draw.after
        self.devices, self.seen = shared.devices()
        self.streams = {
            name: replayed(self.task, person.calm, self.moved.get(name), self.begin)
            for name, person in shared.people.items()
        }
        self.watches = {name: Watch(made.reference) for name in names}
        for name in names:
            counts = _window_counts(made, shared.people[name].calm, shared.first[name])
            for _ in range(ORDINARY):
                self.watches[name].see(counts(next(self.streams[name])))

    def outcome(self) -> Outcome:
        alarms, run = self._until_the_run()
        trust = float(np.mean([self.devices[name].samples.trust() for name in self.draw.who]))
        verdict, candidate, new = self._released()
        answering = self._answering(new) if verdict.promote else {}
        served = candidate if verdict.promote else self.shared.served
        copies, own = self._copies(served), self._normalized(served)
        way = "all" if verdict.evidence.get("step", 1.0) == 1.0 else "half"
        return Outcome(
            self.draw, alarms, run, self._before(), self._drifted({}), self._drifted(new),
            self._drifted(answering),
            way if verdict.promote else f"{way}, refused: {verdict.reason}",
            list(self._others(answering)), sum(d.keeps for d in self.devices.values()), trust,
            copy=self._drifted(answering | copies), norm=self._drifted(answering | own),
            norm_others=list(self._others(answering | own)),
        )  # fmt: skip

    def control(self) -> list[Other]:
        """What the same run does to the devices if none drifts."""
        self._until_the_run()
        verdict, _, new = self._released()
        return list(self._others(self._answering(new) if verdict.promote else {}))

    def _released(self) -> tuple[Verdict, Tensors, dict[str, np.ndarray]]:
        """A run on what the devices keep; SETTLED windows follow. If the gate lets its candidate
        pass, it is served in them and the devices choose. Return the verdict, the candidate and its
        answers."""
        verdict, candidate = self.made.run(
            list(self.devices.values()), self.shared.served, 1 + self.draw.number,
            latest(self.seen),
        )  # fmt: skip
        new = {n: outputs_of(self.task, candidate, r.segments) for n, r in self._lasting().items()}
        self._settle(candidate if verdict.promote else None, new)
        return verdict, candidate, new

    def _answering(self, new: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The new answers of the devices that do not keep the version before."""
        return {name: each for name, each in new.items() if not self.devices[name].keeps}

    def _until_the_run(self) -> tuple[Alarms, int]:
        """Return the alarms, and the windows from the drift's begin to the run: until as many of
        the drifted devices as start one (or all, if fewer drift) alarm so often in a row."""
        rules, alarms = TriggerRules(retrain_limit(self.task)), Alarms()
        needed = min(rules.drift_devices or 1, len(self.draw.who))
        for number in range(ORDINARY, self.begin + PATIENCE):
            since = max(0, number - self.begin + 1)
            for name, device in self.devices.items():
                window = next(self.streams[name])
                answers, taught = self._of(name, window, self.shared.answers, self.old)
                device.see(window, answers, taught)
                self.seen.append((name, window, taught))
                alarmed = self.watches[name].see(self._counted(window, answers))
                alarms.note(alarmed, since if name in self.draw.who else 0)
            lasting = sum(self.watches[n].in_a_row >= rules.drift_windows for n in self.draw.who)
            if since and lasting >= needed:
                return alarms, since
        return alarms, PATIENCE

    def _counted(self, window: Window, answers: np.ndarray) -> np.ndarray:
        return self.made.counted(window.of.segments[window.rows], answers)

    def _of(
        self, name: str, window: Window, calm: Mapping[str, np.ndarray],
        moved: Mapping[str, np.ndarray],
    ) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
        """The answers to a window, without drift or with it, and the teacher's."""
        after = window.of is self.moved.get(name)
        taught = self.taught if after else self.shared.taught
        return (moved if after else calm)[name][window.rows], taught[name][window.rows]

    def _lasting(self) -> dict[str, Recording]:
        """What each device measures from the drift on."""
        return {n: self.moved.get(n, person.calm) for n, person in self.shared.people.items()}

    def _settle(self, offered: Tensors | None, new: Mapping[str, np.ndarray]) -> None:
        """SETTLED windows, in which each device may choose if there is a release."""
        made_us = max(device.now_us for device in self.devices.values())
        old = self.shared.answers | self.old
        for device in self.devices.values():
            device.is_offered()
        for _ in range(SETTLED):
            for name, device in self.devices.items():
                if offered is not None:
                    device.look(self.shared.served, offered, made_us)
                answering = old if device.keeps or offered is None else new
                window = next(self.streams[name])
                answers, taught = self._of(name, window, answering, answering)
                device.see(window, answers, taught)

    def _copies(self, served: Tensors) -> dict[str, np.ndarray]:
        """What the copies of the devices that drifted answer, where one answers."""
        copies = self.made.copies([self.devices[name] for name in self.draw.who], served)
        return {
            name: outputs_of(self.task, each, self.moved[name].segments)
            for name, each in copies.items()
        }

    def _normalized(self, served: Tensors) -> dict[str, np.ndarray]:
        """What devices with statistics of their own answer, where one answers with them."""
        own = self.made.normalized(list(self.devices.values()), served)
        lasting = self._lasting()
        return {n: outputs_of(self.task, each, lasting[n].segments) for n, each in own.items()}

    def _before(self) -> float:
        """The share that is right on the drifted devices before the drift; of people whose later
        recordings are other ones, on all held-out segments: the first has one reporting window."""
        return _share(
            self._right(name, self.shared.people[name].calm, self.shared.answers[name], wide=True)
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
            gain, chance = float(now.mean() - was.mean()), worse_by_chance(won, lost)
            yield Other(name, gain, chance, len(was))

    def _right(
        self, name: str, recording: Recording, outputs: np.ndarray, *, wide: bool = False
    ) -> np.ndarray:
        rows = reporting(self.task, name, recording)
        if wide and self.draw.how == AS_RECORDED:
            held = recording.splits(self.task) == HELD_OUT
            rows = held & recording.labelled & ~is_revealed(self.task, name, recording)
        return self.task.correct(outputs[rows], recording.labels[rows])


def _share(right: Iterator[np.ndarray]) -> float:
    return float(np.concatenate(list(right)).mean())


def _window_counts(
    made: Installation, recording: Recording, answers: np.ndarray
) -> Callable[[Window], np.ndarray]:
    return lambda window: made.counted(recording.segments[window.rows], answers[window.rows])


def _of(size: Size, number: int | None) -> Outcome | list[Other]:
    return of_control(size) if number is None else of_draw(size, number)


def drifts(study: Study, results: Results) -> None:
    """A row for each draw; then all of them against the goals."""
    count = DRAWS if study.size == FULL else QUICK_DRAWS
    installed(TASK, study.folder / "prepared")  # once, and not in both processes
    jobs: list[tuple[Size, int | None]] = [(study.size, n) for n in range(1, count + 1)]
    done = in_two_processes(study.folder, _of, [*jobs, (study.size, None)])
    found = [one for one in done if isinstance(one, Outcome)]
    control = next(one for one in done if isinstance(one, list))
    results.tables += [
        table("Drawn drifts", _TEXT, found, 100.0),
        by_kind("Drawn drifts by kind", found, 100.0),
        _others_table(found, control),
    ]
    results.goals += goals("drifts", found)


def _others_table(found: Sequence[Outcome], control: Sequence[Other]) -> Table:
    """Whom it was that a run made worse, with a drift of others and without."""
    rows: list[list[Cell]] = []
    for calm in control:
        of = [o for one in found if "refused" not in one.gate for o in one.others]
        own = [other for other in of if other.name == calm.name]
        if not any(other.worse for other in [calm, *own]):
            continue
        gains = Figure.of([100 * other.gain for other in own]) if own else None
        beyond = sum(other.worse_beyond_chance for other in own)
        rows.append([calm.name, calm.segments, len(own), gains, beyond, 100 * calm.gain,
                     calm.chance])  # fmt: skip
    text = (
        "Devices that a release made worse though they did not drift: their reporting segments, "
        "the draws with a release in which they did not drift, points gained in them and in how "
        "many of them it was a loss beyond chance. Without drift: the same run if nobody drifts, "
        "which tells what is not the drift's doing."
    )
    columns = [
        "device", "segments", "draws", "gained", "worse beyond chance", "without drift", "p of it",
    ]  # fmt: skip
    return Table("Others that a release made worse", text, columns, rows)


_TEXT = (
    "Built-in task, 15 devices; percent right on the reporting segments of the devices that "
    "drifted, and points of the others. Before: of people whose later recordings are other ones on "
    "all segments that they hold out of the first, which has one reporting window. Copy: where the "
    f"devices that drifted have own copies, {SETTLED} windows after the run. Norm: where all "
    "devices have `adapt_norm`, then; norm worse: other devices that are worse with it."
)
