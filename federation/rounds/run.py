"""A federated run: rounds of training on devices, the gate, and the release. Knows no Flower.

    1 resume the run that `resume` names, or start; save a checkpoint
    in each round:
    2 wait until enough devices are online, send the weights, collect updates (collector.py)
    3 admit, aggregate
    4 save a checkpoint
    5 evaluate on held-out people
    with the last weights:
    6 evaluate on the devices, decide; if they are better:
    7 sign, store
    8 decide on the candidate, which the controller offers to a few devices first (rollout.py)

The controller resumes a dead run in a new run from its last checkpoint: after a crash in 1 to 3 the
round is repeated, from the same weights and seed; after 4 and 5 the next round follows; after 6 and
7 the gate is repeated (after 7 a version number is skipped). After step 8 only the announcement is
missing.
"""

import hashlib
import math
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import safetensors.numpy
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from federation.admission.quarantine import Quarantine
from federation.admission.update import Tensors
from federation.aggregation.aggregator import Aggregator
from federation.aggregation.mean import SCAFFOLD
from federation.evaluation import accuracy, teacher_record
from federation.evaluation.accuracy import HeldOut
from federation.evaluation.evidence import CandidateEvaluation
from federation.evaluation.promotion_gate import Verdict
from federation.evaluation.recent_windows import RecentWindows
from federation.registry.registry import Registry
from federation.rounds import checkpoint, client_sampling, resume
from federation.rounds.collector import Collector, Policy
from federation.rounds.event_log import EventLog
from federation.rounds.fleet_reports import FleetReports
from federation.rounds.messages import QUORUM, Fleet
from federation.rounds.promotion import Promotion
from federation.rounds.run_spans import RunSpans
from federation.rounds.settings import RunSettings
from federation.rounds.update_intake import UpdateIntake
from streams.contract.artifact import WEIGHTS
from streams.contract.errors import (
    ProcessFailed,
    Retryable,
    TidewheelError,
    UsageError,
)
from streams.contract.task import Task
from streams.contract.weights import payload
from streams.contract.work import Work
from streams.learning.clipping import update_norm
from streams.runtime.failpoints import Failpoint, unarmed
from streams.runtime.tracing import Tracing

NODE_POLL_S = 0.2


