"""The built-in data: what its pickle may name, and what the conversion holds."""

import collections
import gzip
import io
import pickle
from pathlib import Path

import numpy as np
import pytest

from streams.contract.errors import TidewheelError
from streams.contract.task import check_model
from streams.segments.segmentation import segments_of
from streams.tasks import hapt, har


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (eval, ("1 + 1",))


@pytest.mark.parametrize(
    "thing", [Evil(), collections.OrderedDict(), Path("x"), print, np.random.default_rng()]
)
def test_the_unpickler_refuses_every_other_name(thing: object) -> None:
    with pytest.raises(pickle.UnpicklingError, match="not admitted"):
        hapt.RestrictedUnpickler(io.BytesIO(pickle.dumps(thing, protocol=2))).load()


@pytest.mark.parametrize("raw", [b"", b"no gzip", gzip.compress(b"no pickle", mtime=0)])
def test_a_broken_file_is_a_one_line_error(raw: bytes) -> None:
    with pytest.raises(TidewheelError, match="cannot be read"):
        hapt.convert(raw)


def test_the_real_data_is_whole() -> None:
    rows = np.load(hapt.recordings(), mmap_mode="r")
    assert len(rows) == 1_122_772
    assert rows.dtype == hapt.ROW
    recordings = set(zip(rows["person"].tolist(), rows["recording"].tolist(), strict=True))
    assert len(recordings) == 61
    assert set(rows["person"].tolist()) == set(range(1, 31))
    assert set(rows["label"].tolist()) == {-1, *range(1, 13)}
    gravity = np.linalg.norm([rows[name] for name in ("acc-x", "acc-y", "acc-z")], axis=0)
    assert 0.95 < np.median(gravity) < 1.1  # in units of g


def test_every_person_has_one_role() -> None:
    roles = collections.Counter(d.role for d in har.devices())
    assert roles == {"pilot": 2, "lab": 6, "held-out": 7, "fleet": 15}
    assert len({d.name for d in har.devices()}) == 30


def test_a_persons_readings_become_labelled_segments() -> None:
    cut = list(segments_of(har.readings("person-10"), har.task))
    labels = [int(label[0]) for _, _, _, label in cut if label is not None]
    assert len(cut) > 500
    assert set(labels) == set(range(6))
    assert all(segment.shape == (6, 128) for _, _, segment, _ in cut)
    assert 0.5 < len(labels) / len(cut) < 0.95


def test_the_models_have_the_shapes_and_the_size_that_the_task_states() -> None:
    check_model(har.task)
    assert 15_000 < sum(p.numel() for p in har.build_model().parameters()) < 20_000
