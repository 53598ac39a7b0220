"""Runs and what is made of them: which causes they leave, and how they wait for the SuperLink."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from federation.controller.flwr_cli import ConfigValue, Flwr, Submission
from federation.controller.run_tracker import SUPERLINK_S, RunTracker
from federation.rounds.event_log import EventLog
from streams.contract.decisions import ZERO, Decision, Kind
from streams.contract.documents import RoundEvent, RoundKind
from streams.runtime.failpoints import unarmed
from tests.federation.controller.test_triggers import LOW, NOW, RULES, both, evidence, reason


def decision(kind: Kind, reason: str) -> Decision:
    known = {"task": "t", "task_version": 1, "seq": 1, "prev": ZERO, "key": "0" * 16}
    about = {"kind": kind, "reason": reason, "time_us": 1, "standing": {}}
    return Decision.of_fields(known | about)


@dataclass
class Clock:
    now_s: float = NOW
    awake: bool = True  # the SuperLink

    def __call__(self) -> float:
        return self.now_s


@dataclass(frozen=True)
class Flower(Submission):
    started: list[float] = field(default_factory=list)
    clock: Clock = field(default_factory=Clock)

    def start(self, config: Mapping[str, ConfigValue], folder: Path) -> str:
        self.started.append(self.clock())
        return str(len(self.started))


class Dead(Submission):
    """Each run fails."""

    def start(self, config: Mapping[str, ConfigValue], folder: Path) -> str:
        return str(int(str(config["resume"])) + 1)

    def runs(self) -> dict[str, str]:
        return {str(run): "finished:failed" for run in (7, 8, 9)}


@dataclass
class Topic:
    """What is put on `rounds`."""

    events: list[RoundEvent] = field(default_factory=list)

    def put(self, _topic: str, _key: bytes, value: bytes) -> None:
        self.events.append(RoundEvent.decode(value))


def tracker(folder: Path, clock: Clock | None = None) -> RunTracker:
    clock = clock or Clock()
    flower = Flower(Flwr("flwr", "local", {}), folder, lambda: clock.awake, clock=clock)
    return RunTracker("t", folder, flower, {}, RULES, clock, unarmed, clock)


def step(kind: RoundKind, reason: str = "") -> RoundEvent:
    return RoundEvent(run="7", kind=kind, time_us=round(NOW * 1e6), reason=reason)


DIED = "the run ended without a result (finished:failed)"


@pytest.mark.parametrize(
    ("what", "counts", "refused"),
    [
        (decision("rolled-back", "canary failed: 3 devices, 22 windows"), True, 2),
        (decision("rolled-back", "manual: I know better"), False, 1),
        (decision("stage", "canary passed"), False, 1),
        (decision("served", "canary passed"), False, 0),
        (step("rejected", "on devices 0.80 → 0.80 gains less than 0.010"), True, 1),
        (step("finished", "1 of 3 devices answered in time"), True, 1),
        (step("finished", DIED), True, 1),
        (step("finished", f"{DIED}; resumed by run 8"), False, 1),
        (step("finished", "stopped by a user (finished:stopped)"), False, 1),
        (step("finished", "promoted"), False, 1),
    ],
)
def test_a_run_of_which_nothing_is_served_leaves_its_cause(
    tmp_path: Path, what: Decision | RoundEvent, counts: bool, refused: int
) -> None:
    runs = tracker(tmp_path)
    runs.take_decision(decision("rolled-back", "canary failed: 2 devices, 9 windows"))
    runs.evidence = evidence(*LOW)
    runs.take(step("requested"))
    if isinstance(what, Decision):
        runs.take_decision(what)
    else:
        runs.take(what)
    for n in range(2, 6):
        for report in both(n, 40):
            runs.evidence.add_window(report)
    assert (reason(runs.evidence) is not None) is counts
    assert runs.so_far.refused == refused


def test_why_a_run_died_is_said_where_people_look(tmp_path: Path) -> None:
    """It could not say so itself, as without a broker: its journal does, or Flower's log. What
    would come again ends it."""
    clock, topic = Clock(), Topic()
    flower = Dead(Flwr("flwr", "local", {}), tmp_path)
    runs = RunTracker("t", tmp_path, flower, {}, RULES, clock, unarmed, clock)
    runs.take(step("requested"))
    journal = EventLog("t", "7", tmp_path / "runs" / "7" / "rounds.jsonl", None)
    journal.publish("failed", reason="the run was interrupted: no Kafka broker answers at h:1")
    runs.check(topic, at_once=True)  # type: ignore[arg-type]
    runs.check(topic, at_once=True)  # type: ignore[arg-type]
    journal = EventLog("t", "9", tmp_path / "runs" / "9" / "rounds.jsonl", None)
    journal.publish("finished", reason="failed: the registry is of version 1, not 2")
    runs.check(topic, at_once=True)  # type: ignore[arg-type]
    assert [event.reason for event in topic.events if event.kind == "finished"] == [
        f"{DIED}: the run was interrupted: no Kafka broker answers at h:1; resumed by run 8",
        f"{DIED}: see `flwr log RUN`; resumed by run 9",
        f"{DIED}: the registry is of version 1, not 2",
    ]
    assert not runs.so_far.running


class Waiting:
    """A controller whose SuperLink sleeps: `at` lets it look once, at a second, after windows with
    so many of 50 answers right."""

    def __init__(self, folder: Path) -> None:
        self.clock, self.topic, self.number = Clock(awake=False), Topic(), 2
        self.wanted = folder / "controller" / "superlink-wanted"
        self.runs = tracker(folder, self.clock)
        self.runs.evidence = evidence(*LOW)

    def at(self, second: float, right: int | None = None) -> bool:
        """Whether the SuperLink is wanted."""
        self.clock.now_s = NOW + second
        if right is not None:
            self.number += 2
            for report in (*both(self.number, right), *both(self.number + 1, right)):
                self.runs.evidence.add_window(report)
        self.runs.start_if_due(self.topic)  # type: ignore[arg-type]
        self.runs.want_superlink()
        return self.wanted.exists()

    @property
    def requested(self) -> list[RoundEvent]:
        return [event for event in self.topic.events if event.kind == "requested"]


def test_a_cause_stays_while_the_superlink_starts(tmp_path: Path) -> None:
    waiting = Waiting(tmp_path)
    assert waiting.at(0)
    for n in range(1, 40):
        assert waiting.at(n / 10, right=50)  # now the metric is fine
    waiting.clock.awake = True
    waiting.at(5)
    (run,) = waiting.requested
    assert "is 0.800 in 200 events" in run.reason
    waiting.at(200)
    assert len(waiting.requested) == 1


def test_another_version_needs_no_run_that_waited_for_the_superlink(tmp_path: Path) -> None:
    waiting = Waiting(tmp_path)
    assert waiting.at(0)
    waiting.runs.take_decision(decision("served", "canary passed"))
    waiting.runs.evidence.serve("2-b")
    waiting.clock.awake = True
    assert not waiting.at(1)
    assert not waiting.requested


def test_how_long_the_superlink_may_start_counts_from_when_it_is_wanted(tmp_path: Path) -> None:
    waiting = Waiting(tmp_path)
    assert waiting.at(0)
    waiting.runs.take_decision(decision("served", "canary passed"))
    waiting.runs.evidence.serve("2-b")
    assert not waiting.at(10)
    waiting.runs.evidence.serve("1-a")
    assert waiting.at(1000, right=40)
    assert not waiting.requested  # it has only just been asked for
    assert waiting.at(1000 + SUPERLINK_S + 1)
    assert len(waiting.requested) == 1
