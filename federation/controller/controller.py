"""The controller, `tidewheel controller TASK`: announces decisions, moves candidates on or back,
and starts runs when there is cause.

It starts from the last snapshot of the fleet and the PAST windows before it, and follows the topics
from there. The registry has the decisions, `releases` what devices know of them. Of several
controllers of a task one leads, the others wait (streams.kafka.admin).
"""

import logging
import os
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from federation.controller.fleet_evidence import TriggerRules
from federation.controller.run_tracker import RunTracker
from federation.controller.settings import ControllerSettings
from federation.registry import publisher
from federation.registry.registry import Registry, Stale
from federation.rollout.rollout import Rollout
from federation.rollout.window_history import WindowHistory
from streams.contract.decisions import Decision, Release
from streams.contract.documents import RoundEvent
from streams.contract.errors import BrokerUnavailable, MalformedRecord, Retryable, UsageError
from streams.contract.task import Task, absolute_reference, load_task
from streams.contract.task.metrics import retrain_limit, window_metric
from streams.contract.topics import RELEASES, topic_name
from streams.contract.window_report import WindowReport
from streams.fleet.following import Snapshots, before, open_view
from streams.fleet.view import FleetView
from streams.kafka.election import Election
from streams.kafka.producer import Producer
from streams.kafka.reader import Received
from streams.runtime.failpoints import Failpoint, read_failpoint, unarmed
from streams.runtime.trust import load_private_key, load_public_key

if TYPE_CHECKING:  # prometheus_client, which only --metrics-port needs
    from federation.controller.metrics import FederationMetrics
    from federation.controller.tracking import Tracker

log = logging.getLogger(__name__)

BACK_OFF_S = (1.0, 2.0, 5.0, 10.0)
LOOK_S = 2.0  # interval of reading the registry, where others decide too
BYTES_LOOK_S = 600.0  # interval of looking whether `artifacts` still has what is announced
EVALUATE_S = 0.25  # interval of evaluating the rollout: a replay closes windows every second
PAST = 10_000  # reports on `windows` from before the snapshot
EVALUATE_SHARE = 0.1  # of the time, at most, for evaluations: those of a large fleet are slow


def run(settings: ControllerSettings, stop: threading.Event) -> None:
    """Run the controller until `stop` is set; a running federated run is not stopped.

    While the broker or the registry is unavailable it backs off and starts again. Raises UsageError
    if there is no model to serve.
    """
    failpoint = read_failpoint(os.environ)
    controller = Controller(settings, load_task(settings.task_ref), failpoint=failpoint)
    if settings.metrics_port is not None:
        _serve_metrics(controller, settings)
    if settings.mlflow is not None:
        from federation.controller.tracking import Tracker

        controller.tracker = Tracker(settings.mlflow, load_task(settings.task_ref))
        controller.tracker.start()
    failures = 0
    while not stop.is_set():
        began = time.monotonic()
        try:
            controller.follow(stop)
        except Retryable as exc:
            if time.monotonic() - began > 2 * BACK_OFF_S[-1]:
                failures = 0  # it worked for a while
            wait = BACK_OFF_S[min(failures, len(BACK_OFF_S) - 1)]
            log.warning("%s; trying again in %.0f s", exc, wait)
            stop.wait(wait)
            failures += 1
    if controller.tracker is not None:
        controller.tracker.stop()


