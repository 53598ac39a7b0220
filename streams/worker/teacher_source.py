"""Where a worker's teacher comes from: a file, or what the server offers."""

import logging
import time
from collections.abc import Callable
from pathlib import Path

from streams.contract.errors import Retryable, UsageError
from streams.contract.task import Task
from streams.learning.teacher import Teacher, load_teacher
from streams.runtime.key_files import load_public_key
from streams.worker.metrics import Metrics
from streams.worker.scoring.teacher_updates import TeacherUpdates
from streams.worker.settings import WorkerSettings

log = logging.getLogger(__name__)


class TeacherSource:
    """The source of the teacher: a file from the settings, or the server's offers."""

    def __init__(self, task: Task, settings: WorkerSettings) -> None:
        self._settings = settings
        self._found: Teacher | None = None
        self._take: Callable[[Teacher], None] = self._keep
        keys = [load_public_key(path) for path in settings.trusted]
        file = settings.teacher
        if file is None and settings.fallback is not None and settings.fallback.exists():
            file = settings.fallback
        if file is not None:
            self._found = self._load(task, file)
        self._feed = None
        if settings.teacher is None:
            self._feed = TeacherUpdates(
                task,
                settings.broker,
                keys,
                lambda found: self._take(found),
                settings.threads,
                settings.device,
            )

    def other(self, task: Task) -> Teacher:
        """Return the teacher of another version of the task, which no offer replaces."""
        settings = self._settings
        if settings.also_teacher is None:
            raise UsageError(
                f"version {task.version} of task {task.name} needs its teacher: --also-teacher "
                "<its state folder>/registry/teacher.twa"
            )
        return self._load(task, settings.also_teacher)

    def _load(self, task: Task, file: Path) -> Teacher:
        settings = self._settings
        return load_teacher(task, file, settings.trusted, settings.threads, settings.device)

    def _keep(self, teacher: Teacher) -> None:
        self._found = teacher

    def first(self, metrics: Metrics) -> Teacher:
        """Return the first teacher; wait for one, with one warning."""
        said = False
        while self._feed is not None:
            try:
                self._feed.look()
            except Retryable as exc:
                log.warning("worker %s: %s", self._settings.instance, exc)
            if self._found is not None:
                break
            if not said:
                log.warning(
                    "worker %s: waiting for a teacher: start the controller, which offers it",
                    self._settings.instance,
                )
                said = True
            time.sleep(1.0)
            metrics.flushed()
        assert self._found is not None
        return self._found

    def follow(self, take: Callable[[Teacher], None]) -> None:
        """Pass all teachers offered from now on to `take`."""
        self._take = take
        if self._feed is not None:
            self._feed.start()

    def stop(self, timeout_s: float) -> bool:
        """Stop following offers; return whether the thread ended in time."""
        return self._feed is None or self._feed.stop(timeout_s)
