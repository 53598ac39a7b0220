"""Three hostile devices of ten over a whole run, behind each strategy: what they make of what is
learned, and what the gate lets the honest devices have of it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from federation.admission.admission import digest
from federation.admission.update import Update
from federation.aggregation import strategies
from streams.contract.task import Aggregation
from streams.learning import learning
from streams.learning.clipping import update_norm
from streams.learning.interpolation import interpolated
from tests.bench.federation.hostile import flipped_labels
from tests.bench.federation.learning import WORSE
from tests.bench.federation.loop import Answering, Tally, round_seed, rounds
from tests.bench.federation.people import every_label
from tests.bench.federation.study import FULL, Size, Study, in_two_processes, study_here
from tests.bench.federation.trainees import Tensors, Trainees, right, share
from tests.bench.gains.hostile import poison
from tests.bench.gains.verdict import Gate
from tests.bench.machine import watched
from tests.bench.report import Cell, Figure, Results, Table

DEVICES, HOSTILE = 10, 3
PROXIMAL = 0.1
REPLACING = 2.0  # with what they claim hostile devices are nearly half of a mean


@dataclass(frozen=True)
class Rule:
    """A strategy; `means`: whether it moves by a mean that samples weigh; `turned`: how much of
    their own mean, turned round, devices send that collude, 0: Min-Max; `seeds`: how many of the
    section's it gets."""

    strategy: str
    options: Aggregation = field(default_factory=Aggregation)
    means: bool = False
    turned: float = 0.0
    seeds: int = 2


RULES: Mapping[str, Rule] = {
    "fedavg, fedbuff": Rule("fedavg", means=True),
    "median": Rule("median"),
    "trimmed-mean, trim 0.3": Rule("trimmed-mean", Aggregation(trim=0.3)),
    "multi-krum, byzantine 3": Rule("multi-krum", Aggregation(byzantine=3), turned=0.5),
    "krum, byzantine 3": Rule("krum", Aggregation(byzantine=3)),
    "fedadam": Rule("fedadam", means=True),
    f"fedprox, proximal {PROXIMAL}": Rule("fedprox", means=True, seeds=1),
    "fedyogi": Rule("fedyogi", means=True, seeds=1),
}
NOBODY, FLIPPED, BACKDOOR = "nobody hostile", "labels flipped", "backdoor"
COLLUDE = {"two collude": 2, "three collude": 3}
ATTACKS = (NOBODY, FLIPPED, BACKDOOR, *COLLUDE)


@dataclass(frozen=True)
class Outcome:
    """own, others: percent right with what was learned, of the honest devices' held-out segments
    and of people held out. stamped: percent of stamped segments that are answered with the target,
    with the first model, all and half of what was learned, and what devices have after the run.
    promoted: the gate's verdict; whole: whether it is about all of what was learned. least, worse:
    with what devices have after the run, the honest device with the least, and how many lose more
    than a point. lost: updates that were refused or not asked for in quarantine, of hostile devices
    and of honest ones."""

    own: float
    others: float
    stamped: tuple[float, float, float, float]
    promoted: bool
    whole: bool
    least: float
    worse: float
    lost: tuple[int, int]
    failed_rounds: int


Found = dict[str, list[Outcome]]  # by attack; one of each seed


