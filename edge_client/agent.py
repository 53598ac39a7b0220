"""The device's one long-lived process: it answers, and everything else happens beside it.

The main thread cuts segments and infers; per segment it puts one event into the recorder's memory.
Threads note and write what was answered, forward the spool, follow releases and scores, and serve
training work; the trainer is a child process. No torch here.
"""

import logging
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

from edge_client.downlink import Downlink
from edge_client.inference.challenger import Challenger
from edge_client.inference.loop import InferenceLoop
from edge_client.inference.slots import Slots
from edge_client.ipc import SocketServer, hold, socket_path
from edge_client.participation import Joining, Participation
from edge_client.samples.accuracy import AccuracyTracker, AnswerRecorder
from edge_client.samples.labels import DelayedLabels, LabelIntake, LabelQueue
from edge_client.samples.samples import Samples
from edge_client.settings import EdgeSettings
from edge_client.sources.live import ReadingCounts, counted, open_source
from edge_client.sources.replay import Replay
from edge_client.spool.queue import Spool
from edge_client.spool.writer import SpoolWriter
from edge_client.training.own_weights import OwnWeights
from edge_client.training.trainer_client import MachineConditions, Trainer
from edge_client.uplink.messages import of_events, of_labels
from edge_client.uplink.task_queues import LABELS, SPOOL, EarlierQueues, queue_folder
from edge_client.uplink.uplink import Uplink
from streams.contract.documents import DeviceState
from streams.contract.errors import ArtifactError, UsageError
from streams.contract.events.messages import TRACEPARENT, sampled_parent, task_layout
from streams.contract.task import Task
from streams.contract.task.metrics import row_metric
from streams.contract.work import WRONG_TASK, AgentReply, AgentRequest, WorkReply, WorkRequest
from streams.runtime.failpoints import Failpoint, unarmed
from streams.runtime.process import trim
from streams.runtime.tracing import NOTHING, OFF, About, Span, Tracing
from streams.runtime.trust import Acceptance, load_public_key

if TYPE_CHECKING:  # Kafka's library, which the first answer does not wait for
    from streams.kafka.producer import Sender

log = logging.getLogger("tidewheel.edge")

LOOK_S = 5.0  # at versions, hanging answers, conditions, labels that were told
LOCK_S = 5.0  # for a command that reads the folder
ALIVE_S = 60.0  # without the keeper's turn, which waits for the disk
HANG_S = 180.0  # the same, or without the downlink's, which tests versions: the process ends
SAVE_S = 60.0  # between two writings of samples and scores: megabytes each
ANSWER = "an answer"
SWITCH_S = 0.0005  # a thread that holds the interpreter gives it to the loop after so long


