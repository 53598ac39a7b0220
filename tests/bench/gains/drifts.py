"""Twenty drawn drifts of the built-in task: found out, recovered from, and nobody else worse?

A draw says who drifts (1 to a third of the fleet), when (after how many windows) and how; each
device's own drift is drawn for it. Everything below was fixed before any result was seen.

**Recovered within one release**: of what the drift cost the drifted devices together, at least half
is won back (WON_BACK), or they are within NEAR of what they had before. A drift that cost less than
NEAR needs no recovery and is counted apart.

**Made worse**: a device that did not drift and is more than WORSE lower on its own reporting
segments; beyond chance if McNemar's exact test gives at most CHANCE, two-sided.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

from edge_client.samples.splits import HELD_OUT
from examples.drift.har_remounted import REMOUNTED
from federation.controller.fleet_evidence import TriggerRules
from streams.contract.task import Task
from streams.contract.task.metrics import retrain_limit
from tests.bench.federation.study import FULL, TASK, Size, Study, in_two_processes, study_here
from tests.bench.federation.trainees import Tensors
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
from tests.bench.report import Cell, Figure, Goal, Results, Table

SEED = 1
DRAWS, QUICK_DRAWS = 20, 2
AFTER = (12, 36)  # windows from the release before the drift to its begin
ORDINARY = 24  # windows that every device has seen when the run before the drift begins
PATIENCE = 24  # windows after which a run begins without an alarm
SETTLED = 24  # windows after the release in which a device may choose
GAIN, OFFSET = (0.5, 1.5), 0.5  # of a channel, and g or rad/s
TURN = (45.0, 180.0)  # degrees, about any axis
WON_BACK, NEAR = 0.5, 0.05
WORSE, CHANCE = 0.01, 0.05
ALARM_WINDOWS, FALSE_SHARE, RECOVERED = 6, 2.0, 90.0  # the goals

Drift = Callable[[Recording, np.random.Generator], Recording]


def gain_and_offset(recording: Recording, dice: np.random.Generator) -> Recording:
    channels = recording.segments.shape[1]
    gains = dice.uniform(*GAIN, (channels, 1))
    offsets = dice.uniform(-OFFSET, OFFSET, (channels, 1))
    return _altered(recording, recording.segments * gains + offsets)


def one_axis_dead(recording: Recording, dice: np.random.Generator) -> Recording:
    """One channel is 0 from now on."""
    segments = recording.segments.copy()
    segments[:, dice.integers(segments.shape[1])] = 0.0
    return _altered(recording, segments)


def new_place(recording: Recording, dice: np.random.Generator) -> Recording:
    """The sensor is turned: both of its vectors by one rotation."""
    turn = rotation(dice)
    parts = np.split(recording.segments, 2, axis=1)
    return _altered(recording, np.concatenate([turn @ part for part in parts], axis=1))


def rotation(dice: np.random.Generator) -> np.ndarray:
    """(3, 3), about an axis that is drawn, by an angle of TURN (Rodrigues)."""
    x, y, z = (axis := dice.normal(size=3)) / np.linalg.norm(axis)
    angle = np.radians(dice.uniform(*TURN))
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.asarray(np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross)


def _altered(recording: Recording, segments: np.ndarray) -> Recording:
    return Recording(
        recording.first_us, recording.last_us, segments.astype(np.float32), recording.labels
    )


AS_RECORDED = "remounted as recorded"
ALTERED: Mapping[str, Drift] = {
    "gain and offset": gain_and_offset, "one axis dead": one_axis_dead, "a new place": new_place,
}  # fmt: skip


@dataclass(frozen=True)
class Draw:
    """`after`: windows from the release before the drift to its begin."""

    number: int
    how: str
    who: tuple[str, ...]
    after: int


def drawn(number: int, fleet: Sequence[str]) -> Draw:
    """Return draw `number`; drifts as recorded are of people whose recordings have one, and are
    drawn again where that would be more people than there are."""
    dice = np.random.default_rng([SEED, number])
    count, after = int(dice.integers(1, len(fleet) // 3 + 1)), int(dice.integers(*AFTER))
    recorded = [name for name in fleet if name in REMOUNTED]
    how = str(dice.choice([AS_RECORDED, *ALTERED]))
    if how == AS_RECORDED and count > len(recorded):
        how = str(dice.choice(list(ALTERED)))
    among = recorded if how == AS_RECORDED else list(fleet)
    who = sorted(str(name) for name in dice.choice(among, count, replace=False))
    return Draw(number, how, tuple(who), after)


@dataclass(frozen=True)
class Person:
    """A person's recordings without drift, and the later ones of those who wore it otherwise."""

    calm: Recording
    later: Recording | None

    @classmethod
    def read(cls, task: Task, name: str) -> "Person":
        whole = Recording.of(task, task.readings(name))
        if name not in REMOUNTED:
            return cls(whole, None)
        apart = np.flatnonzero(np.diff(whole.first_us) > 5_000_000)[0] + 1  # recordings are 10 s
        rows = np.arange(len(whole.first_us))
        return cls(whole[rows[:apart]], whole[rows[apart:]])

    def moved(self, draw: Draw, at: int) -> Recording:
        """What the person's device measures after the drift; `at`: its place in the fleet."""
        if draw.how == AS_RECORDED:
            assert self.later is not None
            return self.later
        return ALTERED[draw.how](self.calm, np.random.default_rng([SEED, draw.number, at]))


