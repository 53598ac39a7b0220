"""What the console shows is made of the topics, names what is wrong first, and stays small."""

from functools import cache
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compose.dashboard.model.device import device_page
from compose.dashboard.model.fleet import SORTS, FleetQuery, fleet_page
from compose.dashboard.model.histograms import histograms_of
from compose.dashboard.model.learning import gate_words, learning
from compose.dashboard.model.letters import KEPT, Letters, quality
from compose.dashboard.model.observed import Link, Observed
from compose.dashboard.model.overview import overview
from compose.dashboard.model.problems import problems
from compose.dashboard.model.recent import KEPT as WINDOWS_KEPT
from compose.dashboard.model.recent import NAMES, OTHER, SLOTS, RecentWindows
from compose.dashboard.model.rollouts import releases
from streams.contract.window_report import DriftReport, WindowReport
from tests.compose.dashboard.made_up import (
    CANARY,
    DRIFT,
    HTML,
    NOW_S,
    STABLE,
    decision,
    device,
    fleet,
    letter,
    observed,
    report,
)


@cache
def one_fleet() -> Observed:
    return observed(*fleet())


def test_what_is_wrong_is_named_the_worst_first_with_what_to_do() -> None:
    away = Link("broker:9092", NOW_S - 60, "no broker answers")
    found = problems(observed(*fleet(), link=away))
    assert [p.severity for p in found] == sorted(
        (p.severity for p in found), key=["critical", "warning", "note"].index
    )
    texts = [p.text for p in found]
    assert texts[0].startswith("No broker answers at broker:9092")
    assert "d3 is in error" in texts
    assert any(text.startswith("Inputs drift on 1 of 1") for text in texts)
    assert all(p.advice for p in found if p.severity != "critical")
    assert next(p for p in found if "in error" in p.text).advice == f"d3 says: {HTML}"


def test_in_an_outage_everything_is_of_the_moment_at_which_the_broker_answered_last() -> None:
    """Devices do not become silent because nothing is read."""
    messages = [device("d0", 61), report("d0", 65)]
    away = observed(*messages, link=Link("b", NOW_S - 60, "away"))
    assert [p.severity for p in problems(away)] == ["critical"]
    back = observed(*messages)
    assert [p.text for p in problems(back)] == ["d0 is silent"]


def test_the_loop_is_summed_up_with_its_rates() -> None:
    found = overview(observed(*fleet()))
    here = found.stations
    assert {k: n for k, n in here.devices.items() if n} == {
        "error": 1, "silent": 1, "drifting": 1, "fine": 3,
    }  # fmt: skip
    assert here.produced_per_s == 10.0  # the silent one's do not count
    assert here.scored_per_s == pytest.approx(6 * 3 * 10 / 60)
    assert here.windows_per_s == pytest.approx(6 * 3 / 60, abs=0.1)
    assert here.lag == 3
    assert here.serving == {CANARY: 1, STABLE: 5}
    assert here.rollout == f"{CANARY} offered to 0 of 6 devices, stage 1"
    assert {round(point.scored_per_s, 9) for point in found.history} == {3.0}  # of whole minutes
    assert found.history[-1].value == {STABLE: 0.75, CANARY: 0.75}


@given(
    st.builds(
        FleetQuery,
        search=st.text(max_size=5),
        group=st.sampled_from(["", "error", "fine", STABLE, "refusing", "x"]),
        sort=st.sampled_from([*SORTS, "nonsense"]),
        descending=st.booleans(),
        page=st.integers(1, 50),
        size=st.integers(1, 8),
    )
)
def test_every_query_gives_a_page_and_all_pages_give_each_device_once(query: FleetQuery) -> None:
    seen = one_fleet()
    first = fleet_page(seen, query)
    assert len(first.rows) <= query.size
    names = []
    for number in range(1, first.pages + 1):
        page = fleet_page(seen, query.model_copy(update={"page": number}))
        names += [row.device for row in page.rows]
    assert len(names) == len(set(names)) == first.matching


def test_a_devices_page_has_its_account_versions_windows_and_drift() -> None:
    found = device_page(observed(*fleet()), "d5")
    assert found is not None
    assert [(span.version, span.windows) for span in found.spans] == [(STABLE, 21), (CANARY, 9)]
    assert [account.balanced for account in found.accounts] == [True]
    assert found.windows[-1].value == 0.75
    drifting = device_page(observed(*fleet()), "d1")
    assert drifting is not None
    assert drifting.row.trend == [0.75] * 24
    assert [channel.psi for channel in drifting.channels] == [0.9]
    assert device_page(observed(*fleet()), "nobody") is None


