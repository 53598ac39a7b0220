"""`tidewheel controller TASK`: announces the served model, and starts runs when there is cause.

It follows `windows` and `fleet` from now on and `rounds` from the beginning: what caused earlier
runs is past, but whether one is still going on has to be known. A run that died without a word is
taken up again, see `federation.lineage`, which is all that a controller keeps on disk; what is
served stands in the registry, what is announced on `releases`.
"""

import logging
import os
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Protocol

from federation import release
from federation.lineage import RESUMES, Resumer
from federation.registry import Registry
from federation.submission import COMPLETED, STOPPED, UNKNOWN, ConfigValue, Submission
from federation.triggers import Evidence, Rules, RunsSoFar, reason_to_run
from streams.contract.bus import BrokerSettings, Producer, Reader, Received
from streams.contract.delivery import teacher_key
from streams.contract.documents import (
    DeviceState,
    Release,
    RoundEvent,
    RoundKind,
    WindowReport,
)
from streams.contract.errors import (
    BrokerUnavailable,
    MalformedRecord,
    ProcessFailed,
    Retryable,
    UsageError,
)
from streams.contract.failpoints import Failpoint, read_failpoint, unarmed
from streams.contract.signing import load_public_key
from streams.contract.task import Task, load_task
from streams.contract.topics import FLEET, RELEASES, ROUNDS, WINDOWS, topic_name

log = logging.getLogger(__name__)

BACK_OFF_S = (1.0, 2.0, 5.0, 10.0)
SILENCE_S = 20.0  # a run that says nothing for so long is asked for by `flwr list`


@dataclass(frozen=True)
class ControllerSettings:
    """What one controller needs. `run_config` are settings of its runs beside what the app's
    folder says; `public_keys` those whose models it announces."""

    task_ref: str
    broker: BrokerSettings
    state: Path
    registry: Path
    public_keys: tuple[Path, ...]
    submission: Submission
    run_config: Mapping[str, ConfigValue] = field(default_factory=dict)
    min_events: int = 200
    min_devices: int = 2
    min_interval_s: float = 60.0
    new_labels: int | None = None
    schedule_s: float | None = None
    max_runs: int | None = None
    metrics_port: int | None = None


def run(settings: ControllerSettings, stop: threading.Event) -> None:
    """Watch and act until `stop` is set; a run that is going on is left to itself.

    While the broker is away it backs off and begins again. UsageError when nothing can be served.
    """
    failpoint = read_failpoint(os.environ)
    controller = Controller(settings, load_task(settings.task_ref), failpoint=failpoint)
    if settings.metrics_port is not None:
        _serve_metrics(controller, settings.metrics_port)
    failures = 0
    while not stop.is_set():
        began = time.monotonic()
        try:
            controller.follow(stop)
        except Retryable as exc:
            if time.monotonic() - began > 2 * BACK_OFF_S[-1]:
                failures = 0  # it had worked for a while
            wait = BACK_OFF_S[min(failures, len(BACK_OFF_S) - 1)]
            log.warning("%s; trying again in %.0f s", exc, wait)
            stop.wait(wait)
            failures += 1


class Watcher(Protocol):
    """Sees what the controller reads."""

    def looked(self) -> None: ...

    def take(self, event: RoundEvent) -> None: ...


