"""What the pages show is made of the topics, names what is wrong first, and stays small."""

from dataclasses import replace
from functools import cache
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compose.console.device import device, histograms
from compose.console.history import (
    DAY_SLOT_S,
    LETTER_BYTES,
    LETTERS,
    ROW,
    SLOT_S,
    SLOTS,
    WINDOWS,
    History,
)
from compose.console.learning import gate_words, learning, releases
from compose.console.pages import SORTS, FleetQuery, fleet, overview, quality, rates
from compose.console.watch import Link, Moment, names_of
from streams.contract.task import Category
from streams.contract.window_report import DriftReport, WindowReport
from streams.fleet.view import FleetView
from streams.kafka.reader import Received
from tests.compose.console import made_up
from tests.compose.console.made_up import (
    CANARY,
    CHANNEL,
    DRIFT,
    HTML,
    NOW_S,
    STABLE,
    decision,
    evaluate,
    letter,
    observed,
    report,
)  # fmt: skip
from tests.compose.messages import TASK, window
from tests.rig.made_up.tiny_task import task as tiny
from tests.rig.unwrap import unwrap


@cache
def one_fleet() -> Moment:
    return observed(*made_up.fleet())


def test_what_is_wrong_is_named_the_worst_first_with_what_to_do() -> None:
    away = Link("broker:9092", NOW_S - 60, "no broker answers")
    found = observed(*made_up.fleet(), link=away).problems
    refused = replace(away, why="Kafka at broker:9092 refuses: GroupAuthorizationFailedError")
    [said, *_] = [p.text for p in observed(*made_up.fleet(), link=refused).problems]
    assert said.startswith("The broker at broker:9092 refuses this client: ")
    order = ["critical", "warning", "note"]
    assert [p.severity for p in found] == sorted((p.severity for p in found), key=order.index)
    texts = [p.text for p in found]
    assert texts[0].startswith("No broker answers at broker:9092")
    assert "d3 is in error" in texts
    assert "Workers refused messages in the last 10 min: 1 bad-arrow, of d0" in texts
    assert any(text.startswith("Inputs drift on 1 of 1") for text in texts)
    assert all(p.advice for p in found if p.severity != "critical")
    assert next(p for p in found if "in error" in p.text).advice == f"d3 says: {HTML}"


def labelled(device: str, model: str, start_s: int, right: int, of: int) -> Received:
    """A window with labels of the class `slow`, of which the device names so many."""
    counts = {"events": of, "agreeing": of, "compared": of, "labelled": of, "correct": right}
    truth = {"slow": {"slow": right, "fast": of - right}}
    return made_up.at(window(device, start_s, model=model, truth=truth, **counts), 5)


def test_a_version_that_is_wrong_by_labels_comes_first_with_device_and_class() -> None:
    served = made_up.decision(1, "served", STABLE, 60, stable=STABLE)
    good, bad = labelled("d0", STABLE, 0, 90, 100), labelled("d1", STABLE, 0, 10, 200)
    first, *_ = observed(served, good, bad).problems
    assert (first.severity, first.text) == ("critical", (
        f"{STABLE} is right on 0.33 of 300 labels, by true labels; worst: device d1 0.05 of 200 "
        "labels, class slow 0.33 of 300 labels"
    ))  # fmt: skip
    [old] = observed(served, good).problems  # whose time is 1970
    assert old.text.startswith(
        "1 of 1 device without an agent had no event in the last two days, d0"
    )


def test_a_device_that_a_version_made_worse_is_named_until_it_serves_another() -> None:
    seen = [labelled("d0", STABLE, 0, 90, 100), labelled("d0", CANARY, 5, 60, 100)]
    text, shares = (
        f"d0 answers worse with {CANARY} than {STABLE}",
        "0.90 → 0.60 on 100 and 100 labels",
    )
    said = [f"{text}: {shares}", f"{text}: class slow: {shares}"]
    for active, expected in ((CANARY, said), (STABLE, [])):
        moment = observed(made_up.device("d0", active=active), *seen)
        assert [p.text for p in moment.problems] == expected
        shown = unwrap(device(moment, "d0"))
        assert len(shown["worse"]) == len(expected)
        [(name, right, of, _)] = unwrap(shown["confusion"])["rows"]
        assert (name, right, of) == ("slow", 60 if active == CANARY else 90, 100)


