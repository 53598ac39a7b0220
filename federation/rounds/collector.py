"""The fleet as a transport, and collection of a round's replies: which nodes are busy, and when a
round has enough updates.

A node has one training at a time. It is busy from the sending until it replies or its work expires:
after the deadline, and for a device that reports that it is at work after the limit. After its work
the reply is on its way for a third of that time, at least LEAST_PATIENCE_S, and its node stays
busy. A later reply counts in the current round, as an update with a staleness in rounds.

Two ways to end a round (`Policy`):

synchronous  at the first of: all asked nodes have replied; `target` updates; nobody is waited for
             any more. A node is waited for until the limit while its device reports each second
             that it is at work, or its reply is on its way; not at all if its device is silent and
             there are updates; otherwise until three times what half of those that are not silent
             took, or the deadline
buffered     at the first of: `target` updates from any round; no node is busy; the deadline. Each
             round sends its weights to free nodes and leaves the others at work (FedBuff: Nguyen et
             al. 2022, arXiv 2106.06639)
"""

import logging
import math
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from federation.admission import Refusal, Tensors, Update
from streams.contract.work import Op, Work

QUORUM = 1 / 2
PATIENCE = 3.0
LEAST_PATIENCE_S = 10.0


@dataclass(frozen=True)
class Reply:
    """One node's reply to the work of `round`: an update, a refusal if it was unreadable, or an
    error."""

    node: int
    device: str | None = None
    update: Update | None = None
    refusal: Refusal | None = None
    error: str | None = None
    round: int = 0
    op: Op = "train"


class Fleet(Protocol):
    """The devices of one run; neither `send` nor `receive` waits."""

    def nodes(self) -> list[int]:
        """Return the nodes online now."""
        ...

    def send(
        self, op: Op, nodes: Sequence[int], work: Work, weights: Tensors, ttl_s: float
    ) -> None:
        """Send work to all `nodes`; it expires after `ttl_s` seconds."""
        ...

    def receive(self) -> list[Reply]:
        """Return the replies since the last call, to any round's work."""
        ...


def cutoff_s(replied_s: Sequence[float], expected: int, deadline_s: float) -> float:
    """Return when to stop waiting, in seconds since the messages were sent.

    Once half have replied, the rest get three times as long as those took, at most until the
    deadline: a dead node stays listed for a minute and would cost each round its whole deadline.
    `replied_s` are the times of the replies so far, in order.
    """
    quorum = max(1, round(QUORUM * expected))
    if len(replied_s) < quorum:
        return deadline_s
    return min(deadline_s, max(LEAST_PATIENCE_S, PATIENCE * replied_s[quorum - 1]))


# --- collection -----------------------------------------------------------------------------------

log = logging.getLogger(__name__)

POLL_S = 0.1  # a poll costs the SuperLink about 5 ms
LOOK_S = 1.0  # between two looks at who is silent, and who at work
TTL_SPARE_S = 5.0  # after its time work expires, so that no device trains in vain


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
    """until: when it expires, at the latest if the device reports that it is at work, and else."""

    round: int
    at: float
    until: float
    at_rest: float
    reported: bool = False  # that it did not reply


