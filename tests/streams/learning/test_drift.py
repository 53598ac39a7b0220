"""Histograms, distances and decisions; the formulas against figures of evidently and scipy."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streams.contract.errors import MalformedRecord
from streams.contract.window_report import ChannelDrift, DriftReport
from streams.learning.drift_detector import (
    DriftDetector,
    chi_square_99,
    compare,
    hellinger,
    null_percentile,
    psi,
    shares,
    stability_index,
    total_variation,
)
from streams.learning.drift_reference import (
    BINS,
    Feature,
    Reference,
    frozen_edges,
    observe,
)
from tests.rig.made_up.tiny_task import task
from tests.rig.processes.workers import counted

# Of `samples` and `class_samples`, by evidently 0.7.23 with pandas 2.3.3 and scipy 1.17.1: psi,
# hellinger_distance and tvd_stattest in its stattests.
EVIDENTLY = {
    "numbers": {
        "psi": 0.06171490640169394,
        "hellinger": 0.0876590074726925,
    },
    "classes": {
        "psi": 0.9879730538499615,
        "hellinger": 0.34274730896139977,
        "total_variation": 0.3265,
    },
}
# The 99th percentiles of chi-square by its degrees of freedom, from scipy.stats.chi2.
CHI_SQUARE = {1: 6.6349, 2: 9.2103, 3: 11.3449, 5: 15.0863, 7: 18.4753, 10: 23.2093, 50: 76.1539}

EDGES = (-1.0, 0.0, 0.5, 2.0)
values = st.lists(st.one_of(st.none(), st.floats(-5, 5), st.floats()), max_size=30)
cells = st.lists(st.integers(0, 1000), min_size=6, max_size=6).filter(any)


def samples() -> tuple[np.ndarray, np.ndarray]:
    """Two samples whose common bins are all filled on both sides."""
    noise = np.random.default_rng(7)
    return noise.uniform(0, 1, 4000), noise.beta(1.3, 1.0, 3000)


def class_samples() -> tuple[np.ndarray, np.ndarray]:
    """Two samples of four classes."""
    noise = np.random.default_rng(8)
    reference = noise.choice(4, 2000, p=[0.4, 0.3, 0.2, 0.1])
    return reference, noise.choice(4, 500, p=[0.1, 0.3, 0.2, 0.4])


def edges() -> np.ndarray:
    """The edges that evidently chooses for `samples`."""
    return np.histogram_bin_edges(np.concatenate(samples()), bins="sturges")


def numbers(at: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The shares of both samples over these edges, cells outside included."""
    p, q = (counted(at, sample)[:-2] for sample in samples())
    return shares(p), shares(q)


# Histograms


@settings(deadline=None)
@given(values, values, values)
def test_merging_is_the_same_in_any_order_and_as_one_pass(
    a: list[float | None], b: list[float | None], c: list[float | None]
) -> None:
    one, two, three = (counted(EDGES, part) for part in (a, b, c))
    whole = counted(EDGES, [*a, *b, *c])
    for merged in (one + two + three, three + (one + two), one + three + two):
        assert merged.tolist() == whole.tolist()
    assert whole.sum() == len(a) + len(b) + len(c)
    assert whole.dtype == np.int64


def test_every_value_has_its_cell() -> None:
    found = counted(
        EDGES,
        [-1e300, -1.1, -1.0, -0.5, 0.0, 0.4, 0.5, 2.0, 1e300, None, math.nan, math.inf, -math.inf],
    )
    assert found.tolist() == [2, 2, 2, 1, 2, 2, 2]  # below, 3 cells, beyond, null, infinite


# Distances


@settings(deadline=None)
@given(cells, cells)
def test_distances_are_symmetric_bounded_and_zero_for_the_same(a: list[int], b: list[int]) -> None:
    p, q = shares(np.array(a)), shares(np.array(b))
    for distance, most in ((psi, math.inf), (hellinger, 1.0), (total_variation, 1.0)):
        assert distance(p, p) == pytest.approx(0, abs=1e-9)
        assert distance(p, q) == pytest.approx(distance(q, p), abs=1e-9)
        assert -1e-12 <= distance(p, q) <= most + 1e-9
    assert hellinger(p, q) ** 2 <= total_variation(p, q) + 1e-9
    assert total_variation(p, q) <= math.sqrt(2) * hellinger(p, q) + 1e-9


def test_what_has_no_cell_in_common_is_as_far_as_can_be() -> None:
    p, q = np.array([1.0, 0, 0, 0]), np.array([0, 0, 0, 1.0])
    assert psi(p, q) == math.inf
    assert hellinger(p, q) == total_variation(p, q) == 1


@pytest.mark.parametrize("name", ["psi", "hellinger"])
def test_the_formulas_give_what_evidently_gives(name: str) -> None:
    distance = {"psi": psi, "hellinger": hellinger}[name]
    at = edges()
    at[-1] = np.nextafter(at[-1], np.inf)  # numpy's last bin holds its right edge, ours does not
    assert distance(*numbers(at)) == pytest.approx(EVIDENTLY["numbers"][name], rel=1e-9)
    p, q = (shares(np.bincount(sample, minlength=4)) for sample in class_samples())
    assert distance(p, q) == pytest.approx(EVIDENTLY["classes"][name], rel=1e-9)


