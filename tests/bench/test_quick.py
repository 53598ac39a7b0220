"""The quick benchmark fails where a figure is beyond its band, and only there."""

import pytest

from tests.bench.quick.__main__ import AGAIN, BAND, BYTES, limit, measured, worse
from tests.bench.quick.ratios import beside

TIME, SIZE = "device: an answer", "bytes: one"


def test_a_figure_within_its_band_passes_and_one_beyond_it_is_named() -> None:
    committed = {TIME: 2.0, SIZE: 100.0}
    assert worse(committed, {TIME: 2.0 * (1 + BAND), SIZE: 100.0 * (1 + BYTES)}) == []
    assert worse(committed, {TIME: 0.1, SIZE: 1.0}) == []
    (line,) = worse(committed, {TIME: 2.0 * (1 + BAND) + 0.01, SIZE: 100.0})
    assert line.startswith(TIME)
    (line,) = worse(committed, {TIME: 2.0, SIZE: 100.0 * (1 + BYTES) + 0.1})
    assert line.startswith(SIZE)


def test_a_figure_that_one_side_lacks_is_named() -> None:
    assert worse({TIME: 1.0}, {}) == [f"{TIME}: not measured any more"]
    assert worse({}, {TIME: 1.0}) == [f"{TIME}: not committed; add it by --write"]


def test_only_what_is_beyond_its_band_is_measured_again() -> None:
    turns = iter([9.0, 5.0, 3.0, 1.0])
    assert measured(TIME, lambda: next(turns), 1.0) == 3.0
    assert AGAIN == 2
    assert measured(TIME, lambda: next(turns), 1.0) == 1.0
    with pytest.raises(StopIteration):
        measured(TIME, lambda: next(turns), None)


def test_twice_the_work_is_about_twice_the_time() -> None:
    def work(times: int) -> None:
        sum(range(20_000 * times))

    assert 1.5 < beside(lambda: work(4), lambda: work(2)) < 2.7
    assert limit(TIME, 1.0) == 1 + BAND
