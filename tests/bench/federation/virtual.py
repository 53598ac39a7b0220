"""Two hundred devices in simulated time, and float16 beside float32."""

from collections.abc import Callable
from dataclasses import replace
from statistics import fmean
from typing import NamedTuple, get_args

import numpy as np

from streams.contract.weights import payload
from streams.runtime.disk import cache_folder
from tests.bench.federation.crowd import (
    DEADLINE_S,
    DEVICES,
    MESSAGE_S,
    SEGMENTS,
    TARGET,
    TRAIN_S,
    Crowd,
    Watched,
    ours,
    stock,
)
from tests.bench.federation.real.dropouts import STOCK, goals, our_name, stock_name, times
from tests.bench.federation.real.processes import reached
from tests.bench.federation.real.stage import Stage
from tests.bench.federation.study import TASK, Size, Study, in_two_processes, study_here
from tests.bench.machine import watched
from tests.bench.report import Cell, Figure, Goal, Results, Table

ROUNDS, STEPS = 12, 60
BUFFER = 20
STOCK_DEADLINE, OURS = stock_name(DEADLINE_S), our_name(DEADLINE_S)
FIRST_HALF = f"synchronous, the first {DEVICES // 2}"
BUFFERED = f"buffered, {BUFFER}"
NAMES = (STOCK, STOCK_DEADLINE, OURS, FIRST_HALF, BUFFERED)


class Outcome(NamedTuple):
    """seconds: of simulated time to TARGET, if it was reached; in_all: of the whole run."""

    seconds: float | None
    in_all: float
    rounds: int
    trained: int
    share: float


def virtual(study: Study, results: Results) -> None:
    """Each contender with each seed: of who drops out, of the devices' data and of training."""
    seeds = study.size.crowd_seeds
    with watched() as load:
        jobs = [(study.size, name, seed) for name in NAMES for seed in seeds]
        done = in_two_processes(study.folder, in_a_crowd, jobs)
    found = {name: done[i * len(seeds) : (i + 1) * len(seeds)] for i, name in enumerate(NAMES)}
    rows: list[list[Cell]] = []
    for name, runs in found.items():
        deadline, plain = (faster(found[other], runs) for other in (STOCK_DEADLINE, STOCK))
        trained = Figure.of([one.trained for one in runs])
        rows.append([
            name, len(runs), figure([one.seconds for one in runs]), deadline, plain,
            Figure.of([one.rounds for one in runs]), trained, Figure.of([r.share for r in runs]),
        ])  # fmt: skip
        if name not in (STOCK, STOCK_DEADLINE):
            results.goals += goals(f"{name}, {DEVICES} devices", STOCK_DEADLINE, deadline, plain)
    text = (
        f"Simulated time, real training: {DEVICES} devices with {SEGMENTS} segments each of the "
        f"fleet's people; drop-outs and slow devices as above, {TRAIN_S:.0f} s to train, "
        f"{MESSAGE_S[0]:.0f} to {MESSAGE_S[1]:.1f} s on the way. Seconds until {TARGET:.0%} of the "
        "segments that the fleet's people hold out are right, twice in a row; the median of "
        f"{len(seeds)} seeds, the least and the most; none where a seed did not come so far, "
        "then its whole run counts for the others' figures. Flower takes part with "
        f"its default of 3600 s, and with `timeout={DEADLINE_S:.0f}`. "
        f"Others' load, on which simulated time does not depend: {load.others:.0%}."
    )
    columns = ["", "runs", "seconds", "times faster than with timeout", "than as it comes"]
    columns += ["rounds", "trainings", "accuracy at the end"]
    results.tables.append(Table("Two hundred devices, simulated", text, columns, rows))


def faster(theirs: list[Outcome], ours: list[Outcome]) -> Figure | None:
    """How many times faster with each seed; where the others did not come so far, at least."""
    both = zip(theirs, ours, strict=True)
    return figure([times(a.seconds or a.in_all, b.seconds) for a, b in both])


def figure(values: list[float | None]) -> Figure | None:
    """Return the figure of the runs, None where one has no value."""
    found = [value for value in values if value is not None]
    return Figure.of(found) if found and len(found) == len(values) else None


def in_a_crowd(size: Size, name: str, seed: int) -> Outcome:
    """One contender with one seed, in a process of the pool."""
    study = study_here(size)
    stage = _stage(study)
    people = [dict(np.load(stage.person(one))) for one in stage.task.device_names("fleet")]
    training = stage.task.training
    half = replace(training, devices_per_round=DEVICES // 2, over_selection=2.0)
    buffered = replace(training, aggregation=replace(training.aggregation, buffer=BUFFER))
    tasks = {FIRST_HALF: half, BUFFERED: buffered}
    crowd = Crowd(replace(stage.task, training=tasks.get(name, training)), people, seed=seed)
    with stage.state(f"virtual-{seed}") as folder:
        run: dict[str, Callable[[], Watched]] = {
            STOCK: lambda: stock(stage, folder, crowd),
            STOCK_DEADLINE: lambda: stock(stage, folder, crowd, DEADLINE_S),
            BUFFERED: lambda: ours(stage, folder, crowd, "fedbuff", STEPS),
        }
        found = run.get(name, lambda: ours(stage, folder, crowd, "fedavg", ROUNDS))()
    number, in_all, share = found.rounds[-1]
    study.say(f"virtual, {name}, seed {seed}: {number} rounds, {share:.3f}")
    return Outcome(reached(found.rounds, TARGET), in_all, number, crowd.trained, share)


def _stage(study: Study) -> Stage:
    """No section here needs a broker."""
    data = study.folder.parent / "people"
    return Stage(study.folder, cache_folder(), data, TASK, study.task, None)  # type: ignore[arg-type]


def halves(study: Study, results: Results) -> None:
    """Whether float16 on the way costs accuracy: the fleet's people with all their segments, nobody
    missing."""
    kinds, seeds = get_args(payload.Payload), study.size.seeds
    with watched() as load:
        jobs = [(study.size, kind, seed) for kind in kinds for seed in seeds]
        done = in_two_processes(study.folder, with_payload, jobs)
    found = {kind: done[i * len(seeds) : (i + 1) * len(seeds)] for i, kind in enumerate(kinds)}
    rows: list[list[Cell]] = [[kind, len(seeds), Figure.of(found[kind])] for kind in kinds]
    text = (
        "Accuracy of the segments that the fleet's people hold out, the mean of the last 3 of "
        f"{study.size.half_rounds} rounds; the median of {len(seeds)} seeds, the least and the "
        f"most; all of a person's labels. Others' load: {load.others:.0%}."
    )
    results.tables.append(Table("float16 on the way", text, ["payload", "seeds", "accuracy"], rows))
    lost = [a - b for a, b in zip(found["float32"], found["float16"], strict=True)]
    results.goals.append(Goal("accuracy lost by float16", Figure.of(lost), at_most=0.01))


def with_payload(size: Size, kind: payload.Payload, seed: int) -> float:
    """One run, in a process of the pool."""
    study = study_here(size)
    stage = _stage(study)
    people = [dict(np.load(stage.person(one))) for one in stage.task.device_names("fleet")]
    task = replace(stage.task, training=replace(stage.task.training, payload=kind))
    crowd = Crowd(task, people, len(people), 1 << 20, 0.0, seed)
    with stage.state(f"halves-{kind}-{seed}") as folder:
        found = ours(stage, folder, crowd, "fedavg", size.half_rounds, target=1.0)
    study.say(f"halves, {kind}, seed {seed}")
    return fmean(share for _, _, share in found.rounds[-3:])
