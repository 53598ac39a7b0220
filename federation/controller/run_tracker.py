"""The federated runs of a task: starts one when there is cause, follows all, recovers dead ones.

`rounds` is read from its beginning, to know whether a run is still active. A run that died without
a `finished` event is resumed, see run_recovery.py.

<folder>/superlink-wanted is there while a run is active, due, or likely to be due soon. `tidewheel
up` lets the SuperLink sleep without it; elsewhere the SuperLink is a service, and nothing reads the
file. After a crash a controller keeps or removes it by the runs on `rounds`.
"""

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

from federation.controller.fleet_evidence import FleetEvidence, TriggerRules
from federation.controller.flwr_cli import (
    COMPLETED,
    FAILED,
    STOPPED,
    UNKNOWN,
    ConfigValue,
    Submission,
)
from federation.controller.run_recovery import RESUMES, Resumer
from federation.controller.triggers import RunsSoFar, decide, kind_of
from federation.rounds.event_log import failed_for_good, why_failed
from streams.contract.decisions import MANUAL, Decision
from streams.contract.documents import RoundEvent, RoundKind
from streams.contract.errors import ProcessFailed
from streams.contract.topics import ROUNDS, topic_name
from streams.fleet.wording import failure
from streams.kafka.producer import Producer
from streams.runtime.failpoints import Failpoint

SUPERLINK_S = 60.0  # to answer, before a run that is due counts as failed
SILENCE_S = 20.0  # after so long without an event a run is checked with `flwr list`
BY_USER = "stopped by a user"  # with `flwr stop`: such a run is not resumed
RESUMED = "; resumed by run"
SEE_LOG = "see `flwr log RUN`"

log = logging.getLogger(__name__)


