"""A delta gives the artifact to the bit, or an ArtifactError."""

from collections.abc import Mapping
from types import MappingProxyType

import numpy as np
import pytest
import safetensors.numpy
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from streams.contract.artifact import GRAPH, LEARNED, PROBE, WEIGHTS, Manifest, pack, unpack
from streams.contract.errors import ArtifactError
from streams.contract.task import Training
from streams.contract.weights import delta, payload
from streams.contract.weights.part import Part
from streams.contract.zstd import compressed

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
TRUSTED = [KEY.public_key()]


def artifact(
    weights: bytes, number: int = 1, key: Ed25519PrivateKey = KEY,
    first: Mapping[str, bytes] = MappingProxyType({}), base: str | None = None, **files: bytes,
) -> bytes:  # fmt: skip
    manifest = Manifest(
        task="tiny", task_version=1, number=number, base=base, created_us=1, key="", files=[]
    )
    return pack(manifest, {**first, WEIGHTS: weights, GRAPH: b"graph" * 500, **files}, key)


def files_of(data: bytes) -> dict[str, bytes]:
    return dict(unpack(data, TRUSTED, task="tiny", task_version=1).files)


def weights(step: float = 0.0, kind: type = np.float32) -> bytes:
    noise = np.random.default_rng(0)
    tensors = {
        "conv.weight": noise.normal(0, 1, (30, 20, 5)).astype(np.float32),
        "norm.weight": noise.normal(1, 0.1, 30).astype(np.float32),
    }
    moved = {n: (t + step * noise.normal(0, 1, t.shape)).astype(kind) for n, t in tensors.items()}
    return safetensors.numpy.save({**moved, "norm.batches": np.array([7], np.int64)})


def loaded(data: bytes) -> dict[str, np.ndarray]:
    return dict(safetensors.numpy.load(data))


def candidate(step: float) -> bytes:
    """What a run makes of the base in float16."""
    before, after = (safetensors.numpy.load(each) for each in (weights(), weights(step)))
    found = payload.round_candidate(after, before, "float16")
    return payload.to_safetensors(found, "float16")


def low_rank() -> bytes:
    """What a run with factors makes of the base in float16."""
    part = Part(Training(lora={"conv": 3}, payload="float16"), "1-a", loaded(weights()))
    noise = np.random.default_rng(2)
    moved = {n: noise.normal(0, 0.1, t.shape).astype(t.dtype) for n, t in part.first.items()}
    learned = payload.round_candidate(moved, part.first, "float16")
    whole, factors = (payload.to_safetensors(each, "float16")
                      for each in (part.whole(learned), learned))  # fmt: skip
    return artifact(whole, 2, first={LEARNED: factors}, base="1-a")


BASE, NEXT = artifact(weights()), artifact(weights(0.02, np.float16), 2)
DELTA = delta.make(NEXT, files_of(BASE))
GRIDDED = artifact(candidate(0.02), 2)
LOW_RANK = low_rank()
MADE = {delta.make(each, files_of(BASE)): each for each in (NEXT, GRIDDED, LOW_RANK)}


def test_it_gives_the_artifact_to_the_bit_and_is_smaller() -> None:
    assert delta.apply(DELTA, files_of(BASE), TRUSTED) == NEXT
    assert len(DELTA) < 0.5 * len(weights())  # the graph does not travel again
    again = artifact(weights(0.02), 3)
    same = delta.make(again, files_of(artifact(weights(0.02), 2)))
    assert delta.apply(same, files_of(artifact(weights(0.02), 2)), TRUSTED) == again
    assert len(same) < 1000


def test_a_candidate_of_a_run_travels_in_a_quarter_of_float32() -> None:
    small = delta.make(GRIDDED, files_of(BASE))
    assert delta.apply(small, files_of(BASE), TRUSTED) == GRIDDED
    assert len(small) < 0.27 * len(weights())
    assert len(small) < 0.8 * len(DELTA)  # the same training in plain float16


def test_a_candidate_of_low_rank_travels_as_its_factors() -> None:
    small = delta.make(LOW_RANK, files_of(BASE))
    assert len(small) < 0.5 * len(delta.make(GRIDDED, files_of(BASE)))
    changed = files_of(LOW_RANK)
    changed[WEIGHTS] = weights(0.02, np.float16)  # made otherwise: it comes all the same
    other = artifact(changed.pop(WEIGHTS), 2, first={LEARNED: changed[LEARNED]}, base="1-a")
    for base in (files_of(BASE), {}):
        assert delta.apply(delta.make(other, base), base, TRUSTED) == other


def test_no_factors_are_used_but_those_that_were_signed() -> None:
    """They say how much memory the weights take that are made of them."""
    good, files = delta.make(LOW_RANK, files_of(BASE)), files_of(LOW_RANK)
    head = good[: 12 + int.from_bytes(good[8:12], "little")]
    wide = compressed(files[LEARNED][:-1] + b"!")
    bad = head + bytes([delta.ZSTD]) + len(wide).to_bytes(4, "little") + wide
    with pytest.raises(ArtifactError, match=r"learned.safetensors differs from its digest"):
        delta.apply(bad + bytes([delta.OF_LEARNED, 0, 0, 0, 0]), files_of(BASE), TRUSTED)


