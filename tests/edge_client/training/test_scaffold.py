"""What a device remembers of a round with SCAFFOLD, and that it comes to SCAFFOLD's variates."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from edge_client.training import scaffold, trainer_process
from edge_client.training.scaffold import Remembered
from streams.contract.task import Task, load_task
from streams.contract.weights import payload
from streams.contract.work import PERSONAL, SCAFFOLD, TrainerJob
from streams.learning import learning
from tests.edge_client.training.test_trainer_process import rows_file
from tests.rig.made_up.documents import work_request
from tests.rig.made_up.killed import Killed
from tests.rig.made_up.models import TINY, with_batch_norm

Tensors = dict[str, np.ndarray]
RATE, STEPS = 0.02, 7


class Variates:
    """SCAFFOLD as its paper has it, option II, with a server: c_i of each device, and c, their mean
    by the devices' weights."""

    def __init__(self, like: Mapping[str, np.ndarray], sizes: Mapping[str, float]) -> None:
        total = sum(sizes.values())
        self._share = {name: size / total for name, size in sizes.items()}
        self._of = {name: {n: np.zeros_like(v) for n, v in like.items()} for name in sizes}
        self._next: dict[str, Tensors] = {}
        self._mean: Tensors = {n: np.zeros_like(v) for n, v in like.items()}

    def correction(self, name: str) -> Tensors:
        return {n: mean - self._of[name][n] for n, mean in self._mean.items()}

    def learned(self, name: str, sent: Tensors, trained: Tensors, far: float) -> None:
        self._next[name] = {
            n: (sent[n] - trained[n]) / far - k for n, k in self.correction(name).items()
        }

    def end_round(self) -> None:
        self._of |= self._next
        for n in self._mean:
            self._mean[n] = np.sum([s * self._of[d][n] for d, s in self._share.items()], axis=0)


def test_corrections_are_those_of_scaffold_where_every_device_is_in_every_round() -> None:
    """Three devices of different sizes whose own optima differ."""
    dice = np.random.default_rng(5)
    sizes = {"a": 1.0, "b": 2.0, "c": 5.0}
    aims = {name: dice.normal(size=(4, 3)) for name in sizes}
    weights, far = {"w": dice.normal(size=(4, 3))}, scaffold.reach(STEPS, RATE)
    variates = Variates(weights, sizes)
    remembered: dict[str, Remembered] = {}
    for number in range(1, 6):
        reached = {}
        for name in sizes:
            wanted = variates.correction(name)
            before = remembered.get(name)
            found = scaffold.correction(before, "r", number, weights)
            if number == 1:
                assert found == {}
            else:
                assert found["w"] == pytest.approx(wanted["w"], abs=1e-5)
                assert np.abs(found["w"]).max() > 0.01
            slope = weights["w"] - aims[name] + wanted["w"]
            reached[name] = {"w": weights["w"] - far * slope}
            variates.learned(name, weights, reached[name], far)
            remembered[name] = Remembered(
                "r", number, scaffold.digest(weights), far, wanted, reached[name]
            )
        variates.end_round()
        mean = sum(sizes[name] * reached[name]["w"] for name in sizes) / sum(sizes.values())
        weights = {"w": np.asarray(mean)}


def remembered(**changes: object) -> Remembered:
    one = np.ones(3, np.float32)
    usual = Remembered("r", 4, scaffold.digest({"w": one}), 0.5, {"w": 0.1 * one}, {"w": 3 * one})
    return replace(usual, **changes)  # type: ignore[arg-type]


def test_a_round_that_failed_changes_nothing() -> None:
    """The weights are those of the round before."""
    found = scaffold.correction(remembered(), "r", 5, {"w": np.ones(3, np.float32)})
    assert found["w"].tolist() == pytest.approx([0.1] * 3)


@pytest.mark.parametrize(
    ("before", "number"),
    [
        (None, 5),
        (remembered(), 6),  # a round was missed
        (remembered(), 3),
        (remembered(run="another"), 5),
        (remembered(trained={"w": np.ones(2, np.float32)}), 5),
        (remembered(correction={"v": np.ones(3, np.float32)}), 5),
    ],
)
def test_without_the_round_before_there_is_no_correction(
    before: Remembered | None, number: int
) -> None:
    assert scaffold.correction(before, "r", number, {"w": np.full(3, 2, np.float32)}) == {}