def test_total_variation_is_what_evidently_gives() -> None:
    p, q = (shares(np.bincount(sample, minlength=4)) for sample in class_samples())
    assert total_variation(p, q) == pytest.approx(EVIDENTLY["classes"]["total_variation"])


# Chance


@pytest.mark.parametrize(("freedom", "value"), CHI_SQUARE.items())
def test_the_quantile_is_close_to_the_table(freedom: int, value: float) -> None:
    assert chi_square_99(freedom) == pytest.approx(value, rel=3e-3)


def test_without_a_sample_everything_is_chance() -> None:
    assert null_percentile(8, 0, 100) == null_percentile(8, 100, 0) == math.inf
    assert null_percentile(1, 10, 10) == 0


@pytest.mark.parametrize(("n", "m"), [(150, 2000), (1000, 2000), (400, 400)])
def test_the_null_percentile_is_passed_by_chance_once_in_a_hundred_times(n: int, m: int) -> None:
    noise = np.random.default_rng(3)
    p = np.array([0.05, 0.2, 0.25, 0.25, 0.2, 0.05])
    limit = null_percentile(len(p), n, m)
    found = [
        float(stability_index(noise.multinomial(m, p), noise.multinomial(n, p)))
        for _ in range(4000)
    ]
    assert 0.004 < np.mean(np.array(found) > limit) < 0.018
    assert np.mean(found) == pytest.approx((len(p) - 1) * (1 / n + 1 / m), rel=0.15)


# Decisions


def feature(counts: list[int], effect: float = 0.1) -> Feature:
    return Feature(channel="x", kind="mean", edges=list(EDGES), counts=counts, effect=effect)


def judge(
    feature: Feature, current: np.ndarray, *, independent: float = 1.0, decide: bool = True
) -> ChannelDrift:
    minimum = 1 if decide else 1_000_000
    frozen = Reference(minimum=minimum, independent=independent, features=[feature])
    (found,) = compare(frozen, current, windows=1).channels
    return found


REFERENCE = [50, 200, 250, 300, 200, 0, 0]


def test_it_alarms_only_above_both_thresholds() -> None:
    moved = np.array([10, 10, 20, 60, 100, 0, 0])
    many = moved
    few = moved // 10
    index = judge(feature(REFERENCE), many).psi
    assert judge(feature(REFERENCE), many).alarm
    assert not judge(feature(REFERENCE, effect=index + 0.01), many).alarm  # too small an effect
    chance = judge(feature(REFERENCE), few)
    assert chance.psi > 0.1
    assert chance.threshold > chance.psi  # may be chance in so few
    assert not chance.alarm
    assert not judge(feature(REFERENCE), many, independent=0.03).alarm  # as many, but overlapping
    assert not judge(feature(REFERENCE), many, decide=False).alarm


def test_nulls_and_infinite_values_are_drift_like_any_other() -> None:
    current = np.array([10, 40, 50, 60, 40, 100, 0])
    assert judge(feature(REFERENCE), current).alarm


def test_nothing_to_compare_is_no_alarm() -> None:
    frozen = Reference(minimum=1, independent=1.0, features=[feature(REFERENCE)])
    nobody = compare(frozen, counted(EDGES, []), windows=0)
    assert (nobody.alarm, nobody.worst, nobody.channels) == (False, None, [])
    assert not judge(feature([0] * 7), np.array(REFERENCE)).alarm


def reference() -> Reference:
    """Two channels and the predictions of the tiny task, from made-up segments."""
    noise = np.random.default_rng(0)
    seen = observe(task, noise.normal(size=(3000, 2, 20)), noise.normal(size=(3000, 3)))
    features = []
    for (channel, kind), sample in seen.items():
        at = frozen_edges(task, kind, sample)
        counts = counted(at, sample).tolist()
        features.append(Feature(channel=channel, kind=kind, edges=at.tolist(), counts=counts))
    return Reference(minimum=60, independent=0.5, features=features)


def test_the_report_names_the_worst_channel_and_the_share_that_drifted() -> None:
    frozen, noise = reference(), np.random.default_rng(1)
    segments, outputs = noise.normal(size=(600, 2, 20)), noise.normal(size=(600, 3))
    same = compare(frozen, frozen.count(observe(task, segments, outputs)), windows=12)
    assert (same.alarm, same.share, same.decided, same.segments) == (False, 0.0, True, 600)
    segments[:, 1] += 2
    moved = compare(frozen, frozen.count(observe(task, segments, outputs)), windows=12)
    assert (moved.alarm, moved.worst) == (True, "y")
    assert moved.share == pytest.approx(1 / 3)
    assert {(c.channel, c.kind) for c in moved.channels if c.alarm} == {("y", "mean")}
    few = observe(task, segments[:59], outputs[:59])
    early = compare(frozen, frozen.count(few), windows=1)
    assert (early.alarm, early.decided, early.worst) == (False, False, "y")


