"""A federated run: rounds of training on devices, the gate, and the release. Knows no Flower.

    1 take up the run that `resume` names, or begin; save a checkpoint
    in each round:
    2 wait until enough devices are online, send the weights, collect updates until the deadline
    3 admit, average
    4 save a checkpoint
    5 evaluate on the people held out
    with the last weights:
    6 evaluate on the devices, decide; if they are better:
    7 sign, keep
    8 serve
    9 announce

The devices' figures for the model that is served come with their first update. A run that dies
is taken up by the controller, in a run that goes on from its last checkpoint: after 1 to 3 the
round is done again, from the same weights and the same seed; after 4 and 5 the next one follows;
after 6 and 7 the gate is gone through again (7: a version's number is used up); after 8 and 9 all
is done but the announcement, which is made again.
"""

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors.numpy
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from federation import checkpoint, evaluation, resume
from federation.admission import Update, norm
from federation.aggregator import Aggregator
from federation.conduct import Conduct
from federation.evaluation import Accuracy, HeldOut, Verdict
from federation.exchange import Fleet, Tensors, Work
from federation.graph import run_graph
from federation.intake import Intake
from federation.journal import Journal
from federation.promotion import Promotion
from federation.registry import Registry
from federation.reports import Reports
from streams.contract.artifact import GRAPH, WEIGHTS, Artifact
from streams.contract.errors import (
    ProcessFailed,
    Retryable,
    TidewheelError,
    UsageError,
)
from streams.contract.failpoints import Failpoint, unarmed
from streams.contract.task import Task

NODE_POLL_S = 0.2


@dataclass(frozen=True)
class RunSettings:
    """What one run does. `runs` is the folder of checkpoints and journals, `resume` the earlier run
    to go on with, "" for none."""

    run: str
    rounds: int
    minimum_nodes: int
    node_wait_s: float
    round_deadline_s: float
    epochs: int
    batch_size: int
    learning_rate: float
    margin: float
    seed: int
    runs: Path
    resume: str = ""


