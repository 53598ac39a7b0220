"""The teacher that the server offers: read at start, followed on a thread of its own.

A release on `releases` under `delivery.teacher_key` names the artifact. What does not verify, does
not fit the task or cannot score a window is refused with its reason; the teacher in use goes on.
"""

import logging
import random
import threading
from collections.abc import Callable, Sequence

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from streams.contract.bus import BrokerSettings, Reader, Received
from streams.contract.delivery import fetch, teacher_key
from streams.contract.documents import Release
from streams.contract.errors import ArtifactError, MalformedRecord, Retryable
from streams.contract.task import Task
from streams.contract.topics import RELEASES, topic_name
from streams.worker.scoring import Teacher, make_teacher

LOOK_S = 1.0

log = logging.getLogger(__name__)


class TeacherFeed(threading.Thread):
    """Hands every teacher that is offered, and can be used, to `take`."""

    def __init__(
        self,
        task: Task,
        settings: BrokerSettings,
        trusted: Sequence[Ed25519PublicKey],
        take: Callable[[Teacher], None],
        threads: int = 1,
    ) -> None:
        super().__init__(name="teachers", daemon=True)
        self._task, self._settings, self._trusted, self._take = task, settings, trusted, take
        self._threads = threads
        self._ending = threading.Event()
        self._seen: str | None = None  # the digest of the last one that was tried

    def look(self) -> None:
        """Take the teacher that is offered now, if there is one; Retryable without a broker."""
        reader = self._reader()
        try:
            self._consider(reader.read_to_end())
        finally:
            reader.close()

    def run(self) -> None:
        while not self._ending.is_set():
            try:
                self._follow()
            except Retryable as exc:
                log.debug("teachers: %s", exc)
            except (
                Exception
            ):  # a defect: the teacher in use goes on, and the next offer is looked at
                log.exception("following the offered teachers failed")
            self._ending.wait(random.uniform(1.0, 3.0))

    def stop(self, timeout_s: float) -> bool:
        """End; whether that was in time."""
        self._ending.set()
        if self.ident is not None:
            self.join(timeout_s)
        return not self.is_alive()

    def _follow(self) -> None:
        reader = self._reader()
        try:
            while not self._ending.wait(LOOK_S):
                self._consider(reader.poll(0.05))
        finally:
            reader.close()

    def _reader(self) -> Reader:
        return Reader(self._settings, [topic_name(self._task.name, RELEASES)])

    def _consider(self, messages: list[Received]) -> None:
        release = self._last(messages)
        if release is None or release.digest == self._seen:
            return
        try:
            data = fetch(self._settings, release, self._ending)
            where = f"release {release.model}"
            teacher = make_teacher(self._task, data, self._trusted, where, self._threads)
            if teacher.digest != release.digest:
                raise ArtifactError("digest", f"release {release.model} names another artifact")
        except ArtifactError as exc:
            log.error("teacher %s refused: %s", release.model, exc)
        else:
            self._take(teacher)
        self._seen = release.digest

    def _last(self, messages: list[Received]) -> Release | None:
        found = None
        for message in messages:
            if message.key != teacher_key(self._task.name) or message.value is None:
                continue
            try:
                found = Release.decode(message.value)
            except MalformedRecord as exc:
                log.warning("%s offset %d: %s", message.topic, message.offset, exc)
        return found
