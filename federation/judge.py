"""What speaks for a candidate: the people held out, and the devices before and after."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from federation import evaluation
from federation.admission import Update
from federation.evaluation import Accuracy, HeldOut, Verdict
from federation.exchange import Answer, Tensors
from federation.graph import run_graph
from federation.intake import Intake
from streams.contract.artifact import GRAPH, Artifact
from streams.contract.task import Task


@dataclass
class Judge:
    """fleet_base: what each device found for the model that is served; base_until: the round that
    first averaged, 0 when it lies in a run before, None when there was none yet. Work of the rounds
    up to it has carried the model that is served."""

    task: Task
    base: Artifact
    held_out: HeldOut
    fleet_base: dict[str, Accuracy] = field(default_factory=dict)
    base_until: int | None = None

    def note(self, updates: Sequence[Update], number: int) -> float:
        """Keep the figures that devices sent with their updates; their accuracy before training."""
        figures = {u.device: a for u in updates if (a := evaluation.reported(u.metrics))}
        if self.base_until is None:
            self.base_until = number
        for update in updates:
            if update.device in figures and number - update.staleness <= self.base_until:
                self.fleet_base.setdefault(update.device, figures[update.device])
        return evaluation.total(list(figures.values())).share

    def central(self, weights: Tensors) -> Accuracy:
        """Of the people held out."""
        if not len(self.held_out.labels):
            return Accuracy()
        outputs = run_graph(self.base.files[GRAPH], self.held_out.segments, weights)
        return evaluation.score(self.task, outputs, self.held_out.labels)

    def decide(
        self,
        first: Tensors,
        candidate: Tensors,
        answers: Sequence[Answer],
        intake: Intake,
        margin: float,
    ) -> tuple[Verdict, dict[str, float]]:
        """The gate. answers: the devices' figures for the candidate; first: the served weights."""
        after = intake.figures(answers)
        fleet_base, fleet_candidate = evaluation.paired(self.fleet_base, after)
        central_base, central = self.central(first), self.central(candidate)
        verdict = evaluation.decide(central_base, central, fleet_base, fleet_candidate, margin)
        return verdict, {
            "held_out_base": central_base.share,
            "held_out": central.share,
            "held_out_segments": central.evaluated,
            "devices_base": fleet_base.share,
            "devices": fleet_candidate.share,
            "device_segments": fleet_candidate.evaluated,
        }
