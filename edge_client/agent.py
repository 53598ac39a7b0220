"""The device's one long-lived process: it answers, and everything else happens beside it.

The main thread cuts segments and infers; per segment it puts one event into the recorder's memory
and one row into the samples. Threads write the spool, forward it, follow releases and scores, and
serve training work; the trainer is a child process. No torch here.
"""

import fcntl
import logging
import os
import random
import signal
import sys
import threading
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np

from edge_client.conditions import MachineConditions
from edge_client.downlink import Downlink
from edge_client.handoff import Answer, Ask, WorkReply, WorkRequest
from edge_client.recorder import Event, Recorder
from edge_client.replay import Cut, Replay
from edge_client.samples import HELD_OUT, Samples, split_of
from edge_client.scoreboard import Scoreboard
from edge_client.service import Service, socket_path
from edge_client.settings import EdgeSettings
from edge_client.slots import Slots
from edge_client.sources import lines_of, read_lines
from edge_client.spool import EVENTS, Spool, SpoolLimits
from edge_client.trainer import Trainer
from edge_client.uplink import Uplink
from streams.contract.bus import Producer, Sender, probe
from streams.contract.documents import DeviceState, Release
from streams.contract.errors import ArtifactError, MalformedRecord, SpoolError, UsageError
from streams.contract.failpoints import Failpoint, read_failpoint, unarmed
from streams.contract.records import decode_batch, event_schema
from streams.contract.signing import load_public_key
from streams.contract.task import Reading, Task, label_fits, load_task

log = logging.getLogger("tidewheel.edge")

SAVE_S = 5.0
RESTART_S = (0.5, 30.0)  # the first and the longest pause before a failed source is taken up again