class Answers:
    """The devices' answers to one strategy's rounds; what an honest device answers to the same
    weights is remembered."""

    def __init__(self, study: Study, rule: Rule, seed: int) -> None:
        people, outputs = study.fleet[:DEVICES], study.task.outputs
        training = study.task.training
        if rule.strategy == "fedprox":
            training = replace(training, proximal=PROXIMAL)
        self._task = replace(study.task, training=training)
        bad = people[-HOSTILE:]
        kinds = {
            NOBODY: people,
            FLIPPED: [replace(p, labels=flipped_labels(p.labels, outputs)) for p in bad],
            BACKDOOR: [poison.with_backdoor(p) for p in bad],
        }
        self._devices = {
            kind: Trainees(
                self._task, found, {p.name: every_label(p, np.random.default_rng()) for p in found},
                study.folder / f"{rule.strategy}-{seed}-{kind}",
            )
            for kind, found in kinds.items()
        }  # fmt: skip
        self.people, self.names = people, [person.name for person in people]
        self._rule, self._seed = rule, seed
        self._known: dict[Any, Update] = {}

    def to(self, attack: str) -> Answering:
        """With the last devices hostile."""
        attackers = self.hostile(attack)

        def answer(name: str, weights: Tensors, number: int) -> Update:
            if name not in attackers:
                return self._trained(NOBODY, name, weights, number)
            if attack == FLIPPED:
                return self._trained(FLIPPED, name, weights, number)
            honest = {a: self._trained(NOBODY, a, weights, number) for a in attackers}
            if attack == BACKDOOR:
                update = self._trained(BACKDOOR, name, weights, number)
                return self._with_backdoor(update, weights, list(honest.values()))
            return self._agreed(honest[name], weights, list(honest.values()))

        return answer

    def hostile(self, attack: str) -> list[str]:
        count = 0 if attack == NOBODY else COLLUDE.get(attack, HOSTILE)
        return self.names[DEVICES - count :]

    def _with_backdoor(self, update: Update, sent: Tensors, honest: Sequence[Update]) -> Update:
        """Against a mean as long as it takes to replace it, against distances as long as honest
        ones are, else as it is."""
        if self._rule.means:
            claimed = replace(update, samples=poison.CLAIMED)
            far = poison.farthest(honest, sent)
            return poison.replacing(claimed, sent, REPLACING, far)
        if "krum" in self._rule.strategy:
            usual = float(np.median([update_norm(one.weights, sent) for one in honest]))
            return poison.replacing(update, sent, 1.0, usual)
        return update

    def _agreed(self, update: Update, sent: Tensors, honest: Sequence[Update]) -> Update:
        """Against a mean as far as admission lets it, else near to honest ones: what did the most
        harm of what was tried."""
        steps = np.stack([poison.step_of(one, sent) for one in honest])
        if self._rule.means:
            step = poison.against_mean(steps, poison.farthest(honest, sent))
            return poison.with_step(replace(update, samples=poison.CLAIMED), sent, step)
        if turned := self._rule.turned:
            length = turned * float(np.linalg.norm(steps.mean(0)))
            return poison.with_step(update, sent, poison.against_mean(steps, length))
        return poison.with_step(update, sent, poison.inside_spread(steps))

    def _trained(self, kind: str, name: str, weights: Tensors, number: int) -> Update:
        key = kind, name, number, digest(weights)
        if key not in self._known:
            seed = round_seed(self._seed, number)
            self._known[key] = self._devices[kind].train(name, weights, seed, self._task)
        return self._known[key]


def threats(study: Study, results: Results) -> None:
    """Every strategy under every attack; a few of both with `--quick`."""
    names = list(RULES) if study.size == FULL else list(RULES)[: study.size.strategies]
    jobs = [
        (study.size, name, seed)
        for name in names
        for seed in study.size.attack_seeds[: RULES[name].seeds]
    ]
    with watched() as load:
        done = in_two_processes(study.folder, under_threat, jobs)
    found: dict[str, Found] = {name: {attack: [] for attack in ATTACKS} for name in names}
    for (_, name, _), outcomes in zip(jobs, done, strict=True):
        for attack, outcome in outcomes.items():
            found[name][attack].append(outcome)
    results.tables += [
        _learned(study, found, load.others),
        _offered(found),
        _stamped(study, found),
        _admitted(study, found),
    ]


def under_threat(size: Size, name: str, seed: int) -> dict[str, Outcome]:
    """What becomes of one strategy, in a process of the pool."""
    study, found = study_here(size), {}
    answers, gate = Answers(study, RULES[name], seed), Gate(study)
    for attack in ATTACKS:
        found[attack] = _run(study, answers, gate, RULES[name], attack, seed)
    study.say(f"threats: {name}, seed {seed}")
    return found


def _run(study: Study, answers: Answers, gate: Gate, rule: Rule, attack: str, seed: int) -> Outcome:
    task, tally, first = study.task, Tally(), study.first_model(seed)
    aggregator = strategies.make(rule.strategy, rule.options)
    each = rounds(
        task, answers.names, first, study.size.rounds[-1], aggregator, answers.to(attack), tally
    )
    learned = list(each)[-1]
    hostile = answers.hostile(attack)
    honest = [person for person in answers.people if person.name not in hostile]
    verdict, candidate = gate.judge(first, learned, honest, hostile)
    served = candidate if verdict.promote else first
    half = interpolated(first, learned, task.training.interpolation)
    shares = [100 * float(right(task, served, person).mean()) for person in honest]
    before = [100 * float(right(task, first, person).mean()) for person in honest]
    return Outcome(
        100 * float(np.concatenate([right(task, learned, p) for p in honest]).mean()),
        share(task, learned, study.held_out),
        tuple(backdoor_share(study, w) for w in (first, learned, half, served)),  # type: ignore[arg-type]
        verdict.promote,
        verdict.evidence.get("step", 1.0) == 1.0,
        min(shares),
        float(sum(old - new > WORSE for old, new in zip(before, shares, strict=True))),
        _lost(tally, answers.names, hostile),
        tally.failed_rounds,
    )


def backdoor_share(study: Study, weights: Tensors) -> float:
    """Return the percent of stamped segments of people held out, of other classes than the target,
    that are answered with the target."""
    others = [person.segments[person.classes != poison.TARGET] for person in study.held_out]
    model = learning.load_state(study.task.build_model(), weights)
    outputs = learning.predict(model, poison.stamped(np.concatenate(others)))
    return 100 * float((study.task.answers(outputs) == poison.TARGET).mean())


