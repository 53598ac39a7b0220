"""Weights as blocks of bytes: what goes in comes out, and nothing else comes in."""

import contextlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from streams.contract.errors import MalformedRecord
from streams.contract.weights import payload
from streams.contract.weights.payload import Payload
from streams.contract.zstd import compressed, zstd

NAMES = st.text(min_size=1, max_size=8)
FLOATS = hnp.arrays(
    np.float32,
    hnp.array_shapes(min_dims=0, max_dims=2, min_side=0, max_side=5),
    elements=st.floats(-100, 100, width=32),
)
COUNTS = hnp.arrays(np.int64, (), elements=st.integers(-(2**40), 2**40))
TENSORS = st.dictionaries(NAMES, FLOATS | COUNTS, max_size=4)


def same(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> bool:
    return one.keys() == other.keys() and all(
        value.dtype == other[name].dtype and np.array_equal(value, other[name])
        for name, value in one.items()
    )


@given(TENSORS)
def test_what_is_packed_comes_out(tensors: dict[str, np.ndarray]) -> None:
    assert same(payload.unpack(payload.pack(tensors)), tensors)


@given(TENSORS, st.sampled_from(["float32", "float16"]))
def test_a_device_trains_from_what_the_server_says_it_sent(
    tensors: dict[str, np.ndarray], kind: Payload
) -> None:
    received = payload.to_float32(payload.unpack(payload.encode_weights(tensors, kind)))
    assert same(received, payload.round_weights(tensors, kind))


@given(TENSORS, TENSORS)
def test_a_candidate_in_float32_is_what_was_learned(
    tensors: dict[str, np.ndarray], base: dict[str, np.ndarray]
) -> None:
    assert same(payload.round_candidate(tensors, base, "float32"), tensors)


@given(TENSORS, TENSORS)
def test_a_candidate_in_float16_is_float16_and_is_found_again(
    tensors: dict[str, np.ndarray], base: dict[str, np.ndarray]
) -> None:
    """What devices decode is what the gate has evaluated."""
    made = payload.round_candidate(tensors, base, "float16")
    assert same(made, payload.round_weights(made, "float16"))
    assert made.keys() == tensors.keys()


def test_a_candidate_loses_two_hundredths_of_the_change_at_most() -> None:
    noise = np.random.default_rng(1)
    base = {"w": noise.normal(0, 0.1, (60, 50)).astype(np.float32)}
    for size in (1e-4, 1e-3, 0.03, 2.0):
        learned = {"w": base["w"] + noise.normal(0, size, (60, 50)).astype(np.float32)}
        made = payload.round_candidate(learned, base, "float16")["w"]
        plain = payload.round_weights(learned, "float16")["w"]
        more = float(np.sqrt(np.mean((made - plain) ** 2)))
        assert more < 0.02 * size
    assert same(
        payload.round_candidate(base, base, "float16"), payload.round_weights(base, "float16")
    )


def test_vectors_of_a_candidate_are_left_as_they_are() -> None:
    """A variance near 0 must not become 0, or negative."""
    base = {"var": np.array([1e-4, 3.0, 5.0], np.float32), "far": np.ones((2, 2), np.float32)}
    learned = {"var": np.array([2e-4, 1.0, 9.0], np.float32), "far": np.ones((2, 3), np.float32)}
    made = payload.round_candidate(learned, base, "float16")
    assert same(made, payload.round_weights(learned, "float16"))
    one_name = payload.round_candidate(learned, {}, "float16")
    assert same(one_name, made)


def test_a_candidate_beyond_float16_is_not_made_worse() -> None:
    """65504 is the largest: a point of the grid beyond it would be infinite."""
    base = {"w": np.full((2, 2), 60_000, np.float32)}
    learned = {"w": np.array([[65504, 20000], [30000, 7]], np.float32)}
    assert np.isfinite(payload.round_candidate(learned, base, "float16")["w"]).all()
    wild = {"w": np.array([[1e6, 0], [0, 0]], np.float32)}
    assert np.isinf(payload.round_candidate(wild, base, "float16")["w"]).any()  # the gate refuses


@given(TENSORS)
def test_an_update_in_float32_comes_back_to_the_bit(tensors: dict[str, np.ndarray]) -> None:
    back = payload.unpack(payload.encode_update(tensors, tensors, "float32"))
    assert same(payload.restore_update(back, tensors), tensors)


@given(FLOATS, st.floats(-0.125, 0.125, width=32))
def test_an_update_in_float16_loses_a_thousandth_of_the_step(before: np.ndarray, by: float) -> None:
    trained = {"w": np.asarray(before + np.float32(by))}
    step = trained["w"] - before
    back = payload.restore_update(
        payload.unpack(
            payload.encode_update(trained, {"w": before}, "float16", grid=before.ndim < 2)
        ),
        {"w": before},
    )
    assert back["w"].dtype == np.float32
    lost = np.abs(back["w"] - trained["w"])
    assert (lost <= np.abs(step) / 1000 + 1e-7 + np.abs(before) * 1e-6).all()


@given(st.integers(0, 2**32 - 1), st.floats(-12, 4))
def test_a_matrix_of_an_update_loses_a_32nd_of_its_mean_step(seed: int, size: float) -> None:
    dice = np.random.default_rng(seed)
    before = {"w": np.zeros((100, 40), np.float32), "b": np.zeros(400, np.float32)}
    steps = {n: (2.0**size * dice.standard_normal(t.shape)).astype("f4") for n, t in before.items()}
    steps["w"][::3] = 0  # rows of an embedding that no sample used
    kept = {name: step.copy() for name, step in steps.items()}
    block = payload.encode_update(steps, before, "float16")
    assert same(steps, kept)
    back = payload.restore_update(payload.unpack(block), before)
    mean = float(np.sqrt(np.mean(np.square(steps["w"]))))
    assert np.abs(back["w"] - steps["w"]).max() <= mean / 32 + 2.0**-25
    assert not back["w"][::3].any()
    assert np.allclose(back["b"], steps["b"], rtol=1e-3, atol=2.0**-25)


def test_a_grid_takes_a_third_of_an_updates_bytes_or_more() -> None:
    before = {"w": np.zeros((300, 400), np.float32)}
    steps = {"w": np.random.default_rng(0).standard_normal((300, 400)).astype(np.float32) / 1e4}
    on_grid, exact = (
        len(payload.encode_update(steps, before, "float16", grid=grid)) for grid in (True, False)
    )
    assert on_grid < 2 / 3 * exact


def test_what_does_not_fit_what_was_sent_stays_as_it_came() -> None:
    sent = {"a": np.zeros(2, np.float32), "n": np.zeros((), np.int64)}
    came = {
        "a": np.ones(3, np.float16),
        "n": np.ones((), np.float16),
        "z": np.ones(1, np.float16),
    }
    assert same(payload.restore_update(came, sent), came)


def test_a_step_too_large_for_float16_is_infinite() -> None:
    before = {"w": np.zeros(1, np.float32)}
    block = payload.encode_update({"w": np.full(1, 1e6, np.float32)}, before, "float16")
    assert np.isinf(payload.restore_update(payload.unpack(block), before)["w"]).all()


def test_zeros_travel_small_and_float16_in_half() -> None:
    noise = {"w": np.random.default_rng(0).standard_normal(10_000).astype(np.float32)}
    whole, half = (len(payload.encode_weights(noise, kind)) for kind in ("float32", "float16"))
    assert half < 0.55 * whole
    assert len(payload.pack({"w": np.zeros(10_000, np.float32)})) < 500


def unpack_or_refuse(data: bytes) -> None:
    """Any error but MalformedRecord fails the test."""
    with contextlib.suppress(MalformedRecord):
        found = payload.unpack(data)
        assert all(isinstance(tensor, np.ndarray) for tensor in found.values())


@given(st.binary(max_size=200))
def test_any_bytes_are_a_block_or_refused(data: bytes) -> None:
    unpack_or_refuse(data)


@given(TENSORS, st.data())
def test_a_block_with_a_byte_altered_or_cut_off_is_a_block_or_refused(
    tensors: dict[str, np.ndarray], data: st.DataObject
) -> None:
    block = bytearray(payload.pack(tensors))
    at = data.draw(st.integers(0, len(block) - 1))
    block[at] ^= data.draw(st.integers(1, 255))
    for broken in (bytes(block), bytes(block[:at])):
        unpack_or_refuse(broken)


def test_no_block_grows_beyond_the_limit() -> None:
    bomb = compressed(bytes(10_000))
    unsaid = zstd.compress(bytes(10_000), options={zstd.CompressionParameter.content_size_flag: 0})
    for data in (bomb, unsaid, payload.pack({"w": np.zeros(5000, np.float32)})):
        with pytest.raises(MalformedRecord, match="payload"):
            payload.unpack(data, limit=1000)
