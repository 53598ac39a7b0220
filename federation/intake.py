"""What a run takes in: the devices' answers, which of them count, and what is known of who sent
them. Every answer that does not count is an event on `rounds`, with its reason."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from federation import evaluation
from federation.admission import Refusal, Round, Update, admit, norm, well_formed
from federation.conduct import Conduct
from federation.evaluation import Accuracy
from federation.exchange import Answer, Tensors
from federation.journal import Journal
from streams.contract.task import Task

METRICS = 20  # figures of one update that are told


@dataclass
class Intake:
    """norms: of the updates admitted so far; node_of: which node trained first under a device's
    name; refusals: of the round, by reason."""

    task: Task
    journal: Journal
    norms: list[float] = field(default_factory=list)
    conduct: Conduct = field(default_factory=Conduct)
    node_of: dict[str, int] = field(default_factory=dict)
    counts: dict[str, int] = field(
        default_factory=lambda: {"admitted": 0, "refused": 0, "aggregated": 0}
    )
    refusals: Counter[str] = field(default_factory=Counter)

    def begin_round(self, online: Sequence[int], about: dict[str, Any]) -> list[int]:
        """The nodes that get work in this round."""
        self.refusals.clear()
        return [node for node in online if not self._sits_out(node, about)]

    def admit(
        self,
        answers: Sequence[Answer],
        weights: Tensors,
        reported: Mapping[str, int],
        about: dict[str, Any],
    ) -> list[Update]:
        """The updates that may be averaged, by device; every other answer is an event."""
        expected = Round(
            self.task.name,
            self.task.version,
            str(about["base"]),
            weights,
            reported=reported,
            earlier=self.conduct.received,
        )
        updates = [a.update for a in answers if a.update is not None]
        measurable = [u for u in updates if well_formed(u, expected)]
        norms = [*self.norms, *(norm(u.weights, weights) for u in measurable)]
        admitted: dict[str, Update] = {}
        for answer in answers:
            if answer.error is not None:
                who = (answer.device or f"node {answer.node}")[:63]
                self.journal.publish("failed", device=who, reason=answer.error[:300], **about)
                continue
            refusal, update = answer.refusal, answer.update
            if update is not None and self._taken(update.device, answer.node, admitted):
                refusal, update = Refusal("name", f"{update.device[:63]} is another node"), None
            if update is not None:
                facts = replace(expected, devices=frozenset(admitted), norms=norms)
                refusal = admit(update, facts)
            if refusal is not None or update is None:
                self._refuse(answer, refusal or Refusal("malformed", "an empty reply"), about)
                continue
            admitted[update.device] = update
            self.node_of.setdefault(update.device, answer.node)
            self.counts["admitted"] += 1
            metrics = {n[:40]: float(v) for n, v in list(update.metrics.items())[:METRICS]}
            self.journal.publish(
                "admitted", device=update.device, samples=update.samples, metrics=metrics, **about
            )
        self.conduct.remember(update.weights for update in updates)
        return [admitted[device] for device in sorted(admitted)]

    def _taken(self, device: str, node: int, admitted: Mapping[str, Update]) -> bool:
        """Whether another node trained under this name in an earlier round; who comes second in
        one round is a duplicate."""
        return device not in admitted and self.node_of.get(device, node) != node

    def _sits_out(self, node: int, about: dict[str, Any]) -> bool:
        """Whether `node` gets no work in this round for its earlier updates; that is an event."""
        until = self.conduct.sits_out_until(node, int(about["round"]))
        if until is None:
            return False
        self.refusals["sitting-out"] += 1
        reason = f"sitting-out: its updates were refused, it sits out until round {until}"
        self.journal.publish("refused", device=f"node {node}", reason=reason, **about)
        return True

    def _refuse(self, answer: Answer, refusal: Refusal, about: dict[str, Any]) -> None:
        device = (answer.device or f"node {answer.node}")[:63]
        self.conduct.refuse(answer.node, refusal.reason, int(about["round"]))
        self.counts["refused"] += 1
        self.refusals[refusal.reason] += 1
        reason = f"{refusal.reason}: {refusal.detail}"
        self.journal.publish("refused", device=device, reason=reason, **about)

    def figures(self, answers: Sequence[Answer]) -> dict[str, Accuracy]:
        """What devices found at the end, by name: of nodes without a refusal, and of the node that
        trained under the name; only names that trained have figures before."""
        return {
            a.update.device: figures
            for a in answers
            if a.error is None
            and a.update is not None
            and a.node not in self.conduct.refused
            and self.node_of.get(a.update.device, a.node) == a.node
            and (figures := evaluation.reported(a.update.metrics))
        }

    def told(self) -> dict[str, float]:
        """The round's refusals as figures."""
        return {f"refused_{slug}"[:40]: float(n) for slug, n in self.refusals.items()}
