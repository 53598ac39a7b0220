"""The benchmark of a device: quantiles with their intervals, and which p99 is claimed."""

import numpy as np
import pytest

from tests.bench.edge.answers.latency import Timed, cells, goals
from tests.bench.edge.answers.quantiles import Times


def times(count: int, seed: int = 0, scale: float = 1.0) -> Times:
    dice = np.random.default_rng(seed)
    return Times(np.linspace(0, 60, count, endpoint=False), scale * dice.exponential(1.0, count))


def test_the_interval_holds_the_quantile_that_the_times_were_drawn_from() -> None:
    found = times(20_000).quantile(0.99)
    assert found.low < np.log(100) < found.high
    assert found.high - found.low < 0.5
    assert found.runs == 20_000


def test_slow_answers_of_one_burst_widen_the_interval() -> None:
    calm, burst = times(6_000), times(6_000)
    burst.took[1_000:1_100] += 20.0  # of a single second
    wide, narrow = burst.quantile(0.99), calm.quantile(0.99)
    assert wide.high - wide.low > 10 * (narrow.high - narrow.low)


def test_a_ratio_of_equal_times_is_about_one() -> None:
    found = times(20_000, 1).ratio(times(20_000, 2), 0.99)
    assert found.low < 1 < found.high
    assert times(5_000, 1, 3.0).ratio(times(5_000, 1), 0.5).median == pytest.approx(3)


def test_a_p99_is_claimed_of_enough_answers_only() -> None:
    first = Timed(times(400), times(400), times(100))
    found = Timed(times(400, 3, 2.0), times(400), times(100))
    assert cells("x", found, first, 1_000, 0.0)[4] is None
    assert [goal.text for goal in goals("x", found, first, 1_000)] == ["p90 / p90 idle, x"]
    assert [goal.text for goal in goals("x", found, first, 400)] == ["p99 / p99 idle, x"]
    assert goals("x, trainer starts", found, first, 400) == []
