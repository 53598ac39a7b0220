"""Collection of a round's replies: which nodes are busy, and when a round has enough updates.

A node has one training at a time. It is busy from the sending until it replies or its work expires;
a vanished node costs only that, and no round waits for it longer. A later reply counts in the
current round, as an update with a staleness in rounds.

Two ways to end a round (`Policy`):

synchronous  at the first of: all asked nodes have replied, or there are updates and the devices of
             the others are silent; `target` updates; half of those that are not silent have replied
             and the rest have had three times as long; the deadline
buffered     at the first of: `target` updates from any round; no node is busy; the deadline. Each
             round sends its weights to free nodes and leaves the others at work (FedBuff: Nguyen et
             al. 2022, arXiv 2106.06639)
"""

import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from federation.admission.update import Tensors
from federation.rounds.messages import Fleet, Reply, cutoff_s
from streams.contract.work import Op, Work

log = logging.getLogger(__name__)

POLL_S = 0.1  # a poll costs the SuperLink about 5 ms
LOOK_S = 1.0  # between two looks at who is silent
TTL_SPARE_S = 5.0  # after the deadline work expires, so that no device trains in vain


@dataclass(frozen=True)
class Policy:
    """asked: nodes that get work, 0 for all free ones; target: updates that end a round, 0 for as
    many as were asked; max_staleness: in rounds."""

    buffered: bool = False
    asked: int = 0
    target: int = 0
    max_staleness: int = 0

    def enough(self, asked: int, online: int, least: int) -> int:
        """Return the number of updates that end a round; for a small fleet a buffer takes half."""
        if self.buffered:
            return max(least, min(self.target, math.ceil(online / 2)))
        return max(least, self.target) if self.target else max(1, asked)


@dataclass
class _WorkInFlight:
    round: int
    at: float
    until: float
    reported: bool = False  # that it did not reply


