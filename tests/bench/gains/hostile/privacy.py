"""What noise for privacy costs: the product's private aggregation at epsilon 8 and 3."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache

import numpy as np

from federation.admission.update import Update, Weights
from federation.aggregation import strategies
from federation.aggregation.aggregator import Aggregator
from federation.aggregation.privacy import Ledger, NoisyMean, Private, epsilon
from streams.contract.task import Privacy, Training, is_under
from tests.bench.federation.learning import WORSE
from tests.bench.federation.loop import Tally, round_seed, rounds
from tests.bench.federation.people import every_label
from tests.bench.federation.study import FULL, Size, Study, in_two_processes, study_here
from tests.bench.federation.trainees import Tensors, Trainees, right, share
from tests.bench.gains.verdict import Gate
from tests.bench.machine import watched
from tests.bench.report import Cell, Figure, Results, Table

DELTA = Privacy(clip=1.0, noise_multiplier=1.0).delta
# Of the built-in task's model: all layers but batch norm, and the last one.
NORM_KEPT, HEAD = ("0", "3", "6", "11"), ("11",)
USUAL = 2.0  # about the length of what a device of the built-in task learns in a round
NOISE = 1.0  # the length that the noise of all rounds may come to: half of that


@dataclass(frozen=True)
class Way:
    """epsilon: that of all rounds together, None: without privacy; noise: False for the same clip
    alone; only: the modules that are trained and shared, empty: all; alike: for how many devices
    that would send the same each of the fleet's stands."""

    epsilon: float | None = None
    alike: int = 1
    only: tuple[str, ...] = ()
    noise: bool = True


WAYS = (
    Way(),
    Way(8.0, noise=False),
    Way(8.0, 100, noise=False),
    *(Way(target, alike) for alike in (1, 10) for target in (8.0, 3.0)),
    Way(only=NORM_KEPT),
    *(Way(target, alike, NORM_KEPT) for alike in (1, 10) for target in (8.0, 3.0)),
    Way(only=HEAD),
    *(Way(target, only=HEAD) for target in (8.0, 3.0)),
)
QUICK_WAYS = (Way(), Way(8.0))


@dataclass(frozen=True)
class Outcome:
    """Percent right: own, the device with the least, people held out; worse: devices that are more
    than a point worse than with the first model."""

    own: float
    least: float
    worse: float
    others: float


@dataclass(frozen=True)
class Learned:
    """What a fleet learned, and what its devices have after the run; `passed`: whether the gate
    lets it pass."""

    learned: Outcome
    after: Outcome
    passed: bool


class Crowd:
    """An Aggregator that takes each update `alike` times, as of so many devices."""

    def __init__(self, inner: Aggregator, alike: int) -> None:
        self._inner, self._alike = inner, alike
        self.name, self.least, self.clip = inner.name, inner.least, inner.clip
        self.exhausted, self.metrics = inner.exhausted, inner.metrics
        self.state, self.load = inner.state, inner.load

    def aggregate(self, updates: Sequence[Update], base: Weights) -> dict[str, np.ndarray]:
        return self._inner.aggregate([*updates] * self._alike, base)


def multiplier(target: float, count: int, delta: float = DELTA) -> float:
    """Return the least noise multiplier, to a thousandth, with which so many rounds stay within
    epsilon."""
    low, high = 0.0, 100.0
    while high - low > 1e-3:
        middle = (low + high) / 2
        if epsilon({middle: count}, delta) > target:
            low = middle
        else:
            high = middle
    return high


def clip_for(noise: float, devices: int, weights: int, count: int) -> float:
    """Return the clip with which the noise of `count` rounds on so many weights has the length
    NOISE; USUAL where that cuts nothing off."""
    return min(USUAL, NOISE * devices / (noise * math.sqrt(weights * count)))


def privacy(study: Study, results: Results) -> None:
    """The ways, with three seeds."""
    ways = WAYS if study.size == FULL else QUICK_WAYS
    jobs = [(study.size, way, seed) for seed in study.size.crowd_seeds for way in ways]
    with watched() as load:
        done = in_two_processes(study.folder, of_way, jobs)
    found: dict[Way, list[Learned]] = {way: [] for way in ways}
    for (_, way, _), one in zip(jobs, done, strict=True):
        found[way].append(one)
    results.tables.append(_table(study, found, load.others))


def of_way(size: Size, way: Way, seed: int) -> Learned:
    """What one fleet learns, in a process of the pool."""
    study = study_here(size)
    first, learned = study.first_model(seed), learn(study, way, seed)
    verdict, candidate = _gate(size).judge(first, learned, study.fleet, ())
    served = candidate if verdict.promote else first
    found = Learned(outcome(study, first, learned), outcome(study, first, served), verdict.promote)
    one = found.learned
    study.say(
        f"privacy: {_name(way)}, {len(study.fleet) * way.alike} devices, seed {seed}: own "
        f"{one.own:.1f}, least {one.least:.1f}, worse {one.worse:.0f}, others {one.others:.1f}"
    )
    return found


@cache
def _gate(size: Size) -> Gate:
    """Return a process's one gate: its graph is exported once."""
    return Gate(study_here(size))