@dataclass
class FederatedRun:
    """One run of a task, from the model that is served to a verdict."""

    task: Task
    settings: RunSettings
    registry: Registry
    key: Ed25519PrivateKey
    fleet: Fleet
    journal: Journal
    aggregator: Aggregator
    reports: Reports | None = None
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep
    failpoint: Failpoint = unarmed
    _fleet_base: dict[str, Accuracy] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._intake = Intake(self.task, self.journal)
        self._promotion = Promotion(
            self.task, self.registry, self.key, self.journal, self.failpoint
        )

    def run(self) -> Verdict:
        """All rounds and the gate. A verdict, or an error that would come again, is a `finished`
        event; without one the controller takes the run up again."""
        outcome = None
        try:
            verdict = self._run()
            outcome = "promoted" if verdict.promote else f"rejected: {verdict.reason}"
            return verdict
        except BaseException as exc:
            if isinstance(exc, TidewheelError) and not isinstance(exc, Retryable):
                outcome = f"failed: {exc}"[:300]
            else:
                self.journal.publish("failed", reason=f"the run is broken off: {exc!r}"[:300])
            raise
        finally:
            if outcome is not None:
                self.journal.publish("finished", rounds=self.settings.rounds, reason=outcome)
            self.journal.close()
            if self.reports is not None:
                self.reports.close()

    def _run(self) -> Verdict:
        base = self.registry.serving()
        if base is None:
            raise UsageError(f"{self.registry.folder} serves no model yet: run `tidewheel up`")
        held_out = HeldOut.load(self.registry.heldout_path, self.task)
        if self.settings.resume and base.manifest.run == self.settings.resume:
            return self._promoted_already(base)
        # safetensors gives tensors in another order each time: sums over them differ in last bits.
        first = dict(sorted(safetensors.numpy.load(base.files[WEIGHTS]).items()))
        done, weights = self._take_up(first, base)
        self.failpoint("round-step-1")
        for number in range(done + 1, self.settings.rounds + 1):
            weights = self._round(number, weights, base, held_out)
        if not self._intake.counts["aggregated"]:
            if (least := self.aggregator.least) > 1:
                name = self.aggregator.name
                raise ProcessFailed(f"no round had the {least} updates that {name} needs")
            raise ProcessFailed("no update was admitted in any round")
        verdict, metrics = self._judge(first, weights, base, held_out)
        self.failpoint("round-step-6")
        serving = self.registry.serving()
        if verdict.promote and (serving is None or serving.model != base.model):
            other = serving.model if serving else "nothing"
            verdict = Verdict(False, f"{base.model} was the base and {other} is served by now")
        if not verdict.promote:
            last = self.settings.rounds
            self.journal.publish(
                "rejected",
                round=last,
                rounds=last,
                reason=verdict.reason,
                base=base.model,
                metrics=metrics,
            )
            return verdict
        run, rounds = self.settings.run, self.settings.rounds
        self._promotion.promote(
            weights, base, verdict, metrics, self._intake.counts, run=run, rounds=rounds
        )
        return verdict

    def _round(self, number: int, weights: Tensors, base: Artifact, held_out: HeldOut) -> Tensors:
        """One round; the weights after it, or those given where too few updates were admitted."""
        began = self.clock()
        online = self._wait_for_nodes()
        about: dict[str, Any] = {
            "round": number,
            "rounds": self.settings.rounds,
            "base": base.model,
        }
        self.journal.publish("started", metrics={"nodes": float(len(online))}, **about)
        nodes = self._intake.begin_round(online, about)
        work, deadline = self._work(number, base), self.settings.round_deadline_s
        sent_us = time.time_ns() // 1000
        answers = self.fleet.exchange("train", nodes, work, weights, deadline)
        self.failpoint("round-step-2")
        reported = self.reports.since(sent_us) if self.reports is not None else {}
        updates = self._intake.admit(answers, weights, reported, about)
        refusals = self._intake.told()
        if len(updates) < self.aggregator.least:
            few = f"{len(updates)} updates were admitted, {self.aggregator.name} needs "
            reason = f"{few}{self.aggregator.least}" if updates else "no update was admitted"
            self.journal.publish("failed", reason=reason, metrics=refusals, **about)
            self._save(number, weights, base)
            return weights
        averaged, metrics = self._average(updates, weights)
        metrics |= {"seconds": self.clock() - began, **refusals}
        samples = sum(update.samples for update in updates)
        self._intake.counts["aggregated"] += 1
        self.journal.publish("aggregated", samples=samples, metrics=metrics, **about)
        self.failpoint("round-step-3")
        self._save(number, averaged, base)
        self.failpoint("round-step-4")
        central = self._central(averaged, base, held_out)
        metrics = {"held_out": central.share, "held_out_segments": central.evaluated}
        self.journal.publish("evaluated", metrics=metrics, **about)
        self.failpoint("round-step-5")
        return averaged

    def _take_up(self, first: Tensors, base: Artifact) -> tuple[int, Tensors]:
        """The last round that is done, and the weights after it: 0 and `first` in a new run."""
        s = self.settings
        done, weights = 0, first
        if s.resume:
            task = self.task.name, self.task.version
            found = resume.find(s.runs, s.resume, task, base.model, first, self.aggregator.name)
            if not isinstance(found, str) and (why := resume.unfit(s, found.about.settings)):
                found = f"run {s.resume} cannot be gone on with: {why}"
            if isinstance(found, str):
                self.journal.publish("failed", reason=f"{found}: begun anew", base=base.model)
            else:
                done, weights = self._restore(found), found.weights
        self._save(done, weights, base)  # under this run's name: it can be taken up as well
        if self.journal.resumed_from:
            reason = f"goes on after round {done} of run {s.resume}"
            about: dict[str, Any] = {"round": done, "rounds": self.settings.rounds}
            self.journal.publish("resumed", reason=reason, base=base.model, **about)
        return done, weights

    def _save(self, number: int, weights: Tensors, base: Artifact) -> None:
        about = checkpoint.About(
            run=self.settings.run,
            resumed_from=self.journal.resumed_from,
            round=number,
            task=self.task.name,
            task_version=self.task.version,
            base=base.model,
            settings=resume.lasting(self.settings),
            counts=self._intake.counts,
            norms=self._intake.norms,
            fleet_base={d: (a.correct, a.evaluated) for d, a in self._fleet_base.items()},
            node_of=self._intake.node_of,
            strategy=self.aggregator.name,
            conduct=self._intake.conduct.kept(),
        )
        found = checkpoint.Checkpoint(about, weights, self.aggregator.state())
        checkpoint.save(self.settings.runs, found)

    def _restore(self, found: checkpoint.Checkpoint) -> int:
        """Know what the earlier run knew; the round that it had done. The name of a node that is
        gone is free again: a SuperNode that was restarted is another node."""
        about, online = found.about, set(self.fleet.nodes())
        self.journal.resumed_from = about.run
        self.settings = resume.as_before(self.settings, about.settings)
        self._intake.counts = {**self._intake.counts, **about.counts}
        self._intake.norms = list(about.norms)
        self.aggregator.load(found.server)
        self._fleet_base = {d: Accuracy(*figures) for d, figures in about.fleet_base.items()}
        self._intake.node_of = {d: node for d, node in about.node_of.items() if node in online}
        self._intake.conduct = Conduct.from_kept(about.conduct)
        return about.round

    def _promoted_already(self, served: Artifact) -> Verdict:
        """The run that is resumed came to serve its model, and died before it said so."""
        self.journal.resumed_from = self.settings.resume
        reason = self._promotion.announce(served.model, f"run {self.settings.resume} had served it")
        self.journal.publish("promoted", model=served.model, reason=reason)
        return Verdict(True, reason)

    def _average(
        self, updates: Sequence[Update], weights: Tensors
    ) -> tuple[Tensors, dict[str, float]]:
        """The average, and the round's figures. Until the first average the devices are sent the
        model that is served, so the figures of their first updates are that model's."""
        figures = {u.device: a for u in updates if (a := evaluation.reported(u.metrics))}
        if not self._intake.norms:
            self._fleet_base = figures
        self._intake.norms += [norm(update.weights, weights) for update in updates]
        averaged = self.aggregator.aggregate(updates, weights)
        return averaged, {
            "admitted": float(len(updates)),
            "devices_before": evaluation.total(list(figures.values())).share,
            "norm": norm(averaged, weights),
        }

    def _wait_for_nodes(self) -> list[int]:
        """The nodes online, as soon as there are enough; ProcessFailed when there never are."""
        deadline = self.clock() + self.settings.node_wait_s
        needed = max(self.settings.minimum_nodes, self.aggregator.least)
        while len(nodes := self.fleet.nodes()) < needed:
            if self.clock() > deadline:
                lower = "lower minimum-nodes"
                if needed == self.aggregator.least:
                    lower = f"choose another strategy than {self.aggregator.name}"
                raise ProcessFailed(
                    f"{len(nodes)} devices are online, {needed} are needed: start more, or {lower}"
                )
            self.sleep(NODE_POLL_S)
        return nodes

    def _work(self, number: int, base: Artifact) -> Work:
        s = self.settings
        digest = hashlib.sha256(f"{s.seed}/{number}".encode()).digest()
        return Work(
            run=s.run,
            round=number,
            task=self.task.name,
            task_version=self.task.version,
            base=base.model,
            epochs=s.epochs,
            batch_size=s.batch_size,
            learning_rate=s.learning_rate,
            seed=int.from_bytes(digest[:4]),
            time_budget_s=max(1.0, 0.8 * s.round_deadline_s),
        )

    def _central(self, weights: Tensors, base: Artifact, held_out: HeldOut) -> Accuracy:
        if not len(held_out.labels):
            return Accuracy()
        outputs = run_graph(base.files[GRAPH], held_out.segments, weights)
        return evaluation.score(self.task, outputs, held_out.labels)

    def _judge(
        self, first: Tensors, candidate: Tensors, base: Artifact, held_out: HeldOut
    ) -> tuple[Verdict, dict[str, float]]:
        """Evaluate the candidate on the devices and centrally, and decide."""
        number = self.settings.rounds
        work, deadline = self._work(number, base), self.settings.round_deadline_s
        nodes = self.fleet.nodes()
        answers = self.fleet.exchange("evaluate", nodes, work, candidate, deadline)
        after = self._intake.figures(answers)
        fleet_base, fleet_candidate = evaluation.paired(self._fleet_base, after)
        central_base, central = (self._central(w, base, held_out) for w in (first, candidate))
        margin = self.settings.margin
        verdict = evaluation.decide(central_base, central, fleet_base, fleet_candidate, margin)
        metrics = {
            "held_out_base": central_base.share,
            "held_out": central.share,
            "held_out_segments": central.evaluated,
            "devices_base": fleet_base.share,
            "devices": fleet_candidate.share,
            "device_segments": fleet_candidate.evaluated,
        }
        self.journal.publish(
            "evaluated", round=number, rounds=number, base=base.model, metrics=metrics
        )
        return verdict, metrics
