"""What the demo prints at its end."""

from rich.console import Console

from examples.drift.report import DemoResult, show


def shown(outcome: DemoResult) -> str:
    terminal = Console(width=100, color_system=None)
    with terminal.capture() as capture:
        show(outcome, terminal)
    return capture.get()


def test_steps_that_were_not_reached_have_no_figures() -> None:
    lines = shown(DemoResult(canary="person-19", missing=["not in time: an adapter"])).splitlines()
    assert lines[-3:] == [
        "bad for person-19 alone: not reached",
        "a run of the fleet alone: not reached",
        "MISSING: not in time: an adapter",
    ]


def test_a_bad_candidate_that_was_taken_back_is_told_with_its_figures() -> None:
    outcome = DemoResult(
        canary="person-19", canary_before=0.9, canary_bad=0.4, others_before=0.8, others_bad=0.85,
        bad_windows=2, bad_windows_in_all=3, bad_seconds=4.25, bad_devices=["person-19"],
    )  # fmt: skip
    assert (
        "bad for person-19 alone: right on 0.900 of its segments, then on 0.400; on the others' "
        "0.800, then 0.850; taken back after 2 windows, and gone 4.2 s after the first one from "
        "person-19, all that had it; 3 windows have answers of it\n"
    ) in shown(outcome)
