"""Updates that wait on disk are what was received, and take no memory of the process."""

import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from federation.admission.parking import park

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
