"""When a round is over, who is at work meanwhile, and what becomes of late answers."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pytest

from federation.admission import Tensors, Update
from federation.rounds.collector import LOOK_S, POLL_S, TTL_SPARE_S, Collector, Policy, Reply
from streams.contract.work import Op, Work
from tests.rig.made_up import documents

WEIGHTS: Tensors = {"w": np.zeros(1, np.float32)}
FULL_S = 60.0


def work(number: int) -> Work:
    return documents.work(round=number)


def update(node: int) -> Update:
    return Update(f"d{node}", "tiny", 1, "1-a", 10, WEIGHTS)


@dataclass
class TimedFleet:
    """Each node answers so many seconds after it was sent work; None never. Time is `now`."""

    takes_s: dict[int, float | None]
    failing: set[int] = field(default_factory=set)
    now: float = 0.0
    sent: list[tuple[int, int]] = field(default_factory=list)  # node, round
    _due: list[tuple[float, Reply]] = field(default_factory=list)

    def nodes(self) -> list[int]:
        return sorted(self.takes_s)

    def send(
        self, op: Op, nodes: Sequence[int], work: Work, weights: Tensors, ttl_s: float
    ) -> None:
        for node in nodes:
            self.sent.append((node, work.round))
            takes = self.takes_s[node]
            if takes is not None and takes <= ttl_s:
                found = None if node in self.failing else update(node)
                error = "busy" if node in self.failing else None
                answer = Reply(node, f"d{node}", found, None, error, work.round, op)
                self._due.append((self.now + takes, answer))

    def receive(self) -> list[Reply]:
        come = [answer for at, answer in self._due if at <= self.now]
        self._due = [(at, answer) for at, answer in self._due if at > self.now]
        return come

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def collector(self, policy: Policy | None = None) -> Collector:
        return Collector(self, policy or Policy(), lambda: self.now, self.sleep)


def answered(answers: Sequence[Reply]) -> list[tuple[int, int]]:
    return sorted((a.node, a.round) for a in answers if a.update is not None)


def failed(answers: Sequence[Reply]) -> list[tuple[int, int]]:
    return sorted((a.node, a.round) for a in answers if a.error is not None)


def test_a_round_is_over_when_all_have_answered() -> None:
    fleet = TimedFleet({1: 1.0, 2: 3.0})
    answers = fleet.collector().train([1, 2], work(1), WEIGHTS, FULL_S)
    assert answered(answers) == [(1, 1), (2, 1)]
    assert fleet.now == pytest.approx(3.0, abs=POLL_S)


def test_a_node_that_vanished_costs_a_few_times_what_the_others_took() -> None:
    fleet = TimedFleet({1: 1.0, 2: 4.0, 3: None})
    answers = fleet.collector().train([1, 2, 3], work(1), WEIGHTS, FULL_S)
    assert answered(answers) == [(1, 1), (2, 1)]
    assert failed(answers) == [(3, 1)]
    assert fleet.now == pytest.approx(12.0, abs=2 * POLL_S)


def test_whoever_is_still_at_work_gets_none_until_its_time_is_over_and_is_told_once() -> None:
    fleet = TimedFleet({1: 1.0, 2: 1.0, 3: None})
    collector = fleet.collector()
    collector.train([1, 2, 3], work(1), WEIGHTS, FULL_S)
    assert collector.free([1, 2, 3]) == [1, 2]
    fleet.now = FULL_S + TTL_SPARE_S
    assert collector.free([1, 2, 3]) == [1, 2, 3]
    assert failed(collector.train([1, 2], work(2), WEIGHTS, FULL_S)) == []


def test_a_late_answer_counts_in_the_round_that_goes_on_then() -> None:
    fleet = TimedFleet({1: 1.0, 2: 1.0, 3: 14.0})
    collector = fleet.collector()
    first = collector.train([1, 2, 3], work(1), WEIGHTS, FULL_S)
    assert failed(first) == [(3, 1)]
    fleet.takes_s = {1: 8.0, 2: 8.0, 3: 14.0}
    second = collector.train(collector.free([1, 2, 3]), work(2), WEIGHTS, FULL_S)
    assert answered(second) == [(1, 2), (2, 2), (3, 1)]
    assert collector.free([1, 2, 3]) == [1, 2, 3]


def test_of_more_than_wanted_the_first_are_taken() -> None:
    fleet = TimedFleet({1: 1.0, 2: 2.0, 3: 3.0, 4: 50.0})
    answers = fleet.collector(Policy(asked=4, target=3)).train([1, 2, 3, 4], work(1), WEIGHTS, 60.0)
    assert answered(answers) == [(1, 1), (2, 1), (3, 1)]
    assert failed(answers) == []  # what it sends later is still worth something
    assert fleet.now == pytest.approx(3.0, abs=POLL_S)


def test_a_buffer_takes_what_comes_first_and_leaves_the_others_at_work() -> None:
    fleet = TimedFleet({1: 2.0, 2: 2.0, 3: 9.0, 4: 9.0})
    collector = fleet.collector(Policy(True, target=2, max_staleness=4))
    found = []
    for number in range(1, 7):
        free = collector.free(fleet.nodes())
        answers = collector.train(free, work(number), WEIGHTS, FULL_S, online=4)
        found.append(answered(answers))
    assert found[:4] == [[(1, n), (2, n)] for n in (1, 2, 3, 4)]
    assert [(3, 1), (4, 1)] in [[pair for pair in pairs if pair[0] > 2] for pairs in found]
    assert fleet.now < 14.0  # a synchronous round would have taken 9 s each time


def test_a_buffer_that_nobody_fills_ends_with_the_deadline_or_the_last_answer() -> None:
    fleet = TimedFleet({1: 1.0, 2: 2.0, 3: None, 4: None}, failing={2})
    collector = fleet.collector(Policy(True, target=2))
    answers = collector.train([1, 2, 3, 4], work(1), WEIGHTS, 30.0, online=4)
    assert answered(answers) == [(1, 1)]
    assert fleet.now == pytest.approx(30.0, abs=2 * POLL_S)
    fleet = TimedFleet({1: 1.0, 2: 2.0}, failing={2})
    fleet.collector(Policy(True, target=2)).train([1, 2], work(1), WEIGHTS, 30.0, online=4)
    assert fleet.now == pytest.approx(2.0, abs=2 * POLL_S)


@pytest.mark.parametrize(
    ("policy", "asked", "online", "least", "wanted"),
    [
        (Policy(), 5, 9, 1, 5),
        (Policy(asked=10, target=8), 10, 20, 1, 8),
        (Policy(asked=10, target=3), 10, 20, 5, 5),
        (Policy(True, target=10), 6, 6, 1, 3),
        (Policy(True, target=10), 40, 40, 1, 10),
        (Policy(True, target=2), 6, 6, 5, 5),
    ],
)
def test_how_many_updates_end_a_round(
    policy: Policy, asked: int, online: int, least: int, wanted: int
) -> None:
    assert policy.enough(asked, online, least) == wanted


def test_all_are_asked_how_good_the_candidate_is_and_trainings_do_not_count() -> None:
    fleet = TimedFleet({1: 1.0, 2: 1.0, 3: 13.0})
    collector = fleet.collector()
    collector.train([1, 2, 3], work(1), WEIGHTS, FULL_S)
    answers = collector.evaluate([1, 2, 3], work(2), WEIGHTS, FULL_S)
    assert {a.op for a in answers if a.update is not None} == {"evaluate"}
    assert answered(answers) == [(1, 2), (2, 2)]
    assert failed(answers) == [(3, 2)]


@dataclass
class Hushed(TimedFleet):
    """Nodes whose devices are silent from these seconds on."""

    hushed: dict[int, float] = field(default_factory=dict)

    def silent(self) -> dict[int, float]:
        return {node: self.now - at for node, at in self.hushed.items() if at <= self.now}

    def collector(self, policy: Policy | None = None) -> Collector:
        made = super().collector(policy)
        made.silent = self.silent
        return made


def test_a_round_does_not_wait_for_devices_that_are_silent_and_says_so() -> None:
    fleet = Hushed({1: 1.0, 2: 2.0, 3: None, 4: None}, hushed={3: 5.0, 4: 6.0})
    collector = fleet.collector()
    answers = collector.train([1, 2, 3, 4], work(1), WEIGHTS, FULL_S)
    assert answered(answers) == [(1, 1), (2, 1)]
    assert failed(answers) == [(3, 1), (4, 1)]
    assert all((a.error or "").startswith("silent: ") for a in answers if a.error)
    assert fleet.now == pytest.approx(6.0, abs=LOOK_S + 2 * POLL_S)
    assert collector.given_up == 2
    assert collector.free([1, 2, 3, 4]) == [1, 2]
    assert collector.heard([1, 2, 3, 4]) == [1, 2]


@dataclass
class Working(Hushed):
    """Nodes whose devices report that they are at work, until they reply or these seconds."""

    working: dict[int, float] = field(default_factory=dict)

    def at_work(self) -> set[int]:
        return {node for node, until in self.working.items() if self.now < until}

    def collector(self, policy: Policy | None = None) -> Collector:
        made = super().collector(policy)
        made.at_work = self.at_work
        return made


def limited(limit_s: float) -> Work:
    return documents.work(limit_s=limit_s)


def test_a_device_at_work_is_waited_for_beyond_the_deadline_and_the_others_time() -> None:
    takes: dict[int, float | None] = {1: 1.0, 2: 150.0, 3: None}
    fleet = Working(takes, working={2: 150.0})
    answers = fleet.collector().train([1, 2, 3], limited(300.0), WEIGHTS, FULL_S)
    assert answered(answers) == [(1, 1), (2, 1)]
    assert failed(answers) == [(3, 1)]
    assert fleet.now == pytest.approx(150.0, abs=2 * POLL_S)


def test_a_device_at_work_is_waited_for_until_the_limit_and_its_node_is_free_then() -> None:
    fleet = Working({1: 1.0, 2: None}, working={2: 1e9})
    collector = fleet.collector()
    answers = collector.train([1, 2], limited(100.0), WEIGHTS, FULL_S)
    assert failed(answers) == [(2, 1)]
    assert fleet.now == pytest.approx(100.0, abs=2 * POLL_S)
    assert collector.free([1, 2]) == [1]
    fleet.now = 100.0 + TTL_SPARE_S
    assert collector.free([1, 2]) == [1, 2]


@pytest.mark.parametrize("op", ["train", "evaluate"])
@pytest.mark.parametrize(("worked_s", "way_s", "waits"), [
    (3.0, 9.0, True), (75.0, 23.0, True), (75.0, 27.0, False),
])  # fmt: skip
def test_a_reply_that_is_on_its_way_is_waited_for_as_long_as_the_machine_is_slow(
    op: Op, worked_s: float, way_s: float, waits: bool
) -> None:
    """All of a fleet ended their work after the deadline of 60 s, and were given up at once."""
    takes: dict[int, float | None] = dict.fromkeys([1, 2], worked_s + way_s)
    fleet = Working({3: 0.1} | takes, working=dict.fromkeys([1, 2], worked_s))
    collector = fleet.collector()
    ask = collector.train if op == "train" else collector.evaluate
    answers = ask([1, 2, 3], limited(300.0), WEIGHTS, FULL_S if worked_s > 10 else 5.0)
    assert answered(answers) == [(node, 1) for node in ([1, 2, 3] if waits else [3])]
    assert failed(answers) == ([] if waits else [(1, 1), (2, 1)])
    end = worked_s + (way_s if waits else worked_s / 3)
    assert fleet.now == pytest.approx(end, abs=LOOK_S + 2 * POLL_S)


def test_a_device_that_falls_silent_at_work_is_not_waited_for() -> None:
    fleet = Working({1: 1.0, 2: None}, working={2: 1e9}, hushed={2: 20.0})
    answers = fleet.collector().train([1, 2], limited(300.0), WEIGHTS, FULL_S)
    assert failed(answers) == [(2, 1)]
    assert fleet.now == pytest.approx(20.0, abs=LOOK_S + 2 * POLL_S)


def test_a_device_whose_work_was_lost_is_free_after_the_deadline_not_the_limit() -> None:
    """As one whose SuperNode was killed: it reports that it is not at work."""
    fleet = Working({1: 1.0, 2: None}, working={2: 5.0})
    collector = fleet.collector()
    collector.train([1, 2], limited(300.0), WEIGHTS, FULL_S)
    assert fleet.now < 15.0
    fleet.now = FULL_S + TTL_SPARE_S
    assert collector.free([1, 2]) == [1, 2]


def test_without_an_update_silence_ends_no_round() -> None:
    fleet = Hushed({1: None, 2: None}, hushed={1: 5.0, 2: 5.0})
    fleet.collector().train([1, 2], work(1), WEIGHTS, 30.0)
    assert fleet.now == pytest.approx(30.0, abs=2 * POLL_S)
    fleet = Hushed({1: 1.0, 2: None, 3: None}, hushed={2: 5.0, 3: 5.0})
    fleet.collector().train([1, 2, 3], work(1), WEIGHTS, 30.0, least=2)
    assert fleet.now >= 10.0  # a strategy that needs two: as if nobody were silent


def test_a_device_that_is_heard_again_is_waited_for_again_and_its_reply_counts() -> None:
    fleet = Hushed({1: 1.0, 2: 9.0, 3: None}, hushed={2: 2.0, 3: 7.0})
    fleet.silent = lambda: {  # type: ignore[method-assign]
        node: 1.0
        for node, at in fleet.hushed.items()
        if at <= fleet.now and (node, fleet.now < 6) != (2, False)
    }
    answers = fleet.collector().train([1, 2, 3], work(1), WEIGHTS, FULL_S)
    assert answered(answers) == [(1, 1), (2, 1)]
    assert fleet.now == pytest.approx(9.0, abs=LOOK_S)


def test_the_gate_does_not_wait_for_devices_that_are_silent() -> None:
    fleet = Hushed({1: 1.0, 2: 2.0, 3: None}, hushed={3: 4.0})
    answers = fleet.collector().evaluate([1, 2, 3], work(1), WEIGHTS, FULL_S)
    assert answered(answers) == [(1, 1), (2, 1)]
    assert [(a.error or "").split(":")[0] for a in answers if a.error] == ["silent"]
    assert fleet.now == pytest.approx(4.0, abs=LOOK_S + 2 * POLL_S)