class Controller:
    """The controller's loop, and its state between two polls of the topics."""

    def __init__(
        self,
        settings: ControllerSettings,
        task: Task,
        clock: Callable[[], float] = time.monotonic,
        failpoint: Failpoint = unarmed,
    ) -> None:
        keys = [load_public_key(path) for path in settings.public_keys]
        self._settings, self._task, self._clock = settings, task, clock
        self._key = load_private_key(settings.signing_key)
        self._registry = Registry(settings.registry, task.name, task.version, keys)
        self._reached = failpoint
        rules = TriggerRules(
            limit=retrain_limit(task),
            metric=window_metric(task),
            min_events=settings.min_events,
            min_devices=settings.min_devices,
            min_interval_s=settings.min_interval_s,
            schedule_s=settings.schedule_s,
            runs_per_day=settings.runs_per_day,
        )
        config = {"task": absolute_reference(settings.task_ref), **settings.run_config}
        self._runs = RunTracker(
            task.id, settings.state, settings.submission, config, rules, clock, failpoint
        )
        plan = replace(settings.plan, rules=settings.plan.rules.of_task(task))
        self._rollout = Rollout(self._registry, self._key, plan)
        self._fleet = FleetView(task.id)
        self._windows = WindowHistory(metric=window_metric(task), classes=task.classes)
        self._others: set[str] = set()  # metrics and classes of reports that do not count
        self._announced: Release | None = None  # the last one on `releases`
        self._last: Release | None = None  # the last one in the registry
        self._looked = self._evaluate_at = -LOOK_S
        self._bytes_looked = 0.0
        self._teacher_tag: str | None = None  # of the last offered teacher
        self.metrics: FederationMetrics | None = None
        self.tracker: Tracker | None = None
        if self._registry.serving() is None:
            raise UsageError(f"{settings.registry} serves no model: run `tidewheel prepare` first")

    def follow(self, stop: threading.Event) -> None:
        """Wait to lead, announce decisions, then follow the topics; return when `stop` is set."""
        settings, name = self._settings, self._task.id
        topic = topic_name(name, RELEASES)
        election = Election(settings.broker, f"tidewheel-{name}-controller", topic)
        producer = reader = None
        try:
            if not self._wait_to_lead(election, stop):
                return
            settings.submission.write()
            self._runs.lead()
            producer = Producer(settings.broker)
            own = self._key.public_key()
            self._announced = publisher.take_up(settings.broker, self._registry, own)
            self.announce(producer)
            self._send_again(producer)
            if (last := self._registry.last()) is not None:
                self._windows.began_us = self._rollout.began_us(last)
            view, reader = open_view(settings.broker, name)
            self._fleet = view
            past: list[RoundEvent | Decision] = [*view.rounds, *view.decided]
            for event in sorted(past, key=lambda each: each.time_us):
                self._take_event(event, live=False)
            for report, message in before(settings.broker, name, dict(view.offsets), PAST):
                self._take_window(report, message, live=False)
            snapshots = Snapshots(view, self._clock)
            for message in reader.to_end():
                self._take(message, live=False)
            if self.metrics is not None:
                self.metrics.view = view
            self._runs.catch_up(producer)
            self._runs.check(producer, at_once=True)
            while not stop.is_set():
                if not election.leads():
                    raise Retryable("another controller has taken over, or no broker answers")
                if self.metrics is not None:
                    self.metrics.looked(leading=True)
                for message in reader.poll(0.4):
                    self._take(message)
                self._act(producer)
                snapshots.publish_if_due(producer)
        finally:
            for each in (reader, election):
                if each is not None:
                    each.close()
            if producer is not None:
                _close(producer)

    def _wait_to_lead(self, election: Election, stop: threading.Event) -> bool:
        said, name, deadline = "", self._task.name, self._clock() + BACK_OFF_S[-1]
        while not stop.is_set():
            if election.leads():
                if said:
                    log.info("this controller of %s leads now", name)
                return True
            who = "another" if election.another_leads() else "no"
            if self._clock() > deadline and said not in (who, "another"):
                log.info("%s controller of %s leads: waiting", who, name)
                said = who
            if self.metrics is not None:
                self.metrics.looked(leading=False)
            stop.wait(0.1)
        return False

    def _act(self, producer: Producer) -> None:
        """Do what is due: check runs, make the next decision, announce it at once."""
        self._runs.want_superlink()
        self._runs.check(producer)
        if self._clock() - self._looked >= LOOK_S:
            self.announce(producer)
        if self._clock() - self._bytes_looked >= BYTES_LOOK_S:
            self._send_again(producer)
        last, began = self._last, self._clock()
        if last is None or began < self._evaluate_at:
            return
        try:
            decided = self._rollout.step(last, self._fleet, self._windows)
        except Stale as exc:
            log.info("%s", exc)
            self.announce(producer)
            return
        finally:
            self._evaluate_at = began + max(EVALUATE_S, (self._clock() - began) / EVALUATE_SHARE)
        if decided is not None:
            self._reached("release-step-1")
            self.announce(producer)
        elif self._rollout.is_free(last) and self._task.learns:
            self._runs.evidence.fleet = len(self._fleet.everyone)
            self._runs.start_if_due(producer)

    def announce(self, producer: Producer) -> None:
        """Publish the registry's new decisions on `releases`."""
        self._looked = self._clock()
        self._key = self._rollout.key = load_private_key(self._settings.signing_key)
        self._last = last = self._reconcile(self._registry.last())
        if last is None:
            return
        if self._announced is None or self._announced.digest != last.digest:
            before, most = self._announced, self._settings.broker.artifact_bytes
            self._announced = publisher.announce(
                producer, self._registry, before, self._reached, most
            )
        if (stable := last.decision.standing.stable) is not None:
            self._runs.evidence.serve(stable.model)

    def _send_again(self, producer: Producer) -> None:
        """Send bytes again that `artifacts` no longer has."""
        self._bytes_looked = self._clock()
        announced = self._announced
        if announced is None or self._last is None or announced.digest != self._last.digest:
            return
        broker, task = self._settings.broker, self._task.id
        if missing := publisher.lost(broker, task, announced.deliveries):
            self._announced = publisher.send_again(
                producer, self._registry, announced, missing, broker.artifact_bytes
            )

    def _reconcile(self, last: Release | None) -> Release | None:
        """Make the decisions after `last` that the registry's files and the settings require;
        return the last one."""
        if last is None:
            return None
        desired = last.decision.standing
        tag = self._registry.teacher_tag()
        if tag != self._teacher_tag:  # read it only after a change: it may be large and remote
            decided = self._registry.offer_teacher(self._key, "it is in the registry")
            self._teacher_tag = tag
            if decided:
                return self._registry.last()
        if desired.url == self._settings.url:
            return last
        after = desired.replace(url=self._settings.url)
        reason = f"artifacts lie at {self._settings.url or 'no URL'} as well"
        return self._registry.decide(self._key, "keys", after, last, reason=reason)

    def _take(self, message: Received, *, live: bool = True) -> None:
        try:
            found = self._fleet.take(message)
        except MalformedRecord as exc:
            log.warning("%s offset %d ignored: %s", message.topic, message.offset, exc)
            return
        match found:
            case WindowReport():
                self._warn_of_other_task(found)
                self._take_window(found, message, live=live)
            case RoundEvent() | Decision():
                self._take_event(found, live=live)
        if self.tracker is not None and isinstance(found, RoundEvent | Decision):
            self.tracker.take(found)

    def _take_window(self, report: WindowReport, message: Received, *, live: bool) -> None:
        """Take in a report that comes for the first time; of the past those since the last run are
        evidence for another."""
        self._windows.add(report, message.time_ms * 1000)
        if live or message.time_ms > 1000 * self._runs.last_start_s:
            self._runs.evidence.add_window(report)

    def _warn_of_other_task(self, report: WindowReport) -> None:
        """Say once of each metric and class that the task has not that its reports do not count."""
        told = {name for part in report.models.values() for name in part.classes}
        others = {report.metric} - {window_metric(self._task)} or told - {*self._task.classes}
        if others <= self._others:
            return
        self._others |= others
        log.warning(
            "reports of windows tell %s, which this task file has not: they start no run and judge "
            "no rollout; restart the workers with this task file", ", ".join(sorted(others)),
        )  # fmt: skip

    def _take_event(self, event: RoundEvent | Decision, *, live: bool) -> None:
        if isinstance(event, Decision):
            self._runs.take_decision(event)
            return
        self._runs.take(event, live=live)
        if live and event.kind in ("promoted", "finished"):
            self._looked = -LOOK_S  # the run has decided: read the registry at once


def _serve_metrics(controller: Controller, settings: ControllerSettings) -> None:
    """Serve metrics until the process ends."""
    from federation.controller.metrics import FederationMetrics
    from streams.runtime.health import serve

    assert settings.metrics_port is not None
    controller.metrics = metrics = FederationMetrics(certificates=settings.certificates)
    server = serve(metrics, settings.metrics_port, settings.metrics_host)
    log.info("metrics on %s:%d", settings.metrics_host, server.port)


def _close(producer: Producer) -> None:
    try:
        producer.close()
    except BrokerUnavailable as exc:
        log.warning("%s", exc)