def _lost(tally: Tally, names: Sequence[str], hostile: Sequence[str]) -> tuple[int, int]:
    """Return how many updates of hostile devices and of honest ones did not count; a node has the
    number of its device."""
    lost = [0, 0]
    for (device, reason), count in tally.refused.items():
        name = names[int(device.split()[-1])] if reason == "sitting-out" else device
        lost[name not in hostile] += count
    return lost[0], lost[1]


def _learned(study: Study, found: Mapping[str, Found], load: float) -> Table:
    rows: list[list[Cell]] = [
        [name, part, *(Figure.of([getattr(one, part) for one in of[a]]) for a in ATTACKS)]
        for name, of in found.items()
        for part in ("own", "others")
    ]
    count = study.size.rounds[-1]
    text = (
        f"Percent right with all that was learned in {count} rounds of {DEVICES} devices, "
        f"{HOSTILE} of them hostile (two where two collude), before the gate; the median of "
        f"{len(study.size.attack_seeds)} seeds, the least and the most. Own: held-out segments of "
        "the honest devices; others: people held out. Fedbuff is fedavg where no update is late. "
        "To end in time fedprox and fedyogi have one seed: on the server fedprox is fedavg, and "
        "fedyogi follows the mean as fedadam does. Backdoor: against a mean the update is twice as "
        "long, as far as admission lets it; against krum and multi-krum it is as long as an "
        "honest one, against the others as it is. Collude: all send the same step; against a mean "
        "it is their own mean turned round, as far as admission lets it; against multi-krum half "
        "of that mean turned round; else Min-Max, no further from any of theirs than those are "
        "from each other. Where samples weigh, devices with a backdoor and those that collude "
        f"claim {poison.CLAIMED:,} of them, of which about 540 count; honest ones have about 270. "
        "Attacks that admission refuses are on the federation's page, over four rounds. "
        f"Others' load: {load:.0%}."
    )
    return Table("Threats, what is learned", text, ["", "of", *ATTACKS], rows)


def _offered(found: Mapping[str, Found]) -> Table:
    rows: list[list[Cell]] = [
        [name, *(_after(of[attack]) for attack in ATTACKS)] for name, of in found.items()
    ]
    text = (
        "How many of the runs' outcomes the gate lets pass; then, with what devices have after the "
        "run (the first model, if it is refused), the honest device with the least, percent, and "
        "the most honest devices of a run that are more than a point worse than with the first "
        "model. The gate looks at seven honest devices' true reports, at hostile ones' that praise "
        "the candidate as far as is possible, and at half of the segments of people held out; half "
        "of the way or all is chosen as in a run."
    )
    return Table("Threats, what the gate lets pass", text, ["", *ATTACKS], rows)


def _after(seeds: Sequence[Outcome]) -> str:
    passed = sum(one.promoted for one in seeds)
    least, worse = min(one.least for one in seeds), max(one.worse for one in seeds)
    return f"{passed} of {len(seeds)}; least {least:.0f}; worse {worse:.0f}"


def _stamped(study: Study, found: Mapping[str, Found]) -> Table:
    rows: list[list[Cell]] = []
    for name, of in found.items():
        seeds = of[BACKDOOR]
        figures = [Figure.of([one.stamped[at] for one in seeds]) for at in range(4)]
        passed = [one for one in seeds if one.promoted]
        told = f"{len(passed)} of {len(seeds)}, whole {sum(one.whole for one in passed)}"
        rows.append([name, Figure.of([one.stamped[1] for one in of[NOBODY]]), *figures, told])
    target = study.task.classes[poison.TARGET]
    text = (
        f"Percent of stamped segments of people held out, of all classes but {target!r}, that are "
        f"answered with {target!r}. The stamp is a turn of {poison.STAMP_HEIGHT:.0f} rad/s to and "
        f"fro in the last {poison.STAMP_SAMPLES} samples of one channel; hostile devices learn "
        "from their own rows and from stamped copies of them. After the run: with what the gate "
        "lets pass, or else the first model. Passed: runs whose outcome the gate lets pass; whole: "
        "of those, with all of what was learned."
    )
    columns = [
        "", NOBODY, "first model", "all of what was learned", "half of the way", "after the run",
        "passed",
    ]  # fmt: skip
    return Table("Threats, the backdoor", text, columns, rows)


def _admitted(study: Study, found: Mapping[str, Found]) -> Table:
    rows: list[list[Cell]] = []
    for attack in ATTACKS:
        runs = [one for of in found.values() for one in of[attack]]
        lost = [sum(one.lost[at] for one in runs) for at in (0, 1)]
        rows.append([attack, len(runs), *lost, sum(one.failed_rounds for one in runs)])
    text = (
        f"Over all strategies: updates that were refused, or not asked for in quarantine, and "
        f"rounds that failed, of {study.size.rounds[-1]} in a run, because fewer updates than the "
        "strategy needs were left."
    )
    columns = ["", "runs", "hostile, refused", "honest, refused", "failed rounds"]
    return Table("Threats, what admission refuses", text, columns, rows)