class Controller:
    """The state between two looks at the topics."""

    def __init__(
        self,
        settings: ControllerSettings,
        task: Task,
        clock: Callable[[], float] = time.monotonic,
        failpoint: Failpoint = unarmed,
    ) -> None:
        keys = [load_public_key(path) for path in settings.public_keys]
        self._settings, self._task, self._clock = settings, task, clock
        self._registry = Registry(settings.registry, task.name, task.version, keys)
        self._rules = Rules(
            retrain_below=task.retrain_below,
            min_events=settings.min_events,
            min_devices=settings.min_devices,
            min_interval_s=settings.min_interval_s,
            new_labels=settings.new_labels,
            schedule_s=settings.schedule_s,
            max_runs=settings.max_runs,
        )
        self._config = {"task": settings.task_ref, **settings.run_config}
        self._folder = settings.state / "controller"
        runs, submission = settings.state / "runs", settings.submission
        self._resumer = Resumer(self._folder, runs, submission, self._config, failpoint)
        self._reached = failpoint
        self.evidence = Evidence()
        self._since = self._heard = clock()
        self.watcher: Watcher | None = None
        self._run: str | None = None
        self._finished: set[str] = set()
        self._count = 0
        self._began: float | None = None
        if self._registry.serving() is None:
            raise UsageError(f"{settings.registry} serves no model: run `tidewheel up` first")

    @property
    def runs(self) -> RunsSoFar:
        return RunsSoFar(self._count, self._run is not None, self._began)

    def follow(self, stop: threading.Event) -> None:
        """Announce what is served, then watch; returns when `stop` is set."""
        settings, name = self._settings, self._task.name
        producer = Producer(settings.broker)
        news = past = None
        try:
            self.reconcile(producer)
            topics = [topic_name(name, topic) for topic in (WINDOWS, FLEET)]
            news = Reader(settings.broker, topics, from_beginning=False)
            past = Reader(settings.broker, [topic_name(name, ROUNDS)])
            self._take(past.read_to_end(), producer, live=False)
            self._catch_up(producer)
            self._check_run(producer)
            while not stop.is_set():
                if self.watcher is not None:
                    self.watcher.looked()
                self._take(news.poll(0.5), producer)
                self._take(past.poll(0.05), producer)
                if self._run is not None and self._clock() - self._heard > SILENCE_S:
                    self._check_run(producer)
                self._start_if_due(producer)
        finally:
            for reader in (news, past):
                if reader is not None:
                    reader.close()
            _close(producer)

    def reconcile(self, producer: release.Publisher) -> None:
        """Announce the served model, and the teacher, where `releases` has none or another one."""
        serving = self._registry.serving()
        if serving is None:
            return
        self.evidence.serve(serving.model)
        reader = Reader(self._settings.broker, [topic_name(self._task.name, RELEASES)])
        try:
            messages = reader.read_to_end()
        finally:
            reader.close()
        self._reconcile_teacher(release.current(messages, teacher_key(self._task.name)), producer)
        offered = release.current(messages, self._task.name.encode())
        if offered is not None and offered.model == serving.model:
            return
        if offered is not None and offered.model not in self._registry.models():
            log.warning("%s, which this registry has not, was offered", offered.model)
        base = offered.model if offered else "nothing"
        release.announce(producer, self._registry, serving.model, f"served; {base} was offered")
        log.info("offered %s to the fleet", serving.model)

    def _reconcile_teacher(self, offered: Release | None, producer: release.Publisher) -> None:
        teacher = self._registry.teacher()
        if teacher is None or (offered is not None and offered.digest == teacher.digest):
            return
        base = offered.model if offered else "nothing"
        release.announce_teacher(producer, self._registry, f"{base} was offered")
        log.info("offered teacher %s to the workers", teacher.model)

    def _take(
        self, messages: list[Received], producer: release.Publisher, live: bool = True
    ) -> None:
        for message in messages:
            try:
                if message.topic.endswith(f".{WINDOWS}"):
                    self.evidence.add_window(WindowReport.decode(message.value))
                elif message.topic.endswith(f".{FLEET}") and message.value is not None:
                    self.evidence.add_device(DeviceState.decode(message.value))
                elif message.topic.endswith(f".{ROUNDS}"):
                    self._take_round(RoundEvent.decode(message.value), producer, live)
            except MalformedRecord as exc:
                log.warning("%s at %d passed over: %s", message.topic, message.offset, exc)

    def _take_round(self, event: RoundEvent, producer: release.Publisher, live: bool) -> None:
        """Follow any run, whoever started it: by hand counts too."""
        if self.watcher is not None and event.kind != "requested":
            self.watcher.take(event)
        if event.run in self._finished or event.run in self._resumer.earlier:
            # "requested" may come after all else that a short run says; and one that another goes
            # on with may have a last word.
            self._finished |= {event.run} if event.kind == "finished" else set()
            return
        self._heard = self._clock()
        if event.kind != "finished":
            if live and self._run is None:
                log.info("run %s was started by another hand", event.run)
                self._began = self._clock()
                self.evidence.run_began()
            self._run = event.run
            return
        self._finished.add(event.run)
        self._resumer.forget(event.run)
        if event.run == self._run:
            self._run = None
        if live:
            log.info("run %s finished: %s", event.run, event.reason)
            self.reconcile(producer)

    def _check_run(self, producer: Producer) -> None:
        """Ask the SuperLink for a run that says nothing; take up one that died."""
        if self._run is None:
            return
        self._heard = self._clock()
        try:
            known = self._settings.submission.runs()
            status = known.get(self._run, UNKNOWN)
            if not (status.startswith("finished") or status == UNKNOWN):
                return
            reason = f"the run ended without a word ({status})"
            if status == STOPPED:
                reason = f"stopped by hand ({status})"  # `flwr stop`: not to be undone by us
            log.warning("run %s: %s", self._run, reason)
            new = None
            if status not in (COMPLETED, STOPPED):
                new = self._resumer.resume(self._run, reason, known)
                reason += f"; taken up {RESUMES} times, given up" if new is None else ""
        except ProcessFailed as exc:
            log.warning("%s", exc)  # the SuperLink may be starting: asked again after a silence
            return
        dead, self._run = self._run, new
        if new is None:
            self._publish(producer, dead, "finished", reason)
            self._resumer.forget(dead)
        else:
            self._catch_up(producer)
        self.reconcile(producer)

    def _catch_up(self, producer: Producer) -> None:
        """Follow the run that goes on with others, and tell of it, unless that was done: step 4 of
        taking up a run."""
        kept = self._resumer.lineage
        if kept is None:
            return
        last = kept.runs[-1]
        if last in self._finished:
            self._resumer.forget(last)
            return
        if self._run is None or self._run in kept.runs:
            self._run = last
        for dead, new in pairwise(kept.runs):
            if dead not in self._finished:
                reason = f"goes on with run {dead}: {kept.reason}"
                log.info("run %s %s", new, reason)
                self._publish(producer, new, "requested", reason, resumed_from=dead)
                self._publish(producer, dead, "finished", f"{kept.reason}; run {new} goes on")
                self._finished.add(dead)
        self._reached("resume-step-4")

    def _start_if_due(self, producer: Producer) -> None:
        now = self._clock()
        reason = reason_to_run(self._rules, self.evidence, self.runs, now, self._since)
        if reason is None:
            return
        self._began = now  # also when it fails: the next attempt waits for the interval
        self.evidence.run_began()
        try:
            run = self._settings.submission.start(self._config, self._folder)
        except ProcessFailed as exc:
            log.error("no run although %s: %s", reason, exc)
            return
        self._run, self._count, self._heard = run, self._count + 1, self._clock()
        log.info("run %s: %s", run, reason)
        self._publish(producer, run, "requested", reason)

    def _publish(
        self, producer: Producer, run: str, kind: RoundKind, reason: str, **fields: str
    ) -> None:
        about = {"run": run, "kind": kind, "time_us": time.time_ns() // 1000, "reason": reason}
        event = RoundEvent.model_validate({**about, **fields})
        producer.put(topic_name(self._task.name, ROUNDS), run.encode(), event.encode())


def _serve_metrics(controller: Controller, port: int) -> None:
    """Until the process ends."""
    from federation.metrics import FederationMetrics
    from streams.contract.health import serve

    controller.watcher = metrics = FederationMetrics()
    server = serve(metrics, port)
    log.info("metrics on 127.0.0.1:%d", server.port)


def _close(producer: Producer) -> None:
    try:
        producer.close()
    except BrokerUnavailable as exc:
        log.warning("%s", exc)