def test_a_devices_histograms_stand_beside_the_references_cell_by_cell() -> None:
    found = device_page(observed(*fleet()), "d1")
    assert found is not None
    [shown] = found.histograms
    assert (shown.channel, shown.kind, shown.psi, shown.alarm) == ("x", "mean", 0.9, True)
    assert (shown.reference, shown.device) == (200, 30)
    assert [(c.name, c.low, c.high, c.reference, c.device) for c in shown.cells] == [
        ("below -1.0", None, -1.0, 10, 0),
        ("-1.0 to 0.0", -1.0, 0.0, 100, 3),
        ("0.0 to 1.0", 0.0, 1.0, 80, 12),
        ("1.0 and more", 1.0, None, 9, 15),
        ("null", None, None, 1, 0),
    ]
    assert found.drift is not None
    assert "histograms" not in found.drift
    without = device_page(observed(*fleet()), "d0")
    assert without is not None
    assert without.histograms == []


def drifting(**histogram: Any) -> DriftReport:
    return DriftReport.model_validate(
        {**DRIFT, "histograms": [{**DRIFT["histograms"][0], **histogram}]}
    )


def test_cells_of_answers_have_the_names_of_the_classes() -> None:
    about = {"ordered": False, "edges": [-0.5, 0.5, 1.5, 2.5], "reference": [0, 5, 0, 4, 0, 0, 0],
             "counts": [0, 1, 0, 2, 1, 0, 0]}  # fmt: skip
    [kept] = histograms_of(drifting(**about))
    named = [(cell.name, cell.device) for cell in kept.shown(["slow", "even", "fast"]).cells]
    assert named == [("slow", 1), ("fast", 2), ("no class", 1)]
    assert [cell.name for cell in kept.shown([]).cells] == ["class 0", "class 2", "no class"]


@pytest.mark.parametrize(
    ("edges", "names"),
    [
        ([1013.25, 1013.5, 1013.75], ["below 1,013.25", "1,013.25 to 1,013.50"]),
        ([0.0, 250.0, 500.0], ["below 0", "0 to 250"]),
        ([-1e-9, 0.0, 1e-9], ["below -1e-09", "-1e-09 to 0"]),
        ([0.0, 0.0, 0.0], ["below 0", "0 to 0"]),
    ],
)
def test_bounds_have_the_digits_that_tell_them_apart(edges: list[float], names: list[str]) -> None:
    [kept] = histograms_of(drifting(edges=edges))
    assert [cell.name for cell in kept.shown([]).cells][:2] == names


@pytest.mark.parametrize(
    "wrong",
    [{"counts": [1]}, {"edges": [0.0], "counts": [1] * 4, "reference": [1] * 4},
     {"channel": "nobody"},
     {"edges": [float(n) for n in range(90)], "counts": [0] * 93, "reference": [0] * 93}],
)  # fmt: skip
def test_a_histogram_that_makes_no_sense_is_left_out(wrong: dict[str, Any]) -> None:
    assert histograms_of(drifting(**wrong)) == ()


def test_the_gates_decision_is_in_words_with_both_sides_and_cohorts() -> None:
    found = learning(observed(*fleet()))
    [run] = found.runs
    assert [each.refused for each in run.summary.rounds] == [{"norm": 1}, {"norm": 1}]
    assert run.gate is not None
    words = gate_words(run.gate, found.metric)
    assert words[0].startswith("The candidate passed the gate: promoted: accuracy")
    assert "On held-out devices: accuracy 0.66 → 0.80 on the same 120 segments." in words
    assert "class slow on held-out devices gained least (-0.02 on 40 segments)" in words[-1]


def test_a_canary_is_compared_with_the_others_as_it_grows() -> None:
    found = releases(observed(*fleet()))
    assert (found.canary, found.stable) == (CANARY, STABLE)
    assert found.growth[-1].canary == found.growth[-1].others == 0.75
    assert [row.seq for row in found.decisions] == [3, 2, 1]
    assert found.decisions[0].odds_worse == 0.3
    assert (found.decisions[0].bound_worse, found.decisions[0].bound_fine) == (50.0, 20.0)
    assert (found.bound_worse, found.bound_fine) == (50.0, 20.0)  # as its controller was started


PAUSED = {"reason": "manual: look first", "time_us": 7, "key": "ab" * 8}


