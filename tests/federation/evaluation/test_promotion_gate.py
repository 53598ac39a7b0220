import math
from dataclasses import replace

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from federation.evaluation.paired import Paired, Valued
from federation.evaluation.promotion_gate import (
    Comparison,
    GateEvidence,
    GateRules,
    Verdict,
    decide,
)

RULES = GateRules(margin=0.01)
NONE = Comparison()


def rows(n: int, base: int, gained: int, lost: int = 0) -> Comparison:
    return Comparison(Paired(n, base, gained, lost))


def judged(
    devices: Comparison = NONE, held_out: Comparison = NONE, recent: Comparison = NONE
) -> Verdict:
    return decide(GateEvidence(devices, held_out, recent), RULES)


BETTER = rows(1000, 700, 100, 10)
SAME = rows(1000, 800, 0)


@pytest.mark.parametrize(
    ("devices", "held_out", "promoted", "why"),
    [
        (
            rows(1000, 700, 10),
            SAME,
            True,
            "on devices 0.700 → 0.710, on held-out devices 0.800 → 0.800",
        ),
        (rows(1000, 700, 9), SAME, False, "on devices 0.700 → 0.709 gains less than 0.010"),
        (BETTER, rows(1000, 800, 0, 10), True, "on held-out devices 0.800 → 0.790"),
        (
            BETTER,
            rows(1000, 800, 0, 11),
            False,
            "on held-out devices 0.800 → 0.789 loses more than 0.010",
        ),
        (BETTER, NONE, True, "on devices"),
        (NONE, rows(1000, 800, 10), True, "no device compared 20 of its own segments"),
        (NONE, rows(1000, 800, 9), False, "gains less"),
        (rows(19, 19, 0, 19), BETTER, True, "no device compared 20 of its own segments"),
        (rows(20, 20, 0, 20), BETTER, False, "on devices 1.000 → 0.000 gains less"),
        (rows(19, 0, 19), rows(19, 0, 19), False, "nothing was evaluated"),
        (NONE, NONE, False, "nothing was evaluated"),
    ],
)
def test_the_gate(devices: Comparison, held_out: Comparison, promoted: bool, why: str) -> None:
    verdict = judged(devices, held_out)
    assert (verdict.promote, why in verdict.reason) == (promoted, True), verdict.reason


@pytest.mark.parametrize(
    ("gained", "lost", "promoted"), [(5, 0, True), (4, 0, False), (8, 2, False)]
)
def test_a_gain_by_chance_is_none(gained: int, lost: int, promoted: bool) -> None:
    """Of 5 tosses of a coin all are heads once in 32 times, of 4 once in 16."""
    verdict = judged(rows(40, 20, gained, lost))
    assert verdict.promote == promoted
    if not promoted:
        told = f"may be chance ({gained} segments better, {lost} worse)"
        assert told in verdict.reason


def test_where_devices_are_too_few_to_tell_chance_the_people_held_out_tell() -> None:
    devices = rows(40, 20, 4)
    assert judged(devices, BETTER).promote
    assert not judged(devices, SAME).promote


def test_with_no_margin_to_gain_chance_is_no_objection() -> None:
    evidence = GateEvidence(SAME)
    assert decide(evidence, GateRules(margin=0.0)).promote
    assert not decide(evidence, GateRules(margin=0.001)).promote


@pytest.mark.parametrize(
    ("recent", "promoted"),
    [
        (rows(1000, 900, 0, 50), True),  # the bound
        (rows(1000, 900, 0, 51), False),
        (rows(20, 10, 0, 4), True),  # chance
        (rows(20, 10, 0, 5), False),
        (rows(19, 19, 0, 19), True),  # too few
    ],
)
def test_the_teacher_must_not_find_recent_windows_much_worse(
    recent: Comparison, promoted: bool
) -> None:
    verdict = judged(BETTER, recent=recent)
    assert verdict.promote == promoted
    assert ("recent windows" in verdict.reason) == (recent.rows.n >= RULES.minimum)


def test_the_teacher_alone_promotes_nothing() -> None:
    assert judged(recent=BETTER).reason.startswith("nothing was evaluated")


