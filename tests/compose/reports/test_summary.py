"""The account at the end: it balances to the event, or it says for whom it does not."""

import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from compose.reports.summary import DeviceLine, Summary, query_line, render, summarize
from streams.fleet.view import FleetView
from streams.kafka.reader import Received
from tests.compose.messages import TASK, release, state, step, window

FIRST, LAST = "1-aaaaaaaa", "2-bbbbbbbb"
GATE = {
    "held_out_base": 0.6, "held_out": 0.9, "held_out_segments": 30.0,
    "devices_base": 0.3, "devices": 0.4, "devices_segments": 20.0,
    "audit_base": 0.5, "audit": 0.75, "audit_segments": 40.0,
}  # fmt: skip


def summary(*messages: Received, server: dict[tuple[str, str], tuple[int, int]]) -> Summary:
    view = FleetView(TASK)
    for message in messages:
        view.absorb(message)
    return summarize(view, server, Path("s/store"), Path("s"))


def score(held_out: int, correct: int) -> dict[str, int]:
    return {"answers": 100, "labelled": 50, "held_out": held_out, "held_out_correct": correct}


def two_versions() -> Summary:
    return summary(
        state("d0", active=LAST, accuracy={FIRST: score(10, 4), LAST: score(10, 9)}),
        state("d1", active=LAST, accuracy={FIRST: score(30, 24), LAST: score(40, 32)}),
        window("d0", 0),
        window("d0", 5, model=LAST, compared=10, agreeing=9),
        release(FIRST, 1),
        release(LAST, 2),
        step("aggregated", samples=3),
        step("admitted", device="d0"),
        step("admitted", device="d1"),
        step("refused", device="d2"),
        step("failed", device="d3"),
        step("rejected", run="6", reason="too little", metrics={**GATE, "audit": 0.4}),
        step("promoted", model=LAST, reason="better", metrics=GATE),
        server={("d0", "e1"): (10, 0), ("d1", "e1"): (10, 0)},
    )


@pytest.mark.parametrize(
    ("device", "server", "balanced"),
    [
        ({}, (10, 0), True),
        ({"delivered": 7, "pending": 3}, (7, 0), True),
        ({"delivered": 7, "dropped": {"full": 2, "corrupt": 1}}, (7, 3), True),
        ({"delivered": 8, "dropped": {"full": 2}}, (9, 1), True),  # a drop that came all the same
        ({}, (9, 0), False),  # delivered and not scored
        ({}, (11, 0), False),  # scored twice
        ({}, (10, 1), False),  # a drop that the device does not know
        ({"delivered": 9}, (9, 0), False),  # produced and nowhere
        ({"pending": 1}, (10, 0), False),  # more than was produced
        ({"delivered": 7, "dropped": {"full": 3}}, (7, 0), False),  # a drop not declared
    ],
)
def test_an_account_that_does_not_balance_is_found(
    device: dict[str, Any], server: tuple[int, int], balanced: bool
) -> None:
    found = summary(state("d0", **device), server={("d0", "e1"): server})
    assert found.devices[0].balanced is balanced
    assert found.balanced is balanced
    shown = shown_by(found)
    assert ("the event account of d0 does not balance" in shown) is not balanced
    assert ("DOES NOT BALANCE" in shown) is not balanced


@pytest.mark.parametrize(
    ("before", "balanced", "lost"),
    [
        ((7, 0), True, 3),  # three waited in a spool that was lost
        ((9, 0), True, 1),  # two arrived that it had not told of
        ((12, 0), True, 0),  # it went on after its last word
        ((6, 0), False, 4),  # delivered, and not scored
    ],
)
def test_every_epoch_must_balance_not_the_last_one_only(
    before: tuple[int, int], balanced: bool, lost: int
) -> None:
    messages = [state("d0", epoch="e1", delivered=7, pending=3), state("d0", epoch="e2")]
    found = summary(*messages, server={("d0", "e1"): before, ("d0", "e2"): (10, 0)})
    assert [(line.epoch, line.balanced) for line in found.devices] == [
        ("e1", balanced),
        ("e2", True),
    ]
    assert (found.balanced, found.devices[0].lost) == (balanced, lost)
    assert found.left == ("" if balanced else "an event account that is open")
    warning = f"d0 lost its spool with {lost} of 10 events"
    assert found.warnings == ([warning] if lost else [])
    assert "d0, earlier" in shown_by(found)
    assert (warning in shown_by(found)) == bool(lost)


def test_refused_runs_are_shown_too_and_figures_are_of_what_decided_nothing() -> None:
    found = two_versions()
    assert [(run.run, run.kind) for run in found.runs] == [("6", "rejected"), ("7", "promoted")]
    shown = shown_by(found)
    audit = "40 audit segments (not used for any decision)"
    refused = f"6 refused by the gate: too little; 0.50 → 0.40 on {audit}"
    assert refused in " ".join(shown.split())
    assert f"7 promoted {LAST}: better" in shown
    assert f"0.50 → 0.75 on {audit}" in shown


def test_a_version_that_some_devices_try_is_not_the_one_that_is_served() -> None:
    found = two_versions().replace(stable_model=FIRST)
    shown = shown_by(found)
    assert f"{FIRST}; {LAST} on some devices only" in shown


