"""The benchmark of other ways to learn: control variates, losses, local layers, and when rounds
end."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from streams.contract.task import Task, load_task
from streams.learning import learning
from tests.bench.federation.study import TASK
from tests.bench.gains.learning.courses import (
    ByGain,
    Course,
    Distilled,
    Equal,
    FedBN,
    LogitAdjusted,
    Scaffold,
    without_batch_norm,
)
from tests.bench.gains.learning.grounds import Figures, Ground, Models, Rows
from tests.bench.gains.learning.losses import (
    Shifted,
    distilled,
    log_shares,
)
from tests.bench.gains.learning.ways import BY_EVIDENCE, best_round, ended, measured
from tests.fakes.tiny_task import task as tiny

NAMES = ("a", "b", "c")


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """The arrays are tiny, and other tests run beside this one."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Made(Ground):
    def figures(self, models: Models, weights: dict[str, np.ndarray]) -> Figures:
        return (self.score(weights), None)


def ground(task: Task = tiny) -> Made:
    """Three devices of different sizes with rows that differ by class."""
    torch.manual_seed(0)
    state = task.build_model().state_dict()
    first = {name: tensor.numpy().copy() for name, tensor in sorted(state.items())}
    rows = {name: made_up(task, name, 40 + 20 * at) for at, name in enumerate(NAMES)}
    known = {name: made_up(task, name.upper(), 30) for name in NAMES}
    return Made(task, first, rows, known, made_up(task, "z", 60))


def made_up(task: Task, name: str, rows: int) -> Rows:
    dice = np.random.default_rng(ord(name))
    classes = np.arange(rows) % len(task.classes)
    x = dice.normal(classes[:, None, None], 1.0, (rows, *task.segment_shape))
    return Rows(x.astype(np.float32), classes[:, None].astype(np.float32))


def last(course: Course, count: int = 1) -> dict[str, np.ndarray]:
    *_, weights = course.rounds(1, count)
    return weights


