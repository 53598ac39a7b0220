"""Intake of a round's replies: admission, the samples that count, quarantine, and the nodes behind
device names. Every reply that does not count is an event on `rounds`, with its reason; one that
counts with fewer samples than it claims has the claim in its event."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from federation.admission import (
    Quarantine,
    Refusal,
    Round,
    Tensors,
    Update,
    admit,
    most_claimed,
    well_formed,
)
from federation.evaluation import device_metrics
from federation.evaluation.device_metrics import DeviceResult
from federation.rounds.collector import Reply
from federation.rounds.event_log import EventLog
from streams.contract.task import DEVICE_NAME, Task

METRICS = 20  # metrics of one update that are published
REASONS = 3  # why updates of a round do not count
CAUSES = {"too-few-samples": " for want of true labels"}  # by which it trusts the teacher, too


@dataclass
class UpdateIntake:
    """max_staleness: in rounds; clip: largest norm of an update, 0 for no limit; norms: of the
    updates admitted so far; node_of: the node that first trained under a device's name; refusals:
    of the round, by reason; capped: updates of the round whose claim counts in part; failures: of
    the round, the reason by node."""

    task: Task
    journal: EventLog
    max_staleness: int = 0
    clip: float = 0.0
    norms: list[float] = field(default_factory=list)
    quarantine: Quarantine = field(default_factory=Quarantine)
    node_of: dict[str, int] = field(default_factory=dict)
    counts: dict[str, int] = field(
        default_factory=lambda: {"admitted": 0, "refused": 0, "aggregated": 0}
    )
    refusals: Counter[str] = field(default_factory=Counter)
    capped: int = 0
    failures: dict[int, str] = field(default_factory=dict)
    _sent: dict[int, Tensors] = field(default_factory=dict)  # by round

    def free_names(self, online: Sequence[int]) -> None:
        """Release the names of nodes that are offline: without a key a restarted SuperNode is a new
        node."""
        self.node_of = {name: node for name, node in self.node_of.items() if node in online}

    def begin_round(
        self, nodes: Sequence[int], weights: Tensors, about: dict[str, Any]
    ) -> list[int]:
        """Return the nodes that may get work in this round, which sends `weights`."""
        self.refusals.clear()
        number = int(about["round"])
        self._sent[number] = weights
        for old in [n for n in self._sent if n < number - self.max_staleness]:
            del self._sent[old]
        return [node for node in nodes if not self._is_quarantined(node, about)]

    def admit(
        self, answers: Sequence[Reply], reported: Mapping[str, int], about: dict[str, Any]
    ) -> list[Update]:
        """Return the admitted updates, sorted by device, with the samples that count; publish an
        event for every reply."""
        number = int(about["round"])
        self.failures.clear()
        found = [self._dated(answer, number) for answer in answers if answer.op == "train"]
        fits = {n: self._expected(n, number, reported, about) for n in self._sent}
        norms = [*self.norms, *self._norms(found, fits)]
        admitted: dict[str, Update] = {}
        node_of: dict[str, int] = {}
        for answer in found:
            if answer.error is not None:
                who = (answer.device or f"node {answer.node}")[:63]
                self.journal.publish("failed", device=who, reason=answer.error[:300], **about)
                self.failures[answer.node] = answer.error.partition(":")[0][:40]
                continue
            refusal, update = answer.refusal, answer.update
            if update is not None and self._taken(update.device, answer.node, admitted):
                refusal = refusal or Refusal("name", f"{update.device[:63]} is another node")
            if update is not None and refusal is None:
                expected = fits[answer.round]
                facts = replace(expected, devices=frozenset(admitted), norms=norms)
                refusal = admit(update, facts)
            if refusal is not None or update is None:
                self._refuse(answer, refusal or Refusal("malformed", "an empty reply"), about)
                continue
            admitted[update.device], node_of[update.device] = update, answer.node
            self.failures.pop(answer.node, None)  # when asked again
        counted = _counted(admitted)
        self.capped = sum(counted[name] is not update for name, update in admitted.items())
        for name, update in counted.items():
            self._tell_admitted(update, admitted[name].samples, node_of[name], about)
        self.quarantine.remember(a.update for a in found if a.update is not None)
        self.norms += [update.norm for update in admitted.values()]
        return [counted[device] for device in sorted(counted)]

    def _dated(self, answer: Reply, number: int) -> Reply:
        """Return a reply with the weights that its node was sent; a refusal if that is too many
        rounds ago."""
        if answer.update is None:
            return answer
        staleness, sent = number - answer.round, self._sent.get(answer.round)
        if sent is None or not 0 <= staleness <= self.max_staleness:
            detail = (
                f"it answers round {answer.round}; staleness is limited to {self.max_staleness}"
            )
            return replace(answer, refusal=Refusal("stale", detail))
        return replace(answer, update=replace(answer.update, staleness=staleness, sent=sent))

    def _expected(
        self, sent_in: int, number: int, reported: Mapping[str, int], about: dict[str, Any]
    ) -> Round:
        """Return what an update of the work sent in round `sent_in` must fit. Reported samples
        apply only to this round's work."""
        return Round(
            self.task.name,
            self.task.version,
            str(about["base"]),
            self._sent[sent_in],
            reported=reported if sent_in == number else {},
            earlier=self.quarantine.received,
            clip=self.clip,
        )

    def _norms(self, answers: Sequence[Reply], fits: Mapping[int, Round]) -> list[float]:
        updates = [(a.update, a.round) for a in answers if a.update and a.refusal is None]
        return [u.norm for u, number in updates if well_formed(u, fits[number])]

    def _tell_admitted(
        self, update: Update, claimed: int, node: int, about: dict[str, Any]
    ) -> None:
        self.node_of.setdefault(update.device, node)
        self.counts["admitted"] += 1
        metrics = {n[:40]: float(v) for n, v in list(update.metrics.items())[:METRICS]}
        if update.staleness:
            metrics["staleness"] = float(update.staleness)
        if update.samples < claimed:
            metrics["claimed"] = float(claimed)
        self.journal.publish(
            "admitted", device=update.device, samples=update.samples, metrics=metrics, **about
        )

    def _taken(self, device: str, node: int, admitted: Mapping[str, Update]) -> bool:
        """Return whether another node trained under this name in an earlier round. A second one in
        the same round is a duplicate."""
        return device not in admitted and self.node_of.get(device, node) != node

    def _is_quarantined(self, node: int, about: dict[str, Any]) -> bool:
        """Return whether `node` gets no work in this round because of refused updates; publishes an
        event."""
        until = self.quarantine.quarantined_until(node, int(about["round"]))
        if until is None:
            return False
        self.refusals["sitting-out"] += 1
        reason = f"sitting-out: its updates were refused, no work until after round {until}"
        self.journal.publish("refused", device=f"node {node}", reason=reason, **about)
        return True

    def _refuse(self, answer: Reply, refusal: Refusal, about: dict[str, Any]) -> None:
        device = (answer.device or f"node {answer.node}")[:63]
        self.quarantine.refuse(answer.node, refusal.reason, int(about["round"]))
        self.counts["refused"] += 1
        self.refusals[refusal.reason] += 1
        self.failures[answer.node] = refusal.reason
        reason = f"{refusal.reason}: {refusal.detail}"
        self.journal.publish("refused", device=device, reason=reason, **about)

    def device_results(self, answers: Sequence[Reply], prefix: str = "") -> dict[str, DeviceResult]:
        """Return the devices' final evaluations by name, from metrics with a prefix: of nodes
        without a refusal that trained under the name. Names that two nodes give are ignored."""
        said = [
            (a.update.device, found)
            for a in answers
            if a.error is None
            and a.update is not None
            and DEVICE_NAME.fullmatch(a.update.device)
            and a.node not in self.quarantine.refused
            and self.node_of.get(a.update.device, a.node) == a.node
            and (found := device_metrics.read(self.task, a.update.metrics, prefix))
        ]
        names = Counter(name for name, _ in said)
        return {name: found for name, found in said if names[name] == 1}

    @property
    def why(self) -> str:
        """Say which reasons most of the devices had whose update does not count, if any had."""
        most = Counter(self.failures.values()).most_common(REASONS)
        reasons = [f"{reason} {count}{CAUSES.get(reason, '')}" for reason, count in most]
        return f" ({', '.join(reasons)})" if most else ""

    def refusal_metrics(self) -> dict[str, float]:
        """Return the round's refusals as metrics."""
        return {f"refused_{slug}"[:40]: float(n) for slug, n in self.refusals.items()}


def _counted(admitted: Mapping[str, Update]) -> dict[str, Update]:
    """Return the updates with the samples that count in the round's mean, see `most_claimed`."""
    if not admitted:
        return {}
    limit = int(most_claimed([update.samples for update in admitted.values()]))
    return {
        name: replace(update, samples=limit) if update.samples > limit else update
        for name, update in admitted.items()
    }
