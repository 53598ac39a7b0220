"""What hostile devices do to what the fleet learns, behind admission and each strategy, and without
either."""

from collections import Counter
from collections.abc import Iterator, Mapping
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
from tests.bench.federation.study import Study
from tests.bench.federation.trainees import Tensors, Trainees, own_share, share
from tests.bench.report import Cell, Results, Table

DEVICES = 10
SEED = 1
PLAIN = "Flower's FedAvg, no admission"
RULES: Mapping[str, tuple[str, Aggregation]] = {
    "fedavg": ("fedavg", Aggregation()),
    "fedadam": ("fedadam", Aggregation()),
    "fedyogi": ("fedyogi", Aggregation()),
    "median": ("median", Aggregation()),
    "trimmed-mean, trim 0.2": ("trimmed-mean", Aggregation()),
    "trimmed-mean, trim 0.3": ("trimmed-mean", Aggregation(trim=0.3)),
    "krum, byzantine 1": ("krum", Aggregation()),
    "krum, byzantine 3": ("krum", Aggregation(byzantine=3)),
    "multi-krum, byzantine 1": ("multi-krum", Aggregation()),
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


class Answers:
    """The devices' answers to one strategy's rounds. What an honest device answers to the same
    weights is remembered: attacks that are kept out leave all rounds as they are."""

    def __init__(self, study: Study) -> None:
        people = study.fleet[:DEVICES]
        outputs = study.task.outputs
        wrong = [replace(p, labels=flipped_labels(p.labels, outputs)) for p in people]
        dice = np.random.default_rng(SEED)
        labelled = {person.name: every_label(person, dice) for person in people}
        self.honest = Trainees(study.task, people, labelled, study.folder / "honest")
        self._flipped = Trainees(study.task, wrong, labelled, study.folder / "flipped")
        self._known: dict[Any, Update] = {}

    def forget(self) -> None:
        self._known.clear()

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
            self._known[key] = devices.train(name, weights, round_seed(SEED, number))
        return self._known[key]


def attack(study: Study, results: Results) -> None:
    """One device of ten is hostile."""
    _measured(study, results, hostile=1)


def attacks(study: Study, results: Results) -> None:
    """Three of ten are."""
    _measured(study, results, hostile=3)


def _measured(study: Study, results: Results, hostile: int) -> None:
    """Two tables of accuracies and one of refusals."""
    answers, found = Answers(study), {}
    for rule in (PLAIN, *RULES):
        answers.forget()
        found[rule] = dict(_attacked(study, answers, rule, hostile))
    results.tables += [
        _table(study, hostile, found, "own"),
        _table(study, hostile, found, "others"),
        _refusals(study, hostile, found["fedavg"]),
    ]


def _attacked(
    study: Study, answers: Answers, rule: str, hostile: int
) -> Iterator[tuple[str, Outcome]]:
    for attack in (NOBODY, *ATTACKS):
        outcome = _run(study, answers, rule, attack, hostile)
        study.say(
            f"attacks, {hostile} of {DEVICES}: {rule}, {attack}: own {outcome.own}, "
            f"others {outcome.others}"
        )
        yield attack, outcome


def _run(study: Study, answers: Answers, rule: str, attack: str, hostile: int) -> Outcome:
    task, names, tally = study.task, answers.honest.names, Tally()
    answer, count = answers.to(attack, hostile), study.size.attack_rounds
    first = study.first_model(SEED)
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
    study: Study, hostile: int, found: Mapping[str, Mapping[str, Outcome]], part: str
) -> Table:
    whose = {"own": "the honest devices' held-out segments", "others": "people held out"}[part]
    text = (
        f"Percent right on {whose} after {study.size.attack_rounds} rounds of {DEVICES} devices, "
        f"one seed. Run ends: Flower raises. No round: in no round as many updates were admitted "
        "as the strategy needs, so the run fails and the first model stays."
    )
    rows: list[list[Cell]] = [
        [rule, *(getattr(outcome, part) for outcome in outcomes.values())]
        for rule, outcomes in found.items()
    ]
    title = f"{hostile} of {DEVICES} hostile, {'own segments' if part == 'own' else 'others'}"
    return Table(title, text, ["", NOBODY, *ATTACKS], rows)


def _refusals(study: Study, hostile: int, outcomes: Mapping[str, Outcome]) -> Table:
    """What admission did, with fedavg behind it."""
    rows: list[list[Cell]] = []
    attackers = {person.name for person in study.fleet[DEVICES - hostile : DEVICES]}
    for attack, outcome in outcomes.items():
        reasons: Counter[str] = Counter()
        honest = 0
        for (device, reason), count in outcome.tally.refused.items():
            if device in attackers or reason == "sitting-out":
                reasons[reason] += count
            else:
                honest += count
        told = ", ".join(f"{reason} {count}" for reason, count in sorted(reasons.items()))
        rows.append([attack, told or "none", honest])
    sent = f"{hostile} x {study.size.attack_rounds}"
    text = (
        f"Updates of the hostile devices that admission refuses ({sent} are due; a device that was "
        "refused twice sits out three rounds), and of the others; fedavg."
    )
    return Table(f"{hostile} of {DEVICES} hostile, refused", text, ["", "hostile", "others"], rows)
