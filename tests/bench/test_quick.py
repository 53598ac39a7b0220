"""The quick benchmark fails where a figure is beyond its band, and only there."""

import pytest

from tests.bench.quick import ratios
from tests.bench.quick.__main__ import AGAIN, BAND, BYTES, limit, measured, worse

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


class Clock:
    """Stands in for the module time: each call of the work moves it."""

    now = 0.0

    def process_time(self) -> float:
        return self.now

    perf_counter = process_time

    def work(self, takes_s: float) -> None:
        self.now += takes_s


def test_a_ratio_is_the_time_of_one_call_to_that_of_the_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = Clock()
    monkeypatch.setattr(ratios, "time", clock)
    assert ratios.beside(lambda: clock.work(0.04), lambda: clock.work(0.01)) == pytest.approx(4)
    slow = iter([1.0] * 5)  # the first calls: the least of the turns counts
    found = ratios.beside(lambda: clock.work(next(slow, 0.02)), lambda: clock.work(0.01))
    assert found == pytest.approx(2)
    assert limit(TIME, 1.0) == 1 + BAND
