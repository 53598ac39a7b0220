"""The account at the end: it balances to the event, or it says for whom it does not."""

import io
import json
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from compose.reports.follower import Lag
from compose.reports.problems import Status, problems
from compose.reports.status import report_of
from compose.reports.summary import DeviceLine, Summary, render
from streams.contract.task.metrics import window_errors, window_metric
from streams.contract.window_metrics import ERRORS
from streams.fleet.view import FleetView
from streams.kafka.reader import Received
from streams.worker.store.delta_store import DeltaStore
from streams.worker.store.tables import SCORES
from streams.worker.windows.rows import ScoredWindow, score_rows
from streams.worker.windows.tumbling import Message, Window, split
from tests.compose.cli.test_cli import tidewheel
from tests.compose.messages import TASK, release, state, step, window
from tests.rig.asked import asked
from tests.rig.made_up.tiny_task import task as tiny
from tests.rig.processes.workers import events

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
    return Summary(Status(view, Lag(), 10.0), server, Path("s"))


def said(found: Summary) -> list[str]:
    """What is wrong, without what is advised."""
    return [problem.text for problem in found.problems]


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
        step("failed", round=1, reason="1 of 4 asked devices sent an update"),
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
        ({"delivered": 7, "pending": 3}, (9, 0), True),  # two acknowledgements were lost
        ({"delivered": 7, "pending": 3}, (11, 0), False),  # more than waits
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
    assert ("The event account of d0 does not balance" in shown) is not balanced
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
    open_ = [] if balanced else ["The event account of d0 does not balance"]
    assert said(found) == open_ + ([warning] if lost else [])
    assert "d0, earlier" in shown_by(found)
    assert (warning in shown_by(found)) == bool(lost)


def test_refused_runs_are_shown_too_and_figures_are_of_what_decided_nothing() -> None:
    found = two_versions()
    assert [(run.run, run.kind) for run in found.runs] == [("6", "rejected"), ("7", "promoted")]
    shown = shown_by(found)
    audit = "40 audit segments (not used for any decision)"
    where = "\n  accuracy on held-out devices"
    assert f"run 6 refused by the gate: too little{where} 0.50 → 0.40 on {audit}" in shown
    assert f"run 7 promoted {LAST}: better{where} 0.50 → 0.75 on {audit}" in shown


def test_a_version_that_some_devices_try_is_not_the_one_that_is_served() -> None:
    devices = [state("d0", active=FIRST), state("d1", active=LAST)]
    shown = shown_by(summary(*devices, release(FIRST), server={}))
    assert f"{FIRST} is released" in shown
    rows = [row.split()[:2] for row in shown.splitlines() if row.startswith((" d0 ", " d1 "))]
    assert rows == [["d0", FIRST], ["d1", LAST]]


def test_totals_and_accuracies_weigh_by_segments_of_the_devices_that_have_both() -> None:
    found = two_versions()
    assert (found.total("produced"), found.total("scored")) == (20, 20)
    assert found.fleet == (pytest.approx((4 + 24) / 40), pytest.approx((9 + 32) / 50))
    shown = shown_by(found)
    for line in (
        f"{LAST} is released; 2 windows closed",
        f"{FIRST}: agreement with the teacher 0.75 in 8 events",
        f"{LAST}: agreement with the teacher 0.90 in 10 events",
        "1 round: 2 updates admitted, 1 refused, 1 failed; 1 run promoted, 1 rejected",
        f"by {FIRST} and by {LAST}",
    ):
        assert line in shown
    late = state("d1", active=LAST, accuracy={FIRST: score(30, 24)})
    assert summary(
        state("d0", active=LAST, accuracy={FIRST: score(10, 4), LAST: score(10, 9)}),
        late,
        server={},
    ).fleet[0] == pytest.approx(0.4)
    only = summary(state("d0", accuracy={FIRST: score(10, 4)}), window("d0", 0), server={})
    assert only.fleet[1] is None


