"""A federated run: rounds of training on devices, the gate, and the release. Knows no Flower.

    1 resume the run that `resume` names, or start; save a checkpoint
    in each round:
    2 invite devices, wait until enough have joined, send the weights, collect updates
      (participants.py, collector.py)
      where fewer than half of the asked devices send one, the others are asked once more
    3 admit, aggregate; an aggregate of fewer than half ends the run
    4 save a checkpoint
    5 evaluate on held-out people
    with the last weights:
    6 evaluate on the devices, decide; if they are better:
    7 sign, store
    8 decide on the candidate, which the controller offers to a few devices first (rollout.py)

Weights are those that travel (streams.contract.weights.part), from sending to the candidate; what
is evaluated and released is the whole of a version with them.

The controller resumes a dead run in a new run from its last checkpoint: after a crash in 1 to 3 the
round is repeated, from the same weights and seed; after 4 and 5 the next round follows; after 6 and
7 the gate is repeated (after 7 a version number is skipped). After step 8 only the announcement is
missing.
"""

import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import safetensors.numpy
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from federation.admission import Tensors
from federation.evaluation import accuracy
from federation.evaluation.accuracy import HeldOut
from federation.evaluation.evidence import CandidateEvaluation
from federation.evaluation.promotion_gate import Verdict
from federation.evaluation.quantization import Quantizer, embeddings
from federation.evaluation.recent_windows import RecentWindows
from federation.registry.registry import CALIBRATION, HELD_OUT, Registry
from federation.rounds import checkpoint
from federation.rounds.aggregator import Aggregator
from federation.rounds.checkpoint import park
from federation.rounds.collector import QUORUM, Collector, Fleet, Policy, Reply
from federation.rounds.event_log import FAILED, INTERRUPTED, EventLog
from federation.rounds.fleet_reports import FleetReports, teacher_shares
from federation.rounds.participants import Inviter, Participants
from federation.rounds.promotion import Promotion
from federation.rounds.settings import RunSettings
from federation.rounds.update_intake import UpdateIntake
from streams.contract.artifact import GRAPH, WEIGHTS
from streams.contract.errors import (
    ProcessFailed,
    Retryable,
    TidewheelError,
    UsageError,
)
from streams.contract.task import Task
from streams.contract.weights import payload
from streams.contract.weights.part import Part
from streams.contract.work import Work
from streams.learning.updates import update_norm
from streams.runtime.failpoints import Failpoint, unarmed
from streams.runtime.tracing import OFF, About, Tracing


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
    tracing: Tracing = OFF
    inviter: Inviter | None = None

    def __post_init__(self) -> None:
        self._collector = Collector(
            self.fleet, self.policy, self.clock, self._pause, self._silent, self._at_work
        )
        self._intake = UpdateIntake(
            self.task, self.journal, self.policy.max_staleness, self.aggregator.clip
        )
        self._promotion = Promotion(
            self.task, self.registry, self.key, self.journal, self.failpoint, self.rollout
        )
        self._trace = self._span = self.tracing.begin("run", {"run": self.settings.run})
        self._updates: list[tuple[int, int]] = []  # of each round, and how many were asked
        self.journal.headers = lambda: self._span.headers

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
                outcome = f"{FAILED}{exc}"[:300]
            else:
                self.journal.publish("failed", reason=_interruption(exc)[:300])
            raise
        finally:
            if outcome is not None:
                self.journal.publish("finished", rounds=self.settings.rounds, reason=outcome)
            if self.inviter is not None:
                self.inviter.end()
            self.journal.close()
            if self.reports is not None:
                self.reports.close()
            failed = (
                "" if outcome and not outcome.startswith("failed") else outcome or "interrupted"
            )
            resumed = self.journal.resumed_from
            self._trace.end(failed, {"outcome": outcome or "interrupted", "resumed_from": resumed})
            self.tracing.close()

    def _run(self) -> Verdict:
        self._participants = Participants(
            self.task, self.settings, self.policy, self.fleet, self._collector, self.journal,
            self.aggregator, self.reports, self.inviter, self.clock, self._pause,
        )  # fmt: skip
        base = self.registry.serving()
        if base is None:
            raise UsageError(f"{self.registry.where} serves no model yet: run `tidewheel prepare`")
        if self.settings.resume and (made := self._made_by(self.settings.resume)):
            return self._promoted_already(made)
        found = HeldOut.decode(self.registry.central(HELD_OUT), self.task)
        held_out, audit = found.audited(self.task)
        quantizer = Quantizer.of(self.task, self.registry.central(CALIBRATION), base.files)
        self.aggregator.embeddings = embeddings(base.files[GRAPH])
        files = dict(base.files)
        served = payload.to_float32(safetensors.numpy.load(files.pop(WEIGHTS)))
        base = replace(base, files=files)  # of whose weights one copy is enough
        evaluation = CandidateEvaluation(
            self.task, base, held_out, self.recent, audit, quantizer=quantizer
        )
        self._carried = Part(self.task.training, base.model, self._parked(served))
        first = self._carried.first
        del served
        done, weights = self._resume(first, evaluation)
        self.failpoint("round-step-1")
        for number in range(done + 1, self.settings.rounds + 1):
            if why := self.aggregator.exhausted():
                self.journal.publish("failed", round=number, reason=f"no more rounds: {why}")
                break
            with suppress(Retryable):  # without the registry a round goes on
                self._promotion.check_key()
            with self._part("run.round", number):
                weights = self._round(number, weights, evaluation)
        if not self._intake.counts["aggregated"]:
            if why := self.aggregator.exhausted():
                raise ProcessFailed(f"no round: {why}")
            if (least := self.aggregator.least) > 1:
                name = self.aggregator.name
                raise ProcessFailed(f"no round had the {least} updates that {name} needs")
            raise ProcessFailed("no update was admitted in any round")
        as_released = payload.round_candidate(weights, first, self.task.training.payload)
        weights = self._parked(as_released)
        del as_released
        self._promotion.check_key()
        with self._part("run.gate", self.settings.rounds):
            verdict, weights = self._evaluate(weights, evaluation)
        if self._updates:  # a run that was resumed after its last round has none of its own
            verdict = replace(verdict, reason=f"{verdict.reason}; {self._made_of()}")
        self.failpoint("round-step-6")
        serving = self.registry.serving() if verdict.promote else None
        if verdict.promote and (serving is None or serving.model != base.model):
            other = serving.model if serving else "nothing"
            reason = f"the base was {base.model}, but {other} is served now"
            verdict = replace(verdict, promote=False, reason=reason)
        run, rounds, metrics = self.settings.run, self.settings.rounds, dict(verdict.evidence)
        if verdict.promote and serving is not None:
            counts = self._intake.counts
            self._promotion.promote(
                self._carried, weights, serving, verdict, metrics, counts, quantizer, run=run,
                rounds=rounds,
            )  # fmt: skip
        else:
            about: dict[str, Any] = {"round": rounds, "rounds": rounds, "base": base.model}
            self.journal.publish("rejected", reason=verdict.reason, metrics=metrics, **about)
        return verdict

    @contextmanager
    def _part(self, name: str, number: int) -> Iterator[None]:
        """Trace a part of the run: messages and works meanwhile name its span."""
        about: About = {"run": self.settings.run, "round": number}
        self._span, error = self.tracing.begin(name, about, self._trace.text), ""
        try:
            yield
        except BaseException as exc:
            error = type(exc).__name__
            raise
        finally:
            self._span.end(error)
            self._span = self._trace

    def _parked(self, weights: Tensors) -> Tensors:
        return park(weights, self.settings.runs / self.settings.run)

    def _made_of(self) -> str:
        """Say how many updates are in the candidate."""
        got, asked = (sum(column) for column in zip(*self._updates, strict=True))
        rounds = len(self._updates)
        return f"{got} of {asked} updates in {rounds} round{'s' * (rounds > 1)}"

    def _round(self, number: int, weights: Tensors, evaluation: CandidateEvaluation) -> Tensors:
        """Run one round; return the new weights, or the given ones if the strategy needs more
        updates. Raise ProcessFailed if fewer than half of the asked devices sent one."""
        began, sent_us = self.clock(), time.time_ns() // 1000
        base = evaluation.base.model
        about: dict[str, Any] = {"round": number, "rounds": self.settings.rounds, "base": base}
        sent = self._parked(payload.round_weights(weights, self.task.training.payload))
        answers, asked = self._collect(sent, about)
        self.failpoint("round-step-2")
        reported = self.reports.since(sent_us) if self.reports is not None else {}
        updates = self._intake.admit(answers, reported, about)
        refusals = self._intake.refusal_metrics()
        if self._is_too_few(len(updates), asked):
            raise ProcessFailed(
                f"round {number}: {len(updates)} of {asked} asked devices sent an update that "
                f"counts{self._intake.why}, also when asked again; fewer than half are too few"
            )
        least = self.aggregator.least
        if len(updates) < least:
            reason = f"{len(updates)} updates were admitted, {self.aggregator.name} needs {least}"
            self.journal.publish("failed", reason=reason, metrics=refusals, **about)
            self._save(number, weights, evaluation)
            return weights
        self._updates.append((len(updates), asked))
        reports = [found for u in updates if (found := accuracy.reported(self.task, u.metrics))]
        averaged = self._parked(self.aggregator.aggregate(updates, weights))
        given_up = self._collector.given_up
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
        with ThreadPoolExecutor(1) as beside:
            central_of = beside.submit(evaluation.central, self._carried.whole(averaged))
            self._save(number, averaged, evaluation)
            self.failpoint("round-step-4")
            central = central_of.result()
        metrics = {"held_out": central.value, "held_out_segments": central.of}
        self.journal.publish("evaluated", metrics=metrics, **about)
        self.failpoint("round-step-5")
        return averaged

    def _collect(self, sent: Tensors, about: dict[str, Any]) -> tuple[list[Reply], int]:
        """Run step 2; return the replies, and how many devices were asked. If fewer than half sent
        an update, the others are asked once more, and so are devices that have joined meanwhile."""
        answers, asked = self._ask(sent, about, set())
        if self._is_too_few(got := _updates_in(answers), asked):
            reason = f"{got} of {asked} asked devices sent an update: the others are asked again"
            self.journal.publish("failed", reason=reason, **about)
            answered = {answer.node for answer in answers if answer.update is not None}
            answers += self._ask(sent, about, answered)[0]
        return answers, asked

    def _ask(
        self, sent: Tensors, about: dict[str, Any], answered: Collection[int]
    ) -> tuple[list[Reply], int]:
        number, base = int(about["round"]), str(about["base"])
        online = self._participants.wait(number, base)
        self._intake.free_names(online)
        asked = [n for n in self._participants.asked(online, number, base) if n not in answered]
        metrics = {"nodes": float(len(asked)), "online": float(len(online))}
        self.journal.publish("started", metrics=metrics, **about)
        asked = self._intake.begin_round(asked, sent, about)
        work, deadline = self._work(number, base, len(online)), self.settings.round_deadline_s
        least = self.aggregator.least
        return self._collector.train(asked, work, sent, deadline, len(online), least), len(asked)

    def _is_too_few(self, updates: int, asked: int) -> bool:
        """Return whether an aggregate of so many updates is no candidate. A buffer counts its
        updates itself."""
        expected = min(asked, self.policy.target or asked)
        return not self.policy.buffered and updates < max(1.0, QUORUM * expected)

    def _resume(self, first: Tensors, evaluation: CandidateEvaluation) -> tuple[int, Tensors]:
        """Return the last completed round and the weights after it: 0 and `first` in a new run."""
        s, base = self.settings, evaluation.base.model
        done, weights = 0, first
        if s.resume:
            task = self.task.name, self.task.version
            found = checkpoint.find(s.runs, s.resume, task, base, first, self.aggregator.name)
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
            settings=checkpoint.Lasting.of_fields(
                {
                    name: getattr(self.settings, name)
                    for name in checkpoint.Lasting.__struct_fields__
                }
            ),
            counts=self._intake.counts,
            norms=self._intake.norms,
            node_of=self._intake.node_of,
            strategy=self.aggregator.name,
            conduct=self._intake.quarantine,
        )
        found = checkpoint.Checkpoint(about, weights, self.aggregator.state())
        checkpoint.save(self.settings.runs, found)

    def _restore(self, found: checkpoint.Checkpoint) -> int:
        """Restore the earlier run's state; return its last completed round."""
        about = found.about
        self.journal.resumed_from = about.run
        self.settings = replace(self.settings, **about.settings.fields())
        self._participants.settings = self.settings
        self._intake.counts = {**self._intake.counts, **about.counts}
        self._intake.norms = list(about.norms)
        self.aggregator.load(found.server)
        self._intake.node_of = dict(about.node_of)
        self._intake.free_names(self.fleet.nodes())
        self._intake.quarantine = about.conduct
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

    def _pause(self, seconds: float) -> None:
        if self.inviter is not None:
            self.inviter.repeat_if_due()
        self.sleep(seconds)

    def _silent(self) -> Mapping[int, float]:
        return self.reports.silent() if self.reports is not None else {}

    def _at_work(self) -> set[int]:
        return self.reports.at_work() if self.reports is not None else set()

    def _work(self, number: int, base: str, devices: int) -> Work:
        s = self.settings
        return Work(
            run=s.run,
            round=number,
            task=self.task.name,
            task_version=self.task.version,
            base=base,
            part=not self._carried.is_all,
            epochs=s.epochs,
            batch_size=self.task.training.batch_size,
            learning_rate=s.learning_rate,
            seed=self.settings.seed_of(number),
            time_budget_s=max(1.0, 0.8 * s.round_deadline_s),
            limit_s=s.limit_s(self._collector.slowest_s, devices),
            payload=self.task.training.payload,
            teacher=teacher_shares(self.task, self.reports.states()) if self.reports else [],
            traceparent=self._span.text,
        )

    def _evaluate(
        self, learned: Tensors, evaluation: CandidateEvaluation
    ) -> tuple[Verdict, Tensors]:
        """Evaluate what was learned on the devices and centrally; return the verdict, and the
        weights that it is about: these, or those at a part of the way."""
        number, base = self.settings.rounds, evaluation.base.model
        nodes, deadline = self.fleet.nodes(), self.settings.round_deadline_s
        work = self._work(number, base, len(nodes))
        answers = self._collector.evaluate(nodes, work, learned, deadline)
        verdict, candidate = evaluation.judge(
            self._carried, learned, partial(self._intake.device_results, answers),
            self.settings.margin,
        )  # fmt: skip
        metrics = dict(verdict.evidence)
        self.journal.publish("evaluated", round=number, rounds=number, base=base, metrics=metrics)
        return verdict, candidate


def _updates_in(answers: Sequence[Reply]) -> int:
    return sum(a.op == "train" and a.update is not None for a in answers)


def _interruption(exc: BaseException) -> str:
    """In words for a person: Flower stops a ServerApp by a signal, which raises SystemExit."""
    if isinstance(exc, SystemExit | KeyboardInterrupt):
        return f"{INTERRUPTED}stopped: by `flwr stop`, or because its SuperExec ended"
    return f"{INTERRUPTED}interrupted: {exc!r}"
