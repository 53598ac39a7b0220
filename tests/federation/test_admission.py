import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from federation.admission import (
    CLAIM_FACTOR,
    MAX_SAMPLES,
    QUARANTINE_ROUNDS,
    STRIKES,
    Quarantine,
    Round,
    Update,
    admit,
    digest,
    most_claimed,
)
from federation.rounds.checkpoint import park

BASE = {
    "w": np.ones((3, 2), np.float32),
    "b": np.zeros(2, np.float32),
    "n": np.array(7, np.int64),
}
ROUND = Round("tiny", 1, "1-aaaaaaaa", BASE)
SOUND = Update("d0", "tiny", 1, "1-aaaaaaaa", 40, {k: v + v.dtype.type(1) for k, v in BASE.items()})


def with_tensor(name: str, tensor: np.ndarray) -> Update:
    return replace(SOUND, weights={**SOUND.weights, name: tensor})


def reason(update: Update, expected: Round = ROUND) -> str | None:
    refusal = admit(update, expected)
    return refusal.reason if refusal else None


@pytest.mark.parametrize(
    ("update", "slug"),
    [
        (replace(SOUND, task="other"), "task"),
        (replace(SOUND, task_version=2), "task"),
        (replace(SOUND, base="1-bbbbbbbb"), "task"),
        (replace(SOUND, device=""), "device-name"),
        (replace(SOUND, device="a/../b"), "device-name"),
        (replace(SOUND, samples=0), "samples"),
        (replace(SOUND, samples=-5), "samples"),
        (replace(SOUND, samples=MAX_SAMPLES + 1), "samples"),
        (replace(SOUND, weights={}), "keys"),
        (replace(SOUND, weights={**SOUND.weights, "x": np.ones(1)}), "keys"),
        (with_tensor("w", np.ones((2, 3), np.float32)), "shape"),
        (with_tensor("w", np.ones((3, 2), np.float64)), "dtype"),
        (with_tensor("n", np.array(7, np.float32)), "dtype"),
        (with_tensor("b", np.array([np.nan, 0], np.float32)), "not-finite"),
        (with_tensor("b", np.array([np.inf, 0], np.float32)), "not-finite"),
    ],
)
def test_what_does_not_fit_is_refused_with_its_reason(update: Update, slug: str) -> None:
    assert reason(update) == slug


def test_a_device_counts_once_in_a_round() -> None:
    assert reason(SOUND, replace(ROUND, devices=frozenset({"d0"}))) == "duplicate"


def test_the_norm_is_judged_by_the_median_once_three_are_known() -> None:
    far = with_tensor("w", np.full((3, 2), 9, np.float32))
    assert reason(far, replace(ROUND, norms=(1.0, 1.0))) is None
    assert reason(far, replace(ROUND, norms=(1.0, 1.0, 1.0))) == "norm"
    assert reason(SOUND, replace(ROUND, norms=(1.0, 1.0, 1.0))) is None


@pytest.mark.parametrize("norms", [(), (1e6,), (1e6, 1e6)])
def test_until_then_none_is_taken_that_is_far_longer_than_the_model(
    norms: tuple[float, ...],
) -> None:
    expected = replace(ROUND, norms=norms)
    assert reason(with_tensor("w", np.full((3, 2), 1e6, np.float32)), expected) == "norm"
    assert reason(with_tensor("w", np.full((3, 2), 10.0, np.float32)), expected) is None
    assert reason(with_tensor("w", np.full((3, 2), 11.1, np.float32)), expected) == "norm"
    nothing = {name: np.zeros_like(tensor) for name, tensor in BASE.items()}
    small = replace(SOUND, weights={**nothing, "b": np.full(2, 7, np.float32)})
    assert reason(small, replace(expected, weights=nothing)) is None  # a length of 10 from zeros


def test_a_norm_beyond_floats_is_refused_not_fatal() -> None:
    most = np.full((3, 2), np.finfo(np.float32).max, np.float32)
    assert reason(with_tensor("w", most), replace(ROUND, norms=(1.0, 1.0, 1.0))) == "norm"


@given(
    hnp.arrays(
        np.float32,
        hnp.array_shapes(max_dims=3, max_side=4),
        elements=st.floats(-1, 1, width=32) | st.sampled_from([np.nan, np.inf, -np.inf]),
    )
)
def test_only_finite_tensors_of_the_right_shape_pass(tensor: np.ndarray) -> None:
    admitted = admit(with_tensor("w", tensor), ROUND) is None
    assert admitted == (tensor.shape == (3, 2) and bool(np.isfinite(tensor).all()))


@given(st.integers())
def test_any_number_of_samples_is_judged(samples: int) -> None:
    assert (reason(replace(SOUND, samples=samples)) is None) == (1 <= samples <= MAX_SAMPLES)


def test_a_variance_below_zero_is_refused() -> None:
    base = {**BASE, "bn.running_var": np.ones(2, np.float32)}
    expected = replace(ROUND, weights=base)
    sound = replace(SOUND, weights={**SOUND.weights, "bn.running_var": np.zeros(2, np.float32)})
    assert reason(sound, expected) is None
    below = np.array([1, -1e-6], np.float32)
    bad = replace(sound, weights={**sound.weights, "bn.running_var": below})
    assert reason(bad, expected) == "variance"