@dataclass
class FederatedRun:
    """One run of a task, from the served model to a verdict. `recent` reads the latest stored
    windows."""

    task: Task
    settings: RunSettings
    registry: Registry
    key: Ed25519PrivateKey
    fleet: Fleet
    journal: EventLog
    aggregator: Aggregator
    reports: FleetReports | None = None
    policy: Policy = field(default_factory=Policy)
    recent: Callable[[], RecentWindows | None] | None = None
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep
    failpoint: Failpoint = unarmed
    rollout: bool = True
    tracing: Tracing | None = None

    def __post_init__(self) -> None:
        self._collector = Collector(self.fleet, self.policy, self.clock, self.sleep, self._silent)
        self._intake = UpdateIntake(
            self.task, self.journal, self.policy.max_staleness, self.aggregator.clip
        )
        self._promotion = Promotion(
            self.task, self.registry, self.key, self.journal, self.failpoint, self.rollout
        )
        self._spans = RunSpans(self.tracing, self.task.name, self.settings.run)
        self.journal.headers = lambda: self._spans.headers

    def run(self) -> Verdict:
        """Run all rounds and the gate. A verdict, or a permanent error, publishes a `finished`
        event; without one the controller resumes the run."""
        outcome = None
        try:
            verdict = self._run()
            outcome = "promoted" if verdict.promote else f"rejected: {verdict.reason}"
            return verdict
        except BaseException as exc:
            if isinstance(exc, TidewheelError) and not isinstance(exc, Retryable):
                outcome = f"failed: {exc}"[:300]
            else:
                self.journal.publish("failed", reason=_interruption(exc)[:300])
            raise
        finally:
            if outcome is not None:
                self.journal.publish("finished", rounds=self.settings.rounds, reason=outcome)
            self.journal.close()
            if self.reports is not None:
                self.reports.close()
            self._spans.end(outcome, self.journal.resumed_from)

    def _run(self) -> Verdict:
        base = self.registry.serving()
        if base is None:
            raise UsageError(f"{self.registry.where} serves no model yet: run `tidewheel up`")
        found = HeldOut.decode(self.registry.heldout(), self.task)
        held_out, audit = found.audited(self.task)
        evaluation = CandidateEvaluation(self.task, base, held_out, self.recent, audit)
        if self.settings.resume and (made := self._made_by(self.settings.resume)):
            return self._promoted_already(made)
        # Sorted, because safetensors changes the order, and sums would differ in the last bits.
        first = dict(
            sorted(payload.to_float32(safetensors.numpy.load(base.files[WEIGHTS])).items())
        )
        done, weights = self._resume(first, evaluation)
        self.failpoint("round-step-1")
        for number in range(done + 1, self.settings.rounds + 1):
            if why := self.aggregator.exhausted():
                self.journal.publish("failed", round=number, reason=f"no more rounds: {why}")
                break
            with suppress(Retryable):  # without the registry a round goes on
                self._promotion.check_key()
            with self._spans.part("run.round", number):
                weights = self._round(number, weights, evaluation)
        if not self._intake.counts["aggregated"]:
            if why := self.aggregator.exhausted():
                raise ProcessFailed(f"no round: {why}")
            if (least := self.aggregator.least) > 1:
                name = self.aggregator.name
                raise ProcessFailed(f"no round had the {least} updates that {name} needs")
            raise ProcessFailed("no update was admitted in any round")
        weights = payload.round_candidate(weights, first, self.task.training.payload)  # as released
        self._promotion.check_key()
        with self._spans.part("run.gate", self.settings.rounds):
            verdict, weights = self._evaluate(first, weights, evaluation)
        self.failpoint("round-step-6")
        serving = self.registry.serving()
        if verdict.promote and (serving is None or serving.model != base.model):
            other = serving.model if serving else "nothing"
            reason = f"the base was {base.model}, but {other} is served now"
            verdict = replace(verdict, promote=False, reason=reason)
        run, rounds, metrics = self.settings.run, self.settings.rounds, dict(verdict.evidence)
        if verdict.promote:
            counts = self._intake.counts
            self._promotion.promote(weights, base, verdict, metrics, counts, run=run, rounds=rounds)
        else:
            about: dict[str, Any] = {"round": rounds, "rounds": rounds, "base": base.model}
            self.journal.publish("rejected", reason=verdict.reason, metrics=metrics, **about)
        return verdict

    def _round(self, number: int, weights: Tensors, evaluation: CandidateEvaluation) -> Tensors:
        """Run one round; return the new weights, or the given ones if too few updates were
        admitted."""
        began, sent_us = self.clock(), time.time_ns() // 1000
        base = evaluation.base.model
        about: dict[str, Any] = {"round": number, "rounds": self.settings.rounds, "base": base}
        online = self._wait_for_nodes()
        self._intake.free_names(online)
        asked = self._asked(online, number, base)
        sent = payload.round_weights(weights, self.task.training.payload)
        metrics = {"nodes": float(len(asked)), "online": float(len(online))}
        self.journal.publish("started", metrics=metrics, **about)
        asked = self._intake.begin_round(asked, sent, about)
        work, deadline = self._work(number, base), self.settings.round_deadline_s
        least = self.aggregator.least
        answers = self._collector.train(asked, work, sent, deadline, len(online), least)
        given_up = self._collector.given_up
        self.failpoint("round-step-2")
        reported = self.reports.since(sent_us) if self.reports is not None else {}
        updates = self._intake.admit(answers, reported, about)
        refusals = self._intake.refusal_metrics()
        if len(updates) < least:
            few = f"{len(updates)} updates were admitted, {self.aggregator.name} needs {least}"
            reason = few if updates else "no update was admitted"
            self.journal.publish("failed", reason=reason, metrics=refusals, **about)
            self._save(number, weights, evaluation)
            return weights
        reports = [found for u in updates if (found := accuracy.reported(self.task, u.metrics))]
        self._intake.norms += [update_norm(u.weights, u.sent or weights) for u in updates]
        averaged = self.aggregator.aggregate(updates, weights)
        metrics = {
            "admitted": float(len(updates)),
            "claims_capped": float(self._intake.capped),
            **({"devices_before": accuracy.total(reports).value} if reports else {}),
            "norm": update_norm(averaged, weights),
            "seconds": self.clock() - began,
            **({"silent": float(given_up)} if given_up else {}),
            **self.aggregator.metrics(),
            **refusals,
        }
        samples = sum(update.samples for update in updates)
        self._intake.counts["aggregated"] += 1
        self.journal.publish("aggregated", samples=samples, metrics=metrics, **about)
        self.failpoint("round-step-3")
        self._save(number, averaged, evaluation)
        self.failpoint("round-step-4")
        central = evaluation.central(averaged)
        metrics = {"held_out": central.value, "held_out_segments": central.of}
        self.journal.publish("evaluated", metrics=metrics, **about)
        self.failpoint("round-step-5")
        return averaged

    def _resume(self, first: Tensors, evaluation: CandidateEvaluation) -> tuple[int, Tensors]:
        """Return the last completed round and the weights after it: 0 and `first` in a new run."""
        s, base = self.settings, evaluation.base.model
        done, weights = 0, first
        if s.resume:
            task = self.task.name, self.task.version
            found = resume.find(s.runs, s.resume, task, base, first, self.aggregator.name)
            if not isinstance(found, str) and (why := resume.unfit(s, found.about.settings)):
                found = f"run {s.resume} cannot be resumed: {why}"
            if isinstance(found, str):
                self.journal.publish("failed", reason=f"{found}: starting over", base=base)
            else:
                done, weights = self._restore(found), found.weights
        self._save(done, weights, evaluation)  # under this run's name, so it can be resumed too
        if self.journal.resumed_from:
            reason = f"resumed after round {done} of run {s.resume}"
            about: dict[str, Any] = {"round": done, "rounds": self.settings.rounds}
            self.journal.publish("resumed", reason=reason, base=base, **about)
        return done, weights

    def _save(self, number: int, weights: Tensors, evaluation: CandidateEvaluation) -> None:
        about = checkpoint.About(
            run=self.settings.run,
            resumed_from=self.journal.resumed_from,
            round=number,
            task=self.task.name,
            task_version=self.task.version,
            base=evaluation.base.model,
            settings=resume.lasting(self.settings),
            counts=self._intake.counts,
            norms=self._intake.norms,
            node_of=self._intake.node_of,
            strategy=self.aggregator.name,
            conduct=self._intake.quarantine.record(),
        )
        found = checkpoint.Checkpoint(about, weights, self.aggregator.state())
        checkpoint.save(self.settings.runs, found)

    def _restore(self, found: checkpoint.Checkpoint) -> int:
        """Restore the earlier run's state; return its last completed round."""
        about = found.about
        self.journal.resumed_from = about.run
        self.settings = resume.as_before(self.settings, about.settings)
        self._intake.counts = {**self._intake.counts, **about.counts}
        self._intake.norms = list(about.norms)
        self.aggregator.load(found.server)
        self._intake.node_of = dict(about.node_of)
        self._intake.free_names(self.fleet.nodes())
        self._intake.quarantine = Quarantine.from_record(about.conduct)
        return about.round

    def _made_by(self, run: str) -> str | None:
        """Return the version that a run's candidate became, whatever its later status."""
        made = (d.model for d in self.registry.decisions() if d.run == run)
        return next(made, None)

    def _promoted_already(self, model: str) -> Verdict:
        """Report the candidate of the resumed run, which died after its decision."""
        self.journal.resumed_from = self.settings.resume
        reason = f"run {self.settings.resume} had already decided on it"
        self.journal.publish("promoted", model=model, reason=reason)
        return Verdict(True, reason)

    def _wait_for_nodes(self) -> list[int]:
        """Return the online nodes once enough are online, and enough of them free or, in a buffered
        run, busy.

        Busy nodes become free when their work expires, so that is waited for. Each node whose
        device is silent lowers the number of free ones, down to half of `minimum-nodes`. Raises
        ProcessFailed if too few nodes come online.
        """
        deadline = self.clock() + self.settings.node_wait_s
        needed = max(self.settings.minimum_nodes, self.aggregator.least)
        while True:
            nodes = self.fleet.nodes()
            free = self._collector.free(nodes)
            if len(nodes) >= needed:
                if self.policy.buffered or len(free) >= needed:
                    return nodes
                silent = len(nodes) - len(self._collector.heard(nodes))
                if len(self._collector.heard(free)) >= max(needed - silent, self._fewest):
                    return nodes
            if len(nodes) < needed and self.clock() > deadline:
                lower = "lower minimum-nodes"
                if needed == self.aggregator.least:
                    lower = f"choose another strategy than {self.aggregator.name}"
                raise ProcessFailed(
                    f"{len(nodes)} devices are online, {needed} are needed: start more, or {lower}"
                )
            self.sleep(NODE_POLL_S)

    def _asked(self, online: list[int], number: int, base: str) -> list[int]:
        """Return the nodes that get work in this round: none whose device is silent, unless too few
        are left. If too few report that they can train, the others are asked as well: a node that
        cannot train replies with an error."""
        free = self._collector.free(online)
        heard = self._collector.heard(free)
        free = heard if len(heard) >= self._fewest else free
        said = self.reports.by_node() if self.reports is not None else {}
        training = self.task.training
        fit = [
            n for n in free if n not in said or not client_sampling.unfit(said[n], base, training)
        ]
        fit = fit if len(fit) >= min(self.settings.minimum_nodes, len(free)) else free
        return client_sampling.choose(fit, said, base, self.policy.asked, self._seed(number))

    @property
    def _fewest(self) -> int:
        """The nodes with which a round begins where the devices of the others are silent."""
        return max(math.ceil(QUORUM * self.settings.minimum_nodes), self.aggregator.least)

    def _silent(self) -> Mapping[int, float]:
        return self.reports.silent() if self.reports is not None else {}

    def _seed(self, number: int) -> int:
        digest = hashlib.sha256(f"{self.settings.seed}/{number}".encode()).digest()
        return int.from_bytes(digest[:4])

    def _work(self, number: int, base: str) -> Work:
        s = self.settings
        return Work(
            run=s.run,
            round=number,
            task=self.task.name,
            task_version=self.task.version,
            base=base,
            epochs=s.epochs,
            batch_size=s.batch_size,
            learning_rate=s.learning_rate,
            seed=self._seed(number),
            time_budget_s=max(1.0, 0.8 * s.round_deadline_s),
            payload=self.task.training.payload,
            teacher=teacher_record.shares(self.task, self.reports.states()) if self.reports else [],
            scaffold=self.aggregator.name == SCAFFOLD,
            traceparent=self._spans.traceparent,
        )

    def _evaluate(
        self, first: Tensors, learned: Tensors, evaluation: CandidateEvaluation
    ) -> tuple[Verdict, Tensors]:
        """Evaluate what was learned on the devices and centrally; return the verdict, and the
        weights that it is about: these, or those at a part of the way."""
        number, base = self.settings.rounds, evaluation.base.model
        work, deadline = self._work(number, base), self.settings.round_deadline_s
        answers = self._collector.evaluate(self.fleet.nodes(), work, learned, deadline)
        verdict, candidate = evaluation.judge(
            first, learned, partial(self._intake.device_results, answers), self.settings.margin
        )
        metrics = dict(verdict.evidence)
        self.journal.publish("evaluated", round=number, rounds=number, base=base, metrics=metrics)
        return verdict, candidate


def _interruption(exc: BaseException) -> str:
    """In words for a person: Flower stops a ServerApp by a signal, which raises SystemExit."""
    if isinstance(exc, SystemExit | KeyboardInterrupt):
        return "the run was stopped: by `flwr stop`, or because its SuperExec ended"
    return f"the run was interrupted: {exc!r}"