def test_before_and_after_are_of_the_same_segments_where_both_have_answered() -> None:
    after = {**score(30, 24), "paired": 8, "paired_correct": 6, "paired_base_correct": 2}
    messages = [state("d0", active=LAST, accuracy={FIRST: score(10, 4), LAST: after})]
    found = summary(*messages, release(FIRST), server={}).devices[0]
    assert found.figures(FIRST, LAST) == ((pytest.approx(2 / 8), 8), (pytest.approx(6 / 8), 8))
    assert found.replace(ended=True).figures(FIRST, LAST) == ((None, 0), (None, 0))


def test_figures_that_are_not_of_the_same_segments_are_said_not_to_be() -> None:
    """d1 has answered others by the last version, d2 none at all."""
    both = {**score(30, 24), "paired": 8, "paired_correct": 6, "paired_base_correct": 2}
    paired = state("d0", active=LAST, accuracy={FIRST: score(10, 4), LAST: both})
    messages = [
        state("d1", active=LAST, accuracy={FIRST: score(11, 5), LAST: score(118, 75)}),
        state("d2", active=LAST, accuracy={FIRST: score(9, 3)}),
        release(FIRST),
    ]
    shown = shown_by(summary(paired, *messages, server={}))
    legend = "on the same of its held-out segments where both have answered them (how many)"
    assert f"{legend}; not on the same ones: d1\n" in shown
    assert f"{legend}\n" in shown_by(summary(paired, release(FIRST), server={}))


def test_numbers_are_shown_by_their_error() -> None:
    """Over all devices the root of the mean of all squares."""

    def errors(of: int, error: float) -> dict[str, Any]:
        return {"metric": "rmse", "held_out": of, "held_out_correct": 1, "held_out_error": error}

    found = summary(
        state("d0", active=LAST, accuracy={FIRST: errors(10, 9000.0), LAST: errors(10, 4000.0)}),
        state("d1", active=LAST, accuracy={FIRST: errors(30, 27.0), LAST: errors(30, 12.0)}),
        release(FIRST), server={},
    )  # fmt: skip
    before = [line.figures(FIRST, LAST)[0] for line in found.devices]
    assert before == [(30.0, 10), (pytest.approx(0.9487, abs=1e-4), 30)]
    assert found.fleet[0] == pytest.approx((9027 / 40) ** 0.5)
    shown = shown_by(found)
    assert "30 (10)" in shown
    assert "before, after: RMSE of the device's answers" in shown.replace("\n", " ")


def test_the_json_has_what_status_has_and_more_of_each_device() -> None:
    found = two_versions()
    parsed = json.loads(found.encode())
    status = json.loads(report_of(found.status).encode())
    assert {**parsed, "devices": status["devices"]} == {**parsed, **status}
    assert DeviceLine.of_fields(parsed["devices"][0]) == found.devices[0]
    assert parsed["balanced"] is True
    assert parsed["fleet"][0] == pytest.approx(0.7)
    assert parsed["decisions"] == [f"served {FIRST}", f"served {LAST}"]
    assert [run["kind"] for run in parsed["runs"]] == ["rejected", "promoted"]
    assert "--state s" in parsed["sql"]
    assert "--state" not in replace(found, state=Path(".tidewheel")).sql


BY_TARGET: dict[str, Any] = {"classes": (), "targets": ("flow", "heat"), "tolerance": 0.5}


@pytest.mark.parametrize("taught", [True, False])
@pytest.mark.parametrize(
    ("metric", "of"),
    [
        ("accuracy", {}), ("balanced_accuracy", {}), ("auc", {}),
        ("within", BY_TARGET), ("mae", BY_TARGET), ("rmse", BY_TARGET),
    ],
)  # fmt: skip
def test_the_printed_command_looks_at_each_metric_of_a_store(
    tmp_path: Path, metric: str, of: dict[str, Any], taught: bool
) -> None:
    task = replace(tiny, metric=metric, **of)
    pieces = tuple(split(task, Message(0, None), events("d0", 0, [1, 2, 3, 4], task=task)))
    teacher = np.random.default_rng(0).normal(size=(4, task.outputs)).astype(np.float32)
    scored = ScoredWindow(Window(0, "d0", 0, pieces), teacher if taught else None, 0, 1)
    DeltaStore(tmp_path / "s" / "store").commit(SCORES, score_rows(task, "t", [scored]), {0: 1})
    found = summary(window("d0", 0, metric=window_metric(task)), server={})
    rows = tidewheel(*shlex.split(found.sql)[1:], "--json", folder=tmp_path)
    assert rows.returncode == 0, rows.stderr
    row = json.loads(rows.stdout)
    assert int(row["events"]) == 4

    name = window_metric(task)
    if name not in ERRORS:
        assert (row["agreement"] is not None) == taught  # a share needs a teacher
        return
    known = asked(tmp_path / "s" / "store", "select outputs, label from scores order by seq")
    outputs = np.array([row[0] for row in known])
    chosen = [taught or label is not None for _, label in known]
    labels = np.array([label for _, label in known if label is not None])
    away = window_errors(task, outputs[chosen], teacher if taught else labels)
    wanted = np.sqrt(away.mean()) if name == "rmse" else away.mean()
    assert row[name] == pytest.approx(wanted, abs=6e-4)


