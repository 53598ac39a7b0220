"""An input adapter: the identity changes no bit, and nothing that does not fit is applied."""

from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from edge_client.inference.engine import Engine
from streams.contract.artifact import unpack
from streams.contract.errors import ArtifactError
from streams.learning.input_adapter import BIAS, WEIGHT, InputAdapter, taken_from
from streams.runtime.trust import create_key
from tests.rig.made_up.models import artifact, plain, tiny

CHANNELS, SAMPLES = tiny.segment_shape
IDENTITY = {WEIGHT: np.eye(CHANNELS, dtype=np.float32), BIAS: np.zeros(CHANNELS, np.float32)}
SEGMENTS = arrays.arrays(np.float32, (CHANNELS, SAMPLES), elements=st.floats(-1e6, 1e6, width=32))


@pytest.fixture(scope="module")
def engines(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Engine]:
    """The served version, it behind the identity, and behind a map."""
    key = create_key(tmp_path_factory.mktemp("keys") / "signing.pem")
    served = unpack(artifact(key, plain(1)), [key.public_key()], task="tiny", task_version=1)
    turned = {WEIGHT: IDENTITY[WEIGHT][::-1].copy(), BIAS: np.array([1, -2], np.float32)}
    weights = {"identity": IDENTITY, "turned": turned}
    found = {n: Engine(tiny, served, safetensors.numpy.save(w)) for n, w in weights.items()}
    return {"plain": Engine(tiny, served), **found}


@given(segment=SEGMENTS)
def test_the_identity_changes_no_bit(engines: dict[str, Engine], segment: np.ndarray) -> None:
    plain, behind = (engines[name].run(segment) for name in ("plain", "identity"))
    assert plain.tobytes() == behind.tobytes()


@given(segment=SEGMENTS)
def test_a_map_is_applied_before_the_model(engines: dict[str, Engine], segment: np.ndarray) -> None:
    turned = np.stack([segment[1] + 1, segment[0] - 2]).astype(np.float32)
    found = engines["turned"].run(segment)
    np.testing.assert_allclose(found, engines["plain"].run(turned), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(
    "changes",
    [
        {WEIGHT: np.eye(CHANNELS + 1, dtype=np.float32)},
        {WEIGHT: np.ones(CHANNELS, np.float32)},
        {WEIGHT: np.eye(CHANNELS)},
        {WEIGHT: np.full((CHANNELS, CHANNELS), np.nan, np.float32)},
        {BIAS: np.full(CHANNELS, np.inf, np.float32)},
        {BIAS: np.zeros((CHANNELS, 1), np.float32)},
        {BIAS: None},
        {WEIGHT: None},
    ],
)
def test_one_that_does_not_fit_is_refused(changes: dict[str, np.ndarray | None]) -> None:
    tensors = {n: value for n, value in {**IDENTITY, **changes}.items() if value is not None}
    with pytest.raises(ArtifactError, match="no input adapter of 2 channels"):
        taken_from(tensors, CHANNELS)


def test_other_tensors_in_an_adapters_place_are_refused(tmp_path: Path) -> None:
    key = create_key(tmp_path / "signing.pem")
    served = unpack(artifact(key, plain(1)), [key.public_key()], task="tiny", task_version=1)
    hostile = safetensors.numpy.save({**IDENTITY, "9.weight": np.ones(3, np.float32)})
    with pytest.raises(ArtifactError, match="the graph has no weight"):
        Engine(tiny, served, hostile)


def test_it_maps_segments_of_any_number() -> None:
    dice = np.random.default_rng(1)
    adapter = InputAdapter(*(dice.normal(size=s).astype(np.float32) for s in ((2, 2), (2,))))
    segments = dice.normal(size=(5, 2, 7)).astype(np.float32)
    expected = np.einsum("ij,njt->nit", adapter.weight, segments) + adapter.bias[:, None]
    np.testing.assert_allclose(adapter.apply(segments), expected, rtol=1e-5, atol=1e-6)
    assert taken_from(adapter.tensors(), 2)[0] is not None
    assert taken_from(IDENTITY, 2)[0] is None