class Agent:
    """One device."""

    def __init__(self, settings: EdgeSettings, task: Task, failpoint: Failpoint = unarmed) -> None:
        self._settings = settings
        self._name = settings.device
        self._task = task
        self._source_error: str | None = None
        self._drain_s = settings.drain_s
        self._stop = threading.Event()
        folder = settings.folder
        self._lock = hold(folder)
        limits = SpoolLimits(total_bytes=settings.spool_bytes)
        self.spool = Spool(folder / "spool", limits)
        check_spool(self.spool, task)
        if self.spool.torn_bytes:
            log.warning("%s: a torn end of %d bytes cut off", self._name, self.spool.torn_bytes)
        self.samples = Samples(task, folder / "samples.arrow")
        self._scoreboard = Scoreboard(folder / "scoreboard.json")
        trusted = [load_public_key(path) for path in settings.trusted]
        self._slots = Slots(folder / "slots", task, trusted, failpoint=failpoint)
        self._rate = Rate()
        self._skipped: dict[str, int] = {}
        self._phase = "running"
        self._replay = Replay(
            task,
            settings.device,
            folder,
            speed=settings.speed,
            passes=settings.passes,
            resume_after_us=self.spool.mark,
            stop=self._stop,
            skip=self._skip,
            readings=self._standard_input if settings.source == "stdin" else None,
        )
        self._recorder = Recorder(task, self.spool, metering=settings.metering)
        self._trainer = Trainer(
            settings.task_ref,
            settings.device,
            folder,
            self.samples,
            MachineConditions(settings.minimum_battery, settings.maximum_celsius),
        )
        self._service = Service(socket_path(folder), self._work, self._tell)
        self._uplink = Uplink(
            task,
            settings.device,
            self.spool,
            self._connect,
            self._reachable,
            self.state,
            bytes_per_s=settings.uplink_bytes_per_s,
            holds=settings.metering.mode == "nothing",
        )
        self._downlink = Downlink(
            task,
            settings.device,
            settings.broker,
            install=self._install,
            serving=lambda: self._slots.active,
            refused=lambda: self._slots.refused,
            samples=self.samples,
        )
        self._open_slots()  # last: a start that fails before it is not the model's fault

    def _open_slots(self) -> None:
        if self._slots.open() is not None or self._settings.model is None:
            return
        try:
            self._slots.install(self._settings.model.read_bytes())
        except (OSError, ArtifactError) as exc:
            if isinstance(exc, ArtifactError) and exc.reason == "refused":
                log.error("%s: %s; another release is waited for", self._name, exc)
                return
            raise UsageError(f"model {self._settings.model}: {exc}") from exc

    def run(self) -> None:
        """Serve until stop(); then drain for at most `drain_s`."""
        threads = (self._recorder, self._service, self._uplink, self._downlink)
        for thread in threads:
            thread.start()
        keeper = threading.Thread(target=self._keep, name="keeper", daemon=True)
        keeper.start()
        log.info("%s: serving %s", self._settings.device, self._slots.active)
        if self._await_engine():
            self._answer_all()
        self._phase = "idle" if not self._stop.is_set() else "draining"
        self._stop.wait()
        self._drain()

    def stop(self) -> None:
        self._stop.set()

    def _await_engine(self) -> bool:
        """A device without a model waits for its first release."""
        while self._slots.engine is None and not self._stop.is_set():
            self._phase = "waiting for a model"
            self._stop.wait(0.2)
        self._phase = "running"
        return self._slots.engine is not None

    def _answer_all(self) -> None:
        """Every segment of the source. A source that fails is taken up again, after a pause that
        grows as long as it brings nothing; the rest of the device goes on."""
        pause_s = RESTART_S[0]
        while not self._stop.is_set():
            try:
                for cut in self._replay:
                    self._answer(cut)
                    self._source_error, pause_s = None, RESTART_S[0]
                return
            except UsageError:
                raise  # it will not get better by itself
            except Exception as exc:  # a user's iterator, a driver: anything
                self._source_error = f"readings: {type(exc).__name__}: {exc}"[:300]
                log.exception("%s: the source has failed, again in %.1f s", self._name, pause_s)
                self._stop.wait(pause_s * random.uniform(0.5, 1.5))
                pause_s = min(2 * pause_s, RESTART_S[1])

    def _standard_input(self) -> Iterator[Reading]:
        return read_lines(self._task, lines_of(sys.stdin, self._stop), self._skip)

    def _answer(self, cut: Cut) -> None:
        """One segment: infer, hand the event over, remember the sample."""
        engine = self._slots.engine  # one version for the whole answer
        assert engine is not None
        started = time.perf_counter()
        try:
            outputs = engine.run(cut.segment)
        except Exception as exc:
            if not self._slots.go_back(engine.model, f"failed: {exc}"):
                raise
            self._skip("answer-failed", cut.last_us)
            return
        if not np.isfinite(outputs).all():
            self._skip("answer-not-finite", cut.last_us)
            return
        told = cut.truth if self._told(cut.position_us) else None
        segment = cut.segment if self._task.upload == "segment" else None
        self._recorder.put(Event(cut.last_us, engine.model, outputs, told, segment))
        engine.latencies.append(time.perf_counter() - started)
        split = split_of(self._task, cut.first_us, cut.last_us)
        self.samples.add(cut.last_us, cut.segment, outputs, split, told)
        right = None
        if cut.truth is not None:
            right = bool(self._task.correct(outputs[None], cut.truth[None])[0])
        self._scoreboard.count(engine.model, cut.position_us, right, split == HELD_OUT)
        self._rate.count()

    def _told(self, position_us: int) -> bool:
        """Whether the device is told this segment's truth: a stable share, like a user's
        corrections. The rest of a replay's truth is only measured against."""
        digest = zlib.crc32(f"{self._settings.device}/{position_us}".encode())
        return digest < self._task.training.label_share * 2**32

    def _skip(self, reason: str, _time_us: int) -> None:
        self._skipped[reason] = self._skipped.get(reason, 0) + 1

    def _install(self, data: bytes, release: Release) -> None:
        engine = self._slots.install(data, release.digest)
        log.info(
            "%s: serving %s, was %s", self._settings.device, engine.model, self._slots.previous
        )

    def _work(self, request: WorkRequest, weights: bytes) -> tuple[WorkReply, bytes]:
        if (request.task, request.task_version) != (self._task.name, self._task.version):
            have = f"{self._task.name} version {self._task.version}"
            return WorkReply(device=self._settings.device, error=f"wrong-task: have {have}"), b""
        log.info("%s: %s in round %d", self._settings.device, request.op, request.round)
        return self._trainer.work(request, weights)

    def _tell(self, question: Ask) -> Answer:
        """What somebody on this machine asks."""
        if question.op == "drain":
            self._drain_s = question.drain_s
            self.stop()
        labelled = 0
        for given in question.labels:
            if not label_fits(self._task, given.label):
                return Answer(labelled=labelled, error=f"{given.label} is no label of this task")
            label = np.asarray(given.label, np.float32)
            labelled += self.samples.label(given.first_us, given.last_us, label)
        return Answer(state=self.state(), labelled=labelled)

    def _connect(self) -> Sender:
        return Producer(self._settings.broker)

    def _reachable(self) -> bool:
        return probe(self._settings.broker)

    def _keep(self) -> None:
        """Write down what may lag a few seconds behind, and look at the version on trial."""
        while not self._stop.wait(SAVE_S):
            self._save()
            self._trainer.watch()
            self._slots.judge()

    def _save(self) -> None:
        try:
            if self.samples.changed:
                self.samples.save()
            self._scoreboard.save()
        except OSError as exc:
            log.warning("%s: samples not saved: %s", self._settings.device, exc)

    def _drain(self) -> None:
        self._phase = "draining"
        self._slots.close()
        self._trainer.stop()
        self._service.stop()
        self._downlink.stop()
        self._recorder.stop()
        self._save()
        self._phase = "stopped"
        drained = self._uplink.stop(self._drain_s)
        account = self.spool.account()
        left = "" if drained else f"; {account.pending} events stay in the spool"
        log.info("%s: stopped, %d events produced%s", self._settings.device, account.produced, left)

    def state(self) -> DeviceState:
        """What the device says of itself on `fleet`."""
        account = self.spool.account()
        count, true, taught = self.samples.counts()
        engine = self._slots.engine
        latencies = np.array((engine and list(engine.latencies)) or [0.0]) * 1e6
        return DeviceState(
            device=self._settings.device,
            task=self._task.name,
            time_us=time.time_ns() // 1000,
            epoch=self.spool.epoch,
            active=self._slots.active or "",
            previous=self._slots.previous,
            produced=account.produced,
            delivered=account.delivered,
            dropped=account.dropped,
            pending=account.pending,
            skipped=dict(self._skipped),
            samples=count,
            true_labels=true,
            labels_told=self.samples.labels_told,
            teacher_labels=taught,
            teacher_trust=self.samples.trust(),
            accuracy=self._scoreboard.scores(),
            refused=self._slots.refused,
            held_back=self._trainer.held_back,
            phase="training" if self._trainer.busy else self._phase,
            replayed=self._replay.share_of_pass,
            passes=self._replay.passes_done,
            events_per_s=self._rate.per_second(),
            latency_p50_us=float(np.percentile(latencies, 50)),
            latency_p99_us=float(np.percentile(latencies, 99)),
            error=self._source_error
            or self._downlink.error
            or self._recorder.error
            or self._uplink.error,
        )