@given(
    hnp.arrays(np.float16, (3, 7), elements=st.floats(width=16)),
    hnp.arrays(np.float32, (3, 7), elements=st.floats(width=32)),
)
@settings(max_examples=150, deadline=None)
def test_any_tensor_near_a_grid_comes_back(after: np.ndarray, before: np.ndarray) -> None:
    """On the grid of its change, infinite, or where float16 has no number for a point of it."""
    first = {"w": before}
    made = payload.round_candidate({"w": after.astype(np.float32)}, first, "float16")
    for tensors in (made, {"w": after}):
        new = payload.to_safetensors(tensors, "float16")
        base = {WEIGHTS: safetensors.numpy.save(first)}
        data = artifact(new)
        assert delta.apply(delta.make(data, base), base, TRUSTED) == data


@given(
    hnp.arrays(np.float32, st.integers(0, 60), elements=st.floats(width=32)),
    hnp.arrays(np.float32, st.integers(0, 60), elements=st.floats(width=32)),
    st.sampled_from([np.float32, np.float16, np.float64]),
)
@settings(max_examples=150, deadline=None)
def test_any_numbers_come_back(before: np.ndarray, after: np.ndarray, kind: type) -> None:
    """Also infinite ones, NaNs with any bits, other shapes and other types."""
    with np.errstate(over="ignore"):
        new = safetensors.numpy.save({"w": after.astype(kind), "v": before})
    base = {WEIGHTS: safetensors.numpy.save({"w": before, "v": after})}
    data = artifact(new, **{PROBE: new})
    assert delta.apply(delta.make(data, base), base, TRUSTED) == data


@given(st.binary(max_size=300), st.binary(max_size=300))
@settings(deadline=None)
def test_any_files_come_back(before: bytes, after: bytes) -> None:
    base = {WEIGHTS: before, GRAPH: after}
    data = artifact(after)
    assert delta.apply(delta.make(data, base), base, TRUSTED) == data
    assert delta.apply(delta.make(data, {}), {}, TRUSTED) == data


@given(st.sampled_from(list(MADE)), st.data(), st.integers(1, 255))
@settings(max_examples=400, deadline=None)
def test_an_altered_delta_never_gives_another_model(
    good: bytes, data: st.DataObject, change: int
) -> None:
    bad = bytearray(good)
    bad[data.draw(st.integers(0, len(good) - 1))] ^= change
    try:
        made = delta.apply(bytes(bad), files_of(BASE), TRUSTED)
        files_of(made)
    except ArtifactError:
        return
    assert made == MADE[good]  # a bit that zstd does not look at


@given(st.sampled_from(list(MADE)), st.data())
@settings(max_examples=200, deadline=None)
def test_a_truncated_delta_is_refused(good: bytes, data: st.DataObject) -> None:
    short = good[: data.draw(st.integers(0, len(good) - 1))]
    with pytest.raises(ArtifactError):
        files_of(delta.apply(short, files_of(BASE), TRUSTED))


def _part_of(data: bytes, how: int) -> bytes:
    """Return a delta whose first file is made so of these bytes."""
    head = DELTA[: 12 + int.from_bytes(DELTA[8:12], "little")]
    return head + bytes([how]) + len(data).to_bytes(4, "little") + data


@given(st.integers(-3, 3), st.integers(-128, 127), st.booleans())
@settings(deadline=None)
def test_grids_that_do_not_fit_the_tensors_are_refused(
    more: int, exponent: int, wide: bool
) -> None:
    """More or fewer than there are tensors, of any step, for float32 as for float16."""
    tensors = {"a": np.zeros((2, 2), np.float32 if wide else np.float16)}
    whole = safetensors.numpy.save(tensors)
    at = 8 + int.from_bytes(whole[:8], "little")
    head = compressed(whole[:at])
    grids = np.full(max(1 + more, 0), exponent, np.int8).tobytes()
    packed = compressed(grids + whole[at:])
    bad = _part_of(len(head).to_bytes(4, "little") + head + packed, delta.GRID)
    with pytest.raises(ArtifactError):
        files_of(delta.apply(bad, files_of(BASE), TRUSTED))


def test_another_base_gives_no_model() -> None:
    for base in (files_of(artifact(weights(0.5))), {}):
        with pytest.raises(ArtifactError):
            files_of(delta.apply(DELTA, base, TRUSTED))


def test_nothing_is_unpacked_that_no_trusted_key_has_signed() -> None:
    stranger = Ed25519PrivateKey.generate()
    bad = delta.make(artifact(weights(), 2, stranger), {})
    with pytest.raises(ArtifactError, match="not trusted"):
        delta.apply(bad, {}, TRUSTED)


def test_a_part_that_unpacks_to_more_than_the_manifest_says_is_refused() -> None:
    """A hundred megabytes of zeros are some kilobytes of zstd."""
    bomb = compressed(bytes(100_000_000))
    bad = _part_of(bomb, delta.ZSTD)
    with pytest.raises(ArtifactError, match="100000000 bytes"):
        delta.apply(bad, files_of(BASE), TRUSTED)


def test_a_delta_that_makes_more_than_is_expected_is_refused_before_it_is_made() -> None:
    base = files_of(BASE)
    assert delta.apply(DELTA, base, TRUSTED, len(NEXT)) == NEXT
    with pytest.raises(ArtifactError, match=f"the delta makes {len(NEXT)} bytes; at most"):
        delta.apply(DELTA, base, TRUSTED, len(NEXT) - 1)