def test_a_paused_rollout_is_shown_with_who_and_why() -> None:
    """Also after a decision about something else."""
    offer = {"stable": STABLE, "offered": CANARY, "share": 0.25, "stage": 1}
    keys = decision(5, "keys", STABLE, 40, **offer, paused=PAUSED)
    seen = observed(*fleet(), decision(4, "held", CANARY, 50, **offer, paused=PAUSED), keys)
    found = next(p for p in problems(seen) if p.page == "/releases")
    assert found.text == f"A person has paused the rollout of {CANARY}"
    assert found.advice.startswith(f"manual: look first, signed by key {'ab' * 8}. ")
    assert found.since_us == 7
    assert overview(seen).stations.rollout == f"{CANARY} offered to 0 of 6 devices, stage 1, paused"
    shown = releases(seen)
    assert shown.released.endswith("offered to 0 of 6 devices, paused")
    assert shown.desired.paused is not None
    assert [row.word for row in shown.decisions][:2] == ["keys", "paused"]
    resumed = decision(6, "stage", CANARY, 30, **offer, reason="manual: console")
    after = observed(*fleet(), keys, resumed)
    assert [p for p in problems(after) if p.page == "/releases"] == []
    assert releases(after).decisions[0].text == f"{CANARY} is resumed in stage 1"
    assert releases(after).bound_worse == 50.0


def test_what_is_kept_is_bounded_by_the_fleet_and_not_by_time() -> None:
    recent = RecentWindows()
    made = WindowReport.decode(report("d0", 0).value)
    for n in range(20 * SLOTS):
        recent.add(made.model_copy(update={"window_us": n}), n * 10_000_000)
    size = recent.bytes
    recent.add(made, 10**12)
    assert len(recent.of("d0")) == WINDOWS_KEPT
    assert (len(recent.slots), recent.bytes) == (SLOTS, size)
    assert [w.window_us for w in recent.of("d0")][:2] == [20 * SLOTS - 59, 20 * SLOTS - 58]


def test_of_dead_letters_the_newest_are_kept_and_of_each_the_beginning() -> None:
    letters = Letters()
    for n in range(3 * KEPT):
        letters.add(letter(n, value=b"x" * 100_000))
    found = quality(letters, 0)
    assert [row.offset for row in found.letters] == list(range(3 * KEPT - 1, 2 * KEPT - 1, -1))
    assert {row.bytes for row in found.letters} == {100_000}
    assert sum(len(message.value or b"") for message in letters.messages) <= KEPT * 4096
    assert found.by_reason == {"bad-arrow": 3 * KEPT}


def test_events_that_were_to_be_left_out_are_no_problem_and_others_are() -> None:
    asked = device("d0", dropped={"metered": 900})
    assert problems(observed(asked, report("d0", 5))) == []
    both = device("d0", dropped={"metered": 900, "spool-full": 7})
    [found] = problems(observed(both, report("d0", 5)))
    assert "have dropped 7 of" in found.text
    assert "metered" not in found.text


def test_names_of_versions_that_devices_make_up_are_bounded() -> None:
    recent = RecentWindows()
    for number in range(NAMES + 50):
        made_up = WindowReport.decode(report("d0", 5, f"{number}-aaaaaaaa").value)
        recent.add(made_up, number)
    assert len(recent._releases) == NAMES + 1
    assert recent.last("d0") is not None
    assert recent.of("d0")[-1].release == OTHER


def test_a_devices_windows_are_in_the_order_of_their_times_each_once_and_named_by_its_metric() -> (
    None
):
    """They are reported in another order, and late rows are a report of their own."""
    messages = [
        report("d0", ago_s, revision=revision, metric="brier")
        for ago_s, revision in ((40, 0), (20, 0), (30, 0), (40, 1))
    ]
    found = device_page(observed(device("d0"), *messages), "d0")
    assert found is not None
    ends_s = [NOW_S - w.end_us / 1e6 for w in found.windows]
    assert ends_s == [35, 25, 15]
    assert len(found.reports) == 4
    assert found.window_metric == "Brier distance from the teacher"
    assert found.lower_is_better


def test_a_device_without_an_agent_is_listed_and_counted_like_any_other() -> None:
    """Its own program writes its events: there are windows, and no state."""
    seen = observed(device("d0"), report("d0", 5), report("press", 600, drift=DRIFT))
    found = fleet_page(seen, FleetQuery())
    assert (found.total, found.conditions["no agent"], found.conditions["drifting"]) == (2, 0, 1)
    assert [row.activity for row in found.rows] == ["no agent", "running"]
    page = device_page(seen, "press")
    assert page is not None
    assert (page.row.produced, page.accounts, len(page.windows)) == (10, [], 1)
    assert [p.text for p in problems(seen)] == ["Inputs drift on 1 of 1 device: press (x)"]
    seen = observed(*[report("press", 600), device("press")])
    assert fleet_page(seen, FleetQuery()).conditions["fine"] == 1


def test_the_history_is_of_the_time_that_is_asked_for() -> None:
    seen = observed(*(report("d0", ago_s) for ago_s in range(7200, 0, -20)))
    now_us = NOW_S * 1e6
    for span_s in (600, 3600, 86_400):
        points = overview(seen, span_s).history
        assert now_us - points[0].at_us <= span_s * 1e6
        assert {round(point.scored_per_s, 2) for point in points[1:]} == {0.5}
    assert now_us - points[0].at_us > 6600e6  # two hours are known
