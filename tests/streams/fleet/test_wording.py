"""What people read: words, two digits, before → after."""

from typing import Any

import pytest

from streams.contract.decisions import Decision, DesiredState
from streams.contract.documents import RoundEvent
from streams.fleet.wording import (
    before_after,
    counted,
    decision_line,
    evaluation,
    round_line,
    run_progress,
    short_runs,
)
from tests.compose.messages import step


@pytest.mark.parametrize(
    ("before", "after", "text"),
    [
        (0.664, 0.782, "0.66 → 0.78"),
        (0.5, None, "0.50 → -"),
        (None, 1.0, "1.00"),
        (None, None, "-"),
    ],
)
def test_a_change_has_two_digits(before: float | None, after: float | None, text: str) -> None:
    assert before_after(before, after) == text


def test_an_evaluation_says_of_what_and_of_how_many() -> None:
    event = RoundEvent.decode(
        step(
            "evaluated", round=2, rounds=2,
            metrics={
                "devices_base": 0.664, "devices": 0.782, "devices_segments": 119.0,
                "devices_p": 0.027, "devices/class walking": 0.1,
                "held_out_base": 0.69, "held_out": 0.93, "held_out_segments": 240.0,
            },
        ).value
    )  # fmt: skip
    assert round_line(event) == (
        "round 2 of 2: accuracy on devices 0.66 → 0.78 (119 segments), "
        "on held-out devices 0.69 → 0.93 (240 segments)"
    )


def test_what_a_run_does_is_said_with_the_short_name_of_the_run() -> None:
    run = "12345678901234567890"
    events = [
        RoundEvent.decode(step(kind, run=run, round=number, rounds=2, **more).value)
        for kind, number, more in (
            ("requested", 0, {}), ("invited", 1, {"metrics": {"invited": 4, "joined": 3}}),
            ("started", 1, {}), ("finished", 2, {}),
        )
    ]  # fmt: skip
    assert [run_progress(events[:n]) for n in range(5)] == [
        None, "requested, starting", "round 1 of 2, 3 of 4 devices joined",
        "round 1 of 2, devices train", None,
    ]  # fmt: skip
    assert round_line(events[0]) == "run 567890 started: "
    assert events[0].run == run
    for other in ("2 devices, 1767225590000-0a1b2c", "key 2379814324154035 was revoked"):
        assert short_runs(other) == other


@pytest.mark.parametrize(
    ("more", "line"),
    [
        (
            {"round": 1, "reason": "9 of 20 asked devices sent an update: the others are asked"},
            "round 1 of 3: 9 of 20 asked devices sent an update: the others are asked",
        ),
        ({"round": 1, "device": "d0", "reason": "no disk"}, "round 1 of 3: d0 failed: no disk"),
        ({"round": 0, "reason": "interrupted"}, "run 567890 failed: interrupted"),
    ],
    ids=["round", "device", "run"],
)
def test_what_failed_is_named(more: dict[str, Any], line: str) -> None:
    message = step("failed", run="12345678901234567890", rounds=3, **more)
    assert round_line(RoundEvent.decode(message.value)) == line


def test_one_is_singular_and_an_evaluation_of_nothing_is_named() -> None:
    assert [counted(n, "run") for n in (0, 1, 2000)] == ["0 runs", "1 run", "2,000 runs"]
    assert evaluation({}, "accuracy") == "nothing to evaluate on"
    nothing = {"held_out": 0.0, "held_out_segments": 0.0}
    assert evaluation(nothing, "mae") == "nothing to evaluate on"


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("served", "all devices serve 2-b"),
        ("stage", "2-b goes to stage 3"),
        ("held", "the canary of 2-b has no result"),
        ("rolled-back", "2-b is rolled back"),
    ],
)
def test_a_decision_is_a_sentence(kind: str, says: str) -> None:
    decision = Decision.of_fields(
        {
            "task": "tiny", "task_version": 1, "seq": 1, "prev": "0" * 64, "kind": kind,
            "model": "2-b", "reason": "why", "time_us": 1, "key": "0" * 16,
            "standing": DesiredState(stage=3),
        }
    )  # fmt: skip
    assert decision_line(decision) == f"release: {says}: why"
    by_hand = decision.replace(reason="manual: why")
    resumed = "2-b is resumed in stage 3" if kind == "stage" else says
    assert decision_line(by_hand) == f"release: {resumed}: manual: why"