@dataclass(frozen=True)
class Other:
    """A device that did not drift: its change on its reporting segments, and the chance of it."""

    name: str
    change: float
    chance: float

    @property
    def worse(self) -> bool:
        return self.change < -WORSE

    @property
    def worse_beyond_chance(self) -> bool:
        return self.worse and self.chance <= CHANCE


@dataclass(frozen=True)
class Outcome:
    """What came of a draw. alarm: windows until a drifted device alarmed first; run: until the run;
    quiet: windows without drift, and the alarms in them; before, old, offered, new: shares that are
    right on the drifted devices, before the drift and after it, with the version before, with the
    run's candidate whatever became of it, and with what answers in the end; kept: devices that keep
    the version before."""

    draw: Draw
    alarm: int | None
    run: int
    quiet: tuple[int, int]
    before: float
    old: float
    offered: float
    new: float
    gate: str
    others: list[Other]
    kept: int
    trust: float

    @property
    def cost(self) -> float:
        return self.before - self.old

    @property
    def needed(self) -> bool:
        return self.cost >= NEAR

    @property
    def recovered(self) -> bool:
        return self.new - self.old >= WON_BACK * self.cost or self.new >= self.before - NEAR


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
    study_here(size).say(
        f"drifts {number}: {draw.how}, {len(draw.who)} devices, alarm {found.alarm}, run "
        f"{found.run}, trust {found.trust:.2f}, {found.before:.2f}, {found.old:.2f} -> "
        f"{found.offered:.2f} offered, {found.new:.2f}; {found.gate}; kept {found.kept}; "
        f"worst {min(o.change for o in found.others):+.2f}"
    )
    return found


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
        alarm, run, quiet = self._until_the_run()
        trust = float(np.mean([self.devices[name].samples.trust() for name in self.draw.who]))
        verdict, candidate = self.made.run(
            list(self.devices.values()), self.shared.served, 1 + self.draw.number,
            latest(self.seen),
        )  # fmt: skip
        new = {n: outputs_of(self.task, candidate, r.segments) for n, r in self._lasting().items()}
        if verdict.promote:
            self._choose(candidate, new)
        whole = verdict.evidence.get("step", 1.0) == 1.0
        offered = "all" if whole else "half"
        answering = new if verdict.promote else {}
        kept = {name for name, device in self.devices.items() if device.keeps}
        answering = {name: each for name, each in answering.items() if name not in kept}
        return Outcome(
            self.draw, alarm, run, quiet, self._before(), self._drifted({}), self._drifted(new),
            self._drifted(answering),
            offered if verdict.promote else f"{offered}, refused: {verdict.reason}",
            list(self._others(answering)), len(kept), trust,
        )  # fmt: skip

    def _until_the_run(self) -> tuple[int | None, int, tuple[int, int]]:
        """Windows until the first alarm of a drifted device, and until the run: when as many
        devices as start one (or all, if fewer drift) alarm so often in a row; and the alarms in
        windows without drift."""
        rules = TriggerRules(retrain_limit(self.task))
        needed = min(rules.drift_devices or 1, len(self.draw.who))
        alarm, windows, alarms = None, 0, 0
        for number in range(ORDINARY, self.begin + PATIENCE):
            drifts = number >= self.begin
            for name, device in self.devices.items():
                window = next(self.streams[name])
                answers, taught = self._of(name, window, self.shared.answers, self.old)
                device.see(window, answers, taught)
                self.seen.append((name, window, taught))
                alarmed = self.watches[name].see(self._counted(window, answers))
                if drifts and name in self.draw.who:
                    if alarmed and alarm is None:
                        alarm = number - self.begin + 1
                elif alarmed is not None:
                    windows, alarms = windows + 1, alarms + alarmed
            lasting = sum(self.watches[n].in_a_row >= rules.drift_windows for n in self.draw.who)
            if drifts and lasting >= needed:
                return alarm, number - self.begin + 1, (windows, alarms)
        return alarm, PATIENCE, (windows, alarms)

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

    def _choose(self, candidate: Tensors, new: Mapping[str, np.ndarray]) -> None:
        """SETTLED windows in which the candidate is served and each device may choose."""
        made_us = max(device.now_us for device in self.devices.values())
        for device in self.devices.values():
            device.is_offered()
        for _ in range(SETTLED):
            for name, device in self.devices.items():
                device.look(self.shared.served, candidate, made_us)
                window, old = next(self.streams[name]), self.shared.answers | self.old
                answering = old if device.keeps else new
                answers, taught = self._of(name, window, answering, answering)
                device.see(window, answers, taught)

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
            yield Other(name, float(now.mean() - was.mean()), worse_by_chance(won, lost))

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