def cohort(n: int, base: int, gained: int, lost: int, *false: int) -> Comparison:
    return Comparison(BETTER.rows, {"class walking": Paired(n, base, gained, lost, *false)})


@pytest.mark.parametrize("where", ["devices", "held_out", "recent"])
@pytest.mark.parametrize(
    ("part", "promoted"),
    [
        (cohort(100, 90, 0, 5), True),  # the bound
        (cohort(100, 90, 0, 6), False),
        (cohort(100, 90, 12, 18), True),  # chance
        (cohort(19, 19, 0, 19), True),  # too few
        (cohort(100, 99, 0, 30, 100, 5), True),  # had been taken for much else
        (cohort(100, 99, 0, 30, 20, 15), False),
    ],
)
def test_no_cohort_may_be_much_worse(where: str, part: Comparison, promoted: bool) -> None:
    rules = replace(RULES, trades_classes=True)
    verdict = decide(replace(GateEvidence(devices=BETTER), **{where: part}), rules)
    assert verdict.promote == promoted, verdict.reason
    if not promoted:
        assert "class walking" in verdict.reason


@pytest.mark.parametrize(
    ("part", "falls", "held"),
    [
        (cohort(100, 90, 0, 5), True, True),
        (cohort(100, 99, 0, 30, 100, 5), True, False),  # had been taken for much else
        (cohort(100, 90, 12, 18), False, False),  # chance
        (cohort(19, 19, 0, 19), False, False),  # too few
    ],
)
def test_a_class_that_falls_on_held_out_devices_needs_the_tasks_consent(
    part: Comparison, falls: bool, held: bool
) -> None:
    evidence = GateEvidence(devices=BETTER, held_out=part)
    asked, given = (decide(evidence, replace(RULES, trades_classes=t)) for t in (False, True))
    assert asked.promote != held, asked.reason
    assert given.promote
    for verdict in (asked, given):
        assert ("recall of class walking on held-out devices" in verdict.reason) == falls
    assert decide(GateEvidence(devices=part), RULES).promote or not falls


def test_of_many_cohorts_one_has_to_be_worse_by_more_than_chance() -> None:
    """Five of five rows lost happen once in 32 times, to one of ten cohorts in most runs."""
    poor = {"class poor": Paired(50, 40, 0, 5)}
    assert not judged(Comparison(BETTER.rows, poor)).promote
    others = {f"class {n}": Paired(50, 40, 0, 0) for n in range(9)}
    assert judged(Comparison(BETTER.rows, poor | others)).promote


@pytest.mark.parametrize(("devices", "promoted"), [(4, True), (5, False), (30, False)])
def test_harm_is_counted_in_devices_not_in_rows(devices: int, promoted: bool) -> None:
    """Each of them loses 12 rows of a class and gains 2."""
    rows = sum((Paired(30, 25, 2, 12, down=10, squares=100) for _ in range(devices)), Paired())
    verdict = judged(Comparison(BETTER.rows, {"class sitting": rows}))
    told = verdict.evidence["devices/class sitting/p"]
    assert verdict.promote == promoted, told
    assert told == 0.5**devices


def test_the_evidence_is_told_in_full_whatever_the_verdict() -> None:
    held_out = rows(1000, 800, 0, 100)
    part = cohort(100, 80, 0, 20, 20, 20)
    verdict = judged(part, held_out, rows(30, 20, 1, 2))
    assert not verdict.promote
    assert "gains" not in verdict.reason
    assert verdict.reason.count("loses") == 2
    told = verdict.evidence
    assert (told["devices_base"], told["devices"], told["devices_segments"]) == (0.7, 0.79, 1000)
    assert (told["held_out_gained"], told["held_out_lost"], told["held_out_p"]) == (0, 100, 1.0)
    assert (told["recent"], told["recent_p"]) == (19 / 30, 7 / 8)
    assert told["devices/class walking"] == -0.2
    assert told["devices/class walking/segments"] == 100
    assert told["devices/class walking/p"] == pytest.approx(2**-20)
    assert told["devices/class walking/f1"] == pytest.approx(120 / 180 - 160 / 200)
    assert all(math.isfinite(value) for value in told.values())
    assert "recent" not in judged(BETTER).evidence