def test_totals_and_accuracies_weigh_by_segments_of_the_devices_that_have_both() -> None:
    found = two_versions()
    assert (found.total("produced"), found.total("scored")) == (20, 20)
    assert [found.fleet_before, found.fleet_after] == [
        pytest.approx((4 + 24) / 40),
        pytest.approx((9 + 32) / 50),
    ]
    agreement = found.agreement_before, found.agreement_after
    assert agreement == (pytest.approx(0.75), pytest.approx(0.9))
    assert (found.first_model, found.last_model) == (FIRST, LAST)
    assert (found.held_out_before, found.held_out_after) == (0.5, 0.75)
    counts = (found.rounds, found.admitted, found.refused, found.failed, found.windows)
    assert counts == (1, 2, 1, 1, 2)
    late = state("d1", active=LAST, accuracy={FIRST: score(30, 24)})
    assert summary(
        state("d0", active=LAST, accuracy={FIRST: score(10, 4), LAST: score(10, 9)}),
        late,
        server={},
    ).fleet_before == pytest.approx(0.4)
    only = summary(state("d0", accuracy={FIRST: score(10, 4)}), window("d0", 0), server={})
    assert (only.fleet_after, only.agreement_after, only.held_out_after) == (None,) * 3


def test_before_and_after_are_of_the_same_segments_where_both_have_answered() -> None:
    after = {**score(30, 24), "paired": 8, "paired_correct": 6, "paired_base_correct": 2}
    messages = [state("d0", active=LAST, accuracy={FIRST: score(10, 4), LAST: after})]
    found = summary(*messages, release(FIRST), server={}).devices[0]
    assert (found.before, found.before_of) == (pytest.approx(2 / 8), 8)
    assert (found.after, found.after_of) == (pytest.approx(6 / 8), 8)


def test_what_a_device_keeps_is_shown_with_its_reason() -> None:
    kept = {"origin": "previous", "model": f"{LAST}.k{FIRST}", "base": LAST, "segments": 51,
            "loss": 0.02, "base_loss": 0.39, "answers": True,
            "made_us": 1, "since_us": 1}  # fmt: skip
    found = summary(state("d0", active=LAST, challenger=kept), state("d1", active=LAST), server={})
    assert [line.instead.partition(":")[0] for line in found.devices] == [f"keeps {FIRST}", ""]
    text = " ".join(shown_by(found).split())
    assert f"{LAST}, another answers" in text
    assert f"d0 keeps {FIRST}: error 0.02 against 0.39 on 51 segments" in text


def test_numbers_are_shown_by_their_error() -> None:
    """Over all devices the root of the mean of all squares."""

    def errors(of: int, error: float) -> dict[str, Any]:
        return {"metric": "rmse", "held_out": of, "held_out_correct": 1, "held_out_error": error}

    found = summary(
        state("d0", active=LAST, accuracy={FIRST: errors(10, 9000.0), LAST: errors(10, 4000.0)}),
        state("d1", active=LAST, accuracy={FIRST: errors(30, 27.0), LAST: errors(30, 12.0)}),
        release(FIRST), server={},
    )  # fmt: skip
    assert [line.before for line in found.devices] == [30.0, pytest.approx(0.9487, abs=1e-4)]
    assert found.fleet_before == pytest.approx((9027 / 40) ** 0.5)
    shown = shown_by(found)
    assert "30 (10)" in shown
    assert "before, after: RMSE of the device's answers" in shown.replace("\n", " ")


def test_the_json_is_complete() -> None:
    parsed = json.loads(two_versions().encode())
    assert set(Summary.__struct_fields__) <= set(parsed)
    assert DeviceLine.of_fields(parsed["devices"][0]) == two_versions().devices[0]
    assert parsed["balanced"] is True
    assert parsed["fleet_before"] == pytest.approx(0.7)
    assert "--state s" in parsed["sql"]
    assert "--state" not in query_line(Path(".tidewheel"))


def shown_by(found: Summary) -> str:
    console = Console(file=io.StringIO(), width=200)
    render(found, console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_a_run_without_a_scored_event_is_no_success() -> None:
    found = summary(state("d0", produced=0, delivered=0), server={})
    assert found.balanced
    assert found.grave == ["no event was scored"]
    assert "warning   no event was scored" in shown_by(found)


@pytest.mark.parametrize(("dropped", "grave"), [(1, False), (2, True)])
def test_more_than_one_event_in_a_hundred_dropped_is_no_success(dropped: int, grave: bool) -> None:
    device = state(
        "d0", produced=100, delivered=100 - dropped, dropped={"spool-full": dropped - 1, "old": 1}
    )
    found = summary(device, server={("d0", "e1"): (100 - dropped, dropped)})
    assert found.balanced
    assert bool(found.grave) is grave
    if grave:
        assert found.grave == ["2 of 100 events were dropped (2%): old 1, spool-full 1"]


def test_what_went_wrong_without_an_error_is_a_warning() -> None:
    found = summary(
        state("d0", skipped={"gap": 2}), state("d1", skipped={"gap": 1, "not-finite": 4}),
        server={("d0", "e1"): (10, 0), ("d1", "e1"): (10, 0)},
    )  # fmt: skip
    assert (found.grave, found.warnings) == ([], ["skipped on devices: gap 3, not-finite 4"])
    unheard = two_versions().replace(silent=["d7"])
    assert unheard.warnings == ["d7 reported nothing since the start: see logs/edge-d7.log"]
    many = unheard.replace(silent=[f"d{i}" for i in range(100)])
    assert many.unheard.startswith("d0, d1, d2 and 97 more reported nothing")
    assert two_versions().warnings == []


def test_a_drain_says_what_is_left() -> None:
    open_ = state("d0", produced=20, delivered=15, pending=5)
    assert summary(open_, server={("d0", "e1"): (12, 0)}).left == (
        "5 events pending on devices, 3 events not scored yet"
    )
    assert two_versions().left == ""
