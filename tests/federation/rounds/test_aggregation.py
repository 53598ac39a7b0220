"""Every way to make one model of several: one suite for all, and each against its paper."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from flwr.serverapp.strategy import FedAdam, FedMedian, FedTrimmedAvg, FedYogi, MultiKrum
from flwr.serverapp.strategy import FedAvg as FlowerFedAvg
from hypothesis import given
from hypothesis import strategies as st

from federation.admission import NORM_FACTOR, Round, Tensors, Update, admit
from federation.rounds import strategies
from federation.rounds.aggregator import SAMPLES_CAP, Aggregator, Move, StatelessRule
from federation.rounds.strategies import BETAS, RATE, TAU
from streams.contract.errors import ProcessFailed
from streams.contract.task import STRATEGIES
from streams.learning.updates import update_norm
from tests.flower_arithmetic import aggregated, optimised

ROBUST = ("median", "trimmed-mean", "krum", "multi-krum")
MEANS = ("fedavg", "fedprox", "fedadam", "fedyogi")
WEIGHTED = ("fedavg", "fedprox")
BASE = {
    "body.w": np.linspace(-1, 1, 6, dtype=np.float32).reshape(2, 3),
    "body.b": np.array(0.5, np.float32),
    "bn.running_mean": np.zeros(3, np.float32),
    "bn.running_var": np.ones(3, np.float32),
    "bn.num_batches_tracked": np.array(5, np.int64),
    "mask": np.array([True, False]),
    "head.w": np.array([1.0, 2.0], np.float64),
    "head.h": np.array([0.25, -0.25], np.float16),
}
LEARNED = ("body.w", "body.b", "head.w", "head.h")


def update(seed: int, samples: int = 50, scale: float = 0.01) -> Update:
    draw = np.random.default_rng(seed)
    weights = {}
    for name, before in BASE.items():
        if before.dtype.kind == "f":
            weights[name] = (before + draw.normal(0, scale, before.shape)).astype(before.dtype)
        else:
            weights[name] = before + before.dtype.type(1)
    weights["bn.running_var"] = np.abs(weights["bn.running_var"])
    return Update(f"d{seed:03}", "tiny", 1, "1", samples, weights)


def updates(count: int) -> list[Update]:
    return [update(seed, 10 * (seed + 1)) for seed in range(count)]


def vectors(found: list[Update], names: tuple[str, ...] = LEARNED) -> np.ndarray:
    """The moves of some tensors, flat: (updates, values) in float64."""
    return np.stack([vector(u.weights, names) for u in found])


def vector(weights: object, names: tuple[str, ...] = LEARNED) -> np.ndarray:
    tensors = dict(weights)  # type: ignore[call-overload]
    moves = [tensors[n].astype(np.float64) - BASE[n].astype(np.float64) for n in names]
    return np.concatenate([move.ravel() for move in moves])


def close(found: object, expected: np.ndarray, names: tuple[str, ...] = LEARNED) -> None:
    """Each value to the last bits of its type."""
    bits = [np.full(BASE[n].size, 2.5 * np.finfo(BASE[n].dtype).eps) for n in names]
    assert (np.abs(vector(found, names) - expected) <= np.concatenate(bits)).all()


@pytest.mark.parametrize("name", STRATEGIES)
class TestAll:
    def test_keys_shapes_and_types_are_those_of_the_base(self, name: str) -> None:
        found = strategies.make(name).aggregate(updates(7), BASE)
        assert list(found) == list(BASE)
        for key, before in BASE.items():
            assert (found[key].shape, found[key].dtype) == (before.shape, before.dtype)

    def test_counters_and_masks_keep_the_bases_value(self, name: str) -> None:
        found = strategies.make(name).aggregate(updates(7), BASE)
        for key in ("bn.num_batches_tracked", "mask"):
            np.testing.assert_array_equal(found[key], BASE[key])

    def test_the_order_of_the_updates_does_not_matter(self, name: str) -> None:
        given_, shuffled = updates(7), [updates(7)[i] for i in (4, 0, 6, 2, 5, 1, 3)]
        first = strategies.make(name).aggregate(given_, BASE)
        second = strategies.make(name).aggregate(shuffled, BASE)
        for key in BASE:
            np.testing.assert_array_equal(first[key], second[key])

    def test_nothing_admitted_is_an_error_not_a_zero_model(self, name: str) -> None:
        with pytest.raises(ValueError, match="no update was admitted"):
            strategies.make(name).aggregate([], BASE)

    def test_neither_updates_nor_base_are_changed(self, name: str) -> None:
        given_, before = updates(7), {key: value.copy() for key, value in BASE.items()}
        strategies.make(name).aggregate(given_, BASE)
        for u, fresh in zip(given_, updates(7), strict=True):
            for key, value in u.weights.items():
                np.testing.assert_array_equal(value, fresh.weights[key])
        for key in BASE:
            np.testing.assert_array_equal(BASE[key], before[key])

    def test_updates_that_agree_to_stay_move_nothing(self, name: str) -> None:
        still = [replace(u, weights=dict(BASE)) for u in updates(7)]
        found = strategies.make(name).aggregate(still, BASE)
        for key in BASE:
            np.testing.assert_array_equal(found[key], BASE[key])

    def test_a_claim_beyond_the_cap_weighs_no_more_than_the_cap(self, name: str) -> None:
        modest = [update(seed, SAMPLES_CAP) for seed in range(7)]
        greedy = [replace(modest[0], samples=1_000_000), *modest[1:]]
        first = strategies.make(name).aggregate(modest, BASE)
        second = strategies.make(name).aggregate(greedy, BASE)
        for key in BASE:
            np.testing.assert_array_equal(first[key], second[key])

    def test_small_moves_of_large_weights_are_not_lost(self, name: str) -> None:
        """Beside the square of 1e6, even in float64, the distances of Krum would be lost."""
        base = {"w": np.full(50, 1e6, np.float64)}
        moves = np.random.default_rng(1).normal(0, 1e-3, (7, 50))
        given_ = [replace(update(i), weights={"w": base["w"] + m}) for i, m in enumerate(moves)]
        zero = [replace(u, weights={"w": m}) for u, m in zip(given_, moves, strict=True)]
        far = strategies.make(name).aggregate(given_, base)["w"] - base["w"]
        near = strategies.make(name).aggregate(zero, {"w": np.zeros(50)})["w"]
        np.testing.assert_allclose(far, near, atol=1e-7)

    def test_a_state_that_was_saved_goes_on_as_if_never_stopped(self, name: str) -> None:
        one, other = strategies.make(name), strategies.make(name)
        weights = one.aggregate(updates(7), BASE)
        other.load({key: value.copy() for key, value in one.state().items()})
        again = [update(seed + 100) for seed in range(7)]
        first, second = one.aggregate(again, weights), other.aggregate(again, weights)
        for key in BASE:
            np.testing.assert_array_equal(first[key], second[key])
        assert one.state().keys() == other.state().keys()

    def test_a_fresh_state_is_empty_and_another_strategys_is_refused(self, name: str) -> None:
        assert strategies.make(name).state() == {}
        strategies.make(name).load({})
        with pytest.raises(ProcessFailed, match="another strategy"):
            strategies.make(name).load({"sgd/t": np.array(1)})


@pytest.mark.parametrize("name", [n for n in STRATEGIES if n not in ("fedadam", "fedyogi")])
def test_one_update_is_taken_as_it_is(name: str) -> None:
    only = update(3)
    found = strategies.make(name).aggregate([only], BASE)
    close(found, vector(only.weights))


@pytest.mark.parametrize("name", MEANS)
def test_the_statistics_of_batch_norm_take_the_weighted_mean(name: str) -> None:
    given_, keys = updates(5), ("bn.running_mean", "bn.running_var")
    expected = np.average(vectors(given_, keys), axis=0, weights=[u.samples for u in given_])
    close(strategies.make(name).aggregate(given_, BASE), expected, keys)


@pytest.mark.parametrize("name", ROBUST)
def test_with_a_robust_rule_they_take_the_median(name: str) -> None:
    given_, keys = updates(7), ("bn.running_mean", "bn.running_var")
    close(strategies.make(name).aggregate(given_, BASE), np.median(vectors(given_, keys), 0), keys)


COUNTS = st.lists(st.integers(1, 10_000), min_size=1, max_size=9)


@pytest.mark.parametrize("name", WEIGHTED)
@given(counts=COUNTS)
def test_fedavg_is_the_weighted_mean(name: str, counts: list[int]) -> None:
    given_ = [update(seed, n) for seed, n in enumerate(counts)]
    expected = np.average(vectors(given_), axis=0, weights=np.minimum(counts, SAMPLES_CAP))
    close(strategies.make(name).aggregate(given_, BASE), expected)


FLOWER: dict[str, Callable[[int], FlowerFedAvg]] = {
    "fedavg": lambda _: FlowerFedAvg(),
    "median": lambda _: FedMedian(),
    "trimmed-mean": lambda n: FedTrimmedAvg(beta=(n // 5 + 0.5) / n),
    "krum": lambda n: MultiKrum(num_malicious_nodes=(n - 3) // 2, num_nodes_to_select=1),
    "multi-krum": lambda n: MultiKrum(
        num_malicious_nodes=(n - 3) // 2, num_nodes_to_select=n - (n - 3) // 2 - 2
    ),
}


@pytest.mark.parametrize("name", FLOWER)
@given(samples=st.lists(st.integers(1, 3000), min_size=5, max_size=12), seed=st.integers(0, 999))
def test_the_arithmetic_is_that_of_flowers_own_class(
    name: str, samples: list[int], seed: int
) -> None:
    if "krum" in name:  # their mean weighs by samples, ours does not
        samples = [1] * len(samples)
    draw = np.random.default_rng(seed)
    moves = [Move({"w": draw.normal(0, 1, (2, 3)), "b": draw.normal(0, 9, 4)}, n) for n in samples]
    found = strategies.RULES[name]().step(moves)
    expected = aggregated(FLOWER[name](len(moves)), moves)
    assert found.keys() == expected.keys()
    for key, value in found.items():
        np.testing.assert_allclose(value, expected[key], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("name", "kind"), [("fedadam", FedAdam), ("fedyogi", FedYogi)])
@given(rounds=st.integers(1, 6), seed=st.integers(0, 999))
def test_a_server_optimiser_is_flowers_own(
    name: str, kind: Callable[..., FedAdam | FedYogi], rounds: int, seed: int
) -> None:
    """Flower corrects FedAdam's rate with its round + 1, one too many, so it gets one less."""
    ours, draw = strategies.RULES[name](), np.random.default_rng(seed)
    theirs = kind(eta=RATE, beta_1=BETAS[0], beta_2=BETAS[1], tau=TAU)
    for number in range(rounds):
        moves = [
            Move({"w": draw.normal(0, 0.01, 5)}, int(draw.integers(1, 2000))) for _ in range(3)
        ]
        found, expected = ours.step(moves), optimised(theirs, moves, number)
        np.testing.assert_allclose(found["w"], expected["w"], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", ["fedadam", "fedyogi"])
def test_a_state_of_another_model_or_in_part_is_refused(name: str) -> None:
    one = strategies.make(name)
    one.aggregate(updates(3), BASE)
    state = one.state()
    with pytest.raises(ProcessFailed, match="is incomplete"):
        strategies.make(name).load({k: v for k, v in state.items() if "/m/" not in k})
    with pytest.raises(ProcessFailed, match="is incomplete"):
        strategies.make(name).load({k: v for k, v in state.items() if not k.endswith("/t")})
    strange = strategies.make(name)
    strange.load(state)
    with pytest.raises(ProcessFailed, match="another model"):
        strange.aggregate([replace(update(1), weights={"w": np.ones(2)})], {"w": np.ones(2)})


class Authors(StatelessRule):
    """A package's rule: `returns` makes what is returned of the mean."""

    name, least = "authors", 1

    def __init__(self, returns: Callable[[Tensors], Any], by_number: bool) -> None:
        self.returns, self.by_number = returns, by_number

    def step(self, moves: Sequence[Move]) -> Any:
        return self.returns(strategies.weighted_mean(moves))

    def statistics(self, moves: Sequence[Move]) -> Any:
        return strategies.weighted_mean(moves)

    def state(self) -> Any:
        return self.returns({"state": np.zeros(1)})


def authors_bug(_mean: Tensors) -> None:
    raise KeyError("my bug\nin two lines")


@pytest.mark.parametrize("by_number", [False, True])
@pytest.mark.parametrize(("returns", "said"), [
    (authors_bug, r"step: KeyError: 'my bug\\nin two lines', \S+test_aggregation\.py:\d+$"),
    (lambda mean: None, "step returns nothing for body.w"),
    (lambda mean: {}, "step returns nothing for body.w"),
    (lambda mean: dict.fromkeys(mean, "much"), "step returns no numbers for body.w"),
    (lambda mean: {n: torch.ones(v.shape, requires_grad=True) for n, v in mean.items()},
     "step returns no numbers for body.w: Can't call numpy"),
    (lambda mean: {n: np.ones((3, 5)) for n in mean}, r"step returns an array of shape \("),
    (lambda mean: {n: v * np.nan for n, v in mean.items()}, "makes body.w infinite, or not a n"),
    (lambda mean: {n: v + 1e39 for n, v in mean.items()}, "makes body.w infinite, or not a n"),
])  # fmt: skip
def test_a_strategy_that_is_wrong_is_named_and_moves_no_model(
    returns: Callable[[Tensors], Any], said: str, by_number: bool
) -> None:
    with pytest.raises(ProcessFailed, match=f"^strategy authors:? {said}"):
        Aggregator(Authors(returns, by_number)).aggregate(updates(3), BASE)


@pytest.mark.parametrize(("returns", "said"), [
    (lambda state: {name: [1, "two"] for name in state}, "a value that is not an array"),
    (lambda state: None, "NoneType in place of a dict"),
])  # fmt: skip
def test_a_strategy_whose_state_has_other_things_than_arrays_is_named(
    returns: Callable[[Tensors], Any], said: str
) -> None:
    with pytest.raises(ProcessFailed, match=f"^strategy authors: state returns {said}"):
        Aggregator(Authors(returns, True)).state()


@pytest.mark.parametrize(
    ("name", "least"),
    [("fedavg", 1), ("fedadam", 1), ("median", 3), ("trimmed-mean", 5), ("multi-krum", 5)],
)
def test_a_rule_says_how_many_updates_it_needs(name: str, least: int) -> None:
    assert strategies.make(name).least == least


# With ten devices, up to three of them hostile.


def scaled(u: Update) -> Update:
    """Just under what admission allows."""
    return moved(u, lambda step: 0.9 * NORM_FACTOR * step)


def flipped(u: Update) -> Update:
    return moved(u, lambda step: -0.9 * NORM_FACTOR * step)


def poisoned(u: Update) -> Update:
    return moved(u, lambda step: step * np.nan)


def moved(u: Update, how: Callable[[np.ndarray], np.ndarray]) -> Update:
    weights = dict(u.weights)
    for key, before in BASE.items():
        if before.dtype.kind == "f":
            after = before + how(u.weights[key].astype(np.float64) - before)
            weights[key] = after.astype(before.dtype)
    if "bn.running_var" in weights:
        weights["bn.running_var"] = np.abs(weights["bn.running_var"])
    return replace(u, weights=weights)


def admitted(found: list[Update]) -> list[Update]:
    finite = [u for u in found if np.isfinite(vector(u.weights)).all()]
    norms = [update_norm(u.weights, BASE) for u in finite]
    expected = Round("tiny", 1, "1", BASE, norms=norms)
    return [u for u in found if admit(u, expected) is None]


def common(seed: int) -> Update:
    """Devices that agree on where to go, but for a little noise."""
    noise, shared = update(seed, scale=0.002), update(999, scale=0.05)
    weights = dict(noise.weights)
    for key, before in BASE.items():
        if before.dtype.kind == "f":
            step = shared.weights[key].astype(np.float64) + noise.weights[key] - 2.0 * before
            weights[key] = (before + step).astype(before.dtype)
    return replace(noise, weights=weights)


@pytest.mark.parametrize("attack", [scaled, flipped, poisoned])
@pytest.mark.parametrize("hostile", [1, 2, 3])
@pytest.mark.parametrize("name", ROBUST)
def test_a_robust_rule_stays_with_the_honest_devices(
    name: str, hostile: int, attack: Callable[[Update], Update]
) -> None:
    count = 16 if name == "trimmed-mean" else 10  # of which it leaves out a fifth at each end
    honest = [common(seed) for seed in range(count - hostile)]
    bad = [attack(replace(common(50 + seed), samples=2048)) for seed in range(hostile)]
    found = strategies.make(name).aggregate(admitted(honest + bad), BASE)
    for keys in (LEARNED, ("bn.running_mean", "bn.running_var")):
        middle = vectors(honest, keys).mean(axis=0)
        off = np.linalg.norm(vector(found, keys) - middle)
        assert off < 0.25 * np.linalg.norm(middle)


def test_a_row_of_an_embedding_is_the_mean_of_the_devices_that_used_it() -> None:
    base = {"places.weight": np.zeros((4, 2), np.float32), "head": np.zeros(2, np.float32)}
    rows = {"a": [0, 1], "b": [1], "c": [1, 2]}
    found = []
    for device, used in rows.items():
        weights = {name: tensor + np.float32(0) for name, tensor in base.items()}
        weights["places.weight"][used] = {"a": 1.0, "b": 2.0, "c": 4.0}[device]
        weights["head"] += 3.0
        found.append(Update(device, "tiny", 1, "1", {"a": 10, "b": 30, "c": 60}[device], weights))
    counting = strategies.make("fedavg")
    counting.embeddings = ["places.weight"]
    mean = counting.aggregate(found, base)
    np.testing.assert_allclose(mean["places.weight"][:, 0], [1.0, 3.1, 4.0, 0.0], rtol=1e-6)
    np.testing.assert_allclose(mean["head"], 3.0)
    plain = strategies.make("fedavg").aggregate(found, base)
    np.testing.assert_allclose(plain["places.weight"][:, 0], [0.1, 3.1, 2.4, 0.0], rtol=1e-6)