class RunTracker:
    """Tracks the runs of one task. `state` has the runs' checkpoints, `config` the settings of a
    new run."""

    def __init__(
        self,
        task: str,
        state: Path,
        submission: Submission,
        config: Mapping[str, ConfigValue],
        rules: TriggerRules,
        clock: Callable[[], float],
        failpoint: Failpoint,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._task, self._submission, self._config = task, submission, config
        self._rules, self._clock, self._wall, self._reached = rules, clock, wall, failpoint
        self._folder, self._journals = state / "controller", state / "runs"
        self._resumer = Resumer(self._folder, self._journals, submission, config, failpoint)
        self.evidence = FleetEvidence(rules)
        self._since, self._heard = wall(), clock()
        self._run: str | None = None
        self._completed: str | None = None  # a run that Flower has called completed once
        self._finished: set[str] = set()
        self._starts: dict[str, float] = {}  # by run, wall time; 0 if it resumes another one
        self._failed: float | None = None
        self._failure = ""
        self._refused, self._refusal = 0, ""  # the runs that one reason has refused in a row
        self._held_back: str | None = None
        self._wanted = self._folder / "superlink-wanted"
        self._due = False
        self._cause: str | None = None  # of a run that waits for the SuperLink
        self._away_since: float | None = None

    @property
    def last_start_s(self) -> float:
        """When the last known run began, wall time; 0 without one."""
        return max(self._starts.values(), default=0.0)

    @property
    def so_far(self) -> RunsSoFar:
        starts = tuple(filter(None, self._starts.values()))
        return RunsSoFar(
            self._run is not None, starts, self._failed, self._failure, self._refused, self._refusal
        )

    def lead(self) -> None:
        """Begin to lead: continue the recovery that the controller before may have begun."""
        self._resumer.read()

    def take(self, event: RoundEvent, *, live: bool = True) -> None:
        """Process an event of `rounds`; `live` is False for events from before this controller."""
        if event.kind == "asked":
            self.evidence.ask(event.reason, event.time_us / 1e6)
            return
        if event.kind == "postponed":
            return
        if event.kind == "rejected":
            self._undo(event.reason)
        self._note_start(event)
        if event.run in self._finished or event.run in self._resumer.earlier:
            # "requested" may come after all other events of a short run, and a run that was resumed
            # may still send an event.
            self._finished |= {event.run} if event.kind == "finished" else set()
            return
        pending = self._resumer.pending is not None
        if not pending:
            self._heard = self._clock()
        if event.kind != "finished":
            if live and self._run is None:
                log.info("run %s was started elsewhere", event.run)
            if not pending:  # until then the dead run is looked at, to find the one that resumes it
                self._run = event.run
            return
        self._finished.add(event.run)
        self._resumer.forget(event.run)
        if event.run == self._run:
            self._run = None
        if (why := failure(event)) and not why.startswith(BY_USER) and RESUMED not in why:
            self._undo(why)
        if live:
            log.info("run %s finished: %s", event.run, event.reason)

    def take_decision(self, decision: Decision) -> None:
        """Process a decision: a version that its rollout takes back, of a run or imported, counts
        as a run that was refused."""
        if decision.kind == "served":
            self._refused, self._refusal = 0, ""
            self._cause = None
        elif decision.kind == "rolled-back" and not decision.reason.startswith(MANUAL):
            self._undo(decision.reason)

    def _undo(self, reason: str) -> None:
        """Count the causes of a run again, of which nothing is served."""
        self.evidence.run_undone()
        again = kind_of(reason) == kind_of(self._refusal)
        self._refused, self._refusal = self._refused + 1 if again else 1, reason

    def want_superlink(self) -> None:
        """Say whether a run needs the SuperLink."""
        if self._run is None and not self._due:
            self._wanted.unlink(missing_ok=True)
            self._away_since = None
        elif not self._wanted.exists():
            self._folder.mkdir(parents=True, exist_ok=True)
            self._wanted.touch()

    def _superlink_starts(self) -> bool:
        """Whether the SuperLink does not answer, and has not for less than SUPERLINK_S."""
        if self._submission.ready():
            self._away_since = None
            return False
        if self._away_since is None:
            self._away_since = self._clock()
            log.info("waiting for the SuperLink")
        return self._clock() - self._away_since < SUPERLINK_S

    def check(self, producer: Producer, *, at_once: bool = False) -> None:
        """Ask the SuperLink about a silent run, or about any `at_once`; recover it if it died."""
        silent = at_once or self._clock() - self._heard > SILENCE_S
        if self._run is None or not silent or self._superlink_starts():
            return
        self._heard = self._clock()
        try:
            known = self._submission.runs()
            status = known.get(self._run, UNKNOWN)
            if not (status.startswith("finished") or status == UNKNOWN):
                return
            if status == COMPLETED and self._completed != self._run:
                self._completed = self._run  # its last events, sent before, may not be read yet
                return
            ended = BY_USER if status == STOPPED else "the run ended without a result"
            reason, journal = f"{ended} ({status})", self._journals / self._run
            if status == FAILED:
                reason += f": {why_failed(journal) or SEE_LOG}"
            log.warning("run %s: %s", self._run, reason)
            new = None
            if status not in (COMPLETED, STOPPED) and not failed_for_good(journal):
                new = self._resumer.resume(self._run, reason, known)
                reason += f"; resumed {RESUMES} times, no more" if new is None else ""
        except ProcessFailed as exc:
            log.warning("%s", exc)  # try again after SILENCE_S
            return
        dead, self._run = self._run, new
        if new is None:
            self._publish(producer, dead, "finished", reason)
            self._resumer.forget(dead)
        else:
            self.catch_up(producer)

    def catch_up(self, producer: Producer) -> None:
        """Follow the run that resumes others, and publish the events of step 4 unless they
        exist."""
        kept = self._resumer.lineage
        if kept is None:
            return
        last = kept.runs[-1]
        if self._run is None or self._run in kept.runs or self._resumer.pending:
            self._run = last
        for dead, new in pairwise(kept.runs):
            if dead not in self._finished:
                reason = f"resumes run {dead}: {kept.reason}"
                log.info("run %s %s", new, reason)
                self._publish(producer, new, "requested", reason, resumed_from=dead)
                self._publish(producer, dead, "finished", f"{kept.reason}{RESUMED} {new}")
                self._finished.add(dead)
        self._reached("resume-step-4")
        if last in self._finished and not self._resumer.pending:
            self._resumer.forget(last)
            self._run = None if self._run == last else self._run

    def _note_start(self, event: RoundEvent) -> None:
        """Record when the run of `event` began, for the daily budget; a run that resumes another
        does not count, that one does."""
        if event.resumed_from or event.kind == "resumed":
            self._starts[event.run] = 0.0
        elif event.run not in self._starts:
            self._starts[event.run] = at = event.time_us / 1e6
            self.evidence.run_began(at)
            self._held_back = self._cause = None

    def start_if_due(self, producer: Producer) -> None:
        """Start a run if there is cause and no budget forbids it. A cause that has come stays while
        the SuperLink starts."""
        now = self._wall()
        found = decide(self._rules, self.evidence, self.so_far, now, self._since)
        if found.cause is None and self._run is None:
            found = replace(found, cause=self._cause)
        if found.held_back not in (None, self._held_back):
            log.info("a run is due (%s) but held back: %s", found.cause, found.held_back)
            self._held_back = found.held_back
            if self._run is None:
                reason = f"{found.held_back}. It is due because {found.cause}"
                self._publish(producer, "", "postponed", reason)
        self._due = found.start or found.soon
        if not found.start:
            return
        self._cause = found.cause if self._superlink_starts() else None
        if self._cause is not None:
            return
        try:
            run = self._submission.start(self._config, self._folder)
        except ProcessFailed as exc:
            log.error("a run is due (%s) but could not start: %s", found.cause, exc)
            self._failed, self._failure = now, str(exc)
            return
        self.evidence.run_began(now)
        self._starts[run] = now
        self._held_back = None
        self._run, self._heard = run, self._clock()
        log.info("run %s: %s", run, found.cause)
        self._publish(producer, run, "requested", found.cause or "")

    def _publish(
        self, producer: Producer, run: str, kind: RoundKind, reason: str, **fields: str
    ) -> None:
        about = {"run": run, "kind": kind, "time_us": time.time_ns() // 1000, "reason": reason}
        event = RoundEvent.of_fields({**about, **fields})
        producer.put(topic_name(self._task, ROUNDS), run.encode(), event.encode())