paired = st.integers(0, 400).flatmap(
    lambda n: st.integers(0, n).flatmap(
        lambda base: st.builds(
            Paired, st.just(n), st.just(base), st.integers(0, n - base), st.integers(0, base)
        )
    )
)
comparisons = st.builds(Comparison, paired, st.dictionaries(st.sampled_from("abc"), paired))
evidences = st.builds(GateEvidence, comparisons, comparisons, comparisons)
rules = st.builds(GateRules, st.floats(0, 0.2))


@given(evidences, rules)
def test_what_is_promoted_has_gained_and_harms_nobody(
    evidence: GateEvidence, rules: GateRules
) -> None:
    verdict = decide(evidence, rules)
    assert all(math.isfinite(value) for value in verdict.evidence.values())
    if not verdict.promote:
        return
    devices, held_out, recent = (each.rows for each in vars(evidence).values())
    primary = devices if devices.n >= rules.minimum else held_out
    assert primary.n >= rules.minimum
    assert primary.gain >= rules.margin - 1e-6
    if primary is devices and held_out.n >= rules.minimum:
        assert held_out.gain >= -rules.tolerance - 1e-6
    for name, part in [("recent", recent)] + [
        item for _, _, each in evidence.named() for item in each.cohorts.items()
    ]:
        if part.n >= rules.minimum and part.gain < -rules.cohort_bound - 1e-6:
            least = rules.significance / (3 if name != "recent" else 1)
            base, new = part.f1
            assert part.chance_of_loss > least or new >= base


@given(evidences, rules, st.sampled_from(["devices", "held_out", "recent"]))
def test_one_more_row_lost_never_promotes(
    evidence: GateEvidence, rules: GateRules, where: str
) -> None:
    before = getattr(evidence, where)
    rows = before.rows
    assume(rows.lost < rows.base)
    worse = replace(before, rows=replace(rows, lost=rows.lost + 1))
    after = decide(replace(evidence, **{where: worse}), rules)
    assert not after.promote or decide(evidence, rules).promote


def valued(n: int, before: float, after: float, p: float, units: int = 8) -> Comparison:
    won = (before - after) / max(before, after)  # of an error
    return Comparison(Valued(n, units, before, after, won, p, 1 - p, "devices"))


ERRORS = GateRules(margin=0.02, metric="rmse")


def test_a_smaller_error_is_promoted_and_named() -> None:
    found = decide(GateEvidence(valued(400, 60.0, 54.0, 0.01), valued(90, 80.0, 79.5, 0.4)), ERRORS)
    assert found.promote
    assert found.reason == "RMSE on devices 60 → 54, on held-out devices 80 → 79.5"
    assert found.evidence["devices_base"] == 60.0
    assert found.evidence["devices_gain"] == pytest.approx(0.1)
    assert found.evidence["devices_units"] == 8


@pytest.mark.parametrize(
    ("devices", "held_out", "why"),
    [
        (valued(400, 60.0, 59.5, 0.01), NONE, "gains less than 0.020"),
        (valued(400, 60.0, 66.0, 0.99), NONE, "gains less than 0.020"),
        (valued(400, 60.0, 54.0, 0.3), NONE, "may be chance (8 devices, p 0.30)"),
        (valued(400, 60.0, 54.0, 0.06, 4), NONE, "(4 devices, fewer than 5 prove no gain, p 0.06)"),
        (valued(400, 60.0, 54.0, 0.01), valued(90, 80.0, 81.0, 0.7), "loses more than 0.010"),
    ],
)
def test_an_error_that_does_not_shrink_enough_or_surely_is_refused(
    devices: Comparison, held_out: Comparison, why: str
) -> None:
    found = decide(GateEvidence(devices, held_out), ERRORS)
    assert not found.promote
    assert found.reason.startswith("RMSE ")
    assert why in found.reason


def test_a_group_whose_error_grows_refuses() -> None:
    worse = Valued(50, 9, 10.0, 12.0, -1 / 6, 0.99, 0.01)
    fleet = Comparison(valued(400, 60.0, 54.0, 0.01).rows, {"group north": worse})
    found = decide(GateEvidence(fleet), ERRORS)
    assert "group north on devices 10 → 12 loses more than 0.050" in found.reason
