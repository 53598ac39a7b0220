"""The worker process: a Faust app that owns partitions of `events` and scores them.

`run` blocks until SIGTERM or SIGINT. It raises an error when the worker must not continue: another
worker owns a partition, or Faust has failed. A supervisor should restart it.
"""

import asyncio
import contextlib
import gc
import logging
import os
import signal
import threading
import time
from collections.abc import Mapping
from typing import Any, cast

import faust
from faust.types import TP
from faust.types.auth import CredentialsT
from mode.threads import WorkerThread

from streams.contract.errors import BrokerUnavailable, ProcessFailed, TidewheelError
from streams.contract.task import Task, load_task
from streams.contract.topics import EVENTS, LABELS, topic_name, topic_specs, worker_group
from streams.kafka.admin import ensure_topics
from streams.kafka.settings import BrokerSettings
from streams.learning.teacher import pin_threads
from streams.runtime.failpoints import read_failpoint
from streams.runtime.health import serve
from streams.runtime.process import give_back
from streams.runtime.tracing import open_tracing
from streams.worker import patches
from streams.worker.agents import EventIntake, FaustBroker, Listening, TopicSurvey, ssl_context
from streams.worker.commit.committer import Committer
from streams.worker.commit.hole_keeper import HoleKeeper
from streams.worker.metrics import Metrics
from streams.worker.settings import WorkerSettings
from streams.worker.store.delta_store import DeltaStore
from streams.worker.store.maintenance import Maintenance
from streams.worker.store.tables import claim
from streams.worker.teacher_source import TeacherSource

SESSION_S = 10.0
HANDOVER_S = 8.0  # to finish a flush before a rebalance; shorter than the session
STOP_S = 15.0
FETCH_BYTES = 4 << 20  # of a partition at once: a fetch costs some milliseconds
COLLECT_EACH = 50_000  # new objects: a flush makes many that live on, and few cycles

log = logging.getLogger(__name__)
for library in ("faust", "mode", "aiokafka"):  # they log every state change at INFO
    logging.getLogger(library).setLevel(logging.WARNING)


def run(settings: WorkerSettings, environ: Mapping[str, str] = os.environ) -> None:
    """Run the worker until a signal; raise TidewheelError if it stopped by itself."""
    task = load_task(settings.task)
    pin_threads()
    give_back()
    offers = TeacherSource(task, settings)
    claim(settings.store, task.id)
    store = DeltaStore(settings.store)
    failpoint = read_failpoint(environ)
    tracing = open_tracing(environ, "tidewheel-worker", settings.instance, task.name)
    metrics = Metrics(in_session=lambda: patches.silent_s() < SESSION_S)
    if settings.metrics_port is not None:
        server = serve(metrics, settings.metrics_port, settings.metrics_host)
        where = f"{settings.metrics_host}:{server.port}"
        log.info("worker %s: metrics on %s", settings.instance, where)
    wait_for_topics(task, settings, metrics)
    teacher = offers.first(metrics)
    upkeep = Maintenance(settings.store, settings.upkeep_every, metrics, settings.keep_days)
    upkeep.start()

    async def main() -> None:
        gc.freeze()  # the loaded objects stay alive: exclude them from collections
        gc.set_threshold(COLLECT_EACH, 20, 20)
        app = make_app(task, settings)
        topic = topic_name(task.id, EVENTS)
        topics = topic, topic_name(task.id, LABELS)
        broker, listening = FaustBroker(app, topics, settings.broker), Listening(app, topic)
        survey = TopicSurvey(settings.broker, task.id)
        committer = Committer(
            task,
            teacher,
            store,
            broker,
            now_us=lambda: time.time_ns() // 1000,
            buffer_bytes=settings.buffer_bytes,
            scores=settings.scores,
            models=offers.models,
            committed=upkeep.committed,
            clock=listening,
            holes=HoleKeeper(
                settings.store, broker.begin, survey.survey, survey.first_in, failpoint
            ),
            failpoint=failpoint,
            metrics=metrics,
            tracing=tracing,
        )
        offers.follow(committer.scorer.offer)
        await broker.start()
        try:
            await Worker(settings, task, app, committer, listening, survey).work()
        finally:
            await broker.stop()

    failure: TidewheelError | None = None
    try:
        asyncio.run(main())
    except TidewheelError as exc:
        failure = exc
    ended = [offers.stop(STOP_S), upkeep.stop(STOP_S), *map(_ended, threading.enumerate())]
    tracing.close()
    if not all(ended):
        log.error("worker %s: %s; a thread did not end", settings.instance, failure or "stopped")
        os._exit(failure.exit_code if failure else 0)  # safe, see delta_store.py
    if failure is not None:
        raise failure