def test_in_an_outage_everything_is_of_the_moment_at_which_the_broker_answered_last() -> None:
    """Devices do not become silent because nothing is read."""
    messages = [made_up.device("d0", 61), report("d0", 65)]
    away = observed(*messages, link=Link("b", NOW_S - 60, "away"))
    assert [p.severity for p in away.problems] == ["critical"]
    assert [p.text for p in observed(*messages).problems] == ["d0 is silent"]


@pytest.mark.parametrize(
    ("dropped", "says"),
    [({"metered": 900}, None), ({"metered": 900, "spool-full": 7}, "have dropped 7 of")],
)
def test_events_that_were_to_be_left_out_are_no_problem(
    dropped: dict[str, int], says: str | None
) -> None:
    found = observed(made_up.device("d0", dropped=dropped), report("d0", 5)).problems
    assert len(found) == (says is not None)
    assert says is None or (says in found[0].text and "metered" not in found[0].text)


def test_the_loop_is_summed_up_with_its_rates() -> None:
    seen = one_fleet()
    found = overview(seen)
    assert found["conditions"] == {"error": 1, "silent": 1, "drifting": 1, "fine": 3}
    assert seen.status.produced_per_s == 10.0  # the silent one's do not count
    assert seen.status.scored_per_s == pytest.approx(6 * 3 * 10 / 60)
    assert found["windows_per_s"] == pytest.approx(6 * 3 / 60, abs=0.1)
    assert found["serving"] == [(CANARY, 1), (STABLE, 5)]
    assert {round(point.scored_per_s, 9) for point in rates(seen)} == {3.0}  # of whole minutes
    assert rates(seen)[-1].value == {STABLE: 0.75, CANARY: 0.75}


def test_a_line_of_the_metrics_chart_is_by_one_judge() -> None:
    counts = {"events": 10, "agreeing": 9, "compared": 10}
    labels = {"labelled": 10, "correct": 3, "truth": {"slow": {"slow": 3, "fast": 7}}}
    judged = made_up.at(window("d0", 0, model=STABLE, **counts, **labels), 300)
    taught = made_up.at(window("d0", 5, model=STABLE, **counts), 20)
    values = [point.value for point in rates(observed(judged, taught))]
    assert {value[STABLE] for value in values if value} == {0.3, None}
    before = made_up.at(window("d0", 0, model=STABLE, **counts), 300)
    values = [point.value for point in rates(observed(before, taught))]
    assert {value[STABLE] for value in values if value} == {0.9}


def test_charts_are_of_the_time_that_is_asked_for() -> None:
    seen = observed(*(report("d0", ago_s) for ago_s in range(7200, 0, -20)))
    for span_s in (600, 3600, 86_400):
        points = rates(seen, span_s)
        assert NOW_S - points[0].at_ms / 1000 <= span_s
        assert {round(point.scored_per_s, 2) for point in points[1:]} == {0.5}
    assert NOW_S - points[0].at_ms / 1000 > 6600  # two hours are known


@given(
    st.builds(
        FleetQuery,
        search=st.text(max_size=5),
        group=st.sampled_from(["", "error", "fine", STABLE, "refusing", "group:a", "x"]),
        sort=st.sampled_from([*SORTS, "nonsense"]),
        descending=st.booleans(),
        page=st.integers(1, 50),
        size=st.integers(1, 8),
    )
)
def test_every_query_gives_a_page_and_all_pages_give_each_device_once(query: FleetQuery) -> None:
    seen, names = one_fleet(), list[str]()
    first = fleet(seen, query, {"d0": "a"})
    for number in range(1, first["pages"] + 1):
        page = fleet(seen, query.model_copy(update={"page": number}), {"d0": "a"})
        assert len(page["states"]) <= query.size
        names += [state.device for state in page["states"]]
    assert len(names) == len(set(names)) == first["matching"]


def test_a_device_without_an_agent_is_listed_and_counted_like_any_other() -> None:
    """Its own program writes its events: there are windows, and no state."""
    seen = observed(made_up.device("d0"), report("d0", 5), report("press", 600, drift=DRIFT))
    found = fleet(seen, FleetQuery(), {})
    assert [(s.device, s.phase) for s in found["states"]] == [
        ("press", "no agent"), ("d0", "running"),
    ]  # fmt: skip
    page = unwrap(device(seen, "press"))
    assert (page["state"].produced, page["accounts"]) == (10, [])
    assert [p.text for p in seen.problems] == ["Inputs drift on 1 of 1 device: press (x)"]