def shown_by(found: Summary, width: int = 200) -> str:
    console = Console(file=io.StringIO(), width=width)
    render(found, console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_a_run_without_a_scored_event_is_no_success() -> None:
    found = summary(state("d0", produced=0, delivered=0), server={})
    assert found.balanced
    assert found.means_little
    assert "critical: No event was scored" in shown_by(found)


@pytest.mark.parametrize(("dropped", "grave"), [(1, False), (2, True)])
def test_more_than_one_event_in_a_hundred_dropped_is_no_success(dropped: int, grave: bool) -> None:
    device = state(
        "d0", produced=100, delivered=100 - dropped, dropped={"spool-full": dropped - 1, "old": 1}
    )
    found = summary(device, server={("d0", "e1"): (100 - dropped, dropped)})
    assert found.balanced
    assert found.means_little is grave
    [problem] = found.problems
    assert problem.severity == ("warning" if grave else "note")
    if grave:
        assert problem.text == "Devices have dropped 2 of 100 events: 1 spool-full, 1 old"


def test_what_went_wrong_without_an_error_is_a_warning() -> None:
    found = summary(
        state("d0", skipped={"gap": 2}), state("d1", skipped={"gap": 1, "not-finite": 4}),
        server={("d0", "e1"): (10, 0), ("d1", "e1"): (10, 0)},
    )  # fmt: skip
    assert (found.means_little, said(found)) == (False, ["skipped on devices: 4 not-finite, 3 gap"])
    unheard = replace(two_versions(), silent=["d7"])
    [problem] = unheard.problems
    assert problem.line.endswith("d7 reported nothing since the start. See s/logs/edge-d7.log")
    many = replace(unheard, silent=[f"d{i}" for i in range(100)])
    assert said(many) == ["d0, d1, d2 and 97 more reported nothing since the start"]
    assert two_versions().problems == []


def test_what_is_wrong_with_the_fleet_is_what_status_says() -> None:
    found = summary(state("d0", error="no disk"), step("rejected", run="8", reason="too little"),
                    server={("d0", "e1"): (10, 0)})  # fmt: skip
    assert said(found) == ["d0 is in error", "The gate refused run 8: too little"]
    assert found.problems == problems(found.status)


def test_what_is_lost_with_an_embedded_broker_is_said() -> None:
    found = summary(state("d0"), server={("d0", "e1"): (3, 0)})
    (problem,) = replace(found, broker="embedded", words="loading the teacher").problems
    lost = problem.line
    assert lost.startswith("critical: The worker had not scored 7 events")
    assert "they are lost" in lost
    assert lost.endswith("worker: loading the teacher")
    (waiting,) = replace(found, broker="kafka").problems
    assert waiting.line.startswith("warning: The worker had not scored 7 events")
    assert "the next `tidewheel up`" in waiting.line
    more = summary(state("d0"), server={("d0", "e1"): (11, 0)})
    assert said(replace(more, broker="kafka")) == ["The event account of d0 does not balance"]
    whole = summary(state("d0"), server={("d0", "e1"): (10, 0)})
    assert replace(whole, broker="embedded").problems == []


def test_a_drain_says_what_is_left() -> None:
    open_ = state("d0", produced=20, delivered=15, pending=5)
    assert summary(open_, server={("d0", "e1"): (12, 0)}).left == (
        "5 events pending on devices, 3 events not scored yet"
    )
    assert two_versions().left == ""
