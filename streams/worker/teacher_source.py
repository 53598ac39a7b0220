"""Where a worker's teacher comes from: a file, or what the server offers.

Offers are read at start, then followed on a thread. The last decision on `releases` names the
teacher. Its chunks are fetched and verified, a window of zeros is scored, and the committer takes
it before its next commit. Nothing of it is on disk: a crash at any step starts again from the
topic. One that does not verify, does not fit the task or cannot score a window is refused with its
reason, and the current teacher stays in use.
"""

import contextlib
import logging
import random
import sys
import threading
import time
from collections.abc import Callable

from streams.contract.decisions import Release
from streams.contract.errors import ArtifactError, MalformedRecord, Retryable
from streams.contract.task import Task
from streams.contract.topics import RELEASES, topic_name
from streams.kafka.artifact_download import Download, fetch
from streams.kafka.reader import Reader, Received
from streams.learning.teacher import Teacher, load_teacher, make_teacher
from streams.runtime.acceptance import Acceptance
from streams.runtime.key_files import load_public_key
from streams.worker.metrics import Metrics
from streams.worker.settings import WorkerSettings

LOOK_S = 1.0

log = logging.getLogger(__name__)


class TeacherSource(threading.Thread):
    """The source of the teacher: a file from the settings, or every usable one that is offered."""

    def __init__(self, task: Task, settings: WorkerSettings) -> None:
        super().__init__(name="teachers", daemon=True)
        self._task, self._settings = task, settings
        self._ending = threading.Event()
        keys = [load_public_key(path) for path in settings.trusted]
        self._acceptance = Acceptance(None, task, keys)
        self._seen: str | None = None  # the digest of the last offer
        self._found: Teacher | None = None
        self._take: Callable[[Teacher], None] = self._keep
        file, fallback = settings.teacher, settings.fallback
        if file is None and fallback is not None and fallback.exists():
            file = fallback
        if file is not None:
            threads, device = settings.threads, settings.device
            self._found = load_teacher(task, file, settings.trusted, threads, device)

    def _keep(self, teacher: Teacher) -> None:
        self._found = teacher

    def first(self, metrics: Metrics) -> Teacher:
        """Return the first teacher; wait for one, with one warning."""
        name, said = self._settings.instance, False
        while self._settings.teacher is None:
            try:
                with contextlib.closing(self._reader()) as reader:
                    self._consider(reader.read_to_end(), past=sys.maxsize)
            except Retryable as exc:
                log.warning("worker %s: %s", name, exc)
            if self._found is not None:
                break
            if not said:
                text = "worker %s: waiting for a teacher: start the controller, which offers it"
                log.warning(text, name)
                said = True
            time.sleep(1.0)
            metrics.flushed()
        assert self._found is not None
        return self._found

    def follow(self, take: Callable[[Teacher], None]) -> None:
        """Pass all teachers offered from now on to `take`."""
        self._take = take
        if self._settings.teacher is None:
            self.start()

    def run(self) -> None:
        while not self._ending.is_set():
            try:
                self._follow()
            except Retryable as exc:
                log.debug("teachers: %s", exc)
            except Exception:  # a defect: the current teacher stays in use
                log.exception("following the offered teachers failed, trying again")
            self._ending.wait(random.uniform(1.0, 3.0))

    def stop(self, timeout_s: float) -> bool:
        """Stop the thread; return whether it ended in time."""
        self._ending.set()
        if self.ident is not None:
            self.join(timeout_s)
        return not self.is_alive()

    def _follow(self) -> None:
        with contextlib.closing(self._reader()) as reader:
            past = reader.end(topic_name(self._task.id, RELEASES), 0)
            while not self._ending.wait(LOOK_S):
                self._consider(reader.poll(0.05), past)

    def _reader(self) -> Reader:
        return Reader(self._settings.broker, [topic_name(self._task.id, RELEASES)])

    def _consider(self, messages: list[Received], past: int) -> None:
        """Accept decisions in order, and load the teacher of the last one with deliveries. past:
        the topic is read from its beginning; most decisions before this offset are older than the
        last one."""
        last = None
        for message in messages:
            try:
                release = Release.decode(message.value)
                self._acceptance.accept(release)
                last = release if release.deliveries else last
            except (ArtifactError, MalformedRecord) as exc:
                replayed = isinstance(exc, ArtifactError) and exc.reason == "replayed"
                expected = replayed and message.offset < past
                level = logging.DEBUG if expected else logging.WARNING
                log.log(level, "%s offset %d: %s", message.topic, message.offset, exc)
        if last is not None:
            self._load(last)

    def _load(self, release: Release) -> None:
        ref = release.decision.standing.teacher
        if ref is None or ref.digest == self._seen:
            return
        try:
            delivery = next((d for d in release.deliveries if d.model == ref.model), None)
            if delivery is None:
                raise ArtifactError("missing", f"teacher {ref.model} has no delivery")
            delivery.check_bound(ref)
            settings, where = self._settings, f"release {ref.model}"
            data = fetch(settings.broker, self._task.id, Download(delivery), self._ending.is_set)
            teacher = make_teacher(
                self._task, data, self._acceptance.trusted, where, settings.threads, settings.device
            )
            if teacher.digest != ref.digest:
                raise ArtifactError("digest", f"release {ref.model} names another artifact")
        except ArtifactError as exc:
            log.error("teacher %s refused: %s", ref.model, exc)
            if exc.reason == "missing":
                return  # the next announcement may tell where the bytes are
        else:
            self._take(teacher)
        self._seen = ref.digest