@pytest.mark.parametrize(("said", "slug"), [(39, "samples"), (40, None), (41, None)])
def test_samples_are_judged_by_what_the_device_said_that_it_has(said: int, slug: str) -> None:
    assert reason(SOUND, replace(ROUND, reported={"d0": said})) == slug
    assert reason(SOUND, replace(ROUND, reported={"d1": 1})) is None


def test_what_an_earlier_round_received_is_a_replay_whoever_sends_it() -> None:
    earlier = frozenset({digest(SOUND.weights)})
    expected = replace(ROUND, earlier=earlier)
    assert reason(SOUND, expected) == "replay"
    other_order = dict(reversed(list(SOUND.weights.items())))
    assert reason(replace(SOUND, device="d1", weights=other_order), expected) == "replay"
    assert reason(with_tensor("b", np.full(2, 1.5, np.float32)), expected) is None


# --- claims --------------------------------------------------------------------------------------


claims = st.integers(1, 1_000_000)


@given(claims, st.integers(1, 50))
def test_equal_claims_count_as_they_are(claim: int, devices: int) -> None:
    assert most_claimed([claim] * devices) >= claim


@given(claims, claims)
def test_one_device_or_two_are_not_limited(one: int, other: int) -> None:
    assert most_claimed([one]) >= one
    assert most_claimed([one, other]) >= max(one, other)


@given(st.lists(claims, min_size=1, max_size=30))
def test_half_of_the_devices_count_as_they_claim_and_a_second_time_changes_nothing(
    said: list[int],
) -> None:
    limit = most_claimed(said)
    counted = [min(claim, limit) for claim in said]
    assert sum(claim == count for claim, count in zip(said, counted, strict=True)) >= len(said) / 2
    assert most_claimed(counted) == limit


def test_devices_of_unequal_size_keep_their_order_up_to_twice_the_median() -> None:
    assert [min(n, most_claimed([40, 100, 150, 200, 2048])) for n in (40, 100, 150, 200, 2048)] == [
        40, 100, 150, 200, 300,
    ]  # fmt: skip


@pytest.mark.parametrize(("liars", "devices"), [(1, 4), (2, 7), (3, 10), (33, 100)])
def test_less_than_a_third_have_less_than_half_of_the_weight(liars: int, devices: int) -> None:
    honest = devices - liars
    limit = most_claimed([270] * honest + [1_000_000] * liars)
    assert limit == CLAIM_FACTOR * 270
    assert liars * limit < honest * 270


# --- quarantine ----------------------------------------------------------------------------------


def test_a_node_that_is_refused_twice_sits_out_three_rounds() -> None:
    assert (STRIKES, QUARANTINE_ROUNDS) == (2, 3)
    conduct = Quarantine()
    conduct.refuse(7, "norm", 1)
    assert conduct.quarantined_until(7, 2) is None
    conduct.refuse(7, "samples", 4)
    assert [conduct.quarantined_until(7, number) for number in (5, 6, 7, 8)] == [7, 7, 7, None]
    assert conduct.quarantined_until(8, 5) is None


@pytest.mark.parametrize("reason", ["name", "duplicate"])
def test_a_name_that_two_nodes_use_makes_neither_sit_out(reason: str) -> None:
    conduct = Quarantine()
    for number in range(1, 6):
        conduct.refuse(7, reason, number)
        assert conduct.quarantined_until(7, number + 1) is None
    assert conduct.refused == {7}


# --- parking -------------------------------------------------------------------------------------


TENSORS = st.dictionaries(
    st.text(min_size=1, max_size=8),
    hnp.arrays(
        st.sampled_from([np.float32, np.float16, np.int64, np.bool_]),
        hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4),
    ),
    max_size=5,
)


@given(TENSORS)
def test_parked_tensors_are_the_same_and_leave_no_file(
    tmp_path_factory: pytest.TempPathFactory, tensors: dict[str, np.ndarray]
) -> None:
    folder = tmp_path_factory.mktemp("parked")
    found = park(tensors, folder)
    assert list(found) == list(tensors)
    for name, tensor in tensors.items():
        assert (found[name].dtype, found[name].shape) == (tensor.dtype, tensor.shape)
        np.testing.assert_array_equal(found[name], tensor)
    assert list(folder.iterdir()) == []


def _anonymous() -> int:
    """Bytes of this process's own memory."""
    status = Path("/proc/self/status").read_text()
    found = re.search(r"RssAnon:\s+(\d+) kB", status)
    assert found is not None
    return 1024 * int(found[1])


def test_a_round_of_many_updates_takes_disk_and_not_memory(tmp_path: Path) -> None:
    before = _anonymous()
    parked = [park({"w": np.full(1_000_000, n, np.float32)}, tmp_path) for n in range(60)]
    assert _anonymous() - before < 60_000_000  # of 240
    assert [float(each["w"][7]) for each in parked] == list(map(float, range(60)))


def test_where_the_disk_takes_nothing_they_stay_in_memory(tmp_path: Path) -> None:
    tensors = {"w": np.ones(3, np.float32)}
    np.testing.assert_array_equal(park(tensors, tmp_path / "missing")["w"], tensors["w"])
