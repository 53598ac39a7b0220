"""Where a worker's teacher comes from: a file, or what the server offers; and with
`Task.answer_by="worker"` the versions that devices would serve.

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

from streams.contract.artifact import unpack
from streams.contract.decisions import Ref, Release
from streams.contract.errors import ArtifactError, MalformedRecord, Retryable, UsageError
from streams.contract.task import Task
from streams.contract.topics import RELEASES, topic_name
from streams.kafka.artifact_download import Download, fetch
from streams.kafka.reader import Reader, Received
from streams.learning.teacher import Teacher, load_teacher, make_teacher
from streams.runtime.trust import Acceptance, load_public_key
from streams.worker.metrics import Metrics
from streams.worker.settings import WorkerSettings
from streams.worker.windows.scoring_step import DeviceModels

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
        self.models = DeviceModels(task)
        file, fallback = settings.teacher, settings.fallback
        if file is None and fallback is not None and fallback.exists():
            file = fallback
        if file is not None:
            threads, device = settings.threads, settings.device
            try:
                self._found = load_teacher(task, file, settings.trusted, threads, device)
            except ArtifactError as exc:
                advice = "name another file with --teacher, or the key that signed it with --trust"
                raise UsageError(f"the teacher {file}: {exc}: {advice}") from exc

    def _keep(self, teacher: Teacher) -> None:
        self._found = teacher

    def first(self, metrics: Metrics) -> Teacher:
        """Return the first teacher; wait for one, with one warning."""
        name, said = self._settings.instance, False
        while not self._complete:
            try:
                with contextlib.closing(self._reader()) as reader:
                    self._consider(reader.read_to_end(), past=sys.maxsize)
            except Retryable as exc:
                log.warning("worker %s: %s", name, exc)
            if self._complete:
                break
            if not said:
                wanted = "a teacher" if self._found is None else "a version to answer with"
                text = "worker %s: waiting for %s: start the controller, which offers it"
                log.warning(text, name, wanted)
                said = True
            time.sleep(1.0)
            metrics.flushed()
        assert self._found is not None
        return self._found

    @property
    def _complete(self) -> bool:
        """Whether events can be scored."""
        answers = self._task.answer_by == "device" or bool(self.models.known)
        return self._found is not None and answers

    def follow(self, take: Callable[[Teacher], None]) -> None:
        """Pass all teachers offered from now on to `take`."""
        self._take = take
        if self._settings.teacher is None or self._task.answer_by == "worker":
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
        if self._task.answer_by == "worker":
            self._load_models(release)
        if self._settings.teacher is None:
            self._load_teacher(release)

    def _load_models(self, release: Release) -> None:
        """Load the versions that are served, but for those that are loaded."""
        from streams.learning.onnx_model import OnnxModel

        standing = release.decision.standing
        found: dict[str, OnnxModel] = {}
        for ref in filter(None, (standing.stable, standing.offered)):
            try:
                model = self.models.known.get(ref.model)
                if model is None:
                    data, trusted = self._bytes_of(release, ref), self._acceptance.trusted
                    name, version = self._task.name, self._task.version
                    artifact = unpack(
                        data, trusted, task=name, task_version=version, digest=ref.digest
                    )
                    model = OnnxModel(self._task, artifact)
                found[ref.model] = model
            except ArtifactError as exc:
                log.error("version %s refused: %s", ref.model, exc)
        if found:
            self.models.offer(standing, found)

    def _bytes_of(self, release: Release, ref: Ref) -> bytes:
        """Return the bytes of a whole artifact."""
        wanted = (d for d in release.deliveries if d.model == ref.model and not d.of_part)
        delivery = next((d for d in wanted if d.base is None), None)
        if delivery is None:
            raise ArtifactError("missing", f"{ref.model} has no delivery")
        delivery.check_bound(ref)
        broker = self._settings.broker
        return fetch(broker, self._task.id, Download(delivery), self._ending.is_set)

    def _load_teacher(self, release: Release) -> None:
        ref = release.decision.standing.teacher
        if ref is None or ref.digest == self._seen:
            return
        try:
            settings, where = self._settings, f"release {ref.model}"
            data = self._bytes_of(release, ref)
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