def test_many_windows_at_once_are_judged_as_each_alone() -> None:
    frozen, noise = reference(), np.random.default_rng(7)
    segments, outputs = noise.normal(size=(900, 2, 20)), noise.normal(size=(900, 3))
    segments[300:, 0] *= 3
    owner = np.repeat([0, 1, 3], 300)
    together = frozen.count_by(observe(task, segments, outputs), owner, 4)
    alone = [
        frozen.count(observe(task, segments[owner == i], outputs[owner == i])) for i in range(4)
    ]
    assert together.tolist() == [counts.tolist() for counts in alone]
    found = DriftDetector(frozen).fields(together, [1, 2, 3, 4])
    reports = [DriftReport.of_fields(each) for each in found]
    each = [compare(frozen, counts, windows=i + 1) for i, counts in enumerate(alone)]
    assert reports == each
    assert [report.alarm for report in reports] == [False, True, False, True]
    for report in reports:
        assert DriftReport.decode(report.encode()) == report


def test_segments_in_several_blocks_have_the_figures_that_each_has_alone() -> None:
    noise = np.random.default_rng(3)
    messages = [noise.normal(5, 2, (n, 2, 20)).astype(np.float32) for n in (1200, 2600, 3, 900)]
    outputs = noise.normal(size=(4703, 3))
    seen = observe(task, messages, outputs)
    alone = np.concatenate(messages)
    for i, channel in enumerate(task.channels):
        assert seen[channel, "mean"] == pytest.approx(alone[:, i].mean(axis=1), rel=1e-5)
        assert seen[channel, "spread"] == pytest.approx(alone[:, i].std(axis=1), rel=1e-5)


def test_without_segments_the_predictions_alone_are_watched() -> None:
    frozen = reference()
    outputs = np.zeros((600, 3))
    found = compare(frozen, frozen.count(observe(task, None, outputs)), windows=12)
    assert [(c.channel, c.n) for c in found.channels] == [("predictions", 600)]
    assert found.alarm  # all answers are the first class


def test_false_alarms_of_what_has_not_drifted_are_rare() -> None:
    """Independent segments of the reference's own distribution: under 1 % of reports alarm."""
    frozen, noise = reference(), np.random.default_rng(5)
    alarms = 0
    for _ in range(400):
        drawn = observe(task, noise.normal(size=(150, 2, 20)), noise.normal(size=(150, 3)))
        alarms += compare(frozen, frozen.count(drawn), windows=12).alarm
    assert alarms <= 4


@pytest.mark.parametrize("samples", [1, 20, 4096])
@pytest.mark.parametrize("offset", [0.0, 9.81, -1e6])
@pytest.mark.parametrize("scale", [0.0, 1e-3, 1.0, 1e25])
def test_a_segments_mean_and_spread_are_those_of_its_numbers(
    samples: int, offset: float, scale: float
) -> None:
    drawn = np.random.default_rng(samples).normal(offset, scale, (30, 2, samples))
    segments = drawn.astype(np.float32)
    seen = observe(task, segments, np.zeros((30, 3)))
    for i, channel in enumerate(task.channels):
        exact = segments[:, i].astype(np.float64)
        mean, spread = seen[channel, "mean"], seen[channel, "spread"]
        assert mean == pytest.approx(exact.mean(axis=1))
        if scale == 0:
            assert not spread.any()
        elif scale < 1e18:  # squares of larger ones are no float32
            step = float(np.spacing(np.float32(abs(offset))))  # between two numbers there
            assert spread == pytest.approx(exact.std(axis=1), rel=1e-4, abs=step)
        elif samples > 1:
            assert (spread > 1e18).all()


def test_a_constant_channel_has_a_cell_of_its_own() -> None:
    for value in (0.0, 3.5, -1e9):
        at = frozen_edges(task, "mean", np.full(100, value))
        found = counted(at, [value, value + abs(value) * 1e-3 + 1e-3])
        assert found[0] == 0
        assert found[len(at)] == 1  # another value lies beyond
    assert frozen_edges(task, "mean", np.array([math.nan])).size == BINS + 1


@pytest.mark.parametrize(
    "change",
    [
        {"edges": [0.0, 0.0, 1.0, 2.0]},
        {"edges": [0.0, 1.0, 2.0, math.inf]},
        {"counts": [1, 2]},
        {"counts": [-1, 0, 0, 0, 0, 0, 0]},
    ],
)
def test_an_unsound_reference_is_refused(change: dict[str, object]) -> None:
    sound = Reference(independent=0.5, features=[feature(REFERENCE)])
    assert Reference.decode(sound.encode()) == sound
    broken = sound.features[0].fields() | change
    with pytest.raises(MalformedRecord, match=r"Reference features\[0\]"):
        Reference.of_fields(sound.fields() | {"features": [broken]})