def outcome(study: Study, first: Tensors, weights: Tensors) -> Outcome:
    before, after = (
        {p.name: right(study.task, w, p) for p in study.fleet} for w in (first, weights)
    )
    shares = {name: 100 * float(rows.mean()) for name, rows in after.items()}
    lost = [100 * float(rows.mean()) - shares[name] for name, rows in before.items()]
    return Outcome(
        100 * float(np.concatenate(list(after.values())).mean()),
        min(shares.values()),
        float(sum(each > WORSE for each in lost)),
        share(study.task, weights, study.held_out),
    )


def learn(study: Study, way: Way, seed: int) -> Tensors:
    """Return what a fleet learns in all rounds."""
    first, count = study.first_model(seed), study.size.rounds[-1]
    training = settings(study, way)
    labelled = {p.name: every_label(p, np.random.default_rng(seed)) for p in study.fleet}
    task = replace(study.task, training=replace(training, shared=()))  # no device keeps layers
    devices = Trainees(task, study.fleet, labelled, study.folder / "private")

    def answer(name: str, weights: Tensors, number: int) -> Update:
        return devices.train(name, weights, round_seed(seed, number))

    aggregator = Crowd(_aggregator(study, training, way), way.alike)
    *_, learned = rounds(task, devices.names, first, count, aggregator, answer, tally := Tally())
    if tally.failed_rounds:
        raise RuntimeError(f"{_name(way)}: {tally.failed_rounds} rounds failed")
    return learned


def settings(study: Study, way: Way) -> Training:
    """Return the settings by which a fleet is trained."""
    training = replace(study.task.training, train_only=way.only, shared=way.only)
    if way.epsilon is None:
        return training
    count, devices = study.size.rounds[-1], len(study.fleet) * way.alike
    noise = multiplier(way.epsilon, count)
    clip = clip_for(noise, devices, weights_of(study, way.only), count)
    return replace(training, privacy=Privacy(clip, noise, way.epsilon, DELTA))


def weights_of(study: Study, only: Sequence[str]) -> int:
    """Return how many weights are learned."""
    parameters = study.task.build_model().named_parameters()
    return sum(tensor.numel() for name, tensor in parameters if is_under(name, only))


def _aggregator(study: Study, training: Training, way: Way) -> Aggregator:
    if training.privacy is None:
        return strategies.make("fedavg", shared=training.shared)
    noise = training.privacy.noise_multiplier if way.noise else 0.0
    used = replace(training.privacy, noise_multiplier=noise)
    ledger = Ledger(study.folder / "privacy.json")
    return Private(NoisyMean("fedavg", used), training.shared, used, ledger)


def _table(study: Study, found: Mapping[Way, Sequence[Learned]], load: float) -> Table:
    firsts = [study.first_model(seed) for seed in study.size.crowd_seeds]
    rows: list[list[Cell]] = [
        [
            "first model",
            None,
            None,
            None,
            *_figures([outcome(study, w, w) for w in firsts]),
            None,
            None,
            None,
        ]
    ]
    for way, seeds in found.items():
        used, devices = settings(study, way).privacy, len(study.fleet) * way.alike
        noise, clip = (used.noise_multiplier, used.clip) if used else (None, None)
        noise = noise if way.noise else 0.0
        after = [one.after for one in seeds]
        rows.append([
            _name(way), devices, noise, None if clip is None else f"{clip:.3g}",
            *_figures([one.learned for one in seeds]),
            f"{sum(one.passed for one in seeds)} of {len(seeds)}",
            Figure.of([one.worse for one in after]),
            Figure.of([one.others for one in after]),
        ])  # fmt: skip
    text = (
        f"{study.size.rounds[-1]} rounds of fedavg, delta {DELTA:g}; the median of "
        f"{len(study.size.crowd_seeds)} seeds, the least and the most; percent right with all that "
        f"was learned. Own: what {len(study.fleet)} devices hold out; least: the device with the "
        "least; worse: devices more than a point worse than with the first model; others: people "
        "held out. Where more devices are named than that, each stands for 10 or 100 that would "
        "send the same: what is learned is the same, only the noise is less. The clip is the one "
        f"with which the noise of all rounds together has the length {NOISE:.0f} on the weights "
        f"that are learned, {weights_of(study, ()):,} or the {weights_of(study, HEAD)} of the last "
        f"layer; at most {USUAL:.0f}, about the length of an update. Clip only: the clip of "
        "so many devices at epsilon 8 without noise, which protects nothing. Batch norm kept: "
        "`train_only` and `shared` name all other layers, so that its weights stay as well; its "
        "statistics are those that were sent wherever a run is private or does not train it. "
        "Passed: runs whose outcome "
        "the gate lets pass; after: with what devices have then (half of the way or all, or the "
        f"first model). Others' load: {load:.0%}."
    )
    columns = [
        "", "devices", "noise multiplier", "clip", "own", "least", "worse", "others", "passed",
        "worse after", "others after",
    ]  # fmt: skip
    return Table("Privacy", text, columns, rows)


def _figures(found: Sequence[Outcome]) -> list[Cell]:
    parts = ("own", "least", "worse", "others")
    return [Figure.of([getattr(one, part) for one in found]) for part in parts]


def _name(way: Way) -> str:
    if way.epsilon is None:
        name = "no privacy"
    else:
        name = f"epsilon {way.epsilon:.0f}" if way.noise else "clip only"
    parts = {NORM_KEPT: ", batch norm kept", HEAD: ", last layer only"}
    return name + parts.get(way.only, "")
