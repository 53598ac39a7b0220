"""The benchmark of releases: bounds of shares, and which rollouts are made."""

import numpy as np
import pytest

from tests.bench.release.rollouts.bounds import design_effect, members, upper_bound
from tests.bench.release.rollouts.candidates import EQUAL, WORSE, Candidates, even
from tests.bench.release.rollouts.simulation import Outcome, Rollout
from tests.bench.release.rollouts.verdicts import COUNTS, KINDS, Row, bound, jobs

ROLLOUT = Rollout(2, (10, 30))


def test_the_bound_of_independent_cases_is_the_one_in_the_tables() -> None:
    assert upper_bound(0, 100, 1.0) == pytest.approx(0.0295, abs=1e-4)  # 1 - 0.05 ** (1 / 100)
    assert upper_bound(1, 100, 1.0) == pytest.approx(0.0466, abs=1e-4)
    assert upper_bound(7, 7, 1.0) == 1.0


def test_cases_that_count_for_less_widen_the_bound() -> None:
    assert upper_bound(4, 400, 4.0) == pytest.approx(upper_bound(1, 100, 1.0))


def test_cases_that_err_together_with_a_member_count_as_few() -> None:
    groups = members([(f"person {i // 10}",) for i in range(100)])
    together = np.arange(100) // 10 == 3
    assert design_effect(together, groups) == pytest.approx(10, rel=0.15)


def test_cases_that_err_whoever_takes_part_count_in_full() -> None:
    dice = np.random.default_rng(0)
    groups = members([tuple(map(str, dice.permutation(15)[:3])) for _ in range(4000)])
    assert design_effect(dice.random(4000) < 0.1, groups) < 2


def test_without_an_error_the_design_effect_is_that_of_other_rows() -> None:
    row = Row(ROLLOUT, EQUAL, [Outcome("go-on", 9, ("a", "b"), ("x", "y"))] * 50)
    assert bound(row, 2.0) == (2.0, upper_bound(0, 50, 2.0))


def test_equally_good_models_are_paired_both_ways() -> None:
    def right(share: float) -> list[np.ndarray]:
        return [np.arange(1000) < 1000 * share]

    found = even({"a": right(0.800), "b": right(0.805), "c": right(0.82)})
    assert sorted(found) == [("a", "b"), ("b", "a")]


def test_every_pair_of_models_has_its_turn_in_every_kind() -> None:
    pairs = {name: [("a", "b"), ("c", "d")] for name in COUNTS}
    made = list(jobs(Candidates((), {}, pairs, {}), KINDS, 1.0))
    assert len(made) == len(KINDS) * sum(COUNTS.values())
    for kind in KINDS:
        for name in (EQUAL, *WORSE):
            found = [job.stable for job in made if job[:2] == (kind, name)]
            assert found.count("a") == found.count("c") > 0