@dataclass
class Collector:
    """The fleet's replies, round by round; `clock` and `sleep` in seconds. `silent` returns the
    nodes whose device has fallen silent, with the seconds since."""

    fleet: Fleet
    policy: Policy
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep
    silent: Callable[[], Mapping[int, float]] = dict
    given_up: int = 0  # nodes of the last round that were not waited for because they are silent
    _work: dict[tuple[Op, int], _WorkInFlight] = field(default_factory=dict)
    _early: list[Reply] = field(default_factory=list)  # received between two rounds
    _quiet: Mapping[int, float] = field(default_factory=dict)
    _look_at: float = float("-inf")

    def free(self, nodes: Sequence[int]) -> list[int]:
        """Return the nodes that are not busy; receives replies for the next round."""
        self._early += self._hear()
        return [node for node in nodes if ("train", node) not in self._work]

    def heard(self, nodes: Sequence[int]) -> list[int]:
        """Return the nodes whose device is not silent, as of at most LOOK_S ago."""
        if self.clock() >= self._look_at:
            self._quiet = self.silent()
            self._look_at = self.clock() + LOOK_S
        return [node for node in nodes if node not in self._quiet]

    def train(
        self,
        nodes: Sequence[int],
        work: Work,
        weights: Tensors,
        deadline_s: float,
        online: int = 0,
        least: int = 1,
    ) -> list[Reply]:
        """Send a round's work and collect replies until it ends, including those to earlier rounds
        and an error for each node that is no longer waited for."""
        began = self.clock()
        self._send("train", nodes, work, weights, deadline_s)
        wanted = self.policy.enough(len(nodes), online or len(nodes), least)
        answers, self._early = self._early, []
        replied: list[float] = []
        while True:
            heard = self._hear()
            answers += heard
            elapsed = self.clock() - began
            replied += [elapsed for a in heard if a.round == work.round]
            updates = sum(a.update is not None for a in answers)
            if why := self._over(work.round, nodes, updates, wanted, least):
                break
            waited_for = min(wanted, len(nodes) - self._silent_of(work.round))
            if elapsed >= self._cutoff(replied, waited_for, deadline_s):
                why = "no longer waited" if elapsed < deadline_s else "deadline"
                break
            self.sleep(POLL_S)
        self.given_up = self._silent_of(work.round)
        log.info(
            "round %d ended after %.1f s (%s): %d asked, %d replied, %d silent",
            work.round, elapsed, why, len(nodes), len(replied), self.given_up,
        )  # fmt: skip
        return answers + self._given_up(work.round, self.clock() - began)

    def evaluate(
        self, nodes: Sequence[int], work: Work, weights: Tensors, deadline_s: float
    ) -> list[Reply]:
        """Return one reply of each node, or its error; ignores trainings that end meanwhile."""
        began = self.clock()
        self._send("evaluate", nodes, work, weights, deadline_s)
        answers: list[Reply] = []
        replied: list[float] = []
        while True:
            heard = [a for a in self._hear() if a.op == "evaluate"]
            answers += heard
            elapsed = self.clock() - began
            replied += [elapsed] * len(heard)
            waiting = [node for node in nodes if ("evaluate", node) in self._work]
            heard_of = self.heard(waiting)
            if not (heard_of if answers else waiting):
                break
            waited_for = len(nodes) - len(waiting) + len(heard_of)
            if elapsed >= cutoff_s(replied, waited_for, deadline_s):
                break
            self.sleep(POLL_S)
        elapsed = self.clock() - began
        return answers + [Reply(n, error=self._why(n, elapsed), round=work.round) for n in waiting]

    def _send(
        self, op: Op, nodes: Sequence[int], work: Work, weights: Tensors, deadline_s: float
    ) -> None:
        ttl_s = deadline_s + TTL_SPARE_S
        self.fleet.send(op, nodes, work, weights, ttl_s)
        now = self.clock()
        self._work |= {(op, node): _WorkInFlight(work.round, now, now + ttl_s) for node in nodes}

    def _hear(self) -> list[Reply]:
        """Return new replies; frees nodes whose work has expired, with one error each."""
        answers = self.fleet.receive()
        for answer in answers:
            kept = self._work.get((answer.op, answer.node))
            if kept is not None and kept.round == answer.round:
                del self._work[answer.op, answer.node]
        now = self.clock()
        for (op, node), sent in [item for item in self._work.items() if item[1].until <= now]:
            del self._work[op, node]
            if not sent.reported:
                error = _late(now - sent.at)
                answers.append(Reply(node, error=error, round=sent.round, op=op))
        return answers

    def _over(
        self, number: int, nodes: Sequence[int], updates: int, wanted: int, least: int
    ) -> str | None:
        """Return why a round is over before its time; None if a node that it waits for is busy."""
        if updates >= wanted:
            return "enough updates"
        working = [node for op, node in self._work if op == "train"]
        if self.policy.buffered or not nodes:
            return None if working else "nobody is working"
        working = self._working(number)
        if not working:
            return "all have replied"
        if updates >= max(1, least) and not self.heard(working):
            return "the others are silent"
        return None

    def _working(self, number: int) -> list[int]:
        """Return the nodes that work for a round."""
        work = self._work.items()
        return [node for (op, node), sent in work if op == "train" and sent.round == number]

    def _silent_of(self, number: int) -> int:
        """Return how many nodes that work for a synchronous round are silent."""
        working = [] if self.policy.buffered else self._working(number)
        return len(working) - len(self.heard(working))

    def _cutoff(self, replied: Sequence[float], expected: int, deadline_s: float) -> float:
        return deadline_s if self.policy.buffered else cutoff_s(replied, expected, deadline_s)

    def _given_up(self, number: int, elapsed: float) -> list[Reply]:
        """Return errors of nodes that a synchronous round no longer waits for; they stay busy. With
        enough updates that is the error of silent ones only."""
        if self.policy.buffered:
            return []
        found = []
        for (op, node), sent in self._work.items():
            if op != "train" or sent.round != number or sent.reported:
                continue
            if node in self._quiet or not self.policy.target:
                sent.reported = True
                found.append(Reply(node, error=self._why(node, elapsed), round=number))
        return found

    def _why(self, node: int, elapsed: float) -> str:
        """Return why a node is no longer waited for."""
        if node not in self._quiet:
            return _late(elapsed)
        return f"silent: nothing on `fleet` for {self._quiet[node]:.0f} s, not waited for"


def _late(seconds: float) -> str:
    return f"no reply within {seconds:.0f} s"