def test_a_devices_page_has_its_account_versions_windows_and_drift() -> None:
    found = unwrap(device(one_fleet(), "d5"))
    assert [(version, len(its)) for version, its in found["spans"]] == [(STABLE, 21), (CANARY, 9)]
    assert [balanced for _, balanced in found["accounts"]] == [True]
    assert found["reports"][0].value == 0.75
    drifting = unwrap(device(one_fleet(), "d1"))
    assert [channel.psi for channel in drifting["channels"]] == [0.9]
    assert device(one_fleet(), "nobody") is None


def test_an_epoch_that_ended_stays_in_the_account() -> None:
    seen = observed(*(made_up.device("d0", epoch=f"e{n}") for n in range(3)))
    found = unwrap(device(seen, "d0"))
    assert [state.epoch for state, _ in found["accounts"]] == ["e2", "e1", "e0"]


def test_a_devices_windows_are_in_the_order_of_their_times_each_once() -> None:
    """They are reported in another order, and late rows are a report of their own."""
    seen = observed(made_up.device("d0"), *(
        report("d0", ago_s, revision=revision, metric="brier")
        for ago_s, revision in ((40, 0), (20, 0), (30, 0), (40, 1))
    ))  # fmt: skip
    found = unwrap(device(seen, "d0"))
    [line] = found["chart"]["series"]
    assert [NOW_S - at_ms / 1000 for at_ms, _ in line["points"]] == [35, 25, 15]
    assert len(found["reports"]) == 4
    assert found["heading"] == "Brier distance from the teacher (lower is better)"


def test_windows_are_named_by_what_judges_them_not_by_what_judges_the_fleet() -> None:
    """Two devices have the teacher's answers alone, one has true labels."""
    by_labels = {
        STABLE: {"events": 10, "compared": 10, "agreeing": 9, "labelled": 10, "correct": 9}
    }
    seen = observed(
        made_up.device("d0"), made_up.device("d1"),
        *(report(d, ago_s) for d in ("d1", "d2") for ago_s in (20, 30, 40)),
        report("d0", 20, models=by_labels),
    )  # fmt: skip
    assert seen.view.latest_agreement.called == "agreement with the teacher"
    assert (page := unwrap(device(seen, "d0")))["window_metric"] == "agreement with true labels"
    assert page["heading"] == "Agreement with true labels (higher is better)"
    assert unwrap(device(seen, "d1"))["window_metric"] == "agreement with the teacher"
    both = fleet(seen, FleetQuery(), {})["window_metric"]
    assert both == "agreement with the teacher or true labels"
    found = fleet(seen, FleetQuery(search="d1"), {})["window_metric"]
    assert found == "agreement with the teacher"


def drifting(**histogram: Any) -> DriftReport:
    made = {**DRIFT["histograms"][0], **histogram}
    channels = [*DRIFT["channels"], {**CHANNEL, "channel": "way", "kind": "category"},
                {**CHANNEL, "channel": "predictions", "kind": "answer"}]  # fmt: skip
    changed = {**DRIFT, "histograms": [made], "channels": channels}
    return DriftReport.of_fields(changed)


def test_histograms_stand_beside_the_references_cell_by_cell() -> None:
    [shown] = histograms(drifting(), {})
    assert (shown.distance.psi, shown.reference, shown.device) == (0.9, 200, 30)
    assert [(c.name, round(c.reference * 200), round(c.device * 30)) for c in shown.cells] == [
        ("below -1.0", 10, 0), ("-1.0 to 0.0", 100, 3), ("0.0 to 1.0", 80, 12),
        ("1.0 and more", 9, 15), ("null", 1, 0),
    ]  # fmt: skip
    about = {"ordered": False, "edges": [-0.5, 0.5, 1.5, 2.5], "reference": [0, 5, 0, 4, 0, 0, 0],
             "counts": [0, 1, 0, 2, 1, 0, 0]}  # fmt: skip
    answers, ways = replace(tiny, classes=("slow", "even", "fast")), Category("way", names=["card"])
    for of, kind, names in (
        (names_of(answers), "answer", ["slow", "fast", "no class"]),
        ({}, "answer", ["class 0", "class 2", "no class"]),
        (
            names_of(replace(tiny, channels=(ways, "y"))),
            "category",
            ["unknown", "index 2", "others"],
        ),
    ):
        channel = "way" if kind == "category" else "predictions"
        [shown] = histograms(drifting(**about, channel=channel, kind=kind), of)
        assert [cell.name for cell in shown.cells] == names


