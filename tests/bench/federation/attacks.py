"""What hostile devices do to what the fleet learns, behind admission and each strategy, and without
either."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from federation.admission.admission import digest
from federation.admission.update import Update
from federation.aggregation import strategies
from streams.contract.task import Aggregation
from tests.bench.federation.hostile import ATTACKS, flipped_labels
from tests.bench.federation.loop import Answering, Tally, round_seed, rounds
from tests.bench.federation.people import every_label
from tests.bench.federation.plain import RunEnds, plain_rounds
from tests.bench.federation.study import Size, Study, in_two_processes, study_here
from tests.bench.federation.trainees import Tensors, Trainees, own_share, share
from tests.bench.machine import watched
from tests.bench.report import Cell, Figure, Results, Table

DEVICES, HOSTILE = 10, (1, 3)
PLAIN = "Flower's FedAvg, no admission"
RULES: Mapping[str, tuple[str, Aggregation]] = {
    "fedavg": ("fedavg", Aggregation()),
    "median": ("median", Aggregation()),
    "trimmed-mean, trim 0.3": ("trimmed-mean", Aggregation(trim=0.3)),
    "multi-krum, byzantine 3": ("multi-krum", Aggregation(byzantine=3)),
}
NOBODY = "nobody hostile"


@dataclass(frozen=True)
class Outcome:
    """Percent right after the last round, of honest devices' own held-out segments and of people
    held out; or why there is none."""

    own: Cell
    others: Cell
    tally: Tally = field(default_factory=Tally)


Outcomes = dict[str, Outcome]  # by attack


class Answers:
    """The devices' answers to one strategy's rounds. What an honest device answers to the same
    weights is remembered: attacks that are kept out leave all rounds as they are."""

    def __init__(self, study: Study, seed: int) -> None:
        people = study.fleet[:DEVICES]
        outputs = study.task.outputs
        wrong = [replace(p, labels=flipped_labels(p.labels, outputs)) for p in people]
        dice = np.random.default_rng(seed)
        labelled = {person.name: every_label(person, dice) for person in people}
        self.honest = Trainees(study.task, people, labelled, study.folder / f"honest-{seed}")
        self._flipped = Trainees(study.task, wrong, labelled, study.folder / f"flipped-{seed}")
        self._seed = seed
        self._known: dict[Any, Update] = {}

    def to(self, attack: str, hostile: int) -> Answering:
        """With the last `hostile` devices hostile."""
        attackers = self.honest.names[len(self.honest.names) - hostile :]
        first: dict[str, Update] = {}

        def answer(name: str, weights: Tensors, number: int) -> Update:
            if name not in attackers or attack == NOBODY:
                return self._trained(self.honest, name, weights, number)
            devices = self._flipped if attack == "labels flipped" else self.honest
            update = self._trained(devices, name, weights, number)
            return ATTACKS[attack](update, weights, number, first.setdefault(name, update))

        return answer

    def _trained(self, devices: Trainees, name: str, weights: Tensors, number: int) -> Update:
        key = devices is self.honest, name, number, digest(weights)
        if key not in self._known:
            self._known[key] = devices.train(name, weights, round_seed(self._seed, number))
        return self._known[key]


def attacks(study: Study, results: Results) -> None:
    """One device of ten is hostile, then three of ten are."""
    seeds = study.size.attack_seeds
    rules = (PLAIN, *RULES)[: study.size.strategies]
    jobs = [
        (study.size, rule, hostile, seed) for hostile in HOSTILE for rule in rules for seed in seeds
    ]
    with watched() as load:
        done = in_two_processes(study.folder, under_attack, jobs)
    for hostile in HOSTILE:
        found: dict[str, list[Outcomes]] = {rule: [] for rule in rules}
        for (_, rule, count, _), outcomes in zip(jobs, done, strict=True):
            if count == hostile:
                found[rule].append(outcomes)
        results.tables += [
            _table(study, hostile, found, "own", load.others),
            _table(study, hostile, found, "others", load.others),
            _refusals(study, hostile, found["fedavg"]),
        ]


def under_attack(size: Size, rule: str, hostile: int, seed: int) -> Outcomes:
    """What becomes of one strategy, in a process of the pool."""
    study = study_here(size)
    answers, found = Answers(study, seed), {}
    for attack in (NOBODY, *ATTACKS):
        found[attack] = _run(study, answers, rule, attack, hostile, seed)
    study.say(f"attacks, {hostile} of {DEVICES}: {rule}, seed {seed}")
    return found


def _run(
    study: Study, answers: Answers, rule: str, attack: str, hostile: int, seed: int
) -> Outcome:
    task, names, tally = study.task, answers.honest.names, Tally()
    answer, count = answers.to(attack, hostile), study.size.attack_rounds
    first = study.first_model(seed)
    if rule == PLAIN:
        each = plain_rounds(names, first, count, answer)
    else:
        strategy, options = RULES[rule]
        aggregator = strategies.make(strategy, options)
        each = rounds(task, names, first, count, aggregator, answer, tally)
    try:
        weights = list(each)[-1]
    except RunEnds:
        return Outcome("run ends", "run ends")
    if tally.failed_rounds == count:
        return Outcome("no round", "no round", tally)
    honest = answers.honest.people[: DEVICES - hostile]
    own = own_share(task, {person.name: weights for person in honest}, honest)
    return Outcome(own, share(task, weights, study.held_out), tally)


def _table(
    study: Study, hostile: int, found: Mapping[str, list[Outcomes]], part: str, load: float
) -> Table:
    whose = {"own": "the honest devices' held-out segments", "others": "people held out"}[part]
    text = (
        f"Percent right on {whose} after {study.size.attack_rounds} rounds of {DEVICES} devices; "
        f"the median of {len(study.size.attack_seeds)} seeds, the least and the most. Run ends: "
        "Flower raises. No round: in no round as many updates were admitted as the strategy needs, "
        "so the run fails and the first model stays. Labels flipped: trained on the other end of "
        "the classes. 4.5-fold: nearly as far as admission lets an update go once it knows the "
        "usual norm (5 times that). 9 times the model: nearly as far as it lets one go in a run's "
        "first round, when it knows none (10 times the model's own norm); refused from then on. "
        f"Others' load: {load:.0%}."
    )
    rows: list[list[Cell]] = [
        [rule, *(_cell([one[attack] for one in seeds], part) for attack in (NOBODY, *ATTACKS))]
        for rule, seeds in found.items()
    ]
    title = f"{hostile} of {DEVICES} hostile, {'own segments' if part == 'own' else 'others'}"
    return Table(title, text, ["", NOBODY, *ATTACKS], rows)


def _cell(outcomes: Sequence[Outcome], part: str) -> Cell:
    """A figure; or what came of the seeds, where one has none."""
    found = [getattr(outcome, part) for outcome in outcomes]
    if told := sorted({one for one in found if isinstance(one, str)}):
        return ", ".join(told)
    return Figure.of(found)


def _refusals(study: Study, hostile: int, seeds: Sequence[Outcomes]) -> Table:
    """What admission did, with fedavg behind it."""
    rows: list[list[Cell]] = []
    attackers = {person.name for person in study.fleet[DEVICES - hostile : DEVICES]}
    for attack in (NOBODY, *ATTACKS):
        reasons: Counter[str] = Counter()
        honest = 0
        for outcomes in seeds:
            for (device, reason), count in outcomes[attack].tally.refused.items():
                if device in attackers or reason == "sitting-out":
                    reasons[reason] += count
                else:
                    honest += count
        told = ", ".join(f"{reason} {count}" for reason, count in sorted(reasons.items()))
        rows.append([attack, told or "none", honest])
    sent = f"{len(seeds)} seeds x {hostile} x {study.size.attack_rounds}"
    text = (
        f"Updates of the hostile devices that admission refuses ({sent} are due; a device that was "
        "refused twice sits out three rounds), and of the others; fedavg."
    )
    return Table(f"{hostile} of {DEVICES} hostile, refused", text, ["", "hostile", "others"], rows)