@dataclass
class Rate:
    """Events per second since it was last asked."""

    events: int = 0
    at: float = 0.0

    def count(self) -> None:
        self.events += 1

    def per_second(self) -> float:
        now, events = time.monotonic(), self.events
        rate = events / (now - self.at) if self.at else 0.0
        self.at, self.events = now, 0
        return rate


def hold(folder: Path) -> IO[str]:
    """Own the device's folder while the handle lives; UsageError where another agent does, or where
    it cannot be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = (folder / "lock").open("a")
    except OSError as exc:
        raise UsageError(
            f"the device's folder {folder} cannot be written: {exc}: name another with --state"
        ) from exc
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        handle.close()
        raise UsageError(
            f"another agent serves the device in {folder}: stop it, or use another --device"
        ) from None
    return handle


def check_spool(spool: Spool, task: Task) -> None:
    """UsageError when events are pending whose shape is not this task's: they could not be sent."""
    try:
        frames = spool.read(spool.position, 1)
    except OSError as exc:
        raise SpoolError(f"the spool cannot write its position: {exc}: free some disk") from exc
    for frame in frames:
        if frame.kind != EVENTS:
            continue
        try:
            decode_batch(frame.payload, event_schema(task))
        except MalformedRecord as exc:
            raise UsageError(
                f"the spool has events that do not fit task {task.name!r} ({exc}): "
                "send them with the old task file first, or remove the device's spool folder"
            ) from exc


def _end_process(failed: threading.ExceptHookArgs) -> None:
    """A thread that ends by an error takes the process with it: whoever supervises us starts it
    again, and the spool has everything."""
    name = failed.thread.name if failed.thread else "a thread"
    log.critical("%s failed: %s", name, failed.exc_value, exc_info=failed.exc_value)
    logging.shutdown()
    os._exit(1)


def run(settings: EdgeSettings) -> None:
    """The process: one device until SIGTERM or SIGINT."""
    task = load_task(settings.task_ref)
    agent = Agent(settings, task, read_failpoint(os.environ))
    threading.excepthook = _end_process
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: agent.stop())
    agent.run()
