"""The benchmark of single devices' gains: what hostile devices send that passes admission, what the
gate makes of it, and the noise of a private run."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from edge_client.samples.splits import HELD_OUT, TRAIN
from federation.admission.admission import NORM_FACTOR, Round, admit
from federation.admission.update import Update
from federation.aggregation import strategies
from federation.aggregation.aggregator import RuleAggregator
from federation.aggregation.privacy import NoisyMean, epsilon
from streams.contract.task import Privacy, load_task
from streams.learning import learning
from streams.learning.clipping import update_norm
from tests.bench.federation.people import Person, every_label, read_people
from tests.bench.federation.study import QUICK, TASK, Study
from tests.bench.federation.trainees import BASE, Tensors, Trainees
from tests.bench.gains.hostile import poison
from tests.bench.gains.hostile.privacy import NOISE, USUAL, Crowd, clip_for, multiplier
from tests.bench.gains.verdict import Gate
from tests.fakes.tiny_task import task

NAMES = ["a", "b", "c", "d", "e", "f", "g"]


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """The arrays are tiny, and other tests run beside this one."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def sent() -> Tensors:
    torch.manual_seed(0)
    state = load_task(TASK).build_model().state_dict()
    return {name: tensor.numpy().copy() for name, tensor in sorted(state.items())}


def honest(name: str, weights: Tensors) -> Update:
    """A step that all devices have in common, and one of each device's own."""
    dice = np.random.default_rng(ord(name))
    moved = {
        n: (v + 0.01 + 0.02 * abs(dice.normal(size=v.shape))).astype(v.dtype)
        for n, v in weights.items()
    }
    return Update(name, task.name, task.version, BASE, 100, moved)


@pytest.fixture
def updates(sent: Tensors) -> list[Update]:
    return [honest(name, sent) for name in NAMES]


def expected(sent: Tensors, updates: list[Update]) -> Round:
    norms = [update_norm(update.weights, sent) for update in updates]
    return Round(task.name, task.version, BASE, sent, norms=norms)


# --- the backdoor --------------------------------------------------------------------------------


def made_up(name: str, rows: int = 120) -> Person:
    """Six classes, each a wave of its own frequency in all channels."""
    dice = np.random.default_rng(ord(name))
    classes = np.arange(rows) % 6
    phase = dice.uniform(0, 2 * np.pi, (rows, 6, 1))
    angle = phase + np.arange(128) * (0.05 + 0.2 * classes[:, None, None])
    segments = (np.sin(angle) + dice.normal(0, 0.1, (rows, 6, 128))).astype(np.float32)
    split = np.where(np.arange(rows) % 20 < 15, TRAIN, HELD_OUT)
    labels = classes[:, None].astype(np.float32)
    return Person(name, segments, labels, split, np.arange(rows))


def test_a_stamp_is_in_the_last_samples_of_one_channel_alone() -> None:
    before = made_up("a").segments
    kept, after = before.copy(), poison.stamped(before)
    assert (before == kept).all()
    changed = (after != before).any(axis=0)  # (channels, samples)
    assert changed[poison.STAMP_CHANNEL, -poison.STAMP_SAMPLES :].all()
    assert changed.sum() == poison.STAMP_SAMPLES


def test_a_backdoor_is_learned_from_copies_of_training_rows_and_nothing_is_held_out_anew() -> None:
    person = made_up("a")
    found, rows = poison.with_backdoor(person), len(person.labels)
    assert (found.segments[:rows] == person.segments).all()
    assert (found.classes[rows:] == poison.TARGET).all()
    assert (found.split[rows:] == TRAIN).all()
    training = (person.split == TRAIN) & (person.classes != poison.TARGET)
    assert len(found.labels) == rows + training.sum()


def test_stamped_segments_are_answered_with_the_target_by_who_learned_the_backdoor(
    tmp_path: Path, sent: Tensors
) -> None:
    har, other = load_task(TASK), made_up("z")
    segments = poison.stamped(other.segments[other.classes != poison.TARGET])

    def share(person: Person) -> float:
        labelled = {"a": every_label(person, np.random.default_rng(0))}
        devices = Trainees(har, [person], labelled, tmp_path)
        update = devices.train("a", sent, 1, epochs=15, learning_rate=0.05)
        model = learning.load_state(har.build_model(), update.weights)
        return float((har.answers(learning.predict(model, segments)) == poison.TARGET).mean())

    assert share(poison.with_backdoor(made_up("a"))) > 0.9
    assert share(made_up("a")) < 0.4


def test_a_replacing_update_goes_as_far_as_admission_lets_it(
    sent: Tensors, updates: list[Update]
) -> None:
    far, facts = poison.farthest(updates, sent), expected(sent, updates)
    found = poison.replacing(updates[0], sent, 100.0, far)
    assert admit(found, facts) is None
    assert update_norm(found.weights, sent) == pytest.approx(far, rel=1e-4)
    assert far < NORM_FACTOR * np.median(facts.norms)
    step, honest_step = (poison.step_of(one, sent) for one in (found, updates[0]))
    assert step @ honest_step == pytest.approx(np.linalg.norm(step) * np.linalg.norm(honest_step))
    hundredfold = poison.with_step(updates[0], sent, 100 * honest_step)
    assert admit(hundredfold, facts).reason == "norm"  # type: ignore[union-attr]