def test_cells_of_several_categories_are_named_as_others() -> None:
    about = {"ordered": False, "channel": "way", "kind": "category", "edges": [0.5, 1.5, 2.5, 4.5],
             "reference": [1, 5, 0, 4, 0, 0, 0], "counts": [0, 1, 2, 2, 1, 0, 0]}  # fmt: skip
    [shown] = histograms(drifting(**about), {"way": ("unknown", "card", "cash", "other")})
    assert [cell.name for cell in shown.cells] == ["unknown", "card", "cash", "others", "others"]


@pytest.mark.parametrize(
    "wrong",
    [{"counts": [1]}, {"edges": [0.0], "counts": [1] * 4, "reference": [1] * 4},
     {"channel": "nobody"},
     {"edges": [float(n) for n in range(90)], "counts": [0] * 93, "reference": [0] * 93}],
)  # fmt: skip
def test_a_histogram_that_makes_no_sense_is_left_out(wrong: dict[str, Any]) -> None:
    assert list(histograms(drifting(**wrong), {})) == []


def test_the_gates_decision_is_in_words_with_both_sides_and_cohorts() -> None:
    found = learning(one_fleet())
    [run] = found["runs"]
    assert [each.refused for each in run.rounds] == [{"norm": 1}, {"norm": 1}]
    words = found["gates"][run.run]
    assert words[0].startswith("The candidate passed the gate: promoted: accuracy")
    assert "On held-out devices: accuracy 0.66 → 0.80 on the same 120 segments." in words
    assert "class slow on held-out devices gained least (-0.02 on 40 segments)" in words[-1]
    refused = one_fleet().view.rounds[-1].replace(kind="rejected", metrics={})
    assert gate_words(refused, "accuracy") == ["The gate refused the candidate: promoted."]


def test_the_odds_are_those_of_the_version_on_offer_alone() -> None:
    seen = observed(*made_up.fleet())
    for ago_s, fine in ((60, 1.0), (59, 2.0), (40, 9.0)):  # two of them within fifteen seconds
        evaluate(seen.history, ago_s, 0.5, fine)
    found = releases(seen)
    assert found["words"] == "canary continues: 1 device, 9 windows"
    assert [y for _, y in found["odds"]["series"][1]["points"]] == [1.0, 9.0]
    seen.history.absorb(decision(4, "served", CANARY, 0, stable=CANARY))
    assert (releases(seen)["odds"], releases(seen)["words"]) == (None, "")


def test_what_is_kept_is_bounded_by_the_fleet_and_not_by_time() -> None:
    history = History(FleetView(TASK))
    made = WindowReport.decode(report("d0", 0).value)
    for n in range(1, 25 * SLOTS):
        document = made.replace(window_us=n)
        message = Received(f"{TASK}.windows", 0, n, b"d0", document.encode(), [], n * 10_000)
        history.absorb(message)
    assert history.bytes == ROW.itemsize * WINDOWS
    assert len(history.slots[SLOT_S]) == len(history.slots[DAY_SLOT_S]) == SLOTS
    kept = [w.window_us for w in history.windows("d0")]
    assert kept == list(range(25 * SLOTS - WINDOWS, 25 * SLOTS))


def test_of_dead_letters_the_newest_are_kept() -> None:
    found = quality(observed(*(letter(n) for n in range(3 * LETTERS))), tiny, 3 * LETTERS - 1)
    assert [x.offset for x in found["letters"]] == list(range(3 * LETTERS - 1, 2 * LETTERS - 1, -1))
    assert found["reasons"] == [("bad-arrow", LETTERS)]
    assert found["chosen"].source == "?/0/7"
    assert found["rows"]
    large = observed(*(letter(n, value=bytes(LETTER_BYTES // 4)) for n in range(9)))
    assert sum(len(m.value or b"") for m in large.history.letters) <= LETTER_BYTES
