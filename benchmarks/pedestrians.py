"""Street sensors after a change: `python -m benchmarks.pedestrians`.

Real hourly counts of Auckland's centre, which twelve sensors forecast. A street is closed, or a
sensor is moved to another one, in the week after the four weeks that the federated version has
learned from; the device continues with it. RMSE is of the logarithm of the counts, the task's
metric, over the hours that follow those since the change. `benchmarks.gains --only learning` has
what the sensors gain from each other.
"""

from collections.abc import Iterator
from dataclasses import replace
from uuid import uuid4

import numpy as np
import safetensors.numpy
import torch

from benchmarks.frame import Bench, Cell, main
from benchmarks.gains.fleet import Device, Installation, installed, outputs_of
from benchmarks.gains.grounds import BEGIN_US, DAY_US, TEST_FROM, Rows, rms, streets
from benchmarks.gains.recordings import Recording, Window
from benchmarks.gains.ways import Course, alone
from benchmarks.support.in_process import Tensors
from benchmarks.support.study import in_two_processes, study_here
from streams.contract.task import Task
from streams.contract.task.parts import one_by_one
from streams.tasks import pedestrians
from streams.tasks.pedestrians import HOUR_US, HOURS

ROUNDS = 10
SETTINGS = pedestrians.task.training
RELEASED_US = BEGIN_US + TEST_FROM * DAY_US
DAYS = 28  # that the version served has learned from
SINCE = {3: 4, 7: 28, 28: 28}  # days since the change, and those that are measured after them
CLOSED, MOVED = "A closed street", "A moved sensor"
PASSERS = (0.02, 0.2)  # of the pedestrians, who still pass a closed street
TUNED = (3, 10, 30)  # epochs, of which the oracle has the best
CALM, SERVED, ORACLE, TRAINED = "without a change", "served", "oracle", "copy as trained"
COPIES = replace(pedestrians.task, training=replace(SETTINGS, choice="offered", personal=True))
CHOSEN_COPY = "copy by choice"
CHOSEN = {CHOSEN_COPY: COPIES, "input adapter by choice": pedestrians.task}


def changes(bench: Bench) -> None:
    seeds = range(1, bench.size(3, 1) + 1)
    found = in_two_processes(bench.folder, bench.quick, _of_changes, [(seed,) for seed in seeds])
    text = (
        "RMSE of the log count, medians. In brackets: of the sensors to which the oracle gives a "
        "tenth, those that win back half of it; of all, those that are worse by more than 2 %."
    )
    for how in (CLOSED, MOVED):
        rows: list[list[Cell]] = []
        for days in SINCE:
            some = [errors for of_seed in found for at, errors in of_seed if at == (how, days)]
            by = {way: np.array([errors[way] for errors in some]) for way in some[0]}
            won = by[SERVED] - by[ORACLE]
            needed = won > 0.1 * by[SERVED]
            row: list[Cell] = [days]
            for way, each in by.items():
                back = int((needed & (by[SERVED] - each >= 0.5 * won)).sum())
                worse = int((each > 1.02 * by[SERVED]).sum())
                counts = "" if way in (CALM, SERVED) else f" ({back}; {worse})"
                row.append(f"{np.median(each):.3f}{counts}")
                if way == CHOSEN_COPY:
                    if (share := needed.mean()) > 0.9:  # else there is too little to win
                        goal = f"{how}, {days} days: won back by copies, % of sensors"
                        bench.goal(goal, 100 * back / share / len(some), at_least=90)
                    goal = f"{how}, {days} days: sensors of {len(some)} that copies make worse"
                    bench.goal(goal, worse, at_most=0)
            rows.append([*row, f"{needed.sum()} of {len(some)}"])
        bench.table(how, ["days since", *by, "the oracle gives a tenth"], rows, text)