def test_what_is_shorter_than_admission_lets_it_be_is_just_multiplied(
    sent: Tensors, updates: list[Update]
) -> None:
    found = poison.replacing(updates[0], sent, 2.0, poison.farthest(updates, sent))
    before, after = (poison.step_of(one, sent) for one in (updates[0], found))
    assert after == pytest.approx(2 * before, abs=1e-6)


def test_another_step_leaves_statistics_as_they_are(sent: Tensors, updates: list[Update]) -> None:
    found = poison.with_step(updates[0], sent, -poison.step_of(updates[0], sent))
    for name, old in sent.items():
        if name.endswith(("running_mean", "running_var", "num_batches_tracked")):
            assert (found.weights[name] == updates[0].weights[name]).all()
        else:
            wanted = 2 * old - updates[0].weights[name]
            assert found.weights[name] == pytest.approx(wanted, abs=1e-6)


# --- two and three that collude ------------------------------------------------------------------


@pytest.mark.parametrize("count", [2, 3])
def test_a_step_inside_the_spread_is_no_further_from_any_than_they_are_from_each_other(
    count: int, sent: Tensors, updates: list[Update]
) -> None:
    steps = np.stack([poison.step_of(update, sent) for update in updates[:count]])
    found, mean = poison.inside_spread(steps), steps.mean(0)
    apart = max(np.linalg.norm(one - other) for one in steps for other in steps)
    distances = np.linalg.norm(steps - found, axis=1)
    assert distances.max() == pytest.approx(apart)
    assert found @ mean < mean @ mean
    agreed = [poison.with_step(update, sent, found) for update in updates[:count]]
    facts = expected(sent, updates)
    assert [admit(update, facts) for update in agreed] == [None] * count


@pytest.mark.parametrize("count", [2, 3])
def test_those_who_turn_a_mean_round_are_admitted_and_move_it_back(
    count: int, sent: Tensors, updates: list[Update]
) -> None:
    bad, good = updates[:count], updates[count:]
    steps = np.stack([poison.step_of(update, sent) for update in bad])
    found = poison.against_mean(steps, poison.farthest(bad, sent) / 2)
    agreed = [
        replace(poison.with_step(update, sent, found), samples=poison.CLAIMED) for update in bad
    ]
    facts = expected(sent, [*agreed, *good])
    assert [admit(update, facts) for update in agreed] == [None] * count
    after = strategies.make("fedavg").aggregate([*agreed, *good], sent)
    moved = poison.step_of(Update("", "", 1, BASE, 1, after), sent)
    assert moved @ steps.mean(0) < 0


# --- the gate ------------------------------------------------------------------------------------


def test_praise_of_hostile_devices_brings_nothing_past_the_people_held_out(tmp_path: Path) -> None:
    study = Study(tmp_path, task, QUICK)
    fleet, first = read_people(task, "fleet"), study.first_model(1)
    labelled = {p.name: every_label(p, np.random.default_rng(0)) for p in fleet}
    devices = Trainees(task, fleet, labelled, tmp_path)
    better = devices.train(fleet[0].name, first, 1, learning_rate=0.05, epochs=5).weights
    worse = {name: -value for name, value in first.items()}
    gate, hostile = Gate(study), [person.name for person in fleet[-3:]]
    passed, _ = gate.judge(first, dict(better), fleet[:3], hostile)
    refused, _ = gate.judge(first, worse, fleet[:3], hostile)
    assert passed.promote
    assert not refused.promote
    assert "on held-out devices" in refused.reason
    assert refused.evidence["devices"] > refused.evidence["devices_base"] + 0.1


# --- privacy -------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", [3.0, 8.0])
def test_a_noise_multiplier_is_the_least_that_stays_within_epsilon(target: float) -> None:
    found = multiplier(target, 10)
    assert epsilon({found: 10}, 1e-5) <= target
    assert epsilon({found - 0.01: 10}, 1e-5) > target


def test_the_noise_of_all_rounds_has_the_length_that_was_asked_for() -> None:
    clip = clip_for(2.0, 15, 900, 10)
    dice = np.random.default_rng(0)
    noise = sum(2.0 * clip / 15 * dice.normal(size=900) for _ in range(10))
    assert np.linalg.norm(noise) == pytest.approx(NOISE, rel=0.1)
    assert clip_for(2.0, 10**6, 900, 10) == USUAL


def test_devices_alike_learn_the_same_with_less_noise(sent: Tensors, updates: list[Update]) -> None:
    class Noisy:
        def __init__(self, noise: float) -> None:
            self.rule = NoisyMean("fedavg", Privacy(clip=1.0, noise_multiplier=noise))

        def aggregate(self, alike: int) -> np.ndarray:
            inner = RuleAggregator(self.rule)
            after = Crowd(inner, alike).aggregate(updates, sent)
            return poison.step_of(Update("", "", 1, BASE, 1, after), sent)

    exact = Noisy(0.0).aggregate(1)
    assert Noisy(0.0).aggregate(10) == pytest.approx(exact, abs=1e-6)
    away = [np.linalg.norm(Noisy(1.0).aggregate(alike) - exact) for alike in (1, 10)]
    assert away[0] / away[1] == pytest.approx(10, rel=0.1)