@dataclass
class Collector:
    """The fleet's replies, round by round; `clock` and `sleep` in seconds. `silent` returns the
    nodes whose device has fallen silent, with the seconds since; `at_work` those whose device
    reports that it works for a round."""

    fleet: Fleet
    policy: Policy
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep
    silent: Callable[[], Mapping[int, float]] = dict
    at_work: Callable[[], Collection[int]] = tuple
    given_up: int = 0  # nodes of the last round that were not waited for because they are silent
    slowest_s: float = 0.0  # the longest time to an update so far
    _work: dict[tuple[Op, int], _WorkInFlight] = field(default_factory=dict)
    _early: list[Reply] = field(default_factory=list)  # received between two rounds
    _quiet: Mapping[int, float] = field(default_factory=dict)
    _at_work: Collection[int] = ()
    _worked: dict[int, float] = field(default_factory=dict)  # when nodes were last at work
    _look_at: float = float("-inf")

    def free(self, nodes: Sequence[int]) -> list[int]:
        """Return the nodes that are not busy; receives replies for the next round."""
        self._early += self._hear()
        return [node for node in nodes if ("train", node) not in self._work]

    def heard(self, nodes: Sequence[int]) -> list[int]:
        """Return the nodes whose device is not silent, as of at most LOOK_S ago."""
        self._look()
        return [node for node in nodes if node not in self._quiet]

    def _look(self) -> None:
        if self.clock() >= self._look_at:
            self._quiet = self.silent()
            self._at_work = set(self.at_work()) - set(self._quiet)
            now = self.clock()
            self._worked |= dict.fromkeys(self._at_work, now)
            self._look_at = now + LOOK_S

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
        and an error for each node that is no longer waited for. Devices at work are waited for
        until `work.limit_s`."""
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
            if updates >= wanted:
                why = "enough updates"
                break
            expected = min(wanted, len(nodes)) - self._silent_of(work.round)
            part = cutoff_s(replied, expected, deadline_s)
            cutoff = deadline_s if self.policy.buffered else part
            enough = updates >= max(1, least)
            if over := self._over(work.round, began + cutoff, enough):
                why = over
                break
            self.sleep(POLL_S)
        self.slowest_s = max([self.slowest_s, *replied])
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
            expected = len(nodes) - len(waiting) + len(self.heard(waiting))
            cutoff = cutoff_s(replied, expected, deadline_s)
            if not self._awaited("evaluate", waiting, began + cutoff, bool(answers)):
                break
            self.sleep(POLL_S)
        elapsed = self.clock() - began
        return answers + [Reply(n, error=self._why(n, elapsed), round=work.round) for n in waiting]

    def _send(
        self, op: Op, nodes: Sequence[int], work: Work, weights: Tensors, deadline_s: float
    ) -> None:
        ttl_s = max(deadline_s, work.limit_s) + TTL_SPARE_S
        self.fleet.send(op, nodes, work, weights, ttl_s)
        now = self.clock()
        rest = now + deadline_s + TTL_SPARE_S
        self._work |= {
            (op, node): _WorkInFlight(work.round, now, now + ttl_s, rest) for node in nodes
        }

    def _hear(self) -> list[Reply]:
        """Return new replies; frees nodes whose work has expired, with one error each."""
        answers = self.fleet.receive()
        for answer in answers:
            kept = self._work.get((answer.op, answer.node))
            if kept is not None and kept.round == answer.round:
                del self._work[answer.op, answer.node]
        now = self.clock()
        self._look()
        for (op, node), sent in list(self._work.items()):
            rest = max(sent.at_rest, self._on_its_way(node, sent))
            if now < (sent.until if node in self._at_work else min(rest, sent.until)):
                continue
            del self._work[op, node]
            if not sent.reported:
                error = _late(now - sent.at)
                answers.append(Reply(node, error=error, round=sent.round, op=op))
        return answers

    def _over(self, number: int, cutoff: float, enough: bool) -> str | None:
        """Return why a round is over; None if a node is waited for."""
        if self.policy.buffered:
            if not any(op == "train" for op, _ in self._work):
                return "nobody is working"
            return "deadline" if self.clock() >= cutoff else None
        working = self._working(number)
        if not working:
            return "all have replied"
        waits = self._awaited("train", working, cutoff, enough)
        return None if waits else "no longer waited"

    def _awaited(self, op: Op, nodes: Sequence[int], cutoff: float, enough: bool) -> bool:
        """Return whether one of `nodes`, which have not replied, is waited for: until the limit if
        it is at work or its reply on its way, not if it is silent and there are `enough` updates,
        else until the cutoff, by the clock."""
        self._look()
        now = self.clock()

        def until(node: int) -> float:
            sent = self._work[op, node]
            if node in self._quiet:
                return now if enough else cutoff
            if node in self._at_work or now < self._on_its_way(node, sent):
                return sent.until - TTL_SPARE_S
            return cutoff

        return any(now < until(node) for node in nodes)

    def _on_its_way(self, node: int, sent: _WorkInFlight) -> float:
        """Return until when a reply may be on its way from a device that has ended its work, by the
        clock. A busy machine needs longer for both."""
        worked = self._worked.get(node, 0.0)
        if worked <= sent.at:
            return sent.at
        return worked + max(LEAST_PATIENCE_S, (worked - sent.at) / PATIENCE)

    def _working(self, number: int) -> list[int]:
        """Return the nodes that work for a round."""
        work = self._work.items()
        return [node for (op, node), sent in work if op == "train" and sent.round == number]

    def _silent_of(self, number: int) -> int:
        """Return how many nodes that work for a synchronous round are silent."""
        working = [] if self.policy.buffered else self._working(number)
        return len(working) - len(self.heard(working))

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