def same(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> bool:
    return all(np.array_equal(one[name], other[name]) for name in one)


# --- SCAFFOLD ------------------------------------------------------------------------------------


def test_scaffold_is_fedavg_while_all_variates_are_zero() -> None:
    assert same(last(Course(ground())), last(Scaffold(ground())))
    assert not same(last(Course(ground()), 2), last(Scaffold(ground()), 2))


# --- losses --------------------------------------------------------------------------------------


def test_the_adjusted_loss_is_cross_entropy_where_classes_are_balanced() -> None:
    labels = np.repeat(np.arange(3), 4)[:, None].astype(np.float32)
    outputs, aims = torch.randn(12, 3), torch.from_numpy(labels)
    shifted = Shifted(torch.nn.Identity(), log_shares(labels, 3))(outputs)
    plain = learning.loss_per_row(tiny, outputs, aims)
    assert learning.loss_per_row(tiny, shifted, aims).tolist() == pytest.approx(plain.tolist())


def test_the_adjusted_loss_leaves_a_class_without_labels_alone() -> None:
    labels = np.array([[0], [0], [1]], np.float32)
    outputs = torch.randn(3, 3, requires_grad=True)
    shifted = Shifted(torch.nn.Identity(), log_shares(labels, 3))(outputs)
    learning.loss_per_row(tiny, shifted, torch.from_numpy(labels)).sum().backward()
    assert outputs.grad is not None
    assert outputs.grad[:, 2].tolist() == [0, 0, 0]
    assert outputs.grad.isfinite().all()
    assert outputs.grad[:, :2].abs().min() > 0


def test_a_fleet_learns_by_the_adjusted_loss() -> None:
    with_all = ground()
    assert with_all.score(last(LogitAdjusted(with_all), 2)) > 0


def test_a_distilled_loss_is_cross_entropy_where_labels_are_true() -> None:
    rows, model = made_up(tiny, "a", 12), tiny.build_model().eval()
    loss = distilled(tiny, model, replace(rows, soft=np.full((12, 3), np.nan, np.float32)))
    outputs = model(torch.from_numpy(rows.x))
    expected = F.cross_entropy(outputs, torch.from_numpy(rows.y)[:, 0].long())
    found = loss(torch.arange(12), torch.Generator())
    assert float(found.detach()) == pytest.approx(float(expected.detach()), rel=1e-5)


def test_a_distilled_loss_is_nothing_where_the_teacher_says_the_same() -> None:
    rows, model = made_up(tiny, "a", 12), tiny.build_model().eval()
    outputs = learning.predict(model, rows.x)
    loss = distilled(tiny, model, replace(rows, soft=outputs + 3))
    assert float(loss(torch.arange(12), torch.Generator()).detach()) == pytest.approx(0, abs=1e-5)
    other = distilled(tiny, model, replace(rows, soft=outputs[:, ::-1].copy()))
    assert float(other(torch.arange(12), torch.Generator()).detach()) > 0


def test_a_fleet_learns_from_soft_outputs() -> None:
    given = ground()
    soft = {
        name: Rows(rows.x, rows.y, 4 * np.eye(3, dtype=np.float32)[rows.y[:, 0].astype(int)])
        for name, rows in given.rows.items()
    }
    taught = Made(given.task, given.first, soft, given.known, given.deciding)
    assert taught.score(last(Distilled(taught), 2)) > 0


# --- weights and local layers --------------------------------------------------------------------


def test_weights_by_gain_are_larger_for_a_device_that_gains_more() -> None:
    course = ByGain(ground())
    sent, good = course.ground.first, last(Course(ground()), 3)
    little = {name: value + 0.1 * (good[name] - value) for name, value in sent.items()}
    weights = [course.samples("a", sent, each) for each in (sent, little, good)]
    assert weights == sorted(weights)
    assert weights[0] == 10
    assert weights[2] > weights[1] > weights[0]


def test_equal_weights_do_not_depend_on_rows() -> None:
    course = Equal(ground())
    assert len({course.samples(name, {}, {}) for name in NAMES}) == 1
    assert not same(last(course), last(Course(ground())))


def test_fedbn_keeps_batch_norm_on_the_device() -> None:
    har = load_task(TASK)
    assert without_batch_norm(har.build_model()) == ("0", "3", "6", "11")
    assert without_batch_norm(tiny.build_model()) == ()
    course = FedBN(ground(har))
    weights = last(course)
    first, mine, other = course.ground.first, course.of("a", weights), course.of("b", weights)
    for name in ("1.weight", "1.running_mean"):
        assert np.array_equal(weights[name], first[name])
        assert not np.array_equal(mine[name], first[name])
        assert not np.array_equal(mine[name], other[name])
    assert not np.array_equal(weights["0.weight"], first["0.weight"])
    assert np.array_equal(mine["0.weight"], weights["0.weight"])


# --- when rounds end -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scores", "best", "used"),
    [
        ([0.1], 1, 1),
        ([0.1, 0.2, 0.3], 3, 3),
        ([0.3, 0.2, 0.2, 0.2], 1, 4),
        ([0.3, 0.3, 0.3, 0.3, 0.9], 1, 4),  # as good is no rise; what comes later is never seen
        ([0.1, 0.3, 0.2, 0.2, 0.4, 0.1, 0.1, 0.1], 5, 8),
    ],
)
def test_rounds_end_after_three_without_a_rise(scores: list[float], best: int, used: int) -> None:
    assert best_round(scores) == (best, used)
    assert ended(scores) == (used - best >= 3)


def test_all_ways_are_measured_from_the_same_first_model() -> None:
    found = list(measured(ground(), [Equal], 1, 3))
    ways = list(dict.fromkeys(one.way for one in found))
    assert ways == [
        "first model", "FedAvg, 3 rounds, the default", Course.name, Equal.name, BY_EVIDENCE,
    ]  # fmt: skip
    assert found[0].figures[0] == 0
    assert all(one.refused == 0 for one in found)
    for whole, half in zip(found[1::2], found[2::2], strict=True):
        assert (whole.far, half.far) == ("all", "half")
        assert whole.offered != half.offered