def drifts(study: Study, results: Results) -> None:
    """A row for each draw; then all of them against the goals."""
    count = DRAWS if study.size == FULL else QUICK_DRAWS
    installed(TASK, study.folder / "prepared")  # once, and not in both processes
    jobs = [(study.size, number) for number in range(1, count + 1)]
    found = in_two_processes(study.folder, of_draw, jobs)
    results.tables += [_table(found), _by_kind(found)]
    results.goals += goals("drifts", found)


def _table(found: Sequence[Outcome]) -> Table:
    rows: list[list[Cell]] = []
    for one in found:
        worst = min(one.others, key=lambda other: other.change)
        verdict = "yes" if one.recovered else "no"
        rows.append([
            one.draw.number, one.draw.how, ", ".join(name[-2:] for name in one.draw.who),
            one.draw.after, one.alarm, one.run,
            100 * one.before, 100 * one.old, 100 * one.new,
            verdict if one.needed else "not needed", one.gate.partition(":")[0],
            100 * worst.change, sum(other.worse for other in one.others),
            sum(other.worse_beyond_chance for other in one.others), one.kept,
        ])  # fmt: skip
    text = (
        "Built-in task, 15 devices. Who: people of the fleet. After: windows from the release "
        "before the drift to its begin. Alarm and run: windows from the drift's begin to the first "
        "alarm of a device that drifted, and to the run. Before, old, new: percent right on the "
        "drifted devices' reporting segments, before the drift, and after it with the version "
        "before and with what answers after one release. Candidate: how much of the way the run "
        "offers, and whether the gate refused it. Worst: the change of the other device that is "
        "worst off, in points; worse: other devices more than a point worse off; beyond chance: "
        f"those with p at most {CHANCE}. Kept: devices that keep the version before."
    )
    columns = [
        "draw", "how", "who", "after", "alarm", "run", "before", "old", "new", "recovered",
        "candidate", "worst", "worse", "beyond chance", "kept",
    ]  # fmt: skip
    return Table("Drawn drifts", text, columns, rows)


def _by_kind(found: Sequence[Outcome]) -> Table:
    rows: list[list[Cell]] = []
    for how in [AS_RECORDED, *ALTERED]:
        if not (of := [one for one in found if one.draw.how == how]):
            continue
        needed = [one for one in of if one.needed]
        alarms = Figure.of([_alarm(one) for one in of])
        cost = Figure.of([100 * one.cost for one in of])
        won = Figure.of([100 * (one.new - one.old) for one in of])
        recovered = sum(one.recovered for one in needed)
        rows.append([how, len(of), alarms, cost, won, len(needed), recovered])
    text = (
        "Cost and won back: points of the drifted devices. Windows until the alarm: the median, "
        f"the fewest and the most; without one, {PATIENCE + 1}."
    )
    columns = ["how", "draws", "windows", "cost", "won back", "need recovery", "recovered"]
    return Table("Drawn drifts by kind", text, columns, rows)


def _alarm(one: Outcome) -> float:
    return float(PATIENCE + 1 if one.alarm is None else one.alarm)


def goals(name: str, found: Sequence[Outcome]) -> list[Goal]:
    alarms = [_alarm(one) for one in found]
    needed = [one for one in found if one.needed]
    windows, false = (sum(one.quiet[at] for one in found) for at in (0, 1))
    recovered = 100 * sum(one.recovered for one in needed) / max(len(needed), 1)
    worse = sum(any(o.worse_beyond_chance for o in one.others) for one in found)
    ever = sum(any(o.worse for o in one.others) for one in found)
    return [
        Goal(f"{name}: recovered within one release, % of {len(needed)} that need it", recovered,
             at_least=RECOVERED),
        Goal(f"{name}: windows until the alarm", Figure.of(alarms), at_most=ALARM_WINDOWS),
        Goal(f"{name}: windows until the alarm, slowest draw", max(alarms), at_most=ALARM_WINDOWS),
        Goal(f"{name}: false alarms, % of {windows:,} windows", 100 * false / max(windows, 1),
             at_most=FALSE_SHARE),
        Goal(f"{name}: draws of {len(found)} with another device worse beyond chance", worse,
             at_most=0),
        Goal(f"{name}: draws of {len(found)} with another device a point worse", ever),
    ]  # fmt: skip