def _of_changes(seed: int) -> list[tuple[tuple[str, int], dict[str, float]]]:
    ground, dice = streets(DAYS, seed), np.random.default_rng(seed)
    *_, served = Course(ground).rounds(seed, ROUNDS)
    made = installed("streams.tasks.pedestrians:task", study_here().folder)
    read = {n: Recording.of(made.task, one_by_one(made.task.readings(n))) for n in ground.rows}
    found = []
    for name in list(read)[: 2 if study_here().quick else None]:
        calm = read[name]
        calm = calm[calm.first_us >= RELEASED_US - DAYS * DAY_US]
        begin_us = RELEASED_US + int(dice.integers(7 * 24)) * HOUR_US
        street = str(dice.choice([other for other in read if other != name]))
        share = dice.uniform(*PASSERS)
        for how, to in ((CLOSED, _closed(calm, share)), (MOVED, read[street])):
            moved = _changed(calm, to, begin_us)
            later = {days: _later(moved, begin_us, days) for days in SINCE}
            courses = {way: _course(made, task, served, name, moved, begin_us)
                       for way, task in CHOSEN.items()}  # fmt: skip
            for days, rows in later.items():
                since = moved[(moved.last_us >= begin_us) & (moved.last_us < rows.first_us[0])]
                own = replace(ground, rows={name: Rows(since.segments, since.labels)})
                tuned = [alone(own, served, seed, epochs)[name] for epochs in TUNED]
                errors = {
                    CALM: _error(made, served, _later(calm, begin_us, days)),
                    SERVED: _error(made, served, rows),
                    ORACLE: min(_error(made, weights, rows) for weights in tuned),
                }
                for way, course in courses.items():
                    device = next(course)
                    errors[way] = rms(device.answers(rows.segments) - rows.labels)
                *_, idle = _course(made, COPIES, served, name, moved, begin_us, days)
                copy = idle.trained()
                assert copy is not None
                weights = safetensors.numpy.load(copy.weights)
                errors[TRAINED] = _error(made, weights, rows)
                found.append(((how, days), errors))
    return found


def _closed(calm: Recording, share: float) -> Recording:
    """Return what is counted where this share of the pedestrians passes."""
    fewer = [np.log1p(np.rint(share * np.expm1(x))) for x in (calm.segments, calm.labels)]
    return replace(calm, segments=fewer[0], labels=fewer[1])


def _changed(calm: Recording, to: Recording, begin_us: int) -> Recording:
    """Return the hours that both have, counted by `to` from an hour on: `week-ago` follows a week
    later, a label is of the next hour."""
    _, rows, at = np.intersect1d(calm.last_us, to.last_us, return_indices=True)
    calm, to = calm[rows], to[at]
    hours = calm.last_us[:, None] + np.arange(1 - HOURS, 1) * HOUR_US
    of_channels = np.stack([hours, hours + HOUR_US - 7 * DAY_US], axis=1) >= begin_us
    segments = calm.segments.copy()
    segments[:, :2] = np.where(of_channels, to.segments[:, :2], segments[:, :2])
    late = calm.last_us[:, None] + HOUR_US >= begin_us
    return replace(calm, segments=segments, labels=np.where(late, to.labels, calm.labels))


def _later(recording: Recording, begin_us: int, days: int) -> Recording:
    """Return the labelled hours that are measured so many days after the change."""
    first_us = begin_us + days * DAY_US
    within = (recording.first_us >= first_us) & (
        recording.last_us < first_us + SINCE[days] * DAY_US
    )
    return recording[within & recording.labelled]


def _error(made: Installation, weights: Tensors, rows: Recording) -> float:
    return rms(outputs_of(made.task, weights, rows.segments) - rows.labels)


def _course(
    made: Installation,
    task: Task,
    served: Tensors,
    name: str,
    moved: Recording,
    begin_us: int,
    idle: int = 0,
) -> Iterator[Device]:
    """Yield a device after the days of SINCE, or after `idle` days without any training; it fits
    and chooses once a day."""
    made = replace(made, task=task)
    device, waiting = Device(made, name, made.folder / uuid4().hex), [idle] if idle else list(SINCE)
    device.serve(made.release(made.first, 1, RELEASED_US - DAYS * DAY_US))
    release = made.release(served, 2, RELEASED_US)
    for rows in moved.windows(made.task):
        if moved.last_us[rows[-1]] >= begin_us + waiting[0] * DAY_US:
            waiting.pop(0)
            yield device
            if not waiting:
                return
        if release and moved.first_us[rows[0]] >= RELEASED_US:
            device.serve(release)
            release = b""
        device.see(Window(moved, rows, 0), device.answers(moved.segments[rows]), None)
        if not idle:
            device.look()


if __name__ == "__main__":
    torch.set_num_threads(1)
    main("pedestrians", {"changes": changes}, ("torch", "numpy"))