class Agent:
    """One device."""

    def __init__(
        self,
        settings: EdgeSettings,
        task: Task,
        failpoint: Failpoint = unarmed,
        tracing: Tracing = OFF,
    ) -> None:
        self._settings, self._name, self._task = settings, settings.device, task
        self._folder, self._failpoint = settings.folder, failpoint
        self._drain_s, self._tracing = settings.drain_s, tracing
        self._stop = threading.Event()
        self._working = False  # for a round
        self._counts = ReadingCounts()
        self._phase = "running"
        self._kept_at = self._saved_at = time.monotonic()
        self._lock = hold(self._folder, LOCK_S)
        self._open_spool()
        self._open_memory()
        self._build_training()
        self._build_inference()
        self._build_network()
        self._open_slots()  # last: a start that fails before it does not count against the model

    def _open_spool(self) -> None:
        """Open the queue between inference and the network."""
        folder = queue_folder(self._folder, SPOOL, self._task)
        self.spool = Spool(folder, self._settings.spool, failpoint=self._failpoint)
        if self.spool.torn_bytes:
            log.warning("%s: a torn end of %d bytes cut off", self._name, self.spool.torn_bytes)

    def _open_memory(self) -> None:
        """Open what the device remembers: samples, accuracy, accepted decisions, versions."""
        task, folder = self._task, self._folder
        self.samples = Samples(task, folder / "samples.rows", epoch=self.spool.epoch)
        self._label_queue = LabelQueue(
            queue_folder(folder, LABELS, task), self.samples, self._counts.skip,
            failpoint=self._failpoint,
        )  # fmt: skip
        self._scoreboard = AccuracyTracker(folder / "scoreboard.json", row_metric(task))
        trusted = [load_public_key(path) for path in self._settings.trusted]
        self._acceptance = Acceptance(folder / "slots", task, trusted)
        self._slots = Slots(
            folder / "slots",
            task,
            lambda: self._acceptance.trusted,
            known=lambda: self._acceptance.known,
            failpoint=self._failpoint,
        )

    def _build_training(self) -> None:
        settings, task = self._settings, self._task
        self._trainer = Trainer(
            settings.task_ref,
            self._name,
            self._folder,
            self.samples,
            MachineConditions(settings.minimum_battery, settings.maximum_celsius),
            self._slots.weights_of,
        )
        self._own = OwnWeights(task, self._slots, self.samples, self._trainer.work)
        self._challenger = Challenger(task, self._folder, self._slots, self.samples, self._own)
        self._service = SocketServer(socket_path(self._folder), self._work, self._tell)
        self._runs = Participation(
            task, self._name, self._folder, socket_path(self._folder),
            lambda: self._acceptance.trusted,
            Joining(settings.superlink_ca, settings.node_key, settings.superlink),
            lambda: self._working,
            self._trainer.interrupt,
        )  # fmt: skip

    def _build_inference(self) -> None:
        """Connect source, inference loop and spool writer."""
        task, name = self._task, self._name
        replayed = self._settings.source == "task" and task.source == "recorded"
        self._source = open_source(
            task, self._settings, self._folder,
            resume_after_us=self.spool.mark, stop=self._stop, skip=self._counts.skip,
        )  # fmt: skip
        self._outcomes = (
            DelayedLabels(task, name, self._label_queue, self._counts.skip)
            if task.outcomes
            else None
        )
        recorder = AnswerRecorder(task, self.samples, self._scoreboard, self._outcomes)
        self._writer = SpoolWriter(
            task, self.spool, share=self._settings.metered, note=recorder.note
        )
        self._answers = InferenceLoop(
            task, name, self._source, self._slots, self._challenger,
            self._writer.put, self._counts.skip, self._stop,
            lambda: task.source == "recorded" and self._writer.full,
            label_share=None if replayed else 1.0,
        )  # fmt: skip

    def _build_network(self) -> None:
        settings = self._settings
        self._uplink = Uplink(
            self._task.id,
            self._name,
            self.spool,
            of_events(task_layout(self._task), self._name, self.spool, self._tracing),
            self._connect,
            self.state,
            news=self.news,
            heartbeat_s=settings.heartbeat_s,
            bytes_per_s=settings.uplink_bytes_per_s,
            failpoint=self._failpoint,
        )
        queue = self._label_queue.queue
        uplink = Uplink(
            self._task.id, self._name, queue, of_labels(self._name, queue),
            self._connect, bytes_per_s=settings.uplink_bytes_per_s,
        )  # fmt: skip
        self._earlier = EarlierQueues(
            self._folder, self._task, self._name, self._connect, settings.uplink_bytes_per_s
        )  # fmt: skip
        self._labels = LabelIntake(self._task, self.samples, self._label_queue, uplink)
        self._downlink = Downlink(
            self._task,
            self._name,
            settings.broker,
            slots=self._slots,
            acceptance=self._acceptance,
            samples=self.samples,
            downloads=self._folder / "downloads",
            invited=self._runs.receive,
            trains=self._runs.unable is None,
            waits=lambda: self._uplink.is_late,
        )

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
        sys.setswitchinterval(SWITCH_S)
        threads = (self._writer, self._service, self._uplink, self._downlink, self._outcomes)
        for thread in threads:
            if thread is not None:
                thread.start()
        self._labels.start(expected=self._outcomes is not None)
        self._earlier.start()
        threading.Thread(target=self._keep, name="keeper", daemon=True).start()
        log.info("%s: serving %s", self._settings.device, self._slots.active)
        if self._await_engine():
            self._answers.run()
        if not self._stop.is_set():
            self._source_ended()
        self._stop.wait()
        self._drain()

    def _source_ended(self) -> None:
        self._phase = "source ended"
        if self._settings.stay:
            log.info("%s: the source has ended; no more events", self._name)
        else:
            log.info("%s: the source has ended: draining", self._name)
            self._stop.set()

    def stop(self) -> None:
        self._stop.set()

    def _await_engine(self) -> bool:
        """A device without a model waits for its first release."""
        while self._slots.engine is None and not self._stop.is_set():
            self._phase = "waiting for a model"
            self._stop.wait(0.2)
        self._phase = "running"
        return self._slots.engine is not None

    def _work(self, request: WorkRequest, weights: bytes) -> tuple[WorkReply, bytes]:
        if (request.task, request.task_version) != (self._task.name, self._task.version):
            have = f"{self._task.name} version {self._task.version}"
            return WorkReply(device=self._settings.device, error=f"{WRONG_TASK}: have {have}"), b""
        log.info("%s: %s in round %d", self._settings.device, request.op, request.round)
        self.samples.hear_of_teacher(request.teacher)
        if request.node is not None and self._runs.run is None:
            self._runs.joined(request.node)  # a resident SuperNode, older than this process
        self._working = True
        span = self._traced(request)
        try:
            with self._uplink.at_work():
                reply, body = self._trainer.work(request, weights)
            span.end(reply.error or "", {"samples": reply.samples})
            return reply, body
        finally:
            self._working = False

    def _traced(self, request: WorkRequest) -> Span:
        """Begin the span of a work, if the server traces it."""
        parent = sampled_parent([(TRACEPARENT, request.traceparent.encode(errors="replace"))])
        if not parent:
            return NOTHING
        name = {"train": "device.fit", "evaluate": "device.evaluate"}[request.op]
        about: About = {"device": self._name, "run": request.run, "round": request.round}
        return self._tracing.begin(name, about, parent)

    def _tell(self, question: AgentRequest) -> AgentReply:
        """What somebody on this machine asks."""
        if question.op == "drain":
            self._drain_s = question.drain_s
            self.stop()
        if question.op == "joined":
            self._runs.joined(question.node, question.error)
            self._uplink.report()  # the run waits for it
            if question.error is None:
                self._trainer.prepare()
        if question.op == "pace" and isinstance(self._source, Replay):
            self._source.pace(question.speed)
        labelled, error = self._labels.take(question.labels)
        state = self.state() if error is None else None
        return AgentReply(state=state, labelled=labelled, error=error)

    def _connect(self) -> "Sender":
        from streams.kafka.producer import Producer

        return Producer(self._settings.broker)

    def _keep(self) -> None:
        """Write down what may lag behind, and look at versions and conditions."""
        self._kept_at = time.monotonic()  # opening a large spool may have taken long
        while not self._stop.wait(LOOK_S):
            self._save()
            self._label_queue.try_to_flush()
            self._earlier.look()
            self._trainer.watch()
            self._runs.look()
            self._slots.check_trial()
            self._challenger.consider()
            trim()
            self._kept_at = time.monotonic()

    def hanging(self) -> str:
        """Return what does not come back while the agent serves; empty if all does."""
        uplinks = (self._uplink, self._labels, self._earlier)
        hanging = {
            ANSWER: self._answers.hangs,
            "the uplink": any(uplink.hangs for uplink in uplinks),
            "the downlink": self._downlink.hangs(HANG_S),
            "the keeper": time.monotonic() - self._kept_at > HANG_S,
        }
        serves = not self._stop.is_set()
        return next((name for name, hangs in hanging.items() if hangs and serves), "")

    def excuse(self) -> None:
        """Record that the version that answers is not to blame for the end of the process."""
        self._slots.close()

    def _save(self, *, last: bool = False) -> None:
        """Write samples and scores: once a minute, and soon where a label was told."""
        samples, board, now = self.samples, self._scoreboard, time.monotonic()
        if due := last or now - self._saved_at >= SAVE_S:
            self._saved_at = now
        try:
            if samples.urgent or (due and samples.changed):
                samples.save()
            if due and board.changed:
                board.save()
        except OSError as exc:
            log.warning("%s: samples not saved: %s", self._settings.device, exc)

    def _drain(self) -> None:
        self._phase = "draining"
        self._slots.close()
        self._runs.stop()
        self._trainer.stop()
        self._own.stop()
        self._service.stop()
        self._downlink.stop()
        self._writer.stop()
        if self._outcomes is not None:
            self._outcomes.stop()
        self._save(last=True)
        self._phase = "stopped"
        deadline = time.monotonic() + self._drain_s
        self._earlier.stop(self._drain_s / 4)
        self._labels.stop(self._drain_s / 4)  # before the last state, which tells of them
        drained = self._uplink.stop(max(0.0, deadline - time.monotonic()))
        account = self.spool.account()
        left = "" if drained else f"; {account.pending} events stay in the spool"
        log.info("%s: stopped, %d events produced%s", self._name, account.produced, left)
        for what, found in (
            ("without an event", self._counts.skipped()), ("irregular", self._counts.irregular())
        ):  # fmt: skip
            if found:
                log.warning("%s: readings %s: %s", self._name, what, counted(found))

    @property
    def connected(self) -> bool:
        """Whether the uplink has a broker."""
        return self._uplink.connected

    @property
    def ready(self) -> bool:
        """Whether there is a model to answer with, and no end in sight."""
        return self._slots.engine is not None and not self._stop.is_set()

    @property
    def alive(self) -> bool:
        """Whether its own upkeep goes on."""
        return time.monotonic() - self._kept_at < ALIVE_S

    def news(self) -> object:
        """Return what is sent at once when it changes, compared each second: without the figures
        that each event changes."""
        reasons = (self.spool.account().dropped, self._counts.skipped(), self._counts.irregular())
        return self._standing(), [sorted(each) for each in (*reasons, self._runs.refused)]

    def _standing(self) -> dict[str, Any]:
        return {
            "active": self._slots.active or "",
            "previous": self._slots.previous,
            "refused": self._slots.refused,
            "held_back": self._trainer.held_back,
            "challenger": self._challenger.state,
            "node": self._runs.node,
            "run": self._runs.run,
            "last_run_us": self._runs.last_run_us,
            "working": self._working,
            "unable": self._runs.unable,
            "release": self._acceptance.seq or None,
            "phase": "training" if self._trainer.busy else self._phase,
            "error": self._answers.error
            or (self._outcomes and self._outcomes.error)
            or self._downlink.error
            or self._writer.error
            or self._label_queue.error
            or self._uplink.error
            or self._own.error
            or self._runs.error,
        }

    def state(self) -> DeviceState:
        """What the device says of itself on `fleet`."""
        account = self.spool.audit() if self._phase == "stopped" else self.spool.account()
        p50_us, p99_us = engine.latency_us() if (engine := self._slots.engine) else (0.0, 0.0)
        return DeviceState(
            **self._standing(),
            device=self._settings.device,
            task=self._task.name,
            time_us=time.time_ns() // 1000,
            epoch=self.spool.epoch,
            **vars(account),
            skipped=self._counts.skipped(),
            irregular=self._counts.irregular(),
            **self.samples.said(),
            late_labels=self._label_queue.account(),
            teacher_record=self.samples.teacher_record(),
            accuracy=self._scoreboard.scores(),
            metered=self._settings.metered < 1.0,
            refused_invitations=dict(self._runs.refused),
            received_bytes=self._downlink.received_bytes,
            passes=self._source.passes_done,
            events_per_s=self._answers.rate.per_second(),
            latency_p50_us=p50_us,
            latency_p99_us=p99_us,
        )