def _ended(thread: threading.Thread) -> bool:
    """Return whether a thread is none of Faust's, which may stay where a topic is gone, or ends."""
    if isinstance(thread, WorkerThread):
        thread.join(STOP_S)
    return not (isinstance(thread, WorkerThread) and thread.is_alive())


def wait_for_topics(task: Task, settings: WorkerSettings, metrics: Metrics) -> None:
    """Create the topics; wait for an unavailable broker, with one warning of each reason."""
    wait_s, said = 0.5, set[str]()
    while True:
        try:
            return ensure_topics(settings.broker, topic_specs(task.id, settings.partitions))
        except BrokerUnavailable as exc:
            if str(exc) not in said:
                log.warning("worker %s: waiting: %s", settings.instance, exc)
                said.add(str(exc))
            time.sleep(wait_s)
            metrics.flushed()  # waiting does not count as a stall
            wait_s = min(2 * wait_s, 5.0)


def make_app(task: Task, settings: WorkerSettings) -> faust.App:
    """Return the Faust app, configured for the commit's manual acknowledgements."""
    servers = settings.broker.bootstrap.split(",")
    datadir = settings.folder  # Faust requires one
    datadir.mkdir(parents=True, exist_ok=True)
    options: dict[str, Any] = {}
    if settings.broker.security_protocol != "PLAINTEXT":
        options["broker_credentials"] = credentials(settings.broker)
    patches.install()
    return faust.App(
        worker_group(task.id),
        broker=[f"kafka://{server.strip()}" for server in servers],
        store="memory://",
        datadir=datadir,
        key_serializer="raw",
        value_serializer="raw",
        web_enabled=False,
        topic_disable_leader=True,
        topic_allow_declare=False,
        topic_partitions=settings.partitions,
        stream_wait_empty=False,  # held acknowledgements would hang a rebalance and SIGTERM
        stream_buffer_maxsize=256,
        broker_max_poll_records=500,
        consumer_max_fetch_size=FETCH_BYTES,
        broker_commit_interval=1.0,
        broker_session_timeout=SESSION_S,
        broker_heartbeat_interval=2.0,
        consumer_auto_offset_reset="earliest",
        consumer_group_instance_id=settings.instance,
        **options,
    )


def credentials(broker: BrokerSettings) -> CredentialsT:
    """Return the broker settings as Faust's credentials."""
    if broker.security_protocol == "SSL":
        return faust.SSLCredentials(ssl_context(broker))
    return faust.SASLCredentials(
        mechanism=broker.sasl_mechanism or "PLAIN",
        username=broker.username,
        password=broker.password,
        ssl_context=ssl_context(broker),
    )


