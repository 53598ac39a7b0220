"""Where the loop is, when it has closed and what it lacks; which devices are silent, and since when
nothing is scored."""

import io
from dataclasses import replace
from typing import Any

from rich.console import Console

from compose.launcher.progress import (
    COMPARED,
    LEAST_S,
    Phase,
    Screen,
    interrupted,
    of_run,
    stalled,
    why_open,
)
from compose.reports.follower import Lag
from compose.reports.problems import Status
from streams.contract.decisions import SIGNED_AGAIN, ZERO, Decision, DesiredState, Pause, Ref, sign
from streams.contract.documents import RoundEvent
from streams.contract.task import Task, Tumbling
from streams.fleet.agreement import Odds
from streams.fleet.view import FleetView
from streams.kafka.reader import Received
from tests.compose.messages import KEY, TASK, received, state, step, window
from tests.rig.made_up.tiny_task import task as tiny

FIRST, NEXT = "1-aaaaaaaa", "2-bbbbbbbb"


def decided(
    seq: int, kind: str, paused: Pause | None = None, reason: str = "a test", **standing: Any
) -> Received:
    given = {n: Ref(model=m, digest="a" * 64, size=100_000) for n, m in standing.items()}
    decision = Decision.of_fields(
        {
            "task": TASK, "task_version": 1, "seq": seq, "prev": ZERO, "kind": kind,
            "model": FIRST if seq == 1 else NEXT,
            "reason": reason, "time_us": seq, "key": "0" * 16,
            "standing": DesiredState(**given, paused=paused),
        }
    )  # fmt: skip
    return received("releases", f"{TASK}/{seq}", sign(decision, KEY))


class Loop:
    """Two devices and the phase of their loop."""

    def __init__(self) -> None:
        self.view = FleetView(TASK)
        self.phase = Phase(2, began_us=1)
        self.see(state("d0"), state("d1"), decided(1, "served", stable=FIRST))

    def see(self, *messages: Received) -> str:
        for message in messages:
            self.view.absorb(message)
        self.phase.look(self.view)
        return self.phase.now

    def answers(
        self, model: str, held_out: dict[str, tuple[int, int]], passes: int = 1
    ) -> list[Received]:
        return [
            state(
                device, active=model, passes=passes,
                accuracy={FIRST: {"held_out": first}, NEXT: {"held_out": 20, "paired": after}},
            )
            for device, (first, after) in held_out.items()
        ]  # fmt: skip


def test_a_run_that_was_refused_leads_back_to_inference() -> None:
    loop = Loop()
    assert loop.phase.now == "inference"
    assert loop.see(step("requested", run="7", time_us=5)) == "federated run"
    assert loop.see(step("rejected", run="7", time_us=6)) == "federated run"
    assert loop.see(step("finished", run="7", time_us=7)) == "inference"
    assert loop.see() == "inference"
    assert loop.see(step("requested", run="8", time_us=9)) == "federated run"
    assert not loop.phase.closed


def test_a_canary_that_was_rolled_back_leads_back_to_inference() -> None:
    loop = Loop()
    loop.see(step("requested", time_us=5))
    loop.see(step("promoted", time_us=6, model=NEXT), step("finished", time_us=7))
    assert loop.phase.now == "federated run"  # its version waits to be offered
    assert loop.see(decided(2, "stage", stable=FIRST, offered=NEXT)) == "canary"
    assert loop.see(decided(3, "rolled-back", stable=FIRST)) == "inference"
    assert loop.see() == "inference"
    assert not loop.phase.closed


def test_it_has_closed_when_every_device_has_answered_the_same_with_the_new_version() -> None:
    loop = Loop()
    loop.see(step("requested", time_us=5))
    loop.see(decided(2, "stage", stable=FIRST, offered=NEXT))
    loop.see(decided(3, "served", stable=NEXT))
    assert loop.phase.now == "canary"
    assert loop.see(*loop.answers(NEXT, {"d0": (10, 3), "d1": (10, 10)})) == "new model"
    assert not loop.phase.closed
    loop.see(*loop.answers(NEXT, {"d0": (10, 10), "d1": (3000, COMPARED - 1)}))
    assert not loop.phase.closed
    loop.see(*loop.answers(NEXT, {"d0": (10, 10), "d1": (3000, COMPARED)}))
    assert loop.phase.closed


def test_a_model_that_is_signed_again_is_neither_in_a_canary_nor_closes_the_loop() -> None:
    loop = Loop()
    again = decided(2, "served", stable=NEXT, reason=f"{SIGNED_AGAIN}{FIRST} was signed by key 0")
    assert loop.see(again) == "inference"
    assert f"all devices serve {NEXT}, the same model under another key" in loop.view.news[-1]
    assert loop.see(*loop.answers(NEXT, {"d0": (10, 10), "d1": (10, 10)})) == "inference"
    assert not loop.phase.closed
    learned = "3-cccccccc"
    loop.see(decided(3, "served", stable=learned))
    last = decided(4, "served", stable="4-dddddddd", reason=f"{SIGNED_AGAIN}{learned} was signed")
    assert loop.see(last) == "new key"


def test_a_version_that_came_by_no_canary_is_not_said_to_be_in_one() -> None:
    loop = Loop()
    by_hand = decided(2, "served", stable=NEXT, reason="manual: it is better")
    assert loop.see(by_hand) == "manual promotion"
    screen = io.StringIO()
    Screen(Console(file=screen, width=200), devices=2).show(loop.view, loop.phase.now)
    line = screen.getvalue().splitlines()[-1]  # after the news
    assert line.startswith("manual promotion  2 of 2 devices")
    assert f"0 serve {NEXT}" in line
    assert loop.see(*loop.answers(NEXT, {"d0": (10, 3), "d1": (10, 10)})) == "new model"
    assert loop.see(decided(3, "stage", stable=NEXT, offered="3-cccccccc")) == "canary"
    loop.see(state("d0", active="3-cccccccc"))
    assert loop.see(decided(4, "rolled-back", stable=NEXT)) == "rollback"


