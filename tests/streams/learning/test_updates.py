import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from streams.learning.updates import clipped, update_norm

ARRAY = hnp.arrays(np.float32, (4,), elements=st.floats(-50, 50, width=32))


@given(ARRAY, ARRAY, st.floats(0.01, 200))
def test_an_update_is_never_longer_than_the_clip_and_points_where_it_did(
    before: np.ndarray, after: np.ndarray, clip: float
) -> None:
    received, trained = {"w": before}, {"w": after}
    found = clipped(trained, received, clip)
    assert update_norm(found, received) <= clip * 1.001 + 1e-4
    if update_norm(trained, received) <= clip:
        np.testing.assert_array_equal(found["w"], after)
    else:
        step, want = found["w"] - before, after - before
        np.testing.assert_allclose(
            step, want * (clip / update_norm(trained, received)), atol=1e-4, rtol=1e-3
        )


def test_statistics_and_integers_stay_as_they_were_received() -> None:
    received = {
        "w": np.zeros(2, np.float32),
        "bn.running_mean": np.zeros(2, np.float32),
        "bn.running_var": np.ones(2, np.float32),
        "bn.num_batches_tracked": np.array(3),
    }
    trained = {name: value + 1 for name, value in received.items()}
    found = clipped(trained, received, 10.0)
    assert found["w"].tolist() == [1.0, 1.0]
    for name in received:
        if name != "w":
            np.testing.assert_array_equal(found[name], received[name])
    assert update_norm(clipped(trained, received, 0.5), received) == pytest.approx(0.5, rel=1e-6)
