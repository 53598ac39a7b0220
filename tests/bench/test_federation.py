"""The benchmark of the federation: what hostile devices send, and how rounds are run."""

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from federation.admission.admission import Round, admit
from federation.admission.update import Update
from federation.aggregation import strategies
from streams.learning.clipping import update_norm
from tests.bench.federation.hostile import ATTACKS
from tests.bench.federation.loop import Tally, round_seed, rounds
from tests.bench.federation.people import every_label, read_people
from tests.bench.federation.plain import RunEnds, plain_rounds
from tests.bench.federation.real.flare.run import round_ends
from tests.bench.federation.real.processes import reap
from tests.bench.federation.trainees import BASE, Tensors, Trainees, share
from tests.bench.federation.virtual import Outcome, faster
from tests.bench.report import Figure
from tests.fakes.tiny_task import task

NAMES = ["a", "b", "c", "d"]


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
    state = task.build_model().state_dict()
    return {name: tensor.numpy().copy() for name, tensor in sorted(state.items())}


def honest(name: str, weights: Tensors, number: int) -> Update:
    """A small step that differs from device to device and round to round."""
    dice = np.random.default_rng([ord(name), number])
    moved = {n: (v + 0.01 * dice.normal(size=v.shape)).astype(v.dtype) for n, v in weights.items()}
    return Update(name, task.name, task.version, BASE, 100, moved)


@pytest.mark.parametrize(
    ("attack", "reason"),
    [
        ("NaN", "not-finite"),
        ("odd shapes", "shape"),
        ("100-fold", "norm"),
        ("signs flipped", None),
        ("signs flipped, 4.5-fold", None),
        ("labels flipped", None),
        ("9 times the model", "norm"),
    ],
)
def test_an_attack_is_refused_for_what_it_is(
    attack: str, reason: str | None, sent: Tensors
) -> None:
    update = honest("a", sent, 1)
    found = admit(
        ATTACKS[attack](update, sent, 1, update),
        Round(task.name, task.version, BASE, sent, norms=[update_norm(update.weights, sent)] * 3),
    )
    assert (found and found.reason) == reason


def test_a_step_of_nine_times_the_model_is_taken_while_no_usual_norm_is_known(
    sent: Tensors,
) -> None:
    update = honest("a", sent, 1)
    bad = ATTACKS["9 times the model"](update, sent, 1, update)
    assert update_norm(bad.weights, sent) > 100 * update_norm(update.weights, sent)
    assert admit(bad, Round(task.name, task.version, BASE, sent)) is None


def test_a_replay_is_refused_from_the_second_round_on(sent: Tensors) -> None:
    tally, first = Tally(), honest("d", sent, 1)

    def answer(name: str, weights: Tensors, number: int) -> Update:
        return first if name == "d" else honest(name, weights, number)

    list(rounds(task, NAMES, sent, 2, strategies.make("fedavg"), answer, tally))
    assert dict(tally.refused) == {("d", "replay"): 1}


def test_nothing_is_between_devices_and_plain_fedavg(sent: Tensors) -> None:
    def answer(name: str, weights: Tensors, number: int) -> Update:
        update = honest(name, weights, number)
        return ATTACKS[attack](update, weights, number, update) if name == "d" else update

    attack = "NaN"
    (after,) = plain_rounds(NAMES, sent, 1, answer)
    assert all(np.isnan(v).all() for v in after.values() if v.dtype.kind == "f")
    attack = "odd shapes"
    with pytest.raises(RunEnds):
        list(plain_rounds(NAMES, sent, 1, answer))


def test_devices_learn_from_their_rows(tmp_path: Path, sent: Tensors) -> None:
    people = read_people(task, "fleet")[:3]
    dice = np.random.default_rng(0)
    devices = Trainees(task, people, {p.name: every_label(p, dice) for p in people}, tmp_path)

    def answer(name: str, weights: Tensors, number: int) -> Update:
        return devices.train(name, weights, round_seed(1, number), learning_rate=0.05)

    *_, after = rounds(
        task, devices.names, sent, 3, strategies.make("fedavg"), answer, tally := Tally()
    )
    assert not tally.refused
    assert share(task, after, people) > share(task, sent, people) + 20


def test_the_rounds_of_nvflare_end_when_the_next_one_begins() -> None:
    def line(at: int, message: str, name: str = "FedAvg") -> str:
        text = f"\n----\n   {message}   \n----"
        return json.dumps(
            {"asctime": f"2026-01-02 03:04:{at:02d},500", "name": name, "message": text}
        )

    begun, first, second = round_ends([
        line(1, "Start FedAvg."),
        line(2, "Round 0 started."),
        line(3, "Round 0 started.", "Client"),
        line(5, "Round 1 started."),
        line(9, "Finished FedAvg."),
    ])  # fmt: skip
    assert (first - begun, second - first) == (3.0, 4.0)


def test_a_contender_that_did_not_come_so_far_counts_with_its_whole_run() -> None:
    ours = [Outcome(10.0, 30.0, 3, 90, 0.9), Outcome(20.0, 30.0, 3, 90, 0.9)]
    theirs = [Outcome(50.0, 60.0, 5, 90, 0.9), Outcome(None, 80.0, 8, 90, 0.8)]
    assert faster(theirs, ours) == Figure(4.5, 4.0, 5.0, 2)
    assert faster(ours, theirs) is None


def test_orphans_are_waited_for_and_no_others() -> None:
    other = subprocess.Popen(["sleep", "60"])
    try:
        reap(set())
        assert other.poll() is None
    finally:
        other.kill()
        other.wait()