def test_a_training_adds_the_correction_to_its_gradients() -> None:
    model = torch.nn.Linear(2, 1, bias=False)
    torch.nn.init.zeros_(model.weight)
    learning.fit(
        model, 1, lambda _rows, _dice: (2 * model.weight).sum(), epochs=1, batch_size=1,
        learning_rate=0.1, seed=1, correction={"weight": np.array([[0.5, -1.0]], np.float32)},
    )  # fmt: skip
    assert model.weight.tolist()[0] == pytest.approx([-0.25, -0.1])


# --- the file ------------------------------------------------------------------------------------


@given(cut=st.integers(0, 400), junk=st.binary(max_size=40))
def test_a_torn_or_foreign_file_is_ignored(
    tmp_path_factory: pytest.TempPathFactory, cut: int, junk: bytes
) -> None:
    path = tmp_path_factory.mktemp("scaffold") / SCAFFOLD
    scaffold.save(path, remembered())
    whole = path.read_bytes()
    path.write_bytes(whole[: min(cut, len(whole) - 1)] + junk)
    found = scaffold.read(path)
    assert found is None or np.isfinite(found.trained["w"]).all()
    path.write_bytes(junk)
    assert scaffold.read(path) is None


# --- a trainer -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def task() -> Task:
    return replace(load_task(TINY), build_model=lambda: with_batch_norm(0).train())


def trained(
    task: Task, folder: Path, number: int, sent: Tensors, with_it: bool = True, run: str = "7"
) -> Tensors:
    """The weights that a device makes of those it is sent in a round."""
    more = {"epochs": 2, "batch_size": 8, "seed": number, "scaffold": with_it}
    request = work_request(run=run, round=number, **more)
    job = TrainerJob(
        device="d0", request=request, samples=str(rows_file(task, folder, 48)),
        stop=str(folder / "stop"), own=str(folder / "own"), scaffold=str(folder / SCAFFOLD),
    )  # fmt: skip
    reply, block = trainer_process.work(task, job, payload.encode_weights(sent, "float32"))
    assert reply.error is None
    return payload.restore_update(payload.unpack(block), sent)


def first(task: Task) -> Tensors:
    return {name: tensor.numpy() for name, tensor in task.build_model().state_dict().items()}


def same(one: Tensors, other: Tensors) -> bool:
    return all(np.array_equal(one[name], other[name]) for name in other)


def test_a_trainer_corrects_from_the_second_round_on(task: Task, tmp_path: Path) -> None:
    """And a crash after the file was written changes nothing of what the round comes to."""
    with_it, without = tmp_path / "with", tmp_path / "without"
    for folder in (with_it, without):
        folder.mkdir()
    sent = first(task)
    reached = trained(task, with_it, 1, sent)
    assert same(reached, trained(task, without, 1, sent, with_it=False))
    assert not (without / SCAFFOLD).exists()
    mean = {n: sent[n] + (reached[n] - sent[n]) / 2 for n in sent}  # others moved half as far
    second = trained(task, with_it, 2, mean)
    assert not same(second, trained(task, without, 2, mean, with_it=False))
    assert same(second, trained(task, with_it, 2, mean))  # the same round again


def test_a_crash_before_the_file_is_replaced_leaves_the_round_as_it_began(
    task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(_path: Path, _found: Remembered) -> None:
        raise Killed

    sent = first(task)
    reached = trained(task, tmp_path, 1, sent)
    mean = {n: sent[n] + (reached[n] - sent[n]) / 2 for n in sent}
    with monkeypatch.context() as patch:
        patch.setattr(scaffold, "save", killed)
        with pytest.raises(Killed):
            trained(task, tmp_path, 2, mean)
    before = (tmp_path / SCAFFOLD).read_bytes()
    again = trained(task, tmp_path, 2, mean)
    (tmp_path / SCAFFOLD).write_bytes(before)
    assert same(again, trained(task, tmp_path, 2, mean))


def test_a_personal_copy_is_trained_without(task: Task, tmp_path: Path) -> None:
    trained(task, tmp_path, 0, first(task), with_it=False, run=PERSONAL)
    assert not (tmp_path / SCAFFOLD).exists()