def test_what_repeats_nothing_yet_has_answered_enough_with_as_many_others() -> None:
    """A sensor, or a year of history."""
    loop = Loop()
    loop.see(decided(2, "stage", stable=FIRST, offered=NEXT), decided(3, "served", stable=NEXT))
    loop.see(*loop.answers(NEXT, {"d0": (21, 0), "d1": (20, 0)}, passes=0))
    assert not loop.phase.closed
    loop.see(*loop.answers(NEXT, {"d0": (20, 0), "d1": (20, 0)}, passes=0))
    assert loop.phase.closed


def test_a_run_that_the_end_breaks_off_is_said() -> None:
    view = FleetView("tiny")
    assert interrupted(view) == ""
    view.absorb(step("started", run="7", time_us=5, round=1, rounds=2))
    said = interrupted(view)
    assert said.startswith("drain     run 7 is interrupted in round 1; the next `tidewheel up`")
    view.absorb(step("finished", run="7", time_us=6))
    assert interrupted(view) == ""


def lacks(view: FleetView) -> str:
    return why_open(Status(view, Lag(), 10.0), tiny)


def test_candidates_that_went_back_are_the_reason() -> None:
    loop = Loop()
    loop.see(step("requested", time_us=5), step("promoted", time_us=6), step("finished", time_us=7))
    loop.see(decided(1, "served", stable=FIRST), decided(2, "stage", stable=FIRST, offered=NEXT))
    assert "--timeout" in lacks(loop.view)
    pause = Pause(reason="manual", time_us=3, key="0" * 16)
    loop.see(decided(3, "held", pause, stable=FIRST, offered=NEXT))
    assert "tidewheel models rollout TASK resume" in lacks(loop.view)
    loop.see(decided(4, "rolled-back", stable=FIRST))
    assert lacks(loop.view).endswith(f": {NEXT} was rolled back. a test")
    loop.see(step("requested", run="8", time_us=9))
    assert "--timeout" in lacks(loop.view)


def test_what_the_loop_lacks_is_said() -> None:
    view = FleetView("tiny")
    assert "no federated run has started" in lacks(view)
    assert "Task.retrain = 0.9" in lacks(view)
    event = RoundEvent(run="7", kind="rejected", time_us=1, reason="too little")
    view.rounds.append(event)
    assert lacks(view).endswith(": The gate refused run 7: too little")
    view.rounds.append(event.replace(kind="promoted"))
    assert "--timeout" in lacks(view)


# --- devices and workers --------------------------------------------------------------------------


def test_a_report_from_before_the_start_or_of_another_device_does_not_count() -> None:
    view = FleetView(TASK)
    for device, time_us in {"d0": 100, "d1": 99, "d7": 100}.items():
        view.absorb(state(device, time_us=time_us))
    view.absorb(step("requested", time_us=5))
    mine = of_run(view, ["d0", "d1", "d2"], began_us=100)
    assert list(mine.devices) == ["d0"]
    assert mine.news is view.news


def test_news_come_once_however_many_there_were() -> None:
    view, console = FleetView(TASK), Console(file=io.StringIO(), width=200)
    screen = Screen(console, 2)
    for seq in range(1, 300):
        view.absorb(decided(seq, "served", stable=FIRST))
        screen.show(view, "inference")
    assert isinstance(console.file, io.StringIO)
    assert console.file.getvalue().count("release: all devices serve") == 299


def test_while_a_canary_runs_the_line_has_what_its_windows_show() -> None:
    view, console = FleetView(TASK), Console(file=io.StringIO(), width=200)
    view.absorb(state("d0"))
    view.absorb(window("d0", 0, model=NEXT))
    view.absorb(decided(1, "stage", stable=FIRST, offered=NEXT))
    Screen(console, 1).show(view, "canary")
    view.evidence.note(NEXT, "canary continues: 1 device, 9 windows", Odds(1, 0.5, 2.0))
    Screen(console, 1).show(view, "canary")
    assert isinstance(console.file, io.StringIO)
    before, after = console.file.getvalue().splitlines()[-2:]
    assert before.endswith(f"serve {NEXT}  agreement with the teacher 0.75")
    assert after.endswith(f"serve {NEXT}  canary continues: 1 device, 9 windows")


def test_a_worker_that_does_not_score_is_said_with_since_when() -> None:
    view, recorded = (
        FleetView(TASK),
        replace(tiny, source="recorded", window=Tumbling(60.0), lateness_s=0.0),
    )

    def said(now_s: float, task: Task = recorded, speed: float = 30.0) -> str:
        view.absorb(state("d0", time_us=int(now_s * 1e6), events_per_s=float(now_s > 300)))
        return stalled(view, 0.0, speed, task, now_s)

    view.absorb(window("d0", 0))
    assert said(LEAST_S + 3) == ""
    assert said(LEAST_S + 5) == ""  # nothing is answered
    assert said(305.0).startswith("nothing scored since ")
    assert said(305.0).endswith("(5 min)")
    assert said(305.0, speed=0.1) == ""  # two windows of the replay are not over
    assert said(305.0, speed=0.0)
    live = replace(recorded, source="live", window=Tumbling(150.0))
    assert said(305.0, live) == ""
    view.absorb(replace(window("d0", 300), time_ms=305_000))
    assert said(306.0) == ""