class Worker:
    """Connects the app to the committer: assignments, the flush loop, shutdown."""

    def __init__(
        self,
        settings: WorkerSettings,
        task: Task,
        app: faust.App,
        committer: Committer,
        listening: Listening,
        survey: TopicSurvey,
    ) -> None:
        self._settings = settings
        self._app = app
        self._committer, self._listening, self._survey = committer, listening, survey
        self._stop = asyncio.Event()
        self._failure: BaseException | None = None
        self._topics = [topic_name(task.id, of) for of in (EVENTS, LABELS)]
        self._topic = self._topics[0]
        self._intakes = [EventIntake(app, t, committer, self._fail) for t in (EVENTS, LABELS)]
        for of, name, intake in zip((EVENTS, LABELS), self._topics, self._intakes, strict=True):
            topic = app.topic(name, key_serializer="raw", value_serializer="raw")
            app.agent(topic, name=f"score-{of}")(intake.consume)
        app.on_partitions_assigned.connect(cast(Any, self._assigned), weak=False)
        app.on_partitions_revoked.connect(cast(Any, self._revoked), weak=False)

    def _fail(self, reason: BaseException) -> None:
        self._failure = self._failure or reason
        self._stop.set()

    async def _assigned(self, _app: Any, *sent: Any, **_: Any) -> None:
        assigned: set[TP] = sent[0]
        generation = self._app.consumer_generation_id
        partitions = sorted(tp.partition for tp in assigned if tp.topic == self._topic)
        try:
            for topic in self._topics:
                if not self._listening.has(topic):  # none of it would ever be assigned
                    self._fail(ProcessFailed(f"the topic {topic} is gone: a restart makes it"))
            async with self._committer.lock:
                self._committer.revoke_all()
                self._listening.forget()
                if partitions:
                    there = await self._survey.positions(EVENTS)
                    labels = await self._survey.positions(LABELS)
                for partition in partitions:
                    if self._stop.is_set():
                        return
                    await self._committer.assign(there[partition], labels[partition])
        except Exception as exc:
            self._fail(exc)
            raise
        for intake in self._intakes:
            intake.loaded(generation)
        self._committer.metrics.assigned(True)
        log.info("worker %s: ready, partitions %s", self._settings.instance, partitions)

    async def _revoked(self, _app: Any, *_sent: Any, **_: Any) -> None:
        for intake in self._intakes:
            intake.loaded(-1)  # messages that wait for room are those of the next owner
        self._committer.metrics.assigned(False)
        try:
            async with asyncio.timeout(HANDOVER_S), self._committer.lock:
                self._committer.revoke_all()
        except TimeoutError:
            self._fail(ProcessFailed("the running commit did not end in time for a rebalance"))
        self._wake()

    def _wake(self) -> None:
        for intake in self._intakes:
            intake.wake()

    async def work(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop.set)
        self._app.finalize()
        patches.patch_app(self._app)
        await self._app.start()
        flushing = asyncio.create_task(self._flush_until_stopped())
        try:
            await self._app.wait(self._stop.wait())
        finally:
            self._stop.set()
            self._committer.wanted.set()
            await flushing
            await self._end()
        failure = self._failure or self._app.crash_reason
        if isinstance(failure, TidewheelError):
            raise failure
        if failure is not None:
            name = type(failure).__name__
            raise ProcessFailed(f"worker {self._settings.instance}: {name}: {failure}") from failure

    async def _flush_until_stopped(self) -> None:
        """Flush periodically; a started flush is always finished."""
        while not self._stop.is_set():
            began = time.monotonic()
            try:
                taken = self._committer.partitions.items()
                await self._listening.look({p: state.next_offset for p, state in taken})
                rows = await self._committer.flush(began)
            except Exception as exc:
                self._fail(exc)
                return
            took = time.monotonic() - began
            if rows:
                log.debug("sealed %d rows in %.0f ms", rows, 1000 * took)
            self._wake()
            self._measure_lag()
            with contextlib.suppress(TimeoutError):
                hurry = self._committer.behind or self._stop.is_set()
                pause = 0.01 if hurry else max(0.01, self._settings.flush_s - took)
                await asyncio.wait_for(self._committer.wanted.wait(), pause)

    def _measure_lag(self) -> None:
        """Update the lag metrics, from the partition ends in Faust's fetches."""
        consumer = self._app.consumer
        for partition in self._committer.partitions:
            tp = TP(self._topic, partition)
            end, committed = consumer.highwater(tp), self._committer.partitions[partition].done
            if end is not None and committed is not None:
                self._committer.metrics.lag(partition, max(0, end - committed))

    async def _end(self) -> None:
        try:
            await asyncio.wait_for(self._app.stop(), STOP_S)
        except TimeoutError:
            # Nothing is lost: uncommitted messages come again. A thread of Faust may keep the
            # process alive, so it exits here.
            log.warning("worker %s: Faust did not stop in %.0f s", self._settings.instance, STOP_S)
            os._exit(1)
