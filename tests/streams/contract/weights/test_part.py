"""Low-rank factors are an update of a weight, and the same on all sides."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from streams.contract.weights import part as part_module
from streams.contract.weights.part import SUFFIX, directions, merged

NAME = "layer.weight"
FLOATS = st.floats(-8, 8, width=32)


@st.composite
def layers(draw: st.DrawFn, count: int = 1) -> tuple[np.ndarray, list[np.ndarray]]:
    """A weight of two to four dimensions, and factors for it."""
    rows, *others = draw(st.lists(st.integers(1, 5), min_size=2, max_size=4))
    rank = draw(st.integers(1, int(np.prod(others))))
    weight = draw(hnp.arrays(np.float32, (rows, *others), elements=FLOATS))
    kind = draw(st.sampled_from([np.float32, np.float16]))
    factor = hnp.arrays(kind, (rows, rank), elements=st.floats(-8, 8, width=16))
    return weight, [draw(factor) for _ in range(count)]


def moved(weight: np.ndarray, factor: np.ndarray, base: str = "1-a") -> np.ndarray:
    return merged({NAME: weight}, {NAME + SUFFIX: factor}, base)[NAME]


def product(weight: np.ndarray, factor: np.ndarray) -> np.ndarray:
    rank = factor.shape[1]
    fixed = directions("1-a", NAME, rank, weight[0].size).astype(np.float64)
    return (factor.astype(np.float64) @ fixed).reshape(weight.shape)


@given(layers())
@settings(deadline=None)
def test_a_merged_weight_is_the_base_and_the_product(
    layer: tuple[np.ndarray, list[np.ndarray]],
) -> None:
    weight, (factor,) = layer
    found = moved(weight, factor)
    assert (found.dtype, found.shape) == (weight.dtype, weight.shape)
    np.testing.assert_allclose(found, weight + product(weight, factor), rtol=1e-5, atol=1e-4)


@given(layers())
def test_a_factor_of_zeros_changes_no_bit(layer: tuple[np.ndarray, list[np.ndarray]]) -> None:
    weight, (factor,) = layer
    for zero in (np.zeros_like(factor), -np.zeros_like(factor)):
        assert moved(weight, zero).tobytes() == weight.tobytes()
    factor[0] = 0
    assert moved(weight, factor)[0].tobytes() == weight[0].tobytes()


def test_a_large_weight_is_made_in_parts_of_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    noise = np.random.default_rng(0)
    weight, factor = (noise.normal(0, 1, (20, n)).astype(np.float32) for n in (30, 4))
    found = [moved(weight, factor)]
    for size in (1, 100):
        monkeypatch.setattr(part_module, "BLOCK", size)
        found.append(moved(weight, factor))
    assert len({each.tobytes() for each in found}) == 1


@given(layers(count=3))
@settings(deadline=None)
def test_the_mean_of_factors_is_that_of_their_products(
    layer: tuple[np.ndarray, list[np.ndarray]],
) -> None:
    weight, factors = layer
    mean = np.mean(factors, axis=0, dtype=np.float64).astype(np.float32)
    each = np.mean([product(weight, factor) for factor in factors], axis=0)
    np.testing.assert_allclose(moved(weight, mean), weight + each, rtol=1e-4, atol=1e-3)


@given(st.integers(1, 8), st.integers(1, 600))
def test_a_version_has_directions_of_its_own_of_length_one_on_average(
    rank: int, columns: int
) -> None:
    found = directions("1-a", NAME, rank, columns)
    np.testing.assert_allclose((found**2).sum(axis=0), 1, rtol=1e-5)
    again, other = (directions(base, NAME, rank, columns) for base in ("1-a", "2-b"))
    assert found.tobytes() == again.tobytes()
    assert columns < 64 or found.tobytes() != other.tobytes()


def test_directions_are_the_same_on_every_machine() -> None:
    """Others would make another model of a delta."""
    assert (directions("1-a", NAME, 1, 12) > 0).astype(int).tolist() == [
        [0, 1, 1, 0, 1, 0, 0, 0, 0, 0, 1, 1]
    ]
    assert set(directions("1-a", NAME, 4, 99).ravel().tolist()) == {-0.5, 0.5}


@pytest.mark.parametrize("shape", [(2, 9), (3, 2), (2, 1, 1), (2,)])
def test_a_factor_that_does_not_fit_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"does not fit layer\.weight"):
        moved(np.zeros((2, 4, 2), np.float32), np.zeros(shape, np.float32))
